//! One admitted connection to one peer.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tidings_proto::frame::Hello;
use tidings_proto::id::Incarnation;
use tidings_proto::time::Tick;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::ask::questions;
use crate::close::CloseCode;
use crate::control::{ControlReceiver, ControlSender};
use crate::stats::TransportStats;
use crate::table::Heard;
use crate::tls::PeerIdentity;

/// A timer that fires so much too late shows that this process did not run for a while.
const STARVED: Duration = Duration::from_millis(100);

/// An admitted connection to a peer whose identity has been checked.
///
/// Several may exist to one node for a moment; [`Link::is_current`] says which one counts. Every one of them is
/// served until it ends.
pub struct Link {
    pub(crate) identity: PeerIdentity,
    pub(crate) connection: Connection,
    pub(crate) gossip: mpsc::Sender<Bytes>,
    pub(crate) current: watch::Sender<bool>,
    /// Places for this node's questions to the peer.
    pub(crate) questions: Semaphore,
    pub(crate) stats: Arc<TransportStats>,
    peer: Hello,
    remote: SocketAddr,
    initiated: bool,
    presented: Incarnation,
    since: Tick,
    /// Taken once, by the session. Locked only to take it.
    control: Mutex<Option<(ControlSender, ControlReceiver)>>,
    /// Send time of the newest probe that the peer has answered.
    echoed: Heard,
    answered: Notify,
    probe: Notify,
}

/// What a link is made of.
pub(crate) struct Parts {
    pub(crate) identity: PeerIdentity,
    pub(crate) connection: Connection,
    pub(crate) peer: Hello,
    pub(crate) remote: SocketAddr,
    pub(crate) initiated: bool,
    pub(crate) presented: Incarnation,
    pub(crate) now: Tick,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("node", &self.peer.node)
            .field("incarnation", &self.peer.incarnation)
            .field("remote", &self.remote)
            .field("initiated", &self.initiated)
            .field("current", &self.is_current())
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(parts: Parts, gossip: mpsc::Sender<Bytes>, stats: Arc<TransportStats>) -> Self {
        let Parts { identity, connection, peer, remote, initiated, presented, now } = parts;
        Self {
            identity,
            connection,
            since: now,
            gossip,
            current: watch::Sender::new(false),
            questions: questions(),
            stats,
            peer,
            remote,
            initiated,
            presented,
            control: Mutex::new(None),
            echoed: Heard::default(),
            answered: Notify::new(),
            probe: Notify::new(),
        }
    }

    pub(crate) fn put_control(&self, control: (ControlSender, ControlReceiver)) {
        *self.control.lock().expect("nothing panics while it is locked") = Some(control);
    }

    pub(crate) fn heard_handle(&self) -> Heard {
        self.echoed.clone()
    }

    /// What the peer said of itself when the link came up.
    #[must_use]
    pub fn peer(&self) -> &Hello {
        &self.peer
    }

    /// Serial number of the peer's certificate, in hexadecimal digits.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.identity.serial
    }

    /// Where the peer's packets come from. It can be dialled at `peer().address`.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Whether this node began the connection.
    #[must_use]
    pub fn initiated(&self) -> bool {
        self.initiated
    }

    /// The incarnation of this node that the peer was told on this link.
    #[must_use]
    pub fn presented(&self) -> Incarnation {
        self.presented
    }

    /// The control stream; `None` if it has been taken.
    ///
    /// # Panics
    /// Never: nothing panics while it is locked.
    pub fn take_control(&self) -> Option<(ControlSender, ControlReceiver)> {
        self.control.lock().expect("nothing panics while it is locked").take()
    }

    /// Opens a stream to follow a lane of the peer on. Waits while the peer grants none.
    ///
    /// # Errors
    /// If the connection is gone.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn open_lane(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.connection.open_bi().await
    }

    /// The next stream that the peer opens: to follow a lane of this node on, or to ask a question.
    ///
    /// # Errors
    /// If the connection is gone.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn accept_stream(&self) -> Result<(SendStream, RecvStream), ConnectionError> {
        self.connection.accept_bi().await
    }

    /// Until when the peer is known to have been heard: when the newest probe was sent that it has answered on this
    /// link; at first, when the link came up.
    #[must_use]
    pub fn last_heard(&self) -> Tick {
        self.echoed.last().max(self.since)
    }

    /// Notes that the peer has answered a probe, and when that probe was sent.
    pub fn echoed(&self, sent: Tick) {
        self.echoed.at(sent);
        self.answered.notify_waiters();
    }

    /// Waits until a probe should be sent at once, because [`Link::liveness`] asks. For the session.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn probe_wanted(&self) {
        self.probe.notified().await;
    }

    /// Whether the peer is alive: whether it answers, within a time, a probe sent at or after `now`. What was
    /// under way before proves nothing. If this process was starved meanwhile, the answer may wait to be read, and
    /// the peer gets a second time.
    pub async fn liveness(&self, now: Tick, within: Duration) -> bool {
        loop {
            let begin = Instant::now();
            self.probe.notify_one();
            let answer = tokio::select! {
                answer = tokio::time::timeout(within, self.answered_since(now)) => answer.is_ok(),
                _ = self.connection.closed() => return false,
            };
            if answer || begin.elapsed() < within + STARVED {
                return answer;
            }
        }
    }

    async fn answered_since(&self, now: Tick) {
        loop {
            let answered = self.answered.notified();
            if self.echoed.last() >= now {
                return;
            }
            answered.await;
        }
    }

    /// Whether this is the connection to its node that counts.
    #[must_use]
    pub fn is_current(&self) -> bool {
        *self.current.borrow()
    }

    /// Watches [`Link::is_current`].
    #[must_use]
    pub fn currency(&self) -> watch::Receiver<bool> {
        self.current.subscribe()
    }

    /// The round-trip time, as QUIC estimates it.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Closes the connection at once. What is not delivered yet is lost. Does nothing to one that is closed.
    pub fn close(&self, code: CloseCode, reason: &str) {
        // quinn would forget why the peer has closed it.
        if !self.is_closed() {
            self.connection.close(code.as_varint(), reason.as_bytes());
        }
    }

    /// Whether the peer has closed the connection with a code.
    #[must_use]
    pub fn was_closed_with(&self, code: CloseCode) -> bool {
        self.connection.close_reason().is_some_and(|end| code.was_said(&end))
    }

    /// Whether the peer has closed the connection, with whichever code.
    #[must_use]
    pub fn was_closed_by_peer(&self) -> bool {
        matches!(self.connection.close_reason(), Some(ConnectionError::ApplicationClosed(_)))
    }

    /// Whether the connection is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Waits for the end of the connection, and says why it ended.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn closed(&self) -> ConnectionError {
        self.connection.closed().await
    }
}
