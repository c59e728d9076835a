//! Values as they travel: encoded before any lock is taken, decoded before any is taken.

use std::time::Duration;

use bytes::BytesMut;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tidings_proto::codec::{self, CodecError};
use tidings_proto::record::{Record, TooLarge};
use tidings_proto::replicate::{Travelling, VALUE_BYTES_MAX};

use crate::core::Core;
use crate::key::Key;
use crate::tags::Tags;
use crate::write::{Change, Options, WriteError};

type Encode<V> = Box<dyn Fn(&V) -> Result<Vec<u8>, CodecError> + Send + Sync>;
type Decode<V> = Box<dyn Fn(&[u8]) -> Option<V> + Send + Sync>;

/// How a cache's values are encoded.
pub(crate) struct ValueCodec<V> {
    encode: Encode<V>,
    decode: Decode<V>,
}

impl<V> ValueCodec<V> {
    /// As keys are.
    pub(crate) fn of_serde() -> Self
    where
        V: Serialize + DeserializeOwned,
    {
        Self {
            encode: Box::new(|value| codec::encode(value)),
            decode: Box::new(|bytes| codec::decode(bytes).ok()),
        }
    }

    /// By these functions.
    pub(crate) fn new(
        encode: impl Fn(&V) -> Vec<u8> + Send + Sync + 'static,
        decode: impl Fn(&[u8]) -> Option<V> + Send + Sync + 'static,
    ) -> Self {
        Self { encode: Box::new(move |value| Ok(encode(value))), decode: Box::new(decode) }
    }
}

/// What a peer's write leaves of a key.
pub(crate) enum Arrival<V> {
    Value {
        value: V,
        tags: Tags,
        ttl: Option<Duration>,
    },
    /// It removed the key, or what it stored cannot be read here.
    Nothing,
}

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// What a change sends along with its key, where values travel. Runs user code: call without any lock.
    pub(crate) fn travelling(
        &self,
        change: &Change<V>,
        options: &Options,
        tags: &Tags,
    ) -> Result<Option<BytesMut>, WriteError> {
        match change {
            Change::Put(value) if self.replicates() => Ok(Some(self.travels_as(value, options.ttl, tags)?)),
            _ => Ok(None),
        }
    }

    /// A value with what belongs to it, as it travels.
    pub(crate) fn travels_as(
        &self,
        value: &V,
        ttl: Option<Duration>,
        tags: &Tags,
    ) -> Result<BytesMut, WriteError> {
        let codec = self.codec.as_ref().expect("a cache whose values travel knows how they are encoded");
        let bytes = (codec.encode)(value).map_err(WriteError::Value)?;
        let ttl_ms = ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1));
        let mut out = BytesMut::with_capacity(bytes.len() + 8);
        Travelling { ttl_ms, tags: tags.hashes(), bytes: &bytes }.write(&mut out);
        match out.len() {
            length if length > VALUE_BYTES_MAX => {
                Err(TooLarge { what: "value", bytes: length, limit: VALUE_BYTES_MAX }.into())
            }
            _ => Ok(out),
        }
    }

    /// What a record leaves of its key. Runs user code: call without any lock.
    pub(crate) fn arrival(&self, record: &Record<'_>) -> Arrival<V> {
        record.value.map_or(Arrival::Nothing, |value| self.arrived(value, record.schema))
    }

    /// A value that has arrived. Runs user code: call without any lock.
    pub(crate) fn arrived(&self, value: &[u8], schema: u32) -> Arrival<V> {
        if schema != self.settings.schema {
            self.stats.other_schema.count();
            return Arrival::Nothing;
        }
        let codec = self.codec.as_ref().expect("a cache whose values travel knows how they are encoded");
        let read = Travelling::read(value).ok();
        let decoded = read.and_then(|read| Some((self.caught(|| (codec.decode)(read.bytes))??, read)));
        let Some((value, Travelling { ttl_ms, tags, .. })) = decoded else {
            self.stats.unreadable.count();
            return Arrival::Nothing;
        };
        let ttl = (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms));
        Arrival::Value { value, tags: Tags::of_hashes(&tags), ttl }
    }
}
