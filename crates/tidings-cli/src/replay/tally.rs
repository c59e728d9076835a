//! Counting what happens, from any thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use super::record::Verdict;
use super::target::Source;

/// Stale reads described one by one in the report; all are counted.
const VIOLATIONS_MAX: usize = 10;

/// Counts of one run.
#[derive(Debug)]
pub(crate) struct Tally {
    /// By node.
    pub(crate) nodes: Box<[NodeTally]>,
    names: Box<[String]>,
    bound: Duration,
    stale: AtomicU64,
    stale_after_bound: AtomicU64,
    wrong: AtomicU64,
    staleness_max_ns: AtomicU64,
    violations: Mutex<Vec<Violation>>,
}

/// Counts of one node.
#[derive(Debug, Default)]
pub(crate) struct NodeTally {
    hits: AtomicU64,
    marked: AtomicU64,
    loads: AtomicU64,
    writes: AtomicU64,
    errors: AtomicU64,
}

/// Counts at a moment, of one node or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the count of its name")]
pub(crate) struct Counts {
    pub(crate) hits: u64,
    pub(crate) marked: u64,
    pub(crate) loads: u64,
    pub(crate) writes: u64,
    pub(crate) errors: u64,
}

/// What was stale at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the count of its name")]
pub(crate) struct Staleness {
    pub(crate) reads: u64,
    pub(crate) after_bound: u64,
    pub(crate) wrong: u64,
    pub(crate) max: Duration,
}

/// A read that should not have been answered so.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Violation {
    /// Name of the node.
    pub(crate) node: String,
    /// The key.
    pub(crate) key: Box<str>,
    /// How stale; none for a value that is not the key's at all.
    pub(crate) staleness_ms: Option<f64>,
    /// When the read began, since the start of the run.
    pub(crate) at_ms: f64,
}

impl Tally {
    /// Nothing counted yet.
    pub(crate) fn new(names: &[String], bound: Duration) -> Self {
        Self {
            nodes: names.iter().map(|_| NodeTally::default()).collect(),
            names: names.into(),
            bound,
            stale: AtomicU64::new(0),
            stale_after_bound: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            staleness_max_ns: AtomicU64::new(0),
            violations: Mutex::default(),
        }
    }

    /// Counts a read's answer.
    pub(crate) fn answered(&self, node: usize, source: Source) {
        let node = &self.nodes[node];
        let counter = match source {
            Source::Hit => &node.hits,
            Source::MarkedHit => &node.marked,
            Source::Loaded => &node.loads,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts a write.
    pub(crate) fn wrote(&self, node: usize) {
        self.nodes[node].writes.fetch_add(1, Relaxed);
    }

    /// Counts a request that a node did not answer.
    pub(crate) fn failed(&self, node: usize) {
        self.nodes[node].errors.fetch_add(1, Relaxed);
    }

    /// Counts a verdict; `at` is when the read began, since the start.
    pub(crate) fn judged(&self, node: usize, key: &str, verdict: Verdict, at: Duration) {
        let staleness = match verdict {
            Verdict::Fresh => return,
            Verdict::Wrong => {
                self.wrong.fetch_add(1, Relaxed);
                None
            }
            Verdict::Stale(staleness) => {
                self.stale.fetch_add(1, Relaxed);
                self.staleness_max_ns.fetch_max(staleness.as_nanos() as u64, Relaxed);
                if staleness <= self.bound {
                    return;
                }
                self.stale_after_bound.fetch_add(1, Relaxed);
                Some(milliseconds(staleness))
            }
        };
        let mut violations = self.violations.lock();
        if violations.len() < VIOLATIONS_MAX {
            let node = self.names[node].clone();
            violations.push(Violation {
                node,
                key: key.into(),
                staleness_ms: staleness,
                at_ms: milliseconds(at),
            });
        }
    }

    /// The counts of all nodes together.
    pub(crate) fn counts(&self) -> Counts {
        self.nodes.iter().map(NodeTally::counts).fold(Counts::default(), Counts::plus)
    }

    /// What was stale.
    pub(crate) fn staleness(&self) -> Staleness {
        Staleness {
            reads: self.stale.load(Relaxed),
            after_bound: self.stale_after_bound.load(Relaxed),
            wrong: self.wrong.load(Relaxed),
            max: Duration::from_nanos(self.staleness_max_ns.load(Relaxed)),
        }
    }

    /// The first violations.
    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.violations.lock().clone()
    }
}

impl NodeTally {
    /// The counts of this node.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            hits: self.hits.load(Relaxed),
            marked: self.marked.load(Relaxed),
            loads: self.loads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            errors: self.errors.load(Relaxed),
        }
    }
}

impl Counts {
    /// Reads that were answered.
    pub(crate) fn reads(self) -> u64 {
        self.hits + self.marked + self.loads
    }

    /// Reads and writes, answered or not.
    pub(crate) fn requests(self) -> u64 {
        self.reads() + self.writes + self.errors
    }

    /// Share of the answered reads that needed no load of their own; 0 without reads.
    pub(crate) fn hit_ratio(self) -> f64 {
        let reads = self.reads();
        if reads == 0 { 0.0 } else { (reads - self.loads) as f64 / reads as f64 }
    }

    /// What was counted since an earlier moment.
    pub(crate) fn since(self, earlier: Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }

    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            hits: with(self.hits, other.hits),
            marked: with(self.marked, other.marked),
            loads: with(self.loads, other.loads),
            writes: with(self.writes, other.writes),
            errors: with(self.errors, other.errors),
        }
    }
}

/// A duration in milliseconds.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staleness_within_the_bound_is_counted_and_beyond_it_described() {
        let tally = Tally::new(&["a".to_owned()], Duration::from_millis(100));
        for staleness in [10, 100, 101] {
            tally.judged(0, "k", Verdict::Stale(Duration::from_millis(staleness)), Duration::from_secs(1));
        }
        tally.judged(0, "k", Verdict::Wrong, Duration::ZERO);
        tally.judged(0, "k", Verdict::Fresh, Duration::ZERO);
        let staleness = tally.staleness();
        assert_eq!((staleness.reads, staleness.after_bound, staleness.wrong), (3, 1, 1));
        assert_eq!(staleness.max, Duration::from_millis(101));
        assert_eq!(tally.violations().len(), 2);
    }

    #[test]
    fn hit_ratio_counts_what_needed_no_load_of_its_own() {
        let tally = Tally::new(&["a".to_owned(), "b".to_owned()], Duration::ZERO);
        for source in [Source::Hit, Source::Hit, Source::MarkedHit, Source::Loaded] {
            tally.answered(1, source);
        }
        tally.wrote(0);
        tally.failed(0);
        let counts = tally.counts();
        assert_eq!((counts.reads(), counts.requests()), (4, 6));
        assert!((counts.hit_ratio() - 0.75).abs() < 1e-9);
        assert_eq!(tally.nodes[0].counts().reads(), 0);
        assert_eq!(Counts::default().hit_ratio(), 0.0);
    }
}
