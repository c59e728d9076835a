//! What nodes ask each other when they compare and copy, and values as they travel.

use bytes::{Bytes, BytesMut};
use tidings_proto::hash::CacheId;
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{SLOTS, SlotSet};
use tidings_proto::replicate::copy::{Answer, Changed, Digests, Fetched, Listed, Listing, Question};
use tidings_proto::replicate::{Travelling, WriteStamp};

const CACHE: CacheId = CacheId(0x0403_0201);

fn stamp() -> WriteStamp {
    WriteStamp { at: Stamp(1 << 60), author: 7 }
}

/// The body of a question.
pub(crate) fn question(body: &[u8]) -> bool {
    Question::decode(body).is_ok_and(|(cache, question)| {
        assert_eq!(Question::decode(&question.encode(cache)), Ok((cache, question.clone())));
        true
    })
}

/// A question, an answer or a value behind a byte that says which. What is accepted is written and read alike.
pub(crate) fn copy(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else { return false };
    match which % 3 {
        0 => question(body),
        1 => Answer::decode(body).is_ok_and(|answer| {
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer.clone()));
            true
        }),
        _ => Travelling::read(body).is_ok_and(|value| {
            let mut again = BytesMut::new();
            value.write(&mut again);
            assert_eq!(Travelling::read(&again), Ok(value.clone()));
            true
        }),
    }
}

fn refused(of: Changed<'_>) -> Question<'_> {
    Question::Refused { stamp: stamp(), of }
}

pub(crate) fn questions() -> Vec<Bytes> {
    let questions = [
        Question::Digests,
        Question::List { slots: SlotSet::ALL, part: 3, after: Some(1 << 40) },
        Question::Fetch(vec![b"key-1", b"key-2"]),
        refused(Changed::Key(b"key-1")),
        refused(Changed::Tag("tag")),
        refused(Changed::Prefix("key-")),
        refused(Changed::All),
    ];
    questions.iter().map(|question| question.encode(CACHE)).collect()
}

pub(crate) fn copies() -> Vec<Vec<u8>> {
    let listing = |removed| Listing { stamp: stamp(), removed, key: b"key-1" };
    let fetched = Fetched { stamp: stamp(), key: b"key-1", value: b"\x00\x00value" };
    let answers = [
        Answer::Digests(Box::new(Digests { sums: [1 << 50; SLOTS], floors: [stamp(); SLOTS] })),
        Answer::List(Listed { more: true, writes: vec![listing(false), listing(true)] }),
        Answer::Fetch { schema: 1, values: vec![fetched; 2] },
        Answer::Noted,
        Answer::Absent,
    ];
    let values = [
        Travelling { ttl_ms: 60_000, tags: [1, 2].into_iter().collect(), bytes: b"value" },
        Travelling { ttl_ms: 0, tags: [].into_iter().collect(), bytes: b"" },
    ];
    let values = values.map(|value| {
        let mut out = BytesMut::from(&[2][..]);
        value.write(&mut out);
        out.to_vec()
    });
    let questions = questions().into_iter().map(|question| [&[0][..], &question].concat());
    let answers = answers.iter().map(|answer| [&[1][..], &answer.encode()].concat());
    questions.chain(answers).chain(values).collect()
}
