//! Time to live, time to idle, capacity, and what is told of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidings_cache::{Cache, CacheBuilder, Clock, Domain, EventKind, Item, Operation, SubscribeError, Target};

use crate::common::{
    Node, Wire, events, eventually, fill, items, key, kinds, kinds_despite_fences, many, told,
};

const MINUTE: Duration = Duration::from_secs(60);

/// After this long housekeeping notices that a time to live is over: it looks once in 1.07 s, at whole multiples.
const NOTICED: Duration = Duration::from_millis(2_300);

/// A cache that tells of expiries and evictions.
fn reporting(domain: &Domain) -> Cache<String, u64> {
    CacheBuilder::new(domain, "users").eviction_events(true).open().unwrap()
}

#[test]
fn an_entry_lives_as_long_as_its_cache_says() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").time_to_live(MINUTE).open().unwrap();
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MINUTE - Duration::from_nanos(1));
    assert_eq!(users.get(&key("k")), Some(1));
    node.clock.advance(Duration::from_nanos(1));
    assert_eq!((users.get(&key("k")), users.contains(&key("k")), users.iter().count()), (None, false, 0));
}

#[test]
fn an_entrys_own_time_shortens_that_of_the_cache_and_never_extends_it() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").time_to_live(MINUTE).open().unwrap();
    users.write().ttl(MINUTE / 2).insert(key("short"), 1).unwrap();
    users.write().ttl(MINUTE * 2).insert(key("long"), 1).unwrap();
    node.clock.advance(MINUTE / 2);
    assert_eq!((users.get(&key("short")), users.get(&key("long"))), (None, Some(1)));
    node.clock.advance(MINUTE / 2);
    assert_eq!(users.get(&key("long")), None);
}

#[test]
fn a_new_value_starts_a_new_life() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.users();
    users.write().ttl(MINUTE).insert(key("k"), 1).unwrap();
    node.clock.advance(MINUTE / 2);
    users.write().ttl(MINUTE).insert(key("k"), 2).unwrap();
    node.clock.advance(MINUTE / 2);
    assert_eq!(users.get(&key("k")), Some(2));
    users.insert(key("k"), 3).unwrap();
    node.clock.advance(MINUTE * 60);
    assert_eq!(users.get(&key("k")), Some(3), "without a time to live it stays");
}

#[test]
fn a_key_whose_time_is_over_is_absent_for_every_operation() {
    let node = Node::new("a");
    let users = node.users();
    let expired = || {
        users.write().ttl(MINUTE).insert(key("k"), 1).unwrap();
        node.clock.advance(MINUTE);
    };
    expired();
    assert_eq!(users.insert(key("k"), 2).unwrap().kind, EventKind::Inserted);
    expired();
    assert_eq!(users.take(&key("k")).unwrap(), None);
    expired();
    assert!(!users.replace(key("k"), 2).unwrap());
    expired();
    assert!(users.insert_if_absent(key("k"), 2).unwrap());
    expired();
    assert_eq!(users.increment(&key("k"), 5).unwrap(), 5);
    expired();
    users.compute(&key("k"), |old| tidings_cache::Computed::Put(old.map_or(9, |_| 0))).unwrap();
    assert_eq!(users.get(&key("k")), Some(9));
}

#[test]
fn memory_of_entries_whose_own_time_is_over_is_reclaimed_within_a_minute() {
    let node = Node::new("a");
    let users = node.users();
    users.write().ttl(MINUTE / 2).insert(key("short"), 1).unwrap();
    users.insert(key("long"), 2).unwrap();
    let entries = || {
        node.domain.housekeep();
        users.settle();
        users.erased().entries()
    };
    assert_eq!(entries(), 2, "its time is not over");
    node.clock.advance(MINUTE);
    assert_eq!((entries(), users.get(&key("long"))), (1, Some(2)));
    // Another life of the key is another's.
    users.write().ttl(MINUTE / 2).insert(key("short"), 3).unwrap();
    node.clock.advance(MINUTE / 4);
    assert_eq!((entries(), users.get(&key("short"))), (2, Some(3)));
}

#[test]
fn a_value_that_nobody_asks_for_is_not_copied() {
    #[derive(Debug, Default)]
    struct Counted(Arc<AtomicUsize>);
    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            Self(self.0.clone())
        }
    }
    let (a, b) = (Node::new("a"), Node::new("b"));
    let copies = Arc::new(AtomicUsize::new(0));
    let ours: Cache<String, u64> = a.cache("users").open().unwrap();
    let theirs: Cache<String, Counted> = b.cache("users").open().unwrap();
    theirs.insert(key("k"), Counted(copies.clone())).unwrap();
    let stored = copies.load(Ordering::Relaxed);
    ours.remove(&key("k")).unwrap();
    Wire::new([&a, &b]).carry();
    assert!(!theirs.contains(&key("k")));
    b.domain.housekeep();
    assert_eq!(copies.load(Ordering::Relaxed), stored, "evicting a value copied it");
}

#[tokio::test]
async fn a_fill_lives_no_longer_than_its_cache_says() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").time_to_live(MINUTE).open().unwrap();
    users.get_or_load(&key("k"), || async { Ok::<_, ()>(1) }).await.unwrap();
    node.clock.advance(MINUTE);
    assert_eq!(users.get(&key("k")), None);
    let again = users.get_or_load(&key("k"), || async { Ok::<_, ()>(2) }).await.unwrap();
    assert_eq!(again, 2);
}

#[test]
fn the_longest_times_are_taken_as_for_ever() {
    let node = Node::new("a");
    let forever = node.cache("users").time_to_live(Duration::MAX).time_to_idle(Duration::MAX);
    let users: Cache<String, u64> = forever.max_capacity(u64::MAX).open().unwrap();
    users.write().ttl(Duration::MAX).insert(key("k"), 1).unwrap();
    users.write().ttl(Duration::from_secs(u64::MAX >> 10)).insert(key("m"), 1).unwrap();
    users.settle();
    assert_eq!((users.get(&key("k")), users.get(&key("m"))), (Some(1), Some(1)));
}

#[test]
fn expiry_is_told_without_a_read() {
    let users = reporting(&Domain::standalone());
    let mut heard = users.subscribe().kinds([EventKind::Expired]).start().unwrap();
    users.write().ttl(Duration::from_millis(1)).insert(key("k"), 1).unwrap();
    eventually("the entry expires", || {
        users.settle();
        users.counts().expired == 1
    });
    let heard = told(&mut heard);
    assert_eq!(heard, [(EventKind::Expired, Operation::Expire, Target::Key(key("k")))]);
    assert_eq!(users.erased().entries(), 0);
}

#[test]
fn the_first_expiry_after_a_subscription_is_told() {
    let users = reporting(&Domain::standalone());
    users.write().ttl(Duration::from_millis(1)).insert(key("k"), 1).unwrap();
    let mut heard = users.subscribe().start().unwrap();
    // No operation between the subscription and the housekeeping that notices.
    pass(NOTICED);
    users.settle();
    assert_eq!((kinds(&mut heard), users.counts().expired), (vec![EventKind::Expired], 1));
}

#[test]
fn what_a_clear_or_fence_had_removed_does_not_expire_afterwards() {
    let domain = Domain::standalone();
    let users = reporting(&domain);
    let mut heard = users.subscribe().start().unwrap();
    // Long enough that neither expires before it is removed.
    let short = NOTICED / 2;
    users.write().ttl(short).insert(key("k"), 1).unwrap();
    users.clear().unwrap();
    users.write().ttl(short).insert(key("m"), 1).unwrap();
    domain.fence_all();
    pass(short + NOTICED);
    users.settle();
    assert_eq!(users.erased().entries(), 0);
    let expected = [EventKind::Inserted, EventKind::Cleared, EventKind::Inserted];
    assert_eq!(kinds_despite_fences(&mut heard), expected);
}

/// Lets time pass in which nothing happens.
fn pass(time: Duration) {
    let clock = Clock::system();
    let end = clock.now().after(time);
    eventually("time passes", || clock.now() > end);
}

#[test]
fn an_idle_entry_expires_and_one_that_is_read_does_not() {
    const IDLE: Duration = Duration::from_millis(500);
    let clock = Clock::system();
    loop {
        let idle = CacheBuilder::new(&Domain::standalone(), "users").time_to_idle(IDLE);
        let users: Cache<String, u64> = idle.eviction_events(true).open().unwrap();
        let mut heard = users.subscribe().kinds([EventKind::Expired]).start().unwrap();
        let (mut read, mut longest_pause) = (clock.now(), Duration::ZERO);
        users.insert(key("idle"), 1).unwrap();
        users.insert(key("busy"), 1).unwrap();
        let mut read_again = || {
            let held = users.get(&key("busy"));
            let now = clock.now();
            longest_pause = longest_pause.max(now.since(read));
            read = now;
            held
        };
        eventually("the idle entry expires", || {
            read_again();
            users.settle();
            users.counts().expired > 0
        });
        let held = read_again();
        // Else the machine stood still, and nobody read the busy one.
        if longest_pause < IDLE / 2 {
            let expired = (EventKind::Expired, Operation::Expire, Target::Key(key("idle")));
            assert_eq!((told(&mut heard), held), (vec![expired], Some(1)));
            return;
        }
    }
}

#[test]
fn to_look_at_an_entry_does_not_keep_it_from_idling() {
    let idle = CacheBuilder::new(&Domain::standalone(), "users").time_to_idle(Duration::from_millis(300));
    let users: Cache<String, u64> = idle.open().unwrap();
    let looks: [&dyn Fn() -> bool; 4] = [
        &|| users.peek(&key("k")).is_some(),
        &|| users.contains(&key("k")),
        &|| users.iter().count() > 0,
        &|| !users.insert_if_absent(key("k"), 2).unwrap(),
    ];
    for look in looks {
        // At the first look, unless the machine stands still for as long as that.
        eventually("it is there", || {
            users.insert(key("k"), 1).unwrap();
            look()
        });
        eventually("it expires although it is looked at", || !look());
    }
}

#[test]
fn a_cache_that_does_not_report_expiry_refuses_to_be_asked_for_it_alone() {
    let node = Node::new("a");
    let quiet: Cache<String, u64> = node.cache("quiet").max_capacity(1).open().unwrap();
    let kinds = vec![EventKind::Expired, EventKind::Evicted];
    let refused = quiet.subscribe().kinds(kinds.clone()).start().unwrap_err();
    assert_eq!(refused, SubscribeError::Unreported(kinds.clone()));
    assert!(refused.to_string().contains("eviction_events(true)"), "{refused}");
    assert!(quiet.subscribe().kinds([EventKind::Evicted, EventKind::Deleted]).start().is_ok());
    let telling: Cache<String, u64> =
        node.cache("telling").max_capacity(1).eviction_events(true).open().unwrap();
    assert!(telling.subscribe().kinds(kinds).start().is_ok());
    for (cache, evicted) in [(&quiet, 0), (&telling, 9)] {
        many(10).into_iter().for_each(|key| drop(cache.insert(key, 0).unwrap()));
        cache.settle();
        assert_eq!(
            (cache.counts().evicted, cache.erased().settings().eviction_events),
            (evicted, evicted > 0)
        );
    }
}

#[test]
fn capacity_counts_entries_and_displacement_is_told() {
    let node = Node::new("a");
    let users: Cache<String, u64> =
        node.cache("users").max_capacity(10).eviction_events(true).open().unwrap();
    let mut heard = users.subscribe().kinds([EventKind::Evicted]).start().unwrap();
    many(100).into_iter().for_each(|key| drop(users.insert(key, 0).unwrap()));
    users.settle();
    assert_eq!(users.erased().entries(), 10);
    let evicted = told(&mut heard);
    assert_eq!((evicted.len(), users.counts().evicted), (90, 90));
    for (kind, operation, target) in evicted {
        assert_eq!((kind, operation), (EventKind::Evicted, Operation::Evict));
        let Target::Key(key) = target else { panic!("{target:?}") };
        assert!(!users.contains(&key));
    }
}

#[test]
fn capacity_counts_weight_where_there_is_a_weigher() {
    let node = Node::new("a");
    let weighed = node
        .cache("users")
        .max_capacity(1_000)
        .weigher(|key, value: &Vec<u8>| (key.len() + value.len()) as u32);
    let users: Cache<String, Vec<u8>> = weighed.eviction_events(true).open().unwrap();
    let mut heard = users.subscribe().kinds([EventKind::Evicted]).start().unwrap();
    users.insert(key("small"), vec![0; 10]).unwrap();
    assert_eq!(
        {
            users.settle();
            users.erased().weight()
        },
        6 + 10
    );
    users.insert(key("too large"), vec![0; 2_000]).unwrap();
    users.settle();
    assert_eq!(told(&mut heard), [(EventKind::Evicted, Operation::Evict, Target::Key(key("too large")))]);
    (0..20).for_each(|n| drop(users.insert(format!("{n:09}"), vec![0; 90]).unwrap()));
    users.settle();
    assert!(users.erased().weight() <= 1_000, "{}", users.erased().weight());
}

#[test]
fn a_weigher_that_panics_changes_nothing() {
    let node = Node::new("a");
    let fussy = node.cache("users").max_capacity(1_000).weigher(|_, value: &u64| {
        assert!(*value < 10, "too heavy to think about");
        1
    });
    let users: Cache<String, u64> = fussy.open().unwrap();
    users.insert(key("k"), 1).unwrap();
    let mut heard = users.subscribe().start().unwrap();
    let insert = std::panic::AssertUnwindSafe(|| users.insert(key("k"), 10));
    assert!(std::panic::catch_unwind(insert).is_err());
    assert_eq!(users.get(&key("k")), Some(1));
    assert!(events(&mut heard).is_empty());
    assert_eq!((node.logged(), users.erased().flights()), (1, 0));
    users.insert(key("k"), 2).unwrap();
    assert_eq!(users.get(&key("k")), Some(2));
}

#[test]
fn expiry_and_displacement_here_evict_nothing_elsewhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a: Cache<String, u64> = a.cache("users").max_capacity(1).eviction_events(true).open().unwrap();
    let on_b = b.users();
    many(20).iter().for_each(|key| fill(&on_b, key, 1));
    many(20).iter().for_each(|key| fill(&on_a, key, 1));
    on_a.settle();
    a.clock.advance(MINUTE);
    on_a.settle();
    assert_eq!(on_a.counts().evicted, 19);
    Wire::new([&a, &b]).carry();
    assert_eq!(a.logged(), 0);
    assert!(many(20).iter().all(|key| on_b.get(key) == Some(1)));
}

#[test]
fn expiry_displacement_and_invalidation_each_have_their_own_kind() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let standalone = Domain::standalone();
    let on_a = a.users();
    let on_b: Cache<String, u64> = b.cache("users").max_capacity(1).eviction_events(true).open().unwrap();
    let expiring = reporting(&standalone);
    let mut heard = on_b.subscribe().start().unwrap();
    let mut expired = expiring.subscribe().start().unwrap();

    fill(&on_b, "k", 1);
    on_a.remove(&key("k")).unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!(kinds(&mut heard), [EventKind::Invalidated, EventKind::Deleted]);

    fill(&on_b, "k", 1);
    fill(&on_b, "m", 1);
    on_b.settle();
    assert_eq!(kinds(&mut heard), [EventKind::Evicted]);

    expiring.write().ttl(Duration::from_millis(1)).insert(key("k"), 1).unwrap();
    eventually("the entry expires", || {
        expiring.settle();
        expiring.counts().expired == 1
    });
    assert_eq!(kinds(&mut expired), [EventKind::Inserted, EventKind::Expired]);
}

#[test]
fn a_flood_of_displacements_is_bounded_and_what_was_dropped_is_counted() {
    let node = Node::new("a");
    let users: Cache<u64, u64> = node.cache("users").max_capacity(1).eviction_events(true).open().unwrap();
    let mut heard = users.subscribe().kinds([EventKind::Evicted]).start().unwrap();
    (0..20_000).for_each(|n| drop(users.insert(n, n).unwrap()));
    users.settle();
    let counts = users.counts();
    let told = items(&mut heard).into_iter().map(|item| match item {
        Item::Event(_) => 1,
        Item::Lagged { missed } => missed,
        Item::Fenced { .. } => unreachable!("nothing is fenced"),
    });
    let (heard, lost) =
        told.fold((0, 0), |(heard, lost), n| if n == 1 { (heard + 1, lost) } else { (heard, lost + n) });
    assert!(lost > 0, "the ring is too large for this test");
    assert_eq!(counts.evicted, 19_999);
    assert!(heard + lost + counts.local_events_dropped >= 19_999, "{heard} {lost} {counts:?}");
}

#[test]
fn a_key_that_was_displaced_silently_is_inserted_again_and_not_updated() {
    let users: Cache<String, u64> =
        CacheBuilder::new(&Domain::standalone(), "users").max_capacity(1).open().unwrap();
    users.insert(key("a"), 1).unwrap();
    users.insert(key("b"), 2).unwrap();
    users.settle();
    let gone = if users.contains(&key("a")) { key("b") } else { key("a") };
    assert!(!users.contains(&gone), "one of the two had to go");
    assert_eq!(users.insert(gone, 3).unwrap().kind, EventKind::Inserted);
}

#[test]
fn an_insert_says_whether_it_displaced_something_with_and_without_room() {
    for capacity in [100, 1_000_000] {
        let users: Cache<String, u64> =
            CacheBuilder::new(&Domain::standalone(), "users").max_capacity(capacity).open().unwrap();
        let insert = |n: u64| users.insert(n.to_string(), n).unwrap().kind;
        for n in 0..90 {
            assert_eq!(
                [insert(n), insert(n)],
                [EventKind::Inserted, EventKind::Updated],
                "{n} of {capacity}"
            );
        }
        assert!((0..90).all(|n| insert(n) == EventKind::Updated));
        users.remove(&key("7")).unwrap();
        users.take(&key("8")).unwrap();
        assert_eq!(
            [insert(7), insert(8), insert(9)],
            [EventKind::Inserted, EventKind::Inserted, EventKind::Updated]
        );
        users.clear().unwrap();
        assert!((0..90).all(|n| insert(n) == EventKind::Inserted));
    }
}

#[test]
fn a_change_of_many_keys_that_fails_half_way_counts_as_peers_count_it() {
    let node = Node::new("a");
    let log = node.domain.log().clone();
    let weighed = std::sync::atomic::AtomicU64::new(0);
    let users: Cache<String, u64> = node
        .cache("users")
        .weigher(move |_, _| {
            if weighed.fetch_add(1, Ordering::Relaxed) == 1_500 {
                log.seal();
            }
            1
        })
        .open()
        .unwrap();
    assert!(users.write().insert_many((0..3_000_u64).map(|n| (n.to_string(), n))).is_err());
    assert_eq!(node.domain.events_published(), 1);
}
