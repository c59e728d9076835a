//! Where a key is held, as the API tells it.

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::support::{Api, Rig, answer, until};

/// Fills a miss with a value of the caller's, of which no other node hears.
async fn fill(api: &Api, key: &str, value: &str) {
    let missed = api.read("c", key).await.is(404);
    let token = missed.header("tidings-fill-token").expect("a miss has one").to_owned();
    let put = api.entry(Method::PUT, "c", key).header("tidings-fill-token", token);
    answer(put.body(value.to_owned())).await.is(204);
}

async fn scene() -> Rig {
    let rig = Rig::start(3).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    rig
}

async fn held(api: &Api, path: &str) -> Vec<Json> {
    let told = api.get(&format!("/v1/caches/c/entries/{path}/where?wait=10s")).await.is(200).document();
    assert_eq!(told["cache"], "c");
    told["nodes"].as_array().unwrap().clone()
}

fn of<'a>(nodes: &'a [Json], name: &str) -> &'a Json {
    nodes.iter().find(|node| node["node"] == name).unwrap_or_else(|| panic!("no {name} in {nodes:?}"))
}

#[tokio::test]
async fn every_member_says_whether_it_holds_a_key_and_what_it_has_applied() {
    let rig = scene().await;
    let [first, second, third] = &rig.apis[..] else { unreachable!() };
    fill(first, "a/b", "same").await;
    fill(second, "a/b", "same").await;
    let nodes = held(third, "a%2Fb").await;
    assert_eq!(nodes.len(), 3);
    assert_eq!(
        (&nodes[0]["node"], &nodes[0]["self"]),
        (&json!("n3"), &json!(true)),
        "the answering one first"
    );
    for (name, holds) in [("n1", true), ("n2", true), ("n3", false)] {
        let node = of(&nodes, name);
        assert_eq!(
            (&node["holds"], &node["reason"], &node["detail"]),
            (&json!(holds), &Json::Null, &Json::Null)
        );
        assert_eq!((node["age_ms"].is_f64(), node["digest"].is_string()), (holds, holds), "{node}");
        assert!(node["applied_ms"].as_f64().is_some_and(|ms| ms < 60_000.0), "{node}");
    }
    assert_eq!(of(&nodes, "n1")["digest"], of(&nodes, "n2")["digest"], "equal values have one digest");

    // Another value is another digest, a removal is no entry anywhere, and looking filled nothing.
    fill(third, "a/b", "other").await;
    let nodes = held(second, "a%2Fb").await;
    assert_ne!(of(&nodes, "n3")["digest"], of(&nodes, "n1")["digest"]);
    answer(first.entry(Method::DELETE, "c", "a/b").query(&[("acked", "30s")])).await.is(200);
    for api in &rig.apis {
        assert!(held(api, "a%2Fb").await.iter().all(|node| node["holds"] == json!(false)));
        let requests = api.metric("tidings_cache_requests_total").await.unwrap();
        assert!(requests < 2.5, "a look is no read: {requests}");
    }
    rig.end().await;
}

#[tokio::test]
async fn the_empty_key_is_looked_for_too() {
    let rig = scene().await;
    rig.apis[1].put("c", "", "v").await;
    let nodes = held(&rig.apis[0], "").await;
    assert_eq!(of(&nodes, "n2")["holds"], json!(true));
    assert_eq!(of(&nodes, "n1")["holds"], json!(false));
    rig.end().await;
}

#[tokio::test]
async fn a_member_that_does_not_say_is_named_with_the_reason() {
    let rig = scene().await;
    let api = &rig.apis[0];
    for (index, other) in rig.apis[1..].iter().enumerate() {
        other.send(Method::DELETE, "/v1/caches/c").await.is(204);
        if index == 0 {
            other.open("c", &json!({ "audit": false })).await;
        }
    }
    let told = api.get("/v1/caches/c/entries/k/where?wait=10s").await.is(207).document();
    let nodes = told["nodes"].as_array().unwrap();
    let why = |name: &str| (of(nodes, name)["holds"].clone(), of(nodes, name)["reason"].clone());
    assert_eq!(why("n1"), (json!(false), Json::Null));
    assert_eq!(why("n2"), (Json::Null, json!("not_audited")));
    assert_eq!(why("n3"), (json!(false), json!("not_hosted")), "nothing is held where it is not open");

    rig.node(0).set_denied(&["n2".to_owned()]);
    until("it cannot be reached", async || {
        let told = api.get("/v1/caches/c/entries/k/where?wait=10s").await.is(207).document();
        of(told["nodes"].as_array().unwrap(), "n2")["reason"] == "unreachable"
    })
    .await;
    rig.end().await;
}

#[tokio::test]
async fn what_cannot_be_looked_for_is_refused() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    api.open("apart", &json!({ "audit": false })).await;
    let get = async |path: &str| api.get(&format!("/v1/caches/{path}")).await;
    get("none/entries/k/where").await.problem(404, "unknown_cache");
    get("apart/entries/k/where").await.problem(409, "not_audited");
    get(&format!("c/entries/{}/where", "k".repeat(5_000))).await.problem(413, "key_too_long");
    for query in ["wait=0s", "wait=11s", "wait=x", "weight=1s"] {
        get(&format!("c/entries/k/where?{query}")).await.problem(400, "invalid_query");
    }
    rig.end().await;
}
