//! What the transport asks of the node that it serves.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tidings_proto::frame::{Hello, Refusal};
use tidings_proto::time::Tick;

use crate::link::Link;

/// A future that is owned by the transport's task for one link.
pub type SessionFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The node behind a transport. No method may block; none is called while the transport holds a lock.
pub trait Host: Send + Sync + 'static {
    /// What this node says of itself, fresh for every handshake.
    fn hello(&self) -> Hello;

    /// Judges a peer whose identity, cluster, versions and claim to its node id have been checked, and enters it
    /// in the member set: this returns before the peer's `Hello` is answered. May be called more than once for one
    /// handshake.
    ///
    /// # Errors
    /// Why the peer is refused.
    fn admit(&self, hello: &Hello) -> Result<(), Refusal>;

    /// A peer, or another process with this node's id, has shown that this node cannot take part.
    fn refused(&self, address: SocketAddr, refusal: &Refusal);

    /// Another live process holds this node's id, has a certificate for it, and keeps it. What a third party says
    /// of such a process comes as a refusal only.
    fn displaced(&self, _holder: SocketAddr) {}

    /// A life that is over by its own word has come so that what it did last can be followed to its end, whoever has
    /// its node id now. Takes note of it and returns whether it is followed; if not, it is judged as any other peer.
    fn follows_to_the_end(&self, _hello: &Hello) -> bool {
        false
    }

    /// Whether this node's own life is over, as its `Hello` says: it is there to be followed to its end.
    fn is_over(&self) -> bool {
        false
    }

    /// Whether this node may be let in by others. One that another process has displaced before anybody followed it may
    /// not: it would take the place that it was refused, as soon as its holder is silent for a moment.
    fn takes_part(&self) -> bool {
        true
    }

    /// Speaks on a link until it ends. Called for every link, current or not. When it returns, the link is closed;
    /// when the connection ends, it has [`crate::limits::SESSION_END_TIME`] to return.
    fn session(&self, link: Arc<Link>) -> SessionFuture;

    /// Takes a gossip frame of an admitted peer, which said this of itself.
    fn gossip(&self, peer: &Hello, frame: Bytes);

    /// The node's clock.
    fn now(&self) -> Tick;
}
