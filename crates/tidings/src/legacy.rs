//! The former life of this node, whose process was killed, served from its log files to whoever has not followed it to
//! its end.
//!
//! It comes to peers as a life does that was replaced: on a connection beside the table of links, saying of itself that
//! it is over, and with a goodbye to be heeded once everything before it is applied. So its end costs them the changes
//! that they had missed, key by key, and no floor. It comes only to those that name it as one that is there, or whose end
//! is in doubt: nobody else misses anything. Whoever it cannot reach in time judges its end as any other.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::follower::Applied;
use tidings_proto::frame::{Hello, MEMBERS_MAX, MemberSet, NamedMember, PROTOCOL_VERSION, Refusal};
use tidings_proto::hash::HASH_VERSION;
use tidings_proto::id::{Incarnation, LaneId, Lanes, LogId, Origin, Sequence};
use tidings_proto::log::{ChangeLog, Recovered};
use tidings_proto::record::{BatchRef, Unsound};
use tidings_proto::time::Tick;
use tidings_transport::session::{self, FenceReason, Followed, Herald, PROBE_INTERVAL, Peering, Served};
use tidings_transport::{CloseCode, Config, Host, Link, SessionFuture, Transport};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::bus::Bus;

/// Longest time that it is served: whoever meets this node later has most likely given that life up already. Its log is
/// held in memory meanwhile.
const SERVED_TIME_MAX: Duration = Duration::from_secs(600);

/// How long after its streams a peer's close may come, which says that it has followed everything.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// How long its transport has to close.
const TRANSPORT_CLOSE_TIME: Duration = Duration::from_secs(2);

/// What a former life has left.
pub(crate) struct Legacy {
    origin: Origin,
    id: LogId,
    log: ChangeLog,
    heads: Vec<Sequence>,
    /// The addresses of those who have named it. As many as can be members; more are not served.
    peers: Mutex<BTreeMap<SocketAddr, Stage>>,
    changed: Notify,
    /// While it is served. It holds this in turn, and must be closed.
    transport: ArcSwapOption<Transport>,
}

/// How far a peer is with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// It has named it, and has not followed it to its end.
    Named,
    /// It follows it, or did and was not heard to say how far.
    Met,
    /// It will not follow it.
    Over,
    /// It has followed it to its end.
    Followed,
}

impl Legacy {
    pub(crate) fn new(recovered: Recovered) -> Self {
        let (origin, id) = (recovered.life.origin.clone(), recovered.life.log);
        let (log, heads) = recovered.into_log();
        Self {
            origin,
            id,
            log,
            heads,
            peers: Mutex::default(),
            changed: Notify::new(),
            transport: ArcSwapOption::empty(),
        }
    }

    /// The first incarnation that is later, whatever the wall clock says.
    pub(crate) fn next(&self) -> Incarnation {
        self.origin.incarnation.next()
    }

    /// A peer at this address names these.
    pub(crate) fn named(&self, address: SocketAddr, members: &MemberSet) {
        let there = |member: &NamedMember| member.origin == self.origin && !member.ended;
        if !members.members.iter().any(there) {
            return;
        }
        let mut peers = self.peers.lock();
        if peers.len() < MEMBERS_MAX && !peers.contains_key(&address) {
            peers.insert(address, Stage::Named);
            self.changed.notify_one();
        }
    }

    /// Replaces the deny list of its connections.
    pub(crate) fn set_denied(&self, denied: &[String]) {
        if let Some(transport) = &*self.transport.load() {
            transport.set_denied(denied);
        }
    }

    /// Ends its connections, and waits until nothing of them is left. Does nothing where that was done.
    pub(crate) async fn close(&self) {
        if let Some(transport) = self.transport.load_full() {
            transport.close(TRANSPORT_CLOSE_TIME).await;
            self.transport.store(None);
        }
    }

    /// How far a peer is, unless nothing more is to come of it. Returns how far it was.
    fn comes_to(&self, address: SocketAddr, stage: Stage) -> Option<Stage> {
        let mut peers = self.peers.lock();
        let known = peers.get_mut(&address)?;
        let before = *known;
        if before < Stage::Over || stage == Stage::Followed {
            *known = stage;
        }
        self.changed.notify_one();
        Some(before)
    }
}

/// Serves it for as long as a lost life may be waited for.
pub(crate) async fn run(bus: Arc<Bus>, legacy: Arc<Legacy>, config: Config) {
    let time = bus.coherence.bounds().lost_grace.min(SERVED_TIME_MAX);
    let _ = timeout(time, serve(&bus, &legacy, config)).await;
    legacy.close().await;
    // What is served no more need not be held.
    bus.legacy.store(None);
    tracing::info!(origin = %legacy.origin, "the former life is served no more");
}

async fn serve(bus: &Arc<Bus>, legacy: &Arc<Legacy>, config: Config) {
    // Nobody need have missed anything.
    while legacy.peers.lock().is_empty() {
        legacy.changed.notified().await;
    }
    let config = Config { denied: bus.denied.load().to_vec(), ..config };
    let transport = match Transport::bind(config, Arc::new(FormerLife::new(bus, legacy))) {
        Ok(transport) => Arc::new(transport),
        Err(error) => return tracing::error!(%error, "the former life cannot be served"),
    };
    legacy.transport.store(Some(transport.clone()));
    // Whoever has replaced the list meanwhile found no transport.
    legacy.set_denied(&bus.denied.load());
    loop {
        let peers = legacy.peers.lock().clone();
        for (address, stage) in peers {
            match stage {
                Stage::Named | Stage::Met => transport.want(address),
                Stage::Over | Stage::Followed => transport.unwant(address),
            }
        }
        legacy.changed.notified().await;
    }
}

/// The former life as its transport sees it.
#[derive(Clone)]
struct FormerLife {
    bus: Arc<Bus>,
    legacy: Arc<Legacy>,
    herald: Arc<Herald>,
    members: watch::Sender<Arc<MemberSet>>,
    caches: watch::Sender<Arc<Vec<String>>>,
    goodbye: watch::Sender<Option<Vec<Sequence>>>,
}

impl FormerLife {
    fn new(bus: &Arc<Bus>, legacy: &Arc<Legacy>) -> Self {
        Self {
            bus: bus.clone(),
            legacy: legacy.clone(),
            herald: Arc::new(Herald::new(legacy.log.lanes())),
            members: watch::Sender::default(),
            caches: watch::Sender::default(),
            goodbye: watch::Sender::new(Some(legacy.heads.clone())),
        }
    }

    /// A peer has followed it to its end. However often it says so, it counts once.
    fn was_followed(&self, address: SocketAddr) {
        if self.legacy.comes_to(address, Stage::Followed).is_some_and(|before| before != Stage::Followed) {
            tracing::info!(origin = %self.legacy.origin, %address, "the former life was followed to its end");
            self.bus.former_life_followed();
        }
    }
}

impl Host for FormerLife {
    fn hello(&self) -> Hello {
        let (bus, Legacy { origin, id, log, .. }) = (&self.bus, &*self.legacy);
        let over = NamedMember { origin: origin.clone(), address: bus.address(), ended: true };
        Hello {
            protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            cluster: bus.cluster.clone(),
            node: origin.node.clone(),
            incarnation: origin.incarnation,
            log: *id,
            hash_version: HASH_VERSION,
            lanes: log.lanes(),
            address: bus.address(),
            zone: bus.zone.clone(),
            release: crate::RELEASE.to_owned(),
            wall_ms: bus.domain.clock().wall_ms(),
            age_ms: 0,
            members: MemberSet { version: 0, members: vec![over] },
        }
    }

    fn admit(&self, _hello: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    fn refused(&self, address: SocketAddr, refusal: &Refusal) {
        let met = self.legacy.peers.lock().get(&address) == Some(&Stage::Met);
        if met && matches!(refusal, Refusal::DuplicateNode { .. }) {
            // It did follow it, and for it there is only the successor now: the close that said so was lost. That happens,
            // for a close is sent once, and what asks for it again is answered by a reset.
            return self.was_followed(address);
        }
        // It knows the end, or follows no life that is over.
        tracing::debug!(%address, ?refusal, "the former life is not followed");
        self.legacy.comes_to(address, Stage::Over);
    }

    fn is_over(&self) -> bool {
        true
    }

    fn session(&self, link: Arc<Link>) -> SessionFuture {
        let life = self.clone();
        Box::pin(async move {
            life.legacy.comes_to(link.peer().address, Stage::Met);
            let session = Following { life, link };
            session::run(session.link.clone(), Arc::new(session.life.clone())).await;
            let _ = timeout(CLOSE_TIME, session.link.closed()).await;
        })
    }

    fn gossip(&self, _peer: &Hello, _frame: Bytes) {}

    fn now(&self) -> Tick {
        self.bus.domain.clock().now()
    }
}

/// A peer that follows the former life. Dropped when the connection has ended, at whichever part of the session that is.
struct Following {
    life: FormerLife,
    link: Arc<Link>,
}

impl Drop for Following {
    fn drop(&mut self) {
        let (legacy, address) = (&self.life.legacy, self.link.peer().address);
        if self.link.was_closed_with(CloseCode::Followed) {
            self.life.was_followed(address);
        } else if self.link.was_closed_with(CloseCode::Malformed) {
            // It would reject the same again, and begin its doubt anew each time.
            tracing::warn!(origin = %legacy.origin, %address, "a peer rejects the former life");
            legacy.comes_to(address, Stage::Over);
        } else if self.link.was_closed_by_peer() {
            // For a reason of its own, or because the connection has lasted too long: it follows the rest on the next one.
            legacy.comes_to(address, Stage::Named);
        }
    }
}

/// It says what it did, and heeds nothing: what peers do concerns its successor.
impl Peering for FormerLife {
    fn log(&self) -> &ChangeLog {
        &self.legacy.log
    }

    fn herald(&self) -> &Herald {
        &self.herald
    }

    fn now(&self) -> Tick {
        self.bus.domain.clock().now()
    }

    fn wall_ms(&self) -> u64 {
        self.bus.domain.clock().wall_ms()
    }

    fn probe_interval(&self) -> Duration {
        PROBE_INTERVAL
    }

    fn followed(&self, peer: &Hello) -> Arc<Followed> {
        let origin = Origin { node: peer.node.clone(), incarnation: peer.incarnation };
        Arc::new(Followed::new(origin, peer.lanes))
    }

    fn served(&self, _peer: &Hello) -> Arc<Served> {
        Arc::new(Served::new(self.legacy.log.lanes(), Arc::default()))
    }

    fn apply(
        &self,
        _origin: &Arc<Origin>,
        batch: &BatchRef<'_>,
        _from: Sequence,
    ) -> Result<Applied, Unsound> {
        Ok(Applied { next: batch.next(), changes: 0 })
    }

    fn fence(&self, _origin: &Origin, _lanes: Lanes, _lane: LaneId, _reason: FenceReason) {}

    fn progressed(&self, _followed: &Followed) {}

    fn members_of(&self, _origin: &Origin, _members: &MemberSet) {}

    fn clock_of(&self, _origin: &Origin, _wall_ms: u64, _sent: Tick) {}

    fn caches_of(&self, _origin: &Origin, _names: Vec<String>) {}

    fn members(&self) -> watch::Receiver<Arc<MemberSet>> {
        self.members.subscribe()
    }

    fn caches(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.caches.subscribe()
    }

    fn goodbye(&self) -> watch::Receiver<Option<Vec<Sequence>>> {
        self.goodbye.subscribe()
    }

    fn canary_wanted(&self, _lane: LaneId, _next: Sequence) {}

    fn asked(
        &self,
        _peer: &Hello,
        _topic: Topic,
        _question: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, Declined>> {
        Box::pin(std::future::ready(Err(Declined::Unknown)))
    }

    fn said_goodbye(&self, _origin: &Origin) {}
}
