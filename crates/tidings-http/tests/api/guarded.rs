//! A node whose API wants TLS and tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tempfile::TempDir;
use tidings::NodeBuilder;
use tidings::streams::{Name, StreamsConfig, TopicSettings};
use tidings_http::{NewToken, Options, Reloader, Role, Server, TlsFiles};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Api, Rig, loopback};

/// A certificate and its key, as PEM.
pub(crate) fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Writes a file that its owner alone may read.
pub(crate) fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Streams in a directory, with the topic `orders`.
pub(crate) fn orders(directory: &Path, builder: NodeBuilder) -> NodeBuilder {
    let topic = Name::new("orders").unwrap();
    builder.streams(StreamsConfig::embedded(directory).topic(topic, TopicSettings::default()))
}

/// A request over a connection without TLS, which is under way: its caller has been let in, for its body was asked for.
pub(crate) async fn under_way(address: SocketAddr, head: &str, body: &Json) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!("{head}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    let expected = b"HTTP/1.1 100 Continue\r\n\r\n";
    let mut told = [0; 25];
    stream.read_exact(&mut told).await.unwrap();
    assert_eq!(told, *expected);
    stream.write_all(body.as_bytes()).await.unwrap();
    stream
}

/// A server of a node, with tokens of every role.
pub(crate) struct Guarded {
    pub(crate) rig: Rig,
    pub(crate) address: SocketAddr,
    /// Without a token.
    pub(crate) stranger: Api,
    pub(crate) certificate: String,
    pub(crate) reloader: Reloader,
    tokens: BTreeMap<String, String>,
    lines: String,
    directory: TempDir,
    stop: CancellationToken,
    servers: JoinSet<()>,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        Self::start_with(|options| options).await
    }

    pub(crate) async fn start_with(options: impl Fn(Options) -> Options) -> Self {
        Self::start_built(|_, builder| builder, options).await
    }

    /// Tokens are called as their roles; those that may see payloads have `+` behind it. The directory is the node's.
    pub(crate) async fn start_built(
        build: impl Fn(&Path, NodeBuilder) -> NodeBuilder,
        options: impl Fn(Options) -> Options,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (mut tokens, mut lines) = (BTreeMap::new(), String::new());
        for (index, role) in Role::ALL.into_iter().enumerate() {
            for payloads in [false, true] {
                let entropy = [u8::try_from(10 + 2 * index).unwrap() + u8::from(payloads); 32];
                let name = format!("{role}{}", if payloads { ".payloads" } else { "" });
                let token = NewToken::new(&name, role, payloads, entropy).unwrap();
                lines += &format!("{}\n", token.line());
                tokens.insert(format!("{role}{}", if payloads { "+" } else { "" }), token.text().to_owned());
            }
        }
        let (certificate, key) = certificate();
        write(&path("tokens"), &lines);
        write(&path("cert.pem"), &certificate);
        write(&path("key.pem"), &key);
        let build = |_, builder| build(&path("node"), builder);
        let rig = Rig::start_with(1, build, |options| options).await;
        let given = Options {
            token_file: Some(path("tokens")),
            tls: Some(TlsFiles { cert: path("cert.pem"), key: path("key.pem") }),
            audit_file: Some(path("audit")),
            ..Options::new(loopback())
        };
        let server = Server::bind(rig.node(0).clone(), options(given)).await.unwrap();
        let (address, reloader) = (server.local_addr(), server.reloader());
        let (stop, mut servers) = (CancellationToken::new(), JoinSet::new());
        servers.spawn(server.run(stop.clone().cancelled_owned()));
        // A server may listen on all addresses.
        let address = SocketAddr::from(([127, 0, 0, 1], address.port()));
        let stranger = Api::secure(address, &certificate);
        Self { rig, address, stranger, certificate, reloader, tokens, lines, directory, stop, servers }
    }

    /// A client with the token of a role.
    pub(crate) fn client(&self, role: &str) -> Api {
        self.stranger.with_token(self.token(role))
    }

    pub(crate) fn token(&self, role: &str) -> &str {
        &self.tokens[role]
    }

    /// The names by which [`Guarded::client`] knows its clients.
    pub(crate) fn roles(&self) -> impl Iterator<Item = &str> {
        self.tokens.keys().map(String::as_str)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The token file as it was at the start.
    pub(crate) fn lines(&self) -> &str {
        &self.lines
    }

    pub(crate) async fn end(mut self) {
        self.stop.cancel();
        while self.servers.join_next().await.is_some() {}
        self.rig.end().await;
    }
}
