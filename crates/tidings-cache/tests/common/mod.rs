//! Nodes wired by hand in one process: each reads the others' change logs, as a connection would.

#![allow(dead_code, reason = "each test binary uses its own part of this module")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, poll};
use tidings_cache::{
    Cache, CacheBuilder, Clock, Domain, Event, EventKind, Item, Key, ManualClock, Operation, ReadOrFill,
    Subscription, TOKEN_TIME, Target,
};
use tidings_proto::follower::Applied;
use tidings_proto::freshness::Published;
use tidings_proto::id::{FIRST, Incarnation, LaneId, Lanes, Origin};
use tidings_proto::log::{ChangeLog, Cursor, Read, Retention};
use tidings_proto::record::{Batch, BatchRef, Unsound};
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

/// The bound that every node of these tests states.
pub(crate) const MAX_STALENESS: Duration = Duration::from_secs(3);

/// Bytes that one read of a log hands out: small, so that changes travel in several batches.
const READ_BYTES: usize = 4 << 10;

/// A node without a network.
pub(crate) struct Node {
    pub(crate) domain: Domain,
    pub(crate) clock: ManualClock,
    pub(crate) origin: Arc<Origin>,
}

impl Node {
    /// A node of this name with the default log, and nothing to doubt.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, Lanes::default(), Retention::default())
    }

    pub(crate) fn with(name: &str, lanes: Lanes, retention: Retention) -> Self {
        let (clock, manual) = Clock::manual();
        let origin = Origin { node: name.parse().unwrap(), incarnation: Incarnation(1) };
        let log = Arc::new(ChangeLog::new(lanes, retention));
        let domain = Domain::new(clock, log, origin, MAX_STALENESS);
        let node = Self { origin: domain.origin(), domain, clock: manual };
        node.fresh_forever();
        node
    }

    /// Publishes that nothing is in doubt.
    pub(crate) fn fresh_forever(&self) {
        self.domain.publish(Published { fresh_until: Tick::FOREVER, floor: Tick::NEVER });
    }

    /// Publishes that everything up to now is confirmed, and nothing later.
    pub(crate) fn fresh_until_now(&self) {
        self.domain.publish(Published { fresh_until: self.clock.now(), floor: Tick::NEVER });
    }

    /// Describes a cache of this node.
    pub(crate) fn cache<K: Key, V: Clone + Send + Sync + 'static>(&self, name: &str) -> CacheBuilder<K, V> {
        CacheBuilder::new(&self.domain, name)
    }

    /// Opens the cache `users` with its defaults.
    pub(crate) fn users(&self) -> Cache<String, u64> {
        self.cache("users").open().unwrap()
    }

    /// How many records its log holds that were ever appended.
    pub(crate) fn logged(&self) -> u64 {
        self.domain.log().heads().iter().sum()
    }
}

/// What the log of a node hands to one follower.
#[derive(Default)]
struct Following {
    cursors: Vec<Cursor>,
}

/// Carries every node's changes to every other.
pub(crate) struct Wire<'a> {
    nodes: Vec<&'a Node>,
    following: Vec<Vec<Following>>,
    /// Lanes that had to be fenced because their log was overrun.
    pub(crate) resets: u64,
    /// Changes that were applied, once per follower.
    pub(crate) changes: u64,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(nodes: impl IntoIterator<Item = &'a Node>) -> Self {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let cursors = |node: &&Node| Following {
            cursors: node.domain.log().lanes().ids().map(|_| Cursor { next: FIRST }).collect(),
        };
        let following = nodes.iter().map(|_| nodes.iter().map(cursors).collect()).collect();
        Self { nodes, following, resets: 0, changes: 0 }
    }

    /// Applies everywhere what is not applied yet.
    pub(crate) fn carry(&mut self) {
        for to in 0..self.nodes.len() {
            for from in 0..self.nodes.len() {
                if from != to {
                    self.carry_between(from, to);
                }
            }
        }
    }

    /// Applies at `to` what `from` has logged.
    pub(crate) fn carry_between(&mut self, from: usize, to: usize) {
        let (source, target) = (self.nodes[from], self.nodes[to]);
        let log = source.domain.log();
        for lane in log.lanes().ids() {
            let cursor = &mut self.following[to][from].cursors[lane.index()];
            loop {
                let mut batches = Vec::new();
                match log.read(lane, cursor, READ_BYTES, &mut batches) {
                    Read::Some => {
                        for batch in batches {
                            let applied = apply(&target.domain, &source.origin, log.lanes(), &batch);
                            self.changes += applied.unwrap().changes;
                        }
                    }
                    Read::Overrun(_) => {
                        self.resets += 1;
                        target.domain.fence_uncertain(log.lanes().slots_of(lane));
                    }
                    Read::Empty | Read::End => break,
                }
            }
        }
    }
}

/// The body of the frame that carries a batch.
pub(crate) fn body(batch: &Batch) -> Vec<u8> {
    [&batch.head()[..], &batch.records[..]].concat()
}

/// Applies a batch at a node as if it had come over the network.
pub(crate) fn apply(
    domain: &Domain,
    origin: &Arc<Origin>,
    lanes: Lanes,
    batch: &Batch,
) -> Result<Applied, Unsound> {
    let body = body(batch);
    domain.apply(origin, &BatchRef::parse(&body, lanes)?, batch.first)
}

/// What a subscription has to yield now.
pub(crate) fn items<K: Key>(subscription: &mut Subscription<K>) -> Vec<Item<Event<K>>> {
    std::iter::from_fn(|| subscription.next().now_or_never().flatten()).collect()
}

/// The events that a subscription has to yield now; it must not have lost any.
pub(crate) fn events<K: Key>(subscription: &mut Subscription<K>) -> Vec<Event<K>> {
    let event = |item| match item {
        Item::Event(event) => event,
        Item::Lagged { missed } => panic!("{missed} events were lost"),
        Item::Fenced { slots } => panic!("{slots:?} were fenced"),
    };
    items(subscription).into_iter().map(event).collect()
}

/// Kind, operation and target of each event.
pub(crate) fn told<K: Key + Clone>(
    subscription: &mut Subscription<K>,
) -> Vec<(EventKind, Operation, Target<K>)> {
    events(subscription)
        .into_iter()
        .map(|event| (event.kind, event.operation, event.target().clone()))
        .collect()
}

/// The kinds of the events.
pub(crate) fn kinds<K: Key>(subscription: &mut Subscription<K>) -> Vec<EventKind> {
    events(subscription).into_iter().map(|event| event.kind).collect()
}

/// Two callers of one key that is not cached: the second takes what the loader of the first brings.
pub(crate) async fn assert_share_a_load(users: &Cache<String, u64>) {
    let k = key("k");
    let (deliver, source) = oneshot::channel();
    let mut leader = std::pin::pin!(users.get_or_load(&k, || source));
    assert!(poll!(leader.as_mut()).is_pending());
    let mut joined = std::pin::pin!(users.get_or_load(&k, || async { Err("a second loader") }));
    assert!(poll!(joined.as_mut()).is_pending());
    deliver.send(1).unwrap();
    assert_eq!((leader.await.unwrap(), joined.await.unwrap(), users.counts().loads), (1, 1, 1));
}

/// A string key.
pub(crate) fn key(name: &str) -> String {
    name.to_owned()
}

/// So many string keys.
pub(crate) fn many(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("key-{n}")).collect()
}

/// Polls until `holds`, for at most a minute.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::system();
    let deadline = clock.now().after(Duration::from_secs(60));
    while !holds() {
        assert!(clock.now() < deadline, "not in a minute: {what}");
        std::thread::yield_now();
    }
}

/// Fills a key that is absent under a token, as a read does: no event, no record.
pub(crate) fn fill<V: Clone + Send + Sync + 'static>(cache: &Cache<String, V>, name: &str, value: V) {
    let ReadOrFill::Miss(token) = cache.get_or_token(&key(name), TOKEN_TIME).unwrap() else {
        panic!("{name} is there")
    };
    assert!(cache.fill(&key(name), value, token, None).unwrap(), "{name} was not stored");
}

/// What the tests of [`Event`] compare.
pub(crate) fn one(name: &str) -> Target<String> {
    Target::Key(key(name))
}

/// All that a log holds of a lane, in one batch.
pub(crate) fn read(log: &ChangeLog, lane: LaneId) -> Batch {
    let mut batches = Vec::new();
    let mut cursor = Cursor { next: FIRST };
    log.read(lane, &mut cursor, usize::MAX, &mut batches);
    assert_eq!(batches.len(), 1);
    batches.remove(0)
}

/// The kinds of the events that a subscription has to yield now, whatever was fenced between them.
pub(crate) fn kinds_despite_fences<K: Key>(subscription: &mut Subscription<K>) -> Vec<EventKind> {
    let kind = |item: Item<Event<K>>| match item {
        Item::Event(event) => Some(event.kind),
        Item::Fenced { .. } => None,
        Item::Lagged { missed } => panic!("{missed} events were lost"),
    };
    items(subscription).into_iter().filter_map(kind).collect()
}
