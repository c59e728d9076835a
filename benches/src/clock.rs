//! The clocks of a run.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds on the machine's monotonic clock. Two processes' readings compare.
#[must_use]
pub fn now_ns() -> u64 {
    read(ClockId::Monotonic)
}

/// Nanoseconds of CPU time that this process has used, on all its threads.
#[must_use]
pub fn own_cpu_ns() -> u64 {
    read(ClockId::ProcessCPUTime)
}

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Seconds since an earlier reading of [`now_ns`].
#[must_use]
pub fn seconds_since(start_ns: u64) -> f64 {
    (now_ns() - start_ns) as f64 / 1e9
}
