//! Documents that the program prints by itself as this interface answers them.

use serde_json::{Value as Json, json};
use tidings::streams::{Damage, Place, Report};

/// What a look at everything in a store of streams has found.
#[must_use]
pub fn verified(report: &Report) -> Json {
    let damage: Vec<Json> = report.damage.iter().map(damaged).collect();
    json!({
        "sound": damage.is_empty(),
        "events": report.events,
        "dead_letters": report.dead_letters,
        "damage": damage,
    })
}

fn damaged(damage: &Damage) -> Json {
    let (place, topic) = match &damage.place {
        Place::Topic(name) => ("topic", Some(name.as_str())),
        Place::DeadLetters => ("dead_letters", None),
        Place::Groups => ("groups", None),
    };
    json!({
        "place": place,
        "topic": topic,
        "first": damage.ids.map(|(first, _)| first.to_string()),
        "last": damage.ids.map(|(_, last)| last.to_string()),
        "bytes": damage.bytes,
    })
}
