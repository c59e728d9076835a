//! The store as the benchmark uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{
    Action, BATCH_EVENTS_MAX, Driver, Durability, Name, NewEvent, ReceiveRequest, Retention, Settlement,
    Topic, TopicSettings,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

/// A topic that keeps everything.
pub(crate) fn topic() -> Topic {
    let settings = TopicSettings { retention: Retention::default(), ..TopicSettings::default() };
    Topic { name: name("orders"), settings: settings.into() }
}

pub(crate) async fn open(path: &Path, durability: Durability) -> Result<Embedded> {
    Ok(Embedded::open(path, Config { durability, ..Config::default() }).await?)
}

pub(crate) fn event(payload: usize) -> NewEvent {
    NewEvent::new(vec![7; payload])
}

/// Publishes events in the largest batches.
pub(crate) async fn fill(store: &Embedded, events: usize, payload: usize) -> Result<()> {
    let topic = topic();
    let mut left = events;
    while left > 0 {
        let batch = left.min(BATCH_EVENTS_MAX);
        store.publish(&topic, vec![event(payload); batch]).await?;
        left -= batch;
    }
    Ok(())
}

/// So many publishers at once, each with so many events one after the other.
pub(crate) async fn publish(
    store: &Arc<Embedded>,
    publishers: usize,
    each: usize,
    payload: usize,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for _ in 0..publishers {
        let (store, topic) = (Arc::clone(store), topic());
        tasks.spawn(async move {
            for _ in 0..each {
                store.publish(&topic, vec![event(payload)]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Takes and acknowledges so many events, in batches.
pub(crate) async fn consume(store: &Embedded, group: &Name, events: usize, batch: usize) -> Result<()> {
    let (topic, mut left) = (topic(), events);
    while left > 0 {
        let request = ReceiveRequest {
            consumer: name("c"),
            max: batch.min(left),
            wait: Duration::ZERO,
            stop: CancellationToken::new(),
        };
        let taken = store.receive(&topic, group, request).await?;
        ensure!(!taken.is_empty(), "{left} events are missing");
        left -= taken.len();
        let ack = |one: &tidings_streams::Delivered| Settlement {
            id: one.event.id,
            tag: Some(one.tag),
            action: Action::Ack,
        };
        store.settle(&topic, group, taken.iter().map(ack).collect()).await?;
    }
    Ok(())
}
