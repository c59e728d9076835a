//! The listener and its connections.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tidings::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::limits::{
    ACCEPT_PAUSE, BUFFER_BYTES_MAX, GRACE_TIME, HEAD_TIME, LINGER_TIME, REFUSALS_MAX, SEND_BUFFER_BYTES,
};
use crate::options::Options;
use crate::routes;
use crate::socket::Socket;

/// What a connection beyond the limit is told before it is closed.
const BUSY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\nconnection: close\r\n\
    content-type: application/problem+json\r\ncontent-length: 75\r\n\r\n\
    {\"status\":429,\"code\":\"overloaded\",\"detail\":\"too many connections are open\"}";

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Other machines could reach the address, and this release has neither TLS nor tokens for them.
    #[error("{0} is not a loopback address: the HTTP API listens on loopback only")]
    NotLoopback(SocketAddr),
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
        if !address.ip().is_loopback() {
            return Err(BindError::NotLoopback(address));
        }
        let failed = |source| BindError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        options.listen = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address: options.listen, app: App::new(node, options) })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets no new connection in, ends the streams of events, gives requests under way
    /// [`GRACE_TIME`], closes what is left, and joins every task.
    ///
    /// # Cancel safety
    /// Dropped, it aborts every connection.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, app, .. } = self;
        let closing = app.closing().clone();
        let room = app.room().clone();
        let service = TowerToHyperService::new(routes::router(app));
        let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => match room.connections.try_take() {
                        Some(slot) => {
                            connections.spawn(serve(stream, service.clone(), closing.clone(), slot));
                        }
                        None => {
                            room.connections.refuse();
                            match refusals.clone().try_acquire_owned() {
                                Ok(refusal) => drop(connections.spawn(refuse(stream, refusal))),
                                Err(_) => drop(stream.try_write(BUSY)),
                            }
                        }
                    },
                    Err(error) => {
                        tracing::warn!(%error, "an HTTP connection could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
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
    }
}

fn joined(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an HTTP connection's task failed");
    }
}

async fn refuse(stream: TcpStream, _refusal: OwnedSemaphorePermit) {
    let mut socket = Socket::new(stream);
    let told = async {
        // An answer that comes before a request has begun is none to most clients.
        let _ = timeout(LINGER_TIME, socket.read(&mut [0; 1])).await;
        socket.write_all(BUSY).await?;
        socket.shutdown().await
    };
    if let Err(error) = told.await {
        tracing::debug!(%error, "an HTTP connection was refused and not told so");
    }
}

async fn serve(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    closing: CancellationToken,
    _slot: OwnedSemaphorePermit,
) {
    // Answers are small: without this they would wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    if let Err(error) = SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_BYTES) {
        tracing::debug!(%error, "what the system holds of answers could not be limited: slow readers are cut off");
    }
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(Socket::new(stream)), service));
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
    use super::BUSY;

    #[test]
    fn the_fixed_answer_is_as_long_as_it_says() {
        let text = std::str::from_utf8(BUSY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
