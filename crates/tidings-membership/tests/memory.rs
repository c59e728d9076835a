//! What a decompression bomb costs. In a process of its own, for it measures the process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, unreachable_pub, reason = "shared with the other tests")]
#[path = "it/support.rs"]
mod support;

use std::time::Duration;

use support::{Net, forge, record};
use tidings_membership::{FRAME_BYTES_MAX, Reason};

const PAGE_BYTES: u64 = 4 << 10;
const GROWTH_MAX: u64 = 4 << 20;
const BOMBS: u64 = 200;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * PAGE_BYTES
}

/// The longest frame of blocks that are 65,535 bytes each when decompressed: some 200 MiB in all.
fn bomb() -> Vec<u8> {
    let block = zstd::bulk::compress(&[0; 65_535], 19).unwrap();
    let mut out = forge::ack(&[]);
    out.pop();
    while out.len() + block.len() + 4 <= FRAME_BYTES_MAX {
        out.push(1);
        out.extend((block.len() as u16).to_le_bytes());
        out.extend(&block);
    }
    out.push(0);
    out
}

#[tokio::test]
async fn a_decompression_bomb_costs_at_most_four_mebibytes() {
    let net = Net::default();
    let (me, peer) = (record("a", 1), record("b", 1));
    let member = net.start(&me, &[]).await;
    let bomb = bomb();
    let before = resident_bytes();
    let mut most = before;
    for sent in 1..=BOMBS {
        net.inject(&peer, me.address, bomb.clone());
        let refused = async {
            while member.stats().rejected(Reason::Inflation) < sent {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), refused).await.unwrap();
        most = most.max(resident_bytes());
    }
    println!("{BOMBS} bombs of {} bytes: resident memory grew by {} KiB", bomb.len(), (most - before) >> 10);
    assert!(most - before <= GROWTH_MAX, "{before} -> {most}");
    member.shutdown().await;
}
