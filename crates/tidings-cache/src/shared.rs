//! One loader of a key for the cluster: who leads a flight asks first whether another node loads the key, and may take
//! what that brings.
//!
//! Whom to ask is for others to know: a domain is told of one who does ([`Domain::set_leases`]). That a result began late
//! enough for what was applied here is judged there, by positions; all that a flight has to keep is judged here. Whatever
//! else happens, the flight's own loader runs: the option saves loads, and neither delays nor fails a read for longer than
//! a lease.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidings_proto::codec;
use tidings_proto::lease::{LeaseKey, SharedLoad};
use tidings_proto::time::Tick;
use tokio::time::timeout;

use crate::builder::CacheBuilder;
use crate::clock::COARSE_LAG;
use crate::core::Core;
use crate::domain::Domain;
use crate::flight::{Purpose, Start};
use crate::key::{Encoded, Key, KeyRef};
use crate::leader::{Ended, Leader, Timed};
use crate::load::{Landed, Landing};
use crate::policy::OneLoader;
use crate::tags::Loaded;

/// Most fill tokens of a cache that stand for leases. Of more, the lease is given back, and the token is as good as any.
const LEASED_TOKENS_MAX: usize = 4_096;

/// Who wants to load a key.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    /// Which layout its values have.
    pub schema: u32,
    /// The key.
    pub key: LeaseKey,
    /// How long the asker waits for another's load.
    pub patience: Duration,
}

/// What another node's load has brought, which began late enough for everything that was applied here when it was asked
/// for.
#[derive(Clone, Debug)]
pub struct Lent {
    /// What it brought, as [`SharedLoad`].
    pub result: Bytes,
    /// No later than when it began.
    pub began: Tick,
}

/// Hands in what a load has brought, as [`SharedLoad`]. Dropped, it says that it brought nothing.
pub type Hand = Box<dyn FnOnce(Bytes) + Send>;

/// What who wants to load a key is told.
pub enum LeaseTurn {
    /// Load, for everybody who waits.
    Load(Hand),
    /// Another has loaded.
    Brought(Lent),
    /// Load, and tell nobody: whatever the reason.
    Alone,
}

impl fmt::Debug for LeaseTurn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Load(_) => f.write_str("Load"),
            Self::Brought(lent) => lent.fmt(f),
            Self::Alone => f.write_str("Alone"),
        }
    }
}

/// The future of a lease. Dropped, it is not waited for any more.
pub type LeaseFuture = Pin<Box<dyn Future<Output = LeaseTurn> + Send>>;

/// Where leases come from. Called once the flight is registered that is to be loaded.
pub type LeaseSource = Arc<dyn Fn(LeaseRequest) -> LeaseFuture + Send + Sync>;

impl Domain {
    /// Says where leases come from; the first one counts.
    pub fn set_leases(&self, source: LeaseSource) {
        // A node sets it once, before anybody holds the domain.
        let _ = self.leases().set(source);
    }
}

/// How a value travels.
pub(crate) struct Sharing<V> {
    encode: fn(&V) -> Option<Vec<u8>>,
    decode: fn(&[u8]) -> Option<V>,
}

/// What is to be handed in with a value.
pub(crate) struct Handing {
    hand: Hand,
    tags: Vec<String>,
    version: Option<u64>,
}

impl Handing {
    pub(crate) fn of<V>(hand: Hand, loaded: Option<&Loaded<V>>) -> Self {
        let tags = loaded.map(|loaded| loaded.tags.clone()).unwrap_or_default();
        Self { hand, tags, version: loaded.and_then(|loaded| loaded.version) }
    }
}

/// Where a flight got its value from.
pub(crate) enum Obtained<V, E> {
    /// From another node's load, and it has landed.
    Taken(Option<V>),
    /// From its own, which others may wait for.
    Loaded(Result<Option<Loaded<V>>, E>, Option<Hand>),
}

/// Fill tokens that stand for leases, by shard and flight, each until its deadline.
#[derive(Default)]
pub(crate) struct LeasedTokens(Mutex<HashMap<(usize, u64), (Tick, Hand)>>);

impl LeasedTokens {
    pub(crate) fn put(&self, at: (usize, u64), deadline: Tick, hand: Hand) {
        let mut tokens = self.0.lock();
        if tokens.len() < LEASED_TOKENS_MAX {
            tokens.insert(at, (deadline, hand));
        }
    }

    pub(crate) fn take(&self, at: (usize, u64)) -> Option<Hand> {
        self.0.lock().remove(&at).map(|(_, hand)| hand)
    }

    /// Gives up those whose deadline has passed.
    pub(crate) fn expire(&self, now: Tick) {
        let over: Vec<_> = self.0.lock().extract_if(|_, (deadline, _)| *deadline < now).collect();
        drop(over);
    }

    /// Gives up all.
    pub(crate) fn end(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        drop(all);
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Asks for the lease of a key whose flight is registered; `None` where each node loads for itself.
    pub(crate) fn ask_lease(&self, key: KeyRef<'_>, patience: Duration) -> Option<LeaseFuture> {
        if self.settings.loads.one_loader != OneLoader::Cluster || self.is_closed() {
            return None;
        }
        let source = self.domain.leases().get()?;
        let key = LeaseKey { cache: self.id, bytes: key.to_bytes() };
        Some(source(LeaseRequest { schema: self.settings.schema, key, patience }))
    }

    /// Hands in what a load has brought. What does not encode, or is too long, brings nothing.
    pub(crate) fn hand_in(&self, Handing { hand, tags, version }: Handing, value: Option<&V>) {
        let load = match (value, &self.sharing) {
            (None, _) => Some(SharedLoad::Absent),
            (Some(value), Some(sharing)) => {
                // The caller has its value: it must not fail for those who wait elsewhere.
                let bytes = catch_unwind(AssertUnwindSafe(|| (sharing.encode)(value))).ok().flatten();
                bytes.map(|bytes| SharedLoad::Value { bytes, tags, version })
            }
            (Some(_), None) => None,
        };
        if let Some(result) = load.and_then(|load| load.encode()) {
            hand(result);
        }
    }

    /// Reads what another's load has brought.
    fn read_lent(&self, lent: &Lent) -> Option<Option<Loaded<V>>> {
        match SharedLoad::decode(&lent.result).ok()? {
            SharedLoad::Absent => Some(None),
            SharedLoad::Value { bytes, tags, version } => {
                let decode = self.sharing.as_ref()?.decode;
                let value = catch_unwind(AssertUnwindSafe(|| decode(&bytes))).ok().flatten()?;
                Some(Some(Loaded { value, tags, version }))
            }
        }
    }

    /// Lands another's load in a flight of this node's, if all who wait for that may have it. Returns what it brought, and
    /// what became of it.
    pub(crate) fn land_lent(
        &self,
        key: KeyRef<'_>,
        start: Start,
        (lent, absence, ttl): (&Lent, bool, Option<Duration>),
        allowed: impl FnOnce() -> (Tick, bool),
    ) -> Option<(Option<V>, Landed)> {
        let loaded = self.read_lent(lent).filter(|loaded| absence || loaded.is_some())?;
        let value = loaded.as_ref().map(|loaded| loaded.value.clone());
        let version = loaded.as_ref().and_then(|loaded| loaded.version);
        let tagged = loaded.map(|Loaded { value, tags, .. }| {
            self.tags_loaded((key, None), &value, &tags).map(|tags| (value, tags))
        });
        // Moments here are read from a coarse clock, and a replica lags there too.
        let began = lent.began.before(COARSE_LAG).before(self.settings.replica_lag).min(start.began);
        let mut shard = self.shard(key);
        let now = self.domain.clock().coarse();
        let (after, stores) = allowed();
        if began <= self.joinable_after(now).before(self.settings.replica_lag).max(after) {
            return None;
        }
        let unended = shard.flights.finish(key, start, self.epoch(key.slot()), now);
        let sound = unended && stores && self.may_store(&shard, key, began);
        let (landed, displaced) = match tagged.transpose() {
            Ok(value) => {
                let landing = Landing { start: Start { began, ..start }, sound, ttl, version };
                self.land(&mut shard, key, value, landing)
            }
            // What cannot have its tags is not stored.
            Err(_) => (Landed::Ended, None),
        };
        drop(shard);
        drop(displaced);
        Some((value, landed))
    }

    /// Whether nothing has ended a flight.
    pub(crate) fn stands(&self, key: KeyRef<'_>, start: Start) -> bool {
        self.shard(key).flights.stands(key, start, self.epoch(key.slot()))
    }

    /// Watches a key of which a lease is given.
    pub(crate) fn lease_begins(&self, key: KeyRef<'_>) -> Start {
        let mut shard = self.shard(key);
        let began = shard.after_mark(self.domain.clock().coarse());
        shard.flights.begin_guard(key, self.epoch(key.slot()), began, Purpose::Lease)
    }

    /// Whether nothing has changed a key, or may have, since it is watched.
    pub(crate) fn lease_stands(&self, key: KeyRef<'_>, start: Start) -> bool {
        let shard = self.shard(key);
        let after = self.joinable_after(self.domain.clock().coarse()).max(shard.mark);
        start.began > after && shard.flights.stands(key, start, self.epoch(key.slot()))
    }

    pub(crate) fn lease_ends(&self, key: KeyRef<'_>, start: Start) {
        let now = self.domain.clock().coarse();
        self.shard(key).flights.finish(key, start, self.epoch(key.slot()), now);
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Leader<K, V> {
    /// Gets the value of the flight: by its own loader, unless another node's has brought it. That is waited for no longer
    /// than for half of `limit`, so that a load elsewhere that takes too long fails no read here.
    pub(crate) async fn obtain<E, F>(
        &mut self,
        load: impl FnOnce() -> F,
        limit: Option<Duration>,
    ) -> Obtained<V, E>
    where
        F: Future<Output = Result<Option<Loaded<V>>, E>>,
    {
        let core = self.core.clone();
        let half = limit.map(|limit| limit / 2);
        let lease_time = core.settings.loads.lease_time;
        let patience = half.map_or(lease_time, |half| half.min(lease_time));
        let turn = match core.ask_lease(self.key(), patience) {
            Some(asked) => {
                // While it waits there is no loader that could fail.
                let counts = std::mem::replace(&mut self.counts, false);
                let turn = match half {
                    Some(half) => timeout(half, asked).await.unwrap_or(LeaseTurn::Alone),
                    None => asked.await,
                };
                self.counts = counts;
                turn
            }
            None => LeaseTurn::Alone,
        };
        let hand = match turn {
            LeaseTurn::Brought(lent) => match self.take(&lent) {
                Some(value) => return Obtained::Taken(value),
                None => None,
            },
            // What an ended flight brings is for those who wait for it here.
            LeaseTurn::Load(hand) => self.stands().then_some(hand),
            LeaseTurn::Alone => None,
        };
        core.stats.loads.count();
        let _timed = Timed::start(core.domain.clock(), &core.load_time);
        Obtained::Loaded(load().await, hand)
    }

    fn stands(&self) -> bool {
        self.waiting.stores() && self.core.stands(self.key(), self.start)
    }

    /// Takes what another node's load has brought, if everybody who waits for this one may have it.
    fn take(&self, lent: &Lent) -> Option<Option<V>> {
        let waiting = || (self.waiting.after(), self.waiting.stores());
        let landed = self.core.land_lent(self.key(), self.start, (lent, self.absence, None), waiting);
        let stats = &self.core.stats;
        let Some((value, _)) = landed else {
            stats.shared_refused.count();
            return None;
        };
        stats.shared.count();
        self.waiting.end(value.clone().map_or(Ended::Absent, Ended::Loaded));
        Some(value)
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> CacheBuilder<K, V> {
    /// One loader runs per key and cluster, among the nodes that open the cache so, rather than one per node: for sources
    /// that many nodes' misses at once would overload. Who loads first is asked for, of the key's home node, before the
    /// loader runs; others wait for what it brings, for [`CacheBuilder::lease_time`] at most. Default: off; only in mode
    /// [`crate::Mode::Invalidate`].
    ///
    /// It saves loads, and promises none: where the home cannot be asked, the holder fails, dies or takes too long, or
    /// anything may have changed that its load did not see, each node loads for itself as without the option. A result is
    /// taken only if the holder's node had applied at least what this one had, in the key's lane, and is stored under the
    /// rules of [`crate::Cache::get_or_load`]. Loads of many keys at once remain one per node. Values of more than 768 KiB
    /// are not shared.
    pub fn one_loader_per_cluster(self) -> Self
    where
        V: Serialize + DeserializeOwned,
    {
        self.one_loader_per_cluster_by(|value| codec::encode(value).ok(), |bytes| codec::decode(bytes).ok())
    }

    /// As [`CacheBuilder::one_loader_per_cluster`], for values with an encoding of their own. What `encode` answers with
    /// nothing is not shared, and what `decode` does is loaded here.
    pub fn one_loader_per_cluster_by(
        mut self,
        encode: fn(&V) -> Option<Vec<u8>>,
        decode: fn(&[u8]) -> Option<V>,
    ) -> Self {
        self.settings.loads.one_loader = OneLoader::Cluster;
        self.functions.sharing = Some(Sharing { encode, decode });
        self
    }
}

impl Encoded {
    /// Where a flight of the key is, among all of its cache.
    pub(crate) fn place(&self, start: Start) -> (usize, u64) {
        (self.borrowed().shard(), start.id)
    }
}
