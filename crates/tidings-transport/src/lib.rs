//! Links between the nodes of a cluster: one UDP port per node, QUIC with mutual TLS 1.3, one connection per pair.
//!
//! This crate says who a peer is, keeps connections to those that are wanted, and carries bytes. It does not know
//! what the bytes mean: the node behind it is a [`Host`], which judges peers and speaks on each [`Link`]. Gossip
//! travels inside the same connections.
//!
//! A peer's certificate is judged before anything that it sends is read, and a peer that is refused gets nothing
//! but the close of its connection, which says why.

mod ask;
mod attest;
mod authority;
mod close;
mod control;
mod denied;
mod der;
mod dial;
mod duplicate;
mod endpoint;
mod former;
mod frames;
mod gate;
mod gossip;
mod handshake;
mod host;
mod identity;
pub mod limits;
mod link;
mod quiet;
mod refusals;
mod refuse;
mod run;
pub mod session;
mod shared;
mod socket;
mod stats;
mod table;
mod timer;
mod tls;

pub use ask::AskError;
pub use attest::{Attestation, AttestationError, Notary};
pub use authority::{
    AUTHORITY_VALIDITY, Authority, AuthorityError, CertificateInfo, Issued, NODE_VALIDITY, inspect,
};
pub use close::CloseCode;
pub use control::{ControlError, ControlReceiver, ControlSender};
pub use duplicate::concede;
pub use endpoint::{BindError, Config, Transport};
pub use host::{Host, SessionFuture};
pub use identity::{Identity, IdentityError};
pub use link::Link;
pub use quiet::{Passed, Quiet};
pub use refusals::Refused;
pub use stats::{BroadcastError, Counter, RefusedReason, TransportStats};
pub use tls::TlsError;
