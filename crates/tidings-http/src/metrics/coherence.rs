//! How coherent the node's caches are with those of its peers.

use std::fmt;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use tidings::{Measured, Node, Share, WITHIN};

use super::{Output, labelled, one};

/// The times of [`WITHIN`] as labels spell them, in seconds as bounds of buckets are.
const LABELS: [&str; WITHIN.len()] = ["0.001", "0.01", "0.1", "1"];

/// Writes what the node has measured.
pub(super) fn encode(node: &Node, out: &mut Output<'_>) -> fmt::Result {
    let Measured { writes, isolated, doubted, repairs, over_invalidated } = node.measured();
    let shares = |count: fn(&Share) -> u64| LABELS.into_iter().zip(writes.since_start.each_ref().map(count));
    out.counter(
        "tidings_writes_coherent",
        "Records of this node that every live member had applied within a time, in seconds.",
        labelled("within", shares(|share| share.coherent)),
    )?;
    out.counter(
        "tidings_writes_judged",
        "Records of this node that were coherent within a time, or are older than that.",
        labelled("within", shares(|share| share.judged)),
    )?;
    out.counter(
        "tidings_writes_alone",
        "Records that this node logged while there was no other member.",
        one(writes.alone),
    )?;
    let pending = writes.pending as f64;
    out.gauge(
        "tidings_writes_pending",
        None,
        "Records of this node that some live member has not applied, as far as is known.",
        one(pending),
    )?;
    out.histogram(
        "tidings_coherence_duration",
        "From when the bus heard of a change on this node until the last live member had applied or fenced it.",
        one(writes.times),
    )?;
    out.counter(
        "tidings_repairs",
        "Times that what was missed of another node's log was made good, and how.",
        labelled("kind", [("resumed", repairs.resumed), ("gap", repairs.gaps), ("reset", repairs.resets)]),
    )?;
    out.counter(
        "tidings_over_invalidated_entries",
        "About how many entries fences, and floors after unclean ends, have made unreadable, none of which an event had named.",
        one(over_invalidated),
    )?;
    out.gauge(
        "tidings_expelled",
        None,
        "Whether no member has heard this node for as long as members wait for a lost one.",
        one(f64::from(u8::from(node.expelled().is_some()))),
    )?;
    out.time(
        "tidings_isolated",
        "Time in which no other member was heard, although there were some, or seeds of which none was reached.",
        isolated.as_secs_f64(),
    )?;
    out.time("tidings_doubted", "Time in which not every hit counted.", doubted.as_secs_f64())
}

impl Output<'_> {
    /// Time that was spent, in seconds.
    fn time(&mut self, name: &str, help: &str, seconds: f64) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, f64, u64>(&seconds, None)
    }
}
