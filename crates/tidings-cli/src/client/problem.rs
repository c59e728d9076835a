//! What a node, or the way to it, has to object.

use reqwest::{Response, StatusCode};
use serde::Deserialize;

use super::Address;
use crate::exit::{Exit, Failure};
use crate::output::plain;

/// An error answer (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    /// Stable name of the error; empty if the answer was no problem document.
    pub(crate) code: String,
    /// HTTP status.
    pub(crate) status: u16,
    /// What went wrong, in general.
    pub(crate) title: String,
    /// What went wrong this time.
    pub(crate) detail: String,
    /// One by one, where there may be several.
    pub(crate) reasons: Vec<String>,
}

/// Most bytes of an answer that is no problem document shown to the user.
const EXCERPT_CHARS: usize = 200;

/// Reads the problem of an error answer, whatever it looks like.
pub(super) async fn problem_of(response: Response) -> Problem {
    let status = response.status();
    let body = response.bytes().await.unwrap_or_default();
    read(status, &body)
}

fn read(status: StatusCode, body: &[u8]) -> Problem {
    let mut problem: Problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        detail: String::from_utf8_lossy(body).trim().chars().take(EXCERPT_CHARS).collect(),
        ..Problem::default()
    });
    problem.status = status.as_u16();
    if problem.title.is_empty() {
        problem.title = status.canonical_reason().unwrap_or("error").to_lowercase();
    }
    problem
}

/// What a problem means for the exit code and the user.
pub(super) fn failure_of(problem: &Problem) -> Failure {
    let exit = match problem.status {
        401 | 403 | 421 => Exit::Refused,
        429 if problem.code == "too_many_failures" => Exit::Refused,
        404 | 410 => Exit::NotFound,
        409 | 412 => Exit::Conflict,
        408 | 502..=504 => Exit::Unreachable,
        _ => Exit::Failed,
    };
    let what = if problem.detail.is_empty() { &problem.title } else { &problem.detail };
    let name = if problem.code.is_empty() { problem.status.to_string() } else { problem.code.clone() };
    let failure = Failure::new(exit, plain(&format!("{what} ({name})")));
    match (problem.code.as_str(), problem.status) {
        ("unknown_cache", _) => failure.hint("`tidings cache ls` lists the node's caches"),
        ("unknown_topic", _) => failure.hint("`tidings stream ls` lists the node's topics"),
        ("unknown_group", _) => failure.hint("`tidings group add` makes one"),
        ("not_configured", _) => failure.hint("the node's configuration has no section for this"),
        (_, 401) => failure.hint("pass a token that the node knows with --token-file"),
        ("forbidden" | "payloads_forbidden", _) => {
            failure.hint("--token-file names the token; `tidings token create` makes one that may")
        }
        (_, 421) => {
            failure.hint("use the address that the node listens on, or add the host to http.allowed_hosts")
        }
        (_, 429) => failure.hint("the node is overloaded: try again later"),
        _ => failure,
    }
}

/// Why no answer came.
pub(super) fn unreachable(address: &Address, error: &reqwest::Error) -> Failure {
    // The innermost error says what happened; those around it only where.
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if let Some(refused) = tls_failure(error) {
        let message = format!("{address} is not trusted: {refused}");
        let hint = "--ca-file or TIDINGS_CA_FILE names the authority of the node's certificate; it has to name the host";
        return Failure::new(Exit::Refused, plain(&message)).hint(hint);
    }
    let failure = if error.is_timeout() {
        Failure::new(Exit::Unreachable, format!("{address} did not answer in time"))
    } else if error.is_builder() {
        return Failure::new(Exit::Usage, format!("the request cannot be sent: {cause}"));
    } else {
        Failure::new(Exit::Unreachable, format!("cannot reach {address}: {cause}"))
    };
    failure.hint("is the node running, and its [http] section set? --url or TIDINGS_URL names another")
}

/// What TLS has to object, if that is why there is no answer.
fn tls_failure<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = match error.downcast_ref::<std::io::Error>() {
        // Its source is not what it holds, but the source of that.
        Some(error) => error.get_ref().map(|held| held as &(dyn std::error::Error + 'static)),
        None => error.source(),
    };
    error.downcast_ref().or_else(|| tls_failure(inner?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_exit_codes() {
        for (status, exit) in [
            (400, Exit::Failed),
            (401, Exit::Refused),
            (403, Exit::Refused),
            (404, Exit::NotFound),
            (409, Exit::Conflict),
            (412, Exit::Conflict),
            (413, Exit::Failed),
            (421, Exit::Refused),
            (429, Exit::Failed),
            (500, Exit::Failed),
            (503, Exit::Unreachable),
        ] {
            let problem = read(StatusCode::from_u16(status).unwrap(), b"{}");
            assert_eq!(failure_of(&problem).exit(), exit, "{status}");
        }
    }

    #[test]
    fn problems_are_told_with_their_code() {
        let body = br#"{"code":"unknown_cache","title":"not found","detail":"there is no cache \"x\"","status":404}"#;
        let failure = failure_of(&read(StatusCode::NOT_FOUND, body));
        assert!(failure.to_string().starts_with("there is no cache \"x\" (unknown_cache)"), "{failure}");
    }

    #[test]
    fn answers_of_something_else_are_told_too() {
        let failure = failure_of(&read(StatusCode::INTERNAL_SERVER_ERROR, b"<html>oops</html>"));
        assert_eq!(failure.to_string(), "<html>oops</html> (500)");
    }
}
