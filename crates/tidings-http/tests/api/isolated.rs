//! What caches do while their node hears one of its members no more.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tidings::Node;
use tidings_http::Options;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Answer, answer, loopback, serve, until};

/// Short, so that doubt comes soon; long enough for heartbeats of a busy machine.
const MAX_STALENESS: Duration = Duration::from_secs(3);

#[tokio::test]
async fn in_doubt_a_value_is_missing_or_marked_as_its_cache_is_set() {
    let build = |id: &str| {
        let builder = Node::builder("test").node_id(id).max_staleness(MAX_STALENESS);
        builder.write_horizon(Duration::from_millis(100))
    };
    let first = build("n1").start().await.unwrap();
    let second = build("n2").seeds([first.address().to_string()]).start().await.unwrap();
    let (mut servers, stop) = (JoinSet::new(), CancellationToken::new());
    let api = serve(&first, Options::new(loopback()), &mut servers, &stop).await;
    let choices = ["limit", "bypass", "serve", "flush"];
    for choice in choices {
        api.open(choice, &json!({ "when_isolated": choice })).await;
        let shown = api.get(&format!("/v1/caches/{choice}")).await.is(200).document();
        assert_eq!(shown["when_isolated"], choice);
    }
    assert!(first.fresh(Duration::from_secs(60)).await);
    until("both are heard", async || first.members().iter().filter(|member| member.synced()).count() == 2)
        .await;
    for choice in choices {
        api.put(choice, "k", "v").await;
        assert_eq!(api.read(choice, "k").await.is(200).header("tidings-stale"), None, "{choice}");
    }

    // No goodbye: it is just gone.
    drop(second);
    // Of each cache by itself: one value may have been put a while after another.
    until("doubt has made the value too old", async || {
        api.read("serve", "k").await.is(200).header("tidings-stale") == Some("true")
    })
    .await;
    until("a limiting cache has it no more", async || api.read("limit", "k").await.status == 404).await;
    until("the doubt is told of", async || api.metric("tidings_doubts").await > Some(0.0)).await;
    let unheard = "tidings_doubt_reasons{reason=\"unheard\"}";
    until("and why", async || api.metric(unheard).await == Some(1.0)).await;
    let told = api.get("/v1/coherence").await.is(200).document()["doubts"].clone();
    assert_eq!(told.as_array().map(Vec::len), Some(1), "{told}");
    let told = &told[0];
    assert_eq!((&told["reason"], &told["node"]), (&json!("unheard"), &json!("n2")), "{told}");
    assert_eq!(told["text"], "n2 is not heard");
    let marked = api.read("serve", "k").await.is(200);
    assert_eq!((marked.text().as_str(), marked.header("tidings-stale")), ("v", Some("true")));
    let age: f64 = marked.header("tidings-age").unwrap().parse().unwrap();
    assert!(age > 0.9 * MAX_STALENESS.as_secs_f64(), "{age}");
    assert_eq!(
        api.metric("tidings_cache_requests_total{cache=\"serve\",outcome=\"stale\"}").await,
        Some(2.0)
    );

    let token = |miss: &Answer| miss.header("tidings-fill-token").unwrap().to_owned();
    let fill = async |token: &str| {
        answer(api.entry(Method::PUT, "bypass", "k").header("tidings-fill-token", token).body("w")).await
    };
    let given = token(&api.read("bypass", "k").await.problem(404, "not_cached"));
    fill(&given).await.problem(409, "fill_ended");
    assert_eq!(api.metric("tidings_cache_bypassed_total{cache=\"bypass\"}").await, Some(1.0));

    api.read("flush", "k").await.problem(404, "not_cached");
    assert_eq!(api.metric("tidings_cache_flushed_total{cache=\"flush\"}").await, Some(1.0));

    // It ends once the member is known to be over; what it may have changed unheard is never served again.
    until("the member is forgotten", async || {
        let forget = json!({ "node": "n2" });
        api.json(Method::POST, "/v1/cluster/forget", &forget).await.status == 200
    })
    .await;
    until("the doubt is over", async || api.metric("tidings_doubts").await == Some(0.0)).await;
    assert_eq!(api.get("/v1/coherence").await.is(200).document()["doubts"], json!([]));
    assert_eq!(api.metric(unheard).await, Some(0.0));
    until("what the floor took is counted", async || {
        api.metric("tidings_over_invalidated_entries_total").await > Some(0.0)
    })
    .await;
    api.read("serve", "k").await.problem(404, "not_cached");
    let token = token(&api.read("bypass", "k").await);
    fill(&token).await.is(204);
    assert_eq!(api.read("bypass", "k").await.is(200).text(), "w");
    stop.cancel();
    servers.join_all().await;
    first.shutdown(Duration::from_secs(5)).await;
}
