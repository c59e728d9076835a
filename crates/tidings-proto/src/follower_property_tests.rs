//! Any order of frames that several connections can produce, against a plain record of what happened.

use proptest::prelude::*;

use super::{lane as lane_id, *};

#[derive(Clone, Debug)]
enum Frame {
    Resume(Sequence),
    Reset(Sequence),
    Events(Sequence, u32),
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Forget(u8),
    Probe,
    /// The origin answers its newest probe; the answer may be delivered at any later time, or never.
    Answer,
    Heartbeat(prop::sample::Index),
    Follow(u8),
    /// The origin sends up to this many events to the newest request.
    Send(u8, u32),
    /// A frame is delivered, in order within its request.
    Deliver(u8),
    /// Frames of a request that are left over come late.
    DeliverOld(prop::sample::Index),
    Fence(u8),
    /// The origin hears of somebody.
    Name,
    /// A member set comes, of so many versions ago.
    Members(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..2).prop_map(Step::Append),
        1 => (0_u8..2).prop_map(Step::Forget),
        3 => Just(Step::Probe),
        3 => Just(Step::Answer),
        3 => any::<prop::sample::Index>().prop_map(Step::Heartbeat),
        2 => (0_u8..2).prop_map(Step::Follow),
        4 => (0_u8..2, 1_u32..4).prop_map(|(lane, most)| Step::Send(lane, most)),
        8 => (0_u8..2).prop_map(Step::Deliver),
        1 => any::<prop::sample::Index>().prop_map(Step::DeliverOld),
        4 => (0_u8..2).prop_map(Step::Fence),
        2 => Just(Step::Name),
        4 => (0_u64..3).prop_map(Step::Members),
    ]
}

/// One lane of the origin and what this side has of it.
#[derive(Default)]
struct Reference {
    /// When each event was appended.
    appended: Vec<u64>,
    oldest: Sequence,
    attempt: Option<Attempt>,
    cursor: Sequence,
    wire: VecDeque<Frame>,
    applied: Vec<bool>,
    fence: Option<MustFence>,
}

struct World {
    now: u64,
    follower: Follower,
    lanes: [Reference; 2],
    heartbeats: Vec<Heartbeat>,
    old: Vec<(u8, Attempt, Frame)>,
    /// When the origin heard of each member, and how many of them are known here.
    named: Vec<u64>,
    known: usize,
}

impl World {
    fn new() -> Self {
        let lanes = std::array::from_fn(|_| Reference { oldest: FIRST, ..Reference::default() });
        Self {
            now: 1,
            follower: idle(),
            lanes,
            heartbeats: Vec::new(),
            old: Vec::new(),
            named: Vec::new(),
            known: 0,
        }
    }

    fn step(&mut self, step: Step) {
        self.now += 1;
        match step {
            Step::Append(index) => self.lanes[usize::from(index)].append(self.now),
            Step::Forget(index) => {
                let lane = &mut self.lanes[usize::from(index)];
                lane.oldest = lane.appended.len() as u64 + 1;
            }
            Step::Probe => {
                self.follower.probe(Tick(self.now));
            }
            Step::Answer => {
                let heads = [0, 1].map(|index: usize| self.lanes[index].appended.len() as u64);
                let members = self.named.len() as u64;
                self.heartbeats.push(Heartbeat { members, ..heartbeat(self.follower.probe, heads) });
            }
            Step::Heartbeat(index) if !self.heartbeats.is_empty() => {
                let heartbeat = index.get(&self.heartbeats);
                let judged = self.follower.on_heartbeat(heartbeat);
                assert!(matches!(judged, Ok(_) | Err(Rejected::Stale)), "{judged:?}");
            }
            Step::Follow(index) => self.follow(index),
            Step::Send(index, most) => self.lanes[usize::from(index)].send(most),
            Step::Deliver(index) => {
                let lane = &mut self.lanes[usize::from(index)];
                if lane.fence.is_none()
                    && let (Some(frame), Some(attempt)) = (lane.wire.pop_front(), lane.attempt)
                {
                    self.deliver(index, attempt, &frame);
                }
            }
            Step::DeliverOld(index) if !self.old.is_empty() => {
                let (lane, attempt, frame) = index.get(&self.old).clone();
                let before = self.follower.applied_in(lane_id(lane));
                let judged = match frame {
                    Frame::Resume(from) => self.follower.on_resume(lane_id(lane), attempt, from),
                    Frame::Reset(from) => self.follower.on_reset(lane_id(lane), attempt, from).map(|_| ()),
                    Frame::Events(first, count) => {
                        self.follower.on_events(lane_id(lane), attempt, first, count).map(|_| ())
                    }
                };
                assert_eq!(judged, Err(Rejected::Stale));
                assert_eq!(self.follower.applied_in(lane_id(lane)), before);
            }
            Step::Fence(index) => {
                let lane = &mut self.lanes[usize::from(index)];
                if let Some(fence) = lane.fence.take() {
                    lane.applied.fill(true);
                    self.follower.fenced(fence);
                }
            }
            Step::Name => self.named.push(self.now),
            Step::Members(ago) => {
                let version = (self.named.len() as u64).saturating_sub(ago);
                self.known = self.known.max(version as usize);
                self.follower.on_members(version);
            }
            Step::Heartbeat(_) | Step::DeliverOld(_) => {}
        }
    }

    fn follow(&mut self, index: u8) {
        let lane = &mut self.lanes[usize::from(index)];
        if let Some(old) = lane.attempt {
            self.old.extend(lane.wire.drain(..).map(|frame| (index, old, frame)));
        }
        let (attempt, follow) = self.follower.follow(lane_id(index));
        lane.attempt = Some(attempt);
        lane.answer(follow.from);
    }

    fn deliver(&mut self, index: u8, attempt: Attempt, frame: &Frame) {
        let id = lane_id(index);
        let lane = &mut self.lanes[usize::from(index)];
        match *frame {
            Frame::Resume(from) => self.follower.on_resume(id, attempt, from).unwrap(),
            Frame::Reset(from) => lane.fence = Some(self.follower.on_reset(id, attempt, from).unwrap()),
            Frame::Events(first, count) => {
                let accept = self.follower.on_events(id, attempt, first, count).unwrap();
                let next = first + u64::from(count);
                for sequence in accept.from..next {
                    lane.applied[sequence as usize - 1] = true;
                }
                self.follower.applied(id, attempt, next);
            }
        }
    }

    /// Whatever was appended before a confirmed moment is applied or fenced, and whom the origin knew then is known.
    fn check(&self) {
        if let Some(Tick(confirmed)) = self.follower.confirmed() {
            let unknown = self.named.get(self.known);
            assert!(
                unknown.is_none_or(|at| *at > confirmed),
                "confirmed until {confirmed}, a member is unknown"
            );
        }
        for (index, lane) in self.lanes.iter().enumerate() {
            let known = self.follower.applied_in(lane_id(index as u8)) as usize;
            assert!(lane.applied[..known].iter().all(|applied| *applied), "lane {index} claims too much");
            let Some(Tick(confirmed)) = self.follower.confirmed() else { continue };
            for (at, applied) in lane.appended.iter().zip(&lane.applied) {
                assert!(*at > confirmed || *applied, "confirmed until {confirmed}, misses the event of {at}");
            }
        }
    }
}

impl Reference {
    fn append(&mut self, now: u64) {
        self.appended.push(now);
        self.applied.push(false);
    }

    fn head(&self) -> Sequence {
        self.appended.len() as u64
    }

    fn answer(&mut self, from: Sequence) {
        self.cursor = if from < self.oldest { self.head() + 1 } else { from };
        let frame = if from < self.oldest { Frame::Reset(self.cursor) } else { Frame::Resume(from) };
        self.wire.push_back(frame);
        self.fence = None;
    }

    fn send(&mut self, most: u32) {
        if self.attempt.is_none() {
            return;
        }
        if self.cursor < self.oldest {
            self.cursor = self.head() + 1;
            self.wire.push_back(Frame::Reset(self.cursor));
        }
        let count = most.min((self.head() + 1 - self.cursor) as u32);
        if count > 0 {
            self.wire.push_back(Frame::Events(self.cursor, count));
            self.cursor += u64::from(count);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_is_confirmed_is_applied_or_fenced(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        let mut confirmed = None;
        for step in steps {
            world.step(step);
            world.check();
            prop_assert!(world.follower.confirmed() >= confirmed, "a confirmation was taken back");
            confirmed = world.follower.confirmed();
        }
    }
}
