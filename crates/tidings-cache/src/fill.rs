//! Fill tokens: loads by callers that cannot pass a loader.

use std::time::Duration;

use tidings_proto::time::Tick;

use crate::cache::Cache;
use crate::core::Core;
use crate::fetch::Fetched;
use crate::flight::{NO_FLIGHT, Purpose, Start};
use crate::key::{Encoded, Key, KeyError, KeyRef};
use crate::load::{Landed, Landing};
use crate::policy::OneLoader;
use crate::shared::{Handing, LeaseTurn};
use crate::tags::{Loaded, TagError};

/// How long a fill token is good for unless the caller says otherwise.
pub const TOKEN_TIME: Duration = Duration::from_secs(10);

/// A fill failed.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The tags cannot.
    #[error(transparent)]
    Tags(#[from] TagError),
}

/// Permission to fill one key, given with a miss. It is good until its deadline, for one use, and only as long as
/// nothing invalidates the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillToken {
    pub(crate) start: Start,
}

impl FillToken {
    /// Its parts, to be carried elsewhere as text: number, epoch, beginning.
    #[must_use]
    pub fn parts(self) -> (u64, u32, u64) {
        (self.start.id, self.start.epoch, self.start.began.0)
    }

    /// The token that was carried away as these parts.
    #[must_use]
    pub fn from_parts(id: u64, epoch: u32, began: u64) -> Self {
        Self { start: Start { id, epoch, began: Tick(began) } }
    }
}

/// What a read with intent to fill found.
#[derive(Clone, Debug)]
pub enum ReadOrFill<V> {
    /// The value.
    Hit(V),
    /// Nothing: load the value and hand it to [`Cache::fill`].
    Miss(FillToken),
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Opens a fill token's guard. Where what it brings could not be stored, it has none.
    fn token(&self, key: &Encoded, time: Duration) -> Start {
        let key = key.borrowed();
        let mut shard = self.shard(key);
        let now = self.domain.clock().coarse();
        let epoch = self.epoch(key.slot());
        let as_of = shard.after_mark(now).before(self.settings.replica_lag);
        if self.may_store(&shard, key, as_of) {
            shard.flights.begin_guard(key, epoch, as_of, Purpose::Token(now.after(time)))
        } else {
            Start { id: NO_FLIGHT, epoch, began: as_of }
        }
    }

    /// What a caller may be answered with has to have begun later than this.
    fn answered_after(&self, key: KeyRef<'_>) -> Tick {
        let now = self.domain.clock().coarse();
        self.joinable_after(now).max(self.shard(key).mark).before(self.settings.replica_lag)
    }
}

/// A token that nobody has been given yet: dropped, it is closed.
struct OpenToken<'a, K: Key, V: Clone + Send + Sync + 'static> {
    core: &'a Core<K, V>,
    encoded: &'a Encoded,
    start: Start,
    kept: bool,
}

impl<K: Key, V: Clone + Send + Sync + 'static> OpenToken<'_, K, V> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Drop for OpenToken<'_, K, V> {
    fn drop(&mut self) {
        if !self.kept {
            self.core.close_guard(self.encoded, self.start);
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// The value of a key, or permission to fill it: for callers that cannot pass a loader.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn get_or_token(&self, key: &K, time: Duration) -> Result<ReadOrFill<V>, KeyError> {
        match self.try_get(key)? {
            Some(value) => Ok(ReadOrFill::Hit(value)),
            None => self.get_token(key, time),
        }
    }

    /// As [`Cache::get_or_token`], with what [`Cache::get_marked`] returns.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn get_marked_or_token(&self, key: &K, time: Duration) -> Result<ReadOrFill<Fetched<V>>, KeyError> {
        match self.try_get_marked(key)? {
            Some(fetched) => Ok(ReadOrFill::Hit(fetched)),
            None => self.get_token(key, time),
        }
    }

    /// As [`Cache::get_marked_or_token`], where one load serves the cluster
    /// ([`crate::CacheBuilder::one_loader_per_cluster`]): the token stands for the key's lease if nobody else has it, and
    /// what is filled with it is handed to everybody who waits. While another node's client or loader has the lease, its
    /// result is waited for, for `patience` at most; then the token is one like any other. Elsewhere this waits for
    /// nothing.
    ///
    /// # Errors
    /// [`KeyError`].
    ///
    /// # Cancel safety
    /// Cancel-safe: the token, and the lease, are given up.
    pub async fn get_marked_or_lease(
        &self,
        key: &K,
        time: Duration,
        patience: Duration,
    ) -> Result<ReadOrFill<Fetched<V>>, KeyError> {
        let core = &*self.core;
        if core.settings.loads.one_loader == OneLoader::Node {
            return self.get_marked_or_token(key, time);
        }
        // It may be waited for before anybody has it.
        let time = time.saturating_add(patience);
        let token = match self.get_marked_or_token(key, time)? {
            ReadOrFill::Miss(token) if token.start.id != NO_FLIGHT => token,
            found => return Ok(found),
        };
        let encoded = Encoded::new(core.id, key)?;
        let Some(asked) = core.ask_lease(encoded.borrowed(), patience) else {
            return Ok(ReadOrFill::Miss(token));
        };
        let after = core.answered_after(encoded.borrowed());
        let open = OpenToken { core, encoded: &encoded, start: token.start, kept: false };
        let hand = match asked.await {
            LeaseTurn::Load(hand) => Some(hand),
            LeaseTurn::Brought(lent) => {
                let waits = || (after, true);
                match core.land_lent(encoded.borrowed(), token.start, (&lent, false, None), waits) {
                    Some((Some(value), _)) => {
                        core.stats.shared.count();
                        core.tell_local_events();
                        return Ok(ReadOrFill::Hit(Fetched::fresh(value)));
                    }
                    _ => core.stats.shared_refused.count(),
                }
                None
            }
            LeaseTurn::Alone => None,
        };
        let token = if core.stands(encoded.borrowed(), token.start) {
            open.keep();
            token
        } else {
            // Ended while it waited, it would be of no use. What is loaded from now on is.
            FillToken { start: core.token(&encoded, time) }
        };
        if let Some(hand) = hand.filter(|_| token.start.id != NO_FLIGHT) {
            let deadline = core.domain.clock().coarse().after(time);
            core.leased_tokens.put(encoded.place(token.start), deadline, hand);
        }
        Ok(ReadOrFill::Miss(token))
    }

    fn get_token<T>(&self, key: &K, time: Duration) -> Result<ReadOrFill<T>, KeyError> {
        let encoded = Encoded::new(self.core.id, key)?;
        let start = self.core.token(&encoded, time);
        Ok(ReadOrFill::Miss(FillToken { start }))
    }

    /// Stores what was loaded under a token. Returns whether it was: `false` if the token was used or too old, or if
    /// anything invalidated the key meanwhile, or within the cache's replica lag before, or if the cache bypasses
    /// ([`crate::WhenIsolated::Bypass`]) and its node is in doubt.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn fill(&self, key: &K, value: V, token: FillToken, ttl: Option<Duration>) -> Result<bool, KeyError> {
        match self.fill_tagged(key, Loaded::new(value), token, ttl) {
            Ok(stored) => Ok(stored),
            Err(FillError::Key(error)) => Err(error),
            // Those that were computed, and counted.
            Err(FillError::Tags(_)) => Ok(false),
        }
    }

    /// As [`Cache::fill`], with the tags of the value and its version. One whose version is lower than that of what is
    /// cached is not stored.
    ///
    /// # Errors
    /// [`FillError`]; the token is as good as before.
    pub fn fill_tagged(
        &self,
        key: &K,
        loaded: Loaded<V>,
        token: FillToken,
        ttl: Option<Duration>,
    ) -> Result<bool, FillError> {
        let core = &*self.core;
        let encoded = Encoded::new(core.id, key)?;
        let tags = core.tags_loaded((encoded.borrowed(), Some(key)), &loaded.value, &loaded.tags)?;
        let hand = match core.settings.loads.one_loader {
            OneLoader::Node => None,
            OneLoader::Cluster => core.leased_tokens.take(encoded.place(token.start)),
        };
        // Only for those who wait elsewhere.
        let handing = hand.map(|hand| (Handing::of(hand, Some(&loaded)), loaded.value.clone()));
        let Loaded { value, version, .. } = loaded;
        let key = encoded.borrowed();
        let mut shard = core.shard(key);
        let sound =
            shard.flights.finish(key, token.start, core.epoch(key.slot()), core.domain.clock().coarse());
        let landing = Landing { start: token.start, sound, ttl, version };
        let (landed, displaced) = core.land(&mut shard, key, Some((value, tags)), landing);
        drop(shard);
        drop(displaced);
        if let Some((handing, value)) = handing.filter(|_| landed.is_sound()) {
            core.hand_in(handing, Some(&value));
        }
        core.tell_local_events();
        Ok(landed == Landed::Stored)
    }
}
