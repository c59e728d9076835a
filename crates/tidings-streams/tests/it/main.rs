//! Tests of streams from outside: drivers against the suite, the embedded store against crashes and damage, the Redis
//! and NATS drivers against servers that are killed, stopped and refuse.

mod after_commit;
mod conformance;
mod consuming;
mod crashes;
mod damage;
mod embedded;
mod harness;
mod memory;
mod memory_state;
mod on_nats;
mod on_redis;
mod operating;
