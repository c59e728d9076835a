//! Events that wait in memory for a commit.

use std::sync::Arc;

use tidings_streams::embedded::Embedded;
use tidings_streams::{
    AFTER_COMMIT_EVENTS_MAX, AfterCommitError, BATCH_EVENTS_MAX, Durability, NewEvent, PAYLOAD_BYTES_MAX,
    Page, PublishError, Settings, Streams, TopicSettings,
};

use crate::harness::TestClock;

async fn streams() -> (tempfile::TempDir, Streams) {
    let home = tempfile::tempdir().expect("a directory");
    let store = Embedded::open(home.path(), TestClock::new().config(Durability::Relaxed))
        .await
        .expect("the store does");
    let topics = ["a", "b"].map(|name| (name.parse().expect("a name"), TopicSettings::default()));
    let settings = Settings { topics: topics.into(), ..Settings::default() };
    (home, Streams::start(Arc::new(store), settings).expect("they agree"))
}

async fn payloads(streams: &Streams, topic: &str) -> Vec<String> {
    let page = Page { limit: 100, ..Page::default() };
    let read = streams.stream(topic).expect("it is configured").read(&page).await.expect("the store does");
    read.events.iter().map(|event| String::from_utf8(event.payload.to_vec()).expect("a text")).collect()
}

#[tokio::test]
async fn what_is_committed_is_published_in_order_and_what_is_rolled_back_never_is() {
    let (_home, streams) = streams().await;
    let mut events = streams.after_commit();
    events.publish("a", NewEvent::new("1")).unwrap();
    events.publish("b", NewEvent::new("2")).unwrap();
    events.publish("a", NewEvent::new("3")).unwrap();
    let mut dropped = streams.after_commit();
    dropped.publish("a", NewEvent::new("never")).unwrap();
    dropped.rollback();
    assert_eq!(payloads(&streams, "a").await, [""; 0]);
    assert_eq!(events.commit().await.unwrap().len(), 3);
    assert_eq!(payloads(&streams, "a").await, ["1", "3"]);
    assert_eq!(payloads(&streams, "b").await, ["2"]);
    streams.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_part_is_rolled_back_by_itself_or_with_what_it_is_a_part_of() {
    let (_home, streams) = streams().await;
    let mut events = streams.after_commit();
    events.publish("a", NewEvent::new("1")).unwrap();
    let mut part = events.savepoint();
    part.publish("a", NewEvent::new("2")).unwrap();
    let mut inner = part.savepoint();
    inner.publish("a", NewEvent::new("never")).unwrap();
    drop(inner);
    let mut inner = part.savepoint();
    inner.publish("a", NewEvent::new("3")).unwrap();
    inner.release();
    part.release();
    let mut part = events.savepoint();
    let mut inner = part.savepoint();
    inner.publish("a", NewEvent::new("never, though released into what is rolled back")).unwrap();
    inner.release();
    drop(part);
    events.publish("a", NewEvent::new("4")).unwrap();
    events.commit().await.unwrap();
    assert_eq!(payloads(&streams, "a").await, ["1", "2", "3", "4"]);
    streams.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_streams_do_not_take_is_refused_before_the_commit_and_spoils_nothing() {
    let (_home, streams) = streams().await;
    let mut events = streams.after_commit();
    events.publish("a", NewEvent::new("1")).unwrap();
    assert!(matches!(events.publish("c", NewEvent::new("x")), Err(AfterCommitError::Topic(_))));
    let large = NewEvent::new(vec![0; PAYLOAD_BYTES_MAX + 1]);
    assert!(matches!(events.publish("a", large), Err(AfterCommitError::Invalid(_))));
    let mut part = events.savepoint();
    // The event before has a byte of what they may have together.
    let outcomes = (0..64).map(|_| part.publish("b", NewEvent::new(vec![0; PAYLOAD_BYTES_MAX])));
    let refused: Vec<AfterCommitError> = outcomes.filter_map(Result::err).collect();
    assert_eq!(refused, [AfterCommitError::Full]);
    drop(part);
    assert_eq!(events.len(), 1);
    for _ in 1..AFTER_COMMIT_EVENTS_MAX {
        events.publish("b", NewEvent::new("")).unwrap();
    }
    assert_eq!(events.publish("b", NewEvent::new("")), Err(AfterCommitError::Full));
    // More than a batch.
    const { assert!(AFTER_COMMIT_EVENTS_MAX > BATCH_EVENTS_MAX) };
    assert_eq!(events.commit().await.unwrap().len(), AFTER_COMMIT_EVENTS_MAX);
    streams.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_a_closed_store_did_not_take_comes_back_to_be_committed_again() {
    let (_home, streams) = streams().await;
    let mut events = streams.after_commit();
    events.publish("a", NewEvent::new("1")).unwrap();
    streams.shutdown().await.unwrap();
    let not_published = events.commit().await.unwrap_err();
    assert!(matches!(not_published.source, PublishError::Store(_)), "{not_published}");
    assert_eq!(not_published.left.len(), 1);
}
