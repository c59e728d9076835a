//! The handle of a running node.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_cache::{AnyCache, Cache, CacheBuilder, Clock, Domain, Key};
use tidings_membership::{Member, State};
use tidings_proto::freshness::{Bounds, Doubt};
use tidings_proto::id::{Incarnation, InvalidName, LogId, NodeId, Origin};
use tidings_proto::log::ChangeLog;
use tidings_transport::{BindError, Identity, TransportStats};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::builder::NodeBuilder;
use crate::bus::{Bus, Conflict, Parts};
use crate::coherence::Coherence;
use crate::config::Config;
use crate::drive::{Driver, Orders, Shutdown};
use crate::leases::LeaseReport;
use crate::legacy::Legacy;
use crate::log_files::{self, LogFileError, LogFileReport};
use crate::observe::{Observer, Observers};
use crate::receipts::ReceiptCounts;
use crate::streaming::Streaming;

/// A node could not be started. Nothing runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The cluster's name or the node id is not usable.
    #[error("name")]
    Name(#[from] InvalidName),
    /// The port cannot be bound, or the identity does not fit.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The seeds cannot be used, or the node's record cannot be signed.
    #[error("membership")]
    Membership(#[from] tidings_membership::StartError),
    /// Peers could not reach the node at this address.
    #[error("listening on {0}: say at which address peers can reach this node (advertise)")]
    Unspecified(SocketAddr),
    /// The advertised name does not resolve.
    #[error("cannot resolve the advertised address {name:?}")]
    Advertise {
        /// The name.
        name: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Its log files cannot be used.
    #[error(transparent)]
    LogFiles(#[from] LogFileError),
    /// The bus thread could not be made.
    #[error("cannot start the bus thread")]
    Thread(#[source] std::io::Error),
    /// It should run on the calling runtime, and there is none.
    #[error("not called from within a Tokio runtime")]
    NoRuntime(#[source] tokio::runtime::TryCurrentError),
    /// Its store of streams cannot be opened.
    #[cfg(feature = "streams")]
    #[error("streams")]
    Streams(#[from] crate::streams::OpenStreamsError),
}

/// A node is not ready to serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// It cannot take part in its cluster at all.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// It has reached nobody, or not everybody, yet.
    #[error("{}", reasons.join("; "))]
    Waiting {
        /// What is missing, for people.
        reasons: Vec<String>,
    },
}

/// A running node. Clones are handles of the same one; dropping the last stops it without a goodbye.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    bus: Arc<Bus>,
    shutdown: mpsc::Sender<Shutdown>,
    runner: Mutex<Option<Runner>>,
    has_seeds: bool,
    pub(crate) streaming: Streaming,
    _cancel: DropGuard,
}

/// What runs the bus.
enum Runner {
    Thread(std::thread::JoinHandle<()>),
    /// On the runtime that started the node.
    Task(tokio::task::JoinHandle<()>),
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("origin", &self.origin()).finish_non_exhaustive()
    }
}

impl Node {
    /// Describes a node of a cluster.
    pub fn builder(cluster: impl Into<String>) -> NodeBuilder {
        NodeBuilder::new(cluster)
    }

    pub(crate) async fn start(config: Config) -> Result<Self, StartError> {
        tidings_proto::id::check_name(&config.cluster)?;
        let node = NodeId::new(&config.node_id)?;
        let clock = config.clock.clone();
        let log_id = LogId(config.simulated.as_ref().map_or_else(rand::random, |simulated| simulated.log_id));
        let (lanes, retention) = (config.lanes, config.retention);
        let (log_files, legacy, log) = match config.log_dir.clone() {
            Some(directory) => {
                let whose = (config.cluster.clone(), node.clone());
                let opened = log_files::open(directory, whose, (lanes, retention, log_id)).await?;
                (Some(opened.files), opened.legacy, opened.log)
            }
            None => (None, None, ChangeLog::new(lanes, retention)),
        };
        let incarnation =
            Incarnation(clock.wall_ms()).max(legacy.as_ref().map_or(Incarnation(0), Legacy::next));
        let origin = Origin { node: node.clone(), incarnation };
        let domain = Domain::bounded(clock, Arc::new(log), origin.clone(), config.bounds);
        let observers = Arc::<Observers>::default();
        let has_seeds = !config.seeds.is_empty();
        let coherence = Coherence::new(node, domain.clone(), observers.clone(), config.bounds, has_seeds);
        coherence.set_before_known(config.before_known);
        let zone = config.zone.clone();
        let cluster = config.cluster.clone();
        let (clocks, relay_above) = (config.clocks, config.relay_above);
        let copy_bytes_per_second = config.copy_bytes_per_second;
        let planted = config.simulated.as_ref().and_then(|simulated| simulated.planted);
        let bus = Bus::new(Parts {
            cluster,
            origin,
            log_id,
            zone,
            domain,
            coherence,
            observers,
            clocks,
            relay_above,
            copy_bytes_per_second,
            planted,
            log_files,
            legacy,
        });
        bus.audits.set_pace(config.audit_keys_per_second);
        let (shutdown, inbox) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let on_calling_runtime = config.on_calling_runtime;
        let driver = Driver::new(bus.clone(), config);
        let orders = Orders { shutdown: inbox, cancel: cancel.clone() };
        let (started, starting) = oneshot::channel();
        let runner = if on_calling_runtime {
            let runtime = Handle::try_current().map_err(StartError::NoRuntime)?;
            Runner::Task(TaskTracker::new().spawn_on(driver.run(orders, started), &runtime))
        } else {
            Runner::Thread(spawn_bus(driver, orders, started)?)
        };
        let runner = Mutex::new(Some(runner));
        let streaming = Streaming::default();
        let inner = Inner { bus, shutdown, runner, has_seeds, streaming, _cancel: cancel.drop_guard() };
        let node = Self { inner: Arc::new(inner) };
        let ended = || StartError::Thread(std::io::Error::other("the bus ended at once"));
        match starting.await.unwrap_or_else(|_| Err(ended())) {
            Ok(()) => Ok(node),
            Err(error) => {
                // Its port is free once it has ended.
                node.joined().await;
                Err(error)
            }
        }
    }

    pub(crate) fn bus(&self) -> &Arc<Bus> {
        &self.inner.bus
    }

    /// Who this node is, in its present life.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.inner.bus.origin()
    }

    /// Name of its cluster.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.inner.bus.cluster
    }

    /// Where peers dial it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.bus.address()
    }

    /// What its caches share.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.inner.bus.domain
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        self.inner.bus.domain.clock()
    }

    /// Describes a cache, to be opened.
    pub fn cache<K: Key, V: Clone + Send + Sync + 'static>(&self, name: &str) -> CacheBuilder<K, V> {
        CacheBuilder::new(self.domain(), name)
    }

    /// The open cache of this name, if its types are these.
    #[must_use]
    pub fn lookup<K: Key, V: Clone + Send + Sync + 'static>(&self, name: &str) -> Option<Cache<K, V>> {
        Cache::lookup(self.domain(), name)
    }

    /// The open caches, by name, whatever their types.
    #[must_use]
    pub fn caches(&self) -> Vec<Arc<dyn AnyCache>> {
        self.domain().caches()
    }

    /// Watches what happens to the node.
    #[must_use]
    pub fn observe(&self) -> Observer {
        self.inner.bus.observers.observe()
    }

    /// How many lives members named that were not taken note of, for they were more than can be, or of the far future.
    #[must_use]
    pub fn hearsay_refused(&self) -> u64 {
        self.inner.bus.coherence.hearsay_refused()
    }

    /// What became of the receipts that were asked for.
    #[must_use]
    pub fn receipts(&self) -> ReceiptCounts {
        self.inner.bus.receipts.counts()
    }

    /// What became of leases: where one loader runs per key and cluster.
    #[must_use]
    pub fn leases(&self) -> LeaseReport {
        self.inner.bus.leases.report()
    }

    /// What became of its log files; `None` if it was started without.
    #[must_use]
    pub fn log_files(&self) -> Option<LogFileReport> {
        Some(self.inner.bus.log_files.as_ref()?.report())
    }

    /// Whether the node still runs: `false` once it was shut down or its thread has died.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.inner.shutdown.is_closed()
    }

    /// Why entries live only as long as the staleness bound, if so.
    #[must_use]
    pub fn doubts(&self) -> Vec<Doubt> {
        self.inner.bus.coherence.doubts()
    }

    /// Who may not know of this node yet, so that its changes do not count for the bound there: nobody, in normal life.
    /// Whom nobody hears is left out. A node with seeds that has reached nobody has nobody to name either: see
    /// [`Node::known`].
    #[must_use]
    pub fn unaware(&self) -> Vec<Origin> {
        self.inner.bus.coherence.unaware()
    }

    /// Whether everybody who is there knows of this node: every change that is made now counts for the bound everywhere.
    #[must_use]
    pub fn is_known(&self) -> bool {
        *self.inner.bus.coherence.known().borrow()
    }

    /// Waits until everybody who is there knows of this node, at most for a time. Returns whether that is so.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn known(&self, time: Duration) -> bool {
        let mut known = self.inner.bus.coherence.known();
        let _ = tokio::time::timeout(time, known.wait_for(|known| *known)).await;
        self.is_known()
    }

    /// Everything that every relevant member did up to so long ago is applied here; `None` for never.
    #[must_use]
    pub fn freshness_age(&self) -> Option<Duration> {
        self.inner.bus.coherence.age()
    }

    /// The limits of freshness.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        self.inner.bus.coherence.bounds()
    }

    /// What the transport has counted.
    ///
    /// # Panics
    /// Never: a node that was started has one.
    #[must_use]
    pub fn transport_stats(&self) -> &TransportStats {
        &self.inner.bus.credentials.get().expect("a started node has them").0
    }

    /// The node's identity, to be reloaded. New links and the record that gossip carries use what was read.
    ///
    /// # Panics
    /// Never: a node that was started has one.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.bus.credentials.get().expect("a started node has them").1
    }

    /// Replaces the deny list; connections of those on it are closed, and gossip about them counts for nothing.
    pub fn set_denied(&self, denied: &[String]) {
        let bus = &self.inner.bus;
        bus.denied.store(Arc::new(denied.to_vec()));
        if let Some(transport) = bus.transport() {
            transport.set_denied(denied);
        }
        if let Some(legacy) = &*bus.legacy.load() {
            legacy.set_denied(denied);
        }
        if let Some(membership) = self.inner.bus.membership() {
            membership.recheck();
        }
    }

    /// Says that no known life of a node will come back: it no longer holds this node in doubt after the write
    /// horizon. Others are not told: say it to each. Returns whether any was known. A live node is not forgotten.
    #[must_use = "false means that there is no such node, or that it is live"]
    pub fn forget(&self, node: &NodeId) -> bool {
        let bus = &self.inner.bus;
        let Some(membership) = bus.membership() else { return bus.coherence.forget(node) };
        let view = membership.view();
        let lives: Vec<&Member> = view.lives().filter(|member| member.record.origin.node == *node).collect();
        if lives.iter().any(|member| member.state == State::Live) {
            return false;
        }
        let known = bus.coherence.forget(node);
        for member in lives {
            // One that is heard again by now stays, which is as it should be.
            let _ = membership.forget(&member.record.origin);
        }
        known
    }

    /// Whether the node is ready now: every live member is followed and confirmed, and until the node was ready once,
    /// a record of its own was applied by each of them and one of each was applied here.
    ///
    /// # Errors
    /// [`NotReady`] says what is missing.
    pub fn readiness(&self) -> Result<(), NotReady> {
        let bus = &self.inner.bus;
        if let Some(conflict) = bus.conflict.borrow().clone() {
            return Err(conflict.into());
        }
        let (mut reasons, members) = (Vec::new(), self.members());
        if bus.goodbye.borrow().is_some() {
            reasons.push("the node is leaving".to_owned());
        }
        if bus.is_stuck() {
            reasons.push("the log files can be neither written nor removed".to_owned());
        }
        if self.inner.has_seeds && self.has_met_nobody(&members) {
            reasons.push("no seed has been reached".to_owned());
            let said = |(address, why): (_, Option<String>)| Some(format!("{address}: {}", why?));
            let unreachable = bus.transport().map(|transport| transport.unreachable());
            reasons.extend(unreachable.into_iter().flatten().filter_map(said));
        }
        for member in &members {
            if member.state == State::Live && !member.synced() {
                reasons.push(format!("{} is not followed yet", member.node));
            }
        }
        reasons.extend(self.start_misses(&members, reasons.is_empty()));
        if reasons.is_empty() { Ok(()) } else { Err(NotReady::Waiting { reasons }) }
    }

    /// Waits until the node is ready, as [`Node::readiness`] says.
    ///
    /// # Errors
    /// [`NotReady::Conflict`] at once if it can never be; [`NotReady::Waiting`] if it is not within `time`.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn ready(&self, time: Duration) -> Result<(), NotReady> {
        /// How often readiness is judged; it changes with every confirmation, four times a second.
        const INTERVAL: Duration = Duration::from_millis(20);
        let deadline = tokio::time::Instant::now() + time;
        loop {
            match self.readiness() {
                Err(NotReady::Waiting { .. }) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(INTERVAL).await;
                }
                result => return result,
            }
        }
    }

    /// Waits until no doubt is left, at most for a time. Returns whether that is so.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn fresh(&self, time: Duration) -> bool {
        let mut observer = self.observe();
        let cleared = async {
            while !self.doubts().is_empty() {
                if observer.next().await.is_none() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(time, cleared).await;
        self.doubts().is_empty()
    }

    /// Whether the node has found that it cannot take part in its cluster.
    #[must_use]
    pub fn conflict(&self) -> Option<Conflict> {
        self.inner.bus.conflict.borrow().clone()
    }

    /// Shuts down: gives consumers of streams half of the time to finish what they have, refuses new mutations, waits for
    /// open write-throughs, drains to every member's acknowledgement, says goodbye, closes and joins, and closes the store
    /// of streams. Returns whether that was done within the deadline; if not, no goodbye was said, and peers doubt this
    /// node's last changes for a while, or what was captured was not all published, or the store was not closed.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let deadline = self.inner.streaming.drain(deadline).await;
        let (done, finished) = oneshot::channel();
        let asked = self.inner.shutdown.send(Shutdown { deadline, done }).await;
        let clean = asked.is_ok() && finished.await.unwrap_or(false);
        self.joined().await;
        clean & self.inner.streaming.close().await
    }

    /// Waits until the bus has ended.
    async fn joined(&self) {
        let runner = self.inner.runner.lock().take();
        let clean = match runner {
            Some(Runner::Thread(thread)) => {
                matches!(tokio::task::spawn_blocking(move || thread.join()).await, Ok(Ok(())))
            }
            Some(Runner::Task(task)) => task.await.is_ok(),
            None => true,
        };
        if !clean {
            tracing::error!("the bus panicked");
        }
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;

/// Runs the bus on a thread of its own: a starved application runtime delays no heartbeat.
fn spawn_bus(
    driver: Driver,
    orders: Orders,
    started: oneshot::Sender<Result<(), StartError>>,
) -> Result<std::thread::JoinHandle<()>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_name("tidings-blocking")
        .build()
        .map_err(StartError::Thread)?;
    let run = move || {
        runtime.block_on(driver.run(orders, started));
        runtime.shutdown_timeout(Duration::from_secs(1));
    };
    std::thread::Builder::new().name("tidings-bus".to_owned()).spawn(run).map_err(StartError::Thread)
}
