//! A node that does not belong to the cluster.

use std::time::Duration;

use tidings::{Node, NotReady, RefusedReason};
use tidings_transport::Authority;

use crate::common::{PATIENCE, fill, for_a_while, identity, joiner, open_on, until};

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
    assert!(caches.iter().all(|cache| cache.contains(&"kept".to_owned())), "its change was heard");
    assert!(inside.iter().all(|node| node.members().len() == 2), "it is a member");
    assert_eq!(outsider.members().len(), 1);
    let refused: u64 = inside.iter().map(|node| node.transport_stats().refused(counted)).sum();
    let refuses = outsider.transport_stats().refused(counted);
    assert!(refused + refuses > 0, "counted nowhere");
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
