//! What members say of each other.

use tidings_membership::decoders;

pub(crate) fn frame(bytes: &[u8]) -> bool {
    decoders::gossip(bytes).is_some()
}

pub(crate) fn frames() -> Vec<Vec<u8>> {
    decoders::gossip_samples()
}

/// A signed record. Its signature is believed, so that what stands behind it is reached.
pub(crate) fn record(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(decoders::signed_record)
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    vec![decoders::signed_record_sample().into_bytes()]
}
