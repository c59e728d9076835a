//! Two processes with one node id that meet without anybody between them.
#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::*;
use tidings_proto::frame::{NamedMember, Refusal};
use tidings_proto::id::{Incarnation, LogId, Origin};
use tidings_transport::{Authority, Link, RefusedReason};

const AGE_MS: u64 = 60_000;

/// A life of `n1`, of a process that has been there for so long.
fn process(authority: &Authority, incarnation: u64, log: u64, age_ms: u64) -> Node {
    let node = start(authority, "n1", incarnation, loopback());
    let mut hello = node.host.hello.lock().unwrap();
    hello.log = LogId(log);
    hello.age_ms = age_ms;
    drop(hello);
    node
}

fn displaced(node: &Node) -> Vec<SocketAddr> {
    node.host.displaced.lock().unwrap().clone()
}

/// Lets one dial the other until one of them goes, and then the other way round, and says that only `goes` did.
async fn meet(stays: &Node, goes: &Node) {
    for (dialler, target) in [(stays, goes), (goes, stays)] {
        let before = displaced(goes).len();
        dialler.transport.want(target.address());
        until("gone", || displaced(goes).len() > before || !displaced(stays).is_empty()).await;
        dialler.transport.unwant(target.address());
        assert_eq!(displaced(stays), [], "the wrong one");
        assert!(displaced(goes).iter().all(|holder| *holder == stays.address()));
    }
    let told = Refusal::DuplicateNode { node: id("n1"), address: stays.address() };
    assert!(goes.told().contains(&told) && stays.told().is_empty());
    assert!(
        stays.refused(RefusedReason::DuplicateNode) > 0 || goes.refused(RefusedReason::DuplicateNode) > 0
    );
    assert!(stays.transport.links().is_empty() && stays.host.admitted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_live_holder_keeps_its_id_whatever_the_clocks_say() {
    let authority = Authority::generate(CLUSTER).unwrap();
    for (behind_or_ahead, logs) in [(999, (1, 2)), (999, (2, 1)), (1_001, (1, 2)), (1_001, (2, 1))] {
        let holder = process(&authority, 1_000, logs.0, AGE_MS);
        let newcomer = process(&authority, behind_or_ahead, logs.1, 20);
        meet(&holder, &newcomer).await;
    }
}

#[tokio::test]
async fn a_life_that_was_replaced_goes_although_nobody_has_told_it_yet() {
    let authority = Authority::generate(CLUSTER).unwrap();
    for logs in [(1, 2), (2, 1)] {
        let former = process(&authority, 1_000, logs.0, AGE_MS);
        let successor = process(&authority, 1_001, logs.1, 20);
        // As those say who have let the successor in.
        let origin = Origin { node: id("n1"), incarnation: Incarnation(1_000) };
        let replaced = NamedMember { origin, address: successor.address(), ended: true };
        successor.host.hello.lock().unwrap().members.members.push(replaced);
        meet(&successor, &former).await;
    }
}

#[tokio::test]
async fn of_two_that_began_at_once_and_dial_each_other_exactly_one_goes() {
    let authority = Authority::generate(CLUSTER).unwrap();
    for round in 0..8 {
        let (one, two) = (process(&authority, 1, round, 20), process(&authority, 1, 100 - round, 20));
        one.transport.want(two.address());
        two.transport.want(one.address());
        let meetings = || displaced(&one).len() + displaced(&two).len();
        until("met from both sides", || meetings() >= 4).await;
        assert!(displaced(&one).is_empty() != displaced(&two).is_empty(), "round {round}");
    }
}

#[tokio::test]
async fn a_life_that_is_over_is_followed_beside_its_successor_and_disturbs_nothing() {
    let authority = Authority::generate(CLUSTER).unwrap();
    let witness = start(&authority, "n2", 1, loopback());
    let successor = process(&authority, 9, 2, 20);
    successor.transport.want(witness.address());
    until("linked", || witness.transport.link(&id("n1")).is_some()).await;
    let former = process(&authority, 5, 1, AGE_MS);
    let origin = Origin { node: id("n1"), incarnation: Incarnation(5) };
    let over = NamedMember { origin, address: former.address(), ended: true };
    former.host.hello.lock().unwrap().members.members.push(over);
    former.host.over.store(true, Ordering::SeqCst);
    for follower in [&witness, &successor] {
        follower.host.follows.store(true, Ordering::SeqCst);
        let sessions = follower.host.sessions.load(Ordering::SeqCst);
        former.transport.want(follower.address());
        until("followed", || follower.host.sessions.load(Ordering::SeqCst) > sessions).await;
    }
    until("it has both links", || former.transport.links().len() == 2).await;
    for follower in [&witness, &successor] {
        let formers = follower.host.formers.lock().unwrap();
        assert!(formers.iter().all(|it| it.node == id("n1") && it.incarnation == Incarnation(5)));
        assert!(follower.host.admitted.lock().unwrap().iter().all(|it| it.incarnation != Incarnation(5)));
    }
    let counts =
        |node: &Node| node.transport.links().iter().map(|link| link.peer().incarnation.0).collect::<Vec<_>>();
    assert_eq!((counts(&witness), counts(&successor)), (vec![9], vec![1]), "it is no link to its node");
    assert!([&witness, &successor, &former].iter().all(|node| displaced(node).is_empty()));
    witness.transport.set_denied(["n1"]);
    until("who is denied is not followed either", || {
        let at_witness = |link: &Arc<Link>| link.peer().node == id("n2");
        !former.transport.links().iter().any(at_witness) && former.told().contains(&Refusal::Denied)
    })
    .await;
}
