//! Conventions that neither the compiler nor clippy checks. Edges between crates are a test of their own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::Table;

use crate::workspace::{Workspace, none_of};

/// Longest source file: one idea fits, two do not.
const FILE_LINES_MAX: usize = 500;

/// What must not stay in a source file, spelled in two halves so that this file may name it.
const LEFTOVERS: [(&str, &str); 5] =
    [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("TO", "DO"), ("#[ig", "nore")];

/// Checks every member and every file.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut findings = Vec::new();
    for member in workspace.members() {
        let manifest =
            Path::new(member["manifest_path"].as_str().context("cargo metadata: no manifest path")?);
        let text = std::fs::read_to_string(manifest).with_context(|| manifest.display().to_string())?;
        let document: Table = text.parse().with_context(|| manifest.display().to_string())?;
        let inherits =
            document.get("lints").and_then(|lints| lints.get("workspace")).and_then(toml::Value::as_bool);
        if inherits != Some(true) {
            findings.push(format!("{}: no `[lints] workspace = true`", manifest.display()));
        }
    }
    let paths = machine_paths(&workspace.root);
    for name in workspace.files()? {
        // Anything that is not text has neither lines nor words.
        let Ok(text) = std::fs::read_to_string(workspace.root.join(&name)) else { continue };
        findings.extend(findings_in(&name, &text, &paths));
    }
    none_of(&findings)
}

fn findings_in(name: &str, text: &str, paths: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut leftovers = Vec::new();
    if name.ends_with(".rs") {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            findings.push(format!("{name}: {lines} lines, more than {FILE_LINES_MAX}"));
        }
        if is_crate_root(name) && !text.starts_with("//!") {
            findings.push(format!("{name}: does not say what the crate is for"));
        }
        leftovers.extend(LEFTOVERS.iter().map(|(head, tail)| format!("{head}{tail}")));
    }
    for (number, line) in text.lines().enumerate() {
        for unwanted in paths.iter().chain(&leftovers).filter(|unwanted| line.contains(unwanted.as_str())) {
            findings.push(format!("{name}:{}: {unwanted}", number + 1));
        }
    }
    findings
}

fn is_crate_root(name: &str) -> bool {
    name.ends_with("src/lib.rs") || name.ends_with("src/main.rs")
}

/// Directories that only this machine has: the workspace, what it lies in, and the user's home. Those that every
/// machine has are no finding.
fn machine_paths(root: &Path) -> Vec<String> {
    let shared = ["/", "/home", "/opt", "/srv", "/tmp", "/usr/src", "/var/tmp"].map(PathBuf::from);
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let candidates = [Some(root.to_owned()), root.parent().map(Path::to_owned), home];
    let own = candidates.into_iter().flatten().filter(|path| path.is_absolute() && !shared.contains(path));
    own.map(|path| format!("{}/", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> usize {
        findings_in(name, text, &["/somewhere/".to_owned()]).len()
    }

    #[test]
    fn each_broken_convention_is_found() {
        assert_eq!(found("a/src/lib.rs", "//! What it is for.\nfn a() {}\n"), 0);
        assert_eq!(found("a/src/lib.rs", "fn a() {}\n"), 1);
        assert_eq!(found("a/src/b.rs", &"\n".repeat(FILE_LINES_MAX)), 0);
        assert_eq!(found("a/src/b.rs", &"\n".repeat(FILE_LINES_MAX + 1)), 1);
        assert_eq!(found("README.md", "see /somewhere/else\n"), 1);
        assert_eq!(found("a/src/b.rs", &format!("{}{}true)\n", "dbg", "!(")), 1);
    }

    #[test]
    fn directories_of_every_machine_are_no_finding() {
        assert!(!machine_paths(Path::new("/tmp/clone")).contains(&"/tmp/".to_owned()));
        assert!(machine_paths(Path::new("/data/clone")).contains(&"/data/".to_owned()));
    }
}
