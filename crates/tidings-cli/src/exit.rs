//! How the program ends: one meaning per exit code.

use std::fmt;
use std::process::ExitCode;

/// What an exit code means. `check` verbs have codes of their own: [`crate::verbs::check::Health`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Ok = 0,
    /// The operation failed, or found what it was told to look for.
    Failed = 1,
    /// The command line makes no sense. clap ends with the same code.
    Usage = 2,
    /// The cache, key, node or file does not exist.
    NotFound = 3,
    /// The node, or a server that it needs, cannot be reached, or did not answer in time.
    Unreachable = 4,
    /// The node, or a server that it needs, refused: authentication, authorisation, TLS.
    Refused = 5,
    /// Something else is in the way: a conflict or a failed precondition.
    Conflict = 6,
    /// Done, but some peers did not answer.
    Partial = 7,
    /// The configuration cannot be used (`EX_CONFIG`).
    Configuration = 78,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error as the user meets it: what went wrong, what to do about it, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// A failure with its message: lower case, no full stop.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// A failure about which everything has been said already: nothing is printed.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self::new(exit, "")
    }

    /// Adds what the user can do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Whether there is anything to print.
    pub(crate) fn is_silent(&self) -> bool {
        self.message.is_empty()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n  hint: {hint}"))
    }
}

impl std::error::Error for Failure {}

/// An error with everything that led to it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
