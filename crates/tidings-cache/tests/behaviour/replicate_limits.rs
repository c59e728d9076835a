//! Caches whose values travel at their limits: encodings that panic, clocks that are ahead, tags of what is unreadable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tidings_cache::{EventKind, ReadOrFill, TOKEN_TIME};
use tidings_proto::id::SlotSet;

use crate::common::{Node, Wire, key, kinds};
use crate::replicate::{Users, alone, builder, insert, users};
use crate::replicate_repair::repair;

/// Longer than a clock may be ahead of another.
const AHEAD: Duration = Duration::from_secs(1);

fn read(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[test]
fn an_encoding_that_panics_on_what_has_come_is_counted_and_evicts() {
    let nodes = ["a", "b"].map(Node::new);
    let write = |value: &u64| value.to_le_bytes().to_vec();
    let fussy = |bytes: &[u8]| {
        assert!(read(bytes) < Some(100), "broken on purpose");
        read(bytes)
    };
    let on_a = alone(nodes[0].cache("users").replicate_with(write, read));
    let on_b = alone(nodes[1].cache("users").replicate_with(write, fussy));
    let mut wire = Wire::new(&nodes);
    insert(&on_a, "k", 1);
    wire.carry();
    assert_eq!(on_b.get(&key("k")), Some(1));
    insert(&on_a, "k", 700);
    insert(&on_a, "l", 2);
    wire.carry();
    assert_eq!(
        (on_b.get(&key("k")), on_b.get(&key("l"))),
        (None, Some(2)),
        "what comes behind it is applied"
    );
    assert_eq!((on_b.counts().panics, on_b.counts().unreadable), (1, 1));
}

#[test]
fn an_encoding_that_panics_on_what_is_asked_for_is_counted_and_hands_out_nothing() {
    let nodes = ["a", "b"].map(Node::new);
    let broken = Arc::new(AtomicBool::new(false));
    let breaks = broken.clone();
    let write = move |value: &u64| {
        assert!(*value < 100 || !breaks.load(Ordering::SeqCst), "broken on purpose");
        value.to_le_bytes().to_vec()
    };
    let on_a = alone(nodes[0].cache("users").replicate_with(write, read));
    let on_b = nodes[1].cache("users").replicate_with(|value: &u64| value.to_le_bytes().to_vec(), read);
    let on_b = on_b.open().unwrap();
    insert(&on_a, "k", 700);
    insert(&on_a, "l", 2);
    broken.store(true, Ordering::SeqCst);
    assert_eq!(repair(&on_b, &[&on_a]), Some(1));
    assert_eq!((on_b.get(&key("k")), on_b.get(&key("l"))), (None, Some(2)));
    assert_eq!(on_a.counts().panics, 1);
}

#[test]
fn a_slot_is_doubted_on_while_the_floor_of_a_member_is_of_the_future() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    let on_c = builder(&nodes[2]).open().unwrap();
    insert(&on_a, "k", 1);
    nodes[1].clock.advance(AHEAD);
    // B has forgotten what it has removed: all that it says is its floor.
    on_b.clear().unwrap();
    repair(&on_c, &[&on_b, &on_a]).expect("it has just joined");
    assert_eq!(on_c.get(&key("k")), None, "of the two the clear is later");
    assert_eq!(on_c.erased().doubted(), SlotSet::ALL);
    [&nodes[0], &nodes[2]].iter().for_each(|node| node.clock.advance(AHEAD));
    repair(&on_c, &[&on_b, &on_a]).expect("its slots are doubted");
    assert_eq!((on_c.get(&key("k")), on_c.erased().doubted()), (None, SlotSet::default()));
}

#[tokio::test]
async fn an_uncertain_clear_of_the_future_opens_its_window() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    let source = nodes[0].cache::<String, u64>("source").open().unwrap();
    source.derive(&on_a, |_: &String| -> Vec<String> { panic!("broken on purpose") }).unwrap();
    nodes[0].clock.advance(AHEAD);
    source.write_through(&key("s"), || async { Err::<u64, _>("nobody knows") }).await.unwrap_err();
    Wire::new(&nodes).carry();
    assert!(on_b.counts().future > 0);
    let fills = |value| match on_b.get_or_token(&key("k"), TOKEN_TIME).unwrap() {
        ReadOrFill::Miss(token) => on_b.fill(&key("k"), value, token, None).unwrap(),
        ReadOrFill::Hit(value) => panic!("{value}"),
    };
    assert!(!fills(1), "the write may still land");
    nodes[1].clock.advance(Duration::from_secs(6));
    assert!(fills(2));
}

#[test]
fn of_a_write_of_the_future_subscribers_are_told_what_it_evicted_and_no_more() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    insert(&on_b, "k", 1);
    let mut told = on_b.subscribe().start().unwrap();
    nodes[0].clock.advance(AHEAD);
    insert(&on_a, "k", 2);
    insert(&on_a, "l", 3);
    Wire::new(&nodes).carry_between(0, 1);
    assert_eq!((on_b.get(&key("k")), on_b.get(&key("l")), on_b.counts().future), (None, None, 2));
    assert_eq!(kinds(&mut told), [EventKind::Invalidated]);
}

#[test]
fn of_a_peer_s_change_of_many_subscribers_are_told_what_it_evicted() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), nodes[1].users());
    insert(&on_a, "k", 1);
    let mut told = on_a.subscribe().start().unwrap();
    nodes[1].clock.advance(Duration::from_millis(5));
    // It only invalidates, and names many with one record.
    on_b.write().remove_many([key("k")]).unwrap();
    Wire::new(&nodes).carry_between(1, 0);
    assert_eq!(kinds(&mut told), [EventKind::Invalidated, EventKind::Deleted]);
}

#[test]
fn a_tag_takes_nothing_that_does_not_have_it_also_where_none_is_known() {
    let nodes = ["a", "b"].map(Node::new);
    let caches = [0, 1].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    wire.carry();
    caches[0].invalidate_tag("t").unwrap();
    wire.carry();
    assert_eq!([0, 1].map(|at: usize| caches[at].get(&key("k"))), [Some(1); 2]);
    caches[0].write().tag("t").insert(key("tagged"), 2).unwrap();
    wire.carry();
    assert_eq!(caches[1].get(&key("tagged")), Some(2));
    caches[0].invalidate_tag("t").unwrap();
    wire.carry();
    assert_eq!(caches[1].get_many(&[key("k"), key("tagged")]), [Some(1), None]);
}

#[test]
fn an_older_tag_spares_a_value_that_is_unreadable_until_it_was_compared() {
    let nodes = ["a", "b"].map(Node::new);
    let caches = [0, 1].map(|at| alone(builder(&nodes[at]).explicit_tags()));
    let mut wire = Wire::new(&nodes);
    caches[0].invalidate_tag("t").unwrap();
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    caches[1].write().tag("t").insert(key("k"), 2).unwrap();
    wire.carry_between(1, 0);
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    wire.carry_between(0, 1);
    assert_eq!(caches[1].get(&key("k")), None, "it may have missed a later write");
    repair(&caches[1], &[&caches[0]]).expect("its slots are doubted");
    assert_eq!([0, 1].map(|at: usize| caches[at].get(&key("k"))), [Some(2); 2]);
    caches[0].invalidate_tag("t").unwrap();
    wire.carry();
    assert_eq!(caches[1].get(&key("k")), None, "it still has its tag");
}

#[tokio::test]
async fn a_value_that_has_travelled_has_no_version() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    on_b.get_or_load_versioned(&key("k"), || async { Ok::<_, ()>((1, 9)) }).await.unwrap();
    assert_eq!(on_b.get_versioned(&key("k")).unwrap(), Some((1, Some(9))));
    insert(&on_a, "k", 2);
    Wire::new(&nodes).carry();
    assert_eq!(on_b.get_versioned(&key("k")).unwrap(), Some((2, None)), "that was another value's");
}

#[test]
fn a_node_that_begins_to_leave_makes_the_rest_of_a_change_of_many() {
    let node = Node::new("a");
    let (domain, encoded) = (node.domain.clone(), AtomicUsize::new(0));
    let write = move |value: &u64| {
        // Both values are judged before the first is stored.
        if encoded.fetch_add(1, Ordering::SeqCst) == 2 {
            domain.leave();
        }
        value.to_le_bytes().to_vec()
    };
    let users: Users = alone(node.cache("users").replicate_with(write, read));
    users.write().insert_many([(key("k"), 1), (key("l"), 2)]).unwrap();
    assert_eq!(users.get_many(&[key("k"), key("l")]), [Some(1), Some(2)]);
    assert_eq!(node.logged(), 2);
    users.write().insert_many([(key("m"), 3)]).unwrap_err();
}

#[test]
fn what_is_stored_over_an_unreadable_value_is_new() {
    let nodes = ["a", "b"].map(Node::new);
    let (on_a, on_b) = (users(&nodes[0]), users(&nodes[1]));
    insert(&on_a, "k", 1);
    Wire::new(&nodes).carry();
    nodes[1].domain.fence_uncertain(SlotSet::ALL);
    nodes[1].domain.housekeep();
    let written = on_b.insert(key("k"), 2).unwrap();
    assert_eq!(written.kind, EventKind::Inserted, "no read had found one");
    assert_eq!(on_b.insert(key("k"), 3).unwrap().kind, EventKind::Updated);
}
