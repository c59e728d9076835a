//! The `tidings` program: see `tidings --help`.

mod api;
mod args;
mod chaos;
mod client;
mod clock;
mod config;
mod exit;
mod files;
mod logging;
mod output;
mod replay;
mod secrets;
mod setup;
mod signals;
mod units;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Verb};
use crate::exit::{Exit, Failure};
use crate::output::Output;
use crate::signals::Signals;
use crate::verbs::check::Health;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = error.print();
            let wrong =
                if args::is_probe(std::env::args_os()) { Health::Unknown as u8 } else { Exit::Usage as u8 };
            return if error.use_stderr() { wrong.into() } else { ExitCode::SUCCESS };
        }
    };
    let output = Output::new(&cli.global);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(interruptible(cli, &output));
            // Nothing that is left may keep the program: a read of stdin cannot be cancelled.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::new(Exit::Failed, format!("cannot start threads: {error}"))),
    };
    result.unwrap_or_else(|failure| {
        output.error(&failure);
        failure.exit().into()
    })
}

/// Runs a verb; a signal ends it, and whatever it has started, unless it has a clean way to shut down.
async fn interruptible(cli: Cli, output: &Output) -> Result<ExitCode, Failure> {
    let shuts_down_itself = matches!(cli.verb, Verb::Consume(_) | Verb::Demo(_) | Verb::Node(_));
    let run = verbs::run(cli, output);
    if shuts_down_itself {
        return run.await;
    }
    let mut signals = Signals::listen()?;
    tokio::select! {
        result = run => result,
        _ = signals.next() => Err(Failure::silent(Exit::Interrupted)),
    }
}
