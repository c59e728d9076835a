//! Consuming by a handler.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{
    Backoff, ConsumeOptions, Consumed, DeadLetterFilter, DeadLetterPage, Delivery, Durability, Group, Name,
    NewEvent, Retention, Settings, Start, Streams, TopicSettings,
};

/// Longer than anything here takes, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a delivery may take: far more than a process stands still.
const IDLE: Duration = Duration::from_secs(10);

async fn streams(change: impl FnOnce(&mut TopicSettings)) -> (Streams, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config { durability: Durability::Relaxed, ..Config::default() };
    let store = Embedded::open(directory.path(), config).await.expect("it opens");
    let mut defaults = TopicSettings {
        max_deliveries: NonZeroU32::new(3).expect("three is not zero"),
        min_idle_time: IDLE,
        retention: Retention::default(),
        backoff: Backoff { initial: Duration::from_millis(5), max: Duration::from_millis(50), jitter: 0.2 },
        ..TopicSettings::default()
    };
    change(&mut defaults);
    let settings = Settings { strict: false, defaults, ..Settings::default() };
    (Streams::start(Arc::new(store), settings).expect("the settings are sound"), directory)
}

async fn group(streams: &Streams, payloads: &[&str]) -> Group {
    let stream = streams.stream("orders").expect("it is a topic");
    let group = stream.group("g", Start::Earliest).await.expect("it is made");
    let events = payloads.iter().map(|payload| NewEvent::new((*payload).to_owned())).collect();
    stream.publish_batch(events).await.expect("it is published");
    group
}

fn options() -> ConsumeOptions {
    ConsumeOptions::new(Name::new("c1").expect("it is a name"))
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.event().payload).into_owned()
}

/// What handlers saw.
type Seen = Arc<Mutex<Vec<String>>>;

async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("it does not come about that {what}"));
}

async fn pending(group: &Group) -> usize {
    group.pending(None, 1_000).await.expect("it is there").len()
}

#[tokio::test]
async fn a_handler_that_fails_is_called_as_often_as_it_may_and_others_go_on() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &["bad", "a", "worse", "b"]).await;
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let consumer = group.consume(options(), move |delivery| {
        let text = text(&delivery);
        noted.lock().push(text.clone());
        async move {
            assert!(text != "worse", "it is worse than bad");
            if text == "bad" { Err("it is bad") } else { Ok(()) }
        }
    });
    until("eight deliveries are settled", || consumer.consumed().deliveries() == 8).await;
    let consumed = consumer.stop().await.expect("it ends well");
    assert_eq!(consumed, Consumed { acked: 2, failed: 6, unsettled: 0 });
    let mut times = BTreeMap::<String, usize>::new();
    seen.lock().iter().for_each(|text| *times.entry(text.clone()).or_default() += 1);
    assert_eq!(
        times.into_iter().map(|(text, times)| format!("{text} {times}")).collect::<Vec<_>>(),
        ["a 1", "b 1", "bad 3", "worse 3"]
    );
    let page = DeadLetterPage { limit: 10, ..DeadLetterPage::default() };
    let letters = streams.dead_letters(&page).await.expect("they can be read").letters;
    let mut errors: Vec<&str> = letters.iter().map(|letter| letter.error.as_str()).collect();
    errors.sort_unstable();
    assert_eq!(errors, ["it is bad", "the handler panicked: it is worse than bad"]);
    assert_eq!(pending(&group).await, 0);
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn as_many_handlers_run_as_are_wanted_and_no_more() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &["x"; 30]).await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let consumer = group.consume(ConsumeOptions { concurrency: 4, ..options() }, move |_| {
        let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // All four have to be there before one of the first four goes on.
            let crowd = async {
                while peak.load(Ordering::SeqCst) < 4 {
                    tokio::task::yield_now().await;
                }
            };
            let crowded = tokio::time::timeout(PATIENCE, crowd).await;
            now.fetch_sub(1, Ordering::SeqCst);
            crowded.map_err(|_| "it is alone")
        }
    });
    until("all are settled", || consumer.consumed().acked == 30).await;
    assert_eq!(most.load(Ordering::SeqCst), 4);
    consumer.stop().await.expect("it ends well");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_consumer_ends_after_as_many_deliveries_as_it_may_take() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &["x"; 50]).await;
    let options = ConsumeOptions { max: Some(7), concurrency: 3, ..options() };
    let consumer = group.consume(options, |_| async { Ok::<(), &str>(()) });
    let ended = tokio::time::timeout(PATIENCE, consumer.ended()).await.expect("it ends by itself");
    assert_eq!(ended.expect("it ends well").acked, 7);
    assert_eq!(pending(&group).await, 0);
    let info = group.info().await.expect("it can be asked").expect("it is there");
    assert_eq!(info.lag, 43);
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_consumer_ends_when_nothing_comes_any_more() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &["a", "b"]).await;
    let options = ConsumeOptions { idle: Some(Duration::from_millis(50)), ..options() };
    let consumer = group.consume(options, |_| async { Ok::<(), &str>(()) });
    let ended = tokio::time::timeout(PATIENCE, consumer.ended()).await.expect("it ends by itself");
    assert_eq!(ended.expect("it ends well").acked, 2);
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn stopping_lets_handlers_finish_and_leaves_nothing_pending() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &["x"; 20]).await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let started = Arc::new(AtomicUsize::new(0));
    let (held, begun) = (Arc::clone(&gate), Arc::clone(&started));
    let consumer = group.consume(ConsumeOptions { concurrency: 5, ..options() }, move |_| {
        let (held, begun) = (Arc::clone(&held), Arc::clone(&begun));
        async move {
            begun.fetch_add(1, Ordering::SeqCst);
            held.acquire().await.map(|permit| permit.forget())
        }
    });
    until("five handlers run", || started.load(Ordering::SeqCst) == 5).await;
    let stopping = async { tokio::join!(consumer.stop(), async { gate.add_permits(100) }).0 };
    let consumed = tokio::time::timeout(PATIENCE, stopping).await.expect("it stops");
    assert_eq!(consumed.expect("it ends well").acked, 5);
    assert_eq!((pending(&group).await, started.load(Ordering::SeqCst)), (0, 5));
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn shutting_down_ends_consumers_and_what_they_have() {
    let (streams, directory) = streams(|_| ()).await;
    let group = group(&streams, &["x"; 3]).await;
    let consumer = group.consume(options(), |_| async { Ok::<(), &str>(()) });
    until("all are settled", || consumer.consumed().acked == 3).await;
    tokio::time::timeout(PATIENCE, streams.shutdown()).await.expect("it ends").expect("it ends well");
    assert_eq!(consumer.ended().await.expect("it ends well").acked, 3);
    // The store is free for somebody else.
    let store = Embedded::open(directory.path(), Config::default()).await.expect("it opens");
    drop(store);
}

#[tokio::test]
async fn a_handler_that_takes_long_keeps_its_event() {
    let idle = Duration::from_millis(300);
    let (streams, _directory) = streams(|topic| topic.min_idle_time = idle).await;
    let group = group(&streams, &["a"]).await;
    let consumer = group.consume(options(), move |_| async move {
        tokio::time::sleep(idle * 4).await;
        Ok::<(), &str>(())
    });
    let another = group.consume(ConsumeOptions::new(Name::new("c2").expect("it is a name")), |_| async {
        Ok::<(), &str>(())
    });
    until("it is settled", || consumer.consumed().deliveries() + another.consumed().deliveries() > 0).await;
    let (one, two) =
        (consumer.stop().await.expect("it ends well"), another.stop().await.expect("it ends well"));
    // Whichever took it has it until it is done; a process that stood still meanwhile may have lost it.
    let handled = one.acked + two.acked;
    assert_eq!((handled, one.failed + two.failed), (1, 0), "{one:?} {two:?}");
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn automatic_acknowledgement_comes_before_the_handler() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &["a", "b"]).await;
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let consumer =
        group.consume(ConsumeOptions { auto_ack: true, max: Some(2), ..options() }, move |delivery| {
            noted.lock().push(text(&delivery));
            async { Err::<(), _>("it fails") }
        });
    let consumed =
        tokio::time::timeout(PATIENCE, consumer.ended()).await.expect("it ends").expect("it ends well");
    assert_eq!(consumed, Consumed { acked: 2, failed: 0, unsettled: 0 });
    assert_eq!(*seen.lock(), ["a", "b"]);
    let filter = DeadLetterFilter::default();
    assert_eq!(streams.purge_all(&filter).await.expect("they can be purged"), 0);
    streams.shutdown().await.expect("it ends");
}

#[tokio::test]
async fn a_consumer_of_a_group_that_is_removed_ends_with_the_reason() {
    let (streams, _directory) = streams(|_| ()).await;
    let group = group(&streams, &[]).await;
    let consumer = group.consume(options(), |_| async { Ok::<(), &str>(()) });
    assert!(group.remove().await.expect("it can be removed"));
    let ended = tokio::time::timeout(PATIENCE, consumer.ended()).await.expect("it ends");
    assert!(matches!(ended, Err(tidings_streams::GroupError::Unknown)), "{ended:?}");
    streams.shutdown().await.expect("it ends");
}

/// An error that cannot even be said.
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("it cannot be said")
    }
}

#[tokio::test]
async fn an_error_that_panics_when_it_is_said_is_a_failure_like_others() {
    let (streams, _directory) = streams(|settings| settings.max_deliveries = NonZeroU32::MIN).await;
    let group = group(&streams, &["a"]).await;
    let consumer =
        group.consume(ConsumeOptions { max: Some(1), ..options() }, |_| async { Err(Unspeakable) });
    let consumed = tokio::time::timeout(PATIENCE, consumer.ended()).await.expect("it ends");
    assert_eq!(consumed.expect("the group is there").failed, 1);
    assert_eq!(pending(&group).await, 0);
    streams.shutdown().await.expect("it ends");
}
