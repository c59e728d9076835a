//! Whether nodes hold the same: what the auditor finds, and what it does not take for an error.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings::testing::Cluster;
use tidings::{AuditCounts, AuditError, Cache, Node, NodeBuilder, State};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{BOUND, PATIENCE, fill, for_a_while, member, patient, quick, until};
use crate::receipts::cut;

fn open_on(node: &Node) -> Cache<String, u64> {
    node.cache("numbers").audited().open().expect("the name is free")
}

/// Caches of all nodes, known to all others.
async fn open(cluster: &Cluster) -> Vec<Cache<String, u64>> {
    let caches = cluster.nodes().iter().map(open_on).collect();
    known(cluster).await;
    caches
}

async fn known(cluster: &Cluster) {
    let hosts = |node: &Node| node.members().iter().filter(|member| !member.caches.is_empty()).count();
    let all = cluster.nodes().len();
    until("the caches are known", || cluster.nodes().iter().all(|node| hosts(node) == all)).await;
}

/// What each node loads is its own.
async fn plant(caches: &[Cache<String, u64>], keys: impl Iterator<Item = usize>) -> BTreeSet<String> {
    let keys: BTreeSet<String> = keys.map(|key| format!("planted-{key}")).collect();
    for (node, cache) in caches.iter().enumerate() {
        for key in &keys {
            fill(std::slice::from_ref(cache), key, node as u64).await;
        }
    }
    keys
}

#[tokio::test]
async fn all_entries_that_differ_are_found_and_no_others() {
    let cluster = patient(2).await;
    let caches = open(&cluster).await;
    for key in 0..3_000 {
        fill(&caches, &format!("same-{key}"), key).await;
    }
    // Held by one of them only: no difference.
    fill(&caches[..1], "own", 1).await;
    let planted = plant(&caches, 0..10).await;
    for cache in &caches {
        cache.settle();
    }
    let report = cluster[0].audit().await.unwrap();
    let found: BTreeSet<String> = report.inconsistencies.iter().map(|it| it.key_text.clone()).collect();
    assert_eq!(found, planted, "{report:?}");
    let AuditCounts { entries, compared, held, lag, inconsistent, .. } = report.counts;
    assert_eq!((entries, compared, held, lag, inconsistent), (3_011, 3_011, 3_010, 0, 10));
    assert!(report.is_complete() && report.requested, "{report:?}");
    assert_eq!((report.peers[0].node.as_str(), report.peers[0].compared), ("n2", 3_011));
    let first = &report.inconsistencies[0];
    assert_eq!((&*first.cache, first.peer.as_str()), ("numbers", "n2"));
    assert!(first.first_seen_ms <= first.last_seen_ms);
    // 18 bytes an entry, and what the answers take.
    assert!((40_000..100_000).contains(&report.counts.sent), "{:?}", report.counts);

    let audited = cluster[0].audited();
    assert_eq!((audited.counts, audited.progress), (report.counts, None));
    assert_eq!(audited.requested.as_deref(), Some(&*report));
    assert_eq!((audited.inconsistencies.len(), cluster[1].audited().answered), (10, 3_011 + 10));

    // Found again they are the same, and repaired they are gone.
    for key in planted.iter().skip(1) {
        caches[0].remove(key).unwrap();
    }
    until("they are gone", || !caches[1].contains(planted.last().unwrap())).await;
    let again = cluster[0].audit().await.unwrap();
    assert_eq!(again.counts.inconsistent, 1, "{again:?}");
    let audited = cluster[0].audited();
    assert_eq!((audited.inconsistencies.len(), audited.counts.inconsistent), (10, 11));
    assert!(audited.inconsistencies[0].first_seen_ms < audited.inconsistencies[0].last_seen_ms);
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_difference_that_a_change_ends_is_lag() {
    // Longer than a machine may stand still between the two.
    let build = |_, builder: NodeBuilder| builder.write_horizon(Duration::from_secs(3));
    let cluster = Cluster::start_with(2, build).await.unwrap();
    let caches = open(&cluster).await;
    plant(&caches, 0..1).await;
    let run = cluster[0].begin_audit().unwrap();
    let suspects = || cluster[0].audited().progress.map(|progress| progress.suspects);
    until("the difference is seen", || suspects() == Some(1)).await;
    assert_eq!(cluster[0].begin_audit().unwrap_err(), AuditError::UnderWay);
    caches[1].remove(&"planted-0".to_owned()).unwrap();
    let report = run.report().await.unwrap();
    assert_eq!((report.counts.lag, report.counts.inconsistent), (1, 0), "{report:?}");
    assert!(report.is_complete(), "{report:?}");
    cluster.shutdown().await;
}

/// A system of record whose values are written by all nodes and read by all.
struct Traffic {
    truth: Mutex<HashMap<String, u64>>,
    next: AtomicU64,
    over: AtomicBool,
}

impl Traffic {
    /// Reads and changes keys of a node, of two at a time.
    async fn drive(self: Arc<Self>, cache: Cache<String, u64>, seed: u64) {
        while !self.over.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            // Few enough that most are held by all.
            let key = format!("k{}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed) % 500);
            if number.is_multiple_of(20) {
                let write = || async {
                    self.truth.lock().insert(key.clone(), number);
                    Ok::<_, ()>(number)
                };
                cache.write_through(&key, write).await.unwrap();
            } else {
                let load = || async { Ok::<_, ()>(self.truth.lock().get(&key).copied().unwrap_or(0)) };
                cache.get_or_load(&key, load).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn changes_under_way_are_never_taken_for_inconsistencies() {
    let build = |_, builder: NodeBuilder| builder.write_horizon(Duration::from_secs(2));
    let cluster = Cluster::start_with(3, build).await.unwrap();
    let caches = open(&cluster).await;
    let traffic =
        Arc::new(Traffic { truth: Mutex::default(), next: AtomicU64::new(0), over: AtomicBool::new(false) });
    let mut driving = JoinSet::new();
    for (seed, cache) in caches.iter().enumerate() {
        driving.spawn(traffic.clone().drive(cache.clone(), seed as u64));
    }
    let node = cluster[0].clone();
    let mut auditing = JoinSet::new();
    let all = traffic.clone();
    auditing.spawn(async move {
        let mut reports = Vec::new();
        while !all.over.load(Ordering::Relaxed) {
            reports.push(node.audit().await.unwrap());
        }
        reports
    });
    for_a_while(Duration::from_secs(10)).await;
    traffic.over.store(true, Ordering::Relaxed);
    while let Some(driven) = driving.join_next().await {
        driven.unwrap();
    }
    let reports = auditing.join_next().await.unwrap().unwrap();
    let sum = |count: fn(&AuditCounts) -> u64| reports.iter().map(|it| count(&it.counts)).sum::<u64>();
    assert_eq!(sum(|counts| counts.inconsistent), 0, "{reports:?}");
    assert!(sum(|counts| counts.held) > 0 && !reports.is_empty(), "{reports:?}");
    assert!(cluster[0].domain().events_published() > 100, "there was traffic");
    cluster.shutdown().await;
}

#[tokio::test]
async fn only_a_node_that_is_told_to_audits_by_itself() {
    let build = |index, builder: NodeBuilder| {
        let builder = builder.max_staleness(BOUND);
        if index == 0 { builder.audit(1_000) } else { builder }
    };
    let cluster = Cluster::start_with(2, build).await.unwrap();
    let caches = open(&cluster).await;
    plant(&caches, 0..10).await;
    until("all are found", || cluster[0].audited().inconsistencies.len() == 10).await;
    let [first, second] = [0, 1].map(|index: usize| cluster[index].audited());
    assert_eq!((first.keys_per_second, second.keys_per_second), (1_000, 0));
    assert!(first.counts.inconsistent >= 10, "{:?}", first.counts);
    assert!(first.requested.is_none(), "nobody asked");
    assert!(second.answered >= 10 && first.answered == 0, "{second:?}");
    assert_eq!(second.counts, AuditCounts::default());
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_compared_is_named() {
    let cluster = quick(2).await;
    let audited = open_on(&cluster[0]);
    let other = cluster[1].cache::<String, u64>("numbers").open().unwrap();
    known(&cluster).await;
    plant(&[audited, other], 0..3).await;
    let report = cluster[0].audit().await.unwrap();
    assert_eq!((report.counts.entries, report.counts.compared), (3, 0));
    assert_eq!(report.peers[0].gap.as_deref(), Some("a cache is not audited there"));
    assert!(!report.is_complete());
    let back = cluster[1].audit().await.unwrap();
    assert_eq!((back.counts.entries, back.peers.len()), (0, 0), "nothing of it is audited: {back:?}");
    assert!(back.is_complete());
    cluster.shutdown().await;
}

#[tokio::test]
async fn an_audit_that_has_nobody_to_compare_with_is_not_complete() {
    let cluster = quick(2).await;
    let cache = open_on(&cluster[0]);
    fill(std::slice::from_ref(&cache), "k", 1).await;
    let report = cluster[0].audit().await.unwrap();
    assert_eq!((report.of, report.counts, report.peers.len()), (1, AuditCounts::default(), 0));
    assert!(!report.is_complete(), "{report:?}");
    cache.clear().unwrap();
    let report = cluster[0].audit().await.unwrap();
    assert!(report.of == 0 && report.is_complete(), "there is nothing to compare: {report:?}");
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_member_that_cannot_be_asked_is_named() {
    let cluster = quick(3).await;
    open(&cluster).await;
    cut(&cluster, 0, 2).await;
    cut(&cluster, 1, 2).await;
    let is_live = |id| member(&cluster[0], id).is_some_and(|it| it.state == State::Live);
    until("nobody hears it", || !is_live("n3") && is_live("n2")).await;
    let deadline = Instant::now() + PATIENCE;
    // A machine that stands still may make the other one silent for a moment.
    let report = loop {
        let report = cluster[0].audit().await.unwrap();
        let gaps: Vec<_> = report.peers.iter().map(|it| (it.node.as_str(), it.gap.as_deref())).collect();
        if gaps == [("n3", Some("it was not there"))] {
            break report;
        }
        assert!(Instant::now() < deadline, "{report:?}");
    };
    assert!(!report.is_complete());
    cluster.shutdown().await;
}

#[tokio::test]
async fn values_of_different_schemas_are_not_compared() {
    let cluster = quick(2).await;
    let open = |node: &Node, schema| node.cache("numbers").audited().schema(schema).open().unwrap();
    let caches = [open(&cluster[0], 1), open(&cluster[1], 2)];
    known(&cluster).await;
    plant(&caches, 0..3).await;
    let report = cluster[0].audit().await.unwrap();
    assert_eq!(report.peers[0].gap.as_deref(), Some("a cache has another schema there"));
    assert_eq!(report.counts.compared, 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn an_audit_of_a_node_that_has_ended_ends() {
    let cluster = quick(1).await;
    let node = cluster[0].clone();
    let alone = node.audit().await.unwrap();
    assert_eq!((alone.counts, alone.peers.len()), (AuditCounts::default(), 0));
    cluster.shutdown().await;
    assert_eq!(node.audit().await.unwrap_err(), AuditError::Ended);
}
