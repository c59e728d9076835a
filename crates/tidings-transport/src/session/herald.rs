//! Who tells the readers of the log that there is news: one waker for any number of peers, and not too often.
//!
//! A writer wakes the bus at most once however many peers follow; the herald then wakes their readers on the bus's
//! own thread. While events keep coming it gathers them for a moment first: every telling costs a packet and a wake-up
//! per peer, on both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tidings_proto::histogram::Histogram;
use tidings_proto::id::{LaneId, Lanes, Sequence};
use tidings_proto::time::Tick;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Peering;
use super::marks::Marks;
use super::pace::{Due, Pace};
use crate::timer::Timer;

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
    marks: Mutex<Marks>,
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
            Lane { id, waker: Waker::from(Arc::new(rope)), readers: Notify::new(), marks: Mutex::default() }
        };
        Self { lanes: lanes.ids().map(lane).collect(), bell, peers: AtomicUsize::new(0) }
    }

    /// Tells readers until it is dropped. `linger`: whether to gather events while they keep coming, which needs the
    /// system's clock.
    pub async fn run(&self, node: &dyn Peering, linger: bool) {
        let mut timer = if linger { Timer::new() } else { None };
        self.lanes.iter().for_each(|lane| self.tell(node, lane, node.now()));
        let mut pace = Pace::default();
        loop {
            let mut rung = self.rung().await;
            let heard = node.now();
            if let Some(timer) = &mut timer {
                let peers = self.peers.load(Ordering::Relaxed);
                let due = pace.due(heard, peers);
                match due {
                    Due::Now => {}
                    Due::After(time) => timer.sleep(time).await,
                    Due::WithNext(time) => {
                        self.lanes_in(rung).for_each(|lane| node.log().listen(lane.id, &lane.waker));
                        let next = tokio::select! {
                            more = self.rung() => more,
                            () = timer.sleep(time) => 0,
                        };
                        if next != 0 {
                            timer.stop();
                        }
                        rung |= next;
                    }
                }
                let told = if due == Due::Now { heard } else { node.now() };
                rung |= self.take();
                pace.tell(told, peers);
            }
            self.lanes_in(rung).for_each(|lane| self.tell(node, lane, heard));
        }
    }

    fn lanes_in(&self, rung: u32) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(move |lane| rung & 1 << lane.id.index() != 0)
    }

    /// Listens again, and only then wakes the readers: what is appended from now on rings.
    fn tell(&self, node: &dyn Peering, lane: &Lane, heard: Tick) {
        node.log().listen(lane.id, &lane.waker);
        let head = node.log().head(lane.id);
        lane.marks.lock().note(head, heard);
        node.known(lane.id, head, heard);
        lane.readers.notify_waiters();
    }

    /// Resolves when the lane may have more than there was when this was called (not when it is polled first).
    pub(super) fn news(&self, lane: LaneId) -> Notified<'_> {
        self.lanes[lane.index()].readers.notified()
    }

    /// Counts how old the events after `after` up to `to` are now.
    pub(super) fn count_ages(
        &self,
        lane: LaneId,
        after: Sequence,
        to: Sequence,
        now: Tick,
        ages: &Histogram,
    ) {
        let mut marks = self.lanes[lane.index()].marks.lock();
        // A reader that was awake may have sent what the herald has not heard of.
        marks.note(to, now);
        marks.since(after, to).for_each(|(count, heard)| ages.record_many(now.since(heard), count));
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
