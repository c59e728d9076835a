use super::*;
use crate::id::{Incarnation, NodeId};

#[path = "follower_property_tests.rs"]
mod property;

fn lanes() -> Lanes {
    Lanes::new(2).unwrap()
}

fn lane(index: u8) -> LaneId {
    lanes().lane(index).unwrap()
}

fn origin() -> Origin {
    Origin { node: NodeId::new("a").unwrap(), incarnation: Incarnation(3) }
}

fn idle() -> Follower {
    Follower::new(origin(), lanes())
}

/// A follower whose lanes are open at their first sequence, and the attempts that opened them.
fn open() -> (Follower, [Attempt; 2]) {
    let mut follower = idle();
    let attempts = [0, 1].map(|index| {
        let (attempt, follow) = follower.follow(lane(index));
        follower.on_resume(lane(index), attempt, follow.from).unwrap();
        attempt
    });
    (follower, attempts)
}

fn heartbeat(echo: u64, heads: [Sequence; 2]) -> Heartbeat {
    Heartbeat { echo, members: 0, heads: heads.to_vec() }
}

/// Accepts and applies `count` events of a lane.
fn apply(follower: &mut Follower, index: u8, attempt: Attempt, first: Sequence, count: u32) -> Accept {
    let accept = follower.on_events(lane(index), attempt, first, count).unwrap();
    follower.applied(lane(index), attempt, first + Sequence::from(count));
    accept
}

#[test]
fn a_new_origin_is_followed_from_its_first_event() {
    let mut follower = idle();
    let (_, follow) = follower.follow(lane(1));
    assert_eq!(follow, Follow { incarnation: Incarnation(3), lane: lane(1), from: FIRST });
    assert_eq!((follower.confirmed(), follower.applied_in(lane(1)), follower.lag()), (None, 0, 0));
    assert_eq!((follower.lanes(), follower.origin()), (2, &origin()));
}

#[test]
fn a_lane_is_followed_anew_from_where_it_stands() {
    let (mut follower, attempts) = open();
    apply(&mut follower, 0, attempts[0], 1, 5);
    assert_eq!(follower.follow(lane(0)).1.from, 6);
    assert_eq!(follower.follow(lane(1)).1.from, 1);
}

#[test]
fn what_was_seen_before_is_counted_and_passed_over() {
    let (mut follower, attempts) = open();
    assert_eq!(apply(&mut follower, 0, attempts[0], 1, 5), Accept { from: 1, duplicates: 0 });
    assert_eq!(apply(&mut follower, 0, attempts[0], 4, 5), Accept { from: 6, duplicates: 2 });
    assert_eq!(apply(&mut follower, 0, attempts[0], 1, 3), Accept { from: 9, duplicates: 3 });
    assert_eq!(follower.applied_in(lane(0)), 8);
}

#[test]
fn a_gap_is_told_and_nothing_is_accepted_until_the_lane_is_followed_anew() {
    let (mut follower, attempts) = open();
    apply(&mut follower, 0, attempts[0], 1, 2);
    let gap = follower.on_events(lane(0), attempts[0], 4, 1);
    assert_eq!(gap, Err(Rejected::Gap { expected: 3, got: 4 }));
    let after = follower.on_events(lane(0), attempts[0], 3, 1);
    assert!(matches!(after, Err(Rejected::Violation(_))), "{after:?}");
    let (attempt, follow) = follower.follow(lane(0));
    assert_eq!(follow.from, 3);
    follower.on_resume(lane(0), attempt, 3).unwrap();
    apply(&mut follower, 0, attempt, 3, 2);
    apply(&mut follower, 1, attempts[1], 1, 1);
    assert_eq!((follower.applied_in(lane(0)), follower.applied_in(lane(1))), (4, 1));
}

#[test]
fn whatever_answers_an_older_request_is_stale_and_changes_nothing() {
    let (mut follower, attempts) = open();
    let old = attempts[0];
    let (new, _) = follower.follow(lane(0));
    assert_eq!(follower.on_resume(lane(0), old, 1), Err(Rejected::Stale));
    assert_eq!(follower.on_reset(lane(0), old, 9), Err(Rejected::Stale));
    assert_eq!(follower.on_events(lane(0), old, 1, 1), Err(Rejected::Stale));
    follower.on_resume(lane(0), new, 1).unwrap();
    follower.applied(lane(0), old, 9);
    assert_eq!(follower.on_events(lane(0), old, 9, 1), Err(Rejected::Stale));
    assert_eq!(follower.applied_in(lane(0)), 0);
    assert_eq!(apply(&mut follower, 0, new, 1, 1), Accept { from: 1, duplicates: 0 });
}

#[test]
fn events_before_an_answer_are_a_violation() {
    let mut follower = idle();
    let (attempt, _) = follower.follow(lane(0));
    assert!(matches!(follower.on_events(lane(0), attempt, 1, 1), Err(Rejected::Violation(_))));
}

#[test]
fn a_resume_elsewhere_or_unasked_is_a_violation() {
    let mut follower = idle();
    let (attempt, _) = follower.follow(lane(0));
    assert!(matches!(follower.on_resume(lane(0), attempt, 2), Err(Rejected::Violation(_))));
    follower.on_resume(lane(0), attempt, 1).unwrap();
    assert!(matches!(follower.on_resume(lane(0), attempt, 1), Err(Rejected::Violation(_))));
}

#[test]
fn a_lane_that_the_origin_does_not_have_is_a_violation() {
    let (mut follower, attempts) = open();
    let third = Lanes::new(4).unwrap().lane(2).unwrap();
    assert!(matches!(follower.on_events(third, attempts[0], 1, 1), Err(Rejected::Violation(_))));
    assert!(matches!(follower.on_reset(third, attempts[0], 1), Err(Rejected::Violation(_))));
    assert!(matches!(follower.on_resume(third, attempts[0], 1), Err(Rejected::Violation(_))));
    follower.applied(third, attempts[0], 9);
}

#[test]
fn nothing_confirms_while_a_lane_is_being_fenced() {
    let (mut follower, attempts) = open();
    let probe = follower.probe(Tick(100));
    let fence = follower.on_reset(lane(0), attempts[0], 8).unwrap();
    follower.on_heartbeat(&heartbeat(probe, [0, 0])).unwrap();
    assert_eq!(follower.confirmed(), None, "of a heartbeat whose heads are applied");
    let probe = follower.probe(Tick(200));
    follower.on_heartbeat(&heartbeat(probe, [7, 1])).unwrap();
    apply(&mut follower, 1, attempts[1], 1, 1);
    assert_eq!(follower.confirmed(), None, "when another lane is applied");
    assert_eq!(follower.applied_in(lane(0)), 0);
    follower.fenced(fence);
    assert_eq!(follower.confirmed(), Some(Tick(200)));
    assert_eq!(follower.applied_in(lane(0)), 7);
    assert_eq!(apply(&mut follower, 0, attempts[0], 8, 1), Accept { from: 8, duplicates: 0 });
}

#[test]
fn events_and_answers_while_a_lane_is_being_fenced_are_violations() {
    let (mut follower, attempts) = open();
    let fence = follower.on_reset(lane(0), attempts[0], 8).unwrap();
    assert!(matches!(follower.on_events(lane(0), attempts[0], 8, 1), Err(Rejected::Violation(_))));
    assert!(matches!(follower.on_reset(lane(0), attempts[0], 9), Err(Rejected::Violation(_))));
    assert!(matches!(follower.on_resume(lane(0), attempts[0], 1), Err(Rejected::Violation(_))));
    follower.applied(lane(0), attempts[0], 8);
    assert_eq!(follower.applied_in(lane(0)), 0);
    follower.fenced(fence);
    assert_eq!(follower.applied_in(lane(0)), 7);
}

#[test]
fn a_reset_answers_a_request_or_comes_at_any_time() {
    let (mut follower, attempts) = open();
    apply(&mut follower, 0, attempts[0], 1, 3);
    let fence = follower.on_reset(lane(0), attempts[0], 9).unwrap();
    assert_eq!(fence.lane, lane(0));
    follower.fenced(fence);
    let (attempt, follow) = follower.follow(lane(0));
    assert_eq!(follow.from, 9);
    let fence = follower.on_reset(lane(0), attempt, 20).unwrap();
    follower.fenced(fence);
    assert_eq!(follower.applied_in(lane(0)), 19);
}

#[test]
fn a_reset_to_the_same_place_is_a_fence_all_the_same() {
    let (mut follower, attempts) = open();
    let fence = follower.on_reset(lane(0), attempts[0], 1).unwrap();
    follower.fenced(fence);
    assert_eq!(apply(&mut follower, 0, attempts[0], 1, 1), Accept { from: 1, duplicates: 0 });
}

#[test]
fn a_reset_that_goes_backwards_is_a_violation() {
    let (mut follower, attempts) = open();
    apply(&mut follower, 0, attempts[0], 1, 5);
    for from in [0, 1, 5] {
        assert!(matches!(follower.on_reset(lane(0), attempts[0], from), Err(Rejected::Violation(_))));
    }
    assert_eq!(apply(&mut follower, 0, attempts[0], 6, 1), Accept { from: 6, duplicates: 0 });
}

#[test]
fn a_fence_that_was_overtaken_by_a_new_request_changes_nothing() {
    let (mut follower, attempts) = open();
    let fence = follower.on_reset(lane(0), attempts[0], 8).unwrap();
    let (attempt, follow) = follower.follow(lane(0));
    assert_eq!(follow.from, 1, "the position is taken only once the lane is fenced");
    let newer = follower.on_reset(lane(0), attempt, 20).unwrap();
    follower.fenced(fence);
    assert_eq!(follower.applied_in(lane(0)), 0);
    follower.fenced(newer);
    assert_eq!(follower.applied_in(lane(0)), 19);
}

#[test]
fn a_heartbeat_confirms_once_its_heads_are_applied_in_every_lane() {
    let (mut follower, attempts) = open();
    let probe = follower.probe(Tick(100));
    assert_eq!(follower.on_heartbeat(&heartbeat(probe, [2, 1])), Ok(Tick(100)));
    assert_eq!((follower.confirmed(), follower.lag()), (None, 3));
    apply(&mut follower, 0, attempts[0], 1, 2);
    assert_eq!((follower.confirmed(), follower.lag()), (None, 1));
    apply(&mut follower, 1, attempts[1], 1, 1);
    assert_eq!((follower.confirmed(), follower.lag()), (Some(Tick(100)), 0));
}

#[test]
fn a_late_heartbeat_confirms_only_when_its_probe_was_sent() {
    let (mut follower, _) = open();
    let held = heartbeat(follower.probe(Tick(100)), [0, 0]);
    for tick in [200, 300, 10_000] {
        follower.probe(Tick(tick));
    }
    assert_eq!(follower.on_heartbeat(&held), Ok(Tick(100)));
    assert_eq!(follower.confirmed(), Some(Tick(100)));
}

#[test]
fn a_heartbeat_that_was_overtaken_or_comes_twice_is_stale() {
    let (mut follower, _) = open();
    let first = heartbeat(follower.probe(Tick(100)), [0, 0]);
    let second = heartbeat(follower.probe(Tick(200)), [0, 0]);
    follower.on_heartbeat(&second).unwrap();
    assert_eq!(follower.on_heartbeat(&first), Err(Rejected::Stale));
    assert_eq!(follower.on_heartbeat(&second), Err(Rejected::Stale));
    assert_eq!(follower.confirmed(), Some(Tick(200)));
}

#[test]
fn a_heartbeat_that_cannot_be_is_a_violation_and_confirms_nothing() {
    let (mut follower, _) = open();
    let probe = follower.probe(Tick(100));
    let too_few = Heartbeat { heads: vec![0], ..heartbeat(probe, [0, 0]) };
    let too_many = Heartbeat { heads: vec![0; 3], ..heartbeat(probe, [0, 0]) };
    for broken in [too_few, too_many, heartbeat(probe + 1, [0, 0])] {
        assert!(matches!(follower.on_heartbeat(&broken), Err(Rejected::Violation(_))), "{broken:?}");
    }
    assert_eq!(follower.confirmed(), None);
    follower.on_heartbeat(&heartbeat(probe, [0, 0])).unwrap();
    assert_eq!(follower.confirmed(), Some(Tick(100)));
}

#[test]
fn a_steady_lag_still_confirms() {
    let (mut follower, attempts) = open();
    // Each heartbeat knows of one event more than was applied by the time it comes.
    for n in 1..=50 {
        let probe = follower.probe(Tick(n * 100));
        follower.on_heartbeat(&heartbeat(probe, [n * 10 + 1, 0])).unwrap();
        let before = follower.applied_in(lane(0)) + 1;
        apply(&mut follower, 0, attempts[0], before, u32::try_from(n * 10 + 1 - before).unwrap());
    }
    assert_eq!(follower.confirmed(), Some(Tick(49 * 100)));
}

#[test]
fn between_the_oldest_and_the_newest_heartbeat_none_is_needed() {
    let (mut follower, attempts) = open();
    for n in 1..=10 {
        let probe = follower.probe(Tick(n * 100));
        follower.on_heartbeat(&heartbeat(probe, [n, 0])).unwrap();
    }
    assert_eq!(follower.lag(), 10);
    apply(&mut follower, 0, attempts[0], 1, 1);
    assert_eq!(follower.confirmed(), Some(Tick(100)));
    apply(&mut follower, 0, attempts[0], 2, 8);
    assert_eq!(follower.confirmed(), Some(Tick(100)));
    apply(&mut follower, 0, attempts[0], 10, 1);
    assert_eq!(follower.confirmed(), Some(Tick(1_000)));
}

#[test]
fn a_lane_that_was_applied_confirms_while_it_is_followed_anew() {
    let (mut follower, attempts) = open();
    apply(&mut follower, 0, attempts[0], 1, 2);
    follower.follow(lane(0));
    let probe = follower.probe(Tick(100));
    follower.on_heartbeat(&heartbeat(probe, [2, 0])).unwrap();
    assert_eq!(follower.confirmed(), Some(Tick(100)));
}

#[test]
fn unanswered_probes_are_remembered_up_to_a_bound() {
    let (mut follower, _) = open();
    for n in 1..=PROBES_MAX as u64 + 1 {
        assert_eq!(follower.probe(Tick(n)), n);
    }
    assert_eq!(follower.probes.len(), PROBES_MAX);
    assert_eq!(follower.on_heartbeat(&heartbeat(1, [0, 0])), Err(Rejected::Stale));
    assert_eq!(follower.on_heartbeat(&heartbeat(2, [0, 0])), Ok(Tick(2)));
}

#[test]
fn absurd_heads_confirm_nothing_and_overflow_nothing() {
    let (mut follower, _) = open();
    let probe = follower.probe(Tick(100));
    follower.on_heartbeat(&heartbeat(probe, [u64::MAX, u64::MAX])).unwrap();
    assert_eq!((follower.confirmed(), follower.lag()), (None, u64::MAX));
    follower.on_goodbye(vec![u64::MAX; 2]).unwrap();
    assert!(!follower.ended());
}

#[test]
fn a_goodbye_ends_an_origin_once_everything_is_applied() {
    let (mut follower, attempts) = open();
    assert!(!follower.ended());
    assert!(matches!(follower.on_goodbye(vec![1]), Err(Rejected::Violation(_))));
    follower.on_goodbye(vec![2, 0]).unwrap();
    assert!(!follower.ended());
    apply(&mut follower, 0, attempts[0], 1, 2);
    assert!(follower.ended());
    let fence = follower.on_reset(lane(1), attempts[1], 1).unwrap();
    assert!(!follower.ended(), "ended while a lane is being fenced");
    follower.fenced(fence);
    assert!(follower.ended());
}

#[test]
fn a_goodbye_that_knows_of_less_than_was_applied_ends_nothing() {
    let (mut follower, attempts) = open();
    apply(&mut follower, 0, attempts[0], 1, 2);
    assert!(matches!(follower.on_goodbye(vec![1, 0]), Err(Rejected::Violation(_))));
    assert!(!follower.ended());
    follower.on_goodbye(vec![2, 0]).unwrap();
    assert!(follower.ended());
}

#[test]
fn a_heartbeat_confirms_only_once_the_member_set_that_it_names_is_known() {
    let (mut follower, _) = open();
    follower.on_members(1);
    let probe = follower.probe(Tick(100));
    follower.on_heartbeat(&Heartbeat { members: 2, ..heartbeat(probe, [0, 0]) }).unwrap();
    assert_eq!(follower.confirmed(), None);
    follower.on_members(1);
    assert_eq!(follower.confirmed(), None, "that set was known");
    // A later set has everybody who counts.
    follower.on_members(3);
    assert_eq!(follower.confirmed(), Some(Tick(100)));
    // What was learned is not unlearned by a set that comes late.
    follower.on_members(2);
    let probe = follower.probe(Tick(200));
    follower.on_heartbeat(&Heartbeat { members: 3, ..heartbeat(probe, [0, 0]) }).unwrap();
    assert_eq!(follower.confirmed(), Some(Tick(200)));
}

#[test]
fn sets_that_change_all_the_time_and_come_late_still_confirm() {
    let (mut follower, _) = open();
    for version in 1..100 {
        let probe = follower.probe(Tick(version));
        follower.on_heartbeat(&Heartbeat { members: version, ..heartbeat(probe, [0, 0]) }).unwrap();
        // By then there is a newer one already.
        follower.on_members(version.saturating_sub(3));
        if version > 10 {
            assert!(
                follower.confirmed() >= Some(Tick(version - 10)),
                "at {version}: {:?}",
                follower.confirmed()
            );
        }
    }
}

#[test]
fn what_is_being_applied_or_fenced_is_begun_and_not_yet_applied() {
    let (mut follower, attempts) = open();
    let both = |follower: &Follower| (follower.begun_in(lane(0)), follower.applied_in(lane(0)));
    assert_eq!(both(&follower), (0, 0));
    follower.on_events(lane(0), attempts[0], 1, 5).unwrap();
    assert_eq!(both(&follower), (5, 0));
    follower.applied(lane(0), attempts[0], 6);
    assert_eq!(both(&follower), (5, 5));
    let fence = follower.on_reset(lane(0), attempts[0], 9).unwrap();
    assert_eq!(both(&follower), (8, 5));
    follower.fenced(fence);
    assert_eq!(both(&follower), (8, 8));
    // What was begun on a link that is gone may have been applied all the same.
    follower.on_events(lane(0), attempts[0], 9, 2).unwrap();
    let _ = follower.follow(lane(0));
    assert_eq!(both(&follower), (10, 8));
}
