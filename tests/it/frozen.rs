//! A peer that stands still under a flood of changes delays no writer, and costs it no memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::api::Api;
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::facts;
use tidings_tests::scale;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::verdict;

/// How long a peer stands still; `TIDINGS_TEST_SCALE=7.5` makes it a minute.
const FROZEN: Duration = Duration::from_secs(8);

/// Shortest time that shows anything, at whatever scale: the flood fills a writer's logs in two seconds.
const FROZEN_LEAST: Duration = Duration::from_secs(4);

/// What a node may remember for slow peers: four lanes of a megabyte.
const LOG_BYTES: &str = "log_bytes = \"1MiB\"";
const LOGS: u64 = 4 << 20;

/// What it may hold beside: two buffers of 64 KiB a lane, and what is on its way to each of two peers, a window of a
/// megabyte a lane.
const BUFFERS: u64 = 4 * 2 * (64 << 10);
const WINDOWS: u64 = 2 * 4 * (1 << 20);

/// The budget: what a node may have more under a flood with a frozen peer than it had without either.
const BUDGET: u64 = LOGS + BUFFERS + WINDOWS;

/// How long memory is looked at before the flood.
const CALM: Duration = Duration::from_secs(2);

/// Keys of a request of the flood, each of so many bytes.
const KEYS: usize = 100;
const KEY_BYTES: usize = 200;

/// Pause between two of them: 10,000 changes and 2 MB a second at each writer.
const FLOOD_EVERY: Duration = Duration::from_millis(10);

/// Pause between two looks at memory.
const LOOK_EVERY: Duration = Duration::from_millis(200);

async fn flood(api: Api) {
    let mut regular = interval(FLOOD_EVERY);
    for turn in 0.. {
        regular.tick().await;
        let keys: Vec<String> = (0..KEYS).map(|key| format!("{:0KEY_BYTES$}", turn * KEYS + key)).collect();
        // One that is not answered is made up for by the next.
        let _ = api.invalidate(CACHE, &keys).await;
    }
}

/// The most memory that any of the writers has in some time.
async fn peak(cluster: &Cluster, time: Duration) -> Result<u64> {
    let (end, mut peak) = (Instant::now() + time, 0);
    while Instant::now() < end {
        for writer in 0..2 {
            peak = peak.max(cluster.node(writer).resident_bytes()?);
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(peak)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_peer_under_a_flood_delays_nobody_and_costs_no_memory() -> Result<()> {
    const MIB: f64 = (1 << 20) as f64;
    let mut cluster = Cluster::start(Setup { coherence: LOG_BYTES, ..Setup::loopback(3) }).await?;
    let drive = Drive::start(&cluster, Load::default());
    let calm = peak(&cluster, CALM).await?;
    let (stop, mut floods) = (CancellationToken::new(), JoinSet::new());
    for api in cluster.apis().into_iter().take(2) {
        let stop = stop.clone();
        floods.spawn(async move { stop.run_until_cancelled(flood(api)).await });
    }
    // As long before: the flood has filled the logs by then.
    let frozen = scale::duration(FROZEN).max(FROZEN_LEAST);
    let before = peak(&cluster, frozen).await?;
    drive.phase("during");
    cluster.node(2).pause()?;
    let during = peak(&cluster, frozen).await?;
    cluster.node(2).proceed()?;
    stop.cancel();
    while floods.join_next().await.is_some() {}
    cluster.formed().await?;
    drive.phase("after");
    verdict::kept(&mut cluster, drive, &[0, 1]).await?;
    facts::note(
        "G9 G10",
        format!(
            "writers had {:.1} MiB before, {:.1} MiB under a flood, {:.1} MiB with a peer frozen for {frozen:.0?} as well: {:.0} \
             % of the budget of {:.1} MiB more",
            calm as f64 / MIB,
            before as f64 / MIB,
            during as f64 / MIB,
            during.saturating_sub(calm) as f64 / BUDGET as f64 * 100.0,
            BUDGET as f64 / MIB,
        ),
    );
    let resets = cluster.node(2).api().metric("tidings_follow_resets_total").await?;
    ensure!(resets > 0.5, "the logs were never full: this flood shows nothing");
    // What is remembered for the peer is in the log, which was as full before. A queue of its own would be four times
    // as long as what is left to the allocator here.
    ensure!(during <= before + LOGS, "{before} bytes before, {during} with a frozen peer");
    let more = during.saturating_sub(calm);
    ensure!(more as f64 <= BUDGET as f64 * 1.1, "{more} bytes more than without a flood, of {BUDGET}");
    Ok(())
}
