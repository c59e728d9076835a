//! Fill tokens of a cache in which one load serves the cluster.

use reqwest::Method;
use serde_json::json;
use tidings_http::limits::WAITING_READS_MAX;
use tokio::task::JoinSet;

use crate::support::{Answer, Api, Rig, answer, until};

/// Two nodes that know that both have the cache.
async fn scene() -> Rig {
    let rig = Rig::start(2).await;
    for api in &rig.apis {
        api.open("c", &json!({ "one_loader": "cluster", "lease_time": "1m" })).await;
    }
    let knows =
        |at: usize| rig.node(at).members().iter().filter(|it| it.caches.contains(&"c".to_owned())).count();
    until("both know who hosts it", async || knows(0) == 2 && knows(1) == 2).await;
    rig
}

async fn read(api: &Api, wait: &str) -> Answer {
    answer(api.entry(Method::GET, "c", "k").query(&[("wait", wait)])).await
}

async fn fill(api: &Api, miss: &Answer, value: &str) -> Answer {
    let token = miss.header("tidings-fill-token").unwrap();
    let put = api.entry(Method::PUT, "c", "k").header("tidings-fill-token", token);
    answer(put.body(value.to_owned())).await
}

fn waiting(rig: &Rig) -> usize {
    [0, 1].iter().map(|at| rig.node(*at).leases().waiting).sum()
}

#[tokio::test]
async fn who_reads_a_key_that_another_nodes_client_loads_gets_what_that_fills() {
    let rig = scene().await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let miss = here.read("c", "k").await.problem(404, "not_cached");
    let other = there.clone();
    let mut waits = JoinSet::new();
    waits.spawn(async move { other.read("c", "k").await });
    until("the other client waits", async || waiting(&rig) == 1).await;
    fill(here, &miss, "v").await.is(204);
    let hit = waits.join_next().await.unwrap().unwrap().is(200);
    assert_eq!(hit.text(), "v");
    assert!(hit.header("tidings-age").is_some() && hit.header("tidings-fill-token").is_none());
    assert_eq!(there.read("c", "k").await.is(200).text(), "v", "it is stored there too");
    assert_eq!(there.metric("tidings_cache_shared_loads_total{outcome=\"taken\"}").await, Some(1.0));
    rig.end().await;
}

#[tokio::test]
async fn who_does_not_wait_gets_a_token_at_once_that_is_good_there() {
    let rig = scene().await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let first = here.read("c", "k").await.problem(404, "not_cached");
    let plain = read(there, "0s").await.problem(404, "not_cached");
    fill(there, &plain, "there").await.is(204);
    fill(here, &first, "here").await.is(204);
    assert_eq!(there.read("c", "k").await.is(200).text(), "there");
    assert_eq!(here.read("c", "k").await.is(200).text(), "here");
    for wait in ["2m", "x", "5"] {
        read(here, wait).await.problem(400, "invalid_query");
    }
    rig.end().await;
}

#[tokio::test]
async fn a_removal_hands_the_lease_to_who_waits() {
    let rig = scene().await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let old = here.read("c", "k").await.problem(404, "not_cached");
    let other = there.clone();
    let mut waits = JoinSet::new();
    waits.spawn(async move { other.read("c", "k").await });
    until("the other client waits", async || waiting(&rig) == 1).await;
    answer(here.entry(Method::DELETE, "c", "k").query(&[("acked", "10s")])).await.is(200);
    let new = waits.join_next().await.unwrap().unwrap().problem(404, "not_cached");
    fill(here, &old, "old").await.problem(409, "fill_ended");
    // It may have come before the removal did, which ends it too.
    let mut new = Some(new);
    until("what is loaded anew is stored", async || {
        let token = match new.take() {
            Some(token) => token,
            None => read(there, "0s").await,
        };
        fill(there, &token, "new").await.status == 204
    })
    .await;
    assert_eq!(there.read("c", "k").await.is(200).text(), "new");
    rig.end().await;
}

#[tokio::test]
async fn reads_that_wait_are_bounded_and_what_is_held_is_read_all_the_same() {
    let rig = scene().await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    there.put("c", "held", "v").await;
    // Each key's lease is given to a client of the first node, so that whoever asks at the second one waits.
    let mut leases = Vec::new();
    for key in 0..=WAITING_READS_MAX {
        leases.push(here.read("c", &format!("k{key}")).await.problem(404, "not_cached"));
    }
    let mut waits = JoinSet::new();
    for key in 0..WAITING_READS_MAX {
        let other = there.clone();
        waits.spawn(async move { other.read("c", &format!("k{key}")).await });
    }
    until("all of them wait", async || waiting(&rig) == WAITING_READS_MAX).await;
    let last = format!("k{WAITING_READS_MAX}");
    let refused = there.read("c", &last).await.problem(429, "overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let counted = there.metric("tidings_http_refused_total{room=\"waiting_reads\"}").await;
    assert_eq!(counted, Some(1.0));
    assert_eq!(there.read("c", "held").await.is(200).text(), "v", "what is held waits for nobody");
    assert_eq!(there.metric("tidings_http_refused_total").await, Some(1.0), "and is not turned away");

    let token = leases[0].header("tidings-fill-token").unwrap();
    let put = here.entry(Method::PUT, "c", "k0").header("tidings-fill-token", token);
    answer(put.body("loaded")).await.is(204);
    assert_eq!(waits.join_next().await.unwrap().unwrap().is(200).text(), "loaded");
    let again = async || {
        let query = [("wait", "0s")];
        answer(there.entry(Method::GET, "c", &last).query(&query)).await.status == 404
    };
    until("there is room for another one", again).await;
    waits.shutdown().await;
    rig.end().await;
}
