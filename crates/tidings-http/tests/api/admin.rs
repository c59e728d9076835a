use std::sync::{Arc, Mutex};

use reqwest::Method;
use serde_json::json;
use tidings::Node;
use tidings_http::limits::WRITE_TIME;
use tidings_http::{BindError, LogLevel, Options, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::strangers::asked;
use crate::support::{Rig, answer, loopback, until, until_within};

#[tokio::test]
async fn what_is_not_configured_says_so() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    for path in [
        "/v1/streams",
        "/v1/streams/orders/events",
        "/v1/dead-letters",
        "/v1/debug/bundle",
        "/v1/log-level",
        "/v1/configuration",
        "/cluster",
        "/caches/users",
        "/streams",
        "/groups/a/b",
        "/dead-letters",
        "/live",
        "/configuration",
        "/audit",
    ] {
        api.get(path).await.problem(404, "not_configured");
    }
    api.send(Method::POST, "/v1/drain").await.problem(404, "not_configured");
    for path in ["/nothing", "/v1", "/v1/cachesx", "/livezz", "/v1/caches/"] {
        api.get(path).await.problem(404, "not_found");
    }
    let refused = api.send(Method::POST, "/v1/caches").await.problem(405, "method_not_allowed");
    assert!(refused.header("allow").is_some_and(|allow| allow.contains("GET")), "{:?}", refused.headers);
    rig.end().await;
}

#[tokio::test]
async fn a_drained_node_is_not_ready_at_once() {
    let rig = Rig::start_with(1, |_, builder| builder, |options| Options { drains: true, ..options }).await;
    let api = &rig.apis[0];
    until("it is ready", async || api.metric("tidings_ready").await == Some(1.0)).await;
    let drained = api.send(Method::POST, "/v1/drain").await.is(200).document();
    assert_eq!(drained, json!({ "draining": true, "missing": [] }));
    assert_eq!(api.metric("tidings_ready").await, Some(0.0));
    let unready = api.get("/readyz").await.problem(503, "not_ready").document();
    assert_eq!(unready["reasons"], json!(["the node is draining"]));
    api.get("/startupz").await.is(200);
    api.get("/livez").await.is(200);
    rig.end().await;
}

#[tokio::test]
async fn draining_waits_for_what_peers_have_not_applied() {
    let rig = Rig::start_with(2, |_, builder| builder, |options| Options { drains: true, ..options }).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    api.put("c", "k", "v").await;
    api.send(Method::POST, "/v1/drain").await.is(200);
    assert_eq!(api.metric("tidings_peer_lag").await, Some(0.0));
    let others = rig.node(0).members();
    rig.node(0).set_denied(&[others[1].node.to_string()]);
    until("the link is closed", async || api.metric("tidings_links_closed_total").await >= Some(1.0)).await;
    api.put("c", "k", "w").await;
    let told = api.send(Method::POST, "/v1/drain").await.is(207).document();
    assert_eq!(told["missing"][0]["node"], "n2");
    rig.end().await;
}

#[tokio::test]
async fn the_log_level_is_read_and_changed() {
    let level = Arc::new(Mutex::new("info".to_owned()));
    let (read, change) = (level.clone(), level);
    let handle = Arc::new(LogLevel::new(
        move || read.lock().unwrap().clone(),
        move |new| match new {
            "debug" => {
                *change.lock().unwrap() = new.to_owned();
                Ok(())
            }
            _ => Err(format!("{new:?} is no level")),
        },
    ));
    let with_handle = |options| Options { log_level: Some(handle.clone()), ..options };
    let rig = Rig::start_with(1, |_, builder| builder, with_handle).await;
    let api = &rig.apis[0];
    assert_eq!(api.get("/v1/log-level").await.is(200).document(), json!({ "level": "info" }));
    let loud = json!({ "level": "loud" });
    let refused = api.json(Method::PUT, "/v1/log-level", &loud).await.problem(422, "invalid_level");
    assert_eq!(refused.document()["detail"], "\"loud\" is no level");
    let changed = api.json(Method::PUT, "/v1/log-level", &json!({ "level": "debug" })).await.is(200);
    assert_eq!(changed.document(), json!({ "level": "debug" }));
    assert_eq!(api.get("/v1/log-level").await.document(), json!({ "level": "debug" }));
    api.json(Method::PUT, "/v1/log-level", &json!({})).await.problem(422, "invalid_document");
    rig.end().await;
}

#[tokio::test]
async fn the_configuration_and_the_description_are_shown() {
    let configuration = json!({ "cluster": { "name": "test" } });
    let with_configuration = |options| Options { configuration: Some(configuration.clone()), ..options };
    let rig = Rig::start_with(1, |_, builder| builder, with_configuration).await;
    let api = &rig.apis[0];
    assert_eq!(api.get("/v1/configuration").await.is(200).document(), configuration);
    let description = api.get("/openapi.json").await.is(200);
    assert_eq!(description.header("content-type"), Some("application/json"));
    assert_eq!(description.document()["openapi"], "3.1.0");
    rig.end().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let node = Node::builder("test").node_id("n1").start().await.unwrap();
    let server = Server::bind(node.clone(), Options::new(loopback())).await.unwrap();
    let taken = Server::bind(node.clone(), Options::new(server.local_addr())).await;
    let Err(BindError::Listen { address, .. }) = taken else { panic!("{taken:?}") };
    assert_eq!(address, server.local_addr());
    node.shutdown(std::time::Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_client_with_a_body_under_way_gets_to_see_that_there_is_no_room() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    let mut inside = Vec::new();
    for _ in 0..tidings_http::limits::CONNECTIONS_MAX {
        inside.push(asked(api.address).await);
    }
    for _ in 0..10 {
        let request = api.entry(Method::PUT, "c", "k").body(vec![0; 4 << 20]);
        let refused = answer(request).await.problem(429, "overloaded");
        assert_eq!(refused.header("retry-after"), Some("1"));
    }
    drop(inside);
    rig.end().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_answer_loses_its_place() {
    let rig = Rig::start(1).await;
    let api = &rig.apis[0];
    api.open("c", &json!({})).await;
    answer(api.entry(Method::PUT, "c", "large").body(vec![0; 1 << 20])).await.is(204);
    let mut inside = Vec::new();
    let mut deaf = TcpStream::connect(api.address).await.unwrap();
    // More than the buffers of both ends hold.
    for _ in 0..32 {
        deaf.write_all(b"GET /v1/caches/c/entries/large HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    }
    // The client of this test keeps one connection.
    for _ in 0..tidings_http::limits::CONNECTIONS_MAX - 2 {
        inside.push(asked(api.address).await);
    }
    let has_room = async || {
        let mut status = [0; 12];
        let mut stream = TcpStream::connect(api.address).await.unwrap();
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        stream.read_exact(&mut status).await.unwrap();
        &status == b"HTTP/1.1 200"
    };
    until("every place is taken", async || !has_room().await).await;
    until_within(2 * WRITE_TIME, "its place is free", has_room).await;
    drop((inside, deaf));
    rig.end().await;
}

#[tokio::test]
async fn heads_that_make_no_sense_or_have_no_end_are_refused() {
    let rig = Rig::start(1).await;
    for (head, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "421"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(400_000)), "431"),
    ] {
        let mut stream = TcpStream::connect(rig.apis[0].address).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let mut answer = [0; 12];
        // The server may answer and close before it has read everything.
        let (_, read) = tokio::join!(writing.write_all(head.as_bytes()), reading.read_exact(&mut answer));
        read.unwrap();
        assert_eq!(std::str::from_utf8(&answer).unwrap(), format!("HTTP/1.1 {status}"));
    }
    rig.apis[0].get("/livez").await.is(200);
    rig.end().await;
}
