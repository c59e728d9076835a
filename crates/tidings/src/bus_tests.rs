use std::collections::BTreeSet;

use tidings_cache::{CacheBuilder, Clock, WriteError};
use tidings_membership::View;
use tidings_proto::frame::{PROTOCOL_VERSION, PROTOCOLS, Refusal};
use tidings_proto::freshness::{Bounds, LIVES_MAX};
use tidings_proto::hash::CacheId;
use tidings_proto::log::Retention;
use tidings_proto::replicate::copy::{Answer, Question};
use tidings_transport::Host;
use tidings_transport::session::Course;
use tokio::sync::watch::Ref;

use super::*;
use crate::relays::RELAY_ABOVE;
use crate::spending::COPY_BYTES_PER_SECOND;

const ELSEWHERE: ([u8; 4], u16) = ([127, 0, 0, 1], 7401);

fn life(node: &str, incarnation: u64) -> Origin {
    Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation) }
}

/// A node that was started long ago by its clock, and has reached nobody.
fn bus() -> Face {
    let clock = Clock::system();
    let origin = life("a", 1_000);
    let log = Arc::new(ChangeLog::new(Lanes::default(), Retention::default()));
    let bounds = Bounds::default();
    let domain = Domain::new(clock, log, origin.clone(), bounds.max_staleness);
    let observers = Arc::<Observers>::default();
    let coherence = Coherence::new(origin.node.clone(), domain.clone(), observers.clone(), bounds, true);
    let (cluster, zone) = ("shop".to_owned(), String::new());
    let clocks = ClockBounds::default();
    let bus = Bus::new(Parts {
        cluster,
        origin,
        log_id: LogId(1),
        zone,
        domain,
        coherence,
        observers,
        clocks,
        relay_above: RELAY_ABOVE,
        copy_bytes_per_second: COPY_BYTES_PER_SECOND,
        planted: None,
        log_files: None,
        legacy: None,
    });
    bus.set_address(([127, 0, 0, 1], 7400).into());
    Face(bus)
}

fn refuse(bus: &Face, refusal: Refusal) -> Ref<'_, Incarnation> {
    bus.refused(ELSEWHERE.into(), &refusal);
    bus.wanted_incarnation.borrow()
}

#[test]
fn only_the_last_of_several_sessions_takes_the_link_from_a_life() {
    let mut sessions = Sessions::default();
    sessions.begin(record_of(&peer(1, 1)));
    sessions.begin(record_of(&peer(1, 1)));
    sessions.begin(record_of(&peer(2, 1)));
    assert!(!sessions.end(&life("b", 1)), "another one is left");
    assert!(sessions.end(&life("b", 1)));
    assert!(sessions.end(&life("b", 2)), "lives are counted apart");
    assert!(sessions.0.is_empty());
}

#[test]
fn a_refusal_renumbers_only_to_lives_that_can_be() {
    let bus = bus();
    let now = bus.domain.clock().wall_ms();
    assert_eq!(refuse(&bus, Refusal::Incarnation(Incarnation(999))).0, 1_000, "an earlier one");
    assert_eq!(refuse(&bus, Refusal::Incarnation(Incarnation(u64::MAX))).0, 1_000);
    let in_two_days = Incarnation(now + 2 * 24 * 60 * 60 * 1_000);
    assert_eq!(refuse(&bus, Refusal::Incarnation(in_two_days)).0, 1_000);
    assert_eq!(refuse(&bus, Refusal::Incarnation(Incarnation(now + 1_000))).0, now + 1_001);
}

#[tokio::test]
async fn questions_about_entries_are_answered_before_the_node_has_started() {
    let question = Question::Digests.encode(CacheId::of_name("numbers"));
    let answer = bus().asked.answer(life("b", 1), Topic::Copy, question).await;
    // Declined, a peer would take it that this node never answers any, and end its doubt.
    assert_eq!(answer, Ok(Answer::Absent.encode()));
}

#[test]
fn what_a_peer_says_of_another_holder_is_looked_into_and_not_believed() {
    let bus = bus();
    let held = |node: &str| Refusal::DuplicateNode {
        node: NodeId::new(node).unwrap(),
        address: ([127, 0, 0, 1], 7402).into(),
    };
    refuse(&bus, held("b"));
    assert_eq!(*bus.holder.lock(), None, "somebody else's id is no concern of this node");
    refuse(&bus, held("a"));
    assert_eq!(*bus.conflict.borrow(), None);
    assert_eq!(*bus.holder.lock(), Some(([127, 0, 0, 1], 7402).into()), "it is dialled");
    let numbers = CacheBuilder::<String, u64>::new(&bus.domain, "numbers").open().unwrap();
    numbers.insert("k".to_owned(), 1).unwrap();
    bus.displaced(ELSEWHERE.into());
    let refused = numbers.insert("k".to_owned(), 2);
    assert!(matches!(refused, Err(WriteError::Superseded)), "nobody would be told: {refused:?}");
    let node = NodeId::new("a").unwrap();
    assert_eq!(*bus.conflict.borrow(), Some(Conflict::DuplicateNode { node, address: ELSEWHERE.into() }));
}

fn peer(incarnation: u64, log: u64) -> Hello {
    let of = life("b", incarnation);
    Hello { node: of.node, incarnation: of.incarnation, log: LogId(log), ..bus().hello() }
}

#[test]
fn who_was_refused_its_id_before_anybody_followed_it_never_takes_the_place_later() {
    let bus = bus();
    assert!(bus.takes_part());
    bus.displaced(ELSEWHERE.into());
    assert!(!bus.takes_part() && !bus.is_over(), "nobody has to follow what it did");
    assert_eq!(bus.admit(&peer(5, 1)), Err(Refusal::Leaving), "who is let in would take it for the holder");
}

#[test]
fn a_life_that_is_over_relays_nothing() {
    let bus = bus();
    assert_eq!(bus.hello().protocols, PROTOCOLS);
    bus.former.store(true, Ordering::Release);
    assert_eq!(bus.hello().protocols, (PROTOCOL_VERSION, PROTOCOL_VERSION));
}

#[test]
fn a_life_that_is_over_is_asked_of_nobody_else_once_it_is_there_itself() {
    let bus = bus();
    bus.admit(&peer(5, 1)).unwrap();
    let (origin, relaying) = (life("b", 5), bus.coherence.relaying());
    let followed = bus.coherence.followed(&origin, ELSEWHERE.into(), Lanes::default());
    let sources = ["c", "b"].map(|node| NodeId::new(node).unwrap()).into();
    let course = Course { followed, sources, hops: 2 };
    relaying.turn(true, || bus.domain.clock().now());
    relaying.plan(vec![course], |_| false, bus.domain.clock().now());
    bus.admit(&peer(6, 2)).unwrap();
    bus.relay(&View::default());
    assert!(relaying.is_routed(&origin), "what it did last may come by way of others");
    // Its process was only cut off, or the next one has found its log.
    let session = bus.0.session_begins(&peer(5, 1));
    bus.relay(&View::default());
    assert!(!relaying.is_routed(&origin), "no relay and no successor knows its log as it does");
    drop(session);
}

#[test]
fn a_process_is_told_whose_place_it_has_taken_before_its_hello_is_answered() {
    let bus = bus();
    let ended = || -> BTreeSet<Origin> {
        let members = bus.hello().members.members.into_iter();
        members.filter(|member| member.ended).map(|member| member.origin).collect()
    };
    bus.admit(&peer(5, 1)).unwrap();
    bus.admit(&peer(6, 1)).unwrap();
    let earlier = BTreeSet::from([life("b", 5)]);
    assert_eq!(ended(), earlier, "the same process under another number");
    assert_eq!(bus.admit(&peer(6, 2)), Err(Refusal::Incarnation(Incarnation(6))));
    assert_eq!(ended(), earlier, "it was not let in");
    bus.admit(&peer(7, 2)).unwrap();
    assert!(ended().contains(&life("b", 6)));
}

#[test]
fn nodes_that_were_met_are_remembered_up_to_a_bound_and_the_oldest_go_first() {
    let bus = bus();
    let one = peer(1, 1);
    for number in 0..MET_MAX as u64 + 10 {
        let Origin { node, incarnation } = life(&format!("b{number}"), 1_000 + number);
        bus.admit(&Hello { node, incarnation, ..one.clone() }).unwrap();
    }
    let met = bus.met.lock();
    assert_eq!(met.len(), MET_MAX);
    assert!(met.values().all(|(incarnation, _)| incarnation.0 >= 1_010));
}

#[test]
fn a_life_that_is_over_by_what_others_prove_is_not_let_in_again() {
    let bus = bus();
    // As if by gossip: it has never said hello here.
    bus.coherence.met(&peer(5, 1));
    assert_eq!(bus.admit(&peer(3, 2)), Err(Refusal::Incarnation(Incarnation(5))));
    bus.admit(&peer(5, 1)).unwrap();
}

#[test]
fn a_member_that_begins_life_after_life_is_not_admitted_while_many_are_in_doubt() {
    let bus = bus();
    let relevant = || bus.coherence.relevant().len();
    for number in 0..1_000 {
        let admitted = bus.admit(&peer(1_000 + number, 1));
        let newest = Refusal::Incarnation(Incarnation(1_000 + LIVES_MAX as u64 - 1));
        assert_eq!(admitted, if number < LIVES_MAX as u64 { Ok(()) } else { Err(newest) });
    }
    assert_eq!(relevant(), LIVES_MAX);
    assert!(!bus.follows_to_the_end(&peer(1, 1)), "it may as well be any number of them");
    bus.admit(&peer(1_000 + LIVES_MAX as u64 - 1, 1)).unwrap();
    let other = life("c", 1);
    bus.admit(&Hello { node: other.node, incarnation: other.incarnation, ..peer(1, 1) }).unwrap();
}

#[test]
fn only_the_log_of_a_life_that_was_met_is_followed_to_its_end() {
    let bus = bus();
    bus.admit(&peer(5, 1)).unwrap();
    assert!(!bus.follows_to_the_end(&peer(5, 2)));
    assert!(bus.follows_to_the_end(&peer(5, 1)) && bus.follows_to_the_end(&peer(4, 2)));
}
