//! Networks that are cut, one way or both, lossy or late: no read breaks a promise, no writer waits, and the cluster
//! heals by itself.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::{Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::facts;
use tidings_tests::network::Network;
use tidings_tests::scale;
use tidings_tests::switch::Mess;
use tidings_tests::wait::until;
use tidings_tests::watch::Watch;
use tokio::time::sleep;

use crate::network::pairs;
use crate::verdict;

/// Traffic before a fault, so that the caches are warm, and after it.
const STEADY: Duration = Duration::from_secs(5);

/// How long a cut lasts: longer than the bound, than every detector and than QUIC's idle time.
const CUT: Duration = Duration::from_secs(10);

/// Longest time from a reachable network to a cluster in step.
const HEALED_WITHIN: Duration = Duration::from_secs(2);

/// The same on a machine that has no processors to spare, where the time to spare says little.
const HEALED_ON_A_BUSY_MACHINE: Duration = Duration::from_secs(20);

/// Longest time until what has happened is counted.
const COUNTED_WITHIN: Duration = Duration::from_secs(20);

/// Runs three nodes on hosts of their own through a fault of the network.
async fn through(fault: impl FnOnce(&mut Network) -> Result<()>) -> Result<()> {
    let mut cluster = Cluster::start(Setup::hosts(3)?).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    fault(cluster.network())?;
    sleep(CUT).await;
    healed(&mut cluster).await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[0, 1, 2]).await
}

pub(crate) async fn healed(cluster: &mut Cluster) -> Result<()> {
    cluster.network().heal()?;
    let healed = Watch::start();
    cluster.formed().await?;
    let (took, spare) = (healed.elapsed(), healed.spare());
    facts::note("G13", format!("in step {took:.1?} after the network was whole"));
    ensure!(
        spare <= HEALED_WITHIN && took <= HEALED_ON_A_BUSY_MACHINE,
        "healed only after {took:?}, {spare:?} of it with processors to spare"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_cut_off_both_ways_breaks_no_promise() -> Result<()> {
    through(|network| network.isolate(0)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hears_but_is_not_heard_breaks_no_promise() -> Result<()> {
    through(|network| (1..3).try_for_each(|other| network.cut(0, other))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_cut_one_way_breaks_no_promise() -> Result<()> {
    through(|network| network.cut(0, 1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lossy_network_breaks_no_promise() -> Result<()> {
    through(|network| pairs(3).try_for_each(|(from, to)| network.lose(from, to, 10))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_100_ms_late_and_doubles_and_reorders_breaks_no_promise() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(100);
    const LATE: Duration = Duration::from_secs(8);
    let mut cluster = Cluster::start(Setup::switched(3)?).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    let switch = cluster.network().switch().expect("it was made with one");
    for (from, to) in pairs(3) {
        switch.delay(from, to, DELAY);
        switch.mess(from, to, Mess { twice: 2, overtaken: 2 });
    }
    sleep(scale::duration(LATE)).await;
    // To the end, so that what remains to be heard is late, too.
    verdict::kept(&mut cluster, drive, &[0, 1, 2]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_behind_a_cut_breaks_no_promise() -> Result<()> {
    const JOINER: usize = 3;
    let mut cluster = Cluster::prepare(Setup::hosts(4)?)?;
    for node in 0..JOINER {
        cluster.node_mut(node).start()?;
    }
    cluster.formed().await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    cluster.network().cut(0, JOINER)?;
    cluster.network().cut(JOINER, 0)?;
    cluster.node_mut(JOINER).start()?;
    sleep(CUT).await;
    healed(&mut cluster).await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[0, 1, 2]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overrun_log_ends_in_a_counted_reset_and_a_fence() -> Result<()> {
    let setup = Setup { coherence: "log_events = 16", ..Setup::hosts(3)? };
    let mut cluster = Cluster::start(setup).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    cluster.network().isolate(0)?;
    sleep(CUT).await;
    healed(&mut cluster).await?;
    let counted = async || {
        for api in cluster.apis() {
            let (resets, fences) =
                (api.metric("tidings_follow_resets_total"), api.metric("tidings_fences_total"));
            let (resets, fences) = (resets.await?, fences.await?);
            ensure!(resets > 0.5 && fences > 0.5, "{resets} resets, {fences} fences");
        }
        Ok(())
    };
    until("every node counts a reset and a fence", COUNTED_WITHIN, counted).await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[0, 1, 2]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_that_were_held_back_make_nothing_fresh() -> Result<()> {
    /// Shorter than QUIC's idle time, so that what was held still counts; several times the bound.
    const HELD: Duration = Duration::from_millis(1800);
    const BOUND: Duration = Duration::from_millis(500);
    const TIMES: usize = 4;
    let setup = Setup { max_staleness: BOUND, ..Setup::switched(3)? };
    let mut cluster = Cluster::start(setup).await?;
    let drive = Drive::start(&cluster, Load::default());
    sleep(scale::duration(STEADY)).await;
    drive.phase("during");
    for _ in 0..scale::count(TIMES) {
        for held in [true, false] {
            let switch = cluster.network().switch().expect("it was made with one");
            (1..3).for_each(|other| switch.hold(0, other, held));
            sleep(HELD).await;
        }
    }
    cluster.formed().await?;
    drive.phase("after");
    sleep(scale::duration(STEADY)).await;
    verdict::kept(&mut cluster, drive, &[0, 1, 2]).await
}
