//! Subscribers: filters, overflow, independence, and how they end.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tidings_cache::{
    AnyCache, Cache, Event, EventKind, Item, OnOverflow, Operation, RawTarget, RingBounds, SubscribeError,
    Target,
};

use crate::common::{Node, Wire, events, fill, items, key, kinds, many, one, told};

fn small(node: &Node, events: usize, partitions: usize) -> Cache<String, u64> {
    let bounds = RingBounds { events, bytes: 64 << 20 };
    node.cache("users").ring(bounds).partitions(partitions).open().unwrap()
}

#[test]
fn a_subscription_hears_only_the_kinds_it_names() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().kinds([EventKind::Deleted, EventKind::Cleared]).start().unwrap();
    users.insert(key("k"), 1).unwrap();
    users.insert(key("k"), 2).unwrap();
    users.remove(&key("k")).unwrap();
    users.clear().unwrap();
    assert_eq!(kinds(&mut heard), [EventKind::Deleted, EventKind::Cleared]);
}

#[test]
fn a_kind_named_twice_is_heard_once() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().kinds([EventKind::Inserted, EventKind::Inserted]).start().unwrap();
    users.insert(key("k"), 1).unwrap();
    assert_eq!(events(&mut heard).len(), 1);
}

#[test]
fn a_prefix_selects_text_keys_and_what_names_everything() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().prefix("eu:").start().unwrap();
    users.insert(key("eu:1"), 1).unwrap();
    users.insert(key("us:1"), 1).unwrap();
    users.write().insert_many([(key("us:2"), 1), (key("us:3"), 1)]).unwrap();
    users.clear().unwrap();
    let expected = [
        (EventKind::Inserted, Operation::Insert, one("eu:1")),
        (EventKind::Cleared, Operation::Clear, Target::All),
    ];
    assert_eq!(told(&mut heard), expected);
}

#[test]
fn a_prefix_selects_no_keys_that_are_not_text() {
    let node = Node::new("a");
    let numbers: Cache<u64, u64> = node.cache("numbers").open().unwrap();
    let mut heard = numbers.subscribe().prefix("07").start().unwrap();
    numbers.insert(7, 1).unwrap();
    assert!(events(&mut heard).is_empty());
}

#[test]
fn a_subscription_hears_what_happens_from_its_start_on() {
    let node = Node::new("a");
    let users = node.users();
    let _keeps_the_ring = users.subscribe().start().unwrap();
    users.insert(key("before"), 1).unwrap();
    let mut heard = users.subscribe().start().unwrap();
    users.insert(key("after"), 1).unwrap();
    assert_eq!(told(&mut heard), [(EventKind::Inserted, Operation::Insert, one("after"))]);
}

#[test]
fn every_subscription_is_its_own_and_two_do_not_double_each_other() {
    let node = Node::new("a");
    let users = node.users();
    let mut first = users.subscribe().start().unwrap();
    let mut second = users.subscribe().start().unwrap();
    assert_ne!(first.id(), second.id());
    users.insert(key("k"), 1).unwrap();
    assert_eq!((events(&mut first).len(), events(&mut second).len()), (1, 1));
}

#[test]
fn dropping_a_subscription_unsubscribes() {
    let node = Node::new("a");
    let users = node.users();
    let first = users.subscribe().start().unwrap();
    let mut second = users.subscribe().start().unwrap();
    assert_eq!(users.erased().subscribers(), 2);
    drop(first);
    assert_eq!(users.erased().subscribers(), 1);
    users.insert(key("k"), 1).unwrap();
    assert_eq!(events(&mut second).len(), 1);
    drop(second);
    users.insert(key("k"), 1).unwrap();
    // Without subscribers no events are made, and a later one finds none of them.
    assert_eq!((users.erased().subscribers(), users.counts().delivered), (0, 1));
    assert!(events(&mut users.subscribe().start().unwrap()).is_empty());
}

#[test]
fn a_dropped_subscription_leaves_no_waker_behind() {
    struct Counting(AtomicUsize);
    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(3).open().unwrap();
    let _stays = users.subscribe().start().unwrap();
    let counting = Arc::new(Counting(AtomicUsize::new(0)));
    let mut subscription = users.subscribe().start().unwrap();
    let waker = Waker::from(counting.clone());
    assert!(pin!(subscription.next()).poll(&mut Context::from_waker(&waker)).is_pending());
    drop((waker, subscription));
    assert_eq!(
        Arc::strong_count(&counting),
        1,
        "the cache still holds the waker of a subscription that is gone"
    );
}

#[test]
fn a_slow_subscriber_is_told_exactly_how_many_it_missed() {
    let node = Node::new("a");
    let users = small(&node, 10, 1);
    let mut slow = users.subscribe().start().unwrap();
    (0..25).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
    let heard = items(&mut slow);
    assert!(matches!(heard[0], Item::Lagged { missed: 15 }), "{:?}", heard[0]);
    assert_eq!(heard.len(), 1 + 10);
    assert!(heard[1..].iter().all(|item| matches!(item, Item::Event(_))));
    assert_eq!(users.counts().lagged, 15);
    // It is level again.
    users.insert(key("k"), 1).unwrap();
    assert_eq!(events(&mut slow).len(), 1);
}

#[test]
fn missed_events_and_heard_ones_add_up_whatever_the_pace() {
    for (ring, pause, partitions) in [(1, 1, 1), (1, 3, 1), (7, 5, 1), (7, 20, 3), (64, 1_000, 4), (0, 3, 2)]
    {
        let node = Node::new("a");
        let users = small(&node, ring, partitions);
        let mut subscription = users.subscribe().start().unwrap();
        let (mut heard, mut missed) = (0, 0);
        for (n, name) in many(1_000).into_iter().enumerate() {
            users.insert(name, 1).unwrap();
            if n % pause == 0 || n == 999 {
                for item in items(&mut subscription) {
                    match item {
                        Item::Event(_) => heard += 1,
                        Item::Lagged { missed: n } => missed += n,
                        Item::Fenced { .. } => unreachable!("nothing is fenced"),
                    }
                }
            }
        }
        assert_eq!(heard + missed, 1_000, "ring {ring}, pause {pause}, partitions {partitions}");
        assert_eq!(subscription.backlog(), 0);
    }
}

#[test]
fn a_missed_event_of_the_whole_cache_counts_once_however_many_partitions_it_had() {
    let node = Node::new("a");
    let users = small(&node, 10, 4);
    let mut subscription = users.subscribe().start().unwrap();
    (0..25).for_each(|_| drop(users.clear().unwrap()));
    let (mut heard, mut missed) = (0, 0);
    for item in items(&mut subscription) {
        match item {
            Item::Event(_) => heard += 1,
            Item::Lagged { missed: n } => missed += n,
            Item::Fenced { .. } => unreachable!("nothing is fenced"),
        }
    }
    assert_eq!((heard, missed), (10, 15));
}

#[test]
fn clears_and_changes_add_up_under_any_overrun() {
    for seed in 0..50_u64 {
        let node = Node::new("a");
        let users = small(&node, 1 + seed as usize % 9, 3);
        let mut subscription = users.subscribe().start().unwrap();
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let (mut heard, mut missed, mut made) = (0, 0, 0);
        for n in 0..400 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            match random % 16 {
                0..=2 => drop(users.clear().unwrap()),
                3..=14 => drop(users.insert(format!("key-{}", random >> 40 & 63), n).unwrap()),
                _ => {
                    for item in items(&mut subscription) {
                        match item {
                            Item::Event(_) => heard += 1,
                            Item::Lagged { missed: n } => missed += n,
                            Item::Fenced { .. } => unreachable!("nothing is fenced"),
                        }
                    }
                    continue;
                }
            }
            made += 1;
        }
        for item in items(&mut subscription) {
            match item {
                Item::Event(_) => heard += 1,
                Item::Lagged { missed: n } => missed += n,
                Item::Fenced { .. } => unreachable!("nothing is fenced"),
            }
        }
        assert_eq!(heard + missed, made, "seed {seed}");
    }
}

#[test]
fn a_subscriber_that_chose_so_ends_when_it_lags() {
    let node = Node::new("a");
    let users = small(&node, 10, 1);
    let mut strict = users.subscribe().on_overflow(OnOverflow::Disconnect).start().unwrap();
    (0..10).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
    assert_eq!(events(&mut strict).len(), 10, "a full ring is no overflow");
    (0..13).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
    let heard = items(&mut strict);
    assert!(matches!(heard[..], [Item::Lagged { missed: 3 }]), "{heard:?}");
    users.insert(key("k"), 1).unwrap();
    assert!(items(&mut strict).is_empty());
    assert!(matches!(poll_once(&mut strict), Poll::Ready(None)));
}

#[test]
fn a_slow_subscriber_delays_neither_writers_nor_other_subscribers() {
    let node = Node::new("a");
    let users = small(&node, 10, 1);
    let slow = users.subscribe().start().unwrap();
    let mut quick = users.subscribe().start().unwrap();
    for n in 0..10_000 {
        users.insert(key("k"), n).unwrap();
        assert_eq!(events(&mut quick).len(), 1);
    }
    assert_eq!(slow.backlog(), 10_000);
}

#[test]
fn a_ring_is_bounded_in_bytes_too() {
    let node = Node::new("a");
    let bounds = RingBounds { events: 1_000, bytes: 40_000 };
    let users: Cache<String, u64> = node.cache("users").ring(bounds).open().unwrap();
    let mut slow = users.subscribe().start().unwrap();
    let long = || "x".repeat(4_000);
    (0..20).for_each(|_| drop(users.insert(long(), 1).unwrap()));
    let heard = items(&mut slow);
    assert!(matches!(heard[0], Item::Lagged { missed: 16 }), "{:?}", heard[0]);
    assert_eq!(heard.len(), 1 + 4);
}

#[tokio::test]
async fn a_subscriber_with_a_backlog_lets_other_tasks_run() {
    for passes in [true, false] {
        let node = Node::new("a");
        let users = node.users();
        let mut behind = users.subscribe().prefix(if passes { "" } else { "last" }).start().unwrap();
        (0..8_000).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
        users.insert(key("last"), 0).unwrap();
        let reading = async move {
            while let Some(Item::Event(event)) = behind.next().await {
                if event.key() == Some(&key("last")) {
                    break;
                }
            }
        };
        let mut reading = std::pin::pin!(reading);
        let mut polls = 0;
        while futures_util::poll!(reading.as_mut()).is_pending() {
            polls += 1;
            tokio::task::yield_now().await;
        }
        assert!(polls > 6, "{polls} polls");
    }
}

#[test]
fn events_of_two_caches_do_not_mix() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let open = |node: &Node| (node.users(), node.cache::<String, u64>("profiles").open().unwrap());
    let ((users, profiles), (there, _other)) = (open(&a), open(&b));
    let mut heard = [users.subscribe().start().unwrap(), there.subscribe().start().unwrap()];
    users.insert(key("k"), 1).unwrap();
    profiles.insert(key("k"), 1).unwrap();
    profiles.clear().unwrap();
    Wire::new([&a, &b]).carry();
    for heard in &mut heard {
        assert_eq!(told(heard), [(EventKind::Inserted, Operation::Insert, one("k"))]);
    }
    assert_eq!(users.get(&key("k")), Some(1));
}

#[test]
fn closing_a_cache_ends_its_subscriptions_after_what_was_told() {
    let node = Node::new("a");
    let users = node.users();
    let mut heard = users.subscribe().start().unwrap();
    users.insert(key("k"), 1).unwrap();
    users.close();
    assert_eq!(kinds(&mut heard), [EventKind::Inserted]);
    assert!(matches!(poll_once(&mut heard), Poll::Ready(None)));
    assert_eq!(users.subscribe().start().unwrap_err(), SubscribeError::Closed);
}

#[tokio::test]
async fn a_waiting_subscriber_is_woken_by_an_event_of_any_partition_and_by_the_end() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").partitions(8).open().unwrap();
    let mut heard = users.subscribe().start().unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for name in many(20) {
        let mut subscription = heard;
        waiting.spawn(async move {
            let item = subscription.next().await;
            (subscription, item)
        });
        tokio::task::yield_now().await;
        users.insert(name.clone(), 1).unwrap();
        let joined = waiting.join_next().await.unwrap();
        let (subscription, item) = joined.unwrap();
        let Some(Item::Event(event)) = item else { panic!("{item:?}") };
        assert_eq!(event.key(), Some(&name));
        heard = subscription;
    }
    waiting.spawn(async move {
        let item = heard.next().await;
        (heard, item)
    });
    tokio::task::yield_now().await;
    users.close();
    let joined = waiting.join_next().await.unwrap();
    assert!(joined.unwrap().1.is_none());
}

#[test]
fn a_cache_can_be_listened_to_without_its_types() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let erased: Arc<dyn AnyCache> = b.domain.cache("users").unwrap();
    let mut heard = erased.clone().subscribe_raw().prefix("k").start().unwrap();
    fill(&on_b, "k", 1);
    on_a.insert(key("k"), 1).unwrap();
    on_a.insert(key("other"), 1).unwrap();
    Wire::new([&a, &b]).carry();
    let mut names = Vec::new();
    while let Some(Some(Item::Event(event))) = futures_util::FutureExt::now_or_never(heard.next()) {
        let RawTarget::Key(bytes) = &event.target else { panic!("{event:?}") };
        names.push((event.kind, erased.key_text(bytes)));
        assert_eq!(event.keys(), std::slice::from_ref(bytes));
    }
    assert_eq!(names, [(EventKind::Invalidated, key("k")), (EventKind::Inserted, key("k"))]);
}

#[test]
fn events_replayed_on_a_mirror_agree_with_the_cache_at_every_step() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let on_b = small(&b, 1_000_000, 3);
    let mut heard = on_b.subscribe().start().unwrap();
    let mut wire = Wire::new([&a, &b]);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let on_b = &on_b;
            scope.spawn(move || {
                for n in 0..6_000_u64 {
                    let name = format!("key-{}", (n * 7 + seed) % 30);
                    match (n + seed) % 32 {
                        0 => drop(on_b.clear().unwrap()),
                        1..=4 => drop(on_b.remove(&name).unwrap()),
                        5..=8 => drop(on_b.write().remove_many(many(6)).unwrap()),
                        9..=12 => {
                            drop(on_b.write().insert_many(many(4).into_iter().map(|key| (key, n))).unwrap())
                        }
                        13..=16 => drop(on_b.insert_if_absent(name, n).unwrap()),
                        _ => drop(on_b.insert(name, n).unwrap()),
                    }
                }
            });
        }
        for n in 0..2_000 {
            on_a.write().remove_many(many(20)).unwrap();
            on_a.insert(format!("key-{}", n % 30), n).unwrap();
            wire.carry_between(0, 1);
        }
    });
    let mut mirror = BTreeSet::new();
    for event in events(&mut heard) {
        // A peer's change says what is true there; what it did here is told by itself.
        if event.local || event.kind == EventKind::Invalidated {
            replay(&mut mirror, &event);
        }
    }
    assert_eq!(mirror, on_b.iter().map(|(key, _)| key).collect());
}

fn replay(mirror: &mut BTreeSet<String>, event: &Event<String>) {
    let keys = match event.target() {
        Target::Key(key) => vec![key.clone()],
        Target::Keys(keys) => keys.clone(),
        Target::All => return mirror.clear(),
        target => panic!("{target:?}"),
    };
    for key in keys {
        match event.kind {
            EventKind::Inserted => assert!(mirror.insert(key), "{event:?}: it was there"),
            EventKind::Updated => assert!(!mirror.insert(key), "{event:?}: it was not there"),
            EventKind::Invalidated => assert!(mirror.remove(&key), "{event:?}: it was not there"),
            EventKind::Deleted => drop(mirror.remove(&key)),
            kind => panic!("{kind}"),
        }
    }
}

fn poll_once<K: tidings_cache::Key>(
    subscription: &mut tidings_cache::Subscription<K>,
) -> Poll<Option<Item<Event<K>>>> {
    pin!(subscription.next()).poll(&mut Context::from_waker(Waker::noop()))
}
