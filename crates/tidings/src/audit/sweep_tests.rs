use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tidings_cache::Cache;
use tidings_proto::ask::Declined;
use tidings_proto::audit::KEYS_MAX;
use tokio::time::Instant;
use tracing::Level;

use super::*;
use crate::asked::Answering;
use crate::audit::answer::Auditee;
use crate::builder::NodeBuilder;
use crate::logged;
use crate::node::Node;
use crate::testing::Cluster;

/// The bound of these clusters: entries count, though a machine stands still for two seconds.
const BOUND: Duration = Duration::from_secs(3);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Opens an audited cache on a node, which holds these keys with a value of its own.
async fn open(node: &Node, keys: usize, value: u64) -> Cache<String, u64> {
    let cache = node.cache::<String, u64>("numbers").audited().open().unwrap();
    for key in 0..keys {
        cache.get_or_load(&key.to_string(), || async { Ok::<_, ()>(value) }).await.unwrap();
    }
    cache
}

async fn hosts_are_known(node: &Node, hosts: usize) {
    let known = || node.members().iter().filter(|member| !member.caches.is_empty()).count() == hosts;
    until("the hosts are known", known).await;
}

async fn start(build: impl Fn(usize, NodeBuilder) -> NodeBuilder) -> Cluster {
    Cluster::start_with(2, |index, builder| build(index, builder.max_staleness(BOUND))).await.unwrap()
}

/// Answers as any node does, until it is told to do otherwise.
struct Odd {
    auditee: Auditee,
    /// Says that it is busy.
    busy: Arc<AtomicBool>,
    /// How often it was asked to look again, which it does not answer.
    looks: Arc<AtomicUsize>,
}

impl Answering for Odd {
    fn answer(&self, peer: Origin, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        if self.busy.load(Ordering::SeqCst) {
            return std::future::ready(Err(Declined::Busy)).boxed();
        }
        if let Ok(Question::Keys(..)) = Question::decode(&question) {
            self.looks.fetch_add(1, Ordering::SeqCst);
            return std::future::pending().boxed();
        }
        self.auditee.answer(peer, question)
    }
}

/// Has a node answer so. Returns whether it is busy, and how often it was asked to look again.
fn odd(node: &Node, busy: bool) -> (Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (busy, looks) = (Arc::new(AtomicBool::new(busy)), Arc::<AtomicUsize>::default());
    let auditee = Auditee::new(node.bus());
    let odd = Odd { auditee, busy: busy.clone(), looks: looks.clone() };
    node.bus().asked.serve(Topic::Audit, Arc::new(odd));
    (busy, looks)
}

#[tokio::test]
async fn a_peer_that_does_not_answer_in_time_is_asked_no_more() {
    const KEYS: usize = 3 * KEYS_MAX;
    let cluster = start(|_, builder| builder).await;
    let _caches = [open(&cluster[0], KEYS, 0).await, open(&cluster[1], KEYS, 1).await];
    hosts_are_known(&cluster[0], 2).await;
    let (_, looks) = odd(&cluster[1], false);
    let report = cluster[0].audit().await.unwrap();
    assert_eq!((report.counts.unsettled, looks.load(Ordering::SeqCst)), (KEYS as u64, 1), "{report:?}");
    let gap = report.peers[0].gap.as_deref();
    assert_eq!((gap, report.is_complete()), (Some("no answer within 10s"), false));
    cluster.shutdown().await;
}

#[tokio::test]
async fn who_comes_while_an_audit_is_under_way_is_named_as_not_asked_about_all_of_it() {
    let build = |_, builder: NodeBuilder| builder.write_horizon(Duration::ZERO);
    let cluster = Cluster::start_with(3, build).await.unwrap();
    let _caches = [open(&cluster[0], 10, 0).await, open(&cluster[1], 10, 0).await];
    hosts_are_known(&cluster[0], 2).await;
    let (busy, _) = odd(&cluster[1], true);
    let run = cluster[0].begin_audit().unwrap();
    until("it has begun", || cluster[0].audited().counts.sent > 0).await;
    let _late = open(&cluster[2], 10, 0).await;
    hosts_are_known(&cluster[0], 3).await;
    busy.store(false, Ordering::SeqCst);
    let report = run.report().await.unwrap();
    let gaps: Vec<_> = report.peers.iter().map(|peer| (peer.node.as_str(), peer.gap.as_deref())).collect();
    let came = Some("it came while the audit was under way");
    assert_eq!(gaps, [("n2", None), ("n3", came)], "{report:?}");
    assert!(!report.is_complete());
    cluster.shutdown().await;
}

#[tokio::test]
async fn what_a_sweep_at_a_pace_finds_again_is_not_logged_again() {
    let (lines, _guard) = logged::events("tidings::audit", Level::ERROR);
    let build = |index, builder: NodeBuilder| {
        // What it logs comes from this thread.
        if index == 0 { builder.audit(1_000).on_calling_runtime() } else { builder }
    };
    let cluster = start(build).await;
    let _caches = [open(&cluster[0], 3, 0).await, open(&cluster[1], 3, 1).await];
    let found = || cluster[0].audited();
    until("all are found again", || found().inconsistencies.len() == 3 && found().counts.inconsistent >= 6)
        .await;
    assert_eq!(lines.load(Ordering::SeqCst), 3);
    cluster.shutdown().await;
}
