//! A directory per test, removed with it; and what a run that was killed has left behind, removed at the next start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// Names of everything that a test process makes outside itself begin so; its process id follows.
pub const PREFIX: &str = "tidings-test-";

static SWEPT: Once = Once::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A fresh name: unique on this machine as long as this process lives.
#[must_use]
pub fn unique_name() -> String {
    SWEPT.call_once(sweep);
    format!("{PREFIX}{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Holds other tests that need the machine's time for themselves back until it is dropped, in this process and in
/// every other.
#[derive(Debug)]
pub struct Alone(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl Alone {
    /// Waits for its turn.
    pub fn wait() -> Result<Self> {
        let path =
            std::env::temp_dir().join(format!("tidings-tests-{}.lock", rustix::process::getuid().as_raw()));
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        file.lock().context("cannot lock")?;
        Ok(Self(file))
    }
}

/// A directory that goes when this is dropped; with the next run if `TIDINGS_TEST_LOGS` is set or the test panics.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes one with a fresh name.
    pub fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(unique_name());
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::env::var_os("TIDINGS_TEST_LOGS").is_some() || std::thread::panicking() {
            eprintln!("kept: {}", self.0.display());
        } else if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The process id in a name that [`unique_name`] made, if that process has ended.
pub(crate) fn ended_owner(name: &str) -> Option<u32> {
    let owner: u32 = name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()?;
    (!Path::new("/proc").join(owner.to_string()).exists()).then_some(owner)
}

/// Ends the processes that ended test processes started, each recognised by a directory of theirs among its
/// arguments, and removes those directories.
fn sweep() {
    for process in entries(Path::new("/proc")) {
        let Some(pid) = name_of(&process).and_then(|name| Pid::from_raw(name.parse().ok()?)) else {
            continue;
        };
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        if arguments.split(['\0', '/']).any(|part| ended_owner(part).is_some()) {
            eprintln!("ending {pid:?}, left behind: {}", arguments.replace('\0', " "));
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    for directory in entries(&std::env::temp_dir()) {
        if name_of(&directory).and_then(ended_owner).is_some() {
            // Two test processes may find the same one.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// What a directory holds; nothing if it cannot be read.
pub(crate) fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// The last part of a path.
pub(crate) fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_test() {
        let directory = Directory::create().expect("a directory");
        let path = directory.path().to_owned();
        assert!(path.is_dir());
        drop(directory);
        assert!(!path.exists() || std::env::var_os("TIDINGS_TEST_LOGS").is_some());
    }

    #[test]
    fn only_names_of_ended_processes_are_swept() {
        assert_eq!(ended_owner(&unique_name()), None);
        assert_eq!(ended_owner("tidings-test-4194999-0"), Some(4_194_999));
        assert_eq!(ended_owner("tidings-4194999-0"), None);
    }
}
