//! Attacks on chitchat, at the port and by a member: no state changes, and memory does not grow. In a process of its own,
//! for it measures the process.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod rogue;
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of membership, which use the rest")]
#[path = "../../tidings-membership/tests/it/support.rs"]
mod support;

use std::net::UdpSocket;
use std::time::Duration;

use bytes::Bytes;
use rogue::{CLUSTER, Scene, until};
use support::forge;
use tidings::{Node, State};
use tidings_membership::{FRAME_BYTES_MAX, Record};
use tokio::time::Instant;

const PAGE_BYTES: u64 = 4 << 10;
const GROWTH_MAX: u64 = 4 << 20;
const ROUNDS: usize = 200;

/// Several times what gossip needs to call a member live, or dead.
const AFTERWARDS: Duration = Duration::from_secs(5);

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE_BYTES
}

/// The longest frame of blocks that are 65,535 bytes each when decompressed: some 300 MiB in all.
fn bomb() -> Vec<u8> {
    // zstd: magic, a single segment of 65,535 bytes, and as its last block one byte so many times over.
    let block = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xff, 0xfe, 0xfb, 0xff, 0x07, 0x00];
    let mut out = forge::ack(&[]);
    out.pop();
    while out.len() + block.len() + 4 <= FRAME_BYTES_MAX {
        out.push(1);
        out.extend((block.len() as u16).to_le_bytes());
        out.extend(block);
    }
    out.push(0);
    out
}

fn record_of(node: &Node) -> Record {
    let (origin, address) = (node.origin(), node.address());
    Record { origin, address, zone: String::new(), release: String::new() }
}

/// What chitchat itself would believe: a member that is not there, versions and heartbeats that the truth never
/// reaches, a forged record of a third member that resets what is known of it, and a bomb.
fn attacks(third: &Node) -> [(&'static str, Vec<u8>); 4] {
    let (fake, third) = (support::record("fake", 1), record_of(third));
    let entry = |record, number| forge::Entry(record, number, number);
    [
        ("an invented member", forge::syn_ack(&[entry(&fake, 1)], &forge::set(&fake, 0, "record", 1, 0))),
        ("numbers beyond reach", forge::syn(CLUSTER, &[entry(&third, u64::MAX), entry(&fake, u64::MAX)])),
        (
            "a forged record",
            forge::syn_ack(&[entry(&third, 9)], &forge::set(&third, u64::MAX, "record", u64::MAX, 0)),
        ),
        ("a bomb", bomb()),
    ]
}

/// What everybody says of everybody.
fn members(scene: &Scene) -> Vec<(String, String, u64, State)> {
    let mut known = Vec::new();
    for node in &scene.nodes {
        let of = node.origin().node.to_string();
        // The rogue itself answers nobody, so that its state is its own doing.
        let others = node.members().into_iter().filter(|member| member.node.as_str() != "rogue");
        known.extend(others.map(|it| (of.clone(), it.node.to_string(), it.incarnation.0, it.state)));
    }
    known
}

#[tokio::test]
async fn attacks_on_gossip_change_nothing_and_cost_no_memory() {
    let mut scene = Scene::start().await;
    let _link = scene.rogue.link().await;
    until("the rogue is a member", || scene.victim().members().len() == 3).await;
    scene.works().await;
    let (before, known) = (resident_bytes(), members(&scene));
    let attacks = attacks(&scene.nodes[1]);

    // At the port, where nothing but QUIC is understood.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..ROUNDS {
        for (_, frame) in &attacks {
            let datagram = &frame[..frame.len().min(60_000)];
            socket.send_to(datagram, scene.victim().address()).unwrap();
        }
        tokio::task::yield_now().await;
    }
    // By a member: short frames as datagrams, the bomb on a stream.
    let stats = scene.rogue.transport.stats();
    let sent = || stats.gossip_datagrams.get() + stats.gossip_streams.get() + stats.gossip_dropped.get();
    for round in 1..=ROUNDS {
        for (what, frame) in &attacks {
            let before = sent();
            scene.rogue.transport.send_gossip(scene.victim().address(), Bytes::from(frame.clone()));
            until(what, || sent() > before).await;
        }
        assert_eq!(sent(), (round * attacks.len()) as u64);
    }
    assert_eq!(stats.gossip_dropped.get(), 0, "every one of them was sent");
    assert!(stats.gossip_streams.get() >= ROUNDS as u64);
    let begin = Instant::now();
    let lives = |members: Vec<(String, String, u64, State)>| -> Vec<_> {
        members.into_iter().map(|(of, node, incarnation, _)| (of, node, incarnation)).collect()
    };
    while begin.elapsed() < AFTERWARDS {
        assert_eq!(lives(members(&scene)), lives(known.clone()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A machine that stands still makes members suspect for a moment, an attack for ever.
    until("nobody is called dead", || members(&scene) == known).await;
    let after = resident_bytes();
    println!("resident memory: {} KiB before, {} KiB after", before >> 10, after >> 10);
    assert!(after.saturating_sub(before) <= GROWTH_MAX, "{before} -> {after}");
    scene.works().await;
    scene.end().await;
}
