//! The flight table under every schedule that a randomised checker tries.
//!
//! The harness is the cache's critical sections and no more: the table under a lock, the slot's epoch as an atomic, a
//! map standing for moka, and a system of record whose version only rises. Property: nothing that is returned or stays
//! stored is older than an invalidation that had returned before the call began.

use std::panic::{AssertUnwindSafe, catch_unwind};

use shuttle::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;
use tidings_proto::hash::CacheId;

use super::*;
use crate::key::Encoded;

/// Schedules tried per check; the planted bugs are found within a few hundred.
const SCHEDULES: usize = 4_000;

/// Time stands still: epochs and flights alone decide here.
const NOW: Tick = Tick(1);

/// What the harness does wrong on purpose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// The epoch is read when the load has ended, not when it begins.
    LateEpoch,
    /// A load that an invalidation has ended can still be joined.
    JoinsEnded,
    /// A load that began before a fence is joined after it.
    JoinsAcrossFence,
    /// A store does not look whether its flight was ended.
    StoresEnded,
}

/// What callers of one load wait on.
#[derive(Default)]
struct Waiting {
    ended: Mutex<Option<u64>>,
    changed: Condvar,
}

struct Harness {
    planted: Planted,
    key: Encoded,
    shard: Mutex<Shard>,
    epoch: AtomicU32,
    /// The system of record.
    version: AtomicU64,
    /// The version that was current when the last finished invalidation began.
    settled: AtomicU64,
}

#[derive(Default)]
struct Shard {
    table: FlightTable<Arc<Waiting>>,
    /// Version and epoch of the entry.
    entry: Option<(u64, u32)>,
    /// Where the planted bug finds a load that was ended.
    last_load: Option<Arc<Waiting>>,
    /// The epoch at which the newest load began.
    last_epoch: u32,
}

impl Harness {
    fn new(planted: Planted) -> Arc<Self> {
        Arc::new(Self {
            planted,
            key: Encoded::new(CacheId(1), "k").unwrap(),
            shard: Mutex::default(),
            epoch: AtomicU32::new(1),
            version: AtomicU64::new(0),
            settled: AtomicU64::new(0),
        })
    }

    fn readable(&self, shard: &Shard) -> Option<u64> {
        let (version, epoch) = shard.entry?;
        (epoch == self.epoch.load(Ordering::SeqCst)).then_some(version)
    }

    /// As `get_or_load`.
    fn get_or_load(&self) -> u64 {
        let key = self.key.borrowed();
        let (start, waiting) = {
            let mut shard = self.shard.lock().unwrap();
            if let Some(version) = self.readable(&shard) {
                return version;
            }
            let epoch = self.epoch.load(Ordering::SeqCst);
            let joinable = match self.planted {
                Planted::JoinsAcrossFence => shard.last_epoch,
                _ => epoch,
            };
            let mut joined = shard.table.join(key, Joinable { epoch: joinable, after: Tick::NEVER });
            if self.planted == Planted::JoinsEnded {
                joined = shard.last_load.clone();
            }
            if let Some(waiting) = joined {
                drop(shard);
                return waiting.wait();
            }
            let waiting = Arc::<Waiting>::default();
            shard.last_load = Some(waiting.clone());
            shard.last_epoch = epoch;
            (shard.table.begin_load(key, epoch, NOW, waiting.clone()), waiting)
        };
        let version = self.load();
        {
            let mut shard = self.shard.lock().unwrap();
            let epoch = self.epoch.load(Ordering::SeqCst);
            // With the late epoch the comparison is one of an epoch with itself.
            let is_late = self.planted == Planted::LateEpoch;
            let (compared, stored) = if is_late { (start.epoch, epoch) } else { (epoch, start.epoch) };
            let sound = shard.table.finish(key, start, compared, NOW);
            if sound || self.planted == Planted::StoresEnded {
                shard.table.end_decisions(key);
                shard.entry = Some((version, stored));
            }
            shard.last_load.take_if(|last| Arc::ptr_eq(last, &waiting));
        }
        waiting.end(version);
        version
    }

    /// The user's loader: reads the truth, and takes its time to answer.
    fn load(&self) -> u64 {
        let version = self.version.load(Ordering::SeqCst);
        thread::yield_now();
        version
    }

    /// As `get`.
    fn get(&self) -> Option<u64> {
        self.readable(&self.shard.lock().unwrap())
    }

    /// A writer that changes the truth and then removes the key.
    fn write_and_remove(&self) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        {
            let mut shard = self.shard.lock().unwrap();
            shard.table.end(self.key.borrowed());
            shard.entry = None;
        }
        self.settled.fetch_max(version, Ordering::SeqCst);
    }

    /// A change elsewhere that this node only knows it may have missed.
    fn write_and_fence(&self) {
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.settled.fetch_max(version, Ordering::SeqCst);
    }

    /// As `write_through`.
    fn write_through(&self) {
        let key = self.key.borrowed();
        let start = {
            let mut shard = self.shard.lock().unwrap();
            let epoch = self.epoch.load(Ordering::SeqCst);
            shard.table.begin_guard(key, epoch, NOW, Purpose::Write)
        };
        let version = self.version.fetch_add(1, Ordering::SeqCst) + 1;
        thread::yield_now();
        {
            let mut shard = self.shard.lock().unwrap();
            let epoch = self.epoch.load(Ordering::SeqCst);
            let sound = shard.table.finish(key, start, epoch, NOW);
            shard.table.end(key);
            shard.entry = sound.then_some((version, start.epoch));
        }
        self.settled.fetch_max(version, Ordering::SeqCst);
    }

    /// A caller that gives up half way.
    fn cancelled_load(&self) {
        let key = self.key.borrowed();
        let mut shard = self.shard.lock().unwrap();
        let epoch = self.epoch.load(Ordering::SeqCst);
        if self.readable(&shard).is_some()
            || shard.table.join(key, Joinable { epoch, after: Tick::NEVER }).is_some()
        {
            return;
        }
        let waiting = Arc::<Waiting>::default();
        let start = shard.table.begin_load(key, epoch, NOW, waiting.clone());
        drop(shard);
        thread::yield_now();
        let mut shard = self.shard.lock().unwrap();
        shard.table.finish(key, start, self.epoch.load(Ordering::SeqCst), NOW);
        drop(shard);
        // In the cache those who joined load again; here nobody can have joined but through this very load.
        waiting.end(self.version.load(Ordering::SeqCst));
    }

    fn judge(&self, bound: u64, version: u64) {
        assert!(version >= bound, "stale: got {version}, {bound} was settled before the call");
    }

    fn read(&self) {
        for _ in 0..2 {
            let bound = self.settled.load(Ordering::SeqCst);
            let version = self.get_or_load();
            self.judge(bound, version);
            let bound = self.settled.load(Ordering::SeqCst);
            if let Some(version) = self.get() {
                self.judge(bound, version);
            }
        }
    }

    /// What is left when all is quiet is the truth.
    fn finish(&self) {
        if let Some(version) = self.get() {
            assert_eq!(version, self.version.load(Ordering::SeqCst), "what stays cached is not the truth");
        }
        assert_eq!(self.shard.lock().unwrap().table.len(), 0, "a flight was left behind");
    }
}

impl Waiting {
    fn wait(&self) -> u64 {
        let mut ended = self.ended.lock().unwrap();
        loop {
            if let Some(version) = *ended {
                return version;
            }
            ended = self.changed.wait(ended).unwrap();
        }
    }

    fn end(&self, version: u64) {
        self.ended.lock().unwrap().get_or_insert(version);
        self.changed.notify_all();
    }
}

type Act = fn(&Harness);

fn explore(planted: Planted, acts: &'static [Act]) {
    let run = move || {
        let harness = Harness::new(planted);
        let threads: Vec<_> = acts
            .iter()
            .map(|act| {
                let (harness, act) = (harness.clone(), *act);
                thread::spawn(move || act(&harness))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        harness.finish();
    };
    shuttle::check_random(run, SCHEDULES);
    shuttle::check_pct(run, SCHEDULES / 4, 3);
}

const READERS_AND_REMOVER: &[Act] = &[Harness::read, Harness::read, Harness::write_and_remove];
const READERS_AND_FENCE: &[Act] = &[Harness::read, Harness::read, Harness::write_and_fence];
const EVERYTHING: &[Act] = &[
    Harness::read,
    Harness::read,
    Harness::write_and_remove,
    Harness::write_and_fence,
    Harness::write_through,
    Harness::write_through,
    Harness::cancelled_load,
];

/// Whether the checker finds a schedule that breaks the property, and for no other reason.
fn is_found(planted: Planted, acts: &'static [Act]) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| explore(planted, acts))) else { return false };
    let message = panic.downcast::<String>().expect("a panic with a message");
    assert!(message.contains("stale") || message.contains("not the truth"), "{message}");
    true
}

#[test]
fn nothing_returned_or_kept_is_older_than_a_removal_that_had_returned() {
    explore(Planted::Nothing, READERS_AND_REMOVER);
}

#[test]
fn nothing_returned_or_kept_is_older_than_a_fence_that_had_returned() {
    explore(Planted::Nothing, READERS_AND_FENCE);
}

#[test]
fn loads_writes_removals_fences_and_cancellations_keep_the_property_together() {
    explore(Planted::Nothing, EVERYTHING);
}

#[test]
fn an_epoch_read_after_the_load_is_found() {
    assert!(is_found(Planted::LateEpoch, READERS_AND_FENCE));
}

#[test]
fn a_reader_that_joins_an_ended_flight_is_found() {
    assert!(is_found(Planted::JoinsEnded, READERS_AND_REMOVER));
}

#[test]
fn a_reader_that_joins_a_flight_of_before_a_fence_is_found() {
    assert!(is_found(Planted::JoinsAcrossFence, READERS_AND_FENCE));
}

#[test]
fn a_store_after_its_flight_was_ended_is_found() {
    assert!(is_found(Planted::StoresEnded, READERS_AND_REMOVER));
}
