//! A member with a certificate of the cluster, which says whatever a test wants, beside two honest nodes.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidings::{
    Cache, EventKind, Identity, Lanes, Node, NodeBuilder, NodeId, Operation, Refusal, Sequence, Tick,
};
use tidings_proto::frame::{
    Control, Follow, FrameType, Hello, MemberSet, PROTOCOL_VERSION, RawFrame, header, take,
};
use tidings_proto::hash::{CacheId, HASH_VERSION, slot_of};
use tidings_proto::id::{Incarnation, LaneId, LogId};
use tidings_proto::log::{Answer, ChangeLog, Retention};
use tidings_proto::record::{Batch, Draft, DraftTarget, Parts};
use tidings_transport::{Authority, CloseCode, Config, Host, Link, NODE_VALIDITY, SessionFuture, Transport};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

pub(crate) const CLUSTER: &str = "shop";

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The most that counts between two looks: when it was longer, the machine was busy with something else.
const LOOK_MAX: Duration = Duration::from_millis(20);

/// Waits until something holds, and says how long that took, without the time that a busy machine took from it.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let (begin, mut took) = (Instant::now(), Duration::ZERO);
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        let look = Instant::now();
        tokio::time::sleep(Duration::from_millis(2)).await;
        took += look.elapsed().min(LOOK_MAX);
    }
    took
}

/// Two honest nodes, each with the cache `numbers`, and one that is not.
pub(crate) struct Scene {
    pub(crate) nodes: [Node; 2],
    pub(crate) caches: [Cache<String, u64>; 2],
    pub(crate) rogue: Rogue,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        Self::start_with(|builder| builder).await
    }

    /// The rogue is linked with the first node alone.
    pub(crate) async fn start_with(build: impl Fn(NodeBuilder) -> NodeBuilder) -> Self {
        let authority = Authority::generate(CLUSTER).unwrap();
        let start = async |name: &str, seeds: Vec<String>| {
            let builder = Node::builder(CLUSTER)
                .node_id(name)
                .identity(identity(&authority, name))
                .write_horizon(Duration::ZERO)
                .gossip_interval(Duration::from_millis(200))
                // What the rogue leaves in doubt does not age out during a test.
                .max_staleness(Duration::from_secs(60))
                .seeds(seeds);
            build(builder).start().await.unwrap()
        };
        let first = start("n1", vec![]).await;
        let nodes = [first.clone(), start("n2", vec![first.address().to_string()]).await];
        let caches = nodes.each_ref().map(|node| node.cache("numbers").open().unwrap());
        until("the honest ones are ready", || {
            nodes.iter().all(|node| node.readiness().is_ok() && node.members().len() == 2)
        })
        .await;
        let rogue = Rogue::start(&authority, first.address());
        Self { nodes, caches, rogue }
    }

    pub(crate) fn victim(&self) -> &Node {
        &self.nodes[0]
    }

    /// A change on either honest node still evicts the other's copy.
    pub(crate) async fn works(&self) {
        for (writer, reader) in [(0, 1), (1, 0)] {
            let key = "both hold this".to_owned();
            self.fill(reader, &key).await;
            self.caches[writer].remove(&key).unwrap();
            let took = until("evicted", || !self.caches[reader].contains(&key)).await;
            assert!(took < Duration::from_secs(2), "{took:?}");
        }
    }

    pub(crate) async fn fill(&self, node: usize, key: &str) {
        self.caches[node].get_or_load(&key.to_owned(), || async { Ok::<_, ()>(1) }).await.unwrap();
    }

    /// What the victim counts of the rogue: gaps, resets, violations.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let following = self.victim().following();
        let rogue = following.iter().find(|following| following.origin.node.as_str() == "rogue");
        rogue.map_or((0, 0, 0), |rogue| (rogue.gaps, rogue.resets, rogue.rejected))
    }

    pub(crate) async fn end(self) {
        self.rogue.transport.close(Duration::from_secs(2)).await;
        for node in self.nodes {
            node.shutdown(Duration::from_millis(100)).await;
        }
    }
}

pub(crate) fn identity(authority: &Authority, name: &str) -> Identity {
    let issued = authority.issue(&NodeId::new(name).unwrap(), &[], NODE_VALIDITY).unwrap();
    Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap()
}

pub(crate) struct Rogue {
    pub(crate) transport: Transport,
    links: mpsc::Receiver<Arc<Link>>,
}

struct Script {
    hello: Hello,
    links: mpsc::Sender<Arc<Link>>,
    begin: Instant,
}

impl Host for Script {
    fn hello(&self) -> Hello {
        self.hello.clone()
    }

    fn admit(&self, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }

    fn refused(&self, _: SocketAddr, refusal: &Refusal) {
        panic!("the rogue has a sound certificate: {refusal}");
    }

    fn session(&self, link: Arc<Link>) -> SessionFuture {
        let links = self.links.clone();
        Box::pin(async move {
            links.send(link.clone()).await.unwrap();
            link.closed().await;
        })
    }

    fn gossip(&self, _: &Hello, _: Bytes) {}

    fn now(&self) -> Tick {
        Tick(1).after(self.begin.elapsed())
    }
}

impl Rogue {
    pub(crate) fn start(authority: &Authority, target: SocketAddr) -> Self {
        let node = NodeId::new("rogue").unwrap();
        let (links, linked) = mpsc::channel(64);
        let hello = Hello {
            protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            cluster: CLUSTER.to_owned(),
            node: node.clone(),
            incarnation: Incarnation(7),
            log: LogId(7),
            hash_version: HASH_VERSION,
            lanes: Lanes::default(),
            // Nobody is there: all links are begun by the rogue itself.
            address: "127.0.0.1:1".parse().unwrap(),
            zone: String::new(),
            release: String::new(),
            wall_ms: 0,
            age_ms: 0,
            members: MemberSet::default(),
        };
        let host = Arc::new(Script { hello, links, begin: Instant::now() });
        let config = Config {
            cluster: CLUSTER.to_owned(),
            node,
            listen: "127.0.0.1:0".parse().unwrap(),
            identity: identity(authority, "rogue"),
            denied: vec![],
        };
        let transport = Transport::bind(config, host).unwrap();
        transport.want(target);
        Self { transport, links: linked }
    }

    /// An open link to the victim.
    pub(crate) async fn link(&mut self) -> Arc<Link> {
        loop {
            let link =
                timeout(PATIENCE, self.links.recv()).await.expect("the rogue is let in again").unwrap();
            if !link.is_closed() {
                return link;
            }
        }
    }
}

/// A stream of a lane, either way.
pub(crate) struct Stream {
    pub(crate) send: quinn::SendStream,
    receive: quinn::RecvStream,
    buffer: BytesMut,
}

impl Stream {
    pub(crate) async fn open(link: &Link) -> Self {
        let (send, receive) = link.open_lane().await.unwrap();
        Self { send, receive, buffer: BytesMut::new() }
    }

    /// The next lane that the victim follows, and from where.
    pub(crate) async fn followed(link: &Link) -> (Self, Follow) {
        let (send, receive) = timeout(PATIENCE, link.accept_stream()).await.expect("it follows").unwrap();
        let mut stream = Self { send, receive, buffer: BytesMut::new() };
        match stream.control().await {
            Control::Follow(follow) => (stream, follow),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.send.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn say(&mut self, frame: &Control) {
        self.write(&frame.encode()).await;
    }

    /// The next frame; `None` when the stream has ended.
    pub(crate) async fn frame(&mut self) -> Option<RawFrame> {
        loop {
            if let Some(frame) = take(&mut self.buffer).unwrap() {
                return Some(frame);
            }
            let chunk =
                timeout(PATIENCE, self.receive.read_chunk(64 << 10, true)).await.expect("it says something");
            self.buffer.extend_from_slice(&chunk.unwrap()?.bytes);
        }
    }

    pub(crate) async fn control(&mut self) -> Control {
        Control::decode(&self.frame().await.expect("the stream goes on")).unwrap()
    }
}

/// All lanes that the victim follows on a link, each asked for once.
pub(crate) async fn all_followed(link: &Link) -> BTreeMap<u8, (Stream, Follow)> {
    let mut streams = BTreeMap::new();
    for _ in 0..Lanes::default().count() {
        let (stream, follow) = Stream::followed(link).await;
        streams.insert(follow.lane.number(), (stream, follow));
    }
    streams
}

/// The end of a link, which must come soon, and by the word of the victim.
pub(crate) async fn thrown_out(link: &Link, what: &str) {
    let end = timeout(PATIENCE, link.closed()).await;
    let end = end.unwrap_or_else(|_| panic!("{what} does not end the link"));
    let sound = match &end {
        quinn::ConnectionError::ApplicationClosed(close) => {
            close.error_code == CloseCode::Malformed.as_varint()
        }
        // What crossed with the close is answered so, once the victim has forgotten the connection.
        quinn::ConnectionError::Reset => true,
        _ => false,
    };
    assert!(sound, "{what}: {end:?}");
}

pub(crate) fn encoded(key: &str) -> Vec<u8> {
    tidings_proto::codec::encode(key).unwrap()
}

/// The lane of a key of `numbers`.
pub(crate) fn lane_of(key: &str) -> LaneId {
    Lanes::default().lane_of(slot_of(CacheId::of_name("numbers"), &encoded(key)))
}

/// A batch of one record, at a position of the test's choice: the key is deleted.
pub(crate) fn deletion(key: &str, first: Sequence) -> Batch {
    let (log, encoded) = (ChangeLog::new(Lanes::default(), Retention::default()), encoded(key));
    let cache = CacheId::of_name("numbers");
    let slot = slot_of(cache, &encoded);
    let draft = Draft::new(Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache,
        slot,
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(&encoded),
    });
    let lane = log.append(slot, 1, &draft.unwrap()).unwrap().lane;
    let (Answer::Resume(mut cursor) | Answer::Reset(mut cursor)) = log.resume(lane, 1);
    let mut batches = Vec::new();
    log.read(lane, &mut cursor, 1 << 20, &mut batches);
    Batch { first, ..batches.remove(0) }
}

/// The same with its record spoiled.
pub(crate) fn spoiled(key: &str, first: Sequence, spoil: impl FnOnce(&mut Vec<u8>)) -> Batch {
    let batch = deletion(key, first);
    let mut records = batch.records.to_vec();
    spoil(&mut records);
    Batch { records: records.into(), ..batch }
}

pub(crate) fn events(batch: &Batch) -> Vec<u8> {
    let head = batch.head();
    let mut out = header(FrameType::Events, head.len() + batch.records.len()).to_vec();
    out.extend_from_slice(&head);
    out.extend_from_slice(&batch.records);
    out
}
