//! Nodes as processes of their own, to which bad things happen: killed, stopped and continued, cut off.
//!
//! [`schedule`] decides what happens when, by the seed alone; [`children`] runs the processes; every datagram between
//! them goes through a [`relay`] that can drop it; [`run`] does what the schedule says.

mod children;
mod relay;
mod run;
mod schedule;

pub(crate) use self::children::{ChildSettings, Children};
pub(crate) use self::run::Chaos;
