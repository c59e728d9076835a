//! Clusters of whole nodes in virtual time: quinn, rustls and chitchat as they are, over turmoil's network. Every read
//! is judged. A seed decides what is done, to whom and when, what is lost and how long everything takes; a process runs one
//! seed, for libraries count what they have handed out by process. Not all is decided by it yet: two runs of a seed may part
//! after some seconds, in the order of what happens within a millisecond, so that a seed that has failed may have to be run
//! several times before it fails again.
//!
//! `cargo run --manifest-path tests/turmoil/Cargo.toml -- SEED` prints what a run came to, and exits with 1 if it broke
//! a promise. With `lax` after it, nodes serve for longer than they are judged by: that has to be found.

mod chance;
mod entropy;
mod faults;
mod host;
mod identity;
mod record;
mod socket;

use std::process::ExitCode;

use crate::host::BOUND;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let seed = arguments.next().and_then(|seed| seed.parse().ok());
    let serves_for = match arguments.next().as_deref() {
        None => Some(BOUND),
        Some("lax") => Some(2 * BOUND),
        Some(_) => None,
    };
    let (Some(seed), Some(serves_for)) = (seed, serves_for) else {
        eprintln!("usage: tidings-turmoil SEED [lax]");
        return ExitCode::from(2);
    };
    entropy::sow(seed);
    // Hash maps and generators of a thread keep what they asked for: this one has not asked yet.
    let run = std::thread::spawn(move || faults::Story::begin(seed, serves_for).end());
    let Ok(outcome) = run.join() else { return ExitCode::from(101) };
    println!("{}", outcome.figures());
    outcome.complaints.iter().for_each(|complaint| println!("{complaint}"));
    ExitCode::from(u8::from(!outcome.complaints.is_empty()))
}
