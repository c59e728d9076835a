//! Ranks by a Zipf law: the k-th most popular of n things is drawn in proportion to 1 / k^s.
//!
//! Rejection-inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
//! distributions", ACM TOMACS 6(3), 1996, in the form of Apache Commons RNG's `RejectionInversionZipfSampler`.
//! Constant memory and, on average, fewer than 1.2 draws a number, whatever n.

use super::random::SplitMix64;

/// A Zipf law.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    count: f64,
    exponent: f64,
    integral_at_first: f64,
    integral_at_last: f64,
    accepted_at_once: f64,
}

impl Zipf {
    /// The law of `count` things (at least one) with this exponent (above zero).
    pub(crate) fn new(count: u64, exponent: f64) -> Self {
        let count = count.max(1) as f64;
        let mut law =
            Self { count, exponent, integral_at_first: 0.0, integral_at_last: 0.0, accepted_at_once: 0.0 };
        law.integral_at_first = law.integral(1.5) - 1.0;
        law.integral_at_last = law.integral(count + 0.5);
        law.accepted_at_once = 2.0 - law.inverse(law.integral(2.5) - law.density(2.0));
        law
    }

    /// Draws a rank, from 1.
    pub(crate) fn draw(&self, random: &mut SplitMix64) -> u64 {
        loop {
            let u = self.integral_at_last + random.unit() * (self.integral_at_first - self.integral_at_last);
            let x = self.inverse(u);
            let rank = (x + 0.5).floor().clamp(1.0, self.count);
            if rank - x <= self.accepted_at_once || u >= self.integral(rank + 0.5) - self.density(rank) {
                return rank as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// Integral of the density, up to a constant; written so that an exponent of 1 is no special case.
    fn integral(&self, x: f64) -> f64 {
        let ln = x.ln();
        expm1_over((1.0 - self.exponent) * ln) * ln
    }

    fn inverse(&self, x: f64) -> f64 {
        // Rounding may take it a little below the domain of ln_1p.
        let t = (x * (1.0 - self.exponent)).max(-1.0);
        (ln_1p_over(t) * x).exp()
    }
}

/// `(e^x - 1) / x`, also near 0.
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x * 0.5 * (1.0 + x / 3.0) }
}

/// `ln(1 + x) / x`, also near 0.
fn ln_1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x * (0.5 - x / 3.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_follow_the_law() {
        const DRAWS: usize = 200_000;
        for exponent in [0.8, 1.0, 1.21] {
            let law = Zipf::new(1000, exponent);
            let mut random = SplitMix64::new(7);
            let mut counts = vec![0_u32; 1001];
            for _ in 0..DRAWS {
                counts[law.draw(&mut random) as usize] += 1;
            }
            let total: f64 = (1..=1000).map(|rank| f64::from(rank).powf(-exponent)).sum();
            for rank in [1, 2, 3, 10, 100] {
                let expected = f64::from(rank).powf(-exponent) / total * DRAWS as f64;
                let deviation = (f64::from(counts[rank as usize]) - expected).abs();
                // Five standard deviations.
                assert!(
                    deviation < 5.0 * expected.sqrt(),
                    "s {exponent}, rank {rank}: {deviation} from {expected}"
                );
            }
            assert_eq!(counts[0], 0);
        }
    }

    #[test]
    fn one_thing_is_always_drawn() {
        let law = Zipf::new(1, 1.21);
        let mut random = SplitMix64::new(1);
        assert!((0..100).all(|_| law.draw(&mut random) == 1));
    }
}
