//! Relaying: of whom each origin is asked, what is kept of others' logs for those who ask here, and what they have
//! applied, on its way up.
//!
//! A node that does not relay pays one atomic read for each batch that it applies, and nothing for its own changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tidings_proto::id::{LaneId, NodeId, Origin, Sequence};
use tidings_proto::log::{Cursor, Read};
use tidings_proto::record::Batch;
use tidings_proto::relay::{Acked, Acks, HELD_BYTES_MAX, Held, Lacking, Position, Relayed};
use tidings_proto::time::Tick;
use tokio::sync::{Notify, watch};

use super::{Course, Followed};

/// What came of relaying so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayReport {
    /// The cluster is so large that this node passes on what others change.
    pub on: bool,
    /// Bytes that are kept of others' logs, for those who ask here.
    pub held_bytes: usize,
    /// How often an origin was asked of somebody else from then on.
    pub redirected: u64,
    /// How often a relay did not hold what was missing here.
    pub lacking: u64,
    /// Acknowledgements that were not passed on, for there are too many followers.
    pub acks_dropped: u64,
}

/// What one node relays, and what it follows by way of others. Locked in this order: the routes, an origin's path, its
/// follower, what is held or acknowledged.
#[derive(Debug)]
pub struct Relaying {
    /// Since when this node relays; [`Tick::FOREVER`] while it does not.
    since: AtomicU64,
    held: Mutex<Held>,
    acks: Mutex<Acks>,
    routes: Mutex<Routes>,
    changed: watch::Sender<()>,
    /// When somebody who relays last asked this node for confirmation.
    probed: AtomicU64,
    redirected: AtomicU64,
    lacking: AtomicU64,
    acks_dropped: AtomicU64,
}

/// Origins that have a path. All others are asked themselves.
#[derive(Debug, Default)]
struct Routes {
    routed: BTreeMap<Origin, Arc<Followed>>,
    by_source: BTreeMap<NodeId, Vec<Arc<Followed>>>,
}

impl Routes {
    fn regroup(&mut self) {
        self.by_source.clear();
        for followed in self.routed.values() {
            self.by_source.entry(followed.source()).or_default().push(followed.clone());
        }
    }
}

impl Default for Relaying {
    fn default() -> Self {
        Self {
            since: AtomicU64::new(Tick::FOREVER.0),
            held: Mutex::new(Held::new(HELD_BYTES_MAX)),
            acks: Mutex::default(),
            routes: Mutex::default(),
            changed: watch::Sender::default(),
            probed: AtomicU64::new(Tick::NEVER.0),
            redirected: AtomicU64::new(0),
            lacking: AtomicU64::new(0),
            acks_dropped: AtomicU64::new(0),
        }
    }
}

impl Relaying {
    /// Whether this node relays.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.since().is_some()
    }

    pub(super) fn since(&self) -> Option<Tick> {
        let since = Tick(self.since.load(Ordering::Acquire));
        (since < Tick::FOREVER).then_some(since)
    }

    /// Begins to relay, or ceases to: then nobody is served any more, and what was kept for them is let go of. `now` is
    /// read by this, once everybody can see that the node relays.
    pub fn turn(&self, on: bool, now: impl FnOnce() -> Tick) {
        if on == self.is_on() {
            return;
        }
        if on {
            // Sessions say so before every probe that is sent from now on, and only what those confirm is handed on.
            self.since.store(Tick::FOREVER.0 - 1, Ordering::Release);
            self.since.store(now().0, Ordering::Release);
        } else {
            self.since.store(Tick::FOREVER.0, Ordering::Release);
            *self.held.lock() = Held::new(HELD_BYTES_MAX);
            *self.acks.lock() = Acks::default();
        }
        self.changed.send_replace(());
    }

    /// Follows these origins by these ways from now on. Of others that have a path, those that are kept go on by it, and
    /// the rest are asked themselves.
    pub fn plan(&self, courses: Vec<Course>, keeps: impl Fn(&Origin) -> bool, now: Tick) {
        let mut routes = self.routes.lock();
        let mut before = std::mem::take(&mut routes.routed);
        for Course { followed, sources, hops } in courses {
            before.remove(&**followed.origin());
            if followed.reroute(sources, hops, now) {
                self.redirect(&followed);
            }
            routes.routed.insert((**followed.origin()).clone(), followed);
        }
        for (origin, followed) in before {
            if keeps(&origin) {
                routes.routed.insert(origin, followed);
            } else if followed.unroute() {
                self.redirect(&followed);
            }
        }
        routes.regroup();
        drop(routes);
        self.changed.send_replace(());
    }

    /// Lets time pass: who does not confirm for too long is asked no longer, and who was meant to be asked and was left is
    /// asked again after a while, if `reaches` says that it hears this node. Returns whether anybody else is asked now.
    pub fn pass(&self, now: Tick, reaches: impl Fn(&NodeId) -> bool) -> bool {
        self.leave_where(|followed| followed.passes(now) || followed.returns(now, &reaches))
    }

    /// Who is to be asked again as soon as there is a link.
    #[must_use]
    pub fn missed(&self, now: Tick) -> BTreeSet<NodeId> {
        self.routes.lock().routed.values().filter_map(|followed| followed.missed(now)).collect()
    }

    /// The last link to a node has ended. Returns whether anybody else is asked now.
    pub fn unlinked(&self, node: &NodeId, now: Tick) -> bool {
        self.leave_where(|followed| followed.is_asked_of(node) && followed.leaves(|path| path.broken(now)))
    }

    /// A source does not serve an origin. Returns whether somebody else is asked now.
    pub(super) fn broken(&self, followed: &Arc<Followed>, source: &NodeId, now: Tick) -> bool {
        self.leave_where(|other| {
            Arc::ptr_eq(other, followed)
                && followed.is_asked_of(source)
                && followed.leaves(|path| path.broken(now))
        })
    }

    /// A source does not hold what follows `from` in a lane.
    pub(super) fn lacks(
        &self,
        followed: &Arc<Followed>,
        (source, from): (&NodeId, Sequence),
        now: Tick,
    ) -> Lacking {
        self.lacking.fetch_add(1, Ordering::Relaxed);
        let mut verdict = Lacking::AskElsewhere;
        self.leave_where(|other| {
            // What another lane of it lacked may have led elsewhere already.
            if !Arc::ptr_eq(other, followed) || !followed.is_asked_of(source) {
                return false;
            }
            followed.leaves(|path| {
                verdict = path.lacking(from, now);
                verdict == Lacking::AskElsewhere
            })
        });
        verdict
    }

    fn leave_where(&self, leaves: impl FnMut(&Arc<Followed>) -> bool) -> bool {
        let mut routes = self.routes.lock();
        let mut leaves = leaves;
        let left: Vec<_> = routes.routed.values().filter(|followed| leaves(followed)).cloned().collect();
        if left.is_empty() {
            return false;
        }
        left.iter().for_each(|followed| self.redirect(followed));
        routes.regroup();
        drop(routes);
        self.changed.send_replace(());
        true
    }

    fn redirect(&self, followed: &Followed) {
        self.redirected.fetch_add(1, Ordering::Relaxed);
        let relayed = followed.source() != followed.origin.node;
        followed.state.lock().redirected(relayed);
        followed.turns.fetch_add(1, Ordering::AcqRel);
        self.acks.lock().redirected(followed.origin());
    }

    /// Told of every change of who is asked for what, and of whether this node relays.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The origins that are asked of a node as of a relay. Its own lives are not: none of them knows another's log, and each
    /// is asked on links to itself.
    #[must_use]
    pub fn asked_of(&self, node: &NodeId) -> Vec<Arc<Followed>> {
        let routes = self.routes.lock();
        let asked = routes.by_source.get(node).into_iter().flatten();
        asked.filter(|followed| followed.origin().node != *node).cloned().collect()
    }

    /// Everybody who is asked for anything.
    #[must_use]
    pub fn sources(&self) -> Vec<NodeId> {
        self.routes.lock().by_source.keys().cloned().collect()
    }

    /// The origins that have a path.
    #[must_use]
    pub fn routed(&self) -> Vec<Origin> {
        self.routes.lock().routed.keys().cloned().collect()
    }

    /// Whether an origin has a path. The source that it leads to may be itself.
    #[must_use]
    pub fn is_routed(&self, origin: &Origin) -> bool {
        self.routes.lock().routed.contains_key(origin)
    }

    /// Nothing of a life is kept or passed on any more.
    pub fn forget(&self, life: &Origin) {
        self.held.lock().forget(life);
        self.acks.lock().forget(life);
    }

    /// Whether so many acknowledgements are remembered that those of lives which have ended should be forgotten.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.acks.lock().is_crowded()
    }

    /// Forgets acknowledgements of all lives but these.
    pub fn keep_acks_of(&self, lives: &BTreeSet<Origin>) {
        self.acks.lock().retain(|life| lives.contains(life));
    }

    /// Somebody who relays has asked this node for confirmation.
    pub(super) fn probed(&self, now: Tick) {
        self.probed.fetch_max(now.0, Ordering::AcqRel);
    }

    /// When somebody who relays last asked this node for confirmation: nobody whom this node does not hear is confirmed by
    /// way of others as of later. [`Tick::NEVER`] where nobody relays.
    #[must_use]
    pub fn last_probed(&self) -> Tick {
        Tick(self.probed.load(Ordering::Acquire))
    }

    /// What came of it so far.
    #[must_use]
    pub fn report(&self) -> RelayReport {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayReport {
            on: self.is_on(),
            held_bytes: self.held.lock().bytes(),
            redirected: get(&self.redirected),
            lacking: get(&self.lacking),
            acks_dropped: get(&self.acks_dropped),
        }
    }

    /// Keeps a batch that is applied here. Called while its follower is locked, so that what is held ends where that one
    /// stands.
    pub(super) fn hold(&self, origin: &Arc<Origin>, batch: Batch) {
        self.held.lock().push(origin, batch);
    }

    /// Judges a follower's position in somebody else's log.
    pub(super) fn position(&self, followed: &Followed, lane: LaneId, from: Sequence) -> Position {
        let state = followed.state.lock();
        self.held.lock().position(followed.origin(), lane, from, state.applied_in(lane) + 1)
    }

    /// Reads on in somebody else's log.
    pub(super) fn read(
        &self,
        (followed, lane): (&Followed, LaneId),
        cursor: &mut Cursor,
        bytes_max: usize,
        out: &mut Vec<Batch>,
    ) -> Read {
        let state = followed.state.lock();
        let next = state.applied_in(lane) + 1;
        match self.held.lock().read((followed.origin(), lane), cursor, bytes_max, out) {
            // What lies between was fenced here, or is kept no more.
            Read::Empty if cursor.next < next => Read::Overrun(next),
            read => read,
        }
    }

    /// What to say of an origin to who has asked. What was asked before this node relayed is not said on.
    pub(super) fn say(&self, followed: &Followed, now: Tick) -> Option<Relayed> {
        let since = self.since()?;
        followed.with(|follower| {
            let said = follower.ended() || follower.confirmed_by_source() >= Some(since);
            said.then(|| Relayed::of(follower, now)).flatten()
        })
    }

    /// Takes note of what followers have applied of somebody else's log.
    pub(super) fn note(&self, followed: &Arc<Followed>, acked: Vec<Acked>) {
        let mut acks = self.acks.lock();
        // What its log has no lane for is passed on to nobody.
        let is_there = |acked: &Acked| followed.lanes.lane(acked.lane.number()).is_some();
        for acked in acked.into_iter().filter(is_there) {
            if acks.note(followed.origin(), acked).is_err() {
                self.acks_dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(acks);
        followed.passes_up();
    }

    /// What has changed of that, this node's own word included if it is behind others.
    pub(super) fn take(&self, followed: &Followed, own: Option<Origin>, most: usize) -> Vec<Acked> {
        let applied = own.map(|follower| (follower, followed.with(|state| state.applied_heads())));
        let mut acks = self.acks.lock();
        if let Some((follower, heads)) = applied {
            for (lane, applied) in followed.lanes.ids().zip(heads) {
                let own = Acked { follower: follower.clone(), lane, applied };
                if acks.note(followed.origin(), own).is_err() {
                    self.acks_dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        acks.take(followed.origin(), most)
    }

    /// A link leads to an origin from now on which may know nothing of what was passed up.
    pub(super) fn begins(&self, followed: &Arc<Followed>, up: &Arc<Upward>) {
        *followed.up.lock() = Arc::downgrade(up);
        // What was noted on a link that is gone is taken by nobody.
        followed.marked.store(false, Ordering::Release);
        if self.is_on() {
            self.acks.lock().redirected(followed.origin());
            followed.passes_up();
        }
    }
}

/// What waits to be passed up on one link.
#[derive(Debug, Default)]
pub(super) struct Upward {
    origins: Mutex<Vec<Arc<Followed>>>,
    marked: Notify,
}

impl Upward {
    pub(super) fn mark(&self, followed: &Arc<Followed>) {
        self.origins.lock().push(followed.clone());
        self.marked.notify_one();
    }

    /// Waits until something is to be passed up.
    pub(super) async fn marked(&self) {
        while self.origins.lock().is_empty() {
            self.marked.notified().await;
        }
    }

    pub(super) fn take(&self) -> Vec<Arc<Followed>> {
        let taken = std::mem::take(&mut *self.origins.lock());
        taken.iter().for_each(|followed| followed.marked.store(false, Ordering::Release));
        taken
    }
}

#[cfg(test)]
#[path = "relaying_tests.rs"]
mod tests;
