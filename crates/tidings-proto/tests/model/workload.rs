//! What applications do: read through the cache, write the system of record and then remove.

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::record::{Draft, DraftTarget, Parts};

use super::cache::{CACHE, encoded, slot};
use super::world::{Event, Task, World};
use super::{KEYS, Ms, WRITE_HORIZON};

/// Keys that are read and written often; the others are cached for long.
const HOT_KEYS: usize = KEYS / 2;

impl World {
    fn choose_key(&mut self, cold_percent: u64) -> usize {
        if self.rng.percent(cold_percent) {
            HOT_KEYS + self.rng.index(KEYS - HOT_KEYS)
        } else {
            self.rng.index(HOT_KEYS)
        }
    }

    /// A hit, judged; or a load.
    pub(crate) fn read(&mut self, node: usize) {
        let delay = self.rng.range(1, 9);
        self.task(node, delay, Task::Read);
        let key = self.choose_key(4);
        let reader = (node, self.nodes[node].life);
        let tick = self.tick(node);
        if self.judged_hit(node, key) {
            return;
        }
        if let Some(flight) = self.process(node).cache.begin_load(key, tick) {
            self.stats.loads += 1;
            let long = if self.rng.percent(3) { 300 } else { 25 };
            let delay = self.rng.range(0, long);
            self.push(self.now + delay, Event::Snapshot { reader, key, flight });
        }
    }

    /// Judges what a hit on any key would return: every read that could be, not only those that are.
    pub(crate) fn scan(&mut self, node: usize) {
        let delay = self.rng.range(5, 16);
        self.task(node, delay, Task::Scan);
        for key in 0..KEYS {
            self.judged_hit(node, key);
        }
    }

    fn judged_hit(&mut self, node: usize, key: usize) -> bool {
        let reader = (node, self.nodes[node].life);
        let tick = self.tick(node);
        let process = self.process(node);
        let Some(version) = process.cache.hit(key, process.published, tick) else { return false };
        self.stats.hits += 1;
        let excused = |writer| self.is_excused(node, writer);
        match self.truth.judge(reader, key, version, self.now, excused) {
            Ok(age) => self.stats.oldest_hit = self.stats.oldest_hit.max(age),
            Err(what) => self.fail(what),
        }
        true
    }

    pub(crate) fn loaded(&mut self, node: usize, key: usize, flight: u64, version: usize) {
        let stored = self.process(node).cache.finish_load(key, flight, version);
        self.stats.loads_ended += u64::from(!stored);
        if stored {
            self.note(|| format!("n{node} stores version {version} of key {key}"));
        }
    }

    /// Begins a write, unless its node may not count on being heard yet, or all rest.
    pub(crate) fn write(&mut self, node: usize) {
        let pause = if self.rng.percent(20) { 1 } else { self.rng.range(10, 60) };
        self.task(node, pause, Task::Write);
        if self.now >= self.lull_until && self.rng.percent(1) {
            self.lull_until = self.now + self.rng.range(200, 1_500);
        }
        if self.quiet() || self.now < self.lull_until || self.waits_to_be_known(node) {
            return;
        }
        if self.process(node).leaving.is_none() {
            let longest = if self.rng.percent(5) { WRITE_HORIZON } else { 15 };
            self.begin_write(node, longest);
        }
    }

    /// Begins a write that is committed after at most `longest`.
    pub(crate) fn begin_write(&mut self, node: usize, longest: Ms) {
        let key = self.choose_key(15);
        let id = self.truth.begin((node, self.nodes[node].life), key);
        self.process(node).open_writes += 1;
        let commit = self.rng.range(0, longest);
        let back = self.rng.range(0, 8);
        self.push(self.now + commit, Event::Commit(id));
        self.task(node, commit + back, Task::Append(id));
    }

    /// The write has been committed: removes, tells everyone, returns.
    pub(crate) fn append(&mut self, node: usize, id: usize) {
        let key = self.truth.write(id).key;
        let encoded = encoded(key);
        let draft = Draft::new(Parts {
            kind: EventKind::Deleted,
            operation: Operation::Remove,
            ignorable: false,
            cache: CACHE,
            slot: slot(key),
            version: None,
            metadata: &[],
            value: None,
            target: DraftTarget::Key(&encoded),
        });
        let now = self.now;
        let process = self.process(node);
        process.open_writes -= 1;
        process.cache.invalidate(key, true);
        let appended = process.log.append(slot(key), now, &draft.expect("a short key"));
        let appended = appended.expect("the log is sealed only when no write is open");
        self.truth.appended(id, now);
        self.note(|| format!("n{node} appends {:?} {} for key {key}", appended.lane, appended.sequence));
        appended.waiters.wake();
        self.stats.writes += 1;
        self.pump_woken(node);
    }
}
