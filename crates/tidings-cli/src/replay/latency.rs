//! How long it takes from a write's return to the eviction at each peer, sampled, on one clock.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tidings::{LaneId, Sequence};
use tokio::time::Instant;

use super::random::mix;
use super::target::Latency;

/// One key in so many is sampled, chosen by its hash.
const SAMPLED_OF: u64 = 8;

/// Newest samples kept.
const SAMPLES_MAX: usize = 1 << 18;

/// Writes whose peers have not all evicted yet. A dead peer's never do: when full, it starts anew.
const PENDING_MAX: usize = 4_096;

/// A write: number of the node that made it, and its place in that node's log.
pub(crate) type Place = (usize, LaneId, Sequence);

/// Takes the samples. Writers and peers report in any order.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    pending: Mutex<HashMap<Place, Pending>>,
    samples: Mutex<Samples>,
}

#[derive(Debug, Default)]
struct Pending {
    returned: Option<Instant>,
    evicted: Vec<Instant>,
}

#[derive(Debug, Default)]
struct Samples {
    microseconds: Vec<u32>,
    next: usize,
}

/// Whether writes of a key are sampled.
pub(crate) fn is_sampled(key: &str) -> bool {
    let hash = key.bytes().fold(0_u64, |hash, byte| mix(hash ^ u64::from(byte)));
    hash.is_multiple_of(SAMPLED_OF)
}

impl Sampler {
    /// A write of a sampled key has returned; `peers` will evict it.
    pub(crate) fn returned(&self, place: Place, peers: usize) {
        let now = Instant::now();
        let mut pending = self.pending.lock();
        if peers == 0 {
            return;
        }
        let early = pending.remove(&place).unwrap_or_default().evicted;
        if early.len() < peers {
            Self::make_room(&mut pending);
            pending.insert(place, Pending { returned: Some(now), evicted: vec![now; early.len()] });
        }
        drop(pending);
        // Evicted while the write was still returning: it waited for nothing.
        early.iter().for_each(|_| self.take(Duration::ZERO));
    }

    /// A peer has evicted what a write changed; `peers` will in all.
    pub(crate) fn evicted(&self, place: Place, peers: usize) {
        let now = Instant::now();
        let mut pending = self.pending.lock();
        Self::make_room(&mut pending);
        let write = pending.entry(place).or_default();
        write.evicted.push(now);
        let returned = write.returned;
        if returned.is_some() && write.evicted.len() >= peers {
            pending.remove(&place);
        }
        drop(pending);
        if let Some(returned) = returned {
            self.take(now.saturating_duration_since(returned));
        }
    }

    /// The distribution so far.
    pub(crate) fn latency(&self) -> Latency {
        let mut sorted = self.samples.lock().microseconds.clone();
        sorted.sort_unstable();
        let quantile = |share: f64| {
            let last = sorted.len().saturating_sub(1);
            sorted.get((last as f64 * share).round() as usize).copied().map_or(0, u64::from)
        };
        Latency { p50: quantile(0.5), p99: quantile(0.99), p999: quantile(0.999), max: quantile(1.0) }
    }

    fn make_room(pending: &mut HashMap<Place, Pending>) {
        if pending.len() >= PENDING_MAX {
            pending.clear();
        }
    }

    fn take(&self, latency: Duration) {
        let latency = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        let mut samples = self.samples.lock();
        let next = samples.next;
        if samples.microseconds.len() < SAMPLES_MAX {
            samples.microseconds.push(latency);
        } else {
            samples.microseconds[next] = latency;
        }
        samples.next = (next + 1) % SAMPLES_MAX;
    }
}

#[cfg(test)]
mod tests {
    use tidings::Lanes;

    use super::*;

    fn place(sequence: Sequence) -> Place {
        (0, Lanes::default().lane(0).unwrap(), sequence)
    }

    #[tokio::test(start_paused = true)]
    async fn each_peer_is_a_sample_whoever_reports_first() {
        let sampler = Sampler::default();
        sampler.evicted(place(1), 2);
        tokio::time::advance(Duration::from_micros(5)).await;
        sampler.returned(place(1), 2);
        tokio::time::advance(Duration::from_micros(100)).await;
        sampler.evicted(place(1), 2);
        let latency = sampler.latency();
        assert_eq!((latency.p50, latency.max), (100, 100), "{latency:?}");
        assert_eq!(sampler.samples.lock().microseconds, [0, 100]);
        assert!(sampler.pending.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn peers_that_never_evict_take_bounded_memory() {
        let sampler = Sampler::default();
        for sequence in 1..20_000 {
            sampler.returned(place(sequence), 2);
        }
        assert!(sampler.pending.lock().len() <= PENDING_MAX);
        assert_eq!(sampler.latency(), Latency::default());
    }

    #[test]
    fn about_one_key_in_eight_is_sampled() {
        let sampled = (0..8_000).filter(|key| is_sampled(&format!("key-{key}"))).count();
        assert!((800..1200).contains(&sampled), "{sampled}");
    }
}
