//! What the auditor has compared and found.

use std::fmt;

use tidings::{Audited, Node};

use super::{Output, labelled, one};

/// Writes what the node's audits came to.
pub(super) fn encode(node: &Node, out: &mut Output<'_>) -> fmt::Result {
    let Audited { counts, answered, times, .. } = node.audited();
    out.counter(
        "tidings_audit_entries",
        "Entries of this node that audits have looked at.",
        one(counts.entries),
    )?;
    out.counter(
        "tidings_audit_compared",
        "Entries that audits have asked a peer about, once for each peer.",
        one(counts.compared),
    )?;
    let outcomes = [
        ("lag", counts.lag),
        ("inconsistent", counts.inconsistent),
        ("unsettled", counts.unsettled),
        ("unexamined", counts.unexamined),
    ];
    out.counter(
        "tidings_audit_differing",
        "Entries that a peer held with another value, by what came of it.",
        labelled("outcome", outcomes),
    )?;
    let bytes = [("sent", counts.sent), ("received", counts.received)];
    out.counter(
        "tidings_audit_bytes",
        "Bytes of questions and answers of this node's audits.",
        labelled("direction", bytes),
    )?;
    out.counter(
        "tidings_audit_answered",
        "Entries that other nodes' audits have asked this one about.",
        one(answered),
    )?;
    out.histogram("tidings_audit_sweep_duration", "How long sweeps over all entries took.", one(times))
}
