//! How long and how much the tests do. `TIDINGS_TEST_SCALE` multiplies both; 1 suits a run of everything.

use std::time::Duration;

/// The multiplier, from the environment.
#[must_use]
pub fn factor() -> f64 {
    std::env::var("TIDINGS_TEST_SCALE").map_or(1.0, |text| parse(&text))
}

/// A duration of traffic or of a fault at this scale.
#[must_use]
pub fn duration(base: Duration) -> Duration {
    base.mul_f64(factor())
}

/// A number of things to do at this scale; at least one.
#[must_use]
pub fn count(base: usize) -> usize {
    ((base as f64 * factor()) as usize).max(1)
}

fn parse(text: &str) -> f64 {
    let factor = text.trim().parse::<f64>().unwrap_or(f64::NAN);
    assert!(factor.is_finite() && factor > 0.0, "TIDINGS_TEST_SCALE must be a number above 0, not {text:?}");
    factor
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positive_number_is_a_scale() {
        assert!((parse(" 0.5 ") - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    #[should_panic(expected = "must be a number above 0")]
    fn zero_is_not_a_scale() {
        parse("0");
    }
}
