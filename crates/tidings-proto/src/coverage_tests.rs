use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::id::{Incarnation, NodeId};

const START: Tick = Tick(1_000 << 30);

fn at(micros: u64) -> Tick {
    START.after(Duration::from_micros(micros))
}

fn origin(number: usize) -> Origin {
    Origin { node: NodeId::new(&format!("n{number}")).unwrap(), incarnation: Incarnation(1) }
}

fn lanes() -> Lanes {
    Lanes::new(2).unwrap()
}

fn lane(index: usize) -> LaneId {
    lanes().ids().nth(index).unwrap()
}

fn shares(coherent: Coherent) -> [(u64, u64); WITHIN.len()] {
    coherent.since_start.map(|share| (share.coherent, share.judged))
}

/// Two members, and nothing written.
fn two() -> Coverage {
    let mut coverage = Coverage::new(lanes());
    (1..=2).for_each(|number| coverage.joined(&origin(number), &[0, 0], at(0)));
    coverage
}

#[test]
fn a_write_is_coherent_when_the_last_member_has_applied_it_whoever_says_so_first() {
    let mut coverage = two();
    coverage.noted(lane(0), 3, at(1_000));
    // The second one's word comes first and dates later.
    coverage.applied(&origin(2), (lane(0), 3), [(3, at(7_000))]);
    assert_eq!(shares(coverage.coherent(at(8_000))), [(0, 0); 4], "one has not said anything");
    coverage.applied(&origin(1), (lane(0), 3), [(3, at(1_500))]);
    assert_eq!(shares(coverage.coherent(at(8_000))), [(0, 3), (3, 3), (3, 3), (3, 3)]);
    let times = coverage.coherent(at(8_000)).times;
    assert_eq!((times.count(), times.sum()), (3, Duration::from_millis(18)));
}

#[test]
fn what_a_lost_member_has_not_applied_is_not_coherent_until_it_leaves_and_late_then() {
    let mut coverage = two();
    coverage.noted(lane(1), 1, at(0));
    coverage.applied(&origin(1), (lane(1), 1), [(1, at(400))]);
    assert_eq!(
        shares(coverage.coherent(at(55_000))),
        [(0, 1), (0, 0), (0, 0), (0, 0)],
        "the rest is undecided"
    );
    assert_eq!(shares(coverage.coherent(at(3_000_000))), [(0, 1); 4]);
    assert_eq!(coverage.coherent(at(3_000_000)).pending, 1);
    coverage.left(&origin(2), &[0, 1], at(4_000_000));
    let coherent = coverage.coherent(at(4_000_000));
    assert_eq!((shares(coherent.clone()), coherent.pending), ([(0, 1); 4], 0));
    assert_eq!(coherent.times.sum(), Duration::from_secs(4));
    // What is written from then on is not for it.
    coverage.noted(lane(1), 2, at(4_100_000));
    coverage.applied(&origin(1), (lane(1), 2), [(2, at(4_100_500))]);
    assert_eq!(shares(coverage.coherent(at(5_000_000))), [(1, 2); 4]);
}

#[test]
fn a_newcomer_counts_for_what_is_written_after_it_came_and_writes_without_members_for_nothing() {
    let mut coverage = Coverage::new(lanes());
    coverage.noted(lane(0), 5, at(0));
    coverage.joined(&origin(1), &[7, 0], at(1_000));
    assert_eq!(coverage.coherent(at(2_000)).alone, 7);
    coverage.noted(lane(0), 8, at(2_000));
    coverage.joined(&origin(2), &[8, 0], at(2_050));
    // Within the resolution of the mark before, but for both.
    coverage.noted(lane(0), 9, at(2_100));
    coverage.applied(&origin(1), (lane(0), 9), [(8, at(2_500)), (9, at(2_600))]);
    assert_eq!(shares(coverage.coherent(at(2_700)))[0], (1, 1), "the second one was not there for it");
    coverage.applied(&origin(2), (lane(0), 9), [(9, at(2_700))]);
    assert_eq!(shares(coverage.coherent(at(2_700)))[0], (2, 2));
}

#[test]
fn the_last_minute_forgets_and_the_start_does_not() {
    let mut coverage = two();
    let write = |coverage: &mut Coverage, sequence, micros, took| {
        coverage.noted(lane(0), sequence, at(micros));
        for member in 1..=2 {
            coverage.applied(&origin(member), (lane(0), sequence), [(sequence, at(micros + took))]);
        }
    };
    write(&mut coverage, 1, 0, 2_000_000);
    write(&mut coverage, 2, 30_000_000, 500);
    let ratios = |micros| {
        let coherent = coverage.coherent(at(micros));
        (coherent.last_minute[3].ratio(), coherent.since_start[3].ratio())
    };
    assert_eq!(ratios(31_000_000), (Some(0.5), Some(0.5)));
    assert_eq!(ratios(75_000_000), (Some(1.0), Some(0.5)));
    assert_eq!(ratios(200_000_000), (None, Some(0.5)));
}

#[test]
fn what_a_peer_claims_beyond_the_head_counts_for_nothing_later() {
    let mut coverage = two();
    coverage.noted(lane(0), 1, at(0));
    for member in 1..=2 {
        coverage.applied(&origin(member), (lane(0), 1), [(Sequence::MAX, at(100))]);
    }
    coverage.noted(lane(0), 2, at(10_000));
    assert_eq!(shares(coverage.coherent(at(500_000)))[0], (1, 2), "nobody has applied the second one");
    coverage.applied(&origin(7), (lane(0), 2), [(2, at(10_000))]);
    assert_eq!(coverage.coherent(at(500_000)).pending, 1, "a stranger's word is none");
}

#[test]
fn marks_are_bounded_and_what_is_given_up_counts_as_late() {
    let mut coverage = two();
    for write in 1..=MARKS_MAX as u64 + 10 {
        coverage.noted(lane(0), write, at(write * 250));
    }
    assert_eq!(coverage.lanes[0].marks.len(), MARKS_MAX);
    let coherent = coverage.coherent(at(MARKS_MAX as u64 * 250));
    assert_eq!((coherent.since_start[3].coherent, coherent.times.count()), (0, 10));
}

#[test]
fn what_is_given_up_is_coherent_in_no_time_however_soon_marks_follow_each_other() {
    let mut coverage = two();
    let given_up = 10;
    for write in 1..=MARKS_MAX as u64 + given_up {
        // The first one applies each write before the next is made, the second one nothing.
        coverage.noted(lane(0), write, at(write * 20));
        coverage.applied(&origin(1), (lane(0), write), [(write, at(write * 20 + 10))]);
    }
    assert_eq!(coverage.lanes[0].marks.len(), MARKS_MAX);
    assert_eq!(shares(coverage.coherent(at(0))), [(0, given_up); 4]);
    assert!(coverage.coherent(at(0)).times.sum() > WITHIN[3] * given_up as u32);
}

#[test]
fn a_peer_does_not_date_a_write_before_the_one_that_was_noted_last() {
    let mut coverage = two();
    coverage.noted(lane(0), 1, at(100_000));
    (1..=2).for_each(|member| coverage.applied(&origin(member), (lane(0), 1), [(1, at(100_000))]));
    // Its word on the second write comes before the node's own, and says that it is older than it can be.
    coverage.applied(&origin(1), (lane(0), 2), [(2, at(35_500))]);
    coverage.noted(lane(0), 2, at(100_500));
    coverage.applied(&origin(2), (lane(0), 2), [(2, at(100_600))]);
    assert_eq!(shares(coverage.coherent(at(200_000))), [(2, 2); 4]);
    assert_eq!(coverage.coherent(at(200_000)).times.sum(), Duration::from_micros(600));
}

/// What happens at a time, in an order of its own.
#[derive(Clone, Debug)]
enum Step {
    Write { lane: usize, count: u64 },
    Apply { member: usize, lane: usize, back: u64, late: u64 },
    Come(usize),
    Go(usize),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        4 => (0..2_usize, 1..4_u64).prop_map(|(lane, count)| Step::Write { lane, count }),
        6 => (0..3_usize, 0..2_usize, 0..3_u64, 0..4_000_u64)
            .prop_map(|(member, lane, back, late)| Step::Apply { member, lane, back, late }),
        1 => (0..3_usize).prop_map(Step::Come),
        1 => (0..3_usize).prop_map(Step::Go),
    ];
    prop::collection::vec(
        (prop_oneof![0..200_u64, 250..300_u64, 900..20_000_u64, Just(400_000)], step),
        1..120,
    )
}

/// Lane, sequence, when it was made, and who has to apply it or did so, and when.
type Written = (usize, u64, u64, BTreeMap<usize, Option<u64>>);

/// Every write by itself.
#[derive(Default)]
struct Naive {
    heads: [u64; 2],
    writes: Vec<Written>,
    members: BTreeMap<usize, [u64; 2]>,
    /// Whether writes share a mark, of which the last one's word holds: who had that had those before it.
    together: bool,
}

impl Naive {
    fn took(&self) -> Vec<u64> {
        let done = |(_, _, at, by): &Written| {
            by.values().try_fold(*at, |last, applied| Some(last.max((*applied)?))).map(|last| last - at)
        };
        self.writes.iter().filter(|write| !write.3.is_empty()).filter_map(done).collect()
    }

    fn apply(&mut self, member: usize, lane: usize, to: u64, at: u64) {
        for (in_lane, sequence, _, by) in &mut self.writes {
            if *in_lane == lane && *sequence <= to {
                let sooner = |said: u64| if self.together { said.min(at) } else { said };
                by.entry(member).and_modify(|applied| *applied = Some(applied.map_or(at, sooner)));
            }
        }
    }
}

/// Runs the steps on both. `apart`: no two writes share a mark.
fn compare(steps: Vec<(u64, Step)>, apart: bool) -> (Coherent, Vec<u64>) {
    let naive = Naive { together: !apart, ..Naive::default() };
    let (mut coverage, mut naive, mut now) = (Coverage::new(lanes()), naive, 0);
    for (pause, step) in steps {
        now += pause + if apart { 250 } else { 0 };
        match step {
            Step::Write { lane: index, count } => {
                let count = if apart { 1 } else { count };
                for _ in 0..count {
                    naive.heads[index] += 1;
                    let by = naive.members.keys().map(|member| (*member, None)).collect();
                    naive.writes.push((index, naive.heads[index], now, by));
                }
                coverage.noted(lane(index), naive.heads[index], at(now));
            }
            Step::Apply { member, lane: index, back, late } => {
                let Some(applied) = naive.members.get_mut(&member) else { continue };
                let to = naive.heads[index].saturating_sub(back).max(applied[index]);
                let when = now.saturating_sub(late);
                applied[index] = to;
                // Never before it was written, as a peer that tells the truth.
                let last = naive
                    .writes
                    .iter()
                    .filter(|write| write.0 == index && write.1 <= to)
                    .map(|write| write.2);
                let when = when.max(last.max().unwrap_or(0));
                naive.apply(member, index, to, when);
                coverage.applied(&origin(member), (lane(index), naive.heads[index]), [(to, at(when))]);
            }
            Step::Come(member) => {
                naive.members.entry(member).or_insert(naive.heads);
                coverage.joined(&origin(member), &naive.heads, at(now));
            }
            Step::Go(member) => {
                if naive.members.remove(&member).is_some() {
                    (0..2).for_each(|lane| naive.apply(member, lane, u64::MAX, now));
                }
                coverage.left(&origin(member), &naive.heads, at(now));
            }
        }
    }
    let took = naive.took();
    let written: u64 = naive.heads.iter().sum();
    let coherent = coverage.coherent(at(now));
    assert_eq!(
        coherent.alone + coherent.pending + coherent.times.count(),
        written,
        "every write is somewhere"
    );
    (coherent, took)
}

proptest! {
    #[test]
    fn writes_that_are_apart_are_measured_as_one_by_one(steps in steps()) {
        let (coherent, took) = compare(steps, true);
        prop_assert_eq!(coherent.times.count(), took.len() as u64);
        prop_assert_eq!(coherent.times.sum(), Duration::from_micros(took.iter().sum()));
        for (share, within) in coherent.since_start.iter().zip(WITHIN) {
            let timely = took.iter().filter(|took| Duration::from_micros(**took) <= within).count();
            prop_assert_eq!(share.coherent, timely as u64);
        }
    }

    #[test]
    fn no_write_is_said_to_be_coherent_sooner_than_it_was(steps in steps()) {
        let (coherent, took) = compare(steps, false);
        prop_assert!(coherent.times.count() <= took.len() as u64);
        for (share, within) in coherent.since_start.iter().zip(WITHIN) {
            let timely = took.iter().filter(|took| Duration::from_micros(**took) <= within).count();
            prop_assert!(share.coherent <= timely as u64, "{} of {timely} within {within:?}", share.coherent);
        }
    }
}
