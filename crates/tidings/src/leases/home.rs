//! The leases that this node gives: of the keys whose home it is.

use std::collections::HashMap;
use std::sync::Arc;

use tidings_cache::flight::Start;
use tidings_cache::{AnyCache, Domain, OneLoader};
use tidings_proto::id::NodeId;
use tidings_proto::lease::{self, LeaseCounts, LeaseKey, LeaseRef, Terms};
use tidings_proto::time::Tick;

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) node: NodeId,
    pub(super) ticket: u64,
    pub(super) key: LeaseKey,
}

/// What it is told. What a load brought is had of the node that it ran on.
pub(super) type Answer = lease::Answer<Asker, (NodeId, LeaseRef)>;

/// Leases, and the keys that are watched for them: as many.
#[derive(Default)]
pub(super) struct Home {
    table: lease::Leases<Asker>,
    watched: HashMap<LeaseKey, (Arc<dyn AnyCache>, Start)>,
    /// Caches that were looked at, and those of keys that are watched no more. The last of one may hold all of its
    /// entries.
    let_go: Vec<Arc<dyn AnyCache>>,
}

impl Home {
    pub(super) fn counts(&self) -> (LeaseCounts, (usize, usize)) {
        (self.table.counts(), self.table.len())
    }

    /// Caches to be dropped once nobody waits for this.
    pub(super) fn let_go(&mut self) -> Vec<Arc<dyn AnyCache>> {
        std::mem::take(&mut self.let_go)
    }

    /// Takes an asker; `None` if no leases of its cache, as it is there, are given here.
    pub(super) fn ask(
        &mut self,
        domain: &Domain,
        (asker, schema): (Asker, u32),
        until: Tick,
        now: Tick,
    ) -> Option<Vec<Answer>> {
        let cache = domain.cache_of(asker.key.cache)?;
        let settings = cache.settings();
        let given = settings.loads.one_loader == OneLoader::Cluster && settings.schema == schema;
        let terms = Terms { until, time: settings.loads.lease_time };
        self.let_go.push(cache);
        if !given {
            return None;
        }
        let key = asker.key.clone();
        Some(self.act(domain, &key, now, |table| table.ask(&key, asker, terms, now)))
    }

    /// Takes the end of a load: `holder` has what it brought, if anything.
    pub(super) fn ended(
        &mut self,
        domain: &Domain,
        (key, lease): (&LeaseKey, LeaseRef),
        holder: Option<&NodeId>,
        now: Tick,
    ) -> Vec<Answer> {
        self.act(domain, key, now, |table| match holder {
            Some(holder) => table.bring(key, lease.lease(), &(holder.clone(), lease), now),
            None => table.fail(key, lease.lease(), now),
        })
    }

    /// Ends leases whose time is over, or whose keys may have changed.
    pub(super) fn tick(&mut self, domain: &Domain, now: Tick) -> Vec<Answer> {
        let leased: Vec<_> = self.table.keys().cloned().collect();
        let mut answers: Vec<_> = leased.iter().filter_map(|key| self.revoke_if_changed(key, now)).collect();
        answers.extend(self.table.expire(now));
        leased.iter().for_each(|key| self.watch(domain, key));
        answers
    }

    fn act(
        &mut self,
        domain: &Domain,
        key: &LeaseKey,
        now: Tick,
        act: impl FnOnce(&mut lease::Leases<Asker>) -> Vec<Answer>,
    ) -> Vec<Answer> {
        let revoked = self.revoke_if_changed(key, now);
        let answers = act(&mut self.table);
        self.watch(domain, key);
        revoked.into_iter().chain(answers).collect()
    }

    fn revoke_if_changed(&mut self, key: &LeaseKey, now: Tick) -> Option<Answer> {
        let (cache, start) = self.watched.get(key)?;
        if cache.lease_stands(&key.bytes, *start) {
            return None;
        }
        self.unwatch(key);
        self.table.revoke(key, now)
    }

    /// Watches a key that is under lease, before its holder is told, and no other.
    fn watch(&mut self, domain: &Domain, key: &LeaseKey) {
        if !self.table.is_leased(key) {
            self.unwatch(key);
        } else if !self.watched.contains_key(key)
            && let Some(cache) = domain.cache_of(key.cache)
        {
            let start = cache.lease_begins(&key.bytes);
            self.watched.insert(key.clone(), (cache, start));
        }
    }

    fn unwatch(&mut self, key: &LeaseKey) {
        if let Some((cache, start)) = self.watched.remove(key) {
            cache.lease_ends(&key.bytes, start);
            self.let_go.push(cache);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tidings_cache::{Cache, CacheBuilder};
    use tidings_proto::codec;
    use tidings_proto::lease::{LeaseId, Said};

    use super::*;

    const HOME_LOG: u64 = 9;

    fn scene() -> (Domain, Cache<String, u64>, LeaseKey) {
        let domain = Domain::standalone();
        let builder =
            CacheBuilder::<String, u64>::new(&domain, "c").schema(3).lease_time(Duration::from_secs(5));
        let cache = builder.one_loader_per_cluster().open().unwrap();
        let bytes = Bytes::from(codec::encode("k").unwrap());
        let key = LeaseKey { cache: cache.erased().id(), bytes };
        (domain, cache, key)
    }

    fn asker(key: &LeaseKey, ticket: u64) -> (Asker, u32) {
        let node = format!("n{ticket}").parse().unwrap();
        (Asker { node, ticket, key: key.clone() }, 3)
    }

    fn told(answers: &[Answer]) -> Vec<(u64, Option<LeaseId>)> {
        let lease = |said: &Said<_>| if let Said::Load(id) = said { Some(*id) } else { None };
        answers.iter().map(|answer| (answer.to.ticket, lease(&answer.said))).collect()
    }

    #[test]
    fn whatever_changes_the_key_passes_its_lease_on_and_nothing_is_watched_afterwards() {
        let (domain, cache, key) = scene();
        let mut home = Home::default();
        let now = domain.clock().now();
        let ask = |home: &mut Home, ticket| {
            told(&home.ask(&domain, asker(&key, ticket), Tick::FOREVER, now).unwrap())
        };
        assert_eq!(ask(&mut home, 1), [(1, Some(LeaseId(1)))]);
        let changes: [fn(&Cache<String, u64>); 4] = [
            |cache| drop(cache.remove(&"k".to_owned()).unwrap()),
            |cache| drop(cache.insert("k".to_owned(), 1).unwrap()),
            |cache| drop(cache.invalidate_prefix("k").unwrap()),
            |cache| drop(cache.clear().unwrap()),
        ];
        for (ticket, change) in (2..).zip(changes) {
            assert_eq!((ask(&mut home, ticket), cache.erased().flights()), (vec![], 1));
            assert_eq!(told(&home.tick(&domain, now)), [], "nothing has changed");
            change(&cache);
            assert_eq!(told(&home.tick(&domain, now)), [(ticket, Some(LeaseId(ticket)))]);
        }
        // What the first one brings now is too old, and the last one's is not.
        let (node, lease) = (asker(&key, 1).0.node, |id| LeaseRef { home: HOME_LOG, id });
        assert_eq!(told(&home.ended(&domain, (&key, lease(1)), Some(&node), now)), []);
        assert_eq!(ask(&mut home, 6), []);
        let brought = home.ended(&domain, (&key, lease(5)), Some(&node), now);
        assert!(matches!(&brought[..], [Answer { said: Said::Brought((from, _), _), .. }] if *from == node));
        let (counts, open) = home.counts();
        assert_eq!((counts.granted, counts.revoked, counts.shared, counts.late, open), (5, 4, 1, 1, (0, 0)));
        assert_eq!((home.watched.len(), cache.erased().flights()), (0, 0));
    }

    #[test]
    fn leases_are_given_of_caches_that_are_open_so_and_of_no_others() {
        let (domain, cache, key) = scene();
        let mut home = Home::default();
        let now = domain.clock().now();
        let (known, _) = asker(&key, 1);
        assert_eq!(home.ask(&domain, (known.clone(), 4), Tick::FOREVER, now), None, "of another schema");
        let other = CacheBuilder::<String, u64>::new(&domain, "d").open().unwrap();
        let of_other = LeaseKey { cache: other.erased().id(), ..key };
        assert_eq!(home.ask(&domain, (asker(&of_other, 1).0, 0), Tick::FOREVER, now), None);
        assert!(home.ask(&domain, (known.clone(), 3), Tick::FOREVER, now).is_some());
        assert_eq!(home.let_go().len(), 3, "nothing is dropped by who asks and has the lock");
        cache.close();
        assert_eq!(home.ask(&domain, (known, 3), Tick::FOREVER, now), None);
        assert_eq!(told(&home.tick(&domain, now)), []);
        assert_eq!(home.let_go().len(), 1, "who has the lock drops it");
        assert_eq!(home.let_go().len(), 0);
        assert_eq!(home.counts().1, (0, 0), "a lease of a cache that was closed is revoked");
    }
}
