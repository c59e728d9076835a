//! The only place that knows bincode. Replacing it is a change of this file and of the protocol version.
//!
//! bincode's limit bounds decoded bytes but neither sequences of zero-sized elements nor recursion, and
//! bytes left over are not an error to it. So no wire type here holds either, and both entry points check
//! what was consumed.

use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes that one decoded control frame or key may claim. Bounds what a peer can make this node allocate; what
/// is encoded is bounded by its types.
pub const DECODED_BYTES_MAX: usize = 1 << 20;

/// A value claims at most so many bytes for each that it is decoded from: numbers of up to sixteen are written as one.
const CLAIMED_PER_BYTE: usize = 16;

/// Up to these lengths, in bytes, values may claim only what they can hold: most keys, and most records and frames.
const SHORT_BYTES: usize = 256;
const MEDIUM_BYTES: usize = 4 << 10;

/// A value could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The type refused to be serialised.
    #[error("cannot encode")]
    Encode(#[source] bincode::error::EncodeError),
    /// The bytes are not a value of this type.
    #[error("cannot decode")]
    Decode(#[source] bincode::error::DecodeError),
    /// A value was decoded, and bytes were left over.
    #[error("{0} bytes left over after the value")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<DECODED_BYTES_MAX>()
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    let config = bincode::config::standard().with_limit::<LIMIT>();
    bincode::serde::decode_from_slice(bytes, config).map_err(CodecError::Decode)
}

/// Appends the encoding of a value.
///
/// # Errors
/// [`CodecError::Encode`].
pub fn encode_into<T: Serialize + ?Sized>(value: &T, out: &mut impl Write) -> Result<(), CodecError> {
    bincode::serde::encode_into_std_write(value, out, config()).map_err(CodecError::Encode)?;
    Ok(())
}

/// The encoding of a value.
///
/// # Errors
/// [`CodecError::Encode`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    encode_into(value, &mut out)?;
    Ok(out)
}

/// The value that these bytes, all of them, encode.
///
/// # Errors
/// [`CodecError::Decode`] or [`CodecError::Trailing`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    // bincode makes room for a text as soon as its length is read: no more than there could be of it.
    let (value, used) = match bytes.len() {
        length if length <= SHORT_BYTES => decode_within::<T, { SHORT_BYTES * CLAIMED_PER_BYTE }>(bytes)?,
        length if length <= MEDIUM_BYTES => decode_within::<T, { MEDIUM_BYTES * CLAIMED_PER_BYTE }>(bytes)?,
        _ => decode_within::<T, DECODED_BYTES_MAX>(bytes)?,
    };
    if used == bytes.len() { Ok(value) } else { Err(CodecError::Trailing(bytes.len() - used)) }
}

/// The text of an encoded string, as bytes: what follows its length. Of what encodes no string it means nothing.
#[must_use]
pub fn text_of(encoded: &[u8]) -> &[u8] {
    // Up to 250 the first byte is the length, from there on it says how many bytes follow.
    let length = match encoded.first() {
        Some(251) => 3,
        Some(252) => 5,
        Some(253) => 9,
        _ => 1,
    };
    encoded.get(length..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftover_bytes_are_refused() {
        let mut bytes = encode("key").unwrap();
        bytes.push(0);
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::Trailing(1))));
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_is_refused_before_it_is_allocated() {
        let claim = encode(&(1_u64 << 40)).unwrap();
        assert!(matches!(decode::<Vec<u8>>(&claim), Err(CodecError::Decode(_))));
    }

    #[test]
    fn short_values_may_claim_no_more_than_they_can_hold() {
        for (length, most) in [(SHORT_BYTES, 4 << 10), (MEDIUM_BYTES, 64 << 10)] {
            let mut bytes = encode(&(most as u64 + 1)).unwrap();
            bytes.resize(length, b'x');
            let refused = decode::<String>(&bytes);
            let Err(CodecError::Decode(bincode::error::DecodeError::LimitExceeded)) = refused else {
                panic!("room was made for a text that is not there: {refused:?}")
            };
        }
    }

    #[test]
    fn what_takes_the_most_room_for_its_length_is_decoded_at_every_length() {
        for count in (0..600).chain(3_900..4_200).chain([60_000]) {
            let numbers = vec![0_u64; count];
            assert_eq!(decode::<Vec<u64>>(&encode(&numbers).unwrap()).unwrap(), numbers);
            let (small, large) = (vec![Some(1_u32); count / 2], vec![u64::MAX; count / 9]);
            let both = encode(&(&small, &large)).unwrap();
            assert_eq!(decode::<(Vec<Option<u32>>, Vec<u64>)>(&both).unwrap(), (small, large));
            let text = "x".repeat(count);
            assert_eq!(decode::<String>(&encode(&text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn text_of_an_encoded_string_is_that_string() {
        for length in [0, 1, 250, 251, 252, 4_096, 70_000] {
            let text = "x".repeat(length);
            assert_eq!(text_of(&encode(&text).unwrap()), text.as_bytes(), "{length}");
        }
    }
}
