//! How events are divided among subscribers of one node.

use std::collections::{BTreeMap, BTreeSet};

use tidings_cache::{Cache, EventKind, Operation, SubscribeError, Target};

use crate::common::{Node, Wire, events, fill, key, kinds, many, one, told};

#[test]
fn nodes_may_divide_events_differently_and_lose_none() {
    let nodes = [Node::new("a"), Node::new("b"), Node::new("c")];
    let partitions = [8, 4, 1];
    let caches: Vec<Cache<String, u64>> = nodes
        .iter()
        .zip(partitions)
        .map(|(node, partitions)| node.cache("users").partitions(partitions).open().unwrap())
        .collect();
    let mut heard: Vec<_> = caches.iter().map(|cache| cache.subscribe().start().unwrap()).collect();
    caches.iter().for_each(|cache| many(200).iter().for_each(|key| fill(cache, key, 1)));
    many(200).into_iter().for_each(|key| drop(caches[0].insert(key, 2).unwrap()));
    Wire::new(&nodes).carry();
    for cache in &caches[1..] {
        assert!(many(200).iter().all(|key| cache.get(key).is_none()));
    }
    for (heard, partitions) in heard.iter_mut().zip(partitions) {
        let heard = events(heard);
        let changed = heard.iter().filter(|event| event.kind != EventKind::Invalidated);
        let keys: BTreeSet<_> = changed.map(|event| event.key().unwrap().clone()).collect();
        let used: BTreeSet<_> = heard.iter().map(|event| event.partition.unwrap()).collect();
        assert_eq!((keys.len(), used), (200, (0..partitions).collect()));
    }
}

#[test]
fn all_events_of_a_key_are_in_one_partition_and_in_order() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a: Cache<String, i64> = a.cache("numbers").partitions(8).open().unwrap();
    let on_b: Cache<String, i64> = b.cache("numbers").partitions(5).open().unwrap();
    let mut heard = [on_a.subscribe().start().unwrap(), on_b.subscribe().start().unwrap()];
    for key in many(40) {
        on_a.insert(key.clone(), 1).unwrap();
        on_a.replace(key.clone(), 2).unwrap();
        on_a.write().metadata("name", "text").insert(key.clone(), 3).unwrap();
        on_a.increment(&key, 1).unwrap();
        on_a.remove(&key).unwrap();
    }
    Wire::new([&a, &b]).carry();
    let operations =
        [Operation::Insert, Operation::Replace, Operation::Insert, Operation::Increment, Operation::Remove];
    for heard in &mut heard {
        let mut by_key: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for event in events(heard) {
            by_key.entry(event.key().unwrap().clone()).or_default().push((event.partition, event.operation));
        }
        assert_eq!(by_key.len(), 40);
        for (key, seen) in by_key {
            assert_eq!(seen, operations.map(|operation| (seen[0].0, operation)), "{key}");
        }
    }
}

#[test]
fn plain_subscriptions_hear_every_partition() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(8).open().unwrap();
    let mut plain = users.subscribe().start().unwrap();
    let mut explicit = users.subscribe().partition(3).all_partitions().start().unwrap();
    many(200).into_iter().for_each(|key| drop(users.insert(key, 1).unwrap()));
    assert_eq!((events(&mut plain).len(), events(&mut explicit).len()), (200, 200));
}

#[test]
fn one_partition_and_shares_hear_exactly_their_part() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(5).open().unwrap();
    let mut one = users.subscribe().partition(2).start().unwrap();
    let mut shares: Vec<_> =
        (0..3).map(|index| users.subscribe().assigned(index, 3).start().unwrap()).collect();
    many(200).into_iter().for_each(|key| drop(users.insert(key, 1).unwrap()));
    let one = events(&mut one);
    assert!(!one.is_empty() && one.iter().all(|event| event.partition == Some(2)));
    let mut all = Vec::new();
    for (index, share) in shares.iter_mut().enumerate() {
        let share = events(share);
        assert!(share.iter().all(|event| event.partition.unwrap() % 3 == index));
        all.extend(share.into_iter().map(|event| event.key().unwrap().clone()));
    }
    all.sort();
    let mut expected = many(200);
    expected.sort();
    assert_eq!(all, expected);
}

#[test]
fn a_partition_or_share_that_does_not_exist_is_refused() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(4).open().unwrap();
    let refused = users.subscribe().partition(4).start().unwrap_err();
    assert_eq!(refused, SubscribeError::Partition { partition: 4, partitions: 4 });
    assert_eq!(refused.to_string(), "partition 4 of 4: expected 0 to 3");
    for (index, shares) in [(0, 0), (2, 2), (5, 2)] {
        let refused = users.subscribe().assigned(index, shares).start().unwrap_err();
        assert_eq!(refused, SubscribeError::Share { index, shares });
    }
    let refused = users.subscribe().kinds([]).start().unwrap_err();
    assert_eq!(refused, SubscribeError::NoKinds);
    assert_eq!(users.erased().subscribers(), 0);
}

#[test]
fn a_share_beyond_the_partitions_hears_no_keys_and_ends_with_the_cache() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(2).open().unwrap();
    let mut idle = users.subscribe().assigned(2, 3).start().unwrap();
    users.insert(key("k"), 1).unwrap();
    assert!(events(&mut idle).is_empty());
    let waiting = std::thread::spawn(move || block_on(idle.next()).is_none());
    crate::common::eventually("it waits", || users.erased().subscribers() == 1);
    users.close();
    crate::common::eventually("it ends", || waiting.is_finished());
    assert!(waiting.join().unwrap());
}

#[test]
fn a_partitioner_of_ones_own_decides_here_and_at_peers() {
    let by_tenant = |key: &String| key.split(':').next().and_then(|tenant| tenant.parse().ok());
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a: Cache<String, u64> = a.cache("users").partitions(4).partitioner(by_tenant).open().unwrap();
    let on_b: Cache<String, u64> = b.cache("users").partitions(4).partitioner(by_tenant).open().unwrap();
    let mut heard = [on_a.subscribe().start().unwrap(), on_b.subscribe().start().unwrap()];
    on_a.insert(key("2:k"), 1).unwrap();
    on_a.write().insert_many([(key("0:k"), 1), (key("3:k"), 1), (key("0:m"), 1)]).unwrap();
    Wire::new([&a, &b]).carry();
    for heard in &mut heard {
        for event in events(heard) {
            let keys = match event.target() {
                Target::Key(key) => vec![key.clone()],
                Target::Keys(keys) => keys.clone(),
                target => panic!("{target:?}"),
            };
            assert!(keys.iter().all(|key| by_tenant(key) == event.partition), "{event:?}");
        }
    }
}

#[test]
fn a_partitioner_that_fails_is_counted_and_the_stream_stays_up() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let picky = |key: &String| match key.as_str() {
        "none" => None,
        "out of range" => Some(99),
        "panic" => panic!("this key is odd"),
        _ => Some(0),
    };
    let on_b: Cache<String, u64> = b.cache("users").partitioner(picky).open().unwrap();
    let odd = ["none", "out of range", "panic"];
    let mut heard = on_b.subscribe().start().unwrap();
    // Of one's own.
    for name in odd {
        on_b.insert(key(name), 1).unwrap();
        assert_eq!(on_b.get(&key(name)), Some(1));
    }
    assert_eq!((on_b.counts().unpartitioned, on_b.counts().panics), (3, 1));
    on_b.insert(key("fine"), 1).unwrap();
    on_b.write().insert_many(odd.map(|name| (key(name), 2)).into_iter().chain([(key("fine"), 2)])).unwrap();
    assert_eq!((on_b.counts().unpartitioned, on_b.counts().panics), (6, 2));
    // Of peers: evicted all the same.
    let mut wire = Wire::new([&a, &b]);
    for name in odd {
        on_a.insert(key(name), 3).unwrap();
    }
    on_a.write().remove_many(odd.map(key)).unwrap();
    on_a.insert(key("fine"), 3).unwrap();
    wire.carry();
    assert!(odd.iter().all(|name| on_b.get(&key(name)).is_none()));
    assert_eq!((on_b.counts().unpartitioned, on_b.counts().panics), (12, 4));
    let expected = [
        (EventKind::Inserted, Operation::Insert, one("fine")),
        (EventKind::Updated, Operation::Insert, Target::Keys(vec![key("fine")])),
        (EventKind::Invalidated, Operation::Invalidate, one("fine")),
        (EventKind::Inserted, Operation::Insert, one("fine")),
    ];
    assert_eq!(told(&mut heard), expected);
}

#[test]
fn a_clear_reaches_every_partition_and_a_subscriber_of_all_hears_it_once() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(4).open().unwrap();
    let mut all = users.subscribe().start().unwrap();
    let mut each: Vec<_> = (0..4).map(|n| users.subscribe().partition(n).start().unwrap()).collect();
    (0..3).for_each(|_| drop(users.clear().unwrap()));
    assert_eq!(kinds(&mut all), [EventKind::Cleared; 3]);
    each.iter_mut().for_each(|one| assert_eq!(kinds(one), [EventKind::Cleared; 3]));
    users.clear().unwrap();
    assert_eq!(kinds(&mut all), [EventKind::Cleared]);
}

#[test]
fn a_clear_is_heard_after_all_that_came_before_it_and_before_all_that_came_after() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(4).open().unwrap();
    let mut heard = users.subscribe().start().unwrap();
    for _ in 0..3 {
        many(20).into_iter().for_each(|key| drop(users.insert(key, 1).unwrap()));
        users.clear().unwrap();
    }
    many(20).into_iter().for_each(|key| drop(users.insert(key, 1).unwrap()));
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.extend([EventKind::Inserted; 20]);
        expected.push(EventKind::Cleared);
    }
    expected.extend([EventKind::Inserted; 20]);
    assert_eq!(kinds(&mut heard), expected);
}

/// Waits on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
