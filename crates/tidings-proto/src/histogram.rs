//! How long things took: counts in buckets that grow by the eighth root of two, so that what is said of them is never
//! off by more than a bucket, a tenth.
//!
//! Whoever measures reads the clock; this only counts. It takes no lock and never grows.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets per factor of two, as the power of two that they are: the scale of OpenTelemetry's exponential histograms.
pub const SCALE: u32 = 3;

const PER_OCTAVE: usize = 1 << SCALE;

/// The first bucket holds everything up to this power of two, in seconds: just under a microsecond, which is shorter
/// than whatever is worth a histogram.
const LEAST_EXPONENT: i32 = -20;

/// Beyond this power of two, in seconds (128 s), everything is in the last bucket: what takes longer is broken, and
/// how long it was broken for is not this histogram's matter.
const MOST_EXPONENT: i32 = 7;

/// Buckets that have an upper bound.
const BOUNDED: usize = (MOST_EXPONENT - LEAST_EXPONENT) as usize * PER_OCTAVE + 1;

/// The upper bounds, in seconds.
static BOUNDS: LazyLock<[f64; BOUNDED]> = LazyLock::new(|| {
    std::array::from_fn(|index| (f64::from(LEAST_EXPONENT) + index as f64 / PER_OCTAVE as f64).exp2())
});

/// The upper bounds in nanoseconds, rounded down: a whole number is beyond a bound if and only if it is beyond this.
static BOUND_NANOS: LazyLock<[u64; BOUNDED]> = LazyLock::new(|| BOUNDS.map(|bound| (bound * 1e9) as u64));

/// Durations, counted. Threads may share it.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BOUNDED + 1],
    /// Wraps after 584 years of durations.
    nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), nanos: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        self.record_many(duration, 1);
    }

    /// Counts a duration so many times.
    pub fn record_many(&self, duration: Duration, times: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let index = BOUND_NANOS.partition_point(|bound| *bound < nanos);
        self.counts[index].fetch_add(times, Ordering::Relaxed);
        self.nanos.fetch_add(nanos.saturating_mul(times), Ordering::Relaxed);
    }

    /// What was counted so far. Durations that are being recorded may be missing, or be in the sum only or in the
    /// counts only.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Snapshot { counts, sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)) }
    }
}

/// What a [`Histogram`] had counted at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    counts: Box<[u64]>,
    sum: Duration,
}

impl Snapshot {
    /// How many durations were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long they took together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The duration that the share `q` of them did not exceed, rounded up to its bucket's bound, which is at most a
    /// tenth more; beyond 128 s, 128 s. `None` of nothing.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((q.clamp(0.0, 1.0) * count as f64).ceil() as u64).clamp(1, count);
        let mut below = 0;
        let index = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        });
        Some(Duration::from_nanos(BOUND_NANOS[index.unwrap_or(BOUNDED).min(BOUNDED - 1)]))
    }

    /// The counts of buckets that are as many times as wide as `1 << coarser` of this histogram's, from the one whose
    /// upper bound is `1 << least` seconds on: each with its upper bound in seconds. The first one holds everything
    /// below, the last one, without bound, everything above.
    ///
    /// There are always the same, whatever was counted.
    pub fn buckets(&self, least: i32, coarser: u32) -> impl Iterator<Item = (f64, u64)> {
        let first = (least.clamp(LEAST_EXPONENT, MOST_EXPONENT) - LEAST_EXPONENT) as usize * PER_OCTAVE;
        let step = 1 << coarser.min(SCALE);
        let bounds = (first..BOUNDED).step_by(step);
        let mut from = 0;
        let bounded = bounds.map(move |index| {
            let count = self.counts[from..=index].iter().sum();
            from = index + 1;
            (BOUNDS[index], count)
        });
        bounded.chain([(f64::INFINITY, self.counts[BOUNDED])])
    }
}

#[cfg(test)]
#[path = "histogram_tests.rs"]
mod tests;
