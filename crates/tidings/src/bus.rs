//! The node as its transport sees it: who it is, whom it admits, what it does with what peers say.

mod host;
mod sessions;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tidings_cache::Domain;
use tidings_membership::{GossipSeam, Inbound, Membership, Record};
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::follower::Applied;
use tidings_proto::frame::{Hello, MEMBERS_MAX, MemberSet};
use tidings_proto::id::{Incarnation, LaneId, Lanes, LogId, NodeId, Origin, Sequence};
use tidings_proto::log::ChangeLog;
use tidings_proto::offset::Offset;
use tidings_proto::record::{BatchRef, Unsound};
use tidings_proto::time::Tick;
use tidings_transport::session::{FenceReason, Followed, Herald, PROBE_INTERVAL, Peering, Relaying, Served};
use tidings_transport::{Identity, Transport, TransportStats};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use self::sessions::{Session, Sessions};
use crate::asked::Asked;
use crate::audit::{self, Audits};
use crate::canary::Canary;
use crate::clocks::{ClockBounds, Clocks};
use crate::coherence::Coherence;
use crate::config::Planted;
use crate::copying;
use crate::leases::{self, Leases};
use crate::legacy::Legacy;
use crate::log_files::LogFiles;
use crate::measure::Spent;
use crate::observe::{Observation, Observers};
use crate::receipts::{self, Receipts};
use crate::relays::Relays;
use crate::spending::Spending;

/// Gossip frames that wait to be read; more are dropped, as gossip may be.
const GOSSIP_MAX: usize = 256;

/// Nodes whose newest life is remembered with its log: as many as can be members. Of more, the one whose life began
/// first is forgotten; whether a process that comes under its name is a later life then depends on what freshness knows.
const MET_MAX: usize = MEMBERS_MAX;

/// Why a node cannot take part in its cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// Another live process has this node's id.
    #[error(
        "node id {node} is held by a live process at {address}: give this one another id, or stop that one"
    )]
    DuplicateNode {
        /// The id.
        node: NodeId,
        /// Where its holder is.
        address: SocketAddr,
    },
}

pub(crate) struct Bus {
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
    pub(crate) log_id: LogId,
    pub(crate) zone: String,
    pub(crate) domain: Domain,
    pub(crate) coherence: Coherence,
    pub(crate) herald: Herald,
    pub(crate) observers: Arc<Observers>,
    /// From the start of the node to its end. It holds the bus in turn, and must be let go of.
    pub(crate) transport: ArcSwapOption<Transport>,
    /// The transport's counters and identity, which outlive it.
    pub(crate) credentials: OnceLock<(Arc<TransportStats>, Identity)>,
    pub(crate) membership: Mutex<Option<Membership>>,
    pub(crate) conflict: watch::Sender<Option<Conflict>>,
    /// This life has been followed by others, and another process has its place.
    former: AtomicBool,
    pub(crate) goodbye: watch::Sender<Option<Vec<Sequence>>>,
    pub(crate) hosted: watch::Sender<Arc<Vec<String>>>,
    pub(crate) receipts: Receipts,
    pub(crate) canary: Canary,
    pub(crate) clocks: Clocks,
    pub(crate) spent: Spent,
    pub(crate) asked: Asked,
    pub(crate) leases: Leases,
    pub(crate) audits: Audits,
    pub(crate) relays: Relays,
    /// When it was said last that members refuse what this node writes.
    pub(crate) undone_said: Mutex<Option<Instant>>,
    /// What this node copies from members.
    pub(crate) copied: Mutex<Spending>,
    /// Where the log is written down, if it is.
    pub(crate) log_files: Option<LogFiles>,
    /// What the former life has left there, while it is served.
    pub(crate) legacy: ArcSwapOption<Legacy>,
    /// The deny list, for whatever begins later.
    pub(crate) denied: ArcSwap<Vec<String>>,
    incarnation: AtomicU64,
    address: OnceLock<SocketAddr>,
    gossip: Mutex<Option<mpsc::Sender<Inbound>>>,
    /// The incarnation that this node should have at least, because a later life of it is known somewhere.
    pub(crate) wanted_incarnation: watch::Sender<Incarnation>,
    /// Somebody was newly named, and should be dialled.
    pub(crate) named: Notify,
    /// Where, by what a peer says, another process has this node's id.
    pub(crate) holder: Mutex<Option<SocketAddr>>,
    /// Sessions that run, to each life. Locked before membership is told of a life's first or last one.
    sessions: Mutex<Sessions>,
    /// The newest life of each node that has been met, with its log.
    met: Mutex<BTreeMap<NodeId, (Incarnation, LogId)>>,
    probe_interval: Duration,
    began: Tick,
    planted: Option<Planted>,
}

/// What a bus is made of.
pub(crate) struct Parts {
    pub(crate) cluster: String,
    pub(crate) origin: Origin,
    pub(crate) log_id: LogId,
    pub(crate) zone: String,
    pub(crate) domain: Domain,
    pub(crate) coherence: Coherence,
    pub(crate) observers: Arc<Observers>,
    pub(crate) clocks: ClockBounds,
    pub(crate) relay_above: usize,
    pub(crate) copy_bytes_per_second: NonZeroU64,
    pub(crate) planted: Option<Planted>,
    pub(crate) log_files: Option<LogFiles>,
    pub(crate) legacy: Option<Legacy>,
}

impl Bus {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        // Confirmation must come several times within the bound, or freshness would flicker.
        let probe_interval = PROBE_INTERVAL.min(parts.coherence.bounds().max_staleness / 4);
        let canary = Canary::begin(parts.domain.log(), parts.domain.clock().wall_ms());
        let began = parts.domain.clock().now();
        let bus = Self {
            cluster: parts.cluster,
            node: parts.origin.node,
            log_id: parts.log_id,
            zone: parts.zone,
            herald: Herald::new(parts.domain.log().lanes()),
            began,
            domain: parts.domain,
            coherence: parts.coherence,
            observers: parts.observers,
            transport: ArcSwapOption::empty(),
            credentials: OnceLock::new(),
            membership: Mutex::new(None),
            conflict: watch::Sender::new(None),
            former: AtomicBool::new(false),
            goodbye: watch::Sender::new(None),
            hosted: watch::Sender::default(),
            receipts: Receipts::default(),
            canary,
            clocks: Clocks::new(parts.clocks),
            spent: Spent::since(began),
            asked: Asked::default(),
            leases: Leases::new(parts.log_id),
            audits: Audits::default(),
            relays: Relays::above(parts.relay_above),
            undone_said: Mutex::default(),
            copied: Mutex::new(Spending::at(parts.copy_bytes_per_second)),
            log_files: parts.log_files,
            legacy: ArcSwapOption::from(parts.legacy.map(Arc::new)),
            denied: ArcSwap::default(),
            incarnation: AtomicU64::new(parts.origin.incarnation.0),
            address: OnceLock::new(),
            gossip: Mutex::new(None),
            wanted_incarnation: watch::Sender::new(parts.origin.incarnation),
            named: Notify::new(),
            holder: Mutex::default(),
            sessions: Mutex::default(),
            met: Mutex::default(),
            probe_interval: probe_interval.max(Duration::from_millis(1)),
            planted: parts.planted,
        };
        let bus = Arc::new(bus);
        receipts::serve(&bus);
        leases::serve(&bus);
        audit::serve(&bus);
        copying::serve(&bus);
        bus
    }

    /// Whether a session with this life runs.
    pub(crate) fn is_linked(&self, origin: &Origin) -> bool {
        self.sessions.lock().record(origin).is_some()
    }

    pub(crate) fn origin(&self) -> Origin {
        let incarnation = Incarnation(self.incarnation.load(Ordering::Acquire));
        Origin { node: self.node.clone(), incarnation }
    }

    pub(crate) fn renumber(&self, incarnation: Incarnation) -> Origin {
        self.incarnation.store(incarnation.0, Ordering::Release);
        let origin = self.origin();
        self.domain.set_origin(origin.clone());
        origin
    }

    /// This node's life should have this number at least.
    pub(crate) fn wants_incarnation(&self, least: Incarnation) {
        self.wanted_incarnation.send_if_modified(|wanted| {
            let later = least > *wanted;
            *wanted = least.max(*wanted);
            later
        });
    }

    /// Says in the log files whose they are.
    pub(crate) async fn own_log_files(&self) {
        let Some(files) = &self.log_files else { return };
        files.belong_to(self.domain.log().lanes(), &self.cluster, (self.origin(), self.log_id)).await;
    }

    /// Whether the log takes nothing, for its files are stuck. Peers may not have been told of what was refused.
    pub(crate) fn is_stuck(&self) -> bool {
        self.log_files.as_ref().is_some_and(LogFiles::are_stuck)
    }

    /// A member has followed the former life to its end.
    pub(crate) fn former_life_followed(&self) {
        self.log_files.iter().for_each(LogFiles::followed);
    }

    /// How long this process has been there, whatever is done to the wall clock.
    fn age_ms(&self) -> u64 {
        let age = self.domain.clock().now().since(self.began);
        u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        *self.address.get().expect("the address is set before the transport accepts anybody")
    }

    pub(crate) fn set_address(&self, address: SocketAddr) {
        self.address.set(address).expect("the address is set once");
    }

    pub(crate) fn transport(&self) -> Option<Arc<Transport>> {
        self.transport.load_full()
    }

    pub(crate) fn membership(&self) -> Option<Membership> {
        self.membership.lock().clone()
    }

    /// The way gossip takes, anew for every start of membership.
    pub(crate) fn seam(self: &Arc<Self>) -> GossipSeam {
        let (sender, inbound) = mpsc::channel(GOSSIP_MAX);
        *self.gossip.lock() = Some(sender);
        let bus = Arc::downgrade(self);
        let outbound = move |to: SocketAddr, frame: Bytes| {
            if let Some(bus) = bus.upgrade()
                && let Some(transport) = bus.transport()
            {
                transport.send_gossip(bus.relays.gossip_to(to, &transport), frame);
            }
        };
        GossipSeam { outbound: Arc::new(outbound), inbound }
    }

    /// Tells membership that a link is up.
    fn linked(&self, record: Record) {
        if let Some(membership) = self.membership() {
            membership.link_up(record);
        }
    }

    /// Tells membership that a life was heard on its session. If membership does not know of the link, for it began
    /// anew or was told to forget the life meanwhile, it is told.
    fn heard(&self, origin: &Origin) {
        let Some(membership) = self.membership() else { return };
        if !membership.link_heard(origin) {
            let sessions = self.sessions.lock();
            if let Some(record) = sessions.record(origin) {
                membership.link_up(record);
            }
        }
    }

    /// Whom a peer at this address names may be this node's former life.
    fn heirs(&self, address: SocketAddr, members: &MemberSet) {
        if let Some(legacy) = &*self.legacy.load() {
            legacy.named(address, members);
        }
    }

    /// Notes that a session runs, until it is dropped.
    fn session_begins(self: &Arc<Self>, hello: &Hello) -> Session {
        let mut sessions = self.sessions.lock();
        let record = record_of(hello);
        let origin = record.origin.clone();
        sessions.begin(record.clone());
        // Said again after the peer was admitted: older sessions with this life may have ended since.
        self.linked(record);
        self.heirs(hello.address, &hello.members);
        Session { bus: self.clone(), origin, link: None }
    }
}

pub(crate) fn origin_of(hello: &Hello) -> Origin {
    Origin { node: hello.node.clone(), incarnation: hello.incarnation }
}

fn record_of(hello: &Hello) -> Record {
    let (zone, release) = (hello.zone.clone(), hello.release.clone());
    Record { origin: origin_of(hello), address: hello.address, zone, release }
}

/// The bus as the transport holds it.
#[derive(Clone)]
pub(crate) struct Face(pub(crate) Arc<Bus>);

impl std::ops::Deref for Face {
    type Target = Bus;

    fn deref(&self) -> &Bus {
        &self.0
    }
}

impl Peering for Face {
    fn log(&self) -> &ChangeLog {
        self.domain.log()
    }

    fn herald(&self) -> &Herald {
        &self.herald
    }

    fn relaying(&self) -> &Relaying {
        self.coherence.relaying()
    }

    fn me(&self) -> Origin {
        self.origin()
    }

    fn followed_of(&self, origin: &Origin) -> Option<Arc<Followed>> {
        self.coherence.sessions(origin).0
    }

    fn served_of(&self, follower: &Origin) -> Option<Arc<Served>> {
        self.coherence.sessions(follower).1
    }

    fn now(&self) -> Tick {
        self.domain.clock().now()
    }

    fn wall_ms(&self) -> u64 {
        self.domain.clock().wall_ms()
    }

    fn clock_of(&self, origin: &Origin, wall_ms: u64, sent: Tick) {
        let (now, own) = (self.domain.clock().now(), self.domain.clock().wall_ms());
        self.clocks.measured(&origin.node, Offset::measure((wall_ms, own), now.since(sent), now), now);
    }

    fn probe_interval(&self) -> Duration {
        self.probe_interval
    }

    fn followed(&self, peer: &Hello) -> Arc<Followed> {
        self.coherence.followed(&origin_of(peer), peer.address, peer.lanes)
    }

    fn served(&self, peer: &Hello) -> Arc<Served> {
        self.coherence.served(&origin_of(peer), peer.address)
    }

    fn apply(&self, origin: &Arc<Origin>, batch: &BatchRef<'_>, from: Sequence) -> Result<Applied, Unsound> {
        self.domain.apply(origin, batch, from)
    }

    fn fence(&self, origin: &Origin, lanes: Lanes, lane: LaneId, reason: FenceReason) {
        match reason {
            FenceReason::Reset if self.planted == Some(Planted::Unfenced) => {}
            FenceReason::Reset => {
                self.domain.fence_uncertain(lanes.slots_of(lane));
                self.observers.tell(Observation::Reset { origin: origin.clone(), lane });
            }
        }
    }

    fn progressed(&self, followed: &Followed) {
        self.heard(followed.origin());
        if self.coherence.progressed(followed, self.planted) {
            if let Some(membership) = self.membership() {
                membership.left(followed.origin());
            }
            let Origin { node, incarnation } = &**followed.origin();
            // Else the node is there, in a later life.
            let newest = self.coherence.newest_life(node).is_none_or(|newest| newest == *incarnation);
            if newest && *node != self.node {
                self.observers.tell(Observation::Left { node: node.clone() });
            }
        }
    }

    fn members_of(&self, origin: &Origin, members: &MemberSet) {
        self.coherence.named(&origin.node, members);
        self.named.notify_one();
        if self.legacy.load().is_some()
            && let Some(record) = self.sessions.lock().record(origin)
        {
            self.heirs(record.address, members);
        }
    }

    fn caches_of(&self, origin: &Origin, names: Vec<String>) {
        self.coherence.caches_of(origin, names);
    }

    fn members(&self) -> watch::Receiver<Arc<MemberSet>> {
        self.coherence.members()
    }

    fn caches(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.hosted.subscribe()
    }

    fn goodbye(&self) -> watch::Receiver<Option<Vec<Sequence>>> {
        self.goodbye.subscribe()
    }

    fn known(&self, lane: LaneId, head: Sequence, at: Tick) {
        self.coherence.noted(lane, head, at);
    }

    fn applied_by(&self, origin: &Origin, lane: LaneId, steps: &mut dyn Iterator<Item = (Sequence, Tick)>) {
        self.coherence.applied_by(origin, lane, steps);
    }

    fn canary_wanted(&self, lane: LaneId, next: Sequence) {
        self.canary.want(lane, next);
    }

    fn asked(
        &self,
        peer: &Hello,
        topic: Topic,
        question: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Declined>> {
        self.asked.answer(origin_of(peer), topic, question)
    }

    fn said_goodbye(&self, origin: &Origin) {
        tracing::info!(%origin, "peer says goodbye");
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
