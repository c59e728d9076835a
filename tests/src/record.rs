//! A system of record with versions, and the judge of what caches answer about it.
//!
//! Whoever reads or writes through a node tells the record when: a read when it began, a write when it had returned.
//! A hit is *stale* if a newer write had returned before the read began. It is *over the bound* if that write had
//! returned longer than the bound before, and *known better* if the answering node had applied a newer write before the
//! read began. The last two are violations, and need no luck to be told from slow messages: both ends are moments of
//! this process, taken so that every delay excuses the cache.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// Violations that a summary describes; the others are only counted.
const DESCRIBED_MAX: usize = 10;

/// How often a key was written; 0 is never.
pub type Version = u64;

/// A hit, as its reader saw it.
#[derive(Clone, Debug)]
pub struct Hit {
    /// Which key.
    pub key: String,
    /// Which node answered.
    pub node: usize,
    /// Just before the request was sent.
    pub begun: Duration,
    /// What the answer held.
    pub version: Version,
    /// Whether the answer said that it may be stale.
    pub marked: bool,
}

/// What the record says about a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No newer write had returned.
    Current,
    /// One had, this long before the read began.
    Stale(Duration),
    /// The answer said so itself.
    Marked,
    /// Staler than the bound.
    OverBound(Duration),
    /// The answering node itself had applied a newer write.
    KnownBetter(Version),
    /// Nobody has written that version.
    Invented,
}

impl Verdict {
    /// Whether a promise was broken.
    #[must_use]
    pub fn is_violation(self) -> bool {
        matches!(self, Self::OverBound(_) | Self::KnownBetter(_) | Self::Invented)
    }
}

/// What all hits came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Hits judged.
    pub hits: u64,
    /// Hits older than a write that had returned, none of them marked. Expected while a change travels.
    pub stale: u64,
    /// Hits that said so.
    pub marked: u64,
    /// The greatest staleness among unmarked hits.
    pub staleness_max: Duration,
    /// Broken promises.
    pub violations: u64,
    /// The first few of them.
    pub described: Vec<String>,
}

/// The truth about every key.
#[derive(Debug)]
pub struct Record {
    bound: Duration,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<String, Key>,
    summary: Summary,
}

#[derive(Debug, Default)]
struct Key {
    written: Version,
    /// Versions whose write has returned: when, and which nodes had applied it then.
    returned: BTreeMap<Version, Returned>,
}

#[derive(Debug)]
struct Returned {
    at: Duration,
    applied: BTreeSet<usize>,
}

impl Record {
    /// A record without keys, for caches that promise this bound.
    #[must_use]
    pub fn new(bound: Duration) -> Self {
        Self { bound, started: Instant::now(), state: Mutex::default() }
    }

    /// Now, on the clock of all moments that this takes.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Writes a key: its new version is the truth from here on. Caches have not heard of it yet.
    pub fn write(&self, key: &str) -> Version {
        let mut state = self.lock();
        let key = state.keys.entry(key.to_owned()).or_default();
        key.written += 1;
        key.written
    }

    /// Reads the truth.
    #[must_use]
    pub fn load(&self, key: &str) -> Version {
        self.lock().keys.get(key).map_or(0, |key| key.written)
    }

    /// Notes that the cluster has accepted the invalidation for a write, and which nodes had applied it: the one that
    /// took it, and those that its receipt named.
    pub fn returned(
        &self,
        key: &str,
        version: Version,
        at: Duration,
        applied: impl IntoIterator<Item = usize>,
    ) {
        let applied = applied.into_iter().collect();
        self.lock()
            .keys
            .entry(key.to_owned())
            .or_default()
            .returned
            .insert(version, Returned { at, applied });
    }

    /// Judges a hit and counts it.
    pub fn judge(&self, hit: &Hit) -> Verdict {
        let mut state = self.lock();
        let verdict = match state.keys.get(&hit.key) {
            Some(key) => key.judge(hit, self.bound),
            None if hit.version == 0 => Verdict::Current,
            None => Verdict::Invented,
        };
        state.summary.count(hit, verdict);
        verdict
    }

    /// What all hits came to so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.lock().summary.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl Key {
    fn judge(&self, hit: &Hit, bound: Duration) -> Verdict {
        if hit.version > self.written {
            return Verdict::Invented;
        }
        if hit.marked {
            return Verdict::Marked;
        }
        let newer = || self.returned.range(hit.version + 1..).filter(|(_, returned)| returned.at < hit.begun);
        if let Some((version, _)) = newer().find(|(_, returned)| returned.applied.contains(&hit.node)) {
            return Verdict::KnownBetter(*version);
        }
        match newer().map(|(_, returned)| hit.begun - returned.at).max() {
            None => Verdict::Current,
            Some(staleness) if staleness > bound => Verdict::OverBound(staleness),
            Some(staleness) => Verdict::Stale(staleness),
        }
    }
}

impl Summary {
    fn count(&mut self, hit: &Hit, verdict: Verdict) {
        self.hits += 1;
        match verdict {
            Verdict::Stale(staleness) | Verdict::OverBound(staleness) => {
                self.stale += 1;
                self.staleness_max = self.staleness_max.max(staleness);
            }
            Verdict::KnownBetter(_) => self.stale += 1,
            Verdict::Marked => self.marked += 1,
            Verdict::Current | Verdict::Invented => {}
        }
        if verdict.is_violation() {
            self.violations += 1;
            if self.described.len() < DESCRIBED_MAX {
                self.described.push(format!("{verdict:?}: {hit:?}"));
            }
        }
    }

    /// Fails the test if any promise was broken.
    pub fn assert_kept(&self) {
        assert!(self.hits > 0, "no hit was judged: this run shows nothing");
        assert_eq!(self.violations, 0, "{:#?}", self.described);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(3);

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn hit(node: usize, begun: f64, version: Version) -> Hit {
        Hit { key: "k".to_owned(), node, begun: seconds(begun), version, marked: false }
    }

    /// Versions 1, 2, 3 written; 2 returned at 10 s on node 0, 3 not yet.
    fn record() -> Record {
        let record = Record::new(BOUND);
        assert_eq!([record.write("k"), record.write("k"), record.write("k")], [1, 2, 3]);
        record.returned("k", 2, seconds(10.0), [0]);
        record
    }

    #[test]
    fn a_write_that_has_not_returned_makes_nothing_stale() {
        assert_eq!(record().judge(&hit(1, 99.0, 2)), Verdict::Current);
        assert_eq!(record().judge(&hit(1, 10.0, 1)), Verdict::Current);
    }

    #[test]
    fn staleness_counts_from_the_return_to_the_beginning_of_the_read() {
        assert_eq!(record().judge(&hit(1, 12.5, 1)), Verdict::Stale(seconds(2.5)));
        assert_eq!(record().judge(&hit(1, 13.0, 1)), Verdict::Stale(BOUND));
        assert_eq!(record().judge(&hit(1, 13.5, 1)), Verdict::OverBound(seconds(3.5)));
    }

    #[test]
    fn the_oldest_newer_write_decides() {
        let record = record();
        record.returned("k", 3, seconds(9.0), [2]);
        assert_eq!(record.judge(&hit(1, 12.5, 1)), Verdict::OverBound(seconds(3.5)));
        assert_eq!(record.judge(&hit(1, 11.0, 2)), Verdict::Stale(seconds(2.0)));
    }

    #[test]
    fn a_node_may_not_forget_what_it_applied() {
        assert_eq!(record().judge(&hit(0, 10.1, 1)), Verdict::KnownBetter(2));
        assert_eq!(record().judge(&hit(0, 9.9, 1)), Verdict::Current);
    }

    #[test]
    fn a_marked_hit_breaks_no_promise() {
        assert_eq!(record().judge(&Hit { marked: true, ..hit(0, 99.0, 1) }), Verdict::Marked);
    }

    #[test]
    fn a_version_that_nobody_wrote_is_invented() {
        assert_eq!(record().judge(&hit(0, 9.0, 4)), Verdict::Invented);
        assert_eq!(record().judge(&Hit { key: "other".to_owned(), ..hit(0, 9.0, 1) }), Verdict::Invented);
    }

    #[test]
    fn the_summary_counts_and_describes_violations() {
        let record = record();
        for begun in [9.0, 12.0, 14.0] {
            record.judge(&hit(1, begun, 1));
        }
        let summary = record.summary();
        assert_eq!((summary.hits, summary.stale, summary.violations), (3, 2, 1));
        assert_eq!(summary.staleness_max, seconds(4.0));
        assert!(summary.described[0].starts_with("OverBound(4s)"), "{:?}", summary.described);
    }

    #[test]
    #[should_panic(expected = "no hit was judged")]
    fn a_run_without_hits_shows_nothing() {
        Record::new(BOUND).summary().assert_kept();
    }
}
