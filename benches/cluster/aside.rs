//! The cache beside a bus that carries messages and nothing else: a service that tells its replicas of changes has one
//! in each of them, stores in it before it publishes, and evicts from it what it hears of.

use bytes::Bytes;
use moka::sync::Cache;

use crate::message::{CAPACITY_BESIDE_RESIDENT, value, write_key};
use crate::setup::{Pace, Setup, System};

#[derive(Debug)]
pub(crate) struct Aside {
    cache: Cache<String, Bytes>,
    key: String,
    value: Bytes,
}

impl Aside {
    /// For a reference at a pace, whose figures are from put to eviction. In a burst a bus delivers and does nothing
    /// else, and a node of tidings has a cache of its own.
    pub(crate) fn beside(setup: &Setup) -> Option<Self> {
        match setup.system {
            System::Tidings | System::TidingsResident | System::TidingsThread | System::Harness => None,
            _ if setup.pace == Pace::Burst => None,
            _ => {
                let cache = Cache::new(2 * setup.resident + CAPACITY_BESIDE_RESIDENT);
                Some(Self { cache, key: String::new(), value: value() })
            }
        }
    }

    /// Holds the keys of the first messages.
    pub(crate) fn filled(mut self, setup: &Setup) -> Self {
        (0..setup.resident).for_each(|sequence| self.put(sequence));
        self.cache.run_pending_tasks();
        self
    }

    /// Stores the value of a message's key.
    pub(crate) fn put(&mut self, sequence: u64) {
        write_key(sequence, &mut self.key);
        self.cache.insert(self.key.clone(), self.value.clone());
    }

    /// Evicts a message's key.
    pub(crate) fn evict(&mut self, sequence: u64) {
        write_key(sequence, &mut self.key);
        self.cache.invalidate(&self.key);
    }
}
