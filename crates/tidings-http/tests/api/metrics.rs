use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tidings_http::exposition;

use crate::support::{Rig, answer, until};

#[tokio::test]
async fn counters_are_there_from_the_start() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    let text = api.get("/metrics").await.is(200);
    assert_eq!(
        text.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let text = text.text();
    for series in [
        "tidings_events_published_total 0",
        "tidings_events_applied_total{origin=\"n1\"} 0",
        "tidings_events_duplicates_total 0",
        "tidings_events_rejected_total{reason=\"protocol\"} 0",
        "tidings_follow_gaps_total 0",
        "tidings_follow_resets_total 0",
        "tidings_fences_total{reason=\"reset\"} 0",
        "tidings_cache_requests_total{cache=\"c\",outcome=\"hit\"} 0",
        "tidings_cache_requests_total{cache=\"c\",outcome=\"stale\"} 0",
        "tidings_cache_evictions_total{cache=\"c\",cause=\"size\"} 0",
        "# TYPE tidings_cache_load_duration_seconds histogram",
        "tidings_cache_load_duration_seconds_count{cache=\"c\"} 0",
        "tidings_cache_load_duration_seconds_bucket{le=\"+Inf\",cache=\"c\"} 0",
        "tidings_cache_load_duration_seconds_bucket{le=\"1.0\",cache=\"c\"} 0",
        "tidings_cache_fence_rejects_total{cache=\"c\"} 0",
        "tidings_invalidations_total{cache=\"c\",target=\"key\",outcome=\"evicted\"} 0",
        "tidings_invalidations_total{cache=\"c\",target=\"keys\",outcome=\"absent\"} 0",
        "tidings_invalidations_total{cache=\"c\",target=\"all\",outcome=\"fenced\"} 0",
        "tidings_broadcast_errors_total{reason=\"dial\"} 0",
        "tidings_broadcast_errors_total{reason=\"overrun\"} 0",
        "tidings_hearsay_refused_total 0",
        "tidings_log_files_failures_total 0",
        "tidings_log_files_stuck 0.0",
        "tidings_subscriber_lagged_total{cache=\"c\"} 0",
        "tidings_handshake_refused_total{reason=\"unknown_ca\"} 0",
        "tidings_member_state{node=\"n1\",state=\"live\"} 1.0",
        "tidings_member_state{node=\"n1\",state=\"lost\"} 0.0",
        "tidings_cache_entries{cache=\"c\"} 0.0",
        "tidings_freshness_age_seconds 0.0",
        "tidings_ready 1.0",
        concat!("tidings_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
        "# TYPE tidings_peer_lag gauge",
        "# UNIT tidings_peer_rtt_seconds seconds",
        "# EOF",
    ] {
        assert!(text.lines().any(|line| line == series), "{series} is not in\n{text}");
    }
    rig.end().await;
}

/// A family as the table has it. The suffix is that of its samples, but for histograms, which have three.
#[derive(Default)]
struct Family {
    kind: String,
    unit: String,
    help: String,
    labels: BTreeSet<String>,
}

/// Reads the families of a scrape.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    for line in text.lines() {
        let Some((what, (name, said))) = line
            .strip_prefix("# ")
            .and_then(|line| line.split_once(' '))
            .and_then(|(what, rest)| Some((what, rest.split_once(' ')?)))
        else {
            continue;
        };
        let family = families.entry(name.to_owned()).or_default();
        match what {
            "TYPE" => said.clone_into(&mut family.kind),
            "UNIT" => said.clone_into(&mut family.unit),
            _ => said.clone_into(&mut family.help),
        }
    }
    for sample in exposition::samples(text) {
        let of = |(name, _): &(&String, &mut Family)| sample.name.starts_with(&***name);
        // The longest name that fits: one may begin with another.
        let (_, family) = families.iter_mut().filter(of).max_by_key(|(name, _)| name.len()).unwrap();
        family
            .labels
            .extend(sample.labels.iter().map(|(label, _)| (*label).to_owned()).filter(|it| it != "le"));
    }
    families
}

#[tokio::test]
async fn the_table_of_metrics_is_what_a_node_says() {
    let rig = Rig::start(2).await;
    let api = &rig.apis[0];
    // The session says each when it comes to it.
    for name in ["tidings_peer_rtt_seconds", "tidings_invalidation_duration_seconds_count"] {
        until(name, async || api.metric(name).await.is_some()).await;
    }
    api.open("c", &json!({})).await;
    let rows = families(&api.get("/metrics").await.text()).into_iter().map(|(name, family)| {
        let suffix = match &*family.kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert!(!family.help.is_empty(), "{name} does not say what it is");
        let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        format!(
            "| `{name}{suffix}` | {} | {} | {} | {} |\n",
            family.kind,
            family.unit,
            labels.join(", "),
            family.help.trim_end_matches('.')
        )
    });
    let table = rows.collect::<String>();
    let written = include_str!("../../METRICS.md");
    let is_row = |line: &&str| line.starts_with("| `");
    let rows: String = written.lines().filter(is_row).flat_map(|line| [line, "\n"]).collect();
    assert!(rows == table, "METRICS.md should have these rows:\n{table}");
    rig.end().await;
}

#[tokio::test]
async fn the_text_is_sound_and_names_no_key() {
    let rig = Rig::start(2).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    api.put("c", "secret-key", "secret-value").await;
    let text = api.get("/metrics").await.text();
    assert!(!text.contains("secret"), "{text}");
    let mut families = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(families.insert(family.split(' ').next().unwrap().to_owned()), "twice: {line}");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(name.to_owned()), "twice: {line}");
            assert!(name.starts_with("tidings_"), "{line}");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(text.ends_with("# EOF\n"));
    rig.end().await;
}

#[tokio::test]
async fn a_change_is_published_once_and_applied_once_by_each_follower() {
    let rig = Rig::start(3).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let [writer, followers @ ..] = &rig.apis[..] else { unreachable!() };
    for n in 0..10 {
        writer.put("c", &format!("k{n}"), "v").await;
    }
    answer(writer.entry(Method::DELETE, "c", "k0")).await.is(204);
    let keys = json!({ "keys": ["k1", "k2", "absent"] });
    writer.json(Method::POST, "/v1/caches/c/invalidate", &keys).await.is(200);
    for whole in [json!({ "tags": ["red", "green"] }), json!({ "prefix": "k" })] {
        writer.json(Method::POST, "/v1/caches/c/invalidate", &whole).await.is(200);
    }
    const CHANGES: f64 = 17.0;
    assert_eq!(writer.metric("tidings_events_published_total").await, Some(CHANGES));
    for follower in followers {
        let applied = async || follower.metric("tidings_events_applied_total").await == Some(CHANGES);
        until("all are applied", applied).await;
        assert_eq!(follower.metric("tidings_events_published_total").await, Some(0.0));
        for (target, changes) in [("tag", 2.0), ("prefix", 1.0)] {
            let labels = format!("cache=\"c\",target=\"{target}\",outcome=\"applied\"");
            let applied = follower.metric(&format!("tidings_invalidations_total{{{labels}}}")).await;
            assert_eq!(applied, Some(changes), "{target}");
        }
        assert_eq!(follower.metric("tidings_events_applied_total{origin=\"n1\"}").await, Some(CHANGES));
    }
    assert_eq!(writer.metric("tidings_events_applied_total").await, Some(0.0));
    until("all is acknowledged", async || writer.metric("tidings_peer_lag").await == Some(0.0)).await;
    for api in &rig.apis {
        until("all is followed", async || api.metric("tidings_follow_synced").await == Some(2.0)).await;
        assert_eq!(api.metric("tidings_member_state").await, Some(3.0), "each member is in one state");
        for counter in ["tidings_follow_gaps_total", "tidings_follow_resets_total", "tidings_fences_total"] {
            assert_eq!(api.metric(counter).await, Some(0.0), "{counter}");
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn reads_are_counted_by_what_became_of_them() {
    let rig = Rig::start(2).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let api = &rig.apis[0];
    api.put("c", "k", "v").await;
    api.read("c", "k").await.is(200);
    api.read("c", "k").await.is(200);
    let miss = api.read("c", "other").await.is(404);
    let requests = async |outcome: &str| {
        api.metric(&format!("tidings_cache_requests_total{{cache=\"c\",outcome=\"{outcome}\"}}")).await
    };
    assert_eq!((requests("hit").await, requests("miss").await), (Some(2.0), Some(1.0)));

    rig.apis[1].put("c", "k", "w").await;
    let evicted = "tidings_invalidations_total{target=\"key\",outcome=\"evicted\"}";
    until("it is evicted", async || api.metric(evicted).await == Some(1.0)).await;
    assert_eq!(api.metric("tidings_invalidations_total{outcome=\"absent\"}").await, Some(0.0));
    api.put("c", "other", "v").await;
    let token = miss.header("tidings-fill-token").unwrap();
    answer(api.entry(Method::PUT, "c", "other").header("tidings-fill-token", token)).await.is(409);
    assert_eq!(api.metric("tidings_cache_fence_rejects_total").await, Some(1.0));
    rig.end().await;
}

#[tokio::test]
async fn what_a_node_did_stays_counted_after_it_has_left() {
    let rig = Rig::start(2).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let applied =
        async || rig.apis[0].metric("tidings_events_applied_total{origin=\"n2\"}").await == Some(1.0);
    rig.apis[1].put("c", "k", "v").await;
    until("it is applied", applied).await;
    assert!(rig.node(1).shutdown(Duration::from_secs(5)).await);
    let left = "tidings_member_state{node=\"n2\",state=\"left\"}";
    until("it has left", async || rig.apis[0].metric(left).await == Some(1.0)).await;
    assert!(applied().await);
    rig.end().await;
}
