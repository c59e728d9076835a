//! Serving one peer: this node's log, a cursor per lane, segments written without copying; and answers to its questions.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{RecvStream, SendStream};
use smallvec::SmallVec;
use tidings_proto::ask::QUESTION_BYTES_MAX;
use tidings_proto::frame::{Control, Follow, FrameType, HEADER_BYTES, RawFrame, header};
use tidings_proto::id::{FIRST, LaneId, Origin, Sequence};
use tidings_proto::log::{Answer, Cursor, Read};
use tidings_proto::record::Batch;

use super::exchange::Exchange;
use super::herald::Audience;
use super::{Peering, Served, SessionError, ages, hand};
use crate::ask::{self, Answers};
use crate::frames::take_within;
use crate::limits::{FOLLOWER_FRAME_BYTES_MAX, REQUEST_TIME};
use crate::link::Link;
use crate::stats::BroadcastError;

/// Bytes taken from the log at a time: what a peer that does not read can hold beyond the log's own retention.
pub(super) const READ_BYTES: usize = 256 << 10;

/// Longest body of the first frame of a stream, in bytes: a question, or a request to follow a lane.
const REQUEST_FRAME_BYTES_MAX: usize = 1 + QUESTION_BYTES_MAX;

/// Bytes asked for in one read of a stream that carries small frames.
const SMALL_READ_BYTES: usize = 4 << 10;

/// Serves every lane that the peer asks for, and answers its questions.
pub(super) async fn all(
    (link, node): (&Link, &dyn Peering),
    served: &Served,
    exchange: &Exchange,
) -> Result<(), SessionError> {
    let audience = node.herald().attend();
    let answers = Answers::default();
    let mut streams = FuturesUnordered::new();
    let mut relaying = node.relaying().changes();
    let mut granted = false;
    loop {
        if exchange.relays && node.relaying().is_on() && !granted {
            link.grant_relayed(node.log().lanes());
            granted = true;
        }
        tokio::select! {
            Ok(()) = relaying.changed() => {}
            stream = link.accept_stream() => {
                let (send, receive) = stream?;
                streams.push(one((link, node, served), (&answers, &audience, exchange), send, receive));
            }
            Some(end) = streams.next(), if !streams.is_empty() => match end {
                // A lane's stream ends when the peer follows it elsewhere: that is no end of the link.
                Ok(()) | Err(SessionError::Write(_) | SessionError::Read(_) | SessionError::Silent) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Serves one stream: a lane, or a question.
async fn one(
    (link, node, served): (&Link, &dyn Peering, &Served),
    (answers, audience, exchange): (&Answers, &Audience<'_>, &Exchange),
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), SessionError> {
    let mut buffer = BytesMut::new();
    let request = next_frame(&mut receive, &mut buffer, REQUEST_FRAME_BYTES_MAX);
    let request = tokio::time::timeout(REQUEST_TIME, request).await;
    let Some(frame) = request.map_err(|_| SessionError::Silent)?? else { return Ok(()) };
    let _used = link.used();
    if frame.kind == FrameType::Ask {
        let peer = link.peer();
        let answered = ask::answer(frame, send, answers, |topic, body| node.asked(peer, topic, body)).await;
        return answered.ok_or(SessionError::Unexpected("question without a topic"));
    }
    let follow = Control::decode(&frame)?;
    if let Control::FollowOf(follow) = follow {
        return hand::lane(node, exchange, follow, (send, receive)).await;
    }
    lane((link, node, served), (follow, audience), send, (receive, buffer)).await
}

/// Serves a lane.
async fn lane(
    (link, node, served): (&Link, &dyn Peering, &Served),
    (request, audience): (Control, &Audience<'_>),
    mut send: SendStream,
    (mut receive, mut buffer): (RecvStream, BytesMut),
) -> Result<(), SessionError> {
    let Control::Follow(Follow { incarnation, lane, from }) = request else {
        return Err(SessionError::Unexpected("frame instead of a follow request"));
    };
    if incarnation != link.presented() || lane.index() >= usize::from(node.log().lanes().count()) {
        return Err(SessionError::Unexpected("follow request for another log"));
    }
    served.follows(lane, node.log().head(lane));
    let (answer, cursor) = match node.log().resume(lane, from) {
        Answer::Resume(cursor) => {
            served.resumes(lane, cursor.next);
            (Control::Resume(cursor.next), cursor)
        }
        Answer::Reset(cursor) => {
            match from {
                // It has nothing of this log yet, so it did not fall out of it.
                FIRST => {}
                // It asks from the end of all sequences where it gave a position up.
                Sequence::MAX => link.stats.broadcast_error(BroadcastError::Unreadable),
                _ => link.stats.broadcast_error(BroadcastError::Overrun),
            }
            reset(node, served, lane, cursor.next);
            (Control::Reset(cursor.next), cursor)
        }
    };
    send.write_chunk(answer.encode().into()).await?;
    tokio::select! {
        end = feed((link, node, served), (lane, audience), cursor, &mut send) => end,
        end = acks((link, node, served), lane, &mut receive, &mut buffer) => end,
    }
}

/// Notes that a peer is told to fence a lane and to continue from here.
fn reset(node: &dyn Peering, served: &Served, lane: LaneId, next: Sequence) {
    if served.resets(lane, next) {
        node.canary_wanted(lane, next);
    }
}

/// Sends what the log has, as it comes.
async fn feed(
    (link, node, served): (&Link, &dyn Peering, &Served),
    (lane, audience): (LaneId, &Audience<'_>),
    mut cursor: Cursor,
    send: &mut SendStream,
) -> Result<(), SessionError> {
    let log = node.log();
    let mut batches: Vec<Batch> = Vec::new();
    let mut chunks: Vec<Bytes> = Vec::new();
    loop {
        // Before the look, so that nothing is appended unnoticed between the two.
        let news = audience.news(lane);
        match log.read(lane, &mut cursor, READ_BYTES, &mut batches) {
            Read::Some => {
                send_all(&mut batches, &mut chunks, send).await?;
            }
            Read::Overrun(head) => {
                link.stats.broadcast_error(BroadcastError::Overrun);
                reset(node, served, lane, head);
                send.write_chunk(Control::Reset(head).encode().into()).await?;
            }
            Read::Empty => news.await,
            // The log is sealed and read. The stream stays for the acknowledgements.
            Read::End => std::future::pending().await,
        }
    }
}

/// Sends batches, whose records are not copied. Both lists are empty afterwards.
pub(super) async fn send_all(
    batches: &mut Vec<Batch>,
    chunks: &mut Vec<Bytes>,
    send: &mut SendStream,
) -> Result<(), SessionError> {
    for batch in batches.drain(..) {
        chunks.push(frame_head(&batch));
        chunks.push(batch.records);
    }
    send.write_all_chunks(chunks).await?;
    chunks.clear();
    Ok(())
}

fn frame_head(batch: &Batch) -> Bytes {
    let head = batch.head();
    let mut bytes = SmallVec::<[u8; 64]>::new();
    bytes.extend_from_slice(&header(FrameType::Events, head.len() + batch.records.len()));
    bytes.extend_from_slice(&head);
    Bytes::copy_from_slice(&bytes)
}

/// Takes the peer's acknowledgements.
async fn acks(
    (link, node, served): (&Link, &dyn Peering, &Served),
    lane: LaneId,
    receive: &mut RecvStream,
    buffer: &mut BytesMut,
) -> Result<(), SessionError> {
    let peer = link.peer();
    let origin = Origin { node: peer.node.clone(), incarnation: peer.incarnation };
    let mut told = Vec::new();
    while let Some(frame) = next_frame(receive, buffer, FOLLOWER_FRAME_BYTES_MAX).await? {
        match Control::decode(&frame)? {
            Control::Ages(ages) => told = ages,
            Control::Ack(sequence) => {
                let told = std::mem::take(&mut told);
                node.applied_by(&origin, lane, &mut ages::since(&told, sequence, node.now()));
                served.ack(lane, sequence, node);
            }
            _ => return Err(SessionError::Unexpected("frame instead of an acknowledgement")),
        }
    }
    Ok(())
}

/// The next frame of a stream, of so many bytes at most; `None` at its end. Cancel-safe: what was read is in the buffer.
async fn next_frame(
    receive: &mut RecvStream,
    buffer: &mut BytesMut,
    most: usize,
) -> Result<Option<RawFrame>, SessionError> {
    loop {
        if let Some(frame) = take_within(buffer, most)? {
            return Ok(Some(frame));
        }
        match receive.read_chunk(SMALL_READ_BYTES, true).await? {
            Some(chunk) => buffer.extend_from_slice(&chunk.bytes),
            None => return Ok(None),
        }
    }
}

const _: () =
    assert!(HEADER_BYTES + 1 + 10 + 10 + 8 <= 64, "a frame's and a batch's head must fit without allocating");
