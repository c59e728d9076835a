//! Who may do what, over TLS, for every operation that the OpenAPI document names.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidings::NodeBuilder;
use tidings::streams::{Name, StreamsConfig, TopicSettings};
use tidings_http::Options;

use crate::guarded::Guarded;
use crate::support::answer;

/// An operation of the document.
struct Operation {
    method: Method,
    path: String,
    role: String,
    payloads: bool,
}

async fn operations(guarded: &Guarded) -> Vec<Operation> {
    let document = guarded.client("viewer").get("/openapi.json").await.is(200).document();
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
        {
            all.push(Operation {
                method: method.to_uppercase().parse().unwrap(),
                // What is not there: nothing is changed, and the answer says that the caller got so far.
                path: path.replace('{', "no-").replace('}', ""),
                role: operation["x-tidings-role"].as_str().expect("every operation has a role").to_owned(),
                payloads: operation["x-tidings-payloads"] == true,
            });
        }
    }
    assert!(all.len() > 50, "{} operations", all.len());
    all
}

/// What a caller gets to do, or `None` if anything but 401, 403 and 429.
fn refusal(operation: &Operation, caller: Option<&str>) -> Option<u16> {
    const ROLES: [&str; 3] = ["viewer", "operator", "admin"];
    let Some(needed) = ROLES.iter().position(|role| *role == operation.role) else {
        assert!(["anybody", "probe"].contains(&operation.role.as_str()), "{}", operation.role);
        return None;
    };
    let Some(caller) = caller else { return Some(401) };
    let held = ROLES.iter().position(|role| *role == caller.trim_end_matches('+')).unwrap();
    (held < needed || operation.payloads && !caller.ends_with('+')).then_some(403)
}

#[tokio::test]
async fn every_operation_is_for_those_whom_the_document_names_and_for_nobody_else() {
    let guarded = Guarded::start().await;
    let operations = operations(&guarded).await;
    let wrong = guarded.stranger.with_token("tidings_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    let mut differences = Vec::new();
    for operation in &operations {
        let Operation { method, path, .. } = operation;
        for caller in [None].into_iter().chain(guarded.roles().map(Some)) {
            let client = caller.map_or_else(|| guarded.stranger.clone(), |role| guarded.client(role));
            let methods: &[Method] = if *method == Method::GET {
                &[Method::GET, Method::HEAD]
            } else {
                std::slice::from_ref(method)
            };
            for method in methods {
                // A body that means nothing, for an empty one opens a cache.
                let body = if method.is_safe() { "" } else { "nonsense" };
                let status = answer(client.request(method.clone(), path).body(body)).await.status;
                let refused = [401, 403, 429].contains(&status).then_some(status);
                let expected = refusal(operation, caller);
                if refused != expected {
                    differences.push(format!("{method} {path} by {caller:?}: {status}, not {expected:?}"));
                }
            }
        }
        let refused = wrong.send(method.clone(), path).await.status;
        if ![401, 429].contains(&refused) {
            differences.push(format!("{method} {path} with a wrong token: {refused}"));
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
    guarded.end().await;
}

#[tokio::test]
async fn what_is_refused_says_why_and_does_nothing() {
    let guarded = Guarded::start().await;
    let (stranger, operator) = (&guarded.stranger, guarded.client("operator+"));
    operator.open("c", &json!({})).await;
    operator.put("c", "k", "v").await;

    let refused = stranger.get("/v1/cluster").await.problem(401, "unauthenticated");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"tidings\""));
    let refused = stranger.with_token("wrong").get("/v1/cluster").await.problem(401, "invalid_token");
    assert!(refused.header("www-authenticate").unwrap().contains("invalid_token"), "{refused:?}");
    answer(guarded.client("viewer").entry(Method::PUT, "c", "k").body("w")).await.problem(403, "forbidden");
    guarded.client("operator").read("c", "k").await.problem(403, "payloads_forbidden");
    guarded.client("admin").read("c", "k").await.problem(403, "payloads_forbidden");
    operator.send(Method::DELETE, "/v1/caches/c").await.problem(403, "forbidden");
    assert_eq!(guarded.client("viewer+").read("c", "k").await.is(200).text(), "v");
    // Whoever may not fill gets no token to fill with: others would wait for it.
    let miss = guarded.client("viewer+").read("c", "other").await.problem(404, "not_cached");
    assert_eq!(miss.header("tidings-fill-token"), None);
    assert!(
        operator.read("c", "other").await.problem(404, "not_cached").header("tidings-fill-token").is_some()
    );

    // A stranger learns nothing by trying paths.
    for path in ["/nothing", "/v1/nothing", "/v1/caches/c/nothing", "/cluster"] {
        stranger.get(path).await.problem(401, "unauthenticated");
    }
    stranger.send(Method::POST, "/v1/cluster").await.problem(401, "unauthenticated");
    operator.get("/nothing").await.problem(404, "not_found");
    guarded.end().await;
}

#[tokio::test]
async fn hashes_of_values_and_texts_of_failures_are_for_those_who_may_see_payloads() {
    let topic = Name::new("orders").unwrap();
    let build = |directory: &Path, builder: NodeBuilder| {
        let config = StreamsConfig::embedded(directory).topic(topic.clone(), TopicSettings::default());
        builder.streams(config)
    };
    let guarded = Guarded::start_built(build, |options| options).await;
    let operator = guarded.client("operator+");
    operator.open("c", &json!({})).await;
    operator.put("c", "k", "v").await;
    let group = "/v1/streams/orders/groups/g";
    let post = async |path: &str, document: Json| {
        operator.json(Method::POST, &format!("/v1/streams/orders/{path}"), &document).await.document()
    };
    operator.json(Method::PUT, group, &json!({})).await.is(201);
    post("events", json!({ "payload": "secret" })).await;
    let taken = post("groups/g/receive", json!({})).await;
    let failure = json!({ "id": taken["events"][0]["id"], "error": "cannot take secret" });
    assert_eq!(post("groups/g/fail", failure).await["outcome"], "retry");
    for (role, shows) in [("viewer", false), ("viewer+", true), ("admin", false)] {
        let client = guarded.client(role);
        let held = client.get("/v1/caches/c/entries/k/where").await.is(200).document();
        let node = &held["nodes"][0];
        assert_eq!((&node["holds"], node["digest"].is_string()), (&json!(true), shows), "{role}: {held}");
        let pending = client.get(&format!("{group}/pending")).await.is(200).document();
        let error = if shows { json!("cannot take secret") } else { Json::Null };
        assert_eq!(pending["pending"][0]["error"], error, "{role}: {pending}");
    }
    guarded.end().await;
}

#[tokio::test]
async fn probes_and_metrics_need_a_token_where_they_are_not_open() {
    let closed = |options| Options { open_health_and_metrics: false, allow_payloads: false, ..options };
    let guarded = Guarded::start_with(closed).await;
    for path in ["/livez", "/readyz", "/startupz", "/metrics"] {
        guarded.stranger.get(path).await.problem(401, "unauthenticated");
        assert!([200, 503].contains(&guarded.client("viewer").get(path).await.status), "{path}");
    }
    // Nobody sees values where that is turned off.
    let admin = guarded.client("admin+");
    admin.open("c", &json!({})).await;
    admin.put("c", "k", "v").await;
    admin.read("c", "k").await.problem(403, "payloads_forbidden");
    guarded.end().await;

    let guarded = Guarded::start().await;
    for path in ["/livez", "/startupz", "/metrics"] {
        guarded.stranger.get(path).await.is(200);
    }
    guarded.end().await;
}

#[tokio::test]
async fn who_shows_wrong_tokens_again_and_again_waits_and_who_has_a_right_one_does_not() {
    let guarded = Guarded::start().await;
    let wrong = guarded.stranger.with_token("wrong");
    let mut answers = Vec::new();
    for _ in 0..tidings_http::limits::FAILURES_MAX + 2 {
        answers.push(wrong.get("/v1/cluster").await);
    }
    let limited = answers.pop().unwrap().problem(429, "too_many_failures");
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    let first: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(first[..10], [401; 10]);
    assert_eq!(guarded.client("viewer").get("/v1/cluster").await.status, 200);
    // Not to have shown any token is no failure.
    guarded.stranger.get("/v1/cluster").await.problem(401, "unauthenticated");
    for (reason, least) in [("invalid", 10.0), ("limited", 2.0), ("missing", 1.0), ("forbidden", 0.0)] {
        let metric = format!("tidings_http_denied_total{{reason=\"{reason}\"}}");
        assert_eq!(guarded.stranger.metric(&metric).await, Some(least), "{reason}");
    }
    guarded.end().await;
}

#[tokio::test]
async fn a_request_keeps_its_id_if_that_can_be_shown() {
    let guarded = Guarded::start().await;
    let viewer = guarded.client("viewer");
    let with = |id: &str| viewer.request(Method::GET, "/v1/caches/none").header("x-request-id", id);
    let answered = answer(with("trace-7.a_B")).await.problem(404, "unknown_cache");
    assert_eq!(answered.header("x-request-id"), Some("trace-7.a_B"));
    let long = "x".repeat(65);
    let mut made = Vec::new();
    for id in ["a b", "<b>", "\"", &long] {
        let answered = answer(with(id)).await.problem(404, "unknown_cache");
        made.push(answered.document()["request_id"].as_str().unwrap().to_owned());
    }
    let sound =
        |id: &String| id.len() < 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    assert!(made.iter().all(sound), "{made:?}");
    made.sort_unstable();
    made.dedup();
    assert_eq!(made.len(), 4, "{made:?}");
    guarded.end().await;
}

#[tokio::test]
async fn a_loopback_address_without_tokens_lets_everybody_do_everything() {
    let rig = crate::support::Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    api.put("c", "k", "v").await;
    assert_eq!(api.read("c", "k").await.is(200).text(), "v");
    let listed = api.get("/v1/audit").await.is(200).document();
    assert_eq!(
        (&listed["entries"][0]["who"], &listed["entries"][0]["by"]),
        (&json!("loopback"), &json!("loopback"))
    );
    api.get("/login").await.problem(404, "not_configured");
    api.send(Method::POST, "/logout").await.problem(404, "not_configured");
    rig.end().await;
}
