//! Nodes that are killed, restarted, paused or starved under load: no read breaks a promise, and no writer waits.

use std::time::Duration;

use anyhow::Result;
use tidings_tests::cluster::{Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::scale;
use tokio::time::{Instant, sleep};

use crate::verdict;

/// Traffic before a fault, so that the caches are warm, and after it.
const STEADY: Duration = Duration::from_secs(5);

/// How long a node is paused: longer than the bound, than every detector and than QUIC's idle time.
const PAUSE: Duration = Duration::from_secs(10);

async fn killed_and_restarted(after: Duration) -> Result<()> {
    let mut cluster = Cluster::start(Setup::loopback(3)).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    cluster.node_mut(0).kill()?;
    sleep(after).await;
    cluster.node_mut(0).start()?;
    cluster.formed().await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[1, 2]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_and_restarted_at_once_breaks_no_promise() -> Result<()> {
    killed_and_restarted(Duration::ZERO).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_and_restarted_late_breaks_no_promise() -> Result<()> {
    killed_and_restarted(Duration::from_secs(20)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_serves_nothing_old_when_it_goes_on() -> Result<()> {
    let mut cluster = Cluster::start(Setup::loopback(3)).await?;
    let load = Load::default();
    let drive = Drive::start(&cluster, load);
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    cluster.node(0).pause()?;
    sleep(PAUSE).await;
    cluster.node(0).proceed()?;
    // Its entries are all older than the bound now, and it has not heard of the others' writes yet.
    for key in 0..load.keys {
        drive.read(0, key).await?;
    }
    cluster.formed().await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[1, 2]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_starved_node_breaks_no_promise() -> Result<()> {
    /// It runs for a tenth of the time, in slices longer than every heartbeat is apart.
    const STOPPED: Duration = Duration::from_millis(900);
    const RUNNING: Duration = Duration::from_millis(100);
    let mut cluster = Cluster::start(Setup::loopback(3)).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    let end = Instant::now() + scale::duration(PAUSE);
    while Instant::now() < end {
        cluster.node(0).pause()?;
        sleep(STOPPED).await;
        cluster.node(0).proceed()?;
        sleep(RUNNING).await;
    }
    cluster.formed().await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[1, 2]).await
}
