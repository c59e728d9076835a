//! Conventions that neither the compiler nor clippy checks. Edges between crates are a test of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::Table;

use crate::workspace::{Workspace, none_of};

/// Longest source file: one idea fits, two do not.
const FILE_LINES_MAX: usize = 500;

/// What must not stay in a source file, spelled in two halves so that this file may name it.
const LEFTOVERS: [(&str, &str); 5] =
    [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("TO", "DO"), ("#[ig", "nore")];

/// Lock files of the workspaces: what both lock is tested as it is shipped, and built once.
const LOCKS: [&str; 2] = ["Cargo.lock", "tests/turmoil/Cargo.lock"];

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
    let [own, other] = LOCKS.map(|name| std::fs::read_to_string(workspace.root.join(name)));
    findings.extend(other_versions(&own.context(LOCKS[0])?, &other.context(LOCKS[1])?)?);
    none_of(&findings)
}

/// Packages whose version in the second lock file is not that of the first, though it could be.
fn other_versions(own: &str, other: &str) -> Result<Vec<String>> {
    let (own, other) = (locked(own)?, locked(other)?);
    let differs = |(package, versions): (&Package, &Vec<String>)| {
        let here = own.get(package)?;
        (here != versions)
            .then(|| format!("{} {versions:?} in {}, {here:?} in {}", package.0, LOCKS[1], LOCKS[0]))
    };
    Ok(other.iter().filter_map(differs).collect())
}

/// A package's name, and what of its versions is the same in all that may stand for each other.
type Package = (String, String);

fn locked(lock: &str) -> Result<BTreeMap<Package, Vec<String>>> {
    let lock: Table = lock.parse()?;
    let mut locked = BTreeMap::<Package, Vec<String>>::new();
    for package in lock.get("package").and_then(toml::Value::as_array).into_iter().flatten() {
        let text =
            |name: &str| package.get(name).and_then(toml::Value::as_str).context("no lock file of cargo's");
        let (name, version) = (text("name")?, text("version")?);
        let parts = version.split('.').enumerate();
        // Up to the first part that is not zero.
        let end = parts.clone().find(|(_, part)| *part != "0").map_or(2, |(at, _)| at);
        let compatible: Vec<&str> = parts.take_while(|(at, _)| *at <= end).map(|(_, part)| part).collect();
        locked.entry((name.to_owned(), compatible.join("."))).or_default().push(version.to_owned());
    }
    Ok(locked)
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
    fn a_package_that_two_workspaces_lock_differently_is_found() {
        let lock = |packages: &[(&str, &str)]| {
            let package = |(name, version): &(&str, &str)| {
                format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n")
            };
            packages.iter().map(package).collect::<String>()
        };
        let own = lock(&[("a", "1.2.3"), ("b", "0.3.4"), ("b", "0.2.1"), ("c", "0.0.1"), ("own", "1.0.0")]);
        let found =
            |packages: &[(&str, &str)]| other_versions(&own, &lock(packages)).expect("lock files").len();
        assert_eq!(found(&[("a", "1.2.3"), ("b", "0.2.1"), ("other", "7.0.0")]), 0);
        assert_eq!(found(&[("a", "2.0.0"), ("b", "0.4.0"), ("c", "0.0.2")]), 0, "what cannot be the same");
        assert_eq!(found(&[("a", "1.2.4"), ("b", "0.3.5")]), 2);
    }

    #[test]
    fn directories_of_every_machine_are_no_finding() {
        assert!(!machine_paths(Path::new("/tmp/clone")).contains(&"/tmp/".to_owned()));
        assert!(machine_paths(Path::new("/data/clone")).contains(&"/data/".to_owned()));
    }
}
