//! Receipts: who asks waits on a task of its own, woken once by the last acknowledgement, or by the time at which a
//! peer cannot serve an older entry any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tidings_cache::{MissingReason, Positions, Receipt, ReceiptError};
use tidings_proto::histogram::{Histogram, Snapshot};
use tidings_proto::id::Origin;
use tidings_proto::receipt::{Pending, Said};
use tidings_transport::session::{Served, Waiter, Watch};
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;

/// Receipts that are waited for at once. Each holds some 200 bytes for every peer and lane that it waits for: with ten
/// peers 8 MB for changes of one key. More are refused with [`ReceiptError::TooMany`].
const RECEIPTS_MAX: usize = 4_096;

/// A peer that has not asked for confirmation for so long cannot be heard: four times as long as it takes between two
/// requests.
const SILENCE: Duration = Duration::from_secs(1);

/// What became of the receipts that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptCounts {
    /// No peer was missing.
    pub complete: u64,
    /// Some peer was missing when the time was over.
    pub partial: u64,
    /// Whoever asked waited no longer.
    pub abandoned: u64,
    /// There was none, for [`ReceiptError`] says why.
    pub failed: u64,
    /// Are waited for now.
    pub waiting: usize,
    /// How often a peer was named as missing, by [`MissingReason::ALL`].
    pub missing: [u64; MissingReason::ALL.len()],
    /// How long the complete and the partial ones were waited for.
    pub times: Snapshot,
}

/// The receipts of a node.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    waiting: AtomicUsize,
    complete: AtomicU64,
    partial: AtomicU64,
    abandoned: AtomicU64,
    failed: AtomicU64,
    missing: [AtomicU64; MissingReason::ALL.len()],
    times: Histogram,
    ended: CancellationToken,
}

impl Receipts {
    /// No acknowledgement comes any more.
    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    pub(crate) fn counts(&self) -> ReceiptCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReceiptCounts {
            complete: get(&self.complete),
            partial: get(&self.partial),
            abandoned: get(&self.abandoned),
            failed: get(&self.failed),
            waiting: self.waiting.load(Ordering::Relaxed),
            missing: std::array::from_fn(|reason| get(&self.missing[reason])),
            times: self.times.snapshot(),
        }
    }

    fn count(&self, result: &Result<Receipt, ReceiptError>, took: Duration) {
        let counter = match result {
            Ok(receipt) if receipt.is_complete() => &self.complete,
            Ok(_) => &self.partial,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if let Ok(receipt) = result {
            self.times.record(took);
            for missing in &receipt.missing {
                self.missing[missing.reason as usize].fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// A receipt that is waited for; counted until it is dropped, and as abandoned if it was not settled.
struct Waiting<'a> {
    receipts: &'a Receipts,
    settled: bool,
}

impl<'a> Waiting<'a> {
    fn begin(receipts: &'a Receipts) -> Self {
        receipts.waiting.fetch_add(1, Ordering::AcqRel);
        Self { receipts, settled: false }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.receipts.waiting.fetch_sub(1, Ordering::AcqRel);
        if !self.settled {
            self.receipts.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Gives the caches of a node their receipts.
pub(crate) fn serve(bus: &Arc<Bus>) {
    // The domain belongs to the bus, and must not keep it.
    let bus_of_domain = Arc::downgrade(bus);
    let source = move |positions: Positions, timeout: Duration| {
        let bus = bus_of_domain.upgrade();
        let receipt: tidings_cache::ReceiptFuture = Box::pin(async move {
            let bus = bus.ok_or(ReceiptError::Ended)?;
            let mut waiting = Waiting::begin(&bus.receipts);
            let asked = bus.domain.clock().now();
            let result = wait(&bus, &positions, timeout).await;
            bus.receipts.count(&result, bus.domain.clock().now().since(asked));
            waiting.settled = true;
            result
        });
        receipt
    };
    bus.domain.set_receipts(Arc::new(source));
}

/// A life that is waited for.
struct Peer {
    origin: Origin,
    served: Arc<Served>,
    /// What it has not acknowledged, for as long as it is waited for.
    watches: Vec<Watch>,
}

async fn wait(bus: &Bus, positions: &Positions, timeout: Duration) -> Result<Receipt, ReceiptError> {
    if bus.receipts.waiting.load(Ordering::Acquire) > RECEIPTS_MAX {
        return Err(ReceiptError::TooMany);
    }
    if bus.receipts.ended.is_cancelled() {
        return Err(ReceiptError::Ended);
    }
    let positions = &positions.within(bus.domain.log().lanes());
    let asked = bus.domain.clock().now();
    let members = bus.coherence.members_at(positions).ok_or(ReceiptError::NoContact)?;
    let bound = bus.coherence.bounds().max_staleness;
    let mut pending = Pending::new(asked, bound, members.iter().map(|(origin, _)| origin.clone()));
    let waiter = Waiter::new();
    let watched = |(origin, served): (Origin, Arc<Served>)| {
        let watches = positions.iter().filter_map(|(lane, sequence)| served.watch(*lane, *sequence, &waiter));
        Peer { origin, watches: watches.collect(), served }
    };
    let mut peers: Vec<Peer> = members.into_iter().map(watched).collect();
    waiter.armed();
    let waited = async {
        loop {
            let Some(due) = look(bus, positions, &mut pending, &mut peers) else { return };
            tokio::select! {
                () = waiter.all() => {}
                () = tokio::time::sleep(due) => {}
            }
        }
    };
    tokio::select! {
        biased;
        _ = tokio::time::timeout(timeout, waited) => {}
        () = bus.receipts.ended.cancelled() => return Err(ReceiptError::Ended),
    }
    look(bus, positions, &mut pending, &mut peers);
    Ok(pending.receipt())
}

/// Takes note of what all peers have said. Returns in what time a peer may leave the list without a word; `None` once
/// nobody is waited for.
fn look(bus: &Bus, positions: &Positions, pending: &mut Pending, peers: &mut [Peer]) -> Option<Duration> {
    let now = bus.domain.clock().now();
    for (index, Peer { origin, served, watches }) in peers.iter_mut().enumerate() {
        let heard = served.heard();
        let reachable = match bus.is_linked(origin) {
            true => now.since(heard) < SILENCE,
            false => bus.is_heard_by_others(origin),
        };
        // What anybody was answered who relays may have reached it.
        let heard = heard.max(bus.coherence.relaying().last_probed());
        let said = Said { reached: served.has_reached(positions), heard, reachable };
        if !pending.said(index, said, now) {
            watches.clear();
        }
    }
    pending.due().map(|due| due.since(now))
}
