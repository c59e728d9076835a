//! Nothing that a network loses stays lost, while it goes on losing, doubling and reordering.

use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_tests::cluster::{Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::facts;
use tidings_tests::scale;
use tidings_tests::switch::Mess;
use tidings_tests::wait::until;
use tidings_tests::watch::Watch;
use tokio::time::sleep;

use crate::network::pairs;

const NODES: usize = 5;

/// How long is read, and written as usual, after a flood of writes.
const WRITING: Duration = Duration::from_secs(4);

/// Keys that the flood writes; `TIDINGS_TEST_SCALE=20` makes them a million.
const FLOOD: usize = 50_000;

/// Few keys, each of which is written often while it is cached nearly everywhere.
const KEYS: usize = 100;

/// Hits to be judged after the flood. What is lost keeps nodes in doubt, and its repair evicts: they come slowly then.
const HITS: usize = 2_000;

/// Longest time until there were so many.
const JUDGED_WITHIN: Duration = Duration::from_secs(60);

/// Keys that each node writes last, beside all other writes, once every key has been read at every node: so few that most
/// of what is cached then is there in the end.
const LAST: usize = 10;

/// Fewest entries that have to be there to be compared with the record: a tenth of what may be.
const COMPARED_MIN: usize = NODES * KEYS / 10;

/// What becomes of the packets that are not lost.
const MESS: Mess = Mess { twice: 2, overtaken: 2 };

/// Longest time from the last write until no entry differs from the record: the promise that is tried here.
const AGREED_WITHIN: Duration = Duration::from_secs(1);

/// The same where every third packet is lost: QUIC asks again at twice the distance whenever question or answer are,
/// and of some hundred last writes one may take more than a second.
const AGREED_WITHIN_LOSSY: Duration = Duration::from_secs(2);

async fn nothing_stays_lost(percent: u8, agreed_within: Duration) -> Result<()> {
    let mut cluster = Cluster::start(Setup::switched(NODES)?).await?;
    for (from, to) in pairs(NODES) {
        cluster.network().lose(from, to, percent)?;
        cluster.network().switch().expect("it was made with one").mess(from, to, MESS);
    }
    let drive = Drive::start(&cluster, Load { keys: KEYS, readers: 2, seed: u64::from(percent) });
    drive.flood(scale::count(FLOOD)).await;
    drive.phase("after the flood");
    let flooded = drive.record().summary().hits;
    sleep(scale::duration(WRITING)).await;
    let wanted = scale::count(HITS) as u64;
    let judged = async || {
        drive.warm().await;
        let hits = drive.record().summary().hits - flooded;
        ensure!(hits >= wanted, "{hits} of {wanted}");
        Ok(())
    };
    until("enough hits are judged", scale::duration(JUDGED_WITHIN).max(JUDGED_WITHIN), judged).await?;
    drive.flood(NODES * LAST).await;
    let stopped = drive.stop().await;
    let ended = Watch::start();
    let everywhere: Vec<usize> = (0..NODES).collect();
    // Not a wait for the state: that it is there by then is what is promised.
    sleep(AGREED_WITHIN).await;
    let mut after = ended.elapsed();
    let mut compared = stopped.compare(&everywhere).await?;
    // What the machine had none of in that time it gets after it. Not everything at once: entries come to their end.
    let lacking = agreed_within.saturating_sub(ended.spare());
    if !compared.differing.is_empty() && !lacking.is_zero() {
        Watch::rest(lacking).await;
        after = ended.elapsed();
        compared = stopped.compare(&everywhere).await?;
    }
    ensure!(compared.differing.is_empty(), "{after:.1?} after the last write: {:?}", compared.differing);
    let entries = compared.entries;
    ensure!(
        entries >= COMPARED_MIN,
        "{entries} entries were there to be compared: that none differs shows nothing"
    );
    let summary = stopped.record().summary();
    summary.assert_kept();
    let usual = stopped.phase("after the flood");
    let usual: usize = everywhere.iter().map(|node| usual.node(*node).writes.len()).sum();
    assert!(usual > NODES, "{usual} writes show nothing");
    // Of the usual ones those that ended the flood are part, some keys at a time.
    let writes = scale::count(FLOOD) + usual + NODES * (LAST - 1);
    facts::note(
        "G1 G2",
        format!(
            "{writes} writes, 2 % of the packets doubled and 2 % overtaken, {} hits judged, stale by at most {:.0?}; \
             {entries} entries compared {after:.1?} after the last, 0 differ",
            summary.hits, summary.staleness_max
        ),
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_network_that_loses_1_percent_nothing_stays_lost() -> Result<()> {
    nothing_stays_lost(1, AGREED_WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_network_that_loses_10_percent_nothing_stays_lost() -> Result<()> {
    nothing_stays_lost(10, AGREED_WITHIN).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_network_that_loses_30_percent_nothing_stays_lost() -> Result<()> {
    nothing_stays_lost(30, AGREED_WITHIN_LOSSY).await
}
