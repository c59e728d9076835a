//! The auditor: whether nodes that hold a key hold the same value.
//!
//! One task sweeps: at a pace if the node is set up so, at once if somebody asks. What it looks at and how it judges is
//! [`tidings_proto::audit`].

mod answer;
mod found;
mod holders;
mod patience;
mod report;
mod sweep;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::ask::Topic;
use tidings_proto::audit::Pace;
use tidings_proto::histogram::Histogram;
use tokio::sync::{mpsc, oneshot};

use self::answer::Auditee;
use self::found::Findings;
pub use self::holders::{HeldEntry, Holder, HoldersError, Holding, Untold};
pub use self::report::{AuditCounts, AuditProgress, AuditReport, Audited, AuditedPeer, Inconsistency};
use self::sweep::Sweep;
use crate::bus::Bus;
use crate::node::Node;

/// Between two sweeps at a pace, and between two looks whether there is anybody to compare with.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// A sweep that somebody asked for is under way: wait for its report.
    #[error("an audit is under way")]
    UnderWay,
    /// The node has been shut down.
    #[error("the node has ended")]
    Ended,
}

/// A sweep that was asked for, on its way. Dropping it does not end the sweep.
#[derive(Debug)]
#[must_use = "the report says what was found"]
pub struct AuditRun(oneshot::Receiver<Arc<AuditReport>>);

impl AuditRun {
    /// Waits for the report.
    ///
    /// # Errors
    /// [`AuditError::Ended`].
    ///
    /// # Cancel safety
    /// Cancel-safe; the sweep goes on.
    pub async fn report(self) -> Result<Arc<AuditReport>, AuditError> {
        self.0.await.map_err(|_| AuditError::Ended)
    }
}

/// Who asked for a sweep.
type Request = oneshot::Sender<Arc<AuditReport>>;

/// What the auditor of a node has to do, and what came of it.
#[derive(Debug)]
pub(crate) struct Audits {
    /// 0: only on request.
    keys_per_second: AtomicU64,
    requests: mpsc::Sender<Request>,
    /// Taken by the task that sweeps.
    inbox: Mutex<Option<mpsc::Receiver<Request>>>,
    /// A sweep that was asked for is not over.
    asked_for: AtomicBool,
    state: Mutex<State>,
    /// How long the sweeps took that compared anything.
    times: Histogram,
    /// Entries that other nodes asked about.
    answered: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    totals: AuditCounts,
    progress: Option<AuditProgress>,
    last: Option<Arc<AuditReport>>,
    requested: Option<Arc<AuditReport>>,
    findings: Findings,
}

impl Default for Audits {
    fn default() -> Self {
        // Whoever asks while a sweep is under way is refused: there is one at most.
        let (requests, inbox) = mpsc::channel(1);
        Self {
            keys_per_second: AtomicU64::new(0),
            requests,
            inbox: Mutex::new(Some(inbox)),
            asked_for: AtomicBool::new(false),
            state: Mutex::default(),
            times: Histogram::default(),
            answered: AtomicU64::new(0),
        }
    }
}

impl Audits {
    /// Says how many keys are compared a second without being asked to.
    pub(crate) fn set_pace(&self, keys_per_second: u64) {
        self.keys_per_second.store(keys_per_second, Ordering::Relaxed);
    }

    fn count(&self, counts: impl FnOnce(&mut AuditCounts)) {
        counts(&mut self.state.lock().totals);
    }

    fn progressed(&self, progress: Option<AuditProgress>) {
        self.state.lock().progress = progress;
    }

    /// Notes what a sweep has found. One that compared nothing, for want of peers, is none.
    fn over(&self, report: &Arc<AuditReport>, requested: bool) {
        let mut state = self.state.lock();
        state.progress = None;
        if requested {
            state.requested = Some(report.clone());
        }
        if requested || report.counts.compared > 0 {
            state.last = Some(report.clone());
            drop(state);
            self.times.record(report.took);
        }
    }

    fn begin(&self) -> Result<AuditRun, AuditError> {
        if self.requests.is_closed() {
            return Err(AuditError::Ended);
        }
        if self.asked_for.swap(true, Ordering::AcqRel) {
            return Err(AuditError::UnderWay);
        }
        let (request, report) = oneshot::channel();
        self.requests.try_send(request).map_err(|_| AuditError::Ended)?;
        Ok(AuditRun(report))
    }
}

/// Lets other nodes compare their entries with this node's.
pub(crate) fn serve(bus: &Arc<Bus>) {
    bus.asked.serve(Topic::Audit, Arc::new(Auditee::new(bus)));
}

/// Sweeps, until it is dropped. A sweep at a pace stands still while one runs that was asked for.
pub(crate) async fn run(bus: Arc<Bus>) {
    let Some(mut inbox) = bus.audits.inbox.lock().take() else { return };
    let mut paced = pin!(paced(&bus));
    loop {
        tokio::select! {
            Some(request) = inbox.recv() => {
                let report = Arc::new(Sweep::new(&bus, Pace::unbounded(), true).run().await);
                bus.audits.over(&report, true);
                bus.audits.asked_for.store(false, Ordering::Release);
                // Who asked need not have waited.
                let _ = request.send(report);
            }
            () = &mut paced => return,
        }
    }
}

/// Sweeps again and again, if the node is set up so.
async fn paced(bus: &Bus) {
    let keys_per_second = bus.audits.keys_per_second.load(Ordering::Relaxed);
    if keys_per_second == 0 {
        return std::future::pending().await;
    }
    loop {
        let report = Sweep::new(bus, Pace::new(Some(keys_per_second)), false).run().await;
        bus.audits.over(&Arc::new(report), false);
        tokio::time::sleep(PAUSE).await;
    }
}

impl Node {
    /// Compares everything that this node holds with what every live member holds, in the caches that both have audited
    /// ([`tidings_cache::CacheBuilder::audited`]), as fast as they answer: a million entries take a few seconds of each
    /// node's CPU time. It ends after the last difference was looked at again, which is the write horizon and a second
    /// after it was seen.
    ///
    /// # Errors
    /// [`AuditError`].
    ///
    /// # Cancel safety
    /// Cancel-safe; the sweep goes on, and [`Node::audited`] shows its report.
    pub async fn audit(&self) -> Result<Arc<AuditReport>, AuditError> {
        self.begin_audit()?.report().await
    }

    /// As [`Node::audit`], without waiting for it.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn begin_audit(&self) -> Result<AuditRun, AuditError> {
        self.bus().audits.begin()
    }

    /// What the auditor does, and has found since the node was started.
    #[must_use]
    pub fn audited(&self) -> Audited {
        let audits = &self.bus().audits;
        let state = audits.state.lock();
        Audited {
            keys_per_second: audits.keys_per_second.load(Ordering::Relaxed),
            counts: state.totals,
            answered: audits.answered.load(Ordering::Relaxed),
            progress: state.progress,
            last: state.last.clone(),
            requested: state.requested.clone(),
            inconsistencies: state.findings.newest(),
            times: audits.times.snapshot(),
        }
    }
}
