//! The UDP socket of a node.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use crate::limits::SOCKET_BUFFER_BYTES;

/// Buffers handed to the kernel while little comes. Each takes what came from one peer, several datagrams if the kernel
/// puts them together; to prepare all that quinn has would cost more than to receive one packet.
const FEW_BUFFERS: usize = 2;

/// Whether a short read means that nothing is left: where one call receives several datagrams.
const SHORT_READ_IS_LAST: bool = cfg!(any(target_os = "linux", target_os = "android", target_os = "freebsd"));

/// quinn's own socket but for one thing: it knows when it has read everything. quinn reads until the kernel says that
/// nothing is left; where a packet comes alone that is a second system call for each.
#[derive(Debug)]
pub(crate) struct EventSocket {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    /// Buffers to hand to the kernel next.
    buffers: AtomicUsize,
}

impl EventSocket {
    /// Takes a bound socket. Needs a runtime.
    pub(crate) fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let io = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Self { io, state, buffers: AtomicUsize::new(FEW_BUFFERS) })
    }

    /// Receives into some of the buffers. The second value: whether nothing was left.
    fn receive(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> io::Result<(usize, bool)> {
        let buffers = self.buffers.load(Ordering::Relaxed).min(bufs.len());
        let received = self.state.recv((&self.io).into(), &mut bufs[..buffers], meta)?;
        let drained = SHORT_READ_IS_LAST && received < buffers;
        self.buffers.store(if drained { FEW_BUFFERS } else { usize::MAX }, Ordering::Relaxed);
        Ok((received, drained))
    }
}

impl AsyncUdpSocket for EventSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.state.send((&self.io).into(), transmit))
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            let mut taken = 0;
            let received = self.io.try_io(Interest::READABLE, || {
                let (received, drained) = self.receive(bufs, meta)?;
                taken = received;
                // Said as the kernel would say it at the next call: the runtime then waits for what comes after that.
                if drained { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            // As in quinn, errors are those of single datagrams, and passed over.
            if received.is_ok() || taken > 0 {
                return Poll::Ready(Ok(taken));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// One connection's wait for room in the socket's send buffer.
struct Writable {
    socket: Arc<EventSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").field("waiting", &self.waiting.is_some()).finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let writable = ready!(waiting.poll_unpin(context));
        self.waiting = None;
        Poll::Ready(writable)
    }
}

/// Binds a UDP socket with large buffers. The unspecified IPv6 address takes IPv4 peers too.
pub(crate) fn bind(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    // The system grants what it allows; less costs speed, not correctness.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

/// An address as it is written: an IPv4 one that a dual-stack socket shows as IPv6 is IPv4 again.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        // Unchanged, with the scope of a link-local address.
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Receives what is there, as quinn does: until the socket says that nothing is left.
    async fn drain(socket: &EventSocket) -> Vec<(usize, Vec<u8>)> {
        let mut memory = vec![[0; 2_048]; quinn::udp::BATCH_SIZE];
        let mut metas = [RecvMeta::default(); quinn::udp::BATCH_SIZE];
        let mut calls = Vec::new();
        std::future::poll_fn(|context| {
            loop {
                let mut bufs: Vec<_> = memory.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
                match socket.poll_recv(context, &mut bufs, &mut metas) {
                    Poll::Ready(received) => {
                        let received = received.expect("the socket is open");
                        let of = |(meta, buf): (&RecvMeta, &IoSliceMut<'_>)| buf[..meta.len].to_vec();
                        let bytes = metas[..received].iter().zip(&bufs).flat_map(of).collect();
                        calls.push((received, bytes));
                    }
                    Poll::Pending if calls.is_empty() => return Poll::Pending,
                    Poll::Pending => return Poll::Ready(()),
                }
            }
        })
        .await;
        calls
    }

    #[tokio::test]
    async fn every_datagram_is_received_however_many_come_together() {
        let socket = EventSocket::new(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut sent = Vec::new();
        for round in [1, 1, 2, 3, 40, 1, 100, 2] {
            for _ in 0..round {
                // Of different lengths, so that the kernel does not put them together.
                let datagram = vec![sent.len() as u8; 1 + sent.len() % 7];
                sender.send_to(&datagram, address).unwrap();
                sent.push(datagram);
            }
            let expected: usize = sent.iter().map(Vec::len).sum();
            let mut received = Vec::new();
            while received.len() < expected {
                let calls = drain(&socket).await;
                if round == 1 && SHORT_READ_IS_LAST {
                    assert_eq!(calls.len(), 1, "a lone datagram took several calls");
                }
                received.extend(calls.into_iter().flat_map(|(_, bytes)| bytes));
            }
            assert_eq!(received, sent.concat());
            sent.clear();
        }
    }

    #[test]
    fn mapped_addresses_are_written_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:7400".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.1:7400".parse().unwrap());
        let v6: SocketAddr = "[fd00::1]:7400".parse().unwrap();
        assert_eq!(canonical(v6), v6);
    }
}
