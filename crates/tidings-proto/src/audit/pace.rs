//! How fast an audit may go.

use std::time::Duration;

use crate::time::Tick;

/// Most bytes of questions and answers a second, whatever the number of keys.
pub const BYTES_PER_SECOND_MAX: u64 = 1_000_000;

const NANOSECONDS: u128 = 1_000_000_000;

/// Lets so many keys and bytes pass per second. What has been spent is paid for with time before anything more is: in
/// any time at most what it is worth passes, and one page.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// `None`: only the bytes count.
    keys_per_second: Option<u64>,
    bytes_per_second: u64,
    free_at: Tick,
}

impl Pace {
    /// So many keys a second; `None`: as many as can be.
    #[must_use]
    pub fn new(keys_per_second: Option<u64>) -> Self {
        Self { keys_per_second, bytes_per_second: BYTES_PER_SECOND_MAX, free_at: Tick::NEVER }
    }

    /// As fast as peers answer.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { keys_per_second: None, bytes_per_second: u64::MAX, free_at: Tick::NEVER }
    }

    /// Notes what a question and its answer came to.
    pub fn spend(&mut self, keys: usize, bytes: usize, now: Tick) {
        let time = |spent: usize, rate: u64| {
            let nanoseconds = (spent as u128 * NANOSECONDS).div_ceil(u128::from(rate.max(1)));
            Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
        };
        let of_keys = self.keys_per_second.map_or(Duration::ZERO, |rate| time(keys, rate));
        self.free_at = self.free_at.max(now).after(of_keys.max(time(bytes, self.bytes_per_second)));
    }

    /// How long to wait before the next question.
    #[must_use]
    pub fn wait(&self, now: Tick) -> Duration {
        self.free_at.since(now)
    }

    /// How many keys a question should have: as many as pass in a second, and no more than it may have.
    #[must_use]
    pub fn page(&self) -> usize {
        /// Below, a question costs more than what is asked.
        const LEAST: u64 = 16;
        let most = super::PAGE_KEYS_MAX;
        self.keys_per_second.map_or(most, |rate| rate.clamp(LEAST, most as u64) as usize)
    }
}
