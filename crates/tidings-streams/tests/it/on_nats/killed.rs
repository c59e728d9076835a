//! Servers and consumers that are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings_streams::nats::{Config, Nats};
use tidings_streams::{
    Driver, EventId, GroupError, NewEvent, Order, Outcome, PAGE_EVENTS_MAX, Page, PublishError, Start,
    StoreError, Topic, TopicSettings,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::server::Server;
use super::{PATIENCE, ack, connect, name, publish, request, settings, texts, topic};

/// How often the server is killed, times `TIDINGS_TEST_SCALE`. More by `TIDINGS_STREAMS_KILLS`.
const KILLS: f64 = 4.0;

fn kills() -> u64 {
    let said = |name| std::env::var(name).ok().map(|text| text.parse::<f64>().expect("it is a number"));
    let kills = said("TIDINGS_STREAMS_KILLS").or_else(|| Some(KILLS * said("TIDINGS_TEST_SCALE")?));
    kills.unwrap_or(KILLS).max(1.0) as u64
}

/// Events that are published between two kills at least.
const EVENTS_PER_KILL: u64 = 300;

const PUBLISHERS: usize = 4;
const CONSUMERS: usize = 2;

/// Events that a consumer takes at a time.
const TAKEN: usize = 5;

/// How long a call may take, and how much longer where its process stands still.
const DEADLINE: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(3);

/// How long a delivery may take: more than a process stands still.
const IDLE: Duration = Duration::from_secs(4);

/// What was heard of a store by those who used it.
#[derive(Debug, Default)]
struct Heard {
    published: AtomicU64,
    is_over: AtomicBool,
    /// How often publishing an event met an error, by its payload: so many copies more of it there may be.
    unsure: Mutex<BTreeMap<String, usize>>,
    acknowledged: Mutex<BTreeSet<String>>,
    delivered: Mutex<BTreeMap<EventId, (String, usize)>>,
    acked: Mutex<BTreeSet<EventId>>,
}

/// Whether events of a publisher have idempotency keys.
fn is_keyed(publisher: usize) -> bool {
    publisher.is_multiple_of(2)
}

async fn publish_many(store: Arc<Nats>, topic: Topic, publisher: usize, heard: Arc<Heard>) {
    for number in 0_u64.. {
        if heard.is_over.load(Ordering::Relaxed) {
            return;
        }
        let text = format!("{publisher}-{number}");
        loop {
            let mut event = NewEvent::new(text.clone());
            if is_keyed(publisher) {
                event = event.idempotency_key(text.clone());
            }
            let began = Instant::now();
            let published = store.publish(&topic, vec![event]).await;
            let took = began.elapsed();
            assert!(took < DEADLINE + GRACE, "publishing took {took:?}: {published:?}");
            match published {
                Ok(_) => break,
                Err(PublishError::Store(StoreError::Unreachable(_))) => {
                    *heard.unsure.lock().entry(text.clone()).or_default() += 1;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        heard.acknowledged.lock().insert(text);
        heard.published.fetch_add(1, Ordering::Relaxed);
    }
}

async fn consume_many(store: Arc<Nats>, topic: Topic, consumer: String, heard: Arc<Heard>) {
    loop {
        let request = request(&consumer, TAKEN, Duration::from_millis(500));
        let taken = match store.receive(&topic, &name("g"), request).await {
            Ok(taken) => taken,
            Err(GroupError::Store(StoreError::Unreachable(_))) => continue,
            Err(error) => panic!("{error:?}"),
        };
        for (one, text) in taken.iter().zip(texts(&taken)) {
            assert!(!heard.acked.lock().contains(&one.event.id), "{text} was acknowledged, and comes again");
            heard.delivered.lock().entry(one.event.id).or_insert((text, 0)).1 += 1;
        }
        for one in &taken {
            // What is not heard comes again.
            if matches!(ack(&store, &topic, one).await, Ok(Outcome::Acked)) {
                heard.acked.lock().insert(one.event.id);
            }
        }
    }
}

/// All that a topic holds: payloads, and how many events have each.
async fn held(store: &Nats, topic: &Topic) -> BTreeMap<String, usize> {
    let mut page = Page { limit: PAGE_EVENTS_MAX, order: Order::Ascending, ..Page::default() };
    let mut held = BTreeMap::<String, usize>::new();
    loop {
        let found = store.read(topic, &page).await.expect("it can be read");
        for event in found.events {
            *held.entry(String::from_utf8_lossy(&event.payload).into_owned()).or_default() += 1;
        }
        match found.next {
            Some(next) => page.after = Some(next),
            None => return held,
        }
    }
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn compare(heard: &Heard, held: &BTreeMap<String, usize>, kills: u64) {
    let unsure = heard.unsure.lock();
    for text in heard.acknowledged.lock().iter() {
        let copies = held.get(text).copied().unwrap_or(0);
        assert!(copies >= 1, "{text} was acknowledged, and is lost");
        let publisher = text.split('-').next().and_then(|part| part.parse().ok()).expect("it has one");
        let more = if is_keyed(publisher) { 0 } else { unsure.get(text).copied().unwrap_or(0) };
        assert!(copies <= 1 + more, "{text} is there {copies} times, and met {more} errors");
    }
    let delivered = heard.delivered.lock();
    let texts: BTreeSet<&String> = delivered.values().map(|(text, _)| text).collect();
    let missed: Vec<&String> = held.keys().filter(|text| !texts.contains(text)).collect();
    assert!(missed.is_empty(), "never delivered: {missed:?}");
    let again: usize = delivered.values().map(|(_, times)| times - 1).sum();
    // With each kill a consumer may have acknowledged what it has without being heard.
    let most = usize::try_from(kills).expect("it is small") * CONSUMERS * TAKEN;
    assert!(again <= most, "{again} deliveries more than events, of {most} that {kills} kills explain");
    let errors: usize = unsure.values().sum();
    println!("{} events, {again} delivered again, {errors} errors", held.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_event_is_lost_however_the_server_is_killed() {
    let kills = kills();
    let mut server = Server::start().await;
    let config = Config { timeout: DEADLINE, ..Config::default() };
    let store = Arc::new(Nats::connect(&server.url(), config).await.expect("the server is there"));
    // What is sent once more was sent a deadline ago at most, and errors follow each other until the server is back.
    let idempotency_window = PATIENCE * 10;
    let topic = topic(TopicSettings { min_idle_time: IDLE, idempotency_window, ..settings() });
    store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it is made");
    let heard = Arc::<Heard>::default();
    let (mut publishers, mut consumers) = (JoinSet::new(), JoinSet::new());
    for publisher in 0..PUBLISHERS {
        publishers.spawn(publish_many(Arc::clone(&store), topic.clone(), publisher, Arc::clone(&heard)));
    }
    for consumer in 0..CONSUMERS {
        let consumer = format!("c{consumer}");
        consumers.spawn(consume_many(Arc::clone(&store), topic.clone(), consumer, Arc::clone(&heard)));
    }
    for kill in 1..=kills {
        let wanted = heard.published.load(Ordering::Relaxed) + EVENTS_PER_KILL;
        until("events are published", async || {
            assert!(publishers.len() == PUBLISHERS && consumers.len() == CONSUMERS);
            heard.published.load(Ordering::Relaxed) >= wanted
        })
        .await;
        server.kill();
        // Some calls find it gone, some find it back.
        tokio::time::sleep(Duration::from_millis(kill % 3 * 400)).await;
        server.start_again().await;
    }
    heard.is_over.store(true, Ordering::Relaxed);
    while let Some(ended) = publishers.join_next().await {
        ended.expect("a publisher ends well");
    }
    until("everything is settled", async || {
        let groups = store.groups(&topic).await;
        groups.is_ok_and(|groups| groups[0].lag == 0)
    })
    .await;
    consumers.abort_all();
    while let Some(ended) = consumers.join_next().await {
        assert!(ended.is_err_and(|error| error.is_cancelled()), "a consumer has failed");
    }
    compare(&heard, &held(&store, &topic).await, kills);
    store.close().await.expect("it closes");
}

/// Tells the child where the server is. Without it the child's test does nothing.
const SERVER: &str = "TIDINGS_STREAMS_NATS_CHILD";

#[tokio::test]
async fn child() {
    let Ok(url) = std::env::var(SERVER) else { return };
    let store = connect(&url).await;
    let topic = topic(TopicSettings { min_idle_time: IDLE, ..settings() });
    let taken = store.receive(&topic, &name("g"), request("dies", 2, PATIENCE)).await.expect("it is there");
    println!("@ {}", texts(&taken).concat());
    // It never ends by itself.
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_killed_consumer_had_goes_to_another() {
    let server = Server::start().await;
    let store = connect(&server.url()).await;
    let (topic, group) = (topic(TopicSettings { min_idle_time: IDLE, ..settings() }), name("g"));
    store.create_group(&topic, &group, Start::Earliest).await.expect("it is made");
    publish(&store, &topic, &["a", "b", "c"]).await;
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["on_nats::killed::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(SERVER, server.url())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let said = lines.map_while(Result::ok).find(|line| line.contains("@ "));
    child.kill().expect("it can be killed");
    child.wait().expect("it has ended");
    assert!(said.as_ref().is_some_and(|line| line.ends_with("@ ab")), "it took {said:?}");
    let rest = store.receive(&topic, &group, request("lives", 1, Duration::ZERO)).await.expect("it is there");
    assert_eq!(texts(&rest), ["c"], "it takes what another has");
    ack(&store, &topic, &rest[0]).await.expect("it is heard");
    let taken = store.receive(&topic, &group, request("lives", 10, PATIENCE)).await.expect("it is there");
    let found: Vec<(String, u32)> =
        texts(&taken).into_iter().zip(taken.iter().map(|one| one.tag.attempt)).collect();
    assert_eq!(found, [("a".to_owned(), 2), ("b".to_owned(), 2)]);
    store.close().await.expect("it closes");
}
