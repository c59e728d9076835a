//! The system of record: the truth that caches copy, and the judge of what they answer.
//!
//! Every key has a version, counted from 0. A write *commits* when the version changes here and *returns* when the
//! writer's cache has been told as well. A read is stale if it answers with a version older than one whose write had
//! returned before the read began; it is as stale as the first such write is old.
//!
//! All moments are readings of one clock. A write notes its return after the fact and a read its begin before the
//! fact, so that a read that ran beside a write is never called stale for it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tidings_http::limits::VALUE_BYTES_MAX;
use tokio::time::Instant;

/// Locks over the keys: two orders of magnitude more than threads, so that these seldom meet.
const SHARDS: usize = 256;

/// Returns of writes kept per key, each 16 bytes. Staleness that reaches back beyond them is still found, and its
/// extent then given as at least the age of the newest one dropped.
const RETURNS_MAX: usize = 65_536;

/// A return is dropped once it is older than the bound by this much: no read takes so long.
const RETURNS_SLACK: Duration = Duration::from_secs(30);

/// First bytes of every value.
const MAGIC: [u8; 4] = *b"tdv1";

/// Bytes of a value before its padding: magic, run, hash of the key, version.
const HEADER_BYTES: usize = 4 + 3 * 8;

/// A version of a key's value, from 0.
pub(crate) type Version = u64;

/// A moment on the record's clock: nanoseconds since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

impl Moment {
    /// How long after the record was made.
    pub(crate) fn since_start(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// How long after an earlier moment; nothing if it is none.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A write that has committed, and has yet to return.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    /// The new version.
    pub(crate) version: Version,
    /// The new value.
    pub(crate) value: Bytes,
}

/// What an answer is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// No older than any write that had returned.
    Fresh,
    /// Older than a write that had returned so long before the read began.
    Stale(Duration),
    /// Not a value of this key from this record.
    Wrong,
}

type Shard = Mutex<HashMap<Box<str>, State>>;

/// The system of record.
#[derive(Debug)]
pub(crate) struct Record {
    shards: Box<[Shard]>,
    hasher: RandomState,
    /// Tells values of this run from those that an earlier one left behind.
    run: u64,
    started: Instant,
    kept: Duration,
}

#[derive(Debug, Default)]
struct State {
    version: Version,
    /// Writes that have returned: versions and moments both rise. A write that returned after a newer one is not
    /// here, for whatever is older than it was made stale by the newer one, and earlier.
    returned: VecDeque<(Version, Moment)>,
    /// The newest return dropped.
    dropped: Option<(Version, Moment)>,
}

impl Record {
    /// An empty record: every key is at version 0. `bound` is the staleness that answers will be held to.
    pub(crate) fn new(bound: Duration) -> Self {
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            run: hasher.hash_one("run"),
            hasher,
            started: Instant::now(),
            kept: bound + RETURNS_SLACK,
        }
    }

    /// This moment.
    pub(crate) fn now(&self) -> Moment {
        Moment(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The current value of a key, as a loader gets it.
    pub(crate) fn load(&self, key: &str, size: u32) -> Bytes {
        let version = self.shard(key).lock().get(key).map_or(0, |state| state.version);
        self.value(key, version, size)
    }

    /// Writes: from here on, loads give the new value.
    pub(crate) fn commit(&self, key: &str, size: u32) -> Committed {
        let version = {
            let mut shard = self.shard(key).lock();
            if !shard.contains_key(key) {
                shard.insert(key.into(), State::default());
            }
            shard.get_mut(key).map_or(0, |state| {
                state.version += 1;
                state.version
            })
        };
        Committed { version, value: self.value(key, version, size) }
    }

    /// Notes that a write has returned; to be called after it has.
    pub(crate) fn returned(&self, key: &str, version: Version) {
        let mut shard = self.shard(key).lock();
        // Read under the lock, so that moments rise.
        let now = self.now();
        let Some(state) = shard.get_mut(key) else { return };
        if state.newest().is_some_and(|(newest, _)| newest >= version) {
            return;
        }
        state.returned.push_back((version, now));
        let old = |(_, moment): &(Version, Moment)| now.since(*moment) > self.kept;
        while state.returned.len() > RETURNS_MAX
            || (state.returned.len() > 1 && state.returned.front().is_some_and(old))
        {
            state.dropped = state.returned.pop_front();
        }
    }

    /// Judges an answer to a read of `key` that began at `begun`.
    pub(crate) fn judge(&self, key: &str, value: &[u8], begun: Moment) -> Verdict {
        let Some(version) = self.version_in(key, value) else { return Verdict::Wrong };
        let shard = self.shard(key).lock();
        let Some(state) = shard.get(key) else {
            return if version == 0 { Verdict::Fresh } else { Verdict::Wrong };
        };
        if version > state.version {
            return Verdict::Wrong;
        }
        state
            .first_return_above(version)
            .filter(|moment| *moment < begun)
            .map_or(Verdict::Fresh, |moment| Verdict::Stale(begun.since(moment)))
    }

    /// Whether a value is any other than the current one.
    pub(crate) fn differs(&self, key: &str, value: &[u8]) -> bool {
        let version = self.shard(key).lock().get(key).map_or(0, |state| state.version);
        self.version_in(key, value) != Some(version)
    }

    /// Every key that was ever written. The others cannot differ: they have but one version.
    pub(crate) fn written(&self) -> Vec<String> {
        let keys = |shard: &Shard| -> Vec<String> {
            shard.lock().keys().map(|key| key.clone().into_string()).collect()
        };
        self.shards.iter().flat_map(keys).collect()
    }

    fn shard(&self, key: &str) -> &Shard {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    fn value(&self, key: &str, version: Version, size: u32) -> Bytes {
        let size = (size as usize).clamp(HEADER_BYTES, VALUE_BYTES_MAX);
        let mut value = BytesMut::with_capacity(size);
        value.put_slice(&MAGIC);
        value.put_u64_le(self.run);
        value.put_u64_le(hash_of(key));
        value.put_u64_le(version);
        value.resize(size, b'.');
        value.freeze()
    }

    fn version_in(&self, key: &str, value: &[u8]) -> Option<Version> {
        let (magic, rest) = value.split_first_chunk::<4>()?;
        let (run, rest) = rest.split_first_chunk::<8>()?;
        let (hash, rest) = rest.split_first_chunk::<8>()?;
        let (version, _) = rest.split_first_chunk::<8>()?;
        let own = *magic == MAGIC
            && u64::from_le_bytes(*run) == self.run
            && u64::from_le_bytes(*hash) == hash_of(key);
        own.then(|| u64::from_le_bytes(*version))
    }
}

impl State {
    fn newest(&self) -> Option<(Version, Moment)> {
        self.returned.back().copied().or(self.dropped)
    }

    /// When the first write returned that made a version stale.
    fn first_return_above(&self, version: Version) -> Option<Moment> {
        if let Some((_, moment)) = self.dropped.filter(|(dropped, _)| *dropped > version) {
            return Some(moment);
        }
        let first = self.returned.partition_point(|(returned, _)| *returned <= version);
        self.returned.get(first).map(|(_, moment)| *moment)
    }
}

fn hash_of(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(3);

    fn write(record: &Record, key: &str) -> Bytes {
        let committed = record.commit(key, 0);
        record.returned(key, committed.version);
        committed.value
    }

    async fn pause(milliseconds: u64) {
        tokio::time::advance(Duration::from_millis(milliseconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_older_than_a_returned_write_is_stale_since_that_write() {
        let record = Record::new(BOUND);
        let old = record.load("k", 100);
        write(&record, "k");
        pause(50).await;
        write(&record, "k");
        pause(20).await;
        assert_eq!(record.judge("k", &old, record.now()), Verdict::Stale(Duration::from_millis(70)));
        assert_eq!(record.judge("k", &record.load("k", 7), record.now()), Verdict::Fresh);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_has_not_returned_makes_nothing_stale() {
        let record = Record::new(BOUND);
        let old = record.load("k", 0);
        let committed = record.commit("k", 0);
        pause(10).await;
        assert_eq!(record.judge("k", &old, record.now()), Verdict::Fresh);
        let begun = record.now();
        pause(10).await;
        record.returned("k", committed.version);
        assert_eq!(record.judge("k", &old, begun), Verdict::Fresh, "it returned after the read began");
        pause(10).await;
        assert_eq!(record.judge("k", &old, record.now()), Verdict::Stale(Duration::from_millis(10)));
    }

    #[tokio::test(start_paused = true)]
    async fn writes_that_return_out_of_order_are_judged_by_the_first_newer_return() {
        let record = Record::new(BOUND);
        let first = record.commit("k", 0);
        let second = record.commit("k", 0);
        record.returned("k", second.version);
        pause(10).await;
        record.returned("k", first.version);
        pause(5).await;
        assert_eq!(record.judge("k", &first.value, record.now()), Verdict::Stale(Duration::from_millis(15)));
    }

    #[tokio::test(start_paused = true)]
    async fn old_returns_are_dropped_and_staleness_is_still_found() {
        let record = Record::new(BOUND);
        let old = record.load("k", 0);
        for _ in 0..100 {
            write(&record, "k");
            pause(1_000).await;
        }
        let kept = record.shard("k").lock()["k"].returned.len();
        assert!(kept < 40, "{kept} returns are kept");
        let Verdict::Stale(age) = record.judge("k", &old, record.now()) else { panic!("not stale") };
        assert!(age > BOUND, "{age:?}");
    }

    #[test]
    fn values_of_other_keys_runs_or_the_future_are_wrong() {
        let (record, other) = (Record::new(BOUND), Record::new(BOUND));
        let now = record.now();
        assert_eq!(record.judge("k", &record.load("l", 0), now), Verdict::Wrong);
        assert_eq!(record.judge("k", &other.load("k", 0), now), Verdict::Wrong);
        assert_eq!(record.judge("k", b"", now), Verdict::Wrong);
        assert_eq!(record.judge("k", &record.value("k", 1, 0), now), Verdict::Wrong);
    }

    #[test]
    fn values_have_the_size_of_the_object() {
        let record = Record::new(BOUND);
        for (size, expected) in [(0, HEADER_BYTES), (500, 500), (u32::MAX, VALUE_BYTES_MAX)] {
            assert_eq!(record.load("k", size).len(), expected);
        }
    }

    #[test]
    fn only_the_current_version_does_not_differ() {
        let record = Record::new(BOUND);
        let before = record.load("k", 0);
        assert!(!record.differs("k", &before));
        assert!(record.written().is_empty());
        record.commit("k", 0);
        assert!(record.differs("k", &before), "a commit counts, whether or not it has returned");
        assert!(!record.differs("k", &record.load("k", 9)));
        assert_eq!(record.written(), ["k"]);
    }
}
