//! What a run showed, as a line of a table.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tidings_proto::codec;
use tidings_proto::frame::{Control, HEADER_BYTES, Heartbeat};
use tidings_proto::id::FIRST;
use tidings_proto::log::{ChangeLog, Cursor, Retention};
use tidings_proto::relay::{Overlay, Relayed};

use super::{Setup, lane, lanes, ms};
use crate::model::{draft, slot};

/// What a run showed.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Changes that were sent to followers, and those that were applied.
    pub(crate) copies: u64,
    pub(crate) applied: u64,
    /// To how many followers one node handed on one change.
    pub(crate) largest_fanout: usize,
    /// How often another source was asked.
    pub(crate) redirected: u64,
    pub(crate) hops: Vec<usize>,
    pub(crate) latencies: Vec<Duration>,
    /// How old confirmations were.
    pub(crate) ages: Vec<Duration>,
}

/// What an overlay costs if all nodes write alike.
#[derive(Debug)]
pub(crate) struct Cost {
    /// Links of a node, in the mean and at most.
    pub(crate) links: (f64, usize),
    /// How often the busiest node sends a change, per change that somebody makes; the mean is just below one.
    pub(crate) busiest: f64,
    /// What a node sends for confirmation, in kB/s in the mean.
    confirming: f64,
}

pub(crate) const HEAD: &str = "\
| nodes | shape | churn | links, mean / most | sends per change, busiest / largest fan-out | copies per change | hops, p50 / p99 / most | latency in ms, p50 / p99 / most | age of confirmation in ms, p50 / p99 / most | confirming, kB/s |
|---|---|---|---|---|---|---|---|---|---|";

/// The value below which so many of a thousand are.
pub(crate) fn quantile<T: Ord + Copy>(values: &mut [T], thousandths: usize) -> T {
    values.sort_unstable();
    values[(values.len() - 1) * thousandths / 1_000]
}

impl Figures {
    pub(crate) fn line(mut self, setup: Setup) -> String {
        let cost = Cost::of(setup);
        let hops = [500, 990, 1_000].map(|part| quantile(&mut self.hops, part));
        let latency = [500, 990, 1_000].map(|part| ms(quantile(&mut self.latencies, part)));
        let age = [500, 990, 1_000].map(|part| ms(quantile(&mut self.ages, part)));
        format!(
            "| {setup} | {:.0} / {} | {:.1} / {} | {:.3} | {} / {} / {} | {:.1} / {:.1} / {:.0} | {:.0} / {:.0} / {:.0} | {:.0} |",
            cost.links.0,
            cost.links.1,
            cost.busiest,
            self.largest_fanout,
            self.copies as f64 / self.applied as f64,
            hops[0],
            hops[1],
            hops[2],
            latency[0],
            latency[1],
            latency[2],
            age[0],
            age[1],
            age[2],
            cost.confirming,
        )
    }
}

impl Cost {
    /// By everybody's way to everybody.
    pub(crate) fn of(setup: Setup) -> Self {
        let ids: Vec<_> = (0..setup.nodes).map(|node| format!("n{node}").parse().unwrap()).collect();
        let zones: Vec<_> = (0..setup.zones).map(|zone| format!("z{zone}")).collect();
        let view = ids.iter().enumerate().map(|(node, id)| (id, zones[node % setup.zones].as_str()));
        let overlay = Overlay::of(view, setup.relay_above);
        let places: Vec<_> = overlay.places().collect();
        let mut links = vec![BTreeSet::new(); places.len()];
        let mut sent = vec![0_usize; places.len()];
        let indices: HashMap<_, _> =
            places.iter().enumerate().map(|(index, place)| (*place, index)).collect();
        for (from, origin) in places.iter().enumerate() {
            for (to, follower) in places.iter().enumerate().filter(|(to, _)| *to != from) {
                let upstream = indices[overlay.way(*origin, *follower, &[]).last().unwrap()];
                sent[upstream] += 1;
                links[upstream].insert(to);
                links[to].insert(upstream);
            }
        }
        let count = places.len() as f64;
        let mean = links.iter().map(BTreeSet::len).sum::<usize>() as f64 / count;
        let most = links.iter().map(BTreeSet::len).max().unwrap_or(0);
        let relayed = if setup.nodes > setup.relay_above { count - mean } else { 0.0 };
        let confirming = 4.0 * (mean * asked_bytes() + relayed * relayed_bytes()) / 1_000.0;
        Self { links: (mean, most), busiest: sent.into_iter().max().unwrap_or(0) as f64 / count, confirming }
    }
}

/// A probe and a heartbeat, between nodes that have four lanes and have done something.
fn asked_bytes() -> f64 {
    let heartbeat = Heartbeat { echo: 100_000, members: 1_000, heads: vec![1_000_000; 4] };
    (Control::Probe(100_000).encode().len() + Control::Heartbeat(heartbeat).encode().len()) as f64
}

/// A change of a 24-byte key as it goes to each follower, in bytes.
pub(crate) fn change_bytes() -> usize {
    let log = ChangeLog::new(lanes(), Retention::default());
    log.append(slot(), 1_700_000_000_000, &draft(&[b'k'; 24])).unwrap().waiters.wake();
    let mut batches = Vec::new();
    log.read(lane(), &mut Cursor { next: FIRST }, 1, &mut batches);
    HEADER_BYTES + batches[0].head().len() + batches[0].records.len()
}

/// What is said of one more origin, which a number stands for.
fn relayed_bytes() -> f64 {
    let mut bytes = Vec::new();
    let relayed = Relayed::Confirmed { heads: vec![1_000_000; 4], age_us: 300_000 };
    codec::encode_into(&relayed, &mut bytes).unwrap();
    (3 + bytes.len()) as f64
}
