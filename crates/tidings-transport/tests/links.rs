//! Links between nodes: which connection counts, what happens when one end goes away, what a reload changes.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use common::*;
use tidings_proto::frame::Refusal;
use tidings_proto::id::{Incarnation, LogId};
use tidings_transport::limits::{IDLE_TIMEOUT, LIVENESS_TIME};
use tidings_transport::{Authority, BindError, Config, Identity, NODE_VALIDITY, RefusedReason, Transport};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;

fn authority() -> Authority {
    Authority::generate(CLUSTER).unwrap()
}

/// A node in a runtime of its own, so that it can be ended without a word, like a killed process.
struct Mortal {
    node: Option<Node>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Runtime>>,
}

impl Mortal {
    fn start(identity: Identity, name: &str, incarnation: u64, listen: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let node = {
            let _entered = runtime.enter();
            start_as(identity, name, incarnation, listen, &[])
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let _ = runtime.block_on(stopped);
            runtime
        });
        Self { node: Some(node), stop: Some(stop), thread: Some(thread) }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn kill(&mut self) {
        // First nothing runs any more, so that nothing is said when the rest goes.
        drop(self.stop.take());
        let runtime = self.thread.take().map(|thread| thread.join().unwrap());
        drop(self.node.take());
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.kill();
    }
}

fn identity(authority: &Authority, name: &str) -> Identity {
    let issued = authority.issue(&id(name), &[], NODE_VALIDITY).unwrap();
    Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap()
}

#[tokio::test]
async fn a_wanted_address_becomes_a_link_on_both_ends() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    let took = until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    let (there, back) = (one.transport.link(&two.id()).unwrap(), two.transport.link(&one.id()).unwrap());
    assert!(there.initiated() && !back.initiated());
    assert_eq!((there.peer().node.clone(), back.peer().node.clone()), (id("n2"), id("n1")));
    assert_eq!((there.remote(), back.remote()), (two.address(), one.address()));
    assert!(there.is_current() && back.is_current());
    one.close().await;
    until("gone", || two.transport.links().is_empty()).await;
}

#[tokio::test]
async fn two_nodes_that_dial_each_other_settle_on_one_link() {
    let authority = authority();
    for _ in 0..5 {
        let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
        one.transport.want(two.address());
        two.transport.want(one.address());
        until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
        let open = |node: &Node| {
            node.transport.stats().links_opened.get() - node.transport.stats().links_closed.get()
        };
        let initiated = |node: &Node| node.transport.links().pop().map(|link| link.initiated());
        until("the same link left on both ends", || {
            open(&one) == 1 && open(&two) == 1 && initiated(&one) != initiated(&two)
        })
        .await;
        let there = one.transport.link(&id("n2")).unwrap();
        if one.transport.stats().links_opened.get() == 2 {
            assert!(there.initiated(), "the smaller id's");
        }
    }
}

#[tokio::test]
async fn a_node_that_wants_itself_stays_alone_in_peace() {
    let authority = authority();
    let node = start(&authority, "n1", 1, loopback());
    node.transport.want(node.address());
    until("dialled", || node.transport.stats().dials_failed.get() == 1).await;
    let peer = start(&authority, "n2", 1, loopback());
    peer.transport.want(node.address());
    until("linked", || peer.linked_to(&node)).await;
    assert_eq!((node.transport.stats().dials.get(), node.transport.stats().refused_total()), (1, 0));
    assert!(node.told().is_empty());
}

#[tokio::test]
async fn a_lost_link_is_dialled_again() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two)).await;
    let first = one.transport.link(&two.id()).unwrap();
    first.close(tidings_transport::CloseCode::Ended, "test");
    let took = until("linked again", || one.linked_to(&two) && two.linked_to(&one)).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    one.transport.unwant(two.address());
    one.transport.link(&two.id()).unwrap().close(tidings_transport::CloseCode::Ended, "test");
    until("down", || !one.linked_to(&two)).await;
    let dials = one.transport.stats().dials.get();
    two.transport.want(one.address());
    until("linked by the other", || one.linked_to(&two)).await;
    assert_eq!(one.transport.stats().dials.get(), dials, "unwanted addresses are not dialled");
}

#[tokio::test]
async fn links_that_end_at_once_are_dialled_with_growing_pauses() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    two.host.brief.store(true, Ordering::SeqCst);
    one.transport.want(two.address());
    two.transport.want(one.address());
    let begin = Instant::now();
    until("three seconds have passed", || begin.elapsed() > Duration::from_secs(3)).await;
    let dials = one.transport.stats().dials.get() + two.transport.stats().dials.get();
    assert!((6..40).contains(&dials), "{dials} dials");
    two.host.brief.store(false, Ordering::SeqCst);
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
}

#[tokio::test]
async fn a_node_that_leaves_is_not_dialled_again_and_again() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two)).await;
    *two.host.refuse.lock().unwrap() = Some(Refusal::Leaving);
    let before = one.transport.stats().dials.get();
    let begin = Instant::now();
    two.transport.link(&id("n1")).unwrap().close(tidings_transport::CloseCode::Ended, "test");
    let dials = || one.transport.stats().dials.get() - before;
    until("dialled", || dials() > 0).await;
    // After a second it is dialled again, and this may look too late.
    let again = || dials() > 1 && begin.elapsed() < Duration::from_secs(1);
    until("a while", || again() || begin.elapsed() > Duration::from_millis(800)).await;
    assert!(!again(), "told once that it leaves");
    *two.host.refuse.lock().unwrap() = None;
    until("linked again, for it has stayed", || one.linked_to(&two)).await;
}

#[tokio::test]
async fn a_later_incarnation_replaces_the_link_at_once() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    two.transport.want(one.address());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let old = one.transport.link(&id("n2")).unwrap();
    two.host.hello.lock().unwrap().incarnation = Incarnation(2);
    two.transport.redial(&id("n1"));
    let took = until("replaced", || {
        one.transport.link(&id("n2")).is_some_and(|link| link.peer().incarnation == Incarnation(2))
    })
    .await;
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert!(old.is_closed() && !old.is_current());
    until("the other end follows", || {
        two.transport.link(&id("n1")).is_some_and(|link| link.presented() == Incarnation(2))
    })
    .await;
}

#[tokio::test]
async fn a_second_connection_takes_over_from_a_silent_one() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let first = one.transport.link(&id("n2")).unwrap();
    for node in [&one, &two] {
        node.host.mute.store(true, Ordering::SeqCst);
    }
    let silent = first.last_heard();
    until("silent", || tidings_transport::Host::now(&*one.host).since(silent) > Duration::from_millis(1_100))
        .await;
    assert!(!first.is_closed());
    one.transport.redial(&id("n2"));
    until("taken over", || !first.is_current() && one.linked_to(&two)).await;
    for node in [&one, &two] {
        node.host.mute.store(false, Ordering::SeqCst);
    }
    let open =
        |node: &Node| node.transport.stats().links_opened.get() - node.transport.stats().links_closed.get();
    until("one link left", || open(&one) == 1 && open(&two) == 1).await;
    assert!(one.linked_to(&two) && two.linked_to(&one));
}

#[tokio::test]
async fn a_killed_node_is_noticed_by_quic_alone() {
    let authority = authority();
    let one = start(&authority, "n1", 1, loopback());
    let mut two = Mortal::start(identity(&authority, "n2"), "n2", 1, loopback());
    one.transport.want(two.node().address());
    until("linked", || one.linked_to(two.node())).await;
    two.kill();
    let begin = Instant::now();
    let took = until("noticed", || one.transport.links().is_empty()).await;
    assert!(begin.elapsed() > IDLE_TIMEOUT / 2 && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_node_that_is_back_on_its_port_resets_its_former_connections() {
    let authority = authority();
    let one = start(&authority, "n1", 1, loopback());
    let identity = identity(&authority, "n2");
    let mut two = Mortal::start(identity.clone(), "n2", 1, loopback());
    let address = two.node().address();
    // It is not wanted: only the reset can end the link before the idle timeout.
    two.node().transport.want(one.address());
    until("linked", || one.linked_to(two.node())).await;
    two.kill();
    let _again = Mortal::start(identity, "n2", 2, address);
    let took = until("reset", || one.transport.links().is_empty()).await;
    assert!(took < Duration::from_millis(1_200), "{took:?}");
}

#[tokio::test]
async fn a_node_that_is_back_on_its_port_is_let_in_at_once() {
    let authority = authority();
    let one = start(&authority, "n1", 1, loopback());
    let identity = identity(&authority, "n2");
    let mut two = Mortal::start(identity.clone(), "n2", 1, loopback());
    let address = two.node().address();
    one.transport.want(address);
    until("linked", || one.linked_to(two.node())).await;
    two.kill();
    let again = Mortal::start(identity, "n2", 2, address);
    again.node().transport.want(one.address());
    let took = until("linked again", || {
        one.transport.link(&id("n2")).is_some_and(|link| link.peer().incarnation == Incarnation(2))
    })
    .await;
    assert!(took < Duration::from_millis(500), "{took:?}");
    assert_eq!(one.refused(RefusedReason::DuplicateNode), 0);
}

#[tokio::test]
async fn a_node_that_is_back_on_another_port_is_let_in_when_its_former_self_does_not_answer() {
    let authority = authority();
    let one = start(&authority, "n1", 1, loopback());
    let identity = identity(&authority, "n2");
    let mut two = Mortal::start(identity.clone(), "n2", 1, loopback());
    one.transport.want(two.node().address());
    until("linked", || one.linked_to(two.node())).await;
    two.kill();
    let again = Mortal::start(identity.clone(), "n2", 2, loopback());
    again.node().transport.want(one.address());
    let took = until("linked again", || {
        one.transport.link(&id("n2")).is_some_and(|link| link.peer().incarnation == Incarnation(2))
    })
    .await;
    assert!(took < LIVENESS_TIME + Duration::from_millis(700), "{took:?}");
    assert!(again.node().told().is_empty());
}

#[tokio::test]
async fn denied_node_is_disconnected() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let serial = one.transport.link(&id("n2")).unwrap().serial().to_owned();
    assert_eq!(serial, two.transport.identity().info().unwrap().serial);
    one.transport.set_denied([serial]);
    until("disconnected", || two.transport.links().is_empty() && one.transport.links().is_empty()).await;
    // By the close of the link itself, before any further attempt.
    until("told", || two.told() == [Refusal::Denied]).await;
    until("refused from then on", || one.refused(RefusedReason::Denied) >= 3).await;
    assert!(one.transport.links().is_empty());
    one.transport.set_denied([""; 0]);
    until("linked again", || one.linked_to(&two)).await;
}

#[tokio::test]
async fn a_reloaded_certificate_is_shown_in_new_handshakes_and_drops_no_link() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let link = two.transport.link(&id("n1")).unwrap();
    let issued = authority.issue(&id("n1"), &[], NODE_VALIDITY).unwrap();
    one.transport.identity().reload_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
    let serial = tidings_transport::inspect(&issued.cert_pem).unwrap().serial;
    assert_ne!(link.serial(), serial);

    // As a dialler and as an acceptor.
    let three = start(&authority, "n3", 1, loopback());
    one.transport.want(three.address());
    let four = start(&authority, "n4", 1, loopback());
    four.transport.want(one.address());
    for node in [&three, &four] {
        until("shown", || node.transport.link(&id("n1")).is_some_and(|link| link.serial() == serial)).await;
    }
    assert!(!link.is_closed() && link.is_current());
}

#[tokio::test]
async fn reloaded_authorities_decide_about_new_handshakes() {
    let (old, new) = (authority(), authority());
    let (one, stranger) = (start(&old, "n1", 1, loopback()), start(&new, "n2", 1, loopback()));
    stranger.transport.want(one.address());
    until("refused", || {
        one.refused(RefusedReason::UnknownCa) > 0 || stranger.refused(RefusedReason::UnknownCa) > 0
    })
    .await;
    let issued = new.issue(&id("n1"), &[], NODE_VALIDITY).unwrap();
    let both = format!("{}{}", old.ca_pem(), new.ca_pem());
    one.transport.identity().reload_pem(&both, &issued.cert_pem, &issued.key_pem).unwrap();
    until("let in", || one.linked_to(&stranger)).await;
}

#[tokio::test]
async fn identities_for_development_stay_on_loopback() {
    let config = |listen: &str| Config {
        cluster: CLUSTER.to_owned(),
        node: id("n1"),
        listen: listen.parse().unwrap(),
        identity: Identity::development(),
        denied: vec![],
    };
    let bind = |listen: &str| {
        let listen: SocketAddr = listen.parse().unwrap();
        Transport::bind(config(&listen.to_string()), TestHost::new(hello("n1", 1, 1, listen)))
    };
    for listen in ["0.0.0.0:0", "[::]:0", "10.0.0.1:0", "[::ffff:10.0.0.1]:0"] {
        assert!(matches!(bind(listen), Err(BindError::DevelopmentNotLoopback(_))), "{listen}");
    }
    let one = start_as(Identity::development(), "n1", 1, loopback(), &[]);
    let two = start_as(Identity::development(), "n2", 1, loopback(), &[]);
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two)).await;
}

#[tokio::test]
async fn what_cannot_be_bound_is_said() {
    let authority = authority();
    let one = start(&authority, "n1", 1, loopback());
    let config = |node: &str, listen| Config {
        cluster: CLUSTER.to_owned(),
        node: id(node),
        listen,
        identity: identity(&authority, "n2"),
        denied: vec![],
    };
    let bind = |config: Config| {
        let hello = hello("n2", 1, 1, config.listen);
        Transport::bind(config, TestHost::new(hello))
    };
    let taken = bind(config("n2", one.address()));
    assert!(matches!(taken, Err(BindError::Socket { address, .. }) if address == one.address()));
    assert!(matches!(bind(config("n3", loopback())), Err(BindError::Identity(_))));
    let other = Config { cluster: "a..b".to_owned(), ..config("n2", loopback()) };
    assert!(matches!(bind(other), Err(BindError::Cluster(_))));
}

#[tokio::test]
async fn an_unreachable_address_is_named_with_the_reason() {
    let (one, stranger) =
        (start(&authority(), "n1", 1, loopback()), start(&authority(), "n2", 1, loopback()));
    one.transport.want(stranger.address());
    let expected = vec![(stranger.address(), Some("refused the peer: unknown_ca".to_owned()))];
    until("named", || one.transport.unreachable() == expected).await;
    one.transport.unwant(stranger.address());
    assert!(one.transport.unreachable().is_empty());
}

#[tokio::test]
async fn ipv6_and_dual_stack_work() {
    let authority = authority();
    let six = start(&authority, "n6", 1, "[::1]:0".parse().unwrap());
    let dual = start(&authority, "n2", 1, "[::]:0".parse().unwrap());
    let four = start(&authority, "n4", 1, loopback());
    let port = dual.address().port();
    six.transport.want(SocketAddr::new("::1".parse().unwrap(), port));
    four.transport.want(SocketAddr::new("127.0.0.1".parse().unwrap(), port));
    until("linked", || six.linked_to(&dual) && four.linked_to(&dual) && dual.transport.links().len() == 2)
        .await;
    assert_eq!(dual.transport.link(&id("n4")).unwrap().remote(), four.address(), "not as a mapped address");
    // And from the dual-stack socket to an IPv4 address.
    let another = start(&authority, "n5", 1, loopback());
    dual.transport.want(another.address());
    until("linked", || dual.linked_to(&another)).await;
}

#[tokio::test]
async fn lanes_carry_bytes_both_ways_beside_control() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let (there, back) = (one.transport.link(&id("n2")).unwrap(), two.transport.link(&id("n1")).unwrap());
    // More than any one window, unread for a while on all lanes: control gets through all the same.
    let mut lanes = Vec::new();
    for _ in 0..4 {
        let (mut send, _receive) = there.open_lane().await.unwrap();
        let filled = tokio::time::timeout(Duration::from_millis(300), async {
            loop {
                send.write_all(&[7; 64 << 10]).await.unwrap();
            }
        });
        assert!(filled.await.is_err(), "flow control holds");
        lanes.push(send);
    }
    let asked = tidings_transport::Host::now(&*one.host);
    let (answered, took) = timed(there.liveness(asked, PATIENCE)).await;
    assert!(answered && took < Duration::from_secs(2), "control is not held up: {took:?}");
    let (_send, mut receive) = back.accept_stream().await.unwrap();
    let mut first = [0; 4];
    receive.read_exact(&mut first).await.unwrap();
    assert_eq!(first, [7; 4]);
}

#[tokio::test]
async fn liveness_asks_for_a_probe_that_is_sent_after_the_question() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two)).await;
    let link = one.transport.link(&id("n2")).unwrap();
    let now = || tidings_transport::Host::now(&*one.host);
    assert!(link.liveness(now(), PATIENCE).await);
    two.host.mute.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    assert!(!link.liveness(now(), LIVENESS_TIME).await);
    assert!(begin.elapsed() >= LIVENESS_TIME);
    link.close(tidings_transport::CloseCode::Ended, "");
    let (answered, took) = timed(link.liveness(now(), LIVENESS_TIME)).await;
    assert!(!answered && took < LIVENESS_TIME / 2, "a closed link is dead at once: {took:?}");
}

#[tokio::test]
async fn a_closed_transport_has_said_so_and_is_done() {
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    one.transport.want("127.0.0.1:1".parse().unwrap());
    until("linked", || one.linked_to(&two) && two.linked_to(&one)).await;
    let ((), took) = timed(one.transport.close(PATIENCE)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    until("told", || two.transport.links().is_empty()).await;
    assert_eq!(two.transport.stats().links_closed.get(), 1);
    assert!(one.transport.links().is_empty());
    let host = one.host.clone();
    drop(one);
    until("nothing holds the host", || std::sync::Arc::strong_count(&host) == 1).await;
}

#[tokio::test]
async fn a_log_id_is_told_from_another_by_itself() {
    // The same incarnation with another log is another process, even at the same place in a member set.
    let authority = authority();
    let (one, two) = (start(&authority, "n1", 1, loopback()), start(&authority, "n2", 1, loopback()));
    one.transport.want(two.address());
    until("linked", || one.linked_to(&two)).await;
    let log = one.transport.link(&id("n2")).unwrap().peer().log;
    let rival = start(&authority, "n2", 1, loopback());
    assert_ne!(rival.host.hello.lock().unwrap().log, LogId(log.0));
    rival.transport.want(one.address());
    until("told", || !rival.told().is_empty()).await;
    assert_eq!(rival.told()[0], Refusal::DuplicateNode { node: id("n2"), address: two.address() });
    assert!(one.transport.link(&id("n2")).unwrap().peer().log == log);
}
