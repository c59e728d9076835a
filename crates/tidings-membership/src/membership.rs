//! The handle.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tidings_proto::id::{InvalidName, Origin, check_name};
use tidings_proto::time::Tick;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::attest::{AttestError, Attestor, Statement};
use crate::config::{Clock, Config, Record, TEXT_BYTES_MAX};
use crate::driver::{Command, Driver};
use crate::guard::Guard;
use crate::seam::GossipSeam;
pub use crate::seeds::InvalidSeed;
use crate::seeds::Seeds;
use crate::stats::Stats;
use crate::table::{Patience, Table};
use crate::view::View;
use crate::wire::Identity;

/// Serial number of the record that a life begins with.
pub(crate) const FIRST_SERIAL: u64 = 1;

/// Commands waiting for the driver; each waits for its answer, so more would only queue callers.
const COMMANDS_MAX: usize = 4;

/// Membership could not be started. Nothing was sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The cluster's name is not one.
    #[error("cluster name")]
    Cluster(#[source] InvalidName),
    /// A seed is not `host:port`.
    #[error(transparent)]
    Seed(#[from] InvalidSeed),
    /// Nobody could dial this.
    #[error("{0} cannot be advertised: it needs an address and a port that others can reach")]
    Address(SocketAddr),
    /// Zone or release exceed 128 bytes.
    #[error("zone and release are limited to {TEXT_BYTES_MAX} bytes each")]
    Text,
    /// Gossip needs time between its rounds.
    #[error("the gossip interval is zero")]
    Interval,
    /// This node's record could not be signed.
    #[error("sign the own record")]
    Sign(#[from] AttestError),
}

/// The own record could not be published anew. The old one stands.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenewError {
    /// It could not be signed.
    #[error("sign the own record")]
    Sign(#[from] AttestError),
    /// Membership has been shut down, or this node has left.
    #[error("membership is closed")]
    Closed,
}

/// A node's part in the membership of its cluster. Clones are the same handle; dropping the last ends gossip
/// without a word.
#[derive(Clone)]
pub struct Membership {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    stop: CancellationToken,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Membership {
    /// Starts to gossip. Waits neither for names to resolve nor for anybody to answer.
    ///
    /// # Errors
    /// [`StartError`].
    #[allow(clippy::unused_async, reason = "it needs a runtime, and says so")]
    pub async fn start(
        config: Config,
        seam: GossipSeam,
        attestor: Arc<dyn Attestor>,
    ) -> Result<Self, StartError> {
        check(&config)?;
        let seeds = Seeds::parse(&config.seeds, config.resolver.clone())?;
        let statement = Statement { record: config.me.clone(), serial: FIRST_SERIAL, left: false };
        let published = statement.publish(&config.cluster, &*attestor)?;
        let shared = Arc::new(Shared::new(&config, &attestor, seeds.fixed().clone()));
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let stop = CancellationToken::new();
        let driver = Driver::new(config, Arc::clone(&shared), attestor, seeds);
        let mut tasks = JoinSet::new();
        tasks.spawn(driver.run(seam, published, inbox, stop.clone()));
        Ok(Self { shared, commands, stop, tasks: Arc::new(Mutex::new(tasks)) })
    }

    /// The view, and each later one. A reader that is slow skips views, never the newest; what it skipped
    /// shows in [`View::former`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.shared.view.subscribe()
    }

    /// The present view.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.shared.view.borrow().clone()
    }

    /// A link to a member is up: its record, as its `Hello` gave it on a connection that proves its node id.
    /// It is live until [`Config::link_silence`] passes without a word.
    pub fn link_up(&self, record: Record) {
        self.shared.evidence(|table, now| table.link_up(record, now));
    }

    /// Something arrived over a member's link. Cheap: one lock, and no more unless the state changes. Answers whether
    /// that member is known to have a link; if not, it was not noted, and [`Membership::link_up`] is to be called.
    #[must_use = "a link that is not known of does not keep its member live"]
    pub fn link_heard(&self, origin: &Origin) -> bool {
        let now = self.shared.now();
        let mut table = self.shared.table.lock();
        if table.link_heard(origin, now) {
            self.shared.publish(&table);
        }
        table.is_linked(origin)
    }

    /// The last link to a member is gone.
    pub fn link_down(&self, origin: &Origin) {
        self.shared.evidence(|table, now| table.link_down(origin, now));
    }

    /// The last link to a member was closed because nobody needs it: gossip alone judges the member from now on.
    pub fn link_let_go(&self, origin: &Origin) {
        self.shared.evidence(|table, now| table.link_let_go(origin, now));
    }

    /// A member has said goodbye over its link.
    pub fn left(&self, origin: &Origin) {
        self.shared.evidence(|table, now| table.left(origin, now));
    }

    /// Drops a life, and all older ones of its node, from the view, unless they can be heard. That gossip names them
    /// does not bring them back; a link does, or that others hear the newest again after nobody did. Answers whether
    /// anything was dropped.
    #[must_use = "a life that can be heard is not forgotten"]
    pub fn forget(&self, origin: &Origin) -> bool {
        let mut forgotten = false;
        self.shared.evidence(|table, _| {
            forgotten = table.forget(origin);
            forgotten
        });
        forgotten
    }

    /// Checks the records of all members again, after trusted or denied certificates have changed. Gossip of
    /// those that fail is ignored from now on; without a link they are lost within the time of failure
    /// detection.
    pub fn recheck(&self) {
        self.shared.guard.lock().recheck();
    }

    /// Signs and publishes the own record anew, after this node's certificate has changed.
    ///
    /// Cancel safe: once asked for, it is done whether or not the answer is awaited.
    ///
    /// # Errors
    /// [`RenewError`].
    pub async fn renew(&self) -> Result<(), RenewError> {
        let (done, answer) = oneshot::channel();
        self.commands.send(Command::Renew(done)).await.map_err(|_| RenewError::Closed)?;
        answer.await.map_err(|_| RenewError::Closed)?
    }

    /// Says goodbye by gossip, and waits until every live member has shown that it knows, for half a second
    /// at most. Gossip goes on until [`Membership::shutdown`]. Does nothing a second time.
    ///
    /// Cancel safe: once asked for, it is done whether or not the answer is awaited.
    pub async fn leave(&self) {
        let (done, answer) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            // An error means that membership was shut down meanwhile; there is nobody left to tell.
            let _ = answer.await;
        }
    }

    /// Ends gossip, for all clones of the handle, and waits until its tasks have ended. Says no goodbye.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        while tasks.join_next().await.is_some() {}
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership").field("view", &self.view()).finish_non_exhaustive()
    }
}

fn check(config: &Config) -> Result<(), StartError> {
    let Record { address, zone, release, .. } = &config.me;
    check_name(&config.cluster).map_err(StartError::Cluster)?;
    if address.ip().is_unspecified() || address.port() == 0 {
        return Err(StartError::Address(*address));
    }
    if zone.len() > TEXT_BYTES_MAX || release.len() > TEXT_BYTES_MAX {
        return Err(StartError::Text);
    }
    if config.gossip_interval.is_zero() {
        return Err(StartError::Interval);
    }
    Ok(())
}

/// What the handle, the driver and the gossip socket have in common. The locks are held for short,
/// synchronous sections only; who holds the table may publish, and nobody holds two of the others.
pub(crate) struct Shared {
    pub(crate) table: Mutex<Table>,
    pub(crate) guard: Mutex<Guard>,
    pub(crate) stats: Arc<Stats>,
    /// Woken when the view or the next deadline may have changed.
    pub(crate) wake: Notify,
    pub(crate) view: watch::Sender<Arc<View>>,
    seeds: Mutex<BTreeSet<SocketAddr>>,
    clock: Clock,
}

impl Shared {
    fn new(config: &Config, attestor: &Arc<dyn Attestor>, seeds: BTreeSet<SocketAddr>) -> Self {
        let Record { origin, address, .. } = &config.me;
        let me = Identity { origin: origin.clone(), address: *address };
        let stats = Arc::new(Stats::default());
        let trust = (Arc::clone(attestor), Arc::clone(&stats));
        let patience = Patience { link_silence: config.link_silence, grace: config.grace() };
        let view = View { seeds: seeds.clone(), ..View::default() };
        Self {
            table: Mutex::new(Table::new(origin.clone(), patience)),
            guard: Mutex::new(Guard::new(config.cluster.clone(), me, trust, config.gossip_interval)),
            stats,
            wake: Notify::new(),
            view: watch::Sender::new(Arc::new(view)),
            seeds: Mutex::new(seeds),
            clock: Arc::clone(&config.clock),
        }
    }

    pub(crate) fn now(&self) -> Tick {
        (self.clock)()
    }

    /// Puts evidence into the table, and publishes the view if it has changed.
    pub(crate) fn evidence(&self, apply: impl FnOnce(&mut Table, Tick) -> bool) {
        let now = self.now();
        let mut table = self.table.lock();
        if apply(&mut table, now) {
            self.publish(&table);
        } else {
            // The next deadline may still be another.
            self.wake.notify_one();
        }
    }

    /// Publishes the view of a table that its caller has locked, so that views come out in the order of
    /// evidence.
    pub(crate) fn publish(&self, table: &Table) {
        self.view.send_replace(Arc::new(table.view(self.seeds.lock().clone())));
        self.wake.notify_one();
    }

    pub(crate) fn set_seeds(&self, seeds: BTreeSet<SocketAddr>) {
        let table = self.table.lock();
        let mut known = self.seeds.lock();
        if *known != seeds {
            *known = seeds;
            drop(known);
            self.publish(&table);
        }
    }
}
