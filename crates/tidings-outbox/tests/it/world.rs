//! A shop with a database, an outbox in it, and a store of streams.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Pool, Transaction};
use tempfile::TempDir;
use tidings_outbox::{Backlog, Outbox, Relay, RelayConfig, RelayStatus};
use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{Backoff, Event, NewEvent, Page, Retention, Settings, Streams, TopicSettings};
use tokio::time::Instant;

use crate::databases::Lab;
use crate::wayward::Wayward;

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World<DB: Lab> {
    pub(crate) pool: Pool<DB>,
    pub(crate) outbox: Outbox<DB>,
    pub(crate) streams: Streams,
    pub(crate) store: Arc<Wayward>,
    pub(crate) address: String,
    _home: TempDir,
    _database: Box<dyn Any + Send + Sync>,
}

/// The topics `orders` and `mails`, which keep everything.
pub(crate) fn settings(idempotency_window: Duration) -> Settings {
    let topic =
        TopicSettings { retention: Retention::default(), idempotency_window, ..TopicSettings::default() };
    let topics = ["orders", "mails"].map(|name| (name.parse().expect("a name"), topic.clone()));
    Settings { topics: topics.into(), ..Settings::default() }
}

/// Looks only when it is told, as long as nothing goes wrong, and tries again soon.
pub(crate) fn config() -> RelayConfig {
    let backoff = Backoff { initial: Duration::from_millis(5), max: Duration::from_millis(50), jitter: 0.2 };
    RelayConfig { poll: Duration::from_millis(50), backoff, ..RelayConfig::default() }
}

pub(crate) async fn open(home: &Path) -> Arc<Wayward> {
    let store = Embedded::open(home, Config::default()).await.expect("it opens");
    Arc::new(Wayward::new(store))
}

impl<DB: Lab> World<DB> {
    pub(crate) async fn new() -> Self {
        Self::with(settings(Duration::from_secs(120))).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let (address, database) = DB::found().await;
        let pool = DB::reach(&address);
        let outbox = Outbox::<DB>::new("shop_").expect("a prefix");
        let home = tempfile::tempdir().expect("a directory");
        let store = open(home.path()).await;
        let streams = Streams::start(store.clone(), settings).expect("they agree");
        let world = Self { pool, outbox, streams, store, address, _home: home, _database: database };
        let mut connection = world.connection().await;
        world.outbox.create_table(&mut connection).await.expect("it is made");
        DB::say(&mut connection, "CREATE TABLE orders (name TEXT PRIMARY KEY)").await;
        drop(connection);
        world
    }

    pub(crate) async fn connection(&self) -> PoolConnection<DB> {
        self.pool.acquire().await.expect("it is there")
    }

    pub(crate) async fn begin(&self) -> Transaction<'static, DB> {
        self.pool.begin().await.expect("it is there")
    }

    /// Publishes in a transaction of its own, and commits.
    pub(crate) async fn commit(&self, topic: &str, event: NewEvent) -> bool {
        let mut transaction = self.begin().await;
        let enqueued = self.outbox.publish(&mut transaction, topic, event).await.expect("it is written");
        transaction.commit().await.expect("it commits");
        self.outbox.wake();
        !enqueued.duplicate
    }

    pub(crate) fn relay(&self) -> Relay {
        self.outbox.relay(&self.pool, self.streams.clone(), config())
    }

    pub(crate) async fn backlog(&self) -> Backlog {
        self.outbox.backlog(&mut *self.connection().await).await.expect("an answer")
    }

    /// Waits until a relay has nothing left to do but what was set aside.
    pub(crate) async fn relayed(&self) {
        let begun = Instant::now();
        loop {
            let backlog = self.backlog().await;
            if backlog.waiting == 0 {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{}: nobody relays {backlog:?}", DB::LABEL);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn events(&self, topic: &str) -> Vec<Event> {
        events(&self.streams, topic).await
    }

    pub(crate) async fn payloads(&self, topic: &str) -> Vec<String> {
        self.events(topic).await.into_iter().map(|event| text(&event)).collect()
    }
}

pub(crate) fn text(event: &Event) -> String {
    String::from_utf8(event.payload.to_vec()).expect("a text")
}

pub(crate) async fn events(streams: &Streams, topic: &str) -> Vec<Event> {
    let stream = streams.stored(topic.parse().expect("a name"));
    let (mut page, mut events) = (Page { limit: 1_000, ..Page::default() }, Vec::new());
    loop {
        let read = stream.read(&page).await.expect("it can be read");
        events.extend(read.events);
        match read.next {
            Some(next) => page.after = Some(next),
            None => return events,
        }
    }
}

/// Waits until a relay is as it should be.
pub(crate) async fn status(relay: &Relay, is_so: impl Fn(&RelayStatus) -> bool) -> RelayStatus {
    let begun = Instant::now();
    loop {
        let status = relay.status();
        if is_so(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "the relay stays {status:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
