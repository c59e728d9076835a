//! What operators do with all topics, and what is looked after without anybody.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{
    Backoff, DeadLetterFilter, DeadLetterPage, Driver, Durability, ImportError, Name, NewEvent, Page,
    Retention, Settings, Start, StoreError, Streams, Topic, TopicError, TopicSettings,
};

use crate::harness::TestClock;
use crate::memory::{BAD_TOPIC, Bug, Memory};

const PATIENCE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

async fn opened(settings: Settings) -> (Streams, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { durability: Durability::Relaxed, ..Config::default() };
    let store = Embedded::open(directory.path(), config).await.expect("it opens");
    (Streams::start(Arc::new(store), settings).expect("the settings are sound"), directory)
}

fn lenient(defaults: TopicSettings) -> Settings {
    Settings { strict: false, defaults, ..Settings::default() }
}

#[tokio::test]
async fn what_is_exported_can_be_imported_elsewhere() {
    let (streams, _directory) = opened(lenient(TopicSettings::default())).await;
    let from = streams.stream("from").expect("it is a topic");
    let events: Vec<NewEvent> = (0..120_u8)
        .map(|number| NewEvent::new(vec![number, 255 - number]).key("k").header("n", number.to_string()))
        .collect();
    from.publish_batch(events).await.expect("it is published");
    let mut lines = Vec::new();
    let write = |line: &str| {
        lines.push(line.to_owned());
        Ok::<(), StoreError>(())
    };
    assert_eq!(from.export(write).await.expect("it can be exported"), 120);
    let to = streams.stream("to").expect("it is a topic");
    let imported = to.import(lines.into_iter().map(Ok::<_, Infallible>)).await;
    assert_eq!(imported.expect("it can be imported"), 120);
    let page = Page { limit: 1_000, ..Page::default() };
    let (from, to) = (from.read(&page).await.expect("it is read"), to.read(&page).await.expect("it is read"));
    for (one, other) in from.events.iter().zip(&to.events) {
        assert_eq!((&one.payload, &one.key, &one.headers), (&other.payload, &other.key, &other.headers));
    }
    assert_eq!(to.events.len(), 120);
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_line_that_is_no_event_is_named_and_what_was_before_is_kept() {
    let (streams, _directory) = opened(lenient(TopicSettings::default())).await;
    let stream = streams.stream("to").expect("it is a topic");
    let lines =
        ["{\"payload\":\"a\"}", "", "{\"payload\":1}"].map(|line| Ok::<_, Infallible>(line.to_owned()));
    let refused = stream.import(lines).await.expect_err("the third line is none");
    assert!(matches!(refused, ImportError::Line { number: 3, .. }), "{refused:?}");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_strict_store_asks_nothing_of_the_driver_for_other_topics() {
    let topics = [(name("orders.created"), TopicSettings::default())].into();
    let (streams, _directory) = opened(Settings { topics, ..Settings::default() }).await;
    assert!(streams.stream("orders.created").is_ok());
    assert_eq!(streams.stream("orders").err(), Some(TopicError::NotConfigured(name("orders"))));
    assert!(matches!(streams.stream("no/topic").err(), Some(TopicError::Name(..))));
    assert!(streams.topics().await.expect("they can be listed").is_empty());
    streams.shutdown().await.expect("it ends");
}

/// Fails an event until it is given up: how often it was delivered, and where its dead letter is.
async fn given_up(streams: &Streams, topic: &str) -> (u32, String) {
    let stream = streams.stream(topic).expect("it is a topic");
    let group = stream.group("g", Start::Earliest).await.expect("it is made");
    stream.publish(NewEvent::new("x")).await.expect("it is published");
    let filter = DeadLetterFilter { topic: Some(name(topic)), ..DeadLetterFilter::default() };
    let page = DeadLetterPage { filter, after: None, limit: 10 };
    loop {
        let taken = group.receive(&name("c"), 1, PATIENCE).await.expect("it is there");
        taken.into_iter().next().expect("it comes back").fail("it fails").await.expect("it is settled");
        let letters = streams.dead_letters(&page).await.expect("they can be read").letters;
        if let Some(letter) = letters.first() {
            return (letter.attempts, letter.stream.to_string());
        }
    }
}

#[tokio::test]
async fn a_topic_that_says_nothing_else_is_kept_by_the_defaults() {
    let backoff = Backoff { initial: Duration::ZERO, max: Duration::ZERO, jitter: 0.0 };
    let defaults = TopicSettings {
        max_deliveries: NonZeroU32::new(2).expect("two is not zero"),
        dead_letter: name("all-dead"),
        backoff,
        ..TopicSettings::default()
    };
    let own = TopicSettings {
        max_deliveries: NonZeroU32::new(4).expect("four is not zero"),
        dead_letter: name("own-dead"),
        ..defaults.clone()
    };
    let settings = Settings { topics: [(name("own"), own)].into(), ..lenient(defaults) };
    let (streams, _directory) = opened(settings).await;
    assert_eq!(given_up(&streams, "other").await, (2, "all-dead".to_owned()));
    assert_eq!(given_up(&streams, "own").await, (4, "own-dead".to_owned()));
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn more_topics_than_files_may_be_open_are_listed_and_hold_what_they_should() {
    /// More than a store has files open at once.
    const TOPICS: usize = 300;
    let (streams, directory) = opened(lenient(TopicSettings::default())).await;
    let names: Vec<String> = (0..TOPICS).map(|number| format!("topic-{number:03}")).collect();
    for name in &names {
        let stream = streams.stream(name).expect("it is a topic");
        stream.publish(NewEvent::new(name.clone())).await.expect("it is published");
    }
    streams.shutdown().await.expect("it ends");
    let config = Config { durability: Durability::Relaxed, ..Config::default() };
    let store = Embedded::open(directory.path(), config).await.expect("it opens");
    let streams = Streams::start(Arc::new(store), lenient(TopicSettings::default())).expect("they are sound");
    let listed: Vec<String> =
        streams.topics().await.expect("they can be listed").iter().map(ToString::to_string).collect();
    assert_eq!(listed, names);
    for name in &names {
        let stream = streams.stream(name).expect("it is a topic");
        let page = Page { limit: 10, ..Page::default() };
        let events = stream.read(&page).await.expect("it can be read").events;
        assert_eq!(events.iter().map(|event| &event.payload[..]).collect::<Vec<_>>(), [name.as_bytes()]);
    }
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn old_events_go_though_nobody_publishes() {
    let retention = Retention { max_age: Some(Duration::from_millis(1)), ..Retention::default() };
    let (streams, _directory) =
        opened(lenient(TopicSettings { retention, ..TopicSettings::default() })).await;
    let stream = streams.stream("orders").expect("it is a topic");
    stream.publish(NewEvent::new("a")).await.expect("it is published");
    let gone = async {
        while stream.info().await.expect("it can be asked").expect("it is there").events > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is trimmed");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_strict_store_keeps_what_is_not_configured_any_more() {
    let all = TopicSettings { retention: Retention::default(), ..TopicSettings::default() };
    let (before, directory) = opened(lenient(all)).await;
    for topic in ["a", "b"] {
        let stream = before.stream(topic).expect("it is a topic");
        for _ in 0..3 {
            let events = (0..400).map(|_| NewEvent::new("event")).collect();
            stream.publish_batch(events).await.expect("it is published");
        }
    }
    before.shutdown().await.expect("it ends");

    let store = Embedded::open(directory.path(), Config::default()).await.expect("it opens");
    let topics = [(name("b"), TopicSettings::default())].into();
    let streams = Streams::start(Arc::new(store), Settings { topics, ..Settings::default() });
    let streams = streams.expect("the settings are sound");
    let held = async |topic| {
        let info = streams.stored(name(topic)).info().await.expect("it answers");
        info.expect("the topic is there").events
    };
    let trimmed = async {
        while held("b").await > 1_000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, trimmed).await.expect("the one that is configured is trimmed");
    // Topics are looked after by their names: this one was before that.
    assert_eq!(held("a").await, 1_200);
    streams.shutdown().await.expect("it ends");
}

/// A topic of which a group has given up some events.
async fn with_dead_letters(streams: &Streams, topic: &str, letters: usize) -> tidings_streams::Group {
    let stream = streams.stream(topic).expect("it is a topic");
    let group = stream.group("g", Start::Earliest).await.expect("it is made");
    stream.publish_batch(vec![NewEvent::new("x"); letters]).await.expect("it is published");
    for one in group.receive(&name("c"), letters, PATIENCE).await.expect("it is there") {
        one.fail("it fails").await.expect("it is settled");
    }
    group
}

fn given_up_at_once() -> TopicSettings {
    TopicSettings { max_deliveries: NonZeroU32::MIN, ..TopicSettings::default() }
}

#[tokio::test]
async fn many_dead_letters_are_retried_no_faster_than_told() {
    let (streams, _directory) = opened(lenient(given_up_at_once())).await;
    let group = with_dead_letters(&streams, "orders", 11).await;
    with_dead_letters(&streams, "others", 2).await;
    let mut told = Vec::new();
    let filter = DeadLetterFilter { topic: Some(name("orders")), ..DeadLetterFilter::default() };
    #[allow(clippy::disallowed_methods, reason = "how long it took is what is looked at")]
    let began = Instant::now();
    let rate = NonZeroU32::new(50).expect("fifty is not zero");
    let redriven = streams.retry_all(&filter, rate, |so_far| told.push(so_far.retried)).await;
    assert!(
        began.elapsed() >= Duration::from_millis(200),
        "eleven of fifty a second in {:?}",
        began.elapsed()
    );
    assert_eq!(redriven.expect("it can be done").retried, 11);
    assert_eq!(told, (1..=11).collect::<Vec<_>>());
    assert_eq!(streams.dead_letter_count().await.expect("they can be counted"), 2);
    let again = group.receive(&name("c"), 100, Duration::ZERO).await.expect("it is there");
    assert_eq!((again.len(), again[0].attempt()), (11, 1));
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn dead_letters_are_purged_by_filter() {
    let (streams, _directory) = opened(lenient(given_up_at_once())).await;
    with_dead_letters(&streams, "orders", 150).await;
    with_dead_letters(&streams, "others", 3).await;
    let filter = DeadLetterFilter { topic: Some(name("orders")), ..DeadLetterFilter::default() };
    assert_eq!(streams.purge_all(&filter).await.expect("they can be purged"), 150);
    let page = DeadLetterPage { limit: 1_000, ..DeadLetterPage::default() };
    let left = streams.dead_letters(&page).await.expect("they can be read").letters;
    assert!(left.len() == 3 && left.iter().all(|letter| letter.topic == name("others")), "{left:?}");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_topic_that_cannot_be_looked_after_keeps_no_other_from_it() {
    let memory = Memory::new(TestClock::new(), Some(Bug::BadTopic));
    let retention = Retention { max_events: Some(1), ..Retention::default() };
    let kept = TopicSettings { retention: Retention::default(), ..TopicSettings::default() };
    let store: Arc<dyn Driver> = Arc::new(memory);
    for text in [BAD_TOPIC, "worse"] {
        let topic = Topic { name: name(text), settings: kept.clone().into() };
        store.publish(&topic, vec![NewEvent::new("a"); 3]).await.expect("it is published");
    }
    let settings = lenient(TopicSettings { retention, ..TopicSettings::default() });
    let streams = Streams::start(Arc::clone(&store), settings).expect("the settings are sound");
    let looking = async {
        let stream = streams.stream("worse").expect("it is a topic");
        while stream.info().await.expect("it can be asked").expect("it is there").events > 1 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 60, looking).await.expect("nobody looks after it");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn dead_letters_can_be_retried_as_fast_as_a_rate_can_say() {
    let (streams, _directory) = opened(lenient(TopicSettings::default())).await;
    let redriven = streams.retry_all(&DeadLetterFilter::default(), NonZeroU32::MAX, |_| ()).await;
    assert_eq!(redriven.expect("there are none").retried, 0);
    streams.shutdown().await.expect("it ends");
}
