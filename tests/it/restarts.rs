//! Nodes that are killed and started again and again, and releases that are rolled out under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::api::Api;
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::facts;
use tidings_tests::scale;
use tidings_tests::wait::until;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::log_files::LOG_FILES;
use crate::verdict;

/// Rounds of killing one node after the other; `TIDINGS_TEST_SCALE=50` makes them 200.
const ROUNDS: usize = 4;

/// Nodes of clusters whose nodes are killed.
const NODES: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_killed_in_turn_and_started_at_once_serve_nothing_stale() -> Result<()> {
    killed_in_turn(Setup::loopback(NODES)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_log_files_killed_in_turn_and_started_at_once_serve_nothing_stale() -> Result<()> {
    let cluster = killed_in_turn(Setup { coherence: LOG_FILES, ..Setup::loopback(NODES) }).await?;
    let mut followed = 0.0;
    for api in cluster.apis() {
        followed += api.metric("tidings_log_files_followed_total").await?;
    }
    ensure!(followed > 0.5, "nobody has followed what was left in the files");
    Ok(())
}

/// Kills one node after the other under load, starts it again at once, and judges every read.
async fn killed_in_turn(setup: Setup) -> Result<Cluster> {
    /// Some rounds kill the next node while the last one is still in doubt.
    const PAUSES_MS: [u64; 4] = [1_500, 50, 4_000, 700];
    let mut cluster = Cluster::start(setup).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(Duration::from_secs(2)).await;
    drive.phase("during");
    let rounds = scale::count(ROUNDS);
    for round in 0..rounds {
        let node = cluster.node_mut(round % NODES);
        node.kill()?;
        node.start()?;
        node.ready().await?;
        sleep(Duration::from_millis(PAUSES_MS[round % PAUSES_MS.len()])).await;
    }
    cluster.formed().await?;
    let stopped = verdict::kept_with(&mut cluster, drive, &[]).await?;
    let summary = stopped.record().summary();
    facts::note(
        "G12",
        format!("{rounds} rounds, {} hits judged, {} violations", summary.hits, summary.violations),
    );
    Ok(cluster)
}

/// Time between two looks of a balancer at its nodes' readiness.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Clients behind a balancer that sends requests to nodes that were ready when it last looked.
struct Balanced {
    apis: Vec<Api>,
    ready: Vec<AtomicBool>,
    /// Clients that send something to a node, or are about to.
    sending: Vec<AtomicU64>,
    requests: AtomicU64,
}

impl Balanced {
    async fn look(&self, node: usize) {
        loop {
            self.ready[node].store(self.apis[node].ready().await.is_ok(), Ordering::SeqCst);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Reads and writes at the nodes that are ready, one after the other. The first error ends it.
    async fn ask(&self, client: usize) -> Result<()> {
        for turn in client.. {
            let node = turn % self.apis.len();
            self.sending[node].fetch_add(1, Ordering::SeqCst);
            if self.ready[node].load(Ordering::SeqCst) {
                let key = format!("rolled-{}", turn % 100);
                if turn.is_multiple_of(5) {
                    self.apis[node].delete(CACHE, &key).await?;
                } else {
                    self.apis[node].get(CACHE, &key).await?;
                }
                self.requests.fetch_add(1, Ordering::SeqCst);
            }
            self.sending[node].fetch_sub(1, Ordering::SeqCst);
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_restarted_in_turn_fail_no_request() -> Result<()> {
    const NODES: usize = 5;
    const CLIENTS: usize = 4;
    const NOTICED_WITHIN: Duration = Duration::from_secs(30);
    let mut cluster = Cluster::start(Setup::loopback(NODES)).await?;
    let ready = (0..NODES).map(|_| AtomicBool::new(true)).collect();
    let sending = (0..NODES).map(|_| AtomicU64::new(0)).collect();
    let balanced = Balanced { apis: cluster.apis(), ready, sending, requests: AtomicU64::new(0) };
    let balanced = Arc::new(balanced);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for node in 0..NODES {
        let (balanced, stop) = (balanced.clone(), stop.clone());
        tasks.spawn(async move { stop.run_until_cancelled(balanced.look(node)).await.map_or(Ok(()), Ok) });
    }
    for client in 0..CLIENTS {
        let (balanced, stop) = (balanced.clone(), stop.clone());
        tasks.spawn(async move { stop.run_until_cancelled(balanced.ask(client)).await.unwrap_or(Ok(())) });
    }
    for node in 0..NODES {
        // As an orchestrator does: out of service first, and ended once nobody sends anything more.
        let api = cluster.node(node).api().clone();
        api.drain().await?;
        let unready = async || {
            ensure!(!balanced.ready[node].load(Ordering::SeqCst), "requests still go to it");
            ensure!(balanced.sending[node].load(Ordering::SeqCst) == 0, "requests are still under way");
            Ok(())
        };
        until("the balancer sends it nothing more", NOTICED_WITHIN, unready).await?;
        let status = cluster.node_mut(node).terminate(NOTICED_WITHIN).await?;
        ensure!(status.success(), "n{} ended: {status}", node + 1);
        cluster.node_mut(node).start()?;
        cluster.formed().await?;
    }
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no client panics")?;
    }
    let requests = balanced.requests.load(Ordering::SeqCst);
    assert!(requests > 100, "{requests} requests show nothing");
    facts::note("G12 G13", format!("{requests} requests meanwhile, 0 failed"));
    Ok(())
}
