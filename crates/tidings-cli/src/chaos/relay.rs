//! A relay in front of each node's UDP port, which can drop what one node sends to another.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Largest datagram: UDP's own limit.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Pause after an error of a socket: one that lasts must not take a processor.
const ERROR_PAUSE: Duration = Duration::from_millis(1);

/// Who does not reach whom: (from, to), nodes by number from 0. Shared by all relays.
#[derive(Clone, Debug, Default)]
pub(super) struct Cuts(Arc<Mutex<Vec<(usize, usize)>>>);

impl Cuts {
    /// Drops what one node sends to another from now on.
    pub(super) fn add(&self, from: usize, to: usize) {
        self.0.lock().push((from, to));
    }

    /// Lets everything through.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    fn holds(&self, from: usize, to: usize) -> bool {
        self.0.lock().contains(&(from, to))
    }
}

/// A bound relay.
#[derive(Debug)]
pub(super) struct Relay {
    socket: Arc<UdpSocket>,
    address: SocketAddr,
}

impl Relay {
    /// Binds a relay to a free port.
    pub(super) async fn bind() -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = socket.local_addr()?;
        Ok(Self { socket: Arc::new(socket), address })
    }

    /// Where the node behind it is to be dialled.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Relays between node `to` and all others, whose sockets are at these addresses. Ends when dropped.
    pub(super) async fn run(self, to: usize, nodes: Arc<[SocketAddr]>, cuts: Cuts) {
        let mut upstream: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
        let mut backward = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // An error here is one datagram's, such as a port that nobody listens on: loss, as networks have it.
            let Ok((length, source)) = self.socket.recv_from(&mut buffer).await else {
                sleep(ERROR_PAUSE).await;
                continue;
            };
            let Some(from) = nodes.iter().position(|address| *address == source) else { continue };
            let known = upstream.get(&source).cloned();
            let socket = match known {
                Some(socket) => socket,
                None => {
                    let Ok(socket) = connected(nodes[to]).await else { continue };
                    let (socket, down) = (Arc::clone(upstream.entry(source).or_insert(socket)), &self.socket);
                    backward.spawn(back(
                        Arc::clone(&socket),
                        Arc::clone(down),
                        source,
                        (to, from),
                        cuts.clone(),
                    ));
                    socket
                }
            };
            if !cuts.holds(from, to) {
                let _ = socket.send(&buffer[..length]).await;
            }
        }
    }
}

/// Carries answers back to whom they are for.
async fn back(
    upstream: Arc<UdpSocket>,
    downstream: Arc<UdpSocket>,
    source: SocketAddr,
    (from, to): (usize, usize),
    cuts: Cuts,
) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        match upstream.recv(&mut buffer).await {
            Ok(length) if !cuts.holds(from, to) => {
                let _ = downstream.send_to(&buffer[..length], source).await;
            }
            Ok(_) => {}
            // Refused while the node is down: it will be back on the same port.
            Err(_) => sleep(ERROR_PAUSE).await,
        }
    }
}

async fn connected(address: SocketAddr) -> io::Result<Arc<UdpSocket>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(address).await?;
    Ok(Arc::new(socket))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn arrives(socket: &UdpSocket, expected: &[u8]) -> bool {
        let mut buffer = [0; 16];
        match timeout(Duration::from_millis(300), socket.recv_from(&mut buffer)).await {
            Ok(Ok((length, _))) => buffer[..length] == *expected,
            _ => false,
        }
    }

    #[tokio::test]
    async fn cuts_drop_one_direction_at_a_time() {
        let (a, b) = (connectable().await, connectable().await);
        let addresses: Arc<[SocketAddr]> = [a.local_addr().unwrap(), b.local_addr().unwrap()].into();
        let (relay, cuts) = (Relay::bind().await.unwrap(), Cuts::default());
        let front = relay.address();
        let mut tasks = JoinSet::new();
        tasks.spawn(relay.run(1, addresses, cuts.clone()));

        a.send_to(b"ping", front).await.unwrap();
        let mut buffer = [0; 16];
        let (_, seen) = b.recv_from(&mut buffer).await.unwrap();
        b.send_to(b"pong", seen).await.unwrap();
        assert!(arrives(&a, b"pong").await);

        cuts.add(0, 1);
        a.send_to(b"lost", front).await.unwrap();
        assert!(!arrives(&b, b"lost").await);
        b.send_to(b"back", seen).await.unwrap();
        assert!(arrives(&a, b"back").await, "the other direction is open");

        cuts.clear();
        cuts.add(1, 0);
        a.send_to(b"there", front).await.unwrap();
        assert!(arrives(&b, b"there").await);
        b.send_to(b"lost", seen).await.unwrap();
        assert!(!arrives(&a, b"lost").await);
    }

    async fn connectable() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
    }
}
