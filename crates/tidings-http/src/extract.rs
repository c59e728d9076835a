//! What handlers take out of requests, with problems instead of axum's plain texts.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use crate::limits::{BODY_TIME, DOCUMENT_BYTES_MAX, DRAINED_BYTES_MAX};
use crate::lobby::Connection;
use crate::problem::Problem;

/// The cache, and where the path has one the key, that a request names. The key may be empty.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) cache: String,
    pub(crate) key: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let [cache, key] = in_path(["cache", "key"], parts, state).await?;
        Ok(Self { cache, key })
    }
}

/// The topic, and where the path has them the group and the id, that a request names.
#[derive(Debug)]
pub(crate) struct InTopic {
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) id: String,
}

impl<S: Send + Sync> FromRequestParts<S> for InTopic {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let [topic, group, id] = in_path(["topic", "group", "id"], parts, state).await?;
        Ok(Self { topic, group, id })
    }
}

/// Parameters of a path, empty where it has none of the name.
async fn in_path<S: Send + Sync, const N: usize>(
    names: [&str; N],
    parts: &mut Parts,
    state: &S,
) -> Result<[String; N], Problem> {
    let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| {
        Problem::new(StatusCode::BAD_REQUEST, "invalid_path", "names in paths are percent-encoded UTF-8")
    })?;
    Ok(names.map(|name| {
        let found = params.iter().find(|(named, _)| *named == name);
        found.map(|(_, text)| text.to_owned()).unwrap_or_default()
    }))
}

/// The query, of which every parameter must be known.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = Query::try_from_uri(&parts.uri).map_err(|error| Problem::query(error.body_text()))?;
        Ok(Self(query.0))
    }
}

/// Reads a body of at most `bytes_max`. Of a longer one some more is read, so that its sender sees the answer.
pub(crate) async fn read(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let told = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let too_long = || {
        let detail = format!("the body is longer than {bytes_max} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_long", detail)
    };
    if told.is_some_and(|told| told > DRAINED_BYTES_MAX) {
        return Err(too_long());
    }
    let reading = async {
        let mut chunks = body.into_data_stream();
        let mut whole = BytesMut::new();
        let mut length = 0;
        while let Some(chunk) = chunks.next().await {
            let broken = |_| Problem::new(StatusCode::BAD_REQUEST, "broken_body", "the body ended too early");
            let chunk = chunk.map_err(broken)?;
            length += chunk.len();
            if length > DRAINED_BYTES_MAX {
                return Err(too_long());
            }
            if length <= bytes_max {
                whole.extend_from_slice(&chunk);
            }
        }
        if length > bytes_max { Err(too_long()) } else { Ok(whole.freeze()) }
    };
    tokio::time::timeout(BODY_TIME, reading).await.unwrap_or_else(|_| {
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow_body", "the body did not come in time"))
    })
}

/// Reads a JSON document; an empty body counts as `{}`.
pub(crate) async fn document<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    document_within(headers, body, DOCUMENT_BYTES_MAX).await
}

/// The same, of at most `bytes_max`.
pub(crate) async fn document_within<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
) -> Result<T, Problem> {
    let bytes = read(headers, body, bytes_max).await?;
    let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    serde_json::from_slice(&bytes).map_err(|error| {
        let (status, code) = if error.is_data() {
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid_document")
        } else {
            (StatusCode::BAD_REQUEST, "invalid_json")
        };
        Problem::new(status, code, error.to_string())
    })
}

/// Where a request comes from.
#[derive(Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let connection = parts.extensions.get::<Arc<Connection>>();
        let address = connection.map(|connection| Self(connection.peer().ip().to_canonical()));
        address.ok_or_else(|| {
            let detail = "the request has no connection";
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
        })
    }
}
