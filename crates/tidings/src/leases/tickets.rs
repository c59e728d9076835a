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
pub(super) struct Tickets {
    open: Mutex<HashMap<u64, Ticket>>,
    next: AtomicU64,
}

impl Tickets {
    /// Numbers them from `first` on: another for each life of a node, for who is told goes by the number.
    pub(super) fn new(first: u64) -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(first) }
    }

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

    /// Whether it is still waited for.
    pub(super) fn waits(&self, number: u64) -> bool {
        self.open.lock().contains_key(&number)
    }

    /// Takes one out, to tell it how it ended.
    pub(super) fn take(&self, number: u64) -> Option<Ticket> {
        self.open.lock().remove(&number)
    }

    /// When one was opened that waits at this node for the key of this hash, and for which, which it goes on to do.
    pub(super) fn asked(&self, number: u64, (home, key): (&NodeId, u64)) -> Option<(Tick, LeaseKey)> {
        let open = self.open.lock();
        let known = |ticket: &&Ticket| ticket.home == *home && ticket.key.key_hash() == key;
        open.get(&number).filter(known).map(|ticket| (ticket.asked, ticket.key.clone()))
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidings_proto::hash::CacheId;

    use super::*;

    fn open(tickets: &Tickets, bytes: &'static [u8]) -> (u64, LeaseKey) {
        let key = LeaseKey { cache: CacheId(1), bytes: Bytes::from_static(bytes) };
        let (sender, _) = oneshot::channel();
        let (asked, until, home) = (Tick(5), Tick::FOREVER, "home".parse().unwrap());
        let number = tickets.open(Ticket { home, key: key.clone(), asked, until, sender });
        (number.unwrap(), key)
    }

    #[test]
    fn who_waits_is_told_of_its_own_key_by_its_own_home_and_of_nothing_else() {
        let tickets = Tickets::new(7);
        let ((a, key_a), (b, key_b)) = (open(&tickets, b"a"), open(&tickets, b"b"));
        let (home, other): (NodeId, NodeId) = ("home".parse().unwrap(), "other".parse().unwrap());
        assert_eq!(tickets.asked(a, (&home, key_a.key_hash())), Some((Tick(5), key_a.clone())));
        assert_eq!(tickets.asked(a, (&home, key_b.key_hash())), None);
        assert_eq!(tickets.asked(b, (&home, key_a.key_hash())), None);
        assert_eq!(tickets.asked(a, (&other, key_a.key_hash())), None);
    }

    #[test]
    fn each_life_numbers_its_tickets_from_elsewhere_on_and_beyond_the_last() {
        let numbers = |first| {
            let tickets = Tickets::new(first);
            [open(&tickets, b"a").0, open(&tickets, b"b").0]
        };
        assert_eq!((numbers(1 << 60), numbers(u64::MAX)), ([1 << 60, (1 << 60) + 1], [u64::MAX, 0]));
    }
}
