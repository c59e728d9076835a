//! Figures that a test has read, for the table that `cargo xtask guarantees` prints. Tests of every crate note theirs
//! here, so it depends on none of them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Names the file that figures are appended to, one JSON object a line. Without it they are only printed.
pub const FILE_VARIABLE: &str = "TIDINGS_FACTS";

/// What one trial of a guarantee came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Which guarantees, `G2 G13`.
    pub guarantees: String,
    /// What was tried, in words.
    pub trial: String,
    /// What was read, with units.
    pub read: String,
}

/// Notes what the test that runs on this thread has read.
///
/// # Panics
/// If the file that the environment names cannot be written.
pub fn note(guarantees: &str, read: impl Into<String>) {
    let thread = std::thread::current();
    let trial = words(thread.name().unwrap_or("a trial without a name"));
    let fact = Fact { guarantees: guarantees.to_owned(), trial, read: read.into() };
    eprintln!("{}: {}: {}", fact.guarantees, fact.trial, fact.read);
    if let Some(path) = std::env::var_os(FILE_VARIABLE).map(PathBuf::from) {
        append(&path, &fact);
    }
}

fn append(path: &Path, fact: &Fact) {
    let line = serde_json::to_string(fact).expect("plain strings");
    let file = File::options().create(true).append(true).open(path);
    // In one call, for several test processes may write.
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.unwrap_or_else(|error| panic!("{FILE_VARIABLE}: cannot write {}: {error}", path.display()));
}

/// A test's name as a sentence says it.
fn words(test: &str) -> String {
    test.rsplit("::").next().unwrap_or(test).replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_lines_that_say_what_was_tried() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("facts");
        let fact = |read: &str| Fact {
            guarantees: "G2".to_owned(),
            trial: words("cuts::a_pair_cut_one_way_breaks_no_promise"),
            read: read.to_owned(),
        };
        append(&path, &fact("1 hit"));
        append(&path, &fact("2 hits"));
        let text = std::fs::read_to_string(&path).expect("a file");
        let facts: Vec<Fact> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(facts, [fact("1 hit"), fact("2 hits")]);
        assert_eq!(facts[0].trial, "a pair cut one way breaks no promise");
    }
}
