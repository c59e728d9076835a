//! The task that runs a node: it starts transport and membership, lets time pass, and ends everything in order.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tidings_membership::{
    AttestError, Attestation, Attestor, Config as MembershipConfig, Membership, Record, Resolver, State, View,
};
use tidings_proto::frame::CACHES_MAX;
use tidings_proto::id::{Incarnation, NodeId, Origin, Sequence};
use tidings_transport::session::Served;
use tidings_transport::{CloseCode, Notary, Transport};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::bus::{Bus, Face};
use crate::config::Config;
use crate::copying;
use crate::legacy;
use crate::log_files;
use crate::node::StartError;
use crate::observe::Observation;

/// How often freshness is published and links are looked at beside the events that change them.
const TICK: Duration = Duration::from_millis(100);

/// A link without an echo for so long gets a second connection beside it: QUIC's own patience grows with silence.
const SILENCE: Duration = Duration::from_secs(1);

/// How often caches are tidied.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Between two renumberings, each of which ends every link: a peer that lies about lives does not cause a storm.
const RENUMBER_PAUSE: Duration = Duration::from_secs(1);

/// How long peers have to take note of a goodbye before the connections close.
const GOODBYE_TIME: Duration = Duration::from_millis(500);

/// How long a node whose log holds only canaries waits for acknowledgements of them, at most: 200 times what one is
/// gathered for. Whoever has not applied them by then has nothing to lose by the end of their log.
const CANARIES_TIME: Duration = Duration::from_secs(1);

/// How long a life that was replaced waits for acknowledgements of its sealed log: as long as it takes to find its
/// peers, and to hand them what a log holds. Those who come later follow it all the same, while the process is there.
const FORMER_TIME: Duration = Duration::from_secs(4);

/// How long the transport has to close.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// Asks the driver to end, and by when.
pub(crate) struct Shutdown {
    pub(crate) deadline: Duration,
    pub(crate) done: oneshot::Sender<bool>,
}

struct Signer(Notary);

impl Attestor for Signer {
    fn sign(&self, message: &[u8]) -> Result<Attestation, AttestError> {
        let signed = self.0.sign(message).map_err(|error| AttestError(error.to_string()))?;
        Ok(Attestation { certificate: signed.cert, signature: signed.signature })
    }

    fn verify(&self, node: &NodeId, message: &[u8], attestation: &Attestation) -> Result<(), AttestError> {
        let attestation = tidings_transport::Attestation {
            cert: attestation.certificate.clone(),
            signature: attestation.signature.clone(),
        };
        self.0.verify(node, message, &attestation).map_err(|error| AttestError(error.to_string()))
    }
}

/// What the driver is told by those who hold the node.
pub(crate) struct Orders {
    pub(crate) shutdown: mpsc::Receiver<Shutdown>,
    pub(crate) cancel: CancellationToken,
}

pub(crate) struct Driver {
    bus: Arc<Bus>,
    config: Config,
    /// The addresses to which links are kept.
    wanted: Mutex<BTreeSet<SocketAddr>>,
    /// One for every start of membership.
    resolver: Resolver,
}

impl Driver {
    pub(crate) fn new(bus: Arc<Bus>, config: Config) -> Self {
        bus.denied.store(Arc::new(config.denied.clone()));
        Self { bus, config, wanted: Mutex::default(), resolver: Resolver::default() }
    }

    /// Binds, starts and runs the node. `started` is told as soon as others can reach it.
    pub(crate) async fn run(self, orders: Orders, started: oneshot::Sender<Result<(), StartError>>) {
        // From before the record is signed for the first time.
        let reloads = self.config.identity.reloads();
        match self.start().await {
            Ok(view) => {
                let _ = started.send(Ok(()));
                let face = Face(self.bus.clone());
                let linger = self.config.simulated.is_none();
                let mut tasks = JoinSet::new();
                tasks.spawn(async move { face.herald.run(&face, linger).await });
                tasks.spawn(crate::leases::run(self.bus.clone()));
                let legacy = self.bus.legacy.load_full().filter(|_| linger);
                if let Some(legacy) = legacy.clone() {
                    tasks.spawn(legacy::run(self.bus.clone(), legacy, self.config_beside()));
                }
                let bus = self.bus.clone();
                tasks.spawn(async move { copying::run(&bus).await });
                let mut auditor = JoinSet::new();
                auditor.spawn(audit::run(self.bus.clone()));
                // It tells to the very end: what is said last has to reach the peers too.
                self.work(orders, view, reloads).await;
                auditor.shutdown().await;
                tasks.shutdown().await;
                if let Some(legacy) = legacy {
                    legacy.close().await;
                }
                self.bus.transport.store(None);
                self.bus.receipts.end();
                self.bus.observers.close();
            }
            Err(error) => {
                self.bus.transport.store(None);
                let _ = started.send(Err(error));
            }
        }
    }

    async fn work(&self, mut orders: Orders, view: watch::Receiver<Arc<View>>, reloads: watch::Receiver<()>) {
        let mut steering = pin!(self.steer(view, reloads));
        let shutdown = tokio::select! {
            () = orders.cancel.cancelled() => None,
            shutdown = orders.shutdown.recv() => shutdown,
            never = &mut steering => match never {},
        };
        let Some(Shutdown { deadline, done }) = shutdown else {
            if let Some(transport) = self.bus.transport() {
                transport.close(Duration::ZERO).await;
            }
            return;
        };
        self.bus.domain.leave();
        let drained = tokio::select! {
            drained = tokio::time::timeout(deadline, self.drained(deadline)) => drained,
            never = &mut steering => match never {},
        };
        let heads = drained.ok().filter(|_| !self.bus.is_stuck());
        let clean = heads.is_some();
        self.leave(heads).await;
        // Let go of before the caller is told: the port is free then.
        self.bus.transport.store(None);
        let _ = done.send(clean);
    }

    fn transport_config(&self) -> tidings_transport::Config {
        let config = &self.config;
        tidings_transport::Config {
            cluster: config.cluster.clone(),
            node: self.bus.node.clone(),
            listen: config.listen,
            identity: config.identity.clone(),
            denied: config.denied.clone(),
        }
    }

    /// Of a transport that dials from any port of this node's.
    fn config_beside(&self) -> tidings_transport::Config {
        let config = self.transport_config();
        tidings_transport::Config { listen: SocketAddr::new(config.listen.ip(), 0), ..config }
    }

    async fn start(&self) -> Result<watch::Receiver<Arc<View>>, StartError> {
        let config = &self.config;
        let transport_config = self.transport_config();
        if let Some(advertise) = config.advertise {
            self.bus.set_address(advertise);
        }
        let host = Arc::new(Face(self.bus.clone()));
        let transport = match &config.simulated {
            None => Transport::bind(transport_config, host)?,
            Some(simulated) => {
                Transport::bind_on(transport_config, host, simulated.socket.clone(), Some(simulated.seed))?
            }
        };
        if config.advertise.is_none() {
            let address = transport.local_addr();
            if address.ip().is_unspecified() {
                return Err(StartError::Unspecified(address));
            }
            self.bus.set_address(address);
        }
        let credentials = (transport.stats().clone(), transport.identity().clone());
        if self.bus.credentials.set(credentials).is_err() {
            unreachable!("a driver starts once");
        }
        self.bus.transport.store(Some(Arc::new(transport)));
        // Not before: who cannot start leaves the files of the last one who could.
        self.bus.own_log_files().await;
        self.start_membership().await
    }

    async fn start_membership(&self) -> Result<watch::Receiver<Arc<View>>, StartError> {
        let bus = &self.bus;
        let record = Record {
            origin: bus.origin(),
            address: bus.address(),
            zone: bus.zone.clone(),
            release: crate::RELEASE.to_owned(),
        };
        let mut config = MembershipConfig::new(bus.cluster.clone(), record);
        config.seeds.clone_from(&self.config.seeds);
        config.resolver = self.resolver.clone();
        config.gossip_interval = self.config.gossip_interval;
        let clock = bus.domain.clock().clone();
        config.clock = Arc::new(move || clock.coarse());
        let notary = bus.transport().expect("the transport is started first").notary();
        let membership = Membership::start(config, bus.seam(), Arc::new(Signer(notary))).await?;
        let view = membership.watch();
        *bus.membership.lock() = Some(membership);
        Ok(view)
    }

    /// Lets time pass, and does what it asks for, until it is dropped.
    async fn steer(
        &self,
        mut view: watch::Receiver<Arc<View>>,
        mut reloads: watch::Receiver<()>,
    ) -> Infallible {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tidying = None;
        let mut states = Vec::new();
        let mut incarnation = self.bus.wanted_incarnation.subscribe();
        incarnation.mark_changed();
        let mut renumber_from = Instant::now();
        let mut stuck = pin!(log_files::refuse_while_stuck(&self.bus).fuse());
        let mut over = pin!(self.ends_if_replaced().fuse());
        view.mark_changed();
        loop {
            tokio::select! {
                Ok(()) = reloads.changed() => self.renew().await,
                Ok(()) = view.changed() => {
                    let now = view.borrow_and_update().clone();
                    self.seen(&now, &mut states);
                    self.dial(&now);
                }
                () = self.bus.named.notified() => {
                    let now = view.borrow().clone();
                    self.dial(&now);
                }
                Ok(()) = incarnation.changed(), if Instant::now() >= renumber_from => {
                    let incarnation = *incarnation.borrow_and_update();
                    renumber_from = Instant::now() + RENUMBER_PAUSE;
                    if let Some(renumbered) = self.renumber(incarnation).await {
                        view = renumbered;
                        view.mark_changed();
                    }
                }
                () = &mut over => {}
                () = &mut stuck => {}
                _ = tick.tick() => {
                    self.redial_silent();
                    let now = view.borrow().clone();
                    self.bus.coherence.seen(&now);
                    self.bus.look_around();
                }
                _ = housekeeping.tick() => {
                    self.bus.canary.sing(self.bus.domain.log(), self.bus.domain.clock().wall_ms());
                    let idle = tidying.as_ref().is_none_or(tokio::task::JoinHandle::is_finished);
                    if self.config.simulated.is_some() {
                        // Another thread would take real time.
                        self.bus.domain.housekeep();
                    } else if idle {
                        let domain = self.bus.domain.clone();
                        tidying = Some(tokio::task::spawn_blocking(move || domain.housekeep()));
                    }
                    let caches = self.bus.domain.caches();
                    // A frame holds no more.
                    let caches = caches.iter().take(CACHES_MAX);
                    let names: Vec<String> = caches.map(|cache| crate::hosted::announced(&**cache)).collect();
                    let now = view.borrow().clone();
                    if let Some(membership) = self.bus.membership() {
                        for origin in self.bus.coherence.forgettable(&now) {
                            // One that can be heard again stays, which is as it should be.
                            let _ = membership.forget(&origin);
                        }
                    }
                    self.bus.hosted.send_if_modified(|hosted| {
                        let changed = **hosted != names;
                        if changed {
                            *hosted = Arc::new(names);
                        }
                        changed
                    });
                }
            }
        }
    }

    /// Waits until another process has this node's place, and then ends this life as it would itself: what has begun
    /// is waited for, the log is sealed, and whoever can be reached follows it to its end. The node goes on serving
    /// what it is allowed to, and refuses changes.
    async fn ends_if_replaced(&self) {
        let bus = &self.bus;
        let replaced = bus.conflict.subscribe().wait_for(Option::is_some).await.is_ok();
        if !replaced || !bus.is_former() {
            return;
        }
        let horizon = bus.coherence.bounds().write_horizon;
        if tokio::time::timeout(horizon, bus.domain.writes_settled()).await.is_err() || bus.is_stuck() {
            // What is open still can neither be told any more nor be said to be over.
            bus.ends_unfollowed();
            tracing::warn!(
                "another process has this node's place, and writes are open here: peers give this life up"
            );
            return;
        }
        let heads = bus.domain.log().seal();
        tracing::warn!(?heads, "another process has this node's place: the log of this life is sealed");
        // What is not acknowledged is followed all the same; but a peer that has ended its link says nothing any more.
        let _ = tokio::time::timeout(FORMER_TIME, self.acknowledged(&heads)).await;
        bus.goodbye.send_replace(Some(heads));
    }

    /// Judges and signs records by an identity that was read anew.
    async fn renew(&self) {
        let Some(membership) = self.bus.membership() else { return };
        membership.recheck();
        match membership.renew().await {
            Ok(()) => tracing::info!("the own record was signed anew"),
            // The old one stands, for as long as peers trust its signature.
            Err(error) => tracing::error!(%error, "the own record was not signed anew"),
        }
    }

    fn seen(&self, view: &View, states: &mut Vec<(Origin, State)>) {
        let now: Vec<_> = view.lives().map(|member| (member.record.origin.clone(), member.state)).collect();
        for (origin, state) in now.iter().filter(|entry| !states.contains(entry)) {
            tracing::info!(%origin, %state, "member");
            self.bus.observers.tell(Observation::Member { origin: origin.clone(), state: *state });
        }
        *states = now;
        self.bus.coherence.seen(view);
    }

    /// Keeps a link to every seed and every relevant origin.
    fn dial(&self, view: &View) {
        let Some(transport) = self.bus.transport() else { return };
        let mut wanted = self.wanted.lock();
        let mut addresses: BTreeSet<SocketAddr> = self.bus.coherence.addresses().into_iter().collect();
        addresses.extend(&view.seeds);
        addresses.extend(*self.bus.holder.lock());
        addresses.remove(&self.bus.address());
        wanted.difference(&addresses).for_each(|address| transport.unwant(*address));
        addresses.difference(&wanted).for_each(|address| transport.want(*address));
        *wanted = addresses;
    }

    fn redial_silent(&self) {
        let Some(transport) = self.bus.transport() else { return };
        let now = self.bus.domain.clock().now();
        for link in transport.links() {
            if now.since(link.last_heard()) >= SILENCE {
                transport.redial(&link.peer().node);
            }
        }
    }

    /// Takes a later incarnation: gossip and every link start anew under it.
    async fn renumber(&self, incarnation: Incarnation) -> Option<watch::Receiver<Arc<View>>> {
        if incarnation <= self.bus.origin().incarnation || self.bus.is_former() {
            return None;
        }
        let origin = self.bus.renumber(incarnation);
        self.bus.own_log_files().await;
        tracing::warn!(%origin, "a later incarnation of this node is known: taking the next");
        if let Some(transport) = self.bus.transport() {
            transport.close_links(CloseCode::Ended, "renumbered");
        }
        self.bus.coherence.renumbered();
        let old = self.bus.membership.lock().take();
        if let Some(membership) = old {
            membership.shutdown().await;
        }
        self.bus.observers.tell(Observation::Renumbered { origin });
        match self.start_membership().await {
            Ok(view) => Some(view),
            Err(error) => {
                tracing::error!(%error, "membership could not be started again");
                None
            }
        }
    }

    /// Waits for open writes, seals the log, and waits until everybody relevant has acknowledged it. Of a log that holds
    /// only canaries not for ever: nobody is cut off with an older value. Still, who has not applied them would not heed
    /// the goodbye, and doubt. Returns the heads.
    async fn drained(&self, deadline: Duration) -> Vec<Sequence> {
        if self.bus.is_former() {
            let mut goodbye = self.bus.goodbye.subscribe();
            let said = goodbye.wait_for(Option::is_some).await;
            return said.map_or_else(|_| Vec::new(), |heads| heads.clone().unwrap_or_default());
        }
        let began = Instant::now();
        self.bus.domain.writes_settled().await;
        let heads = self.bus.domain.log().seal();
        if self.bus.canary.is_all_of(&heads) {
            // Not so long that the deadline passes, and the end is unclean.
            let time = CANARIES_TIME.min(deadline.saturating_sub(began.elapsed()) / 2);
            let _ = tokio::time::timeout(time, self.acknowledged(&heads)).await;
        } else {
            self.acknowledged(&heads).await;
        }
        heads
    }

    /// Waits until everybody relevant has acknowledged these heads; also those who were named and never reached: they may
    /// be cut off with an older value.
    async fn acknowledged(&self, heads: &[Sequence]) {
        let bus = &self.bus;
        let mut members = bus.coherence.members();
        loop {
            // Whoever leaves meanwhile needs nothing more, and whoever comes is waited for as well.
            members.borrow_and_update();
            let served = |origin| bus.coherence.sessions(origin).1;
            let relevant = bus.coherence.relevant();
            let lags = |served: &Option<Arc<Served>>| served.as_ref().is_none_or(|it| it.lag(heads) > 0);
            let Some(behind) = relevant.iter().map(served).find(lags) else { return };
            let acknowledged = async {
                match behind {
                    Some(served) => served.reached(heads).await,
                    // Never reached so far.
                    None => tokio::time::sleep(TICK).await,
                }
            };
            tokio::select! {
                () = acknowledged => {}
                changed = members.changed() => debug_assert!(changed.is_ok(), "the bus keeps the sender"),
            }
        }
    }

    /// Says goodbye if everybody has acknowledged these heads, and closes; else peers treat it as an unclean end.
    async fn leave(&self, drained: Option<Vec<Sequence>>) {
        let bus = &self.bus;
        if let Some(heads) = drained {
            // Peers end their links once they have taken note: none is to be dialled anew.
            if let Some(transport) = bus.transport() {
                self.wanted.lock().iter().for_each(|address| transport.unwant(*address));
            }
            bus.goodbye.send_replace(Some(heads));
            if let Some(membership) = bus.membership() {
                membership.leave().await;
            }
            if let Some(transport) = bus.transport() {
                let links = transport.links();
                let closed = futures_util::future::join_all(links.iter().map(|link| link.closed()));
                let _ = tokio::time::timeout(GOODBYE_TIME, closed).await;
            }
        } else {
            let why =
                if bus.is_stuck() { "the log files are stuck" } else { "the time to shut down is over" };
            tracing::warn!("{why}: no goodbye is said, peers will doubt for a while");
        }
        let membership = bus.membership.lock().take();
        if let Some(membership) = membership {
            membership.shutdown().await;
        }
        if let Some(transport) = bus.transport() {
            transport.close(CLOSE_TIME).await;
        }
        bus.domain.close().await;
    }
}
