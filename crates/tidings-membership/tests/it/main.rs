//! Members over a network in memory, in virtual time.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod attacks;
mod life;
mod support;
