//! Records that state the schema of what their writer caches, so that nobody takes versions or values of another one
//! for its own. A release that does not know it fences what the record could have named.

use smallvec::SmallVec;

use super::{Draft, HEAD_BYTES, RECORD_BYTES_MAX};
use crate::event::EventKind;
use crate::hash::CacheId;
use crate::varint::{Extend8, Reader, Unsound, VARINT_BYTES_MAX, put_varint};

/// The kind of a record that states a schema: after the stamp come its kind and the schema.
pub(super) const STATED: u8 = 14;

/// A record that cannot be acted on, but can be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opaque {
    /// Whether its writer said that it may be ignored.
    pub ignorable: bool,
    /// In which cache.
    pub cache: CacheId,
    /// Whether its kind is unknown here; otherwise its body is broken.
    pub unknown_kind: bool,
}

/// A record would exceed a limit of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {bytes} bytes exceeds {limit}")]
pub struct TooLarge {
    /// What exceeds.
    pub what: &'static str,
    /// How large it is, in bytes.
    pub bytes: usize,
    /// How large it may be, in bytes.
    pub limit: usize,
}

pub(super) fn within(what: &'static str, bytes: usize, limit: usize) -> Result<(), TooLarge> {
    if bytes > limit { Err(TooLarge { what, bytes, limit }) } else { Ok(()) }
}

/// Reads kind and schema. `None` if the kind is unknown.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<Option<(EventKind, u32)>, Unsound> {
    let kind = reader.byte()?;
    let schema = u32::try_from(reader.varint()?).map_err(|_| Unsound("schema"))?;
    Ok(EventKind::of(kind).map(|kind| (kind, schema)))
}

impl Draft<'_> {
    /// States the schema of what the writer caches; 0 states none. For records with a version or a value: of any other,
    /// receivers use nothing that depends on it. Call once.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn with_schema(mut self, schema: u32) -> Result<Self, TooLarge> {
        if schema == 0 {
            return Ok(self);
        }
        let mut stated = SmallVec::<[u8; 16]>::new();
        stated.push((self.head & 0x0f) as u8);
        put_varint(&mut stated, u64::from(schema));
        stated.put(&self.middle);
        let bytes = HEAD_BYTES + stated.len() + self.target.len();
        within("record", bytes, RECORD_BYTES_MAX - VARINT_BYTES_MAX)?;
        self.head = self.head & !0x0f | u64::from(STATED);
        self.middle = stated;
        Ok(self)
    }

    /// Says what happened in a record that states a schema. Returns whether it does.
    pub(super) fn set_kind_that_follows(&mut self, kind: EventKind) -> bool {
        let states = (self.head & 0x0f) as u8 == STATED;
        if states {
            self.middle[0] = kind as u8;
        }
        states
    }
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
