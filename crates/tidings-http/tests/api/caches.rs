use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::support::{Api, Rig, answer, until};

#[tokio::test]
async fn caches_are_opened_listed_and_closed() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    assert_eq!(api.get("/v1/caches").await.is(200).document(), json!({ "caches": [] }));
    let settings = json!({ "mode": "local", "invalidator": "off", "max_capacity": "1MiB", "time_to_live": "5m",
        "time_to_idle": "1m", "partitions": 2, "eviction_events": false, "replica_lag": "1s", "ttl_jitter": 0.1 });
    let opened = api.json(Method::PUT, "/v1/caches/users", &settings).await.is(201).document();
    for (name, value) in settings.as_object().unwrap() {
        assert_eq!(&opened[name], value, "{name}");
    }
    assert_eq!((&opened["name"], &opened["holds"]), (&json!("users"), &json!("bytes")));
    api.send(Method::PUT, "/v1/caches/plain").await.is(201);
    let listed = api.get("/v1/caches").await.is(200).document();
    let names: Vec<&Json> = listed["caches"].as_array().unwrap().iter().map(|cache| &cache["name"]).collect();
    assert_eq!(names, [&json!("plain"), &json!("users")]);

    api.json(Method::PUT, "/v1/caches/users", &settings).await.is(200);
    api.send(Method::PUT, "/v1/caches/users").await.problem(409, "cache_open");

    api.put("users", "k", "v").await;
    api.read("users", "k").await.is(200);
    api.read("users", "other").await.is(404);
    let shown = api.get("/v1/caches/users").await.is(200).document();
    let statistics = &shown["statistics"];
    assert_eq!(
        (&statistics["hits"], &statistics["misses"], &statistics["mutations"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert_eq!(statistics["hit_ratio"], json!(0.5));

    api.send(Method::DELETE, "/v1/caches/users").await.is(204);
    api.get("/v1/caches/users").await.problem(404, "unknown_cache");
    api.send(Method::DELETE, "/v1/caches/users").await.problem(404, "unknown_cache");
    rig.end().await;
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    for (settings, status, code) in [
        (json!({ "max_capacty": 1 }), 422, "invalid_document"),
        (json!({ "max_capacity": "64" , "mode": "x" }), 422, "invalid_document"),
        (json!({ "time_to_live": 5 }), 422, "invalid_document"),
        (json!({ "max_capacity": 0 }), 422, "invalid_settings"),
        (json!({ "partitions": 0 }), 422, "invalid_settings"),
        (json!({ "partitions": 5_000 }), 422, "invalid_settings"),
        (json!({ "time_to_live": "0s" }), 422, "invalid_settings"),
        (json!({ "time_to_idle": "2000years" }), 422, "invalid_settings"),
        (json!({ "mode": "replicate", "invalidator": "all" }), 422, "invalid_settings"),
        (json!({ "replica_lag": "2d" }), 422, "invalid_settings"),
        (json!({ "ttl_jitter": 1 }), 422, "invalid_settings"),
        (json!({ "lease_time": "6m" }), 422, "invalid_settings"),
        (json!({ "mode": "local", "one_loader": "cluster" }), 422, "invalid_settings"),
        (json!({ "fail_safe": "1h" }), 422, "needs_loader"),
        (json!({ "eager_refresh": 0.9 }), 422, "needs_loader"),
        (json!({ "negative_ttl": "10s" }), 422, "needs_loader"),
    ] {
        api.json(Method::PUT, "/v1/caches/c", &settings).await.problem(status, code);
    }
    answer(api.request(Method::PUT, "/v1/caches/c").body("{")).await.problem(400, "invalid_json");
    api.send(Method::PUT, "/v1/caches/a%20b").await.problem(400, "invalid_name");
    assert_eq!(api.get("/v1/caches").await.document(), json!({ "caches": [] }));
    rig.end().await;
}

#[tokio::test]
async fn capacity_in_bytes_bounds_bytes() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("small", &json!({ "max_capacity": "10KiB" })).await;
    api.open("few", &json!({ "max_capacity": 3 })).await;
    for n in 0..20 {
        api.put("small", &format!("k{n}"), &"v".repeat(1_000)).await;
        api.put("few", &format!("k{n}"), "v").await;
    }
    for (name, most) in [("small", 10 << 10), ("few", 3)] {
        let cache = rig.node(0).domain().cache(name).unwrap();
        cache.housekeep();
        let statistics = api.get(&format!("/v1/caches/{name}")).await.document()["statistics"].clone();
        let weight = statistics["weight"].as_u64().unwrap();
        assert!((1..=most).contains(&weight), "{statistics}");
        assert!(statistics["evicted"].as_u64() > Some(0), "{statistics}");
    }
    rig.end().await;
}

#[tokio::test]
async fn caches_of_other_types_are_listed_and_emptied_but_not_looked_into() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    let cache = rig.node(0).cache::<u64, String>("typed").open().unwrap();
    cache.insert(1, "one".to_owned()).unwrap();
    let shown = api.get("/v1/caches/typed").await.is(200).document();
    assert_eq!((&shown["holds"], &shown["max_capacity"]), (&json!("other"), &json!(100_000)));
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        answer(api.entry(method, "typed", "1")).await.problem(409, "other_type");
    }
    let keys = json!({ "keys": ["1"] });
    api.json(Method::POST, "/v1/caches/typed/invalidate", &keys).await.problem(409, "other_type");
    api.send(Method::DELETE, "/v1/caches/typed").await.problem(409, "other_type");
    api.send(Method::PUT, "/v1/caches/typed").await.problem(409, "other_type");
    assert_eq!(cache.get(&1).as_deref(), Some("one"));
    api.json(Method::POST, "/v1/caches/typed/invalidate", &json!({ "all": true })).await.is(200);
    assert_eq!(cache.get(&1), None);
    rig.end().await;
}

#[tokio::test]
async fn exactly_what_is_named_is_invalidated_on_every_node() {
    let rig = Rig::start(2).await;
    for (api, node) in rig.apis.iter().zip(rig.cluster.nodes()) {
        api.open("c", &json!({ "partitions": 1 })).await;
        let cache = node.lookup::<String, bytes::Bytes>("c").unwrap();
        for key in ["a", "b", "c"] {
            cache.get_or_load(&key.to_owned(), || async { Ok::<_, ()>("v".into()) }).await.unwrap();
        }
    }
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let invalidated =
        here.json(Method::POST, "/v1/caches/c/invalidate", &json!({ "keys": ["a", "b"] })).await;
    assert_eq!(invalidated.is(200).document(), json!({ "invalidated": { "keys": 2 } }));
    until("they go", async || {
        there.read("c", "b").await.status == 404 && there.read("c", "a").await.status == 404
    })
    .await;
    for api in [here, there] {
        api.read("c", "a").await.is(404);
        api.read("c", "c").await.is(200);
    }
    let invalidated = here.json(Method::POST, "/v1/caches/c/invalidate", &json!({ "all": true })).await;
    assert_eq!(invalidated.is(200).document(), json!({ "invalidated": "all" }));
    here.read("c", "c").await.is(404);
    until("it goes", async || there.read("c", "c").await.status == 404).await;
    rig.end().await;
}

#[tokio::test]
async fn entries_are_invalidated_by_tag_and_prefix_on_every_node() {
    let rig = Rig::start(2).await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    for api in [here, there] {
        api.open("c", &json!({ "partitions": 1 })).await;
    }
    // A change on the one, fills on the other, each with its tags.
    let put = |key: &'static str, tags: &'static str| {
        answer(here.entry(Method::PUT, "c", key).query(&[("tags", tags)]).body("v"))
    };
    put("user:1", "red,round").await.is(204);
    put("user:2", "green").await.is(204);
    put("other", "").await.is(204);
    until("they are told", async || rig.node(1).following().iter().any(|it| it.applied == 3)).await;
    for (key, tags) in [("user:1", "red,round"), ("user:2", "green"), ("other", "")] {
        let miss = there.read("c", key).await.is(404);
        let token = miss.header("tidings-fill-token").unwrap();
        let fill = there.entry(Method::PUT, "c", key).query(&[("tags", tags)]);
        answer(fill.header("tidings-fill-token", token).body("v")).await.is(204);
    }
    let invalidate = async |targets: Json| {
        here.json(Method::POST, "/v1/caches/c/invalidate", &targets).await.is(200).document()
    };
    let held = async |api: &Api| {
        let mut held = Vec::new();
        for key in ["user:1", "user:2", "other"] {
            held.push(api.read("c", key).await.status == 200);
        }
        held
    };
    assert_eq!(
        invalidate(json!({ "tags": ["none", "round"] })).await,
        json!({ "invalidated": { "tags": 2 } })
    );
    until("the tag goes", async || there.read("c", "user:1").await.status == 404).await;
    assert_eq!((held(here).await, held(there).await), (vec![false, true, true], vec![false, true, true]));
    assert_eq!(
        invalidate(json!({ "prefix": "user:" })).await,
        json!({ "invalidated": { "prefix": "user:" } })
    );
    assert_eq!(held(here).await, [false, false, true]);
    until("the prefix goes", async || there.read("c", "user:2").await.status == 404).await;
    assert_eq!(held(there).await, [false, false, true]);
    rig.end().await;
}

#[tokio::test]
async fn targets_that_are_not_exactly_one_are_refused() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    for (targets, code) in [
        (json!({}), "invalid_target"),
        (json!({ "keys": [] }), "invalid_target"),
        (json!({ "all": false }), "invalid_target"),
        (json!({ "keys": ["a"], "all": true }), "invalid_target"),
        (json!({ "tags": [] }), "invalid_target"),
        (json!({ "keys": ["a"], "prefix": "" }), "invalid_target"),
        (json!({ "prefix": "" }), "empty_prefix"),
        (json!({ "tags": ["a", ""] }), "invalid_tags"),
        (json!({ "tags": ["t".repeat(257)] }), "invalid_tags"),
        (json!({ "prefix": "a", "tags": ["a"] }), "invalid_target"),
        (json!({ "key": "a" }), "invalid_document"),
        (json!({ "keys": "a" }), "invalid_document"),
    ] {
        api.json(Method::POST, "/v1/caches/c/invalidate", &targets).await.problem(422, code);
    }
    answer(api.request(Method::POST, "/v1/caches/c/invalidate").body("keys=a"))
        .await
        .problem(400, "invalid_json");
    let all = json!({ "all": true });
    api.json(Method::POST, "/v1/caches/x/invalidate", &all).await.problem(404, "unknown_cache");
    assert_eq!(rig.node(0).domain().events_published(), 0);
    rig.end().await;
}
