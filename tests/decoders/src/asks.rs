//! What members ask each other, and what they ask about leases.

use bytes::{Bytes, BytesMut};
use tidings_proto::ask::{self, Declined, Question, Topic};
use tidings_proto::frame::{FrameType, RawFrame, take};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{Incarnation, NodeId, Origin};
use tidings_proto::lease::{Ages, LeaseAnswer, LeaseKey, LeaseQuestion, LeaseRef, Seen, SharedLoad, Told};

use crate::{audit, copies};

/// The body of a question behind an even byte, or of an answer behind an odd one.
pub(crate) fn ask(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else { return false };
    let kind = if which % 2 == 0 { FrameType::Ask } else { FrameType::Answer };
    frame(RawFrame { kind, body: BytesMut::from(body) })
}

/// A question, and what its topic makes of it, or an answer. What is accepted is written and read alike.
pub(crate) fn frame(frame: RawFrame) -> bool {
    if frame.kind == FrameType::Answer {
        return ask::read_answer(frame).is_some_and(|answer| {
            let written = ask::answer(answer.as_deref().map_err(|declined| *declined));
            assert_eq!(ask::read_answer(whole(&written)), Some(answer));
            true
        });
    }
    ask::read_question(frame).is_some_and(|Question { topic, body }| {
        // It is declined.
        let Some(topic) = topic else { return true };
        let again = ask::read_question(whole(&ask::question(topic, &body)));
        assert_eq!(again, Some(Question { topic: Some(topic), body: body.clone() }));
        match topic {
            Topic::Lease => lease_question(&body),
            Topic::Audit => audit::question(&body),
            Topic::Copy => copies::question(&body),
        }
    })
}

fn whole(bytes: &[u8]) -> RawFrame {
    take(&mut BytesMut::from(bytes)).expect("what is written can be read").expect("and is whole")
}

/// A question about leases, an answer, or what a load has brought, behind a byte that says which.
pub(crate) fn lease(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else { return false };
    match which % 3 {
        0 => lease_question(body),
        1 => LeaseAnswer::decode(body).is_ok_and(|answer| {
            assert_eq!(LeaseAnswer::decode(&answer.encode()).expect("it was written"), answer);
            true
        }),
        _ => SharedLoad::decode(body).is_ok_and(|load| {
            if let Some(again) = load.encode() {
                assert_eq!(SharedLoad::decode(&again).expect("it was written"), load);
            }
            true
        }),
    }
}

fn lease_question(body: &[u8]) -> bool {
    LeaseQuestion::decode(body).is_ok_and(|question| {
        assert_eq!(LeaseQuestion::decode(&question.encode()).expect("it was written"), question);
        true
    })
}

fn lease_questions() -> Vec<LeaseQuestion> {
    let lease = LeaseRef { home: 0x0102_0304_0506_0708, id: 300 };
    let key = LeaseKey { cache: CacheId(0x0102_0304), bytes: Bytes::from_static(b"\x03key") };
    let brought = Told::Brought { holder: origin("n2").node, lease, ages: Ages::default().into() };
    vec![
        LeaseQuestion::Ask { ticket: 300, key: (&key).into(), schema: 1, patience_ms: 5_000 },
        LeaseQuestion::Tell { ticket: 1, key: 0x99, told: Told::Load(lease) },
        LeaseQuestion::Tell { ticket: 1, key: 0x99, told: brought },
        LeaseQuestion::Ended { key: (&key).into(), lease, brought: true },
        LeaseQuestion::Take { lease, key: 0x99 },
    ]
}

fn origin(name: &str) -> Origin {
    Origin { node: NodeId::new(name).expect("a valid node id"), incarnation: Incarnation(1 << 40) }
}

/// Questions and answers about leases, and results of loads.
pub(crate) fn leases() -> Vec<Vec<u8>> {
    let tags = vec!["t".to_owned()];
    let value = SharedLoad::Value { bytes: b"value".repeat(60), tags, version: Some(7) };
    let loads = [value, SharedLoad::Absent].map(|load| load.encode().expect("it is short"));
    let seen = Seen::of([(origin("n2"), 70_000), (origin("n3"), 1)]);
    let answers = [
        LeaseAnswer::Told(Told::Refused),
        LeaseAnswer::Waiting,
        LeaseAnswer::NotHere,
        LeaseAnswer::Noted(true),
        LeaseAnswer::Result(seen, loads[0].to_vec()),
        LeaseAnswer::Gone,
    ];
    let questions = lease_questions().into_iter().map(|question| behind(0, &question.encode()));
    let answers = answers.iter().map(|answer| behind(1, &answer.encode()));
    questions.chain(answers).chain(loads.iter().map(|load| behind(2, load))).collect()
}

fn behind(which: u8, body: &[u8]) -> Vec<u8> {
    [&[which], body].concat()
}

/// Questions and answers, a frame each.
pub(crate) fn frames() -> Vec<Bytes> {
    let of = |topic, body: &[u8]| ask::question(topic, body);
    let leases = lease_questions().into_iter().map(|question| of(Topic::Lease, &question.encode()));
    let audits = audit::questions().into_iter().map(|question| of(Topic::Audit, &question));
    let copies = copies::questions().into_iter().map(|question| of(Topic::Copy, &question));
    let declined = [Declined::Unknown, Declined::Busy, Declined::Failed].map(|why| ask::answer(Err(why)));
    let answers = [ask::answer(Ok(b"an answer")), ask::answer(Ok(b""))].into_iter().chain(declined);
    leases.chain(audits).chain(copies).chain(answers).collect()
}

/// What they carry, and a question of a topic that nobody knows.
pub(crate) fn asks() -> Vec<Vec<u8>> {
    let body = |frame: Bytes| {
        let RawFrame { kind, body } = whole(&frame);
        behind(u8::from(kind == FrameType::Answer), &body)
    };
    frames().into_iter().map(body).chain([vec![0, 99, 7]]).collect()
}
