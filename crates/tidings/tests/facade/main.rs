//! What a service that embeds a node relies on, on real QUIC, by topic.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

mod addresses;
mod auditing;
mod breaking_off;
mod calling_runtime;
mod clocks;
mod common;
mod credentials;
mod known;
mod lanes;
mod leases;
mod leaving;
mod log_files;
mod measuring;
mod named;
mod observing;
mod parted;
mod receipts;
mod replaced;
mod replicate;
mod starting;
mod subscribers;
