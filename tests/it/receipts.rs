//! Receipts name the peers that have ended or stand still, in time, and hold up nobody else.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tidings_tests::api::{Api, Receipt};
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::wait::until;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// A usual time to wait for a receipt.
const SHORT: Duration = Duration::from_millis(50);

/// A time that is all waited for while a peer stands still.
const LONG: Duration = Duration::from_millis(1_500);

/// Longest time until a node that stands still or has ended counts as one that cannot be heard.
const UNHEARD_WITHIN: Duration = Duration::from_secs(10);

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
    let all = api.delete_acked(CACHE, "k", Duration::from_secs(1)).await?;
    assert_eq!((all.applied, all.missing), (vec!["n2".to_owned(), "n3".to_owned()], vec![]));
    cluster.node_mut(2).kill()?;
    let receipt = api.delete_acked(CACHE, "k", SHORT).await?;
    assert_eq!(receipt.applied, ["n2"]);
    assert_eq!(receipt.missing.len(), 1, "{receipt:?}");
    assert_eq!(receipt.missing[0].node, "n3");
    named(&api, "unreachable").await?;
    // Its successor holds nothing of before, and its former life goes with the bound.
    cluster.node_mut(2).start()?;
    cluster.formed().await?;
    let look = async || {
        let receipt = api.delete_acked(CACHE, "k", Duration::from_secs(1)).await?;
        ensure!(receipt.applied == ["n2", "n3"] && receipt.missing.is_empty(), "{receipt:?}");
        Ok(())
    };
    until("all apply again", 2 * UNHEARD_WITHIN, look).await
}

#[tokio::test]
async fn receipt_names_a_stopped_peer_and_no_other_writer_waits_for_it() -> Result<()> {
    let cluster = Cluster::start(Setup::loopback(3)).await?;
    let api = cluster.node(0).api().clone();
    cluster.node(2).pause()?;
    let receipt = api.delete_acked(CACHE, "k", SHORT).await?;
    assert_eq!(receipt.applied, ["n2"]);
    assert_eq!(missing(&receipt), [("n3", "lagging")], "its link is there still");

    let mut slowest = Duration::ZERO;
    let mut waiting = JoinSet::new();
    for _ in 0..32 {
        let api = api.clone();
        waiting.spawn(async move { api.delete_acked(CACHE, "waiting", LONG).await });
    }
    for key in 0..200 {
        let begun = Instant::now();
        api.delete(CACHE, &format!("plain-{key}")).await?;
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < LONG / 2, "a plain change took {slowest:?}");
    for receipt in waiting.join_all().await {
        let receipt = receipt?;
        assert_eq!((receipt.applied.len(), receipt.missing.len()), (1, 1), "{receipt:?}");
    }
    named(&api, "unreachable").await?;

    cluster.node(2).proceed()?;
    let look = async || {
        let receipt = api.delete_acked(CACHE, "k", Duration::from_secs(1)).await?;
        ensure!(receipt.applied == ["n2", "n3"], "{receipt:?}");
        Ok(())
    };
    until("it applies again", UNHEARD_WITHIN, look).await
}

#[tokio::test]
async fn a_stopped_peer_expires_once_it_can_serve_nothing_older() -> Result<()> {
    let setup = Setup { max_staleness: Duration::from_secs(1), ..Setup::loopback(3) };
    let cluster = Cluster::start(setup).await?;
    let api = cluster.node(0).api().clone();
    cluster.node(2).pause()?;
    let begun = Instant::now();
    let receipt = api.delete_acked(CACHE, "k", Duration::from_millis(1_900)).await?;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!((receipt.applied, receipt.expired), (vec!["n2".to_owned()], vec!["n3".to_owned()]));
    assert_eq!(receipt.missing, []);
    cluster.node(2).proceed()
}
