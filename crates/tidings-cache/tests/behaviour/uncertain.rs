//! A write of which nobody knows how it ended may still land: what begins before that is over is not stored.

use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use tidings_cache::{Cache, Clock, Computed, Domain, ReadOrFill, TOKEN_TIME};
use tidings_proto::codec::encode;
use tidings_proto::freshness::Bounds;
use tidings_proto::hash::{CacheId, slot_of};
use tidings_proto::id::{Incarnation, LaneId, Lanes, Origin, SlotSet};
use tidings_proto::log::ChangeLog;
use tokio::sync::oneshot;

use crate::common::{Node, Wire, key};

type Users = Cache<String, u64>;

/// The default.
const HORIZON: Duration = Duration::from_secs(5);

/// Longer than the window: the clock's lag is added to it.
const AFTER: Duration = Duration::from_millis(5_011);

async fn fail(users: &Users, name: &str) {
    users.write_through(&key(name), || async { Err::<u64, _>("nobody knows") }).await.unwrap_err();
}

async fn load(users: &Users, name: &str) -> u64 {
    users.get_or_load(&key(name), || async { Ok::<_, ()>(1) }).await.unwrap()
}

fn token_fills(users: &Users, name: &str) -> bool {
    match users.get_or_token(&key(name), TOKEN_TIME).unwrap() {
        ReadOrFill::Miss(token) => users.fill(&key(name), 1, token, None).unwrap(),
        ReadOrFill::Hit(value) => panic!("{value}"),
    }
}

/// Whether anything at all that begins now is kept, each kind by itself.
async fn kept(users: &Users, name: &str) -> [bool; 7] {
    let k = key(name);
    let was_kept = || {
        let kept = users.contains(&k);
        users.remove(&k).unwrap();
        kept
    };
    let loaded = (load(users, name).await, was_kept()).1;
    let filled = token_fills(users, name);
    assert_eq!(filled, was_kept());
    users.write_through(&k, || async { Ok::<_, ()>(2) }).await.unwrap();
    let written = was_kept();
    users.insert(k.clone(), 2).unwrap();
    let inserted = was_kept();
    users.write().insert_many([(k.clone(), 2)]).unwrap();
    let inserted_many = was_kept();
    users.compute(&k, |_| Computed::Put(3)).unwrap();
    let computed = was_kept();
    users
        .get_or_load_many(std::slice::from_ref(&k), async |keys| {
            Ok::<_, ()>(keys.into_iter().map(|key| (key, 4)))
        })
        .await
        .unwrap();
    [loaded, filled, written, inserted, inserted_many, computed, was_kept()]
}

#[tokio::test]
async fn nothing_that_begins_within_a_window_is_stored_and_all_that_begins_after_it_is() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    fail(&on_a, "k").await;
    a.clock.advance(HORIZON);
    assert_eq!(kept(&on_a, "k").await, [false; 7]);
    a.clock.advance(AFTER - HORIZON);
    assert_eq!(kept(&on_a, "k").await, [true; 7]);
    // The peer counts from when it is told.
    assert_eq!(kept(&on_b, "k").await, [true; 7]);
    b.clock.advance(HORIZON);
    wire.carry();
    b.clock.advance(HORIZON);
    assert_eq!(kept(&on_b, "k").await, [false; 7]);
    assert_eq!(kept(&on_b, "other").await, [true; 7]);
    b.clock.advance(AFTER - HORIZON);
    assert_eq!(kept(&on_b, "k").await, [true; 7]);
    assert_eq!((on_a.counts().uncertain, on_b.counts().uncertain), (1, 1));
}

#[tokio::test]
async fn what_began_within_a_window_is_not_stored_however_late_it_ends() {
    let node = Node::new("a");
    let users = node.users();
    let k = key("k");
    fail(&users, "k").await;
    node.clock.advance(HORIZON);
    let (deliver, source) = oneshot::channel::<u64>();
    let mut loading = std::pin::pin!(users.get_or_load(&k, || source));
    assert!(poll!(loading.as_mut()).is_pending());
    let (commit, committed) = oneshot::channel::<u64>();
    let mut writing = std::pin::pin!(users.write_through(&k, || committed));
    assert!(poll!(writing.as_mut()).is_pending());
    let ReadOrFill::Miss(token) = users.get_or_token(&k, Duration::from_secs(60)).unwrap() else { panic!() };
    // So long that the window is remembered no more.
    node.clock.advance(4 * HORIZON);
    users.settle();
    fail(&users, "other").await;
    deliver.send(1).unwrap();
    assert_eq!((loading.await.unwrap(), users.get(&k)), (1, None));
    assert!(!users.fill(&k, 1, token, None).unwrap());
    commit.send(2).unwrap();
    assert_eq!((writing.await.unwrap().0, users.get(&k)), (2, None));
    // A decision, too.
    fail(&users, "k").await;
    users
        .compute(&k, |_| {
            node.clock.advance(4 * HORIZON);
            users.settle();
            Computed::Put(3)
        })
        .unwrap();
    assert_eq!(users.get(&k), None);
    assert_eq!(users.erased().flights(), 0);
}

#[tokio::test]
async fn a_cancelled_write_opens_a_window_and_one_that_ended_well_does_not_end_it() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let k = key("k");
    let (_never, source) = oneshot::channel::<u64>();
    let mut writing = Box::pin(on_a.write_through(&k, || source));
    assert!(poll!(writing.as_mut()).is_pending());
    drop(writing);
    on_a.write_through(&k, || async { Ok::<_, ()>(2) }).await.unwrap();
    Wire::new([&a, &b]).carry();
    assert_eq!((on_a.get(&k), load(&on_b, "k").await, on_b.get(&k)), (None, 1, None));
}

#[tokio::test]
async fn what_was_missed_may_have_been_of_an_uncertain_write() {
    let node = Node::new("a");
    let users = node.users();
    let lanes = Lanes::default();
    let lane = lanes.lane(0).unwrap();
    let of = |lane: LaneId| {
        (0..)
            .map(|n| format!("key-{n}"))
            .find(|name| lanes.lane_of(slot_of(CacheId::of_name("users"), &encode(name).unwrap())) == lane)
            .unwrap()
    };
    let (missed, other) = (of(lane), of(lanes.lane(1).unwrap()));
    users.insert(missed.clone(), 1).unwrap();
    node.domain.fence_uncertain(lanes.slots_of(lane));
    assert_eq!(users.get(&missed), None);
    node.clock.advance(HORIZON);
    assert_eq!((kept(&users, &missed).await, kept(&users, &other).await), ([false; 7], [true; 7]));
    node.clock.advance(AFTER - HORIZON);
    assert_eq!(kept(&users, &missed).await, [true; 7]);
    // A fence of this node's own is certain.
    node.domain.fence(SlotSet::ALL);
    assert_eq!(kept(&users, &missed).await, [true; 7]);
}

#[tokio::test]
async fn what_follows_from_an_uncertain_key_is_uncertain_too() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, _on_b) = (a.users(), b.users());
    let open = |node: &Node, name: &str| node.cache::<String, u64>(name).open().unwrap();
    let [profiles, everything] = ["profiles", "everything"].map(|name| (open(&a, name), open(&b, name)));
    on_a.derive(&profiles.0, |id| [format!("profile of {id}")]).unwrap();
    on_a.derive(&everything.0, |_| -> [String; 1] { panic!("nobody knows what follows") }).unwrap();
    fail(&on_a, "k").await;
    Wire::new([&a, &b]).carry();
    for (at, of) in [(&a, &profiles.0), (&b, &profiles.1)] {
        assert_eq!(kept(of, "profile of k").await, [false; 7], "{:?}", at.origin);
        assert_eq!(kept(of, "profile of m").await, [true; 7]);
    }
    for of in [&everything.0, &everything.1] {
        assert_eq!(kept(of, "anything").await, [false; 7]);
    }
}

#[tokio::test]
async fn a_replica_that_lags_shows_a_late_write_later_still() {
    let node = Node::new("a");
    let users: Users = node.cache("users").replica_lag(HORIZON).open().unwrap();
    fail(&users, "k").await;
    node.clock.advance(2 * HORIZON);
    assert_eq!((load(&users, "k").await, users.get(&key("k"))), (1, None));
    node.clock.advance(AFTER - HORIZON);
    assert_eq!((load(&users, "k").await, users.get(&key("k"))), (1, Some(1)));
}

#[tokio::test]
async fn a_node_that_leaves_waits_until_its_last_window_is_over() {
    const SHORT: Duration = Duration::from_millis(300);
    let origin = Origin { node: "a".parse().unwrap(), incarnation: Incarnation(1) };
    let bounds = Bounds { write_horizon: SHORT, ..Bounds::default() };
    let log = Arc::new(ChangeLog::new(Default::default(), Default::default()));
    let domain = Domain::bounded(Clock::system(), log, origin, bounds);
    let users: Users = tidings_cache::CacheBuilder::new(&domain, "users").open().unwrap();
    users.write_through(&key("k"), || async { Ok::<_, ()>(2) }).await.unwrap();
    assert!(poll!(std::pin::pin!(domain.writes_settled())).is_ready(), "it ended well");
    let k = key("k");
    let (_never, source) = oneshot::channel::<u64>();
    let mut writing = Box::pin(users.write_through(&k, || source));
    assert!(poll!(writing.as_mut()).is_pending());
    domain.leave();
    let mut settled = std::pin::pin!(domain.writes_settled());
    assert!(poll!(settled.as_mut()).is_pending());
    let before = domain.clock().now();
    drop(writing);
    settled.await;
    let waited = domain.clock().now().since(before);
    assert!(waited >= SHORT && waited < HORIZON, "{waited:?}");
}
