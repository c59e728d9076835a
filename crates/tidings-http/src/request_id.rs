//! Names of requests, by which answers, log lines and the trail are put together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::HeaderMap;
use axum::http::header::{HeaderName, HeaderValue};

use crate::limits::REQUEST_ID_BYTES_MAX;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The name of one request: letters, digits, `.`, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId(Arc<str>);

impl RequestId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).unwrap_or(HeaderValue::from_static(""))
    }

    /// The one that the sender gave, if it can be shown as it is and does not look like one of ours.
    fn given(headers: &HeaderMap, ours: &str) -> Option<Self> {
        let text = headers.get(REQUEST_ID)?.to_str().ok()?;
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let fits = !text.is_empty() && text.len() <= REQUEST_ID_BYTES_MAX && text.bytes().all(sound);
        let forged = text.get(..ours.len()).is_some_and(|start| start.eq_ignore_ascii_case(ours));
        (fits && !forged).then(|| Self(text.into()))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Makes names that no other server makes, nor this one twice.
#[derive(Debug)]
pub(crate) struct RequestIds {
    prefix: String,
    next: AtomicU64,
}

impl RequestIds {
    pub(crate) fn new(entropy: u64) -> Self {
        Self { prefix: format!("{entropy:016x}-"), next: AtomicU64::new(1) }
    }

    pub(crate) fn of(&self, headers: &HeaderMap) -> RequestId {
        RequestId::given(headers, &self.prefix).unwrap_or_else(|| {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            RequestId(format!("{}{number}", self.prefix).into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_can_be_shown_is_kept_and_any_other_replaced() {
        let ids = RequestIds::new(7);
        let of = |text: &[u8]| {
            let value = HeaderValue::from_bytes(text).unwrap();
            ids.of(&HeaderMap::from_iter([(REQUEST_ID, value)])).to_string()
        };
        assert_eq!(of(b"a-B_9."), "a-B_9.");
        assert_eq!(of("x".repeat(REQUEST_ID_BYTES_MAX).as_bytes()), "x".repeat(REQUEST_ID_BYTES_MAX));
        for (number, text) in [
            &b""[..],
            b"a b",
            b"<script>",
            b"a\"",
            b"\xff",
            &[b'x'; REQUEST_ID_BYTES_MAX + 1],
            // Ones that this server may have given, or will.
            b"0000000000000007-1",
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(of(text), format!("0000000000000007-{}", number + 1));
        }
        assert_eq!(ids.of(&HeaderMap::new()).as_str(), "0000000000000007-8");
    }
}
