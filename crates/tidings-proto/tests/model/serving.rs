//! A node as an origin: it answers requests and probes, sends what its log says, and leaves cleanly.

use bytes::Bytes;
use tidings_proto::frame::{Control, Follow, FrameType, Heartbeat, header};
use tidings_proto::id::{Origin, Sequence};
use tidings_proto::log::{Answer, Cursor, Read};

use super::net::{Channel, Envelope, Flow, StreamKey};
use super::process::{Outgoing, index_of, origin_of};
use super::world::{Task, World};
use super::{Bug, Ms};

/// Frames of a stream that may be under way: little, so that a slow link overruns the log.
const WINDOW_FRAMES: usize = 3;

/// Bytes that a sender takes from the log at once.
const READ_BYTES: usize = 200;

impl World {
    fn stream_of(&self, envelope: &Envelope) -> (StreamKey, usize) {
        let Channel::Lane { lane, tag } = envelope.channel else { panic!("a lane's frame elsewhere") };
        (StreamKey { peer: origin_of(envelope.from), lane }, tag)
    }

    pub(crate) fn on_follow(&mut self, envelope: &Envelope, follow: &Follow) {
        let node = envelope.to;
        let (key, tag) = self.stream_of(envelope);
        let process = self.process(node);
        let newer = process.streams.get(&key).is_none_or(|stream| tag > stream.tag);
        if follow.incarnation != process.me.incarnation || !newer || !process.peers.contains_key(&key.peer) {
            return;
        }
        let (cursor, answer) = match process.log.resume(follow.lane, follow.from) {
            Answer::Resume(cursor) => (cursor, Control::Resume(cursor.next)),
            Answer::Reset(cursor) => (cursor, Control::Reset(cursor.next)),
        };
        let waker = process.waker(&key);
        let stream = Outgoing { tag, cursor, in_flight: 0, waker, acked: 0 };
        process.streams.insert(key.clone(), stream);
        self.send(node, &key.peer, Channel::Lane { lane: key.lane, tag }, &answer);
        self.pump(node, &key);
    }

    /// What a sender task does when it is woken: reads on while its window has room.
    pub(crate) fn pump(&mut self, node: usize, key: &StreamKey) {
        let lane = self.lanes.lane(key.lane).expect("a lane");
        loop {
            let process = self.process(node);
            let Some(stream) = process.streams.get_mut(key) else { return };
            if stream.in_flight >= WINDOW_FRAMES {
                return;
            }
            let (channel, mut batches) = (Channel::Lane { lane: key.lane, tag: stream.tag }, Vec::new());
            let mut cursor = Cursor { next: stream.cursor.next };
            process.log.listen(lane, &stream.waker);
            let got = process.log.read(lane, &mut cursor, READ_BYTES, &mut batches);
            stream.cursor = cursor;
            stream.in_flight += batches.len();
            let tag = stream.tag;
            match got {
                Read::Some => {}
                Read::Overrun(head) => self.send(node, &key.peer, channel, &Control::Reset(head)),
                Read::Empty | Read::End => return,
            }
            for batch in batches {
                self.note(|| {
                    format!("n{node} -> {} {channel:?} Events {}..{}", key.peer, batch.first, batch.next())
                });
                let head = batch.head();
                let head = [&header(FrameType::Events, head.len() + batch.records.len())[..], &head].concat();
                let bytes = Bytes::from([&head[..], &batch.records].concat());
                let sender = (node, self.nodes[node].life);
                let flow = Flow { sender, key: key.clone(), tag };
                let (to, life) = (index_of(&key.peer.node), Some(key.peer.incarnation.0));
                self.transmit(node, to, life, channel, bytes, Some(flow));
            }
        }
    }

    /// A frame has gone: its sender's window has room again.
    pub(crate) fn release(&mut self, flow: &Flow) {
        if !self.runs(flow.sender) {
            return;
        }
        let stream = self.process(flow.sender.0).streams.get_mut(&flow.key);
        if let Some(stream) = stream.filter(|stream| stream.tag == flow.tag) {
            stream.in_flight -= 1;
            self.task(flow.sender.0, 0, Task::Pump(flow.key.clone()));
        }
    }

    /// Lets the senders run that an append has woken.
    pub(crate) fn pump_woken(&mut self, node: usize) {
        let woken = std::mem::take(&mut *self.process(node).woken.lock().expect("no panic under it"));
        for key in woken {
            let delay = self.rng.range(0, 3);
            self.task(node, delay, Task::Pump(key));
        }
    }

    pub(crate) fn on_probe(&mut self, envelope: &Envelope, number: u64) {
        let (node, peer) = (envelope.to, origin_of(envelope.from));
        let (newest, answering) = self.process(node).probes.entry(peer.clone()).or_insert((0, false));
        *newest = number.max(*newest);
        if !std::mem::replace(answering, true) {
            let delay = self.rng.range(0, 4);
            self.task(node, delay, Task::Heartbeat(peer));
        }
    }

    /// Answers the newest probe that was read *before* the heads.
    pub(crate) fn heartbeat(&mut self, node: usize, peer: &Origin) {
        let bug = self.bug;
        let process = self.process(node);
        let Some((echo, answering)) = process.probes.get_mut(peer) else { return };
        *answering = false;
        let heads = match bug {
            Some(Bug::HeadsBeforeProbe) => process.old_heads.clone(),
            _ => process.log.heads(),
        };
        let heartbeat = Heartbeat { echo: *echo, members: process.members_version, heads };
        self.send(node, peer, Channel::Control, &Control::Heartbeat(heartbeat));
    }

    pub(crate) fn on_ack(&mut self, envelope: &Envelope, applied: Sequence) {
        let (key, tag) = self.stream_of(envelope);
        if let Some(stream) = self.process(envelope.to).streams.get_mut(&key)
            && stream.tag == tag
        {
            stream.acked = stream.acked.max(applied);
        }
    }

    /// Seals when no write is open, says goodbye when all members have everything, gives up at the deadline.
    pub(crate) fn leave_if_done(&mut self, node: usize) {
        let now = self.now;
        let lanes = self.lanes;
        let process = self.process(node);
        let Some(deadline) = process.leaving else { return };
        if process.open_writes == 0 && process.sealed.is_none() {
            process.sealed = Some(process.log.seal());
            self.pump_woken(node);
        }
        let process = self.process(node);
        let Some(heads) = process.sealed.clone() else { return self.give_up_at(node, deadline) };
        let has_all = |peer: &Origin| {
            lanes.ids().zip(&heads).all(|(lane, head)| {
                let key = StreamKey { peer: peer.clone(), lane: lane.number() };
                process.streams.get(&key).is_some_and(|stream| stream.acked >= *head)
            })
        };
        let peers: Vec<Origin> = process.peers.keys().cloned().collect();
        if !peers.iter().all(has_all) {
            return self.give_up_at(node, deadline);
        }
        if !std::mem::replace(&mut process.goodbye_said, true) {
            for peer in peers {
                self.send(node, &peer, Channel::Control, &Control::Goodbye(heads.clone()));
                self.send(node, &peer, Channel::Control, &Control::Goodbye(heads.clone()));
            }
            self.push_of(node, now + 100, Task::Exit);
        }
    }

    fn give_up_at(&mut self, node: usize, deadline: Ms) {
        if self.now > deadline {
            self.end(node, false);
        }
    }
}
