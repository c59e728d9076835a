//! Readers that wait for an append, kept under the same lock as what they read: no wake-up can be lost.

use std::task::Waker;

/// Wakers of readers that found nothing to read.
#[derive(Debug, Default)]
pub struct Waiters(Vec<Waker>);

impl Waiters {
    /// Remembers a reader. Call under the lock under which it found nothing.
    pub fn register(&mut self, waker: &Waker) {
        if !self.0.iter().any(|known| known.will_wake(waker)) {
            self.0.push(waker.clone());
        }
    }

    /// Takes all waiting readers, to be woken after the lock is released. Costs nothing when none waits.
    #[must_use = "readers stay asleep unless they are woken"]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Wakes them. Call without any lock.
    pub fn wake(self) {
        for waker in self.0 {
            waker.wake();
        }
    }
}
