//! What is wrong, or worth knowing, about a configuration.

use std::fmt;

use serde::Serialize;

use crate::secrets::redacted;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but not quite as written.
    Warning,
}

/// One thing found. Passwords of URLs in what it says are not shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// How much it matters.
    pub(crate) severity: Severity,
    /// Path of the setting, such as `cluster.listen` or `cache[1].name`; empty if it is about the whole.
    pub(crate) key: String,
    /// Line of the file, from 1; none for what is missing or set elsewhere.
    pub(crate) line: Option<usize>,
    /// What is the matter.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) help: Option<String>,
}

impl Finding {
    /// The configuration cannot be used.
    pub(crate) fn error(key: impl Into<String>, message: impl Into<String>) -> Self {
        let message = redacted(&message.into());
        Self { severity: Severity::Error, key: key.into(), line: None, message, help: None }
    }

    /// The configuration can be used, but not quite as written.
    pub(crate) fn warning(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key, message) }
    }

    /// Adds the line of the file.
    #[must_use]
    pub(crate) fn at(mut self, line: Option<usize>) -> Self {
        self.line = line;
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(redacted(&help.into()));
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.is_empty(), self.line) {
            (true, None) => write!(f, "{}", self.message)?,
            (true, Some(line)) => write!(f, "line {line}: {}", self.message)?,
            (false, None) => write!(f, "{}: {}", self.key, self.message)?,
            (false, Some(line)) => write!(f, "{} (line {line}): {}", self.key, self.message)?,
        }
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "; {help}"))
    }
}

/// Whether any of them is an error.
pub(crate) fn any_error(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}
