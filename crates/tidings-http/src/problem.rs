//! Error answers: RFC 9457 documents with a stable `code`.

use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tidings::{FillError, KeyError, TagError, WriteError};

use crate::request_id::RequestId;

/// The answer of a route.
pub(crate) type Answer = Result<Response, Problem>;

/// What is wrong with a request, or with the node.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    reasons: Vec<String>,
    header: Option<Box<(HeaderName, HeaderValue)>>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), reasons: Vec::new(), header: None }
    }

    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some(Box::new((name, value)));
        self
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Not available now, for these reasons.
    pub(crate) fn unavailable(code: &'static str, reasons: Vec<String>) -> Self {
        Self {
            reasons: reasons.clone(),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, reasons.join("; "))
        }
    }

    pub(crate) fn unknown_cache(name: &str) -> Self {
        let detail = format!("there is no cache {name:?} on this node");
        Self::new(StatusCode::NOT_FOUND, "unknown_cache", detail)
    }

    pub(crate) fn not_configured() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_configured", "this part is not configured on this node")
    }

    pub(crate) fn query(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
    }

    pub(crate) fn leaving(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "leaving", detail)
    }

    pub(crate) fn overloaded(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", detail);
        problem.with_header(RETRY_AFTER, HeaderValue::from_static("1"))
    }
}

/// What the answer to a request says of a problem, beside that answer: for those who know more of the request.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) code: &'static str,
    document: Value,
}

/// Writes the id of its request into the answer that tells of a problem.
pub(crate) fn name_request(response: &mut Response, id: &RequestId) {
    if let Some(mut told) = response.extensions_mut().remove::<Told>() {
        told.document["request_id"] = id.as_str().into();
        *response.body_mut() = told.document.to_string().into();
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("error").to_lowercase();
        let mut document = json!({
            "type": "about:blank",
            "title": title,
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        if !self.reasons.is_empty() {
            document["reasons"] = self.reasons.into();
        }
        let mut response = (self.status, document.to_string()).into_response();
        response.extensions_mut().insert(Told { code: self.code, document });
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        if let Some((name, value)) = self.header.map(|header| *header) {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<KeyError> for Problem {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::TooLong(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "key_too_long", error.to_string())
            }
            KeyError::Encode(_) => Self::new(StatusCode::BAD_REQUEST, "invalid_key", error.to_string()),
        }
    }
}

impl From<TagError> for Problem {
    fn from(error: TagError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_tags", error.to_string())
    }
}

impl From<FillError> for Problem {
    fn from(error: FillError) -> Self {
        match error {
            FillError::Key(error) => error.into(),
            FillError::Tags(error) => error.into(),
        }
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let detail = error.to_string();
        match error {
            WriteError::Key(error) => error.into(),
            WriteError::Tags(error) => error.into(),
            WriteError::EmptyPrefix => {
                let detail = "an empty prefix names everything: say {\"all\": true} if that is meant";
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "empty_prefix", detail)
            }
            WriteError::NoText => Self::new(StatusCode::CONFLICT, "other_type", detail),
            WriteError::Value(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", detail),
            WriteError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail),
            WriteError::Sealed(_) | WriteError::Leaving => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "leaving", detail)
            }
            WriteError::Stuck(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, "log_files_stuck", detail),
            WriteError::NotKnown => Self::new(StatusCode::SERVICE_UNAVAILABLE, "not_known", detail),
            WriteError::Superseded => Self::new(StatusCode::SERVICE_UNAVAILABLE, "superseded", detail),
            WriteError::Closed => Self::new(StatusCode::NOT_FOUND, "unknown_cache", detail),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail),
        }
    }
}
