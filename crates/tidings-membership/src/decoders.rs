//! What peers' gossip is taken apart by, for those who try to break it. Not part of the interface: it may change in any
//! release.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidings_proto::id::{Incarnation, NodeId, Origin};
use tidings_proto::time::Tick;

use crate::attest::{AttestError, Attestation, Attestor, Statement};
use crate::config::Record;
use crate::guard::Guard;
use crate::stats::Stats;
use crate::wire::{Change, Identity, Message, Seen};

const CLUSTER: &str = "demo";

/// Believes every signature, so that what stands behind it is reached.
struct Credulous;

impl Attestor for Credulous {
    fn sign(&self, message: &[u8]) -> Result<Attestation, AttestError> {
        let signature = message.iter().take(64).copied().collect::<Vec<u8>>();
        Ok(Attestation { certificate: vec![7; 300].into(), signature: signature.into() })
    }

    fn verify(&self, _: &NodeId, _: &[u8], _: &Attestation) -> Result<(), AttestError> {
        Ok(())
    }
}

fn record(node: &str, incarnation: u64) -> Record {
    let node = NodeId::new(node).expect("a valid node id");
    let origin = Origin { node, incarnation: Incarnation(incarnation) };
    let address = SocketAddr::from(([127, 0, 0, 1], 7_400 + incarnation as u16));
    Record { origin, address, zone: "z".into(), release: "0.1.0".into() }
}

fn identity(record: &Record) -> Identity {
    Identity { origin: record.origin.clone(), address: record.address }
}

fn published(record: &Record) -> String {
    let statement = Statement { record: record.clone(), serial: 1, left: false };
    statement.publish(CLUSTER, &Credulous).expect("it always signs")
}

/// What a member's gossip frame makes of a node that has heard nothing yet: what chitchat would be handed, if anything.
#[must_use]
pub fn gossip(frame: &[u8]) -> Option<Vec<u8>> {
    let me = identity(&record("me", 1));
    let trust = (Arc::new(Credulous) as Arc<dyn Attestor>, Arc::new(Stats::default()));
    let mut guard = Guard::new(CLUSTER.to_owned(), me, trust, Duration::from_secs(1));
    let peer = record("a", 1);
    let now = Tick(1).after(Duration::from_secs(10));
    let message = guard.admit((&peer.origin.node, peer.address), frame, now).ok()?.message;
    // What chitchat writes itself is read here as well, in another message.
    let _ = guard.release(&mut frame.to_vec());
    Some(message)
}

/// Whether this is a record that a member may have published of itself, its signature aside.
#[must_use]
pub fn signed_record(text: &str) -> bool {
    let Record { origin, address, .. } = record("a", 1);
    Statement::verify(CLUSTER, (&origin, address, 1), text, &Credulous).is_ok()
}

/// Frames as members send them.
#[must_use]
pub fn gossip_samples() -> Vec<Vec<u8>> {
    let (a, b, c) = (record("a", 1), record("b", 2), record("c", 3));
    let seen = |record: &Record| Seen { node: identity(record), heartbeat: 7, version: 1 };
    let change =
        |record: &Record| Change { node: identity(record), from: 0, record: Some((1, published(record))) };
    let digest = vec![seen(&a), seen(&b)];
    let delta = vec![change(&a), change(&b), Change { node: identity(&c), from: 1, record: None }];
    let messages = [
        Message::Syn { cluster: CLUSTER.to_owned(), digest: digest.clone() },
        Message::SynAck { digest, delta: delta.clone() },
        Message::Ack { delta },
    ];
    messages.iter().map(Message::encode).collect()
}

/// A record as a member publishes it.
#[must_use]
pub fn signed_record_sample() -> String {
    published(&record("a", 1))
}
