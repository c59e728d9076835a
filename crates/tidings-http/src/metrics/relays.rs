//! Relaying, in clusters that are too large for everybody to follow everybody.

use std::fmt;

use prometheus_client::registry::Unit;
use tidings::Node;

use super::{Output, one};

pub(super) fn encode(node: &Node, out: &mut Output<'_>) -> fmt::Result {
    let report = node.relayed();
    out.gauge(
        "tidings_relay_on",
        None,
        "1 if the cluster is larger than relay_above, so that the node passes on what others change.",
        one(f64::from(u8::from(report.on))),
    )?;
    out.gauge(
        "tidings_relay_held",
        Some(Unit::Bytes),
        "What is kept of other nodes' logs for those who ask here.",
        one(report.held_bytes as f64),
    )?;
    let counters = [
        (
            "tidings_relay_redirected",
            "Times that a member's changes were asked of somebody else from then on.",
            report.redirected,
        ),
        ("tidings_relay_lacking", "Times that a relay did not hold what was missing here.", report.lacking),
        (
            "tidings_relay_acks_dropped",
            "Acknowledgements of others that were not passed on, for they were too many.",
            report.acks_dropped,
        ),
    ];
    for (name, help, count) in counters {
        out.counter(name, help, one(count))?;
    }
    Ok(())
}
