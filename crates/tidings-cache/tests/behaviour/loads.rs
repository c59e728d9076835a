//! Loads: one per key, never cached once something has invalidated the key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{FutureExt, poll};
use tidings_cache::{Cache, LoadError, ReadOrFill, TOKEN_TIME};
use tidings_proto::freshness::Published;
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use crate::common::{MAX_STALENESS, Node, Wire, fill, key};

type Users = Cache<String, u64>;

/// Loads a key with what the channel delivers.
async fn load(users: &Users, name: &str, source: oneshot::Receiver<u64>) -> Result<u64, LoadError<String>> {
    users.get_or_load(&key(name), || async { source.await.map_err(|_| "gone".to_owned()) }).await
}

/// A load that must not be needed.
async fn cached(users: &Users, name: &str) -> u64 {
    users.get_or_load(&key(name), || async { Err("not cached") }).await.unwrap()
}

#[tokio::test]
async fn a_miss_is_loaded_once_and_hits_afterwards() {
    let node = Node::new("a");
    let users = node.users();
    let runs = AtomicUsize::new(0);
    for _ in 0..3 {
        let load = || async {
            runs.fetch_add(1, Ordering::SeqCst);
            Ok::<_, ()>(7)
        };
        assert_eq!(users.get_or_load(&key("k"), load).await.unwrap(), 7);
    }
    let counts = users.counts();
    assert_eq!((runs.into_inner(), counts.loads, counts.misses, counts.hits), (1, 1, 1, 2));
    assert_eq!(users.erased().flights(), 0);
}

#[tokio::test]
async fn callers_of_one_key_share_a_load() {
    let node = Node::new("a");
    let users = node.users();
    let (deliver, source) = oneshot::channel();
    let mut leader = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(leader.as_mut()).is_pending());
    let mut joined: Vec<_> = (0..9).map(|_| Box::pin(cached(&users, "k"))).collect();
    for waiting in &mut joined {
        assert!(poll!(waiting).is_pending());
    }
    deliver.send(5).unwrap();
    assert_eq!(leader.await.unwrap(), 5);
    assert_eq!(join_all(joined).await, [5; 9]);
    let counts = users.counts();
    assert_eq!((counts.loads, counts.coalesced, counts.misses), (1, 9, 1));
}

#[tokio::test]
async fn a_failed_load_is_told_to_all_its_callers_and_not_cached() {
    let node = Node::new("a");
    let users = node.users();
    let (deliver, source) = oneshot::channel::<u64>();
    let mut leader = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(leader.as_mut()).is_pending());
    let (_unused, other) = oneshot::channel();
    let mut joined = std::pin::pin!(load(&users, "k", other));
    assert!(poll!(joined.as_mut()).is_pending());
    drop(deliver);
    for result in [leader.await, joined.await] {
        let Err(LoadError::Loader(error)) = result else { panic!("{result:?}") };
        assert_eq!(*error, "gone");
    }
    assert_eq!((users.counts().load_failures, users.erased().flights()), (1, 0));
    assert_eq!(users.get_or_load(&key("k"), || async { Ok::<_, ()>(3) }).await.unwrap(), 3);
}

#[tokio::test]
async fn every_run_of_a_loader_is_timed_however_it_ends() {
    let node = Node::new("a");
    let users = node.users();
    let erased = users.erased();
    let times = || (erased.load_times().count(), erased.load_times().sum());
    let slow = |seconds, result| {
        node.clock.advance(Duration::from_secs(seconds));
        std::future::ready(result)
    };
    users.get_or_load(&key("loaded"), || slow(1, Ok::<_, ()>(1))).await.unwrap();
    assert_eq!(times(), (1, Duration::from_secs(1)));
    users.get_or_load(&key("loaded"), || slow(100, Ok::<_, ()>(1))).await.unwrap();
    users.get_or_load(&key("failed"), || slow(2, Err(()))).await.unwrap_err();
    assert_eq!(times(), (2, Duration::from_secs(3)));
    let (_deliver, source) = oneshot::channel();
    let mut cancelled = Box::pin(load(&users, "cancelled", source));
    assert!(poll!(cancelled.as_mut()).is_pending());
    node.clock.advance(Duration::from_secs(4));
    assert_eq!(times(), (2, Duration::from_secs(3)), "it runs");
    drop(cancelled);
    assert_eq!(times(), (3, Duration::from_secs(7)));
}

#[tokio::test]
async fn a_caller_whose_error_type_differs_loads_for_itself() {
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let (deliver, source) = oneshot::channel::<u64>();
    let mut leader = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(leader.as_mut()).is_pending());
    let mut joined = std::pin::pin!(users.get_or_load(&k, || async { Err::<u64, i32>(-1) }));
    assert!(poll!(joined.as_mut()).is_pending());
    drop(deliver);
    assert!(leader.await.is_err());
    let Err(LoadError::Loader(error)) = joined.await else { panic!() };
    assert_eq!(*error, -1);
}

#[tokio::test]
async fn a_load_that_an_invalidation_overtook_is_returned_and_not_kept() {
    let changes: [fn(&Users); 6] = [
        |users| drop(users.remove(&key("k")).unwrap()),
        |users| drop(users.clear().unwrap()),
        |users| drop(users.write().remove_many([key("k")]).unwrap()),
        |users| drop(users.write().invalidate(&key("k")).unwrap()),
        |users| {
            users.insert(key("k"), 9).unwrap();
            users.remove(&key("k")).unwrap();
        },
        |users| assert_eq!(users.take(&key("k")).unwrap(), None),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let node = Node::new("a");
        let users = node.users();
        let (deliver, source) = oneshot::channel();
        let mut leader = std::pin::pin!(load(&users, "k", source));
        assert!(poll!(leader.as_mut()).is_pending());
        change(&users);
        deliver.send(1).unwrap();
        assert_eq!(leader.await.unwrap(), 1, "who had asked before gets what was loaded");
        // A take of a missing key changes nothing, and ends nothing.
        let kept = index == 5;
        assert_eq!(users.get(&key("k")), kept.then_some(1), "change {index}");
        assert_eq!(users.counts().fence_rejects, u64::from(!kept));
    }
}

#[tokio::test]
async fn a_load_never_overwrites_what_was_inserted_meanwhile() {
    let node = Node::new("a");
    let users = node.users();
    let (deliver, source) = oneshot::channel();
    let mut leader = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(leader.as_mut()).is_pending());
    users.insert(key("k"), 2).unwrap();
    deliver.send(1).unwrap();
    assert_eq!(leader.await.unwrap(), 1);
    assert_eq!(users.get(&key("k")), Some(2));
}

#[tokio::test]
async fn a_caller_that_comes_after_an_invalidation_joins_no_load_from_before() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    for remote in [false, true] {
        let (old, source) = oneshot::channel();
        let mut early = std::pin::pin!(load(&on_b, "k", source));
        assert!(poll!(early.as_mut()).is_pending());
        let changed = if remote { &on_a } else { &on_b };
        changed.remove(&key("k")).unwrap();
        Wire::new([&a, &b]).carry();

        let (new, source) = oneshot::channel();
        let mut late = std::pin::pin!(load(&on_b, "k", source));
        assert!(poll!(late.as_mut()).is_pending());
        let mut later = std::pin::pin!(cached(&on_b, "k"));
        assert!(poll!(later.as_mut()).is_pending());
        old.send(1).unwrap();
        assert_eq!(early.await.unwrap(), 1);
        assert!(poll!(later.as_mut()).is_pending(), "the end of the old load is not the end of the new one");
        new.send(2).unwrap();
        assert_eq!((late.await.unwrap(), later.await, on_b.get(&key("k"))), (2, 2, Some(2)));
        on_b.remove(&key("k")).unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_comes_after_a_fence_or_floor_joins_no_load_from_before() {
    let fence: fn(&Node) = |node| node.domain.fence_all();
    let floor: fn(&Node) = |node| {
        node.domain.publish(Published { fresh_until: Tick::FOREVER, floor: node.clock.now() });
        node.clock.advance(Duration::from_nanos(1));
    };
    for doubt in [fence, floor] {
        let node = Node::new("a");
        let users = node.users();
        let (old, source) = oneshot::channel();
        let mut early = std::pin::pin!(load(&users, "k", source));
        assert!(poll!(early.as_mut()).is_pending());
        doubt(&node);
        let late = users.get_or_load(&key("k"), || async { Ok::<_, ()>(2) }).await.unwrap();
        old.send(1).unwrap();
        assert_eq!((early.await.unwrap(), late, users.get(&key("k"))), (1, 2, Some(2)));
    }
}

#[tokio::test]
async fn in_doubt_a_load_is_joined_only_while_it_is_young() {
    let node = Node::new("a");
    let users = node.users();
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    let (old, source) = oneshot::channel();
    let mut early = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(early.as_mut()).is_pending());
    node.clock.advance(MAX_STALENESS / 2);
    let mut joined = std::pin::pin!(cached(&users, "k"));
    assert!(poll!(joined.as_mut()).is_pending(), "young enough to join");
    node.clock.advance(MAX_STALENESS);
    let late = users.get_or_load(&key("k"), || async { Ok::<_, ()>(2) }).await.unwrap();
    old.send(1).unwrap();
    assert_eq!((early.await.unwrap(), joined.await, late), (1, 1, 2));
    assert_eq!(users.get(&key("k")), Some(2), "the replaced load does not overwrite the newer one");
}

#[tokio::test]
async fn a_loader_counts_as_loaded_once_it_has_brought_a_value() {
    let node = Node::new("a");
    let users = node.users();
    let counted = || {
        let counts = users.counts();
        (counts.loads, counts.loaded, counts.load_failures)
    };
    let (deliver, source) = oneshot::channel();
    let mut held = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(held.as_mut()).is_pending());
    assert_eq!(counted(), (1, 0, 0), "it is under way");
    drop(deliver);
    assert!(held.await.is_err());
    assert_eq!(counted(), (1, 0, 1));
    let (deliver, source) = oneshot::channel();
    let mut held = std::pin::pin!(load(&users, "k", source));
    assert!(poll!(held.as_mut()).is_pending());
    users.insert(key("k"), 1).unwrap();
    deliver.send(2).unwrap();
    assert_eq!(held.await.unwrap(), 2);
    assert_eq!(counted(), (2, 1, 1), "although nothing was stored");
}

#[tokio::test]
async fn another_caller_loads_when_the_leader_is_cancelled() {
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let (_never, source) = oneshot::channel();
    let mut leader = Box::pin(load(&users, "k", source));
    assert!(poll!(leader.as_mut()).is_pending());
    let mut waiting = std::pin::pin!(users.get_or_load(&k, || async { Ok::<_, String>(2) }));
    assert!(poll!(waiting.as_mut()).is_pending());
    drop(leader);
    assert_eq!((waiting.await.unwrap(), users.get(&k)), (2, Some(2)));
    let counts = users.counts();
    assert_eq!((counts.loads, counts.load_failures, users.erased().flights()), (2, 1, 0));
    // The two reads of the load, and the one of what it stored.
    assert_eq!((counts.misses, counts.coalesced, counts.hits), (1, 1, 1), "a read counts once");
}

#[tokio::test]
async fn a_loader_that_panics_releases_those_who_wait() {
    let m = key("m");
    let k = key("k");
    let node = Node::new("a");
    let users = node.users();
    let (deliver, source) = oneshot::channel::<u64>();
    let panics = users.get_or_load(&k, || async { source.await.map(|_| panic!("no database")) });
    let mut leader = Box::pin(std::panic::AssertUnwindSafe(panics).catch_unwind());
    assert!(poll!(leader.as_mut()).is_pending());
    let mut waiting: Vec<_> = (0..5)
        .map(|_| Box::pin(users.get_or_load(&k, || async { Ok::<u64, oneshot::error::RecvError>(2) })))
        .collect();
    for waiting in &mut waiting {
        assert!(poll!(waiting).is_pending());
    }
    deliver.send(0).unwrap();
    assert!(leader.await.is_err());
    for loaded in join_all(waiting).await {
        assert_eq!(loaded.unwrap(), 2);
    }
    assert_eq!((users.counts().loads, users.erased().flights()), (2, 0));
    // Also when the closure itself panics, before there is a future.
    let refused = users.get_or_load(&m, || -> std::future::Ready<Result<u64, ()>> { panic!("no pool") });
    assert!(std::panic::AssertUnwindSafe(refused).catch_unwind().await.is_err());
    assert_eq!(users.erased().flights(), 0);
}

#[tokio::test]
async fn loads_within_loads_do_not_block_each_other() {
    let outer = key("outer");
    let node = Node::new("a");
    let users = node.users();
    let outer = users.get_or_load(&outer, || async {
        let inner = users.get_or_load(&key("inner"), || async { Ok::<_, ()>(20) }).await.map_err(drop)?;
        users.insert(key("side"), 1).map_err(drop)?;
        Ok::<_, ()>(inner + 1)
    });
    assert_eq!(outer.await.unwrap(), 21);
    assert_eq!((users.get(&key("inner")), users.get(&key("side"))), (Some(20), Some(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_concurrent_callers_of_one_key_load_once() {
    let node = Node::new("a");
    let users = node.users();
    let runs = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    let (start, started) = tokio::sync::watch::channel(false);
    for _ in 0..10_000 {
        let (users, runs, mut started) = (users.clone(), runs.clone(), started.clone());
        callers.spawn(async move {
            started.wait_for(|started| *started).await.unwrap();
            let load = || async {
                runs.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<_, ()>(7)
            };
            users.get_or_load(&key("k"), load).await.unwrap()
        });
    }
    start.send(true).unwrap();
    assert!(callers.join_all().await.into_iter().all(|value| value == 7));
    assert_eq!((runs.load(Ordering::SeqCst), users.counts().loads), (1, 1));
    let counts = users.counts();
    let callers = counts.hits + counts.coalesced + counts.misses;
    assert_eq!(callers, 10_000);
    tidings_facts::note("G11", format!("{callers} concurrent callers, {} load", counts.loads));
}

#[test]
fn a_token_is_good_once_for_its_key_and_until_its_deadline() {
    let node = Node::new("a");
    let users = node.users();
    let token = || match users.get_or_token(&key("k"), TOKEN_TIME).unwrap() {
        ReadOrFill::Miss(token) => token,
        ReadOrFill::Hit(value) => panic!("{value}"),
    };
    let first = token();
    assert!(!users.fill(&key("other"), 1, first, None).unwrap());
    assert!(users.fill(&key("k"), 1, first, None).unwrap());
    assert!(matches!(users.get_or_token(&key("k"), TOKEN_TIME).unwrap(), ReadOrFill::Hit(1)));
    assert!(!users.fill(&key("k"), 2, first, None).unwrap());
    assert_eq!(users.get(&key("k")), Some(1));

    users.remove(&key("k")).unwrap();
    let late = token();
    node.clock.advance(TOKEN_TIME + Duration::from_nanos(1));
    assert!(!users.fill(&key("k"), 3, late, None).unwrap());
    let forgotten = token();
    node.clock.advance(TOKEN_TIME + Duration::from_nanos(1));
    users.settle();
    assert_eq!(users.erased().flights(), 0);
    assert!(!users.fill(&key("k"), 3, forgotten, None).unwrap());
    let carried = token();
    let (id, epoch, began) = carried.parts();
    let carried = tidings_cache::FillToken::from_parts(id, epoch, began);
    assert!(users.fill(&key("k"), 4, carried, Some(Duration::from_secs(1))).unwrap());
    node.clock.advance(Duration::from_secs(1));
    assert_eq!(users.get(&key("k")), None, "a fill may have a time to live");
}

#[test]
fn tokens_that_nobody_uses_are_bounded() {
    let node = Node::new("a");
    let cache: Cache<u64, u64> = node.cache("numbers").open().unwrap();
    for n in 0..100_000 {
        assert!(matches!(cache.get_or_token(&n, TOKEN_TIME).unwrap(), ReadOrFill::Miss(_)));
    }
    let bound = 64 * tidings_cache::flight::TOKENS_PER_SHARD_MAX;
    assert!(cache.erased().flights() <= bound, "{} flights", cache.erased().flights());
    // The newest are the ones that are kept.
    let ReadOrFill::Miss(token) = cache.get_or_token(&100_000, TOKEN_TIME).unwrap() else { panic!() };
    assert!(cache.fill(&100_000, 1, token, None).unwrap());
}

#[test]
fn a_flood_of_tokens_ends_no_decision_and_no_write() {
    let node = Node::new("a");
    let users = node.users();
    let mut runs = 0;
    let stored = users.compute(&key("k"), |_| {
        runs += 1;
        if runs == 1 {
            for n in 0..100_000 {
                assert!(matches!(
                    users.get_or_token(&format!("flood-{n}"), TOKEN_TIME).unwrap(),
                    ReadOrFill::Miss(_)
                ));
            }
        }
        tidings_cache::Computed::Put(runs)
    });
    assert_eq!((stored.unwrap(), runs), (Some(1), 1));
    fill(&users, "after", 1);
}
