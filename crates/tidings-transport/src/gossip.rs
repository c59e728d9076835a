//! Gossip between linked nodes: a datagram if it fits, else a stream of its own. Gossip repeats itself, so whatever
//! does not get through at once is dropped and counted, and never holds anyone up.

use std::future::pending;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use quinn::RecvStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::limits::{GOSSIP_FRAME_BYTES_MAX, GOSSIP_STREAM_TIME};
use crate::link::Link;
use crate::shared::Shared;

/// First byte of a datagram or uni-directional stream that carries a gossip frame.
const TAG: u8 = 1;

/// Sends a frame on a link, or drops it.
pub(crate) fn send(shared: &Shared, link: &Link, frame: Bytes) {
    if frame.len() > GOSSIP_FRAME_BYTES_MAX {
        return shared.stats.gossip_dropped.one();
    }
    let connection = &link.connection;
    let fits = connection.max_datagram_size().is_some_and(|most| frame.len() < most);
    // A full buffer would push older datagrams out without a word.
    if fits && connection.datagram_send_buffer_space() > frame.len() {
        let mut datagram = BytesMut::with_capacity(1 + frame.len());
        datagram.put_u8(TAG);
        datagram.extend_from_slice(&frame);
        match connection.send_datagram(datagram.freeze()) {
            Ok(()) => return shared.stats.gossip_datagrams.one(),
            Err(quinn::SendDatagramError::ConnectionLost(_)) => return shared.stats.gossip_dropped.one(),
            // The path's limit has just changed, or the peer takes no datagrams.
            Err(_) => {}
        }
    }
    if link.gossip.try_send(frame).is_err() {
        shared.stats.gossip_dropped.one();
    }
}

/// Carries a link's gossip in both directions; never returns.
pub(crate) async fn carry(shared: &Shared, link: &Arc<Link>, queue: mpsc::Receiver<Bytes>) {
    tokio::join!(
        send_streams(shared, link, queue),
        receive_datagrams(shared, link),
        receive_streams(shared, link)
    );
}

async fn send_streams(shared: &Shared, link: &Link, mut queue: mpsc::Receiver<Bytes>) {
    while let Some(frame) = queue.recv().await {
        let sending = async {
            let mut stream = link.connection.open_uni().await.ok()?;
            stream.write_all_chunks(&mut [Bytes::from_static(&[TAG]), frame]).await.ok()?;
            stream.finish().ok()
        };
        match timeout(GOSSIP_STREAM_TIME, sending).await {
            Ok(Some(())) => shared.stats.gossip_streams.one(),
            _ => shared.stats.gossip_dropped.one(),
        }
    }
    pending().await
}

async fn receive_datagrams(shared: &Shared, link: &Link) {
    while let Ok(datagram) = link.connection.read_datagram().await {
        deliver(shared, link, datagram);
    }
    pending().await
}

async fn receive_streams(shared: &Shared, link: &Link) {
    // Bounded by the number of streams that the peer is granted.
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            stream = link.connection.accept_uni() => match stream {
                Ok(stream) => open.push(read(stream)),
                Err(_) => break,
            },
            Some(frame) = open.next(), if !open.is_empty() => match frame {
                Some(frame) => deliver(shared, link, frame),
                None => shared.stats.gossip_malformed.one(),
            },
        }
    }
    pending().await
}

async fn read(mut stream: RecvStream) -> Option<Bytes> {
    let whole = stream.read_to_end(1 + GOSSIP_FRAME_BYTES_MAX);
    timeout(GOSSIP_STREAM_TIME, whole).await.ok()?.ok().map(Bytes::from)
}

fn deliver(shared: &Shared, link: &Link, mut tagged: Bytes) {
    if tagged.first() != Some(&TAG) {
        return shared.stats.gossip_malformed.one();
    }
    shared.stats.gossip_received.one();
    shared.host.gossip(link.peer(), tagged.split_off(1));
}
