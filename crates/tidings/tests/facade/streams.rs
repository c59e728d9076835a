//! Durable streams of a node: there once it is configured, closed with it, and fed by its caches.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value as Json;
use tidings::streams::embedded::OpenError;
use tidings::streams::{
    CaptureError, ConsumeOptions, Event, Name, NewEvent, OpenStreamsError, Page, Retention, Start,
    StreamEvent, Streams, StreamsConfig, TopicError, TopicSettings, TrimMode,
};
use tidings::testing::Cluster;
use tidings::{Node, NodeBuilder, Observation, Observed, RingBounds, StartError};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::common::{PATIENCE, for_a_while, joiner, open, until};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A store in a directory, with one topic that gives an event up at once.
fn config(directory: &Path) -> StreamsConfig {
    let impatient = TopicSettings { max_deliveries: 1.try_into().unwrap(), ..TopicSettings::default() };
    StreamsConfig::embedded(directory)
        .topic(name("orders"), TopicSettings::default())
        .topic(name("impatient"), impatient)
        .topic(name("changes"), TopicSettings { retention: Retention::default(), ..TopicSettings::default() })
}

fn builder(directory: &Path) -> NodeBuilder {
    joiner("shop", "n1", &[]).streams(config(directory))
}

async fn started(directory: &Path) -> Node {
    builder(directory).start().await.unwrap()
}

async fn ended(node: Node) {
    assert!(node.shutdown(PATIENCE).await, "the node ends cleanly");
}

fn streams(node: &Node) -> &Streams {
    node.streams().expect("they are configured")
}

async fn events(node: &Node, topic: &str) -> Vec<Event> {
    let (stream, mut page) = (streams(node).stream(topic).unwrap(), Page { limit: 1_000, ..Page::default() });
    let mut events = Vec::new();
    loop {
        let found = stream.read(&page).await.unwrap();
        events.extend(found.events);
        let Some(next) = found.next else { return events };
        page.after = Some(next);
    }
}

#[tokio::test]
async fn a_node_without_streams_says_so() {
    let node = joiner("shop", "n1", &[]).start().await.unwrap();
    assert!(node.streams().is_none() && node.stream_counts().is_none() && node.captures().is_empty());
    assert!(matches!(node.capture("c", "t"), Err(CaptureError::NoStreams)));
    ended(node).await;
}

#[tokio::test]
async fn what_is_published_is_there_after_a_restart_until_it_is_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    let orders = streams(&node).stream("orders").unwrap();
    let group = orders.group("billing", Start::Earliest).await.unwrap();
    for order in 0..3 {
        orders.publish(NewEvent::new(format!("{order}"))).await.unwrap();
    }
    let deliveries = group.receive(&name("a"), 2, Duration::ZERO).await.unwrap();
    assert_eq!(deliveries.len(), 2);
    deliveries[0].ack().await.unwrap();
    assert!(matches!(streams(&node).stream("other"), Err(TopicError::NotConfigured(_))));
    ended(node).await;

    let node = started(directory.path()).await;
    let group = streams(&node).stream("orders").unwrap().existing("billing").unwrap();
    let info = group.info().await.unwrap().unwrap();
    assert_eq!(
        (info.lag, info.pending),
        (2, 1),
        "one is acknowledged, one is with a consumer, one was never taken"
    );
    let left = group.receive(&name("b"), 10, Duration::ZERO).await.unwrap();
    assert_eq!(left.iter().map(|one| &one.event().payload[..]).collect::<Vec<_>>(), [b"2"]);
    ended(node).await;
}

#[tokio::test]
async fn a_store_that_another_node_has_refuses_a_start_and_is_free_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    match builder(directory.path()).start().await {
        Err(StartError::Streams(OpenStreamsError::Store(OpenError::InUse(path)))) => {
            assert!(path.starts_with(directory.path()), "{path:?}");
        }
        other => panic!("{other:?}"),
    }
    ended(node).await;
    // A node that cannot start lets go of its store too.
    let unreachable = builder(directory.path()).listen("0.0.0.0:0".parse().unwrap());
    assert!(matches!(unreachable.start().await, Err(StartError::Bind(_) | StartError::Unspecified(_))));
    ended(started(directory.path()).await).await;
}

#[tokio::test]
async fn a_dropped_node_lets_go_of_its_store() {
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    streams(&node).stream("orders").unwrap().publish(NewEvent::new("kept")).await.unwrap();
    drop(node);
    let node = tokio::time::timeout(PATIENCE, async {
        loop {
            match builder(directory.path()).start().await {
                Ok(node) => return node,
                Err(StartError::Streams(OpenStreamsError::Store(OpenError::InUse(_)))) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    let node = node.await.expect("the store is free before long");
    assert_eq!(events(&node, "orders").await.len(), 1);
    ended(node).await;
}

#[tokio::test]
async fn a_handler_finishes_before_the_node_ends_and_its_change_reaches_the_peers() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(2, |index, builder| match index {
        0 => builder.streams(config(directory.path())),
        _ => builder,
    });
    let cluster = cluster.await.unwrap();
    let caches = open(&cluster);
    caches[1].insert("k".to_owned(), 1).unwrap();
    let orders = streams(&cluster[0]).stream("orders").unwrap();
    orders.publish(NewEvent::new("k")).await.unwrap();
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (beginning, going_on, cache) = (begun.clone(), go_on.clone(), caches[0].clone());
    let group = orders.group("g", Start::Earliest).await.unwrap();
    let consumer = group.consume(ConsumeOptions::new(name("c")), move |delivery| {
        let (beginning, going_on, cache) = (beginning.clone(), going_on.clone(), cache.clone());
        async move {
            beginning.notify_one();
            going_on.notified().await;
            let key = String::from_utf8(delivery.event().payload.to_vec()).unwrap();
            cache.remove(&key).map(drop)
        }
    });
    begun.notified().await;
    let node = cluster[0].clone();
    let mut ending = JoinSet::new();
    ending.spawn(async move { node.shutdown(PATIENCE).await });
    for_a_while(Duration::from_millis(100)).await;
    assert!(ending.try_join_next().is_none(), "the node waits for the handler");
    go_on.notify_one();
    assert!(
        ending.join_next().await.unwrap().unwrap(),
        "a handler that finishes in time makes no end unclean"
    );
    assert_eq!(consumer.consumed().acked, 1);
    until("the peer was told of it", || caches[1].get(&"k".to_owned()).is_none()).await;
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_handler_that_hangs_does_not_keep_a_node_beyond_its_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    let orders = streams(&node).stream("orders").unwrap();
    orders.publish(NewEvent::new("never done")).await.unwrap();
    let begun = Arc::new(Notify::new());
    let beginning = begun.clone();
    let group = orders.group("g", Start::Earliest).await.unwrap();
    let consumer = group.consume(ConsumeOptions::new(name("c")), move |_| {
        let beginning = beginning.clone();
        async move {
            beginning.notify_one();
            std::future::pending::<Result<(), String>>().await
        }
    });
    begun.notified().await;
    let ending = tokio::time::timeout(PATIENCE, node.shutdown(Duration::from_millis(50)));
    ending.await.expect("it ends by its deadline");
    drop((consumer, node));
    let node = started(directory.path()).await;
    let group = streams(&node).stream("orders").unwrap().existing("g").unwrap();
    let pending = group.pending(None, 10).await.unwrap();
    assert_eq!(pending.len(), 1, "what was not done comes again");
    ended(node).await;
}

/// What is told of a topic, put together until it is enough.
async fn told(observer: &mut tidings::Observer, topic: &str, events: usize) -> Vec<StreamEvent> {
    let mut told = Vec::new();
    while told.len() < events {
        let next = tokio::time::timeout(PATIENCE, observer.next()).await;
        match next.unwrap_or_else(|_| panic!("only {told:?}")).expect("the node runs") {
            Observed::Observation(Observation::Stream { topic: of, event }) if of.as_str() == topic => {
                told.push(event);
            }
            _ => {}
        }
    }
    told
}

#[tokio::test]
async fn what_happens_to_a_topic_is_told_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    let mut observer = node.observe();
    let stream = streams(&node).stream("impatient").unwrap();
    let group = stream.group("g", Start::Earliest).await.unwrap();
    for _ in 0..2 {
        stream.publish(NewEvent::new("e").idempotency_key("once")).await.unwrap();
    }
    stream.publish(NewEvent::new("f")).await.unwrap();
    let deliveries = group.receive(&name("c"), 10, Duration::ZERO).await.unwrap();
    deliveries[0].ack().await.unwrap();
    deliveries[1].fail("no").await.unwrap();
    assert!(deliveries[1].ack().await.is_err(), "it is a dead letter");
    let none = Retention { max_events: Some(0), ..Retention::default() };
    stream.trim(&none, TrimMode { dry_run: true, ..TrimMode::default() }).await.unwrap();
    stream.trim(&none, TrimMode::default()).await.unwrap();
    let group = || name("g");
    assert_eq!(
        told(&mut observer, "impatient", 6).await,
        [
            StreamEvent::Published { events: 1 },
            StreamEvent::Published { events: 1 },
            StreamEvent::Received { group: group(), events: 2 },
            StreamEvent::Settled { group: group(), acked: 1, retried: 0 },
            StreamEvent::DeadLettered { group: Some(group()), events: 1 },
            StreamEvent::Trimmed { events: 2 },
        ]
    );
    let counts = node.stream_counts().unwrap();
    let of = counts.topics[&name("impatient")];
    assert_eq!((of.published, of.duplicates, of.received), (2, 1, 2));
    assert_eq!((of.acked, of.retried, of.dead, of.unsettled, of.trimmed), (1, 0, 1, 1, 2));
    assert_eq!(counts.topics[&name("orders")], tidings::streams::TopicCounts::default());
    assert_eq!(counts.appends.count(), 3);
    assert!(counts.flushes.unwrap().count() > 0);
    ended(node).await;
}

#[tokio::test]
async fn what_nobody_settles_in_time_is_counted_as_dead_as_it_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let hasty = TopicSettings {
        max_deliveries: 1.try_into().unwrap(),
        min_idle_time: Duration::from_millis(50),
        ..TopicSettings::default()
    };
    let config = StreamsConfig::embedded(directory.path()).topic(name("hasty"), hasty);
    let node = joiner("shop", "n1", &[]).streams(config).start().await.unwrap();
    let mut observer = node.observe();
    let stream = streams(&node).stream("hasty").unwrap();
    let group = stream.group("g", Start::Earliest).await.unwrap();
    stream.publish_batch(vec![NewEvent::new("a"), NewEvent::new("b")]).await.unwrap();
    let deliveries = group.receive(&name("c"), 10, Duration::ZERO).await.unwrap();
    assert_eq!(deliveries.len(), 2);
    // Maintenance may notice it first, and says so too: each is counted once.
    assert!(group.receive(&name("c"), 10, Duration::from_millis(200)).await.unwrap().is_empty());
    let mut dead = 0;
    while dead < 2 {
        let told = told(&mut observer, "hasty", 1).await;
        if let [StreamEvent::DeadLettered { events, .. }] = told[..] {
            dead += events;
        }
    }
    assert_eq!(dead, 2);
    assert_eq!(node.stream_counts().unwrap().topics[&name("hasty")].dead, 2);
    assert_eq!(streams(&node).dead_letter_count().await.unwrap(), 2);
    ended(node).await;
}

fn documents(events: &[Event]) -> Vec<Json> {
    events.iter().map(|event| serde_json::from_slice(&event.payload).unwrap()).collect()
}

#[tokio::test]
async fn changes_of_this_node_are_captured_in_their_order_and_those_of_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::start_with(2, |index, builder| match index {
        0 => builder.streams(config(directory.path())),
        _ => builder,
    });
    let cluster = cluster.await.unwrap();
    let caches = open(&cluster);
    let node = &cluster[0];
    assert!(matches!(node.capture("none", "changes"), Err(CaptureError::UnknownCache(_))));
    assert!(matches!(node.capture("numbers", "none"), Err(CaptureError::Topic(_))));
    node.capture("numbers", "changes").unwrap();
    assert!(matches!(node.capture("numbers", "changes"), Err(CaptureError::Twice)));

    caches[1].insert("elsewhere".to_owned(), 1).unwrap();
    for (n, key) in ["a", "b", "a"].into_iter().enumerate() {
        caches[0].insert(key.to_owned(), n as u64).unwrap();
    }
    caches[0].remove(&"b".to_owned()).unwrap();
    caches[0].write().insert_many([("x".to_owned(), 1), ("y".to_owned(), 2)]).unwrap();
    caches[0].clear().unwrap();
    until("they are captured", || node.captures()[0].captured >= 6).await;
    let captured = events(node, "changes").await;
    let documents = documents(&captured);
    let said: Vec<(&str, &str)> = captured
        .iter()
        .zip(&documents)
        .map(|(event, document)| (document["kind"].as_str().unwrap(), event.key.as_deref().unwrap_or("-")))
        .collect();
    let [begin @ .., last] = &said[..] else { panic!("{said:?}") };
    for key in ["a", "b"] {
        let of_key: Vec<&str> = begin.iter().filter(|(_, of)| *of == key).map(|(kind, _)| *kind).collect();
        let expected: &[&str] = if key == "a" { &["inserted", "updated"] } else { &["inserted", "deleted"] };
        assert_eq!(of_key, expected, "{key}: {said:?}");
    }
    assert_eq!(last, &("cleared", "-"));
    let keys: String = documents.iter().map(|document| document["target"].to_string()).collect();
    assert!(keys.contains("\"x\"") && keys.contains("\"y\"") && !keys.contains("elsewhere"), "{keys}");
    let first = &captured[0];
    assert_eq!(first.content_type.as_deref(), Some("application/json"));
    assert_eq!(first.headers["tidings-cache"], "numbers");
    assert_eq!(node.captures()[0].missed, 0);
    cluster.shutdown().await;
}

#[tokio::test]
async fn changes_that_the_store_cannot_follow_are_counted_and_said_in_their_place() {
    const CHANGES: u64 = 5_000;
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    let few = RingBounds { events: 64, ..RingBounds::default() };
    let cache = node.cache::<String, u64>("numbers").partitions(1).ring(few).open().unwrap();
    node.capture("numbers", "changes").unwrap();
    // The runtime of this test has one thread: nothing is captured before this one waits for something.
    for n in 0..CHANGES {
        cache.insert(n.to_string(), n).unwrap();
    }
    let seen = || node.captures()[0].clone();
    until("everything is captured or counted", || {
        let report = seen();
        report.missed > 0 && report.captured + report.missed == CHANGES + 1
    })
    .await;
    let documents = documents(&events(&node, "changes").await);
    assert_eq!(documents[0]["kind"], "lagged", "what is missing is said where it would have been");
    assert_eq!(documents[0]["missed"], seen().missed);
    assert_eq!(documents.last().unwrap()["target"]["key"], (CHANGES - 1).to_string());

    cache.insert(CHANGES.to_string(), 0).unwrap();
    until("it goes on", || seen().captured + seen().missed == CHANGES + 2).await;
    ended(node).await;
}

#[tokio::test]
async fn what_was_changed_before_the_end_is_captured_before_the_store_is_closed() {
    const CHANGES: u64 = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    let cache = node.cache::<u64, u64>("numbers").open().unwrap();
    node.capture("numbers", "changes").unwrap();
    for n in 0..CHANGES {
        cache.insert(n, n).unwrap();
    }
    ended(node).await;
    let node = started(directory.path()).await;
    assert_eq!(events(&node, "changes").await.len() as u64, CHANGES);
    ended(node).await;
}

#[tokio::test]
async fn a_capture_ends_with_its_cache_and_may_be_begun_again() {
    let directory = tempfile::tempdir().unwrap();
    let node = started(directory.path()).await;
    for _ in 0..2 {
        let cache = node.cache::<u64, u64>("numbers").open().unwrap();
        let begun = AtomicU64::new(0);
        until("it may be captured", || {
            begun.fetch_add(1, Ordering::Relaxed);
            node.capture("numbers", "changes").is_ok()
        })
        .await;
        cache.insert(1, 1).unwrap();
        until("it is captured", || node.captures().last().is_some_and(|one| one.captured == 1)).await;
        cache.close();
    }
    assert_eq!(events(&node, "changes").await.len(), 2);
    ended(node).await;
}
