//! The steps of `cargo xtask test`, in order, each with its time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::workspace::{Workspace, must};
use crate::{licences, packages, runner, tidy};

struct Step {
    name: &'static str,
    run: fn(&Workspace) -> Result<()>,
}

/// Cheap ones first. `test` comes last, so that the run closes on how many tests passed.
const STEPS: [Step; 10] = [
    Step { name: "packages", run: |_| packages::install() },
    Step { name: "fmt", run: format },
    Step { name: "tidy", run: tidy::check },
    Step { name: "licences", run: licences::check },
    Step { name: "clippy", run: clippy },
    Step { name: "build", run: |workspace| must(&mut workspace.cargo(&["build", "--release", "--locked"])) },
    Step { name: "doc", run: documentation },
    Step { name: "doctest", run: runner::doctests },
    Step { name: "turmoil", run: turmoil },
    Step { name: "test", run: runner::all },
];

/// The names of all steps.
pub(crate) fn names() -> [&'static str; 10] {
    STEPS.map(|step| step.name)
}

/// Runs all steps, or those named, up to the first that fails.
pub(crate) fn run(workspace: &Workspace, only: &[String]) -> Result<()> {
    let mut times = Vec::new();
    for step in STEPS.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)) {
        println!("==> {}", step.name);
        let begun = now();
        let outcome = (step.run)(workspace);
        let took = now() - begun;
        times.push(format!("{} {}", step.name, seconds(took)));
        if outcome.is_err() {
            eprintln!("steps: {} (failed)", times.join(", "));
        } else {
            eprintln!("<== {} {}", step.name, seconds(took));
        }
        outcome.with_context(|| format!("step {}", step.name))?;
    }
    eprintln!("steps: {}", times.join(", "));
    Ok(())
}

/// A workspace of its own, of which this one must not know.
const TURMOIL: &str = "tests/turmoil/Cargo.toml";

fn format(workspace: &Workspace) -> Result<()> {
    must(&mut workspace.cargo(&["fmt", "--all", "--", "--check"]))?;
    must(&mut workspace.cargo(&["fmt", "--manifest-path", TURMOIL, "--", "--check"]))
}

/// Whole nodes in virtual time. What both workspaces need is built once.
fn turmoil(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["test", "--manifest-path", TURMOIL, "--locked"]);
    must(command.env("CARGO_TARGET_DIR", &workspace.target))
}

fn clippy(workspace: &Workspace) -> Result<()> {
    // With a feature that others in the workspace turn on, what a service has without it is not seen.
    let bare = ["-p", "tidings", "--no-default-features"];
    [&["--workspace", "--all-targets"][..], &bare].into_iter().try_for_each(|selection| {
        must(&mut workspace.cargo(&[&["clippy", "--locked"], selection, &["--", "-D", "warnings"]].concat()))
    })
}

fn documentation(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    must(command.env("RUSTDOCFLAGS", "-D warnings"))
}

#[allow(clippy::disallowed_methods, reason = "a command line tool times its own steps")]
fn now() -> Instant {
    Instant::now()
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
