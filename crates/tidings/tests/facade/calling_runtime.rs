//! A node that runs on the runtime which started it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tidings::testing::Cluster;
use tidings::{Node, StartError};
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
    fill(&caches, &key, 1).await;
    caches[1].insert(key.clone(), 2).unwrap();
    let written = Instant::now();
    let mut hits = 0;
    // Nothing else runs on this thread, the node of the first cache included.
    while written.elapsed() < 2 * BOUND {
        let began = written.elapsed();
        let hit = caches[0].get(&key);
        assert!(hit.is_none() || began <= BOUND, "{hit:?} {began:?} after the write");
        hits += u32::from(hit.is_some());
        std::thread::yield_now();
    }
    assert!(hits > 0, "it served what it had as long as it might");
    until("the change arrives", || caches[0].counts().applied() == 1).await;
    fill(&caches[..1], &key, 2).await;
    until("no doubt is left", || cluster[0].doubts().is_empty()).await;
    assert_eq!(caches[0].get(&key), Some(2));
    cluster.shutdown().await;
}

#[test]
fn without_a_runtime_it_does_not_start() {
    let start = pin!(Node::builder("shop").on_calling_runtime().start());
    let answer = start.poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(answer, Poll::Ready(Err(StartError::NoRuntime(_)))), "{answer:?}");
}
