//! A process that was stopped, or cut off, while another one took its node id, and that comes back.

use std::time::Duration;

use tidings::{Identity, Node, NodeBuilder, NodeId, WriteError};
use tidings_transport::{Authority, NODE_VALIDITY, inspect};

use crate::common::{PATIENCE, fill, member, open_on, until};

/// So long that whoever comes back is followed to its end before its end costs a floor, however busy the machine is.
const LONG_BOUND: Duration = Duration::from_secs(10);

/// An identity of a node, and the serial number of its certificate.
fn issued(authority: &Authority, node: &str) -> (Identity, String) {
    let issued = authority.issue(&NodeId::new(node).unwrap(), &[], NODE_VALIDITY).unwrap();
    let identity = Identity::from_pem(authority.ca_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
    (identity, inspect(&issued.cert_pem).unwrap().serial)
}

fn builder(id: &str, identity: Identity, seeds: &[&Node]) -> NodeBuilder {
    Node::builder("shop")
        .node_id(id)
        .identity(identity)
        .write_horizon(Duration::ZERO)
        .gossip_interval(Duration::from_millis(200))
        .max_staleness(LONG_BOUND)
        .seeds(seeds.iter().map(|node| node.address().to_string()))
}

fn settled(nodes: &[&Node]) -> bool {
    nodes.iter().all(|node| {
        let members = node.members();
        members.len() == nodes.len() && members.iter().all(|it| it.synced()) && node.doubts().is_empty()
    })
}

#[tokio::test]
async fn what_a_replaced_life_did_last_is_followed_to_its_end_and_costs_nobody_a_fence() {
    let authority = Authority::generate("shop").unwrap();
    let first = builder("n1", issued(&authority, "n1").0, &[]).start().await.unwrap();
    let second = builder("n2", issued(&authority, "n2").0, &[&first]).start().await.unwrap();
    let (identity, serial) = issued(&authority, "n3");
    let former = builder("n3", identity, &[&first, &second]).start().await.unwrap();
    until("all are in step", || settled(&[&first, &second, &former])).await;
    let forgotten = open_on(&former);

    let (identity, next) = issued(&authority, "n3");
    former.set_denied(&["n1".to_owned(), "n2".to_owned(), next]);
    [&first, &second].iter().for_each(|node| node.set_denied(std::slice::from_ref(&serial)));
    until("nobody hears it", || {
        [&first, &second].iter().all(|node| member(node, "n3").unwrap().rtt.is_none())
    })
    .await;
    let successor = builder("n3", identity, &[&first, &second]).denied([serial]).start().await.unwrap();
    until("its successor is in step", || settled(&[&first, &second, &successor])).await;
    assert!(successor.origin().incarnation > former.origin().incarnation);
    let nodes = [&first, &second, &successor];
    let caches = nodes.map(open_on);
    fill(&caches, "changed", 1).await;
    fill(&caches, "kept", 1).await;
    forgotten.insert("changed".to_owned(), 2).unwrap();
    assert!(former.conflict().is_none(), "nobody has told it");

    [&former, &first, &second, &successor].iter().for_each(|node| node.set_denied(&[]));
    until("it is told", || former.conflict().is_some()).await;
    let refused = forgotten.insert("changed".to_owned(), 3);
    assert!(matches!(refused, Err(WriteError::Superseded)), "{refused:?}");
    let key = "changed".to_owned();
    until("what it did has reached everybody", || caches.iter().all(|cache| cache.get(&key) != Some(1)))
        .await;
    until("doubt is over", || settled(&nodes)).await;
    for (node, cache) in nodes.iter().zip(&caches) {
        assert_eq!(cache.get(&"kept".to_owned()), Some(1), "{} lost what nobody changed", node.origin());
        let followed = node.following().into_iter().find(|it| it.origin == former.origin()).unwrap();
        assert_eq!((followed.applied, followed.resets), (1, 0), "{followed:?}");
    }
    assert!(former.shutdown(PATIENCE).await, "everybody has acknowledged what it did");
    for node in nodes {
        assert!(node.conflict().is_none() && node.readiness().is_ok(), "{:?}", node.readiness());
        node.shutdown(PATIENCE).await;
    }
}
