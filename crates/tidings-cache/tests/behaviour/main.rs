//! What a cache does on its own and among hand-wired peers, one subject per module.

#[path = "../common/mod.rs"]
mod common;

mod expiry;
mod freshness;
mod lifecycle;
mod limits;
mod loads;
mod operations;
mod partitions;
mod peers;
mod subscriptions;
mod write_through;
