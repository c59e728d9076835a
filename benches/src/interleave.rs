//! Timing of small operations in turns, so that a disturbance of the machine meets all of them.

use std::collections::BTreeMap;

use crate::clock::own_cpu_ns;
use crate::stats::median;

/// One thing to time. What a sample prepares, before and after, does not count.
pub struct Case<'a> {
    /// Name, unique within a run.
    pub name: &'static str,
    /// Does one sample.
    pub sample: Box<dyn FnMut() -> Sample + 'a>,
}

/// Operations done, and the time they took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// How many operations.
    pub operations: u64,
    /// How long they took together.
    pub nanoseconds: u64,
}

/// Times a piece of work that does so many operations, by the CPU time of all threads of this process: what another
/// thread does for it counts, and what another process does to it does not.
pub fn timed(operations: u64, work: impl FnOnce()) -> Sample {
    let start = own_cpu_ns();
    work();
    Sample { operations, nanoseconds: own_cpu_ns() - start }
}

/// Nanoseconds per operation of each case in each round.
#[derive(Debug, Default)]
pub struct Rounds(BTreeMap<&'static str, Vec<f64>>);

impl Rounds {
    /// Runs all cases in turns, each round beginning with another; the first round warms up and is dropped.
    #[must_use]
    pub fn run(cases: &mut [Case<'_>], rounds: usize) -> Self {
        let mut all = Self::default();
        for round in 0..=rounds {
            for turn in 0..cases.len() {
                let at = (round + turn) % cases.len();
                let Sample { operations, nanoseconds } = (cases[at].sample)();
                if round > 0 {
                    all.0.entry(cases[at].name).or_default().push(nanoseconds as f64 / operations as f64);
                }
            }
        }
        all
    }

    /// Median nanoseconds per operation; `NaN` if there is no such case.
    #[must_use]
    pub fn median(&self, name: &str) -> f64 {
        self.0.get(name).cloned().map_or(f64::NAN, median)
    }

    /// Median over the rounds of one case divided by another in the same round; `NaN` if either is missing.
    #[must_use]
    pub fn ratio(&self, subject: &str, anchor: &str) -> f64 {
        let (Some(subject), Some(anchor)) = (self.0.get(subject), self.0.get(anchor)) else {
            return f64::NAN;
        };
        median(subject.iter().zip(anchor).map(|(a, b)| a / b).collect())
    }

    /// Names of the cases, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }
}

impl std::fmt::Debug for Case<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_taken_within_each_round() {
        let fixed = |name, nanoseconds| Case {
            name,
            sample: Box::new(move || Sample { operations: 10, nanoseconds }),
        };
        let rounds = Rounds::run(&mut [fixed("a", 100), fixed("b", 400)], 3);
        assert_eq!(rounds.ratio("a", "b"), 0.25);
        assert_eq!(rounds.median("b"), 40.0);
        assert!(rounds.ratio("a", "c").is_nan());
    }
}
