//! Caches opened, found, closed and opened again.

use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use tidings_cache::builder::PARTITIONS_MAX;
use tidings_cache::{Cache, CacheBuilder, Domain, EventKind, OpenError, ReadOrFill, TOKEN_TIME, WriteError};
use tidings_proto::hash::CacheId;

use crate::common::{Node, Wire, fill, key, kinds};

#[test]
fn a_cache_is_found_by_name_and_type() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    let found = Cache::<String, u64>::lookup(&node.domain, "users").unwrap();
    assert_eq!((found.name(), found.get(&key("k"))), ("users", Some(1)));
    assert!(Cache::<String, u32>::lookup(&node.domain, "users").is_none());
    assert!(Cache::<u64, u64>::lookup(&node.domain, "users").is_none());
    assert!(Cache::<String, u64>::lookup(&node.domain, "profiles").is_none());
    let erased = node.domain.cache("users").unwrap();
    assert_eq!((&**erased.name(), erased.id()), ("users", CacheId::of_name("users")));
}

#[test]
fn settings_are_as_they_were_given() {
    let node = Node::new("a");
    let users: Cache<String, u64> = node
        .cache("users")
        .partitions(4)
        .time_to_live(Duration::from_secs(9))
        .max_capacity(7)
        .open()
        .unwrap();
    let erased = users.erased();
    let settings = erased.settings();
    assert_eq!((settings.partitions, settings.max_capacity, settings.weighed), (4, 7, false));
    assert_eq!((settings.time_to_live, settings.time_to_idle), (Some(Duration::from_secs(9)), None));
}

#[test]
fn a_name_is_open_once_and_free_after_the_close() {
    let node = Node::new("a");
    let users = node.users();
    let again = CacheBuilder::<String, u64>::new(&node.domain, "users").open().unwrap_err();
    assert_eq!(again, OpenError::Open("users".into()));
    users.insert(key("k"), 1).unwrap();
    users.close();
    assert!(node.domain.cache("users").is_none() && node.domain.caches().is_empty());
    let reopened = node.users();
    assert_eq!(reopened.get(&key("k")), None);
    reopened.insert(key("k"), 2).unwrap();
    assert_eq!((reopened.get(&key("k")), users.get(&key("k"))), (Some(2), None));
    users.close();
    assert!(node.domain.cache("users").is_some(), "a second close does not close the new one");
}

#[test]
fn caches_are_listed_by_name() {
    let node = Node::new("a");
    for name in ["users", "orders", "profiles"] {
        node.cache::<String, u64>(name).open().unwrap();
    }
    let caches = node.domain.caches();
    let names: Vec<_> = caches.iter().map(|cache| &**cache.name()).collect();
    assert_eq!(names, ["orders", "profiles", "users"]);
}

#[test]
fn two_names_with_one_id_are_refused() {
    let mut seen = std::collections::HashMap::new();
    let (first, second) = (0..)
        .find_map(|n| {
            let name = format!("c{n}");
            seen.insert(CacheId::of_name(&name), name.clone()).map(|first| (first, name))
        })
        .unwrap();
    let node = Node::new("a");
    let holder: Cache<String, u64> = node.cache(&first).open().unwrap();
    let refused = node.cache::<String, u64>(&second).open().unwrap_err();
    assert_eq!(refused, OpenError::Collision(first.as_str().into()));
    assert!(node.domain.cache(&second).is_none());
    holder.close();
    assert!(node.cache::<String, u64>(&second).open().is_ok());
}

#[test]
fn a_cache_that_cannot_be_opened_says_why_and_opens_nothing() {
    let node = Node::new("a");
    for name in ["", "with space", "ü", &"x".repeat(129)] {
        assert!(matches!(node.cache::<String, u64>(name).open(), Err(OpenError::Name(_))), "{name}");
    }
    let refused = |builder: CacheBuilder<String, u64>| builder.open().unwrap_err();
    assert_eq!(refused(node.cache("users").max_capacity(0)), OpenError::NoCapacity);
    for partitions in [0, PARTITIONS_MAX + 1] {
        let error = refused(node.cache("users").partitions(partitions));
        assert_eq!(error, OpenError::Partitions(partitions));
        assert_eq!(error.to_string(), format!("{partitions} partitions: use 1 to 1024"));
    }
    assert!(node.domain.caches().is_empty());
    node.cache::<String, u64>("users").partitions(PARTITIONS_MAX).open().unwrap();
}

#[tokio::test]
async fn a_closed_cache_serves_and_changes_nothing() {
    let node = Node::new("a");
    let users = node.users();
    users.insert(key("k"), 1).unwrap();
    let ReadOrFill::Miss(token) = users.get_or_token(&key("token"), TOKEN_TIME).unwrap() else { panic!() };
    let logged = node.logged();
    users.close();
    assert_eq!((users.get(&key("k")), users.contains(&key("k")), users.iter().count()), (None, false, 0));
    let closed =
        |result: Result<(), WriteError>| assert!(matches!(result, Err(WriteError::Closed)), "{result:?}");
    closed(users.insert(key("k"), 1).map(drop));
    closed(users.insert_if_absent(key("k"), 1).map(drop));
    closed(users.remove(&key("k")).map(drop));
    closed(users.take(&key("k")).map(drop));
    closed(users.write().insert_many([(key("k"), 1)]).map(drop));
    closed(users.write().remove_many([key("k")]).map(drop));
    closed(users.clear().map(drop));
    assert!(!users.fill(&key("token"), 1, token, None).unwrap());
    assert_eq!(users.get_or_load(&key("k"), || async { Ok::<_, ()>(3) }).await.unwrap(), 3);
    let ReadOrFill::Miss(late) = users.get_or_token(&key("k"), TOKEN_TIME).unwrap() else { panic!() };
    assert!(!users.fill(&key("k"), 1, late, None).unwrap(), "what is not stored is not said to be");
    assert_eq!((users.get(&key("k")), node.logged()), (None, logged));
}

#[tokio::test]
async fn a_write_through_of_a_closed_cache_does_not_write() {
    let node = Node::new("a");
    let users = node.users();
    users.close();
    let written =
        users.write_through(&key("k"), || async { panic!("must not run") as Result<u64, ()> }).await;
    assert!(written.is_err());
}

#[test]
fn no_write_survives_a_close_that_it_raced() {
    // Entries of a closed cache would hear of no invalidation any more.
    for _ in 0..300 {
        let node = Node::new("a");
        let users = node.users();
        thread::scope(|scope| {
            for name in ["k", "m"] {
                let users = &users;
                scope.spawn(move || while users.insert(key(name), 1).is_ok() {});
                scope.spawn(move || while users.write().insert_many([(key("many"), 1)]).is_ok() {});
            }
            thread::yield_now();
            users.close();
        });
        assert_eq!(users.iter().count(), 0);
    }
}

#[test]
fn caches_streams_and_invalidators_come_and_go_in_any_order() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let mut wire = Wire::new([&a, &b]);
    for round in 0..5 {
        let on_a = a.users();
        on_a.insert(key("before"), round).unwrap();
        wire.carry();
        let on_b = b.users();
        let mut heard = on_b.subscribe().start().unwrap();
        fill(&on_b, "k", 1);
        on_a.insert(key("k"), round).unwrap();
        wire.carry();
        assert_eq!(kinds(&mut heard), [EventKind::Invalidated, EventKind::Inserted]);
        if round % 2 == 0 {
            on_a.close();
            on_b.remove(&key("k")).unwrap();
            wire.carry();
            on_b.close();
        } else {
            on_b.close();
            on_a.insert(key("k"), round).unwrap();
            wire.carry();
            on_a.close();
        }
    }
}

#[test]
fn standalone_caches_need_no_node() {
    let domain = Domain::standalone();
    let users: Cache<String, u64> = CacheBuilder::new(&domain, "users").open().unwrap();
    users.insert(key("k"), 1).unwrap();
    assert_eq!(users.get(&key("k")), Some(1));
}

#[tokio::test]
async fn closing_a_domain_closes_all_its_caches() {
    let node = Node::new("a");
    let (users, orders) = (node.users(), node.cache::<u64, u64>("orders").open().unwrap());
    node.domain.close().await;
    assert!(node.domain.caches().is_empty());
    assert!(matches!(users.insert(key("k"), 1), Err(WriteError::Closed)));
    assert!(matches!(orders.insert(1, 1), Err(WriteError::Closed)));
}

const MINUTE: Duration = Duration::from_secs(60);

/// A value that has its cache forget a key when it is dropped.
struct Forgets(Arc<OnceLock<Cache<String, Nosy>>>);

type Nosy = Arc<Forgets>;

impl Drop for Forgets {
    fn drop(&mut self) {
        if let Some(cache) = self.0.get() {
            let _ = cache.remove(&key("k"));
        }
    }
}

/// Has something done to a key that has an expired entry; returns whether it came to an end, and the key is gone.
fn ends_and_forgets(act: impl FnOnce(&Cache<String, Nosy>, Nosy) + Send + 'static) -> bool {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || {
        let node = Node::new("a");
        let nosy: Cache<String, Nosy> = node.cache("nosy").time_to_live(MINUTE).open().unwrap();
        let handle = Arc::<OnceLock<_>>::default();
        let value = || Arc::new(Forgets(handle.clone()));
        nosy.insert(key("k"), value()).unwrap();
        node.clock.advance(MINUTE);
        assert!(handle.set(nosy.clone()).is_ok());
        act(&nosy, value());
        done.send(nosy.peek(&key("k")).is_none()).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(60)).unwrap_or(false)
}

#[test]
fn the_drop_of_a_value_that_was_stored_over_may_use_its_cache() {
    assert!(ends_and_forgets(|cache, value| drop(cache.insert(key("k"), value).unwrap())));
    assert!(ends_and_forgets(|cache, value| drop(cache.write().insert_many([(key("k"), value)]).unwrap())));
    assert!(ends_and_forgets(|cache, value| {
        let key = key("k");
        let load = cache.get_or_load(&key, || async { Ok::<_, ()>(value) });
        drop(load.now_or_never().expect("it waits for nothing"));
    }));
}
