//! What loads on this node have brought, until those who waited for it have had time to take it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tidings_proto::id::Origin;
use tidings_proto::lease::{LeaseAnswer, LeaseRef, Seen};
use tidings_proto::time::Tick;

/// Most bytes of results that are kept: twenty of the longest. For more, the oldest go, and who comes for them loads.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// What each counts for besides its bytes and what its node had seen: its places here.
const KEPT_BYTES_EACH: usize = 1 << 10;

/// What each origin of what its node had seen counts for.
const SEEN_BYTES_EACH: usize = size_of::<(Origin, u64)>();

/// How long a result is kept: who waits hears of it by two messages, each of which has a second.
const KEPT_TIME: Duration = Duration::from_secs(3);

/// A result, until its time is over.
#[derive(Debug)]
pub(super) struct Brought {
    until: Tick,
    /// The hash of its key.
    key: u64,
    seen: Seen,
    /// What others are answered with, encoded once for all of them. The result is the end of it.
    answer: Bytes,
    result: usize,
}

impl Brought {
    /// What a load of the key of this hash has brought: result and what its node had seen.
    pub(super) fn new((key, seen, bytes): (u64, Seen, Bytes), now: Tick) -> Self {
        let answer = LeaseAnswer::Result(seen.clone(), bytes.to_vec()).encode();
        let result = answer.len() - bytes.len();
        Self { until: now.after(KEPT_TIME), key, seen, answer, result }
    }

    fn size(&self) -> usize {
        KEPT_BYTES_EACH + SEEN_BYTES_EACH * self.seen.len() + self.answer.len()
    }
}

/// The results of loads under leases.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Each with its number among all that came.
    results: HashMap<LeaseRef, (u64, Brought)>,
    /// In the order in which they came, by number; of some the result is gone, or another one is in its place.
    order: VecDeque<(u64, LeaseRef)>,
    next: u64,
    bytes: usize,
}

impl Kept {
    /// Keeps a result. A home may give one lease twice, and then the last result is that of the lease.
    pub(super) fn put(&mut self, lease: LeaseRef, brought: Brought) {
        self.remove(&lease);
        let number = self.next;
        self.next += 1;
        self.bytes += brought.size();
        self.results.insert(lease, (number, brought));
        self.order.push_back((number, lease));
        while self.bytes > KEPT_BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.remove_numbered(&oldest);
        }
        if self.order.len() > 2 * self.results.len() + 16 {
            let Self { results, order, .. } = self;
            order.retain(|(number, lease)| results.get(lease).is_some_and(|(of, _)| of == number));
        }
    }

    /// The result that came with this number, if it is still there.
    fn result(&self, (number, lease): &(u64, LeaseRef)) -> Option<&Brought> {
        self.results.get(lease).filter(|(of, _)| of == number).map(|(_, kept)| kept)
    }

    /// What a load under a lease of the key of this hash has brought.
    pub(super) fn get(&self, of: (&LeaseRef, u64), now: Tick) -> Option<(Seen, Bytes)> {
        let kept = self.find(of, now)?;
        Some((kept.seen.clone(), kept.answer.slice(kept.result..)))
    }

    /// As [`Kept::get`], as an encoded [`LeaseAnswer::Result`].
    pub(super) fn answer(&self, of: (&LeaseRef, u64), now: Tick) -> Option<Bytes> {
        self.find(of, now).map(|kept| kept.answer.clone())
    }

    fn find(&self, (lease, key): (&LeaseRef, u64), now: Tick) -> Option<&Brought> {
        let (_, kept) = self.results.get(lease)?;
        (now < kept.until && kept.key == key).then_some(kept)
    }

    pub(super) fn remove(&mut self, lease: &LeaseRef) {
        if let Some((_, kept)) = self.results.remove(lease) {
            self.bytes -= kept.size();
        }
    }

    fn remove_numbered(&mut self, of: &(u64, LeaseRef)) {
        if self.result(of).is_some() {
            self.remove(&of.1);
        }
    }

    /// Forgets what was kept for long enough.
    pub(super) fn expire(&mut self, now: Tick) {
        while let Some(oldest) = self.order.front().copied()
            && self.result(&oldest).is_none_or(|kept| kept.until <= now)
        {
            self.order.pop_front();
            self.remove_numbered(&oldest);
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
        kept.put(lease(1), Brought::new((9, Seen::default(), Bytes::from_static(b"a")), Tick(5)));
        let end = Tick(5).after(KEPT_TIME);
        let got = |key, now| kept.get((&lease(1), key), now).is_some();
        assert!(got(9, Tick(end.0 - 1)) && !got(9, end));
        assert!(!got(8, Tick(5)), "of another key");
        kept.expire(end);
        assert_eq!((kept.bytes, kept.order.len(), kept.results.len()), (0, 0, 0));
    }

    #[test]
    fn others_are_answered_with_what_is_had_here_and_what_was_seen_counts() {
        let mut kept = Kept::default();
        let origin =
            |n: u64| Origin { node: "n1".parse().unwrap(), incarnation: tidings_proto::id::Incarnation(n) };
        let seen = Seen::of((0..1_000).map(|n| (origin(n), n + 1)));
        kept.put(lease(1), Brought::new((9, seen.clone(), Bytes::from_static(b"abc")), Tick(5)));
        let (of, result) = ((&lease(1), 9), Bytes::from_static(b"abc"));
        assert_eq!(kept.get(of, Tick(5)), Some((seen.clone(), result.clone())));
        let answer = LeaseAnswer::decode(&kept.answer(of, Tick(5)).unwrap()).unwrap();
        assert_eq!(answer, LeaseAnswer::Result(seen, result.to_vec()));
        assert!(kept.bytes > 1_000 * SEEN_BYTES_EACH, "{}", kept.bytes);
        kept.remove(&lease(1));
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn for_more_than_there_is_room_for_the_oldest_go() {
        let mut kept = Kept::default();
        let long = Bytes::from(vec![0; 1 << 20]);
        for id in 0..100 {
            kept.put(lease(id), Brought::new((9, Seen::default(), long.clone()), Tick(5)));
            assert!(kept.bytes <= KEPT_BYTES_MAX && kept.get((&lease(id), 9), Tick(5)).is_some());
        }
        assert!(kept.get((&lease(0), 9), Tick(5)).is_none());
        (0..100).for_each(|id| kept.remove(&lease(id)));
        assert_eq!((kept.bytes, kept.results.len()), (0, 0));
    }

    #[test]
    fn a_result_in_place_of_another_counts_alone() {
        let mut kept = Kept::default();
        for _ in 0..100 {
            let long = Bytes::from(vec![0; 1 << 20]);
            kept.put(lease(1), Brought::new((9, Seen::default(), long), Tick(5)));
            kept.put(lease(2), Brought::new((9, Seen::default(), Bytes::from_static(b"b")), Tick(5)));
        }
        assert!(kept.bytes < 2 << 20 && kept.order.len() <= 32, "{} {}", kept.bytes, kept.order.len());
        assert!([1, 2].iter().all(|id| kept.get((&lease(*id), 9), Tick(5)).is_some()));
        [1, 2].iter().for_each(|id| kept.remove(&lease(*id)));
        assert_eq!((kept.bytes, kept.results.len()), (0, 0));
    }

    #[test]
    fn what_is_removed_early_leaves_no_memory_behind() {
        let mut kept = Kept::default();
        for id in 0..10_000 {
            kept.put(lease(id), Brought::new((9, Seen::default(), Bytes::new()), Tick(5)));
            kept.remove(&lease(id));
        }
        assert!(kept.order.len() <= 32, "{}", kept.order.len());
    }
}
