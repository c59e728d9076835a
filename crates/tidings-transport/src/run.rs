//! The life of a link, from its entry in the table to its end.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use quinn::ConnectionError;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::close::{CloseCode, refusal_of};
use crate::gossip;
use crate::limits::SESSION_END_TIME;
use crate::link::Link;
use crate::shared::Shared;
use crate::stats::BroadcastError;
use crate::table::LinkId;

/// A link that is in the table and not running yet.
pub(crate) struct Up {
    pub(crate) link: Arc<Link>,
    pub(crate) registered: Registered,
    /// Gossip frames that wait for a stream.
    pub(crate) queue: mpsc::Receiver<Bytes>,
}

/// A link's place in the table, for as long as this lives. Whatever ends the link's task, it leaves the table and
/// its connection is closed.
pub(crate) struct Registered {
    shared: Arc<Shared>,
    id: LinkId,
    link: Arc<Link>,
}

impl Registered {
    pub(crate) fn new(shared: Arc<Shared>, id: LinkId, link: Arc<Link>) -> Self {
        Self { shared, id, link }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.link.close(CloseCode::Ended, "");
        self.link.current.send_replace(false);
        self.shared.stats.links_closed.one();
        self.shared.leave(self.id);
    }
}

/// Runs a link until its session or its connection ends.
pub(crate) async fn run(shared: Arc<Shared>, up: Up) {
    let Up { link, registered, queue } = up;
    let peer = link.peer();
    tracing::info!(node = %peer.node, incarnation = %peer.incarnation, remote = %link.remote(),
        initiated = link.initiated(), "link up");
    shared.flush_gossip(peer.address, &link);
    let mut session = pin!(shared.host.session(link.clone()));
    let ended = tokio::select! {
        () = &mut session => None,
        reason = link.closed() => Some(reason),
        () = gossip::carry(&shared, &link, queue) => None,
    };
    drop(registered);
    if ended.is_some() && timeout(SESSION_END_TIME, session).await.is_err() {
        tracing::warn!(node = %peer.node, "a session did not end with its connection");
    }
    let reason = match ended {
        Some(reason) => reason,
        None => link.closed().await,
    };
    // As a string, which is escaped: a part of it may be the peer's words.
    let why = reason.to_string();
    tracing::info!(node = %peer.node, incarnation = %peer.incarnation, reason = why, "link down");
    if !matches!(reason, ConnectionError::ApplicationClosed(_) | ConnectionError::LocallyClosed) {
        shared.stats.broadcast_error(BroadcastError::Lost);
    }
    if CloseCode::Replaced.was_said(&reason) {
        shared.replaced.fetch_max(link.presented().0.saturating_add(1), Ordering::AcqRel);
    }
    if let Some(refusal) = refusal_of(&reason) {
        shared.stats.broadcast_error(BroadcastError::Refused);
        shared.host.refused(peer.address, &refusal);
    }
}
