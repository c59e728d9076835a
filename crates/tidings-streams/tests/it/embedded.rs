//! The embedded store as files and as a process has it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tidings_streams::embedded::{Config, Embedded, OpenError};
use tidings_streams::ledger::OPEN_MAX;
use tidings_streams::{
    Action, DeadLetterPage, Driver, Durability, EventId, Name, NewEvent, Order, Page, ReceiveRequest,
    Retention, Settlement, Start, Topic, TopicSettings, TrimMode,
};
use tokio_util::sync::CancellationToken;

use crate::harness::TestClock;

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

fn topic() -> Topic {
    let settings = TopicSettings { retention: Retention::default(), ..TopicSettings::default() };
    Topic { name: name("orders"), settings: settings.into() }
}

async fn opened(path: &Path) -> Embedded {
    Embedded::open(path, TestClock::new().config(Durability::Relaxed)).await.expect("it opens")
}

fn request(max: usize) -> ReceiveRequest {
    ReceiveRequest { consumer: name("c"), max, wait: Duration::ZERO, stop: CancellationToken::new() }
}

fn bytes_in(directory: &Path) -> u64 {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        bytes += if path.is_dir() {
            bytes_in(&path)
        } else {
            std::fs::metadata(&path).map_or(0, |meta| meta.len())
        };
    }
    bytes
}

#[tokio::test]
async fn a_store_is_opened_by_one_at_a_time() {
    let home = tempfile::tempdir().expect("a directory");
    let store = opened(home.path()).await;
    let refused = Embedded::open(home.path(), Config::default()).await.expect_err("it is in use");
    assert!(matches!(refused, OpenError::InUse(_)), "{refused:?}");
    assert!(refused.to_string().contains("in use"), "{refused}");
    store.close().await.expect("it closes");
    drop(opened(home.path()).await);
    // Who is dropped without being closed has let go of it too.
    drop(opened(home.path()).await);
}

#[tokio::test]
async fn what_was_published_is_there_though_nobody_closed_the_store() {
    let home = tempfile::tempdir().expect("a directory");
    let store = opened(home.path()).await;
    store.publish(&topic(), vec![NewEvent::new("a")]).await.expect("it is published");
    drop(store);
    let store = opened(home.path()).await;
    assert_eq!(store.topic(&topic()).await.expect("it can be asked").expect("it is there").events, 1);
}

#[tokio::test]
async fn durability_is_called_by_its_name() {
    let home = tempfile::tempdir().expect("a directory");
    assert_eq!(opened(home.path()).await.durability(), Durability::Relaxed);
    let store = Embedded::open(home.path(), Config::default()).await.expect("it opens");
    assert_eq!((store.durability(), store.name()), (Durability::Sync, "embedded"));
}

#[tokio::test]
async fn concurrent_publishers_share_their_writes_and_are_all_answered() {
    let home = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Embedded::open(home.path(), Config::default()).await.expect("it opens"));
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..200 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            let published = store.publish(&topic(), vec![NewEvent::new(publisher.to_string())]).await;
            published.expect("it is published")[0].id
        });
    }
    let mut ids: Vec<EventId> = tasks.join_all().await;
    ids.sort();
    assert_eq!(ids, (1..=200).map(EventId::new).collect::<Vec<_>>());
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn what_is_trimmed_is_freed_on_disk() {
    let home = tempfile::tempdir().expect("a directory");
    let store = opened(home.path()).await;
    for _ in 0..40 {
        store.publish(&topic(), vec![NewEvent::new(vec![7; 1 << 20])]).await.expect("it is published");
    }
    assert!(bytes_in(home.path()) > 40 << 20);
    let limits = Retention { max_events: Some(5), ..Retention::default() };
    store.trim(&topic(), &limits, TrimMode::default()).await.expect("it is trimmed");
    let left = bytes_in(home.path());
    assert!(left < 16 << 20, "{left} bytes are left of five events of a mebibyte");
    let page = Page { limit: 10, order: Order::Descending, ..Page::default() };
    assert_eq!(store.read(&topic(), &page).await.expect("it can be read").events.len(), 5);
    store
        .trim(&topic(), &Retention { max_events: Some(0), ..limits }, TrimMode::default())
        .await
        .expect("it is");
    let left = bytes_in(home.path());
    assert!(left < 1 << 20, "{left} bytes are left of nothing");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_journal_stays_short_however_long_a_group_works() {
    let home = tempfile::tempdir().expect("a directory");
    let store = opened(home.path()).await;
    store.create_group(&topic(), &name("g"), Start::Earliest).await.expect("it is made");
    // Each delivery is given back at once: nothing is stored but what is said about it.
    store.publish(&topic(), vec![NewEvent::new("x"); 1_000]).await.expect("it is published");
    for _ in 0..1_500 {
        let seek = store.seek(&topic(), &name("g"), Start::Earliest, false).await;
        seek.expect("it is there");
        assert_eq!(
            store.receive(&topic(), &name("g"), request(1_000)).await.expect("it is there").len(),
            1_000
        );
    }
    let left = bytes_in(&home.path().join("v1").join("journal"));
    assert!(left < 20 << 20, "{left} bytes of journals");
    store.close().await.expect("it closes");
    let store = opened(home.path()).await;
    let pending = store.pending(&topic(), &name("g"), None, 1_000).await.expect("it is there");
    assert_eq!((pending.len(), pending[999].attempts), (1_000, 1));
}

#[tokio::test]
async fn topics_that_differ_in_case_or_script_have_files_of_their_own() {
    let home = tempfile::tempdir().expect("a directory");
    let store = opened(home.path()).await;
    let names = ["orders", "Orders", "orders.created", "..", "注文"];
    for text in names {
        let topic = Topic { name: name(text), ..topic() };
        store.publish(&topic, vec![NewEvent::new(text)]).await.expect("it is published");
    }
    store.close().await.expect("it closes");
    let store = opened(home.path()).await;
    for text in names {
        let topic = Topic { name: name(text), ..topic() };
        let event = store.event(&topic, EventId::new(1)).await.expect("it can be read").expect("it is there");
        assert_eq!(event.payload, text.as_bytes());
    }
    assert_eq!(store.topics().await.expect("they can be listed").len(), names.len());
}

#[tokio::test]
async fn what_is_under_way_comes_back_though_the_clock_was_set_back() {
    let (home, clock) = (tempfile::tempdir().expect("a directory"), TestClock::new());
    let store = Embedded::open(home.path(), clock.config(Durability::Relaxed)).await.expect("it opens");
    store.create_group(&topic(), &name("g"), Start::Earliest).await.expect("it is made");
    store.publish(&topic(), vec![NewEvent::new("a")]).await.expect("it is published");
    assert_eq!(store.receive(&topic(), &name("g"), request(1)).await.expect("it is there").len(), 1);
    clock.set_back(Duration::from_secs(3_600));
    assert!(store.receive(&topic(), &name("g"), request(1)).await.expect("it is there").is_empty());
    clock.pass(topic().settings.min_idle_time * 2);
    let again = store.receive(&topic(), &name("g"), request(1)).await.expect("it is there");
    assert_eq!(again.len(), 1, "it waits for the clock to say the time again that it said before");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_dead_letter_never_gets_the_number_of_one_that_was_removed() {
    let home = tempfile::tempdir().expect("a directory");
    let settings = TopicSettings { max_deliveries: 1.try_into().expect("one"), ..TopicSettings::default() };
    let topic = Topic { settings: settings.into(), ..topic() };
    let page = DeadLetterPage { limit: 10, ..DeadLetterPage::default() };
    for round in 0..2 {
        let store = opened(home.path()).await;
        store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it is made");
        store.publish(&topic, vec![NewEvent::new("a")]).await.expect("it is published");
        let taken = store.receive(&topic, &name("g"), request(1)).await.expect("it is there");
        let action = Action::Fail { reason: "it fails".to_owned() };
        let word = Settlement { id: taken[0].event.id, tag: Some(taken[0].tag), action };
        store.settle(&topic, &name("g"), vec![word]).await.expect("it is there");
        let letters = store.dead_letters(&page).await.expect("they can be read").letters;
        assert_eq!(letters.len(), 1, "round {round}: {letters:?}");
        assert_eq!(store.purge(&[letters[0].id]).await.expect("it is removed"), 1);
        drop(store);
        // The disk loses what it had of it.
        for entry in std::fs::read_dir(home.path().join("v1").join("dead")).expect("it can be listed") {
            std::fs::write(entry.expect("it can be listed").path(), "").expect("it is cut");
        }
    }
}

#[tokio::test]
async fn a_group_that_holds_as_much_as_it_may_goes_on_once_one_is_settled() {
    let home = tempfile::tempdir().expect("a directory");
    let store = opened(home.path()).await;
    store.create_group(&topic(), &name("g"), Start::Earliest).await.expect("it is made");
    let mut published = 0;
    while published <= OPEN_MAX {
        store.publish(&topic(), vec![NewEvent::new("x"); 1_000]).await.expect("it is published");
        published += 1_000;
    }
    let mut held = 0;
    loop {
        let taken = store.receive(&topic(), &name("g"), request(1_000)).await.expect("it is there");
        held += taken.len();
        if taken.is_empty() {
            break;
        }
    }
    assert_eq!(held, OPEN_MAX);
    let waiting = ReceiveRequest { wait: Duration::MAX, ..request(1) };
    let group = name("g");
    let place = topic();
    let waiter = store.receive(&place, &group, waiting);
    let ack = Settlement { id: EventId::new(1), tag: None, action: Action::Ack };
    let settled = store.settle(&place, &group, vec![ack]);
    // The waiter has looked, and found no room, before the other one is heard.
    let both = async { tokio::join!(biased; waiter, settled) };
    let (got, settled) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it is woken");
    settled.expect("it is there");
    let got = got.expect("it is there");
    assert_eq!(got[0].event.id, EventId::new(OPEN_MAX as u64 + 1));
    store.close().await.expect("it closes");
}
