//! What can go wrong with streams, as answers.

use axum::http::StatusCode;
use tidings::streams::{
    DeadLetterError, GroupError, InvalidEvent, InvalidName, PublishError, StoreError, StreamError, TopicError,
};

use super::unprocessable;
use crate::problem::Problem;

/// An error with what has led to it.
pub(in crate::routes) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let detail = chain(&error);
        match error {
            StoreError::Closed => Self::leaving(detail),
            StoreError::Unreachable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unreachable", detail)
            }
            StoreError::Unsupported { .. } => Self::new(StatusCode::NOT_IMPLEMENTED, "unsupported", detail),
            StoreError::Failed(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", detail),
        }
    }
}

impl From<InvalidEvent> for Problem {
    fn from(error: InvalidEvent) -> Self {
        let detail = error.to_string();
        match error {
            InvalidEvent::Payload(_)
            | InvalidEvent::BatchBytes(_)
            | InvalidEvent::BatchEvents(_)
            | InvalidEvent::Message { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail),
            InvalidEvent::Key(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "key_too_long", detail),
            _ => unprocessable("invalid_event", detail),
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Invalid(error) => error.into(),
            PublishError::TooManyKeys => Self::overloaded(error.to_string()),
            PublishError::Store(error) => error.into(),
        }
    }
}

impl From<GroupError> for Problem {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Unknown => {
                Self::new(StatusCode::NOT_FOUND, "unknown_group", "the topic has no such group")
            }
            GroupError::Store(error) => error.into(),
        }
    }
}

impl From<DeadLetterError> for Problem {
    fn from(error: DeadLetterError) -> Self {
        let detail = error.to_string();
        match error {
            DeadLetterError::Unknown => Self::new(StatusCode::NOT_FOUND, "unknown_dead_letter", detail),
            DeadLetterError::NoGroup => Self::new(StatusCode::CONFLICT, "no_group", detail),
            DeadLetterError::Store(error) => error.into(),
        }
    }
}

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        unprocessable("invalid_name", error.to_string())
    }
}

impl From<TopicError> for Problem {
    fn from(error: TopicError) -> Self {
        match error {
            TopicError::Name(_, error) => error.into(),
            TopicError::NotConfigured(_) => {
                Self::new(StatusCode::NOT_FOUND, "unknown_topic", error.to_string())
            }
        }
    }
}

impl From<StreamError> for Problem {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Name(error) => error.into(),
            StreamError::Store(error) => error.into(),
        }
    }
}
