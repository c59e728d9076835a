use reqwest::Method;
use serde_json::json;

use crate::support::{Answer, Api, Rig, answer, until};

/// Fills a key that is absent with a value of this version.
async fn fill(api: &Api, key: &str, version: &str) -> Answer {
    let miss = api.read("c", key).await.problem(404, "not_cached");
    let token = miss.header("tidings-fill-token").unwrap();
    let put = api.entry(Method::PUT, "c", key).header("tidings-fill-token", token);
    answer(put.header("tidings-version", version).body(version.to_owned())).await
}

async fn remove(api: &Api, key: &str, version: &str) -> Answer {
    answer(api.entry(Method::DELETE, "c", key).header("tidings-version", version)).await
}

#[tokio::test]
async fn a_removal_with_a_version_leaves_newer_entries_on_every_node() {
    let rig = Rig::start(2).await;
    let [a, b] = &rig.apis[..] else { panic!("two nodes") };
    for api in [a, b] {
        api.open("c", &json!({})).await;
    }
    fill(b, "newer", "8").await.is(204);
    fill(b, "older", "6").await.is(204);
    assert_eq!(b.read("c", "newer").await.is(200).header("tidings-version"), Some("8"));
    remove(a, "newer", "7").await.is(204);
    remove(a, "older", "7").await.is(204);
    // Of one node's changes the later one is applied later, if they share a lane; so both are waited for.
    let kept = "tidings_invalidations_total{cache=\"c\",target=\"key\",outcome=\"kept\"}";
    until("the older one goes", async || b.read("c", "older").await.status == 404).await;
    until("the newer one was told of", async || b.metric(kept).await == Some(1.0)).await;
    assert_eq!(b.read("c", "newer").await.is(200).text(), "8");
    assert_eq!(b.metric("tidings_cache_versioned{cache=\"c\"}").await, Some(1.0));
    remove(a, "newer", "9").await.is(204);
    until("it goes at last", async || b.read("c", "newer").await.status == 404).await;
    rig.end().await;
}

#[tokio::test]
async fn nodes_with_another_schema_are_named_and_their_versions_keep_nothing() {
    let rig = Rig::start(2).await;
    let [a, b] = &rig.apis[..] else { panic!("two nodes") };
    a.open("c", &json!({ "schema": 2 })).await;
    b.open("c", &json!({ "schema": 1 })).await;
    fill(b, "k", "8").await.is(204);
    remove(a, "k", "7").await.is(204);
    until("it goes", async || b.read("c", "k").await.status == 404).await;
    assert_eq!(b.metric("tidings_cache_other_schema_total{cache=\"c\"}").await, Some(1.0));
    for (api, other) in [(a, json!({ "n2": 1 })), (b, json!({ "n1": 2 }))] {
        until("it is named", async || {
            api.get("/v1/caches/c").await.is(200).document()["other_schemas"] == other
        })
        .await;
        let list = api.get("/v1/caches").await.is(200).document();
        assert_eq!(list["caches"][0]["other_schemas"], other);
    }
    let cluster = a.get("/v1/cluster").await.is(200).document();
    let of = |node: &str| {
        let members = cluster["members"].as_array().unwrap();
        let member = members.iter().find(|member| member["node"] == node).unwrap();
        (member["caches"].clone(), member["schemas"].clone())
    };
    assert_eq!(of("n1"), (json!(["c"]), json!({ "c": 2 })));
    assert_eq!(of("n2"), (json!(["c"]), json!({ "c": 1 })));
    // Opened again with the one of all others.
    a.send(Method::DELETE, "/v1/caches/c").await.is(204);
    a.open("c", &json!({ "schema": 1 })).await;
    until("they agree", async || b.get("/v1/caches/c").await.document()["other_schemas"] == json!({})).await;
    rig.end().await;
}

#[tokio::test]
async fn a_value_without_a_version_says_none_and_a_version_needs_a_token() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    api.put("c", "k", "v").await;
    assert_eq!(api.read("c", "k").await.is(200).header("tidings-version"), None);
    let put = api.entry(Method::PUT, "c", "k").header("tidings-version", "1").body("w");
    answer(put).await.problem(400, "version_without_token");
    assert_eq!(api.read("c", "k").await.text(), "v");
    for malformed in ["", "-1", "+1", "1.5", "x", "18446744073709551616"] {
        remove(api, "k", malformed).await.problem(400, "malformed_version");
    }
    let twice =
        api.entry(Method::DELETE, "c", "k").header("tidings-version", "1").header("tidings-version", "1");
    answer(twice).await.problem(400, "malformed_version");
    assert_eq!(api.read("c", "k").await.is(200).text(), "v");
    remove(api, "k", "18446744073709551615").await.is(204);
    api.read("c", "k").await.is(404);
    rig.end().await;
}
