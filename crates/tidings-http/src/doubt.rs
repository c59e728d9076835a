//! Why not every hit counts, in words and in codes.

use serde_json::{Value, json};
use tidings::Doubt;

/// The code of every reason, in the order of [`code`]'s arms.
pub(crate) const CODES: [&str; 6] =
    ["no_contact", "own_former_life", "displaced", "never_heard", "unheard", "unclean_end"];

/// What a program tells reasons apart by.
pub(crate) fn code(doubt: &Doubt) -> &'static str {
    match doubt {
        Doubt::NoContact => CODES[0],
        Doubt::OwnFormerLife => CODES[1],
        Doubt::Displaced => CODES[2],
        Doubt::NeverHeard(_) => CODES[3],
        Doubt::Unheard(_) => CODES[4],
        Doubt::UncleanEnd(_) => CODES[5],
    }
}

/// What people read.
pub(crate) fn text(doubt: &Doubt) -> String {
    match doubt {
        Doubt::NoContact => "no seed has been reached".to_owned(),
        Doubt::OwnFormerLife => "a write of this node's former life may still be under way".to_owned(),
        Doubt::Displaced => "another process has this node's id".to_owned(),
        Doubt::NeverHeard(origin) => format!("{} has not been heard yet", origin.node),
        Doubt::Unheard(origin) => format!("{} is not heard", origin.node),
        Doubt::UncleanEnd(origin) => format!("{} ended without a goodbye", origin.node),
    }
}

/// All of it; `node` and `incarnation` are null where no member is meant.
pub(crate) fn document(doubt: &Doubt) -> Value {
    let origin = match doubt {
        Doubt::NeverHeard(origin) | Doubt::Unheard(origin) | Doubt::UncleanEnd(origin) => Some(origin),
        Doubt::NoContact | Doubt::OwnFormerLife | Doubt::Displaced => None,
    };
    json!({
        "reason": code(doubt),
        "node": origin.map(|origin| origin.node.as_str()),
        "incarnation": origin.map(|origin| origin.incarnation.0),
        "text": text(doubt),
    })
}
