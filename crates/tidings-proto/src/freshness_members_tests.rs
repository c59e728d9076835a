//! Nobody is fresh by a member while that one knows of a writer it does not.

use proptest::prelude::*;

use super::*;
use crate::follower::Follower;
use crate::frame::Heartbeat;
use crate::id::Lanes;

const MAX_STALENESS: Duration = Duration::from_nanos(100);

#[derive(Clone, Debug)]
enum Step {
    /// The member hears of one more writer, or has let go of the oldest that it knows.
    Joins,
    Leaves,
    Probe,
    /// It answers the newest probe.
    Answer,
    /// A heartbeat arrives, however old.
    Heartbeat(prop::sample::Index),
    /// A set arrives, however old.
    Members(prop::sample::Index),
    /// One of the writers that are known here confirms everything.
    Writer(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        2 => Just(Step::Joins),
        1 => Just(Step::Leaves),
        4 => Just(Step::Probe),
        4 => Just(Step::Answer),
        4 => index().prop_map(Step::Heartbeat),
        4 => index().prop_map(Step::Members),
        6 => index().prop_map(Step::Writer),
    ]
}

fn origin(node: &str) -> Origin {
    Origin { node: node.parse().unwrap(), incarnation: Incarnation(1) }
}

/// A member with those it knows of, and who follows it.
struct World {
    now: Tick,
    member: Origin,
    /// Each writer with when the member heard of it, and whether it has been let go of.
    writers: Vec<(Origin, Tick, bool)>,
    sets: Vec<Vec<Origin>>,
    probe: u64,
    heartbeats: Vec<Heartbeat>,
    follower: Follower,
    freshness: Freshness,
}

impl World {
    fn new() -> Self {
        let member = origin("member");
        let bounds =
            Bounds { max_staleness: MAX_STALENESS, write_horizon: Duration::ZERO, ..Bounds::default() };
        let now = Tick(1);
        let mut freshness = Freshness::new(bounds, false, now);
        freshness.met(&member, now);
        let mut follower = Follower::new(member.clone(), Lanes::new(1).unwrap());
        let lane = Lanes::new(1).unwrap().lane(0).unwrap();
        let (attempt, follow) = follower.follow(lane);
        follower.on_resume(lane, attempt, follow.from).unwrap();
        let (writers, heartbeats) = (Vec::new(), Vec::new());
        Self { now, member, writers, sets: vec![Vec::new()], probe: 0, heartbeats, follower, freshness }
    }

    fn name(&mut self) {
        let known = self.writers.iter().filter(|(.., gone)| !gone).map(|(writer, ..)| writer.clone());
        self.sets.push(known.collect());
    }

    fn step(&mut self, step: &Step) {
        self.now = self.now.after(Duration::from_nanos(7));
        match step {
            Step::Joins => {
                let writer = origin(&format!("w{}", self.writers.len()));
                self.writers.push((writer, self.now, false));
                self.name();
            }
            Step::Leaves => {
                if let Some((.., gone)) = self.writers.iter_mut().find(|(.., gone)| !gone) {
                    *gone = true;
                    self.name();
                }
            }
            Step::Probe => self.probe = self.follower.probe(self.now),
            Step::Answer => {
                let members = self.sets.len() as u64 - 1;
                self.heartbeats.push(Heartbeat { echo: self.probe, members, heads: vec![0] });
            }
            Step::Heartbeat(index) if !self.heartbeats.is_empty() => {
                // Those whose probe is forgotten, or was never sent, are refused.
                let _ = self.follower.on_heartbeat(index.get(&self.heartbeats));
            }
            Step::Members(index) => {
                let version = index.index(self.sets.len());
                self.freshness.named(&self.member.node, &self.sets[version]);
                self.follower.on_members(version as u64);
            }
            Step::Writer(index) if !self.writers.is_empty() => {
                let (writer, ..) = index.get(&self.writers);
                self.freshness.confirmed(writer, self.now);
            }
            Step::Heartbeat(_) | Step::Writer(_) => {}
        }
        if let Some(tick) = self.follower.confirmed() {
            self.freshness.confirmed(&self.member, tick);
        }
    }

    /// Whoever the member knew of at the moment up to which all is confirmed is waited for here, or has gone.
    fn check(&mut self) {
        self.freshness.publish(self.now);
        let Some(confirmed) = self.freshness.oldest_confirmation() else { return };
        for (writer, heard, gone) in &self.writers {
            let known = *gone || *heard > confirmed || self.freshness.is_relevant(writer);
            assert!(known, "fresh up to {confirmed:?}, and {writer} of {heard:?} is unknown");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn nobody_is_fresh_by_a_member_that_knows_of_a_writer_it_does_not(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
    }
}

#[test]
fn a_node_is_known_once_everybody_who_is_there_has_answered_it() {
    let (one, other) = (origin("one"), origin("other"));
    let mut freshness = Freshness::new(Bounds::default(), true, Tick(1));
    assert!(!freshness.is_known(), "nobody was reached");
    freshness.contacted();
    freshness.met(&one, Tick(2));
    freshness.named(&one.node, [&other]);
    freshness.confirmed(&one, Tick(3));
    assert_eq!((freshness.is_known(), freshness.unaware().collect::<Vec<_>>()), (false, vec![&other]));
    freshness.lost(&other, Tick(4));
    assert!(freshness.is_known(), "nobody hears the other one");
    freshness.found(&other, Tick(5));
    assert!(!freshness.is_known(), "somebody does");
    freshness.confirmed(&other, Tick(6));
    assert!(freshness.is_known());
    // As another life it has to be known anew.
    freshness.renumbered(Tick(7));
    freshness.confirmed(&one, Tick(7));
    freshness.confirmed(&other, Tick(8));
    assert_eq!(freshness.unaware().collect::<Vec<_>>(), [&one]);
    freshness.confirmed(&one, Tick(8));
    assert!(freshness.is_known());
}

#[test]
fn a_life_that_nobody_has_answered_is_not_known_because_it_hears_nobody() {
    let one = origin("one");
    let mut freshness = Freshness::new(Bounds::default(), true, Tick(1));
    freshness.contacted();
    freshness.met(&one, Tick(2));
    freshness.lost(&one, Tick(3));
    assert!(!freshness.is_known(), "it may be there, and has never let this life in");
    freshness.found(&one, Tick(4));
    freshness.confirmed(&one, Tick(4));
    freshness.lost(&one, Tick(5));
    assert!(freshness.is_known(), "it knew of this life");
    // A later life begins, and gossip with it, in which nobody is seen at first.
    freshness.renumbered(Tick(6));
    assert!(!freshness.is_known(), "of the life that was before");
    freshness.confirmed(&one, Tick(7));
    assert!(freshness.is_known());
    freshness.renumbered(Tick(8));
    freshness.left(&one);
    assert!(freshness.is_known(), "nobody is there");
}

#[test]
fn the_first_of_a_cluster_is_known_whoever_comes_and_vanishes() {
    let mut freshness = Freshness::new(Bounds::default(), false, Tick(1));
    freshness.met(&origin("one"), Tick(2));
    assert!(!freshness.is_known());
    freshness.lost(&origin("one"), Tick(3));
    assert!(freshness.is_known());
}

#[test]
fn who_was_displaced_is_never_fresh_again_though_all_others_seem_to_have_ended() {
    let one = origin("one");
    for has_seeds in [false, true] {
        let mut freshness = Freshness::new(Bounds::default(), has_seeds, Tick(1));
        freshness.contacted();
        freshness.met(&one, Tick(2));
        freshness.confirmed(&one, Tick(3));
        freshness.displaced();
        freshness.lost(&one, Tick(5));
        let late = Tick(5).after(Duration::from_secs(600));
        for at in [Tick(6), Tick(5).after(Duration::from_secs(70)), late] {
            freshness.publish(at);
        }
        assert!(!freshness.is_relevant(&one), "it was waited for long enough");
        assert_eq!((freshness.oldest_confirmation(), freshness.is_known()), (None, false));
        assert_eq!((freshness.doubts(late), freshness.in_doubt(late)), (vec![Doubt::Displaced], true));
    }
}

#[test]
fn who_was_displaced_before_anybody_let_it_in_has_reached_nobody() {
    let mut freshness = Freshness::new(Bounds::default(), true, Tick(1));
    freshness.displaced();
    assert_eq!((freshness.is_known(), freshness.is_out_of_contact()), (false, true));
}

#[test]
fn a_node_alone_is_known() {
    assert!(Freshness::new(Bounds::default(), false, Tick(1)).is_known());
}
