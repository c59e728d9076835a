//! Broadcast to other processes: Redis, NATS and a raw QUIC stream in turns, on one machine.
//!
//! Every system carries the same messages from one publisher process to N subscriber processes. In a burst they flow
//! as fast as the slowest subscriber takes them; at a fixed pace each carries the time at which it was handed over.

mod brokers;
mod certificates;
mod child;
mod credit;
mod drive;
mod message;
mod nats;
mod quic;
mod redis_crate;
mod redis_raw;
mod report;
mod session;
mod setup;
mod targets;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tidings_benches::machine;

use crate::report::{Figure, Report};
use crate::session::Session;
use crate::setup::{Pace, Phase, Setup, System};

/// Puts a second at a fixed pace.
const PACE: Pace = Pace::PerSecond(10_000);

/// Subscribers of a run; of eight, only cost and rate can be measured on two cores.
const SUBSCRIBERS: [usize; 3] = [1, 4, 8];

/// Compares systems that carry changes to other processes.
#[derive(Debug, Parser)]
struct Arguments {
    /// Two short rounds: a look, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Rounds; every system runs once in each.
    #[arg(long)]
    rounds: Option<usize>,
    /// Systems to run.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = DEFAULT)]
    systems: Vec<System>,
    /// The system that is compared with all others.
    #[arg(long, value_enum, default_value_t = System::Quinn)]
    subject: System,
    /// Appends one JSON document per phase to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Makes this process a publisher or a subscriber.
    #[arg(long, hide = true)]
    child: Option<String>,
}

const DEFAULT: [System; 5] =
    [System::RedisCrate, System::RedisRaw, System::NatsTls, System::Quinn, System::Harness];

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(setup) = &arguments.child {
        let setup: Setup = serde_json::from_str(setup)?;
        return child::run(&setup).map(|()| ExitCode::SUCCESS);
    }
    let own_network = machine::enter_own_network();
    println!("{}", machine::describe());
    if !own_network {
        println!("without a network namespace of its own (needs root): bytes include other traffic");
    }
    measure(&arguments)
}

fn measure(arguments: &Arguments) -> Result<ExitCode> {
    let systems = &arguments.systems;
    let directory = tempfile::tempdir()?;
    certificates::make(directory.path())?;
    let brokers = brokers::start(systems, directory.path())?;
    let mut json = arguments
        .json
        .as_ref()
        .map(|path| File::options().create(true).append(true).open(path))
        .transpose()?;
    let mut report = Report::default();
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 2 } else { 5 });
    for round in 0..rounds {
        for turn in 0..systems.len() {
            let system = systems[(round + turn) % systems.len()];
            eprintln!("round {} of {rounds}: {}", round + 1, system.name());
            for (subscribers, phases) in plan(system, arguments.quick) {
                let mut session =
                    Session::start(system, subscribers, brokers.get(&system), directory.path())?;
                session.run(WARM_UP)?;
                for phase in phases {
                    let figure = Figure::new(round, system, phase.pace, session.run(phase)?);
                    report.add(&figure);
                    if let Some(json) = &mut json {
                        writeln!(json, "{}", serde_json::to_string(&figure)?)?;
                    }
                }
            }
        }
    }
    let passed = report.print(systems, arguments.subject);
    println!("\n{}", machine::describe());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fills windows, finds the path MTU and warms caches; not counted.
const WARM_UP: Phase = Phase { pace: Pace::Burst, milliseconds: 300 };

/// How many subscribers, and which phases with each.
fn plan(system: System, quick: bool) -> Vec<(usize, Vec<Phase>)> {
    let milliseconds = if quick { 500 } else { 1_500 };
    let burst = Phase { pace: Pace::Burst, milliseconds };
    let paced = Phase { pace: PACE, milliseconds };
    if system == System::Harness {
        return vec![(0, vec![paced])];
    }
    let phases = |subscribers| match subscribers {
        1 => vec![paced],
        4 => vec![burst, paced],
        _ => vec![burst],
    };
    SUBSCRIBERS.map(|subscribers| (subscribers, phases(subscribers))).into()
}
