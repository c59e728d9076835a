//! Keys as text.

use tidings_proto::codec;

use crate::core::Core;
use crate::key::{Key, KeyRef};

impl<K: Key, V: Clone + Send + Sync + 'static> Core<K, V> {
    /// Whether keys are strings.
    pub(crate) fn has_text(&self) -> bool {
        std::any::TypeId::of::<K>() == std::any::TypeId::of::<String>()
    }

    /// The text of a key that is a string.
    pub(crate) fn text<'k>(&self, key: KeyRef<'k>) -> Option<&'k [u8]> {
        self.has_text().then(|| codec::text_of(key.bytes))
    }

    /// A key that is a string.
    pub(crate) fn string_key(&self, bytes: &[u8]) -> Option<String> {
        if self.has_text() { codec::decode(bytes).ok() } else { None }
    }

    pub(crate) fn key_text(&self, bytes: &[u8]) -> String {
        let hexadecimal = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.string_key(bytes).unwrap_or_else(hexadecimal)
    }
}
