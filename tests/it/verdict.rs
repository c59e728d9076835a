//! What every scenario with traffic must show at its end.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::Cluster;
use tidings_tests::drive::{Compared, Drive, Stopped};
use tidings_tests::facts;
use tidings_tests::pace::{self, Pace};
use tidings_tests::wait::until;

/// Longest time from the last write until every node agrees with the record: what is not applied by then goes with the
/// bound of seconds, and a machine may stand still meanwhile. That it takes a second is for `loss` to show.
const AGREED_WITHIN: Duration = Duration::from_secs(20);

/// As [`kept_with`], and notes what it came to.
pub(crate) async fn kept(cluster: &mut Cluster, drive: Drive, undisturbed: &[usize]) -> Result<()> {
    // Else little may be held that could differ in the end.
    drive.warm().await;
    let Kept { stopped, compared, paces } = judge(cluster, drive, undisturbed).await?;
    let summary = stopped.record().summary();
    let bound = cluster.max_staleness();
    let ratios: Vec<String> =
        stopped.phases.iter().map(|phase| format!("{:.2} {}", phase.hit_ratio(), phase.name())).collect();
    let paces: Vec<String> = paces.iter().map(|ratio| format!("{ratio:.2}")).collect();
    let paces = match &paces[..] {
        [] => String::new(),
        some => format!("; p99 of writes at others {} times that of before", some.join(", ")),
    };
    facts::note(
        "G2 G9",
        format!(
            "{} hits judged, {} stale by at most {:.1?} of {bound:?}, {} violations; hit ratio {}; {} entries compared in \
             the end, 0 differ{paces}",
            summary.hits,
            summary.stale,
            summary.staleness_max,
            summary.violations,
            ratios.join(", "),
            compared.entries
        ),
    );
    Ok(())
}

/// Stops the traffic and judges it: every promise was kept, nothing differs from the record in the end, and writes at
/// these nodes were not delayed by what happened to others.
pub(crate) async fn kept_with(cluster: &mut Cluster, drive: Drive, undisturbed: &[usize]) -> Result<Stopped> {
    judge(cluster, drive, undisturbed).await.map(|kept| kept.stopped)
}

struct Kept {
    stopped: Stopped,
    compared: Compared,
    /// The p99 of undisturbed writers' writes, as a multiple of what it was before.
    paces: Vec<f64>,
}

async fn judge(cluster: &mut Cluster, drive: Drive, undisturbed: &[usize]) -> Result<Kept> {
    let stopped = drive.stop().await;
    cluster.formed().await?;
    let everywhere: Vec<usize> = (0..cluster.ids().len()).collect();
    let mut compared = Compared::default();
    let agreed = async || {
        compared = stopped.compare(&everywhere).await?;
        ensure!(compared.differing.is_empty(), "{:?}", compared.differing);
        Ok(())
    };
    until("every node agrees with the record", AGREED_WITHIN, agreed).await?;
    stopped.record().summary().assert_kept();
    let (mut paces, mut uncompared) = (Vec::new(), Vec::new());
    for node in undisturbed {
        let id = format!("n{}", node + 1);
        let [before, during] = ["before", "during"].map(|name| {
            let phase = stopped.phase(name);
            let pairs = phase.node(*node).pairs;
            let (made, spare) = (pairs.len(), phase.spare());
            assert!(!pace::dawdled(&pairs, spare), "{id} {name}: {made} writes with {spare:?} to spare");
            pairs
        });
        assert!(!during.is_empty(), "{id} wrote nothing meanwhile");
        match pace::compare(&before, &during) {
            Pace::Alike(ratio) => paces.push(ratio),
            Pace::Slower(how) => panic!("{id}: {how}"),
            Pace::TooFew(why) => uncompared.push(format!("{id}: {why}")),
        }
    }
    if !uncompared.is_empty() {
        let why = uncompared.join("; ");
        facts::note(
            "G9",
            format!("not every writer's pace was compared, for want of time or processors: {why}"),
        );
    }
    Ok(Kept { stopped, compared, paces })
}
