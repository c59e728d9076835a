//! How far a peer's wall clock is from this node's, by Cristian's algorithm: the peer's reading lies somewhere within the
//! round trip that brought it, and half of that is what is not known.
//!
//! F. Cristian, *Probabilistic Clock Synchronization* (1989). Nothing that keeps caches coherent reads a wall clock; people
//! and later last-writer-wins do.

use std::time::Duration;

use crate::time::Tick;

/// What a reading of a wall clock may be off by itself: a tick of 10 ms of the coarse clock that it comes from, and the
/// rest of the millisecond.
const READING: Duration = Duration::from_millis(11);

/// What two clocks may drift apart in a second, in millionths: twice what a clock of quartz does.
const DRIFT_PPM: u32 = 200;

/// A peer's wall clock, compared with this node's at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The least and the most that it is ahead, in microseconds.
    least: i64,
    most: i64,
    at: Tick,
}

/// How an offset compares with a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is within the bound for certain.
    Within,
    /// It is beyond the bound for certain.
    Beyond,
    /// What is not known decides.
    Unclear,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Offset {
    /// The peer's clock was read within a round trip that has just ended. `wall_ms`: the peer's and this node's reading
    /// now, in milliseconds since 1970.
    #[must_use]
    pub fn measure((theirs_ms, ours_ms): (u64, u64), round: Duration, now: Tick) -> Self {
        let ahead = i128::from(theirs_ms) - i128::from(ours_ms);
        let ahead = i64::try_from(ahead * 1_000).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX });
        // Read at the beginning of the round trip it has gone on since, read at the end it has not.
        let reading = micros(READING);
        let most = ahead.saturating_add(micros(round)).saturating_add(reading);
        Self { least: ahead.saturating_sub(reading), most, at: now }
    }

    /// What is known of it at a later time.
    #[must_use]
    pub fn aged(self, now: Tick) -> Self {
        let drift = micros(now.since(self.at)) / 1_000_000 * i64::from(DRIFT_PPM);
        let (least, most) = (self.least.saturating_sub(drift), self.most.saturating_add(drift));
        Self { least, most, at: self.at.max(now) }
    }

    /// Both measurements together; the newer one alone if they contradict each other, for then a clock was set.
    #[must_use]
    pub fn refined(self, newer: Self) -> Self {
        let older = self.aged(newer.at);
        let (least, most) = (older.least.max(newer.least), older.most.min(newer.most));
        if least <= most { Self { least, most, at: newer.at } } else { newer }
    }

    /// How far the peer's clock is ahead, in seconds; negative: behind.
    #[must_use]
    pub fn ahead(self) -> f64 {
        (self.least as f64 + self.most as f64) / 2e6
    }

    /// What that may be off by, in seconds.
    #[must_use]
    pub fn uncertainty(self) -> f64 {
        (self.most as f64 - self.least as f64) / 2e6
    }

    /// Compares it with a bound, either way.
    #[must_use]
    pub fn judge(self, bound: Duration) -> Judgement {
        let bound = micros(bound);
        if self.least > bound || self.most < -bound {
            Judgement::Beyond
        } else if self.least >= -bound && self.most <= bound {
            Judgement::Within
        } else {
            Judgement::Unclear
        }
    }
}

/// Whether it is this node's clock that is wrong: those of more than half of the peers that have said theirs are certainly
/// beyond the bound. Of two nodes neither can tell, and both are.
#[must_use]
pub fn is_own_clock_off(said: impl IntoIterator<Item = Offset>, bound: Duration) -> bool {
    let (mut beyond, mut all) = (0_usize, 0_usize);
    for offset in said {
        all += 1;
        beyond += usize::from(offset.judge(bound) == Judgement::Beyond);
    }
    beyond * 2 > all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Tick = Tick(1 << 50);
    const BOUND: Duration = Duration::from_millis(500);

    fn measured(ahead_ms: i64, round_ms: u64) -> Offset {
        let ours = 1_700_000_000_000_u64;
        Offset::measure((ours.saturating_add_signed(ahead_ms), ours), Duration::from_millis(round_ms), START)
    }

    proptest! {
        /// Clocks that drift within the bound, read to a tick, over rounds of which each way takes what it likes.
        #[test]
        fn the_true_offset_lies_within_what_is_known(
            ahead_us in -2_000_000_000_i64..2_000_000_000,
            drift_ppm in -200_i64..=200,
            rounds in prop::collection::vec((0_u64..60_000_000, 0_u64..300_000, 0_u64..300_000, 0_u64..10_000, 0_u64..10_000), 1..20),
        ) {
            let (mut known, mut now_us) = (None::<Offset>, 0_u64);
            for (pause, there, back, their_lag, our_lag) in rounds {
                let read_us = now_us + pause + there;
                now_us = read_us + back;
                let at = START.after(Duration::from_micros(now_us));
                let wall = |us: u64| 1_700_000_000_000_000_i64 + us as i64;
                let offset = |us: u64| ahead_us + us as i64 * drift_ppm / 1_000_000;
                let theirs_ms = (wall(read_us) + offset(read_us) - their_lag as i64) as u64 / 1_000;
                let ours_ms = (wall(now_us) - our_lag as i64) as u64 / 1_000;
                let newer = Offset::measure((theirs_ms, ours_ms), Duration::from_micros(there + back), at);
                known = Some(known.map_or(newer, |known| known.refined(newer)));
                let truth = offset(now_us) as f64 / 1e6;
                let it = known.unwrap();
                prop_assert!((truth - it.ahead()).abs() <= it.uncertainty() + 1e-3, "{truth} {it:?}");
            }
        }
    }

    #[test]
    fn a_slow_round_trip_leaves_it_open_and_a_quick_one_decides() {
        assert_eq!(measured(400, 20).judge(BOUND), Judgement::Within);
        assert_eq!(measured(-400, 20).judge(BOUND), Judgement::Within);
        assert_eq!(measured(400, 1_000).judge(BOUND), Judgement::Unclear);
        assert_eq!(measured(600_000, 1_000).judge(BOUND), Judgement::Beyond);
        assert_eq!(measured(-600_000, 1_000).judge(BOUND), Judgement::Beyond);
        assert_eq!(measured(400, 1_000).refined(measured(400, 20)).judge(BOUND), Judgement::Within);
        assert!((measured(-3_000, 0).ahead() + 3.0).abs() < 0.001);
    }

    #[test]
    fn a_clock_that_was_set_is_believed_at_once() {
        let set = Offset { at: START.after(Duration::from_secs(10)), ..measured(600_000, 5) };
        assert_eq!(measured(0, 5).refined(set), set);
    }

    #[test]
    fn who_disagrees_with_most_is_wrong_and_two_cannot_tell() {
        let (fine, off) = (measured(10, 5), measured(-600_000, 5));
        assert!(is_own_clock_off([off], BOUND));
        assert!(is_own_clock_off([off, off, fine], BOUND));
        assert!(!is_own_clock_off([off, fine], BOUND));
        let unclear = measured(400, 1_000);
        assert!(!is_own_clock_off([unclear], BOUND), "what is not certain counts for nothing");
        assert!(!is_own_clock_off([], BOUND));
    }
}
