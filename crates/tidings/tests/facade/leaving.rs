//! How nodes leave, and what they leave behind.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Node, State};
use tokio::time::Instant;

use crate::common::{PATIENCE, for_a_while, joiner, member, open, open_on, quick, until};

#[tokio::test]
async fn no_goodbye_is_said_before_those_who_were_only_named_have_acknowledged() {
    let cluster = quick(2).await;
    let [first, cut_off] = cluster.nodes() else { unreachable!("two were started") };
    // The second one is cut off from everybody, and keeps what it has.
    cut_off.set_denied(&["n1".to_owned(), "late".to_owned()]);
    first.set_denied(&["n2".to_owned()]);
    let late = joiner(cluster[0].cluster(), "late", &[first]).start().await.unwrap();
    until("it is told of the one that is cut off", || {
        late.doubts().iter().any(|doubt| format!("{doubt:?}").contains("n2"))
    })
    .await;
    until("the first one hears it", || member(first, "late").is_some_and(|late| late.synced())).await;
    open_on(&late).insert("changed".to_owned(), 2).unwrap();
    assert!(!late.shutdown(Duration::from_secs(2)).await, "nobody told the one that is cut off");
    until("its end is noticed", || member(first, "late").is_some_and(|late| late.state == State::Lost)).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn who_has_changed_nothing_need_not_be_acknowledged() {
    let cluster = quick(2).await;
    let [first, cut_off] = cluster.nodes() else { unreachable!("two were started") };
    cut_off.set_denied(&["n1".to_owned()]);
    until("the link is down", || first.members().iter().all(|member| member.rtt.is_none())).await;
    assert!(first.shutdown(PATIENCE).await);
    cluster.shutdown().await;
}

#[tokio::test]
async fn nodes_that_leave_at_once_wait_for_each_other_and_no_longer() {
    let cluster = Cluster::start(3).await.unwrap();
    let caches = open(&cluster);
    for n in 0..300_u64 {
        caches[n as usize % 3].insert(n.to_string(), n).unwrap();
    }
    let begun = Instant::now();
    let leave = |node: &Node| {
        let node = node.clone();
        async move { node.shutdown(PATIENCE).await }
    };
    let [first, second, third] = cluster.nodes() else { unreachable!("three were started") };
    let left = tokio::join!(leave(first), leave(second), leave(third));
    assert_eq!(left, (true, true, true));
    assert!(begun.elapsed() < PATIENCE / 2, "somebody waited in vain: {:?}", begun.elapsed());
}

#[tokio::test]
async fn who_was_forgotten_and_is_there_after_all_still_counts() {
    let cluster = quick(2).await;
    let caches = open(&cluster);
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    assert!(!second.forget(&first.origin().node), "who is heard cannot be forgotten");
    first.set_denied(&["n2".to_owned()]);
    until("it is lost", || member(second, "n1").is_some_and(|it| it.state == State::Lost)).await;
    assert!(second.forget(&first.origin().node));
    first.set_denied(&[]);
    until("it is heard again, and doubted no more", || {
        member(second, "n1").is_some_and(|it| it.synced()) && second.doubts().is_empty()
    })
    .await;
    crate::common::fill(&caches, "k", 1).await;
    until("it is cached", || caches[1].contains(&"k".to_owned())).await;
    first.set_denied(&["n2".to_owned()]);
    until("a cut is doubt", || !second.doubts().is_empty()).await;
    until("and ages entries out", || !caches[1].contains(&"k".to_owned())).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_restarts_on_its_port_in_the_same_process() {
    let cluster = quick(1).await;
    let start = || joiner(cluster[0].cluster(), "again", &[&cluster[0]]);
    let first = start().start().await.unwrap();
    let address = first.address();
    first.ready(PATIENCE).await.unwrap();
    assert!(first.shutdown(PATIENCE).await);
    let second = start().listen(address).start().await.expect("the port is free, though a handle is left");
    assert!(second.origin().incarnation > first.origin().incarnation);
    second.ready(PATIENCE).await.unwrap();
    assert_eq!(first.transport_stats().links_opened.get(), first.transport_stats().links_closed.get());
    drop(second);
    let deadline = Instant::now() + PATIENCE;
    // Nobody waits for a node that is dropped.
    let third = loop {
        match start().listen(address).start().await {
            Ok(node) => break node,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        for_a_while(Duration::from_millis(20)).await;
    };
    third.ready(PATIENCE).await.unwrap();
    third.shutdown(PATIENCE).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_notices_expiry_by_itself() {
    let cluster = quick(1).await;
    let cache = cluster[0].cache::<String, u64>("short").eviction_events(true).open().unwrap();
    let mut heard = cache.subscribe().kinds([tidings::EventKind::Expired]).start().unwrap();
    cache.write().ttl(Duration::from_millis(50)).insert("short".to_owned(), 1).unwrap();
    let item = tokio::time::timeout(PATIENCE, heard.next()).await.expect("in time");
    let Some(tidings::Item::Event(event)) = item else { panic!("{item:?}") };
    assert_eq!(event.key().map(String::as_str), Some("short"));
    cluster.shutdown().await;
}
