//! What a server's refusal means.

use std::error::Error;
use std::fmt::Display;
use std::io;

use async_nats::jetstream::context::{PublishError, PublishErrorKind, RequestError, RequestErrorKind};
use async_nats::jetstream::{Error as ApiError, ErrorCode};

use super::config::ConnectError;
use crate::error::StoreError;

/// What follows from an error.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is no such stream, or no such message. Of what was published: nobody takes it, which may have other
    /// reasons.
    Missing,
    /// Somebody else has written to the subject since.
    Behind,
    /// Anything else.
    Store(StoreError),
}

impl Refusal {
    /// What it is where nothing can be missing, and nobody else writes.
    pub(super) fn into_store(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Missing => lost("it has no such stream any more"),
            Self::Behind => StoreError::Unreachable("others write to it all the time".to_owned()),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Something that was there is not.
fn lost(what: &str) -> StoreError {
    let text = format!("the server refuses: {what}; did somebody delete it?");
    io::Error::new(io::ErrorKind::NotFound, text).into()
}

/// An answer of the server's interface for streams.
pub(super) fn of_api(error: &ApiError) -> Refusal {
    let said = error.to_string();
    let (kind, advice) = match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::NO_MESSAGE_FOUND | ErrorCode::CONSUMER_NOT_FOUND => {
            return Refusal::Missing;
        }
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => return Refusal::Behind,
        ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT | ErrorCode::JETSTREAM_NOT_ENABLED => {
            (io::ErrorKind::Unsupported, "enable JetStream for the account")
        }
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::MAXIMUM_STREAMS_LIMIT => {
            (io::ErrorKind::StorageFull, "raise the limits of JetStream, or let topics keep less")
        }
        ErrorCode::STREAM_NAME_EXIST | ErrorCode::STREAM_SUBJECT_OVERLAP => {
            (io::ErrorKind::InvalidData, "something else uses its names: take another prefix")
        }
        // The server or its cluster is not ready, or has no leader for now, or whoever has the stream is not there.
        ErrorCode::STREAM_OFFLINE | ErrorCode::CLUSTER_NOT_LEADER => {
            return Refusal::Store(StoreError::Unreachable(said));
        }
        _ if error.code() == 503 => return Refusal::Store(StoreError::Unreachable(said)),
        _ => (io::ErrorKind::Other, "what was done is not known"),
    };
    Refusal::Store(io::Error::new(kind, format!("the server refuses: {said}; {advice}")).into())
}

/// A request that has no answer.
pub(super) fn of_request(error: &RequestError) -> Refusal {
    match error.kind() {
        RequestErrorKind::NoResponders => {
            Refusal::Store(StoreError::Unreachable("JetStream does not answer".to_owned()))
        }
        _ => Refusal::Store(StoreError::Unreachable(error.to_string())),
    }
}

/// An event, or whatever else, that was not stored.
pub(super) fn of_publish(error: &PublishError) -> Refusal {
    match error.kind() {
        PublishErrorKind::StreamNotFound => Refusal::Missing,
        PublishErrorKind::WrongLastSequence => Refusal::Behind,
        PublishErrorKind::MaxPayloadExceeded => Refusal::Store(too_large(&error)),
        _ => of_any(error),
    }
}

/// What the server itself said, or else what kept it from that.
pub(super) fn of_any(error: &(dyn Error + 'static)) -> Refusal {
    match api_error(error) {
        Some(error) => of_api(error),
        None => Refusal::Store(StoreError::Unreachable(error.to_string())),
    }
}

fn api_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a ApiError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// A message is larger than the server takes.
pub(super) fn too_large(said: &dyn Display) -> StoreError {
    let text = format!("the server takes no message as large: {said}; raise its max_payload");
    io::Error::new(io::ErrorKind::InvalidInput, text).into()
}

/// What is stored is not what was written.
pub(super) fn unreadable(what: &str, error: &dyn Display) -> StoreError {
    let text = format!(
        "a message of the store is no {what} that this release can read ({error}): is it of a later release, or of \
         somebody else?"
    );
    io::Error::new(io::ErrorKind::InvalidData, text).into()
}

/// A server that cannot be had, to whoever had one before: most of that passes.
impl From<ConnectError> for StoreError {
    fn from(error: ConnectError) -> Self {
        let kind = match error {
            ConnectError::Unreachable { .. } => return Self::Unreachable(error.to_string()),
            ConnectError::Refused { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: usize, error_code: u64, description: &str) -> Refusal {
        let text = format!(r#"{{"code":{code},"err_code":{error_code},"description":"{description}"}}"#);
        of_api(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn what_a_server_refuses_says_what_to_do() {
        let refused = |refusal: Refusal| match refusal {
            Refusal::Store(StoreError::Failed(error)) => (error.kind(), error.to_string()),
            other => panic!("{other:?}"),
        };
        let (kind, text) = refused(said(503, 10_023, "insufficient resources"));
        assert!(kind == io::ErrorKind::StorageFull && text.contains("raise the limits"), "{text}");
        let (_, text) = refused(said(503, 10_039, "jetstream not enabled for account"));
        assert!(text.contains("enable JetStream"), "{text}");
        assert_eq!(refused(said(400, 10_025, "whatever")).0, io::ErrorKind::Other);
    }

    #[test]
    fn what_passes_is_not_refused() {
        let passes = said(503, 10_008, "JetStream system temporarily unavailable");
        assert!(matches!(passes, Refusal::Store(StoreError::Unreachable(_))));
        let passes = said(500, 10_118, "stream is offline");
        assert!(matches!(passes, Refusal::Store(StoreError::Unreachable(_))));
        assert!(matches!(said(400, 10_071, "wrong last sequence: 5"), Refusal::Behind));
        assert!(matches!(said(404, 10_037, "no message found"), Refusal::Missing));
    }
}
