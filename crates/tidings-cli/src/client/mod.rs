//! A small client for the HTTP API of a node.

mod address;
mod call;
mod problem;
mod sse;
mod trust;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

pub(crate) use self::address::Address;
pub(crate) use self::call::Call;
use self::problem::{Problem, failure_of, problem_of, unreachable};
pub(crate) use self::sse::{Event, Events};
use crate::exit::{Exit, Failure};

/// How long a request may take, beyond what it asks the node to wait.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long connecting may take: a node that is there answers within milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Header of a fill token, on the answer to a miss and on the fill.
const FILL_TOKEN: &str = "tidings-fill-token";

/// One node's HTTP API.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: Address,
    token: Option<String>,
}

/// What a client shows, and whom it believes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credentials<'a> {
    /// File whose first line is the token.
    pub(crate) token_file: Option<&'a Path>,
    /// Authorities of nodes with HTTPS; else those that the system trusts.
    pub(crate) ca_file: Option<&'a Path>,
}

/// What a node holds for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// A value.
    Hit {
        /// Its bytes.
        value: Bytes,
        /// Whether the node says that it may be older than promised.
        stale: bool,
        /// How long ago it was loaded, as the node says.
        age: Option<String>,
    },
    /// No value, and a token to fill it with.
    Miss {
        /// Names the flight that a fill belongs to.
        token: Option<String>,
    },
}

/// What came of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fill {
    /// Stored.
    Stored,
    /// Something ended the flight meanwhile: not stored.
    Ended,
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    /// The answer, if there was one: who has applied the change and who has not.
    pub(crate) receipt: Option<Json>,
    /// Whether some peers did not answer in time.
    pub(crate) partial: bool,
}

/// Details of a put.
#[derive(Clone, Debug, Default)]
pub(crate) struct Put {
    /// Time to live.
    pub(crate) ttl: Option<Duration>,
    /// Tags.
    pub(crate) tags: Vec<String>,
    /// Notes for subscribers.
    pub(crate) metadata: Vec<(String, String)>,
    /// How long to wait for the peers.
    pub(crate) acked: Option<Duration>,
}

impl Client {
    /// A client for the node at a URL.
    ///
    /// # Errors
    /// The URL or a file cannot be used.
    pub(crate) fn new(url: &str, with: Credentials<'_>) -> Result<Self, Failure> {
        let address = Address::parse(url)?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // An answer that leads elsewhere is none of a node's API, and a token is not for elsewhere.
            .redirect(Policy::none())
            // Nodes are on this machine or near it: a proxy of the environment is not meant for them.
            .no_proxy();
        if address.is_encrypted() {
            builder = trust::roots(with.ca_file)?
                .into_iter()
                .fold(builder, reqwest::ClientBuilder::add_root_certificate);
        }
        let http = builder
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot set up the HTTP client: {error}")))?;
        let token = with.token_file.map(token_in).transpose()?;
        Ok(Self { http, address, token })
    }

    /// Whether it sends a token over a network in clear text.
    pub(crate) fn exposes_token(&self) -> bool {
        self.token.is_some() && !self.address.is_loopback() && !self.address.is_encrypted()
    }

    /// The address it speaks to.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// A document.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn document<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Failure> {
        let response = self.send(self.request(Method::GET, path, &[])?, TIMEOUT).await?;
        self.decoded(response).await
    }

    /// Whether the node calls itself ready, and why not.
    ///
    /// # Errors
    /// As [`Client::send`], but 503 is an answer here.
    pub(crate) async fn readiness(&self) -> Result<(bool, String), Failure> {
        let response = self.answer(self.request(Method::GET, &["readyz"], &[])?, TIMEOUT).await?;
        match response.status() {
            StatusCode::OK => Ok((true, "ready".to_owned())),
            StatusCode::SERVICE_UNAVAILABLE => {
                let Problem { reasons, detail, title, .. } = problem_of(response).await;
                let why = if reasons.is_empty() {
                    [detail, title].into_iter().find(|text| !text.is_empty())
                } else {
                    Some(reasons.join("; "))
                };
                Ok((false, why.unwrap_or_default()))
            }
            _ => Err(failure_of(&problem_of(response).await)),
        }
    }

    /// The metrics in their text format.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn metrics(&self) -> Result<String, Failure> {
        let response = self.send(self.request(Method::GET, &["metrics"], &[])?, TIMEOUT).await?;
        response.text().await.map_err(|error| unreachable(&self.address, &error))
    }

    /// What the node holds for a key.
    ///
    /// # Errors
    /// As [`Client::send`]; a miss is none.
    pub(crate) async fn get(&self, cache: &str, key: &str) -> Result<Lookup, Failure> {
        let response = self.answer(self.entry(Method::GET, cache, key, &[])?, TIMEOUT).await?;
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(ToOwned::to_owned);
        if response.status().is_success() {
            let (stale, age) = (header("tidings-stale").as_deref() == Some("true"), header("tidings-age"));
            let value = response.bytes().await.map_err(|error| unreachable(&self.address, &error))?;
            return Ok(Lookup::Hit { value, stale, age });
        }
        let token = header(FILL_TOKEN);
        let problem = problem_of(response).await;
        if problem.code == "not_cached" { Ok(Lookup::Miss { token }) } else { Err(failure_of(&problem)) }
    }

    /// Who holds a key, and whether some node has not said.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn holders(
        &self,
        cache: &str,
        key: &str,
        wait: Option<Duration>,
    ) -> Result<(Json, bool), Failure> {
        let query: Vec<(&str, String)> =
            wait.map(|wait| ("wait", crate::units::show_duration(wait))).into_iter().collect();
        let url = self.address.holders(cache, key)?;
        let request = self.to(Method::GET, url, &query);
        let response = self.send(request, TIMEOUT + wait.unwrap_or_default()).await?;
        let partial = response.status() == StatusCode::MULTI_STATUS;
        Ok((self.decoded(response).await?, partial))
    }

    /// Fills a miss, in silence.
    ///
    /// # Errors
    /// As [`Client::send`]; an ended flight is none.
    pub(crate) async fn fill(
        &self,
        cache: &str,
        key: &str,
        token: &str,
        value: Bytes,
    ) -> Result<Fill, Failure> {
        let request = self.entry(Method::PUT, cache, key, &[])?.header(FILL_TOKEN, token).body(value);
        let response = self.answer(request, TIMEOUT).await?;
        match response.status() {
            StatusCode::CONFLICT => Ok(Fill::Ended),
            status if status.is_success() => Ok(Fill::Stored),
            _ => Err(failure_of(&problem_of(response).await)),
        }
    }

    /// Puts a value: a change that reaches every node.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn put(
        &self,
        cache: &str,
        key: &str,
        value: Bytes,
        put: &Put,
    ) -> Result<Change, Failure> {
        let mut query: Vec<(&str, String)> = Vec::new();
        query.extend(put.ttl.map(|ttl| ("ttl", crate::units::show_duration(ttl))));
        if !put.tags.is_empty() {
            query.push(("tags", put.tags.join(",")));
        }
        query.extend(acked(put.acked));
        let mut request = self.entry(Method::PUT, cache, key, &query)?.body(value);
        for (name, value) in &put.metadata {
            request = request.header(format!("tidings-meta-{name}"), value);
        }
        self.change(request, put.acked).await
    }

    /// Deletes a key on every node.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn delete(
        &self,
        cache: &str,
        key: &str,
        wait: Option<Duration>,
    ) -> Result<Change, Failure> {
        let query: Vec<(&str, String)> = acked(wait).into_iter().collect();
        self.change(self.entry(Method::DELETE, cache, key, &query)?, wait).await
    }

    /// Sends a document with POST.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn post(&self, path: &[&str], body: &Json) -> Result<Change, Failure> {
        self.change(self.request(Method::POST, path, &[])?.json(body), None).await
    }

    /// Invalidates what a document names, on every node.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn invalidate(
        &self,
        cache: &str,
        what: &Json,
        wait: Option<Duration>,
    ) -> Result<Change, Failure> {
        let query: Vec<(&str, String)> = acked(wait).into_iter().collect();
        let path = ["v1", "caches", cache, "invalidate"];
        self.change(self.request(Method::POST, &path, &query)?.json(what), wait).await
    }

    /// Empties a cache on every node.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn clear(&self, cache: &str) -> Result<Change, Failure> {
        self.invalidate(cache, &json!({ "all": true }), None).await
    }

    /// Opens a cache with these settings.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn open(&self, cache: &str, settings: &Json) -> Result<Change, Failure> {
        self.change(self.request(Method::PUT, &["v1", "caches", cache], &[])?.json(settings), None).await
    }

    /// Closes a cache on this node.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn close(&self, cache: &str) -> Result<Change, Failure> {
        self.change(self.request(Method::DELETE, &["v1", "caches", cache], &[])?, None).await
    }

    /// The change events of a cache as they happen.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(crate) async fn events(&self, cache: &str, query: &[(&str, String)]) -> Result<Events, Failure> {
        let request = self.request(Method::GET, &["v1", "caches", cache, "events"], query)?;
        let request = request.header("accept", "text/event-stream");
        // Endless: only connecting has a time limit.
        let response = request.send().await.map_err(|error| unreachable(&self.address, &error))?;
        let response = self.sound(response).await?;
        Ok(Events::new(response, self.address.clone()))
    }

    async fn change(&self, request: RequestBuilder, wait: Option<Duration>) -> Result<Change, Failure> {
        let response = self.send(request, TIMEOUT + wait.unwrap_or_default()).await?;
        let partial = response.status() == StatusCode::MULTI_STATUS;
        let receipt = if response.status() == StatusCode::NO_CONTENT {
            None
        } else {
            Some(self.decoded(response).await?)
        };
        Ok(Change { receipt, partial })
    }

    /// Sends a request and takes any status below 400 for success.
    ///
    /// # Errors
    /// The node cannot be reached, or answers with a problem.
    async fn send(&self, request: RequestBuilder, timeout: Duration) -> Result<Response, Failure> {
        let response = self.answer(request, timeout).await?;
        self.sound(response).await
    }

    async fn answer(&self, request: RequestBuilder, timeout: Duration) -> Result<Response, Failure> {
        request.timeout(timeout).send().await.map_err(|error| unreachable(&self.address, &error))
    }

    async fn sound(&self, response: Response) -> Result<Response, Failure> {
        if response.status().is_client_error() || response.status().is_server_error() {
            return Err(failure_of(&problem_of(response).await));
        }
        Ok(response)
    }

    async fn decoded<T: DeserializeOwned>(&self, response: Response) -> Result<T, Failure> {
        let body = response.bytes().await.map_err(|error| unreachable(&self.address, &error))?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::new(
                Exit::Failed,
                format!("{} gave an answer that makes no sense: {error}", self.address),
            )
            .hint("is this the HTTP API of a tidings node?")
        })
    }

    fn entry(
        &self,
        method: Method,
        cache: &str,
        key: &str,
        query: &[(&str, String)],
    ) -> Result<RequestBuilder, Failure> {
        Ok(self.to(method, self.address.entry(cache, key)?, query))
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<RequestBuilder, Failure> {
        Ok(self.to(method, self.address.join(path)?, query))
    }

    fn to(&self, method: Method, url: Url, query: &[(&str, String)]) -> RequestBuilder {
        let request = self.http.request(method, url).query(query);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

fn acked(wait: Option<Duration>) -> Option<(&'static str, String)> {
    wait.map(|wait| ("acked", crate::units::show_duration(wait)))
}

fn token_in(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::new(Exit::Configuration, format!("cannot read the token file {}: {error}", file.display()))
    })?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let message = format!("the first line of {} is not a token", file.display());
        return Err(Failure::new(Exit::Configuration, message));
    }
    Ok(token.to_owned())
}
