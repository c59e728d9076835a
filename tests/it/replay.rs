//! `tidings replay` and `demo`: real requests through real nodes, and the program's own verdict on every read.

use anyhow::{Context, Result};
use serde_json::Value;
use tidings_tests::cluster::{Cluster, Setup};
use tidings_tests::directory::Alone;
use tidings_tests::node::run_program;
use tidings_tests::scale;

/// Requests of a run in one process: a tenth of what the trace of a production cluster would give.
const REQUESTS: usize = 100_000;

/// Requests of a run over HTTP, which costs more for each.
const HTTP_REQUESTS: usize = 20_000;

/// Runs the program and reads the summary that it closes with.
fn summary(arguments: &[&str]) -> Result<Value> {
    let printed = run_program(&[arguments, &["--json"]].concat())?;
    serde_json::from_str(&printed).with_context(|| printed)
}

fn generated(requests: usize, further: &[&str]) -> Result<Value> {
    summary(&[&["replay", "--generate", &scale::count(requests).to_string()], further].concat())
}

fn number(summary: &Value, field: &str) -> f64 {
    summary[field].as_f64().unwrap_or_else(|| panic!("no number {field} in {summary}"))
}

fn assert_coherent(summary: &Value) {
    for field in ["stale_reads_after_bound", "differing_at_end", "uncompared_at_end"] {
        assert!(number(summary, field) < 0.5, "{field}: {summary}");
    }
    assert!(number(summary, "hit_ratio") > 0.0, "nothing was cached: {summary}");
    let (writes, compared) = (number(summary, "writes"), number(summary, "compared_at_end"));
    assert!(writes < 0.5 || compared > 0.5, "nothing was compared: {summary}");
}

#[test]
fn a_replay_with_writes_is_coherent() -> Result<()> {
    let _alone = Alone::wait()?;
    let summary = generated(REQUESTS, &["--nodes", "3", "--write-ratio", "0.05"])?;
    assert_coherent(&summary);
    assert!(number(&summary, "writes") > 0.5, "{summary}");
    let (published, writes) = (number(&summary, "events_published"), number(&summary, "writes"));
    assert!(published >= writes, "a write without its event: {summary}");
    assert!(
        (number(&summary, "events_applied") - 2.0 * published).abs() < 0.5,
        "both peers apply each: {summary}"
    );
    Ok(())
}

#[test]
fn a_replay_without_writes_publishes_nothing() -> Result<()> {
    let _alone = Alone::wait()?;
    let summary = generated(REQUESTS, &["--nodes", "3", "--write-ratio", "0"])?;
    assert_coherent(&summary);
    assert!(number(&summary, "events_published") < 0.5, "{summary}");
    Ok(())
}

#[test]
fn chaos_breaks_no_promise() -> Result<()> {
    let _alone = Alone::wait()?;
    /// The first episode begins after 5 s at the latest; shorter runs would prove nothing.
    const SECONDS_MIN: usize = 8;
    let duration = format!("{}s", scale::count(20).max(SECONDS_MIN));
    let run = ["replay", "--generate", "1000000", "--speed", "1.0", "--chaos", "--duration", &duration];
    let summary = summary(&run)?;
    assert_coherent(&summary);
    let done = summary["chaos"].as_array().map_or(0, Vec::len);
    assert!(done >= 2, "something is done and undone: {summary}");
    Ok(())
}

#[tokio::test]
async fn a_replay_through_processes_is_coherent() -> Result<()> {
    let cluster = Cluster::start(Setup::loopback(3)).await?;
    let urls = cluster.urls().join(",");
    let summary = generated(HTTP_REQUESTS, &["--urls", &urls, "--write-ratio", "0.05"])?;
    assert_coherent(&summary);
    assert!((number(&summary, "nodes") - 3.0).abs() < 0.5, "{summary}");
    Ok(())
}

#[test]
fn the_demo_ends_by_itself_with_a_summary() -> Result<()> {
    let _alone = Alone::wait()?;
    let summary = summary(&["demo", "--duration", "3s", "--http-port", "0"])?;
    assert_coherent(&summary);
    assert!(number(&summary, "requests") > 0.5, "{summary}");
    Ok(())
}
