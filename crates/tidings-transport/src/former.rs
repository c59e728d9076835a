//! Connections to lives that are over by their own word: another process has their node id, and they come so that what
//! they did last is followed to its end.
//!
//! They stand beside the table of links: none of them is the connection to its node, replaces one, or carries gossip,
//! and the peer may open no stream on it. So all that comes of one is that the former log is followed.

use std::sync::Arc;

use quinn::Connection;
use tidings_proto::frame::{Control, Hello, Refusal};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use crate::close::{self, CloseCode};
use crate::control::{ControlReceiver, ControlSender};
use crate::limits::{FORMER_LINK_TIME, SESSION_END_TIME};
use crate::link::{Link, Parts};
use crate::refuse::HandshakeError;
use crate::shared::Shared;
use crate::socket::canonical;
use crate::stats::RefusedReason;
use crate::tls::PeerIdentity;

/// A connection to a former life.
pub(crate) struct Former {
    link: Arc<Link>,
    _place: OwnedSemaphorePermit,
}

/// A place for a connection to a former life, if there is one.
pub(crate) fn place(shared: &Shared) -> Result<OwnedSemaphorePermit, HandshakeError> {
    let place = Arc::clone(&shared.formers).try_acquire_owned();
    place.map_err(|_| HandshakeError::Refused(RefusedReason::Busy, None))
}

/// Takes a former life's connection, which it has begun, and answers it.
pub(crate) async fn greet(
    shared: &Shared,
    place: OwnedSemaphorePermit,
    (connection, identity): (&Connection, PeerIdentity),
    peer: Hello,
    (mut send, receive): (ControlSender, ControlReceiver),
) -> Result<Former, HandshakeError> {
    let answer = shared.host.hello();
    let parts = Parts {
        identity,
        connection: connection.clone(),
        presented: answer.incarnation,
        remote: canonical(connection.remote_address()),
        initiated: false,
        now: shared.host.now(),
        peer,
    };
    // It carries no gossip: nobody takes what would wait here.
    let (gossip, _) = mpsc::channel(1);
    let link = Arc::new(Link::new(parts, gossip, shared.stats.clone()));
    if shared.denied.load().denies(&link.identity) {
        return Err(HandshakeError::telling(RefusedReason::Denied, Refusal::Denied));
    }
    send.send(&Control::Hello(answer)).await?;
    link.put_control((send, receive));
    Ok(Former { link, _place: place })
}

/// Follows a former life until its end, or for as long as one connection may last.
pub(crate) async fn run(shared: &Shared, former: Former) {
    let Former { link, _place } = former;
    let peer = link.peer();
    tracing::info!(node = %peer.node, incarnation = %peer.incarnation, remote = %link.remote(),
        "a former life is followed to its end");
    link.current.send_replace(true);
    let session = shared.host.session(link.clone());
    let closed = async {
        let _ = timeout(FORMER_LINK_TIME, link.closed()).await;
        link.close(CloseCode::Ended, "");
        tokio::time::sleep(SESSION_END_TIME).await;
    };
    tokio::select! {
        () = session => {}
        () = closed => {}
        () = denied(shared, &link) => {
            shared.stats.refuse(RefusedReason::Denied);
            close::refuse(&link.connection, &Refusal::Denied);
        }
    }
    link.close(CloseCode::Ended, "");
}

/// Waits until the peer is on the deny list.
async fn denied(shared: &Shared, link: &Link) {
    let mut changed = shared.changed.subscribe();
    while !shared.denied.load().denies(&link.identity) {
        // The sender is kept by what is asked here.
        let _ = changed.changed().await;
    }
}
