//! Receipts name the peers that have ended or stand still, in time, and hold up nobody else.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tidings_tests::api::{Api, Receipt};
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::facts;
use tidings_tests::wait::until;
use tidings_tests::watch::Watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A usual time to wait for a receipt.
const SHORT: Duration = Duration::from_millis(50);

/// How long after that the answer may be with who asked: it makes a request over HTTP, and timers are late by a little.
const ANSWERED_WITHIN: Duration = Duration::from_millis(50);

/// The same, with the wait, on a machine that has no processors to spare, where the time to spare says little.
const ANSWERED_ON_A_BUSY_MACHINE: Duration = Duration::from_secs(10);

/// The longest time that may be waited for: a receipt comes before it is over, or never.
const LONG: Duration = Duration::from_secs(60);

/// Longest time until a node that stands still or has ended counts as one that cannot be heard.
const UNHEARD_WITHIN: Duration = Duration::from_secs(30);

/// Nobody expires, however long the machine stands still.
fn patient() -> Setup {
    Setup { max_staleness: LONG, ..Setup::loopback(3) }
}

fn missing(receipt: &Receipt) -> Vec<(&str, &str)> {
    receipt.missing.iter().map(|it| (it.node.as_str(), it.reason.as_str())).collect()
}

/// Waits until a receipt says so of the third node, and of it alone.
async fn named(api: &Api, reason: &str) -> Result<()> {
    let look = async || {
        let receipt = api.delete_acked(CACHE, "k", SHORT).await?;
        ensure!(receipt.applied == ["n2"], "{receipt:?}");
        match &missing(&receipt)[..] {
            [("n3", why)] if *why == reason => Ok(()),
            other => bail!("{other:?}"),
        }
    };
    until(&format!("n3 is {reason}"), UNHEARD_WITHIN, look).await
}

#[tokio::test]
async fn receipt_names_a_killed_peer() -> Result<()> {
    let mut cluster = Cluster::start(Setup::loopback(3)).await?;
    let api = cluster.node(0).api().clone();
    let all = async || {
        let receipt = api.delete_acked(CACHE, "k", LONG).await?;
        ensure!(receipt.applied == ["n2", "n3"] && receipt.missing.is_empty(), "{receipt:?}");
        Ok(())
    };
    until("all apply", UNHEARD_WITHIN, all).await?;
    cluster.node_mut(2).kill()?;
    let asked = Watch::start();
    let receipt = api.delete_acked(CACHE, "k", SHORT).await?;
    let (took, spare) = (asked.elapsed(), asked.spare());
    ensure!(
        spare <= SHORT + ANSWERED_WITHIN && took <= ANSWERED_ON_A_BUSY_MACHINE,
        "asked to wait {SHORT:?}, answered after {took:?}, {spare:?} of it with processors to spare"
    );
    let [(node, reason)] = missing(&receipt)[..] else { bail!("{receipt:?}") };
    assert_eq!((node, &receipt.applied[..]), ("n3", &["n2".to_owned()][..]), "{receipt:?}");
    facts::note(
        "G5",
        format!("asked to wait {SHORT:?}, answered after {took:.0?}: {node} is missing ({reason})"),
    );
    named(&api, "unreachable").await?;
    // Its successor holds nothing of before, and its former life goes with the bound.
    cluster.node_mut(2).start()?;
    cluster.formed().await?;
    until("all apply again", 2 * UNHEARD_WITHIN, all).await
}

#[tokio::test]
async fn receipt_names_a_stopped_peer_and_no_other_writer_waits_for_it() -> Result<()> {
    let cluster = Cluster::start(patient()).await?;
    let api = cluster.node(0).api().clone();
    let paused = Instant::now();
    cluster.node(2).pause()?;
    let receipt = api.delete_acked(CACHE, "k", SHORT).await?;
    // Unless so much time has passed that its link may be gone.
    if paused.elapsed() < Duration::from_millis(500) && receipt.applied == ["n2"] {
        assert_eq!(missing(&receipt), [("n3", "lagging")], "its link is there still");
    }

    let mut waiting = JoinSet::new();
    for _ in 0..32 {
        let api = api.clone();
        waiting.spawn(async move { api.delete_acked(CACHE, "waiting", LONG).await });
    }
    named(&api, "unreachable").await?;
    for key in 0..200 {
        api.delete(CACHE, &format!("plain-{key}")).await?;
    }
    assert!(waiting.try_join_next().is_none(), "a plain change has waited for the peer, as receipts do");

    cluster.node(2).proceed()?;
    while let Some(receipt) = waiting.join_next().await {
        let receipt = receipt??;
        assert_eq!((receipt.applied.len(), receipt.missing.len()), (2, 0), "{receipt:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_stopped_peer_expires_once_it_can_serve_nothing_older() -> Result<()> {
    let setup = Setup { max_staleness: Duration::from_secs(1), ..Setup::loopback(3) };
    let cluster = Cluster::start(setup).await?;
    let api = cluster.node(0).api().clone();
    cluster.node(2).pause()?;
    let begun = Instant::now();
    let receipt = api.delete_acked(CACHE, "k", LONG).await?;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(receipt.expired.contains(&"n3".to_owned()) && receipt.missing.is_empty(), "{receipt:?}");
    cluster.node(2).proceed()
}
