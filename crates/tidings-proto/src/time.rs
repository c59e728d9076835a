//! A point on a clock that counts suspended time. This crate never reads a clock; it is handed one's readings.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds on the node's own monotonic clock, suspended time included. Two nodes' ticks do not compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tick(pub u64);

impl Tick {
    /// Earlier than every reading: what has never been confirmed.
    pub const NEVER: Self = Self(0);
    /// Later than every reading: what bounds nothing.
    pub const FOREVER: Self = Self(u64::MAX);

    /// This long after, or [`Tick::FOREVER`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// This long before, or [`Tick::NEVER`].
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// Time since an earlier point; zero if that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Clocks of two nodes count this part of a time differently at most, two thousandths: NTP slews a clock by half of
/// one, so the rates of two differ by one at most.
const RATE_MARGIN: u128 = 500;

/// What another node's clock may have counted more or less of a time, rounded up.
#[must_use]
pub fn rate_margin(time: Duration) -> Duration {
    Duration::from_nanos(u64::try_from(time.as_nanos().div_ceil(RATE_MARGIN)).unwrap_or(u64::MAX))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
