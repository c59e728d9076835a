//! Random numbers that are the same on every machine and in every release, for a seed is part of a result.

/// SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014;
/// constants as in Java's `SplittableRandom`. Passes BigCrush, and any position of its sequence is one mix away.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64 {
    state: u64,
}

/// Odd, close to 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix64 {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A sequence of its own for a purpose, so that two purposes with one seed do not draw alike.
    pub(crate) fn for_purpose(seed: u64, purpose: u64) -> Self {
        Self::new(mix(seed ^ mix(purpose)))
    }

    /// The next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GAMMA);
        mix(self.state)
    }

    /// The next number within `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        // The 53 highest bits: as many as a double's mantissa holds.
        (self.bits() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// The next number within `0..bound`; 0 for an empty range. The bias is below `bound / 2^64`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }
}

/// Spreads a number over all 64 bits, one to one.
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_is_the_published_one() {
        // First values for seed 1234567, as Rosetta Code and the reference implementation by S. Vigna give them.
        let mut random = SplitMix64::new(1_234_567);
        let values: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(values, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = SplitMix64::new(1);
        let mut seen = [0_u32; 3];
        for _ in 0..3000 {
            seen[random.below(3) as usize] += 1;
            assert!((0.0..1.0).contains(&random.unit()));
        }
        assert!(seen.iter().all(|count| (900..1100).contains(count)), "{seen:?}");
    }
}
