//! The moment as a store has it: it never goes back, and it never stands still for as long as a clock was wrong.

use crate::id::Timestamp;

/// While the clock says less than was believed before, so many of its milliseconds make one of the store's: waits take
/// twice as long then, and what was believed wrongly is caught up with.
const BEHIND_PACE: u64 = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    now: Timestamp,
    read: Timestamp,
}

impl Moment {
    /// A store that has seen a moment, when its clock says another.
    pub(super) fn new(seen: Timestamp, reading: Timestamp) -> Self {
        Self { now: seen.max(reading), read: reading }
    }

    pub(super) fn last(&self) -> Timestamp {
        self.now
    }

    /// The moment when the clock says `reading`.
    pub(super) fn pass(&mut self, reading: Timestamp) -> Timestamp {
        if reading >= self.now {
            (self.now, self.read) = (reading, reading);
            return self.now;
        }
        if reading < self.read {
            self.read = reading;
        }
        let passed = (reading.0 - self.read.0) / BEHIND_PACE;
        self.now.0 += passed;
        // What makes no whole millisecond is kept for the next time.
        self.read.0 += passed * BEHIND_PACE;
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_caught_up_with_and_nothing_stands_still() {
        let mut moment = Moment::new(Timestamp(0), Timestamp(10_000));
        assert_eq!(moment.pass(Timestamp(10_100)), Timestamp(10_100));
        // An hour is a long time for a wait; here it is five seconds.
        let mut last = moment.pass(Timestamp(5_000));
        assert_eq!(last, Timestamp(10_100));
        for reading in 5_001..=15_200 {
            let now = moment.pass(Timestamp(reading));
            assert!(now >= last && now.0 - last.0 <= 1, "{last:?}, then {now:?}");
            last = now;
        }
        assert_eq!(
            moment.pass(Timestamp(15_300)),
            Timestamp(15_300),
            "it is caught up with after twice as long"
        );
    }

    #[test]
    fn a_store_that_is_opened_before_what_it_has_seen_goes_on_from_there() {
        let mut moment = Moment::new(Timestamp(10_000), Timestamp(4_000));
        assert_eq!(moment.last(), Timestamp(10_000));
        assert_eq!(moment.pass(Timestamp(4_600)), Timestamp(10_300));
        assert_eq!(moment.pass(Timestamp(20_000)), Timestamp(20_000));
    }
}
