#![allow(clippy::unwrap_used, reason = "x")]
mod common;
use common::*;
use std::time::{Duration, Instant};
use tidings_transport::Authority;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speed() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let (there, back) = (one.transport.link(&id("n2")).unwrap(), two.transport.link(&id("n1")).unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..3 {
        let (mut send, _r) = there.open_lane().await.unwrap();
        let cpu = || { let s = std::fs::read_to_string("/proc/self/stat").unwrap(); let f: Vec<_> = s.rsplit(')').next().unwrap().split_whitespace().map(str::to_owned).collect(); (f[11].parse::<u64>().unwrap() + f[12].parse::<u64>().unwrap()) as f64 / 100.0 };
        let (c, t) = (cpu(), Instant::now());
        let w = async { let chunk = bytes::Bytes::from(vec![7u8; 16 << 10]); for _ in 0..(512 << 20) / (16 << 10) { send.write_chunk(chunk.clone()).await.unwrap(); } send.finish().unwrap(); };
        let r = async { let (_s, mut r) = back.accept_lane().await.unwrap(); let mut n = 0; while let Some(c) = r.read_chunk(usize::MAX, true).await.unwrap() { n += c.bytes.len(); } n };
        let ((), n) = tokio::join!(w, r);
        println!("{n} bytes, mtu {}, {:.2} s, cpu {:.2} s, {:.3} cpu-s per M 104-byte events", there.connection_stats().path.current_mtu, t.elapsed().as_secs_f64(), cpu() - c, (cpu() - c) / (n as f64 / 104e6));
    }
}
