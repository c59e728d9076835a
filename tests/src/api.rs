//! A client of one node's HTTP interface, from inside the node's host if it has one of its own.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings_http::exposition;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// Longest wait for an answer, but for what a request itself waits for: a node that takes longer counts as unreachable.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What a cache holds for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The value, and whether the answer called it stale.
    Hit {
        /// Its bytes.
        value: Vec<u8>,
        /// Whether the answer says that it may be stale.
        marked: bool,
    },
    /// Nothing; the token allows one fill.
    Miss {
        /// Absent if the node does not cache now.
        token: Option<String>,
    },
}

/// What became of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The entry is there.
    Stored,
    /// Something ended it meanwhile.
    Ended,
}

/// Who has applied a change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Receipt {
    /// Peers that have.
    pub applied: Vec<String>,
    /// Peers that have not.
    pub missing: Vec<Missing>,
    /// Peers that have not, and can serve nothing older any more.
    pub expired: Vec<String>,
}

/// A peer that has not applied a change.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Missing {
    /// Which.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// What a node knows of the cluster.
#[derive(Clone, Debug, Deserialize)]
pub struct ClusterView {
    /// The answering node.
    pub node: String,
    /// Its life.
    pub incarnation: u64,
    /// Whether it is ready.
    pub ready: bool,
    /// Every known member, itself too.
    pub members: Vec<Member>,
}

/// A member as one node sees it.
#[derive(Clone, Debug, Deserialize)]
pub struct Member {
    /// Its id.
    pub node: String,
    /// Whether it is the answering node.
    #[serde(rename = "self")]
    pub is_self: bool,
    /// `live`, `suspect`, `lost` or `left`.
    pub state: String,
    /// Whether all it did up to a second ago is applied.
    pub synced: bool,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Api {
    base: Url,
    client: Client,
    runtime: Option<Handle>,
}

impl Api {
    /// A client of `http://ADDRESS`; with a runtime all its connections are made there.
    pub fn new(address: &str, runtime: Option<Handle>) -> Result<Self> {
        let base = Url::parse(&format!("http://{address}/")).context("not an address")?;
        let client = Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
        Ok(Self { base, client, runtime })
    }

    /// The address it speaks to.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str()
    }

    /// Any request; `path` holds unescaped segments.
    pub fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("an http address has a path").clear().extend(path);
        self.client.request(method, url)
    }

    /// Sends a request and reads the whole answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let exchange = async {
            let answer = request.send().await?;
            let (status, headers) = (answer.status(), answer.headers().clone());
            Ok(Answer { status, headers, body: answer.bytes().await?.to_vec() })
        };
        match &self.runtime {
            None => exchange.await,
            Some(runtime) => AbortOnDropHandle::new(runtime.spawn(exchange)).await?,
        }
    }

    /// Whether the node says it is ready; an error with its reasons if not.
    pub async fn ready(&self) -> Result<()> {
        self.send(self.request(Method::GET, &["readyz"])).await?.must_be(StatusCode::OK)?;
        Ok(())
    }

    /// Takes the node out of service: it says that it is not ready, and goes on answering.
    pub async fn drain(&self) -> Result<()> {
        let answer = self.send(self.request(Method::POST, &["v1", "drain"]).json(&json!({}))).await?;
        ensure!(answer.status.is_success(), "{}", answer.describe());
        Ok(())
    }

    /// What the node knows of the cluster.
    pub async fn cluster(&self) -> Result<ClusterView> {
        self.send(self.request(Method::GET, &["v1", "cluster"])).await?.must_be(StatusCode::OK)?.json()
    }

    /// The sum of a metric over all its series; its name as in the exposition, `_total` included.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let answer = self.send(self.request(Method::GET, &["metrics"])).await?.must_be(StatusCode::OK)?;
        exposition::sum(&answer.text(), name).with_context(|| format!("no metric {name}"))
    }

    /// Looks a key up.
    pub async fn get(&self, cache: &str, key: &str) -> Result<Lookup> {
        let answer = self.send(self.entry(Method::GET, cache, key)).await?;
        let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
        match answer.status {
            StatusCode::OK => {
                let marked = header("tidings-stale") == Some("true");
                Ok(Lookup::Hit { value: answer.body, marked })
            }
            StatusCode::NOT_FOUND if answer.code() == "not_cached" => {
                Ok(Lookup::Miss { token: header("tidings-fill-token").map(str::to_owned) })
            }
            _ => bail!("{}", answer.describe()),
        }
    }

    /// Stores what was loaded for a miss.
    pub async fn fill(&self, cache: &str, key: &str, token: &str, value: Vec<u8>) -> Result<Fill> {
        let request = self.entry(Method::PUT, cache, key).header("tidings-fill-token", token).body(value);
        let answer = self.send(request).await?;
        match answer.status {
            status if status.is_success() => Ok(Fill::Stored),
            StatusCode::CONFLICT => Ok(Fill::Ended),
            _ => bail!("{}", answer.describe()),
        }
    }

    /// Stores a value everywhere-invalidating.
    pub async fn put(&self, cache: &str, key: &str, value: Vec<u8>) -> Result<()> {
        let answer = self.send(self.entry(Method::PUT, cache, key).body(value)).await?;
        ensure!(answer.status.is_success(), "{}", answer.describe());
        Ok(())
    }

    /// Removes a key, everywhere.
    pub async fn delete(&self, cache: &str, key: &str) -> Result<()> {
        self.send(self.entry(Method::DELETE, cache, key)).await?.must_be(StatusCode::NO_CONTENT)?;
        Ok(())
    }

    /// Removes a key, everywhere, and waits for the peers.
    pub async fn delete_acked(&self, cache: &str, key: &str, timeout: Duration) -> Result<Receipt> {
        let query = [("acked", format!("{}ms", timeout.as_millis()))];
        let request = self.entry(Method::DELETE, cache, key).query(&query).timeout(timeout + ANSWER_WITHIN);
        let answer = self.send(request).await?;
        ensure!(answer.status.is_success(), "{}", answer.describe());
        answer.json()
    }

    /// Invalidates keys, everywhere.
    pub async fn invalidate(&self, cache: &str, keys: &[impl AsRef<str>]) -> Result<()> {
        let keys: Vec<&str> = keys.iter().map(AsRef::as_ref).collect();
        let request = self.request(Method::POST, &["v1", "caches", cache, "invalidate"]);
        let answer = self.send(request.json(&json!({ "keys": keys }))).await?;
        ensure!(answer.status.is_success(), "{}", answer.describe());
        Ok(())
    }

    fn entry(&self, method: Method, cache: &str, key: &str) -> RequestBuilder {
        self.request(method, &["v1", "caches", cache, "entries", key])
    }
}

impl Answer {
    /// The answer, if it has this status.
    pub fn must_be(self, status: StatusCode) -> Result<Self> {
        ensure!(self.status == status, "{}", self.describe());
        Ok(self)
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| self.describe())
    }

    /// The stable code of a problem, or nothing.
    #[must_use]
    pub fn code(&self) -> String {
        let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        problem["code"].as_str().unwrap_or_default().to_owned()
    }

    fn describe(&self) -> String {
        format!("{}: {}", self.status, self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_escaped() {
        let api = Api::new("127.0.0.1:1", None).expect("an address");
        let request = api.entry(Method::GET, "c", "a/b ü").build().expect("a request");
        assert_eq!(request.url().path(), "/v1/caches/c/entries/a%2Fb%20%C3%BC");
    }
}
