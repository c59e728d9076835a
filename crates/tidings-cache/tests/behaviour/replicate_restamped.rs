//! What others write between a write of the future and its being written anew: it counts by the stamp that the write has
//! then, also where it had come before.

use std::time::Duration;

use tidings_cache::Refusal;
use tidings_proto::id::SlotSet;

use crate::common::{Node, Wire, key};
use crate::replicate::{Users, insert};
use crate::replicate_future::{AHEAD, three, values};
use crate::replicate_repair::{repair, tell};

/// As [`three`], with the third as far ahead as the first: it accepts what the first one writes.
fn two_ahead() -> ([Node; 3], [Users; 3]) {
    let (nodes, caches) = three();
    nodes[2].clock.advance(AHEAD);
    (nodes, caches)
}

/// Has the first write anew what the second one has refused, and looks what came of that.
fn settle(nodes: &[Node; 3], caches: &[Users; 3], wire: &mut Wire<'_>, refusals: &[Refusal]) {
    assert!(!refusals.is_empty());
    refusals.iter().for_each(|refusal| tell(&caches[0], refusal));
    wire.carry();
    look_again(nodes, caches);
}

fn look_again(nodes: &[Node; 3], caches: &[Users; 3]) {
    nodes.iter().for_each(|node| node.clock.advance(AHEAD));
    for at in 0..3 {
        let others: Vec<_> = (0..3).filter(|other| *other != at).map(|other| &caches[other]).collect();
        repair(&caches[at], &others);
        assert_eq!(caches[at].erased().doubted(), SlotSet::default());
    }
}

fn pass(nodes: &[Node]) {
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
}

#[test]
fn what_was_cleared_while_it_was_of_the_future_is_nobodys() {
    for (nodes, caches) in [three(), two_ahead()] {
        let mut wire = Wire::new(&nodes);
        insert(&caches[0], "k", 1);
        wire.carry();
        let refusals = nodes[1].domain.take_refusals();
        pass(&nodes);
        caches[1].clear().unwrap();
        wire.carry();
        settle(&nodes, &caches, &mut wire, &refusals);
        assert_eq!(values(&caches, "k"), [None; 3]);
    }
}

#[test]
fn what_a_tag_or_prefix_named_while_it_was_of_the_future_is_nobodys() {
    for (nodes, caches) in [three(), two_ahead()] {
        let mut wire = Wire::new(&nodes);
        caches[0].write().tag("t").insert(key("tagged"), 1).unwrap();
        caches[0].write().tag("u").insert(key("other"), 1).unwrap();
        insert(&caches[0], "user:1", 1);
        wire.carry();
        let refusals = nodes[1].domain.take_refusals();
        pass(&nodes);
        caches[1].invalidate_tag("t").unwrap();
        caches[1].invalidate_prefix("user:").unwrap();
        wire.carry();
        settle(&nodes, &caches, &mut wire, &refusals);
        assert_eq!((values(&caches, "tagged"), values(&caches, "user:1")), (vec![None; 3], vec![None; 3]));
        assert_eq!(values(&caches, "other"), [Some(1); 3]);
    }
}

#[test]
fn what_was_written_before_it_was_written_anew_counts_where_it_had_come_too_early() {
    let (nodes, caches) = two_ahead();
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    insert(&caches[0], "gone", 1);
    wire.carry();
    let refusals = nodes[1].domain.take_refusals();
    pass(&nodes);
    insert(&caches[1], "k", 2);
    caches[1].remove(&key("gone")).unwrap();
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(1), Some(2), Some(1)], "it is still later there");
    settle(&nodes, &caches, &mut wire, &refusals);
    assert_eq!((values(&caches, "k"), values(&caches, "gone")), (vec![Some(2); 3], vec![None; 3]));
}

#[test]
fn what_was_written_after_a_clear_tag_or_prefix_of_the_future_is_had_by_all() {
    for what in 0..3 {
        let (nodes, caches) = two_ahead();
        let mut wire = Wire::new(&nodes);
        insert(&caches[1], "user:0", 1);
        caches[1].write().tag("t").insert(key("tagged:0"), 1).unwrap();
        wire.carry();
        nodes[1].clock.advance(Duration::from_millis(5));
        match what {
            0 => drop(caches[0].clear().unwrap()),
            1 => drop(caches[0].invalidate_tag("t").unwrap()),
            _ => drop(caches[0].invalidate_prefix("user:").unwrap()),
        }
        wire.carry();
        let refusals = nodes[1].domain.take_refusals();
        pass(&nodes);
        caches[1].write().tag("t").insert(key("tagged:1"), 2).unwrap();
        insert(&caches[1], "user:1", 2);
        wire.carry();
        settle(&nodes, &caches, &mut wire, &refusals);
        look_again(&nodes, &caches);
        let left = |name, named| (values(&caches, name), vec![if named { None } else { Some(1) }; 3]);
        for (values, expected) in [left("user:0", what != 1), left("tagged:0", what != 2)] {
            assert_eq!(values, expected, "{what}");
        }
        assert_eq!(values(&caches, "user:1"), [Some(2); 3], "{what}");
        assert_eq!(values(&caches, "tagged:1"), [Some(2); 3], "{what}");
    }
}

#[test]
fn slots_are_looked_at_again_once_a_second_and_only_where_something_was_renamed() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    insert(&caches[0], "l", 1);
    wire.carry();
    let refusals = nodes[1].domain.take_refusals();
    tell(&caches[0], &refusals[0]);
    wire.carry();
    let looks =
        |at: usize, others: [usize; 2]| repair(&caches[at], &others.map(|other| &caches[other])).is_some();
    assert!(!looks(0, [1, 2]), "not yet");
    nodes[0].clock.advance(AHEAD / 2);
    tell(&caches[0], &refusals[1]);
    wire.carry();
    nodes[0].clock.advance(AHEAD / 2);
    assert!(looks(0, [1, 2]) && !looks(0, [1, 2]), "both at once");
    nodes[0].clock.advance(AHEAD * 2);
    nodes[1].clock.advance(AHEAD * 2);
    assert!(!looks(0, [1, 2]) && !looks(1, [0, 2]), "who has refused it has nothing to look at");
    assert_eq!(values(&caches, "k"), [Some(1); 3]);
}

#[test]
fn a_clear_that_cannot_be_written_anew_is_what_it_was() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    caches[0].clear().unwrap();
    wire.carry();
    let refusals = nodes[1].domain.take_refusals();
    nodes[0].domain.log().seal();
    let Refusal { of, stamp, instead, .. } = &refusals[0];
    let author = caches[0].erased().replicating().unwrap();
    author.restamp(of.borrowed(), *stamp, *instead).expect_err("nobody can be told");
    pass(&nodes);
    insert(&caches[1], "k", 1);
    wire.carry();
    assert_eq!(caches[0].get(&key("k")), None, "it was before the clear, as that one stands");
    assert_eq!((caches[0].counts().restamped, caches[1].get(&key("k"))), (0, Some(1)));
}
