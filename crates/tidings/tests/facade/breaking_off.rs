//! Peers that break off while they follow the former life of a node, which that serves from its log files.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tempfile::TempDir;
use tidings::{Identity, Incarnation, Lanes, Node, Origin, Refusal, RefusedReason, Tick};
use tidings_proto::frame::{Hello, MemberSet, NamedMember, PROTOCOL_VERSION};
use tidings_proto::hash::HASH_VERSION;
use tidings_proto::id::LogId;
use tidings_transport::{CloseCode, Config, Host, Link, SessionFuture, Transport};

use crate::common::{PATIENCE, until};
use crate::log_files::{SHORT_BOUND, builder, start_in, start_lock};

/// A peer that takes part in nothing, names a former life of a node as one that is there, and ends each connection on
/// which that comes with the next of these codes. Then it refuses it.
struct Brief {
    former: Origin,
    address: OnceLock<SocketAddr>,
    ends: Mutex<VecDeque<CloseCode>>,
}

impl Brief {
    fn start(former: Origin, ends: &[CloseCode]) -> (Transport, SocketAddr) {
        let ends = Mutex::new(ends.iter().copied().collect());
        let host = Arc::new(Self { former, address: OnceLock::new(), ends });
        let config = Config {
            cluster: "log-files".to_owned(),
            node: "n1".parse().expect("a good name"),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            identity: Identity::development(),
            denied: Vec::new(),
        };
        let transport = Transport::bind(config, host.clone()).expect("a port is free");
        let address = *host.address.get_or_init(|| transport.local_addr());
        (transport, address)
    }

    fn next_end(&self, hello: &Hello) -> Option<CloseCode> {
        let of_former = hello.incarnation == self.former.incarnation;
        if of_former { self.ends.lock().expect("nothing panics").pop_front() } else { None }
    }
}

impl Host for Brief {
    fn hello(&self) -> Hello {
        let address = *self.address.get().expect("nobody comes before it is known");
        let former = NamedMember { origin: self.former.clone(), address, ended: false };
        Hello {
            protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            cluster: "log-files".to_owned(),
            node: "n1".parse().expect("a good name"),
            incarnation: Incarnation(1),
            log: LogId(1),
            hash_version: HASH_VERSION,
            lanes: Lanes::default(),
            address,
            zone: String::new(),
            release: "test".to_owned(),
            wall_ms: 0,
            age_ms: 0,
            members: MemberSet { version: 1, members: vec![former] },
        }
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.incarnation != self.former.incarnation {
            return Ok(());
        }
        Err(Refusal::DuplicateNode { node: hello.node.clone(), address: hello.address })
    }

    fn refused(&self, _address: SocketAddr, _refusal: &Refusal) {}

    fn follows_to_the_end(&self, _hello: &Hello) -> bool {
        !self.ends.lock().expect("nothing panics").is_empty()
    }

    fn session(&self, link: Arc<Link>) -> SessionFuture {
        let end = self.next_end(link.peer());
        Box::pin(async move {
            if let Some(code) = end {
                let mut control = link.take_control().expect("nobody else takes it");
                // Once the other side speaks, it has read the hello.
                drop(control.1.recv().await);
                link.close(code, "");
            }
            drop(link.closed().await);
        })
    }

    fn gossip(&self, _peer: &Hello, _frame: Bytes) {}

    fn now(&self) -> Tick {
        Tick(1)
    }
}

/// The next life of a node, and a peer of it that ends the connections of the former so.
async fn met_by_one_who_ends(ends: &[CloseCode]) -> (Node, Transport, TempDir) {
    let directory = TempDir::new().expect("a directory");
    let former = start_in(directory.path(), SHORT_BOUND, &[]).await;
    let (peer, address) = Brief::start(former.origin(), ends);
    drop(former);
    drop(start_lock(directory.path()).await);
    let next = builder("n3", SHORT_BOUND, &[]).seeds([address.to_string()]).log_dir(directory.path());
    (next.start().await.expect("it starts"), peer, directory)
}

#[tokio::test]
async fn who_breaks_off_has_not_followed_a_former_life_and_is_served_again() {
    let ends = [CloseCode::Ended, CloseCode::Shutdown, CloseCode::Followed];
    let (next, peer, _directory) = met_by_one_who_ends(&ends).await;
    until("it has followed it", || next.log_files().is_some_and(|files| files.followed == 1)).await;
    next.shutdown(PATIENCE).await;
    assert_eq!(peer.stats().refused(RefusedReason::DuplicateNode), 0, "it is dialled no more");
    peer.close(PATIENCE).await;
}

#[tokio::test]
async fn who_breaks_off_and_refuses_a_former_life_then_has_not_followed_it() {
    let (next, peer, _directory) = met_by_one_who_ends(&[CloseCode::Ended]).await;
    until("it is refused", || peer.stats().refused(RefusedReason::DuplicateNode) > 0).await;
    next.shutdown(PATIENCE).await;
    assert_eq!(next.log_files().expect("it has some").followed, 0);
    peer.close(PATIENCE).await;
}
