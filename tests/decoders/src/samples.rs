//! Frames as nodes send them.

use bytes::Bytes;
use tidings_proto::codec;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::frame::{
    Control, Follow, FrameType, HEADER_BYTES, Heartbeat, Hello, MemberSet, NamedMember, Refusal, header,
};
use tidings_proto::hash::{CacheId, HASH_VERSION};
use tidings_proto::id::{Incarnation, Lanes, LogId, NodeId, Origin, Slot};
use tidings_proto::lease::{Ages, LeaseAnswer, LeaseKey, LeaseQuestion, LeaseRef, Seen, SharedLoad, Told};
use tidings_proto::log::{ChangeLog, Cursor, Retention};
use tidings_proto::record::{Draft, DraftTarget, Parts};
use tidings_proto::relay::{Acked, Confirmed, FollowOf, PassedUp, Relayed};

fn member(name: &str, ended: bool) -> NamedMember {
    let node = NodeId::new(name).expect("a valid node id");
    let origin = Origin { node, incarnation: Incarnation(1 << 40) };
    NamedMember { origin, address: ([127, 0, 0, 1], 7_401).into(), ended }
}

fn hello() -> Hello {
    Hello {
        protocols: (1, 1),
        cluster: "demo".to_owned(),
        node: NodeId::new("n1").expect("a valid node id"),
        incarnation: Incarnation(7),
        log: LogId(0x0102_0304_0506_0708),
        hash_version: HASH_VERSION,
        lanes: Lanes::default(),
        address: ([127, 0, 0, 1], 7_401).into(),
        zone: "z".to_owned(),
        release: "0.1.0".to_owned(),
        wall_ms: 1_700_000_000_000,
        age_ms: 70_000,
        members: MemberSet { version: 1, members: vec![member("n2", false), member("n3", true)] },
    }
}

fn all() -> Vec<Control> {
    let lane = Lanes::default().lane(3).expect("there are four");
    [
        Control::Hello(hello()),
        Control::Follow(Follow { incarnation: Incarnation(7), lane, from: 70_000 }),
        Control::Resume(1),
        Control::Reset(251),
        Control::Probe(70_000),
        Control::Heartbeat(Heartbeat { echo: 5, members: 2, heads: vec![0, 1, 250, 251] }),
        Control::Ack(9),
        Control::Goodbye(vec![1, 2, 3, 4]),
        Control::Members(MemberSet { version: 3, members: vec![member("n2", false)] }),
        Control::Caches(vec!["users".to_owned(), "orders".to_owned()]),
        Control::Refused(Refusal::Cluster("demo".to_owned())),
        Control::Refused(Refusal::Protocol(1, 2)),
        Control::Refused(Refusal::Incarnation(Incarnation(8))),
        Control::Refused(Refusal::Leaving),
    ]
    .into_iter()
    .chain(of_relays())
    .collect()
}

fn of_relays() -> [Control; 5] {
    let lane = Lanes::default().lane(1).expect("there are four");
    let (origin, follower) = (member("n3", false).origin, member("n2", false).origin);
    let confirmed = Relayed::Confirmed { heads: vec![0, 1, 250, 251], age_us: 90_000 };
    let origins = vec![(0, confirmed), (300, Relayed::Ended(vec![1, 2, 3, 4]))];
    let acked = vec![Acked { follower, lane, applied: 70_000 }];
    [
        Control::FollowOf(FollowOf { number: 2, origin: origin.clone(), lane, from: 70_000 }),
        Control::Lacking(251),
        Control::Confirmed(Confirmed { echo: 5, members: 2, origins }),
        Control::PassedUp(PassedUp { members: 2, origin, acked }),
        Control::Relays(true),
    ]
}

/// A frame each, and all of them in a row with a batch between.
pub(crate) fn streams() -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = all().iter().map(Control::encode).collect();
    let row = samples.concat();
    for body in batches() {
        let head = header(FrameType::Events, body.len());
        samples.push([&head[..], &body].concat());
    }
    samples.push([&row[..], samples.last().map_or(&[][..], Vec::as_slice)].concat());
    samples
}

/// A type and a body each.
pub(crate) fn controls() -> Vec<Vec<u8>> {
    let body = |encoded: Vec<u8>| [&encoded[1..2], &encoded[HEADER_BYTES..]].concat();
    all().iter().map(Control::encode).map(body).collect()
}

/// Batches of each kind of target, and of all of them.
pub(crate) fn batches() -> Vec<Vec<u8>> {
    let keys = [Bytes::from_static(b"\x01a"), Bytes::from_static(b"\x02bc")];
    let mut targets = vec![
        DraftTarget::Key(b"\x03key"),
        DraftTarget::Keys(&keys),
        DraftTarget::MoreKeys(&keys),
        DraftTarget::Tag("t"),
        DraftTarget::Prefix("p:"),
        DraftTarget::All,
    ];
    let mut samples: Vec<Vec<u8>> = targets.iter().map(|target| batch(&[target])).collect();
    targets.push(DraftTarget::Key(b""));
    samples.push(batch(&targets.iter().collect::<Vec<_>>()));
    samples
}

fn batch(targets: &[&DraftTarget<'_>]) -> Vec<u8> {
    let lanes = Lanes::default();
    let log = ChangeLog::new(lanes, Retention::default());
    let slot = Slot::of_hash(0);
    let metadata = [("cause".to_owned(), "import".to_owned())];
    for (index, target) in targets.iter().enumerate() {
        let draft = Draft::new(Parts {
            kind: EventKind::Deleted,
            operation: Operation::Remove,
            ignorable: index == 3,
            cache: CacheId(0x0102_0304),
            slot,
            version: (index % 2 == 1).then_some(300),
            metadata: if index % 3 == 0 { &metadata } else { &[] },
            value: None,
            target: **target,
        });
        let draft = draft.expect("it is small");
        log.append(slot, 1_700_000_000_000, &draft).expect("the log is open").waiters.wake();
    }
    let (mut cursor, mut batches) = (Cursor { next: 1 }, Vec::new());
    let _ = log.read(lanes.lane_of(slot), &mut cursor, usize::MAX, &mut batches);
    let batch = batches.first().expect("it was appended");
    [&batch.head()[..], &batch.records[..]].concat()
}

/// Encoded keys.
pub(crate) fn keys() -> Vec<Vec<u8>> {
    let texts = ["", "user:1", &"x".repeat(300)].map(|text| codec::encode(text).expect("a text encodes"));
    texts.to_vec()
}

/// Questions and answers about leases, and results of loads.
pub(crate) fn leases() -> Vec<Vec<u8>> {
    let lease = LeaseRef { home: 0x0102_0304_0506_0708, id: 300 };
    let key = LeaseKey { cache: CacheId(0x0102_0304), bytes: Bytes::from_static(b"\x03key") };
    let origin = member("n2", false).origin;
    let brought = Told::Brought { holder: origin.node.clone(), lease, ages: Ages::default().into() };
    let questions = [
        LeaseQuestion::Ask { ticket: 300, key: (&key).into(), schema: 1, patience_ms: 5_000 },
        LeaseQuestion::Tell { ticket: 1, key: 0x99, told: Told::Load(lease) },
        LeaseQuestion::Tell { ticket: 1, key: 0x99, told: brought },
        LeaseQuestion::Ended { key: (&key).into(), lease, brought: true },
        LeaseQuestion::Take { lease, key: 0x99 },
    ];
    let bytes = b"value".repeat(60);
    let load = SharedLoad::Value { bytes, tags: vec!["t".to_owned()], version: Some(7) };
    let load = load.encode().expect("it is short").to_vec();
    let seen = Seen::of([(origin, 70_000)]);
    let answers =
        [LeaseAnswer::Told(Told::Refused), LeaseAnswer::Waiting, LeaseAnswer::Result(seen, load.clone())];
    let questions = questions.iter().map(|question| question.encode().to_vec());
    questions.chain(answers.iter().map(|answer| answer.encode().to_vec())).chain([load]).collect()
}
