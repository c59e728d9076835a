//! How packets come and go: a socket of quinn's on the process's side, one of turmoil's on the machine's. Between them
//! some are lost, and some doubled.
//!
//! A machine's side runs on while its process stands still: what comes meanwhile waits, as in a kernel.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;
use turmoil::net::UdpSocket;

use crate::process::Time;
use crate::weather::Weather;

/// Packets that wait to be read by one process; more are lost, as in a kernel.
const BACKLOG: usize = 4_096;

/// Longest UDP payload.
const PAYLOAD_BYTES_MAX: usize = 65_535;

/// A packet, and from where it comes or where it goes.
type Packet = (Vec<u8>, SocketAddr);

/// What one process has received and sent.
#[derive(Debug, Default)]
pub(crate) struct Cable {
    arrived: Mutex<Arrived>,
    sent: Mutex<Vec<Packet>>,
    sends: Notify,
}

#[derive(Debug, Default)]
struct Arrived {
    packets: VecDeque<Packet>,
    reader: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is locked")
}

impl Cable {
    /// Carries packets between a port of the machine that this runs on and a process, until the process has ended.
    pub(crate) async fn carry(self: Arc<Self>, port: u16) -> Result<(), Box<dyn Error>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
        let mut buffer = vec![0; PAYLOAD_BYTES_MAX];
        loop {
            tokio::select! {
                biased;
                () = self.sends.notified() => {
                    for (packet, to) in std::mem::take(&mut *lock(&self.sent)) {
                        // Nobody there is silence, as with UDP.
                        let _ = socket.try_send_to(&packet, to);
                    }
                }
                received = socket.recv_from(&mut buffer) => {
                    let (length, from) = received?;
                    self.arrives((buffer[..length].to_vec(), from));
                }
            }
        }
    }

    fn arrives(&self, packet: Packet) {
        let mut arrived = lock(&self.arrived);
        if arrived.packets.len() < BACKLOG {
            arrived.packets.push_back(packet);
        }
        if let Some(reader) = arrived.reader.take() {
            reader.wake();
        }
    }

    fn send(&self, packet: Packet) {
        lock(&self.sent).push(packet);
        self.sends.notify_one();
    }
}

/// The socket of a process.
pub(crate) struct Socket {
    pub(crate) cable: Arc<Cable>,
    /// Where others reach it.
    pub(crate) address: SocketAddr,
    pub(crate) weather: Arc<Mutex<Weather>>,
    pub(crate) time: Time,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("address", &self.address).finish_non_exhaustive()
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
        let (to, now) = (transmit.destination, self.time.now());
        let length = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(length) {
            let copies = lock(&self.weather).copies(now, (self.address, to), packet.len());
            (0..copies).for_each(|_| self.cable.send((packet.to_vec(), to)));
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arrived = lock(&self.cable.arrived);
        while let Some((packet, addr)) = arrived.packets.pop_front() {
            // One that is longer than quinn accepts is cut off, and so of no use.
            let Some(buffer) = bufs[0].get_mut(..packet.len()) else { continue };
            buffer.copy_from_slice(&packet);
            meta[0] = RecvMeta { addr, len: packet.len(), stride: packet.len(), ecn: None, dst_ip: None };
            return Poll::Ready(Ok(1));
        }
        arrived.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
