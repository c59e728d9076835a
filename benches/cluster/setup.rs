//! What the coordinating process and its children say to each other: one JSON document a line.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A message bus under test.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum System {
    /// Nodes with a cache each: the publisher changes keys, which the subscribers' invalidators look for in vain. Each
    /// node runs on its process's runtime, as the other systems' clients do.
    Tidings,
    /// The same, and each change evicts.
    TidingsResident,
    /// The first, and each node runs on a thread of its own, as nodes do unless told otherwise.
    TidingsThread,
    /// Redis pub/sub through the `redis` crate at both ends.
    RedisCrate,
    /// Redis pub/sub with a minimal protocol reader and writer of this benchmark's own.
    RedisRaw,
    /// NATS core over TLS through `async-nats`.
    NatsTls,
    /// NATS core without encryption.
    NatsPlain,
    /// A quinn stream to each subscriber, mutual TLS, nothing else.
    Quinn,
    /// Nothing at all: what the paced publisher itself costs.
    Harness,
}

impl System {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tidings => "tidings",
            Self::TidingsResident => "tidings-resident",
            Self::TidingsThread => "tidings-thread",
            Self::RedisCrate => "redis-crate",
            Self::RedisRaw => "redis-raw",
            Self::NatsTls => "nats-tls",
            Self::NatsPlain => "nats-plain",
            Self::Quinn => "quinn",
            Self::Harness => "harness",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    Publisher,
    Subscriber,
}

/// Everything that a child needs to know; its only argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) system: System,
    pub(crate) role: Role,
    /// The broker's address, for systems that have one.
    pub(crate) broker: Option<SocketAddr>,
    /// Where `ca.pem`, `node.pem` and `node.key` are.
    pub(crate) certificates: PathBuf,
    /// The pace of the session's phases.
    pub(crate) pace: Pace,
    /// Keys that a subscriber with a cache holds before it says that it is ready: those of the first messages.
    pub(crate) resident: u64,
    /// The subscribers that are ready: all of them for the publisher, the earlier ones for a subscriber.
    pub(crate) peers: Vec<Peer>,
}

/// A subscriber that is ready.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Where it says how much it has received ([`crate::credit`]).
    pub(crate) credit: SocketAddr,
    /// Where it can be dialled, in systems without a broker.
    pub(crate) data: Option<SocketAddr>,
}

/// One measured stretch of publishing; a line on the publisher's standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Phase {
    pub(crate) pace: Pace,
    pub(crate) milliseconds: u64,
    /// Ends the phase earlier.
    pub(crate) messages_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Pace {
    /// As fast as the slowest subscriber receives.
    Burst,
    /// This many messages a second, one by one, each of them timed.
    PerSecond(u32),
}

/// A line on a child's standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// A subscriber is subscribed.
    Listening(Peer),
    /// The publisher is connected.
    Connected,
    /// A phase is over and every subscriber has everything.
    Sent {
        messages: u64,
        seconds: f64,
        /// Sequence and time of each timed message, when it was handed over.
        departures: Vec<(u64, u64)>,
    },
    /// A subscriber has all of a phase.
    Received {
        messages: u64,
        /// Sequence and time of each timed message, when it arrived.
        arrivals: Vec<(u64, u64)>,
    },
}

impl Line {
    /// Says it to the coordinating process.
    pub(crate) fn say(&self) {
        println!("{}", serde_json::to_string(self).expect("lines hold only what JSON can say"));
    }
}
