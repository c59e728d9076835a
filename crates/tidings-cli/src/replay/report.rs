//! The summary that `demo` and `replay` end with.

use std::fmt::Write as _;

use serde::Serialize;

use super::tally::Violation;
use super::target::{Coherence, Latency};
use crate::units::show_share;

/// The summary. Names and meaning of its fields are part of the program's interface.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// How many nodes.
    pub(crate) nodes: usize,
    /// Reads and writes.
    pub(crate) requests: u64,
    /// Writes.
    pub(crate) writes: u64,
    /// Share of the reads that were answered without a load of their own.
    pub(crate) hit_ratio: f64,
    /// Throughput over the whole run.
    pub(crate) requests_per_second: f64,
    /// Changes that nodes made.
    pub(crate) events_published: u64,
    /// Changes that nodes applied, once per follower.
    pub(crate) events_applied: u64,
    /// Gaps noticed and repaired.
    pub(crate) gaps: u64,
    /// Positions that a log no longer held.
    pub(crate) resets: u64,
    /// Answers older than a write that had returned before the read began.
    pub(crate) stale_reads: u64,
    /// Those older than the bound.
    pub(crate) stale_reads_after_bound: u64,
    /// The oldest.
    pub(crate) max_staleness_ms: f64,
    /// Entries that a hit would serve and that differ from the record after all is applied.
    pub(crate) differing_at_end: u64,
    /// The seed.
    pub(crate) seed: u64,
    /// By node.
    pub(crate) per_node: Vec<NodeReport>,
    /// From a write's return to the eviction at a peer.
    pub(crate) invalidation_latency_us: Latency,
    /// Shares of the writes that every live node had applied in time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) coherent: Vec<Coherence>,

    /// The bound that answers were held to.
    pub(crate) bound_ms: f64,
    /// Time from the first request to the last answer.
    pub(crate) elapsed_s: f64,
    /// Loads from the record.
    pub(crate) loads: u64,
    /// Reads answered by another caller's load.
    pub(crate) coalesced: u64,
    /// Answers that said themselves that they may be older than promised.
    pub(crate) marked_stale: u64,
    /// Answers that are not a value of the key.
    pub(crate) wrong_values: u64,
    /// Requests that a node did not answer.
    pub(crate) errors: u64,
    /// Writes that no node could be told of.
    pub(crate) unfinished_writes: u64,
    /// Whether everything was applied in time for the comparison at the end.
    pub(crate) settled: bool,
    /// Entries looked at in that comparison.
    pub(crate) compared_at_end: u64,
    /// Entries that could not be looked at, because their node did not answer.
    pub(crate) uncompared_at_end: u64,
    /// The first answers that broke the promise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) violations: Vec<Violation>,
    /// What was done to the nodes, and when.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) chaos: Vec<String>,
    /// Second by second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) series: Vec<Second>,
}

/// What went over one node.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct NodeReport {
    /// Its name.
    pub(crate) node: String,
    /// Reads and writes.
    pub(crate) requests: u64,
    /// Share of its reads that were answered without a load of their own.
    pub(crate) hit_ratio: f64,
    /// Requests that it did not answer.
    pub(crate) errors: u64,
}

/// What happened in one second.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Second {
    /// Seconds since the start, at its end.
    pub(crate) at_s: u64,
    /// Reads and writes.
    pub(crate) requests: u64,
    /// Share of the reads that were answered without a load of their own.
    pub(crate) hit_ratio: f64,
    /// Loads from the record.
    pub(crate) loads: u64,
    /// Stale answers.
    pub(crate) stale_reads: u64,
    /// Requests that a node did not answer.
    pub(crate) errors: u64,
}

impl Report {
    /// Whether every promise was kept.
    pub(crate) fn is_sound(&self) -> bool {
        self.stale_reads_after_bound == 0 && self.differing_at_end == 0 && self.wrong_values == 0
    }

    /// The summary for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<22} {value}");
        };
        line(
            "requests",
            format!("{} ({} writes), {:.0} per second", self.requests, self.writes, self.requests_per_second),
        );
        line("hit ratio", format!("{:.4}", self.hit_ratio));
        for node in &self.per_node {
            line(&format!("  {}", node.node), format!("{:.4} of {} requests", node.hit_ratio, node.requests));
        }
        line("events", format!("{} published, {} applied", self.events_published, self.events_applied));
        line("gaps, resets", format!("{}, {}", self.gaps, self.resets));
        let latency = self.invalidation_latency_us;
        if latency != Latency::default() {
            let Latency { p50, p99, p999, max } = latency;
            line(
                "invalidation latency",
                format!("p50 {p50} us, p99 {p99} us, p99.9 {p999} us, max {max} us"),
            );
        }
        if !self.coherent.is_empty() {
            line("coherent everywhere", coherent(&self.coherent));
        }
        line("stale reads", format!("{}, the oldest by {:.1} ms", self.stale_reads, self.max_staleness_ms));
        line(&format!("  beyond {:.0} ms", self.bound_ms), self.stale_reads_after_bound.to_string());
        line(
            "differing at the end",
            format!("{} of {} entries", self.differing_at_end, self.compared_at_end),
        );
        let Self { errors, unfinished_writes, wrong_values, uncompared_at_end, .. } = self;
        if errors + unfinished_writes + wrong_values + uncompared_at_end > 0 {
            line(
                "failures",
                format!(
                    "{errors} requests, {unfinished_writes} unfinished writes, {wrong_values} wrong values, \
                     {uncompared_at_end} entries without an answer"
                ),
            );
        }
        text
    }
}

/// Shares of writes for people.
pub(crate) fn coherent(shares: &[Coherence]) -> String {
    let told = shares.iter().map(|it| format!("{} within {} ms", show_share(it.share), it.within_ms));
    told.collect::<Vec<_>>().join(", ")
}
