//! IPv6 and dual stack.

use std::net::{SocketAddr, UdpSocket};

use tidings::Node;
use tidings_transport::Authority;

use crate::common::{PATIENCE, fill, identity, joiner, open_on, until};

/// Both know each other by plain addresses, and a change on either evicts on the other.
async fn work_together(nodes: [&Node; 2]) {
    for node in nodes {
        until("both are members", || node.members().len() == 2).await;
        node.ready(PATIENCE).await.unwrap();
        assert!(node.fresh(PATIENCE).await, "{:?}", node.doubts());
        for member in node.members() {
            assert_eq!(member.address.ip(), member.address.ip().to_canonical(), "a mapped address");
        }
    }
    let caches = nodes.map(open_on);
    for (writer, key) in caches.iter().zip(["a", "b"]) {
        fill(&caches, key, 1).await;
        writer.remove(&key.to_owned()).unwrap();
        until("it is gone on both", || caches.iter().all(|cache| !cache.contains(&key.to_owned()))).await;
    }
}

#[tokio::test]
async fn nodes_on_ipv6_form_a_cluster() {
    let six = |id, seeds: &[&Node]| joiner("shop", id, seeds).listen("[::1]:0".parse().unwrap());
    let first = six("n1", &[]).start().await.unwrap();
    assert!(first.address().is_ipv6());
    let second = six("n2", &[&first]).start().await.unwrap();
    work_together([&first, &second]).await;
    for node in [first, second] {
        node.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_dual_stack_node_works_with_an_ipv4_one() {
    let authority = Authority::generate("shop").unwrap();
    let dual: SocketAddr = UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap();
    let reached = SocketAddr::new("127.0.0.1".parse().unwrap(), dual.port());
    let first = joiner("shop", "n1", &[]).listen(dual).advertise(reached.to_string());
    let first = first.identity(identity(&authority, "n1")).start().await.unwrap();
    assert_eq!(first.address(), reached);
    let second = joiner("shop", "n2", &[&first]).identity(identity(&authority, "n2")).start().await.unwrap();
    assert!(second.address().is_ipv4());
    work_together([&first, &second]).await;
    for node in [first, second] {
        node.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_dual_stack_node_works_with_an_ipv6_one() {
    let authority = Authority::generate("shop").unwrap();
    let dual: SocketAddr = UdpSocket::bind("[::]:0").unwrap().local_addr().unwrap();
    let reached = SocketAddr::new("::1".parse().unwrap(), dual.port());
    let first = joiner("shop", "n1", &[]).listen(dual).advertise(reached.to_string());
    let first = first.identity(identity(&authority, "n1")).start().await.unwrap();
    let second = joiner("shop", "n2", &[&first]).identity(identity(&authority, "n2"));
    let second = second.listen("[::1]:0".parse().unwrap()).start().await.unwrap();
    work_together([&first, &second]).await;
    for node in [first, second] {
        node.shutdown(PATIENCE).await;
    }
}
