//! The canary: a record that changes nothing, by which a node that starts learns that what it logs is applied.

use smallvec::SmallVec;

use super::{Draft, IGNORABLE, Opaque};

/// The last kind that four bits can say: no change will have it. Every release passes over it, since it is ignorable.
const KIND: u8 = 15;

/// Of no cache and no slot in particular, everything there; nothing reads these.
const TARGET_ALL: u8 = 4 << 5;

impl Draft<'static> {
    /// A record that every release applies by passing over it.
    #[must_use]
    pub fn canary() -> Self {
        let head = u64::from(KIND | IGNORABLE | TARGET_ALL);
        Self { head, middle: SmallVec::new(), target: &[] }
    }
}

impl Opaque {
    /// Whether it is a canary, of which there is nothing to understand.
    #[must_use]
    pub fn is_canary(&self) -> bool {
        self.ignorable && self.unknown_kind == Some(KIND)
    }
}

#[cfg(test)]
mod tests {
    use crate::event::EventKind;
    use crate::id::{LaneId, Lanes};
    use crate::log::{ChangeLog, Cursor, Read, Retention};
    use crate::record::{BatchRef, Draft, Opaque};

    #[test]
    fn a_canary_may_be_passed_over_by_every_release_and_has_golden_bytes() {
        let lanes = Lanes::new(1).unwrap();
        let log = ChangeLog::new(lanes, Retention::default());
        let appended = log.append_to_all(7, &Draft::canary(), || {}).unwrap();
        let (mut cursor, mut batches) = (Cursor { next: appended[0].sequence }, Vec::new());
        let lane: LaneId = lanes.lane(0).unwrap();
        assert_eq!(log.read(lane, &mut cursor, 1 << 10, &mut batches), Read::Some);
        // length | kind 15, ignorable, everything | cache | slot | operation | stamp
        assert_eq!(batches[0].records[..], [8, 0x9f, 0, 0, 0, 0, 0, 0, 0]);
        let body = [&batches[0].head()[..], &batches[0].records].concat();
        let batch = BatchRef::parse(&body, lanes).unwrap();
        let records: Vec<_> = batch.records(1).collect();
        let [(1, Ok(Err(opaque)))] = records[..] else { panic!("{records:?}") };
        assert!(opaque.is_canary() && opaque.ignorable && opaque.unknown_kind.is_some());
        assert!(!Opaque { ignorable: false, ..opaque }.is_canary());
        assert_eq!(EventKind::of(super::KIND), None, "no change has this kind");
    }
}
