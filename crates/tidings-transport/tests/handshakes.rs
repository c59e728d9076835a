//! Who is not let in: nothing that they send is acted on, and they get nothing but the close of the connection.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::io::Write;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::intruder::{
    Got, WithoutTls13, intrude, intrude_with, quic, self_signed, signed, sound, tls, uri,
};
use common::*;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, ConnectionError};
use rcgen::ExtendedKeyUsagePurpose;
use tidings_proto::frame::{Control, FRAME_BYTES_MAX, FrameType, Refusal, header};
use tidings_proto::id::{Incarnation, LogId};
use tidings_transport::limits::HANDSHAKES_PER_IP_MAX;
use tidings_transport::{Authority, CloseCode, RefusedReason};
use time::OffsetDateTime;
use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;

const ALPN: &str = "tidings/1/shop";

/// Log lines of this thread, for as long as the guard lives.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn of_this_thread() -> (Self, tracing::subscriber::DefaultGuard) {
        let lines = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::WARN)
            .with_ansi(false)
            .with_writer(lines.clone())
            .finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    fn with(&self, text: &str) -> usize {
        let bytes = self.0.lock().unwrap();
        String::from_utf8_lossy(&bytes).lines().filter(|line| line.contains(text)).count()
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Lets an intruder call itself n2 at a fresh node n1, and checks all that must hold of a refusal.
async fn refused(authority: &Authority, config: ClientConfig, reason: RefusedReason) -> Got {
    let node = start_denying(authority, "n1", 1, loopback(), &["n9".to_owned()]);
    let got = refused_at(&node, config, "n2", reason).await;
    node.close().await;
    got
}

async fn refused_at(node: &Node, config: ClientConfig, name: &str, reason: RefusedReason) -> Got {
    let (lines, _guard) = Lines::of_this_thread();
    let (before, total) = (node.refused(reason), node.transport.stats().refused_total());
    let got = intrude(config, node.address(), &hello(name, 1, 999, "127.0.0.1:9".parse().unwrap())).await;
    until(reason.as_str(), || node.refused(reason) > before).await;
    assert_eq!(node.transport.stats().refused_total(), total + 1, "counted once, under one reason");
    assert_eq!(got.bytes, b"", "nothing but the close is sent");
    assert!(node.host.admitted.lock().unwrap().iter().all(|admitted| admitted.node != id(name)));
    assert!(node.transport.link(&id(name)).is_none());
    assert!(node.host.gossip.lock().unwrap().is_empty(), "what came beside the hello is nobody's");
    assert_eq!(lines.with(&format!("reason=\"{}\"", reason.as_str())), 1, "one log line");
    tidings_facts::note(
        "G15",
        format!(
            "refused as {}, counted once, {} bytes answered but the close",
            reason.as_str(),
            got.bytes.len()
        ),
    );
    got
}

#[tokio::test]
async fn the_sound_certificate_that_the_others_are_spoiled_from_is_let_in() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let config = quic(tls(&authority, Some(signed(&authority, &sound(CLUSTER, "n2"))), ALPN));
    let hello = hello("n2", 1, 999, "127.0.0.1:9".parse().unwrap());
    let watch = async {
        until("linked", || node.transport.link(&id("n2")).is_some()).await;
        assert_eq!(node.host.admitted.lock().unwrap()[0].node, id("n2"));
        node.transport.close(Duration::from_secs(2)).await;
    };
    let (got, ()) = tokio::join!(intrude(config, node.address(), &hello), watch);
    assert!(!got.bytes.is_empty(), "the node's own hello");
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    refused(&authority, quic(tls(&authority, None, ALPN)), RefusedReason::NoCertificate).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let other = Authority::generate(CLUSTER).unwrap();
    let shown = signed(&other, &sound(CLUSTER, "n2"));
    refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::UnknownCa).await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let shown = self_signed(&sound(CLUSTER, "n2"));
    refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::UnknownCa).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let mut params = sound(CLUSTER, "n2");
    params.not_after = OffsetDateTime::now_utc() - Duration::from_secs(1);
    let shown = signed(&authority, &params);
    refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::Expired).await;
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let mut params = sound(CLUSTER, "n2");
    params.not_before = OffsetDateTime::now_utc() + Duration::from_secs(600);
    let shown = signed(&authority, &params);
    refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::NotYetValid).await;
}

#[tokio::test]
async fn a_certificate_for_another_use_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    for usages in [vec![ExtendedKeyUsagePurpose::ServerAuth], vec![ExtendedKeyUsagePurpose::CodeSigning]] {
        let mut params = sound(CLUSTER, "n2");
        params.extended_key_usages = usages;
        let shown = signed(&authority, &params);
        refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::WrongEku).await;
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_name_exactly_one_node_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (dns, node_uri) = (sound(CLUSTER, "n2").subject_alt_names[0].clone(), uri("spiffe://shop/node/n2"));
    let spoiled = [
        vec![dns.clone()],
        vec![dns.clone(), node_uri.clone(), uri("spiffe://shop/node/n3")],
        vec![dns.clone(), uri("https://shop/node/n2")],
        vec![dns, uri("spiffe://shop/node/")],
        vec![node_uri],
    ];
    for names in spoiled {
        let mut params = sound(CLUSTER, "n2");
        params.subject_alt_names = names.clone();
        let shown = signed(&authority, &params);
        let got =
            refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::WrongSan).await;
        assert!(closed_with(&got, CloseCode::Identity), "{names:?}: {got:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_another_cluster_under_the_same_authority_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let shown = signed(&authority, &sound("mall", "n2"));
    let got =
        refused(&authority, quic(tls(&authority, Some(shown), ALPN)), RefusedReason::WrongCluster).await;
    assert!(closed_with(&got, CloseCode::Refused), "{got:?}");
}

#[tokio::test]
async fn another_application_protocol_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    for alpn in ["tidings/1/mall", "tidings/2/shop", "h3"] {
        let shown = signed(&authority, &sound(CLUSTER, "n2"));
        refused(&authority, quic(tls(&authority, Some(shown), alpn)), RefusedReason::Alpn).await;
    }
}

#[tokio::test]
async fn a_client_hello_without_tls_1_3_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let shown = signed(&authority, &sound(CLUSTER, "n2"));
    let sound = Arc::new(QuicClientConfig::try_from(tls(&authority, Some(shown), ALPN)).unwrap());
    let config = ClientConfig::new(Arc::new(WithoutTls13(sound)));
    refused(&authority, config, RefusedReason::TlsVersion).await;
}

#[tokio::test]
async fn a_denied_node_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start_denying(&authority, "n1", 1, loopback(), &["n2".to_owned()]);
    let shown = signed(&authority, &sound(CLUSTER, "n2"));
    let config = quic(tls(&authority, Some(shown), ALPN));
    let got = refused_at(&node, config, "n2", RefusedReason::Denied).await;
    assert!(closed_with(&got, CloseCode::Refused), "{got:?}");
}

#[tokio::test]
async fn a_denied_certificate_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let mut params = sound(CLUSTER, "n2");
    params.serial_number = Some(0x1234_5678_u64.into());
    let node = start_denying(&authority, "n1", 1, loopback(), &["12:34:56:78".to_owned()]);
    let config = quic(tls(&authority, Some(signed(&authority, &params)), ALPN));
    refused_at(&node, config, "n2", RefusedReason::Denied).await;
}

#[tokio::test]
async fn a_hello_that_is_not_the_certificates_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let shown = signed(&authority, &sound(CLUSTER, "n2"));
    let config = quic(tls(&authority, Some(shown), ALPN));
    refused_at(&node, config, "n3", RefusedReason::Identity).await;
}

#[tokio::test]
async fn a_hello_of_another_cluster_version_or_hash_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let sound_hello = hello("n2", 1, 999, "127.0.0.1:9".parse().unwrap());
    let mut spoiled = [sound_hello.clone(), sound_hello.clone(), sound_hello];
    spoiled[0].cluster = "mall".to_owned();
    spoiled[1].protocols = (200, 201);
    spoiled[2].hash_version = 77;
    let reasons = [RefusedReason::WrongCluster, RefusedReason::Protocol, RefusedReason::HashVersion];
    for (hello, reason) in spoiled.iter().zip(reasons) {
        let shown = signed(&authority, &sound(CLUSTER, "n2"));
        let got = intrude(quic(tls(&authority, Some(shown), ALPN)), node.address(), hello).await;
        assert_eq!((got.bytes.len(), node.refused(reason)), (0, 1), "{reason:?}");
        assert!(closed_with(&got, CloseCode::Refused), "{got:?}");
    }
    assert!(node.host.admitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_live_holder_keeps_its_node_id() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (node, holder) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    node.transport.want(holder.address());
    until("linked", || node.linked_to(&holder)).await;
    let before = node.host.admitted.lock().unwrap().len();
    for incarnation in [1, 2] {
        let shown = signed(&authority, &sound(CLUSTER, "n2"));
        let rival = hello("n2", incarnation, 999, "127.0.0.1:9".parse().unwrap());
        let got = intrude(quic(tls(&authority, Some(shown), ALPN)), node.address(), &rival).await;
        assert_eq!(got.bytes, b"");
        let expected = Refusal::DuplicateNode { node: id("n2"), address: holder.address() };
        assert_eq!(refusal_in(&got), Some(expected));
        assert_eq!(node.refused(RefusedReason::DuplicateNode), incarnation);
    }
    assert_eq!(node.host.admitted.lock().unwrap().len(), before, "the host was never asked");
    assert!(node.linked_to(&holder));
}

#[tokio::test]
async fn a_second_process_with_a_nodes_own_id_is_refused_and_told() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (holder, newcomer) = (start(&authority, "n1", 1, loopback()), start(&authority, "n1", 2, loopback()));
    // Whoever dials: the one that started later is told, the holder is not.
    for (dialler, target) in [(&newcomer, &holder), (&holder, &newcomer)] {
        let before = newcomer.told().len();
        dialler.transport.want(target.address());
        until("told", || newcomer.told().len() > before).await;
        dialler.transport.unwant(target.address());
        let expected = Refusal::DuplicateNode { node: id("n1"), address: holder.address() };
        assert!(newcomer.told().iter().all(|refusal| *refusal == expected), "{:?}", newcomer.told());
        assert!(holder.told().is_empty());
    }
}

#[tokio::test]
async fn a_host_can_refuse_and_the_peer_is_told_why() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (node, peer) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    *node.host.refuse.lock().unwrap() = Some(Refusal::Incarnation(Incarnation(7)));
    peer.transport.want(node.address());
    until("told", || peer.told().contains(&Refusal::Incarnation(Incarnation(7)))).await;
    assert!(node.refused(RefusedReason::Incarnation) >= 1);
    // The peer does as it is told, and is let in at its next attempt.
    peer.host.hello.lock().unwrap().incarnation = Incarnation(8);
    *node.host.refuse.lock().unwrap() = None;
    until("linked", || peer.linked_to(&node) && node.linked_to(&peer)).await;
    assert_eq!(node.transport.link(&id("n2")).unwrap().peer().incarnation, Incarnation(8));
}

#[tokio::test]
async fn what_is_no_hello_is_refused() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let mut undecodable = header(FrameType::Hello, 3).to_vec();
    undecodable.extend_from_slice(&[0xff; 3]);
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), RefusedReason::Protocol),
        (header(FrameType::Hello, FRAME_BYTES_MAX + 1).to_vec(), RefusedReason::Malformed),
        (undecodable, RefusedReason::Malformed),
        (Control::Probe(1).encode(), RefusedReason::Malformed),
        (vec![1, 127, 0, 0, 0, 0], RefusedReason::Malformed),
    ];
    for (first, reason) in cases {
        let before = node.refused(reason);
        let shown = signed(&authority, &sound(CLUSTER, "n2"));
        let got = intrude_with(quic(tls(&authority, Some(shown), ALPN)), node.address(), &first).await;
        assert_eq!((got.bytes.len(), node.refused(reason)), (0, before + 1), "{first:?}");
        assert!(closed_with(&got, CloseCode::Malformed), "{got:?}");
    }
    assert!(node.host.admitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_refused_in_time() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let shown = signed(&authority, &sound(CLUSTER, "n2"));
    // One byte opens the stream, and the frame never comes.
    let mut config = quic(tls(&authority, Some(shown), ALPN));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(500)));
    config.transport_config(Arc::new(transport));
    let begin = tokio::time::Instant::now();
    let (_, took) = timed(intrude_with(config, node.address(), &[1])).await;
    assert!(begin.elapsed() > Duration::from_secs(4) && took < Duration::from_secs(8), "{took:?}");
    assert_eq!(node.refused(RefusedReason::Timeout), 1);
}

#[tokio::test]
async fn random_bytes_at_the_port_change_nothing() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (node, peer) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    node.transport.want(peer.address());
    until("linked", || node.linked_to(&peer)).await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 1_u64;
    let mut datagram = vec![0; 1_200];
    for round in 0..3_000_usize {
        for byte in &mut datagram {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        // Some look like the first packet of QUIC version 1.
        if round % 3 == 0 {
            datagram[0] |= 0xc0;
            datagram[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        socket.send_to(&datagram[..1 + round % 1_200], node.address()).unwrap();
        if round % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let third = start(&authority, "n3", 1, loopback());
    third.transport.want(node.address());
    until("still answering", || third.linked_to(&node)).await;
    assert!(node.linked_to(&peer));
    assert_eq!(node.host.admitted.lock().unwrap().len(), 2);
    assert_eq!(node.transport.stats().links_closed.get(), 0);
}

#[tokio::test]
async fn another_nodes_address_cannot_be_claimed() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (node, holder) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    node.transport.want(holder.address());
    until("linked", || node.linked_to(&holder)).await;
    let shown = signed(&authority, &sound(CLUSTER, "n3"));
    let thief = hello("n3", 1, 999, holder.address());
    let got = intrude(quic(tls(&authority, Some(shown), ALPN)), node.address(), &thief).await;
    assert!(closed_with(&got, CloseCode::AddressTaken), "{got:?}");
    assert_eq!((got.bytes.len(), node.refused(RefusedReason::AddressTaken)), (0, 1));
    assert!(node.linked_to(&holder) && node.transport.link(&id("n3")).is_none());
}

#[tokio::test]
async fn one_host_that_never_finishes_a_handshake_keeps_nobody_else_out() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let (lines, guard) = Lines::of_this_thread();
    let endpoint = quinn::Endpoint::client("127.0.0.2:0".parse().unwrap()).unwrap();
    let (mut open, mut refused) = (Vec::new(), 0);
    for _ in 0..80 {
        let shown = signed(&authority, &sound(CLUSTER, "n9"));
        let config = quic(tls(&authority, Some(shown), ALPN));
        let connecting = endpoint.connect_with(config, node.address(), "shop.tidings.internal").unwrap();
        match connecting.await {
            Ok(connection) => open.push(connection),
            Err(_) => refused += 1,
        }
    }
    // On a busy machine the time of some is over before all have tried: their places are free again.
    let over = node.refused(RefusedReason::Timeout) as usize;
    assert!((HANDSHAKES_PER_IP_MAX..=HANDSHAKES_PER_IP_MAX + over).contains(&open.len()), "{}", open.len());
    assert_eq!(node.refused(RefusedReason::Busy), refused);
    let lines = lines.with("reason=\"busy\"");
    assert!((1..5).contains(&lines), "{lines} log lines, ever less often");
    drop(guard);
    let peer = start(&authority, "n2", 1, loopback());
    peer.transport.want(node.address());
    let took = until("linked", || peer.linked_to(&node)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn who_does_not_show_a_certificate_has_less_time_than_who_does() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    // Between the two stands one who lets nothing through but the first packet.
    let between = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let config = quic(tls(&authority, Some(signed(&authority, &sound(CLUSTER, "n2"))), ALPN));
    let target = between.local_addr().unwrap();
    let _connecting = endpoint.connect_with(config, target, "shop.tidings.internal").unwrap();
    let mut first = [0; 2_000];
    let (length, _) = between.recv_from(&mut first).await.unwrap();
    between.send_to(&first[..length], node.address()).await.unwrap();
    let took = until("refused", || node.refused(RefusedReason::Timeout) == 1).await;
    assert!(took < Duration::from_millis(2_200), "{took:?}");
}

#[tokio::test]
async fn a_handshake_that_the_peer_gives_up_is_not_called_malformed() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let sound_hello = Control::Hello(hello("n2", 1, 999, "127.0.0.1:9".parse().unwrap())).encode();
    for (count, finish) in [(1, true), (2, false)] {
        let endpoint = quinn::Endpoint::client(loopback()).unwrap();
        let config = quic(tls(&authority, Some(signed(&authority, &sound(CLUSTER, "n2"))), ALPN));
        let connecting = endpoint.connect_with(config, node.address(), "shop.tidings.internal").unwrap();
        let connection = connecting.await.unwrap();
        let (mut send, _receive) = connection.open_bi().await.unwrap();
        send.write_all(&sound_hello[..sound_hello.len() / 2]).await.unwrap();
        if finish {
            send.finish().unwrap()
        } else {
            send.reset(0_u32.into()).unwrap()
        }
        until("counted", || node.refused(RefusedReason::Timeout) == count).await;
    }
    assert_eq!((node.transport.stats().refused_total(), node.host.admitted.lock().unwrap().len()), (2, 0));
}

#[tokio::test]
async fn the_hellos_log_of_a_former_handshake_does_not_stand_for_this_one() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (node, peer) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 5, loopback()));
    node.transport.want(peer.address());
    until("linked", || node.linked_to(&peer)).await;
    let log = peer.host.hello.lock().unwrap().log;
    let late = hello("n2", 4, log.0, peer.address());
    assert_eq!(late.log, LogId(log.0));
    let shown = signed(&authority, &sound(CLUSTER, "n2"));
    let got = intrude(quic(tls(&authority, Some(shown), ALPN)), node.address(), &late).await;
    assert!(closed_with(&got, CloseCode::Surplus), "{got:?}");
    assert!(node.linked_to(&peer));
}

fn closed_with(got: &Got, code: CloseCode) -> bool {
    matches!(&got.end, ConnectionError::ApplicationClosed(close) if close.error_code == code.as_varint())
}

fn refusal_in(got: &Got) -> Option<Refusal> {
    let ConnectionError::ApplicationClosed(close) = &got.end else { return None };
    let frame = tidings_proto::frame::take(&mut close.reason[..].into()).unwrap().unwrap();
    match Control::decode(&frame).unwrap() {
        Control::Refused(refusal) => Some(refusal),
        other => panic!("{other:?}"),
    }
}
