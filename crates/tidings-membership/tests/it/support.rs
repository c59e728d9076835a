//! A network in memory, a keyed attestor, and gossip written by hand.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tidings_membership::{
    AttestError, Attestation, Attestor, Config, GossipSeam, Inbound, Membership, Record, State, View,
};
use tidings_proto::id::{Incarnation, NodeId, Origin};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub(crate) const CLUSTER: &str = "demo";

/// Frames waiting for one node.
const INBOX: usize = 256;

/// Signs as one node. Who does not know the secret cannot sign as another.
pub(crate) struct Keyed {
    pub(crate) node: NodeId,
    pub(crate) secret: &'static str,
}

fn mac(secret: &str, node: &NodeId, message: &[u8]) -> Bytes {
    let mut hasher = DefaultHasher::new();
    (secret, node.as_str(), message).hash(&mut hasher);
    Bytes::copy_from_slice(&hasher.finish().to_le_bytes())
}

impl Attestor for Keyed {
    fn sign(&self, message: &[u8]) -> Result<Attestation, AttestError> {
        let certificate = Bytes::from(self.node.as_str().to_owned());
        Ok(Attestation { certificate, signature: mac(self.secret, &self.node, message) })
    }

    fn verify(&self, node: &NodeId, message: &[u8], attestation: &Attestation) -> Result<(), AttestError> {
        let sound =
            attestation.certificate == node.as_str() && attestation.signature == mac("secret", node, message);
        sound.then_some(()).ok_or_else(|| AttestError("not its signature".into()))
    }
}

pub(crate) fn record(node: &str, incarnation: u64) -> Record {
    let port = 7000 + node.bytes().map(u16::from).sum::<u16>();
    Record {
        origin: Origin { node: NodeId::new(node).unwrap(), incarnation: Incarnation(incarnation) },
        address: SocketAddr::from(([10, 0, 0, 1], port)),
        zone: "z1".into(),
        release: "0.1.0".into(),
    }
}

type Inbox = mpsc::Sender<Inbound>;

/// Carries frames between the members of a test, loses some, and can be cut.
#[derive(Clone, Default)]
pub(crate) struct Net {
    inboxes: Arc<Mutex<HashMap<SocketAddr, Inbox>>>,
    cut: Arc<Mutex<HashSet<SocketAddr>>>,
    loss_percent: Arc<AtomicU64>,
    frames: Arc<AtomicU64>,
    dice: Arc<AtomicU64>,
}

impl Net {
    pub(crate) fn seam(&self, me: &Record) -> GossipSeam {
        let (sender, inbound) = mpsc::channel(INBOX);
        self.inboxes.lock().insert(me.address, sender);
        let (net, me) = (self.clone(), me.clone());
        let outbound = Arc::new(move |to, frame| net.carry(&me, to, frame));
        GossipSeam { outbound, inbound }
    }

    fn carry(&self, from: &Record, to: SocketAddr, frame: Bytes) {
        self.frames.fetch_add(1, Relaxed);
        let dice = self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Relaxed);
        let mut hasher = DefaultHasher::new();
        dice.hash(&mut hasher);
        let cut = self.cut.lock();
        if cut.contains(&from.address)
            || cut.contains(&to)
            || hasher.finish() % 100 < self.loss_percent.load(Relaxed)
        {
            return;
        }
        self.inject(from, to, frame);
    }

    /// Delivers a frame as if it came from that peer.
    pub(crate) fn inject(&self, from: &Record, to: SocketAddr, frame: impl Into<Bytes>) {
        if let Some(inbox) = self.inboxes.lock().get(&to) {
            // A full inbox loses frames, as a network would.
            let _ = inbox.try_send(Inbound {
                node: from.origin.node.clone(),
                address: from.address,
                frame: frame.into(),
            });
        }
    }

    pub(crate) fn cut(&self, record: &Record) {
        self.cut.lock().insert(record.address);
    }

    pub(crate) fn heal(&self) {
        self.cut.lock().clear();
    }

    pub(crate) fn lose(&self, percent: u64) {
        self.loss_percent.store(percent, Relaxed);
    }

    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Starts a member with the other records' addresses as seeds.
    pub(crate) async fn start(&self, me: &Record, seeds: &[&Record]) -> Membership {
        let mut config = Config::new(CLUSTER, me.clone());
        config.seeds = seeds.iter().map(|seed| seed.address.to_string()).collect();
        self.start_with(config).await
    }

    pub(crate) async fn start_with(&self, config: Config) -> Membership {
        let seam = self.seam(&config.me);
        let attestor = Keyed { node: config.me.origin.node.clone(), secret: "secret" };
        Membership::start(config, seam, Arc::new(attestor)).await.unwrap()
    }

    /// Starts members that know the first of them as their seed, and waits until all see all as live.
    pub(crate) async fn cluster<const N: usize>(&self, records: &[Record; N]) -> [Membership; N] {
        let mut members = Vec::new();
        for record in records {
            members.push(self.start(record, &[&records[0]]).await);
        }
        for member in &members {
            within(Duration::from_secs(10), member, |view| {
                view.members.len() == N - 1 && view.members.values().all(|member| member.state == State::Live)
            })
            .await;
        }
        members.try_into().unwrap()
    }
}

/// Waits for a view, and returns how long that took. Panics once the limit has passed.
pub(crate) async fn within(limit: Duration, member: &Membership, wanted: impl Fn(&View) -> bool) -> Duration {
    let started = Instant::now();
    let mut views = member.watch();
    let arrived = tokio::time::timeout(limit, views.wait_for(|view| wanted(view))).await;
    assert!(arrived.is_ok(), "not within {limit:?}: {:#?}", member.view());
    started.elapsed()
}

pub(crate) fn state(view: &View, record: &Record) -> Option<State> {
    view.life(&record.origin).map(|member| member.state)
}

/// chitchat's wire format, written as an attacker would.
pub(crate) mod forge {
    use super::*;

    pub(crate) struct Entry<'a>(pub(crate) &'a Record, pub(crate) u64, pub(crate) u64);

    fn head(kind: u8) -> Vec<u8> {
        let mut out = 45_139_u16.to_le_bytes().to_vec();
        out.extend([0, kind]);
        out
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn node(out: &mut Vec<u8>, record: &Record) {
        text(out, record.origin.node.as_str());
        out.extend(record.origin.incarnation.0.to_le_bytes());
        let SocketAddr::V4(address) = record.address else { panic!("the tests use IPv4") };
        out.push(4);
        out.extend(address.ip().octets());
        out.extend(address.port().to_le_bytes());
    }

    fn digest(out: &mut Vec<u8>, entries: &[Entry<'_>]) {
        out.extend((entries.len() as u16).to_le_bytes());
        for Entry(record, heartbeat, version) in entries {
            node(out, record);
            for number in [*heartbeat, 0, *version] {
                out.extend(number.to_le_bytes());
            }
        }
    }

    fn plain_delta(out: &mut Vec<u8>, operations: &[u8]) {
        if !operations.is_empty() {
            out.push(2);
            out.extend((operations.len() as u16).to_le_bytes());
            out.extend(operations);
        }
        out.push(0);
    }

    pub(crate) fn syn(cluster: &str, entries: &[Entry<'_>]) -> Vec<u8> {
        let mut out = head(0);
        digest(&mut out, entries);
        text(&mut out, cluster);
        out
    }

    pub(crate) fn syn_ack(entries: &[Entry<'_>], operations: &[u8]) -> Vec<u8> {
        let mut out = head(1);
        digest(&mut out, entries);
        plain_delta(&mut out, operations);
        out
    }

    pub(crate) fn ack(operations: &[u8]) -> Vec<u8> {
        let mut out = head(2);
        plain_delta(&mut out, operations);
        out
    }

    pub(crate) fn bad_cluster() -> Vec<u8> {
        head(3)
    }

    /// Everything that is known of a node is collected up to a version: its state is reset, and this is its
    /// record.
    pub(crate) fn set(record: &Record, collected: u64, value: &str, version: u64, status: u8) -> Vec<u8> {
        let mut out = vec![0];
        node(&mut out, record);
        out.extend(collected.to_le_bytes());
        out.extend(0_u64.to_le_bytes());
        out.push(1);
        text(&mut out, "record");
        text(&mut out, value);
        out.extend(version.to_le_bytes());
        out.push(status);
        out
    }
}
