//! Derived rules: a change in one cache invalidates keys of another.
//!
//! Who makes the change derives, and logs what it derived as ordinary changes, before the call returns: a peer has
//! nothing to compute, and a lane covers what it carries. A derived change is one like any other and derives further,
//! which ends because a rule that would close a circle is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use tidings_proto::event::Operation;
use tidings_proto::hash::CacheId;
use tidings_proto::log::Stuck;

use crate::cache::Cache;
use crate::core::Core;
use crate::domain::Domain;
use crate::erased::AnyCache;
use crate::key::{Encoded, Key};
use crate::open_writes::OpenWrite;
use crate::stats::CacheStats;
use crate::write::{Change, Options, WriteError};

/// Most keys that one changed key may derive: of more, the whole target is cleared. What is derived of many is
/// invalidated whenever there are so many, which bounds its memory.
pub const DERIVED_KEYS_MAX: usize = 1_024;

/// Most rules of one cache, each of which every change of it runs.
pub const RULES_MAX: usize = 64;

/// A rule cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeriveError {
    /// Changes of the target derive changes of the source already. Find out which of the two is made of the other.
    #[error("changes of {0:?} would derive changes of itself")]
    Circle(Arc<str>),
    /// The two caches belong to different nodes.
    #[error("the caches belong to different nodes")]
    OtherNode,
    /// One rule can derive for several: join some.
    #[error("more than {RULES_MAX} rules of one cache")]
    TooMany,
}

/// What changed in the source.
#[derive(Debug)]
pub(crate) enum Changed<'a, K> {
    Keys(&'a [K]),
    /// These, by a write that may still land.
    Uncertain(&'a [K]),
    /// Or nobody knows which keys.
    Everything {
        /// By a write that may still land.
        uncertain: bool,
    },
}

impl<'a, K> Changed<'a, K> {
    pub(crate) fn keys(keys: &'a [K], uncertain: bool) -> Self {
        if uncertain { Self::Uncertain(keys) } else { Self::Keys(keys) }
    }
}

impl<K> Clone for Changed<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Changed<'_, K> {}

type Run<K> = Box<dyn Fn(Changed<'_, K>, &CacheStats) + Send + Sync>;

struct Rule<K> {
    target: CacheId,
    run: Run<K>,
}

/// The rules of a cache: nothing until it has one.
pub(crate) struct Rules<K>(OnceLock<RwLock<Vec<Arc<Rule<K>>>>>);

impl<K> Default for Rules<K> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<K> Rules<K> {
    fn all(&self) -> Vec<Arc<Rule<K>>> {
        self.0.get().map(|rules| rules.read().clone()).unwrap_or_default()
    }

    fn add(&self, rule: Rule<K>) -> Result<(), DeriveError> {
        let mut rules = self.0.get_or_init(RwLock::default).write();
        if rules.len() == RULES_MAX {
            return Err(DeriveError::TooMany);
        }
        rules.push(Arc::new(rule));
        Ok(())
    }

    /// The caches that it derives changes of.
    pub(crate) fn targets(&self) -> Vec<CacheId> {
        self.all().iter().map(|rule| rule.target).collect()
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// To be held from before a change is made until what it derives is logged: a node that leaves waits for it.
    #[inline]
    pub(crate) fn deriving(&self) -> Option<OpenWrite<'_>> {
        // If that cannot be noted, nothing can be appended either: it is for the append to refuse, once the entry is gone.
        let noted = || OpenWrite::of_unnamed(&self.domain);
        self.has_rules().then(|| noted().unwrap_or_else(|Stuck| OpenWrite::of_changes(&self.domain)))
    }

    /// Whether others may follow from its changes.
    #[inline]
    pub(crate) fn has_rules(&self) -> bool {
        self.rules.0.get().is_some()
    }

    /// Makes the changes that follow from one that was made. Runs user code: call without any lock.
    #[inline]
    pub(crate) fn derive(&self, changed: Changed<'_, K>) {
        if self.has_rules() {
            self.rules.all().iter().for_each(|rule| (rule.run)(changed, &self.stats));
        }
    }
}

impl<K: Key, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// From now on, a change of a key of this cache that is made on this node, by whatever call, also invalidates the
    /// keys of `target` that `keys` names, here and at every peer, before the call returns. A change that names no keys
    /// (a clear, a tag, a prefix) clears the target.
    ///
    /// Peers compute nothing: every node that changes this cache needs the rule. What is derived is a change of the
    /// target like any other, so that rules of the target follow from it.
    ///
    /// `keys` runs outside every lock, after the change and within the call that made it, and must depend on the key
    /// alone. If it panics, which is counted, or names more than [`DERIVED_KEYS_MAX`] keys for one, or keys that cannot be
    /// used, the target is cleared: nobody knows what it would have named. The rule stays until this cache is closed;
    /// the target may be closed and opened again meanwhile, and peers hear what is derived all the same.
    ///
    /// # Errors
    /// [`DeriveError`]; there is no rule then.
    pub fn derive<D, W, I>(
        &self,
        target: &Cache<D, W>,
        keys: impl Fn(&K) -> I + Send + Sync + 'static,
    ) -> Result<(), DeriveError>
    where
        D: Key,
        W: Clone + Send + Sync + 'static,
        I: IntoIterator<Item = D>,
    {
        let domain = &self.core.domain;
        if !domain.is(&target.core.domain) {
            return Err(DeriveError::OtherNode);
        }
        // One rule at a time, for two could close a circle together.
        let _rules = domain.making_rules();
        let mut reached = target.core.rules.targets();
        reached.push(target.core.id);
        if domain.reaches(reached, self.core.id) {
            return Err(DeriveError::Circle(self.core.name.clone()));
        }
        let (domain, name) = (domain.clone(), target.core.name.clone());
        let run = move |changed: Changed<'_, K>, stats: &CacheStats| {
            let target = TargetCache::find(&domain, &name);
            match changed {
                Changed::Keys(changed) => target.invalidate_mapped::<K, D, W, I>(changed, &keys, stats),
                Changed::Uncertain(changed) => {
                    let target = TargetCache { uncertain: true, ..target };
                    target.invalidate_mapped::<K, D, W, I>(changed, &keys, stats);
                }
                Changed::Everything { uncertain } => TargetCache { uncertain, ..target }.clear(),
            }
        };
        self.core.rules.add(Rule { target: target.core.id, run: Box::new(run) })
    }
}

/// The cache that a rule is for, as it is now.
struct TargetCache<'a> {
    domain: &'a Domain,
    id: CacheId,
    name: &'a str,
    open: Option<Arc<dyn AnyCache>>,
    /// What the change stands for may still land.
    uncertain: bool,
}

impl<'a> TargetCache<'a> {
    fn find(domain: &'a Domain, name: &'a str) -> Self {
        Self { domain, id: CacheId::of_name(name), name, open: domain.cache(name), uncertain: false }
    }

    fn invalidate_mapped<K, D, W, I>(&self, changed: &[K], keys: &impl Fn(&K) -> I, stats: &CacheStats)
    where
        D: Key,
        W: Clone + Send + Sync + 'static,
        I: IntoIterator<Item = D>,
    {
        let mut derived = Vec::new();
        for key in changed {
            let call = || keys(key).into_iter().take(DERIVED_KEYS_MAX + 1).collect::<Vec<_>>();
            match catch_unwind(AssertUnwindSafe(call)) {
                Ok(some) if some.len() <= DERIVED_KEYS_MAX => derived.extend(some),
                Ok(_) => return self.clear(),
                Err(_) => {
                    stats.panics.count();
                    return self.clear();
                }
            }
            if derived.len() >= DERIVED_KEYS_MAX {
                self.invalidate::<D, W>(std::mem::take(&mut derived), stats);
            }
        }
        if !derived.is_empty() {
            self.invalidate::<D, W>(derived, stats);
        }
    }

    fn invalidate<D: Key, W: Clone + Send + Sync + 'static>(&self, keys: Vec<D>, stats: &CacheStats) {
        // Judged before any is changed, and kept for a target that is not open.
        let encode = || keys.iter().map(|key| Encoded::new(self.id, key)).collect::<Result<Vec<_>, _>>();
        let encoded = catch_unwind(AssertUnwindSafe(encode)).inspect_err(|_| stats.panics.count());
        let Ok(Ok(encoded)) = encoded else { return self.clear() };
        let told = match &self.open {
            None => self.domain.tell_keys_of_closed(self.id, &encoded, self.uncertain),
            Some(open) => match Cache::<D, W>::from_erased(open.clone()) {
                // It was opened anew, for other keys.
                None => return self.clear(),
                Some(cache) => {
                    let options =
                        Options { ends_write: true, uncertain: self.uncertain, ..Options::default() };
                    let changes = keys.into_iter().map(|key| (key, Change::Remove));
                    match cache.core.change_many(changes, Operation::Invalidate, &options) {
                        Err(WriteError::Closed) => {
                            self.domain.tell_keys_of_closed(self.id, &encoded, self.uncertain)
                        }
                        result => result.map(drop),
                    }
                }
            },
        };
        self.report(told);
    }

    fn clear(&self) {
        let cleared = match self.open.as_ref().map(|open| open.clear_derived(self.uncertain)) {
            None | Some(Err(WriteError::Closed)) => self.domain.tell_clear_of_closed(self.id, self.uncertain),
            Some(result) => result.map(drop),
        };
        self.report(cleared);
    }

    /// What cannot be told any more could not have been, were it changed itself.
    fn report(&self, told: Result<(), WriteError>) {
        if let Err(error) = told {
            tracing::warn!(cache = self.name, %error, "a derived change could not be broadcast");
        }
    }
}
