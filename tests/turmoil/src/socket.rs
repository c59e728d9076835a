//! A socket of quinn's over turmoil's network, which also loses and doubles packets.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::mpsc;
use turmoil::net::UdpSocket;

use crate::chance::Chance;

/// Packets that wait to be read by one node; more are lost, as in a kernel.
const BACKLOG: usize = 4_096;

/// Longest UDP payload.
const PAYLOAD_BYTES_MAX: usize = 65_535;

/// What becomes of packets, and a fingerprint of all that were sent: when, and of what length.
#[derive(Debug)]
pub(crate) struct Weather {
    chance: Chance,
    /// Of a thousand packets.
    pub(crate) lost: u64,
    /// Of a thousand packets.
    pub(crate) doubled: u64,
    packets: u64,
    fingerprint: u64,
}

impl Weather {
    pub(crate) fn new(seed: u64) -> Self {
        Self { chance: Chance::new(seed), lost: 0, doubled: 0, packets: 0, fingerprint: 0 }
    }

    pub(crate) fn fair(&mut self) {
        (self.lost, self.doubled) = (0, 0);
    }

    /// How many packets were sent, and what they were like.
    pub(crate) fn trace(&self) -> (u64, u64) {
        (self.packets, self.fingerprint)
    }

    /// How often this packet arrives.
    fn copies(&mut self, length: usize) -> usize {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64;
        self.packets += 1;
        self.fingerprint = crate::chance::mix(self.fingerprint ^ at ^ ((length as u64) << 40));
        if self.chance.permille(self.lost) {
            return 0;
        }
        1 + usize::from(self.chance.permille(self.doubled))
    }
}

pub(crate) struct Socket {
    /// Held by the task that reads it, which its host's death ends; whatever else a process held would outlive it.
    socket: Weak<UdpSocket>,
    address: SocketAddr,
    received: Mutex<mpsc::Receiver<(Vec<u8>, SocketAddr)>>,
    weather: Arc<Mutex<Weather>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Socket {
    /// Binds the port of a host that others reach at `address`.
    pub(crate) async fn bind(address: SocketAddr, weather: Arc<Mutex<Weather>>) -> io::Result<Arc<Self>> {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, address.port())).await?);
        let (sender, received) = mpsc::channel(BACKLOG);
        let shared = Arc::downgrade(&socket);
        tokio::spawn(async move {
            let mut buffer = vec![0; PAYLOAD_BYTES_MAX];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let _ = sender.try_send((buffer[..length].to_vec(), from));
            }
        });
        Ok(Arc::new(Self { socket: shared, address, received: Mutex::new(received), weather }))
    }
}

/// There is always room.
#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(socket) = self.socket.upgrade() else { return Ok(()) };
        let length = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(length) {
            let copies = self.weather.lock().expect("nothing panics while it is locked").copies(packet.len());
            for _ in 0..copies {
                // Nobody there is silence, as with UDP.
                let _ = socket.try_send_to(packet, transmit.destination);
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut received = self.received.lock().expect("nothing panics while it is locked");
        loop {
            let Some((packet, addr)) = ready!(received.poll_recv(context)) else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            // One that is longer than quinn accepts is cut off, and so of no use.
            let Some(buffer) = bufs[0].get_mut(..packet.len()) else { continue };
            buffer.copy_from_slice(&packet);
            meta[0] = RecvMeta { addr, len: packet.len(), stride: packet.len(), ecn: None, dst_ip: None };
            return Poll::Ready(Ok(1));
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
