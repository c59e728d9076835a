//! Medians and percentiles of small samples.

/// The middle of the values, or the mean of the two middle ones. `NaN` if there are none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The value below which `percent` of the sorted values lie. `None` if there are none.
#[must_use]
pub fn percentile(sorted: &[u32], percent: f64) -> Option<u32> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((percent / 100.0 * last as f64).round() as usize).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_count_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn percentiles_are_members_of_the_sample() {
        let sample: Vec<u32> = (0..=100).collect();
        assert_eq!(percentile(&sample, 50.0), Some(50));
        assert_eq!(percentile(&sample, 99.0), Some(99));
        assert_eq!(percentile(&[], 50.0), None);
    }
}
