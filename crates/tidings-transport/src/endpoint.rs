//! One node's transport: its endpoint, its links, and what it keeps.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use quinn::{AsyncUdpSocket, Endpoint, TokioRuntime};
use tidings_proto::frame::Refusal;
use tidings_proto::id::NodeId;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attest::Notary;
use crate::authority::{AuthorityError, dns_name};
use crate::close::{self, CloseCode};
use crate::denied::DenyList;
use crate::dial::{self, Requested};
use crate::duplicate::Verdicts;
use crate::gate::Gate;
use crate::gossip;
use crate::host::Host;
use crate::identity::{Identity, IdentityError};
use crate::limits::{self, DIALS_MAX, FORMER_LINKS_MAX};
use crate::link::Link;
use crate::quiet::Quiet;
use crate::refusals::{Refusals, Refused};
use crate::shared::{self, Prepared, Shared};
use crate::socket::{self, EventSocket};
use crate::stats::{RefusedReason, TransportStats};

/// What a transport is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// This node's id.
    pub node: NodeId,
    /// The UDP address to bind; port 0 for any. The unspecified IPv6 address takes IPv4 peers too.
    pub listen: SocketAddr,
    /// The node's certificate and key, and whom it trusts.
    pub identity: Identity,
    /// Node ids and certificates' serial numbers that are refused.
    pub denied: Vec<String>,
}

/// A transport could not be started. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The cluster's name cannot be used in certificates.
    #[error("cluster name")]
    Cluster(#[source] AuthorityError),
    /// The identity is another node's, or unusable.
    #[error("identity")]
    Identity(#[source] IdentityError),
    /// An identity for development proves nothing, so only processes of this host may reach the node.
    #[error("an identity for development listens on a loopback address only, not on {0}")]
    DevelopmentNotLoopback(SocketAddr),
    /// Not called within a tokio runtime.
    #[error("no tokio runtime")]
    NoRuntime,
    /// The socket cannot be bound.
    #[error("cannot bind UDP {address}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A node's transport: one UDP port, links to peers, gossip over them.
///
/// Dropping it closes all connections without waiting for anything; [`Transport::close`] is the orderly way.
pub struct Transport {
    shared: Arc<Shared>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("node", &self.shared.node).finish_non_exhaustive()
    }
}

impl Transport {
    /// Binds the UDP port and starts to accept links.
    ///
    /// # Errors
    /// [`BindError`]; nothing is bound then.
    pub fn bind(config: Config, host: Arc<dyn Host>) -> Result<Self, BindError> {
        let _runtime = Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let identity = own_identity(&config)?;
        let address = config.listen;
        let unbound = |source| BindError::Socket { address, source };
        let socket = socket::bind(address).map_err(unbound)?;
        let socket = EventSocket::new(socket).map_err(unbound)?;
        Self::start(config, identity, host, Arc::new(socket), None)
    }

    /// Starts on a socket that is there already, for simulation. With a seed, QUIC's own randomness is repeatable.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_on(
        config: Config,
        host: Arc<dyn Host>,
        socket: Arc<dyn AsyncUdpSocket>,
        seed: Option<[u8; 32]>,
    ) -> Result<Self, BindError> {
        let identity = own_identity(&config)?;
        Self::start(config, identity, host, socket, seed)
    }

    fn start(
        config: Config,
        identity: Identity,
        host: Arc<dyn Host>,
        socket: Arc<dyn AsyncUdpSocket>,
        seed: Option<[u8; 32]>,
    ) -> Result<Self, BindError> {
        let runtime = Handle::try_current().map_err(|_| BindError::NoRuntime)?;
        let server_name = dns_name(&config.cluster).map_err(BindError::Cluster)?;
        let credentials = identity.credentials().map_err(BindError::Identity)?;
        let limits = limits::endpoint(&credentials.secret, seed);
        let prepared = Prepared::of(credentials).map_err(BindError::Identity)?;
        let server = Some(prepared.server.clone());
        let unbound = |source| BindError::Socket { address: config.listen, source };
        let endpoint = Endpoint::new_with_abstract_socket(limits, server, socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.map_err(unbound)?;
        let address = endpoint.local_addr().map_err(unbound)?;
        let shared = Arc::new(Shared {
            cluster: config.cluster,
            node: config.node.clone(),
            server_name: server_name.as_ref().to_owned(),
            address,
            identity,
            prepared: ArcSwap::from_pointee(prepared),
            denied: Arc::new(ArcSwap::from_pointee(DenyList::new(config.denied))),
            endpoint,
            host,
            stats: Arc::default(),
            links: shared::Links::new(config.node),
            targets: std::sync::Mutex::default(),
            redials: std::sync::Mutex::new(HashMap::new()),
            replaced: AtomicU64::new(0),
            verdicts: Verdicts::default(),
            quiet: Quiet::default(),
            refusals: Refusals::default(),
            changed: watch::Sender::new(()),
            gate: Gate::default(),
            dials_in_flight: Semaphore::new(DIALS_MAX),
            formers: Arc::new(Semaphore::new(FORMER_LINKS_MAX)),
            cancel: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime,
        });
        shared.spawn(shared::accept_all(shared.clone()));
        Ok(Self { shared })
    }

    /// The UDP address that is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// This node's identity, bound to it. Reloading it changes what new handshakes use.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// Signs as this node, and judges what others have signed, by the deny list too.
    #[must_use]
    pub fn notary(&self) -> Notary {
        Notary { identity: self.shared.identity.clone(), denied: self.shared.denied.clone() }
    }

    /// Keeps a link to an address from now on: dials at once, and again whenever there is none, with growing pauses
    /// of at most [`limits::DIAL_PAUSE_MAX`]. Does nothing for an address that is wanted already.
    pub fn want(&self, address: SocketAddr) {
        let address = socket::canonical(address);
        let requested = self.shared.targets().want(address);
        self.keep(address, &requested);
        self.shared.notify();
    }

    /// Dials an address no more. A link that is up stays up.
    pub fn unwant(&self, address: SocketAddr) {
        self.shared.targets().unwant(socket::canonical(address));
        self.shared.notify();
    }

    /// Sends a gossip frame, if that is possible soon: on the link, or on the one that is dialled now. Never
    /// waits. Frames that find no link are dropped and counted; so are older ones when too many wait.
    pub fn send_gossip(&self, to: SocketAddr, frame: Bytes) {
        let to = socket::canonical(to);
        if let Some(link) = self.shared.current_at(to) {
            return gossip::send(&self.shared, &link, frame);
        }
        let (requested, dropped) = self.shared.targets().queue(to, frame);
        self.shared.stats.gossip_dropped.add(dropped);
        self.keep(to, &requested);
    }

    /// The link to a node that counts, if there is one.
    #[must_use]
    pub fn link(&self, node: &NodeId) -> Option<Arc<Link>> {
        self.shared.table().current(node).filter(|link| !link.is_closed()).cloned()
    }

    /// The link that counts to every linked node.
    #[must_use]
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.shared.table().currents().filter(|link| !link.is_closed()).cloned().collect()
    }

    /// Closes every link, also those that do not count at the moment.
    pub fn close_links(&self, code: CloseCode, reason: &str) {
        let links: Vec<_> = self.shared.table().all().cloned().collect();
        links.iter().for_each(|link| link.close(code, reason));
    }

    /// Dials a linked node once more, beside the link it has: for one that has fallen silent, since QUIC's own
    /// patience grows with the silence. To be called as long as it is silent: an attempt begins at most every
    /// [`limits::DIAL_PAUSE_MAX`], with jitter, and [`limits::DIALS_PER_ADDRESS_MAX`] are under way at most.
    pub fn redial(&self, node: &NodeId) {
        if let Some(link) = self.link(node) {
            self.shared.redial(node, link.peer().address);
        }
    }

    /// Replaces the deny list. Connections of those who are on it now are closed.
    pub fn set_denied<S: AsRef<str>>(&self, entries: impl IntoIterator<Item = S>) {
        // In this order: a link that comes up meanwhile looks at the list after it has entered the table.
        let list = Arc::new(DenyList::new(entries));
        self.shared.denied.store(list.clone());
        self.shared.notify();
        let denied: Vec<_> =
            self.shared.table().all().filter(|link| list.denies(&link.identity)).cloned().collect();
        for link in denied {
            self.shared.stats.refuse(RefusedReason::Denied);
            tracing::warn!(node = %link.peer().node, serial = link.serial(), reason = "denied", "link closed");
            close::refuse(&link.connection, &Refusal::Denied);
        }
    }

    /// The newest handshakes that this node or a peer has refused, the newest last.
    #[must_use]
    pub fn refusals(&self) -> Vec<Refused> {
        self.shared.refusals.all()
    }

    /// Wanted addresses without a link, each with the reason why its last attempt failed, if one has.
    #[must_use]
    pub fn unreachable(&self) -> Vec<(SocketAddr, Option<String>)> {
        let wanted = self.shared.targets().wanted_addresses();
        wanted.into_iter().filter(|(address, _)| self.shared.current_at(*address).is_none()).collect()
    }

    /// What has been counted so far. It can be kept longer than the transport.
    #[must_use]
    pub fn stats(&self) -> &Arc<TransportStats> {
        &self.shared.stats
    }

    /// Stops dialling and accepting, closes every link, and waits until peers have been told and all tasks have
    /// ended, or until the time is over; then drops what is left.
    pub async fn close(&self, deadline: Duration) {
        self.shared.cancel.cancel();
        self.shared.endpoint.close(CloseCode::Shutdown.as_varint(), b"shutdown");
        self.shared.tasks.close();
        let ended = async {
            self.shared.tasks.wait().await;
            self.shared.endpoint.wait_idle().await;
        };
        if timeout(deadline, ended).await.is_err() {
            tracing::warn!("the transport's shutdown was cut short");
        }
        self.shared.abort.cancel();
    }

    fn keep(&self, address: SocketAddr, requested: &Requested) {
        match requested {
            Requested::Start => self.shared.spawn(dial::keep(self.shared.clone(), address)),
            Requested::Running => {}
            Requested::Full => {
                let ip = Ipv4Addr::UNSPECIFIED.into();
                if let Some(passed) = self.shared.quiet.speaks(ip, "addresses", Instant::now()) {
                    tracing::warn!(%address, passed_over = passed.field(), "too many addresses to dial");
                }
            }
        }
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        self.shared.endpoint.close(CloseCode::Shutdown.as_varint(), b"shutdown");
        self.shared.abort.cancel();
    }
}

fn own_identity(config: &Config) -> Result<Identity, BindError> {
    dns_name(&config.cluster).map_err(BindError::Cluster)?;
    if config.identity.is_development() && !config.listen.ip().to_canonical().is_loopback() {
        return Err(BindError::DevelopmentNotLoopback(config.listen));
    }
    config.identity.of_node(&config.cluster, &config.node).map_err(BindError::Identity)
}
