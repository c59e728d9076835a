//! Handing on: serving a lane of somebody else's log, from what is kept of it.

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use tidings_proto::frame::Control;
use tidings_proto::id::LaneId;
use tidings_proto::log::{Cursor, Read};
use tidings_proto::record::Batch;
use tidings_proto::relay::{FollowOf, Position};

use super::exchange::Exchange;
use super::serve::{READ_BYTES, send_all};
use super::{Followed, Peering, Relaying, SessionError};

/// Serves a lane until the follower asks elsewhere, or this node relays no more. A node that does not relay, or does not
/// know the origin, ends the stream without a word, and the follower asks elsewhere.
pub(super) async fn lane(
    node: &dyn Peering,
    exchange: &Exchange,
    request: FollowOf,
    (mut send, mut receive): (SendStream, RecvStream),
) -> Result<(), SessionError> {
    let relaying = node.relaying();
    let Some(followed) = node.followed_of(&request.origin).filter(|_| relaying.is_on()) else {
        return Ok(());
    };
    let FollowOf { number, lane, from, .. } = request;
    if lane.index() >= usize::from(followed.lanes.count()) {
        return Err(SessionError::Unexpected("follow request for a lane that the log does not have"));
    }
    let handed = exchange.hand(number, &followed);
    let _handed = handed.ok_or(SessionError::Unexpected("number that stands for another log"))?;
    let (answer, cursor) = match relaying.position(&followed, lane, from) {
        Position::Held(cursor) => (Control::Resume(cursor.next), cursor),
        Position::Gone(oldest) => (Control::Lacking(oldest), Cursor { next: oldest }),
    };
    send.write_chunk(answer.encode().into()).await?;
    tokio::select! {
        end = feed(relaying, (&followed, lane), cursor, &mut send) => end,
        end = silence(&mut receive) => end,
        () = turned_off(relaying) => Ok(()),
    }
}

/// Sends what is kept, as it comes.
async fn feed(
    relaying: &Relaying,
    (followed, lane): (&Followed, LaneId),
    mut cursor: Cursor,
    send: &mut SendStream,
) -> Result<(), SessionError> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut chunks: Vec<Bytes> = Vec::new();
    loop {
        // Before the look, so that nothing is kept unnoticed between the two.
        let news = followed.news(lane);
        match relaying.read((followed, lane), &mut cursor, READ_BYTES, &mut batches) {
            Read::Some => {
                send_all(&mut batches, &mut chunks, send).await?;
            }
            Read::Overrun(oldest) => {
                cursor = Cursor { next: oldest };
                send.write_chunk(Control::Lacking(oldest).encode().into()).await?;
            }
            // What has ended is not known to have.
            Read::Empty | Read::End => news.await,
        }
    }
}

/// Waits for the end of what the follower says, which is nothing: it acknowledges on the control stream.
async fn silence(receive: &mut RecvStream) -> Result<(), SessionError> {
    match receive.read_chunk(1, true).await? {
        Some(_) => Err(SessionError::Unexpected("word of a follower on a relayed lane")),
        None => Ok(()),
    }
}

async fn turned_off(relaying: &Relaying) {
    let mut changes = relaying.changes();
    while relaying.is_on() {
        // The sender is kept by what is asked here.
        let _ = changes.changed().await;
    }
}
