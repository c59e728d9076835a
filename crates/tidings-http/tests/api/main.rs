//! The HTTP API over real TCP, in front of real nodes.
#![allow(clippy::unwrap_used, reason = "a harness may panic like its tests")]

mod admin;
mod audit;
mod browser;
mod caches;
mod chromium;
mod cluster;
mod entries;
mod events;
mod guarded;
mod holders;
mod isolated;
mod leases;
mod metrics;
mod openapi;
mod receipts;
mod replicated;
mod revoked;
mod roles;
mod sessions;
mod strangers;
mod streams;
mod support;
mod tls;
mod trail;
mod versions;
