//! Resident memory, each case in a process of its own: 100,000 entries of 100 bytes in bare `moka`.

use std::env;
use std::hint::black_box;
use std::process::{Command, ExitCode, id};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use tidings_benches::machine::{self, resident_bytes};
use tidings_benches::stats::median;

/// Entries of a full cache.
const ENTRIES: usize = 100_000;

/// Length of a value; keys have 24 bytes.
const VALUE_BYTES: usize = 100;

/// Compares resident memory.
#[derive(Debug, Parser)]
struct Arguments {
    /// One process per case instead of five.
    #[arg(long)]
    quick: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Makes this process a case: it fills and prints the bytes that it grew by.
    #[arg(long, hide = true, value_enum)]
    child: Option<Subject>,
}

/// What fills memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// The keys and values in a vector: what no cache can avoid.
    Vector,
    /// `moka::sync::Cache`.
    Moka,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Vector => "vector",
            Self::Moka => "moka",
        }
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(subject) = arguments.child {
        println!("{}", growth(subject)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}\n", machine::describe());
    let rounds = if arguments.quick { 1 } else { 5 };
    for subject in [Subject::Vector, Subject::Moka] {
        let grown = (0..rounds).map(|_| in_a_process(subject)).collect::<Result<Vec<_>>>()?;
        let mib = median(grown) / f64::from(1 << 20);
        println!("{:<10} {mib:>8.2} MiB for {ENTRIES} entries of {VALUE_BYTES} bytes", subject.name());
    }
    Ok(ExitCode::SUCCESS)
}

fn in_a_process(subject: Subject) -> Result<f64> {
    let output = Command::new(env::current_exe()?).args(["--child", subject.name()]).output()?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        subject.name(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)?.trim().parse().context("a number of bytes")
}

/// Bytes by which this process grows when it is filled.
fn growth(subject: Subject) -> Result<u64> {
    let before = resident_bytes(id())?;
    match subject {
        Subject::Vector => {
            let all: Vec<_> = entries().collect();
            since(before, all)
        }
        Subject::Moka => {
            let cache = moka::sync::Cache::new(2 * ENTRIES as u64);
            entries().for_each(|(key, value)| cache.insert(key, value));
            cache.run_pending_tasks();
            ensure!(cache.entry_count() == ENTRIES as u64, "entries are missing");
            since(before, cache)
        }
    }
}

fn since<T>(before: u64, filled: T) -> Result<u64> {
    let after = resident_bytes(id())?;
    drop(black_box(filled));
    Ok(after.saturating_sub(before))
}

fn entries() -> impl Iterator<Item = (String, Bytes)> {
    (0..ENTRIES).map(|number| (format!("k:{number:022}"), Bytes::from(vec![b'v'; VALUE_BYTES])))
}
