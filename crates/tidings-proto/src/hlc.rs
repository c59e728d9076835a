//! Hybrid logical clock: time stamps that follow the wall clock and never go backwards.
//!
//! After Kulkarni et al., *Logical Physical Clocks and Consistent Snapshots in Globally Distributed Databases*
//! (2014). Stamps order events of one key for people and for last-writer-wins. They decide no freshness but that of
//! values that have travelled: while a node is in doubt, those are as old as their stamps say.

use std::time::Duration;

/// Farthest that a remote stamp may be ahead of the local wall clock before it is refused.
pub const SKEW_MAX: Duration = Duration::from_millis(500);

const COUNTER_BITS: u32 = 16;

/// 48 bits of milliseconds since 1970, then a 16-bit counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The first stamp of a millisecond.
    #[must_use]
    pub const fn from_wall_ms(ms: u64) -> Self {
        Self(ms << COUNTER_BITS)
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn wall_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

/// A stamp from a clock that runs ahead by more than [`SKEW_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time stamp is {ahead_ms} ms ahead of this node's clock")]
pub struct TooFarAhead {
    /// How far ahead it is.
    pub ahead_ms: u64,
}

/// Source of stamps.
#[derive(Clone, Copy, Debug, Default)]
pub struct HybridClock {
    last: Stamp,
}

impl HybridClock {
    /// A clock that has just given `last`.
    #[must_use]
    pub fn at(last: Stamp) -> Self {
        Self { last }
    }

    /// A stamp later than every one given or observed before.
    pub fn tick(&mut self, wall_ms: u64) -> Stamp {
        self.last = Stamp::from_wall_ms(wall_ms).max(Stamp(self.last.0 + 1));
        self.last
    }

    /// Takes note of a stamp of this node's own: what is stamped from now on is later.
    pub fn note(&mut self, stamp: Stamp) {
        self.last = self.last.max(stamp);
    }

    /// Takes note of a remote stamp, so that what is stamped here from now on is later: for values whose last writer
    /// wins. Invalidation compares no stamps.
    ///
    /// # Errors
    /// [`TooFarAhead`]; the clock is unchanged.
    pub fn observe(&mut self, remote: Stamp, wall_ms: u64) -> Result<(), TooFarAhead> {
        let ahead_ms = remote.wall_ms().saturating_sub(wall_ms);
        if u128::from(ahead_ms) > SKEW_MAX.as_millis() {
            return Err(TooFarAhead { ahead_ms });
        }
        self.last = self.last.max(remote);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stamps_rise_whatever_the_wall_clock_does(walls in prop::collection::vec(0_u64..1 << 40, 1..100)) {
            let mut clock = HybridClock::default();
            let stamps: Vec<_> = walls.iter().map(|wall| clock.tick(*wall)).collect();
            prop_assert!(stamps.is_sorted_by(|a, b| a < b));
        }
    }

    #[test]
    fn a_stamp_far_ahead_is_refused_and_changes_nothing() {
        let mut clock = HybridClock::default();
        assert_eq!(clock.observe(Stamp::from_wall_ms(10_501), 10_000), Err(TooFarAhead { ahead_ms: 501 }));
        assert_eq!(clock.tick(10_000), Stamp::from_wall_ms(10_000));
        clock.observe(Stamp::from_wall_ms(10_500), 10_000).unwrap();
        assert!(clock.tick(10_000) > Stamp::from_wall_ms(10_500));
    }
}
