//! Runs one test binary for cargo, with as many tests at a time as suit it.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Test binaries whose tests wait for their nodes most of the time, and compute little: the façade's take 150 seconds two
/// at a time, of which they compute 25.
const WAITING: [&str; 5] = ["api", "cluster", "facade", "hostile", "loud_start"];

/// How many of their tests run at a time.
const WAITING_THREADS: &str = "8";

/// What the test harness reads that from.
const THREADS: &str = "RUST_TEST_THREADS";

/// What has cargo run test binaries by this program.
pub(crate) fn configuration() -> Result<String> {
    let program = std::env::current_exe().context("this program has no path")?;
    let program = program.to_str().context("this program's path is not UTF-8")?;
    // Of every target.
    Ok(format!("target.'cfg(all())'.runner = [{program:?}, \"run\"]"))
}

/// Runs a test binary to its end.
pub(crate) fn run(binary: &OsString, arguments: &[OsString]) -> Result<()> {
    let mut command = Command::new(binary);
    command.args(arguments);
    if waits(Path::new(binary)) && std::env::var_os(THREADS).is_none() {
        command.env(THREADS, WAITING_THREADS);
    }
    let status = command.status().with_context(|| format!("cannot start {}", binary.display()))?;
    ensure!(status.success(), "{}: {status}", binary.display());
    Ok(())
}

/// Whether a binary is one of those: its name is that of its target, and a hash.
fn waits(binary: &Path) -> bool {
    let name = binary.file_stem().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once('-'));
    name.is_some_and(|(target, _hash)| WAITING.contains(&target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_known_by_the_names_of_their_targets() {
        assert!(waits(Path::new("/target/debug/deps/facade-e0e657018f6da263")));
        assert!(!waits(Path::new("/target/debug/deps/it-e0e657018f6da263")));
        assert!(!waits(Path::new("/target/debug/facade")));
    }
}
