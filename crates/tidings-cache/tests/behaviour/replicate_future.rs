//! Writes of the future where values travel: who refuses them has them undone. And writes that come in another order
//! than they were made.

use std::time::Duration;

use tidings_cache::{EventKind, Loaded, Refused};
use tidings_proto::id::SlotSet;

use crate::common::{Node, Wire, key, kinds, many};
use crate::replicate::{Users, alone, builder, insert, users};
use crate::replicate_repair::{look, repair, repaired, tell};

/// Longer than a clock may be ahead of another.
pub(crate) const AHEAD: Duration = Duration::from_secs(1);

/// Three nodes, of which the first is ahead.
pub(crate) fn three() -> ([Node; 3], [Users; 3]) {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at: usize| alone(builder(&nodes[at]).explicit_tags()));
    nodes[0].clock.advance(AHEAD);
    (nodes, caches)
}

fn refused(by: &Node, author: &Users) -> Vec<Refused> {
    let refusals = by.domain.take_refusals();
    refusals.iter().for_each(|refusal| tell(author, refusal));
    refusals.into_iter().map(|refusal| refusal.of).collect()
}

pub(crate) fn values(caches: &[Users], name: &str) -> Vec<Option<u64>> {
    caches.iter().map(|cache| cache.get(&key(name))).collect()
}

/// A second later every node compares with the others.
pub(crate) fn look_again(nodes: &[Node; 3], caches: &[Users; 3]) {
    nodes.iter().for_each(|node| node.clock.advance(AHEAD));
    for at in 0..3 {
        repair(&caches[at], &others(caches, at));
        assert_eq!(caches[at].erased().doubted(), SlotSet::default(), "nothing is of the future any more");
    }
}

pub(crate) fn others(caches: &[Users; 3], at: usize) -> Vec<&Users> {
    (0..3).filter(|other| *other != at).map(|other| &caches[other]).collect()
}

pub(crate) fn pass(nodes: &[Node]) {
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
}

#[test]
fn a_write_of_the_future_that_is_refused_is_nobodys() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    insert(&caches[1], "k", 1);
    wire.carry();
    insert(&caches[0], "k", 2);
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(2), None, None], "evicted, and not merged");
    assert_eq!(caches[1].counts().future, 1);
    let mut told = caches[0].subscribe().start().unwrap();
    assert_eq!(refused(&nodes[1], &caches[0]).len(), 1);
    refused(&nodes[2], &caches[0]);
    assert_eq!(caches[0].counts().undone, 1, "once, however many have refused it");
    assert_eq!(kinds(&mut told), [EventKind::Invalidated]);
    assert_eq!(values(&caches, "k"), [None; 3]);
    look_again(&nodes, &caches);
    assert_eq!(values(&caches, "k"), [None; 3]);
    insert(&caches[1], "k", 3);
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(3); 3], "what is written next counts");
}

#[test]
fn what_a_refused_write_evicted_comes_back_from_whoever_has_it() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    insert(&caches[1], "k", 1);
    insert(&caches[0], "k", 2);
    // The third has neither yet.
    wire.carry_between(0, 1);
    assert_eq!(caches[1].get(&key("k")), None);
    refused(&nodes[1], &caches[0]);
    wire.carry_between(1, 2);
    assert_eq!(caches[2].get(&key("k")), Some(1));
    nodes.iter().for_each(|node| node.clock.advance(AHEAD));
    assert_eq!(repair(&caches[1], &others(&caches, 1)), None, "nothing was missed");
    look(&caches[1], &caches[2]);
    repair(&caches[0], &others(&caches, 0)).expect("its slot is looked at");
    assert_eq!(values(&caches, "k"), [Some(1); 3]);
}

#[test]
fn what_another_node_has_written_in_between_is_had_by_all() {
    let (nodes, caches) = three();
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    caches[0].remove(&key("gone")).unwrap();
    wire.carry();
    pass(&nodes);
    insert(&caches[1], "k", 2);
    insert(&caches[1], "gone", 2);
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(1), Some(2), Some(2)], "it is earlier there");
    refused(&nodes[1], &caches[0]);
    look_again(&nodes, &caches);
    assert_eq!((values(&caches, "k"), values(&caches, "gone")), (vec![Some(2); 3], vec![Some(2); 3]));
    assert_eq!(caches[0].erased().tombstones(), 0);
}

#[test]
fn a_clear_of_the_future_that_is_refused_takes_nothing_from_anybody() {
    for is_compared_before in [false, true] {
        let (nodes, caches) = three();
        let mut wire = Wire::new(&nodes);
        many(20).iter().for_each(|name| insert(&caches[1], name, 1));
        wire.carry();
        pass(&nodes);
        caches[0].clear().unwrap();
        wire.carry();
        pass(&nodes);
        insert(&caches[1], "later", 2);
        wire.carry();
        if is_compared_before {
            let (_, all) = repaired(&caches[1], &others(&caches, 1)).expect("its slots are doubted");
            assert!(!all, "to be compared no sooner than the time comes, or the author was told");
            assert_eq!(caches[1].get(&key("later")), None, "unreadable until then");
        }
        assert_eq!(refused(&nodes[1], &caches[0]), vec![Refused::All; 4], "in each lane");
        refused(&nodes[2], &caches[0]);
        assert_eq!(caches[0].counts().undone, 1);
        look_again(&nodes, &caches);
        for cache in &caches {
            assert_eq!((cache.iter().count(), cache.get(&key("later"))), (21, Some(2)));
        }
    }
}

#[test]
fn tags_and_prefixes_of_the_future_that_are_refused_take_nothing_from_anybody() {
    for is_compared_before in [false, true] {
        let (nodes, caches) = three();
        let mut wire = Wire::new(&nodes);
        caches[1].write().tag("t").insert(key("tagged:0"), 1).unwrap();
        insert(&caches[1], "user:0", 1);
        insert(&caches[1], "other", 1);
        wire.carry();
        pass(&nodes);
        // Several in one go, of which each was later than the ones before.
        caches[0].invalidate_tag("t").unwrap();
        ["user:", "us", "user:"].iter().for_each(|prefix| drop(caches[0].invalidate_prefix(prefix).unwrap()));
        wire.carry();
        pass(&nodes);
        caches[1].write().tag("t").insert(key("tagged:1"), 1).unwrap();
        insert(&caches[1], "user:1", 1);
        wire.carry();
        for at in [1, 2].into_iter().filter(|_| is_compared_before) {
            repair(&caches[at], &others(&caches, at)).expect("its slots are doubted");
        }
        let of = refused(&nodes[1], &caches[0]);
        assert!(of.contains(&Refused::Tag("t".into())) && of.contains(&Refused::Prefix("us".into())));
        assert_eq!(caches[0].counts().undone, 4);
        look_again(&nodes, &caches);
        for name in ["tagged:0", "tagged:1", "user:0", "user:1", "other"] {
            assert_eq!(values(&caches, name), [Some(1); 3], "{name}");
        }
        caches[1].invalidate_prefix("user:").unwrap();
        caches[1].invalidate_tag("t").unwrap();
        wire.carry();
        for name in ["tagged:0", "tagged:1", "user:0", "user:1"] {
            assert_eq!(values(&caches, name), [None; 3], "{name}");
        }
    }
}

#[test]
fn a_value_that_was_written_while_a_write_through_ran_survives_it_everywhere() {
    let nodes = ["a", "b"].map(Node::new);
    let caches = [0, 1].map(|at: usize| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    insert(&caches[1], "old", 1);
    wire.carry();
    let k = key("k");
    let write = caches[0].begin_write(&k).unwrap();
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    insert(&caches[1], "k", 7);
    wire.carry();
    write.insert(Loaded::new(9)).unwrap();
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(7); 2], "it is later than the write that lost its flight");
    assert_eq!((caches[0].erased().tombstones(), caches[1].erased().tombstones()), (0, 0));
}

#[test]
fn a_write_through_that_lost_its_flight_removes_what_was_before_everywhere() {
    let nodes = ["a", "b"].map(Node::new);
    let caches = [0, 1].map(|at: usize| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    insert(&caches[1], "k", 1);
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    let k = key("k");
    let write = caches[0].begin_write(&k).unwrap();
    // What comes meanwhile was written before.
    wire.carry();
    write.insert(Loaded::new(9)).unwrap();
    wire.carry();
    assert_eq!(values(&caches, "k"), [None; 2]);
}

#[test]
fn a_tag_or_prefix_takes_an_older_write_that_comes_after_it() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at: usize| alone(builder(&nodes[at]).explicit_tags()));
    let mut wire = Wire::new(&nodes);
    caches[1].write().tag("t").insert(key("tagged"), 1).unwrap();
    insert(&caches[1], "user:1", 1);
    insert(&caches[1], "other", 1);
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    let mut told = caches[2].subscribe().start().unwrap();
    caches[0].invalidate_tag("t").unwrap();
    caches[0].invalidate_prefix("user:").unwrap();
    nodes[1].clock.advance(Duration::from_millis(5));
    caches[1].write().tag("t").insert(key("later"), 2).unwrap();
    // They come to the third before the writes, and cross them between the other two.
    wire.carry_between(0, 2);
    kinds(&mut told);
    wire.carry_between(1, 2);
    assert_eq!(kinds(&mut told).len(), 2, "what counts, and nothing of what was gone when it came");
    wire.carry();
    for name in ["tagged", "user:1"] {
        assert_eq!(values(&caches, name), [None; 3], "{name}");
    }
    assert_eq!((values(&caches, "other"), values(&caches, "later")), (vec![Some(1); 3], vec![Some(2); 3]));
    // The same that comes by a comparison.
    nodes[2].domain.fence_all();
    assert_eq!(repair(&caches[2], &[&caches[0], &caches[1]]), Some(0), "they hold the same");
}

#[test]
fn a_write_without_a_tag_survives_an_older_one_with_it_that_the_tag_has_crossed() {
    let nodes = ["a", "b"].map(Node::new);
    let caches = [0, 1].map(|at: usize| alone(builder(&nodes[at]).explicit_tags()));
    let mut wire = Wire::new(&nodes);
    caches[1].write().tag("t").insert(key("k"), 1).unwrap();
    nodes[1].clock.advance(Duration::from_millis(5));
    insert(&caches[1], "k", 2);
    nodes[0].clock.advance(Duration::from_millis(10));
    caches[0].invalidate_tag("t").unwrap();
    wire.carry();
    assert_eq!(values(&caches, "k"), [Some(2); 2]);
}
