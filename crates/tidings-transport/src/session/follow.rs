//! Following a peer's log: ask, fence if told to, apply in order, acknowledge.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tidings_proto::follower::{Applied, Attempt, Rejected};
use tidings_proto::frame::{Control, Follow, FrameType, RawFrame, take};
use tidings_proto::id::{FIRST, LaneId, NodeId, Sequence};
use tidings_proto::record::BatchRef;
use tidings_proto::relay::{FollowOf, Lacking};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::ages::Ages;
use super::exchange::{Exchange, Numbered};
use super::{FenceReason, Followed, Peering, SessionError, count};
use crate::link::Link;

/// Acknowledgements of all lanes are sent at multiples of this time: they share a packet, and under load an
/// acknowledgement costs nothing. Receipts and lag are exact to it, and to [`ACK_OVERDUE`] where there is always more.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// How late an acknowledgement may be before a lane that always has more to read sends it by itself. Before that the
/// timer, which ticks every millisecond, lets all lanes send theirs together.
const ACK_OVERDUE: Duration = Duration::from_millis(2);

/// Chunks taken from a stream in one read.
const CHUNKS: usize = 32;

/// How often a position may turn out to be unreadable before it is given up, with a fence.
const UNREADABLE_MAX: u32 = 2;

/// How often in a row a link may fail to deliver one position, by a gap or the end of a stream.
const AGAIN_MAX: u32 = 3;

/// One origin that is followed over one link.
struct One<'a> {
    link: &'a Link,
    node: &'a dyn Peering,
    followed: Arc<Followed>,
    /// By way of the peer, by this number; without one it is the peer.
    number: Option<Numbered<'a>>,
    start: Instant,
}

/// How long a lane is left to another link that has asked for it later, before the current one asks again.
const ELSEWHERE_PAUSE: Duration = Duration::from_millis(100);

/// Follows what is asked of the peer, its own log or others', while the link is the current one to its node.
pub(super) async fn all(
    (link, node): (&Link, &dyn Peering),
    followed: &Arc<Followed>,
    exchange: &Exchange,
) -> Result<(), SessionError> {
    let mut current = link.currency();
    loop {
        if current.wait_for(|current| *current).await.is_err() {
            return Ok(());
        }
        tokio::select! {
            end = while_current((link, node), followed, exchange) => return end,
            lost = current.wait_for(|current| !*current) => {
                if lost.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn while_current(
    (link, node): (&Link, &dyn Peering),
    own: &Arc<Followed>,
    exchange: &Exchange,
) -> Result<(), SessionError> {
    let (start, relaying, peer) = (Instant::now(), node.relaying(), &link.peer().node);
    let mut changes = relaying.changes();
    // Apart, so that an event wakes one of them and not all.
    let mut running = FuturesUnordered::from_iter([change(changes.clone()).boxed()]);
    // Those that run, and those that the peer does not serve and nobody else can be asked for. None of the latter is to be
    // there: an origin's own node is the last of its sources.
    let mut busy = BTreeSet::new();
    loop {
        let others = if exchange.relays { relaying.asked_of(peer) } else { Vec::new() };
        for followed in std::iter::once(own.clone()).chain(others) {
            if followed.is_asked_of(peer) && busy.insert(followed.origin().clone()) {
                relaying.begins(&followed, &exchange.up);
                let number = (!Arc::ptr_eq(&followed, own)).then(|| exchange.number(&followed));
                running.push(origin(One { link, node, followed, number, start }).boxed());
            }
        }
        match running.next().await {
            Some(Turn::Changed) => {
                changes.borrow_and_update();
                running.push(change(changes.clone()).boxed());
            }
            Some(Turn::Ended(followed, Ok(()))) => drop(busy.remove(followed.origin())),
            Some(Turn::Ended(followed, Err(SessionError::NotServed))) => {
                tracing::debug!(origin = %followed.origin(), relay = %peer, "a relay does not serve an origin");
                if relaying.broken(&followed, peer, node.now()) || !followed.is_asked_of(peer) {
                    busy.remove(followed.origin());
                }
            }
            Some(Turn::Ended(_, Err(error))) => return Err(error),
            None => unreachable!("whether anything changes is always waited for"),
        }
    }
}

/// What happens while a link is followed.
enum Turn {
    /// Something is asked of somebody else from now on.
    Changed,
    /// An origin is followed over this link no more.
    Ended(Arc<Followed>, Result<(), SessionError>),
}

async fn change(mut changes: watch::Receiver<()>) -> Turn {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    Turn::Changed
}

/// Follows an origin until it is asked of somebody else.
async fn origin(one: One<'_>) -> Turn {
    let mut changes = one.node.relaying().changes();
    let followed = one.followed.clone();
    let turn = followed.turn();
    let mut lanes: FuturesUnordered<_> = followed.lanes.ids().map(|id| lane(&one, id)).collect();
    let work = async {
        while let Some(end) = lanes.next().await {
            end?;
        }
        // Every lane is followed elsewhere.
        std::future::pending::<Result<(), SessionError>>().await
    };
    let left = async {
        // Asked of others meanwhile, its lanes have to be asked for anew.
        while followed.is_asked_of(&one.link.peer().node) && followed.turn() == turn {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        Ok(())
    };
    let end = FuturesUnordered::from_iter([work.boxed(), left.boxed()]).next().await;
    Turn::Ended(followed.clone(), end.unwrap_or(Ok(())))
}

/// Follows a lane until it is followed elsewhere. What a link cannot deliver ends it: the next one asks again.
async fn lane(one: &One<'_>, lane: LaneId) -> Result<(), SessionError> {
    let One { link, node, followed, number, start } = one;
    let (mut stuck_at, mut times) = (0, 0);
    loop {
        let (send, receive) = link.open_lane().await?;
        let Some((attempt, follow)) = one.request(lane) else { return Err(SessionError::NotServed) };
        let from_head = follow.from == Sequence::MAX;
        let ages = Ages::default();
        let relay = number.as_ref().map(|_| &link.peer().node);
        let mut following = Lane {
            node: *node,
            followed,
            relay,
            lane,
            attempt,
            from_head,
            send,
            acked: 0,
            ages,
            start: *start,
        };
        let end = match following.run(receive, one.asks(follow)).await {
            end if !is_newest(followed, lane, attempt) && !is_fatal(&end) => {
                // Another link has asked since. It may have done so when it had just ceased to be the current one.
                tokio::time::sleep(ELSEWHERE_PAUSE).await;
                if !link.is_current() {
                    return Ok(());
                }
                continue;
            }
            Err(SessionError::Rejected(Rejected::Stale)) => return Ok(()),
            Ok(())
            | Err(SessionError::Read(ReadError::Reset(_)) | SessionError::Write(WriteError::Stopped(_))) => {
                if number.is_some() {
                    return Err(SessionError::NotServed);
                }
                tracing::info!(origin = %followed.origin, lane = lane.number(),
                    "the origin has ended a lane's stream: following again");
                SessionError::Unexpected("end of a lane")
            }
            Err(SessionError::Rejected(Rejected::Gap { expected, got })) => {
                count(&followed.counts.gaps, 1);
                tracing::info!(origin = %followed.origin, expected, got, "gap: following again");
                SessionError::Rejected(Rejected::Gap { expected, got })
            }
            Err(error) => {
                if error.is_violation() {
                    note_unreadable(followed, lane);
                }
                return Err(error);
            }
        };
        let at = followed.with(|follower| follower.applied_in(lane));
        times = if at == stuck_at { times + 1 } else { 1 };
        stuck_at = at;
        if times == AGAIN_MAX {
            note_unreadable(followed, lane);
            return Err(end);
        }
    }
}

impl One<'_> {
    /// Asks from where the lane stands; from the head if that position could not be read twice, which only the origin is
    /// asked for: `None` if this is a relay.
    fn request(&self, lane: LaneId) -> Option<(Attempt, Follow)> {
        let mut state = self.followed.state.lock();
        let requests = &mut self.followed.requests.lock()[lane.index()];
        let unreadable = requests.unreadable == (state.applied_in(lane) + 1, UNREADABLE_MAX);
        if unreadable && self.number.is_some() {
            return None;
        }
        let asked = if unreadable {
            requests.unreadable = Default::default();
            state.follow_from_head(lane)
        } else {
            state.follow(lane)
        };
        requests.newest = Some(asked.0);
        Some(asked)
    }

    fn asks(&self, follow: Follow) -> Control {
        let Some(number) = &self.number else { return Control::Follow(follow) };
        let Follow { lane, from, .. } = follow;
        let origin = (*self.followed.origin).clone();
        Control::FollowOf(FollowOf { number: number.number, origin, lane, from })
    }
}

/// Whether a lane's stream ended by what ends the link, too.
fn is_fatal(end: &Result<(), SessionError>) -> bool {
    !matches!(
        end,
        Ok(())
            | Err(SessionError::Rejected(Rejected::Stale)
                | SessionError::Read(ReadError::Reset(_))
                | SessionError::Write(WriteError::Stopped(_)))
    )
}

fn is_newest(followed: &Followed, lane: LaneId, attempt: Attempt) -> bool {
    followed.requests.lock()[lane.index()].newest == Some(attempt)
}

/// Notes that what stands at the lane's next position could not be read.
fn note_unreadable(followed: &Followed, lane: LaneId) {
    let next = followed.with(|follower| follower.applied_in(lane)) + 1;
    let (at, times) = &mut followed.requests.lock()[lane.index()].unreadable;
    *times = if *at == next { *times + 1 } else { 1 };
    *at = next;
}

struct Lane<'a> {
    node: &'a dyn Peering,
    followed: &'a Arc<Followed>,
    /// By way of whom, if not of the origin itself.
    relay: Option<&'a NodeId>,
    lane: LaneId,
    attempt: Attempt,
    /// The position was given up, and the answer to that has not come yet.
    from_head: bool,
    send: SendStream,
    acked: Sequence,
    /// When what is not acknowledged yet was applied.
    ages: Ages,
    /// Acknowledgements are due at multiples of [`ACK_DELAY`] from then on.
    start: Instant,
}

impl Lane<'_> {
    async fn run(&mut self, mut receive: RecvStream, request: Control) -> Result<(), SessionError> {
        self.send.write_chunk(request.encode().into()).await?;
        let mut buffer = BytesMut::new();
        let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
        let mut ack = pin!(sleep_until(self.start));
        let mut owed = false;
        loop {
            let read = tokio::select! {
                biased;
                read = receive.read_chunks(&mut chunks) => read?,
                () = &mut ack, if owed => {
                    owed = false;
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
            if self.relay.is_some() {
                // What was applied is passed up on the control stream, behind the member set.
                if applied > self.acked {
                    self.acked = applied;
                    self.followed.passes_up();
                }
                continue;
            }
            if applied > self.acked {
                self.ages.applied(applied, self.node.now());
            }
            if owed && ack.deadline() + ACK_OVERDUE <= Instant::now() {
                // A stream that always has more to read would never let the timer have its turn.
                owed = false;
                self.acknowledge().await?;
            } else if !owed && applied > self.acked {
                owed = true;
                ack.as_mut().reset(ack_time(self.start, Instant::now()));
            }
        }
    }

    async fn acknowledge(&mut self) -> Result<(), SessionError> {
        self.acked = self.followed.with(|follower| follower.applied_in(self.lane));
        let ages = self.ages.take(self.acked, self.node.now());
        let mut frames = Control::Ages(ages).encode();
        frames.extend_from_slice(&Control::Ack(self.acked).encode());
        self.send.write_chunk(frames.into()).await?;
        Ok(())
    }

    fn take(&mut self, frame: &RawFrame) -> Result<(), SessionError> {
        if frame.kind == FrameType::Events {
            return self.apply(&frame.body);
        }
        match Control::decode(frame)? {
            Control::Resume(from) => {
                self.followed.state.lock().on_resume(self.lane, self.attempt, from)?;
                count(&self.followed.counts.resumed, u64::from(from > FIRST));
                Ok(())
            }
            Control::Reset(from) if self.relay.is_none() => self.reset(from),
            Control::Lacking(from) => self.lacking(from),
            _ => Err(SessionError::Unexpected("frame on a lane")),
        }
    }

    /// The relay does not hold what is missing here, and goes on from `from`.
    fn lacking(&mut self, from: Sequence) -> Result<(), SessionError> {
        let Some(relay) = self.relay else { return Err(SessionError::Unexpected("word of a relay")) };
        let next = self.followed.with(|follower| follower.applied_in(self.lane)) + 1;
        match self.node.relaying().lacks(self.followed, (relay, next), self.node.now()) {
            // It is asked of somebody else by now.
            Lacking::AskElsewhere => Err(SessionError::Rejected(Rejected::Stale)),
            Lacking::Reset => self.reset(from),
        }
    }

    /// The order is part of the protocol: fence, and only then expect what comes.
    fn reset(&mut self, from: Sequence) -> Result<(), SessionError> {
        let fence = self.followed.state.lock().on_reset(self.lane, self.attempt, from)?;
        count(&self.followed.counts.resets, 1);
        let why = match (std::mem::take(&mut self.from_head), self.relay) {
            (true, _) => "what comes next could not be read twice",
            (false, None) => "the origin's log no longer holds what is missing here",
            (false, Some(_)) => "nobody who can be asked holds what is missing here",
        };
        let lane = self.lane.number();
        tracing::warn!(origin = %self.followed.origin, lane, from, why, "the lane's slots are fenced");
        self.node.fence(&self.followed.origin, self.followed.lanes, self.lane, FenceReason::Reset);
        self.followed.state.lock().fenced(fence);
        if self.node.relaying().is_on() {
            self.followed.tell(self.lane);
        }
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
        let Applied { next, changes } = self.node.apply(&self.followed.origin, &batch, accepted.from)?;
        count(&self.followed.counts.applied, changes);
        self.followed.heard(self.lane);
        let relaying = self.node.relaying();
        let kept = relaying.is_on().then(|| batch.to_batch());
        let hands_on = kept.is_some();
        let confirmed = {
            let mut state = self.followed.state.lock();
            let before = state.confirmed();
            state.applied(self.lane, self.attempt, next);
            if let Some(batch) = kept {
                relaying.hold(&self.followed.origin, batch);
            }
            state.confirmed() != before || state.ended()
        };
        if hands_on {
            self.followed.tell(self.lane);
        }
        if confirmed {
            self.followed.progressed(self.node);
        }
        Ok(())
    }
}

/// The next time at which acknowledgements are due.
fn ack_time(start: Instant, now: Instant) -> Instant {
    let period = ACK_DELAY.as_nanos();
    let rest = period - now.duration_since(start).as_nanos() % period;
    now + Duration::from_nanos(rest as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_of_all_lanes_are_due_together() {
        let start = Instant::now();
        for nanos in [0, 1, 4_999_999] {
            assert_eq!(ack_time(start, start + Duration::from_nanos(nanos)), start + ACK_DELAY);
        }
        assert_eq!(ack_time(start, start + ACK_DELAY), start + 2 * ACK_DELAY);
    }
}
