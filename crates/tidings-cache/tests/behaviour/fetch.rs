//! Loads that may go on without their caller: fail-safe, timeouts, eager refresh.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::poll;
use tidings_cache::{Cache, CacheBuilder, Clock, Domain, Fetched, LoadError, OpenError};
use tidings_proto::freshness::Published;
use tidings_proto::id::SlotSet;
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use crate::common::{MAX_STALENESS, Node, Wire, eventually, key};

type Users = Cache<String, u64>;
type Result<T> = std::result::Result<Fetched<T>, LoadError<&'static str>>;

const MINUTE: Duration = Duration::from_secs(60);
const SOFT: Duration = Duration::from_millis(100);
const HARD: Duration = Duration::from_secs(5);

fn builder(node: &Node) -> CacheBuilder<String, u64> {
    node.cache("users").time_to_live(MINUTE).fail_safe(10 * MINUTE)
}

fn safe(node: &Node) -> Users {
    builder(node).open().unwrap()
}

/// A cache whose key `k` holds 1, and has just expired.
fn expired(node: &Node, users: &Users) {
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MINUTE);
}

async fn failing(users: &Users) -> Result<u64> {
    users.fetch(&key("k"), || async { Err("the source is down") }).await
}

async fn loading(users: &Users, value: u64) -> Result<u64> {
    users.fetch(&key("k"), move || async move { Ok(value) }).await
}

/// Loads what the channel delivers; the source is gone without it.
async fn waiting(users: &Users, source: oneshot::Receiver<u64>) -> Result<u64> {
    users.fetch(&key("k"), || async { source.await.map_err(|_| "gone") }).await
}

const STALE: Fetched<u64> = Fetched { value: 1, stale: true };

fn fresh(value: u64) -> Fetched<u64> {
    Fetched { value, stale: false }
}

#[tokio::test]
async fn what_expired_is_served_and_says_so_when_the_loader_fails() {
    let node = Node::new("a");
    let users = safe(&node);
    expired(&node, &users);
    assert_eq!((users.get(&key("k")), users.contains(&key("k"))), (None, false), "only a fetch serves it");
    assert_eq!(failing(&users).await.unwrap(), STALE);
    let counts = users.counts();
    assert_eq!((counts.stale, counts.misses, counts.load_failures), (1, 1, 1), "the miss is that of the get");
    node.clock.advance(MINUTE);
    assert_eq!(loading(&users, 2).await.unwrap(), fresh(2));
    assert_eq!(users.get(&key("k")), Some(2));
}

#[tokio::test]
async fn nothing_is_served_beyond_the_fail_safe_time_or_without_one() {
    let node = Node::new("a");
    let users = safe(&node);
    expired(&node, &users);
    node.clock.advance(10 * MINUTE - Duration::from_nanos(1));
    assert_eq!(failing(&users).await.unwrap(), STALE);
    node.clock.advance(Duration::from_nanos(1));
    assert!(matches!(failing(&users).await, Err(LoadError::Loader(_))));
    let plain: Users = node.cache("plain").time_to_live(MINUTE).open().unwrap();
    expired(&node, &plain);
    assert!(matches!(failing(&plain).await, Err(LoadError::Loader(_))));
}

/// Everything that makes a copy untrue.
fn changes() -> [fn(&Users, &Node); 7] {
    [
        |users, _| drop(users.remove(&key("k")).unwrap()),
        |users, _| drop(users.write().remove_many([key("k")]).unwrap()),
        |users, _| assert_eq!(users.take(&key("k")).unwrap(), None),
        |users, _| drop(users.clear().unwrap()),
        |_, node| node.domain.fence(SlotSet::ALL),
        |_, node| {
            let floor = node.clock.now();
            node.domain.publish(Published { fresh_until: Tick::FOREVER, floor });
        },
        |_, node| {
            let other = Node::new("b");
            let elsewhere = other.users();
            let mut wire = Wire::new([&other, node]);
            elsewhere.remove(&key("k")).unwrap();
            wire.carry();
        },
    ]
}

#[tokio::test]
async fn what_was_changed_or_fenced_is_never_served() {
    for (index, change) in changes().into_iter().enumerate() {
        // A take finds nothing, and changes nothing.
        let kept = index == 2;
        let node = Node::new("a");
        let users = safe(&node);
        expired(&node, &users);
        change(&users, &node);
        assert_eq!(failing(&users).await.is_ok(), kept, "change {index} before the load");

        let node = Node::new("a");
        let users = safe(&node);
        expired(&node, &users);
        let (deliver, source) = oneshot::channel();
        let mut load = std::pin::pin!(waiting(&users, source));
        assert!(poll!(load.as_mut()).is_pending());
        change(&users, &node);
        drop(deliver);
        assert_eq!(load.await.is_ok(), kept, "change {index} during the load");

        let node = Node::new("a");
        let users = safe(&node);
        expired(&node, &users);
        assert_eq!(failing(&users).await.unwrap(), STALE);
        change(&users, &node);
        assert_eq!(failing(&users).await.is_ok(), kept, "change {index} after the load");
    }
    let tried = changes().len() - 1;
    tidings_facts::note(
        "G11",
        format!("{tried} ways to remove what a fail-safe keeps, before, during and after a load: 0 served"),
    );
}

#[tokio::test]
async fn in_doubt_what_expired_is_served_no_longer_than_the_bound_allows() {
    let node = Node::new("a");
    let users: Users = node.cache("users").time_to_live(MAX_STALENESS / 3).fail_safe(MINUTE).open().unwrap();
    users.insert(key("k"), 1).unwrap();
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    node.clock.advance(MAX_STALENESS / 2);
    assert_eq!(failing(&users).await.unwrap(), STALE);
    node.clock.advance(MAX_STALENESS / 2);
    assert!(failing(&users).await.is_err());
    node.fresh_forever();
    assert_eq!(failing(&users).await.unwrap(), STALE, "the doubt is over, and nothing was missed");
}

#[tokio::test]
async fn a_source_that_fails_is_asked_once_per_pause_and_key() {
    let node = Node::new("a");
    let users = builder(&node).retry_after(MINUTE / 6).open().unwrap();
    expired(&node, &users);
    for round in 1..=3 {
        for _ in 0..100 {
            assert_eq!(failing(&users).await.unwrap(), STALE);
        }
        assert_eq!(users.counts().loads, round);
        node.clock.advance(MINUTE / 6);
    }
    let counts = users.counts();
    assert_eq!((counts.stale, counts.misses, counts.hits), (300, 0, 0));
    // What cannot be served is asked for every time.
    users.remove(&key("k")).unwrap();
    assert!(failing(&users).await.is_err() && failing(&users).await.is_err());
    assert_eq!(users.counts().loads, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_callers_of_a_source_that_fails_ask_it_once() {
    let node = Node::new("a");
    let users = safe(&node);
    expired(&node, &users);
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let users = users.clone();
        callers.spawn(async move {
            let load = || async {
                tokio::task::yield_now().await;
                Err::<u64, _>("the source is down")
            };
            users.fetch(&key("k"), load).await.unwrap()
        });
    }
    assert!(callers.join_all().await.into_iter().all(|fetched| fetched == STALE));
    assert_eq!((users.counts().loads, users.counts().stale), (1, 10_000));
}

#[tokio::test]
async fn entries_are_kept_by_every_kind_of_table_and_within_the_capacity() {
    let short = Duration::from_millis(20);
    for (own, watched) in [(false, false), (false, true), (true, false), (true, true)] {
        let domain = Domain::standalone();
        let mut described = CacheBuilder::new(&domain, "users").fail_safe(MINUTE).max_capacity(10);
        described = described.eviction_events(watched);
        if !own {
            described = described.time_to_live(short);
        }
        let users: Users = described.open().unwrap();
        users.write().ttl(short).insert(key("k"), 1).unwrap();
        let clock = Clock::system();
        let end = clock.now().after(10 * short);
        eventually("the time is over", || clock.now() > end);
        domain.housekeep();
        assert_eq!(failing(&users).await.unwrap(), STALE, "own time {own}, watched {watched}");
        (0..1_000).for_each(|n| drop(users.write().ttl(short).insert(n.to_string(), n).unwrap()));
        users.settle();
        assert!(users.erased().entries() <= 10, "{}", users.erased().entries());
    }
}

#[test]
fn memory_of_what_was_kept_is_reclaimed_afterwards() {
    let node = Node::new("a");
    let users: Users = node.cache("users").fail_safe(10 * MINUTE).open().unwrap();
    users.write().ttl(MINUTE).insert(key("k"), 1).unwrap();
    let entries = || {
        node.domain.housekeep();
        users.settle();
        users.erased().entries()
    };
    node.clock.advance(10 * MINUTE);
    assert_eq!(entries(), 1);
    node.clock.advance(2 * MINUTE);
    assert_eq!(entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_slow_load_is_not_waited_for_and_stores_when_it_is_done() {
    let node = Node::new("a");
    let users = builder(&node).soft_timeout(SOFT).open().unwrap();
    expired(&node, &users);
    let (deliver, source) = oneshot::channel();
    let began = tokio::time::Instant::now();
    assert_eq!(waiting(&users, source).await.unwrap(), STALE);
    assert_eq!((began.elapsed() >= SOFT, began.elapsed() < 2 * SOFT), (true, true), "{:?}", began.elapsed());
    node.clock.advance(SOFT);
    // Later callers join it, and do not wait for as long again.
    let began = tokio::time::Instant::now();
    assert_eq!(failing(&users).await.unwrap(), STALE);
    assert!(began.elapsed() < SOFT / 2, "{:?}", began.elapsed());
    deliver.send(2).unwrap();
    let stored = async {
        while users.get(&key("k")) != Some(2) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(MINUTE, stored).await.expect("the load goes on and stores");
    let counts = users.counts();
    assert_eq!((counts.loads, counts.loaded, counts.load_failures, counts.stale), (1, 1, 0, 2));
    assert_eq!(users.erased().flights(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_in_the_background_stores_nothing_that_a_change_has_overtaken() {
    for (index, change) in changes().into_iter().enumerate() {
        let node = Node::new("a");
        let users = builder(&node).soft_timeout(SOFT).open().unwrap();
        expired(&node, &users);
        let (deliver, source) = oneshot::channel();
        assert_eq!(waiting(&users, source).await.unwrap(), STALE);
        change(&users, &node);
        deliver.send(2).unwrap();
        let done = async {
            while users.counts().loaded == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(MINUTE, done).await.unwrap();
        assert_eq!(users.get(&key("k")), (index == 2).then_some(2), "change {index}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_beyond_the_hard_timeout_is_given_up_and_says_so() {
    let node = Node::new("a");
    let users = builder(&node).soft_timeout(SOFT).hard_timeout(HARD).open().unwrap();
    let (mut deliver, source) = oneshot::channel();
    let began = tokio::time::Instant::now();
    let (led, joined) = tokio::join!(waiting(&users, source), failing(&users));
    assert!(
        matches!((&led, &joined), (Err(LoadError::TimedOut), Err(LoadError::TimedOut))),
        "{led:?} {joined:?}"
    );
    assert!(began.elapsed() >= HARD && began.elapsed() < HARD + SOFT, "{:?}", began.elapsed());
    assert!(deliver.is_closed(), "its loader is dropped");
    deliver.closed().await;
    assert_eq!((users.erased().flights(), users.counts().load_failures), (0, 1));
    // In the background too.
    expired(&node, &users);
    let (mut deliver, source) = oneshot::channel();
    assert_eq!(waiting(&users, source).await.unwrap(), STALE);
    tokio::time::timeout(HARD, deliver.closed()).await.expect("it is given up in the background");
    assert_eq!(loading(&users, 2).await.unwrap(), STALE, "a source that hangs is left alone for a while");
    node.clock.advance(MINUTE);
    assert_eq!(loading(&users, 2).await.unwrap(), fresh(2));
}

#[tokio::test(start_paused = true)]
async fn a_caller_does_not_wait_beyond_the_hard_timeout_for_anothers_load() {
    let node = Node::new("a");
    let users = builder(&node).hard_timeout(HARD).open().unwrap();
    let k = key("k");
    let mut unlimited =
        std::pin::pin!(users.get_or_load(&k, std::future::pending::<std::result::Result<u64, ()>>));
    assert!(poll!(unlimited.as_mut()).is_pending());
    assert!(matches!(failing(&users).await, Err(LoadError::TimedOut)));
    expired(&node, &users);
    assert_eq!(loading(&users, 2).await.unwrap(), fresh(2));
}

#[tokio::test(start_paused = true)]
async fn closing_ends_and_joins_what_goes_on_in_the_background() {
    let node = Node::new("a");
    let users = builder(&node).soft_timeout(SOFT).open().unwrap();
    expired(&node, &users);
    let (deliver, source) = oneshot::channel();
    assert_eq!(waiting(&users, source).await.unwrap(), STALE);
    assert!(!deliver.is_closed());
    tokio::time::timeout(SOFT, node.domain.close()).await.expect("nothing is waited for");
    assert!(deliver.is_closed());
}

#[tokio::test(start_paused = true)]
async fn the_number_of_loads_in_the_background_is_bounded() {
    let node = Node::new("a");
    let users = builder(&node).soft_timeout(SOFT).open().unwrap();
    let names: Vec<_> = (0..1_100).map(|n| n.to_string()).collect();
    names.iter().for_each(|name| drop(users.insert(name.clone(), 1).unwrap()));
    node.clock.advance(MINUTE);
    let running = Arc::new(());
    let slow = |name| {
        let running = running.clone();
        users.fetch(name, move || async move {
            std::future::pending::<()>().await;
            drop(running);
            Ok::<u64, ()>(2)
        })
    };
    let fetched = futures_util::future::join_all(names.iter().map(slow)).await;
    assert!(fetched.into_iter().all(|fetched| fetched.unwrap() == STALE), "nobody waits");
    assert_eq!(Arc::strong_count(&running) - 1, 1_024);
    assert_eq!((users.erased().flights(), users.counts().loads), (1_024, 1_100));
}

fn eager(node: &Node) -> Users {
    node.cache("users").time_to_live(MINUTE).eager_refresh(0.8).open().unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let holding = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holding).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_hit_late_in_an_entrys_life_is_served_at_once_and_reloads_it() {
    let node = Node::new("a");
    let users = eager(&node);
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MINUTE * 8 / 10 - Duration::from_millis(1));
    assert_eq!((loading(&users, 2).await.unwrap(), users.counts().loads), (fresh(1), 0));
    node.clock.advance(Duration::from_millis(1));
    let (deliver, source) = oneshot::channel();
    assert_eq!(waiting(&users, source).await.unwrap(), fresh(1));
    assert_eq!(loading(&users, 3).await.unwrap(), fresh(1), "one reload is enough");
    deliver.send(2).unwrap();
    until("the reload stores", || users.get(&key("k")) == Some(2)).await;
    node.clock.advance(MINUTE / 2);
    assert_eq!(loading(&users, 4).await.unwrap(), fresh(2), "a new life has begun");
    assert_eq!((users.counts().loads, users.erased().flights()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ten_thousand_hits_late_in_an_entrys_life_reload_it_once() {
    let node = Node::new("a");
    let users = eager(&node);
    users.insert(key("k"), 1).unwrap();
    node.clock.advance(MINUTE * 9 / 10);
    let runs = Arc::new(AtomicUsize::new(0));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let (users, runs) = (users.clone(), runs.clone());
        callers.spawn(async move {
            let load = move || async move {
                runs.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok::<u64, ()>(1)
            };
            users.fetch(&key("k"), load).await.unwrap()
        });
    }
    assert!(callers.join_all().await.into_iter().all(|fetched| fetched == fresh(1)));
    until("the reload ends", || users.counts().loaded == 1).await;
    assert_eq!((runs.load(Ordering::SeqCst), users.counts().hits), (1, 10_000));
}

#[tokio::test]
async fn a_reload_stores_nothing_that_a_change_has_overtaken() {
    for (index, change) in changes().into_iter().enumerate().filter(|(index, _)| *index != 2) {
        let node = Node::new("a");
        let users = eager(&node);
        users.insert(key("k"), 1).unwrap();
        node.clock.advance(MINUTE * 9 / 10);
        let (deliver, source) = oneshot::channel();
        assert_eq!(waiting(&users, source).await.unwrap(), fresh(1));
        change(&users, &node);
        deliver.send(2).unwrap();
        until("the reload ends", || users.counts().loaded == 1).await;
        assert_eq!(users.get(&key("k")), None, "change {index}");
    }
}

#[tokio::test]
async fn a_reload_that_fails_or_panics_is_not_tried_again_at_once() {
    for panics in [false, true] {
        let node = Node::new("a");
        let users = eager(&node);
        users.insert(key("k"), 1).unwrap();
        node.clock.advance(MINUTE * 9 / 10);
        let k = key("k");
        let down = move || async move { if panics { panic!("no pool") } else { Err::<u64, _>("down") } };
        let fetch = || users.fetch(&k, down);
        for failures in 1..=2 {
            for _ in 0..10 {
                assert_eq!(fetch().await.unwrap(), fresh(1));
                until("the reload ends", || users.counts().load_failures == failures).await;
            }
            assert_eq!((users.counts().loads, users.erased().flights()), (failures, 0));
            node.clock.advance(Duration::from_secs(1));
        }
    }
}

#[test]
fn options_that_cannot_apply_are_refused() {
    let node = Node::new("a");
    let plain = || node.cache::<String, u64>("users");
    let refused = [
        ("eager_refresh", plain().eager_refresh(0.5)),
        ("eager_refresh", plain().time_to_live(MINUTE).eager_refresh(1.0)),
        ("eager_refresh", plain().time_to_live(MINUTE).eager_refresh(f64::NAN)),
        ("fail_safe", plain().fail_safe(Duration::ZERO)),
        ("hard_timeout", plain().hard_timeout(Duration::MAX)),
        ("soft_timeout", plain().soft_timeout(SOFT)),
        ("soft_timeout", plain().fail_safe(MINUTE).soft_timeout(HARD).hard_timeout(HARD)),
    ];
    for (expected, builder) in refused {
        match builder.open() {
            Err(OpenError::Option { option, .. }) => assert_eq!(option, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
