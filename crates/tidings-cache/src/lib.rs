//! The cache of a node: moka, with flights around it, so that what is read is never silently stale.
//!
//! It owns entries, loads, mutations, the invalidator and local subscriptions. It does not own a network: a peer's
//! records come in through [`Domain::apply`] and [`Domain::fence`], freshness through [`Domain::publish`], and what
//! is written here goes to the [`tidings_proto::log::ChangeLog`] that the domain was made with.

mod absence;
mod any;
mod audit;
mod background;
pub mod builder;
mod bulk;
pub mod cache;
mod clears;
pub mod clock;
mod compare;
mod core;
mod crossed;
mod derive;
mod domain;
mod entry;
mod erased;
pub mod event;
mod fetch;
mod fill;
mod filter;
pub mod flight;
mod gate;
mod isolated;
mod key;
mod leader;
mod load;
mod many;
mod named;
mod notes;
mod open_writes;
mod policy;
mod reader;
mod receipt;
mod recent;
mod reclaim;
mod refusals;
mod remote;
mod repair;
mod replica;
mod replicate;
mod replicated;
mod ring;
mod shard;
mod shared;
mod stance;
mod stats;
mod subscribe;
mod table;
mod tagging;
mod tags;
mod text;
mod topic;
mod travel;
mod uncertain;
mod undo;
mod versioned;
mod versions;
mod write;
mod write_through;

pub use audit::Slice;
pub use builder::{CacheBuilder, Invalidator, Mode, OpenError, Settings, TOMBSTONE_TTL};
pub use cache::{Cache, Computed, Number, Write};
pub use clock::{Clock, ManualClock, WallClock};
pub use compare::{CompareError, compare_with};
pub use derive::{DERIVED_KEYS_MAX, DeriveError, RULES_MAX};
pub use domain::{Domain, RemoteStats};
pub use erased::AnyCache;
pub use event::{Event, RawEvent, RawTarget, Target, WriterId};
pub use fetch::Fetched;
pub use fill::{FillError, FillToken, ReadOrFill, TOKEN_TIME};
pub use isolated::WhenIsolated;
pub use key::{Key, KeyError};
pub use load::LoadError;
pub use policy::{LoadPolicy, OneLoader};
pub use receipt::{ReceiptError, ReceiptFuture, ReceiptSource, Written};
pub use refusals::{Refusal, Refused};
pub use remote::RemoteChange;
pub use repair::{Comparison, Page, Replicating, Wanted};
pub use ring::RingBounds;
pub use shared::{Hand, LeaseFuture, LeaseRequest, LeaseSource, LeaseTurn, Lent};
pub use stats::{CacheCounts, CacheStats, Striped};
pub use subscribe::{
    Item, Listener, OnOverflow, RawSubscribe, RawSubscription, Scope, Subscribe, SubscribeError, Subscription,
};
pub use tags::{Loaded, TAG_BYTES_MAX, TAGS_PER_ENTRY_MAX, TagError};
pub use tidings_proto::event::{EventKind, Operation};
pub use tidings_proto::id::SlotSet;
pub use tidings_proto::receipt::{Missing, MissingReason, Positions, Receipt};
pub use write::WriteError;
pub use write_through::{WriteFlight, WriteThroughError};
