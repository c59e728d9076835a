//! Runs the test binaries: several at a time where they wait more than they compute.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::workspace::Workspace;

/// Test binaries that have the machine for themselves: they judge how long things take, or compute all the time.
const ALONE: [(&str, &str); 6] = [
    ("tidings-tests", "it"),
    ("tidings-cache", "no_stale_set"),
    ("tidings-cache", "simulation"),
    ("tidings-proto", "interleavings"),
    ("tidings-proto", "model"),
    ("tidings-proto", "relays"),
];

/// Test binaries whose tests wait for their nodes most of the time, and compute little: the façade's take 150 seconds two
/// at a time, of which they compute 25.
const WAITING: [&str; 5] = ["facade", "api", "cluster", "hostile", "loud_start"];

/// How many of their tests run at a time.
const WAITING_THREADS: &str = "8";

/// The longest come first, so that none is left to the end.
const LONG: [&str; 6] = ["relays", "facade", "api", "cli", "tidings", "it"];

/// Binaries that run at a time: those that do compute a fifth of their time on two processors.
const AT_A_TIME: usize = 3;

/// What the test harness reads its number of threads from.
const THREADS: &str = "RUST_TEST_THREADS";

/// A test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Binary {
    package: String,
    target: String,
    path: PathBuf,
    /// Its package's, where it runs.
    directory: PathBuf,
}

impl Binary {
    /// That of a line of what cargo says of a build, if it is about one.
    fn in_line(line: &str) -> Option<Self> {
        let said: Value = serde_json::from_str(line).ok()?;
        let manifest = Path::new(said["manifest_path"].as_str()?);
        let is_test = said["reason"] == "compiler-artifact" && said["profile"]["test"] == true;
        let directory = manifest.parent()?.to_owned();
        is_test.then_some(Self {
            // An address with the version, or the name between.
            package: package_in(said["package_id"].as_str()?, &directory)?,
            target: said["target"]["name"].as_str()?.to_owned(),
            path: PathBuf::from(said["executable"].as_str()?),
            directory,
        })
    }

    fn is_alone(&self) -> bool {
        ALONE.contains(&(&*self.package, &*self.target))
    }

    /// Where among those that run together.
    fn place(&self) -> usize {
        LONG.iter().position(|target| *target == self.target).unwrap_or(LONG.len())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        if std::env::var_os("TIDINGS_BIN").is_none() {
            command.env("TIDINGS_BIN", program);
        }
        if WAITING.contains(&&*self.target) && std::env::var_os(THREADS).is_none() {
            command.env(THREADS, WAITING_THREADS);
        }
        command
    }
}

/// `path+file:///…/crates/tidings-proto#0.1.0`, or `…/tests#tidings-tests@0.1.0` where the directory is called otherwise.
fn package_in(id: &str, directory: &Path) -> Option<String> {
    let (_, name) = id.rsplit_once('#')?;
    match name.split_once('@') {
        Some((name, _version)) => Some(name.to_owned()),
        None => Some(directory.file_name()?.to_str()?.to_owned()),
    }
}

/// Builds all tests but those in documentation, runs them, and closes with one line that counts them all.
pub(crate) fn all(workspace: &Workspace) -> Result<()> {
    let program = workspace.target.join("release/tidings");
    let (alone, mut together): (Vec<_>, Vec<_>) = build(workspace)?.into_iter().partition(Binary::is_alone);
    together.sort_by_key(Binary::place);
    let waiting = Mutex::new(VecDeque::from(together));
    let ran = Mutex::new((Counts::default(), Vec::new()));
    let heard = |binary: &Binary, outcome: Result<(Counts, bool)>| {
        let mut ran = ran.lock().expect("nothing panics while it is locked");
        match outcome {
            Ok((counts, true)) => ran.0.add_all(counts),
            Ok((counts, false)) => {
                ran.0.add_all(counts);
                ran.1.push(format!("{} {}", binary.package, binary.target));
            }
            Err(error) => ran.1.push(format!("{} {}: {error:#}", binary.package, binary.target)),
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(binary) = next(&waiting) {
                    heard(&binary, quietly(&binary, &program));
                }
            });
        }
    });
    for binary in alone {
        heard(&binary, aloud(&binary, &program));
    }
    let (counts, failed) = ran.into_inner().expect("nothing panicked while it was locked");
    println!("{counts}");
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn next(waiting: &Mutex<VecDeque<Binary>>) -> Option<Binary> {
    waiting.lock().expect("nothing panics while it is locked").pop_front()
}

fn build(workspace: &Workspace) -> Result<Vec<Binary>> {
    let selection = ["--workspace", "--locked", "--lib", "--bins", "--tests", "--examples"];
    let mut command = workspace.cargo(&[&["test", "--no-run"], &selection[..]].concat());
    let output = command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit()).output();
    let output = output.context("cannot start cargo test")?;
    ensure!(output.status.success(), "cargo test --no-run: {}", output.status);
    let binaries: Vec<_> =
        output.stdout.lines().map_while(Result::ok).filter_map(|line| Binary::in_line(&line)).collect();
    ensure!(!binaries.is_empty(), "cargo has built no tests");
    Ok(binaries)
}

/// Runs a binary beside others: what it says is printed when it has ended.
fn quietly(binary: &Binary, program: &Path) -> Result<(Counts, bool)> {
    let begun = now();
    let output = binary
        .command(program)
        .output()
        .with_context(|| format!("cannot start {}", binary.path.display()))?;
    let mut stdout = std::io::stdout().lock();
    header(&mut stdout, binary, now() - begun)?;
    stdout.write_all(&output.stdout)?;
    stdout.write_all(&output.stderr)?;
    let mut counts = Counts::default();
    output.stdout.lines().map_while(Result::ok).for_each(|line| counts.add(&line));
    Ok((counts, output.status.success()))
}

/// Runs a binary that has the machine for itself, and prints what it says at once.
fn aloud(binary: &Binary, program: &Path) -> Result<(Counts, bool)> {
    let begun = now();
    println!("     Running {} {}", binary.package, binary.target);
    let (status, counts) = counted(&mut binary.command(program))?;
    header(&mut std::io::stdout().lock(), binary, now() - begun)?;
    Ok((counts, status))
}

fn header(to: &mut impl Write, binary: &Binary, took: Duration) -> Result<()> {
    writeln!(to, "     Ran {} {} in {:.1} s", binary.package, binary.target, took.as_secs_f64())
        .map_err(Into::into)
}

/// Runs doctests, and counts them.
pub(crate) fn doctests(workspace: &Workspace) -> Result<()> {
    let arguments = ["test", "--workspace", "--locked", "--no-fail-fast", "--doc"];
    let (is_well, counts) = counted(&mut workspace.cargo(&arguments))?;
    println!("{counts}");
    ensure!(is_well, "doctests failed");
    Ok(())
}

/// Whether a command ended well, and what it counted; its lines are printed as they come.
fn counted(command: &mut Command) -> Result<(bool, Counts)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start it")?;
    let output = child.stdout.take().context("it has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what it prints")?;
        println!("{line}");
        counts.add(&line);
    }
    Ok((child.wait().context("cannot wait for it")?.success(), counts))
}

#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored)
    }
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

    fn add_all(&mut self, others: Self) {
        self.passed += others.passed;
        self.failed += others.failed;
        self.ignored += others.ignored;
    }
}

#[allow(clippy::disallowed_methods, reason = "a command line tool times its own steps")]
fn now() -> Instant {
    Instant::now()
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

    #[test]
    fn binaries_are_found_in_what_cargo_says() {
        let line = |id: &str, manifest: &str, is_test: bool| {
            let target = r#"{"name":"it","kind":["test"]}"#;
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"{id}","manifest_path":"{manifest}","target":{target},
                "profile":{{"test":{is_test}}},"executable":"/target/it-1"}}"#
            )
        };
        let named = line("path+file:///w/tests#tidings-tests@0.1.0", "/w/tests/Cargo.toml", true);
        let found = Binary::in_line(&named).expect("a test");
        assert_eq!((&*found.package, &*found.target), ("tidings-tests", "it"));
        assert!(found.is_alone());
        let plain =
            line("path+file:///w/crates/tidings-streams#0.1.0", "/w/crates/tidings-streams/Cargo.toml", true);
        let found = Binary::in_line(&plain).expect("a test");
        assert_eq!((&*found.package, found.is_alone()), ("tidings-streams", false));
        assert_eq!(
            Binary::in_line(&line("path+file:///w/tests#tidings-tests@0.1.0", "/w/tests/Cargo.toml", false)),
            None
        );
        assert_eq!(Binary::in_line("warning: nothing"), None);
    }
}
