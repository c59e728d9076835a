//! Requests that wait, and whose callers count no more meanwhile.

use reqwest::Method;
use serde_json::{Value as Json, json};
use tidings_http::Options;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};

use crate::guarded::{Guarded, orders, under_way, write};
use crate::sessions::{session, with};
use crate::support::{Api, answer, until};

const RECEIVE: &str = "/v1/streams/orders/groups/g/receive";

/// A request for events that waits, of whom a header names.
async fn waits(guarded: &Guarded, who: &str) -> TcpStream {
    let head = format!("POST {RECEIVE} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{who}\r\n");
    under_way(guarded.address, &head, &json!({ "wait": "60s", "max": 10 })).await
}

/// Status and document of the answer.
async fn rest(mut stream: TcpStream) -> (u16, Json) {
    let mut told = String::new();
    let read = stream.read_to_string(&mut told);
    timeout(Duration::from_secs(30), read).await.expect("it waits no longer").unwrap();
    let (head, body) = told.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn bearer(guarded: &Guarded, role: &str) -> String {
    format!("authorization: Bearer {}", guarded.token(role))
}

fn change(guarded: &Guarded, lines: &str) {
    write(&guarded.file("tokens"), lines);
    guarded.reloader.reload().unwrap();
}

#[tokio::test]
async fn who_waits_for_events_waits_no_longer_than_its_token_counts_and_takes_nothing() {
    let guarded = Guarded::start_built(orders, |options| Options { tls: None, ..options }).await;
    let api = Api::new(guarded.address);
    let admin = api.with_token(guarded.token("admin"));
    admin.json(Method::PUT, "/v1/streams/orders/groups/g", &json!({})).await.is(201);

    let removed = waits(&guarded, &bearer(&guarded, "operator+")).await;
    let without: Vec<&str> =
        guarded.lines().lines().filter(|line| !line.starts_with("operator.payloads ")).collect();
    change(&guarded, &without.join("\n"));
    let (status, problem) = rest(removed).await;
    assert_eq!((status, &problem["code"]), (401, &json!("invalid_token")), "{problem}");
    change(&guarded, guarded.lines());

    let demoted = waits(&guarded, &bearer(&guarded, "operator+")).await;
    let may_less = waits(&guarded, &bearer(&guarded, "admin+")).await;
    let less = guarded.lines().replace("operator.payloads operator", "operator.payloads viewer");
    change(&guarded, &less.replace("admin.payloads admin", "admin.payloads operator"));
    let (status, problem) = rest(demoted).await;
    assert_eq!((status, &problem["code"]), (403, &json!("forbidden")), "{problem}");
    let (status, none) = rest(may_less).await;
    assert_eq!((status, &none["events"]), (200, &json!([])), "who may do it still has waited, too");
    change(&guarded, guarded.lines());

    let cookie = session(&api, guarded.token("operator+")).await;
    let of_session = format!("cookie: {cookie}\r\norigin: http://localhost");
    let (left, stays) =
        (waits(&guarded, &of_session).await, waits(&guarded, &bearer(&guarded, "admin+")).await);
    answer(with(&api, Method::POST, "/logout", &cookie)).await.is(303);
    let (status, problem) = rest(left).await;
    assert_eq!((status, &problem["code"]), (401, &json!("unauthenticated")), "{problem}");

    // Who counts goes on, and gets what nobody else has taken.
    admin.json(Method::POST, "/v1/streams/orders/events", &json!({ "payload": "a" })).await.is(201);
    let (status, taken) = rest(stays).await;
    assert_eq!((status, &taken["events"][0]["payload"]), (200, &json!("a")), "{taken}");
    assert_eq!(taken["events"][0]["attempts"], 1);
    guarded.end().await;
}

#[tokio::test]
async fn who_waits_for_a_load_waits_no_longer_than_its_token_counts() {
    let guarded = Guarded::start().await;
    let (operator, admin) = (guarded.client("operator+"), guarded.client("admin+"));
    admin.open("c", &json!({ "one_loader": "cluster", "lease_time": "1m" })).await;
    let first = admin.read("c", "k").await.problem(404, "not_cached");
    for (line, status, code) in [("", 401, "invalid_token"), ("operator.payloads viewer", 404, "not_cached")]
    {
        let mut waits = JoinSet::new();
        let client = operator.clone();
        waits.spawn(async move { client.read("c", "k").await });
        until("it waits", async || guarded.rig.node(0).leases().waiting == 1).await;
        let old = "operator.payloads operator";
        let lines = guarded.lines().lines().filter(|it| !line.is_empty() || !it.starts_with(old));
        change(&guarded, &lines.collect::<Vec<_>>().join("\n").replace(old, line));
        let answered = timeout(Duration::from_secs(30), waits.join_next()).await.expect("it waits no longer");
        let answered = answered.unwrap().unwrap().problem(status, code);
        assert_eq!(answered.header("tidings-fill-token"), None);
        change(&guarded, guarded.lines());
    }
    // The load is not disturbed.
    let token = first.header("tidings-fill-token").unwrap();
    answer(admin.entry(Method::PUT, "c", "k").header("tidings-fill-token", token).body("v")).await.is(204);
    guarded.end().await;
}
