//! What a cache does on its own and among hand-wired peers, one subject per module.

#![allow(clippy::unwrap_used, reason = "a failure in a helper is a failure of the test")]

#[path = "../common/mod.rs"]
mod common;

mod absence;
mod audit;
mod counts;
mod derived;
mod expiry;
mod fetch;
mod freshness;
mod isolated;
mod lifecycle;
mod limits;
mod listeners;
mod loads;
mod operations;
mod partitions;
mod peers;
mod prefixes;
mod receipts;
mod records;
mod replica;
mod replicate;
mod replicate_future;
mod replicate_limits;
mod replicate_model;
mod replicate_repair;
mod replicate_undone;
mod schemas;
mod shared;
mod subscriptions;
mod tags;
mod uncertain;
mod versions;
mod versions_model;
mod write_flights;
mod write_through;
