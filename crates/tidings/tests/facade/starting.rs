//! What a node that cannot start says.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};

use tidings::{Node, NodeBuilder, StartError};
use tidings_transport::{Authority, BindError};

use crate::common::identity;

/// Starts a node that must not start, on a port that must be free afterwards.
async fn refused(builder: NodeBuilder) -> StartError {
    let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = builder.listen(listen).start().await.expect_err("it cannot start");
    UdpSocket::bind(listen).expect("nothing is left behind");
    tidings_facts::note("G17", format!("does not start: {}", text(&error)));
    error
}

fn text(error: &StartError) -> String {
    let causes = std::iter::successors(Some(error as &dyn Error), |error| (*error).source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn names_that_cannot_be_are_refused() {
    for builder in [Node::builder(""), Node::builder("shop").node_id("a b"), Node::builder("a/b")] {
        let error = refused(builder).await;
        assert!(matches!(error, StartError::Name(_)), "{error:?}");
    }
}

#[tokio::test]
async fn seeds_that_cannot_be_are_refused() {
    let error = refused(Node::builder("shop").node_id("n1").seeds(["n1"])).await;
    assert!(matches!(error, StartError::Membership(_)), "{error:?}");
    assert!(text(&error).contains("n1"), "{error:?}");
}

#[tokio::test]
async fn another_nodes_identity_is_refused() {
    let authority = Authority::generate("shop").unwrap();
    let builder = Node::builder("shop").node_id("n1").identity(identity(&authority, "n2"));
    let error = refused(builder).await;
    assert!(matches!(error, StartError::Bind(BindError::Identity(_))), "{error:?}");
    let error = refused(Node::builder("other").node_id("n2").identity(identity(&authority, "n2"))).await;
    assert!(matches!(error, StartError::Bind(_)), "{error:?}");
}

#[tokio::test]
async fn an_advertised_address_that_does_not_resolve_is_named() {
    let error = refused(Node::builder("shop").node_id("n1").advertise("nowhere.invalid:1")).await;
    assert!(matches!(error, StartError::Advertise { .. }), "{error:?}");
    assert!(error.to_string().contains("nowhere.invalid:1"));
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = Node::builder("shop").node_id("n1").listen(address).start().await.expect_err("it is taken");
    assert!(matches!(error, StartError::Bind(BindError::Socket { .. })), "{error:?}");
    assert!(text(&error).contains(&address.to_string()));
}

#[tokio::test]
async fn an_unspecified_address_needs_one_to_be_advertised() {
    let authority = Authority::generate("shop").unwrap();
    let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let builder = || Node::builder("shop").node_id("n1").identity(identity(&authority, "n1")).listen(any);
    let error = builder().start().await.expect_err("nobody could dial it");
    let StartError::Unspecified(address) = error else { panic!("{error:?}") };
    UdpSocket::bind(address).expect("nothing is left behind");
    let node = builder().advertise("127.0.0.1:7400").start().await.expect("peers know where it is");
    assert_eq!(node.address(), "127.0.0.1:7400".parse().unwrap());
}

#[tokio::test]
async fn a_development_identity_is_for_loopback_only() {
    let error = Node::builder("shop").node_id("n1").listen("0.0.0.0:0".parse().unwrap()).start().await;
    assert!(matches!(error, Err(StartError::Bind(BindError::DevelopmentNotLoopback(_)))), "{error:?}");
}
