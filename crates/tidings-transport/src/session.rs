//! What two nodes say to each other on a link: each serves its own log and follows the other's.
//!
//! One future per link does it all. Per followed lane there is one bi-directional stream: the follower asks, the
//! origin answers and sends, the follower acknowledges. Probes, heartbeats, member sets and the goodbye travel on the
//! control stream, so that congestion of data holds none of them up.

mod ages;
mod control;
mod course;
mod exchange;
mod follow;
mod hand;
mod herald;
mod marks;
mod pace;
mod relaying;
mod serve;
mod served;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::follower::{Applied, Attempt, Follower, Rejected};
use tidings_proto::frame::{FrameError, Hello, MemberSet};
use tidings_proto::id::{LaneId, Lanes, NodeId, Origin, Sequence};
use tidings_proto::log::ChangeLog;
use tidings_proto::record::{BatchRef, Unsound};
use tidings_proto::relay::Path;
use tidings_proto::time::Tick;
use tokio::sync::{Notify, watch};

use crate::close::CloseCode;
use crate::control::ControlError;
use crate::link::Link;

use self::exchange::Exchange;

pub use self::course::Course;
pub use self::herald::Herald;
pub use self::relaying::{RelayReport, Relaying};
pub use self::served::{Served, Waiter, Watch};

/// How often a follower asks for confirmation unless the staleness bound needs it more often.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Why a lane was fenced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceReason {
    /// The origin's log no longer held what was missing.
    Reset,
}

/// The node behind a session. No method may block.
pub trait Peering: Send + Sync + 'static {
    /// This node's own log.
    fn log(&self) -> &ChangeLog;
    /// Who tells this node's sessions of appends to the log.
    fn herald(&self) -> &Herald;
    /// What the node relays, and of whom it asks what others relay.
    fn relaying(&self) -> &Relaying;
    /// The node's present life.
    fn me(&self) -> Origin;
    /// What is known of a life that was met and is remembered.
    fn followed_of(&self, origin: &Origin) -> Option<Arc<Followed>>;
    /// What a life that was met and is remembered has acknowledged of this node's log.
    fn served_of(&self, follower: &Origin) -> Option<Arc<Served>>;
    /// The node's clock, precise.
    fn now(&self) -> Tick;
    /// The node's wall clock, in milliseconds since 1970.
    fn wall_ms(&self) -> u64;
    /// How often to probe.
    fn probe_interval(&self) -> Duration;
    /// What is known of the origin behind a link; the same object for every link to the same life of a node.
    fn followed(&self, peer: &Hello) -> Arc<Followed>;
    /// What the peer has acknowledged of this node's log; the same object for every link to the same life of a node.
    fn served(&self, peer: &Hello) -> Arc<Served>;
    /// Applies records in order, from `from` on.
    ///
    /// # Errors
    /// [`Unsound`] if a record's framing is broken; what was before it is applied.
    fn apply(&self, origin: &Arc<Origin>, batch: &BatchRef<'_>, from: Sequence) -> Result<Applied, Unsound>;
    /// Fences the slots of a lane in every cache, at once.
    fn fence(&self, origin: &Origin, lanes: Lanes, lane: LaneId, reason: FenceReason);
    /// The origin's confirmation, or its end, may have moved on.
    fn progressed(&self, followed: &Followed);
    /// The peer's member set.
    fn members_of(&self, origin: &Origin, members: &MemberSet);
    /// What the peer's wall clock showed, in milliseconds since 1970, at some time between `sent` and now.
    fn clock_of(&self, origin: &Origin, wall_ms: u64, sent: Tick);
    /// The names of the caches that the peer hosts.
    fn caches_of(&self, origin: &Origin, names: Vec<String>);
    /// This node's member set, and every change of it.
    fn members(&self) -> watch::Receiver<Arc<MemberSet>>;
    /// The names of this node's caches, and every change of them.
    fn caches(&self) -> watch::Receiver<Arc<Vec<String>>>;
    /// The sealed heads, once this node says goodbye.
    fn goodbye(&self) -> watch::Receiver<Option<Vec<Sequence>>>;
    /// Everything in a lane of the own log up to here is known to the sessions since this time.
    fn known(&self, _lane: LaneId, _head: Sequence, _at: Tick) {}
    /// A peer had applied a lane of the own log up to each of these positions at the times beside them, as far as is known.
    fn applied_by(
        &self,
        _origin: &Origin,
        _lane: LaneId,
        _steps: &mut dyn Iterator<Item = (Sequence, Tick)>,
    ) {
    }
    /// A peer that has yet to show that it applies records of this lane gets none before this position: without one
    /// there it never could.
    fn canary_wanted(&self, lane: LaneId, next: Sequence);
    /// Answers a question of the peer. Dropped when the peer does not wait for it any more, or the session ends.
    fn asked(
        &self,
        peer: &Hello,
        topic: Topic,
        question: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Declined>>;
    /// The peer said goodbye on this link; it will close it.
    fn said_goodbye(&self, origin: &Origin);
}

/// One life of one node, followed over whatever link is current.
#[derive(Debug)]
pub struct Followed {
    origin: Arc<Origin>,
    lanes: Lanes,
    state: Mutex<Follower>,
    requests: Mutex<Vec<Requests>>,
    counts: FollowCounts,
    /// Lanes of which a record was applied here, a bit each.
    heard: AtomicU64,
    /// Told when the origin has ended: the links to it are of no use any more.
    ended: Notify,
    /// Of whom it is asked, if not of itself.
    path: Mutex<Option<Path>>,
    /// How often it was asked of somebody else from then on.
    turns: AtomicU64,
    /// What takes that to which others' acknowledgements of it are passed up.
    up: Mutex<Weak<relaying::Upward>>,
    /// It is noted there.
    marked: AtomicBool,
    /// For those who follow it by way of this node.
    news: Box<[Notify]>,
    /// Who they are, and in how many lanes, whichever the link.
    handed: Mutex<BTreeMap<NodeId, usize>>,
}

/// What was asked of one lane, lest the same bytes be asked for without end.
#[derive(Clone, Copy, Debug, Default)]
struct Requests {
    /// The newest request, on whichever link.
    newest: Option<Attempt>,
    /// A position that could not be read, and how often.
    unreadable: (Sequence, u32),
}

/// What happened while following one origin.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "each counts what its name says")]
pub struct FollowCounts {
    /// Changes made by users there that were applied here, one each whatever the number of records.
    pub applied: AtomicU64,
    pub duplicates: AtomicU64,
    pub gaps: AtomicU64,
    pub resets: AtomicU64,
    /// Lanes that were followed on where they had been left.
    pub resumed: AtomicU64,
    pub rejected: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Followed {
    /// Nothing of this origin is applied yet.
    #[must_use]
    pub fn new(origin: Origin, lanes: Lanes) -> Self {
        Self {
            state: Mutex::new(Follower::new(origin.clone(), lanes)),
            requests: Mutex::new(vec![Requests::default(); usize::from(lanes.count())]),
            origin: Arc::new(origin),
            lanes,
            counts: FollowCounts::default(),
            heard: AtomicU64::new(0),
            ended: Notify::new(),
            path: Mutex::default(),
            turns: AtomicU64::new(0),
            up: Mutex::default(),
            marked: AtomicBool::new(false),
            news: lanes.ids().map(|_| Notify::new()).collect(),
            handed: Mutex::default(),
        }
    }

    /// How many lanes its log has.
    #[must_use]
    pub fn lanes(&self) -> Lanes {
        self.lanes
    }

    /// Whom it follows.
    #[must_use]
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> &FollowCounts {
        &self.counts
    }

    /// Notes that a record of a lane was applied.
    fn heard(&self, lane: LaneId) {
        let bit = 1 << lane.index();
        if self.heard.load(Ordering::Relaxed) & bit == 0 {
            self.heard.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Whether a record of every lane was applied here, rather than a fence. Of a release that logs no canaries nothing
    /// can be heard before it changes something: its lanes count if they are confirmed to be empty.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        let heard = self.heard.load(Ordering::Relaxed);
        let state = self.state.lock();
        let empty = |lane| state.confirmed().is_some() && state.applied_in(lane) == 0;
        self.lanes.ids().all(|lane| heard & 1 << lane.index() != 0 || empty(lane))
    }

    /// Reports progress to the node, and wakes whoever waits for the end.
    fn progressed(&self, node: &dyn Peering) {
        node.progressed(self);
        if self.with(Follower::ended) {
            self.ended.notify_waiters();
        }
    }

    /// Waits until the origin has said goodbye and everything it did is applied.
    async fn end(&self) {
        loop {
            let ended = self.ended.notified();
            if self.with(Follower::ended) {
                return;
            }
            ended.await;
        }
    }

    /// Reads the follower's state. `read` must not block.
    pub fn with<T>(&self, read: impl FnOnce(&Follower) -> T) -> T {
        read(&self.state.lock())
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    #[error("connection")]
    Connection(#[from] quinn::ConnectionError),
    #[error("write")]
    Write(#[from] quinn::WriteError),
    #[error("read")]
    Read(#[from] quinn::ReadError),
    #[error("control")]
    Control(#[from] ControlError),
    #[error("frame")]
    Frame(#[from] FrameError),
    #[error("batch")]
    Batch(#[from] Unsound),
    #[error("follower")]
    Rejected(#[from] Rejected),
    #[error("unexpected {0}")]
    Unexpected(&'static str),
    #[error("no follow request in time")]
    Silent,
    #[error("the relay does not serve what it is asked for")]
    NotServed,
}

impl SessionError {
    /// Whether the peer broke the protocol, rather than the connection.
    fn is_violation(&self) -> bool {
        matches!(
            self,
            Self::Frame(_)
                | Self::Batch(_)
                | Self::Rejected(_)
                | Self::Unexpected(_)
                | Self::Control(ControlError::Frame(_))
        )
    }
}

/// Speaks on a link until it ends. A peer that breaks the protocol is disconnected, and what it said is counted.
pub async fn run(link: Arc<Link>, node: Arc<dyn Peering>) {
    let Some((sender, receiver)) = link.take_control() else { return };
    let peer = link.peer();
    let followed = node.followed(peer);
    let served = node.served(peer);
    // Whom its hello names was taken note of when it was admitted.
    followed.state.lock().on_members(peer.members.version);
    let exchange = Exchange::with(peer);
    let (probed, probes) = watch::channel(0);
    let shared = (&followed, &*served, &exchange);
    // Apart, so that an event wakes one of them and not all.
    let parts: [BoxFuture<'_, Result<(), SessionError>>; 5] = [
        control::send((&link, &*node), (&followed, &exchange), sender, probes).boxed(),
        control::receive((&link, &*node), shared, receiver, probed).boxed(),
        serve::all((&link, &*node), &served, &exchange).boxed(),
        follow::all((&link, &*node), &followed, &exchange).boxed(),
        followed.end().map(Ok).boxed(),
    ];
    let end = FuturesUnordered::from_iter(parts).next().await;
    if followed.with(Follower::ended) {
        // Whichever part has noticed, nothing more is to come.
        return link.close(CloseCode::Followed, "");
    }
    let Some(Err(error)) = end else { return };
    let reason = std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
    if error.is_violation() {
        count(&followed.counts.rejected, 1);
        tracing::warn!(peer = %followed.origin, error = %format!("{error}{reason}"), "peer broke the protocol");
        link.close(CloseCode::Malformed, "protocol violation");
    } else {
        tracing::debug!(peer = %followed.origin, error = %format!("{error}{reason}"), "session ended");
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
