//! Flow control beside the system under test: subscribers tell the publisher how much they have received, over a
//! plain TCP connection, every few thousand messages. Without it a publisher would overrun whichever buffer comes
//! first (a broker's, a client's, a log's), and systems would be compared by how they lose messages.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;

use crate::setup::Peer;

/// Most messages that a subscriber may be behind. Below every system's own limit, and enough for all of them to batch.
const WINDOW: u64 = 131_072;

/// A subscriber reports after this many messages: one system call for thousands of them.
const REPORT_EVERY: u64 = 8_192;

/// A subscriber that says nothing for this long has lost messages.
const PATIENCE: Duration = Duration::from_secs(10);

/// The subscriber's end.
#[derive(Debug)]
pub(crate) struct CreditSender {
    publisher: Arc<OnceLock<std::net::TcpStream>>,
}

impl CreditSender {
    /// Listens for the publisher, and says where.
    pub(crate) fn listen() -> Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let publisher = Arc::new(OnceLock::new());
        let slot = Arc::clone(&publisher);
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                let _ = slot.set(stream);
            }
        });
        Ok((Self { publisher }, address))
    }

    /// Reports now and then that so many messages have been received.
    pub(crate) fn received(&self, messages: u64) -> Result<()> {
        if messages.is_multiple_of(REPORT_EVERY) { self.received_all(messages) } else { Ok(()) }
    }

    /// Reports at once.
    pub(crate) fn received_all(&self, messages: u64) -> Result<()> {
        let mut publisher = self.publisher.wait();
        publisher.write_all(&messages.to_le_bytes()).context("the publisher is gone")
    }
}

/// The publisher's end.
#[derive(Debug)]
pub(crate) struct Credits {
    peers: Vec<PeerCredit>,
}

#[derive(Debug)]
struct PeerCredit {
    stream: TcpStream,
    received: u64,
    partial: VecDeque<u8>,
}

impl Credits {
    pub(crate) async fn connect(peers: &[Peer]) -> Result<Self> {
        let mut connected = Vec::new();
        for peer in peers {
            let stream = TcpStream::connect(peer.credit).await?;
            connected.push(PeerCredit { stream, received: 0, partial: VecDeque::new() });
        }
        Ok(Self { peers: connected })
    }

    /// Waits until every subscriber is within the window behind `sent` messages.
    pub(crate) async fn room(&mut self, sent: u64) -> Result<()> {
        self.received(sent.saturating_sub(WINDOW)).await
    }

    /// Waits until every subscriber has received so many messages.
    pub(crate) async fn received(&mut self, messages: u64) -> Result<()> {
        for (index, peer) in self.peers.iter_mut().enumerate() {
            while peer.received < messages {
                tokio::time::timeout(PATIENCE, peer.read()).await.with_context(|| {
                    format!("subscriber {index} has {} of {messages} messages and is silent", peer.received)
                })??;
            }
        }
        Ok(())
    }
}

impl PeerCredit {
    async fn read(&mut self) -> Result<()> {
        let mut buffer = [0; 256];
        self.stream.readable().await?;
        match self.stream.try_read(&mut buffer) {
            Ok(0) => bail!("a subscriber has ended"),
            Ok(count) => self.partial.extend(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        while self.partial.len() >= 8 {
            let mut number = [0; 8];
            self.partial.iter().zip(&mut number).for_each(|(from, to)| *to = *from);
            self.partial.drain(..8);
            self.received = u64::from_le_bytes(number);
        }
        Ok(())
    }
}
