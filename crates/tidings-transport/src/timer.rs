//! A timer of microseconds: the runtime's own ticks every millisecond.

use std::time::Duration;

/// Sleeps for less than a millisecond, where the system offers it.
#[derive(Debug)]
pub(crate) struct Timer {
    #[cfg(target_os = "linux")]
    timer: tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// `None` if the system grants none. Needs a runtime.
    #[allow(deprecated, reason = "sound for an owned descriptor; the replacement is unsafe")]
    pub(crate) fn new() -> Option<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).ok()?;
        let timer = tokio::io::unix::AsyncFd::with_interest(timer, tokio::io::Interest::READABLE).ok()?;
        Some(Self { timer })
    }

    /// Returns after this time, or at once if the timer fails.
    ///
    /// # Cancel safety
    /// Cancel-safe; a sleep that is cancelled goes on for nobody until [`Timer::stop`], and may end the next one early.
    pub(crate) async fn sleep(&mut self, time: Duration) {
        if !self.set(time.max(Duration::from_nanos(1))) {
            return;
        }
        let mut count = [0; 8];
        while let Ok(mut ready) = self.timer.readable().await {
            // Any answer but "not yet" ends the sleep.
            if ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut count)?)).is_ok() {
                return;
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl Timer {
    /// Ends a sleep that was cancelled: nobody is woken for it.
    pub(crate) fn stop(&mut self) {
        self.set(Duration::ZERO);
    }

    /// Fires once after this time; never for none. Returns whether that could be set.
    #[allow(deprecated, reason = "sound for an owned descriptor; the replacement is unsafe")]
    fn set(&self, time: Duration) -> bool {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = time.as_secs().try_into().unwrap_or(i64::MAX);
        let once = Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
        let setting = Itimerspec { it_interval: never, it_value: once };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &setting).is_ok()
    }
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    pub(crate) fn new() -> Option<Self> {
        None
    }

    pub(crate) async fn sleep(&mut self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    pub(crate) fn stop(&mut self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_takes_its_time_and_can_be_repeated_after_a_cancelled_one() {
        let mut timer = Timer::new().expect("the system has timers");
        let long = timer.sleep(Duration::from_secs(60));
        assert!(tokio::time::timeout(Duration::from_millis(5), long).await.is_err(), "it ended early");
        let before = tokio::time::Instant::now();
        timer.sleep(Duration::from_micros(300)).await;
        assert!(before.elapsed() >= Duration::from_micros(300));
    }
}
