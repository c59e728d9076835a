//! Keys as the cache stores them: encoded, with their hash, so that a peer's invalidation needs no decoding.

use std::hash::{BuildHasher, Hash, Hasher};

use bytes::Bytes;
use equivalent::Equivalent;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;
use tidings_proto::codec::{self, CodecError};
use tidings_proto::hash::{CacheId, key_hash};
use tidings_proto::id::Slot;
use tidings_proto::record::KEY_BYTES_MAX;

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

/// An encoded key on the stack, with its hash.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) bytes: SmallVec<[u8; 64]>,
    pub(crate) hash: u64,
}

impl Encoded {
    pub(crate) fn new<K: Serialize + ?Sized>(cache: CacheId, key: &K) -> Result<Self, KeyError> {
        let mut bytes = SmallVec::new();
        codec::encode_into(key, &mut bytes).map_err(KeyError::Encode)?;
        if bytes.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong(bytes.len()));
        }
        let hash = key_hash(cache, &bytes);
        Ok(Self { bytes, hash })
    }

    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { hash: self.hash, bytes: &self.bytes }
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
        StoredKey { hash: self.hash, bytes: self.bytes.into() }
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.bytes)
    }
}

/// An owned encoded key with its hash, as the table holds it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredKey {
    hash: u64,
    bytes: Box<[u8]>,
}

impl StoredKey {
    pub(crate) fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { hash: self.hash, bytes: &self.bytes }
    }
}

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
