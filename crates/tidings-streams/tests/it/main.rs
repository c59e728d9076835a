//! Tests of streams from outside: drivers against the suite, the embedded store against crashes and damage.

mod conformance;
mod consuming;
mod crashes;
mod damage;
mod embedded;
mod harness;
mod memory;
mod memory_state;
mod operating;
