//! Keys as the cache stores them: encoded, with their hash, so that a peer's invalidation needs no decoding.

use std::hash::{BuildHasher, Hash, Hasher};
use std::io::{self, Write};
use std::num::NonZeroU8;

use bytes::Bytes;
use equivalent::Equivalent;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidings_proto::codec::{self, CodecError};
use tidings_proto::hash::{CacheId, key_hash};
use tidings_proto::id::Slot;
use tidings_proto::record::KEY_BYTES_MAX;
use tidings_proto::replicate::{ReplicaKey, Sought};

/// What can be a key. Two keys are the same key if they encode equally.
pub trait Key: Serialize + DeserializeOwned + Send + Sync + 'static {}

impl<K: Serialize + DeserializeOwned + Send + Sync + 'static> Key for K {}

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It does not encode.
    #[error("key cannot be encoded")]
    Encode(#[source] CodecError),
    /// It is too long.
    #[error("key of {0} bytes exceeds {KEY_BYTES_MAX}")]
    TooLong(usize),
}

/// Number of locks that a cache's keys are spread over. More than any machine's cores that write one cache at once.
pub(crate) const SHARDS: usize = 64;

/// Longest key, in bytes, that is encoded without an allocation.
const STACK_BYTES: usize = 64;

/// Copies a key, which mostly has 16 to 32 bytes: those without a call.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    match (from.first_chunk::<16>(), from.last_chunk::<16>()) {
        (Some(head), Some(tail)) if from.len() <= 32 => {
            to[..16].copy_from_slice(head);
            to[from.len() - 16..].copy_from_slice(tail);
        }
        _ => to.copy_from_slice(from),
    }
}

/// An encoded key on the stack, with its hash.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    hash: u64,
    length: usize,
    short: [u8; STACK_BYTES],
    /// All of it, once it is longer than that.
    long: Vec<u8>,
}

impl Encoded {
    pub(crate) fn empty() -> Self {
        Self { hash: 0, length: 0, short: [0; STACK_BYTES], long: Vec::new() }
    }

    pub(crate) fn new<K: Serialize + ?Sized>(cache: CacheId, key: &K) -> Result<Self, KeyError> {
        let mut encoded = Self::empty();
        encoded.set(cache, key)?;
        Ok(encoded)
    }

    /// Encodes a key into an empty one, in place, and returns nothing: on the way of every hit, a move of what was just
    /// written would stall.
    #[inline]
    pub(crate) fn set<K: Serialize + ?Sized>(&mut self, cache: CacheId, key: &K) -> Result<(), KeyError> {
        codec::encode_into(key, self).map_err(KeyError::Encode)?;
        let length = self.bytes().len();
        if length > KEY_BYTES_MAX {
            return Err(KeyError::TooLong(length));
        }
        self.hash = key_hash(cache, self.bytes());
        Ok(())
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.length] } else { &self.long }
    }

    #[inline]
    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { hash: self.hash, bytes: self.bytes() }
    }
}

impl Write for Encoded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.short.get_mut(self.length..self.length + bytes.len()) {
            Some(room) if self.long.is_empty() => {
                copy(room, bytes);
                self.length += bytes.len();
            }
            _ => {
                if self.long.is_empty() {
                    self.long.extend_from_slice(&self.short[..self.length]);
                }
                self.long.extend_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A borrowed encoded key with its hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyRef<'a> {
    pub(crate) hash: u64,
    pub(crate) bytes: &'a [u8],
}

impl<'a> KeyRef<'a> {
    pub(crate) fn of(cache: CacheId, bytes: &'a [u8]) -> Self {
        Self { hash: key_hash(cache, bytes), bytes }
    }

    pub(crate) fn slot(self) -> Slot {
        Slot::of_hash(self.hash)
    }

    pub(crate) fn shard(self) -> usize {
        self.hash as usize % SHARDS
    }

    pub(crate) fn stored(self) -> StoredKey {
        StoredKey { hash: self.hash, bytes: StoredBytes::of(self.bytes) }
    }

    pub(crate) fn sought(self) -> Sought<'a> {
        Sought { hash: self.hash, bytes: self.bytes }
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.bytes)
    }
}

/// Longest key, in bytes, that is stored without an allocation of its own: a UUID as text fits, and a key with its
/// hash fills 48 bytes.
const INLINE_BYTES: usize = 39;

/// The bytes stand first, where they are aligned, and the length has no zero, so that it says too which of
/// [`StoredBytes`] it is.
#[derive(Debug)]
#[repr(C)]
struct Inline {
    bytes: [u8; INLINE_BYTES],
    /// One more than there are bytes.
    end: NonZeroU8,
}

#[derive(Debug)]
enum StoredBytes {
    Inline(Inline),
    Boxed(Box<[u8]>),
}

impl StoredBytes {
    #[inline]
    fn of(key: &[u8]) -> Self {
        let end = NonZeroU8::MIN.saturating_add(u8::try_from(key.len()).unwrap_or(u8::MAX));
        match padded(key) {
            Some(bytes) => Self::Inline(Inline { bytes, end }),
            None => Self::Boxed(key.into()),
        }
    }
}

/// A short key with zeros behind it. What was written in pieces cannot be read at once, so those of 16 to 32 bytes,
/// which most have, are put together in registers.
#[inline]
fn padded(key: &[u8]) -> Option<[u8; INLINE_BYTES]> {
    let mut bytes = [0; INLINE_BYTES];
    match (key.first_chunk::<16>(), key.last_chunk::<16>()) {
        (Some(head), Some(tail)) if key.len() <= 32 => {
            let rest = u128::from_le_bytes(*tail).checked_shr(8 * (32 - key.len()) as u32).unwrap_or(0);
            bytes[..16].copy_from_slice(head);
            bytes[16..32].copy_from_slice(&rest.to_le_bytes());
        }
        _ => bytes.get_mut(..key.len())?.copy_from_slice(key),
    }
    Some(bytes)
}

impl std::ops::Deref for StoredBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline(Inline { bytes, end }) => &bytes[..usize::from(end.get() - 1)],
            Self::Boxed(bytes) => bytes,
        }
    }
}

/// An owned encoded key with its hash, as the table holds it.
#[derive(Debug)]
pub(crate) struct StoredKey {
    hash: u64,
    bytes: StoredBytes,
}

const _: () = assert!(size_of::<StoredKey>() == 48, "a key with its hash fills 48 bytes");

impl StoredKey {
    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { hash: self.hash, bytes: &self.bytes }
    }
}

impl ReplicaKey for StoredKey {
    fn of(key: Sought<'_>) -> Self {
        KeyRef { hash: key.hash, bytes: key.bytes }.stored()
    }

    fn sought(&self) -> Sought<'_> {
        self.borrowed().sought()
    }
}

impl PartialEq for StoredKey {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for StoredKey {}

impl Hash for StoredKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<StoredKey> for KeyRef<'_> {
    fn equivalent(&self, key: &StoredKey) -> bool {
        self.hash == key.hash && *self.bytes == *key.bytes
    }
}

/// Passes on the hash that a key carries. XXH3 spreads all 64 bits, so that no second round is needed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CarriedHash(u64);

impl Hasher for CarriedHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys hash by their carried hash alone");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl BuildHasher for CarriedHash {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_length_is_stored_as_it_is() {
        let text: Vec<u8> = (1..=100).collect();
        for length in 0..=text.len() {
            let key = KeyRef::of(CacheId(1), &text[..length]);
            let stored = key.stored();
            assert_eq!(stored.borrowed(), key);
            let inline = matches!(stored.bytes, StoredBytes::Inline(_));
            assert_eq!(inline, length <= INLINE_BYTES, "{length} bytes");
        }
    }
}
