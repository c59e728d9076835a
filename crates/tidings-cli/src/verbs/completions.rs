//! `completions`: scripts for shells.

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use crate::args::Cli;
use crate::exit::Failure;
use crate::output::Output;

/// Prints the completion script of a shell; as JSON, with the shell's name.
pub(crate) fn run(shell: Shell, output: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidings", &mut script);
    if output.is_json() {
        let script = String::from_utf8_lossy(&script);
        return output.json(&json!({ "shell": shell.to_string(), "script": script }));
    }
    output.bytes(&script)
}
