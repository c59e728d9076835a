//! What a server's refusal means.

use std::io;

use redis::{ErrorKind, RedisError};

use super::config::ConnectError;
use crate::error::{GroupError, StoreError};

/// What follows from an error.
#[derive(Debug)]
pub(super) enum Means {
    /// The connection is of no use any more. Whether the call was done is not known.
    Lost(String),
    /// The server is not ready, and has done nothing.
    Later(String),
    /// It is no primary any more, and has done nothing: another one may answer at the same address.
    Demoted,
    /// It does not know a script that it is asked to run.
    NoScript,
    /// It will not do it, now or later.
    Refused(StoreError),
}

/// What a refusal begins with.
pub(super) const REFUSES: &str = "the server refuses: ";

/// Codes that a script passes on behind one of its own, before release 7.
const PASSED_ON: [&str; 7] = ["OOM", "MISCONF", "NOREPLICAS", "READONLY", "NOPERM", "NOGROUP", "WRONGTYPE"];

pub(super) fn meaning(error: &RedisError) -> Means {
    let said = error.to_string();
    let passed_on = || PASSED_ON.into_iter().find(|code| said.contains(&format!("-{code} ")));
    let code = match error.code() {
        Some("ERR") => passed_on().unwrap_or("ERR"),
        Some(code) => code,
        None if error.kind() == ErrorKind::AuthenticationFailed => "WRONGPASS",
        None => return Means::Lost(said),
    };
    let (kind, advice) = match code {
        "NOSCRIPT" => return Means::NoScript,
        "READONLY" => return Means::Demoted,
        "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" => return Means::Later(said),
        // It cannot write to its disk, or has too few replicas: a script's first write is refused, or none.
        "MISCONF" | "NOREPLICAS" => return Means::Later(said),
        "MOVED" | "ASK" | "CROSSSLOT" => {
            (io::ErrorKind::Unsupported, "a store is in one slot: give the URL of the node that has it")
        }
        "NOPERM" => (
            io::ErrorKind::PermissionDenied,
            "its user needs the commands of streams, hashes, sorted sets and scripts on the keys of the prefix",
        ),
        "NOAUTH" | "WRONGPASS" => {
            (io::ErrorKind::PermissionDenied, "correct the user and the password in the URL")
        }
        "OOM" => (io::ErrorKind::OutOfMemory, "raise its maxmemory, or let topics keep less"),
        "WRONGTYPE" => (io::ErrorKind::InvalidData, "something else uses its keys: take another prefix"),
        "NOGROUP" => (io::ErrorKind::NotFound, "somebody else has removed the group: make it again"),
        _ => (io::ErrorKind::Other, "what was done is not known"),
    };
    Means::Refused(io::Error::new(kind, format!("{REFUSES}{said}; {advice}")).into())
}

/// What is answered where an answer was expected to be something else.
pub(super) fn unexpected(what: &str) -> StoreError {
    let text = format!("the server's answer has no {what}: are its keys used by somebody else?");
    io::Error::new(io::ErrorKind::InvalidData, text).into()
}

/// A group that the server does not have though its keys are there was removed by somebody else.
pub(super) fn of_group(error: StoreError) -> GroupError {
    match error {
        StoreError::Failed(refused) if refused.kind() == io::ErrorKind::NotFound => GroupError::Unknown,
        error => error.into(),
    }
}

/// A server that cannot be had, to whoever had one before: most of that passes.
impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::TooOld { .. } | ConnectError::Url(_) | ConnectError::Prefix(_) => {
                io::Error::new(io::ErrorKind::Unsupported, error).into()
            }
            ConnectError::Refused { .. } => io::Error::new(io::ErrorKind::PermissionDenied, error).into(),
            ConnectError::Unreachable { .. } | ConnectError::Replica { .. } => {
                Self::Unreachable(error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: &str, detail: &str) -> Means {
        meaning(&redis::make_extension_error(code.to_owned(), Some(detail.to_owned())))
    }

    #[test]
    fn what_a_server_refuses_says_what_to_do() {
        let refused = |means: Means| match means {
            Means::Refused(StoreError::Failed(error)) => (error.kind(), error.to_string()),
            other => panic!("{other:?}"),
        };
        let (kind, text) = refused(said("OOM", "command not allowed"));
        assert!(kind == io::ErrorKind::OutOfMemory && text.contains("maxmemory"), "{text}");
        // Before release 7 a script's error stands around it.
        let old =
            "Error running script (call to f_0): @user_script:9: @user_script: 9: -OOM command not allowed";
        assert_eq!(refused(said("ERR", old)).0, io::ErrorKind::OutOfMemory);
        assert_eq!(refused(said("NOAUTH", "Authentication required.")).0, io::ErrorKind::PermissionDenied);
        assert_eq!(refused(said("ERR", "whatever")).0, io::ErrorKind::Other);
    }

    #[test]
    fn what_passes_is_not_refused() {
        assert!(matches!(said("BUSY", "Redis is busy running a script"), Means::Later(_)));
        assert!(matches!(said("MISCONF", "Errors writing to the AOF file"), Means::Later(_)));
        let old =
            "Error running script (call to f_0): @user_script:9: @user_script: 9: -NOREPLICAS Not enough";
        assert!(matches!(said("ERR", old), Means::Later(_)));
        let gone = RedisError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(meaning(&gone), Means::Lost(_)));
    }
}
