//! Frames as nodes send them.

use bytes::Bytes;
use tidings_proto::codec;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::frame::{
    Age, ClockReading, Control, Follow, FrameType, HEADER_BYTES, Heartbeat, Hello, MemberSet, NamedMember,
    Refusal, header,
};
use tidings_proto::hash::{CacheId, HASH_VERSION};
use tidings_proto::id::{Incarnation, Lanes, LogId, NodeId, Origin, Slot};
use tidings_proto::log::{ChangeLog, Cursor, Retention};
use tidings_proto::record::{Draft, DraftTarget, Parts};
use tidings_proto::relay::{Acked, Confirmed, FollowOf, PassedUp, Relayed};

use crate::asks;

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
        Control::Clock(ClockReading { echo: 5, wall_ms: 1_700_000_000_000 }),
        Control::Ages(vec![Age { back: 300, micros: 70 }, Age { back: 0, micros: 1 }]),
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

/// A frame each, and all of them in a row with a batch behind.
pub(crate) fn streams() -> Vec<Vec<u8>> {
    let mut samples: Vec<Vec<u8>> = all().iter().map(Control::encode).collect();
    samples.extend(asks::frames().into_iter().map(Vec::from));
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

/// Batches of each kind of target and of everything that a record may say besides, and of all of them.
pub(crate) fn batches() -> Vec<Vec<u8>> {
    let keys = [Bytes::from_static(b"\x01a"), Bytes::from_static(b"\x02bc")];
    let targets = [
        DraftTarget::Key(b"\x03key"),
        DraftTarget::Keys(&keys),
        DraftTarget::MoreKeys(&keys),
        DraftTarget::Tag("t"),
        DraftTarget::Prefix("p:"),
        DraftTarget::All,
        DraftTarget::Key(b""),
    ];
    let metadata = [("cause".to_owned(), "import".to_owned())];
    let drafts: Vec<_> = targets.iter().zip(0..).map(|(target, n)| draft(*target, n, &metadata)).collect();
    drafts.chunks(1).chain([&drafts[..]]).map(batch).collect()
}

fn draft<'a>(target: DraftTarget<'a>, index: u32, metadata: &'a [(String, String)]) -> Draft<'a> {
    let draft = Draft::new(Parts {
        kind: if index == 0 { EventKind::Inserted } else { EventKind::Deleted },
        operation: if index == 0 { Operation::Insert } else { Operation::Remove },
        ignorable: index == 3,
        cache: CacheId(0x0102_0304),
        slot: Slot::of_hash(0),
        version: index.is_multiple_of(2).then_some(300),
        metadata: if index.is_multiple_of(3) { metadata } else { &[] },
        value: (index == 0).then_some(&b"a value"[..]),
        target,
    });
    // The first has a value of this schema, the last one a version.
    let schema = if index.is_multiple_of(6) { 300 } else { 0 };
    let draft = draft.and_then(|draft| draft.with_schema(schema)).expect("it is small");
    if index % 4 == 2 { draft.uncertain() } else { draft }
}

fn batch(drafts: &[Draft<'_>]) -> Vec<u8> {
    let lanes = Lanes::default();
    let log = ChangeLog::new(lanes, Retention::default());
    let slot = Slot::of_hash(0);
    for draft in drafts {
        log.append(slot, 1_700_000_000_000, draft).expect("the log is open").waiters.wake();
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
