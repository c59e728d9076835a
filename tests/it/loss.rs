//! Nothing that a network loses stays lost, while it goes on losing.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::{Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::facts;
use tidings_tests::scale;
use tokio::time::{Instant, sleep, sleep_until};

const NODES: usize = 5;

/// How long is written at each rate of loss.
const WRITING: Duration = Duration::from_secs(6);

/// Longest time from the last write until no entry differs from the record.
const AGREED_WITHIN: Duration = Duration::from_secs(1);

async fn nothing_stays_lost(percent: u8) -> Result<()> {
    let mut cluster = Cluster::start(Setup::hosts(NODES)?).await?;
    for from in 0..NODES {
        for to in (0..NODES).filter(|to| *to != from) {
            cluster.network().lose(from, to, percent)?;
        }
    }
    // Few keys, each of which is written often while it is cached nearly everywhere.
    let drive = Drive::start(&cluster, Load { keys: 100, readers: 2, seed: u64::from(percent) });
    sleep(scale::duration(WRITING)).await;
    let stopped = drive.stop().await;
    let ended = Instant::now();
    // Not a wait for the state: that it is there by then is what is promised.
    sleep_until(ended + AGREED_WITHIN).await;
    let everywhere: Vec<usize> = (0..NODES).collect();
    let differing = stopped.differing(&everywhere).await?;
    ensure!(differing.is_empty(), "{AGREED_WITHIN:?} after the last write: {differing:?}");
    let summary = stopped.record().summary();
    summary.assert_kept();
    let writes: usize = everywhere.iter().map(|node| stopped.phase("before").node(*node).writes.len()).sum();
    assert!(writes > NODES, "{writes} writes show nothing");
    facts::note(
        "G1 G2",
        format!(
            "{writes} writes, {} hits judged, stale by at most {:.0?}; 0 entries differ {AGREED_WITHIN:?} after the last",
            summary.hits, summary.staleness_max
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_network_that_loses_1_percent_nothing_stays_lost() -> Result<()> {
    nothing_stays_lost(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_network_that_loses_10_percent_nothing_stays_lost() -> Result<()> {
    nothing_stays_lost(10).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_network_that_loses_30_percent_nothing_stays_lost() -> Result<()> {
    nothing_stays_lost(30).await
}
