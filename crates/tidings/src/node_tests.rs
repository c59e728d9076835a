use tidings_membership::Reason;
use tidings_transport::{Authority, NODE_VALIDITY};

use super::*;

/// How long what a node leaves behind may take to go.
const PATIENCE: Duration = Duration::from_secs(60);

async fn freed(bus: &std::sync::Weak<Bus>) -> bool {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while bus.strong_count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bus.upgrade().is_none()
}

#[tokio::test]
async fn a_node_that_is_gone_holds_no_memory() {
    for shut_down in [true, false] {
        let first = Node::builder("shop").node_id("n1").start().await.unwrap();
        let seed = first.address().to_string();
        let second = Node::builder("shop").node_id("n2").seeds([seed]).start().await.unwrap();
        second.ready(PATIENCE).await.unwrap();
        let buses = [&first, &second].map(|node| Arc::downgrade(&node.inner.bus));
        if shut_down {
            for node in [&second, &first] {
                node.shutdown(PATIENCE).await;
            }
        }
        drop((first, second));
        for bus in &buses {
            assert!(freed(bus).await, "shut down: {shut_down}, held {} times", bus.strong_count());
        }
    }
}

#[tokio::test]
async fn a_node_that_was_only_told_of_others_is_not_ready() {
    let nowhere = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = nowhere.local_addr().unwrap();
    let node = Node::builder("shop").node_id("n2").seeds([address.to_string()]).start().await.unwrap();
    let origin = Origin { node: NodeId::new("n1").unwrap(), incarnation: Incarnation(1) };
    let (zone, release) = (String::new(), String::new());
    let record = tidings_membership::Record { origin: origin.clone(), address, zone, release };
    // Named, and let go again, as one whose handshake is refused after its names were read.
    node.bus().membership().unwrap().link_up(record);
    node.bus().membership().unwrap().link_down(&origin);
    until("it is not heard", || node.members().iter().any(|member| member.state == State::Suspect)).await;
    let NotReady::Waiting { reasons } = node.readiness().unwrap_err() else { panic!("no conflict is known") };
    assert!(reasons.iter().any(|reason| reason == "no seed has been reached"), "{reasons:?}");
}

/// The authorities' certificates and a node's own, in PEM form.
fn issued(trusted: &[&Authority], by: &Authority, node: &str) -> [String; 3] {
    let roots: String = trusted.iter().map(|authority| authority.ca_pem()).collect();
    let issued = by.issue(&NodeId::new(node).unwrap(), &[], NODE_VALIDITY).unwrap();
    [roots, issued.cert_pem, issued.key_pem]
}

async fn started([ca, cert, key]: &[String; 3], id: &str, seeds: &[&Node]) -> Node {
    let builder = Node::builder("shop").node_id(id).identity(Identity::from_pem(ca, cert, key).unwrap());
    let seeds = seeds.iter().map(|node| node.address().to_string());
    builder.gossip_interval(Duration::from_millis(100)).seeds(seeds).start().await.unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn after_a_reload_gossip_carries_what_the_new_certificate_has_signed() {
    let (old, new) = (Authority::generate("shop").unwrap(), Authority::generate("shop").unwrap());
    let both = [&old, &new];
    let first = started(&issued(&both, &old, "n1"), "n1", &[]).await;
    let second = started(&issued(&both, &new, "n2"), "n2", &[&first]).await;
    until("linked", || first.members().len() == 2 && second.members().len() == 2).await;
    let [ca, cert, key] = issued(&both, &new, "n1");
    first.identity().reload_pem(&ca, &cert, &key).unwrap();
    // It trusts the new authority alone, and hears of the first node from the second.
    let third = started(&issued(&[&new], &new, "n3"), "n3", &[&second]).await;
    let gossip = || third.inner.bus.membership().unwrap().stats().received();
    until("it is a member", || third.members().len() == 3).await;
    let before = gossip();
    until("records came by gossip", || gossip() > before + 30).await;
    // What was signed before may still be on its way. It does not go on.
    let forged = || third.inner.bus.membership().unwrap().stats().rejected(Reason::Forged);
    let mut changed = (forged(), gossip());
    until("gossip goes on without it", move || {
        if forged() != changed.0 {
            changed = (forged(), gossip());
        }
        gossip() > changed.1 + 60
    })
    .await;
    for node in [third, second, first] {
        node.shutdown(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_member_whose_link_membership_does_not_know_of_is_live_once_it_is_heard_on_it() {
    let first = Node::builder("shop").node_id("n1").start().await.unwrap();
    let seed = first.address().to_string();
    let second = Node::builder("shop").node_id("n2").seeds([seed]).start().await.unwrap();
    second.ready(PATIENCE).await.unwrap();
    let membership = first.inner.bus.membership().unwrap();
    let origin = second.origin();
    let state = || membership.view().life(&origin).map(|member| member.state);
    until("linked and heard by gossip", || {
        membership.stats().received() > 10 && state() == Some(State::Live)
    })
    .await;
    let links = || first.transport_stats().links_opened.get();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let before = links();
        // The next heartbeat may come before this looks.
        until("its link is not known", || {
            membership.link_down(&origin);
            state() != Some(State::Live)
        })
        .await;
        until("heard", || state() == Some(State::Live)).await;
        // Unless the machine stood still, and the link was lost.
        if links() == before {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "only ever on another link than the one that it has");
    }
    for node in [second, first] {
        node.shutdown(PATIENCE).await;
    }
}
