//! Whether a writer waits for its peers. Each write that peers are told of is timed beside one of a cache that nobody
//! is told of: what slows both is the machine's doing, and cancels out.

use std::time::Duration;

/// Pairs of which a quantile is taken.
const WINDOW: usize = 100;

/// Fewest windows of a phase that can be compared with another's.
const WINDOWS_MIN: usize = 4;

/// How much slower than before a fault a write may be during it.
const SLOWER_MAX: f64 = 1.2;

/// How long two writes took that were made one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The one that peers are told of.
    pub told: Duration,
    /// The one that nobody is told of.
    pub apart: Duration,
}

/// What is wrong if the writes of a phase were slower than those before: p99 by p99, window by window. Even the faster
/// windows have to be slower than the slower ones before, so that one bad moment of the machine decides nothing.
#[must_use]
pub fn slower(before: &[Pair], during: &[Pair]) -> Option<String> {
    let (before, during) = (slowness(before), slowness(during));
    if before.len().min(during.len()) < WINDOWS_MIN {
        eprintln!("{} and {} windows of writes: too few to compare", before.len(), during.len());
        return None;
    }
    eprintln!(
        "p99 of writes that peers are told of, as a multiple of others': {before:.2?}, then {during:.2?}"
    );
    let (usual, now) = (quantile(&before, 0.75), quantile(&during, 0.25));
    (now > usual * SLOWER_MAX).then(|| {
        format!(
            "writes that peers are told of: p99 {before:.2?} times that of others before, then {during:.2?}"
        )
    })
}

/// Per window: the p99 of writes that peers are told of, as a multiple of that of the others.
fn slowness(pairs: &[Pair]) -> Vec<f64> {
    let p99 = |window: &[Pair], of: fn(&Pair) -> Duration| {
        quantile(&window.iter().map(|pair| of(pair).as_secs_f64()).collect::<Vec<_>>(), 0.99)
    };
    let ratio = |window: &[Pair]| {
        p99(window, |pair| pair.told) / p99(window, |pair| pair.apart).max(f64::MIN_POSITIVE)
    };
    pairs.chunks_exact(WINDOW).map(ratio).collect()
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Writes of about a millisecond with rare long ones, of which those that peers are told of take `more` longer.
    fn pairs(seed: u64, noise: f64, more: f64) -> Vec<Pair> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut took = |more: f64| {
            let ms = 1.0 + noise / random.random_range(0.02..1.0_f64) + more;
            Duration::from_secs_f64(ms / 1e3)
        };
        (0..700).map(|_| Pair { told: took(more), apart: took(0.0) }).collect()
    }

    #[test]
    fn a_delay_of_writes_is_found_in_noise() {
        for seed in 0..100 {
            assert!(slower(&pairs(seed, 0.05, 0.0), &pairs(seed + 1_000, 0.05, 5.0)).is_some(), "{seed}");
        }
    }

    #[test]
    fn noise_of_the_machine_is_no_delay() {
        for seed in 0..100 {
            assert_eq!(slower(&pairs(seed, 0.05, 0.0), &pairs(seed + 1_000, 0.5, 0.0)), None, "{seed}");
        }
    }
}
