//! Loads that read a replica of the system of record, which lags.

use std::time::Duration;

use futures_util::poll;
use tidings_cache::{Cache, OpenError, ReadOrFill, TOKEN_TIME};
use tidings_proto::freshness::Published;
use tidings_proto::id::SlotSet;
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use crate::common::{MAX_STALENESS, Node, Wire, assert_share_a_load, key};

type Users = Cache<String, u64>;

const LAG: Duration = Duration::from_millis(500);

/// What a coarse clock may be behind is added to the lag.
const AFTER: Duration = Duration::from_millis(511);

fn lagging(node: &Node) -> Users {
    node.cache("users").replica_lag(LAG).open().unwrap()
}

async fn load(users: &Users, name: &str) -> u64 {
    users.get_or_load(&key(name), || async { Ok::<_, ()>(1) }).await.unwrap()
}

#[tokio::test]
async fn a_load_too_soon_after_a_change_is_returned_and_not_kept() {
    let changes: [fn(&Users, &Node); 6] = [
        |users, _| drop(users.remove(&key("k")).unwrap()),
        |users, _| drop(users.write().remove_many([key("k")]).unwrap()),
        |users, _| drop(users.clear().unwrap()),
        |_, node| node.domain.fence(SlotSet::ALL),
        |users, _| {
            users.insert(key("k"), 9).unwrap();
            users.take(&key("k")).unwrap();
        },
        |_, node| {
            let other = Node::new("b");
            let elsewhere = other.users();
            let mut wire = Wire::new([&other, node]);
            elsewhere.remove(&key("k")).unwrap();
            wire.carry();
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let node = Node::new("a");
        let users = lagging(&node);
        change(&users, &node);
        node.clock.advance(LAG);
        assert_eq!((load(&users, "k").await, users.get(&key("k"))), (1, None), "change {index}");
        assert_eq!(users.counts().fence_rejects, 1);
        node.clock.advance(AFTER - LAG);
        assert_eq!((load(&users, "k").await, users.get(&key("k"))), (1, Some(1)), "change {index}");
        assert_eq!(users.erased().flights(), 0);
    }
}

#[tokio::test]
async fn a_load_that_began_too_soon_is_not_kept_however_long_it_takes() {
    let node = Node::new("a");
    let users = lagging(&node);
    users.remove(&key("k")).unwrap();
    node.clock.advance(LAG / 2);
    let k = key("k");
    let (deliver, source) = oneshot::channel();
    let mut slow = std::pin::pin!(users.get_or_load(&k, || source));
    assert!(poll!(slow.as_mut()).is_pending());
    // Other changes, so that what is out of date may be forgotten.
    for n in 0..100 {
        node.clock.advance(LAG);
        users.remove(&key(&format!("other {n}"))).unwrap();
    }
    deliver.send(1).unwrap();
    assert_eq!((slow.await.unwrap(), users.get(&k)), (1, None));
}

#[tokio::test]
async fn one_loader_runs_also_while_nothing_may_be_kept() {
    let node = Node::new("a");
    let users: Users = node.cache("users").replica_lag(2 * MAX_STALENESS).open().unwrap();
    users.remove(&key("k")).unwrap();
    // Also in doubt, where nothing is joined that began too long ago.
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    assert_share_a_load(&users).await;
}

#[tokio::test]
async fn keys_that_did_not_change_are_kept() {
    let node = Node::new("a");
    let users = lagging(&node);
    users.remove(&key("k")).unwrap();
    load(&users, "m").await;
    assert_eq!(users.get(&key("m")), Some(1));
}

#[test]
fn a_token_given_too_soon_after_a_change_fills_nothing() {
    let node = Node::new("a");
    let users = lagging(&node);
    let fill = || match users.get_or_token(&key("k"), TOKEN_TIME).unwrap() {
        ReadOrFill::Miss(token) => users.fill(&key("k"), 1, token, None).unwrap(),
        ReadOrFill::Hit(value) => panic!("{value}"),
    };
    users.remove(&key("k")).unwrap();
    assert!(!fill());
    node.clock.advance(AFTER);
    assert!(fill());
}

#[tokio::test]
async fn what_was_loaded_counts_as_older_by_the_lag() {
    let node = Node::new("a");
    let users = lagging(&node);
    load(&users, "k").await;
    assert_eq!(users.peek(&key("k")), Some((1, LAG)));
    node.domain.publish(Published { fresh_until: Tick::NEVER, floor: Tick::NEVER });
    node.clock.advance(MAX_STALENESS - LAG);
    assert_eq!(users.get(&key("k")), None, "in doubt it is too old");
    users.insert(key("m"), 1).unwrap();
    node.clock.advance(MAX_STALENESS - LAG);
    assert_eq!(users.get(&key("m")), Some(1), "what was not loaded has no lag");
}

#[tokio::test]
async fn a_floor_excludes_loads_that_may_lack_what_it_stands_for() {
    let node = Node::new("a");
    let users = lagging(&node);
    let floor = node.clock.now();
    node.clock.advance(LAG);
    load(&users, "soon").await;
    node.clock.advance(Duration::from_millis(1));
    load(&users, "later").await;
    node.domain.publish(Published { fresh_until: Tick::FOREVER, floor });
    assert_eq!((users.get(&key("soon")), users.get(&key("later"))), (None, Some(1)));
}

#[test]
fn a_lag_beyond_all_reason_is_refused() {
    let lag = Duration::from_secs(25 * 60 * 60);
    let refused = Node::new("a").cache::<String, u64>("users").replica_lag(lag).open().unwrap_err();
    assert_eq!(refused, OpenError::ReplicaLag(lag));
}
