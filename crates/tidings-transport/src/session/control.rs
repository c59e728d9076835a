//! Probes, heartbeats, member sets and goodbyes.

use std::sync::Arc;

use tidings_proto::follower::Rejected;
use tidings_proto::frame::{Control, Heartbeat};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::{Followed, Peering, SessionError};
use crate::control::{ControlReceiver, ControlSender};
use crate::link::Link;

/// Sends what this node has to say. `probes` holds the newest probe of the peer's.
pub(super) async fn send(
    link: &Link,
    node: &dyn Peering,
    followed: &Followed,
    mut control: ControlSender,
    mut probes: watch::Receiver<u64>,
) -> Result<(), SessionError> {
    let mut interval = tokio::time::interval(node.probe_interval());
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut members, mut caches, mut goodbye) = (node.members(), node.caches(), node.goodbye());
    // A value that was set before this link came up has to be sent as well.
    members.mark_changed();
    caches.mark_changed();
    goodbye.mark_changed();
    loop {
        let frame = tokio::select! {
            biased;
            changed = probes.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                // The order is part of the protocol: the probe, then the member set's version, then the heads.
                let echo = *probes.borrow_and_update();
                let version = members.borrow().version;
                Control::Heartbeat(Heartbeat { echo, members: version, heads: node.log().heads() })
            }
            _ = interval.tick() => probe(node, followed),
            () = link.probe_wanted() => probe(node, followed),
            Ok(()) = members.changed() => Control::Members(members.borrow_and_update().as_ref().clone()),
            Ok(()) = goodbye.changed() => match goodbye.borrow_and_update().clone() {
                Some(heads) => Control::Goodbye(heads),
                None => continue,
            },
            Ok(()) = caches.changed() => Control::Caches(caches.borrow_and_update().as_ref().clone()),
        };
        control.send(&frame).await?;
    }
}

fn probe(node: &dyn Peering, followed: &Followed) -> Control {
    // The clock is read before the probe is sent: what it confirms can only be older than it says.
    let now = node.now();
    Control::Probe(followed.state.lock().probe(now))
}

/// Takes what the peer has to say.
pub(super) async fn receive(
    link: &Link,
    node: &dyn Peering,
    followed: &Arc<Followed>,
    mut control: ControlReceiver,
    probed: watch::Sender<u64>,
) -> Result<(), SessionError> {
    loop {
        let frame = control.recv().await?;
        link.heard(node.now());
        match frame {
            Control::Probe(number) => {
                let _ = probed.send(number);
            }
            Control::Heartbeat(heartbeat) => {
                let answered = followed.state.lock().on_heartbeat(&heartbeat);
                match answered {
                    Ok(probed) => link.echoed(probed),
                    // Two links to one node share its probes: the other one's answer came first.
                    Err(Rejected::Stale) => {}
                    Err(error) => return Err(error.into()),
                }
                followed.progressed(node);
            }
            Control::Members(members) => node.members_of(followed.origin(), &members),
            Control::Caches(names) => node.caches_of(followed.origin(), names),
            Control::Goodbye(heads) => {
                followed.state.lock().on_goodbye(heads)?;
                node.said_goodbye(followed.origin());
                followed.progressed(node);
            }
            Control::Hello(_) | Control::Refused(_) => {
                return Err(SessionError::Unexpected("handshake frame"));
            }
            Control::Follow(_) | Control::Resume(_) | Control::Reset(_) | Control::Ack(_) => {
                return Err(SessionError::Unexpected("lane frame on the control stream"));
            }
        }
    }
}
