//! Which of two processes keeps the node id that both have, when they meet.
//!
//! One of the two decides, the one with the smaller log id, and the other does as it is told, whichever of them dials.
//! What each has heard so far travels in its `Hello`, and a verdict stands: so it depends neither on who reads what
//! first nor on how often they meet, and exactly one of them goes.

use std::cmp::Reverse;
use std::collections::VecDeque;

use parking_lot::Mutex;
use tidings_proto::frame::{Hello, MEMBERS_MAX, NamedMember};
use tidings_proto::id::{LogId, Origin};

/// Verdicts that are remembered. More processes with one id at a time are not to be expected; the oldest verdict is
/// forgotten then, and a process that comes again is judged again.
const VERDICTS_MAX: usize = 16;

/// What this process has decided about others with its id.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(Mutex<VecDeque<(LogId, bool)>>);

impl Verdicts {
    /// Whether this process keeps the id. What was decided about the same process before stands.
    pub(crate) fn keeps(&self, own: &Hello, peer: &Hello) -> bool {
        let mut known = self.0.lock();
        if let Some((_, kept)) = known.iter().find(|(log, _)| *log == peer.log) {
            return *kept;
        }
        let kept = keeps(own, peer);
        known.truncate(VERDICTS_MAX - 1);
        known.push_front((peer.log, kept));
        kept
    }
}

/// Whether it is for this process to decide.
pub(crate) fn decides(own: &Hello, peer: &Hello) -> bool {
    own.log.0 < peer.log.0
}

/// Says in a `Hello` that peers have given this life up for dead, and another process its place.
pub fn concede(hello: &mut Hello) {
    let origin = Origin { node: hello.node.clone(), incarnation: hello.incarnation };
    // A frame holds no more.
    hello.members.members.truncate(MEMBERS_MAX - 1);
    hello.members.members.push(NamedMember { origin, address: hello.address, ended: true });
}

/// Whether a peer says so of its own life.
pub(crate) fn concedes(hello: &Hello) -> bool {
    let own = |named: &NamedMember| {
        named.ended && named.origin.node == hello.node && named.origin.incarnation == hello.incarnation
    };
    hello.members.members.iter().any(own)
}

/// A life that is known to have been replaced goes. Else both are alive, and whoever started first stays: by how long
/// each has been there, for clocks differ.
fn keeps(own: &Hello, peer: &Hello) -> bool {
    match (is_over(own, peer), is_over(peer, own)) {
        (false, true) => true,
        (true, false) => false,
        _ => seniority(own) < seniority(peer),
    }
}

/// Whether a life was replaced, by its own word or by the other's. An end covers all earlier lives.
fn is_over(life: &Hello, other: &Hello) -> bool {
    let ends = |named: &&NamedMember| {
        named.ended && named.origin.node == life.node && named.origin.incarnation >= life.incarnation
    };
    let by_itself = life.members.members.iter().find(ends);
    // Nobody can say of a life that began later than its own that it was replaced.
    let earlier = life.incarnation < other.incarnation;
    by_itself.or_else(|| other.members.members.iter().find(ends).filter(|_| earlier)).is_some()
}

/// Who comes first in this order was there first.
fn seniority(hello: &Hello) -> impl Ord + use<> {
    (Reverse(hello.age_ms), hello.incarnation, hello.log.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidings_proto::frame::{MemberSet, PROTOCOL_VERSION};
    use tidings_proto::id::{Incarnation, Lanes, NodeId};

    use super::*;

    fn hello((incarnation, log, age_ms): (u64, u64, u64), ended: &[u64]) -> Hello {
        let node = NodeId::new("n1").unwrap();
        let address = "127.0.0.1:1".parse().unwrap();
        let member = |incarnation: &u64| {
            let origin = Origin { node: node.clone(), incarnation: Incarnation(*incarnation) };
            NamedMember { origin, address, ended: true }
        };
        Hello {
            protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            cluster: "shop".to_owned(),
            node: node.clone(),
            incarnation: Incarnation(incarnation),
            log: LogId(log),
            hash_version: 1,
            lanes: Lanes::default(),
            address,
            zone: String::new(),
            release: String::new(),
            wall_ms: 0,
            age_ms,
            members: MemberSet { version: 1, members: ended.iter().map(member).collect() },
        }
    }

    #[test]
    fn who_has_been_there_longer_keeps_the_id_whatever_the_clocks_say() {
        for newcomers_clock in [1, 1_000, 9_999] {
            let (holder, newcomer) = (hello((1_000, 2, 60_000), &[]), hello((newcomers_clock, 1, 50), &[]));
            assert!(keeps(&holder, &newcomer) && !keeps(&newcomer, &holder), "{newcomers_clock}");
        }
    }

    #[test]
    fn a_life_that_was_replaced_goes_whoever_knows_it() {
        let told = hello((5, 1, 60_000), &[5]);
        let unaware = hello((5, 1, 60_000), &[]);
        let successor = |ended: &[u64]| hello((9, 2, 50), ended);
        for (former, successor) in [
            (&told, successor(&[])),
            (&told, successor(&[5])),
            (&unaware, successor(&[5])),
            (&unaware, successor(&[7])),
        ] {
            assert!(!keeps(former, &successor) && keeps(&successor, former));
        }
        assert!(keeps(&unaware, &successor(&[4])), "an end of an earlier one is not its own");
        assert!(keeps(&unaware, &hello((3, 2, 50), &[5])), "no earlier life has replaced a later one");
    }

    #[test]
    fn a_verdict_stands_although_more_becomes_known_and_is_one_of_a_bounded_number() {
        let (former, newcomer) = (hello((5, 1, 60_000), &[]), hello((9, 2, 50), &[]));
        let verdicts = Verdicts::default();
        assert!(verdicts.keeps(&former, &newcomer));
        assert!(verdicts.keeps(&former, &hello((9, 2, 50), &[5])));
        for log in 0..1_000 {
            verdicts.keeps(&former, &hello((9, 100 + log, 50), &[]));
        }
        assert_eq!(verdicts.0.lock().len(), VERDICTS_MAX);
    }

    #[test]
    fn a_full_member_set_still_concedes() {
        let mut full = hello((5, 1, 1), &vec![1; MEMBERS_MAX]);
        concede(&mut full);
        assert_eq!(full.members.members.len(), MEMBERS_MAX);
        assert!(concedes(&full) && !concedes(&hello((5, 1, 1), &[4, 6])));
        assert!(!keeps(&full, &hello((9, 2, 0), &[])));
    }

    proptest! {
        /// Both would come to the same verdict.
        #[test]
        fn exactly_one_keeps_the_id(
            one in (0..4_u64, 0..2_u64, 0..4_u64), two in (0..4_u64, 2..4_u64, 0..4_u64),
            ended in (prop::collection::vec(0..4_u64, 0..2), prop::collection::vec(0..4_u64, 0..2)),
        ) {
            let (one, two) = (hello(one, &ended.0), hello(two, &ended.1));
            prop_assert_ne!(keeps(&one, &two), keeps(&two, &one));
            prop_assert_ne!(decides(&one, &two), decides(&two, &one));
        }
    }
}
