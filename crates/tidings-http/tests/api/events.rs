use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response};
use serde_json::{Value as Json, json};
use tidings::Cache;
use tidings_http::limits::WRITE_TIME;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::support::{Api, Rig, answer, until, until_within};

/// Longest wait for an event.
const WITHIN: Duration = Duration::from_secs(60);

/// A stream of events being read.
struct Events {
    response: Response,
    buffer: String,
}

#[derive(Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: Json,
}

impl Events {
    async fn open(api: &Api, query: &str) -> Self {
        let request =
            api.request(Method::GET, &format!("/v1/caches/c/events{query}")).timeout(Duration::from_secs(60));
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { response, buffer: String::new() }
    }

    /// The next event; nothing after the end.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let field = |name: &str| {
                    let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned());
                    block.lines().find_map(value)
                };
                let event = field("event").map(|name| Event {
                    name,
                    id: field("id"),
                    data: serde_json::from_str(&field("data").unwrap()).unwrap(),
                });
                self.buffer = rest.to_owned();
                if event.is_some() {
                    return event;
                }
                continue;
            }
            let chunk =
                tokio::time::timeout(WITHIN, self.response.chunk()).await.expect("an event comes in time");
            self.buffer.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    async fn names(&mut self, count: usize) -> Vec<(String, String)> {
        let mut names = Vec::new();
        for _ in 0..count {
            let event = self.next().await.unwrap();
            names.push((event.name, event.data["target"]["key"].as_str().unwrap_or("-").to_owned()));
        }
        names
    }
}

async fn rig(nodes: usize) -> Rig {
    let rig = Rig::start(nodes).await;
    for api in &rig.apis {
        api.open("c", &json!({ "partitions": 2 })).await;
    }
    rig
}

fn told(name: &str, key: &str) -> (String, String) {
    (name.to_owned(), key.to_owned())
}

#[tokio::test]
async fn a_change_on_another_node_is_told_with_everything_about_it() {
    let rig = rig(2).await;
    let mut events = Events::open(&rig.apis[0], "").await;
    let path = "/v1/caches/c/entries/a%20%22b%22%0A%3Cc%3E";
    let put = rig.apis[1].request(Method::PUT, path).header("tidings-meta-Cause", "imp\u{f6}rt");
    answer(put.body("v")).await.is(204);
    let Event { name, id, data } = events.next().await.unwrap();
    assert_eq!(name, "inserted");
    let partition = data["partition"].as_u64().unwrap();
    assert!(partition < 2, "{data}");
    let (lane, sequence) = (data["lane"].as_u64().unwrap(), data["sequence"].as_u64().unwrap());
    // The first one is the canary with which a log begins.
    assert_eq!(sequence, 2);
    let time = data["time"].as_str().unwrap();
    assert!(time.len() == "2023-11-14T22:13:20.123Z".len() && time.ends_with('Z'), "{time}");
    let incarnation = rig.node(1).origin().incarnation.0;
    let expected = json!({
        "kind": "inserted", "operation": "insert", "cache": "c", "target": { "key": "a \"b\"\n<c>" },
        "origin": { "node": "n2", "incarnation": incarnation }, "sequence": sequence, "lane": lane,
        "partition": partition, "local": false, "time": time, "metadata": { "cause": "imp\u{f6}rt" },
    });
    assert_eq!(data, expected);
    assert_eq!(id, Some(format!("n2#{incarnation}/{lane}/{sequence}/inserted")));
    rig.end().await;
}

#[tokio::test]
async fn kinds_and_operations_say_what_happened() {
    let rig = rig(2).await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let mut events = Events::open(here, "").await;
    here.put("c", "k", "1").await;
    here.put("c", "k", "2").await;
    answer(here.entry(Method::DELETE, "c", "k")).await.is(204);
    here.json(Method::POST, "/v1/caches/c/invalidate", &json!({ "keys": ["k"] })).await.is(200);
    for (name, operation) in
        [("inserted", "insert"), ("updated", "insert"), ("deleted", "remove"), ("deleted", "invalidate")]
    {
        let event = events.next().await.unwrap();
        assert_eq!((event.name.as_str(), &event.data["operation"]), (name, &json!(operation)));
        assert_eq!(event.data["local"], json!(true));
    }
    here.json(Method::POST, "/v1/caches/c/invalidate", &json!({ "all": true })).await.is(200);
    let cleared = events.next().await.unwrap();
    assert_eq!((cleared.name.as_str(), &cleared.data["target"]), ("cleared", &json!("all")));
    assert_eq!(cleared.data["partition"], Json::Null);

    for (targets, target) in [
        (json!({ "tags": ["red"] }), json!({ "tag": "red" })),
        (json!({ "prefix": "user:" }), json!({ "prefix": "user:" })),
    ] {
        there.json(Method::POST, "/v1/caches/c/invalidate", &targets).await.is(200);
        let named = events.next().await.unwrap();
        assert_eq!((named.name.as_str(), &named.data["target"]), ("deleted", &target));
        assert_eq!((&named.data["operation"], &named.data["local"]), (&json!("invalidate"), &json!(false)));
    }

    here.put("c", "k", "3").await;
    there.put("c", "k", "4").await;
    assert_eq!(events.next().await.unwrap().name, "inserted");
    let invalidated = events.next().await.unwrap();
    assert_eq!(
        (invalidated.name.as_str(), &invalidated.data["origin"]["node"]),
        ("invalidated", &json!("n2"))
    );
    assert_eq!(events.next().await.unwrap().data["origin"]["node"], json!("n2"));
    rig.end().await;
}

#[tokio::test]
async fn filters_let_through_what_they_name() {
    let rig = rig(2).await;
    let [here, there] = &rig.apis[..] else { unreachable!() };
    let mut deleted = Events::open(here, "?kinds=deleted,cleared&partition=").await;
    let mut prefixed = Events::open(here, "?prefix=a&kinds=").await;
    let mut remote = Events::open(here, "?scope=remote").await;
    let mut local = Events::open(here, "?scope=local").await;
    let mut both = Events::open(here, "?scope=local,remote&kinds=inserted").await;
    here.put("c", "b1", "v").await;
    here.put("c", "a1", "v").await;
    answer(here.entry(Method::DELETE, "c", "a1")).await.is(204);
    assert_eq!(both.names(2).await, [told("inserted", "b1"), told("inserted", "a1")]);
    there.put("c", "z", "v").await;
    assert_eq!(deleted.names(1).await, [told("deleted", "a1")]);
    assert_eq!(prefixed.names(2).await, [told("inserted", "a1"), told("deleted", "a1")]);
    assert_eq!(local.names(3).await, [told("inserted", "b1"), told("inserted", "a1"), told("deleted", "a1")]);
    assert_eq!(remote.names(1).await, [told("inserted", "z")]);
    assert_eq!(both.names(1).await, [told("inserted", "z")]);
    rig.end().await;
}

#[tokio::test]
async fn a_partition_is_heard_alone() {
    let rig = rig(1).await;
    let api = &rig.apis[0];
    let mut all = Events::open(api, "").await;
    let mut parts = [Events::open(api, "?partition=0").await, Events::open(api, "?partition=1").await];
    let mut counts = [0; 2];
    for n in 0..40 {
        api.put("c", &format!("k{n}"), "v").await;
        let event = all.next().await.unwrap();
        counts[event.data["partition"].as_u64().unwrap() as usize] += 1;
    }
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    for (partition, (events, count)) in parts.iter_mut().zip(counts).enumerate() {
        for _ in 0..count {
            assert_eq!(events.next().await.unwrap().data["partition"], json!(partition));
        }
    }
    rig.end().await;
}

#[tokio::test]
async fn filters_without_meaning_are_refused() {
    let rig = rig(1).await;
    let api = &rig.apis[0];
    for query in [
        "kinds=insert",
        "kinds=inserted,",
        "partition=2",
        "partition=-1",
        "partition=x",
        "scope=here",
        "kind=x",
    ] {
        api.get(&format!("/v1/caches/c/events?{query}")).await.problem(400, "invalid_query");
    }
    api.get("/v1/caches/x/events").await.problem(404, "unknown_cache");
    rig.end().await;
}

#[tokio::test]
async fn a_slow_client_is_told_exactly_what_it_missed() {
    /// Far more than the rings and all buffers on the way hold.
    const WRITES: u64 = 60_000;
    let rig = rig(1).await;
    let mut slow = Events::open(&rig.apis[0], "").await;
    let cache = rig.node(0).lookup::<String, Bytes>("c").unwrap();
    for n in 0..WRITES {
        cache.insert(format!("key-{n:0100}"), "v".into()).unwrap();
        if n % 1_000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (mut heard, mut missed) = (0, 0);
    while heard + missed < WRITES {
        let event = slow.next().await.unwrap();
        if event.name == "lagged" {
            missed += event.data["missed"].as_u64().unwrap();
            assert_eq!(event.id, None);
        } else {
            heard += 1;
        }
    }
    assert_eq!(heard + missed, WRITES);
    assert!(missed > 0 && heard > 0, "{heard} heard, {missed} missed");
    assert_eq!(rig.apis[0].metric("tidings_subscriber_lagged_total").await, Some(missed as f64));
    rig.end().await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_keeps_its_place_and_is_told_what_it_missed() {
    /// 50 kB/s: far more than a client has to take, far less than comes.
    const READ_BYTES: usize = 5_000;
    const READ_PAUSE: Duration = Duration::from_millis(100);
    let rig = rig(1).await;
    let api = &rig.apis[0];
    let mut slow = TcpStream::connect(api.address).await.unwrap();
    slow.write_all(b"GET /v1/caches/c/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let subscribers = async || api.metric("tidings_subscribers{cache=\"c\"}").await;
    until("it is subscribed", async || subscribers().await == Some(1.0)).await;
    let cache: Cache<String, Bytes> = rig.node(0).lookup("c").unwrap();
    let note = "n".repeat(3_000);
    let start = Instant::now();
    // All buffers are full within the first second.
    while start.elapsed() < WRITE_TIME + Duration::from_secs(2) {
        for _ in 0..200 {
            cache.write().metadata("note", &note).insert("k".to_owned(), Bytes::new()).unwrap();
        }
        tokio::time::sleep(READ_PAUSE).await;
        slow.read_exact(&mut [0; READ_BYTES]).await.unwrap();
    }
    assert_eq!(subscribers().await, Some(1.0), "who reads keeps its place");
    let mut text = Vec::new();
    until("it is told", async || {
        assert!(slow.read_buf(&mut text).await.unwrap() > 0, "the stream goes on");
        text.windows(13).any(|line| line == b"event: lagged")
    })
    .await;
    drop(slow);
    rig.end().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_is_unsubscribed() {
    let rig = rig(1).await;
    let events = Events::open(&rig.apis[0], "").await;
    let subscribers = async || rig.apis[0].metric("tidings_subscribers").await;
    assert_eq!(subscribers().await, Some(1.0));
    drop(events);
    until("it is gone", async || subscribers().await == Some(0.0)).await;
    rig.end().await;
}

#[tokio::test]
async fn the_stream_ends_with_the_cache_and_with_the_server() {
    let rig = rig(1).await;
    let mut events = Events::open(&rig.apis[0], "").await;
    rig.apis[0].send(Method::DELETE, "/v1/caches/c").await.is(204);
    assert!(events.next().await.is_none());
    rig.apis[0].open("c", &json!({})).await;
    let mut events = Events::open(&rig.apis[0], "").await;
    rig.end().await;
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn subscriptions_are_bounded() {
    let rig = rig(1).await;
    let mut open = Vec::new();
    for _ in 0..tidings_http::limits::SUBSCRIPTIONS_MAX {
        open.push(Events::open(&rig.apis[0], "").await);
    }
    let refused = rig.apis[0].get("/v1/caches/c/events").await.problem(429, "overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    let refused = rig.apis[0].metric("tidings_http_refused_total{room=\"subscriptions\"}").await;
    assert_eq!(refused, Some(1.0));
    rig.apis[0].get("/livez").await.is(200);
    open.pop();
    until("there is room again", async || {
        let again = rig.apis[0].request(Method::GET, "/v1/caches/c/events").send().await.unwrap();
        again.status().as_u16() == 200
    })
    .await;
    rig.end().await;
}

#[tokio::test]
async fn a_subscriber_that_never_reads_is_dropped() {
    let rig = rig(1).await;
    let api = &rig.apis[0];
    let mut deaf = TcpStream::connect(api.address).await.unwrap();
    deaf.write_all(b"GET /v1/caches/c/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let subscribers = async || api.metric("tidings_subscribers{cache=\"c\"}").await;
    until("it is subscribed", async || subscribers().await == Some(1.0)).await;
    let cache: Cache<String, Bytes> = rig.node(0).lookup("c").unwrap();
    let note = "n".repeat(3_000);
    // Events come without end, so that they fill whatever buffers there are.
    until_within(3 * WRITE_TIME, "it is dropped", async || {
        for _ in 0..100 {
            cache.write().metadata("note", &note).insert("k".to_owned(), Bytes::new()).unwrap();
        }
        subscribers().await == Some(0.0)
    })
    .await;
    drop(deaf);
    rig.end().await;
}
