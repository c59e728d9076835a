//! The outbox from outside: against both databases, with relays that are killed, stores that are away and tables that
//! somebody else has written to.

#![allow(clippy::unwrap_used, reason = "a test for both databases is a function that two tests call")]

mod databases;
mod killed;
mod looking;
mod postgres_server;
mod publishing;
mod refusing;
mod relaying;
mod wayward;
mod world;
