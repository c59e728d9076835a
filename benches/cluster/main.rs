//! Broadcast to other processes: tidings, Redis, NATS and a raw QUIC stream in turns, on one machine.
//!
//! Every system carries the same messages from one publisher process to N subscriber processes. In a burst they flow
//! as fast as the slowest subscriber takes them; at a fixed pace each carries the time at which it was handed over.

mod aside;
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
mod tidings;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tidings_benches::machine;

use crate::report::{Figure, Report};
use crate::session::{Plan, Session};
use crate::setup::{Pace, Phase, Setup, System};

/// Puts a second at a fixed pace.
const PACE: u32 = 10_000;

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
    #[arg(long, value_enum, default_value_t = System::Tidings)]
    subject: System,
    /// Phases to run: of one's own choice while looking for where time goes.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = PhaseKind::ALL)]
    phases: Vec<PhaseKind>,
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

/// How messages flow, and to how many subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PhaseKind {
    Paced1,
    Burst4,
    Paced4,
    Burst8,
}

impl PhaseKind {
    /// Of eight subscribers, only cost and rate can be measured on two cores.
    const ALL: [Self; 4] = [Self::Paced1, Self::Burst4, Self::Paced4, Self::Burst8];
}

const DEFAULT: [System; 8] = [
    System::Tidings,
    System::TidingsResident,
    System::TidingsThread,
    System::RedisCrate,
    System::RedisRaw,
    System::NatsTls,
    System::Quinn,
    System::Harness,
];

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
            for plan in plans(system, arguments.quick, &arguments.phases) {
                let mut session = Session::start(system, &plan, brokers.get(&system), directory.path())?;
                session.run(plan.warm_up)?;
                let figure = Figure::new(round, system, plan.phase.pace, session.run(plan.phase)?);
                report.add(&figure);
                if let Some(json) = &mut json {
                    writeln!(json, "{}", serde_json::to_string(&figure)?)?;
                }
            }
        }
    }
    let passed = report.print(systems, arguments.subject);
    println!("\n{}", machine::describe());
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How long a session runs before anything counts: windows fill, the path MTU is found, caches warm.
const WARM_UP_MS: u64 = 300;

/// Changes of keys that every subscriber holds: in the warm-up, and after it. They have to be stored first.
const RESIDENT: [u64; 2] = [20_000, 150_000];

/// The sessions of a system in one round.
fn plans(system: System, quick: bool, phases: &[PhaseKind]) -> Vec<Plan> {
    let milliseconds = if quick { 500 } else { 1_500 };
    let plan = |subscribers, pace, [warm_up_max, messages_max]: [u64; 2], resident| Plan {
        subscribers,
        warm_up: Phase { pace, milliseconds: WARM_UP_MS, messages_max: warm_up_max },
        phase: Phase { pace, milliseconds, messages_max },
        resident,
    };
    let burst = |subscribers| plan(subscribers, Pace::Burst, [u64::MAX; 2], 0);
    let paced_messages = (WARM_UP_MS + milliseconds) * u64::from(PACE) / 1_000;
    let paced = |subscribers| plan(subscribers, Pace::PerSecond(PACE), [u64::MAX; 2], paced_messages);
    match system {
        System::Harness => vec![paced(0)],
        System::TidingsResident => vec![plan(4, Pace::Burst, RESIDENT, RESIDENT.iter().sum())],
        _ => phases
            .iter()
            .map(|phase| match phase {
                PhaseKind::Paced1 => paced(1),
                PhaseKind::Burst4 => burst(4),
                PhaseKind::Paced4 => paced(4),
                PhaseKind::Burst8 => burst(8),
            })
            .collect(),
    }
}
