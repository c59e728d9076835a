//! What a cut has lost is repaired to the key, as long as the log reaches back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use tidings_tests::api::{Api, Fill, Lookup};
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::facts;
use tidings_tests::scale;
use tidings_tests::wait::until;
use tokio::time::sleep;

/// Entries of the node that is cut off.
const ENTRIES: usize = 2_000;

/// Longer than this takes at any scale: a million entries are loaded in some minutes.
const STALENESS: Duration = Duration::from_secs(3_600);

/// Requests at once.
const AT_ONCE: usize = 8;

/// Longer than QUIC keeps a silent link: what was sent into the cut is lost with it.
const CUT: Duration = Duration::from_secs(4);

/// Longest time from a whole network to the repair.
const REPAIRED_WITHIN: Duration = Duration::from_secs(30);

fn name_of(entry: usize) -> String {
    format!("entry-{entry}")
}

/// Loads an entry unless it is cached; whether it was loaded.
async fn load(api: &Api, entry: usize) -> Result<bool> {
    let key = name_of(entry);
    let Lookup::Miss { token } = api.get(CACHE, &key).await? else { return Ok(false) };
    let token = token.context("it may be cached")?;
    ensure!(api.fill(CACHE, &key, &token, key.clone().into()).await? == Fill::Stored, "{key} was ended");
    Ok(true)
}

/// Reads all entries, and loads those that are not cached.
async fn load_all(api: &Api, entries: usize) -> Result<Vec<usize>> {
    let load = |entry| async move { anyhow::Ok(load(api, entry).await?.then_some(entry)) };
    let loads = stream::iter((0..entries).map(load)).buffer_unordered(AT_ONCE);
    let loaded: Vec<Option<usize>> = loads.try_collect().await?;
    Ok(loaded.into_iter().flatten().collect())
}

#[tokio::test]
async fn one_lost_event_among_many_entries_reloads_one_key() -> Result<()> {
    let entries = scale::count(ENTRIES);
    let lost = entries / 2;
    // Nothing is doubted while this runs, nor does anything end that was loaded before all knew of the node: what is
    // loaded again was evicted.
    let coherence = "write_horizon = \"0s\"\nlost_grace = \"1h\"";
    let setup = Setup { max_staleness: STALENESS, coherence, ..Setup::hosts(2)? };
    let mut cluster = Cluster::start(setup).await?;
    let [writer, reader] = &cluster.apis()[..] else { unreachable!("two were started") };
    ensure!(load_all(reader, entries).await?.len() == entries, "some were cached before");
    cluster.network().cut(0, 1)?;
    cluster.network().cut(1, 0)?;
    writer.delete(CACHE, &name_of(lost)).await?;
    sleep(CUT).await;
    ensure!(!load(reader, lost).await?, "the cut lets through what it should lose");
    cluster.network().heal()?;
    let repaired = async || match reader.get(CACHE, &name_of(lost)).await? {
        Lookup::Miss { .. } => Ok(()),
        Lookup::Hit { .. } => anyhow::bail!("it is still cached"),
    };
    until("what was lost arrives", REPAIRED_WITHIN, repaired).await?;
    let reloaded = load_all(reader, entries).await?;
    ensure!(reloaded == [lost], "{reloaded:?} were loaded again");
    facts::note("G8", format!("1 of {entries} entries was loaded again"));
    Ok(())
}
