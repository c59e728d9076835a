//! A cluster of in-process caches that is never silently stale: the library that a service embeds.
//!
//! This crate is the only one that wires membership, transport and cache together. [`Node`] is where to begin. What
//! follows is the project's README.
#![doc = include_str!("../README.md")]

mod asked;
mod audit;
mod builder;
mod bus;
mod canary;
mod client;
mod clocks;
mod coherence;
mod config;
mod copying;
mod drive;
mod hosted;
mod leases;
mod legacy;
mod log_files;
#[cfg(test)]
mod logged;
mod measure;
mod members;
mod node;
mod observe;
mod receipts;
mod relays;
mod spending;
mod streaming;
#[cfg(feature = "streams")]
pub mod streams;
pub mod testing;

pub use audit::{
    AuditCounts, AuditError, AuditProgress, AuditReport, AuditRun, Audited, AuditedPeer, HeldEntry, Holder,
    HoldersError, Holding, Inconsistency, Untold,
};
pub use builder::NodeBuilder;
pub use bus::Conflict;
pub use client::{Client, ClientError, InvalidateOnly};
pub use clocks::{ClockBounds, ClockOffset};
pub use coherence::{BeforeKnown, Following};
#[doc(hidden)]
pub use config::{Planted, Simulated};
pub use leases::{LeaseReport, Unshared};
pub use log_files::{LogFileError, LogFileReport};
pub use measure::{Measured, Repairs};
pub use members::{MemberInfo, SYNCED_WITHIN};
pub use node::{Node, NotReady, StartError};
pub use observe::{Observation, Observed, Observer};
pub use receipts::ReceiptCounts;
pub use tidings_cache::{
    AnyCache, Cache, CacheBuilder, CacheCounts, Clock, Computed, DERIVED_KEYS_MAX, DeriveError, Domain,
    Event, EventKind, Fetched, FillError, FillToken, Invalidator, Item, Key, KeyError, Listener, LoadError,
    LoadPolicy, Loaded, ManualClock, Missing, MissingReason, Mode, Number, OnOverflow, OneLoader, OpenError,
    Operation, Positions, RawEvent, RawSubscribe, RawSubscription, RawTarget, ReadOrFill, Receipt,
    ReceiptError, RingBounds, Scope, Settings, SlotSet, Subscribe, SubscribeError, Subscription,
    TAG_BYTES_MAX, TAGS_PER_ENTRY_MAX, TOMBSTONE_TTL, TagError, Target, WallClock, WhenIsolated, Write,
    WriteError, WriteFlight, WriteThroughError, WriterId, Written,
};
pub use tidings_membership::State;
pub use tidings_proto::coverage::{Coherent, Share, WITHIN};
pub use tidings_proto::frame::Refusal;
pub use tidings_proto::freshness::{Bounds, Doubt};
pub use tidings_proto::id::{Incarnation, LaneId, Lanes, NodeId, Origin, Sequence};
pub use tidings_proto::lease::LeaseCounts;
pub use tidings_proto::log::Retention;
pub use tidings_proto::time::Tick;
pub use tidings_transport::session::RelayReport;
pub use tidings_transport::{
    BroadcastError, Identity, IdentityError, Refused, RefusedReason, TransportStats,
};

/// This release.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
