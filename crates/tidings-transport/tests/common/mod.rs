//! Nodes whose session only probes, and the certificates that their tests need.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidings_proto::frame::{Control, Heartbeat, Hello, MemberSet, PROTOCOL_VERSION, Refusal};
use tidings_proto::id::{Incarnation, Lanes, LogId, NodeId};
use tidings_proto::time::Tick;
use tidings_transport::{
    Authority, Config, Host, Identity, Link, NODE_VALIDITY, RefusedReason, SessionFuture, Transport,
};
use tokio::time::{Instant, interval, sleep, timeout};

pub(crate) mod intruder;

pub(crate) const CLUSTER: &str = "shop";

/// How long a test waits for what must happen at all. What must happen soon is held against [`timed`].
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How often a test looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The most that counts between two looks: when it was longer, this thread, and with it the nodes of the test, did not
/// run for a while.
const LOOK_MAX: Duration = Duration::from_millis(20);

pub(crate) fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn hello(node: &str, incarnation: u64, log: u64, address: SocketAddr) -> Hello {
    Hello {
        protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
        cluster: CLUSTER.to_owned(),
        node: id(node),
        incarnation: Incarnation(incarnation),
        log: LogId(log),
        hash_version: 1,
        lanes: Lanes::default(),
        address,
        zone: String::new(),
        release: "test".to_owned(),
        wall_ms: 0,
        age_ms: 0,
        members: MemberSet::default(),
    }
}

/// Waits until something holds, and says how long that took as [`timed`] does.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    let looking = async {
        while !holds() {
            assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            sleep(LOOK_EVERY).await;
        }
    };
    timed(looking).await.1
}

/// Does something, and says how long that took, without the time that a busy machine took from this thread.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let (mut work, mut took) = (pin!(work), Duration::ZERO);
    loop {
        let begin = Instant::now();
        let done = timeout(LOOK_EVERY, &mut work).await;
        took += begin.elapsed().min(LOOK_MAX);
        if let Ok(done) = done {
            return (done, took);
        }
    }
}

pub(crate) struct TestHost {
    pub(crate) hello: Mutex<Hello>,
    pub(crate) admitted: Mutex<Vec<Hello>>,
    pub(crate) refused: Mutex<Vec<(SocketAddr, Refusal)>>,
    /// Holders of this node's id that it gave way to.
    pub(crate) displaced: Mutex<Vec<SocketAddr>>,
    pub(crate) gossip: Mutex<Vec<(SocketAddr, Bytes)>>,
    pub(crate) sessions: AtomicUsize,
    /// A node that hears nothing on its links, and says nothing.
    pub(crate) mute: Arc<AtomicBool>,
    /// A node that ends every session at once.
    pub(crate) brief: AtomicBool,
    pub(crate) refuse: Mutex<Option<Refusal>>,
    /// Whether it follows lives that are over to their end, and which have come.
    pub(crate) follows: AtomicBool,
    pub(crate) formers: Mutex<Vec<Hello>>,
    /// Its own life is over.
    pub(crate) over: AtomicBool,
    begin: Instant,
}

impl TestHost {
    pub(crate) fn new(hello: Hello) -> Arc<Self> {
        Arc::new(Self {
            hello: Mutex::new(hello),
            admitted: Mutex::default(),
            refused: Mutex::default(),
            displaced: Mutex::default(),
            gossip: Mutex::default(),
            sessions: AtomicUsize::new(0),
            mute: Arc::default(),
            brief: AtomicBool::new(false),
            refuse: Mutex::default(),
            follows: AtomicBool::new(false),
            formers: Mutex::default(),
            over: AtomicBool::new(false),
            begin: Instant::now(),
        })
    }

    fn tick(begin: Instant) -> Tick {
        Tick(1).after(begin.elapsed())
    }
}

impl Host for TestHost {
    fn hello(&self) -> Hello {
        self.hello.lock().unwrap().clone()
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if let Some(refusal) = self.refuse.lock().unwrap().clone() {
            return Err(refusal);
        }
        self.admitted.lock().unwrap().push(hello.clone());
        Ok(())
    }

    fn refused(&self, address: SocketAddr, refusal: &Refusal) {
        self.refused.lock().unwrap().push((address, refusal.clone()));
    }

    fn follows_to_the_end(&self, hello: &Hello) -> bool {
        let follows = self.follows.load(Ordering::SeqCst);
        if follows {
            self.formers.lock().unwrap().push(hello.clone());
        }
        follows
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn displaced(&self, holder: SocketAddr) {
        self.displaced.lock().unwrap().push(holder);
    }

    fn session(&self, link: Arc<Link>) -> SessionFuture {
        self.sessions.fetch_add(1, Ordering::SeqCst);
        if self.brief.load(Ordering::SeqCst) {
            return Box::pin(async {});
        }
        let (begin, mute) = (self.begin, self.mute.clone());
        Box::pin(async move {
            let probing = probe(&link, begin, &mute);
            tokio::select! {
                () = probing => {}
                _ = link.closed() => {}
            }
        })
    }

    fn gossip(&self, peer: &Hello, frame: Bytes) {
        self.gossip.lock().unwrap().push((peer.address, frame));
    }

    fn now(&self) -> Tick {
        Self::tick(self.begin)
    }
}

/// Sends probes, numbered by their send time, and answers the peer's.
async fn probe(link: &Link, begin: Instant, mute: &AtomicBool) {
    let (mut send, mut receive) = link.take_control().unwrap();
    let mut regular = interval(Duration::from_millis(100));
    loop {
        let frame = tokio::select! {
            _ = regular.tick() => Control::Probe(TestHost::tick(begin).0),
            () = link.probe_wanted() => Control::Probe(TestHost::tick(begin).0),
            frame = receive.recv() => match frame {
                Err(_) => return,
                _ if mute.load(Ordering::SeqCst) => continue,
                Ok(Control::Probe(echo)) => Control::Heartbeat(Heartbeat { echo, members: 0, heads: vec![] }),
                Ok(Control::Heartbeat(heartbeat)) => {
                    link.echoed(Tick(heartbeat.echo));
                    continue;
                }
                Ok(_) => continue,
            },
        };
        if !mute.load(Ordering::SeqCst) && send.send(&frame).await.is_err() {
            return;
        }
    }
}

/// One node of a test.
pub(crate) struct Node {
    pub(crate) host: Arc<TestHost>,
    pub(crate) transport: Transport,
}

impl Node {
    pub(crate) fn address(&self) -> SocketAddr {
        self.transport.local_addr()
    }

    pub(crate) fn id(&self) -> NodeId {
        self.host.hello.lock().unwrap().node.clone()
    }

    pub(crate) fn linked_to(&self, other: &Self) -> bool {
        self.transport.link(&other.id()).is_some()
    }

    pub(crate) fn refused(&self, reason: RefusedReason) -> u64 {
        self.transport.stats().refused(reason)
    }

    pub(crate) fn told(&self) -> Vec<Refusal> {
        self.host.refused.lock().unwrap().iter().map(|(_, refusal)| refusal.clone()).collect()
    }

    pub(crate) async fn close(self) {
        self.transport.close(Duration::from_secs(2)).await;
    }
}

/// Starts a node. Its log id is made of its name, its incarnation and its port.
pub(crate) fn start(authority: &Authority, name: &str, incarnation: u64, listen: SocketAddr) -> Node {
    start_denying(authority, name, incarnation, listen, &[])
}

pub(crate) fn start_denying(
    authority: &Authority,
    name: &str,
    incarnation: u64,
    listen: SocketAddr,
    denied: &[String],
) -> Node {
    let issued = authority.issue(&id(name), &[], NODE_VALIDITY).unwrap();
    let identity = Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
    start_as(identity, name, incarnation, listen, denied)
}

pub(crate) fn start_as(
    identity: Identity,
    name: &str,
    incarnation: u64,
    listen: SocketAddr,
    denied: &[String],
) -> Node {
    static LOGS: AtomicUsize = AtomicUsize::new(1);
    let log = LOGS.fetch_add(1, Ordering::SeqCst) as u64;
    let host = TestHost::new(hello(name, incarnation, log, listen));
    let config =
        Config { cluster: CLUSTER.to_owned(), node: id(name), listen, identity, denied: denied.to_vec() };
    let transport = Transport::bind(config, host.clone()).unwrap();
    host.hello.lock().unwrap().address = transport.local_addr();
    Node { host, transport }
}
