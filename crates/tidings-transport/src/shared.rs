//! What the tasks of one transport share.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, Incoming, ServerConfig};
use tidings_proto::id::NodeId;
use tidings_proto::time::Tick;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::close::CloseCode;
use crate::denied::DenyList;
use crate::dial::Targets;
use crate::duplicate::Verdicts;
use crate::gate::{Entry, Gate};
use crate::gossip;
use crate::handshake;
use crate::host::Host;
use crate::identity::{Credentials, Identity, IdentityError};
use crate::limits::{
    self, BI_STREAMS_UNADMITTED, DIAL_PAUSE_MAX, DIALS_PER_ADDRESS_MAX, SURPLUS_GRACE_SILENT,
};
use crate::link::Link;
use crate::quiet::Quiet;
use crate::refusals::Refusals;
use crate::refuse::HandshakeError;
use crate::run::Registered;
use crate::socket::canonical;
use crate::stats::{RefusedReason, TransportStats};
use crate::table::{Facts, Judgement, LinkId, Outcome, Table};
use crate::tls::TlsError;

/// A transport, as its tasks see it.
pub(crate) struct Shared {
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
    pub(crate) server_name: String,
    pub(crate) address: SocketAddr,
    pub(crate) identity: Identity,
    pub(crate) prepared: ArcSwap<Prepared>,
    pub(crate) denied: Arc<ArcSwap<DenyList>>,
    pub(crate) endpoint: Endpoint,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) stats: Arc<TransportStats>,
    pub(crate) links: Links,
    pub(crate) targets: Mutex<Targets>,
    /// Attempts beside silent links.
    pub(crate) redials: Mutex<HashMap<NodeId, Redials>>,
    /// The incarnation after the one in which this node was replaced, as a peer has told; 0 if none has.
    pub(crate) replaced: AtomicU64,
    /// About other processes with this node's id.
    pub(crate) verdicts: Verdicts,
    pub(crate) quiet: Quiet,
    pub(crate) refusals: Refusals,
    /// Notifies of every change of the table and of what is wanted.
    pub(crate) changed: watch::Sender<()>,
    pub(crate) gate: Gate,
    pub(crate) dials_in_flight: Semaphore,
    /// Places for connections to lives that are over.
    pub(crate) formers: Arc<Semaphore>,
    /// Ends what begins anything.
    pub(crate) cancel: CancellationToken,
    /// Drops every task.
    pub(crate) abort: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) runtime: Handle,
}

/// Attempts to reach one node beside the link that it has.
pub(crate) struct Redials {
    under_way: usize,
    next: Instant,
}

/// The links. Its locks are held for a few table operations at a time and never across a call to the host, so that
/// a plain mutex will do; `settling` is only ever locked after `table`.
pub(crate) struct Links {
    table: Mutex<Table<Arc<Link>>>,
    /// Nodes with several links, each looked at by a task until it has one.
    settling: Mutex<HashSet<NodeId>>,
}

impl Links {
    pub(crate) fn new(local: NodeId) -> Self {
        Self { table: Mutex::new(Table::new(local)), settling: Mutex::default() }
    }
}

/// The QUIC configurations of one reading of the identity.
pub(crate) struct Prepared {
    credentials: Arc<Credentials>,
    pub(crate) server: ServerConfig,
    client: ClientConfig,
}

impl Prepared {
    pub(crate) fn of(credentials: Arc<Credentials>) -> Result<Self, IdentityError> {
        let unusable = |error| IdentityError::Tls(TlsError::Suites(error));
        let server = QuicServerConfig::try_from(credentials.server.clone()).map_err(unusable)?;
        let client = QuicClientConfig::try_from(credentials.client.clone()).map_err(unusable)?;
        let client = ClientConfig::new(Arc::new(client));
        Ok(Self { credentials, server: limits::server(Arc::new(server)), client })
    }
}

/// Takes connection attempts until the transport is closed.
pub(crate) async fn accept_all(shared: Arc<Shared>) {
    loop {
        let incoming = tokio::select! {
            () = shared.cancel.cancelled() => return,
            incoming = shared.endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        shared.consider(incoming);
    }
}

impl Shared {
    /// The table of links.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table<Arc<Link>>> {
        self.links.table.lock().expect("nothing panics while it is locked")
    }

    /// The addresses that are kept.
    pub(crate) fn targets(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().expect("nothing panics while it is locked")
    }

    /// Tells those who keep an address that something may have changed for them.
    pub(crate) fn notify(&self) {
        self.changed.send_replace(());
    }

    /// Runs a task until it ends, or the transport is dropped.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        let task = async move {
            abort.run_until_cancelled_owned(task).await;
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// The open link that counts at an address.
    pub(crate) fn current_at(&self, address: SocketAddr) -> Option<Arc<Link>> {
        self.table().at(address).filter(|link| !link.is_closed()).cloned()
    }

    /// How this node answers a peer's handshake, by the newest reading of its identity.
    pub(crate) fn server_config(&self, peer: SocketAddr) -> Result<Arc<ServerConfig>, IdentityError> {
        let mut config = self.prepare()?.server.clone();
        config.transport_config(Arc::new(limits::transport(BI_STREAMS_UNADMITTED, peer.ip())));
        Ok(Arc::new(config))
    }

    /// How this node begins a handshake with a peer, which may open no stream before it is admitted.
    pub(crate) fn client_config(&self, peer: SocketAddr) -> Result<ClientConfig, IdentityError> {
        let mut config = self.prepare()?.client.clone();
        config.transport_config(Arc::new(limits::transport(0, peer.ip())));
        Ok(config)
    }

    fn prepare(&self) -> Result<Arc<Prepared>, IdentityError> {
        let credentials = self.identity.credentials()?;
        let prepared = self.prepared.load_full();
        if Arc::ptr_eq(&prepared.credentials, &credentials) {
            return Ok(prepared);
        }
        let prepared = Arc::new(Prepared::of(credentials)?);
        self.prepared.store(prepared.clone());
        Ok(prepared)
    }

    /// Records a handshake that came to nothing, and tells the host if it is this node that is refused.
    pub(crate) fn handshake_failed(&self, remote: SocketAddr, error: &HandshakeError) {
        error.record(&self.stats, &self.quiet, (remote, self.refusals.name(remote)));
        self.refusals.note(remote, error, self.host.now());
        if let HandshakeError::RefusedByPeer(refusal) = error {
            self.host.refused(remote, refusal);
        }
    }

    /// Enters an admitted link in the table.
    pub(crate) fn enter(
        self: &Arc<Self>,
        facts: Facts,
        link: &Arc<Link>,
        now: Tick,
        unanswered: &[LinkId],
    ) -> Result<Registered, Judgement<Arc<Link>>> {
        let node = facts.node.clone();
        let settle = {
            let mut table = self.table();
            let heard = link.heard_handle();
            let (id, outcome) = table.register(facts, link.clone(), (now, heard), unanswered)?;
            let registered = Registered::new(self.clone(), id, link.clone());
            let contested = outcome.contested;
            apply(outcome, CloseCode::Replaced);
            (registered, contested && self.settling().insert(node.clone()))
        };
        self.stats.links_opened.one();
        if settle.1 {
            self.spawn(settle_node(self.clone(), node));
        }
        self.notify();
        Ok(settle.0)
    }

    /// Takes a link that has ended out of the table.
    pub(crate) fn leave(&self, id: LinkId) {
        let now = self.host.now();
        if let Some(outcome) = self.table().remove(id, now) {
            apply(outcome, CloseCode::Ended);
        }
        self.notify();
    }

    /// Sends the gossip that waits for an address.
    pub(crate) fn flush_gossip(&self, address: SocketAddr, link: &Link) {
        let frames = self.targets().take_frames(address);
        for frame in frames {
            gossip::send(self, link, frame);
        }
    }

    /// Dials a node beside the link that it has, if the last such attempt is long enough ago.
    pub(crate) fn redial(self: &Arc<Self>, node: &NodeId, address: SocketAddr) {
        let now = Instant::now();
        {
            let mut redials = self.redials();
            redials.retain(|_, redials| redials.under_way > 0 || now < redials.next);
            let redials = redials.entry(node.clone()).or_insert(Redials { under_way: 0, next: now });
            if now < redials.next || redials.under_way >= DIALS_PER_ADDRESS_MAX {
                return;
            }
            redials.under_way += 1;
            redials.next = now + DIAL_PAUSE_MAX.mul_f64(rand::random_range(0.75..1.0));
        }
        let (shared, node) = (self.clone(), node.clone());
        self.spawn(async move {
            if let Err(error) = handshake::dial(&shared, address, true).await {
                shared.handshake_failed(address, &error);
            }
            if let Some(redials) = shared.redials().get_mut(&node) {
                redials.under_way -= 1;
            }
        });
    }

    fn redials(&self) -> MutexGuard<'_, HashMap<NodeId, Redials>> {
        self.redials.lock().expect("nothing panics while it is locked")
    }

    fn settling(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        self.links.settling.lock().expect("nothing panics while it is locked")
    }

    /// Decides whether a connection attempt is looked at.
    fn consider(self: &Arc<Self>, incoming: Incoming) {
        let remote = canonical(incoming.remote_address());
        let known = self.targets().wants(remote) || self.table().knows(remote);
        match self.gate.enter(remote, known, incoming.remote_address_validated()) {
            Entry::Admitted(place) => self.spawn(handshake::accept(self.clone(), incoming, place)),
            // An attempt that cannot be asked to come back is refused when it is dropped.
            Entry::Unproven => drop(incoming.retry()),
            Entry::Full => {
                self.handshake_failed(remote, &HandshakeError::Refused(RefusedReason::Busy, None));
                incoming.refuse();
            }
        }
    }
}

/// Looks at a node with several links until it has one.
async fn settle_node(shared: Arc<Shared>, node: NodeId) {
    loop {
        sleep(SURPLUS_GRACE_SILENT).await;
        let now = shared.host.now();
        let mut table = shared.table();
        let outcome = table.settle(&node, now);
        let contested = outcome.contested;
        shared.stats.links_surplus.add(outcome.close.len());
        apply(outcome, CloseCode::Surplus);
        if !contested {
            shared.settling().remove(&node);
            return;
        }
    }
}

/// Does what a change of the table asks for. Called while the table is locked, so that changes are seen in order.
fn apply(outcome: Outcome<Arc<Link>>, code: CloseCode) {
    for link in outcome.close {
        link.current.send_replace(false);
        link.close(code, "");
    }
    let takes_over = outcome.turned.iter().any(|(_, current)| !current);
    for (link, current) in outcome.turned {
        if current && takes_over {
            tracing::info!(node = %link.peer().node, remote = %link.remote(), initiated = link.initiated(),
                "another link takes over");
        }
        link.current.send_replace(current);
    }
}
