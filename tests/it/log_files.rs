//! Nodes that are killed under load and leave their log in files: what is loaded anew afterwards, with them and without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tidings_tests::api::{Api, Fill, Lookup};
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::facts;
use tidings_tests::wait::until;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A directory for each node.
pub(crate) const LOG_FILES: &str = "log_dir = \"{id}-log\"";

/// Entries that each peer of the killed node holds, and that nobody changes.
const KEPT: usize = 300;

/// Keys that the node changes until it is killed.
const CHANGED: usize = 50;

/// How long it does.
const CHANGING: Duration = Duration::from_millis(500);

/// Longest time until what is waited for has come.
const WITHIN: Duration = Duration::from_secs(60);

async fn nobody_doubts(apis: &[Api]) -> Result<()> {
    let out_of_doubt = async || {
        for api in apis {
            ensure!(api.metric("tidings_doubts").await? < 0.5, "{} doubts", api.url());
        }
        Ok(())
    };
    until("nobody is in doubt", WITHIN, out_of_doubt).await
}

async fn fill(api: &Api, key: &str) -> Result<()> {
    let Lookup::Miss { token: Some(token) } = api.get(CACHE, key).await? else { bail!("{key} is there") };
    let filled = api.fill(CACHE, key, &token, key.into()).await?;
    ensure!(matches!(filled, Fill::Stored), "{key}: {filled:?}");
    Ok(())
}

async fn held(api: &Api) -> Result<usize> {
    let mut held = 0;
    for key in 0..KEPT {
        held += usize::from(matches!(api.get(CACHE, &format!("kept-{key}")).await?, Lookup::Hit { .. }));
    }
    Ok(held)
}

/// Changes keys as fast as this node takes it, until it takes no more.
async fn change(api: Api) -> u64 {
    for turn in 0.. {
        if api.delete(CACHE, &format!("changed-{}", turn as usize % CHANGED)).await.is_err() {
            return turn;
        }
    }
    0
}

/// Kills the first node of a prepared cluster while it makes changes, after what is waited for, and starts it again at
/// once. Returns the share of what its peers held, and nobody has changed, that they still hold once nobody doubts anything.
async fn held_after_a_kill(
    mut cluster: Cluster,
    meanwhile: impl AsyncFnOnce(&Api) -> Result<()>,
) -> Result<(f64, Cluster)> {
    let nodes = cluster.ids().len();
    for node in 0..nodes {
        cluster.node_mut(node).start()?;
    }
    cluster.formed().await?;
    let apis = cluster.apis();
    nobody_doubts(&apis).await?;
    for api in &apis[1..] {
        for key in 0..KEPT {
            fill(api, &format!("kept-{key}")).await?;
        }
    }
    let mut changes = JoinSet::new();
    changes.spawn(change(apis[0].clone()));
    meanwhile(&apis[0]).await?;
    cluster.node_mut(0).kill()?;
    let changed = changes.join_next().await.context("it was spawned")??;
    ensure!(changed > 10, "{changed} changes show nothing");
    cluster.node_mut(0).start()?;
    cluster.formed().await?;
    nobody_doubts(&apis).await?;
    let mut kept = 0;
    for api in &apis[1..] {
        kept += held(api).await?;
    }
    Ok((kept as f64 / (KEPT * (nodes - 1)) as f64, cluster))
}

async fn for_a_while(_api: &Api) -> Result<()> {
    sleep(CHANGING).await;
    Ok(())
}

fn prepared(coherence: &'static str) -> Result<Cluster> {
    Cluster::prepare(Setup { coherence, ..Setup::loopback(3) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_had_not_changed_is_not_loaded_again() -> Result<()> {
    let (with, cluster) = held_after_a_kill(prepared(LOG_FILES)?, for_a_while).await?;
    let followed = cluster.node(0).api().metric("tidings_log_files_followed_total").await?;
    drop(cluster);
    let (without, cluster) = held_after_a_kill(prepared("")?, for_a_while).await?;
    drop(cluster);
    facts::note(
        "G8 G12",
        format!("{with:.2} of what nobody changed kept with log files, {without:.2} without"),
    );
    ensure!(with > 0.99, "{with:.2} kept");
    ensure!(without < 0.01, "{without:.2} kept, although nobody knows what was missed");
    ensure!(followed > 1.5, "both peers follow it, and {followed} have");
    Ok(())
}

/// A file system in memory with little room, until it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Result<Self> {
        std::fs::create_dir(path)?;
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(path).status()?;
        ensure!(mounted.success(), "mount: {mounted}; root can");
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_room_for_its_log_files_goes_on_and_its_end_is_doubted() -> Result<()> {
    let cluster = prepared(LOG_FILES)?;
    let _small = Small::mount(&cluster.directory().join("n1-log"))?;
    let full = async |api: &Api| {
        let failed = async || {
            let failures = api.metric("tidings_log_files_failures_total").await?;
            ensure!(failures > 0.5, "there is room");
            Ok(())
        };
        until("there is no room", WITHIN, failed).await?;
        // It takes changes all the same.
        api.delete(CACHE, "one more").await
    };
    let (kept, cluster) = held_after_a_kill(cluster, full).await?;
    ensure!(kept < 0.01, "{kept:.2} kept, although its files lack what it did last");
    ensure!(cluster.node(0).log().contains("the log files cannot be written any more"), "it says so");
    Ok(())
}
