//! Who is a member of the cluster, where it is, which of its lives it is in, and whether it can be heard.
//!
//! Membership is gossiped by chitchat, over whatever byte transport the [`GossipSeam`] stands for. Gossip
//! only ever answers "who is there"; it is not trusted further than that:
//!
//! - A member counts only by a record that it has signed itself ([`Attestor`]). Records of others that
//!   somebody forges never reach chitchat.
//! - chitchat is handed messages that this crate has taken apart, checked, and written anew, so it never
//!   decodes a peer's bytes: no oversized frame, no decompression bomb, no invented version or tombstone.
//! - A heartbeat is a claim. A node's own word about itself stands above everyone else's, and a third party's
//!   claim that leaps beyond what the node can have reached is ignored, so a lie cannot silence the node it
//!   is about.
//! - What the direct link shows outranks gossip: a member that is heard is live, whatever is said about it.
//!
//! What an authenticated member can still do by lying is bounded and stated: it can keep a dead member
//! *suspect* instead of *lost*, and it can hide a living one from nodes that have no path of their own to it.
//!
//! # States
//! | state | direct link | gossip |
//! |---|---|---|
//! | [`State::Live`] | heard within [`Config::link_silence`] | any |
//! | [`State::Live`] | never was one | says live |
//! | [`State::Suspect`] | down or silent | says live, or the link was heard until just now |
//! | [`State::Suspect`] | never was one | nothing yet, named just now |
//! | [`State::Lost`] | down, silent or none | says dead |
//! | [`State::Left`] | any | the member said goodbye, by either way |

mod attest;
mod budget;
mod config;
#[doc(hidden)]
pub mod decoders;
mod driver;
mod guard;
mod heartbeat;
mod membership;
mod resolve;
mod seam;
mod seeds;
mod stats;
mod table;
mod view;
mod wire;

pub use attest::{AttestError, Attestation, Attestor};
pub use config::{Clock, Config, Record};
pub use membership::{InvalidSeed, Membership, RenewError, StartError};
pub use resolve::Resolver;
pub use seam::{FRAME_BYTES_MAX, GossipSeam, Inbound};
pub use stats::{Reason, Stats};
pub use view::{Member, State, View};
