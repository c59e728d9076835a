//! Following a peer's log: ask, fence if told to, apply in order, acknowledge.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quinn::{RecvStream, SendStream};
use tidings_proto::follower::{Attempt, Rejected};
use tidings_proto::frame::{Control, Follow, FrameType, RawFrame, take};
use tidings_proto::id::{LaneId, Sequence};
use tidings_proto::record::BatchRef;
use tokio::time::Instant;

use super::{FenceReason, Followed, Peering, SessionError, Unreadable, count};
use crate::link::Link;

/// Acknowledgements are gathered for this long: receipts and lag are exact to it, and under load an acknowledgement
/// costs nothing.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// Chunks taken from a stream in one read.
const CHUNKS: usize = 32;

/// How often a position may turn out to be unreadable before it is given up, with a fence.
const UNREADABLE_MAX: u32 = 2;

/// Follows every lane while the link is the current one to its node.
pub(super) async fn all(
    link: &Link,
    node: &dyn Peering,
    followed: &Arc<Followed>,
) -> Result<(), SessionError> {
    let mut current = link.currency();
    loop {
        if current.wait_for(|current| *current).await.is_err() {
            return Ok(());
        }
        let mut lanes: FuturesUnordered<_> =
            followed.lanes.ids().map(|lane| one(link, node, followed, lane)).collect();
        let work = async {
            while let Some(end) = lanes.next().await {
                end?;
            }
            // Every lane is followed elsewhere.
            std::future::pending::<Result<(), SessionError>>().await
        };
        tokio::select! {
            end = work => return end,
            lost = current.wait_for(|current| !*current) => {
                if lost.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// Follows a lane until it is followed elsewhere.
async fn one(
    link: &Link,
    node: &dyn Peering,
    followed: &Arc<Followed>,
    lane: LaneId,
) -> Result<(), SessionError> {
    loop {
        let (send, receive) = link.open_lane().await?;
        let (attempt, follow) = request(followed, lane);
        let mut lane = Lane { node, followed, lane, attempt, send, acked: 0, ack_at: None };
        match lane.run(receive, follow).await {
            Ok(()) | Err(SessionError::Rejected(Rejected::Stale)) => return Ok(()),
            Err(SessionError::Rejected(Rejected::Gap { expected, got })) => {
                count(&followed.counts.gaps, 1);
                tracing::info!(origin = %followed.origin, expected, got, "gap: following again");
            }
            Err(SessionError::Batch(unsound)) => {
                note_unreadable(followed, lane.lane);
                return Err(unsound.into());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Asks from where the lane stands; from the head if that position could not be read twice.
fn request(followed: &Followed, lane: LaneId) -> (Attempt, Follow) {
    let mut state = followed.state.lock();
    let unreadable = &mut followed.unreadable.lock()[lane.index()];
    if *unreadable == (Unreadable { at: state.applied_in(lane) + 1, times: UNREADABLE_MAX }) {
        *unreadable = Unreadable::default();
        return state.follow_from_head(lane);
    }
    state.follow(lane)
}

/// Notes that what stands at the lane's next position could not be read.
fn note_unreadable(followed: &Followed, lane: LaneId) {
    let at = followed.with(|follower| follower.applied_in(lane)) + 1;
    let unreadable = &mut followed.unreadable.lock()[lane.index()];
    let times = if unreadable.at == at { unreadable.times + 1 } else { 1 };
    *unreadable = Unreadable { at, times };
}

struct Lane<'a> {
    node: &'a dyn Peering,
    followed: &'a Arc<Followed>,
    lane: LaneId,
    attempt: Attempt,
    send: SendStream,
    acked: Sequence,
    ack_at: Option<Instant>,
}

impl Lane<'_> {
    async fn run(&mut self, mut receive: RecvStream, follow: Follow) -> Result<(), SessionError> {
        self.send.write_chunk(Control::Follow(follow).encode().into()).await?;
        let mut buffer = BytesMut::new();
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        loop {
            let read = tokio::select! {
                biased;
                read = receive.read_chunks(&mut chunks) => read?,
                () = sleep_until(self.ack_at) => {
                    self.acknowledge().await?;
                    continue;
                }
            };
            let Some(read) = read else { return Ok(()) };
            for chunk in &mut chunks[..read] {
                buffer.extend_from_slice(chunk);
                *chunk = Bytes::new();
            }
            while let Some(frame) = take(&mut buffer)? {
                self.take(&frame)?;
            }
            let applied = self.followed.with(|follower| follower.applied_in(self.lane));
            if applied > self.acked {
                match self.ack_at {
                    None => self.ack_at = Some(Instant::now() + ACK_DELAY),
                    Some(at) if at <= Instant::now() => self.acknowledge().await?,
                    Some(_) => {}
                }
            }
        }
    }

    async fn acknowledge(&mut self) -> Result<(), SessionError> {
        self.acked = self.followed.with(|follower| follower.applied_in(self.lane));
        self.ack_at = None;
        self.send.write_chunk(Control::Ack(self.acked).encode().into()).await?;
        Ok(())
    }

    fn take(&mut self, frame: &RawFrame) -> Result<(), SessionError> {
        if frame.kind == FrameType::Events {
            return self.apply(&frame.body);
        }
        match Control::decode(frame)? {
            Control::Resume(from) => {
                Ok(self.followed.state.lock().on_resume(self.lane, self.attempt, from)?)
            }
            Control::Reset(from) => self.reset(from),
            _ => Err(SessionError::Unexpected("frame on a lane")),
        }
    }

    /// The order is part of the protocol: fence, and only then expect what comes.
    fn reset(&mut self, from: Sequence) -> Result<(), SessionError> {
        let fence = self.followed.state.lock().on_reset(self.lane, self.attempt, from)?;
        count(&self.followed.counts.resets, 1);
        tracing::warn!(
            origin = %self.followed.origin, lane = self.lane.number(), from,
            "the origin's log no longer holds what is missing here: its slots are fenced"
        );
        self.node.fence(&self.followed.origin, self.followed.lanes, self.lane, FenceReason::Reset);
        self.followed.state.lock().fenced(fence);
        self.followed.progressed(self.node);
        Ok(())
    }

    fn apply(&mut self, body: &[u8]) -> Result<(), SessionError> {
        let batch = BatchRef::parse(body, self.followed.lanes)?;
        if batch.lane != self.lane {
            return Err(SessionError::Unexpected("batch of another lane"));
        }
        let accepted =
            self.followed.state.lock().on_events(self.lane, self.attempt, batch.first, batch.count)?;
        count(&self.followed.counts.duplicates, accepted.duplicates);
        if accepted.from >= batch.next() {
            return Ok(());
        }
        let next = self.node.apply(&self.followed.origin, &batch, accepted.from)?;
        count(&self.followed.counts.applied, next - accepted.from);
        let confirmed = {
            let mut state = self.followed.state.lock();
            let before = state.confirmed();
            state.applied(self.lane, self.attempt, next);
            state.confirmed() != before || state.ended()
        };
        if confirmed {
            self.followed.progressed(self.node);
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
