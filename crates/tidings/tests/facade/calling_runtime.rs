//! A node that runs on the runtime which started it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tidings::testing::Cluster;
use tidings::{Cache, Node, StartError};
use tokio::time::Instant;

use crate::common::{BOUND, PATIENCE, fill, open, until};

async fn mixed() -> Cluster {
    let build = |index, builder: tidings::NodeBuilder| {
        let builder = builder.max_staleness(BOUND);
        if index == 0 { builder.on_calling_runtime() } else { builder }
    };
    Cluster::start_with(2, build).await.expect("the cluster forms")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_and_hears_and_leaves_as_any_other() {
    let cluster = mixed().await;
    let caches = open(&cluster);
    for (writer, other) in [(0, 1), (1, 0)] {
        fill(&caches, "k", 1).await;
        caches[writer].remove(&"k".to_owned()).unwrap();
        until("the other evicts", || !caches[other].contains(&"k".to_owned())).await;
    }
    let address = cluster[0].address();
    assert!(cluster[0].shutdown(PATIENCE).await, "drained, and said goodbye");
    std::net::UdpSocket::bind(address).expect("its port is free");
    assert!(!cluster[0].is_running());
    until("the other has no doubt", || cluster[1].doubts().is_empty()).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_runtime_that_is_kept_busy_makes_misses_and_no_stale_hit() {
    let cluster = mixed().await;
    let caches = open(&cluster);
    let key = "k".to_owned();
    let mut changes = 0;
    loop {
        let filled = Instant::now();
        fill(&caches, &key, 1).await;
        caches[1].insert(key.clone(), 2).unwrap();
        changes += 1;
        let (hits, first_look) = busy_reads(&caches[0], &key, Instant::now());
        until("the change arrives", || caches[0].counts().applied() == changes).await;
        if hits > 0 {
            break;
        }
        // Unless the machine stood still just before.
        assert!(first_look > filled + BOUND / 2, "it serves what it has as long as it may");
        caches[1].remove(&key).unwrap();
        changes += 1;
        until("the next change arrives", || caches[0].counts().applied() == changes).await;
    }
    fill(&caches[..1], &key, 2).await;
    until("no doubt is left, and what was filled is served", || caches[0].get(&key) == Some(2)).await;
    cluster.shutdown().await;
}

/// Reads for twice the bound, while nothing else runs on this thread, the node of the cache included: how many hits,
/// and when the first read was over.
fn busy_reads(cache: &Cache<String, u64>, key: &String, written: Instant) -> (u32, Instant) {
    let (mut hits, mut first_look) = (0, None);
    while written.elapsed() < 2 * BOUND {
        let began = written.elapsed();
        let hit = cache.get(key);
        assert!(hit.is_none() || began <= BOUND, "{hit:?} {began:?} after the write");
        hits += u32::from(hit.is_some());
        first_look.get_or_insert_with(Instant::now);
        std::thread::yield_now();
    }
    (hits, first_look.unwrap_or_else(Instant::now))
}

#[test]
fn without_a_runtime_it_does_not_start() {
    let start = pin!(Node::builder("shop").on_calling_runtime().start());
    let answer = start.poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(answer, Poll::Ready(Err(StartError::NoRuntime(_)))), "{answer:?}");
}
