//! What the local paths must reach, and what they aim at: ratios to a case of the same group, unless said otherwise.

use tidings_benches::target::{Better, Target};

use crate::codec;

/// A limit on the ratio of two cases.
pub(crate) struct Against {
    pub(crate) subject: &'static str,
    pub(crate) anchor: &'static str,
    pub(crate) target: Target,
}

pub(crate) const CACHE: [Against; 0] = [];

pub(crate) const FAN_OUT: [Against; 0] = [];

pub(crate) const CODEC: [Against; 1] = [Against {
    subject: codec::RECORDS,
    anchor: codec::BINCODE,
    target: Target {
        name: "event encode + decode ÷ bincode derive, owned",
        better: Better::Lower,
        must: 1.0 / 3.0,
        aim: 1.0 / 10.0,
    },
}];

/// Not a ratio.
pub(crate) const BYTES_PER_EVENT: Target =
    Target { name: "bytes per event, 24-byte key", better: Better::Lower, must: 50.0, aim: 36.0 };
