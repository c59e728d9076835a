//! The HTTP API over real TCP, in front of real nodes.
#![allow(clippy::unwrap_used, reason = "a harness may panic like its tests")]

mod admin;
mod audit;
mod browser;
mod caches;
mod cluster;
mod entries;
mod events;
mod holders;
mod isolated;
mod leases;
mod metrics;
mod openapi;
mod receipts;
mod replicated;
mod streams;
mod support;
mod versions;
