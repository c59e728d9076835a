//! chitchat 0.11's messages, taken apart within bounds and put together again.
//!
//! ```text
//! message  = magic: u16 | version: u8 | type: u8 | body             all integers little endian
//! Syn      = digest | cluster: text       SynAck = digest | delta       Ack = delta       BadCluster = nothing
//! digest   = count: u16 | (node | heartbeat: u64 | collected: u64 | version: u64)*
//! node     = id: text | incarnation: u64 | 4 or 6: u8 | address | port: u16          text = length: u16 | UTF-8
//! delta    = (1: u8 | length: u16 | zstd block  or  2: u8 | length: u16 | plain block)* | 0: u8
//! blocks   = (0: u8 | node | collected: u64 | from: u64  or
//!             1: u8 | key: text | value: text | version: u64 | status: u8  or  2: u8 | version: u64)*
//! ```
//!
//! What is parsed here is what this crate's members say: one key, [`RECORD_KEY`], never deleted. Changes of
//! any other kind are counted and left out.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str;

use tidings_proto::id::{Incarnation, NodeId, Origin};

use crate::stats::Reason;

/// Longest gossip frame, in bytes. chitchat's own messages end at 65,507.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

/// Most bytes that the blocks of one message may decompress to, in total. A message carries at most
/// [`FRAME_BYTES_MAX`] of records, whose base64 shrinks to three quarters; four times that is ample.
pub(crate) const DELTA_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// Most nodes in a digest. More do not fit into chitchat's messages.
pub(crate) const DIGEST_NODES_MAX: usize = 1_024;

/// The one key that a member publishes.
pub(crate) const RECORD_KEY: &str = "record";

const MAGIC: u16 = 45_139;
const VERSION: u8 = 0;
const BLOCK_BYTES_MAX: usize = u16::MAX as usize;

/// Most blocks of a message. chitchat begins a new one after 16 KiB.
const BLOCKS_MAX: usize = DELTA_BYTES_MAX / (16 << 10);

/// What decompresses blocks, kept from one message to the next.
#[derive(Default)]
pub(crate) struct Unpacker(zstd::bulk::Decompressor<'static>);

/// What gossip knows a member by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) origin: Origin,
    pub(crate) address: SocketAddr,
}

impl Identity {
    /// Bytes of its entry in a digest.
    pub(crate) fn digest_bytes(&self) -> usize {
        let address = if self.address.is_ipv4() { 4 } else { 16 };
        2 + self.origin.node.as_str().len() + 8 + 1 + address + 2 + 24
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Syn { cluster: String, digest: Vec<Seen> },
    SynAck { digest: Vec<Seen>, delta: Vec<Change> },
    Ack { delta: Vec<Change> },
    BadCluster,
}

/// What the sender has seen of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) node: Identity,
    pub(crate) heartbeat: u64,
    pub(crate) version: u64,
}

/// What a node has published since the version `from`: nothing that fitted, or its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) node: Identity,
    pub(crate) from: u64,
    pub(crate) record: Option<(u64, String)>,
}

/// A message, and how many changes were left out of it because no member makes them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) message: Message,
    pub(crate) omitted: usize,
}

impl Message {
    /// Takes a frame apart. Allocates at most a few times [`DELTA_BYTES_MAX`], whatever the frame claims.
    pub(crate) fn parse(frame: &[u8], unpacker: &mut Unpacker) -> Result<Parsed, Reason> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(Reason::FrameSize);
        }
        let mut reader = Reader { bytes: frame, at: 0 };
        let mut omitted = 0;
        let message = match reader.kind()? {
            0 => {
                let digest = reader.digest()?;
                Self::Syn { digest, cluster: reader.text()?.to_owned() }
            }
            1 => Self::SynAck { digest: reader.digest()?, delta: reader.delta(unpacker, &mut omitted)? },
            2 => Self::Ack { delta: reader.delta(unpacker, &mut omitted)? },
            3 => Self::BadCluster,
            _ => return Err(Reason::Malformed),
        };
        if reader.is_empty() { Ok(Parsed { message, omitted }) } else { Err(Reason::Malformed) }
    }

    /// The message's bytes, as chitchat reads them. Nothing in it is compressed.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_le_bytes().to_vec();
        out.push(VERSION);
        match self {
            Self::Syn { cluster, digest } => {
                out.push(0);
                write_digest(digest, &mut out);
                write_text(cluster, &mut out);
            }
            Self::SynAck { digest, delta } => {
                out.push(1);
                write_digest(digest, &mut out);
                write_delta(delta, &mut out);
            }
            Self::Ack { delta } => {
                out.push(2);
                write_delta(delta, &mut out);
            }
            Self::BadCluster => out.push(3),
        }
        out
    }
}

/// Replaces the heartbeats in the digest of a message that this node's chitchat wrote. `None` leaves one as
/// it is.
pub(crate) fn replace_heartbeats(
    message: &mut [u8],
    mut heartbeat_of: impl FnMut(&Identity) -> Option<u64>,
) -> Result<(), Reason> {
    let mut patches = Vec::new();
    let mut reader = Reader { bytes: message, at: 0 };
    if matches!(reader.kind()?, 0 | 1) {
        for _ in 0..reader.u16()? {
            let node = reader.node()?;
            patches.extend(heartbeat_of(&node).map(|heartbeat| (reader.at, heartbeat)));
            reader.take(24)?;
        }
    }
    for (at, heartbeat) in patches {
        message[at..at + 8].copy_from_slice(&heartbeat.to_le_bytes());
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Reason> {
        let taken = self.bytes.get(self.at..self.at + count).ok_or(Reason::Malformed)?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        self.take(N)?.try_into().map_err(|_| Reason::Malformed)
    }

    fn u8(&mut self) -> Result<u8, Reason> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Reason> {
        self.array().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Reason> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<&'a str, Reason> {
        let length = self.u16()?;
        str::from_utf8(self.take(length.into())?).map_err(|_| Reason::Malformed)
    }

    /// Reads up to and with the message's type.
    fn kind(&mut self) -> Result<u8, Reason> {
        if self.u16()? != MAGIC || self.u8()? != VERSION {
            return Err(Reason::Malformed);
        }
        self.u8()
    }

    fn node(&mut self) -> Result<Identity, Reason> {
        let node = NodeId::new(self.text()?).map_err(|_| Reason::Malformed)?;
        let incarnation = Incarnation(self.u64()?);
        let ip = match self.u8()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(Reason::Malformed),
        };
        let address = SocketAddr::new(ip, self.u16()?);
        Ok(Identity { origin: Origin { node, incarnation }, address })
    }

    fn digest(&mut self) -> Result<Vec<Seen>, Reason> {
        let count = usize::from(self.u16()?);
        if count > DIGEST_NODES_MAX {
            return Err(Reason::Capacity);
        }
        let mut digest = Vec::new();
        for _ in 0..count {
            let node = self.node()?;
            let heartbeat = self.u64()?;
            self.u64()?;
            digest.push(Seen { node, heartbeat, version: self.u64()? });
        }
        Ok(digest)
    }

    fn delta(&mut self, unpacker: &mut Unpacker, omitted: &mut usize) -> Result<Vec<Change>, Reason> {
        let blocks = self.blocks(unpacker)?;
        Reader { bytes: &blocks, at: 0 }.changes(omitted)
    }

    fn blocks(&mut self, unpacker: &mut Unpacker) -> Result<Vec<u8>, Reason> {
        let mut plain = Vec::new();
        let mut block = Vec::new();
        for blocks in 0.. {
            let kind = self.u8()?;
            if kind == 0 {
                break;
            }
            if blocks == BLOCKS_MAX {
                return Err(Reason::Inflation);
            }
            let length = self.u16()?;
            let bytes = self.take(length.into())?;
            let room = DELTA_BYTES_MAX - plain.len();
            match kind {
                // chitchat's buffer for a block has this size too: what does not fit is none of its own.
                1 => {
                    block.resize(room.min(BLOCK_BYTES_MAX), 0);
                    let length = unpacker.0.decompress_to_buffer(bytes, &mut block[..]).map_err(|_| {
                        if room < BLOCK_BYTES_MAX { Reason::Inflation } else { Reason::Malformed }
                    })?;
                    plain.extend_from_slice(&block[..length]);
                }
                2 if bytes.len() <= room => plain.extend_from_slice(bytes),
                2 => return Err(Reason::Inflation),
                _ => return Err(Reason::Malformed),
            }
        }
        Ok(plain)
    }

    fn changes(&mut self, omitted: &mut usize) -> Result<Vec<Change>, Reason> {
        let mut changes: Vec<Change> = Vec::new();
        let mut nodes = BTreeSet::new();
        // Whether what follows belongs to the last change, or to a node that is left out.
        let mut current = None;
        while !self.is_empty() {
            match self.u8()? {
                0 => {
                    let (node, collected, from) = (self.node()?, self.u64()?, self.u64()?);
                    if !nodes.insert(node.clone()) {
                        return Err(Reason::Malformed);
                    }
                    // A version up to which tombstones were collected asks for a reset; no member has
                    // tombstones.
                    current = Some(collected == 0);
                    if collected == 0 {
                        changes.push(Change { node, from, record: None });
                    } else {
                        *omitted += 1;
                    }
                }
                1 => {
                    let (key, value, version, status) = (self.text()?, self.text()?, self.u64()?, self.u8()?);
                    let wanted = key == RECORD_KEY && status == 0 && version > 0;
                    match (current.ok_or(Reason::Malformed)?, changes.last_mut()) {
                        (true, Some(change)) if wanted && change.record.is_none() => {
                            change.record = Some((version, value.to_owned()));
                        }
                        _ => *omitted += 1,
                    }
                }
                2 => {
                    self.u64()?;
                    *omitted += 1;
                }
                _ => return Err(Reason::Malformed),
            }
        }
        Ok(changes)
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn write_node(node: &Identity, out: &mut Vec<u8>) {
    write_text(node.origin.node.as_str(), out);
    out.extend(node.origin.incarnation.0.to_le_bytes());
    match node.address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(ip.octets());
        }
    }
    out.extend(node.address.port().to_le_bytes());
}

fn write_digest(digest: &[Seen], out: &mut Vec<u8>) {
    out.extend((digest.len() as u16).to_le_bytes());
    for Seen { node, heartbeat, version } in digest {
        write_node(node, out);
        for number in [*heartbeat, 0, *version] {
            out.extend(number.to_le_bytes());
        }
    }
}

fn write_delta(delta: &[Change], out: &mut Vec<u8>) {
    let mut plain = Vec::new();
    for Change { node, from, record } in delta {
        plain.push(0);
        write_node(node, &mut plain);
        plain.extend(0_u64.to_le_bytes());
        plain.extend(from.to_le_bytes());
        if let Some((version, value)) = record {
            plain.push(1);
            write_text(RECORD_KEY, &mut plain);
            write_text(value, &mut plain);
            plain.extend(version.to_le_bytes());
            plain.push(0);
        }
    }
    for block in plain.chunks(BLOCK_BYTES_MAX) {
        out.push(2);
        out.extend((block.len() as u16).to_le_bytes());
        out.extend(block);
    }
    out.push(0);
}

#[cfg(test)]
mod tests;
