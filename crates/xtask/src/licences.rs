//! Licences, banned crates and sources of every dependency, judged by `deny.toml` without installing anything.

use std::collections::BTreeSet;
use std::iter::Peekable;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::workspace::{Workspace, none_of};

/// Checks every package of the lock file.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let text = std::fs::read_to_string(workspace.root.join("deny.toml")).context("cannot read deny.toml")?;
    let policy = Policy::parse(&text)?;
    let findings: Vec<String> = workspace
        .packages()
        .flat_map(|package| {
            let field = |name: &str| package[name].as_str();
            let name = field("name").unwrap_or_default();
            let found = policy.findings(name, field("license"), field("source"));
            found.into_iter().map(move |finding| format!("{name} {}: {finding}", field("version").unwrap_or_default()))
        })
        .collect();
    none_of(&findings)
}

/// What `deny.toml` allows.
struct Policy {
    licences: BTreeSet<String>,
    registries: BTreeSet<String>,
    banned: BTreeSet<String>,
}

impl Policy {
    fn parse(text: &str) -> Result<Self> {
        let document: Table = text.parse().context("deny.toml")?;
        let list = |section: &str, field: &str| -> Result<&Vec<Value>> {
            let value = document.get(section).and_then(|section| section.get(field)).and_then(Value::as_array);
            value.with_context(|| format!("deny.toml: no list {section}.{field}"))
        };
        let strings = |values: &[Value]| values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let banned = list("bans", "deny")?.iter().filter_map(|ban| ban.get("crate")?.as_str()).map(str::to_owned);
        Ok(Self {
            licences: strings(list("licenses", "allow")?),
            registries: strings(list("sources", "allow-registry")?),
            banned: banned.collect(),
        })
    }

    fn findings(&self, name: &str, licence: Option<&str>, source: Option<&str>) -> Vec<String> {
        let mut findings = Vec::new();
        match licence {
            None => findings.push("no licence expression".to_owned()),
            Some(expression) if !self.allows(expression) => findings.push(format!("licence {expression}")),
            Some(_) => {}
        }
        if self.banned.contains(name) {
            findings.push("banned".to_owned());
        }
        // Without a source it is a package of this workspace.
        if let Some(source) = source
            && !source.strip_prefix("registry+").is_some_and(|registry| self.registries.contains(registry))
        {
            findings.push(format!("source {source}"));
        }
        findings
    }

    /// Whether an SPDX expression can be met with allowed licences alone.
    fn allows(&self, expression: &str) -> bool {
        let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
        let mut words = spaced.split_whitespace().peekable();
        self.either(&mut words) == Some(true) && words.next().is_none()
    }

    /// `both OR both ...`; `None` if it is malformed.
    fn either<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Option<bool> {
        let mut allowed = self.both(words)?;
        while words.next_if_eq(&"OR").is_some() {
            allowed |= self.both(words)?;
        }
        Some(allowed)
    }

    /// `term AND term ...`.
    fn both<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Option<bool> {
        let mut allowed = self.term(words)?;
        while words.next_if_eq(&"AND").is_some() {
            allowed &= self.term(words)?;
        }
        Some(allowed)
    }

    /// `( expression )`, `ID` or `ID WITH EXCEPTION`.
    fn term<'a>(&self, words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Option<bool> {
        let word = words.next()?;
        if word == "(" {
            let allowed = self.either(words)?;
            return words.next_if_eq(&")").map(|_| allowed);
        }
        let mut licence = word.to_owned();
        if words.next_if_eq(&"WITH").is_some() {
            licence = format!("{licence} WITH {}", words.next()?);
        }
        Some(self.licences.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::parse(
            "[licenses]\nallow = ['MIT', 'ISC', 'Apache-2.0 WITH LLVM-exception']\n\
             [sources]\nallow-registry = ['https://registry']\n[bans]\ndeny = [{ crate = 'bad', reason = 'r' }]",
        )
        .unwrap()
    }

    #[test]
    fn expressions_need_one_allowed_choice() {
        let policy = policy();
        for allowed in
            ["MIT", "GPL-3.0 OR MIT", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND ISC", "Apache-2.0 WITH LLVM-exception"]
        {
            assert!(policy.allows(allowed), "{allowed}");
        }
        for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "MIT ISC", "(MIT", "MIT OR", "OR MIT"] {
            assert!(!policy.allows(refused), "{refused}");
        }
    }

    #[test]
    fn licence_ban_and_source_are_each_found() {
        let policy = policy();
        assert!(policy.findings("good", Some("MIT"), Some("registry+https://registry")).is_empty());
        assert_eq!(policy.findings("bad", None, Some("git+https://elsewhere")).len(), 3);
    }
}
