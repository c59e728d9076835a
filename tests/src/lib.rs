//! What the tests of whole nodes stand on: processes, hosts and the network between them, a client of a node's HTTP
//! interface, traffic, and a system of record that judges every read.
//!
//! Start at [`cluster::Cluster`]. Durations come through [`scale`], and states are waited for by [`wait::until`].

#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "any error or panic in here fails the test that meets it, and its text says why"
)]

pub mod api;
pub mod cluster;
pub mod consumer;
pub mod directory;
pub mod drive;
pub mod host;
pub mod network;
pub mod node;
pub mod pace;
pub mod record;
pub mod scale;
pub mod switch;
pub mod trace;
pub mod wait;
pub mod watch;

pub use tidings_facts as facts;
