//! The listener and its connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use ring::rand::{SecureRandom, SystemRandom};
use socket2::SockRef;
use tidings::Node;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::access::{TokenFileError, Tokens};
use crate::app::{App, Parts};
use crate::limits::{
    ACCEPT_PAUSE, BUFFER_BYTES_MAX, GRACE_TIME, HANDSHAKE_TIME, HEAD_TIME, SEND_BUFFER_BYTES, TRAIL_QUEUE_MAX,
};
use crate::lobby::Connection;
use crate::options::Options;
use crate::reload::Reloader;
use crate::routes;
use crate::socket::Socket;
use crate::tls::{CertificateError, Tls};
use crate::trail::{self, Trail, Writer};

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Other machines could reach the address, and there is no TLS, or there are no tokens, for them.
    #[error("{0} is not a loopback address: the HTTP API listens there only with TLS and tokens")]
    Unprotected(SocketAddr),
    /// The tokens cannot be used.
    #[error("the token file cannot be used")]
    Tokens(#[source] TokenFileError),
    /// The certificate cannot be used.
    #[error("the certificate for HTTPS cannot be used")]
    Certificate(#[source] CertificateError),
    /// The audit file cannot be opened.
    #[error("cannot open the audit file {path}")]
    AuditFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The HTTP API of one node, bound and not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: App,
    tls: Option<Arc<Tls>>,
    writer: Option<Writer>,
    reloader: Reloader,
}

impl Server {
    /// Binds the address; connections wait until [`Server::run`].
    ///
    /// # Errors
    /// [`BindError`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn bind(node: Node, mut options: Options) -> Result<Self, BindError> {
        let address = options.listen;
        if !address.ip().is_loopback() && (options.tls.is_none() || options.token_file.is_none()) {
            return Err(BindError::Unprotected(address));
        }
        let tokens =
            options.token_file.as_deref().map(Tokens::read).transpose().map_err(BindError::Tokens)?;
        let tls =
            options.tls.clone().map(Tls::read).transpose().map_err(BindError::Certificate)?.map(Arc::new);
        let reopen = Arc::<AtomicBool>::default();
        let (trail, writer) = trail(options.audit_file.clone(), &reopen)?;
        let failed = |source| BindError::Listen { address, source };
        let entropy = u64::from_ne_bytes(random().map_err(failed)?);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        options.listen = listener.local_addr().map_err(failed)?;
        let address = options.listen;
        let app = App::new(node, options, Parts { tokens, trail, entropy });
        let reloader = Reloader::new(app.clone(), tls.clone(), reopen);
        Ok(Self { listener, address, app, tls, writer, reloader })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// What reads its files again.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Serves until `shutdown`, then lets no new connection in, ends the streams of events, gives requests under way
    /// [`GRACE_TIME`], closes what is left, and joins every task.
    ///
    /// # Cancel safety
    /// Dropped, it aborts every connection.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, app, tls, writer, reloader, .. } = self;
        let closing = app.closing().clone();
        let mut helpers = JoinSet::new();
        helpers.spawn(reloader.watch(closing.clone()));
        let written = CancellationToken::new();
        if let Some(writer) = writer {
            helpers.spawn(writer.run(written.clone()));
        }
        let host = Host { service: TowerToHyperService::new(routes::router(app.clone())), app, tls };
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => host.begin(stream, peer, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "an HTTP connection could not be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => joined(ended),
                () = &mut shutdown => break,
            }
        }
        drop(listener);
        closing.cancel();
        let all = async {
            while let Some(ended) = connections.join_next().await {
                joined(ended);
            }
        };
        if timeout(GRACE_TIME, all).await.is_err() {
            tracing::warn!(
                connections = connections.len(),
                "HTTP requests did not end in time and are cut off"
            );
            connections.shutdown().await;
        }
        // What the last requests did is written down, too.
        written.cancel();
        while let Some(ended) = helpers.join_next().await {
            joined(ended);
        }
    }
}

/// The trail, and what writes it to its file.
fn trail(path: Option<PathBuf>, reopen: &Arc<AtomicBool>) -> Result<(Trail, Option<Writer>), BindError> {
    let lost = Arc::default();
    let Some(path) = path else { return Ok((Trail::new(None, lost), None)) };
    let file = trail::open(&path).map_err(|source| BindError::AuditFile { path: path.clone(), source })?;
    let (sender, lines) = mpsc::channel(TRAIL_QUEUE_MAX);
    let writer = Writer { path, file, lines, reopen: reopen.clone(), lost: Arc::clone(&lost) };
    Ok((Trail::new(Some(sender), lost), Some(writer)))
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system has no random numbers"))?;
    Ok(bytes)
}

fn joined(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a task of the HTTP API failed");
    }
}

/// What every connection is served with.
struct Host {
    service: TowerToHyperService<Router>,
    app: App,
    tls: Option<Arc<Tls>>,
}

impl Host {
    fn begin(&self, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
        let here = match stream.local_addr() {
            Ok(here) => here,
            Err(error) => return tracing::debug!(%error, "an HTTP connection has ended already"),
        };
        // Answers are small: without this they would wait for the client's acknowledgement.
        let _ = stream.set_nodelay(true);
        if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES) {
            tracing::debug!(%error, "what the system holds of answers could not be limited: slow readers are cut off");
        }
        let connection = Arc::new(Connection::new(peer, here, self.app.lobby()));
        // Of this connection alone; all of them are told when the server ends.
        let (service, closing) = (self.service.clone(), self.app.closing().child_token());
        let (socket, guest) = (Socket::new(stream), connection.clone());
        let late = {
            let (connection, app) = (connection.clone(), self.app.clone());
            async move { connection.late(app.access()).await }
        };
        let bounds = (connection, closing.clone());
        let Some(tls) = &self.tls else {
            connections.spawn(bounded(bounds, late, speak(socket, service, guest, closing)));
            return;
        };
        let handshake = timeout(HANDSHAKE_TIME, tls.acceptor().accept(socket));
        connections.spawn(bounded(bounds, late, async move {
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = closing.cancelled() => return,
            };
            match shaken {
                Ok(Ok(stream)) => speak(stream, service, guest, closing).await,
                Ok(Err(error)) => tracing::debug!(%error, %peer, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "a TLS handshake did not end in time"),
            }
        }));
    }
}

/// Serves a connection, unless it has to give way. A late one, on which nobody is let in for too long, or nobody who
/// still counts, gets the answer that is under way.
async fn bounded(
    (connection, closing): (Arc<Connection>, CancellationToken),
    late: impl Future<Output = ()>,
    serving: impl Future<Output = ()>,
) {
    let late = async {
        late.await;
        tracing::debug!(peer = %connection.peer(), "nobody is let in on an HTTP connection in time");
        closing.cancel();
        sleep(GRACE_TIME).await;
    };
    tokio::select! {
        () = serving => {}
        () = connection.displaced() => tracing::debug!(peer = %connection.peer(), "an HTTP connection gave way"),
        () = late => tracing::debug!(peer = %connection.peer(), "an HTTP connection did not end in time"),
    }
}

async fn speak<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    service: TowerToHyperService<Router>,
    guest: Arc<Connection>,
    closing: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(guest.clone());
        service.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    use super::*;
    use crate::limits::LOBBY_TIME;
    use crate::lobby::Lobby;

    /// What a connection on which nobody is let in gets of an answer that takes so long, and how long it is there.
    async fn answered(after: Duration) -> (String, Duration) {
        let slow = get(move || async move {
            sleep(after).await;
            "the whole answer"
        });
        let service = TowerToHyperService::new(Router::new().route("/", slow));
        let here = SocketAddr::from(([127, 0, 0, 1], 1));
        let connection = Arc::new(Connection::new(here, here, &Lobby::default()));
        let (mut client, server) = duplex(1024);
        let closing = CancellationToken::new();
        client.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let start = Instant::now();
        let serving = speak(server, service, connection.clone(), closing.clone());
        let mut text = String::new();
        let reading = client.read_to_string(&mut text);
        let ((), read) = tokio::join!(bounded((connection, closing), sleep(LOBBY_TIME), serving), reading);
        read.unwrap();
        (text, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_connection_gets_the_answer_that_is_under_way_if_that_comes_soon() {
        let soon = LOBBY_TIME + GRACE_TIME / 2;
        let (text, lasted) = answered(soon).await;
        assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("the whole answer"), "{text}");
        assert_eq!(lasted.as_secs(), soon.as_secs());

        let (text, lasted) = answered(2 * LOBBY_TIME).await;
        assert_eq!(text, "");
        assert_eq!(lasted.as_secs(), (LOBBY_TIME + GRACE_TIME).as_secs());
    }
}
