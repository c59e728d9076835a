//! The project's own commands. People and CI run the same one: `cargo xtask test`.

mod audit;
mod guarantees;
mod licences;
mod packages;
mod runner;
mod steps;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what the tests need and is missing, then runs every check and every test.
    ///
    /// Environment: TIDINGS_TEST_SCALE (default 1) multiplies how long and how much the tests do;
    /// TIDINGS_TEST_LOGS=1 keeps the logs of the nodes that passing tests started; TIDINGS_BIN names the binary
    /// under test instead of the one that the `build` step makes.
    Test {
        /// Only this step; may be given several times.
        #[arg(long, value_name = "STEP", value_parser = steps::names())]
        only: Vec<String>,
    },
    /// Runs the trials that try to break the guarantees, and prints what they read as a Markdown table.
    ///
    /// Environment: TIDINGS_TEST_SCALE as in `test`; TIDINGS_STALE_READS is the number of reads that race loads and
    /// invalidations.
    Guarantees {
        /// 200 rounds of kills, a minute with a frozen peer, a million changes at each rate of loss, one lost event among
        /// a million entries, and a hundred million reads that race invalidations: about half an hour more.
        #[arg(long)]
        large: bool,
    },
    /// Checks the dependencies against the advisory database with cargo-deny, and says which database that was.
    Audit,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Test { only } => steps::run(&Workspace::load()?, &only),
        Command::Guarantees { large } => guarantees::run(&Workspace::load()?, large),
        Command::Audit => audit::run(&Workspace::load()?),
    }
}
