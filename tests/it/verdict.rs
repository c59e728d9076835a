//! What every scenario with traffic must show at its end.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::Cluster;
use tidings_tests::drive::Drive;
use tidings_tests::wait::until;

/// Longest time from the last write until every node agrees with the record.
const AGREED_WITHIN: Duration = Duration::from_secs(5);

/// How much slower than before a fault a write at an untouched node may be during it.
const SLOWER_MAX: f64 = 1.2;

/// Scheduling noise of two loaded cores. A writer that waited for a peer would wait for seconds.
const NOISE: Duration = Duration::from_millis(50);

/// Stops the traffic and judges it: every promise was kept, nothing differs from the record in the end, and writes at
/// these nodes were not delayed by what happened to others.
pub(crate) async fn kept(cluster: &mut Cluster, drive: Drive, undisturbed: &[usize]) -> Result<()> {
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
        let quantile = |phase: &str| stopped.phase(phase).node(*node).write_quantile(0.99);
        let (before, during) = (quantile("before"), quantile("during"));
        assert!(
            !stopped.phase("during").node(*node).writes.is_empty(),
            "n{} wrote nothing meanwhile",
            node + 1
        );
        assert!(
            during <= before.mul_f64(SLOWER_MAX) + NOISE,
            "n{}: p99 {before:?}, then {during:?}",
            node + 1
        );
    }
    Ok(())
}
