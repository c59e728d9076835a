//! From a connection to a link: who is it, what does it say, does anything stand against it.
//!
//! Nothing that a peer sends is read before its certificate has been judged, and a peer that is refused gets
//! nothing from this node but the close of the connection; only a process that shows this node's own certificate may
//! get its `Hello`, so that one of the two can decide which keeps the id.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use quinn::{Connection, Incoming};
use tidings_proto::frame::{Control, Hello, Refusal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::close;
use crate::control::{ControlReceiver, ControlSender};
use crate::duplicate;
use crate::former::{self, Former};
use crate::gate::Place;
use crate::limits::{
    self, DIAL_TIME, GOSSIP_QUEUE_FRAMES, HANDSHAKE_TIME, HANDSHAKE_TLS_TIME, LIVENESS_TIME,
};
use crate::link::{Link, Parts};
use crate::refuse::HandshakeError;
use crate::run::{self, Up};
use crate::shared::Shared;
use crate::socket::canonical;
use crate::stats::{BroadcastError, RefusedReason};
use crate::table::{Facts, Judgement, LinkId};
use crate::tls::{self, PeerIdentity};

/// How often a handshake is judged anew because something changed meanwhile, before it is given up.
const ROUNDS_MAX: usize = 3;

/// Answers a connection attempt, and runs the link that comes of it.
pub(crate) async fn accept(shared: Arc<Shared>, incoming: Incoming, place: Place) {
    let remote = canonical(incoming.remote_address());
    let outcome = timeout(HANDSHAKE_TIME, greet_inbound(&shared, incoming, remote)).await;
    drop(place);
    match outcome {
        Ok(Ok(Greeted::Link(up))) => run::run(shared, up).await,
        Ok(Ok(Greeted::Former(former))) => former::run(&shared, former).await,
        Ok(Err(error)) => shared.handshake_failed(remote, &error),
        Err(_) => shared.handshake_failed(remote, &HandshakeError::Refused(RefusedReason::Timeout, None)),
    }
}

/// Dials an address. A link that comes of it runs as a task of the transport's. `beside` dials even if a link is
/// up by then.
pub(crate) async fn dial(
    shared: &Arc<Shared>,
    address: SocketAddr,
    beside: bool,
) -> Result<(), HandshakeError> {
    let _permit = shared.dials_in_flight.acquire().await.map_err(|_| HandshakeError::Timeout)?;
    shared.stats.dials.one();
    let outcome = timeout(DIAL_TIME, greet_outbound(shared, address, beside)).await;
    match outcome.unwrap_or(Err(HandshakeError::Timeout)) {
        Ok(up) => {
            let node = up.link.peer().node.clone();
            shared.table().alias(address, &node);
            shared.spawn(run::run(shared.clone(), up));
            Ok(())
        }
        Err(error) => {
            shared.stats.dials_failed.one();
            if error.is_unreachable() {
                shared.stats.broadcast_error(BroadcastError::Dial);
            }
            Err(error)
        }
    }
}

/// What comes of a connection that a peer has begun.
enum Greeted {
    Link(Up),
    Former(Former),
}

async fn greet_inbound(
    shared: &Arc<Shared>,
    incoming: Incoming,
    remote: SocketAddr,
) -> Result<Greeted, HandshakeError> {
    let config = shared.server_config(remote)?;
    let connecting = incoming.accept_with(config).map_err(HandshakeError::inbound)?;
    let connection = timeout(HANDSHAKE_TLS_TIME, connecting).await;
    let connection = connection.map_err(|_| HandshakeError::Refused(RefusedReason::Timeout, None))?;
    let connection = connection.map_err(HandshakeError::inbound)?;
    closing(connection, async |connection| {
        let identity = identify(shared, connection)?;
        let (send, receive) = connection.accept_bi().await?;
        let (mut send, mut receive) = (ControlSender::new(send), ControlReceiver::new(receive));
        let hello = expect_hello(&mut receive).await?;
        check(shared, &identity, &hello)?;
        if duplicate::concedes(&hello) {
            // A place first: what is not followed must leave no trace.
            let place = former::place(shared)?;
            if shared.host.follows_to_the_end(&hello) {
                let former =
                    former::greet(shared, place, (connection, identity), hello, (send, receive)).await?;
                return Ok(Greeted::Former(former));
            }
        }
        if hello.node == shared.node {
            return Err(met_at_home(shared, connection, &hello, &mut send).await);
        }
        let (parts, unanswered) = judge(shared, connection, identity, hello, false).await?;
        // The member set in it names the peer by now.
        let answer = shared.host.hello();
        let parts = Parts { presented: answer.incarnation, ..parts };
        // In the table first: a claim is settled before the peer is told that it holds.
        let (link, up) = register(shared, parts, &answer, &unanswered)?;
        send.send(&Control::Hello(answer)).await?;
        link.put_control((send, receive));
        Ok(Greeted::Link(up))
    })
    .await
}

async fn greet_outbound(
    shared: &Arc<Shared>,
    address: SocketAddr,
    beside: bool,
) -> Result<Up, HandshakeError> {
    let config = shared.client_config(address)?;
    let connecting = shared.endpoint.connect_with(config, address, &shared.server_name);
    let connection = connecting.map_err(HandshakeError::Connect)?.await;
    let connection = connection.map_err(HandshakeError::outbound)?;
    closing(connection, async |connection| {
        let identity = identify(shared, connection)?;
        // From the next step on the peer may count on this connection, so it is not given up lightly.
        if !beside && shared.table().at(address).is_some() {
            return Err(HandshakeError::Linked);
        }
        let namesake = identity.node == shared.node;
        // The peer lets in whose hello it reads.
        if !namesake && !shared.host.takes_part() {
            return Err(HandshakeError::Displaced);
        }
        let (send, receive) = connection.open_bi().await?;
        let (mut send, mut receive) = (ControlSender::new(send), ControlReceiver::new(receive));
        let own = if namesake { own_claim(shared) } else { shared.host.hello() };
        send.send(&Control::Hello(own.clone())).await?;
        let hello = expect_hello(&mut receive).await.inspect_err(|error| {
            let duplicate = matches!(error, HandshakeError::RefusedByPeer(Refusal::DuplicateNode { .. }));
            if duplicate && namesake {
                shared.host.displaced(address);
            }
        })?;
        check(shared, &identity, &hello)?;
        if namesake && !shared.host.is_over() {
            return Err(met_abroad(shared, &own, &hello));
        }
        let (parts, unanswered) = judge(shared, connection, identity, hello, true).await?;
        if shared.host.hello().incarnation != own.incarnation {
            // The peer was told of a life that this node has given up since.
            return Err(HandshakeError::Overtaken);
        }
        let parts = Parts { presented: own.incarnation, ..parts };
        let (link, up) = register(shared, parts, &own, &unanswered)?;
        link.put_control((send, receive));
        Ok(up)
    })
    .await
}

/// Runs a handshake on a connection, and closes the connection if it fails.
async fn closing<T>(
    connection: Connection,
    handshake: impl AsyncFnOnce(&Connection) -> Result<T, HandshakeError>,
) -> Result<T, HandshakeError> {
    let outcome = handshake(&connection).await;
    if let Err(error) = &outcome {
        error.close(&connection);
    }
    outcome
}

/// Who the peer is, by its certificate, if that is acceptable.
fn identify(shared: &Shared, connection: &Connection) -> Result<PeerIdentity, HandshakeError> {
    let identity = match tls::peer_identity(connection, &shared.cluster) {
        Ok(identity) => identity,
        Err(RefusedReason::WrongCluster) => {
            let refusal = Refusal::Cluster(shared.cluster.clone());
            return Err(HandshakeError::telling(RefusedReason::WrongCluster, refusal));
        }
        Err(reason) => return Err(HandshakeError::Refused(reason, None)),
    };
    shared.refusals.shown(canonical(connection.remote_address()), &identity.node);
    if shared.denied.load().denies(&identity) {
        return Err(HandshakeError::telling(RefusedReason::Denied, Refusal::Denied));
    }
    Ok(identity)
}

async fn expect_hello(receive: &mut ControlReceiver) -> Result<Hello, HandshakeError> {
    match receive.recv().await? {
        Control::Hello(hello) => Ok(Hello { address: canonical(hello.address), ..hello }),
        _ => Err(HandshakeError::Refused(RefusedReason::Malformed, None)),
    }
}

/// Checks what a `Hello` says by itself.
fn check(shared: &Shared, identity: &PeerIdentity, hello: &Hello) -> Result<(), HandshakeError> {
    let own = shared.host.hello();
    if hello.node != identity.node {
        let refusal = Refusal::Identity(identity.node.clone());
        return Err(HandshakeError::telling(RefusedReason::Identity, refusal));
    }
    if hello.cluster != shared.cluster {
        let refusal = Refusal::Cluster(shared.cluster.clone());
        return Err(HandshakeError::telling(RefusedReason::WrongCluster, refusal));
    }
    let (oldest, newest) = own.protocols;
    if hello.protocols.0 > newest || hello.protocols.1 < oldest {
        return Err(HandshakeError::telling(RefusedReason::Protocol, Refusal::Protocol(oldest, newest)));
    }
    if hello.hash_version != own.hash_version {
        let refusal = Refusal::HashVersion(own.hash_version);
        return Err(HandshakeError::telling(RefusedReason::HashVersion, refusal));
    }
    Ok(())
}

/// What this node says to another process with its id.
fn own_claim(shared: &Shared) -> Hello {
    let mut own = shared.host.hello();
    if shared.replaced.load(Ordering::Acquire) > own.incarnation.0 && !duplicate::concedes(&own) {
        duplicate::concede(&mut own);
    }
    own
}

/// Another process with this node's id has dialled it: decides which of the two goes, or lets the other decide. Returns
/// what the handshake comes to.
async fn met_at_home(
    shared: &Shared,
    connection: &Connection,
    hello: &Hello,
    send: &mut ControlSender,
) -> HandshakeError {
    let own = own_claim(shared);
    if hello.log == own.log || duplicate::decides(&own, hello) {
        return decided(shared, &own, hello);
    }
    if let Err(error) = send.send(&Control::Hello(own)).await {
        return error.into();
    }
    let verdict = HandshakeError::from(connection.closed().await);
    if matches!(verdict, HandshakeError::RefusedByPeer(Refusal::DuplicateNode { .. })) {
        shared.host.displaced(hello.address);
    }
    verdict
}

/// This node has dialled another process with its id, which leaves it to this one to decide.
fn met_abroad(shared: &Shared, own: &Hello, hello: &Hello) -> HandshakeError {
    if hello.log != own.log && duplicate::concedes(own) {
        // It has heard so, and answers whoever is over.
        return give_way(shared, hello.address);
    }
    if hello.log == own.log || duplicate::decides(own, hello) {
        return decided(shared, own, hello);
    }
    // It should have decided itself. A second verdict could contradict its own.
    HandshakeError::Refused(RefusedReason::Malformed, None)
}

fn decided(shared: &Shared, own: &Hello, hello: &Hello) -> HandshakeError {
    if hello.log == own.log {
        return HandshakeError::Own;
    }
    if shared.verdicts.keeps(own, hello) {
        let refusal = Refusal::DuplicateNode { node: own.node.clone(), address: own.address };
        return HandshakeError::telling(RefusedReason::DuplicateNode, refusal);
    }
    give_way(shared, hello.address)
}

/// Tells the host that another process holds this node's id.
fn give_way(shared: &Shared, holder: SocketAddr) -> HandshakeError {
    let refusal = Refusal::DuplicateNode { node: shared.node.clone(), address: holder };
    shared.host.refused(holder, &refusal);
    shared.host.displaced(holder);
    HandshakeError::Refused(RefusedReason::DuplicateNode, None)
}

/// Finds out whether anything stands against a peer: asks those who hold what it claims, then the host. Returns
/// what the link is made of, and who did not answer.
async fn judge(
    shared: &Shared,
    connection: &Connection,
    identity: PeerIdentity,
    hello: Hello,
    initiated: bool,
) -> Result<(Parts, Vec<LinkId>), HandshakeError> {
    let parts = Parts {
        identity,
        connection: connection.clone(),
        presented: hello.incarnation,
        remote: canonical(connection.remote_address()),
        initiated,
        now: shared.host.now(),
        peer: hello,
    };
    let facts = facts(&parts);
    let mut unanswered = Vec::new();
    for _ in 0..ROUNDS_MAX {
        let holders = match shared.table().judge(&facts, &unanswered) {
            Judgement::Welcome => {
                shared.host.admit(&parts.peer).map_err(HandshakeError::of_host)?;
                return Ok((parts, unanswered));
            }
            Judgement::Ask(holders) => holders,
            other => return Err(standing_against(other)),
        };
        let asked = shared.host.now();
        let answers = join_all(holders.iter().map(|(_, holder)| holder.liveness(asked, LIVENESS_TIME))).await;
        for ((id, holder), alive) in holders.into_iter().zip(answers) {
            if alive {
                return Err(held_by(&holder, &parts.peer));
            }
            unanswered.push(id);
        }
    }
    Err(HandshakeError::Refused(RefusedReason::Busy, None))
}

/// Enters a link in the table. What has changed since it was judged counts.
fn register(
    shared: &Arc<Shared>,
    parts: Parts,
    own: &Hello,
    unanswered: &[LinkId],
) -> Result<(Arc<Link>, Up), HandshakeError> {
    let facts = facts(&parts);
    // Now, for those who were asked about it may have taken their time.
    let parts = Parts { now: shared.host.now(), ..parts };
    let now = parts.now;
    let (gossip, queue) = mpsc::channel(GOSSIP_QUEUE_FRAMES);
    let link = Arc::new(Link::new(parts, gossip, shared.stats.clone()));
    let registered = shared.enter(facts, &link, now, unanswered).map_err(standing_against)?;
    if shared.denied.load().denies(&link.identity) {
        // Before its place is given up, which closes the connection without a word.
        close::refuse(&link.connection, &Refusal::Denied);
        return Err(HandshakeError::telling(RefusedReason::Denied, Refusal::Denied));
    }
    limits::admit(&link.connection, own.lanes, link.peer().lanes);
    Ok((link.clone(), Up { link, registered, queue }))
}

fn facts(parts: &Parts) -> Facts {
    Facts {
        node: parts.peer.node.clone(),
        incarnation: parts.peer.incarnation,
        log: parts.peer.log,
        address: parts.peer.address,
        remote: parts.remote,
        initiated: parts.initiated,
    }
}

fn held_by(holder: &Link, newcomer: &Hello) -> HandshakeError {
    let held = holder.peer();
    if held.node != newcomer.node {
        return HandshakeError::Refused(RefusedReason::AddressTaken, None);
    }
    let refusal = Refusal::DuplicateNode { node: held.node.clone(), address: held.address };
    HandshakeError::telling(RefusedReason::DuplicateNode, refusal)
}

fn standing_against<L>(judgement: Judgement<L>) -> HandshakeError {
    match judgement {
        Judgement::Overtaken => HandshakeError::Overtaken,
        // Someone took the place between the question and the entry; the peer will try again.
        Judgement::Crowded | Judgement::Ask(_) | Judgement::Welcome => {
            HandshakeError::Refused(RefusedReason::Busy, None)
        }
    }
}
