//! What a cache does about loads and lives beyond storing what a loader brings.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings_proto::time::Tick;

use crate::builder::{CacheBuilder, OpenError};
use crate::key::Key;

/// Pause after a failed load unless the cache says otherwise.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Longest time that an option may name: what is longer is a mistake in its unit.
const TIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Longest lease of a key: for so long its other readers wait for a holder that has died.
const LEASE_TIME_MAX: Duration = Duration::from_secs(5 * 60);

/// How long a lease is good for unless the cache says otherwise.
const LEASE_TIME: Duration = Duration::from_secs(5);

/// How far one load of a key serves those who ask for it meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OneLoader {
    /// Those on the same node.
    #[default]
    Node,
    /// Those on every node that has the cache open so.
    Cluster,
}

/// How a cache loads. Everything is off by default.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadPolicy {
    /// For how long after its time is over an entry is served, marked as stale, when its loader fails.
    pub fail_safe: Option<Duration>,
    /// For how long after a failure the loader of a key that can be served is not asked again.
    pub retry_after: Duration,
    /// After how long a caller is served what its time is over, while the load goes on.
    pub soft_timeout: Option<Duration>,
    /// After how long a load is given up.
    pub hard_timeout: Option<Duration>,
    /// After which share of its life a hit has an entry reloaded.
    pub eager_refresh: Option<f64>,
    /// By which share of it an entry's life is shortened at most, each by another.
    pub ttl_jitter: Option<f64>,
    /// For how long it is remembered that a key has no value.
    pub negative_ttl: Option<Duration>,
    /// How far one load of a key serves others.
    pub one_loader: OneLoader,
    /// How long who loads a key for the cluster is waited for.
    pub lease_time: Duration,
}

impl Default for LoadPolicy {
    fn default() -> Self {
        Self {
            fail_safe: None,
            retry_after: RETRY_AFTER,
            soft_timeout: None,
            hard_timeout: None,
            eager_refresh: None,
            ttl_jitter: None,
            negative_ttl: None,
            one_loader: OneLoader::Node,
            lease_time: LEASE_TIME,
        }
    }
}

impl LoadPolicy {
    /// How long entries are kept after their time is over.
    pub(crate) fn keeps(&self) -> Duration {
        self.fail_safe.unwrap_or_default()
    }

    /// How long an entry lives whose time to live is this, by what is drawn from `seed`: from the share that the jitter
    /// leaves up to all of it, evenly.
    pub(crate) fn life(&self, time: Duration, seed: u64) -> Duration {
        match self.ttl_jitter {
            Some(share) => time.min(TIME_MAX).mul_f64(1.0 - share * unit(seed)),
            None => time,
        }
    }

    /// Whether failures are remembered.
    pub(crate) fn pauses(&self) -> bool {
        self.fail_safe.is_some() || self.eager_refresh.is_some()
    }

    /// Whether an entry of a cache with this time to live is to be reloaded at a hit.
    pub(crate) fn is_due(&self, expires: Tick, life: Option<Duration>, now: impl FnOnce() -> Tick) -> bool {
        let Some((share, life)) = self.eager_refresh.zip(life) else { return false };
        expires.since(now()) <= life.min(TIME_MAX).mul_f64(1.0 - share)
    }

    pub(crate) fn check(&self, life: Option<Duration>) -> Result<(), OpenError> {
        let times = [
            ("fail_safe", self.fail_safe),
            ("retry_after", Some(self.retry_after)),
            ("soft_timeout", self.soft_timeout),
            ("hard_timeout", self.hard_timeout),
            ("negative_ttl", self.negative_ttl),
        ];
        for (option, time) in times {
            if time.is_some_and(|time| time.is_zero() || time > TIME_MAX) {
                return Err(OpenError::Option { option, why: "longer than zero and shorter than 100 years" });
            }
        }
        let shares = [("eager_refresh", self.eager_refresh), ("ttl_jitter", self.ttl_jitter)];
        for (option, share) in shares {
            if share.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
                return Err(OpenError::Option { option, why: "a share between 0 and 1" });
            }
        }
        if self.lease_time.is_zero() || self.lease_time > LEASE_TIME_MAX {
            return Err(OpenError::Option {
                option: "lease_time",
                why: "longer than zero and at most 5 minutes",
            });
        }
        if self.soft_timeout.is_some() && self.fail_safe.is_none() {
            let why = "only with fail_safe: without, there is nothing to serve instead";
            return Err(OpenError::Option { option: "soft_timeout", why });
        }
        if self.eager_refresh.is_some() && life.is_none() {
            let why = "only with time_to_live: without, nothing expires";
            return Err(OpenError::Option { option: "eager_refresh", why });
        }
        if self.eager_refresh.zip(self.ttl_jitter).is_some_and(|(refresh, jitter)| refresh <= jitter) {
            let why = "larger than ttl_jitter: else what is stored may be due at once";
            return Err(OpenError::Option { option: "eager_refresh", why });
        }
        if self.hard_timeout.is_some_and(|hard| self.soft_timeout.is_some_and(|soft| soft >= hard)) {
            let why = "shorter than hard_timeout";
            return Err(OpenError::Option { option: "soft_timeout", why });
        }
        let shares = self.one_loader == OneLoader::Cluster;
        if shares && self.hard_timeout.is_some_and(|hard| self.lease_time >= hard) {
            let why = "shorter than hard_timeout";
            return Err(OpenError::Option { option: "lease_time", why });
        }
        Ok(())
    }
}

/// A number from 0 to below 1 that looks drawn: the last round of SplitMix64.
fn unit(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

impl<K: Key, V: Clone + Send + Sync + 'static> CacheBuilder<K, V> {
    /// For how long after its time to live is over an entry is kept, to be served by [`crate::Cache::fetch`], marked as
    /// stale, when the loader fails or takes too long. Default: off.
    ///
    /// What was changed, invalidated, removed, cleared or fenced is gone, and in doubt the staleness bound holds for
    /// what is served so as for any hit. Every other operation takes what is kept for absent. It counts for the
    /// capacity, and goes like any entry when room is needed, or when nobody has read it for the time to idle; that it
    /// expired is told when it goes.
    pub fn fail_safe(mut self, time: Duration) -> Self {
        self.settings.loads.fail_safe = Some(time);
        self
    }

    /// For how long after a failed load a key that can be served is not loaded again, so that a source that fails is
    /// not asked for every call, be it for an entry whose time is over or for an eager refresh. Default: 1 s. Of the keys
    /// of one of 64 shards, 1,024 are remembered.
    pub fn retry_after(mut self, time: Duration) -> Self {
        self.settings.loads.retry_after = time;
        self
    }

    /// After how long [`crate::Cache::fetch`] serves what [`CacheBuilder::fail_safe`] has kept, while the load goes on
    /// in the background. Default: it waits.
    pub fn soft_timeout(mut self, time: Duration) -> Self {
        self.settings.loads.soft_timeout = Some(time);
        self
    }

    /// After how long a load of [`crate::Cache::fetch`] is given up, its loader dropped: its callers get what is kept,
    /// or [`crate::LoadError::TimedOut`]. Default: never.
    pub fn hard_timeout(mut self, time: Duration) -> Self {
        self.settings.loads.hard_timeout = Some(time);
        self
    }

    /// After which share of an entry's life a hit of [`crate::Cache::fetch`] has it reloaded in the background, between
    /// 0 and 1: with 0.8, an entry that is read in the last fifth of its time to live never expires. Default: off.
    pub fn eager_refresh(mut self, share: f64) -> Self {
        self.settings.loads.eager_refresh = Some(share);
        self
    }

    /// By which share of it each entry's time to live is shortened at most, between 0 and 1, so that what was stored at
    /// once does not expire at once. By how much follows from the key and the moment. Default: off.
    pub fn ttl_jitter(mut self, share: f64) -> Self {
        self.settings.loads.ttl_jitter = Some(share);
        self
    }

    /// For how long a node that loads a key for the whole cluster is waited for, where one does
    /// ([`CacheBuilder::one_loader_per_cluster`]): a loader that takes longer, or a node that dies meanwhile, costs those who
    /// wait so much. Default: 5 s; at most 5 minutes, and shorter than [`CacheBuilder::hard_timeout`], of which at most a half
    /// is spent on waiting.
    pub fn lease_time(mut self, time: Duration) -> Self {
        self.settings.loads.lease_time = time;
        self
    }

    /// For how long [`crate::Cache::get_or_load_optional`] and [`crate::Cache::get_or_load_many`] remember that a key
    /// has no value; the cache's time to live still bounds it. Default: they do not. With a weigher, what is remembered
    /// weighs as much as its encoded key is long. The invalidation of any tag ends it: the value that there may be now has
    /// tags that nobody here knows.
    pub fn negative_ttl(mut self, time: Duration) -> Self {
        self.settings.loads.negative_ttl = Some(time);
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_life_is_within_its_bounds(share in 0.001..0.999_f64, nanos: u64, seed: u64) {
            let policy = LoadPolicy { ttl_jitter: Some(share), ..LoadPolicy::default() };
            for time in [Duration::from_nanos(nanos), Duration::MAX] {
                let life = policy.life(time, seed);
                let time = time.min(TIME_MAX);
                prop_assert!(life <= time && life + Duration::from_nanos(1) >= time.mul_f64(1.0 - share), "{life:?}");
                prop_assert_eq!(life, policy.life(time, seed), "the same draw gives the same life");
            }
        }
    }

    #[test]
    fn lives_are_spread_evenly() {
        let policy = LoadPolicy { ttl_jitter: Some(0.5), ..LoadPolicy::default() };
        let mut tenths = [0; 10];
        for seed in 0..10_000 {
            let life = policy.life(Duration::from_secs(1), seed).as_secs_f64();
            tenths[((1.0 - life) * 20.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (800..1_200).contains(count)), "{tenths:?}");
    }
}
