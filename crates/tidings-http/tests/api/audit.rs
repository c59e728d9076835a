//! Whether nodes hold the same, as the API tells it.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidings::NodeBuilder;

use crate::support::{Api, Rig, answer, until};

/// Fills a miss with a value of the caller's, of which no other node hears.
async fn fill(api: &Api, key: &str, value: &str) {
    let missed = api.read("c", key).await.is(404);
    let token = missed.header("tidings-fill-token").expect("a miss has one").to_owned();
    let put = api.entry(Method::PUT, "c", key).header("tidings-fill-token", token);
    answer(put.body(value.to_owned())).await.is(204);
}

async fn audit(api: &Api) -> Json {
    api.get("/v1/coherence").await.is(200).document()["audit"].clone()
}

#[tokio::test]
async fn an_audit_that_is_asked_for_tells_what_differs() {
    // Long enough that the audit is under way when it is asked for again.
    let build = |_, builder: NodeBuilder| builder.write_horizon(Duration::from_secs(2));
    let rig = Rig::start_with(2, build, |options| options).await;
    for (index, api) in rig.apis.iter().enumerate() {
        api.open("c", &json!({})).await;
        api.open("opted-out", &json!({ "audit": false })).await;
        fill(api, "same", "value").await;
        fill(api, "<differs>", &index.to_string()).await;
    }
    let api = &rig.apis[0];
    let known =
        async || api.get("/v1/cluster").await.document()["members"][1]["caches"] == json!(["c", "opted-out"]);
    until("the other's caches are known", known).await;
    let before = audit(api).await;
    assert_eq!((&before["keys_per_second"], &before["requested"]), (&json!(0), &Json::Null));
    let begun = api.send(Method::POST, "/v1/coherence/audit").await.is(202).document();
    assert_eq!(begun, json!({ "former_began_ms": null }));
    api.send(Method::POST, "/v1/coherence/audit").await.problem(409, "audit_under_way");
    until("it is over", async || audit(api).await["requested"] != Json::Null).await;
    let told = audit(api).await;
    let report = &told["requested"];
    assert_eq!((&report["complete"], &report["requested"]), (&json!(true), &json!(true)));
    assert_eq!(report["of"], 2);
    for (name, count) in [("entries", 2), ("compared", 2), ("held", 2), ("inconsistent", 1), ("lag", 0)] {
        assert_eq!(report["counts"][name], count, "{name}");
        assert_eq!(told["counts"][name], count, "{name}");
    }
    assert_eq!(report["peers"], json!([{ "node": "n2", "compared": 2, "gap": null }]));
    let found = &told["inconsistencies"][0];
    assert_eq!(report["inconsistencies"][0], *found);
    assert_eq!(
        (&found["cache"], &found["key"], &found["peer"]),
        (&json!("c"), &json!("<differs>"), &json!("n2"))
    );
    assert!(found["age_ms"].as_f64() > Some(0.0) && found["peer_age_ms"].as_f64() > Some(0.0), "{found}");
    assert_eq!(audit(&rig.apis[1]).await["answered_entries"], 3, "two, and one of them again");
    for (name, value) in [
        ("tidings_audit_entries_total", 2.0),
        ("tidings_audit_differing_total{outcome=\"inconsistent\"}", 1.0),
        ("tidings_audit_differing_total{outcome=\"lag\"}", 0.0),
        ("tidings_audit_sweep_duration_seconds_count", 1.0),
    ] {
        assert_eq!(api.metric(name).await, Some(value), "{name}");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_node_that_audits_by_itself_says_how_fast() {
    let build = |index, builder: NodeBuilder| if index == 0 { builder.audit(500) } else { builder };
    let rig = Rig::start_with(2, build, |options| options).await;
    for (index, api) in rig.apis.iter().enumerate() {
        api.open("c", &json!({})).await;
        fill(api, "differs", &index.to_string()).await;
    }
    let api = &rig.apis[0];
    until("it is found", async || audit(api).await["inconsistencies"][0]["key"] == "differs").await;
    let told = audit(api).await;
    assert_eq!((&told["keys_per_second"], &told["requested"]), (&json!(500), &Json::Null));
    assert_eq!(audit(&rig.apis[1]).await["counts"]["compared"], 0);
    rig.end().await;
}
