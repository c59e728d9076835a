//! Clusters of several releases. There is no other release yet, so one is spoken for: `other-release` is a node that works
//! as this one does, and says and understands what an earlier or a later one would.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tidings_tests::api::{Api, Fill, Lookup, Receipt};
use tidings_tests::cluster::{CACHE, Cluster, Setup};
use tidings_tests::drive::{Drive, Load};
use tidings_tests::facts;
use tidings_tests::node::Program;
use tidings_tests::scale;
use tidings_tests::wait::until;
use tokio::time::sleep;

use crate::verdict;

/// Traffic with one release alone, and with several, at least: a later one tells few changes that are not understood.
const STEADY: Duration = Duration::from_secs(4);

/// Longest time of a clean shutdown.
const SHUT_DOWN_WITHIN: Duration = Duration::from_secs(20);

/// How long a receipt is waited for: a machine may stand still.
const APPLIED_WITHIN: Duration = Duration::from_secs(20);

/// Longest time until what has happened is told.
const TOLD_WITHIN: Duration = Duration::from_secs(20);

/// Records that a node could not understand, and fenced.
const FENCED: &str = "tidings_events_rejected_total{reason=\"opaque\"}";

/// Records that it did not know, and that may be passed over.
const PASSED_OVER: &str = "tidings_events_skipped_total{reason=\"unknown_kind\"}";

/// What ends a link, and what has to be asked for again or fenced: nothing of it may come of a difference of releases.
const BROKEN: [&str; 3] = [
    "tidings_events_rejected_total{reason=\"protocol\"}",
    "tidings_follow_gaps_total",
    "tidings_follow_resets_total",
];

fn speaking(dialect: &str) -> Option<Program> {
    Some(Program { path: env!("CARGO_BIN_EXE_other-release").into(), first: vec![dialect.to_owned()] })
}

/// Replaces a node's release, as an orchestrator does: out of service first, then ended, started and waited for.
async fn roll(cluster: &mut Cluster, node: usize, program: Option<Program>) -> Result<()> {
    cluster.node(node).api().drain().await?;
    let status = cluster.node_mut(node).terminate(SHUT_DOWN_WITHIN).await?;
    ensure!(status.success(), "n{} ended: {status}", node + 1);
    cluster.node_mut(node).runs(program);
    cluster.node_mut(node).start()?;
    cluster.formed().await
}

async fn nothing_is_broken(apis: &[Api]) -> Result<()> {
    for (node, api) in apis.iter().enumerate() {
        for metric in BROKEN {
            let count = api.metric(metric).await?;
            ensure!(count < 0.5, "n{}: {metric} {count}", node + 1);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_rolled_out_and_back_under_load_serve_nothing_stale() -> Result<()> {
    let coherence = "write_horizon = \"0s\"";
    // Else what was fenced would not be cached again before the next fence, and nothing could be stale.
    let mut cluster = Cluster::start(Setup { coherence, ..Setup::hosts(4)? }).await?;
    // Few keys, each of which is written often while it is cached nearly everywhere.
    let drive = Drive::start(&cluster, Load { keys: 100, ..Load::default() });
    sleep(scale::duration(STEADY).max(STEADY)).await;
    drive.phase("rolled out");
    roll(&mut cluster, 2, speaking("older")).await?;
    roll(&mut cluster, 3, speaking("newer")).await?;
    drive.phase("mixed");
    sleep(scale::duration(STEADY).max(STEADY)).await;
    let apis = cluster.apis();
    nothing_is_broken(&apis).await?;
    let mut fenced = 0.0;
    for api in &apis[..3] {
        let here = api.metric(FENCED).await?;
        ensure!(here > 0.5, "{} has fenced nothing of what it does not understand", api.url());
        ensure!(api.metric(PASSED_OVER).await? > 0.5, "{} has passed over nothing", api.url());
        fenced += here;
    }
    drive.phase("rolled back");
    roll(&mut cluster, 3, None).await?;
    roll(&mut cluster, 2, None).await?;
    drive.phase("after");
    sleep(scale::duration(STEADY).max(STEADY)).await;
    let stopped = verdict::kept_with(&mut cluster, drive, &[]).await?;
    let summary = stopped.record().summary();
    // At those that do not understand all that the fourth one says.
    let mixed: u64 = (0..3).map(|node| stopped.phase("mixed").node(node).hits).sum();
    ensure!(mixed > 20, "{mixed} hits while releases were mixed show nothing");
    facts::note(
        "G2 G14",
        format!(
            "{} hits judged, {mixed} of them on nodes that did not understand all that a later release said, stale by at most \
             {:.1?}, {} violations; {fenced} records fenced, no gap, no reset",
            summary.hits, summary.staleness_max, summary.violations
        ),
    );
    Ok(())
}

/// Has a node hold a value, which is filled as often as something ends that.
async fn hold(api: &Api, cache: &str, key: &str) -> Result<()> {
    let filled = async || match api.get(cache, key).await? {
        Lookup::Hit { .. } => Ok(()),
        Lookup::Miss { token } => {
            let token = token.context("nothing is stored")?;
            let filled = api.fill(cache, key, &token, b"old".to_vec()).await?;
            ensure!(filled == Fill::Stored, "something ended the fill");
            bail!("it is read once more")
        }
    };
    until("it holds the key", TOLD_WITHIN, filled).await
}

/// Nodes that are not in doubt, however long the machine stands still: what is missing was fenced or removed.
fn patient(nodes: usize) -> Setup {
    let coherence = "write_horizon = \"0s\"";
    Setup { max_staleness: Duration::from_secs(60), coherence, ..Setup::loopback(nodes) }
}

/// Starts nodes, each of which speaks so.
async fn start(programs: &[Option<Program>]) -> Result<Cluster> {
    let mut cluster = Cluster::prepare(patient(programs.len()))?;
    for (node, program) in programs.iter().enumerate() {
        cluster.node_mut(node).runs(program.clone());
        cluster.node_mut(node).start()?;
    }
    cluster.formed().await?;
    Ok(cluster)
}

fn applied_everywhere(receipt: &Receipt) -> Result<()> {
    ensure!(receipt.missing.is_empty() && receipt.expired.is_empty(), "{receipt:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_release_changes_is_never_read_as_it_was() -> Result<()> {
    const CHANGES: usize = 100;
    let cluster = start(&[None, speaking("newer")]).await?;
    let (here, newer) = (cluster.node(0).api(), cluster.node(1).api());
    for change in 0..CHANGES {
        let key = format!("key-{change}");
        hold(here, CACHE, &key).await?;
        applied_everywhere(&newer.delete_acked(CACHE, &key, APPLIED_WITHIN).await?)?;
        let read = here.get(CACHE, &key).await?;
        ensure!(matches!(read, Lookup::Miss { .. }), "{key} after its removal: {read:?}");
    }
    let (fenced, applied) = (here.metric(FENCED).await?, here.metric("tidings_events_applied_total").await?);
    ensure!(fenced > 0.5 && applied > fenced, "{fenced} fenced, {applied} applied");
    ensure!(
        (fenced + applied - CHANGES as f64).abs() < 0.5,
        "{fenced} fenced, {applied} applied of {CHANGES}"
    );
    nothing_is_broken(&cluster.apis()).await?;
    facts::note(
        "G14",
        format!(
            "{CHANGES} changes by a later release, {fenced} of them not understood: all of them ended the entry"
        ),
    );
    Ok(())
}

/// Removes a key of a cache with a schema as of a version: an earlier release does not know what stands in such a record.
async fn remove_versioned(api: &Api, key: &str) -> Result<Receipt> {
    let request = api.request(Method::DELETE, &["v1", "caches", "rows", "entries", key]);
    let acked = [("acked", format!("{}ms", APPLIED_WITHIN.as_millis()))];
    let request = request.header("tidings-version", "5").query(&acked).timeout(2 * APPLIED_WITHIN);
    let answer = api.send(request).await?;
    ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    answer.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_release_does_not_know_it_fences() -> Result<()> {
    let cluster = start(&[None, speaking("older")]).await?;
    let (here, older) = (cluster.node(0).api(), cluster.node(1).api());
    for api in [here, older] {
        let open = api.request(Method::PUT, &["v1", "caches", "rows"]).json(&json!({ "schema": 1 }));
        api.send(open).await?.must_be(StatusCode::CREATED)?;
    }
    for key in ["a", "b", "c"] {
        hold(older, "rows", key).await?;
        applied_everywhere(&remove_versioned(here, key).await?)?;
        let read = older.get("rows", key).await?;
        ensure!(matches!(read, Lookup::Miss { .. }), "{key} after its removal: {read:?}");
    }
    let fenced = older.metric(FENCED).await?;
    ensure!(fenced > 2.5, "{fenced} records were not understood");
    // The other way nothing is said that this release does not know.
    hold(here, CACHE, "k").await?;
    applied_everywhere(&older.delete_acked(CACHE, "k", APPLIED_WITHIN).await?)?;
    ensure!(matches!(here.get(CACHE, "k").await?, Lookup::Miss { .. }), "it was removed");
    ensure!(here.metric(FENCED).await? < 0.5, "this release understands an earlier one");
    nothing_is_broken(&cluster.apis()).await
}

/// The newest handshake that a node has refused for its protocol.
async fn refused(api: &Api) -> Result<Value> {
    let view = api.send(api.request(Method::GET, &["v1", "cluster"])).await?.must_be(StatusCode::OK)?;
    let view: Value = view.json()?;
    let refused = view["refused"].as_array().context("no list")?;
    let of_protocol =
        refused.iter().find(|refused| refused["reason"] == "protocol" && refused["by_peer"] == false);
    of_protocol.cloned().with_context(|| format!("{refused:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_without_a_protocol_in_common_is_refused_by_name_and_not_ready() -> Result<()> {
    let mut cluster = Cluster::prepare(patient(3))?;
    for node in 0..2 {
        cluster.node_mut(node).start()?;
    }
    cluster.formed().await?;
    cluster.node_mut(2).runs(speaking("foreign"));
    cluster.node_mut(2).start()?;
    let here = cluster.node(0).api();
    let told = until("it is refused", TOLD_WITHIN, async || refused(here).await).await?;
    ensure!(told["node"] == "n3", "{told}");
    ensure!(
        here.metric("tidings_handshake_refused_total{reason=\"protocol\"}").await? > 0.5,
        "it is counted"
    );
    ensure!(cluster.node(2).api().ready().await.is_err(), "nobody has let it in");
    here.ready().await?;
    hold(here, CACHE, "k").await?;
    applied_everywhere(&cluster.node(1).api().delete_acked(CACHE, "k", APPLIED_WITHIN).await?)?;
    ensure!(matches!(here.get(CACHE, "k").await?, Lookup::Miss { .. }), "those that speak alike go on");
    Ok(())
}
