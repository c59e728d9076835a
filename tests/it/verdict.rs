//! What every scenario with traffic must show at its end.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::Cluster;
use tidings_tests::drive::Drive;
use tidings_tests::pace;
use tidings_tests::wait::until;

/// Longest time from the last write until every node agrees with the record.
const AGREED_WITHIN: Duration = Duration::from_secs(5);

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
        let pairs = |phase: &str| stopped.phase(phase).node(*node).pairs;
        let (before, during) = (pairs("before"), pairs("during"));
        assert!(!during.is_empty(), "n{} wrote nothing meanwhile", node + 1);
        if let Some(slower) = pace::slower(&before, &during) {
            panic!("n{}: {slower}", node + 1);
        }
    }
    Ok(())
}
