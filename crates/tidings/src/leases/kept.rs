//! What loads on this node have brought, until those who waited for it have had time to take it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tidings_proto::lease::{LeaseRef, Seen};
use tidings_proto::time::Tick;

/// Most bytes of results that are kept: twenty of the longest. For more, the oldest go, and who comes for them loads.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// What each counts for besides its bytes: its places here, and what its node had seen.
const KEPT_BYTES_EACH: usize = 1 << 10;

/// How long a result is kept: who waits hears of it by two messages, each of which has a second.
const KEPT_TIME: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Brought {
    until: Tick,
    /// The hash of its key.
    key: u64,
    seen: Seen,
    bytes: Bytes,
}

/// The results of loads under leases.
#[derive(Debug, Default)]
pub(super) struct Kept {
    results: HashMap<LeaseRef, Brought>,
    /// In the order in which they came; of some the result is gone.
    order: VecDeque<LeaseRef>,
    bytes: usize,
}

impl Kept {
    /// Keeps what a load has brought under the key of this hash.
    pub(super) fn put(&mut self, lease: LeaseRef, (key, seen, bytes): (u64, Seen, Bytes), now: Tick) {
        self.bytes += KEPT_BYTES_EACH + bytes.len();
        self.results.insert(lease, Brought { until: now.after(KEPT_TIME), key, seen, bytes });
        self.order.push_back(lease);
        while self.bytes > KEPT_BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.remove(&oldest);
        }
        if self.order.len() > 2 * self.results.len() + 16 {
            self.order.retain(|lease| self.results.contains_key(lease));
        }
    }

    pub(super) fn get(&self, (lease, key): (&LeaseRef, u64), now: Tick) -> Option<(Seen, Bytes)> {
        let kept = self.results.get(lease).filter(|kept| now < kept.until && kept.key == key)?;
        Some((kept.seen.clone(), kept.bytes.clone()))
    }

    pub(super) fn remove(&mut self, lease: &LeaseRef) {
        if let Some(kept) = self.results.remove(lease) {
            self.bytes -= KEPT_BYTES_EACH + kept.bytes.len();
        }
    }

    /// Forgets what was kept for long enough.
    pub(super) fn expire(&mut self, now: Tick) {
        while let Some(oldest) = self.order.front().copied()
            && self.results.get(&oldest).is_none_or(|kept| kept.until <= now)
        {
            self.order.pop_front();
            self.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(id: u64) -> LeaseRef {
        LeaseRef { home: 1, id }
    }

    #[test]
    fn a_result_is_kept_for_its_time_and_no_longer() {
        let mut kept = Kept::default();
        kept.put(lease(1), (9, Seen::default(), Bytes::from_static(b"a")), Tick(5));
        let end = Tick(5).after(KEPT_TIME);
        let got = |key, now| kept.get((&lease(1), key), now).is_some();
        assert!(got(9, Tick(end.0 - 1)) && !got(9, end));
        assert!(!got(8, Tick(5)), "of another key");
        kept.expire(end);
        assert_eq!((kept.bytes, kept.order.len(), kept.results.len()), (0, 0, 0));
    }

    #[test]
    fn for_more_than_there_is_room_for_the_oldest_go() {
        let mut kept = Kept::default();
        let long = Bytes::from(vec![0; 1 << 20]);
        for id in 0..100 {
            kept.put(lease(id), (9, Seen::default(), long.clone()), Tick(5));
            assert!(kept.bytes <= KEPT_BYTES_MAX && kept.get((&lease(id), 9), Tick(5)).is_some());
        }
        assert!(kept.get((&lease(0), 9), Tick(5)).is_none());
        (0..100).for_each(|id| kept.remove(&lease(id)));
        assert_eq!((kept.bytes, kept.results.len()), (0, 0));
    }

    #[test]
    fn what_is_removed_early_leaves_no_memory_behind() {
        let mut kept = Kept::default();
        for id in 0..10_000 {
            kept.put(lease(id), (9, Seen::default(), Bytes::new()), Tick(5));
            kept.remove(&lease(id));
        }
        assert!(kept.order.len() <= 32, "{}", kept.order.len());
    }
}
