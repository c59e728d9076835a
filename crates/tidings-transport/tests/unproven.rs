//! What those say who have shown no certificate: the first packets of QUIC are sealed with keys that anybody can make.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::net::SocketAddr;

use common::*;
use rustls::Side;
use rustls::quic::{Keys, Version};
use tidings_proto::frame::{Control, Refusal};
use tidings_proto::id::Incarnation;
use tidings_transport::{Authority, BroadcastError, CloseCode};
use tokio::net::UdpSocket;

/// Least length of a datagram with a first packet.
const DATAGRAM: usize = 1_200;

/// QUIC version 1, and the length of a packet number and of a seal.
const VERSION: [u8; 4] = [0, 0, 0, 1];
const NUMBER: usize = 4;
const SEAL: usize = 16;

/// A frame with which an application closes its connection.
fn application_close(code: CloseCode, reason: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x1d, code as u8];
    frame.extend((0x4000 | reason.len() as u16).to_be_bytes());
    frame.extend(reason);
    frame
}

/// A frame with which TLS closes it: alert 120, no application protocol in common, in answer to a CRYPTO frame.
const TLS_CLOSE: [u8; 5] = [0x1c, 0x41, 0x78, 0x06, 0];

/// A first packet with this frame, of the connection which `ids` name, to and from.
fn closing(keys: &Keys, ids: [&[u8]; 2], frame: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xc3];
    packet.extend(VERSION);
    for id in ids {
        packet.push(id.len() as u8);
        packet.extend(id);
    }
    packet.push(0);
    let rest = DATAGRAM - packet.len() - 2;
    packet.extend((0x4000 | rest as u16).to_be_bytes());
    let number = packet.len();
    packet.extend([0; NUMBER]);
    let mut payload = frame.to_vec();
    payload.resize(rest - NUMBER - SEAL, 0);
    let seal = keys.local.packet.encrypt_in_place(0, &packet, &mut payload).unwrap();
    packet.extend(payload);
    packet.extend(seal.as_ref());
    let (head, sealed) = packet.split_at_mut(number + NUMBER);
    let (first, rest) = head.split_at_mut(1);
    let number = &mut rest[number - 1..];
    keys.local
        .header
        .encrypt_in_place(&sealed[..keys.local.header.sample_len()], &mut first[0], number)
        .unwrap();
    packet
}

fn keys(id: &[u8], side: Side) -> Keys {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    Keys::initial(Version::V1, suite, suite.quic.unwrap(), id, side)
}

fn refusals(elsewhere: SocketAddr) -> [Vec<u8>; 2] {
    let duplicate = Refusal::DuplicateNode { node: id("n1"), address: elsewhere };
    [Refusal::Incarnation(Incarnation(1_000)), duplicate].map(|refusal| Control::Refused(refusal).encode())
}

#[tokio::test]
async fn a_stranger_that_refuses_a_node_is_not_heard() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let stranger = UdpSocket::bind(loopback()).await.unwrap();
    let refusals = refusals(stranger.local_addr().unwrap());
    let frames = refusals.iter().map(|refusal| application_close(CloseCode::Refused, refusal));
    for (number, frame) in frames.chain([TLS_CLOSE.to_vec()]).enumerate() {
        let to = [number as u8 + 1; 8];
        let packet = closing(&keys(&to, Side::Client), [&to, &[9; 8]], &frame);
        stranger.send_to(&packet, node.address()).await.unwrap();
        // Who comes later is looked at later.
        let peer = start(&authority, &format!("n{}", number + 2), 1, loopback());
        peer.transport.want(node.address());
        until("linked", || peer.linked_to(&node)).await;
    }
    assert_eq!((node.told(), node.transport.stats().broadcast_errors(BroadcastError::Refused)), (vec![], 0));
}

#[tokio::test]
async fn whoever_answers_at_an_address_refuses_nobody_without_a_certificate() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let answers = refusals(loopback()).map(|refusal| (CloseCode::Refused, refusal));
    for (code, reason) in answers.into_iter().chain([(CloseCode::Own, vec![])]) {
        let node = start(&authority, "n1", 1, loopback());
        let stranger = UdpSocket::bind(loopback()).await.unwrap();
        node.transport.want(stranger.local_addr().unwrap());
        // A later attempt shows that an answer was read, and is of no consequence.
        while node.transport.stats().dials.get() < 2 {
            let mut first = [0; 2_000];
            let (length, from) =
                tokio::time::timeout(PATIENCE, stranger.recv_from(&mut first)).await.unwrap().unwrap();
            let Some((to, of)) = ids(&first[..length]) else { continue };
            let packet = closing(&keys(to, Side::Server), [of, &[9; 8]], &application_close(code, &reason));
            stranger.send_to(&packet, from).await.unwrap();
        }
        until("an attempt has failed", || node.transport.stats().dials_failed.get() > 0).await;
        assert_eq!(
            (node.told(), node.transport.stats().broadcast_errors(BroadcastError::Refused)),
            (vec![], 0),
            "{code:?}"
        );
    }
}

/// The ids that a first packet is to and from.
fn ids(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = packet.get(1..)?.strip_prefix(&VERSION)?;
    let (length, rest) = rest.split_first()?;
    let (to, rest) = rest.split_at_checked((*length).into())?;
    let (length, rest) = rest.split_first()?;
    Some((to, rest.get(..(*length).into())?))
}
