//! Calls of the part of the API that is about streams: a document there, a document back.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Method, Response, StatusCode};
use serde_json::Value as Json;

use super::problem::unreachable;
use super::{Client, TIMEOUT};
use crate::exit::Failure;

/// A request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    method: Method,
    path: Vec<&'a str>,
    query: Vec<(&'a str, String)>,
    headers: Vec<(&'a str, String)>,
    body: Option<Bytes>,
    wait: Duration,
}

impl<'a> Call<'a> {
    /// One of a path, given by its segments.
    pub(crate) fn new(method: Method, path: &[&'a str]) -> Self {
        let (query, headers) = (Vec::new(), Vec::new());
        Self { method, path: path.to_vec(), query, headers, body: None, wait: Duration::ZERO }
    }

    /// A parameter of the query, if there is a value.
    pub(crate) fn query(mut self, name: &'a str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// A header, if there is a value.
    pub(crate) fn header(mut self, name: &'a str, value: Option<&str>) -> Self {
        self.headers.extend(value.map(|value| (name, value.to_owned())));
        self
    }

    /// With a document.
    pub(crate) fn json(self, document: &Json) -> Self {
        self.body(document.to_string())
    }

    /// With a body.
    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// It may take so much longer than others.
    pub(crate) fn waiting(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

impl Client {
    /// Sends a request. What the answer says (`null` if that is nothing), and whether it was done in part only.
    ///
    /// # Errors
    /// The node cannot be reached, or answers with a problem.
    pub(crate) async fn call(&self, call: Call<'_>) -> Result<(Json, bool), Failure> {
        let response = self.response(call).await?;
        let partial = response.status() == StatusCode::MULTI_STATUS;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok((Json::Null, partial));
        }
        Ok((self.decoded(response).await?, partial))
    }

    /// Sends a request whose answer is bytes, and hands them over as they come.
    ///
    /// # Errors
    /// The node cannot be reached, answers with a problem or breaks off, or `take` fails.
    pub(crate) async fn download(
        &self,
        call: Call<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut response = self.response(call).await?;
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(&self.address, &error))? {
            take(&chunk)?;
        }
        Ok(())
    }

    async fn response(&self, call: Call<'_>) -> Result<Response, Failure> {
        let mut request = self.request(call.method, &call.path, &call.query)?;
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        if let Some(body) = call.body {
            request = request.body(body);
        }
        self.send(request, TIMEOUT + call.wait).await
    }
}
