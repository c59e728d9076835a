//! How a cache is opened.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidings_proto::event::EventKind;
use tidings_proto::hash::CacheId;
use tidings_proto::id::{InvalidName, check_name};

use crate::audit::Digester;
use crate::cache::Cache;
use crate::core::Core;
use crate::domain::Domain;
use crate::isolated::WhenIsolated;
use crate::key::Key;
use crate::policy::{LoadPolicy, OneLoader};
use crate::ring::RingBounds;
use crate::shared::Sharing;
use crate::tags::Tagger;
use crate::travel::ValueCodec;

/// Most partitions of a cache.
pub const PARTITIONS_MAX: usize = 1_024;

/// For how long a cache whose values travel remembers what was removed, unless it is told otherwise.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(10 * 60);

/// Longest replica lag: all that is loaded is dated back by it, which must not reach behind the clock's start.
pub const REPLICA_LAG_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What travels, and what a peer's change does here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A change evicts the peers' copies; a system of record has the truth.
    #[default]
    Invalidate,
    /// Values travel, and every node stores them: of several writes of a key the last one counts, by hybrid clock.
    /// [`CacheBuilder::replicate`] sets it.
    Replicate,
    /// Nothing travels: an ordinary cache with events.
    Local,
}

/// Which changes evict the local copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Invalidator {
    /// Those of other nodes.
    #[default]
    Remote,
    /// Those of this node: a change removes the entry instead of storing it.
    Local,
    /// Both.
    All,
    /// None: events are told to subscribers, and nothing is evicted.
    Off,
}

impl Invalidator {
    pub(crate) fn acts_on_remote(self) -> bool {
        matches!(self, Self::Remote | Self::All)
    }

    pub(crate) fn acts_on_local(self) -> bool {
        matches!(self, Self::Local | Self::All)
    }
}

/// How a cache was opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What travels.
    pub mode: Mode,
    /// What evicts.
    pub invalidator: Invalidator,
    /// Most entries, or most weight where a weigher is given.
    pub max_capacity: u64,
    /// Whether the capacity is a weight.
    pub weighed: bool,
    /// How long an entry lives after it was stored.
    pub time_to_live: Option<Duration>,
    /// How long it lives after it was last read.
    pub time_to_idle: Option<Duration>,
    /// Among how many partitions events are divided for subscribers.
    pub partitions: usize,
    /// Bounds of each partition's ring.
    pub ring: RingBounds,
    /// Whether expiries and evictions are reported and counted.
    pub eviction_events: bool,
    /// Whether callers say which tags an entry has: one without has none.
    pub explicit_tags: bool,
    /// How far what loads read may be behind (0: it never is).
    pub replica_lag: Duration,
    /// What it does with what it doubts.
    pub when_isolated: WhenIsolated,
    /// Which layout its values have.
    pub schema: u32,
    /// Whether its values are compared with those of other nodes, if the node audits.
    pub audited: bool,
    /// What it does when a loader fails or is slow, and before an entry expires.
    pub loads: LoadPolicy,
    /// For how long it remembers what was removed, where values travel.
    pub tombstone_ttl: Duration,
}

impl Settings {
    /// Whether subscribers hear of events of this kind.
    #[must_use]
    pub fn reports(&self, kind: EventKind) -> bool {
        self.eviction_events || !matches!(kind, EventKind::Expired | EventKind::Evicted)
    }

    /// Whether the table has moka watch every entry's own time, which costs a hit up to a fifth of its time.
    pub(crate) fn watches_entries(&self) -> bool {
        self.eviction_events || self.time_to_idle.is_some()
    }
}

/// A cache cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Its name is not usable.
    #[error("cache name")]
    Name(#[from] InvalidName),
    /// A cache of this name is open already. Look it up instead.
    #[error("cache {0:?} is open already")]
    Open(Arc<str>),
    /// Another cache's name has the same 32-bit id. Choose another name.
    #[error("the name collides with that of cache {0:?} on the wire")]
    Collision(Arc<str>),
    /// The capacity is zero.
    #[error("capacity of a cache must not be zero")]
    NoCapacity,
    /// The number of partitions is not within `1..=PARTITIONS_MAX`.
    #[error("{0} partitions: use 1 to {PARTITIONS_MAX}")]
    Partitions(usize),
    /// The replica lag is longer than [`REPLICA_LAG_MAX`].
    #[error("a replica lag of {0:?}: use a day at most")]
    ReplicaLag(Duration),
    /// An option of [`LoadPolicy`] cannot be as it is.
    #[error("{option} must be {why}")]
    Option {
        /// Which one.
        option: &'static str,
        /// What it would have to be.
        why: &'static str,
    },
}

pub(crate) type Weigher<V> = Arc<dyn Fn(&[u8], &V) -> u32 + Send + Sync>;
pub(crate) type Partitioner<K> = Arc<dyn Fn(&K) -> Option<usize> + Send + Sync>;

/// What the user's code decides.
pub(crate) struct Functions<K, V> {
    pub(crate) weigher: Option<Weigher<V>>,
    pub(crate) partitioner: Option<Partitioner<K>>,
    pub(crate) tagger: Option<Tagger<K, V>>,
    pub(crate) sharing: Option<Sharing<V>>,
    pub(crate) digester: Option<Digester<V>>,
    /// Where values travel.
    pub(crate) codec: Option<ValueCodec<V>>,
}

/// Opens a cache.
#[must_use = "a builder does nothing until it is opened"]
pub struct CacheBuilder<K, V> {
    domain: Domain,
    name: String,
    pub(crate) settings: Settings,
    pub(crate) functions: Functions<K, V>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> std::fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheBuilder").field("name", &self.name).field("settings", &self.settings).finish()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> CacheBuilder<K, V> {
    /// A cache of this name with the defaults: mode `invalidate`, 100,000 entries, no expiry, one partition.
    pub fn new(domain: &Domain, name: &str) -> Self {
        let settings = Settings {
            mode: Mode::default(),
            invalidator: Invalidator::default(),
            max_capacity: 100_000,
            weighed: false,
            time_to_live: None,
            time_to_idle: None,
            partitions: 1,
            ring: RingBounds::default(),
            eviction_events: false,
            explicit_tags: false,
            replica_lag: Duration::ZERO,
            when_isolated: WhenIsolated::default(),
            schema: 0,
            audited: false,
            loads: LoadPolicy::default(),
            tombstone_ttl: TOMBSTONE_TTL,
        };
        Self {
            domain: domain.clone(),
            name: name.to_owned(),
            settings,
            functions: Functions {
                weigher: None,
                partitioner: None,
                tagger: None,
                digester: None,
                sharing: None,
                codec: None,
            },
            types: PhantomData,
        }
    }

    /// What travels. Default: [`Mode::Invalidate`]. [`Mode::Replicate`] needs to know how values are encoded: use
    /// [`CacheBuilder::replicate`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.settings.mode = mode;
        self
    }

    /// Has values travel, and stores those of other nodes ([`Mode::Replicate`]): for values whose truth is in the caches
    /// themselves.
    ///
    /// Of several writes of a key the last one counts everywhere, by the wall clocks of those who wrote, and by their
    /// names where these agree: `increment`, `compute` and `insert_if_absent` are atomic on one node only. A write
    /// whose time is more than half a second ahead of a peer's clock is refused there, and undone by its author: it
    /// is lost, unless others have accepted it. What is removed is remembered for a while
    /// ([`CacheBuilder::tombstone_ttl`]). A value may have a mebibyte less nine kibibytes; a larger one is refused
    /// before it is stored. A tag or prefix names what the nodes hold that hear of it.
    ///
    /// What a node may have missed is a miss until it was compared with the members. What is loaded stays on its node and
    /// gives way to what is written; versions decide nothing.
    ///
    /// While a node is in doubt, what peers wrote is as old as their wall clocks say: there the staleness bound holds
    /// as far as clocks agree.
    pub fn replicate(self) -> Self
    where
        V: Serialize + DeserializeOwned,
    {
        self.replicated_as(ValueCodec::of_serde())
    }

    /// As [`CacheBuilder::replicate`], with an encoding of its own. What cannot be decoded evicts. Both are called outside
    /// every lock.
    pub fn replicate_with(
        self,
        encode: impl Fn(&V) -> Vec<u8> + Send + Sync + 'static,
        decode: impl Fn(&[u8]) -> Option<V> + Send + Sync + 'static,
    ) -> Self {
        self.replicated_as(ValueCodec::new(encode, decode))
    }

    fn replicated_as(mut self, codec: ValueCodec<V>) -> Self {
        self.settings.mode = Mode::Replicate;
        self.functions.codec = Some(codec);
        self
    }

    /// For how long a cache whose values travel remembers what was removed, at most: of more than 65,536 keys, or 4
    /// MiB of them, the oldest are forgotten before (and of fewer where they fall unevenly, for each of 64 parts has
    /// its share). Default: [`TOMBSTONE_TTL`]. Once a removal is forgotten, writes of its slot that are older than it
    /// are refused under keys that are absent: what is under way for longer than it is remembered may be lost here
    /// until it is written anew.
    pub fn tombstone_ttl(mut self, time: Duration) -> Self {
        self.settings.tombstone_ttl = time;
        self
    }

    /// Which changes evict the local copy. Default: [`Invalidator::Remote`].
    pub fn invalidator(mut self, invalidator: Invalidator) -> Self {
        self.settings.invalidator = invalidator;
        self
    }

    /// Most entries, or with a weigher the largest sum of weights. Default: 100,000 entries.
    pub fn max_capacity(mut self, capacity: u64) -> Self {
        self.settings.max_capacity = capacity;
        self
    }

    /// Weighs an entry, given its encoded key, so that the capacity is a weight. It runs within mutations and must not
    /// call the cache.
    pub fn weigher(mut self, weigher: impl Fn(&[u8], &V) -> u32 + Send + Sync + 'static) -> Self {
        self.functions.weigher = Some(Arc::new(weigher));
        self.settings.weighed = true;
        self
    }

    /// How long an entry lives after it was stored. Default: until it is displaced.
    pub fn time_to_live(mut self, time: Duration) -> Self {
        self.settings.time_to_live = Some(time);
        self
    }

    /// How long an entry lives after it was last read. Default: until it is displaced.
    pub fn time_to_idle(mut self, time: Duration) -> Self {
        self.settings.time_to_idle = Some(time);
        self
    }

    /// Among how many partitions this node divides events for subscribers. Default: 1. Other nodes may differ.
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.settings.partitions = partitions;
        self
    }

    /// Chooses the partition of a key. `None` drops the event for subscribers; a partition that does not exist, or a
    /// panic, drops and counts it. Called outside every lock. Default: a stable hash of the key.
    pub fn partitioner(mut self, partitioner: impl Fn(&K) -> Option<usize> + Send + Sync + 'static) -> Self {
        self.functions.partitioner = Some(Arc::new(partitioner));
        self
    }

    /// Computes the tags of an entry, by which [`Cache::invalidate_tag`] finds it, however it came to be: at most
    /// [`TAGS_PER_ENTRY_MAX`](crate::TAGS_PER_ENTRY_MAX) of at most [`TAG_BYTES_MAX`](crate::TAG_BYTES_MAX) bytes, or it
    /// is not stored. The same key and value must have the same tags on every node. Called outside every lock.
    pub fn tags<I>(mut self, tags: impl Fn(&K, &V) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item: AsRef<str>>,
    {
        let cache = CacheId::of_name(&self.name);
        self.functions.tagger = Some(Arc::new(move |key, value, all| {
            tags(key, value).into_iter().try_for_each(|tag| all.add(cache, tag.as_ref()))
        }));
        self
    }

    /// Says that callers give entries their tags ([`Cache::get_or_load_tagged`], [`crate::Write::tags`]), so that one
    /// without has none. Default: a cache in which nothing was ever tagged cannot know what a tag names, and drops
    /// everything when one is invalidated.
    pub fn explicit_tags(mut self) -> Self {
        self.settings.explicit_tags = true;
        self
    }

    /// How many events, and how many bytes of them, each partition keeps for slow subscribers.
    pub fn ring(mut self, bounds: RingBounds) -> Self {
        self.settings.ring = bounds;
        self
    }

    /// Whether the cache reports that entries expire or are displaced to keep within the capacity: events of the kinds
    /// [`EventKind::Expired`] and [`EventKind::Evicted`], and the counters `evicted` and `expired`. Default: `false`,
    /// for it costs an insert a third of its time, and halves how fast peers' changes are applied. Without it a
    /// subscription to these kinds alone is refused, and the counters stay 0.
    pub fn eviction_events(mut self, report: bool) -> Self {
        self.settings.eviction_events = report;
        self
    }

    /// How far a replica of the system of record that loaders and fill tokens read from may be behind. Default: 0, none
    /// is read.
    ///
    /// What begins to load within this time of an invalidation or fence of its key is returned and not stored, and
    /// what is stored counts as that much older: in doubt a cache serves nothing that it loaded with a lag of the
    /// staleness bound or more.
    pub fn replica_lag(mut self, lag: Duration) -> Self {
        self.settings.replica_lag = lag;
        self
    }

    /// What is done while the node cannot know that it has seen every member's changes. Default:
    /// [`WhenIsolated::Limit`]. A cache of [`Mode::Local`] is never in doubt.
    pub fn when_isolated(mut self, when: WhenIsolated) -> Self {
        self.settings.when_isolated = when;
        self
    }

    /// Which layout its values have: raise it with a release whose values of one type mean something else. Default: 0.
    ///
    /// Nodes of different releases may differ: a change by a node with another schema evicts, whatever its version, and
    /// nothing that depends on the layout is read. [`crate::CacheCounts::other_schema`] counts such changes.
    pub fn schema(mut self, schema: u32) -> Self {
        self.settings.schema = schema;
        self
    }

    /// Whether values can travel with these settings.
    fn check_replicated(&self) -> Result<(), OpenError> {
        let Settings { invalidator, loads, .. } = &self.settings;
        let (option, why) = if self.functions.codec.is_none() {
            ("mode", "set by replicate(), so that it is known how values are encoded")
        } else if *invalidator != Invalidator::Remote {
            ("invalidator", "remote where values travel")
        } else if loads.eager_refresh.is_some() {
            ("eager_refresh", "off where values travel: what was written is not loaded anew")
        } else {
            return Ok(());
        };
        Err(OpenError::Option { option, why })
    }

    /// Opens the cache.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was opened.
    pub fn open(self) -> Result<Cache<K, V>, OpenError> {
        check_name(&self.name)?;
        if self.settings.max_capacity == 0 {
            return Err(OpenError::NoCapacity);
        }
        if !(1..=PARTITIONS_MAX).contains(&self.settings.partitions) {
            return Err(OpenError::Partitions(self.settings.partitions));
        }
        if self.settings.replica_lag > REPLICA_LAG_MAX {
            return Err(OpenError::ReplicaLag(self.settings.replica_lag));
        }
        self.settings.loads.check(self.settings.time_to_live)?;
        if self.settings.loads.one_loader == OneLoader::Cluster && self.settings.mode != Mode::Invalidate {
            let why =
                "node but in mode invalidate: only there a load that began too early is told from others";
            return Err(OpenError::Option { option: "one_loader", why });
        }
        if self.settings.mode == Mode::Replicate {
            self.check_replicated()?;
        }
        if self.settings.explicit_tags && self.settings.loads.eager_refresh.is_some() {
            let why = "not with explicit_tags: what is reloaded would lose its tags";
            return Err(OpenError::Option { option: "eager_refresh", why });
        }
        let name: Arc<str> = self.name.into();
        let core = Core::new(self.domain.clone(), name.clone(), self.settings, self.functions);
        let core = Arc::new(core);
        match self.domain.register(core.clone()) {
            Ok(()) => Ok(Cache::of(core)),
            Err(holder) if holder == name => Err(OpenError::Open(name)),
            Err(holder) => Err(OpenError::Collision(holder)),
        }
    }
}
