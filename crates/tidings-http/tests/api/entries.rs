use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Answer, Api, Rig, answer, until};

async fn one() -> (Rig, Api) {
    let rig = Rig::start(1).await;
    let api = rig.apis[0].clone();
    api.open("c", &json!({})).await;
    (rig, api)
}

fn token(miss: &Answer) -> String {
    miss.header("tidings-fill-token").unwrap().to_owned()
}

async fn fill(api: &Api, key: &str, token: &str, value: &str) -> Answer {
    answer(api.entry(Method::PUT, "c", key).header("tidings-fill-token", token).body(value.to_owned())).await
}

#[tokio::test]
async fn values_come_back_as_they_were_put_whatever_the_key() {
    let (rig, api) = one().await;
    let value: Vec<u8> = (0..=255).collect();
    for key in ["k", "", "a/b", "ü ?#%2F", "<script>", "../../x", &"l".repeat(4_000)] {
        answer(api.entry(Method::PUT, "c", key).body(value.clone())).await.is(204);
        let hit = api.read("c", key).await.is(200);
        assert_eq!(hit.body, value, "{key}");
        assert_eq!(hit.header("content-type"), Some("application/octet-stream"));
        assert_eq!(hit.header("tidings-stale"), None);
        let age: f64 = hit.header("tidings-age").unwrap().parse().unwrap();
        assert!((0.0..10.0).contains(&age), "{age}");
        answer(api.entry(Method::DELETE, "c", key)).await.is(204);
        api.read("c", key).await.problem(404, "not_cached");
    }
    answer(api.entry(Method::DELETE, "c", "never there")).await.is(204);
    rig.end().await;
}

#[tokio::test]
async fn the_age_is_that_of_the_entry() {
    let (rig, api) = one().await;
    let age = async || {
        let hit = api.read("c", "k").await.is(200);
        hit.header("tidings-age").unwrap().parse::<f64>().unwrap()
    };
    api.put("c", "k", "old").await;
    until("it ages", async || age().await > 0.05).await;
    let begun = Instant::now();
    api.put("c", "k", "new").await;
    assert!(age().await <= begun.elapsed().as_secs_f64(), "that of the old one is more");
    rig.end().await;
}

#[tokio::test]
async fn a_fill_is_silent_and_its_token_good_for_one_use() {
    let (rig, api) = one().await;
    let miss = api.read("c", "k").await.problem(404, "not_cached");
    let (first, second) = (token(&miss), token(&api.read("c", "k").await));
    assert_ne!(first, second);
    fill(&api, "k", &first, "v").await.is(204);
    assert_eq!(api.read("c", "k").await.is(200).text(), "v");
    fill(&api, "k", &first, "again").await.problem(409, "fill_ended");
    assert_eq!(api.read("c", "k").await.text(), "v");
    assert_eq!(rig.node(0).domain().events_published(), 0);
    // Another client's load of the same time is as good.
    fill(&api, "k", &second, "w").await.is(204);
    rig.end().await;
}

#[tokio::test]
async fn whatever_changes_the_key_ends_its_fills() {
    let (rig, api) = one().await;
    let invalidate = json!({ "keys": ["k"] });
    let all = json!({ "all": true });
    for change in ["put", "delete", "invalidate", "all", "close"] {
        let token = token(&api.read("c", "k").await);
        match change {
            "put" => api.put("c", "k", "new").await,
            "delete" => drop(answer(api.entry(Method::DELETE, "c", "k")).await.is(204)),
            "close" => {
                api.send(Method::DELETE, "/v1/caches/c").await.is(204);
                api.open("c", &json!({})).await;
            }
            _ => {
                let body = if change == "all" { &all } else { &invalidate };
                api.json(Method::POST, "/v1/caches/c/invalidate", body).await.is(200);
            }
        }
        fill(&api, "k", &token, "old").await.problem(409, "fill_ended");
        assert_ne!(api.read("c", "k").await.text(), "old", "{change}");
        answer(api.entry(Method::DELETE, "c", "k")).await.is(204);
    }
    // What changes another key does not.
    let token = token(&api.read("c", "k").await);
    api.put("c", "other", "x").await;
    fill(&api, "k", &token, "v").await.is(204);
    rig.end().await;
}

#[tokio::test]
async fn a_change_on_another_node_ends_a_fill_and_evicts() {
    let rig = Rig::start(2).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
    }
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let token = token(&here.read("c", "k").await);
    there.put("c", "k", "new").await;
    until("the change arrives", async || here.metric("tidings_events_applied_total").await == Some(1.0))
        .await;
    fill(here, "k", &token, "old").await.problem(409, "fill_ended");

    here.put("c", "k", "newer").await;
    until("the other copy goes", async || there.read("c", "k").await.status == 404).await;
    rig.end().await;
}

#[tokio::test]
async fn tokens_are_good_where_they_were_given_only() {
    let rig = Rig::start(2).await;
    for api in &rig.apis {
        api.open("c", &json!({})).await;
        api.open("d", &json!({})).await;
    }
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let token = token(&here.read("c", "k").await);
    fill(there, "k", &token, "v").await.problem(409, "fill_ended");
    fill(here, "other", &token, "v").await.problem(409, "fill_ended");
    let of_another_cache = here.entry(Method::PUT, "d", "k").header("tidings-fill-token", &token);
    answer(of_another_cache).await.problem(409, "fill_ended");
    let incarnation = rig.node(0).origin().incarnation.to_string();
    let of_another_life = token.replace(&incarnation, "1");
    fill(here, "k", &of_another_life, "v").await.problem(409, "fill_ended");
    for malformed in ["", "x", "n1:1:c:1:1", &format!("{token}:1"), &token.replace(':', ";")] {
        fill(here, "k", malformed, "v").await.problem(400, "malformed_token");
    }
    // None of these has used it up.
    fill(here, "k", &token, "v").await.is(204);
    rig.end().await;
}

#[tokio::test]
async fn entries_live_as_long_as_they_are_told() {
    let (rig, api) = one().await;
    let put = |ttl: &str| api.entry(Method::PUT, "c", "k").query(&[("ttl", ttl)]).body("v");
    answer(put("100ms")).await.is(204);
    until("it expires", async || api.read("c", "k").await.status == 404).await;
    let miss = api.read("c", "k").await;
    answer(put("100ms").header("tidings-fill-token", token(&miss))).await.is(204);
    until("the fill expires", async || api.read("c", "k").await.status == 404).await;
    for ttl in ["5", "0s", "-1s", "x", "1000years"] {
        answer(put(ttl)).await.problem(400, "invalid_query");
    }
    answer(put("")).await.is(204);
    rig.end().await;
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let (rig, api) = one().await;
    let long = "k".repeat(4_097);
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        answer(api.entry(method, "c", &long)).await.problem(413, "key_too_long");
    }
    let keys = json!({ "keys": ["fine", long] });
    api.put("c", "fine", "v").await;
    api.json(Method::POST, "/v1/caches/c/invalidate", &keys).await.problem(413, "key_too_long");
    api.read("c", "fine").await.is(200);

    let value = |bytes: usize| api.entry(Method::PUT, "c", "v").body(vec![b'x'; bytes]);
    answer(value(1 << 20)).await.is(204);
    answer(value((1 << 20) + 1)).await.problem(413, "body_too_long");
    answer(value(4 << 20)).await.problem(413, "body_too_long");
    // One that does not say how long it is.
    let chunks = futures_util::stream::iter((0..40).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 32 << 10])));
    let chunked = api.entry(Method::PUT, "c", "v").body(reqwest::Body::wrap_stream(chunks));
    answer(chunked).await.problem(413, "body_too_long");
    assert_eq!(api.read("c", "v").await.body.len(), 1 << 20, "what was there is still there");

    let metadata = api.entry(Method::PUT, "c", "k").header("tidings-meta-note", "n".repeat(5_000)).body("v");
    answer(metadata).await.problem(413, "too_large");
    api.read("c", "k").await.is(404);
    rig.end().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let (rig, api) = one().await;
    let put = |name: &str, text: &str| api.entry(Method::PUT, "c", "k").query(&[(name, text)]).body("v");
    for acked in ["5", "-1s", "x", "61s"] {
        answer(put("acked", acked)).await.problem(400, "invalid_query");
    }
    answer(put("tags", "a,,b")).await.problem(422, "invalid_tags");
    answer(put("tags", &"t".repeat(257))).await.problem(422, "invalid_tags");
    answer(put("tll", "5m")).await.problem(400, "invalid_query");
    let delete = |name: &str| api.entry(Method::DELETE, "c", "k").query(&[(name, "5m")]);
    answer(delete("acked")).await.problem(400, "invalid_query");
    answer(delete("ttl")).await.problem(400, "invalid_query");
    answer(delete("tags")).await.problem(400, "invalid_query");
    for (method, path) in
        [(Method::GET, "/v1/caches/x/entries/k"), (Method::DELETE, "/v1/caches/x/entries/k")]
    {
        let missing = api.send(method, path).await.problem(404, "unknown_cache");
        assert_eq!(missing.header("tidings-fill-token"), None);
    }
    answer(api.entry(Method::PUT, "x", "k").body("v")).await.problem(404, "unknown_cache");
    api.get("/v1/caches/c/entries/%ff").await.problem(400, "invalid_path");
    let noted = api.entry(Method::PUT, "c", "k").header("tidings-meta-note", &b"\xff"[..]).body("v");
    answer(noted).await.problem(400, "invalid_metadata");
    let miss = api.read("c", "k").await;
    let noted = api.entry(Method::PUT, "c", "k").header("tidings-meta-note", "n").body("v");
    answer(noted.header("tidings-fill-token", token(&miss))).await.problem(400, "metadata_on_fill");
    let acked = put("acked", "50ms").header("tidings-fill-token", token(&miss));
    answer(acked).await.problem(400, "acked_on_fill");
    api.open("local", &json!({ "mode": "local" })).await;
    let acked = |method: Method| api.entry(method, "local", "k").query(&[("acked", "50ms")]);
    answer(acked(Method::PUT).body("v")).await.problem(422, "local_cache");
    answer(acked(Method::DELETE)).await.problem(422, "local_cache");
    let all = json!({ "all": true });
    let local = "/v1/caches/local/invalidate?acked=50ms";
    api.json(Method::POST, local, &all).await.problem(422, "local_cache");
    let unknown = "/v1/caches/c/invalidate?aked=50ms";
    api.json(Method::POST, unknown, &all).await.problem(400, "invalid_query");
    assert_eq!(api.read("local", "k").await.status, 404);
    assert_eq!(rig.node(0).domain().events_published(), 0, "none of these changed anything");
    rig.end().await;
}

#[tokio::test]
async fn a_leaving_node_says_so() {
    let (rig, api) = one().await;
    rig.node(0).shutdown(Duration::from_secs(5)).await;
    // Its caches are closed with it.
    answer(api.entry(Method::PUT, "c", "k").body("v")).await.problem(404, "unknown_cache");
    api.get("/livez").await.problem(503, "not_live");
    api.get("/readyz").await.problem(503, "not_ready");
    rig.end().await;
}

#[tokio::test]
async fn entries_are_shared_with_the_process_that_embeds_the_node() {
    let (rig, api) = one().await;
    let cache = rig.node(0).lookup::<String, Bytes>("c").unwrap();
    cache.insert("k".to_owned(), Bytes::from_static(b"v")).unwrap();
    assert_eq!(api.read("c", "k").await.is(200).text(), "v");
    rig.end().await;
}
