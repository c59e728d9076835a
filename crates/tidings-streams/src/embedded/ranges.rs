//! Numbers that are done with, as ranges: memory for their gaps only.

use std::collections::BTreeMap;

/// A set of numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a number. Whether it was not there.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        if self.contains(number) {
            return false;
        }
        self.insert_range(number, number);
        true
    }

    /// Adds all numbers from the first to the last.
    pub(super) fn insert_range(&mut self, mut first: u64, mut last: u64) {
        // Whatever overlaps or touches becomes a part of it.
        while let Some((&start, &end)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if end.saturating_add(1) < first {
                break;
            }
            (first, last) = (first.min(start), last.max(end));
            self.0.remove(&start);
        }
        self.0.insert(first, last);
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        self.0.range(..=number).next_back().is_some_and(|(_, last)| *last >= number)
    }

    /// Whether all numbers from the first to the last are there.
    pub(super) fn covers(&self, first: u64, last: u64) -> bool {
        self.0.range(..=first).next_back().is_some_and(|(_, end)| *end >= last)
    }

    /// The lowest number from `least` on that is not there.
    pub(super) fn first_missing(&self, least: u64) -> u64 {
        match self.0.range(..=least).next_back() {
            Some((_, last)) if *last >= least => last + 1,
            _ => least,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// How many numbers there are from `least` on.
    pub(super) fn count_from(&self, least: u64) -> u64 {
        self.iter().filter(|(_, last)| *last >= least).map(|(first, last)| last - first.max(least) + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_a_set(numbers in prop::collection::vec((1_u64..60, 0_u64..5), 0..40)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (first, more) in numbers {
                ranges.insert_range(first, first + more);
                set.extend(first..=first + more);
            }
            for number in 0..70 {
                prop_assert_eq!(ranges.contains(number), set.contains(&number), "{}", number);
                prop_assert_eq!(ranges.count_from(number), set.range(number..).count() as u64);
                let missing = (number..).find(|number| !set.contains(number)).unwrap();
                prop_assert_eq!(ranges.first_missing(number), missing);
            }
            // As few ranges as there are: no two touch.
            let listed: Vec<(u64, u64)> = ranges.iter().collect();
            prop_assert!(listed.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
