//! The clocks of a node: one that counts suspended time, cheap enough for every hit, and the wall clock for stamps.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tidings_proto::time::Tick;

/// A source of time. Clones share it.
///
/// The system clock answers a hit from two coarse readings (9 ns each, resolution of a kernel tick, 1 to 4 ms):
/// monotonic time, which stands still while the machine is suspended, and wall time, which does not. If their
/// distance has changed since the last precise reading, suspended time is measured anew before anything is judged.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System(Arc<System>),
    Settable(Arc<System>, WallClock),
    Other(Arc<dyn Fn() -> Tick + Send + Sync>),
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System(_) => "Clock(system)",
            Source::Settable(..) => "Clock(settable)",
            Source::Other(_) => "Clock(other)",
        })
    }
}

/// How far a coarse clock reading may lag behind the truth: one kernel tick at 100 Hz. Taken off every bound, so that
/// the promise holds to the letter.
pub(crate) const COARSE_LAG: Duration = Duration::from_millis(10);

/// Ticks start here, so that every reading is later than [`Tick::NEVER`] by more than any bound.
const ORIGIN_NANOS: u64 = 1 << 50;

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        let system = System::default();
        system.refresh(os::wall_coarse);
        Self(Source::System(Arc::new(system)))
    }

    /// The machine's clock, but for its wall clock, which can be set as by an operator or a time service: for tests.
    #[must_use]
    pub fn settable() -> (Self, WallClock) {
        let (system, wall) = (System::default(), WallClock::default());
        system.refresh(|| wall.now());
        (Self(Source::Settable(Arc::new(system), wall.clone())), wall)
    }

    /// A clock that answers what `read` says: for tests and simulations. Its readings must not go backwards.
    #[must_use]
    pub fn from_fn(read: impl Fn() -> Tick + Send + Sync + 'static) -> Self {
        Self(Source::Other(Arc::new(read)))
    }

    /// A clock that stands still until it is moved.
    #[must_use]
    pub fn manual() -> (Self, ManualClock) {
        let manual = ManualClock(Arc::new(AtomicU64::new(ORIGIN_NANOS)));
        let shared = manual.clone();
        (Self::from_fn(move || shared.now()), manual)
    }

    /// Now, to the resolution of a kernel tick. For hits.
    #[inline]
    #[must_use]
    pub fn coarse(&self) -> Tick {
        match &self.0 {
            Source::System(system) => system.coarse(os::wall_coarse),
            Source::Settable(system, wall) => system.coarse(|| wall.now()),
            Source::Other(read) => read(),
        }
    }

    /// Now and the wall clock's milliseconds, for a change: from one reading, half the price of [`Clock::coarse`].
    ///
    /// A suspend or a step of the wall clock is noticed [`RECHECK_NANOS`] later at most. Until then the first may be
    /// too early, so that an entry counts as older than it is, and the second wrong, as wall clocks may be.
    #[inline]
    pub(crate) fn at_change(&self) -> (Tick, u64) {
        match &self.0 {
            Source::System(system) => system.at_change(os::wall_coarse),
            Source::Settable(system, wall) => system.at_change(|| wall.now()),
            Source::Other(_) => (self.coarse(), self.wall_ms()),
        }
    }

    /// Now, precisely.
    #[must_use]
    pub fn now(&self) -> Tick {
        match &self.0 {
            Source::System(system) => system.refresh(os::wall_coarse),
            Source::Settable(system, wall) => system.refresh(|| wall.now()),
            Source::Other(read) => read(),
        }
    }

    /// Milliseconds since 1970, for stamps and people. Decides nothing but which write is the last one where values
    /// travel, and how old it is.
    #[must_use]
    pub fn wall_ms(&self) -> u64 {
        match &self.0 {
            Source::System(_) => os::wall_coarse() / 1_000_000,
            Source::Settable(_, wall) => wall.now() / 1_000_000,
            Source::Other(read) => read().0 / 1_000_000,
        }
    }
}

/// Moves a [`Clock::manual`].
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// Where it stands.
    #[must_use]
    pub fn now(&self) -> Tick {
        Tick(self.0.load(Ordering::SeqCst))
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        let nanos = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

/// Sets the wall clock of a [`Clock::settable`].
#[derive(Clone, Debug, Default)]
pub struct WallClock(Arc<AtomicI64>);

impl WallClock {
    /// Sets it so many seconds ahead of where it stands; negative ones set it back.
    pub fn step(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000_000, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        os::wall_coarse().saturating_add_signed(self.0.load(Ordering::SeqCst))
    }
}

/// A change of the distance between wall and monotonic time beyond this means a suspend or a step of the wall clock.
const JUMP_NANOS: u64 = 50_000_000;

/// Monotonic time after which a change looks at the wall clock again.
const RECHECK_NANOS: u64 = 100_000_000;

#[derive(Default)]
struct System {
    /// Boot time minus monotonic time: how long the machine has been suspended, in nanoseconds.
    suspended: AtomicU64,
    /// Wall time minus monotonic time when that was measured.
    distance: AtomicU64,
    /// Monotonic time when a change last looked at the wall clock.
    checked: AtomicU64,
}

impl System {
    #[inline]
    fn coarse(&self, wall: impl Fn() -> u64) -> Tick {
        let monotonic = os::monotonic_coarse();
        let distance = wall().wrapping_sub(monotonic);
        let change = distance.wrapping_sub(self.distance.load(Ordering::Relaxed)) as i64;
        if change.unsigned_abs() > JUMP_NANOS {
            self.refresh(wall);
        }
        // Not the precise reading: what comes next would be earlier.
        self.tick(monotonic)
    }

    fn tick(&self, monotonic: u64) -> Tick {
        Tick(ORIGIN_NANOS + monotonic + self.suspended.load(Ordering::Relaxed))
    }

    #[inline]
    fn at_change(&self, wall: impl Fn() -> u64) -> (Tick, u64) {
        let monotonic = os::monotonic_coarse();
        if monotonic.saturating_sub(self.checked.load(Ordering::Relaxed)) > RECHECK_NANOS {
            self.checked.store(monotonic, Ordering::Relaxed);
            let _ = self.coarse(wall);
        }
        let wall = monotonic.wrapping_add(self.distance.load(Ordering::Relaxed));
        (self.tick(monotonic), wall / 1_000_000)
    }

    fn refresh(&self, wall: impl Fn() -> u64) -> Tick {
        let distance = wall().wrapping_sub(os::monotonic_coarse());
        let (boot, monotonic) = (os::boot(), os::monotonic());
        self.suspended.fetch_max(boot.saturating_sub(monotonic), Ordering::Relaxed);
        self.distance.store(distance, Ordering::Relaxed);
        Tick(ORIGIN_NANOS + boot)
    }
}

#[cfg(target_os = "linux")]
mod os {
    use rustix::time::{ClockId, clock_gettime};

    fn read(clock: ClockId) -> u64 {
        let time = clock_gettime(clock);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    pub(super) fn monotonic_coarse() -> u64 {
        read(ClockId::MonotonicCoarse)
    }

    pub(super) fn wall_coarse() -> u64 {
        read(ClockId::RealtimeCoarse)
    }

    pub(super) fn monotonic() -> u64 {
        read(ClockId::Monotonic)
    }

    pub(super) fn boot() -> u64 {
        read(ClockId::Boottime)
    }
}

/// Elsewhere there are no coarse clocks; macOS' monotonic clock counts suspended time by itself.
#[cfg(not(target_os = "linux"))]
#[allow(clippy::disallowed_methods, reason = "this is the edge where time is read")]
mod os {
    use std::sync::LazyLock;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);

    pub(super) fn monotonic() -> u64 {
        START.elapsed().as_nanos() as u64
    }

    pub(super) fn wall_coarse() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
    }

    pub(super) use monotonic as monotonic_coarse;
    pub(super) use monotonic as boot;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coarse_readings_follow_precise_ones() {
        let clock = Clock::system();
        let (before, coarse, after) = (clock.now(), clock.coarse(), clock.now());
        // A coarse clock lags by at most one kernel tick (10 ms at 100 Hz).
        assert!(
            before.before(Duration::from_millis(20)) <= coarse && coarse <= after,
            "{before:?} {coarse:?} {after:?}"
        );
    }

    #[test]
    fn readings_never_go_backwards_when_the_wall_clock_jumps() {
        let system = System::default();
        system.refresh(os::wall_coarse);
        for _ in 0..1_000 {
            system.distance.fetch_add(10_000_000_000, Ordering::Relaxed);
            let (first, second) = (system.coarse(os::wall_coarse), system.coarse(os::wall_coarse));
            assert!(first <= second, "{first:?}, then {second:?}");
        }
    }

    #[test]
    fn a_wall_clock_that_is_set_moves_no_tick() {
        let (clock, wall) = Clock::settable();
        for seconds in [600, -1_200] {
            let (before, wall_before) = (clock.now(), clock.wall_ms());
            wall.step(seconds);
            let (coarse, after) = (clock.coarse(), clock.now());
            assert!(
                before.before(Duration::from_millis(20)) <= coarse && coarse <= after,
                "{before:?} {coarse:?}"
            );
            let moved = clock.wall_ms() as i64 - wall_before as i64 - seconds * 1_000;
            assert!((0..60_000).contains(&moved), "{moved} ms besides");
        }
    }

    #[test]
    fn a_suspend_is_counted_at_the_very_next_reading() {
        let system = System::default();
        system.refresh(os::wall_coarse);
        // As if the machine had slept: wall time went on, and what was measured is out of date.
        system.distance.fetch_sub(10_000_000_000, Ordering::Relaxed);
        let before = system.distance.load(Ordering::Relaxed);
        let _ = system.coarse(os::wall_coarse);
        assert_ne!(system.distance.load(Ordering::Relaxed), before, "suspended time was not measured anew");
    }

    #[test]
    fn a_change_is_never_dated_later_than_it_was_and_knows_the_time_of_day() {
        let clock = Clock::system();
        for _ in 0..1_000 {
            let (before, wall_before) = (clock.now(), clock.wall_ms());
            let (at, wall) = clock.at_change();
            let (after, wall_after) = (clock.now(), clock.wall_ms());
            // As above, and a step of the wall clock is passed over up to so much.
            assert!(
                before.before(Duration::from_millis(20)) <= at && at <= after,
                "{before:?} {at:?} {after:?}"
            );
            let step = 20 + JUMP_NANOS / 1_000_000;
            assert!(
                (wall_before - step..=wall_after + step).contains(&wall),
                "{wall_before} {wall} {wall_after}"
            );
        }
    }
}
