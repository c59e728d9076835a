//! What every scenario with traffic must show at its end.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::Cluster;
use tidings_tests::drive::{Drive, Stopped};
use tidings_tests::facts;
use tidings_tests::pace;
use tidings_tests::wait::until;

/// Longest time from the last write until every node agrees with the record.
const AGREED_WITHIN: Duration = Duration::from_secs(20);

/// As [`kept_with`], and notes what it came to.
pub(crate) async fn kept(cluster: &mut Cluster, drive: Drive, undisturbed: &[usize]) -> Result<()> {
    let stopped = kept_with(cluster, drive, undisturbed).await?;
    let summary = stopped.record().summary();
    let bound = cluster.max_staleness();
    let ratios: Vec<String> =
        stopped.phases.iter().map(|phase| format!("{:.2} {}", phase.hit_ratio(), phase.name())).collect();
    facts::note(
        "G2 G9",
        format!(
            "{} hits judged, {} stale by at most {:.1?} of {bound:?}, {} violations; hit ratio {}",
            summary.hits,
            summary.stale,
            summary.staleness_max,
            summary.violations,
            ratios.join(", ")
        ),
    );
    Ok(())
}

/// Stops the traffic and judges it: every promise was kept, nothing differs from the record in the end, and writes at
/// these nodes were not delayed by what happened to others.
pub(crate) async fn kept_with(cluster: &mut Cluster, drive: Drive, undisturbed: &[usize]) -> Result<Stopped> {
    let stopped = drive.stop().await;
    cluster.formed().await?;
    let everywhere: Vec<usize> = (0..cluster.ids().len()).collect();
    let agreed = async || {
        let differing = stopped.differing(&everywhere).await?;
        ensure!(differing.is_empty(), "{differing:?}");
        Ok(())
    };
    until("every node agrees with the record", AGREED_WITHIN, agreed).await?;
    stopped.record().summary().assert_kept();
    for node in undisturbed {
        let pairs = |phase: &str| stopped.phase(phase).node(*node).pairs;
        let (before, during) = (pairs("before"), pairs("during"));
        assert!(!during.is_empty(), "n{} wrote nothing meanwhile", node + 1);
        if let Some(slower) = pace::slower(&before, &during) {
            panic!("n{}: {slower}", node + 1);
        }
    }
    Ok(stopped)
}
