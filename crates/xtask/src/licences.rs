//! Licences, banned crates and sources of every dependency, judged by `deny.toml` without installing anything.

use anyhow::{Context, Result};
use spdx::{Expression, Licensee, ParseMode};
use toml::{Table, Value};

use crate::workspace::{Workspace, none_of};

/// Checks every package of the lock file.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let text = std::fs::read_to_string(workspace.root.join("deny.toml")).context("cannot read deny.toml")?;
    let policy = Policy::parse(&text)?;
    let mut findings = Vec::new();
    for package in workspace.packages() {
        let field = |name: &str| package[name].as_str();
        let name = field("name").unwrap_or_default();
        for finding in policy.findings(name, field("license"), field("source")) {
            findings.push(format!("{name} {}: {finding}", field("version").unwrap_or_default()));
        }
    }
    none_of(&findings)
}

/// What `deny.toml` allows.
struct Policy {
    licences: Vec<Licensee>,
    registries: Vec<String>,
    banned: Vec<String>,
}

impl Policy {
    fn parse(text: &str) -> Result<Self> {
        let document: Table = text.parse().context("deny.toml")?;
        let list = |section: &str, field: &str, name: fn(&Value) -> Option<&str>| -> Result<Vec<String>> {
            let values =
                document.get(section).and_then(|section| section.get(field)).and_then(Value::as_array);
            let values = values.with_context(|| format!("deny.toml: no list {section}.{field}"))?;
            Ok(values.iter().filter_map(name).map(str::to_owned).collect())
        };
        let licences = list("licenses", "allow", Value::as_str)?;
        Ok(Self {
            licences: licences.iter().map(|name| Licensee::parse(name)).collect::<Result<_, _>>()?,
            registries: list("sources", "allow-registry", Value::as_str)?,
            banned: list("bans", "deny", |ban| ban.get("crate")?.as_str())?,
        })
    }

    fn findings(&self, name: &str, licence: Option<&str>, source: Option<&str>) -> Vec<String> {
        let mut findings = Vec::new();
        let licence = licence.unwrap_or("none named");
        if !self.allows(licence) {
            findings.push(format!("licence {licence}"));
        }
        if self.banned.iter().any(|banned| banned == name) {
            findings.push("banned".to_owned());
        }
        // Without a source it is a package of this workspace.
        if let Some(source) = source
            && !self.registries.iter().any(|registry| source.strip_prefix("registry+") == Some(registry))
        {
            findings.push(format!("source {source}"));
        }
        findings
    }

    /// Whether an SPDX expression can be met with allowed licences alone.
    fn allows(&self, expression: &str) -> bool {
        Expression::parse_mode(expression, ParseMode::LAX).is_ok_and(|expression| {
            expression.evaluate(|needed| self.licences.iter().any(|allowed| allowed.satisfies(needed)))
        })
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
        for allowed in ["MIT", "GPL-3.0/MIT", "(GPL-3.0 OR MIT) AND ISC", "Apache-2.0 WITH LLVM-exception"] {
            assert!(policy.allows(allowed), "{allowed}");
        }
        for refused in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "MIT ISC"] {
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
