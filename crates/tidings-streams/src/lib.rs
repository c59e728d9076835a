//! Durable streams: events that are kept until every group has dealt with them.
//!
//! A service publishes events to a **topic**; each **group** of a topic gets every event, one consumer of the group at
//! a time, until one delivery is acknowledged. What fails is delivered again after a wait that doubles, and after
//! `max_deliveries` it is a **dead letter** with its story, which can be looked at, retried and purged.
//!
//! ```no_run
//! use std::sync::Arc;
//! use tidings_streams::embedded::{Config, Embedded};
//! use tidings_streams::{ConsumeOptions, Name, NewEvent, Settings, Start, Streams};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Embedded::open("data", Config::default()).await?;
//! let streams = Streams::start(Arc::new(store), Settings { strict: false, ..Settings::default() })?;
//! let orders = streams.stream("orders")?;
//! orders.publish(NewEvent::new("{\"order\":7}").key("customer 3").idempotency_key("order 7")).await?;
//!
//! let billing = orders.group("billing", Start::Earliest).await?;
//! let consumer = billing.consume(ConsumeOptions::new(Name::new("n1")?), |delivery| async move {
//!     println!("{:?}", delivery.event().payload);
//!     Ok::<(), std::io::Error>(())
//! });
//! consumer.stop().await?;
//! streams.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is promised
//!
//! - **At least once.** Who may see an event twice is whoever crashed, or took longer than `min_idle_time`, before the
//!   acknowledgement was stored. Attempts are stored before an event is handed out: one that ends its process is
//!   counted.
//! - **Either in the stream or a dead letter.** Giving an event up is one step, whatever happens meanwhile.
//! - **Order.** A group is offered events in the order in which they were published. Where a topic is ordered, no event
//!   overtakes another of its key, and only the key of an event that failed waits for it.
//! - **Kept for groups.** Retention and trimming remove nothing that a group has not settled, unless told to. A group
//!   that nobody receives for therefore keeps everything: remove it.
//! - **Bytes are bytes.** Payloads come back as they went in.
//!
//! # Drivers
//!
//! A store is a [`Driver`]. The suite in `conformance` (a feature) is what a driver has to do, and can be run against
//! one that is written elsewhere. What all drivers decide alike is in [`decide`] and [`ledger`], without clock, chance
//! or I/O.
//!
//! # The embedded store
//!
//! `embedded`, on by default, keeps events in a directory of one machine, which one process opens at a time. One thread
//! has the files. It takes what is asked for as much of it as is there, writes once, syncs once, and then answers. Where
//! it answers many at once it waits for as many again before the next sync, as long as one takes, while they do come.
//! What they ask for is done as it comes; for half of that time, 0.1 ms at most, the thread looks for it without sleep.
//! [`Durability::Sync`] answers after that; [`Durability::Relaxed`] syncs about once a second, and a loss of power takes
//! what came since.
//!
//! Each topic is an append-only log of checksummed records in files of eight mebibytes; dead letters are one more such
//! log. What groups have done is a journal, which begins anew with a snapshot when it has grown. A file's name holds chance
//! that its checksums are made with: what somebody publishes is never mistaken for a record. Nothing of what is stored is
//! held in memory but what groups have taken and not settled (at most [`ledger::OPEN_MAX`] events each, beyond which
//! a group takes nothing new), idempotency keys of their window, ranges of removed dead letters, and the name of each
//! file. What waits to be stored or answered is bounded in bytes: beyond 64 MiB callers wait. Whatever takes long, such as
//! trimming, goes in steps that others come between, and no more than 256 files are open.
//!
//! Where a write or a sync fails, such as on a full disk, whoever asked is told why, and the store takes nothing more
//! until it has taken up again what its files hold. It tries that when something is asked of it, once a second at most.
//! What was acknowledged is there then; what was not may be, as after a crash. It writes once more what the disk need
//! not have kept, also where the system takes that for clean, before it builds on it.
//!
//! A record says the version of its format. What proves itself and is of a later release is passed over by no group: one
//! that comes to such an event is told [`StoreError::Unsupported`], and a store whose newest records are such does not
//! open. Pages leave it out, and [`Driver::verify`] names it.
//!
//! It is a log of our own, not an engine, for what has to happen when bytes go bad: every record that is sound is still
//! found, and the ids of the others are named. Two engines were tried with twenty records of a hundred bytes and one
//! flipped bit at a time. fjall 3.1 could not open its files after three of four flips, and lost several records to one
//! flip in eighty; redb 4.6 does not look at its checksums when it reads, and after one flip in four answered with a
//! wrong value. Speed decides nothing: a synced append takes 0.07 ms with fjall, 0.13 with redb and 0.12 as a plain
//! write, where the disk answers that fast.
//!
//! # The Redis store
//!
//! `redis`, a feature, keeps events in the streams of a Redis server (6.2 or later), which all processes of a service
//! share. What is acknowledged is as durable as the server: with `appendonly yes` and `appendfsync always` it outlives
//! a loss of power, with `everysec` all but the last second, and a failover to a replica may lose what that had not
//! received. The clock is the server's. Every call has a deadline; after that, and when a connection is lost amid a
//! call, the answer is [`StoreError::Unreachable`]: events that were being published may be there then. With
//! idempotency keys it is safe to publish them again within their window.
//!
//! # The NATS store
//!
//! `nats`, a feature, keeps events in the streams of a NATS server with JetStream (2.9 or later), which all processes of
//! a service share. What is acknowledged outlives the server's process; when it is on the disk is the server's
//! `sync_interval`, and a cluster keeps copies (`replicas`). Groups are journals that every process reads and writes, not
//! consumers of the server; the module `nats` says why. Deadlines, errors and clock are as with Redis. The server's
//! `max_payload` bounds an event with all that goes with it: what is larger is [`InvalidEvent::Message`]. By default that
//! is a mebibyte, and an event of the largest payload needs somewhat more. Key and headers are bounded by 56 KiB as
//! they are written, which only much that has to be escaped exceeds: [`InvalidEvent::Written`].
//!
//! # Events of a transaction
//!
//! [`Streams::after_commit`] keeps events in memory until their transaction has committed. What must not be lost between
//! the two is a matter for `tidings-outbox`, which keeps them in the transaction's database.
//!
//! # What is not there
//!
//! - The Redis driver speaks no TLS, follows no redirections of a Redis Cluster (a store
//!   is in one slot: the URL leads to the node that has it), and asks no sentinels. Where the server's clock goes back,
//!   what is due waits for as long; where it goes forward, or that of the server which takes over is ahead, deliveries
//!   come due early, and events are delivered again that somebody still has.
//! - With Redis, where a trim ends within one millisecond it looks at that millisecond's events one after the other, and
//!   meanwhile the server does nothing else.
//! - With Redis, as long as a group that lags keeps a topic beyond its `max_bytes`, each publish asks the server a second
//!   time, in vain.
//! - With NATS, all calls of one group come one after the other: each takes about as long as three messages to the
//!   server and back, for up to a thousand events. Where many processes share a group, they read each other's records
//!   besides, and one that takes events may come too late again and again while others acknowledge one by one: then it is
//!   told [`StoreError::Unreachable`]. Acknowledge in batches, or have fewer processes consume.
//! - With NATS, a removal of the oldest events by bytes reads what it removes, and a message that tools have taken out of
//!   the middle of a stream counts among a group's lag until it is looked at.
//! - With NATS, where the server's clock goes back, moments of events do too, and what is looked for by a moment may be
//!   found beside it.
//! - With NATS, each process holds the state of every group that it has dealt with, as the embedded store does.
//! - The NATS driver signs in by user and password, or a token, alone: it reads no credentials files and no nkeys.
//! - A disk that reports an error while it reads makes the call fail; it is not skipped like bytes that are wrong.
//! - What a kill has cut short while it was being written is named as damage, though nothing of it was acknowledged.
//! - A journal that is cut between two changes looks like that of a process that was killed then: what is missing is
//!   delivered again, and not named. The same goes for the last events of a topic where the store was not closed.
//! - After a restart, an idempotency key counts only as long as its event is kept. Half of a batch may be there that a
//!   crash kept from being acknowledged.
//! - Dead letters are kept until they are retried or purged. No file of theirs is freed before the last one in it is.
//! - Unix only: files are read at offsets.

mod after_commit;
mod burials;
mod call;
#[cfg(feature = "conformance")]
pub mod conformance;
mod consume;
pub mod decide;
mod delivery;
mod driver;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod event;
mod id;
pub mod ledger;
mod name;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "redis")]
pub mod redis;
mod redrive;
mod settings;
mod streams;
mod transfer;

pub use after_commit::*;
pub use burials::{Burials, TellBurials};
pub use call::*;
pub use consume::{ConsumeOptions, Consumed, Consumer};
pub use delivery::{Delivery, Failed, SettleError};
pub use driver::Driver;
pub use error::{DeadLetterError, GroupError, PublishError, StoreError};
pub use event::*;
pub use id::{DeadLetterId, EventId, InvalidId, Timestamp};
pub use name::{InvalidName, NAME_BYTES_MAX, Name};
pub use redrive::Redriven;
pub use settings::{
    Backoff, InvalidSettings, Retention, Settings, Topic, TopicError, TopicSettings, WAIT_MAX,
};
pub use streams::{Group, Stream, StreamError, Streams};
pub use transfer::{ImportError, LineError, from_line, to_line};
