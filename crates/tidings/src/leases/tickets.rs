//! Those on this node who have asked for a lease, until they are told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tidings_cache::Lent;
use tidings_proto::id::NodeId;
use tidings_proto::lease::LeaseKey;
use tidings_proto::time::Tick;
use tokio::sync::oneshot;

use super::Held;

/// Most askers of a node that wait at once, one for each flight or fill token: with a key each, a few megabytes. More load
/// at once.
const TICKETS_MAX: usize = 16_384;

/// How asking for a lease ended.
pub(super) enum Outcome {
    Load(Held),
    Brought(Box<(tidings_proto::lease::Seen, Lent)>),
    Alone(super::Unshared),
}

/// One who waits.
pub(super) struct Ticket {
    pub(super) home: NodeId,
    pub(super) key: LeaseKey,
    pub(super) asked: Tick,
    pub(super) until: Tick,
    pub(super) sender: oneshot::Sender<Outcome>,
}

/// All who wait.
#[derive(Default)]
pub(super) struct Tickets {
    open: Mutex<HashMap<u64, Ticket>>,
    next: AtomicU64,
}

impl Tickets {
    /// The number of a new one; `None` if there are too many.
    pub(super) fn open(&self, ticket: Ticket) -> Option<u64> {
        let mut open = self.open.lock();
        if open.len() == TICKETS_MAX {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(number, ticket);
        Some(number)
    }

    /// Takes one out, to tell it how it ended.
    pub(super) fn take(&self, number: u64) -> Option<Ticket> {
        self.open.lock().remove(&number)
    }

    /// Takes one out if this node is its home.
    pub(super) fn take_of(&self, number: u64, home: &NodeId) -> Option<Ticket> {
        let mut open = self.open.lock();
        if open.get(&number).is_some_and(|ticket| ticket.home == *home) { open.remove(&number) } else { None }
    }

    /// When one was opened that waits at this node, which it goes on to do.
    pub(super) fn asked(&self, number: u64, home: &NodeId) -> Option<Tick> {
        self.open.lock().get(&number).filter(|ticket| ticket.home == *home).map(|ticket| ticket.asked)
    }

    /// Takes out those whose time is over, or whose home cannot be reached any more.
    pub(super) fn overdue(&self, now: Tick, reachable: impl Fn(&NodeId) -> bool) -> Vec<Ticket> {
        let mut homes: HashMap<NodeId, bool> = HashMap::new();
        let mut over = |ticket: &Ticket| {
            let known = homes.get(&ticket.home).copied();
            let reachable = known.unwrap_or_else(|| {
                let reachable = reachable(&ticket.home);
                homes.insert(ticket.home.clone(), reachable);
                reachable
            });
            ticket.until <= now || !reachable
        };
        self.open.lock().extract_if(|_, ticket| over(ticket)).map(|(_, ticket)| ticket).collect()
    }

    /// Takes all out.
    pub(super) fn end(&self) {
        let all = std::mem::take(&mut *self.open.lock());
        drop(all);
    }
}
