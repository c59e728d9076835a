//! What a service that embeds a node notices, on real QUIC.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, EventKind, Item};
use tokio::time::Instant;

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn open(cluster: &Cluster) -> Vec<Cache<String, u64>> {
    cluster.nodes().iter().map(|node| node.cache("numbers").open().unwrap()).collect()
}

#[tokio::test]
async fn a_change_on_one_node_evicts_the_copy_on_every_other() {
    let cluster = Cluster::start(3).await.unwrap();
    let caches = open(&cluster);
    let key = "answer".to_owned();
    for cache in &caches {
        cache.get_or_load(&key, || async { Ok::<_, ()>(41) }).await.unwrap();
    }
    assert!(caches.iter().all(|cache| cache.get(&key) == Some(41)));
    caches[0].insert(key.clone(), 42).unwrap();
    assert_eq!(caches[0].get(&key), Some(42), "a writer reads its write");
    until("the others evict", || caches[1..].iter().all(|cache| !cache.contains(&key))).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn fills_are_silent() {
    let cluster = Cluster::start(2).await.unwrap();
    let caches = open(&cluster);
    for n in 0..100_u64 {
        for cache in &caches {
            cache.get_or_load(&n.to_string(), || async move { Ok::<_, ()>(n) }).await.unwrap();
        }
    }
    assert!(cluster.nodes().iter().all(|node| node.domain().events_published() == 0));
    assert!((0..100_u64).all(|n| caches.iter().all(|cache| cache.get(&n.to_string()) == Some(n))));
    cluster.shutdown().await;
}

#[tokio::test]
async fn subscribers_on_other_nodes_hear_what_was_done() {
    let cluster = Cluster::start(2).await.unwrap();
    let caches = open(&cluster);
    let mut heard = caches[1].subscribe().kinds([EventKind::Inserted]).start().unwrap();
    caches[0].write().metadata("cause", "test").insert("k".to_owned(), 1).unwrap();
    let item = tokio::time::timeout(Duration::from_secs(5), heard.next()).await.unwrap();
    let Some(Item::Event(event)) = item else { panic!("{item:?}") };
    assert_eq!(event.key().map(String::as_str), Some("k"));
    assert_eq!(event.origin.node.as_str(), "n1");
    assert_eq!(event.metadata.first(), Some(&("cause".to_owned(), "test".to_owned())));
    cluster.shutdown().await;
}
