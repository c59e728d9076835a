//! Caches whose values travel.

use std::time::Duration;

use tidings_cache::{
    Cache, CacheBuilder, Computed, EventKind, Invalidator, Key, Mode, OpenError, ReadOrFill, TOKEN_TIME,
    WriteError,
};

use crate::common::{MAX_STALENESS, Node, Wire, fill, key, kinds, many};
use crate::replicate_repair::repair;

pub(crate) type Users = Cache<String, u64>;

pub(crate) fn builder(node: &Node) -> CacheBuilder<String, u64> {
    node.cache("users").replicate()
}

/// One that has been compared with everybody there is, which is nobody.
pub(crate) fn users(node: &Node) -> Users {
    alone(builder(node))
}

/// Opens a cache of whose writes none is missed.
pub(crate) fn alone<K, V>(builder: CacheBuilder<K, V>) -> Cache<K, V>
where
    K: Key,
    V: Clone + Send + Sync + 'static,
{
    let cache = builder.open().unwrap();
    let replicating = cache.erased().replicating().unwrap();
    replicating.end(&replicating.begin().expect("others may hold what it has never heard of"));
    cache
}

pub(crate) fn insert(users: &Users, name: &str, value: u64) {
    users.insert(key(name), value).unwrap();
}

/// Two nodes with the cache, which gives entries explicit tags.
fn pair() -> ([Node; 2], [Users; 2]) {
    let nodes = [Node::new("a"), Node::new("b")];
    let caches = [0, 1].map(|at| alone(builder(&nodes[at]).explicit_tags()));
    (nodes, caches)
}

#[test]
fn a_value_travels_and_is_there_without_a_load() {
    let ([a, b], [on_a, on_b]) = pair();
    let mut wire = Wire::new([&a, &b]);
    insert(&on_a, "k", 1);
    wire.carry();
    assert_eq!(on_b.get(&key("k")), Some(1));
    insert(&on_b, "k", 2);
    wire.carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (Some(2), Some(2)));
    let counts = on_b.counts();
    assert_eq!((counts.merged, counts.applied(), counts.invalidated()), (1, 1, 0));
}

#[test]
fn every_operation_that_stores_makes_its_value_travel() {
    let ([a, b], [on_a, on_b]) = pair();
    let mut wire = Wire::new([&a, &b]);
    let mut check = |expected, what: &str| {
        wire.carry();
        assert_eq!(on_b.get(&key("k")), expected, "{what}");
    };
    assert!(on_a.insert_if_absent(key("k"), 1).unwrap());
    check(Some(1), "insert_if_absent");
    assert!(on_a.replace(key("k"), 2).unwrap());
    check(Some(2), "replace");
    on_a.increment(&key("k"), 5).unwrap();
    check(Some(7), "increment");
    on_a.compute(&key("k"), |_| Computed::Put(8)).unwrap();
    check(Some(8), "compute");
    on_a.compute(&key("k"), |_| Computed::Remove).unwrap();
    check(None, "compute that removes");
    on_a.write().insert_many([(key("k"), 9), (key("l"), 10)]).unwrap();
    check(Some(9), "insert_many");
    assert_eq!(on_b.get(&key("l")), Some(10));
    assert_eq!(on_a.take(&key("k")).unwrap(), Some(9));
    check(None, "take");
}

#[tokio::test]
async fn a_write_through_makes_its_value_travel_whatever_its_version() {
    let ([a, b], [on_a, on_b]) = pair();
    on_a.write_through_versioned(&key("k"), || async { Ok::<_, ()>((1, 9)) }).await.unwrap();
    on_a.write_through_versioned(&key("k"), || async { Ok::<_, ()>((2, 3)) }).await.unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (Some(2), Some(2)), "the last write counts");
}

#[test]
fn of_concurrent_writes_the_later_one_counts_on_both_sides() {
    let ([a, b], [on_a, on_b]) = pair();
    for round in 0..20 {
        insert(&on_a, "k", 2 * round);
        b.clock.advance(Duration::from_millis(1));
        insert(&on_b, "k", 2 * round + 1);
        a.clock.advance(Duration::from_millis(1));
    }
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (Some(39), Some(39)));
    assert_eq!(on_b.counts().outdated, 20, "all of the other's came after a later one");
}

#[test]
fn a_removal_is_remembered_when_an_older_value_comes_after_it() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    wire.carry_between(0, 1);
    caches[1].remove(&key("k")).unwrap();
    wire.carry_between(1, 2);
    wire.carry_between(0, 2);
    assert_eq!(caches[2].get(&key("k")), None);
    wire.carry();
    assert!(caches.iter().all(|cache| cache.get(&key("k")).is_none()));
    assert!(caches.iter().all(|cache| cache.erased().tombstones() == 1));
}

#[test]
fn a_removal_that_is_forgotten_still_refuses_what_is_older() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let ttl = Duration::from_secs(60);
    let caches = [0, 1, 2].map(|at| alone(builder(&nodes[at]).tombstone_ttl(ttl)));
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 1);
    wire.carry_between(0, 1);
    caches[1].remove(&key("k")).unwrap();
    wire.carry_between(1, 2);
    nodes[2].clock.advance(ttl);
    nodes[2].domain.housekeep();
    assert_eq!(caches[2].erased().tombstones(), 0);
    wire.carry_between(0, 2);
    assert_eq!(caches[2].get(&key("k")), None);
}

#[test]
fn a_clear_spares_what_was_written_later_and_nothing_else() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    many(50).into_iter().for_each(|name| insert(&caches[0], &name, 1));
    wire.carry();
    caches[0].clear().unwrap();
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    insert(&caches[1], "key-7", 2);
    // The later write comes to one node before the clear, and to another after it.
    wire.carry_between(1, 2);
    wire.carry();
    for cache in &caches {
        assert_eq!(cache.get(&key("key-7")), Some(2));
        assert_eq!(cache.iter().count(), 1);
    }
}

#[test]
fn a_tag_and_a_prefix_remove_what_was_written_before_on_every_node() {
    let ([a, b], [on_a, on_b]) = pair();
    let mut wire = Wire::new([&a, &b]);
    on_a.write().tag("t").insert(key("user:1"), 1).unwrap();
    on_a.write().tag("u").insert(key("user:2"), 2).unwrap();
    insert(&on_a, "page:1", 3);
    wire.carry();
    on_b.invalidate_tag("t").unwrap();
    wire.carry();
    for cache in [&on_a, &on_b] {
        assert_eq!(cache.get_many(&[key("user:1"), key("user:2"), key("page:1")]), [None, Some(2), Some(3)]);
    }
    on_b.invalidate_prefix("user:").unwrap();
    a.clock.advance(Duration::from_millis(5));
    on_a.write().tag("u").insert(key("user:3"), 4).unwrap();
    wire.carry();
    // What is later there than the prefix looks as if it was named, until it was compared.
    repair(&on_a, &[&on_b]).expect("its slot is doubted");
    for (cache, name) in [(&on_a, "a"), (&on_b, "b")] {
        let found = cache.get_many(&[key("user:2"), key("page:1"), key("user:3")]);
        assert_eq!(found, [None, Some(3), Some(4)], "{name}");
    }
    on_a.invalidate_tag("u").unwrap();
    wire.carry();
    assert_eq!(on_b.get(&key("user:3")), None, "its tags have travelled");
}

#[test]
fn what_a_clear_spares_is_as_old_as_before() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1, 2].map(|at| users(&nodes[at]));
    let mut wire = Wire::new(&nodes);
    caches[0].clear().unwrap();
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    insert(&caches[1], "k", 1);
    wire.carry_between(1, 2);
    let left = Duration::from_secs(1);
    nodes[2].fresh_until_now();
    nodes[2].clock.advance(MAX_STALENESS - left);
    wire.carry_between(0, 2);
    assert_eq!(caches[2].get(&key("k")), Some(1));
    nodes[2].clock.advance(left + left);
    assert_eq!(caches[2].get(&key("k")), None, "a third node may have written since");
}

#[test]
fn a_time_to_live_of_its_own_travels_with_a_value() {
    let ([a, b], [on_a, on_b]) = pair();
    on_a.write().ttl(Duration::from_secs(5)).insert(key("k"), 1).unwrap();
    Wire::new([&a, &b]).carry();
    b.clock.advance(Duration::from_secs(4));
    assert_eq!(on_b.get(&key("k")), Some(1));
    b.clock.advance(Duration::from_secs(2));
    assert_eq!(on_b.get(&key("k")), None);
}

#[test]
fn what_was_loaded_neither_travels_nor_replaces_what_did() {
    let ([a, b], [on_a, on_b]) = pair();
    let mut wire = Wire::new([&a, &b]);
    fill(&on_a, "filled", 1);
    wire.carry();
    assert_eq!(on_b.get(&key("filled")), None, "a fill is silent");
    let Ok(ReadOrFill::Miss(token)) = on_b.get_or_token(&key("k"), TOKEN_TIME) else { panic!("a miss") };
    insert(&on_a, "k", 2);
    wire.carry();
    assert!(!on_b.fill(&key("k"), 9, token, None).unwrap());
    assert_eq!(on_b.get(&key("k")), Some(2));
    insert(&on_b, "filled", 3);
    wire.carry();
    assert_eq!(on_a.get(&key("filled")), Some(3), "it gives way to what a peer writes");
}

#[test]
fn a_node_that_displaces_entries_takes_back_no_older_value() {
    let nodes = ["a", "b", "c"].map(Node::new);
    let caches = [0, 1].map(|at| users(&nodes[at]));
    let small = alone(builder(&nodes[2]).max_capacity(10));
    let mut wire = Wire::new(&nodes);
    let names = many(100);
    names.iter().for_each(|name| insert(&caches[0], name, 1));
    nodes.iter().for_each(|node| node.clock.advance(Duration::from_millis(5)));
    wire.carry_between(0, 1);
    names.iter().for_each(|name| insert(&caches[1], name, 2));
    wire.carry_between(1, 2);
    small.settle();
    assert!(names.iter().filter(|name| small.contains(name)).count() <= 10);
    wire.carry_between(0, 2);
    small.settle();
    let old: Vec<_> =
        names.iter().filter(|name| small.peek(name).is_some_and(|(value, _)| value == 1)).collect();
    assert!(old.is_empty(), "{old:?} came back");
}

#[test]
fn a_value_too_large_to_travel_is_refused_before_anything_is_stored() {
    let node = Node::new("a");
    let pages: Cache<String, String> = node.cache("pages").replicate().open().unwrap();
    let large = "x".repeat(1 << 20);
    assert!(matches!(pages.insert(key("k"), large.clone()), Err(WriteError::TooLarge(_))));
    let some = [(key("l"), "y".to_owned()), (key("k"), large)];
    assert!(matches!(pages.write().insert_many(some), Err(WriteError::TooLarge(_))));
    assert_eq!((pages.iter().count(), node.logged()), (0, 0));
    let most = "x".repeat(900 << 10);
    pages.insert(key("k"), most).unwrap();
}

#[test]
fn a_value_of_another_schema_evicts_and_is_not_stored() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (users(&a), alone(builder(&b).schema(1)));
    let mut wire = Wire::new([&a, &b]);
    insert(&on_b, "k", 1);
    wire.carry();
    assert_eq!((on_a.get(&key("k")), on_a.counts().other_schema), (None, 1));
    a.clock.advance(Duration::from_millis(5));
    insert(&on_a, "k", 2);
    wire.carry();
    assert_eq!((on_b.get(&key("k")), on_a.get(&key("k"))), (None, Some(2)));
}

#[test]
fn a_peer_that_only_invalidates_evicts_and_is_heeded() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (users(&a), b.users());
    let mut wire = Wire::new([&a, &b]);
    fill(&on_b, "k", 1);
    insert(&on_a, "k", 2);
    wire.carry();
    assert_eq!(on_b.get(&key("k")), None);
    b.clock.advance(Duration::from_millis(5));
    insert(&on_b, "k", 3);
    wire.carry();
    assert_eq!(on_a.get(&key("k")), None, "what it stored did not travel");
}

#[test]
fn subscribers_are_told_of_what_counts_and_not_of_what_came_too_late() {
    let ([a, b], [on_a, on_b]) = pair();
    let mut told = on_b.subscribe().start().unwrap();
    let mut wire = Wire::new([&a, &b]);
    insert(&on_a, "k", 1);
    on_a.remove(&key("k")).unwrap();
    wire.carry();
    assert_eq!(kinds(&mut told), [EventKind::Inserted, EventKind::Invalidated, EventKind::Deleted]);
    insert(&on_a, "k", 2);
    b.clock.advance(Duration::from_millis(5));
    insert(&on_b, "k", 3);
    assert_eq!(kinds(&mut told), [EventKind::Inserted]);
    wire.carry();
    assert_eq!(kinds(&mut told), []);
}

#[test]
fn values_travel_in_an_encoding_of_their_own_and_what_cannot_be_decoded_evicts() {
    let nodes = ["a", "b"].map(Node::new);
    let encode = |value: &u64| value.to_string().into_bytes();
    let decode = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse().ok().filter(|value| *value < 100);
    let caches = [0, 1].map(|at| alone(nodes[at].cache("users").replicate_with(encode, decode)));
    let mut wire = Wire::new(&nodes);
    insert(&caches[0], "k", 7);
    wire.carry();
    assert_eq!(caches[1].get(&key("k")), Some(7));
    insert(&caches[0], "k", 700);
    wire.carry();
    assert_eq!((caches[1].get(&key("k")), caches[1].counts().unreadable), (None, 1));
}

#[test]
fn settings_that_cannot_be_are_refused_when_it_is_opened() {
    let node = Node::new("a");
    let refused = |builder: CacheBuilder<String, u64>| match builder.open() {
        Err(OpenError::Option { option, .. }) => option,
        opened => panic!("{opened:?}"),
    };
    assert_eq!(refused(node.cache("users").mode(Mode::Replicate)), "mode");
    assert_eq!(refused(builder(&node).invalidator(Invalidator::All)), "invalidator");
    let eager = builder(&node).time_to_live(Duration::from_secs(9)).eager_refresh(0.8);
    assert_eq!(refused(eager), "eager_refresh");
}
