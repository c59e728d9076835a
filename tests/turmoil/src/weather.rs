//! What becomes of packets on their way, and a fingerprint of all that were sent.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use crate::chance::{Chance, mix};

#[derive(Debug)]
pub(crate) struct Weather {
    chance: Chance,
    /// Of a thousand packets.
    pub(crate) lost: u64,
    /// Of a thousand packets.
    pub(crate) doubled: u64,
    packets: u64,
    fingerprint: u64,
}

impl Weather {
    pub(crate) fn new(seed: u64) -> Self {
        Self { chance: Chance::new(seed), lost: 0, doubled: 0, packets: 0, fingerprint: 0 }
    }

    pub(crate) fn fair(&mut self) {
        (self.lost, self.doubled) = (0, 0);
    }

    /// How many packets were sent, and what they were like: when, from whom to whom, and of what length.
    pub(crate) fn trace(&self) -> (u64, u64) {
        (self.packets, self.fingerprint)
    }

    /// How often this packet arrives.
    pub(crate) fn copies(&mut self, at: Duration, way: (SocketAddr, SocketAddr), length: usize) -> usize {
        self.packets += 1;
        let mut hasher = DefaultHasher::new();
        (at, way, length).hash(&mut hasher);
        self.fingerprint = mix(self.fingerprint ^ hasher.finish());
        if self.chance.permille(self.lost) {
            return 0;
        }
        1 + usize::from(self.chance.permille(self.doubled))
    }
}
