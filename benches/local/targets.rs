//! What the local paths must reach, and what they aim at: ratios to a case of the same group, unless said otherwise.

use tidings_benches::target::{Better, Target};

use crate::{bare_moka, broadcast, cache, codec, subscriptions};

/// A limit on the ratio of two cases.
pub(crate) struct Against {
    pub(crate) subject: &'static str,
    pub(crate) anchor: &'static str,
    pub(crate) target: Target,
}

/// Time per operation ÷ that of the anchor.
const fn against(
    subject: &'static str,
    anchor: &'static str,
    name: &'static str,
    must: f64,
    aim: f64,
) -> Against {
    Against { subject, anchor, target: Target { name, better: Better::Lower, must, aim } }
}

/// The invalidator's limits are given as rates: 0.5 and 0.8 of moka's for absent keys, 0.9 and 1.3 for resident ones.
pub(crate) const CACHE: [Against; 4] = [
    against(cache::GET, bare_moka::GET, "hit ÷ moka get", 1.10, 0.95),
    against(cache::INSERT, bare_moka::INSERT, "insert without peers ÷ moka insert", 1.25, 1.05),
    against(
        cache::INVALIDATE_ABSENT,
        bare_moka::INVALIDATE_ABSENT,
        "a peer's change of an absent key ÷ moka invalidate",
        1.0 / 0.5,
        1.0 / 0.8,
    ),
    against(
        cache::INVALIDATE_RESIDENT,
        bare_moka::INVALIDATE_RESIDENT,
        "a peer's change of a resident key ÷ moka invalidate",
        1.0 / 0.9,
        1.0 / 1.3,
    ),
];

pub(crate) const FAN_OUT: [Against; 4] = [
    against(
        subscriptions::IDLE,
        broadcast::IDLE,
        "delivery to 16, a wake each ÷ moka and tokio broadcast",
        1.0,
        0.35,
    ),
    against(
        subscriptions::BUSY,
        broadcast::BUSY,
        "delivery to 16, busy ÷ moka and tokio broadcast",
        1.0,
        0.35,
    ),
    against(
        subscriptions::IDLE_RAW,
        broadcast::IDLE,
        "raw delivery to 16, a wake each ÷ moka and tokio broadcast",
        1.0,
        0.35,
    ),
    against(
        subscriptions::BUSY_RAW,
        broadcast::BUSY,
        "raw delivery to 16, busy ÷ moka and tokio broadcast",
        1.0,
        0.35,
    ),
];

pub(crate) const CODEC: [Against; 1] = [against(
    codec::RECORDS,
    codec::BINCODE,
    "event encode + decode ÷ bincode derive, owned",
    1.0 / 3.0,
    1.0 / 10.0,
)];

/// Not a ratio.
pub(crate) const BYTES_PER_EVENT: Target =
    Target { name: "bytes per event, 24-byte key", better: Better::Lower, must: 50.0, aim: 36.0 };
