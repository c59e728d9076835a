use proptest::prelude::*;

use super::*;
use crate::frame::Heartbeat;
use crate::id::{Incarnation, LaneId, Lanes, Origin};

fn lanes() -> Lanes {
    Lanes::new(1).unwrap()
}

fn lane() -> LaneId {
    lanes().lane(0).unwrap()
}

fn origin() -> Origin {
    Origin { node: "o".parse().unwrap(), incarnation: Incarnation(1) }
}

/// A follower that is followed on and has applied so many.
fn follower(applied: Sequence) -> Follower {
    let mut follower = Follower::new(origin(), lanes());
    apply(&mut follower, applied);
    follower
}

fn apply(follower: &mut Follower, up_to: Sequence) {
    let (attempt, follow) = follower.follow(lane());
    follower.on_resume(lane(), attempt, follow.from).unwrap();
    follower.applied(lane(), attempt, up_to + 1);
}

fn confirm(follower: &mut Follower, heads: Sequence, sent: Tick) {
    let echo = follower.probe(sent);
    follower.on_heartbeat(&Heartbeat { echo, members: 0, heads: vec![heads] }).unwrap();
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn a_relay_says_nothing_of_an_origin_that_never_confirmed() {
    assert_eq!(Relayed::of(&follower(3), Tick(SECOND)), None);
}

#[test]
fn what_is_relayed_confirms_as_of_the_question_less_the_age() {
    let mut relay = follower(3);
    confirm(&mut relay, 2, Tick(10 * SECOND));
    let said = Relayed::of(&relay, Tick(12 * SECOND)).unwrap();
    assert_eq!(said, Relayed::Confirmed { heads: vec![3], age_us: 2_004_000 });
    let mut behind = follower(2);
    said.clone().tell(&mut behind, Tick(500 * SECOND)).unwrap();
    assert_eq!(behind.confirmed(), None, "the relay has applied one more");
    apply(&mut behind, 3);
    assert_eq!(behind.confirmed(), Some(Tick(500 * SECOND - 2_004_000_000)));
    let mut ahead = follower(5);
    said.tell(&mut ahead, Tick(500 * SECOND)).unwrap();
    assert_eq!(ahead.confirmed(), behind.confirmed());
    assert_eq!(
        (ahead.answered(), relay.answered()),
        (None, Some(Tick(10 * SECOND))),
        "a relay is not the origin"
    );
}

#[test]
fn what_an_origin_answers_beside_the_way_of_its_changes_is_not_said_on() {
    let mut relay = follower(3);
    relay.redirected(true);
    confirm(&mut relay, 3, Tick(10 * SECOND));
    assert_eq!(relay.confirmed(), Some(Tick(10 * SECOND)), "it counts here");
    assert_eq!(Relayed::of(&relay, Tick(12 * SECOND)), None, "relays in a circle would seem to be well");
    Relayed::Confirmed { heads: vec![3], age_us: SECOND / 1_000 }.tell(&mut relay, Tick(9 * SECOND)).unwrap();
    assert_eq!(relay.confirmed_by_source(), Some(Tick(8 * SECOND)));
    relay.redirected(false);
    confirm(&mut relay, 3, Tick(11 * SECOND));
    assert_eq!(relay.confirmed_by_source(), relay.confirmed());
}

#[test]
fn an_age_beyond_the_beginning_of_the_clock_confirms_nothing() {
    for age_us in [1_000_001, u64::MAX] {
        let mut follower = follower(1);
        let said = Relayed::Confirmed { heads: vec![1], age_us };
        said.tell(&mut follower, Tick(SECOND)).unwrap();
        assert_eq!(follower.confirmed(), None, "the beginning itself would be later than what is known");
    }
}

#[test]
fn an_end_is_relayed_once_everything_before_it_is_applied() {
    let mut relay = follower(3);
    confirm(&mut relay, 3, Tick(SECOND));
    relay.on_goodbye(vec![4]).unwrap();
    assert!(matches!(Relayed::of(&relay, Tick(SECOND)), Some(Relayed::Confirmed { .. })));
    apply(&mut relay, 4);
    let said = Relayed::of(&relay, Tick(SECOND)).unwrap();
    let mut last = follower(3);
    said.tell(&mut last, Tick(SECOND)).unwrap();
    assert!(!last.ended());
    apply(&mut last, 4);
    assert!(last.ended());
}

#[test]
fn other_lanes_are_refused() {
    let said = Relayed::Confirmed { heads: vec![1, 1], age_us: 1 };
    assert!(matches!(said.tell(&mut follower(1), Tick(SECOND)), Err(Rejected::Violation(_))));
}

#[test]
fn what_a_relay_that_has_gone_had_applied_is_not_waited_for() {
    let mut follower = follower(2);
    let heard = |heads| Relayed::Confirmed { heads: vec![heads], age_us: 0 };
    heard(9).tell(&mut follower, Tick(SECOND)).unwrap();
    follower.redirected(true);
    heard(3).tell(&mut follower, Tick(2 * SECOND)).unwrap();
    heard(4).tell(&mut follower, Tick(3 * SECOND)).unwrap();
    apply(&mut follower, 3);
    assert_eq!(follower.confirmed(), Some(Tick(2 * SECOND)));
}

#[test]
fn an_answer_counts_once_and_after_the_member_set_that_it_names() {
    let mut asked = Asked::new(4);
    asked.sent(7, Tick(70));
    asked.sent(8, Tick(80));
    assert!(matches!(asked.answered(7, 5), Err(Rejected::Violation(_))), "its sender knows somebody else");
    asked.on_members(5);
    assert_eq!(asked.answered(8, 5), Ok(Tick(80)));
    assert_eq!(asked.answered(7, 5), Err(Rejected::Stale));
    assert_eq!(asked.answered(8, 5), Err(Rejected::Stale));
    assert!(matches!(asked.answered(9, 5), Err(Rejected::Violation(_))));
    (9..200).for_each(|number| asked.sent(number, Tick(number)));
    assert_eq!(asked.answered(9, 5), Err(Rejected::Stale), "the oldest questions are forgotten");
    assert_eq!(asked.answered(199, 5), Ok(Tick(199)));
}

/// Nodes whose clocks have nothing to do with each other.
struct Circle {
    now: u64,
    nodes: Vec<Follower>,
    /// When, by nobody's clock, the newest question was sent that the origin answered.
    heard: Option<u64>,
}

impl Circle {
    fn clock(&self, node: usize) -> Tick {
        Tick((node as u64 + 1) * 1_000 * SECOND + self.now)
    }

    /// How old a node's confirmation says that it is.
    fn youngest(&self) -> Option<u64> {
        let ages = self.nodes.iter().enumerate();
        let ages =
            ages.filter_map(|(node, it)| Some(self.clock(node).since(it.confirmed()?).as_nanos() as u64));
        ages.min()
    }
}

proptest! {
    /// Whoever asks whom, in whatever circles, with however long on the way there and back.
    #[test]
    fn nobody_is_younger_than_the_newest_answer_of_the_origin(
        steps in prop::collection::vec((0_usize..4, 0_usize..5, 0..2 * SECOND, 0..2 * SECOND), 1..80),
    ) {
        let mut circle = Circle { now: 0, nodes: (0..4).map(|_| follower(1)).collect(), heard: None };
        for (who, whom, there, back) in steps {
            let (sent, asked) = (circle.now, circle.clock(who));
            circle.now += there;
            circle.nodes[who].redirected(whom != 4);
            if whom == 4 {
                confirm(&mut circle.nodes[who], 1, asked);
                circle.heard = Some(sent);
            } else if whom != who
                && let Some(said) = Relayed::of(&circle.nodes[whom], circle.clock(whom))
            {
                circle.now += back;
                said.tell(&mut circle.nodes[who], asked).unwrap();
            }
            let least = circle.heard.map(|heard| circle.now - heard);
            prop_assert!(circle.youngest() >= least, "{:?} of {least:?}", circle.youngest());
        }
    }
}
