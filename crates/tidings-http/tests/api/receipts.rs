use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::support::{Answer, Api, Rig, answer, serve, until};

const PATIENCE: &str = "60s";

async fn put(api: &Api, acked: &str) -> Answer {
    answer(api.entry(Method::PUT, "c", "k").query(&[("acked", acked)]).body("v")).await
}

async fn delete(api: &Api, acked: &str) -> Answer {
    answer(api.entry(Method::DELETE, "c", "k").query(&[("acked", acked)])).await
}

async fn invalidate(api: &Api, acked: &str, what: &Json) -> Answer {
    api.json(Method::POST, &format!("/v1/caches/c/invalidate?acked={acked}"), what).await
}

/// Nodes of which the last one is cut off from the first.
async fn cut(nodes: usize) -> Rig {
    let rig = Rig::start(nodes).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let last = rig.node(nodes - 1).origin().node.to_string();
    rig.node(0).set_denied(std::slice::from_ref(&last));
    let linked = || rig.node(0).members().iter().any(|it| it.node.as_str() == last && it.rtt.is_some());
    until("the link is down", async || !linked()).await;
    rig
}

#[tokio::test]
async fn whoever_asks_is_told_who_has_applied_a_change() {
    let rig = Rig::start(3).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let [here, there, _] = &rig.apis[..] else { unreachable!() };
    let receipt = json!({ "applied": ["n2", "n3"], "missing": [], "expired": [] });
    // With a receipt, for else it would evict what is put here.
    put(there, PATIENCE).await.is(200);
    there.read("c", "k").await.is(200);
    assert_eq!(put(here, PATIENCE).await.is(200).document(), receipt);
    there.read("c", "k").await.problem(404, "not_cached");
    assert_eq!(here.read("c", "k").await.is(200).text(), "v");
    assert_eq!(delete(here, PATIENCE).await.is(200).document(), receipt);
    for (what, done) in
        [(json!({ "keys": ["a", "b", "c"] }), json!({ "keys": 3 })), (json!({ "all": true }), json!("all"))]
    {
        let mut expected = receipt.clone();
        expected["invalidated"] = done;
        assert_eq!(invalidate(here, PATIENCE, &what).await.is(200).document(), expected);
    }
    // Who does not ask is answered as ever.
    answer(here.entry(Method::DELETE, "c", "k").query(&[("acked", "")])).await.is(204);
    assert_eq!(here.metric("tidings_receipts_total{outcome=\"complete\"}").await, Some(4.0));
    assert_eq!(here.metric("tidings_receipt_duration_seconds_count").await, Some(4.0));
    rig.end().await;
}

#[tokio::test]
async fn what_goes_by_a_tag_or_prefix_is_gone_where_the_receipt_says_so() {
    let rig = Rig::start(2).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let [here, there] = &rig.apis[..] else { unreachable!() };
    for (what, done) in [
        (json!({ "tags": ["none", "red"] }), json!({ "tags": 2 })),
        (json!({ "prefix": "us" }), json!({ "prefix": "us" })),
    ] {
        for (key, tags) in [("user", "red,round"), ("other", "round")] {
            let query = [("tags", tags), ("acked", PATIENCE)];
            answer(here.entry(Method::PUT, "c", key).query(&query).body("v")).await.is(200);
            let miss = there.read("c", key).await.is(404);
            let token = miss.header("tidings-fill-token").unwrap();
            let fill = there.entry(Method::PUT, "c", key).query(&[("tags", tags)]);
            answer(fill.header("tidings-fill-token", token).body("v")).await.is(204);
        }
        let expected = json!({ "invalidated": done, "applied": ["n2"], "missing": [], "expired": [] });
        assert_eq!(invalidate(here, PATIENCE, &what).await.is(200).document(), expected);
        for api in [here, there] {
            api.read("c", "user").await.problem(404, "not_cached");
            api.read("c", "other").await.is(200);
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn a_peer_that_has_not_applied_a_change_is_named_with_the_reason() {
    let rig = cut(3).await;
    let api = &rig.apis[0];
    let missing = json!([{ "node": "n3", "reason": "unreachable" }]);
    let receipt = json!({ "applied": ["n2"], "missing": missing, "expired": [] });
    // The other one may be late, too, while the machine stands still.
    let mut asked = 0.0;
    until("a write names it alone", async || {
        asked += 1.0;
        put(api, "50ms").await.is(207).document() == receipt
    })
    .await;
    assert_eq!(api.read("c", "k").await.is(200).text(), "v", "it is made all the same");
    until("so does a removal", async || {
        asked += 1.0;
        delete(api, "50ms").await.is(207).document() == receipt
    })
    .await;
    until("so does a clear", async || {
        asked += 1.0;
        let cleared = invalidate(api, "50ms", &json!({ "all": true })).await.is(207).document();
        (&cleared["invalidated"], &cleared["missing"]) == (&json!("all"), &missing)
    })
    .await;
    let expired = json!({ "applied": ["n2"], "missing": [], "expired": ["n3"] });
    assert_eq!(delete(api, PATIENCE).await.is(200).document(), expired, "after the bound");
    assert_eq!(api.metric("tidings_receipts_total{outcome=\"partial\"}").await, Some(asked));
    assert_eq!(api.metric("tidings_receipts_missing_total{reason=\"unreachable\"}").await, Some(asked));
    rig.end().await;
}

#[tokio::test]
async fn a_server_that_ends_says_what_it_knows() {
    let rig = cut(2).await;
    let api = rig.apis[0].clone();
    let waiting = async { delete(&api, PATIENCE).await.is(207).document() };
    let ended = async {
        until("it waits", async || rig.node(0).receipts().waiting == 1).await;
        rig.end().await;
    };
    let (receipt, ()) = tokio::join!(waiting, ended);
    assert_eq!(receipt["missing"][0]["node"], "n2");
}

#[tokio::test]
async fn who_has_to_apply_a_change_is_not_known_before_a_seed_is_reached() {
    let node = tidings::Node::builder("shop").seeds(["127.0.0.1:1"]).start().await.unwrap();
    let (stop, mut servers) = Default::default();
    let api = serve(&node, tidings_http::Options::new(crate::support::loopback()), &mut servers, &stop).await;
    api.open("c", &json!({})).await;
    put(&api, "50ms").await.problem(503, "no_contact");
    assert_eq!(api.read("c", "k").await.is(200).text(), "v", "the change is made");
    stop.cancel();
    while servers.join_next().await.is_some() {}
    node.shutdown(Duration::ZERO).await;
}
