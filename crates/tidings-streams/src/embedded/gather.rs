//! Calls on their way to the store's thread: how many of them one flush should stand for, and how they are waited for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;

use super::store::Store;
use crate::error::StoreError;

/// Calls that one write and one sync stand for, at most: none of them should wait for much more than its own.
pub(super) const CALLS_PER_FLUSH: usize = 512;

/// Longest wait for more calls, if a flush takes longer: of a disk that takes its time, what nobody notices beside it.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// Longest time in which the thread looks for calls and does not sleep, and the part of a flush that it is at most.
/// Being put to sleep and woken takes a good part of what a sync of a fast disk does, and would be paid for every sync.
const LOOK_MAX: Duration = Duration::from_micros(100);
const LOOKS_PER_FLUSH: u32 = 2;

/// Where nobody came while the thread looked, it sleeps at once for the next two flushes, then four, and so on up to
/// this power of two: those who would come may need the processor that it looks with.
const REST_POWER_MAX: u32 = 6;

/// What a flush takes at least where it is worth to wait for more calls: one that syncs nothing takes less.
const GATHERED_FLUSH_MIN: Duration = Duration::from_micros(30);

/// Where waiting for more calls was in vain it is tried again after so many flushes: it costs each of them an eighth
/// then.
const FLUSHES_PER_TRIAL: u32 = 8;

/// What a call leaves behind: told once everything before it is written.
pub(super) type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What to do, with the store, or with why nothing is done any more.
pub(super) type Work = Box<dyn FnOnce(Result<&mut Store, StoreError>) -> Reply + Send>;

pub(super) enum What {
    Do(Work),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

pub(super) struct Call {
    pub(super) what: What,
    /// One of as many as calls may wait: free once the thread has come to the call.
    pub(super) place: OwnedSemaphorePermit,
}

/// Calls on their way to the thread. Whoever puts one there has a place, so there are no more than of those.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<Waiting>,
    arrived: Condvar,
    /// How many calls there are, for whoever looks without the lock.
    count: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    /// The thread sleeps until there are so many: it is not woken for each.
    wanted: usize,
    is_closed: bool,
}

impl Inbox {
    pub(super) fn put(&self, call: Call) -> Result<(), StoreError> {
        let mut waiting = self.state.lock();
        if waiting.is_closed {
            return Err(StoreError::Closed);
        }
        waiting.calls.push_back(call);
        self.count.store(waiting.calls.len(), Ordering::Relaxed);
        if waiting.calls.len() >= waiting.wanted {
            self.arrived.notify_one();
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// Lets nobody in any more, and yields who is there.
    pub(super) fn end(&self) -> VecDeque<Call> {
        self.close();
        self.take(&mut self.state.lock())
    }

    fn take(&self, waiting: &mut Waiting) -> VecDeque<Call> {
        waiting.wanted = usize::MAX;
        self.count.store(0, Ordering::Relaxed);
        std::mem::take(&mut waiting.calls)
    }

    /// All calls, once there are any. None: it is closed.
    pub(super) fn take_any(&self) -> VecDeque<Call> {
        let mut waiting = self.state.lock();
        waiting.wanted = 1;
        self.arrived.wait_while(&mut waiting, |waiting| waiting.calls.is_empty() && !waiting.is_closed);
        self.take(&mut waiting)
    }

    /// Whether any call came before a moment: looks without sleep.
    pub(super) fn look(&self, until: Instant) -> bool {
        while self.len() == 0 {
            if Instant::now() >= until {
                return false;
            }
            std::hint::spin_loop();
        }
        true
    }

    /// More calls: those that are there, or else what comes until there are so many or until a moment. None: nobody
    /// came in time, or it is closed.
    pub(super) fn take_more(&self, wanted: usize, until: Instant) -> VecDeque<Call> {
        let mut waiting = self.state.lock();
        if waiting.calls.is_empty() {
            waiting.wanted = wanted;
            let too_few = |waiting: &mut Waiting| waiting.calls.len() < wanted && !waiting.is_closed;
            self.arrived.wait_while_until(&mut waiting, too_few, until.into_std());
        }
        self.take(&mut waiting)
    }
}

/// How many calls are worth waiting for, and how long.
///
/// Whoever was answered by a flush most likely asks for more at once, and a sync that stood for the first of them would
/// keep all others waiting. They are waited for as long as a flush takes, where that was not in vain the last time.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pub(super) calls: usize,
    pub(super) patience: Duration,
    /// There were so many when they were flushed.
    came: bool,
    /// Flushes since they were waited for.
    flushes: u32,
    /// How often in a row nobody came while the thread looked, up to the most that counts.
    misses: u32,
    /// Flushes before it looks again.
    rests: u32,
}

impl Pace {
    /// After a flush of so many calls that took so long, and with so many callers: those that it answered, and those
    /// that have come meanwhile.
    pub(super) fn after(&mut self, took: Duration, flushed: usize, callers: usize) {
        self.came = flushed >= self.calls;
        self.flushes += 1;
        let is_worth = callers > 1 && took >= GATHERED_FLUSH_MIN;
        let waits = is_worth && (self.came || self.flushes >= FLUSHES_PER_TRIAL);
        self.calls = callers.min(CALLS_PER_FLUSH);
        self.patience = if waits { took.min(GATHER_MAX) } else { Duration::ZERO };
        if waits {
            self.flushes = 0;
        }
    }

    /// For how long calls are looked for without sleep.
    pub(super) fn look(&mut self) -> Duration {
        if self.rests > 0 {
            self.rests -= 1;
            return Duration::ZERO;
        }
        (self.patience / LOOKS_PER_FLUSH).min(LOOK_MAX)
    }

    /// Whether anybody came meanwhile.
    pub(super) fn looked(&mut self, found: bool) {
        self.misses = if found { 0 } else { (self.misses + 1).min(REST_POWER_MAX) };
        self.rests = if found { 0 } else { 1 << self.misses };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn callers_are_waited_for_while_they_come_and_else_now_and_then() {
        const FLUSH: Duration = Duration::from_micros(200);
        let mut pace = Pace::default();
        pace.after(FLUSH, 16, 16);
        assert_eq!((pace.calls, pace.patience), (16, FLUSH));
        pace.after(Duration::from_secs(1), 16, 2_000);
        assert_eq!((pace.calls, pace.patience), (CALLS_PER_FLUSH, GATHER_MAX));
        pace.after(FLUSH, CALLS_PER_FLUSH, 1);
        assert_eq!(pace.patience, Duration::ZERO, "nobody else is there");
        pace.after(Duration::from_micros(5), 1, 16);
        assert_eq!(pace.patience, Duration::ZERO, "nothing was synced");
        let mut pace = Pace { calls: 16, ..Pace::default() };
        let waits = (0..80).filter(|_| {
            pace.after(FLUSH, 1, 16);
            !pace.patience.is_zero()
        });
        assert_eq!(waits.count(), 10, "they never come");
    }

    #[test]
    fn nobody_is_looked_for_often_where_nobody_comes_meanwhile() {
        let mut pace = Pace { patience: Duration::from_micros(120), ..Pace::default() };
        assert_eq!(pace.look(), Duration::from_micros(60));
        pace.looked(true);
        assert_eq!(pace.look(), Duration::from_micros(60));
        let mut looks = 0;
        for _ in 0..1_000 {
            if !pace.look().is_zero() {
                looks += 1;
                pace.looked(false);
            }
        }
        assert!((10..25).contains(&looks), "{looks} of a thousand flushes");
        pace = Pace { patience: Duration::from_secs(1), ..Pace::default() };
        assert_eq!(pace.look(), LOOK_MAX);
    }

    #[test]
    fn calls_are_slept_for_until_there_are_enough() {
        let inbox = Inbox::default();
        let places = Arc::new(Semaphore::new(2));
        let call = || Call {
            what: What::Do(Box::new(|_| Box::new(|_| ()))),
            place: Arc::clone(&places).try_acquire_owned().unwrap(),
        };
        let now = Instant::now();
        let until = now + Duration::from_secs(3_600);
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| inbox.take_more(2, until).len());
            // Else they are there already, and need not be waited for.
            while inbox.state.lock().wanted != 2 {
                std::thread::yield_now();
            }
            inbox.put(call()).unwrap();
            inbox.put(call()).unwrap();
            assert_eq!(taken.join().unwrap(), 2);
        });
        assert!(inbox.take_more(1, now).is_empty(), "nobody comes in time");
        inbox.close();
        assert!(inbox.take_any().is_empty(), "nobody can come any more");
        assert!(matches!(inbox.put(call()), Err(StoreError::Closed)));
    }
}
