//! How fast a node copies what others hold: a rate, and when the next bytes may be asked for.

use std::num::NonZeroU64;
use std::time::Duration;

use tidings_proto::time::Tick;

/// How many bytes per second a node copies unless it is told otherwise: a tenth of a gigabit link, so that a joiner leaves
/// room for everything else.
pub(crate) const COPY_BYTES_PER_SECOND: NonZeroU64 = NonZeroU64::new(12 << 20).expect("not zero");

/// What is copied at a rate. Time in which nothing is copied is not made up for.
#[derive(Debug)]
pub(crate) struct Spending {
    per_second: NonZeroU64,
    /// When what was copied is paid for.
    free: Tick,
}

impl Spending {
    pub(crate) fn at(bytes_per_second: NonZeroU64) -> Self {
        Self { per_second: bytes_per_second, free: Tick::NEVER }
    }

    /// Bytes have come that were asked for at `asked`. Returns how long to wait before more is asked for.
    pub(crate) fn spend(&mut self, bytes: usize, (asked, now): (Tick, Tick)) -> Duration {
        let nanos = bytes as u128 * 1_000_000_000 / u128::from(self.per_second.get());
        let time = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free = self.free.max(asked).after(time);
        self.free.since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn at(millis: u64) -> Tick {
        Tick(1 << 40).after(Duration::from_millis(millis))
    }

    fn rate(bytes: u64) -> Spending {
        Spending::at(NonZeroU64::new(bytes).unwrap())
    }

    #[test]
    fn answers_that_come_at_once_are_spread_over_the_time_that_they_cost() {
        let mut spending = rate(100 * KIB as u64);
        let mut now = at(0);
        for _ in 0..20 {
            now = now.after(spending.spend(10 * KIB, (now, now)));
        }
        assert_eq!(now, at(2_000), "200 KiB at 100 KiB a second");
    }

    #[test]
    fn the_time_that_an_answer_took_counts() {
        let mut spending = rate(100 * KIB as u64);
        assert_eq!(spending.spend(10 * KIB, (at(0), at(40))), Duration::from_millis(60));
        assert_eq!(spending.spend(10 * KIB, (at(100), at(400))), Duration::ZERO, "it came slower than that");
    }

    #[test]
    fn what_was_not_copied_for_a_while_is_not_made_up_for() {
        let mut spending = rate(100 * KIB as u64);
        spending.spend(10 * KIB, (at(0), at(0)));
        assert_eq!(spending.spend(10 * KIB, (at(60_000), at(60_000))), Duration::from_millis(100));
    }
}
