//! A socket whose packets to some addresses are lost.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tidings::Simulated;

/// Who reaches whom: everybody, but for these.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wires(Arc<Mutex<Lost>>);

#[derive(Debug, Default)]
struct Lost {
    pairs: BTreeSet<(SocketAddr, SocketAddr)>,
    dead: BTreeSet<SocketAddr>,
}

impl Wires {
    /// A socket at a free port of this host, for one node.
    pub(crate) fn socket(&self) -> Simulated {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let inner = TokioRuntime.wrap_udp_socket(socket).unwrap();
        let seed = rand::random();
        let socket = Arc::new(Wire { inner, address, wires: self.clone() });
        Simulated { socket, seed, log_id: rand::random(), planted: None }
    }

    /// Nothing gets through between two, either way.
    pub(crate) fn cut(&self, one: SocketAddr, other: SocketAddr) {
        let mut lost = self.0.lock().unwrap();
        lost.pairs.extend([(one, other), (other, one)]);
    }

    /// Nothing is heard of a node any more, and it hears nothing.
    pub(crate) fn kill(&self, node: SocketAddr) {
        self.0.lock().unwrap().dead.insert(node);
    }

    /// Everything gets through again.
    pub(crate) fn mend(&self) {
        *self.0.lock().unwrap() = Lost::default();
    }

    fn loses(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let lost = self.0.lock().unwrap();
        lost.dead.contains(&from) || lost.dead.contains(&to) || lost.pairs.contains(&(from, to))
    }
}

struct Wire {
    inner: Arc<dyn AsyncUdpSocket>,
    address: SocketAddr,
    wires: Wires,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wire").field(&self.address).finish()
    }
}

impl AsyncUdpSocket for Wire {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.wires.loses(self.address, transmit.destination) {
            return Ok(());
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
