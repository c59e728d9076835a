//! One module per group of verbs.

pub(crate) mod audit;
pub(crate) mod cache;
pub(crate) mod certs;
pub(crate) mod check;
pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod config;
mod confirm;
pub(crate) mod consume;
pub(crate) mod demo;
pub(crate) mod dlq;
pub(crate) mod group;
pub(crate) mod init;
pub(crate) mod node;
pub(crate) mod replay;
pub(crate) mod stream;
pub(crate) mod token;
pub(crate) mod watch;

use std::process::ExitCode;

use crate::args::{Cli, Global, Verb};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// Does what the command line asks for.
///
/// # Errors
/// What the user is told, with the exit code.
pub(crate) async fn run(cli: Cli, output: &Output) -> Result<ExitCode, Failure> {
    let global = &cli.global;
    let done = match cli.verb {
        Verb::Check(verb) => return check::run(&verb, global, output).await,
        Verb::Demo(args) => demo::run(&args, global.verbose, output).await,
        Verb::Node(args) => node::run(&args, output).await,
        Verb::Init(args) => init::run(&args, output),
        Verb::Certs(verb) => certs::run(&verb, output),
        Verb::Token(verb) => token::run(&verb, output),
        Verb::Config(verb) => config::run(&verb, output).await,
        Verb::Members => cluster::members(&client(global, output)?, output).await,
        Verb::Status => cluster::status(&client(global, output)?, output).await,
        Verb::Audit => audit::run(&client(global, output)?, output).await,
        Verb::Forget { node } => cluster::forget(&client(global, output)?, &node, output).await,
        Verb::Drain => cluster::drain(&client(global, output)?, output).await,
        Verb::Cache(verb) => cache::run(verb, &client(global, output)?, output).await,
        Verb::Watch(args) => watch::run(&args, &client(global, output)?, output).await,
        Verb::Stream(verb) => stream::run(verb, global, output).await,
        Verb::Group(verb) => group::run(verb, &client(global, output)?, output).await,
        Verb::Dlq(verb) => dlq::run(verb, &client(global, output)?, output).await,
        Verb::Consume(args) => consume::run(&args, &client(global, output)?, output).await,
        Verb::Replay(args) => replay::run(&args, global, output).await,
        Verb::Completions { shell } => completions::run(shell, output),
    };
    done.map(|()| Exit::Ok.into())
}

fn client(global: &Global, output: &Output) -> Result<Client, Failure> {
    let client = Client::new(global.url(), global.credentials())?;
    if client.exposes_token() {
        output.warn(format!("the token goes to {} in clear text", client.address()));
    }
    Ok(client)
}
