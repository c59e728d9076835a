//! A node that does not belong to the cluster.

use std::time::Duration;

use tidings::{Node, NotReady, RefusedReason, State};
use tidings_transport::Authority;

use crate::common::{PATIENCE, fill, for_a_while, identity, joiner, member, open_on, until};

fn reasons(node: &Node) -> String {
    match node.readiness() {
        Err(NotReady::Waiting { reasons }) => reasons.join("; "),
        other => format!("{other:?}"),
    }
}

/// A foreign node is started; it must not get in, and must say why.
async fn stays_outside(inside: &[Node; 2], outsider: Node, said: &str, counted: RefusedReason) {
    let caches = [open_on(&inside[0]), open_on(&inside[1])];
    let foreign = open_on(&outsider);
    let mut heard = foreign.subscribe().start().unwrap();
    fill(&caches, "kept", 1).await;
    until("it knows why it is not ready", || reasons(&outsider).contains(said)).await;
    foreign.insert("kept".to_owned(), 2).unwrap();
    caches[0].insert("told".to_owned(), 1).unwrap();
    for_a_while(Duration::from_secs(1)).await;
    // Were its change heard, it would never be there again.
    until("it is kept", || caches.iter().all(|cache| cache.contains(&"kept".to_owned()))).await;
    assert!(inside.iter().all(|node| node.members().len() == 2), "it is a member");
    assert_eq!(outsider.members().len(), 1);
    let refused: u64 = inside.iter().map(|node| node.transport_stats().refused(counted)).sum();
    let refuses = outsider.transport_stats().refused(counted);
    assert!(refused + refuses > 0, "counted nowhere");
    let members = inside[0].members().len();
    tidings_facts::note(
        "G15",
        format!(
            "{} handshakes refused, said as {said}; {members} members as before, no change heard",
            refused + refuses
        ),
    );
    drop(foreign);
    outsider.shutdown(Duration::from_secs(1)).await;
    let only_its_own = async {
        while let Some(item) = heard.next().await {
            let tidings::Item::Event(event) = item else { panic!("{item:?}") };
            assert!(event.local, "it heard {event:?}");
        }
    };
    tokio::time::timeout(PATIENCE, only_its_own).await.expect("a node that was shut down tells no more");
    caches.iter().for_each(|cache| cache.close());
}

#[tokio::test]
async fn a_node_without_the_clusters_credential_neither_joins_nor_is_heard() {
    let (ours, theirs) = (Authority::generate("shop").unwrap(), Authority::generate("shop").unwrap());
    let first = joiner("shop", "n1", &[]).identity(identity(&ours, "n1")).start().await.unwrap();
    let second = joiner("shop", "n2", &[&first]).identity(identity(&ours, "n2")).start().await.unwrap();
    for node in [&first, &second] {
        until("both are members", || node.members().len() == 2).await;
        assert!(node.fresh(PATIENCE).await);
    }
    let inside = [first, second];
    let forger = joiner("shop", "n3", &[&inside[0]]).identity(identity(&theirs, "n3")).start().await.unwrap();
    stays_outside(&inside, forger, "unknown_ca", RefusedReason::UnknownCa).await;

    let other = Authority::from_pem(ours.ca_pem(), &ours.key_pem()).unwrap();
    let namesake =
        joiner("shop", "n1", &[&inside[1]]).identity(identity(&other, "n1")).start().await.unwrap();
    until("a second holder of a node id is told", || namesake.conflict().is_some()).await;
    namesake.shutdown(Duration::from_secs(1)).await;
    for node in inside {
        node.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn gossip_brings_nobody_back_who_is_denied() {
    let authority = Authority::generate("shop").unwrap();
    let start = async |id: &str, seeds: &[&Node]| {
        joiner("shop", id, seeds).identity(identity(&authority, id)).start().await.unwrap()
    };
    let strict = start("n1", &[]).await;
    let open = start("n2", &[&strict]).await;
    let met = start("n3", &[&strict, &open]).await;
    until("all are members", || [&strict, &open, &met].iter().all(|node| node.members().len() == 3)).await;
    strict.set_denied(&["n3".to_owned(), "n4".to_owned()]);
    let later = start("n4", &[&open]).await;
    let state = |of: &Node, id| member(of, id).map(|member| member.state);
    until("others hear both", || ["n3", "n4"].iter().all(|id| state(&open, id) == Some(State::Live))).await;
    until("one that was met is lost", || state(&strict, "n3") == Some(State::Lost)).await;
    // Several rounds of gossip with somebody who is there, and knows both.
    for_a_while(Duration::from_secs(2)).await;
    assert_eq!((state(&strict, "n3"), state(&strict, "n4")), (Some(State::Lost), None));
    let others = || [state(&strict, "n2"), state(&open, "n3"), state(&open, "n4")];
    until("all others are heard", || others().iter().all(|state| *state == Some(State::Live))).await;
    for node in [later, met, open, strict] {
        node.shutdown(Duration::from_secs(1)).await;
    }
}
