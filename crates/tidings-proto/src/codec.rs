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
    let (value, used) = bincode::serde::decode_from_slice(bytes, config()).map_err(CodecError::Decode)?;
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
    fn text_of_an_encoded_string_is_that_string() {
        for length in [0, 1, 250, 251, 252, 4_096, 70_000] {
            let text = "x".repeat(length);
            assert_eq!(text_of(&encode(&text).unwrap()), text.as_bytes(), "{length}");
        }
    }
}
