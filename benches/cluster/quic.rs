//! A quinn stream to each subscriber with mutual TLS, frames of 104 bytes, batches of 16 KiB: what QUIC itself costs.
//! Tuned: segmentation offload, 4 MiB socket buffers, wide windows, a current-thread runtime.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Endpoint, EndpointConfig, SendStream, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::certificates;
use crate::drive::Publisher;
use crate::message::{MESSAGE_BYTES, Message, Sink};
use crate::setup::Setup;

/// A message and its length.
const FRAME_BYTES: usize = 4 + MESSAGE_BYTES;

/// Frames are handed to the streams when this many bytes have come together.
const BATCH_BYTES: usize = 16 << 10;

/// Batches that may wait for one subscriber.
const BATCHES_WAITING: usize = 16;

/// Asked of the kernel for each direction.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// What a subscriber lets the publisher send ahead.
const WINDOW_BYTES: u32 = 16 << 20;

pub(crate) struct Quic {
    batch: BytesMut,
    subscribers: Vec<mpsc::Sender<Bytes>>,
    _endpoint: Endpoint,
    _writers: JoinSet<Result<()>>,
}

impl Quic {
    pub(crate) async fn connect(setup: &Setup) -> Result<Self> {
        let endpoint = endpoint(None)?;
        let crypto = QuicClientConfig::try_from(certificates::client(&setup.certificates)?)?;
        let mut config = ClientConfig::new(Arc::new(crypto));
        config.transport_config(transport());
        let mut subscribers = Vec::new();
        let mut writers = JoinSet::new();
        for peer in &setup.peers {
            let address = peer.data.context("a subscriber without an address")?;
            let connection = endpoint.connect_with(config.clone(), address, certificates::NAME)?.await?;
            let stream = connection.open_uni().await?;
            let (sender, batches) = mpsc::channel(BATCHES_WAITING);
            subscribers.push(sender);
            writers.spawn(write(stream, batches));
        }
        Ok(Self { batch: BytesMut::new(), subscribers, _endpoint: endpoint, _writers: writers })
    }
}

impl Publisher for Quic {
    async fn publish(&mut self, message: Message) -> Result<()> {
        self.batch.put_u32_le(MESSAGE_BYTES as u32);
        self.batch.put_slice(&message.bytes());
        if self.batch.len() >= BATCH_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        let batch = self.batch.split().freeze();
        self.batch.reserve(BATCH_BYTES + FRAME_BYTES);
        for subscriber in &self.subscribers {
            subscriber.send(batch.clone()).await.context("a subscriber is gone")?;
        }
        Ok(())
    }
}

async fn write(mut stream: SendStream, mut batches: mpsc::Receiver<Bytes>) -> Result<()> {
    let mut together = Vec::with_capacity(BATCHES_WAITING);
    while batches.recv_many(&mut together, BATCHES_WAITING).await > 0 {
        stream.write_all_chunks(&mut together).await?;
        together.clear();
    }
    Ok(())
}

pub(crate) async fn subscribe(setup: &Setup, mut sink: Sink, ready: impl FnOnce(SocketAddr)) -> Result<()> {
    let crypto = QuicServerConfig::try_from(certificates::server(&setup.certificates)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    let endpoint = endpoint(Some(config))?;
    ready(endpoint.local_addr()?);
    let connection = endpoint.accept().await.context("endpoint closed")?.await?;
    let mut stream = connection.accept_uni().await?;
    let mut partial = Vec::with_capacity(FRAME_BYTES);
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
        let mut rest = &chunk.bytes[..];
        if !partial.is_empty() {
            let missing = (FRAME_BYTES - partial.len()).min(rest.len());
            partial.extend_from_slice(&rest[..missing]);
            rest = &rest[missing..];
            if partial.len() < FRAME_BYTES {
                continue;
            }
            sink.take(frame(&partial)?)?;
            partial.clear();
        }
        let mut frames = rest.chunks_exact(FRAME_BYTES);
        for bytes in &mut frames {
            sink.take(frame(bytes)?)?;
        }
        partial.extend_from_slice(frames.remainder());
    }
    Ok(())
}

fn frame(bytes: &[u8]) -> Result<Message> {
    let (length, message) = bytes.split_at(4);
    ensure!(length == (MESSAGE_BYTES as u32).to_le_bytes(), "a frame of another length");
    Message::parse(message)
}

fn endpoint(server: Option<ServerConfig>) -> Result<Endpoint> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Ok(Endpoint::new(EndpointConfig::default(), server, socket.into(), Arc::new(TokioRuntime))?)
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .keep_alive_interval(Some(Duration::from_secs(1)));
    Arc::new(transport)
}
