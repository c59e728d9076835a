//! The paths inside one process, each beside what it stands on: the cache beside bare `moka`, fan-out beside
//! `tokio::sync::broadcast`, the event records beside bincode's derive.

mod bare_moka;
mod broadcast;
mod cache;
mod codec;
mod keys;
mod subscriptions;
mod targets;

use std::process::ExitCode;

use clap::Parser;
use tidings_benches::interleave::{Case, Rounds};
use tidings_benches::machine;
use tidings_benches::target::Verdict;

use crate::keys::Keys;
use crate::targets::Against;

/// Compares operations within one process.
#[derive(Debug, Parser)]
struct Arguments {
    /// Few rounds: a look, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Only groups whose name contains this: cache-1000, cache-50000, fan-out, codec.
    #[arg(long, default_value = "")]
    only: String,
    /// Only cases whose name contains this: a profiler then sees one thing.
    #[arg(long, default_value = "")]
    case: String,
    /// Rounds, where neither a look nor a measurement is wanted.
    #[arg(long, conflicts_with = "quick")]
    rounds: Option<usize>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 5 } else { 31 });
    println!("{}\n", machine::describe());
    let mut passed = true;
    let mut group = |name: &str, cases: &mut dyn FnMut() -> Vec<Case<'static>>, targets: &[Against]| {
        if name.contains(&arguments.only) {
            let mut cases = cases();
            cases.retain(|case| case.name.contains(&arguments.case));
            passed &= compare(name, &mut cases, targets, rounds);
        }
    };
    group("cache-1000", &mut || cache_cases(1_000), &targets::CACHE);
    group("cache-50000", &mut || cache_cases(50_000), &targets::CACHE);
    group("fan-out", &mut || both(broadcast::cases(), subscriptions::cases()), &targets::FAN_OUT);
    group("codec", &mut codec::cases, &targets::CODEC);
    if codec::NAME.contains(&arguments.only) {
        passed &= codec::judge_bytes();
    }
    println!("\n{}", machine::describe());
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn cache_cases(count: usize) -> Vec<Case<'static>> {
    let keys = Keys::new(count);
    both(bare_moka::cases(&keys), cache::cases(&keys))
}

fn both(mut anchors: Vec<Case<'static>>, subjects: Vec<Case<'static>>) -> Vec<Case<'static>> {
    anchors.extend(subjects);
    anchors
}

/// Runs the cases of a group in turns; prints medians, then each target's ratio. Returns whether none failed.
fn compare(name: &str, cases: &mut [Case<'_>], targets: &[Against], rounds: usize) -> bool {
    let results = Rounds::run(cases, rounds);
    println!("{name}, ns per operation, median of {rounds} rounds");
    for case in results.names() {
        println!("  {case:<32} {:>9.1}", results.median(case));
    }
    let mut passed = true;
    for Against { subject, anchor, target } in targets {
        let (line, verdict) = target.line(results.ratio(subject, anchor));
        println!("  {line}");
        passed &= verdict != Verdict::Fail;
    }
    println!();
    passed
}
