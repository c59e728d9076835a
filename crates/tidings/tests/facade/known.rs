//! Whether everybody knows of a node, so that what it changes counts everywhere.

use std::net::UdpSocket;
use std::time::Duration;

use tidings::{BeforeKnown, Node, WriteError, WriteThroughError};

use crate::common::{PATIENCE, joiner, open_on, quick, until};

#[tokio::test]
async fn a_node_may_refuse_changes_until_it_is_known() {
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let build = |id: &str| {
        let builder = Node::builder("shop").node_id(id).write_horizon(Duration::ZERO);
        builder.before_known(BeforeKnown::Refuse)
    };
    let late = build("late").seeds([address.to_string()]).start().await.unwrap();
    let numbers = open_on(&late);
    assert!(!late.is_known() && !late.known(Duration::ZERO).await);
    let refused = numbers.insert("k".to_owned(), 1);
    assert!(matches!(refused, Err(WriteError::NotKnown)), "{refused:?}");
    let mut ran = false;
    let write = || {
        ran = true;
        async { Ok::<_, ()>(1) }
    };
    let written = numbers.write_through(&"k".to_owned(), write).await;
    assert!(matches!(written, Err(WriteThroughError::Cache(WriteError::NotKnown))), "{written:?}");
    assert!(!ran, "what could not be told was not begun");
    assert_eq!((numbers.get(&"k".to_owned()), late.domain().events_published()), (None, 0));

    let first = build("first").listen(address).start().await.unwrap();
    assert!(first.is_known(), "it is alone");
    assert!(late.known(PATIENCE).await);
    assert!(late.unaware().is_empty());
    numbers.insert("k".to_owned(), 1).unwrap();
    numbers.write_through(&"k".to_owned(), || async { Ok::<_, ()>(2) }).await.unwrap();
    assert!(late.shutdown(PATIENCE).await && first.shutdown(PATIENCE).await);
}

#[tokio::test]
async fn who_is_named_and_cannot_be_reached_is_waited_for_only_while_somebody_hears_it() {
    let cluster = quick(2).await;
    let [first, cut_off] = cluster.nodes() else { unreachable!("two were started") };
    cut_off.set_denied(&["late".to_owned()]);
    let late = joiner(cluster[0].cluster(), "late", &[first]);
    let late = late.before_known(BeforeKnown::Refuse).start().await.unwrap();
    let numbers = open_on(&late);
    until("it hears of the one that does not know of it", || {
        late.unaware().iter().any(|origin| origin.node.as_str() == "n2")
    })
    .await;
    assert!(matches!(numbers.insert("k".to_owned(), 1), Err(WriteError::NotKnown)));
    // From now on nobody else hears it either.
    first.set_denied(&["n2".to_owned()]);
    assert!(late.known(PATIENCE).await, "{:?}", late.unaware());
    numbers.insert("k".to_owned(), 1).unwrap();
    cluster.shutdown().await;
}

#[tokio::test]
async fn a_node_that_does_not_refuse_changes_makes_them_at_once() {
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::builder("shop").node_id("n1").seeds([address.to_string()]).start().await.unwrap();
    assert!(!node.is_known());
    open_on(&node).insert("k".to_owned(), 1).unwrap();
    assert_eq!(node.domain().events_published(), 1);
    node.shutdown(Duration::ZERO).await;
}
