//! Values with versions: what a peer's change leaves, and what no version keeps.

use std::time::Duration;

use futures_util::poll;
use tidings_cache::{Cache, EventKind, Invalidator, Loaded, ReadOrFill, TOKEN_TIME};
use tokio::sync::oneshot;

use crate::common::{MAX_STALENESS, Node, Wire, key, kinds, many};

/// A change by the other node.
type Change<'a> = &'a dyn Fn(&Cache<String, u64>);

/// What ends an entry.
type End<'a> = &'a dyn Fn(&Node, &Cache<String, u64>);

/// Loads a value with a version, as a read does.
async fn load(cache: &Cache<String, u64>, name: &str, version: u64) {
    let loaded = cache.get_or_load_versioned(&key(name), || async { Ok::<_, ()>((version, version)) }).await;
    assert_eq!(loaded.unwrap(), version);
    assert_eq!(cache.get_versioned(&key(name)).unwrap(), Some((version, Some(version))), "it was not stored");
}

async fn write(cache: &Cache<String, u64>, name: &str, version: u64) {
    let write = || async { Ok::<_, ()>((version, version)) };
    cache.write_through_versioned(&key(name), write).await.unwrap();
}

#[tokio::test]
async fn a_change_evicts_only_lower_versions() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    for (name, held, written, kept) in [("lower", 6, 7, false), ("same", 7, 7, true), ("higher", 8, 7, true)]
    {
        load(&on_b, name, held).await;
        write(&on_a, name, written).await;
        wire.carry();
        assert_eq!(on_b.get(&key(name)), kept.then_some(held), "{name}");
        assert_eq!(on_a.get_versioned(&key(name)).unwrap(), Some((written, Some(written))));
    }
    let counts = on_b.counts();
    assert_eq!((counts.key_kept, counts.key_evicted, counts.applied()), (2, 1, 3));
}

#[tokio::test]
async fn a_change_without_a_version_evicts_every_version() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    let changes: [(&str, Change<'_>); 4] = [
        ("insert", &|on_a| drop(on_a.insert(key("k"), 1).unwrap())),
        ("remove", &|on_a| drop(on_a.remove(&key("k")).unwrap())),
        ("remove_many", &|on_a| drop(on_a.write().remove_many([key("k")]).unwrap())),
        ("insert_many", &|on_a| drop(on_a.write().insert_many([(key("k"), 1)]).unwrap())),
    ];
    for (what, change) in changes {
        load(&on_b, "k", u64::MAX).await;
        change(&on_a);
        wire.carry();
        assert_eq!(on_b.get(&key("k")), None, "{what}");
    }
}

#[tokio::test]
async fn an_entry_without_a_version_is_evicted_by_every_change() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    // Its key had a version before.
    load(&on_b, "k", 9).await;
    on_b.insert(key("k"), 10).unwrap();
    write(&on_a, "k", 5).await;
    wire.carry();
    assert_eq!(on_b.get(&key("k")), None);
    load(&on_b, "many", 9).await;
    on_b.write().insert_many([(key("many"), 10)]).unwrap();
    write(&on_a, "many", 5).await;
    wire.carry();
    assert_eq!(on_b.get(&key("many")), None);
}

#[tokio::test]
async fn a_failed_write_evicts_every_version() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    load(&on_b, "k", 9).await;
    let failed = on_a.write_through_versioned(&key("k"), || async { Err::<(u64, u64), _>(()) }).await;
    assert!(failed.is_err());
    Wire::new([&a, &b]).carry();
    assert_eq!(on_b.get(&key("k")), None);
}

#[tokio::test]
async fn a_removal_with_a_version_leaves_what_has_seen_it_everywhere() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    let mut heard = on_b.subscribe().start().unwrap();
    load(&on_a, "k", 7).await;
    load(&on_b, "k", 6).await;
    on_a.remove_versioned(&key("k"), 7).unwrap();
    wire.carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (Some(7), None));
    assert_eq!(kinds(&mut heard), [EventKind::Invalidated, EventKind::Deleted]);
    on_a.remove_versioned(&key("k"), 8).unwrap();
    assert_eq!(on_a.get(&key("k")), None);
    wire.carry();
    load(&on_b, "k", 8).await;
    on_a.remove_versioned(&key("k"), 8).unwrap();
    wire.carry();
    assert_eq!(on_b.get(&key("k")), Some(8));
    // Subscribers hear of what has left the entry, too, and of no eviction.
    assert_eq!(kinds(&mut heard), [EventKind::Deleted, EventKind::Deleted]);
}

#[tokio::test]
async fn a_change_ends_loads_whatever_its_version() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    let k = key("k");
    load(&on_b, "k", 9).await;
    let ReadOrFill::Miss(other) = on_b.get_or_token(&key("other"), TOKEN_TIME).unwrap() else { panic!() };
    let write_of_b = on_b.begin_write(&k).unwrap();
    write(&on_a, "k", 5).await;
    write(&on_a, "other", 5).await;
    wire.carry();
    let loaded = Loaded::new(9).version(9);
    assert!(!on_b.fill_tagged(&key("other"), loaded, other, None).unwrap(), "nobody knew its version");
    // The entry of 9 has seen what ended the flight of 4, and 4.
    write_of_b.insert_versioned(4, 4).unwrap();
    assert_eq!(on_b.get_versioned(&key("k")).unwrap(), Some((9, Some(9))));
    let write_of_b = on_b.begin_write(&k).unwrap();
    write(&on_a, "k", 6).await;
    wire.carry();
    assert_eq!(on_b.get(&key("k")), Some(9), "it has seen 6");
    write_of_b.insert_versioned(20, 20).unwrap();
    assert_eq!(on_b.get(&key("k")), None, "the entry of 9 has not seen 20, whose flight was ended");
}

#[tokio::test]
async fn a_version_never_goes_down() {
    let node = Node::new("a");
    let users = node.users();
    let k = key("k");
    // A write commits 8; another of 9 follows elsewhere, and a load that sees it lands before the write returns.
    let (commit, committed) = oneshot::channel();
    let mut writing =
        std::pin::pin!(users.write_through_versioned(&k, || async { committed.await.map(|()| (8, 8)) }));
    assert!(poll!(writing.as_mut()).is_pending());
    load(&users, "k", 9).await;
    commit.send(()).unwrap();
    let (value, written) = writing.await.unwrap();
    assert_eq!((value, written.kind, node.logged()), (8, EventKind::Updated, 1));
    assert_eq!(users.get_versioned(&k).unwrap(), Some((9, Some(9))));
    // A refill under a token that was given before.
    let ReadOrFill::Miss(token) = users.get_or_token(&key("m"), TOKEN_TIME).unwrap() else { panic!() };
    load(&users, "m", 9).await;
    assert!(!users.fill_tagged(&key("m"), Loaded::new(8).version(8), token, None).unwrap());
    assert_eq!(users.get(&key("m")), Some(9));
    assert_eq!(users.counts().fence_rejects, 1);
}

#[tokio::test]
async fn a_store_that_is_refused_leaves_the_tags_of_what_it_would_replace() {
    let node = Node::new("a");
    let (users, k) = (node.users(), key("k"));
    let flight = users.begin_write(&k).unwrap();
    let tagged = || async { Ok::<_, ()>(Loaded::new(9).version(9).tag("red")) };
    users.get_or_load_tagged(&key("k"), tagged).await.unwrap();
    flight.insert_versioned(8, 8).unwrap();
    assert_eq!(users.get(&key("k")), Some(9));
    users.invalidate_tag("red").unwrap();
    assert_eq!(users.get(&key("k")), None);
}

#[tokio::test]
async fn a_write_that_brings_its_tags_is_found_by_them() {
    let node = Node::new("a");
    let users = node.users();
    let write = || async { Ok::<_, ()>(Loaded::new(1).tag("red").version(3)) };
    users.write_through_tagged(&key("k"), write).await.unwrap();
    assert_eq!(users.get_versioned(&key("k")).unwrap(), Some((1, Some(3))));
    users.invalidate_tag("red").unwrap();
    assert_eq!(users.get(&key("k")), None);
}

#[tokio::test]
async fn a_version_needs_a_flight_that_nothing_ended() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    // This node commits 1, the other 2, whose event arrives before 1 is to be stored.
    let (k, m) = (key("k"), key("m"));
    let flight = on_a.begin_write(&k).unwrap();
    write(&on_b, "k", 2).await;
    wire.carry();
    flight.insert_versioned(1, 1).unwrap();
    wire.carry();
    assert_eq!((on_a.get(&key("k")), on_b.get(&key("k"))), (None, Some(2)));
    let flight = on_a.begin_write(&m).unwrap();
    flight.insert_versioned(1, 1).unwrap();
    assert_eq!(on_a.get(&key("m")), Some(1));
}

/// Each ends an entry of the highest version, which a change that it has seen does not revive.
#[tokio::test]
async fn no_version_outlives_a_fence_a_clear_a_tag_a_prefix_a_floor_or_its_time() {
    let ends: [(&str, End<'_>); 6] = [
        ("fence", &|node, _| node.domain.fence_all()),
        ("clear", &|_, users| drop(users.clear().unwrap())),
        ("tag", &|_, users| drop(users.invalidate_tag("red").unwrap())),
        ("prefix", &|_, users| drop(users.invalidate_prefix("k").unwrap())),
        ("floor", &|node, _| {
            let floor = node.clock.now();
            node.domain.publish(tidings_proto::freshness::Published {
                fresh_until: tidings_proto::time::Tick::FOREVER,
                floor,
            });
        }),
        ("time", &|node, _| node.clock.advance(Duration::from_secs(61))),
    ];
    for (what, end) in ends {
        let (a, b) = (Node::new("a"), Node::new("b"));
        let on_a = a.users();
        let on_b: Cache<String, u64> = b
            .cache("users")
            .time_to_live(Duration::from_secs(60))
            .tags(|_: &String, _: &u64| ["red"])
            .open()
            .unwrap();
        load(&on_b, "k", u64::MAX).await;
        end(&b, &on_b);
        assert_eq!(on_b.get(&key("k")), None, "{what}");
        write(&on_a, "k", 1).await;
        Wire::new([&a, &b]).carry();
        assert_eq!(on_b.get(&key("k")), None, "{what}: a change has revived it");
        // What ended it counts for no store that comes after.
        b.clock.advance(Duration::from_millis(1));
        load(&on_b, "k", 5).await;
    }
}

#[tokio::test]
async fn a_kept_entry_is_as_old_as_it_was() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    load(&on_b, "k", 9).await;
    b.fresh_until_now();
    b.clock.advance(MAX_STALENESS + Duration::from_secs(1));
    write(&on_a, "k", 9).await;
    Wire::new([&a, &b]).carry();
    assert_eq!((on_b.counts().key_kept, on_b.get(&key("k"))), (1, None), "in doubt it is too old");
    b.fresh_forever();
    assert_eq!(on_b.get(&key("k")), Some(9));
}

#[tokio::test]
async fn a_change_that_left_an_entry_counts_for_a_replica_that_lags() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let on_a = a.users();
    let lag = Duration::from_secs(1);
    let on_b: Cache<String, u64> = b.cache("users").replica_lag(lag).open().unwrap();
    b.clock.advance(10 * lag);
    load(&on_b, "k", 9).await;
    write(&on_a, "k", 9).await;
    Wire::new([&a, &b]).carry();
    assert_eq!(on_b.counts().key_kept, 1);
    // The entry is displaced; a load that begins now may see what was before the change.
    on_b.remove_versioned(&key("k"), 10).unwrap();
    let old = on_b.get_or_load_versioned(&key("k"), || async { Ok::<_, ()>((8, 8)) }).await.unwrap();
    assert_eq!((old, on_b.get(&key("k"))), (8, None));
}

#[tokio::test]
async fn a_cache_whose_own_changes_evict_keeps_no_version() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").invalidator(Invalidator::All).open().unwrap();
    load(&users, "k", 9).await;
    write(&users, "k", 8).await;
    assert_eq!(users.get(&key("k")), None);
}

#[tokio::test]
async fn versions_of_displaced_entries_are_forgotten() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node.cache("users").max_capacity(100).open().unwrap();
    for name in many(5_000) {
        users.get_or_load_versioned(&name, || async { Ok::<_, ()>((1, 1)) }).await.unwrap();
    }
    for _ in 0..4 {
        users.settle();
    }
    let (entries, versioned) = (users.erased().entries(), users.erased().versioned());
    assert!(versioned as u64 <= entries + 64, "{versioned} versions of {entries} entries");
}
