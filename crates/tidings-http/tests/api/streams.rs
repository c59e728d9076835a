//! Durable streams over HTTP.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tidings::streams::{Backoff, Name, StreamsConfig, TopicSettings};
use tidings_http::Options;
use tidings_http::limits::RECEIVES_MAX;
use tokio::task::JoinSet;

use crate::support::{Answer, Api, Rig, answer, until};

/// One node with streams, and what keeps its store.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    _directory: TempDir,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let name = |text| Name::new(text).unwrap();
        let backoff = Backoff { initial: Duration::ZERO, ..Backoff::default() };
        let orders =
            TopicSettings { max_deliveries: 2.try_into().unwrap(), backoff, ..TopicSettings::default() };
        let config = StreamsConfig::embedded(directory.path())
            .topic(name("orders"), orders)
            .topic(name("changes"), TopicSettings::default());
        let build = |_, builder: tidings::NodeBuilder| builder.streams(config.clone());
        let rig = Rig::start_with(1, build, |options: Options| options).await;
        Self { rig, _directory: directory }
    }

    fn api(&self) -> &Api {
        &self.rig.apis[0]
    }

    async fn post(&self, path: &str, document: &Json) -> Answer {
        self.api().json(Method::POST, &format!("/v1/streams/orders/{path}"), document).await
    }

    async fn get(&self, path: &str) -> Json {
        self.api().get(&format!("/v1/streams/orders{path}")).await.is(200).document()
    }

    async fn publish(&self, payload: &str) -> String {
        text(&self.post("events", &json!({ "payload": payload })).await.is(201).document()["id"])
    }

    async fn group(&self, start: &str) -> Answer {
        let path = "/v1/streams/orders/groups/g";
        self.api().json(Method::PUT, path, &json!({ "start": start })).await
    }

    async fn receive(&self, max: usize) -> Vec<Json> {
        let what = json!({ "max": max, "consumer": "c" });
        let taken = self.post("groups/g/receive", &what).await.is(200).document();
        taken["events"].as_array().unwrap().clone()
    }
}

fn text(of: &Json) -> String {
    of.as_str().unwrap_or_else(|| panic!("{of} is no text")).to_owned()
}

fn ids(page: &Json) -> Vec<String> {
    page["events"].as_array().unwrap().iter().map(|event| text(&event["id"])).collect()
}

#[tokio::test]
async fn an_event_is_published_taken_and_acknowledged() {
    let scene = Scene::start().await;
    scene.group("earliest").await.is(201);
    scene.group("latest").await.is(200);
    let draft = json!({ "payload": "{\"order\":7}", "content_type": "application/json", "key": "customer 3",
        "headers": { "cause": "test" } });
    let published = scene.post("events", &draft).await.is(201).document();
    assert_eq!(published["store"], json!({ "driver": "embedded", "node": "n1", "durability": "sync" }));
    let taken = scene.receive(10).await;
    let [event] = &taken[..] else { panic!("{taken:?}") };
    for (field, value) in draft.as_object().unwrap() {
        assert_eq!(&event[field], value, "{field} comes back as it went in");
    }
    assert_eq!((&event["id"], &event["attempts"]), (&published["id"], &json!(1)));
    assert!(text(&event["time"]).ends_with('Z') && event["payload_base64"].is_null());

    let ids = json!({ "ids": [published["id"]] });
    let acked = scene.post("groups/g/ack", &ids).await.is(200).document();
    assert_eq!(acked["results"][0]["outcome"], "acked");
    let again = scene.post("groups/g/ack", &ids).await.is(207).document();
    assert_eq!(again["results"][0]["outcome"], "unknown", "what is settled is not settled again");
    let group = scene.get("/groups/g").await;
    assert_eq!((&group["lag"], &group["pending"]), (&json!(0), &json!(0)));
    scene.rig.end().await;
}

#[tokio::test]
async fn bytes_come_back_as_they_went_in() {
    let scene = Scene::start().await;
    let bytes: Vec<u8> = (0..=255).collect();
    let draft = json!({ "payload_base64": STANDARD.encode(&bytes) });
    let id = text(&scene.post("events", &draft).await.is(201).document()["id"]);
    let event = scene.get(&format!("/events/{id}")).await;
    assert!(event["payload"].is_null());
    assert_eq!(STANDARD.decode(text(&event["payload_base64"])).unwrap(), bytes);
    // Text is text, however it came.
    let draft = json!({ "payload_base64": STANDARD.encode("Grüße") });
    let id = text(&scene.post("events", &draft).await.is(201).document()["id"]);
    assert_eq!(scene.get(&format!("/events/{id}")).await["payload"], "Grüße");
    scene.rig.end().await;
}

#[tokio::test]
async fn with_an_idempotency_key_it_is_stored_once() {
    let scene = Scene::start().await;
    let publish = async |key: &'static str| {
        let request = scene.api().request(Method::POST, "/v1/streams/orders/events");
        answer(request.header("idempotency-key", key).body("{\"payload\":\"a\"}")).await
    };
    let first = publish("order 7").await.is(201).document();
    let second = publish("order 7").await.is(200).document();
    assert_eq!((&second["id"], &second["duplicate"]), (&first["id"], &json!(true)));
    publish("order 8").await.is(201);
    publish("").await.problem(422, "invalid_event");
    assert_eq!(scene.get("").await["events"], 2);
    scene.rig.end().await;
}

#[tokio::test]
async fn what_fails_is_delivered_again_and_then_a_dead_letter_that_can_be_retried() {
    let scene = Scene::start().await;
    scene.group("earliest").await.is(201);
    let id = scene.publish("a").await;
    let first = scene.receive(1).await.remove(0);
    let failed = scene.post("groups/g/fail", &json!({ "id": id, "error": "not yet" })).await.is(200);
    assert_eq!(failed.document()["outcome"], "retry");
    let pending = scene.get("/groups/g/pending").await["pending"][0].clone();
    assert_eq!((&pending["error"], &pending["attempts"]), (&json!("not yet"), &json!(1)));
    let second = scene.receive(1).await.remove(0);
    assert_eq!(second["attempts"], 2);

    // A word about the first delivery comes too late.
    let late = json!({ "id": id, "delivery": first["delivery"], "error": "late" });
    scene.post("groups/g/fail", &late).await.problem(409, "stale_delivery");
    let longer = json!({ "id": id, "delivery": second["delivery"], "by": "1m" });
    assert_eq!(scene.post("groups/g/extend", &longer).await.is(200).document()["outcome"], "extended");
    let last = json!({ "id": id, "delivery": second["delivery"], "error": "no" });
    let dead = scene.post("groups/g/fail", &last).await.is(200).document();
    assert_eq!(dead["outcome"], "dead");
    scene.post("groups/g/fail", &last).await.problem(404, "unknown_delivery");

    let letter = format!("/v1/dead-letters/{}", text(&dead["dead_letter"]));
    let shown = scene.api().get(&letter).await.is(200).document();
    for (field, value) in
        [("topic", "orders"), ("group", "g"), ("consumer", "c"), ("error", "no"), ("payload", "a")]
    {
        assert_eq!(shown[field], value, "{field}");
    }
    assert_eq!((&shown["original_id"], &shown["attempts"]), (&json!(id), &json!(2)));
    let listed = async |query: &str| {
        let listed = scene.api().get(&format!("/v1/dead-letters{query}")).await.is(200).document();
        listed["events"].as_array().unwrap().len()
    };
    assert_eq!(
        (listed("").await, listed("?topic=orders&group=g").await, listed("?topic=other").await),
        (1, 1, 0)
    );

    scene.api().send(Method::POST, &format!("{letter}/retry")).await.is(200);
    scene.api().get(&letter).await.problem(404, "unknown_dead_letter");
    let again = scene.receive(10).await;
    assert_eq!((again.len(), &again[0]["payload"], &again[0]["attempts"]), (1, &json!("a"), &json!(1)));
    assert_eq!(again[0]["retried"]["original_id"], json!(id));
    scene.rig.end().await;
}

#[tokio::test]
async fn many_dead_letters_are_retried_and_removed_by_what_names_them() {
    let scene = Scene::start().await;
    scene.group("earliest").await.is(201);
    let fail = async |count: usize| {
        while !scene
            .receive(1_000)
            .await
            .into_iter()
            .map(|event| text(&event["id"]))
            .collect::<Vec<_>>()
            .is_empty()
        {
            for pending in scene.get("/groups/g/pending?limit=1000").await["pending"].as_array().unwrap() {
                scene.post("groups/g/fail", &json!({ "id": pending["id"] })).await;
            }
        }
        let dead = scene.api().get("/v1/streams").await.document()["dead_letters"].clone();
        assert_eq!(dead, count);
    };
    for n in 0..120 {
        scene.publish(&n.to_string()).await;
    }
    fail(120).await;
    let retry = async |what: Json| scene.api().json(Method::POST, "/v1/dead-letters/retry", &what).await;
    retry(json!({})).await.problem(422, "empty_filter");
    retry(json!({ "topic": "orders", "all": true })).await.problem(422, "empty_filter");
    let none = retry(json!({ "topic": "other" })).await.is(200).document();
    assert_eq!((&none["retried"], &none["next"]), (&json!(0), &Json::Null));
    let all = retry(json!({ "topic": "orders", "per_second": 100_000 })).await.is(200).document();
    assert_eq!((&all["retried"], &all["stayed"], &all["next"]), (&json!(120), &json!(0), &Json::Null));
    fail(120).await;

    let purge =
        async |query: &str| scene.api().send(Method::DELETE, &format!("/v1/dead-letters{query}")).await;
    purge("").await.problem(422, "empty_filter");
    let first = scene.api().get("/v1/dead-letters?limit=1").await.document()["events"][0]["id"].clone();
    purge(&format!("/{}", text(&first))).await.is(204);
    purge(&format!("/{}", text(&first))).await.problem(404, "unknown_dead_letter");
    assert_eq!(purge("?group=g").await.is(200).document()["purged"], 119);
    assert_eq!(purge("?all=true").await.is(200).document()["purged"], 0);
    scene.rig.end().await;
}

#[tokio::test]
async fn events_are_read_page_by_page_in_either_order() {
    let scene = Scene::start().await;
    let mut published = Vec::new();
    for n in 0..7 {
        published.push(scene.publish(&n.to_string()).await);
    }
    for order in ["asc", "desc"] {
        let (mut read, mut after) = (Vec::new(), String::new());
        loop {
            let page = scene.get(&format!("/events?limit=3&order={order}&after={after}")).await;
            read.extend(ids(&page));
            let Some(next) = page["next"].as_str() else { break };
            after = next.to_owned();
        }
        if order == "desc" {
            read.reverse();
        }
        assert_eq!(read, published, "{order}");
    }
    let (first, last) = (&published[0], &published[6]);
    let topic = scene.get("").await;
    assert_eq!((&topic["first"], &topic["last"], &topic["events"]), (&json!(first), &json!(last), &json!(7)));
    assert_eq!(scene.get("/events?until=2001-01-01T00:00:00Z").await["events"], json!([]));
    assert_eq!(ids(&scene.get("/events?from=2001-01-01T00:00:00Z").await).len(), 7);
    for query in ["limit=0", "limit=1001", "order=up", "after=x", "from=yesterday", "page=2"] {
        let path = format!("/v1/streams/orders/events?{query}");
        scene.api().get(&path).await.problem(400, "invalid_query");
    }
    scene.rig.end().await;
}

#[tokio::test]
async fn a_request_that_waits_is_answered_when_something_comes_or_the_server_ends() {
    let scene = Scene::start().await;
    scene.group("earliest").await.is(201);
    let waiting = |api: Api| async move {
        let what = json!({ "max": 5, "wait": "60s", "consumer": "c" });
        api.json(Method::POST, "/v1/streams/orders/groups/g/receive", &what).await
    };
    let mut waiters = JoinSet::new();
    waiters.spawn(waiting(scene.api().clone()));
    scene.publish("a").await;
    let first = waiters.join_next().await.unwrap().unwrap().is(200).document();
    assert_eq!(first["events"].as_array().unwrap().len(), 1);
    // With every place taken it is seen that they wait. Looking takes one too, for a moment.
    for _ in 0..RECEIVES_MAX + 1 {
        waiters.spawn(waiting(scene.api().clone()));
    }
    let full = async || scene.post("groups/g/receive", &json!({})).await.status == 429;
    until("they wait", full).await;
    let claim = json!({ "consumer": "c", "min_idle": "0s" });
    scene.post("groups/g/claim", &claim).await.problem(429, "overloaded");
    scene.rig.end().await;
    let mut waited = 0;
    while let Some(answered) = waiters.join_next().await {
        let answered = answered.unwrap();
        if answered.status == 429 {
            continue;
        }
        assert_eq!(answered.is(200).document()["events"], json!([]), "a server that ends answers who waits");
        waited += 1;
    }
    assert!(waited > RECEIVES_MAX / 2, "{waited}");
}

#[tokio::test]
async fn groups_are_paused_sought_claimed_and_removed() {
    let scene = Scene::start().await;
    let published = [scene.publish("a").await, scene.publish("b").await];
    scene.group(&published[1]).await.is(201);
    assert_eq!(ids(&json!({ "events": scene.receive(10).await })), published[1..]);
    let act = async |verb: &str, what: Json| scene.post(&format!("groups/g/{verb}"), &what).await;
    let claimed =
        act("claim", json!({ "consumer": "d", "min_idle": "0s", "max": 10 })).await.is(200).document();
    assert_eq!((ids(&claimed), &claimed["events"][0]["attempts"]), (published[1..].to_vec(), &json!(2)));
    let pending = scene.get("/groups/g/pending").await["pending"][0].clone();
    assert_eq!((&pending["consumer"], &pending["state"]), (&json!("d"), &json!("taken")));

    let would = act("seek", json!({ "to": "earliest", "dry_run": true })).await.is(200).document();
    assert_eq!(would["again"], 2);
    assert_eq!(scene.receive(10).await, [] as [Json; 0], "nothing was done");
    assert_eq!(act("pause", json!({})).await.is(200).document()["paused"], true);
    act("seek", json!({ "to": "earliest" })).await.is(200);
    assert_eq!(scene.receive(10).await, [] as [Json; 0], "a paused group takes nothing");
    assert_eq!(act("resume", json!({})).await.is(200).document()["paused"], false);
    assert_eq!(ids(&json!({ "events": scene.receive(10).await })), published);

    let all = scene.get("/groups").await;
    assert_eq!((&all["groups"][0]["name"], &all["groups"][0]["pending"]), (&json!("g"), &json!(2)));
    let group = "/v1/streams/orders/groups/g";
    scene.api().send(Method::DELETE, group).await.is(204);
    scene.api().send(Method::DELETE, group).await.problem(404, "unknown_group");
    act("receive", json!({})).await.problem(404, "unknown_group");
    scene.rig.end().await;
}

#[tokio::test]
async fn trimming_spares_what_groups_have_not_settled_unless_told_otherwise() {
    let scene = Scene::start().await;
    for n in 0..5 {
        scene.publish(&n.to_string()).await;
    }
    scene.group("earliest").await.is(201);
    let trim = async |limits: Json| scene.post("trim", &limits).await.is(200).document();
    let would = trim(json!({ "max_events": 1, "dry_run": true, "force": true })).await;
    assert_eq!((&would["removed"], scene.get("").await["events"].clone()), (&json!(4), json!(5)));
    let kept = trim(json!({ "max_events": 1 })).await;
    assert_eq!((&kept["removed"], &kept["kept_for_groups"]), (&json!(0), &json!(4)));
    assert_eq!(trim(json!({ "max_events": 1, "force": true })).await["removed"], 4);
    assert_eq!(trim(json!({ "max_age": "1h", "max_bytes": "1MiB" })).await["removed"], 0);
    for wrong in [json!({ "max_age": "soon" }), json!({ "max_bytes": "1TB" }), json!({ "max_event": 1 })] {
        scene.post("trim", &wrong).await.problem(422, "invalid_document");
    }
    scene.rig.end().await;
}

#[tokio::test]
async fn an_export_can_be_imported_and_everything_is_sound() {
    let scene = Scene::start().await;
    let bytes = json!({ "payload_base64": STANDARD.encode([0, 255]), "key": "k" });
    scene.post("events", &bytes).await.is(201);
    for n in 0..700 {
        scene.publish(&format!("line\n{n}")).await;
    }
    let lines = scene.api().get("/v1/streams/orders/export").await.is(200);
    assert_eq!(lines.header("content-type"), Some("application/x-ndjson"));
    let lines = lines.text();
    assert_eq!(lines.lines().count(), 701);
    let import = async |body: String| {
        answer(scene.api().request(Method::POST, "/v1/streams/changes/import").body(body)).await
    };
    assert_eq!(import(lines.clone()).await.is(200).document()["imported"], 701);
    let again = scene.api().get("/v1/streams/changes/export").await.text();
    let payloads = |lines: &str| -> Vec<Json> {
        let line = |line| serde_json::from_str::<Json>(line).unwrap();
        lines
            .lines()
            .map(line)
            .map(|line| json!([line["payload"], line["payload_base64"], line["key"]]))
            .collect()
    };
    assert_eq!(payloads(&again), payloads(&lines));

    let broken =
        import("{\"payload\":\"a\"}\n{\"payload\":7}\n".to_owned()).await.problem(422, "invalid_line");
    assert!(broken.text().contains("line 2"), "{}", broken.text());
    assert_eq!(scene.api().get("/v1/streams/changes").await.document()["events"], 701, "all or nothing");
    let sound = scene.api().send(Method::POST, "/v1/stream-store/verify").await.is(200).document();
    assert_eq!(
        (&sound["sound"], &sound["events"], &sound["damage"]),
        (&json!(true), &json!(1_402), &json!([]))
    );
    scene.rig.end().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_its_reason() {
    let scene = Scene::start().await;
    let api = scene.api();
    for path in ["", "/events", "/groups", "/groups/g", "/export"] {
        api.get(&format!("/v1/streams/none{path}")).await.problem(404, "unknown_topic");
    }
    api.json(Method::POST, "/v1/streams/none/events", &json!({ "payload": "" }))
        .await
        .problem(404, "unknown_topic");
    api.get("/v1/streams/a%2Fb").await.problem(422, "invalid_name");
    api.get("/v1/streams/orders/elsewhere").await.problem(404, "not_found");
    scene.get("").await;
    api.get("/v1/streams/orders/events/99").await.problem(404, "unknown_event");
    api.get("/v1/streams/orders/events/x").await.problem(404, "unknown_event");
    for draft in [
        json!({}),
        json!({ "payload": "a", "payload_base64": "YQ==" }),
        json!({ "payload": { "order": 7 } }),
        json!({ "payload_base64": "?" }),
        json!({ "payload": "a", "not_before": "soon" }),
        json!({ "payload": "a", "colour": 1 }),
    ] {
        scene.post("events", &draft).await.problem(422, "invalid_document");
    }
    let long = "x".repeat((1 << 20) + 1);
    scene.post("events", &json!({ "payload": long })).await.problem(413, "too_large");
    scene
        .post("events", &json!({ "payload": "", "key": "k".repeat(5_000) }))
        .await
        .problem(413, "key_too_long");
    scene.post("events", &json!({ "payload": long, "key": long })).await.problem(413, "body_too_long");
    scene.group("soon").await.problem(422, "invalid_document");
    scene.group("earliest").await.is(201);
    for (verb, what) in [
        ("receive", json!({ "wait": "61s" })),
        ("receive", json!({ "max": 0 })),
        ("ack", json!({})),
        ("ack", json!({ "ids": ["x"] })),
        ("ack", json!({ "deliveries": [{ "id": "1", "delivery": "x" }] })),
        ("extend", json!({ "id": "1", "by": "8d" })),
        ("seek", json!({ "to": "there" })),
    ] {
        scene.post(&format!("groups/g/{verb}"), &what).await.problem(422, "invalid_document");
    }
    scene.post("groups/g/receive", &json!({ "consumer": "a/b" })).await.problem(422, "invalid_name");
    scene.post("groups/g/fail", &json!({ "id": "1" })).await.problem(404, "unknown_delivery");
    scene.rig.end().await;
}

#[tokio::test]
async fn a_node_without_streams_says_that_they_are_not_configured() {
    let rig = Rig::start(1).await;
    for path in ["/v1/streams", "/v1/streams/a", "/v1/streams/a/elsewhere", "/v1/dead-letters"] {
        rig.apis[0].get(path).await.problem(404, "not_configured");
    }
    let publish = rig.apis[0].json(Method::POST, "/v1/streams/a/events", &json!({ "payload": "" })).await;
    publish.problem(404, "not_configured");
    assert_eq!(rig.apis[0].metric("tidings_stream_store_up").await, None);
    rig.end().await;
}

#[tokio::test]
async fn metrics_say_how_streams_stand() {
    let scene = Scene::start().await;
    let api = scene.api();
    let metric = async |name: &str| api.metric(name).await;
    assert_eq!(metric("tidings_stream_published_total{topic=\"orders\"}").await, Some(0.0), "from the start");
    scene.group("earliest").await.is(201);
    for n in 0..3 {
        scene.publish(&n.to_string()).await;
    }
    let taken = ids(&json!({ "events": scene.receive(2).await }));
    scene.post("groups/g/ack", &json!({ "ids": [taken[0]] })).await.is(200);
    let group = "{topic=\"orders\",group=\"g\"}";
    for (name, expected) in [
        ("tidings_stream_store_up".to_owned(), 1.0),
        ("tidings_stream_published_total{topic=\"orders\"}".to_owned(), 3.0),
        ("tidings_stream_length{topic=\"orders\"}".to_owned(), 3.0),
        ("tidings_stream_settled_total{topic=\"orders\",outcome=\"acked\"}".to_owned(), 1.0),
        (format!("tidings_group_lag{group}"), 2.0),
        (format!("tidings_group_pending{group}"), 1.0),
        (format!("tidings_group_redeliveries_total{group}"), 0.0),
        ("tidings_dead_letters".to_owned(), 0.0),
        ("tidings_stream_append_duration_seconds_count".to_owned(), 3.0),
    ] {
        // A look at the store serves all scrapes of a second.
        until(&name, async || metric(&name).await == Some(expected)).await;
    }
    assert!(metric("tidings_stream_fsync_duration_seconds_count").await > Some(0.0));
    scene.rig.end().await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_has_no_gauges() {
    let scene = Scene::start().await;
    let api = scene.api();
    scene.publish("a").await;
    assert_eq!(api.metric("tidings_dead_letters").await, Some(0.0));
    scene.rig.node(0).streams().unwrap().driver().close().await.unwrap();
    until("it is seen", async || api.metric("tidings_stream_store_up").await == Some(0.0)).await;
    assert_eq!(api.metric("tidings_dead_letters").await, None);
    assert_eq!(api.metric("tidings_stream_length").await, None);
    let published = "tidings_stream_published_total{topic=\"orders\"}";
    assert_eq!(api.metric(published).await, Some(1.0), "what was counted stays");
    scene.rig.end().await;
}
