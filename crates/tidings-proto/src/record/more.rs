//! What few records say, in flags of their own: that a write may still land; and the schema of what its writer
//! caches, so that nobody takes versions or values of another one for its own. A release that does not know a flag
//! fences what the record could have named.

use smallvec::SmallVec;

use super::{Draft, HAS_MORE, HEAD_BYTES, RECORD_BYTES_MAX, TooLarge, within};
use crate::varint::{Extend8, Reader, Unsound, VARINT_BYTES_MAX, put_varint};

/// It is of a write that may still land.
const UNCERTAIN: u8 = 1 << 0;
/// The schema follows.
const HAS_SCHEMA: u8 = 1 << 1;

/// Where the head has its flags, in bits.
const FLAGS_AT: usize = 8 * (HEAD_BYTES - 1);

/// What the flags announce.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct More {
    pub(super) uncertain: bool,
    pub(super) schema: u32,
}

/// Reads the flags and what they announce.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<More, Unsound> {
    #[cfg(feature = "dialects")]
    if !crate::dialect::knows_more_flags() {
        return Err(Unsound("more flags"));
    }
    let flags = reader.byte()?;
    if flags & !(UNCERTAIN | HAS_SCHEMA) != 0 {
        return Err(Unsound("reserved flag"));
    }
    let schema = if flags & HAS_SCHEMA != 0 { reader.varint()? } else { 0 };
    let schema = u32::try_from(schema).map_err(|_| Unsound("schema"))?;
    Ok(More { uncertain: flags & UNCERTAIN != 0, schema })
}

impl Draft<'_> {
    /// Says that the change is of a write that may still land.
    #[must_use]
    pub fn uncertain(mut self) -> Self {
        self.set_more(UNCERTAIN);
        self
    }

    /// States the schema of what the writer caches; 0 states none. For records with a version or a value: of any other,
    /// receivers use nothing that depends on it. To be stated once.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn with_schema(mut self, schema: u32) -> Result<Self, TooLarge> {
        if schema != 0 {
            self.set_more(HAS_SCHEMA);
            let mut stated = SmallVec::<[u8; 16]>::from_slice(&self.middle[..1]);
            put_varint(&mut stated, u64::from(schema));
            stated.put(&self.middle[1..]);
            self.middle = stated;
            let bytes = HEAD_BYTES + self.middle.len() + self.target.len();
            within("record", bytes, RECORD_BYTES_MAX - VARINT_BYTES_MAX)?;
        }
        Ok(self)
    }

    fn set_more(&mut self, flag: u8) {
        let more = u64::from(HAS_MORE) << FLAGS_AT;
        if self.head & more == 0 {
            self.head |= more;
            self.middle.insert(0, 0);
        }
        self.middle[0] |= flag;
    }
}

#[cfg(test)]
#[path = "more_tests.rs"]
mod tests;
