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
use super::pace::{GROUPS, Next, Turns};
use crate::timer::Timer;

/// Set beside the lanes' bits while the herald sleeps.
const ASLEEP: u32 = 1 << 31;

/// Tells the readers of all lanes of a node's log.
#[derive(Debug)]
pub struct Herald {
    bell: Arc<Bell>,
    lanes: Box<[Lane]>,
    /// Peers by group.
    peers: [AtomicUsize; GROUPS],
}

#[derive(Debug)]
struct Lane {
    id: LaneId,
    waker: Waker,
    /// Those who read for the peers of each group.
    readers: [Notify; GROUPS],
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
pub(super) struct Audience<'a> {
    herald: &'a Herald,
    group: usize,
}

impl Audience<'_> {
    /// Resolves when the lane may have more than there was when this was called (not when it is polled first).
    pub(super) fn news(&self, lane: LaneId) -> Notified<'_> {
        self.herald.lanes[lane.index()].readers[self.group].notified()
    }
}

impl Drop for Audience<'_> {
    fn drop(&mut self) {
        self.herald.peers[self.group].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Herald {
    /// For a log with these lanes. Nobody is told anything before [`Herald::run`].
    #[must_use]
    pub fn new(lanes: Lanes) -> Self {
        let bell = Arc::new(Bell::default());
        let lane = |id: LaneId| {
            let rope = Rope { bell: bell.clone(), lane: id.index() };
            Lane {
                id,
                waker: Waker::from(Arc::new(rope)),
                readers: Default::default(),
                marks: Mutex::default(),
            }
        };
        Self { lanes: lanes.ids().map(lane).collect(), bell, peers: Default::default() }
    }

    /// Tells readers until it is dropped. `linger`: whether to gather events while they keep coming, which needs the
    /// system's clock.
    pub async fn run(&self, node: &dyn Peering, linger: bool) {
        let mut timer = if linger { Timer::new() } else { None };
        let (mut turns, mut next) = (Turns::default(), Next::Rest);
        let (mut rung, mut now) = (u32::MAX, node.now());
        let mut heard = now;
        loop {
            // Listens again, and only then wakes readers: what is appended from now on rings.
            self.lanes_in(rung).for_each(|lane| self.hear(node, lane, heard));
            let told = match timer {
                Some(_) => {
                    let peers = self.peers.each_ref().map(|peers| peers.load(Ordering::Relaxed));
                    let (told, then) = turns.step(rung, (heard, now), peers);
                    next = then;
                    told
                }
                None => [rung; GROUPS],
            };
            for (group, lanes) in told.into_iter().enumerate() {
                self.lanes_in(lanes).for_each(|lane| lane.readers[group].notify_waiters());
            }
            let before = now;
            rung = match (next, &mut timer) {
                (Next::Listen(time), Some(timer)) => {
                    let rung = tokio::select! {
                        rung = self.rung() => rung,
                        () = timer.sleep(time) => 0,
                    };
                    if rung != 0 {
                        timer.stop();
                    }
                    rung | self.take()
                }
                (Next::Gather(time), Some(timer)) => {
                    timer.sleep(time).await;
                    self.take()
                }
                _ => self.rung().await,
            };
            now = node.now();
            // What came while nobody listened may have come at its beginning.
            heard = if matches!(next, Next::Gather(_)) { before } else { now };
        }
    }

    fn lanes_in(&self, rung: u32) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().filter(move |lane| rung & 1 << lane.id.index() != 0)
    }

    /// Listens to a lane, and notes what it has since `heard`.
    fn hear(&self, node: &dyn Peering, lane: &Lane, heard: Tick) {
        node.log().listen(lane.id, &lane.waker);
        let head = node.log().head(lane.id);
        lane.marks.lock().note(head, heard);
        node.known(lane.id, head, heard);
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

    /// Takes a peer into the smallest group.
    pub(super) fn attend(&self) -> Audience<'_> {
        let peers = self.peers.iter().map(|peers| peers.load(Ordering::Relaxed));
        let (group, _) = peers.enumerate().min_by_key(|(_, peers)| *peers).unwrap_or_default();
        self.peers[group].fetch_add(1, Ordering::Relaxed);
        Audience { herald: self, group }
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
