//! Records as the log hands them out.

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

use crate::hlc::Stamp;
use crate::id::{LaneId, Sequence};
use crate::varint::{Extend8, Reader, put_varint};

/// Consecutive records of one lane, as the log hands them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Which lane.
    pub lane: LaneId,
    /// Sequence of the first record.
    pub first: Sequence,
    /// How many records there are.
    pub count: u32,
    /// What the records' stamps are relative to.
    pub base: Stamp,
    /// The records.
    pub records: Bytes,
}

impl Batch {
    /// The batch's bytes before its records, for the body of an `Events` frame.
    #[must_use]
    pub fn head(&self) -> SmallVec<[u8; 32]> {
        let mut out = SmallVec::new();
        out.push(self.lane.number());
        put_varint(&mut out, self.first);
        put_varint(&mut out, u64::from(self.count));
        out.put(&self.base.0.to_le_bytes());
        out
    }

    /// The sequence after the last record.
    #[must_use]
    pub fn next(&self) -> Sequence {
        self.first + Sequence::from(self.count)
    }

    /// What of it begins at `from`, which is one of its sequences. Copies nothing.
    ///
    /// # Panics
    /// If the framing of its records is not sound.
    #[must_use]
    pub(crate) fn starting_at(mut self, from: Sequence) -> Self {
        let skipped = from - self.first;
        let mut reader = Reader(&self.records);
        for _ in 0..skipped {
            reader.block().expect("its records were written or applied here");
        }
        self.records.advance(self.records.len() - reader.0.len());
        Self { first: from, count: self.count - skipped as u32, ..self }
    }
}
