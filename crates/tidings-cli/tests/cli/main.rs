//! The program as its users meet it: the built binary, its output and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod audit;
mod certificates;
mod cluster;
mod configuration;
mod general;
mod http;
mod nats;
mod readme;
mod redis;
mod replay;
mod secured;
mod streams;
mod support;
