//! Gossip frames: as datagrams, on streams, and not at all.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use common::intruder::{quic, signed, sound, tls};
use common::*;
use tidings_proto::frame::Control;
use tidings_transport::limits::{GOSSIP_FRAME_BYTES_MAX, GOSSIP_QUEUE_FRAMES};
use tidings_transport::{Authority, BroadcastError, RefusedReason};

fn pair() -> (Node, Node) {
    let authority = Authority::generate(CLUSTER).unwrap();
    (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()))
}

fn received(node: &Node) -> Vec<(SocketAddr, Bytes)> {
    node.host.gossip.lock().unwrap().clone()
}

async fn link(one: &Node, two: &Node) {
    one.transport.want(two.address());
    until("linked", || one.linked_to(two) && two.linked_to(one)).await;
}

#[tokio::test]
async fn a_short_frame_travels_as_a_datagram_from_the_peers_advertised_address() {
    let (one, two) = pair();
    link(&one, &two).await;
    one.transport.send_gossip(two.address(), Bytes::from_static(b"short"));
    until("received", || !received(&two).is_empty()).await;
    assert_eq!(received(&two), [(one.address(), Bytes::from_static(b"short"))]);
    let stats = one.transport.stats();
    assert_eq!(
        (stats.gossip_datagrams.get(), stats.gossip_streams.get(), stats.gossip_dropped.get()),
        (1, 0, 0)
    );
    // And back on the same connection.
    two.transport.send_gossip(one.address(), Bytes::from_static(b"answer"));
    until("answered", || received(&one) == [(two.address(), Bytes::from_static(b"answer"))]).await;
    assert_eq!(two.transport.stats().dials.get(), 0);
}

#[tokio::test]
async fn a_long_frame_travels_on_a_stream() {
    let (one, two) = pair();
    link(&one, &two).await;
    let longest = Bytes::from(vec![9; GOSSIP_FRAME_BYTES_MAX]);
    one.transport.send_gossip(two.address(), longest.clone());
    until("received", || !received(&two).is_empty()).await;
    assert_eq!(received(&two), [(one.address(), longest)]);
    until("counted", || one.transport.stats().gossip_streams.get() == 1).await;
}

#[tokio::test]
async fn a_frame_that_is_too_long_is_dropped_and_counted() {
    let (one, two) = pair();
    link(&one, &two).await;
    one.transport.send_gossip(two.address(), Bytes::from(vec![9; GOSSIP_FRAME_BYTES_MAX + 1]));
    one.transport.send_gossip(two.address(), Bytes::from_static(b"after"));
    until("received", || received(&two).len() == 1).await;
    assert_eq!(&received(&two)[0].1[..], b"after");
    assert_eq!(one.transport.stats().gossip_dropped.get(), 1);
}

#[tokio::test]
async fn gossip_to_an_address_without_a_link_dials_it_and_waits() {
    let (one, two) = pair();
    one.transport.send_gossip(two.address(), Bytes::from_static(b"first"));
    until("received", || received(&two) == [(one.address(), Bytes::from_static(b"first"))]).await;
    assert!(one.linked_to(&two));
    assert_eq!(one.transport.stats().dials.get(), 1);
}

#[tokio::test]
async fn gossip_that_finds_nobody_is_bounded_and_dials_seldom() {
    let (one, _two) = pair();
    // Bound and silent.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    for _ in 0..100 {
        one.transport.send_gossip(address, Bytes::from_static(b"x"));
    }
    assert_eq!(one.transport.stats().gossip_dropped.get(), 100 - GOSSIP_QUEUE_FRAMES as u64);
    until("given up", || one.transport.stats().gossip_dropped.get() == 100).await;
    assert_eq!(one.transport.stats().dials.get(), 1);
    assert_eq!(one.transport.stats().broadcast_errors(BroadcastError::Dial), 1);
}

#[tokio::test]
async fn frames_to_a_peer_that_refuses_do_not_each_dial() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let one = start(&authority, "n1", 1, loopback());
    let two = start_denying(&authority, "n2", 1, loopback(), &["n1".to_owned()]);
    let begin = tokio::time::Instant::now();
    let stats = one.transport.stats();
    until("refused twice", || {
        one.transport.send_gossip(two.address(), Bytes::from_static(b"x"));
        two.refused(RefusedReason::Denied) == 2
    })
    .await;
    assert!(begin.elapsed() > Duration::from_millis(700), "{:?}", begin.elapsed());
    assert_eq!((stats.dials.get(), received(&two).len()), (2, 0));
}

#[tokio::test]
async fn malformed_gossip_of_a_peer_is_counted_and_the_link_stays() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let node = start(&authority, "n1", 1, loopback());
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let shown = signed(&authority, &sound(CLUSTER, "n2"));
    let config = quic(tls(&authority, Some(shown), "tidings/1/shop"));
    let connection =
        endpoint.connect_with(config, node.address(), "shop.tidings.internal").unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let address = endpoint.local_addr().unwrap();
    send.write_all(&Control::Hello(hello("n2", 1, 999, address)).encode()).await.unwrap();
    until("linked", || node.transport.link(&id("n2")).is_some()).await;

    connection.send_datagram(Bytes::from_static(b"\x07unknown kind")).unwrap();
    connection.send_datagram(Bytes::new()).unwrap();
    let mut too_long = connection.open_uni().await.unwrap();
    // The node stops reading; how much of it was sent by then does not matter.
    let _ = too_long.write_all(&vec![1; GOSSIP_FRAME_BYTES_MAX + 2]).await;
    let _ = too_long.finish();
    let mut cut_off = connection.open_uni().await.unwrap();
    cut_off.write_all(b"\x01half").await.unwrap();
    cut_off.reset(0_u32.into()).unwrap();
    until("counted", || node.transport.stats().gossip_malformed.get() == 4).await;

    connection.send_datagram(Bytes::from_static(b"\x01sound")).unwrap();
    until("received", || received(&node) == [(address, Bytes::from_static(b"sound"))]).await;
    assert!(node.transport.link(&id("n2")).is_some());
}

#[tokio::test]
async fn a_peer_that_does_not_read_gossip_streams_delays_nobody() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (node, reader) = (start(&authority, "n1", 1, loopback()), start(&authority, "n3", 1, loopback()));
    link(&node, &reader).await;
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let mut config = quic(tls(&authority, Some(signed(&authority, &sound(CLUSTER, "n2"))), "tidings/1/shop"));
    let mut narrow = quinn::TransportConfig::default();
    narrow.max_concurrent_uni_streams(4_u32.into()).stream_receive_window(1_000_u32.into());
    config.transport_config(std::sync::Arc::new(narrow));
    let connection =
        endpoint.connect_with(config, node.address(), "shop.tidings.internal").unwrap().await.unwrap();
    let (mut send, _receive) = connection.open_bi().await.unwrap();
    let address = endpoint.local_addr().unwrap();
    send.write_all(&Control::Hello(hello("n2", 1, 999, address)).encode()).await.unwrap();
    until("linked", || node.transport.link(&id("n2")).is_some()).await;

    for _ in 0..200 {
        node.transport.send_gossip(address, Bytes::from(vec![9; 20_000]));
    }
    node.transport.send_gossip(reader.address(), Bytes::from(vec![8; 20_000]));
    let took = until("the one that reads has its frame", || received(&reader).len() == 1).await;
    assert!(took < Duration::from_millis(500), "{took:?}");
    let stats = node.transport.stats();
    assert_eq!(stats.gossip_streams.get(), 1, "nothing crossed to the one that does not read");
    let kept = 200 - stats.gossip_dropped.get();
    assert!(kept <= 1 + GOSSIP_QUEUE_FRAMES as u64, "{kept} are kept for it");
}
