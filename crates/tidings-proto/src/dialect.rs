//! How other releases speak, for tests of clusters of several: with the feature `dialects`, which nothing that is shipped
//! turns on, a process can say once for which release it passes. What it says and reads differs then; how it works does not.

use std::sync::OnceLock;

use bytes::{Bytes, BytesMut};

use crate::batch::Batch;
use crate::frame::{Control, Hello, PROTOCOL_VERSION, PROTOCOLS};
use crate::varint::Reader;

/// A release other than this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// An earlier one. It knows no frames that may be ignored, neither asks nor answers questions, and cannot read
    /// records with more flags.
    Older,
    /// A later one. Frames of a type that is unknown here go before all others that are not events, every sixteenth
    /// change is a record of a kind that is unknown here, and its canaries are of another one, which may be ignored.
    Newer,
    /// One that has given this release's protocol up.
    Foreign,
}

/// Of so many changes in a lane of a [`Dialect::Newer`] one is told by a record of [`NEWER_CHANGE`]. Each has others fence
/// the lane: of more, nothing would stay cached that could be stale.
const NEWER_EVERY: u64 = 16;

/// Kinds of records that no release has given a meaning: a change, and one that may be ignored.
const NEWER_CHANGE: u8 = 13;
const NEWER_REMARK: u8 = 12;

const KIND: u8 = 0x0f;
const IGNORABLE: u8 = 0x10;
const CANARY: u8 = 0x0f | IGNORABLE;

/// Kinds of changes: inserted, updated, deleted, cleared.
const CHANGES: std::ops::RangeInclusive<u8> = 1..=4;

/// A frame of a later release: of three bytes, and of a type that may be ignored.
const NEWER_FRAME: [u8; 9] = [PROTOCOL_VERSION, 200, 3, 0, 0, 0, b'n', b'e', b'w'];

/// Types of frames from here on may be ignored.
const IGNORABLE_FRAMES: u8 = 128;

static SPOKEN: OnceLock<Dialect> = OnceLock::new();

/// Has this process pass for another release from now on.
///
/// # Panics
/// If it passes for one already.
pub fn speak(dialect: Dialect) {
    assert!(SPOKEN.set(dialect).is_ok(), "a process passes for one release");
}

fn spoken() -> Option<Dialect> {
    SPOKEN.get().copied()
}

/// Whether the release knows a type of frame.
pub(crate) fn knows_frame(kind: u8) -> bool {
    kind < IGNORABLE_FRAMES || spoken() != Some(Dialect::Older)
}

/// Whether it can read records with more flags.
pub(crate) fn knows_more_flags() -> bool {
    spoken() != Some(Dialect::Older)
}

/// The bytes of a frame that this release writes so.
pub(crate) fn say(control: &Control, written: fn(&Control) -> Vec<u8>) -> Vec<u8> {
    match spoken() {
        None => written(control),
        Some(dialect) => say_as(dialect, control, written),
    }
}

fn say_as(dialect: Dialect, control: &Control, written: fn(&Control) -> Vec<u8>) -> Vec<u8> {
    let protocols = match dialect {
        Dialect::Older => (PROTOCOL_VERSION - 1, PROTOCOL_VERSION),
        Dialect::Newer => (PROTOCOLS.0, PROTOCOLS.1 + 1),
        Dialect::Foreign => (PROTOCOLS.1 + 1, PROTOCOLS.1 + 1),
    };
    let said = match control {
        Control::Hello(hello) => written(&Control::Hello(Hello { protocols, ..hello.clone() })),
        control if dialect == Dialect::Older && control.kind() as u8 >= IGNORABLE_FRAMES => {
            return Vec::new();
        }
        control => written(control),
    };
    if dialect == Dialect::Newer { [&NEWER_FRAME[..], &said].concat() } else { said }
}

/// Tells records as the release would.
pub(crate) fn say_records(batch: &mut Batch) {
    if spoken() == Some(Dialect::Newer) {
        batch.records = newer(batch.first, &batch.records);
    }
}

/// Depends on nothing but the records and their positions: every peer is told the same, however often.
fn newer(first: u64, records: &[u8]) -> Bytes {
    let mut said = BytesMut::from(records);
    let mut reader = Reader(records);
    let mut sequence = first;
    while let Ok(record) = reader.block() {
        let at = records.len() - reader.0.len() - record.len();
        let kind = record[0];
        let changed = CHANGES.contains(&(kind & KIND)) && sequence.is_multiple_of(NEWER_EVERY);
        if changed {
            said[at] = kind & !(KIND | IGNORABLE) | NEWER_CHANGE;
        } else if kind & (KIND | IGNORABLE) == CANARY {
            said[at] = kind & !KIND | NEWER_REMARK;
        }
        sequence += 1;
    }
    said.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EventKind, Operation};
    use crate::frame::{FrameType, take};
    use crate::hash::CacheId;
    use crate::id::{Lanes, Slot};
    use crate::log::{ChangeLog, Cursor, Read, Retention};
    use crate::record::{BatchRef, Draft, DraftTarget, Opaque, Parts};

    #[test]
    fn what_an_older_release_does_not_know_it_does_not_say() {
        let written = Control::Caches(vec!["users".to_owned()]).encode();
        assert!(!written.is_empty());
        assert!(say_as(Dialect::Older, &Control::Caches(Vec::new()), |_| written_anyway()).is_empty());
        assert_eq!(say_as(Dialect::Older, &Control::Ack(1), |_| written_anyway()), written_anyway());
    }

    fn written_anyway() -> Vec<u8> {
        vec![7]
    }

    #[test]
    fn what_a_newer_release_says_more_is_passed_over_here() {
        let said = say_as(Dialect::Newer, &Control::Ack(5), Control::encode);
        assert!(said.len() > Control::Ack(5).encode().len());
        let mut buffer = BytesMut::from(&said[..]);
        let frame = take(&mut buffer).unwrap().unwrap();
        assert_eq!((frame.kind, Control::decode(&frame).unwrap()), (FrameType::Ack, Control::Ack(5)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn now_and_then_a_change_of_a_newer_release_is_of_a_kind_that_is_unknown_here() {
        let lanes = Lanes::new(1).unwrap();
        let log = ChangeLog::new(lanes, Retention::default());
        let appended = log.append_to_all(7, &Draft::canary(), || {}).unwrap();
        for _ in 0..NEWER_EVERY {
            let parts = Parts {
                kind: EventKind::Deleted,
                operation: Operation::Remove,
                ignorable: false,
                cache: CacheId(9),
                slot: Slot::new(0).unwrap(),
                version: None,
                metadata: &[],
                value: None,
                target: DraftTarget::Key(b"key"),
            };
            let _ = log.append(Slot::new(0).unwrap(), 7, &Draft::new(parts).unwrap()).unwrap();
        }
        let (mut cursor, mut batches) = (Cursor { next: appended[0].sequence }, Vec::new());
        assert_eq!(log.read(lanes.lane(0).unwrap(), &mut cursor, 1 << 12, &mut batches), Read::Some);
        let mut body = batches[0].head().to_vec();
        body.extend_from_slice(&newer(batches[0].first, &batches[0].records));
        let batch = BatchRef::parse(&body, lanes).unwrap();
        let said: Vec<_> = batch.records(1).map(|(_, record)| record.unwrap()).collect();
        let opaque =
            |ignorable, cache, kind| Opaque { ignorable, cache: CacheId(cache), unknown_kind: Some(kind) };
        assert_eq!(said[0], Err(opaque(true, 0, NEWER_REMARK)), "a canary");
        let changes = NEWER_EVERY as usize;
        assert_eq!(said[changes - 1], Err(opaque(false, 9, NEWER_CHANGE)));
        assert_eq!(said.iter().filter(|record| record.is_ok()).count(), changes - 1, "{said:?}");
    }
}
