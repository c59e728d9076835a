//! Durable streams of a node: what is published is kept until every group has dealt with it.
//!
//! A node that is built with [`crate::NodeBuilder::streams`] opens a store when it starts and closes it when it is shut
//! down; [`crate::Node::streams`] is how to publish, consume and look. What is promised, and what not, is said by
//! [`tidings_streams`], whose parts are all here. With the embedded store streams are this machine's: nodes do not share
//! them. With a store on a Redis server (feature `redis`) or a NATS server (feature `nats`), or one of
//! the caller's making, they do.
//!
//! ```no_run
//! use tidings::streams::{ConsumeOptions, Name, NewEvent, Start, StreamsConfig, TopicSettings};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = StreamsConfig::embedded("data").topic(Name::new("orders")?, TopicSettings::default());
//! let node = tidings::Node::builder("shop").node_id("n1").streams(config).start().await?;
//! let orders = node.streams().expect("they are configured").stream("orders")?;
//! orders.publish(NewEvent::new("{\"order\":7}").key("customer 3")).await?;
//!
//! let billing = orders.group("billing", Start::Earliest).await?;
//! let consumer = billing.consume(ConsumeOptions::new(Name::new("n1")?), |delivery| async move {
//!     println!("{:?}", delivery.event().payload);
//!     Ok::<(), std::io::Error>(())
//! });
//! # drop(consumer);
//! # Ok(())
//! # }
//! ```

mod capture;
mod change;
mod figures;
mod running;
mod watched;

#[cfg(any(feature = "nats", feature = "redis"))]
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use tidings_streams::*;

pub use self::capture::{CaptureError, CaptureReport};
#[doc(hidden)]
pub use self::change::document as change_document;
use self::embedded::Embedded;
pub use self::figures::{StreamFigures, TopicFigures, figures};
pub(crate) use self::running::{Opened, Running};
pub use self::watched::{StreamCounts, TopicCounts};

/// How a node keeps durable streams.
#[derive(Clone, Debug)]
#[must_use = "it is given to a node's builder"]
pub struct StreamsConfig {
    store: Store,
    settings: Settings,
}

#[derive(Clone, Debug)]
enum Store {
    Embedded {
        path: PathBuf,
        config: embedded::Config,
    },
    #[cfg(feature = "redis")]
    Redis {
        url: Hidden,
        config: redis::Config,
    },
    #[cfg(feature = "nats")]
    Nats {
        url: Hidden,
        config: nats::Config,
    },
    Given(Arc<dyn Driver>),
}

/// A URL, which may hold a password.
#[cfg(any(feature = "nats", feature = "redis"))]
#[derive(Clone)]
struct Hidden(String);

#[cfg(any(feature = "nats", feature = "redis"))]
impl fmt::Debug for Hidden {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("\"***\"")
    }
}

impl StreamsConfig {
    /// In a directory of this machine, which one process opens at a time; made if it is not there.
    pub fn embedded(path: impl Into<PathBuf>) -> Self {
        Self::of(Store::Embedded { path: path.into(), config: embedded::Config::default() })
    }

    /// On a Redis server, for all processes that name it and the same prefix: `redis://user:password@host:6379/0`, or
    /// `unix:///run/redis.sock`. It has to be there when the node starts. When it is not for a while later, what is asked
    /// of streams is answered by [`StoreError::Unreachable`] until it is back.
    #[cfg(feature = "redis")]
    pub fn redis(url: impl Into<String>, config: redis::Config) -> Self {
        Self::of(Store::Redis { url: Hidden(url.into()), config })
    }

    /// On a NATS server with JetStream, or a cluster of them (URLs with commas between), for all processes that name it and
    /// the same prefix: `nats://user:password@host:4222`. As with Redis it has to be there when the node starts, and may
    /// be away later.
    #[cfg(feature = "nats")]
    pub fn nats(url: impl Into<String>, config: nats::Config) -> Self {
        Self::of(Store::Nats { url: Hidden(url.into()), config })
    }

    /// In a store of the caller's making. The node closes it.
    pub fn driver(driver: Arc<dyn Driver>) -> Self {
        Self::of(Store::Given(driver))
    }

    fn of(store: Store) -> Self {
        Self { store, settings: Settings::default() }
    }

    /// What an acknowledged write of the embedded store outlives: [`Durability::Sync`], the default, or
    /// [`Durability::Relaxed`]. Other stores have their own.
    pub fn durability(mut self, durability: Durability) -> Self {
        if let Store::Embedded { config, .. } = &mut self.store {
            config.durability = durability;
        }
        self
    }

    /// How all topics are kept.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// One more topic.
    pub fn topic(mut self, name: Name, settings: TopicSettings) -> Self {
        self.settings.topics.insert(name, settings);
        self
    }

    /// `false`: topics that are not configured are taken, with the defaults. Default: `true`.
    pub fn strict(mut self, strict: bool) -> Self {
        self.settings.strict = strict;
        self
    }

    pub(crate) async fn open(self) -> Result<Opened, OpenStreamsError> {
        let Self { store, settings } = self;
        settings.validate()?;
        let (driver, embedded): (Arc<dyn Driver>, _) = match store {
            Store::Given(driver) => (driver, None),
            #[cfg(feature = "redis")]
            Store::Redis { url: Hidden(url), config } => {
                (Arc::new(redis::Redis::connect(&url, config).await?), None)
            }
            #[cfg(feature = "nats")]
            Store::Nats { url: Hidden(url), config } => {
                (Arc::new(nats::Nats::connect(&url, config).await?), None)
            }
            Store::Embedded { path, config } => {
                let embedded = Arc::new(Embedded::open(path, config).await?);
                (embedded.clone(), Some(embedded))
            }
        };
        Ok(Opened { driver, embedded, settings })
    }
}

/// A node's store of streams cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStreamsError {
    /// The settings contradict themselves.
    #[error(transparent)]
    Settings(#[from] InvalidSettings),
    /// The directory is in use, or cannot be read or written.
    #[error(transparent)]
    Store(#[from] embedded::OpenError),
    /// There is no Redis server to be had that will do.
    #[cfg(feature = "redis")]
    #[error(transparent)]
    Redis(#[from] redis::ConnectError),
    /// There is no NATS server to be had that will do.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Nats(#[from] nats::ConnectError),
}

/// Something that happened to a topic: see [`crate::Observation::Stream`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamEvent {
    /// Events were published by this node; those whose idempotency keys were known are not counted.
    Published {
        /// How many.
        events: u64,
    },
    /// Events were handed out by this node.
    Received {
        /// To which group.
        group: Name,
        /// How many.
        events: u64,
    },
    /// Deliveries were settled by this node.
    Settled {
        /// Of which group.
        group: Name,
        /// Acknowledged ones.
        acked: u64,
        /// Those that failed and are delivered again.
        retried: u64,
    },
    /// Events were given up: they are dead letters now.
    DeadLettered {
        /// Of which group; `None`: of any, whose events nobody had settled in time as the topic was looked after.
        group: Option<Name>,
        /// How many.
        events: u64,
    },
    /// Events were removed by hand, or by retention as topics were looked after; not what publishing removes.
    Trimmed {
        /// How many.
        events: u64,
    },
}
