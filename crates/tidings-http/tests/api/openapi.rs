//! The OpenAPI document against what the routes really answer.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::streams::Scene;
use crate::support::{Api, Rig, answer, until};

/// Compares answers with the schemas that the document has for them.
struct Checker {
    document: Json,
    wrong: Vec<String>,
}

impl Checker {
    async fn load(api: &Api) -> Self {
        Self { document: api.get("/openapi.json").await.is(200).document(), wrong: Vec::new() }
    }

    /// Checks an answer against the schema of a response, by path, method and status.
    fn response(&mut self, (path, method, status): (&str, &str, &str), answered: &Json) {
        let response = self.document["paths"][path][method]["responses"][status].clone();
        let response = self.resolved(&response);
        let schema = response["content"]["application/json"]["schema"].clone();
        assert!(schema.is_object(), "{method} {path} {status} has no schema");
        self.compare(&format!("{method} {path} {status}"), &schema, answered);
    }

    fn resolved(&self, object: &Json) -> Json {
        match object["$ref"].as_str() {
            Some(reference) => self.document.pointer(reference.trim_start_matches('#')).unwrap().clone(),
            None => object.clone(),
        }
    }

    /// An object has the properties that its schema names: all of them, or where it says which are required at least
    /// those. One without properties may have any.
    fn compare(&mut self, at: &str, schema: &Json, answered: &Json) {
        let schema = self.resolved(schema);
        let may_be = |name: &str| match &schema["type"] {
            Json::String(only) => only == name,
            Json::Array(all) => all.iter().any(|one| one == name),
            _ => true,
        };
        let is = match answered {
            Json::Null => may_be("null"),
            Json::Bool(_) => may_be("boolean"),
            Json::Number(number) => may_be("number") || (may_be("integer") && !number.is_f64()),
            Json::String(_) => may_be("string"),
            Json::Array(_) => may_be("array"),
            Json::Object(_) => may_be("object"),
        };
        if !is {
            self.wrong.push(format!("{at} is {answered}, its type {}", schema["type"]));
        }
        if let Some(all) = schema["enum"].as_array().filter(|all| !all.contains(answered)) {
            self.wrong.push(format!("{at} is {answered}, none of {all:?}"));
        }
        match answered {
            Json::Array(items) => {
                items.iter().for_each(|item| self.compare(&format!("{at}[]"), &schema["items"], item));
            }
            Json::Object(members) => {
                if let Some(named) = schema["properties"].as_object() {
                    let there: BTreeSet<&String> = members.keys().collect();
                    let named: BTreeSet<&String> = named.keys().collect();
                    let required: BTreeSet<String> = match schema["required"].as_array() {
                        Some(all) => all.iter().map(|name| name.as_str().unwrap().to_owned()).collect(),
                        None => named.iter().map(|name| (*name).clone()).collect(),
                    };
                    let unnamed: Vec<_> = there.difference(&named).collect();
                    let missing: Vec<_> = required.iter().filter(|name| !there.contains(name)).collect();
                    if !unnamed.is_empty() || !missing.is_empty() {
                        self.wrong
                            .push(format!("{at}: not in the document {unnamed:?}, not answered {missing:?}"));
                    }
                }
                for (name, value) in members {
                    let of_its_own = &schema["properties"][name];
                    let schema =
                        if of_its_own.is_null() { &schema["additionalProperties"] } else { of_its_own };
                    if schema.is_object() {
                        self.compare(&format!("{at}.{name}"), schema, value);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Two nodes that have something to say: a cache that both host, an audit that has found something, a refused handshake.
async fn scene() -> Rig {
    let rig = Rig::start_with(
        2,
        |_, builder| builder,
        |options| tidings_http::Options { configuration: Some(json!({})), drains: true, ..options },
    )
    .await;
    for (index, api) in rig.apis.iter().enumerate() {
        api.open("c", &json!({ "schema": index })).await;
        api.open("d", &json!({})).await;
        let miss = api.read("d", "k").await.is(404);
        let token = miss.header("tidings-fill-token").unwrap().to_owned();
        let put = api.entry(Method::PUT, "d", "k").header("tidings-fill-token", token);
        answer(put.body(index.to_string())).await.is(204);
    }
    let api = &rig.apis[0];
    let known = async || api.get("/v1/cluster").await.document()["members"][1]["caches"] == json!(["c", "d"]);
    until("the other's caches are known", known).await;
    api.send(Method::POST, "/v1/coherence/audit").await.is(202);
    let over = async || {
        let audit = api.get("/v1/coherence").await.document()["audit"].clone();
        audit["inconsistencies"][0].is_object()
    };
    until("the audit has found what differs", over).await;
    rig
}

#[tokio::test]
async fn what_routes_answer_is_what_the_document_says() {
    let rig = scene().await;
    let api = &rig.apis[0];
    let mut checker = Checker::load(api).await;
    for (path, asked) in [
        ("/livez", "/livez"),
        ("/readyz", "/readyz"),
        ("/startupz", "/startupz"),
        ("/v1/cluster", "/v1/cluster"),
        ("/v1/coherence", "/v1/coherence"),
        ("/v1/caches", "/v1/caches"),
        ("/v1/caches/{cache}", "/v1/caches/c"),
        ("/v1/caches/{cache}/entries/{key}/where", "/v1/caches/d/entries/k/where?wait=10s"),
        ("/v1/configuration", "/v1/configuration"),
    ] {
        checker.response((path, "get", "200"), &api.get(asked).await.is(200).document());
    }
    let open = api.json(Method::PUT, "/v1/caches/e", &json!({ "mode": "local" })).await.is(201);
    checker.response(("/v1/caches/{cache}", "put", "201"), &open.document());
    let entry = "/v1/caches/{cache}/entries/{key}";
    let acked = answer(api.entry(Method::DELETE, "d", "k").query(&[("acked", "30s")])).await.is(200);
    checker.response((entry, "delete", "200"), &acked.document());
    let keys = json!({ "keys": ["k"] });
    let told = api.json(Method::POST, "/v1/caches/d/invalidate", &keys).await.is(200);
    checker.response(("/v1/caches/{cache}/invalidate", "post", "200"), &told.document());

    // Whoever is refused is told of, and says nothing any more.
    rig.node(0).set_denied(&["n2".to_owned()]);
    let refused = async || api.get("/v1/cluster").await.document()["refused"][0].is_object();
    until("it is refused", refused).await;
    checker.response(("/v1/cluster", "get", "200"), &api.get("/v1/cluster").await.document());
    let partial = api.get("/v1/caches/d/entries/k/where?wait=10ms").await.is(207).document();
    checker.response(("/v1/caches/{cache}/entries/{key}/where", "get", "207"), &partial);
    assert!(checker.wrong.is_empty(), "{:#?}", checker.wrong);
    rig.end().await;
}

#[tokio::test]
async fn what_routes_of_streams_answer_is_what_the_document_says() {
    let scene = Scene::start().await;
    let api = &scene.rig.apis[0];
    let mut checker = Checker::load(api).await;
    let topic = "/v1/streams/{topic}";
    let group = |verb: &str| format!("{topic}/groups/{{group}}{verb}");
    let put = async || api.json(Method::PUT, "/v1/streams/orders/groups/g", &json!({})).await;
    checker.response((&group(""), "put", "201"), &put().await.is(201).document());
    checker.response((&group(""), "put", "200"), &put().await.is(200).document());
    let publish = async |payload: &str, key: &str| {
        let request = api.request(Method::POST, "/v1/streams/orders/events").header("idempotency-key", key);
        answer(request.body(json!({ "payload": payload, "headers": { "h": "v" } }).to_string())).await
    };
    let events = format!("{topic}/events");
    checker.response((&events, "post", "201"), &publish("a", "1").await.is(201).document());
    checker.response((&events, "post", "200"), &publish("a", "1").await.is(200).document());
    publish("b", "2").await.is(201);
    let post = async |verb: &str, what: serde_json::Value| {
        api.json(Method::POST, &format!("/v1/streams/orders/groups/g/{verb}"), &what).await
    };
    let taken = post("receive", json!({ "max": 2 })).await.is(200).document();
    checker.response((&group("/receive"), "post", "200"), &taken);
    let (first, second) = (&taken["events"][0]["id"], &taken["events"][1]["id"]);
    for (verb, what, status) in [
        ("extend", json!({ "id": first, "by": "1m" }), 200),
        ("ack", json!({ "ids": [first] }), 200),
        ("ack", json!({ "ids": [first] }), 207),
        ("fail", json!({ "id": second, "error": "no" }), 200),
        ("claim", json!({ "consumer": "d", "min_idle": "0s" }), 200),
        ("seek", json!({ "to": "earliest", "dry_run": true }), 200),
        ("pause", json!({}), 200),
        ("resume", json!({}), 200),
    ] {
        let answered = post(verb, what).await.is(status).document();
        checker.response((&group(&format!("/{verb}")), "post", &status.to_string()), &answered);
    }
    checker.response(
        (&group("/pending"), "get", "200"),
        &api.get("/v1/streams/orders/groups/g/pending").await.document(),
    );
    // The last failure makes it a dead letter, of which a second is retried.
    post("receive", json!({ "max": 2 })).await.is(200);
    post("fail", json!({ "id": second, "error": "no" })).await.is(200);
    let letters = api.get("/v1/dead-letters").await.is(200).document();
    let letter = letters["events"][0]["id"].as_str().unwrap().to_owned();
    checker.response(("/v1/dead-letters", "get", "200"), &letters);
    let of_one = api.get(&format!("/v1/dead-letters/{letter}")).await.document();
    checker.response(("/v1/dead-letters/{id}", "get", "200"), &of_one);
    let retried =
        api.send(Method::POST, &format!("/v1/dead-letters/{letter}/retry")).await.is(200).document();
    checker.response(("/v1/dead-letters/{id}/retry", "post", "200"), &retried);
    let all = json!({ "all": true });
    let retried = api.json(Method::POST, "/v1/dead-letters/retry", &all).await.is(200).document();
    checker.response(("/v1/dead-letters/retry", "post", "200"), &retried);
    let purged = api.send(Method::DELETE, "/v1/dead-letters?all=true").await.is(200).document();
    checker.response(("/v1/dead-letters", "delete", "200"), &purged);
    for (path, asked) in [
        ("/v1/streams", "/v1/streams"),
        (topic, "/v1/streams/orders"),
        (&events, "/v1/streams/orders/events"),
        (&format!("{events}/{{id}}"), "/v1/streams/orders/events/1"),
        (&format!("{topic}/groups"), "/v1/streams/orders/groups"),
        (&group(""), "/v1/streams/orders/groups/g"),
    ] {
        checker.response((path, "get", "200"), &api.get(asked).await.is(200).document());
    }
    let trim = json!({ "max_events": 1 });
    let trimmed = api.json(Method::POST, "/v1/streams/orders/trim", &trim).await.is(200).document();
    checker.response((&format!("{topic}/trim"), "post", "200"), &trimmed);
    let imported = answer(api.request(Method::POST, "/v1/streams/orders/import").body("{\"payload\":\"\"}"));
    checker.response((&format!("{topic}/import"), "post", "200"), &imported.await.is(200).document());
    let verified = api.send(Method::POST, "/v1/stream-store/verify").await.is(200).document();
    checker.response(("/v1/stream-store/verify", "post", "200"), &verified);
    assert!(checker.wrong.is_empty(), "{:#?}", checker.wrong);
    scene.rig.end().await;
}

#[tokio::test]
async fn an_answer_that_the_document_does_not_describe_is_found() {
    let rig = Rig::start(1).await;
    let mut checker = Checker::load(&rig.apis[0]).await;
    let mut cluster = rig.apis[0].get("/v1/cluster").await.document();
    cluster["new"] = json!(1);
    cluster["members"][0].as_object_mut().unwrap().remove("zone");
    cluster["members"][0]["state"] = json!("asleep");
    cluster["ready"] = json!("yes");
    checker.response(("/v1/cluster", "get", "200"), &cluster);
    assert_eq!(checker.wrong.len(), 4, "{:#?}", checker.wrong);
    rig.end().await;
}
