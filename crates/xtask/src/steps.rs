//! The steps of `cargo xtask test`, in order, each with its time.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

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
    Step { name: "doctest", run: |workspace| tests(workspace, &["--doc"]) },
    Step { name: "turmoil", run: turmoil },
    Step { name: "test", run: all_but_doctests },
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

fn all_but_doctests(workspace: &Workspace) -> Result<()> {
    let runner = runner::configuration()?;
    tests(workspace, &["--config", &runner, "--lib", "--bins", "--tests", "--examples"])
}

/// Runs tests and closes with one line that counts them all, whatever the number of test binaries.
fn tests(workspace: &Workspace, targets: &[&str]) -> Result<()> {
    let mut command = workspace.cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(targets).stdout(Stdio::piped());
    if std::env::var_os("TIDINGS_BIN").is_none() {
        command.env("TIDINGS_BIN", workspace.target.join("release/tidings"));
    }
    let mut cargo = command.spawn().context("cannot start cargo test")?;
    let output = cargo.stdout.take().context("cargo test has no output")?;
    let mut counted = Counts::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo test prints")?;
        println!("{line}");
        counted.add(&line);
    }
    let status = cargo.wait().context("cannot wait for cargo test")?;
    println!("{} passed, {} failed, {} skipped", counted.passed, counted.failed, counted.ignored);
    ensure!(status.success(), "cargo test: {status}");
    Ok(())
}

#[derive(Default, Debug, PartialEq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Takes in `test result: ok. 3 passed; 0 failed; 1 ignored; ...`; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let (_verdict, result) = result.split_once(". ").unwrap_or_default();
        for part in result.split("; ") {
            match part.split_once(' ').and_then(|(count, what)| Some((count.parse::<u64>().ok()?, what))) {
                Some((count, "passed")) => self.passed += count,
                Some((count, "failed")) => self.failed += count,
                Some((count, "ignored")) => self.ignored += count,
                _ => {}
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "a command line tool times its own steps")]
fn now() -> Instant {
    Instant::now()
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_binaries_add_up() {
        let mut counts = Counts::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
            "test tests::a ... ok",
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.00s",
        ] {
            counts.add(line);
        }
        assert_eq!(counts, Counts { passed: 5, failed: 4, ignored: 1 });
    }
}
