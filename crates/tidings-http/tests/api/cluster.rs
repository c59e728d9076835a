use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidings::Node;
use tidings_http::Options;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Rig, loopback, serve, until};

#[tokio::test]
async fn every_member_is_told_the_answering_node_too() {
    let rig = Rig::start_with(2, |_, builder| builder.zone("<z>"), |options| options).await;
    rig.apis[1].open("c", &json!({})).await;
    let mut view = Json::Null;
    until("the other is in step, and its cache is known", async || {
        view = rig.apis[0].get("/v1/cluster").await.is(200).document();
        let other = &view["members"][1];
        other["caches"] == json!(["c"])
            && other["synced"] == json!(true)
            && other["state"] == json!("live")
            && other["rtt_ms"].is_f64()
            && other["confirmed_ms"].as_f64().is_some_and(|ms| ms <= 1_000.0)
            && other["lag_events"] == json!(0)
    })
    .await;
    assert_eq!((&view["node"], &view["ready"]), (&json!("n1"), &json!(true)));
    assert_eq!(view["cluster"], rig.node(0).cluster());
    assert_eq!(view["incarnation"], rig.node(0).origin().incarnation.0);
    let [own, other] = &view["members"].as_array().unwrap()[..] else { panic!("{view}") };
    assert_eq!((&own["node"], &own["self"], &own["synced"]), (&json!("n1"), &json!(true), &json!(true)));
    assert_eq!(own["rtt_ms"], Json::Null);
    assert_eq!((&view["relays"], &other["via"]), (&json!(false), &Json::Null), "a mesh");
    for (name, value) in [
        ("node", json!("n2")),
        ("self", json!(false)),
        ("zone", json!("<z>")),
        ("version", json!(tidings::RELEASE)),
        ("address", json!(rig.node(1).address().to_string())),
        ("incarnation", json!(rig.node(1).origin().incarnation.0)),
    ] {
        assert_eq!(other[name], value, "{name}");
    }
    assert!(other["rtt_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{other}");
    rig.end().await;
}

#[tokio::test]
async fn a_large_cluster_says_by_way_of_whom_each_member_is_followed() {
    let build = |index, builder: tidings::NodeBuilder| builder.relay_above(2).zone(format!("z{}", index % 2));
    let rig = Rig::start_with(5, build, |options| options).await;
    let mut relayed = 0;
    until("members are followed by way of others, and both say of how many", async || {
        let view = rig.apis[0].get("/v1/cluster").await.is(200).document();
        let members = view["members"].as_array().unwrap();
        let vias = members.iter().filter(|member| member["via"].is_string());
        let named = |via: &&Json| members.iter().any(|member| member["node"] == via["via"]);
        relayed = vias.clone().filter(named).count();
        assert_eq!(relayed, vias.count(), "{view}");
        let mut counted = 0.0;
        for index in 2..=5 {
            let series = format!("tidings_follow_relayed{{origin=\"n{index}\"}}");
            counted += rig.apis[0].metric(&series).await.unwrap_or_default();
        }
        view["relays"] == json!(true) && relayed > 0 && counted == relayed as f64
    })
    .await;
    assert_eq!(rig.apis[0].metric("tidings_relay_on").await, Some(1.0));
    rig.end().await;
}

#[tokio::test]
async fn coherence_is_told_as_it_was_measured() {
    let rig = Rig::start(2).await;
    rig.apis[0].open("c", &json!({})).await;
    let coherence = async || rig.apis[0].get("/v1/coherence").await.is(200).document();
    let metric = async |name: &str| rig.apis[0].metric(name).await.unwrap();
    let coherent = "tidings_writes_coherent_total{within=\"1\"}";
    let judged = "tidings_writes_judged_total{within=\"1\"}";
    // Usually the first one is.
    until("a write was coherent within a second", async || {
        rig.apis[0].put("c", "k", "v").await;
        until("it is judged", async || coherence().await["writes"]["pending"] == json!(0)).await;
        metric(coherent).await > 0.0
    })
    .await;
    let mut told = Json::Null;
    until("what is told is what was counted", async || {
        told = coherence().await;
        let (coherent, judged) = (metric(coherent).await, metric(judged).await);
        told["writes"]["within"][3]["since_start"].as_f64() == Some(coherent / judged)
            && metric("tidings_coherence_duration_seconds_count").await == judged
            && metric("tidings_writes_pending").await == 0.0
            && told["writes"]["pending"] == json!(0)
    })
    .await;
    let within = told["writes"]["within"].as_array().unwrap();
    assert_eq!(within.iter().map(|it| it["ms"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 10, 100, 1_000]);
    assert_eq!(told["node"], json!("n1"));
    assert_eq!((&told["repairs"]["gap"], &told["repairs"]["reset"]), (&json!(0), &json!(0)));
    assert!(told["repairs"]["resumed"].is_u64(), "{told}");
    assert!(told["duration_ms"]["p50"].as_f64().is_some_and(|ms| ms > 0.0), "{told}");
    assert_eq!(
        rig.apis[1].get("/v1/coherence").await.document()["writes"]["within"][0]["last_minute"],
        Json::Null
    );
    rig.end().await;
}

#[tokio::test]
async fn who_was_refused_is_told_with_what_can_be_done() {
    let rig = Rig::start(2).await;
    rig.node(0).set_denied(&["n2".to_owned()]);
    let refused = async || rig.apis[0].get("/v1/cluster").await.document()["refused"].clone();
    until("it tries again", async || refused().await[0]["times"].as_u64() > Some(1)).await;
    let told = refused().await[0].clone();
    assert_eq!(
        (&told["node"], &told["reason"], &told["by_peer"]),
        (&json!("n2"), &json!("denied"), &json!(false))
    );
    assert_eq!(told["address"], json!(rig.node(1).address().to_string()));
    assert!(told["remedy"].as_str().is_some_and(|text| text.contains("deny list")), "{told}");
    until("the other knows that it is refused", async || {
        rig.apis[1].get("/v1/cluster").await.document()["refused"][0]["by_peer"] == json!(true)
    })
    .await;
    rig.end().await;
}

#[tokio::test]
async fn a_node_that_reaches_nobody_is_alive_and_not_ready() {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::builder("alone").node_id("n1").seeds([free.to_string()]).start().await.unwrap();
    let (mut servers, stop) = (JoinSet::new(), CancellationToken::new());
    let api = serve(&node, Options::new(loopback()), &mut servers, &stop).await;
    assert_eq!(api.get("/livez").await.is(200).document(), json!({ "status": "live" }));
    let unready = api.get("/readyz").await.problem(503, "not_ready").document();
    assert_eq!(unready["reasons"], json!(["no seed has been reached"]));
    assert_eq!(unready["detail"], "no seed has been reached");
    api.get("/startupz").await.problem(503, "not_started");
    assert_eq!(api.get("/v1/cluster").await.document()["ready"], json!(false));
    stop.cancel();
    servers.join_all().await;
    node.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_node_that_lost_all_others_has_started_and_is_not_ready_if_so_configured() {
    let first = Node::builder("test").node_id("n1").start().await.unwrap();
    let builder = Node::builder("test").node_id("n2").seeds([first.address().to_string()]);
    let second = builder.start().await.unwrap();
    let (mut servers, stop) = (JoinSet::new(), CancellationToken::new());
    let configured = Options { unready_when_isolated: true, ..Options::new(loopback()) };
    let strict = serve(&first, configured, &mut servers, &stop).await;
    let lenient = serve(&first, Options::new(loopback()), &mut servers, &stop).await;
    let has = async |path: &str, status: u16| strict.get(path).await.status == status;
    until("both are followed", async || {
        first.members().iter().filter(|member| member.synced()).count() == 2 && has("/readyz", 200).await
    })
    .await;
    assert_eq!(strict.get("/startupz").await.is(200).document(), json!({ "status": "started" }));
    let ready = json!({ "status": "ready", "warnings": [] });
    assert_eq!(lenient.get("/readyz").await.is(200).document(), ready);

    // No goodbye: it is just gone.
    drop(second);
    let alone = async || {
        let unready = strict.get("/readyz").await;
        unready.status == 503 && unready.document()["reasons"] == json!(["no other member is heard"])
    };
    until("it is isolated", alone).await;
    lenient.get("/readyz").await.is(200);
    strict.get("/startupz").await.is(200);
    strict.get("/livez").await.is(200);

    let forget = json!({ "node": "n2" });
    let forgotten = strict.json(Method::POST, "/v1/cluster/forget", &forget).await.is(200);
    assert_eq!(forgotten.document(), json!({ "forgotten": "n2" }));
    stop.cancel();
    servers.join_all().await;
    first.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_node_that_nobody_hears_for_a_grace_says_that_it_is_expelled() {
    let first = Node::builder("test").node_id("n1").lost_grace(Duration::from_secs(1)).start().await.unwrap();
    let second =
        Node::builder("test").node_id("n2").seeds([first.address().to_string()]).start().await.unwrap();
    let (mut servers, stop) = (JoinSet::new(), CancellationToken::new());
    let configured = Options { unready_when_isolated: true, ..Options::new(loopback()) };
    let strict = serve(&first, configured, &mut servers, &stop).await;
    let lenient = serve(&first, Options::new(loopback()), &mut servers, &stop).await;
    until("the other one hears it", async || {
        lenient.get("/readyz").await.status == 200 && first.members().len() == 2
    })
    .await;
    // Who was never followed by anybody is expelled by nobody.
    second.ready(Duration::from_secs(60)).await.unwrap();
    assert_eq!(lenient.metric("tidings_expelled").await, Some(0.0));
    assert_eq!(lenient.get("/v1/cluster").await.document()["expelled_ms"], Json::Null);

    // No goodbye: it is just gone.
    drop(second);
    until("it says so", async || lenient.metric("tidings_expelled").await == Some(1.0)).await;
    let status = lenient.get("/v1/cluster").await.is(200).document();
    assert!(status["expelled_ms"].as_f64().is_some_and(|ms| ms >= 1_000.0), "{status}");
    let reasons = strict.get("/readyz").await.is(503).document()["reasons"].to_string();
    assert!(reasons.contains("expelled: no member has heard this node for"), "{reasons}");
    until("whoever is left goes on", async || lenient.get("/readyz").await.status == 200).await;
    stop.cancel();
    servers.join_all().await;
    first.shutdown(Duration::from_secs(5)).await;
}

/// How often a live node has to be refused in a row of questions.
const REFUSED_TIMES: usize = 5;

#[tokio::test]
async fn only_a_node_that_is_gone_is_forgotten() {
    let first = Node::builder("test").node_id("n1").start().await.unwrap();
    let builder = Node::builder("test").node_id("n2").seeds([first.address().to_string()]);
    let second = builder.start().await.unwrap();
    let (mut servers, stop) = (JoinSet::new(), CancellationToken::new());
    let api = serve(&first, Options::new(loopback()), &mut servers, &stop).await;
    let forget = async |document: Json| api.json(Method::POST, "/v1/cluster/forget", &document).await;
    let live = async |id: &str| {
        let view = api.get("/v1/cluster").await.is(200).document();
        let members = view["members"].as_array().unwrap().clone();
        members.iter().any(|member| member["node"] == id && member["state"] == "live")
    };
    for node in ["n1", "n2"] {
        // A machine that stands still hears nobody, which excuses one answer.
        let (mut refused, mut excused) = (0, 0);
        while refused < REFUSED_TIMES {
            until("it is live", async || live(node).await).await;
            let answer = forget(json!({ "node": node })).await;
            if answer.status == 409 {
                answer.problem(409, "node_is_live");
                refused += 1;
            } else {
                excused += 1;
                assert_eq!((node, excused), ("n2", 1), "it is live, and was forgotten: {}", answer.text());
            }
        }
    }
    for node in ["n9", "", "<script>"] {
        forget(json!({ "node": node })).await.problem(404, "unknown_node");
    }
    forget(json!({})).await.problem(422, "invalid_document");
    forget(json!({ "node": "n9", "x": 1 })).await.problem(422, "invalid_document");

    // No goodbye: it is just gone.
    drop(second);
    let mut forgotten = Json::Null;
    until("who is gone is forgotten", async || {
        let answer = forget(json!({ "node": "n2" })).await;
        forgotten = answer.document();
        answer.status == 200
    })
    .await;
    assert_eq!(forgotten, json!({ "forgotten": "n2" }));
    stop.cancel();
    servers.join_all().await;
    first.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn members_whose_lanes_differ_are_named_and_keep_nobody_unready() {
    let build =
        |index, builder: tidings::NodeBuilder| builder.lanes(tidings::Lanes::new([4, 16][index]).unwrap());
    let rig = Rig::start_with(2, build, |options| options).await;
    let api = &rig.apis[0];
    let warning = "n2 has 16 lanes and this node 4: set coherence.lanes alike";
    until("it is named", async || {
        api.get("/readyz").await.is(200).document()["warnings"] == json!([warning])
    })
    .await;
    let members = api.get("/v1/cluster").await.document()["members"].clone();
    assert_eq!((&members[0]["lanes"], &members[1]["lanes"]), (&json!(4), &json!(16)), "{members}");
    rig.end().await;
}
