//! Listeners: subscriptions that call a closure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tidings_cache::{Cache, EventKind, Item};

use crate::common::{Node, fill, key};

#[tokio::test]
async fn a_listener_hears_every_event_in_order() {
    let node = Node::new("a");
    let users = node.users();
    let last = Arc::new(AtomicU64::new(0));
    let seen = last.clone();
    let listener = users.subscribe().listen(move |item| {
        let Item::Event(event) = item else { panic!("lagged") };
        let sequence = event.position.unwrap().1;
        assert_eq!(seen.swap(sequence, Ordering::SeqCst) + 1, sequence);
    });
    let listener = listener.unwrap();
    (0..100).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
    until(|| last.load(Ordering::SeqCst) == 100).await;
    users.write().without(listener.id()).insert(key("k"), 1).unwrap();
    users.insert(key("k"), 1).unwrap();
    until(|| users.counts().panics == 1).await;
    assert_eq!(last.load(Ordering::SeqCst), 102, "its own change was left out");
}

#[tokio::test]
async fn a_listener_that_panics_is_counted_and_hears_the_next_event() {
    let node = Node::new("a");
    let users = node.users();
    let heard = Arc::new(AtomicUsize::new(0));
    let counting = heard.clone();
    let listener = users.subscribe().listen(move |_| {
        assert_ne!(counting.fetch_add(1, Ordering::SeqCst) % 2, 0, "every second event is too much");
    });
    let _listener = listener.unwrap();
    for n in 0..10 {
        users.insert(key("k"), n).unwrap();
        assert_eq!(users.get(&key("k")), Some(n));
    }
    until(|| heard.load(Ordering::SeqCst) == 10).await;
    assert_eq!((users.counts().panics, users.erased().subscribers()), (5, 1));
}

#[tokio::test]
async fn a_listener_may_change_caches_its_own_too() {
    let node = Node::new("a");
    let users = node.users();
    let profiles: Cache<String, u64> = node.cache("profiles").open().unwrap();
    fill(&profiles, "profile:k", 1);
    let (own, derived) = (users.clone(), profiles.clone());
    let listener = users.subscribe().kinds([EventKind::Deleted]).listen(move |item| {
        let Item::Event(event) = item else { panic!("lagged") };
        let key = event.key().unwrap();
        derived.remove(&format!("profile:{key}")).unwrap();
        own.insert(format!("last:{key}"), 1).unwrap();
    });
    let _listener = listener.unwrap();
    users.remove(&key("k")).unwrap();
    until(|| users.contains(&key("last:k"))).await;
    assert_eq!((profiles.get(&key("profile:k")), users.counts().panics), (None, 0));
}

#[tokio::test]
async fn dropping_a_listener_unsubscribes_it() {
    let node = Node::new("a");
    let users = node.users();
    let listener = users.subscribe().listen(|_| {}).unwrap();
    let other = users.subscribe().listen(|_| {}).unwrap();
    drop(listener);
    until(|| users.erased().subscribers() == 1).await;
    drop(other);
    until(|| users.erased().subscribers() == 0).await;
}

#[tokio::test]
async fn closing_the_node_waits_for_its_listeners() {
    let node = Node::new("a");
    let users = node.users();
    let heard = Arc::new(AtomicUsize::new(0));
    let counting = heard.clone();
    let count = move |_| {
        counting.fetch_add(1, Ordering::SeqCst);
    };
    let _listener = users.subscribe().listen(count).unwrap();
    (0..100).for_each(|n| drop(users.insert(key("k"), n).unwrap()));
    node.domain.close().await;
    assert_eq!(heard.load(Ordering::SeqCst), 100, "what had been told before the end is heard");
    assert_eq!(Arc::strong_count(&heard), 1);
}

/// Lets other tasks run until `holds`, for at most a minute.
async fn until(mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in a minute");
        tokio::task::yield_now().await;
    }
}
