//! A transactional outbox: events that are published to durable streams if, and only if, a database transaction
//! commits.
//!
//! [`Outbox::publish`] writes an event into a table of the service's own database, on the connection of its
//! transaction. The event is there with everything else that the transaction wrote, or rolled back with it, to a
//! savepoint too. A [`Relay`] publishes what was committed to a topic and takes it out of the table, also in a process
//! that starts after the one that committed was killed.
//!
//! With PostgreSQL (feature `postgres`):
//!
//! ```no_run
//! use std::sync::Arc;
//! use sqlx::{PgPool, Postgres};
//! use tidings_outbox::{Outbox, RelayConfig};
//! use tidings_streams::embedded::{Config, Embedded};
//! use tidings_streams::{NewEvent, Settings, Streams};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = PgPool::connect("postgres:///shop").await?;
//! let outbox = Outbox::<Postgres>::new("shop_")?; // the table shop_outbox
//! outbox.create_table(&mut *pool.acquire().await?).await?;
//!
//! let store = Embedded::open("data", Config::default()).await?;
//! let streams = Streams::start(Arc::new(store), Settings { strict: false, ..Settings::default() })?;
//! let relay = outbox.relay(&pool, streams.clone(), RelayConfig::default());
//!
//! let mut transaction = pool.begin().await?;
//! sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *transaction).await?;
//! let event = NewEvent::new("{\"order\":7}").key("customer 3").idempotency_key("order 7");
//! outbox.publish(&mut transaction, "orders", event).await?;
//! transaction.commit().await?;
//!
//! relay.stop().await; // what is left is published by the next relay
//! streams.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! With SQLite (feature `sqlite`), where a transaction that will write is best begun as one that may:
//!
//! ```no_run
//! use sqlx::{Sqlite, SqlitePool};
//! use tidings_outbox::{Outbox, RelayConfig};
//! use tidings_streams::{NewEvent, Streams};
//!
//! # async fn example(streams: Streams) -> Result<(), Box<dyn std::error::Error>> {
//! let pool = SqlitePool::connect("sqlite://shop.db").await?;
//! let outbox = Outbox::<Sqlite>::new("shop_")?;
//! outbox.create_table(&mut *pool.acquire().await?).await?;
//! let relay = outbox.relay(&pool, streams, RelayConfig::default());
//!
//! let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
//! sqlx::query("INSERT INTO orders (id) VALUES (7)").execute(&mut *transaction).await?;
//! outbox.publish(&mut transaction, "orders", NewEvent::new("{\"order\":7}")).await?;
//! transaction.commit().await?;
//! outbox.wake(); // or the relay sees it within its `poll`
//! # relay.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **All or nothing.** A committed event is published, however often processes are killed; one that was rolled back
//!   never is.
//! - **Once.** An event has an idempotency key, its own or one that chance made. Before an event is published for the
//!   first time it is noted where its topic ended. Whoever finds such a note, because a process ended before it could
//!   say what became of the event, looks for the key in what the topic has got since, and publishes only what is not
//!   there. That holds however long nobody relayed. The topic's own window of idempotency keys is needed only against a
//!   call that reaches the store late: by a server that had it in a queue, or by a process that was stopped between two
//!   instructions while another one took over. What was trimmed from a topic cannot be looked for: such events are
//!   published again, and counted each time that they were looked for ([`RelayStatus::unsure`]). What cannot be looked
//!   for, because the store cannot read, waits.
//! - **Once per idempotency key.** A key that an event brings is taken once for each topic: published again, while it
//!   waits or within [`RelayConfig::remember_keys`] after it went out, it is not stored ([`Enqueued::duplicate`]).
//!   Where two open transactions publish with one key, the second one waits for the end of the first. In PostgreSQL two
//!   that wait for each other are a deadlock that one of them is told of, and under `REPEATABLE READ` one that waited
//!   is told of a serialization failure: run it again.
//! - **Order.** Of one topic, the events of a transaction are published in the order of the calls. Those of a
//!   transaction that publishes after another one had committed come after that one's. So transactions that exclude
//!   each other, by locking the row that a key stands for before they publish, are relayed in the order of their
//!   commits; those that run beside each other in any order. In SQLite, where one writes at a time, that is the order
//!   of commits. An event that was set aside is overtaken, and comes when it is retried. Topics wait for nobody's but
//!   their own events.
//! - **Nothing is lost for being wrong.** What no topic takes is set aside with its error: an event of a topic that is
//!   not configured, one that the store refuses while it takes what stands behind it, a row that this release cannot
//!   read. It is counted, and [`Outbox::failed`] shows, [`Outbox::retry`] publishes, [`Outbox::discard`] removes it.
//!   What a store has no room for is not wrong: it waits, with all behind it.
//! - **Everything goes with it**: payload, key, headers, content type, and the moment before which it is not delivered.
//!
//! # Relays
//!
//! Any number of processes may have a relay; one at a time relays, for otherwise there would be no order. In PostgreSQL
//! it holds an advisory lock on a connection of its own, on which it does all else too: with the connection it loses
//! the lock, and learns of it. While it relays it has a second one, for `LISTEN`. Both need a session: behind a
//! pooler of transactions give it a pool that goes to the server. In SQLite it holds a lock on a file beside the
//! database; one in memory has no such file, and may have one relay only. All relays of an outbox publish to the same
//! store; with an embedded one that is one process.
//!
//! A relay takes at most [`BATCH_EVENTS`] events or [`BATCH_BYTES`] at a time, and holds no more. It is told of commits
//! by `NOTIFY`, which is part of the transaction, or [`Outbox::wake`]; else it looks every [`RelayConfig::poll`]. Where
//! the database or the store is away it gives up the lock, so that another process may try, and tries again after a
//! wait that doubles. Stop it before the streams.
//!
//! # What is not there
//!
//! - Who publishes to topics that nobody configured finds out from [`Outbox::failed`] only: the transaction does not
//!   know the relay's settings.
//! - A topic with a lot of trouble holds back no other; but of more than [`TROUBLED_TOPICS_MAX`] at once all wait. What
//!   waits for such a topic is walked past at each look at the table: the more of it, the more a look costs.
//! - Where a topic refuses more than [`BATCH_EVENTS`], or [`BATCH_BYTES`], one after the other, nothing tells whether it is
//!   the events or the topic: all of it waits until somebody mends it. [`RelayStatus::error`] says so.
//! - Every event that is relayed has an idempotency key, and the embedded store remembers at most 2^18 of a topic within
//!   its `idempotency_window`: a topic takes no more events in that time, and the rest of a larger backlog waits. The
//!   relay itself needs no window.
//! - For those without a database `tidings_streams` has `Streams::after_commit`, in memory.

#![cfg_attr(
    not(any(feature = "postgres", feature = "sqlite")),
    allow(dead_code, reason = "nothing is used without a database")
)]

mod event;
mod outbox;
#[cfg(feature = "postgres")]
mod postgres;
mod relay;
mod round;
#[cfg(feature = "sqlite")]
mod sqlite;
mod table;
mod tables;
mod trouble;

pub use outbox::{Backlog, Enqueued, FailedEvent, InvalidPrefix, Outbox, OutboxError, PREFIX_BYTES_MAX};
pub use relay::{POLL_MIN, Relay, RelayConfig, RelayState, RelayStatus};
pub use round::{BATCH_BYTES, BATCH_EVENTS};
pub use tables::Database;
pub use trouble::TROUBLED_TOPICS_MAX;
