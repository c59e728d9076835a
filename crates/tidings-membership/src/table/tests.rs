use proptest::prelude::*;

use super::*;
use crate::attest::tests::record;

const SILENCE: Duration = Duration::from_millis(1500);
const GRACE: Duration = Duration::from_secs(5);

fn table() -> Table {
    let me = record("me", 5).origin;
    Table::new(me, Patience { link_silence: SILENCE, grace: GRACE })
}

fn at(millis: u64) -> Tick {
    Tick(1).after(Duration::from_millis(millis))
}

fn origin(node: &str, incarnation: u64) -> Origin {
    record(node, incarnation).origin
}

fn stated(node: &str, incarnation: u64, left: bool) -> Statement {
    Statement { record: record(node, incarnation), serial: 1, left }
}

fn heard(origins: &[Origin]) -> BTreeSet<Origin> {
    origins.iter().cloned().collect()
}

fn state(table: &Table, origin: &Origin) -> Option<State> {
    table.view(BTreeSet::new()).life(origin).map(|member| member.state)
}

#[test]
fn a_member_named_by_gossip_is_suspect_then_live_once_heard() {
    let mut table = table();
    let a = origin("a", 1);
    assert!(table.stated(&stated("a", 1, false), at(0)));
    assert_eq!(state(&table, &a), Some(State::Suspect));
    assert!(table.gossiped(&heard(std::slice::from_ref(&a)), at(1_000)));
    assert_eq!(state(&table, &a), Some(State::Live));
}

#[test]
fn a_member_that_nobody_ever_hears_is_lost_after_the_grace() {
    let mut table = table();
    table.stated(&stated("a", 1, false), at(0));
    assert_eq!(table.deadline(at(0)), Some(at(5_000)));
    assert!(!table.tick(at(4_999)));
    assert!(table.tick(at(5_000)));
    assert_eq!(state(&table, &origin("a", 1)), Some(State::Lost));
}

#[test]
fn a_link_that_is_heard_makes_a_member_live_whatever_gossip_says() {
    let mut table = table();
    let a = origin("a", 1);
    table.stated(&stated("a", 1, false), at(0));
    table.tick(at(60_000));
    assert_eq!(state(&table, &a), Some(State::Lost));
    assert!(table.link_up(record("a", 1), at(60_000)));
    table.gossiped(&heard(&[]), at(60_100));
    assert_eq!(state(&table, &a), Some(State::Live));
    for step in 1..20 {
        assert!(!table.link_heard(&a, at(60_000 + step * 1_000)));
        assert!(!table.tick(at(60_000 + step * 1_000)));
    }
    assert_eq!(state(&table, &a), Some(State::Live));
}

#[test]
fn a_silent_link_makes_a_member_suspect_then_lost_if_gossip_is_silent_too() {
    let mut table = table();
    let a = origin("a", 1);
    table.link_up(record("a", 1), at(0));
    assert_eq!(table.deadline(at(0)), Some(at(1_500)));
    assert!(table.tick(at(1_500)));
    assert_eq!(state(&table, &a), Some(State::Suspect));
    assert_eq!(table.deadline(at(1_500)), Some(at(5_000)));
    assert!(table.tick(at(5_000)));
    assert_eq!(state(&table, &a), Some(State::Lost));
    assert!(table.link_heard(&a, at(9_000)));
    assert_eq!(state(&table, &a), Some(State::Live));
}

#[test]
fn a_member_whose_link_is_down_stays_suspect_while_gossip_hears_it() {
    let mut table = table();
    let a = origin("a", 1);
    table.link_up(record("a", 1), at(0));
    table.gossiped(&heard(std::slice::from_ref(&a)), at(100));
    assert!(table.link_down(&a, at(200)));
    table.tick(at(100_000));
    assert_eq!(state(&table, &a), Some(State::Suspect));
    assert!(table.gossiped(&heard(&[]), at(100_001)));
    assert_eq!(state(&table, &a), Some(State::Lost));
}

#[test]
fn a_member_whose_link_nobody_needs_is_as_live_as_gossip_says() {
    let (mut table, member) = (table(), origin("a", 1));
    table.link_up(stated("a", 1, false).record, at(0));
    table.gossiped(&heard(std::slice::from_ref(&member)), at(100));
    assert!(!table.link_let_go(&member, at(200)), "it is live all the same");
    assert_eq!((state(&table, &member), table.is_linked(&member)), (Some(State::Live), false));
    table.gossiped(&heard(&[]), at(300));
    assert_eq!(state(&table, &member), Some(State::Suspect), "it was heard until just now");
    table.tick(at(1_000_000));
    assert_eq!(state(&table, &member), Some(State::Lost));
}

#[test]
fn a_deadline_that_was_slept_through_is_due_at_once() {
    let mut table = table();
    table.link_up(record("a", 1), at(0));
    table.gossiped(&heard(&[origin("a", 1)]), at(100));
    assert_eq!(table.deadline(at(3_000)), Some(at(3_000)));
    assert!(table.tick(at(3_000)));
    assert_eq!(table.deadline(at(3_000)), None);
}

#[test]
fn who_said_goodbye_has_left_for_good() {
    let mut table = table();
    let a = origin("a", 1);
    table.link_up(record("a", 1), at(0));
    assert!(table.left(&a, at(10)));
    table.link_heard(&a, at(20));
    table.stated(&stated("a", 1, false), at(30));
    table.gossiped(&heard(std::slice::from_ref(&a)), at(40));
    assert_eq!(state(&table, &a), Some(State::Left));

    table.stated(&stated("b", 1, false), at(50));
    assert!(table.stated(&stated("b", 1, true), at(60)));
    assert_eq!(state(&table, &origin("b", 1)), Some(State::Left));
}

#[test]
fn a_later_life_supersedes_and_the_former_stays_named_until_forgotten() {
    let mut table = table();
    table.link_up(record("a", 1), at(0));
    table.link_up(record("a", 3), at(100));
    table.stated(&stated("a", 2, false), at(200));
    let view = table.view(BTreeSet::new());
    let a = record("a", 1).origin.node;
    assert_eq!(view.members[&a].record.origin, origin("a", 3));
    assert_eq!(view.former.keys().cloned().collect::<Vec<_>>(), [origin("a", 1), origin("a", 2)]);

    table.link_down(&origin("a", 1), at(300));
    assert!(table.forget(&origin("a", 2)));
    let view = table.view(BTreeSet::new());
    assert_eq!(view.lives().count(), 1);
    assert!(!table.stated(&stated("a", 1, false), at(400)), "gossip does not bring it back");
    assert!(table.link_up(record("a", 2), at(500)), "a link does");
}

#[test]
fn a_forgotten_life_is_back_once_others_hear_it_again_and_not_while_they_still_do() {
    let a = origin("a", 2);
    for goodbye in [false, true] {
        let mut table = table();
        table.link_up(record("a", 2), at(0));
        table.gossiped(&heard(std::slice::from_ref(&a)), at(100));
        table.link_down(&a, at(200));
        assert!(!goodbye || table.left(&a, at(200)));
        assert!(table.forget(&a));
        table.gossiped(&heard(&[a.clone(), origin("b", 1)]), at(300));
        assert_eq!(state(&table, &a), None, "that others have not noticed yet is no news");
        table.gossiped(&heard(&[]), at(400));
        assert!(!table.stated(&stated("a", 2, false), at(450)));
        assert_eq!(table.gossiped(&heard(std::slice::from_ref(&a)), at(500)), !goodbye);
        assert_eq!(state(&table, &a), (!goodbye).then_some(State::Suspect));
    }
}

#[test]
fn a_live_member_is_not_forgotten() {
    let mut table = table();
    table.link_up(record("a", 1), at(0));
    assert!(!table.forget(&origin("a", 1)));
    assert!(!table.forget(&origin("nobody", 1)));
    assert_eq!(state(&table, &origin("a", 1)), Some(State::Live));
}

#[test]
fn a_later_life_of_this_very_node_is_reported() {
    let mut table = table();
    assert!(!table.stated(&stated("me", 4, false), at(0)), "an earlier life is no news");
    assert!(!table.stated(&stated("me", 5, false), at(0)));
    assert!(table.stated(&stated("me", 6, false), at(0)));
    let view = table.view(BTreeSet::new());
    assert_eq!(view.superseded_by, Some(record("me", 6)));
    assert_eq!(view.lives().count(), 0);
}

#[test]
fn a_full_table_makes_room_only_of_those_who_left() {
    let mut table = table();
    for number in 0..MEMBERS_MAX {
        table.stated(&stated(&format!("n{number}"), 1, false), at(0));
    }
    assert!(!table.link_up(record("late", 1), at(1)));
    table.left(&origin("n7", 1), at(2));
    assert!(table.link_up(record("late", 1), at(3)));
    assert_eq!(state(&table, &origin("n7", 1)), None);
    assert_eq!(table.view(BTreeSet::new()).members.len(), MEMBERS_MAX);
}

#[derive(Clone, Debug)]
enum Step {
    Stated(usize, bool),
    Gossiped(u8),
    Up(usize),
    Heard(usize),
    Down(usize),
    Left(usize),
    Pass(u64),
}

/// Four lives: two of one node.
fn lives() -> [Record; 4] {
    [record("a", 1), record("a", 2), record("b", 1), record("c", 1)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4_usize, proptest::bool::weighted(0.1)).prop_map(|(life, left)| Step::Stated(life, left)),
        any::<u8>().prop_map(Step::Gossiped),
        (0..4_usize).prop_map(Step::Up),
        (0..4_usize).prop_map(Step::Heard),
        (0..4_usize).prop_map(Step::Down),
        proptest::sample::select(vec![0_usize]).prop_map(Step::Left),
        (0..3_000_u64).prop_map(Step::Pass),
    ]
}

/// What is remembered of a life, in the simplest form.
#[derive(Clone, Default)]
struct Naive {
    named: bool,
    linked: bool,
    up: bool,
    heard: u64,
    gossiped: bool,
    left: bool,
}

impl Naive {
    fn state(&self, now: u64) -> State {
        let quiet = Duration::from_millis(now - self.heard);
        match () {
            () if self.left => State::Left,
            () if self.up && quiet < SILENCE => State::Live,
            () if self.gossiped && self.linked => State::Suspect,
            () if self.gossiped => State::Live,
            () if quiet < GRACE => State::Suspect,
            () => State::Lost,
        }
    }
}

fn apply(table: &mut Table, naive: &mut [Naive; 4], step: &Step, now: &mut u64) -> bool {
    let lives = lives();
    let tick = at(*now);
    match *step {
        Step::Stated(life, left) => {
            let known = &mut naive[life];
            known.heard = if known.named { known.heard } else { *now };
            known.named = true;
            known.left |= left;
            table.stated(&Statement { record: lives[life].clone(), serial: 1, left }, tick)
        }
        Step::Gossiped(bits) => {
            for (number, known) in naive.iter_mut().enumerate() {
                known.gossiped = known.named && bits & (1 << number) != 0;
            }
            let live = lives.iter().enumerate().filter(|(number, _)| bits & (1 << number) != 0);
            table.gossiped(&live.map(|(_, record)| record.origin.clone()).collect(), tick)
        }
        Step::Up(life) => {
            let known = &mut naive[life];
            (known.named, known.linked, known.up, known.heard) = (true, true, true, *now);
            table.link_up(lives[life].clone(), tick)
        }
        Step::Heard(life) => {
            if naive[life].up {
                naive[life].heard = *now;
            }
            table.link_heard(&lives[life].origin, tick)
        }
        Step::Down(life) => {
            naive[life].up = false;
            table.link_down(&lives[life].origin, tick)
        }
        Step::Left(life) => {
            naive[life].left |= naive[life].named;
            table.left(&lives[life].origin, tick)
        }
        Step::Pass(millis) => {
            *now += millis;
            table.tick(at(*now))
        }
    }
}

proptest! {
    #[test]
    fn the_table_agrees_with_a_naive_one(steps in proptest::collection::vec(step(), 1..80)) {
        let mut table = table();
        let mut naive = <[Naive; 4]>::default();
        let mut now = 0;
        for step in steps {
            let before = table.view(BTreeSet::new());
            let deadline = table.deadline(at(now));
            let changed = apply(&mut table, &mut naive, &step, &mut now);
            let after = table.view(BTreeSet::new());
            prop_assert_eq!(changed, before != after, "{:?}", &step);
            if matches!(step, Step::Pass(_)) {
                prop_assert_eq!(changed, deadline.is_some_and(|deadline| deadline <= at(now)));
            }
            // Evidence about one life does not judge the others; time does.
            table.tick(at(now));
            for (record, known) in lives().iter().zip(&naive) {
                let expected = known.named.then(|| known.state(now));
                prop_assert_eq!(state(&table, &record.origin), expected, "{:?} after {:?}", record.origin, &step);
            }
        }
    }
}
