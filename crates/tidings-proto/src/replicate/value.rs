//! A value as records carry it where values travel.
//!
//! ```text
//! value := time to live in ms, 0 for none of its own: varint
//!        | count of tags: varint, their hashes: u64 le each
//!        | the encoded value: the remaining bytes
//! ```

use smallvec::SmallVec;

use crate::record::{KEY_BYTES_MAX, METADATA_BYTES_MAX, RECORD_BYTES_MAX};
use crate::varint::{Extend8, Reader, Unsound, put_varint};

/// Most tags that travel with a value.
pub const TAGS_MAX: usize = 16;

/// Longest value that travels with what belongs to it, in bytes: with a key and metadata of any length it fits a record,
/// and an answer of [`super::copy`].
pub const VALUE_BYTES_MAX: usize = RECORD_BYTES_MAX - METADATA_BYTES_MAX - KEY_BYTES_MAX - 256;

/// A value with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Travelling<'a> {
    /// How long it lives from when it is received, in milliseconds; 0 leaves that to its cache.
    pub ttl_ms: u64,
    /// The hashes of its tags.
    pub tags: SmallVec<[u64; 2]>,
    /// Its encoding.
    pub bytes: &'a [u8],
}

impl<'a> Travelling<'a> {
    /// Appends it.
    pub fn write(&self, out: &mut impl Extend8) {
        put_varint(out, self.ttl_ms);
        put_varint(out, self.tags.len() as u64);
        self.tags.iter().for_each(|tag| out.put(&tag.to_le_bytes()));
        out.put(self.bytes);
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Unsound`] if it is cut short or has more than [`TAGS_MAX`] tags.
    pub fn read(value: &'a [u8]) -> Result<Self, Unsound> {
        let mut reader = Reader(value);
        let ttl_ms = reader.varint()?;
        let count = reader.varint()?;
        if count > TAGS_MAX as u64 {
            return Err(Unsound("count of tags"));
        }
        let tags = (0..count).map(|_| Ok(u64::from_le_bytes(reader.array()?)));
        let tags = tags.collect::<Result<_, Unsound>>()?;
        Ok(Self { ttl_ms, tags, bytes: reader.0 })
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_is_read_back_as_it_was_written(
            ttl_ms: u64,
            tags in prop::collection::vec(any::<u64>(), 0..=TAGS_MAX),
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let value = Travelling { ttl_ms, tags: tags.into(), bytes: &bytes };
            let mut out = BytesMut::new();
            value.write(&mut out);
            prop_assert_eq!(Travelling::read(&out), Ok(value));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Travelling::read(&bytes);
        }
    }

    #[test]
    fn bytes_of_a_value_are_the_same_in_every_release() {
        let value = Travelling { ttl_ms: 300, tags: [1, 2].into_iter().collect(), bytes: b"VAL" };
        let mut out = BytesMut::new();
        value.write(&mut out);
        assert_eq!(out[..], b"\xac\x02\x02\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0VAL"[..]);
    }

    #[test]
    fn more_tags_than_an_entry_has_are_refused() {
        let many = [&[0, TAGS_MAX as u8 + 1][..], &[0; 8 * (TAGS_MAX + 1)]].concat();
        assert_eq!(Travelling::read(&many), Err(Unsound("count of tags")));
    }
}
