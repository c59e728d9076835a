//! Leases of keys: where one load serves the cluster.

use std::fmt;

use tidings::{LeaseCounts, Node, Unshared};

use super::{Labels, Output};

type Count = fn(&LeaseCounts) -> u64;

const OUTCOMES: [(&str, Count); 7] = [
    ("granted", |counts| counts.granted),
    ("shared", |counts| counts.shared),
    ("revoked", |counts| counts.revoked),
    ("expired", |counts| counts.expired),
    ("failed", |counts| counts.failed),
    ("refused", |counts| counts.refused),
    ("late", |counts| counts.late),
];

pub(super) fn encode(node: &Node, out: &mut Output<'_>) -> fmt::Result {
    let report = node.leases();
    let labelled = |name: &'static str, text: &str| -> Labels { vec![(name, text.to_owned())] };
    out.counter(
        "tidings_leases",
        "Leases of keys whose home this node is, and those who asked for them, by what became of them.",
        OUTCOMES.map(|(outcome, count)| (labelled("outcome", outcome), count(&report.home))),
    )?;
    out.counter(
        "tidings_leases_asked",
        "Loads and fill tokens of this node for which a lease was asked for.",
        [(Labels::new(), report.asked)],
    )?;
    out.counter(
        "tidings_leases_unshared",
        "Of those, which loaded for this node alone, by why.",
        Unshared::ALL.map(|why| (labelled("reason", why.name()), report.unshared[why as usize])),
    )?;
    out.counter(
        "tidings_leases_unsent",
        "What this node had to say to others about leases, and did not: no room, or they do not answer.",
        [(Labels::new(), report.unsent)],
    )?;
    let gauges = [
        ("tidings_leases_open", "Keys under a lease of this node.", report.open),
        (
            "tidings_leases_waiting",
            "Loads and fill tokens that wait at this node for another.",
            report.waiting,
        ),
    ];
    for (name, help, count) in gauges {
        out.gauge(name, None, help, [(Labels::new(), count as f64)])?;
    }
    Ok(())
}
