//! What the transport asks of the node: what it says of itself, whom it admits, and what it makes of refusals.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tidings_membership::Inbound;
use tidings_proto::follower::Follower;
use tidings_proto::frame::{Hello, PROTOCOL_VERSION, Refusal};
use tidings_proto::hash::HASH_VERSION;
use tidings_proto::id::Origin;
use tidings_proto::time::Tick;
use tidings_transport::session;
use tidings_transport::{CloseCode, Host, Link, SessionFuture, concede};

use super::{Bus, Conflict, Face, MET_MAX, origin_of, record_of};
use crate::observe::Observation;

impl Bus {
    /// Whether another process has this node's place: its own life is over, and is there to be followed to its end.
    pub(crate) fn is_former(&self) -> bool {
        self.former.load(Ordering::Acquire)
    }

    /// Whether another process has this node's place, and nothing that was done here is followed: it takes no part.
    fn is_aside(&self) -> bool {
        self.conflict.borrow().is_some() && !self.is_former()
    }

    /// Its own life is over, and not to be followed: peers give it up, with a floor.
    pub(crate) fn ends_unfollowed(&self) {
        self.former.store(false, Ordering::Release);
    }

    /// Whether a life has said goodbye and everything it did is applied.
    fn has_ended(&self, origin: &Origin) -> bool {
        let followed = self.coherence.peer(origin).and_then(|peer| peer.followed);
        followed.is_some_and(|followed| followed.with(Follower::ended))
    }
}

impl Host for Face {
    fn hello(&self) -> Hello {
        let mut hello = Hello {
            protocols: (PROTOCOL_VERSION, PROTOCOL_VERSION),
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            incarnation: self.origin().incarnation,
            log: self.log_id,
            hash_version: HASH_VERSION,
            lanes: self.domain.log().lanes(),
            address: self.address(),
            zone: self.zone.clone(),
            release: crate::RELEASE.to_owned(),
            wall_ms: self.domain.clock().wall_ms(),
            age_ms: self.age_ms(),
            members: self.coherence.members().borrow().as_ref().clone(),
        };
        if self.is_former() {
            concede(&mut hello);
        }
        hello
    }

    fn follows_to_the_end(&self, hello: &Hello) -> bool {
        let origin = origin_of(hello);
        // Of this node's own id only another process's earlier life can be over.
        let namesake = hello.node == self.node;
        let own = namesake && (hello.log == self.log_id || hello.incarnation >= self.origin().incarnation);
        let leaves = self.is_former() || self.goodbye.borrow().is_some();
        if own || leaves || self.has_ended(&origin) || !self.coherence.is_credible(hello.incarnation) {
            return false;
        }
        // What another process did under the number of a life that was met is not that life's.
        let met = self.met.lock().get(&hello.node).copied();
        let another = met.is_some_and(|(life, log)| life == hello.incarnation && log != hello.log);
        if another || self.coherence.crowded(hello).is_some() {
            return false;
        }
        self.coherence.conceded(hello);
        true
    }

    fn is_over(&self) -> bool {
        self.is_former()
    }

    fn takes_part(&self) -> bool {
        !self.is_aside()
    }

    fn admit(&self, hello: &Hello) -> Result<(), Refusal> {
        if self.is_former() {
            if let Some(newest) = self.coherence.crowded(hello) {
                return Err(Refusal::Incarnation(newest));
            }
            // Whoever is there follows this life to its end, its successor too.
            self.coherence.met(hello);
            return Ok(());
        }
        if hello.node == self.node {
            return Err(Refusal::DuplicateNode { node: self.node.clone(), address: self.address() });
        }
        if self.goodbye.borrow().is_some() || self.is_aside() {
            return Err(Refusal::Leaving);
        }
        // A life that has said goodbye is over.
        if self.has_ended(&origin_of(hello)) {
            return Err(Refusal::Leaving);
        }
        // A life that is over by another one's proof would be followed and never be relevant.
        if let Some(newest) = self.coherence.newest_life(&hello.node).filter(|life| *life > hello.incarnation)
        {
            return Err(Refusal::Incarnation(newest));
        }
        if let Some(newest) = self.coherence.crowded(hello) {
            return Err(Refusal::Incarnation(newest));
        }
        let mut met = self.met.lock();
        match met.get(&hello.node) {
            Some((incarnation, log)) if *log != hello.log && *incarnation >= hello.incarnation => {
                return Err(Refusal::Incarnation(*incarnation));
            }
            _ => {}
        }
        let former = met.insert(hello.node.clone(), (hello.incarnation, hello.log));
        if met.len() > MET_MAX
            && let Some((oldest, _)) = met.iter().min_by_key(|(_, (incarnation, _))| *incarnation)
        {
            let oldest = oldest.clone();
            met.remove(&oldest);
        }
        drop(met);
        if let Some((incarnation, _)) = former.filter(|(_, log)| *log != hello.log) {
            let origin = Origin { node: hello.node.clone(), incarnation };
            self.coherence.replaced(origin, hello.address);
        }
        self.coherence.met(hello);
        self.canary.contacted(self.domain.clock().now());
        self.linked(record_of(hello));
        self.named.notify_one();
        Ok(())
    }

    fn refused(&self, address: SocketAddr, refusal: &Refusal) {
        match refusal {
            // It has no further life.
            Refusal::Incarnation(_) if self.is_former() => {}
            Refusal::Incarnation(known) if !self.coherence.is_credible(*known) => {
                tracing::warn!(%address, %known, "a peer claims to know a life of this node of the far future");
            }
            Refusal::Incarnation(known) => self.wants_incarnation(known.next()),
            // Whether that is so, its holder's certificate decides.
            Refusal::DuplicateNode { node, address: holder } if *node == self.node => {
                *self.holder.lock() = Some(*holder);
                self.named.notify_one();
            }
            _ => {}
        }
        self.observers.tell(Observation::Refused { address, refusal: refusal.clone() });
    }

    fn displaced(&self, holder: SocketAddr) {
        let conflict = Conflict::DuplicateNode { node: self.node.clone(), address: holder };
        self.domain.supersede();
        self.coherence.displaced();
        // Of one that nobody has ever followed nothing counts, and nothing is missed.
        if self.coherence.was_heard() {
            self.former.store(true, Ordering::Release);
        }
        self.conflict.send_replace(Some(conflict));
        if self.is_aside()
            && let Some(transport) = self.transport()
        {
            // Whoever has let it in meanwhile takes it for the holder.
            transport.close_links(CloseCode::Ended, "displaced");
        }
    }

    fn session(&self, link: Arc<Link>) -> SessionFuture {
        let bus = self.clone();
        Box::pin(async move {
            if link.presented() != bus.origin().incarnation {
                return link.close(CloseCode::Ended, "renumbered");
            }
            if bus.is_aside() {
                return link.close(CloseCode::Ended, "displaced");
            }
            let _session = bus.0.session_begins(link.peer());
            session::run(link, Arc::new(bus.clone())).await;
        })
    }

    fn gossip(&self, peer: &Hello, frame: Bytes) {
        if let Some(sender) = &*self.gossip.lock() {
            let inbound = Inbound { node: peer.node.clone(), address: peer.address, frame };
            // Gossip may be lost.
            let _ = sender.try_send(inbound);
        }
    }

    fn now(&self) -> Tick {
        self.domain.clock().now()
    }
}
