//! Nodes with their servers, and a client.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, RequestBuilder, StatusCode, Url};
use serde_json::Value as Json;
use tidings::testing::Cluster;
use tidings::{Node, NodeBuilder};
use tidings_http::{Options, Server, exposition};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything to become true.
const WITHIN: Duration = Duration::from_secs(60);

/// A cluster whose every node serves HTTP.
pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    pub(crate) apis: Vec<Api>,
    stop: CancellationToken,
    servers: JoinSet<()>,
}

impl Rig {
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, |_, builder| builder, |options| options).await
    }

    pub(crate) async fn start_with(
        nodes: usize,
        build: impl Fn(usize, NodeBuilder) -> NodeBuilder,
        options: impl Fn(Options) -> Options,
    ) -> Self {
        let cluster = Cluster::start_with(nodes, build).await.unwrap();
        let stop = CancellationToken::new();
        let mut servers = JoinSet::new();
        let mut apis = Vec::new();
        for node in cluster.nodes() {
            let api = serve(node, options(Options::new(loopback())), &mut servers, &stop).await;
            apis.push(api);
        }
        Self { cluster, apis, stop, servers }
    }

    pub(crate) fn node(&self, number: usize) -> &Node {
        &self.cluster[number]
    }

    /// Ends the servers, which must end by themselves, and then the nodes.
    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        let all = async { while self.servers.join_next().await.is_some() {} };
        tokio::time::timeout(WITHIN, all).await.expect("servers end when they are told to");
        self.cluster.shutdown().await;
    }
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

pub(crate) async fn serve(
    node: &Node,
    options: Options,
    servers: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Api {
    let server = Server::bind(node.clone(), options).await.unwrap();
    let api = Api::new(server.local_addr());
    servers.spawn(server.run(stop.clone().cancelled_owned()));
    api
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) base: String,
    client: Client,
    token: Option<String>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Api {
    /// One that follows no redirects.
    pub(crate) fn new(address: SocketAddr) -> Self {
        let client = Client::builder().no_proxy().timeout(WITHIN).redirect(Policy::none()).build().unwrap();
        Self { address, base: format!("http://{address}"), client, token: None }
    }

    /// The same that speaks TLS, and trusts this certificate alone.
    pub(crate) fn secure(address: SocketAddr, certificate: &str) -> Self {
        let builder = Client::builder().no_proxy().timeout(WITHIN).redirect(Policy::none());
        let root = Certificate::from_pem(certificate.as_bytes()).unwrap();
        let client = builder.add_root_certificate(root).build().unwrap();
        Self { address, base: format!("https://{address}"), client, token: None }
    }

    /// The same with a token.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// A request for a path that is escaped already.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.to(method, &format!("{}{path}", self.base))
    }

    fn to(&self, method: Method, url: &str) -> RequestBuilder {
        let request = self.client.request(method, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, method: Method, path: &str) -> Answer {
        answer(self.request(method, path)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path).await
    }

    pub(crate) async fn json(&self, method: Method, path: &str, document: &Json) -> Answer {
        answer(self.request(method, path).body(document.to_string())).await
    }

    /// A request about an entry; the key is escaped here.
    pub(crate) fn entry(&self, method: Method, cache: &str, key: &str) -> RequestBuilder {
        let mut url = Url::parse(&self.base).unwrap();
        url.path_segments_mut().unwrap().extend(["v1", "caches", cache, "entries", key]);
        self.to(method, url.as_str())
    }

    pub(crate) async fn put(&self, cache: &str, key: &str, value: &str) {
        answer(self.entry(Method::PUT, cache, key).body(value.to_owned())).await.is(204);
    }

    pub(crate) async fn read(&self, cache: &str, key: &str) -> Answer {
        answer(self.entry(Method::GET, cache, key)).await
    }

    pub(crate) async fn open(&self, cache: &str, settings: &Json) {
        self.json(Method::PUT, &format!("/v1/caches/{cache}"), settings).await.is(201);
    }

    /// The sum of all samples of a metric, with the labels that are given after it; `None` without any.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").await.is(200).text();
        exposition::sum(&text, name)
    }
}

pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
}

impl Answer {
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// Checks that it is a whole problem document with this status and code.
    #[track_caller]
    pub(crate) fn problem(self, status: u16, code: &str) -> Self {
        let answer = self.is(status);
        let problem = answer.document();
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some(code), Some(status.into())));
        assert_eq!(problem["type"], "about:blank");
        let title = StatusCode::from_u16(status).unwrap().canonical_reason().unwrap().to_lowercase();
        assert_eq!(problem["title"], title);
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{problem}");
        assert_eq!(problem["request_id"].as_str(), answer.header("x-request-id"));
        answer
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn document(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, holds: impl AsyncFnMut() -> bool) {
    until_within(WITHIN, what, holds).await;
}

/// Waits until something holds, for at most so long.
pub(crate) async fn until_within(within: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
