//! Nodes that are configured differently, and what is not applied yet.

use std::time::Duration;

use tidings::testing::Cluster;
use tidings::{Cache, EventKind, Item, Lanes, Retention};

use crate::common::{BOUND, fill, member, open, until};

const LANES: [u8; 3] = [1, 4, 16];

async fn mixed(events: u64) -> Cluster {
    let build = |index: usize, builder: tidings::NodeBuilder| {
        let lanes = Lanes::new(LANES[index]).expect("a power of two");
        builder.lanes(lanes).max_staleness(BOUND).retention(Retention { events, ..Retention::default() })
    };
    Cluster::start_with(LANES.len(), build).await.expect("the cluster forms")
}

fn kept(cache: &Cache<String, u64>, count: u64) -> Vec<u64> {
    (0..count).filter(|n| cache.contains(&n.to_string())).collect()
}

#[tokio::test]
async fn nodes_with_different_numbers_of_lanes_evict_alike() {
    let cluster = mixed(Retention::default().events).await;
    let caches = open(&cluster);
    for n in 0..210 {
        fill(&caches, &n.to_string(), n).await;
    }
    for n in 0..90_u64 {
        caches[n as usize % 3].remove(&n.to_string()).unwrap();
    }
    let rest: Vec<u64> = (90..210).collect();
    until("exactly what was removed is gone everywhere", || {
        caches.iter().all(|cache| kept(cache, 210) == rest)
    })
    .await;
    for node in cluster.nodes() {
        let mut lanes: Vec<_> = node.members().iter().filter_map(|member| member.lanes).collect();
        lanes.sort_unstable();
        assert_eq!(lanes, LANES, "each knows how many the others have");
    }
    for (index, cache) in caches.iter().enumerate() {
        let mut heard: Vec<_> = caches
            .iter()
            .map(|cache| cache.subscribe().kinds([EventKind::Cleared]).start().unwrap())
            .collect();
        fill(&caches, "again", 1).await;
        cache.clear().unwrap();
        for heard in &mut heard {
            let item = tokio::time::timeout(crate::common::PATIENCE, heard.next()).await.expect("in time");
            assert!(matches!(item, Some(Item::Event(_))), "node {index}: {item:?}");
        }
        until("all are empty", || caches.iter().all(|cache| !cache.contains(&"again".to_owned()))).await;
        caches[index].insert("after".to_owned(), 1).unwrap();
        // What is told next comes after every lane's copy of the clear.
        let (first, others) = heard.split_first_mut().expect("three subscribers");
        for heard in std::iter::once(first).chain(others) {
            let more = tokio::time::timeout(Duration::from_millis(100), heard.next()).await;
            assert!(more.is_err(), "told twice: {more:?}");
        }
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_reset_of_many_lanes_fences_all_slots_of_a_node_with_one() {
    let cluster = mixed(64).await;
    let caches = open(&cluster);
    let [one, _, sixteen] = cluster.nodes() else { unreachable!("three were started") };
    for n in 0..100 {
        fill(&caches[..1], &n.to_string(), n).await;
    }
    sixteen.set_denied(&["n1".to_owned()]);
    until("the link is down", || member(sixteen, "n1").is_none_or(|it| it.rtt.is_none())).await;
    for n in 0..20_000_u64 {
        caches[2].remove(&format!("other-{n}")).unwrap();
    }
    sixteen.set_denied(&[]);
    until("every lane was reset", || member(one, "n3").is_some_and(|it| it.resets == 16)).await;
    assert_eq!(kept(&caches[0], 100), [] as [u64; 0], "what was in doubt is fenced");
    fill(&caches, "new", 1).await;
    caches[2].remove(&"new".to_owned()).unwrap();
    until("events flow again", || !caches[0].contains(&"new".to_owned())).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_a_peer_has_not_applied_is_counted_until_it_has() {
    let cluster = Cluster::start_with(2, |_, builder| builder.max_staleness(BOUND)).await.unwrap();
    let caches = open(&cluster);
    let [first, second] = cluster.nodes() else { unreachable!("two were started") };
    let lag = || member(first, "n2").map(|it| it.lag_events);
    caches[0].remove(&"before".to_owned()).unwrap();
    until("all is acknowledged", || lag() == Some(0)).await;
    first.set_denied(&["n2".to_owned()]);
    until("the link is down", || member(first, "n2").is_none_or(|it| it.rtt.is_none())).await;
    for n in 0..100_u64 {
        caches[0].remove(&n.to_string()).unwrap();
    }
    until("what is not acknowledged is counted", || lag() == Some(100)).await;
    first.set_denied(&[]);
    until("it has caught up", || lag() == Some(0)).await;
    assert_eq!(member(second, "n1").map(|it| (it.applied, it.resets)), Some((101, 0)));
    cluster.shutdown().await;
}
