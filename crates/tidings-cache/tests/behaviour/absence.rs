//! Keys that have no value, lives that are spread, and loads of many keys.

use std::collections::HashSet;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, poll};
use tidings_cache::{Cache, EventKind, LoadError, OpenError, WhenIsolated};
use tokio::sync::oneshot;

use crate::common::{MAX_STALENESS, Node, Wire, key};

type Users = Cache<String, u64>;

const MINUTE: Duration = Duration::from_secs(60);

fn remembering(node: &Node) -> Users {
    node.cache("users").negative_ttl(MINUTE).open().unwrap()
}

async fn find(users: &Users, found: Option<u64>) -> Option<u64> {
    users.get_or_load_optional(&key("k"), || async { Ok::<_, ()>(found) }).await.unwrap()
}

#[tokio::test]
async fn that_a_key_has_no_value_is_remembered_for_its_time() {
    let node = Node::new("a");
    let users = remembering(&node);
    assert_eq!(users.get_optional(&key("k")), None, "nothing is known");
    assert_eq!((find(&users, None).await, find(&users, Some(1)).await), (None, None));
    assert_eq!((users.get(&key("k")), users.get_optional(&key("k"))), (None, Some(None)));
    assert_eq!((users.counts().loads, users.erased().flights()), (1, 0));
    node.clock.advance(MINUTE);
    assert_eq!((find(&users, Some(1)).await, users.get_optional(&key("k"))), (Some(1), Some(Some(1))));
    // Without the option it is not.
    let plain = node.cache("plain").open().unwrap();
    assert_eq!((find(&plain, None).await, find(&plain, Some(1)).await), (None, Some(1)));
    assert_eq!(plain.counts().fence_rejects, 0);
}

#[tokio::test]
async fn a_remembered_absence_ends_like_any_entry() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (remembering(&a), b.users());
    let changes: [&dyn Fn(); 4] = [
        &|| drop(on_a.remove(&key("k")).unwrap()),
        &|| drop(on_a.clear().unwrap()),
        &|| a.domain.fence_all(),
        &|| drop(on_b.insert(key("k"), 1).unwrap()),
    ];
    let mut wire = Wire::new([&a, &b]);
    for change in changes {
        assert_eq!(find(&on_a, None).await, None);
        assert_eq!(on_a.get_optional(&key("k")), Some(None));
        change();
        wire.carry();
        assert_eq!(on_a.get_optional(&key("k")), None);
        // Nor is one stored that a change has overtaken.
        let (deliver, source) = oneshot::channel();
        let k = key("k");
        let mut load = std::pin::pin!(on_a.get_or_load_optional(&k, || source));
        assert!(poll!(load.as_mut()).is_pending());
        change();
        wire.carry();
        deliver.send(None).unwrap();
        assert_eq!((load.await.unwrap(), on_a.get_optional(&k)), (None, None));
    }
    let counts = on_a.counts();
    assert_eq!((counts.key_evicted, counts.key_absent), (0, 2), "there was no copy to evict");
}

#[tokio::test]
async fn the_invalidation_of_any_tag_ends_a_remembered_absence() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let open = |node: &Node| {
        let tagged = node.cache("users").tags(|_: &String, value: &u64| [format!("t{value}")]);
        tagged.negative_ttl(MINUTE).open().unwrap()
    };
    let (on_a, on_b): (Users, Users) = (open(&a), open(&b));
    let mut wire = Wire::new([&a, &b]);
    for from in [&on_a, &on_b] {
        assert_eq!((find(&on_a, None).await, on_a.get_optional(&key("k"))), (None, Some(None)));
        from.invalidate_tag("t1").unwrap();
        wire.carry();
        assert_eq!(on_a.get_optional(&key("k")), None, "what there is now may have the tag");
        let (deliver, source) = oneshot::channel();
        let k = key("k");
        let mut load = std::pin::pin!(on_a.get_or_load_optional(&k, || source));
        assert!(poll!(load.as_mut()).is_pending());
        from.invalidate_tag("t1").unwrap();
        wire.carry();
        deliver.send(None).unwrap();
        assert_eq!((load.await.unwrap(), on_a.get_optional(&k)), (None, None));
    }
}

#[tokio::test]
async fn a_key_without_a_value_is_absent_for_every_other_operation() {
    let node = Node::new("a");
    let users = remembering(&node);
    let absent = || find(&users, None);
    absent().await;
    assert!(!users.contains(&key("k")) && users.peek(&key("k")).is_none() && users.iter().count() == 0);
    assert!(!users.replace(key("k"), 1).unwrap());
    assert_eq!(users.take(&key("k")).unwrap(), None);
    assert!(users.insert_if_absent(key("k"), 1).unwrap());
    users.remove(&key("k")).unwrap();
    absent().await;
    assert_eq!(users.insert(key("k"), 1).unwrap().kind, EventKind::Inserted);
    users.remove(&key("k")).unwrap();
    absent().await;
    assert_eq!(users.increment(&key("k"), 5).unwrap(), 5);
    users.remove(&key("k")).unwrap();
    absent().await;
    let loaded = users.get_or_load(&key("k"), || async { Ok::<_, ()>(7) }).await.unwrap();
    assert_eq!((loaded, users.get(&key("k"))), (7, Some(7)), "who must have a value loads it");
}

#[tokio::test]
async fn absences_take_room_in_a_cache_that_weighs() {
    let node = Node::new("a");
    let builder = node.cache("users").negative_ttl(MINUTE).weigher(|_, _: &u64| 1).max_capacity(100);
    let users: Users = builder.open().unwrap();
    for n in 0..1_000 {
        let none = users.get_or_load_optional(&n.to_string(), || async { Ok::<_, ()>(None) }).await.unwrap();
        assert_eq!(none, None);
    }
    users.settle();
    assert!(users.erased().entries() <= 100, "{}", users.erased().entries());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_callers_of_a_key_without_a_value_load_once() {
    let node = Node::new("a");
    let users = remembering(&node);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let users = users.clone();
        callers.spawn(async move {
            let load = || async {
                tokio::task::yield_now().await;
                Ok::<_, ()>(None)
            };
            users.get_or_load_optional(&key("k"), load).await.unwrap()
        });
    }
    assert!(callers.join_all().await.into_iter().all(|value| value.is_none()));
    assert_eq!(users.counts().loads, 1);
}

#[test]
fn entries_that_were_stored_at_once_do_not_expire_at_once() {
    let node = Node::new("a");
    let users: Cache<u64, u64> = node.cache("users").time_to_live(MINUTE).ttl_jitter(0.5).open().unwrap();
    (0..1_000).for_each(|n| drop(users.insert(n, n).unwrap()));
    let left = || users.iter().count();
    node.clock.advance(MINUTE / 2 - Duration::from_nanos(1));
    assert_eq!(left(), 1_000);
    node.clock.advance(MINUTE / 4);
    assert!((400..600).contains(&left()), "{}", left());
    node.clock.advance(MINUTE / 4 + Duration::from_nanos(1));
    assert_eq!(left(), 0);
}

#[test]
fn shares_and_times_that_cannot_be_are_refused() {
    let node = Node::new("a");
    let plain = || node.cache::<String, u64>("users");
    let refused = [
        ("ttl_jitter", plain().ttl_jitter(0.0)),
        ("ttl_jitter", plain().ttl_jitter(1.0)),
        ("negative_ttl", plain().negative_ttl(Duration::ZERO)),
        ("eager_refresh", plain().time_to_live(MINUTE).eager_refresh(0.3).ttl_jitter(0.3)),
    ];
    for (expected, builder) in refused {
        match builder.open() {
            Err(OpenError::Option { option, .. }) => assert_eq!(option, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| key(name)).collect()
}

/// Answers with the length of each key, but for those that begin with `-`.
fn lengths(asked: Vec<String>) -> Ready<Result<Vec<(String, u64)>, String>> {
    let with_value = asked.into_iter().filter(|name| !name.starts_with('-'));
    ready(Ok(with_value.map(|name| (name.clone(), name.len() as u64)).collect()))
}

#[tokio::test]
async fn only_what_is_missing_is_loaded_and_in_one_call() {
    let node = Node::new("a");
    let users = remembering(&node);
    users.insert(key("bb"), 9).unwrap();
    let asked = std::cell::RefCell::new(Vec::new());
    let load = |missing: Vec<String>| {
        asked.borrow_mut().push(missing.clone());
        lengths(missing)
    };
    let all = keys(&["a", "bb", "-", "ccc", "a"]);
    let values = users.get_or_load_many(&all, load).await.unwrap();
    assert_eq!(values, [Some(1), Some(9), None, Some(3), Some(1)]);
    assert_eq!(users.get_or_load_many(&all, load).await.unwrap(), values);
    assert_eq!(
        asked.into_inner(),
        [keys(&["a", "-", "ccc"])],
        "one call, each key once, and what it brought is kept"
    );
    assert_eq!(users.get_optional(&key("-")), Some(None));
    let counts = users.counts();
    assert_eq!((counts.loads, counts.loaded, counts.load_failures), (1, 1, 0));
    assert_eq!((counts.misses, counts.coalesced, counts.hits), (3, 1, 1 + 5 + 1));
    assert_eq!(users.erased().flights(), 0);
}

#[tokio::test]
async fn what_was_not_asked_for_is_not_stored() {
    let node = Node::new("a");
    let users = node.users();
    let load = |_| async { Ok::<_, ()>([(key("other"), 1), (key("k"), 2)]) };
    assert_eq!(users.get_or_load_many(&keys(&["k"]), load).await.unwrap(), [Some(2)]);
    assert_eq!(users.get(&key("other")), None);
}

#[tokio::test]
async fn keys_that_others_load_are_waited_for_and_not_loaded_again() {
    let node = Node::new("a");
    let users = node.users();
    let k = key("k");
    let (deliver, source) = oneshot::channel();
    let mut single =
        std::pin::pin!(users.get_or_load(&k, || async { source.await.map_err(|_| String::new()) }));
    assert!(poll!(single.as_mut()).is_pending());
    let all = keys(&["k", "mm"]);
    let mut many = std::pin::pin!(users.get_or_load_many(&all, |missing| {
        assert_eq!(missing, keys(&["mm"]));
        lengths(missing)
    }));
    assert!(poll!(many.as_mut()).is_pending());
    assert_eq!(users.get(&key("mm")), Some(2), "its own keys do not wait for that");
    deliver.send(7).unwrap();
    assert_eq!((single.await.unwrap(), many.await.unwrap()), (7, vec![Some(7), Some(2)]));
}

#[tokio::test]
async fn two_loads_of_the_same_keys_in_other_orders_wait_for_each_other_without_end_for_none() {
    let node = Node::new("a");
    let users = node.users();
    let (one, other) = (keys(&["a", "b", "c"]), keys(&["c", "b", "d", "a"]));
    let slow = |missing: Vec<String>| async {
        tokio::task::yield_now().await;
        lengths(missing).await
    };
    let both =
        async { tokio::join!(users.get_or_load_many(&one, slow), users.get_or_load_many(&other, slow)) };
    let (one, other) = tokio::time::timeout(MINUTE, both).await.expect("no deadlock");
    assert_eq!((one.unwrap(), other.unwrap()), (vec![Some(1); 3], vec![Some(1); 4]));
    assert_eq!(users.counts().loads, 2);
}

#[tokio::test]
async fn each_key_of_many_is_stored_unless_it_changed_itself() {
    let node = Node::new("a");
    let users = remembering(&node);
    let all = keys(&["a", "bb", "-", "--"]);
    let (deliver, source) = oneshot::channel::<()>();
    let mut source = Some(source);
    let mut many = Box::pin(users.get_or_load_many(&all, |missing| {
        let source = source.take().unwrap();
        async {
            source.await.unwrap();
            lengths(missing).await
        }
    }));
    assert!(poll!(many.as_mut()).is_pending());
    users.remove(&key("bb")).unwrap();
    users.remove(&key("--")).unwrap();
    deliver.send(()).unwrap();
    assert_eq!(many.await.unwrap(), [Some(1), Some(2), None, None]);
    let cached: Vec<_> = all.iter().map(|name| users.get_optional(name)).collect();
    assert_eq!(cached, [Some(Some(1)), None, Some(None), None]);
}

#[tokio::test]
async fn a_load_of_many_that_fails_panics_or_is_cancelled_releases_its_keys() {
    let node = Node::new("a");
    let users = node.users();
    let all = keys(&["a", "b"]);
    let a = key("a");
    let failed = users.get_or_load_many(&all, |_| async { Err::<Vec<(String, u64)>, _>("down") }).await;
    assert!(matches!(failed, Err(LoadError::Loader(error)) if *error == "down"));
    assert_eq!((users.counts().load_failures, users.erased().flights()), (1, 0));
    let panics =
        users.get_or_load_many(&all, |_| async { panic!("no pool") as Result<Vec<(String, u64)>, ()> });
    assert!(std::panic::AssertUnwindSafe(panics).catch_unwind().await.is_err());
    assert_eq!((users.counts().load_failures, users.erased().flights()), (2, 0));
    let mut hangs =
        Box::pin(users.get_or_load_many(&all, |_| std::future::pending::<Result<Vec<(String, u64)>, ()>>()));
    assert!(poll!(hangs.as_mut()).is_pending());
    let mut joined = std::pin::pin!(users.get_or_load(&a, || async { Ok::<_, ()>(5) }));
    assert!(poll!(joined.as_mut()).is_pending());
    drop(hangs);
    assert_eq!(joined.await.unwrap(), 5);
    assert_eq!(users.erased().flights(), 0);
}

#[tokio::test]
async fn a_load_of_many_takes_over_what_another_gave_up() {
    let node = Node::new("a");
    let users = node.users();
    let k = key("k");
    let mut given_up = Box::pin(users.get_or_load(&k, std::future::pending::<Result<u64, ()>>));
    assert!(poll!(given_up.as_mut()).is_pending());
    let all = keys(&["k", "mm"]);
    let calls = AtomicUsize::new(0);
    let mut many = std::pin::pin!(users.get_or_load_many(&all, |missing| {
        calls.fetch_add(1, Ordering::SeqCst);
        lengths(missing)
    }));
    assert!(poll!(many.as_mut()).is_pending());
    drop(given_up);
    assert_eq!(many.await.unwrap(), [Some(1), Some(2)]);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_callers_of_overlapping_keys_load_each_once() {
    let node = Node::new("a");
    let users = node.users();
    let runs: Arc<[AtomicUsize; 10]> = Arc::default();
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..10_000 {
        let (users, runs) = (users.clone(), runs.clone());
        callers.spawn(async move {
            let all: Vec<_> = (n..n + 5).map(|n| (n % 10).to_string()).collect();
            let load = |missing: Vec<String>| {
                missing
                    .iter()
                    .for_each(|name| _ = runs[name.parse::<usize>().unwrap()].fetch_add(1, Ordering::SeqCst));
                async {
                    tokio::task::yield_now().await;
                    lengths(missing).await
                }
            };
            users.get_or_load_many(&all, load).await.unwrap()
        });
    }
    assert!(callers.join_all().await.into_iter().all(|values| values == [Some(1); 5]));
    let runs: HashSet<_> = runs.iter().map(|runs| runs.load(Ordering::SeqCst)).collect();
    assert_eq!(runs, HashSet::from([1]));
}

#[tokio::test]
async fn what_expired_before_a_load_is_not_served_though_the_load_stored_nothing() {
    let node = Node::new("a");
    let safe = |name: &str| node.cache(name).time_to_live(MINUTE).fail_safe(10 * MINUTE);
    let failing = async |users: &Users| users.fetch(&key("k"), || async { Err::<u64, _>("down") }).await;
    let users: Users = safe("users").open().unwrap();
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MINUTE);
    assert!(failing(&users).await.is_ok(), "nothing is known but that it is old");
    assert_eq!(find(&users, None).await, None);
    assert!(failing(&users).await.is_err(), "it is known to have gone");
    let bypassing: Users = safe("bypassing").when_isolated(WhenIsolated::Bypass).open().unwrap();
    bypassing.insert(key("k"), 1).unwrap();
    node.fresh_until_now();
    node.clock.advance(MINUTE + MAX_STALENESS);
    assert_eq!(find(&bypassing, Some(2)).await, Some(2));
    node.fresh_forever();
    assert!(failing(&bypassing).await.is_err(), "a newer one is known");
}
