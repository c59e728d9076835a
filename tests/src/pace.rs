//! Whether a writer waits for its peers. Each write that peers are told of is timed beside one of a cache that nobody
//! is told of: what slows both is the machine's doing, and cancels out.

use std::time::Duration;

/// Pairs of which a quantile is taken.
const WINDOW: usize = 100;

/// Fewest windows of a phase that can be compared with another's.
const WINDOWS_MIN: usize = 6;

/// How much slower than before a fault a write may be during it.
const SLOWER_MAX: f64 = 1.2;

/// Windows in each phase, a minute of writes, of which the median alone tells that: chance moves it by a twentieth.
const WINDOWS_OF_A_MINUTE: usize = 45;

/// Of all pairs of a window before and one during: the share that has to be slower by more than that. Windows of a
/// busy machine vary by a third; of equal writes a third of the pairs are, and by chance never so many (none of 20,000
/// drawn phases of 7 and 15 windows), of writes whose p99 is three times as long 97 of 100.
const SURE: f64 = 0.9;

/// How long two writes took that were made one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The one that peers are told of.
    pub told: Duration,
    /// The one that nobody is told of.
    pub apart: Duration,
}

/// Longest time that a pair takes where nothing waits for a processor: the pause before the next one, and two requests of
/// some hundred microseconds.
const PAIR_MAX: Duration = Duration::from_millis(10);

/// What came of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// The writes were not slower: their p99, as a multiple of what it was before, each the median of all windows.
    Alike(f64),
    /// They were, and how.
    Slower(String),
    /// There are too few to tell.
    TooFew(String),
}

/// Whether so few pairs in a phase that had so much time to spare are no fault of the machine: whoever made them waited.
#[must_use]
pub fn dawdled(pairs: &[Pair], spare: Duration) -> bool {
    let few = pairs.len() / WINDOW < WINDOWS_MIN;
    few && spare >= PAIR_MAX * (WINDOW * WINDOWS_MIN) as u32
}

/// Whether the writes of a phase were slower than those before: p99 by p99, each window with each (the effect size of
/// Mann and Whitney's test), so that a few bad moments of the machine decide nothing.
#[must_use]
pub fn compare(before: &[Pair], during: &[Pair]) -> Pace {
    let (before, during) = (slowness(before), slowness(during));
    if before.len().min(during.len()) < WINDOWS_MIN {
        let windows = format!("{} and {} windows of writes", before.len(), during.len());
        return Pace::TooFew(format!("{windows}, fewer than {WINDOWS_MIN}"));
    }
    eprintln!(
        "p99 of writes that peers are told of, as a multiple of others': {before:.2?}, then {during:.2?}"
    );
    let ratio = quantile(&during, 0.5) / quantile(&before, 0.5).max(f64::MIN_POSITIVE);
    let sure = before.len().min(during.len()) >= WINDOWS_OF_A_MINUTE;
    if delayed(&before, &during) || (sure && ratio > SLOWER_MAX) {
        return Pace::Slower(format!(
            "writes that peers are told of: p99 {before:.2?} times that of others before, then {during:.2?}: {ratio:.2} times"
        ));
    }
    Pace::Alike(ratio)
}

/// Whether the windows of the second phase were slower than those of the first, beyond chance.
fn delayed(before: &[f64], during: &[f64]) -> bool {
    let slower = |usual: &f64| during.iter().filter(|now| **now > usual * SLOWER_MAX).count();
    let pairs = before.len() * during.len();
    before.iter().map(slower).sum::<usize>() as f64 > pairs as f64 * SURE
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
        many(700, seed, noise, more)
    }

    fn many(count: usize, seed: u64, noise: f64, more: f64) -> Vec<Pair> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut took = |more: f64| {
            let ms = 1.0 + noise / random.random_range(0.02..1.0_f64) + more;
            Duration::from_secs_f64(ms / 1e3)
        };
        (0..count).map(|_| Pair { told: took(more), apart: took(0.0) }).collect()
    }

    #[test]
    fn a_delay_of_writes_is_found_in_noise() {
        for seed in 0..100 {
            let compared = compare(&pairs(seed, 0.05, 0.0), &pairs(seed + 1_000, 0.05, 5.0));
            assert!(matches!(compared, Pace::Slower(_)), "{seed}: {compared:?}");
        }
    }

    #[test]
    fn quiet_windows_before_the_fault_are_no_delay() {
        // As read on two processors that five nodes, their clients and other tests shared.
        let before = [1.45, 0.60, 0.90, 0.93, 0.93, 1.29, 0.61];
        let during =
            [1.09, 1.29, 1.26, 1.38, 1.23, 1.13, 0.93, 1.26, 1.37, 0.80, 1.54, 1.61, 1.51, 1.16, 1.39];
        assert!(!delayed(&before, &during));
        assert!(delayed(&before, &during.map(|ratio| ratio * 2.0)));
    }

    #[test]
    fn noise_of_the_machine_is_no_delay() {
        for seed in 0..100 {
            let compared = compare(&pairs(seed, 0.05, 0.0), &pairs(seed + 1_000, 0.5, 0.0));
            assert!(matches!(compared, Pace::Alike(_)), "{seed}: {compared:?}");
        }
    }

    #[test]
    fn over_a_minute_a_small_delay_is_found_and_noise_is_none() {
        const MINUTE: usize = 6_000;
        for seed in 0..50 {
            let before = many(MINUTE, seed, 0.05, 0.0);
            // Of a p99 of about 3.5 ms.
            let slower = compare(&before, &many(MINUTE, seed + 1_000, 0.05, 1.5));
            assert!(matches!(slower, Pace::Slower(_)), "{seed}: {slower:?}");
            let noisy = compare(&before, &many(MINUTE, seed + 2_000, 0.1, 0.0));
            assert!(matches!(noisy, Pace::Alike(_)), "{seed}: {noisy:?}");
        }
    }

    #[test]
    fn few_writes_are_not_compared_and_are_a_fault_where_there_was_time_for_more() {
        let (all, few) = (pairs(1, 0.05, 0.0), &pairs(2, 0.05, 0.0)[..WINDOW * WINDOWS_MIN - 1]);
        assert!(matches!(compare(&all, few), Pace::TooFew(_)));
        assert!(matches!(compare(few, &all), Pace::TooFew(_)));
        assert!(!dawdled(few, Duration::from_secs(5)), "the machine had no time for more");
        assert!(dawdled(few, Duration::from_secs(6)), "a writer that waits makes few writes");
        assert!(!dawdled(&all, Duration::from_secs(60)));
    }
}
