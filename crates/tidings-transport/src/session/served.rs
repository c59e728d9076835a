//! What one peer has acknowledged of this node's log, and who waits for that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tidings_proto::histogram::Histogram;
use tidings_proto::id::{FIRST, LaneId, Lanes, Sequence};
use tidings_proto::time::Tick;
use tokio::sync::Notify;

use super::Peering;

/// What one peer has applied of this node's log.
#[derive(Debug)]
pub struct Served {
    lanes: Box<[ServedLane]>,
    changed: Notify,
    times: Arc<Histogram>,
    /// When its last probe came.
    heard: AtomicU64,
}

#[derive(Debug, Default)]
struct ServedLane {
    acked: AtomicU64,
    /// The lane's head when the peer first followed it: what was there before has no age for it.
    first: OnceLock<Sequence>,
    /// What it must acknowledge to have applied a record of this lane, rather than a fence; 0 until it follows.
    proof: AtomicU64,
    /// What it has acknowledged to this node's present life.
    shown: AtomicU64,
    /// Those who wait, by what they wait for, so that an acknowledgement finds the ones that it serves. Whoever adds
    /// one bounds how many there are.
    waiting: Mutex<BTreeMap<Place, Arc<Waiter>>>,
}

impl ServedLane {
    fn is_proven(&self) -> bool {
        let proof = self.proof.load(Ordering::Acquire);
        proof > 0 && self.shown.load(Ordering::Acquire) >= proof
    }
}

/// A sequence, and a number that tells several apart that wait for it.
type Place = (Sequence, u64);

/// Waits for acknowledgements of several peers in several lanes, and is woken once, when all have come.
#[derive(Debug)]
pub struct Waiter {
    number: u64,
    /// What has not come yet; one more until [`Waiter::armed`].
    open: AtomicUsize,
    changed: Notify,
}

impl Waiter {
    /// Waits for nothing yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { number, open: AtomicUsize::new(1), changed: Notify::new() })
    }

    /// Everything that it waits for has been named.
    pub fn armed(&self) {
        self.came();
    }

    fn came(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.changed.notify_waiters();
        }
    }

    /// Waits until everything has come.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn all(&self) {
        loop {
            let changed = self.changed.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

/// One acknowledgement that a [`Waiter`] waits for, until it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it waits no longer"]
pub struct Watch {
    served: Arc<Served>,
    lane: LaneId,
    place: Place,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let removed = self.served.lane(self.lane).and_then(|lane| lane.waiting.lock().remove(&self.place));
        if let Some(waiter) = removed {
            waiter.came();
        }
    }
}

impl Served {
    /// Nothing is acknowledged yet. `times`: where the age of each event is counted when the peer has acknowledged it.
    #[must_use]
    pub fn new(lanes: Lanes, times: Arc<Histogram>) -> Self {
        let lanes = lanes.ids().map(|_| ServedLane::default()).collect();
        Self { lanes, changed: Notify::new(), times, heard: AtomicU64::new(Tick::NEVER.0) }
    }

    /// How old events were when the peer had acknowledged them: from when this node's bus heard of them, by this node's
    /// clock, events before the peer's first request left out.
    #[must_use]
    pub fn times(&self) -> &Arc<Histogram> {
        &self.times
    }

    fn lane(&self, lane: LaneId) -> Option<&ServedLane> {
        self.lanes.get(lane.index())
    }

    pub(super) fn follows(&self, lane: LaneId, head: Sequence) {
        if let Some(lane) = self.lane(lane) {
            lane.first.get_or_init(|| head);
        }
    }

    /// The peer continues from this position, for it has everything before.
    pub(super) fn resumes(&self, lane: LaneId, from: Sequence) {
        if let Some(lane) = self.lane(lane) {
            // What it was to acknowledge before still counts: its word may have been on its way.
            let first = from.saturating_sub(1).max(FIRST);
            let _ = lane.proof.compare_exchange(0, first, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The peer continues from this position behind a fence. Returns whether it has yet to show that it applies records.
    pub(super) fn resets(&self, lane: LaneId, next: Sequence) -> bool {
        let Some(lane) = self.lane(lane).filter(|lane| !lane.is_proven()) else { return false };
        lane.proof.store(next, Ordering::Release);
        true
    }

    /// This node has another life: what the peer has shown to the last one proves nothing. What it has acknowledged stays.
    pub fn renumbered(&self) {
        for lane in &self.lanes {
            lane.proof.store(0, Ordering::Release);
            lane.shown.store(0, Ordering::Release);
        }
    }

    /// Whether the peer has applied and acknowledged at least one record of every lane, in this node's present life.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.lanes.iter().all(ServedLane::is_proven)
    }

    pub(super) fn ack(&self, lane_id: LaneId, sequence: Sequence, node: &dyn Peering) {
        let Some(lane) = self.lane(lane_id) else { return };
        let before = self.acknowledged(lane, sequence).max(lane.first.get().copied().unwrap_or(0));
        // No further than there is anything, whatever the peer says.
        let known = sequence.min(node.log().head(lane_id));
        node.herald().count_ages(lane_id, before, known, node.now(), &self.times);
        self.changed.notify_waiters();
    }

    /// Notes an acknowledgement and wakes whom it serves. Returns what was acknowledged before.
    fn acknowledged(&self, lane: &ServedLane, sequence: Sequence) -> Sequence {
        let mut waiting = lane.waiting.lock();
        // Under the lock, so that whoever begins to wait sees it or is seen.
        let before = lane.acked.fetch_max(sequence, Ordering::AcqRel);
        lane.shown.fetch_max(sequence, Ordering::AcqRel);
        let mut served = Vec::new();
        while let Some(first) = waiting.first_entry().filter(|first| first.key().0 <= sequence) {
            served.push(first.remove());
        }
        drop(waiting);
        served.iter().for_each(|waiter| waiter.came());
        before
    }

    /// Notes that the peer asked for confirmation.
    pub(super) fn probed(&self, now: Tick) {
        self.heard.fetch_max(now.0, Ordering::AcqRel);
    }

    /// When the peer last asked for confirmation, which no answer dates later; [`Tick::NEVER`] if it never did.
    #[must_use]
    pub fn heard(&self) -> Tick {
        Tick(self.heard.load(Ordering::Acquire))
    }

    /// Lets a waiter wait until the peer has acknowledged a position. `None` if it has.
    #[must_use = "dropped, it waits no longer"]
    pub fn watch(self: &Arc<Self>, lane: LaneId, sequence: Sequence, waiter: &Arc<Waiter>) -> Option<Watch> {
        let of_lane = self.lane(lane)?;
        let place = (sequence, waiter.number);
        let mut waiting = of_lane.waiting.lock();
        if of_lane.acked.load(Ordering::Acquire) >= sequence {
            return None;
        }
        waiter.open.fetch_add(1, Ordering::AcqRel);
        waiting.insert(place, waiter.clone());
        drop(waiting);
        Some(Watch { served: self.clone(), lane, place })
    }

    /// How many acknowledgements of this peer are waited for.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.lanes.iter().map(|lane| lane.waiting.lock().len()).sum()
    }

    /// Whether the peer has acknowledged all of these.
    #[must_use]
    pub fn has_reached(&self, positions: &[(LaneId, Sequence)]) -> bool {
        let reached = |lane: &ServedLane, sequence| lane.acked.load(Ordering::Acquire) >= sequence;
        positions.iter().all(|(lane, sequence)| self.lane(*lane).is_some_and(|lane| reached(lane, *sequence)))
    }

    /// Events that the heads have and the peer has not acknowledged.
    #[must_use]
    pub fn lag(&self, heads: &[Sequence]) -> u64 {
        let behind =
            |(lane, head): (&ServedLane, &Sequence)| head.saturating_sub(lane.acked.load(Ordering::Acquire));
        self.lanes.iter().zip(heads).map(behind).sum()
    }

    /// Waits until the peer has acknowledged all of these.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn reached(&self, heads: &[Sequence]) {
        loop {
            let changed = self.changed.notified();
            if self.lag(heads) == 0 {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    fn served() -> Arc<Served> {
        Arc::new(Served::new(Lanes::default(), Arc::default()))
    }

    fn lane(index: usize) -> LaneId {
        Lanes::default().ids().nth(index).unwrap()
    }

    fn acks(served: &Served, index: usize, sequence: Sequence) {
        served.acknowledged(&served.lanes[index], sequence);
    }

    #[test]
    fn a_waiter_is_woken_once_everything_is_acknowledged_and_by_nothing_less() {
        let (one, other) = (served(), served());
        acks(&one, 0, 4);
        let waiter = Waiter::new();
        assert!(one.watch(lane(0), 4, &waiter).is_none(), "it is acknowledged");
        let watches = [(&one, 0, 5), (&one, 1, 7), (&other, 0, 5)]
            .map(|(served, index, sequence)| served.watch(lane(index), sequence, &waiter).unwrap());
        waiter.armed();
        let mut all = pin!(waiter.all());
        for (served, index, sequence) in [(&one, 0, 9), (&one, 0, 9), (&one, 1, 6), (&other, 0, 5)] {
            assert!(all.as_mut().now_or_never().is_none());
            acks(served, index, sequence);
        }
        assert!(all.as_mut().now_or_never().is_none(), "lane 1 is not there yet");
        acks(&one, 1, 7);
        assert!(all.now_or_never().is_some());
        assert!(one.has_reached(&[(lane(0), 9), (lane(1), 7)]) && !one.has_reached(&[(lane(0), 10)]));
        drop(watches);
    }

    #[test]
    fn who_waits_no_longer_leaves_nothing_behind_and_is_not_waited_for() {
        let (one, other) = (served(), served());
        let waiter = Waiter::new();
        let gone = one.watch(lane(0), 5, &waiter).unwrap();
        let stays = other.watch(lane(0), 5, &waiter).unwrap();
        waiter.armed();
        drop(gone);
        assert_eq!((one.watched(), other.watched()), (0, 1));
        assert!(waiter.all().now_or_never().is_none());
        acks(&other, 0, 5);
        assert!(waiter.all().now_or_never().is_some());
        drop(stays);
        assert_eq!(other.watched(), 0);
    }

    #[test]
    fn a_peer_proves_itself_by_a_record_of_every_lane_and_not_by_a_fence() {
        let served = served();
        let lanes: Vec<_> = Lanes::default().ids().collect();
        lanes.iter().for_each(|lane| served.resumes(*lane, FIRST));
        (1..lanes.len()).for_each(|index| acks(&served, index, 1));
        assert!(!served.is_proven(), "a lane is missing");
        assert!(served.resets(lanes[0], 100));
        acks(&served, 0, 99);
        assert!(!served.is_proven(), "what was fenced was not applied");
        served.resumes(lanes[0], 101);
        acks(&served, 0, 100);
        assert!(served.is_proven(), "it acknowledges on a new link what it had applied on the last one");
        assert!(!served.resets(lanes[0], 1_000) && served.is_proven(), "what it has shown it has shown");
    }

    #[test]
    fn what_a_peer_has_shown_to_one_life_proves_nothing_to_the_next() {
        let served = served();
        let lanes: Vec<_> = Lanes::default().ids().collect();
        let all = |from| lanes.iter().for_each(|lane| served.resumes(*lane, from));
        all(FIRST);
        (0..lanes.len()).for_each(|index| acks(&served, index, 9));
        assert!(served.is_proven());
        served.renumbered();
        assert!(!served.is_proven());
        assert_eq!(served.lag(&vec![9; lanes.len()]), 0, "what it has applied it has applied");
        all(FIRST);
        assert!(!served.is_proven(), "it follows, and has said nothing yet");
        (0..lanes.len()).for_each(|index| acks(&served, index, 1));
        assert!(served.is_proven());
    }

    #[test]
    fn several_that_wait_for_one_position_are_all_woken() {
        let served = served();
        let waiters: Vec<_> = (0..3).map(|_| Waiter::new()).collect();
        let watches: Vec<_> = waiters.iter().map(|waiter| served.watch(lane(2), 5, waiter)).collect();
        waiters.iter().for_each(|waiter| waiter.armed());
        assert_eq!(served.watched(), 3);
        acks(&served, 2, 5);
        assert!(waiters.iter().all(|waiter| waiter.all().now_or_never().is_some()));
        drop(watches);
    }
}
