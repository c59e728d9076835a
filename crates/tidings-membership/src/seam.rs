//! chitchat's transport, over bytes that somebody else carries.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable as _, Serializable as _};
use parking_lot::Mutex;
use tidings_proto::id::NodeId;
use tokio::sync::mpsc;

use crate::membership::Shared;
use crate::stats::Reason;
pub use crate::wire::FRAME_BYTES_MAX;

/// How gossip frames, each at most [`FRAME_BYTES_MAX`] bytes, travel. They may be lost, doubled and
/// reordered.
pub struct GossipSeam {
    /// Sends a frame to the member that can be dialled at this address. Must neither block nor wait: what
    /// cannot be sent now is dropped.
    pub outbound: Arc<dyn Fn(SocketAddr, Bytes) + Send + Sync>,
    /// Frames of peers.
    pub inbound: mpsc::Receiver<Inbound>,
}

/// A gossip frame of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Whose it is, by its certificate: what it says of itself counts as its own word.
    pub node: NodeId,
    /// The address that it *advertises*, not the one its packets come from: answers go there.
    pub address: SocketAddr,
    /// What it says.
    pub frame: Bytes,
}

impl fmt::Debug for GossipSeam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GossipSeam").finish_non_exhaustive()
    }
}

/// Gives out its one socket once.
pub(crate) struct SeamTransport(Mutex<Option<SeamSocket>>);

impl SeamTransport {
    pub(crate) fn new(seam: GossipSeam, shared: Arc<Shared>) -> Self {
        Self(Mutex::new(Some(SeamSocket { seam, shared })))
    }
}

#[async_trait]
impl Transport for SeamTransport {
    async fn open(&self, _listen: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.0.lock().take().context("the seam has one socket")?;
        Ok(Box::new(socket))
    }
}

struct SeamSocket {
    seam: GossipSeam,
    shared: Arc<Shared>,
}

impl SeamSocket {
    fn admit(&self, from: (&NodeId, SocketAddr), frame: &[u8]) -> Result<ChitchatMessage, Reason> {
        let now = self.shared.now();
        self.shared.stats.count_received();
        let admitted = self.shared.guard.lock().admit(from, frame, now)?;
        for statement in admitted.statements {
            self.shared.evidence(|table, now| table.stated(&statement, now));
        }
        ChitchatMessage::deserialize(&mut &admitted.message[..]).map_err(|_| Reason::Malformed)
    }
}

#[async_trait]
impl Socket for SeamSocket {
    /// Never waits, and never fails: chitchat awaits it between its own messages.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let mut bytes = message.serialize_to_vec();
        if self.shared.guard.lock().release(&mut bytes).is_ok() && bytes.len() <= FRAME_BYTES_MAX {
            self.shared.stats.count_sent(bytes.len());
            (self.seam.outbound)(to, bytes.into());
        }
        Ok(())
    }

    /// Cancel safe: nothing is awaited once a frame is taken. Never fails, for that would end gossip for
    /// good; if the transport is gone, it waits until chitchat is stopped.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        while let Some(Inbound { node, address, frame }) = self.seam.inbound.recv().await {
            match self.admit((&node, address), &frame) {
                Ok(message) => return Ok((address, message)),
                Err(reason) => {
                    self.shared.stats.reject(reason);
                    tracing::debug!(%node, %address, reason = reason.name(), "gossip frame dropped");
                }
            }
        }
        std::future::pending().await
    }
}
