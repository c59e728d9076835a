//! What a node measures of its own coherence is what its network does.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::api::Api;
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::facts;
use tidings_tests::wait::until;
use tokio::time::sleep;

/// How late what one node sends to the other comes; what that answers is not.
const DELAY: Duration = Duration::from_millis(200);

/// How far from that the figure may be, as a share of it.
const OFF_MAX: f64 = 0.1;

/// Changes of which the mean is taken: a short moment without a processor moves it by little.
const CHANGES: usize = 20;

/// Pause between two, so that each is told by itself.
const CHANGE_EVERY: Duration = Duration::from_millis(20);

/// Longest time until a machine had a second without other things to do.
const MEASURED_WITHIN: Duration = Duration::from_secs(60);

/// How many changes were timed, and how long they took together, in seconds.
async fn timed(api: &Api) -> Result<(f64, f64)> {
    let name = |suffix| format!("tidings_invalidation_duration_seconds_{suffix}");
    Ok((api.metric(&name("count")).await?, api.metric(&name("sum")).await?))
}

/// The mean time from a change to its acknowledgement, of some changes.
async fn mean(api: &Api) -> Result<f64> {
    let (count, sum) = timed(api).await?;
    for key in 0..CHANGES {
        api.delete(CACHE, &format!("k{key}")).await?;
        sleep(CHANGE_EVERY).await;
    }
    let all = async || {
        let (now, took) = timed(api).await?;
        ensure!(now - count > CHANGES as f64 - 0.5, "{} of {CHANGES}", now - count);
        Ok((took - sum) / (now - count))
    };
    until("all are acknowledged", MEASURED_WITHIN, all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_way_delay_of_200_ms_is_what_the_lag_of_invalidations_shows() -> Result<()> {
    let mut cluster = Cluster::start(Setup::switched(2)?).await?;
    let api = cluster.node(0).api().clone();
    let without = until("without a delay it is short", MEASURED_WITHIN, async || {
        let mean = mean(&api).await?;
        ensure!(mean < DELAY.as_secs_f64() / 4.0, "{mean} s");
        Ok(mean)
    });
    let without = without.await?;
    cluster.network().switch().expect("it was made with one").delay(0, 1, DELAY);
    let with = until("the delay shows", MEASURED_WITHIN, async || {
        let mean = mean(&api).await?;
        let off = mean / DELAY.as_secs_f64() - 1.0;
        ensure!(off.abs() <= OFF_MAX, "{mean} s");
        Ok(mean)
    });
    let with = with.await?;
    facts::note(
        "G16",
        format!(
            "{CHANGES} changes took {:.1} ms each until they were acknowledged, and {:.1} ms without the delay",
            with * 1e3,
            without * 1e3
        ),
    );
    Ok(())
}
