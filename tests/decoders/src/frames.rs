//! Frames of links, and the records in them.

use bytes::BytesMut;
use tidings_proto::codec;
use tidings_proto::frame::{Control, FrameType, RawFrame, take};
use tidings_proto::id::Lanes;
use tidings_proto::record::{BatchRef, Target};

use crate::asks;

/// Bytes as they come from a link: frames, one after another. What is accepted is written and read alike.
pub(crate) fn stream(bytes: &[u8]) -> bool {
    let mut buffer = BytesMut::from(bytes);
    let mut accepted = false;
    while let Ok(Some(frame)) = take(&mut buffer) {
        accepted |= match frame.kind {
            FrameType::Events => batch(&frame.body),
            FrameType::Ask | FrameType::Answer => asks::frame(frame),
            _ => is_control(&frame),
        };
    }
    accepted
}

/// The body of a control frame behind a byte that says of which type.
pub(crate) fn control(bytes: &[u8]) -> bool {
    let Some((kind, body)) = bytes.split_first() else { return false };
    let mut framed = BytesMut::from(&[1, *kind][..]);
    framed.extend_from_slice(&(body.len() as u32).to_le_bytes());
    framed.extend_from_slice(body);
    matches!(take(&mut framed), Ok(Some(frame)) if is_control(&frame))
}

fn is_control(frame: &RawFrame) -> bool {
    let Ok(control) = Control::decode(frame) else { return false };
    let mut again = BytesMut::from(&control.encode()[..]);
    let again = take(&mut again).expect("what is written can be read").expect("and is whole");
    assert_eq!(Control::decode(&again).expect("what is written can be read"), control);
    true
}

/// The body of a frame of events.
pub(crate) fn batch(body: &[u8]) -> bool {
    let Ok(batch) = BatchRef::parse(body, Lanes::default()) else { return false };
    let mut records = 0;
    for (sequence, record) in batch.records(batch.first) {
        records += 1;
        let Ok(record) = record else { return false };
        assert!((batch.first..batch.next()).contains(&sequence), "{sequence} is none of its batch");
        let Ok(record) = record else { continue };
        let bytes = match record.target {
            Target::Key(key) => key.len(),
            Target::Keys(keys) | Target::MoreKeys(keys) => keys.iter().map(<[u8]>::len).sum(),
            Target::Tag(text) => text.len(),
            Target::Prefix(text) => text.len(),
            Target::All => 0,
        };
        let metadata: usize = record.metadata.iter().map(|(name, text)| name.len() + text.len()).sum();
        assert!(bytes + metadata <= body.len(), "more than there was");
        let _ = record.is_counted(batch.lane);
    }
    assert_eq!(records, batch.count, "a batch has as many records as it says");
    true
}

/// An encoded key.
pub(crate) fn key(bytes: &[u8]) -> bool {
    let decoded: Result<String, _> = codec::decode(bytes);
    let _: Result<(u64, String, Option<i32>), _> = codec::decode(bytes);
    decoded.is_ok_and(|text| text.len() <= bytes.len())
}
