//! The message that every system carries, and its receiver.

use anyhow::{Result, ensure};
use bytes::Bytes;
use tidings_benches::clock::now_ns;

use crate::aside::Aside;
use crate::credit::CreditSender;
use crate::setup::Line;

/// Length of a message on every reference.
pub(crate) const MESSAGE_BYTES: usize = 100;

/// Length of a key, in bytes, in every cache.
pub(crate) const KEY_BYTES: usize = 24;

/// What a cache may hold beside twice the keys that it is filled with, so that nothing is displaced.
pub(crate) const CAPACITY_BESIDE_RESIDENT: u64 = 1_000_000;

/// Name of the channel, subject or cache.
pub(crate) const TOPIC: &str = "tidings";

/// One change, as the publisher hands it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// Position, from 0, in everything this publisher ever sends.
    pub(crate) sequence: u64,
    /// Whether the time of its arrival is wanted.
    pub(crate) timed: bool,
    /// No message of this phase has a higher sequence.
    pub(crate) last: bool,
}

impl Message {
    pub(crate) fn bytes(&self) -> [u8; MESSAGE_BYTES] {
        let mut bytes = [b'x'; MESSAGE_BYTES];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8] = u8::from(self.timed);
        bytes[9] = u8::from(self.last);
        bytes
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        ensure!(bytes.len() == MESSAGE_BYTES, "a message of {} bytes", bytes.len());
        let sequence = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        Ok(Self { sequence, timed: bytes[8] == 1, last: bytes[9] == 1 })
    }
}

/// What every cache holds.
pub(crate) fn value() -> Bytes {
    Bytes::from_static(&[b'v'; MESSAGE_BYTES])
}

/// Writes the key of a message: its number, in 24 digits.
pub(crate) fn write_key(sequence: u64, key: &mut String) {
    let mut digits = [b'0'; KEY_BYTES];
    let mut rest = sequence;
    for digit in digits.iter_mut().rev() {
        if rest == 0 {
            break;
        }
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key.clear();
    key.push_str(std::str::from_utf8(&digits).expect("digits are text"));
}

/// Counts what a subscriber receives, checks that nothing is missing or doubled, and reports each phase.
#[derive(Debug)]
pub(crate) struct Sink {
    aside: Option<Aside>,
    credit: CreditSender,
    received: u64,
    received_before_phase: u64,
    sequences_sum: u64,
    end: Option<u64>,
    arrivals: Vec<(u64, u64)>,
}

impl Sink {
    /// `aside`: a cache from which each message evicts a key before it has arrived.
    pub(crate) fn new(credit: CreditSender, aside: Option<Aside>) -> Self {
        Self {
            aside,
            credit,
            received: 0,
            received_before_phase: 0,
            sequences_sum: 0,
            end: None,
            arrivals: Vec::new(),
        }
    }

    /// Takes one message in. Messages may arrive in any order, as they do from a system with several lanes.
    pub(crate) fn take(&mut self, message: Message) -> Result<()> {
        if let Some(aside) = &mut self.aside {
            aside.evict(message.sequence);
        }
        if message.timed {
            self.arrivals.push((message.sequence, now_ns()));
        }
        self.received += 1;
        self.sequences_sum = self.sequences_sum.wrapping_add(message.sequence);
        if message.last {
            self.end = Some(message.sequence + 1);
        }
        if self.end == Some(self.received) {
            let all = (0..self.received).fold(0_u64, u64::wrapping_add);
            ensure!(self.sequences_sum == all, "messages were lost and others doubled");
            self.finish_phase()?;
        } else {
            self.credit.received(self.received)?;
        }
        Ok(())
    }

    /// Takes note of a counter that the system keeps by itself. Returns whether that ends the phase.
    pub(crate) fn has_counted(&mut self, received: u64) -> Result<bool> {
        if self.end == Some(received) {
            self.received = received;
            self.finish_phase()?;
            return Ok(true);
        }
        ensure!(
            self.end.is_none_or(|end| received < end),
            "{received} messages where {:?} were sent",
            self.end
        );
        if received > self.received {
            self.received = received;
            self.credit.received_all(received)?;
        }
        Ok(false)
    }

    /// Says after how many messages, counted from the first phase on, this one ends.
    pub(crate) fn end_at(&mut self, messages: u64) {
        self.end = Some(messages);
    }

    fn finish_phase(&mut self) -> Result<()> {
        let messages = self.received - self.received_before_phase;
        self.received_before_phase = self.received;
        self.end = None;
        // First: the coordinator does not read the line, which may fill the pipe, before the publisher is done.
        self.credit.received_all(self.received)?;
        Line::Received { messages, arrivals: std::mem::take(&mut self.arrivals) }.say();
        Ok(())
    }
}
