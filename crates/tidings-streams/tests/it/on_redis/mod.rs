//! The Redis driver, with servers of its own.

mod by_hand;
mod conforming;
mod flowing;
mod killed;
mod publishing;
mod server;
mod serving;

use std::num::NonZeroU32;
use std::time::Duration;

use tidings_streams::redis::{Config, Redis};
use tidings_streams::{
    Action, Backoff, Delivered, Driver, GroupError, Name, NewEvent, Outcome, ReceiveRequest, Retention,
    Settlement, Topic, TopicSettings,
};
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes, on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

/// Everything is kept, and failures wait for next to nothing.
fn settings() -> TopicSettings {
    TopicSettings {
        retention: Retention::default(),
        max_deliveries: NonZeroU32::new(1_000).expect("it is not zero"),
        backoff: Backoff { initial: Duration::from_millis(1), max: Duration::from_millis(5), jitter: 0.2 },
        ..TopicSettings::default()
    }
}

fn topic(settings: TopicSettings) -> Topic {
    Topic { name: name("orders"), settings: settings.into() }
}

async fn connect(url: &str) -> Redis {
    Redis::connect(url, Config::default()).await.expect("the server is there")
}

async fn publish(store: &Redis, topic: &Topic, texts: &[&str]) {
    let events = texts.iter().map(|text| NewEvent::new((*text).to_owned())).collect();
    store.publish(topic, events).await.expect("it is published");
}

fn request(consumer: &str, max: usize, wait: Duration) -> ReceiveRequest {
    ReceiveRequest { consumer: name(consumer), max, wait, stop: CancellationToken::new() }
}

async fn ack(store: &Redis, topic: &Topic, one: &Delivered) -> Result<Outcome, GroupError> {
    let word = Settlement { id: one.event.id, tag: Some(one.tag), action: Action::Ack };
    Ok(store.settle(topic, &name("g"), vec![word]).await?[0])
}

fn texts(deliveries: &[Delivered]) -> Vec<String> {
    deliveries.iter().map(|one| String::from_utf8_lossy(&one.event.payload).into_owned()).collect()
}
