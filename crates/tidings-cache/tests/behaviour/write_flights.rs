//! Writes that are begun and ended by hand, and what becomes of those that are not ended.

use std::time::Duration;

use futures_util::{FutureExt, poll};
use tidings_cache::{Cache, Computed, WriteError};
use tokio::sync::oneshot;

use crate::common::{Node, Wire, key};

/// Longer than the default write horizon, with the clock's lag.
const AFTER: Duration = Duration::from_millis(5_011);

async fn load(cache: &Cache<String, u64>, name: &str, value: u64) -> u64 {
    cache.get_or_load(&key(name), || async { Ok::<_, ()>(value) }).await.unwrap()
}

/// Whether what is loaded now is kept.
async fn keeps(cache: &Cache<String, u64>, name: &str) -> bool {
    load(cache, name, 1).await;
    cache.contains(&key(name))
}

#[tokio::test(start_paused = true)]
async fn a_leaving_node_waits_for_a_write_that_was_begun_and_refuses_another() {
    let node = Node::new("a");
    let (users, k) = (node.users(), key("k"));
    let flight = users.begin_write(&k).unwrap();
    node.domain.leave();
    assert!(matches!(users.begin_write(&k), Err(WriteError::Leaving)), "its write must not run");
    let mut settled = std::pin::pin!(node.domain.writes_settled());
    assert!(poll!(settled.as_mut()).is_pending());
    flight.insert_versioned(8, 8).expect("what was begun may end");
    assert!(poll!(settled.as_mut()).is_ready());
    assert_eq!((users.get(&k), node.logged()), (Some(8), 1));
}

#[tokio::test]
async fn a_write_that_is_dropped_counts_as_one_that_may_still_land() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    let k = key("k");
    load(&on_a, "k", 7).await;
    load(&on_b, "k", 7).await;
    drop(on_a.begin_write(&k).unwrap());
    wire.carry();
    assert_eq!((on_a.get(&k), on_b.get(&k)), (None, None));
    assert_eq!((keeps(&on_a, "k").await, keeps(&on_b, "k").await), (false, false));
    a.clock.advance(AFTER);
    b.clock.advance(AFTER);
    assert_eq!((keeps(&on_a, "k").await, keeps(&on_b, "k").await), (true, true));
}

#[tokio::test]
async fn a_write_that_is_abandoned_evicts_nothing() {
    let node = Node::new("a");
    let (users, k) = (node.users(), key("k"));
    load(&users, "k", 7).await;
    users.begin_write(&k).unwrap().abandon();
    assert_eq!((users.get(&k), node.logged(), users.counts().uncertain), (Some(7), 0, 0));
}

#[tokio::test]
async fn a_write_whose_cache_was_closed_meanwhile_evicts_at_peers() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let (on_a, on_b) = (a.users(), b.users());
    let mut wire = Wire::new([&a, &b]);
    let (made, failed) = (key("made"), key("failed"));
    for name in ["made", "failed"] {
        load(&on_b, name, 7).await;
    }
    let (ends, fails) = (on_a.begin_write(&made).unwrap(), on_a.begin_write(&failed).unwrap());
    on_a.close();
    assert!(matches!(ends.insert_versioned(8, 8), Err(WriteError::Closed)));
    drop(fails);
    wire.carry();
    assert_eq!((on_b.get(&made), on_b.get(&failed)), (None, None));
    assert_eq!((keeps(&on_b, "made").await, keeps(&on_b, "failed").await), (true, false));
}

#[tokio::test]
async fn what_follows_from_a_change_that_nobody_can_name_is_as_uncertain_as_its_cause() {
    let node = Node::new("a");
    let users = node.users();
    let open = |name: &str| node.cache::<String, u64>(name).open().unwrap();
    let (profiles, pages) = (open("profiles"), open("pages"));
    users.derive(&profiles, |_: &String| -> Vec<String> { panic!("no name for it") }).unwrap();
    profiles.derive(&pages, |id: &String| [id.clone()]).unwrap();
    drop(users.begin_write(&key("k")).unwrap());
    assert!(!keeps(&profiles, "k").await);
    assert!(!keeps(&pages, "k").await, "the write may land after this load");
    node.clock.advance(AFTER);
    assert!(keeps(&pages, "k").await);
}

#[tokio::test]
async fn a_value_that_is_not_kept_is_not_said_to_be() {
    let node = Node::new("a");
    let (users, k) = (node.users(), key("k"));
    drop(users.begin_write(&k).unwrap());
    let rejects = users.counts().fence_rejects;
    assert!(!users.insert_if_absent(k.clone(), 1).unwrap());
    assert_eq!(users.compute(&k, |_| Computed::Put(2)).unwrap(), None);
    users.insert(k.clone(), 3).unwrap();
    users.write().insert_many([(k.clone(), 4)]).unwrap();
    assert_eq!(users.counts().fence_rejects - rejects, 4);
    node.clock.advance(AFTER);
    assert!(users.insert_if_absent(k.clone(), 1).unwrap());
    assert!(users.replace(k.clone(), 2).unwrap());
    assert_eq!(users.compute(&k, |_| Computed::Put(3)).unwrap(), Some(3));
}

#[tokio::test]
async fn a_load_from_within_a_window_is_not_joined_after_it() {
    let node = Node::new("a");
    let (users, k) = (node.users(), key("k"));
    drop(users.begin_write(&k).unwrap());
    let (deliver, source) = oneshot::channel::<u64>();
    let mut slow = std::pin::pin!(users.get_or_load(&k, || source));
    assert!(poll!(slow.as_mut()).is_pending());
    let joined = users.get_or_load(&k, || async { Ok::<_, oneshot::error::RecvError>(9) });
    let mut joined = std::pin::pin!(joined);
    assert!(poll!(joined.as_mut()).is_pending(), "within the window there is one load");
    node.clock.advance(AFTER);
    let another = load(&users, "k", 2).now_or_never();
    assert_eq!(another, Some(2), "the slow one may have read before the write landed");
    deliver.send(1).unwrap();
    assert_eq!((slow.await.unwrap(), joined.await.unwrap()), (1, 1));
    assert_eq!(users.get(&k), Some(2));
}
