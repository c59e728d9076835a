//! Who tells the readers of the log that there is news: one waker for any number of peers, and not too often.
//!
//! A writer wakes the bus at most once however many peers follow; the herald then wakes their readers on the bus's
//! own thread. While events keep coming it gathers them for a moment first: every telling costs a packet and a wake-up
//! per peer, on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tidings_proto::id::{LaneId, Lanes};
use tidings_proto::log::ChangeLog;
use tidings_proto::time::Tick;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Peering;
use crate::timer::Timer;

/// How much later an event may be told for each peer beyond the first, while events keep coming. About what telling
/// one more peer costs both sides together; a little cluster at a moderate rate is not slowed at all.
const LINGER_PER_PEER: Duration = Duration::from_micros(25);

/// The most that an event waits to be told together with others.
const LINGER_MAX: Duration = Duration::from_micros(200);

/// Set beside the lanes' bits while the herald sleeps.
const ASLEEP: u32 = 1 << 31;

/// Tells the readers of all lanes of a node's log.
#[derive(Debug)]
pub struct Herald {
    bell: Arc<Bell>,
    lanes: Box<[Lane]>,
    peers: AtomicUsize,
}

#[derive(Debug)]
struct Lane {
    id: LaneId,
    waker: Waker,
    readers: Notify,
}

/// Lanes with news, a bit each.
#[derive(Debug, Default)]
struct Bell {
    rung: AtomicU32,
    herald: AtomicWaker,
}

/// What the log holds to wake: rings for one lane.
struct Rope {
    bell: Arc<Bell>,
    lane: usize,
}

impl Wake for Rope {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = self.bell.rung.fetch_or(1 << self.lane, Ordering::SeqCst);
        if before & ASLEEP != 0 {
            self.bell.herald.wake();
        }
    }
}

/// A peer that is served; counted until it is dropped.
pub(super) struct Audience<'a>(&'a Herald);

impl Drop for Audience<'_> {
    fn drop(&mut self) {
        self.0.peers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Herald {
    /// For a log with these lanes. Nobody is told anything before [`Herald::run`].
    #[must_use]
    pub fn new(lanes: Lanes) -> Self {
        let bell = Arc::new(Bell::default());
        let lane = |id: LaneId| {
            let rope = Rope { bell: bell.clone(), lane: id.index() };
            Lane { id, waker: Waker::from(Arc::new(rope)), readers: Notify::new() }
        };
        Self { lanes: lanes.ids().map(lane).collect(), bell, peers: AtomicUsize::new(0) }
    }

    /// Tells readers until it is dropped. `linger`: whether to gather events while they keep coming, which needs the
    /// system's clock.
    pub async fn run(&self, node: &dyn Peering, linger: bool) {
        let mut timer = if linger { Timer::new() } else { None };
        self.lanes.iter().for_each(|lane| self.tell(node.log(), lane));
        let mut told = Tick::NEVER;
        loop {
            let mut rung = self.rung().await;
            if let Some(timer) = &mut timer
                && let Some(rest) = wait(self.peers.load(Ordering::Relaxed), node.now().since(told))
            {
                timer.sleep(rest).await;
                rung |= self.take();
            }
            told = node.now();
            for lane in self.lanes.iter().filter(|lane| rung & 1 << lane.id.index() != 0) {
                self.tell(node.log(), lane);
            }
        }
    }

    /// Listens again, and only then wakes the readers: what is appended from now on rings.
    fn tell(&self, log: &ChangeLog, lane: &Lane) {
        log.listen(lane.id, &lane.waker);
        lane.readers.notify_waiters();
    }

    /// Resolves when the lane may have more than there was when this was called (not when it is polled first).
    pub(super) fn news(&self, lane: LaneId) -> Notified<'_> {
        self.lanes[lane.index()].readers.notified()
    }

    pub(super) fn attend(&self) -> Audience<'_> {
        self.peers.fetch_add(1, Ordering::Relaxed);
        Audience(self)
    }

    fn take(&self) -> u32 {
        self.bell.rung.swap(0, Ordering::SeqCst) & !ASLEEP
    }

    /// Waits until some lane has news.
    async fn rung(&self) -> u32 {
        std::future::poll_fn(|context| {
            let rung = self.take();
            if rung != 0 {
                return Poll::Ready(rung);
            }
            self.bell.herald.register(context.waker());
            match self.bell.rung.fetch_or(ASLEEP, Ordering::SeqCst) & !ASLEEP {
                0 => Poll::Pending,
                _ => Poll::Ready(self.take()),
            }
        })
        .await
    }
}

/// How long to wait before telling, if at all, given how long ago was told last.
fn wait(peers: usize, since: Duration) -> Option<Duration> {
    let beyond = u32::try_from(peers.saturating_sub(1)).unwrap_or(u32::MAX);
    let linger = LINGER_PER_PEER.saturating_mul(beyond).min(LINGER_MAX);
    linger.checked_sub(since).filter(|rest| !rest.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_after_a_pause_is_told_at_once() {
        for peers in [0, 1, 2, 100] {
            assert_eq!(wait(peers, LINGER_MAX), None);
        }
    }

    #[test]
    fn events_that_keep_coming_wait_the_longer_the_more_peers_are_told_up_to_a_bound() {
        assert_eq!(wait(1, Duration::ZERO), None);
        assert_eq!(wait(2, Duration::ZERO), Some(LINGER_PER_PEER));
        assert_eq!(wait(3, LINGER_PER_PEER), Some(LINGER_PER_PEER));
        assert_eq!(wait(usize::MAX, Duration::ZERO), Some(LINGER_MAX));
    }
}
