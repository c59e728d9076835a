//! Entries that are invalidated by how their keys start.

use std::time::Duration;

use futures_util::{FutureExt, poll};
use tidings_cache::{
    Cache, Computed, EventKind, Mode, Operation, ReadOrFill, TOKEN_TIME, Target, WriteError,
};
use tidings_proto::freshness::Published;
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use crate::common::{Node, Wire, apply, fill, key, many, one, read, told};

/// A node on which hits look at the clock, as one with peers does: entries are looked through later.
fn node(name: &str) -> Node {
    let node = Node::new(name);
    node.fresh_until_now();
    node
}

fn held(cache: &Cache<String, u64>, names: &[&str]) -> Vec<bool> {
    names.iter().map(|name| cache.contains(&key(name))).collect()
}

#[test]
fn exactly_the_keys_that_start_so_go() {
    let long = "us".repeat(200);
    let names = ["", "u", "us", "use", "user", "User", "xus", "us\u{e9}", &long];
    let named = [false, false, true, true, true, false, false, true, true];
    let spared = named.map(|named| !named);
    let nodes = [node("a"), node("b"), Node::new("c")];
    let caches: Vec<_> = nodes.iter().map(Node::users).collect();
    caches.iter().for_each(|cache| names.iter().for_each(|name| fill(cache, name, 1)));
    caches[0].invalidate_prefix("us").unwrap();
    assert_eq!(held(&caches[0], &names), spared, "at once on the writer");
    assert_eq!(held(&caches[1], &names), [true; 9], "not yet on the peers");
    Wire::new(&nodes).carry();
    for cache in &caches[1..] {
        assert_eq!(held(cache, &names), spared, "as soon as it is applied");
    }
    for cache in &caches {
        cache.settle();
        assert_eq!(held(cache, &names), spared);
        assert_eq!(cache.erased().entries(), 4, "the others are reclaimed");
    }
    assert_eq!(caches[1].counts().prefix_applied, 1);
}

#[test]
fn what_is_stored_afterwards_stays_while_the_rest_is_looked_for() {
    for remote in [false, true] {
        let (a, b) = (node("a"), node("b"));
        let (on_a, on_b) = (a.users(), b.users());
        ["p1", "p2", "p3", "p4"].iter().for_each(|name| fill(&on_b, name, 1));
        if remote { &on_a } else { &on_b }.invalidate_prefix("p").unwrap();
        let mut wire = Wire::new([&a, &b]);
        wire.carry();
        // No clock has moved.
        on_b.insert(key("p1"), 2).unwrap();
        fill(&on_b, "p2", 2);
        on_b.write().insert_many([(key("p5"), 2)]).unwrap();
        let kept = || ["p1", "p2", "p3", "p5"].map(|name| on_b.get(&key(name)));
        assert_eq!(kept(), [Some(2), Some(2), None, Some(2)], "remote: {remote}");
        on_b.settle();
        assert_eq!(kept(), [Some(2), Some(2), None, Some(2)]);
        on_b.invalidate_prefix("p").unwrap();
        assert_eq!(kept(), [None; 4], "nor is a second one misled by that");
    }
}

#[test]
fn no_operation_sees_what_is_still_being_looked_for() {
    let node = node("a");
    let users = node.users();
    let names = many(8);
    names.iter().for_each(|name| fill(&users, name, 1));
    users.invalidate_prefix("key-").unwrap();
    assert_eq!((users.peek(&names[0]), users.iter().count()), (None, 0));
    assert_eq!(users.take(&names[1]).unwrap(), None);
    assert!(!users.replace(names[2].clone(), 2).unwrap());
    assert!(users.insert_if_absent(names[3].clone(), 2).unwrap());
    assert_eq!(users.insert(names[4].clone(), 2).unwrap().kind, EventKind::Inserted);
    users.compute(&names[5], |current| current.map_or(Computed::Keep, |_| Computed::Put(9))).unwrap();
    assert_eq!(users.increment(&names[6], 5).unwrap(), 5);
    let loaded = users.get_or_load(&names[7], || async { Ok::<_, ()>(3) }).now_or_never();
    assert_eq!(loaded.unwrap().unwrap(), 3);
}

#[test]
fn hits_count_as_ever_once_the_rest_was_found() {
    let node = Node::new("a");
    let confirm = || {
        let fresh_until = node.clock.now().after(Duration::from_secs(2));
        node.domain.publish(Published { fresh_until, floor: Tick::NEVER });
    };
    confirm();
    let users = node.users();
    ["p", "q"].iter().for_each(|name| fill(&users, name, 1));
    users.invalidate_prefix("p").unwrap();
    for _ in 0..3 {
        users.settle();
        node.clock.advance(Duration::from_secs(4));
        confirm();
        assert_eq!(held(&users, &["p", "q"]), [false, true]);
    }
    fill(&users, "p", 2);
    assert_eq!((users.get(&key("p")), users.get(&key("q"))), (Some(2), Some(1)));
}

#[tokio::test]
async fn a_load_under_way_when_its_prefix_is_invalidated_is_returned_and_not_kept() {
    for remote in [false, true] {
        let (a, b) = (node("a"), node("b"));
        let (on_a, on_b) = (a.users(), b.users());
        let (deliver, source) = oneshot::channel();
        let slow = key("slow");
        let mut load = std::pin::pin!(on_b.get_or_load(&slow, || source));
        assert!(poll!(load.as_mut()).is_pending());
        let tokens =
            ["slower", "quick"].map(|name| match on_b.get_or_token(&key(name), TOKEN_TIME).unwrap() {
                ReadOrFill::Miss(token) => (name, token),
                ReadOrFill::Hit(value) => panic!("{name} is {value}"),
            });
        if remote { &on_a } else { &on_b }.invalidate_prefix("slo").unwrap();
        Wire::new([&a, &b]).carry();
        let now = on_b.get_or_load(&slow, || async { Ok::<_, ()>(8) });
        assert_eq!(now.now_or_never().unwrap().unwrap(), 8, "remote: {remote}");
        deliver.send(7).unwrap();
        assert_eq!((load.await.unwrap(), on_b.get(&key("slow"))), (7, Some(8)));
        let landed = tokens.map(|(name, token)| on_b.fill(&key(name), 1, token, None).unwrap());
        assert_eq!(landed, [false, true], "remote: {remote}");
    }
}

#[test]
fn a_prefix_is_told_once_and_counted_once_on_every_node() {
    let (a, b) = (node("a"), node("b"));
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").partitions(3).open().unwrap();
    many(50).iter().for_each(|key| fill(&on_b, key, 7));
    let mut heard = [on_a.subscribe().start().unwrap(), on_b.subscribe().start().unwrap()];
    on_a.invalidate_prefix("key-").unwrap();
    on_a.insert(key("after"), 7).unwrap();
    let mut wire = Wire::new([&a, &b]);
    wire.carry();
    for heard in &mut heard {
        let mut told = told(heard);
        let invalidation = (EventKind::Deleted, Operation::Invalidate, Target::Prefix("key-".into()));
        assert!(told.contains(&invalidation), "{told:?}");
        told.retain(|one| *one != invalidation);
        assert_eq!(told, [(EventKind::Inserted, Operation::Insert, one("after"))]);
    }
    assert_eq!((a.domain.events_published(), wire.changes, on_b.counts().applied()), (2, 2, 2));
    assert!(many(50).iter().all(|key| !on_b.contains(key)));
}

#[test]
fn each_lanes_copy_of_a_prefix_stands_for_that_lanes_keys() {
    let (a, b) = (node("a"), node("b"));
    let (on_a, on_b) = (a.users(), b.users());
    many(100).iter().for_each(|key| fill(&on_b, key, 7));
    on_a.invalidate_prefix("key-").unwrap();
    let log = a.domain.log();
    let mut left = 100;
    for lane in log.lanes().ids() {
        apply(&b.domain, &a.origin, log.lanes(), &read(log, lane)).unwrap();
        let now = many(100).iter().filter(|key| on_b.contains(key)).count();
        assert!(now < left, "{lane:?} removed none of {left}");
        left = now;
    }
    assert_eq!(left, 0);
}

#[test]
fn a_prefix_that_names_everything_or_nothing_is_an_error() {
    let node = node("a");
    let (users, numbers) = (node.users(), node.cache::<u64, u64>("numbers").open().unwrap());
    fill(&users, "k", 1);
    assert!(matches!(users.invalidate_prefix(""), Err(WriteError::EmptyPrefix)));
    assert!(matches!(numbers.invalidate_prefix("1"), Err(WriteError::NoText)));
    assert!(matches!(users.invalidate_prefix(&"x".repeat(5_000)), Err(WriteError::TooLarge(_))));
    assert_eq!((users.get(&key("k")), node.logged()), (Some(1), 0));
}

#[test]
fn a_peers_prefix_drops_everything_where_keys_are_no_strings() {
    let (a, b) = (node("a"), node("b"));
    let on_a = a.users();
    let on_b: Cache<u64, u64> = b.cache("users").open().unwrap();
    on_b.insert(1, 1).unwrap();
    on_a.invalidate_prefix("p").unwrap();
    Wire::new([&a, &b]).carry_between(0, 1);
    assert_eq!(on_b.get(&1), None);
}

#[test]
fn more_prefixes_than_hits_can_be_compared_with_are_fenced() {
    let node = node("a");
    let users = node.users();
    let name = |n: usize| format!("{n}-key");
    (0..100).for_each(|n| fill(&users, &name(n), 1));
    (0..64).for_each(|n| drop(users.invalidate_prefix(&format!("{n}-")).unwrap()));
    assert_eq!((0..100).filter(|n| users.contains(&name(*n))).count(), 36);
    users.invalidate_prefix("64-").unwrap();
    assert_eq!((0..100).filter(|n| users.contains(&name(*n))).count(), 0, "too much, never too little");
    users.settle();
    node.clock.advance(Duration::from_secs(4));
    node.fresh_until_now();
    users.settle();
    (0..100).for_each(|n| fill(&users, &name(n), 1));
    users.invalidate_prefix("64-").unwrap();
    assert_eq!((0..100).filter(|n| users.contains(&name(*n))).count(), 99);
}

#[test]
fn a_cache_without_peers_is_looked_through_at_once() {
    let node = Node::new("a");
    let local: Cache<String, u64> = node.cache("local").mode(Mode::Local).open().unwrap();
    many(100).iter().for_each(|key| fill(&local, key, 1));
    fill(&local, "other", 1);
    local.invalidate_prefix("key-").unwrap();
    local.erased().invalidate_prefix("none").unwrap();
    assert_eq!((local.iter().count(), node.logged()), (1, 0));
    node.clock.advance(Duration::from_secs(1));
    assert_eq!(local.get(&key("other")), Some(1));
}
