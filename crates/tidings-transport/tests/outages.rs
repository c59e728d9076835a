//! Links over a network that loses packets, or is cut in one or both directions.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::fmt;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use common::*;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tidings_transport::{Authority, Config, Host, Identity, Transport};
use tokio::time::{Instant, sleep};

/// A socket that loses some of what is sent through it.
struct Lossy {
    socket: Arc<dyn AsyncUdpSocket>,
    loss: Loss,
}

/// Per cent of the packets that are lost on their way out.
#[derive(Clone, Default)]
struct Loss {
    percent: Arc<AtomicU32>,
    state: Arc<AtomicU64>,
}

impl Loss {
    fn set(&self, percent: u32) {
        self.percent.store(percent, Ordering::SeqCst);
    }

    fn strikes(&self) -> bool {
        let drawn = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        let mixed = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed >> 32) % 100) < u64::from(self.percent.load(Ordering::SeqCst))
    }
}

impl fmt::Debug for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lossy")
    }
}

impl AsyncUdpSocket for Lossy {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.loss.strikes() { Ok(()) } else { self.socket.try_send(transmit) }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    // One packet per call, so that loss strikes packets and not bursts.
    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// A node whose outgoing packets can be lost. It dials again beside a silent link, as a session does.
fn lossy(authority: &Authority, name: &str) -> (Node, Loss) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let socket = TokioRuntime.wrap_udp_socket(socket).unwrap();
    let address = socket.local_addr().unwrap();
    let loss = Loss::default();
    let socket = Arc::new(Lossy { socket, loss: loss.clone() });
    let host = TestHost::new(hello(name, 1, u64::from(address.port()), address));
    let issued = authority.issue(&id(name), &[], Duration::from_secs(3_600)).unwrap();
    let identity = Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
    let config =
        Config { cluster: CLUSTER.to_owned(), node: id(name), listen: address, identity, denied: vec![] };
    let transport = Transport::bind_on(config, host.clone(), socket, Some([7; 32])).unwrap();
    (Node { host, transport }, loss)
}

struct Pair {
    nodes: [Node; 2],
    losses: [Loss; 2],
}

impl Pair {
    async fn linked() -> Self {
        let authority = Authority::generate(CLUSTER).unwrap();
        let (one, loss_one) = lossy(&authority, "n1");
        let (two, loss_two) = lossy(&authority, "n2");
        one.transport.want(two.address());
        two.transport.want(one.address());
        until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
        Self { nodes: [one, two], losses: [loss_one, loss_two] }
    }

    /// How long each node has not heard the other on the link that it counts.
    fn silence(&self) -> [Option<Duration>; 2] {
        self.nodes.each_ref().map(|node| {
            let link = node.transport.links().pop()?;
            Some(node.host.now().since(link.last_heard()))
        })
    }

    /// Dials beside silent links until both nodes hear each other, and says how long that took.
    async fn heal(&self) -> Duration {
        until("both hear each other", || {
            let heard =
                |silence: &Option<Duration>| silence.is_some_and(|it| it < Duration::from_millis(250));
            let healed = self.silence().iter().all(heard);
            if !healed {
                self.redial();
            }
            healed
        })
        .await
    }

    fn redial(&self) {
        for (node, silence) in self.nodes.iter().zip(self.silence()) {
            if silence.is_some_and(|silence| silence > Duration::from_secs(1)) {
                node.transport.links().iter().for_each(|link| node.transport.redial(&link.peer().node));
            }
        }
    }

    /// Cuts some directions for a while, with the second dials that go with it.
    async fn cut(&self, directions: [bool; 2], during: Duration) {
        for (loss, cut) in self.losses.iter().zip(directions) {
            loss.set(if cut { 100 } else { 0 });
        }
        let begin = Instant::now();
        while begin.elapsed() < during {
            self.redial();
            sleep(Duration::from_millis(250)).await;
        }
        self.losses.iter().for_each(|loss| loss.set(0));
    }

    async fn settle(&self) {
        let open = |node: &Node| {
            let stats = node.transport.stats();
            stats.links_opened.get() - stats.links_closed.get()
        };
        until("one link left", || self.nodes.iter().all(|node| open(node) == 1)).await;
        let [one, two] = &self.nodes;
        assert!(one.linked_to(two) && two.linked_to(one));
    }
}

#[tokio::test]
async fn a_link_heals_within_two_seconds_after_any_cut() {
    let cuts = [
        ([true, true], Duration::from_millis(1_500)),
        ([true, true], Duration::from_secs(5)),
        ([true, false], Duration::from_secs(2)),
        ([false, true], Duration::from_secs(4)),
    ];
    for (directions, during) in cuts {
        let pair = Pair::linked().await;
        pair.cut(directions, during).await;
        let took = pair.heal().await;
        assert!(took < Duration::from_secs(2), "{directions:?} for {during:?}: {took:?}");
        pair.settle().await;
        println!("cut {directions:?} for {during:?}: healed in {took:?}");
    }
}

#[tokio::test]
async fn links_come_up_and_stay_while_a_fifth_of_the_packets_is_lost() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (one, loss_one) = lossy(&authority, "n1");
    let (two, loss_two) = lossy(&authority, "n2");
    loss_one.set(20);
    loss_two.set(20);
    one.transport.want(two.address());
    let took = until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    let begin = Instant::now();
    let asked = one.host.now();
    let link = one.transport.link(&id("n2")).unwrap();
    assert!(link.liveness(asked, PATIENCE).await);
    until("three seconds later", || begin.elapsed() > Duration::from_secs(3)).await;
    assert_eq!(one.transport.stats().links_closed.get(), 0);
}
