//! Clusters of whole nodes in virtual time: quinn, rustls and chitchat as they are, over turmoil's network. Every read
//! is judged.
//!
//! Networks are cut, in one direction or both, packets are lost, doubled, delayed and held back; processes are killed and
//! come back, are stopped and go on, and get a twin: another process with their node id. Some runs do so for longer than
//! a lost node may take to come back. What is changed in these counts for the bound once all are well again, and
//! what is read of everything else at once: `record.rs` says what is promised when.
//!
//! A seed decides everything: what is done, to whom and when, how long it takes, and every random number that any library
//! draws. A process runs one seed, for libraries count what they have handed out by process.
//!
//! `cargo run --manifest-path tests/turmoil/Cargo.toml -- SEED` prints what a run came to, and exits with 1 if it broke
//! a promise, after saying what was done. With a defect's name after it, all nodes have it: that has to be found. With
//! `large` the cluster has relays, as it has with every fifth seed.

mod chance;
mod entropy;
mod faults;
mod host;
mod identity;
mod machines;
mod process;
mod record;
mod weather;
mod wire;
mod world;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidings::Planted;

use crate::faults::{RELAY_ABOVE, Story};
use crate::host::{BOUND, Setup};

static PANICKED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let seed = arguments.next().and_then(|seed| seed.parse().ok());
    let change: Option<fn(&mut Setup)> = match arguments.next().as_deref() {
        None => Some(|_| {}),
        Some("lax") => Some(|setup| setup.serves_for = 2 * BOUND),
        Some("trusting") => Some(|setup| (setup.doubts_ends, setup.only_kills) = (false, true)),
        Some("short") => Some(|setup| (setup.horizon, setup.only_kills) = (Duration::ZERO, true)),
        Some("hasty") => Some(|setup| setup.planted = Some(Planted::ConfirmedAtReceipt)),
        Some("large") => Some(|setup| setup.relay_above = RELAY_ABOVE),
        Some("unfenced") => Some(|setup| setup.planted = Some(Planted::Unfenced)),
        Some(_) => None,
    };
    let (Some(seed), Some(change)) = (seed, change) else {
        eprintln!("usage: tidings-turmoil SEED [large | lax | trusting | short | hasty | unfenced]");
        return ExitCode::from(2);
    };
    // A task's panic ends the task alone.
    let says = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICKED.store(true, Ordering::SeqCst);
        says(panic);
    }));
    entropy::sow(seed);
    // Hash maps and generators of a thread keep what they asked for: this one has not asked yet.
    let run = std::thread::spawn(move || Story::begin(seed, change).end());
    let Ok(outcome) = run.join() else { return ExitCode::from(101) };
    println!("{}", outcome.figures());
    if !outcome.complaints.is_empty() {
        outcome.events.iter().chain(&outcome.complaints).for_each(|said| println!("{said}"));
    }
    if PANICKED.load(Ordering::SeqCst) {
        return ExitCode::from(101);
    }
    ExitCode::from(u8::from(!outcome.complaints.is_empty()))
}
