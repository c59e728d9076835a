//! Five nodes on hosts of their own: splits, links that come and go, a member that is gone.

use std::time::Duration;

use anyhow::Result;
use tidings_tests::cluster::{Cluster, Setup};
use tidings_tests::drive::{Drive, Load, Phase};
use tidings_tests::facts;
use tidings_tests::scale;
use tokio::time::{Instant, sleep};

use crate::cuts::healed;
use crate::verdict;

const NODES: usize = 5;

/// Traffic before a fault, so that the caches are warm, and after it.
const STEADY: Duration = Duration::from_secs(5);

/// How long a fault lasts: longer than the bound, than every detector and than QUIC's idle time.
const FAULT: Duration = Duration::from_secs(10);

/// Each node's writes invalidate at all others: of fewer keys each is read often between two writes.
const LOAD: Load = Load { keys: 100, readers: 2, seed: 1 };

async fn cluster() -> Result<(Cluster, Drive)> {
    let cluster = Cluster::start(Setup::hosts(NODES)?).await?;
    let drive = Drive::start(&cluster, LOAD);
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    Ok((cluster, drive))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_split_into_two_and_three_breaks_no_promise() -> Result<()> {
    let (mut cluster, drive) = cluster().await?;
    for here in 0..2 {
        for there in 2..NODES {
            cluster.network().cut(here, there)?;
            cluster.network().cut(there, here)?;
        }
    }
    sleep(FAULT).await;
    healed(&mut cluster).await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[0, 1, 2, 3, 4]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_comes_and_goes_breaks_no_promise() -> Result<()> {
    /// Around the time until a second connection is dialled, and around the bound.
    const CUTS_MS: [u64; 6] = [200, 900, 1_500, 300, 3_200, 600];
    const WHOLE: Duration = Duration::from_millis(300);
    let (mut cluster, drive) = cluster().await?;
    let end = Instant::now() + scale::duration(FAULT);
    for cut in CUTS_MS.iter().cycle() {
        if Instant::now() >= end {
            break;
        }
        for (from, to) in [(0, 1), (1, 0), (0, 2)] {
            cluster.network().cut(from, to)?;
        }
        sleep(Duration::from_millis(*cut)).await;
        cluster.network().heal()?;
        sleep(WHOLE).await;
    }
    healed(&mut cluster).await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[0, 1, 2, 3, 4]).await
}

/// The hit ratio of those that remain.
fn hit_ratio(phase: &Phase) -> f64 {
    let nodes: Vec<_> = (1..NODES).map(|node| phase.node(node)).collect();
    let (hits, loads): (u64, u64) =
        nodes.iter().fold((0, 0), |(hits, loads), node| (hits + node.hits, loads + node.loads));
    hits as f64 / (hits + loads).max(1) as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_five_gone_the_others_keep_half_of_their_hits() -> Result<()> {
    let (mut cluster, drive) = cluster().await?;
    cluster.node_mut(0).kill()?;
    sleep(scale::duration(FAULT)).await;
    cluster.node_mut(0).start()?;
    cluster.formed().await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    let phases = verdict::kept_with(&mut cluster, drive, &[1, 2, 3, 4]).await?;
    let (before, during) = (hit_ratio(phases.phase("before")), hit_ratio(phases.phase("during")));
    facts::note("G2", format!("hit ratio of the four {before:.3} before, {during:.3} while it was gone"));
    assert!(during >= before / 2.0, "{before} before, {during} while one was gone");
    Ok(())
}
