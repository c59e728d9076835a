use std::time::Duration;

use super::*;
use crate::id::{Incarnation, Origin};

const LEASE: LeaseRef = LeaseRef { home: 0x0102_0304_0506_0708, id: 7 };

fn key(length: usize) -> WireKey {
    (&LeaseKey { cache: CacheId(0x00c0_ffee), bytes: vec![b'k'; length].into() }).into()
}

fn brought() -> Told {
    let ages = Ages { lease: Duration::from_millis(3), question: Duration::from_nanos(9) };
    Told::Brought { holder: "n2".parse().unwrap(), lease: LEASE, ages: ages.into() }
}

fn questions() -> Vec<(LeaseQuestion, &'static str)> {
    vec![
        (
            LeaseQuestion::Ask { ticket: 300, key: key(2), schema: 3, patience_ms: 5_000 },
            "00fb2c01fceeffc000026b6b03fb8813",
        ),
        (LeaseQuestion::Tell { ticket: 1, key: 5, told: Told::Load(LEASE) }, "01010500fd080706050403020107"),
        (
            LeaseQuestion::Tell { ticket: 1, key: 5, told: brought() },
            "01010501026e32fd080706050403020107fcc0c62d0009",
        ),
        (LeaseQuestion::Tell { ticket: 1, key: 5, told: Told::Refused }, "01010502"),
        (
            LeaseQuestion::Ended { key: key(1), lease: LEASE, brought: true },
            "02fceeffc000016bfd08070605040302010701",
        ),
        (LeaseQuestion::Take { lease: LEASE, key: 5 }, "03fd08070605040302010705"),
    ]
}

fn answers() -> Vec<(LeaseAnswer, &'static str)> {
    let origin = Origin { node: "n1".parse().unwrap(), incarnation: Incarnation(5) };
    vec![
        (LeaseAnswer::Told(Told::Refused), "0002"),
        (LeaseAnswer::Waiting, "01"),
        (LeaseAnswer::NotHere, "02"),
        (LeaseAnswer::Noted(true), "0301"),
        (LeaseAnswer::Result(Seen::of([(origin, 9)]), b"value".to_vec()), "0401026e3105090576616c7565"),
        (LeaseAnswer::Gone, "05"),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn questions_and_answers_look_the_same_in_every_release() {
    for (question, golden) in questions() {
        assert_eq!(hex(&question.encode()), golden, "{question:?}");
        assert_eq!(LeaseQuestion::decode(&question.encode()).unwrap(), question);
    }
    for (answer, golden) in answers() {
        assert_eq!(hex(&answer.encode()), golden, "{answer:?}");
        assert_eq!(LeaseAnswer::decode(&answer.encode()).unwrap(), answer);
    }
}

#[test]
fn what_a_load_brought_looks_the_same_in_every_release() {
    let tags = vec!["t".to_owned()];
    let value = SharedLoad::Value { bytes: b"ab".to_vec(), tags, version: Some(7) };
    for (load, golden) in [(SharedLoad::Absent, "00"), (value, "010261620101740107")] {
        let bytes = load.encode().unwrap();
        assert_eq!(hex(&bytes), golden);
        assert_eq!(SharedLoad::decode(&bytes).unwrap(), load);
    }
    let long = SharedLoad::Value { bytes: vec![0; RESULT_BYTES_MAX], tags: Vec::new(), version: None };
    assert_eq!(long.encode(), None);
}

#[test]
fn the_longest_of_each_fits_and_what_is_longer_is_refused() {
    let ask = |length| LeaseQuestion::Ask { ticket: u64::MAX, key: key(length), schema: 0, patience_ms: 0 };
    assert!(LeaseQuestion::decode(&ask(KEY_BYTES_MAX).encode()).is_ok());
    let longer = LeaseQuestion::decode(&ask(KEY_BYTES_MAX + 1).encode());
    assert!(matches!(longer, Err(LeaseWireError::Key(_))), "{longer:?}");

    let seen = |count: usize| {
        let node = "n".repeat(crate::id::NAME_BYTES_MAX).parse::<NodeId>().unwrap();
        let origin = |n| Origin { node: node.clone(), incarnation: Incarnation(u64::MAX - n as u64) };
        Seen::of((0..count).map(|n| (origin(n), u64::MAX)))
    };
    let result = |count, length| LeaseAnswer::Result(seen(count), vec![7; length]);
    let longest = result(SEEN_MAX, RESULT_BYTES_MAX).encode();
    assert!(longest.len() <= crate::ask::ANSWER_BYTES_MAX, "{} bytes", longest.len());
    assert_eq!(LeaseAnswer::decode(&longest).unwrap(), result(SEEN_MAX, RESULT_BYTES_MAX));
    let longer = LeaseAnswer::decode(&result(SEEN_MAX + 1, 0).encode());
    assert!(matches!(longer, Err(LeaseWireError::Seen(_))), "{longer:?}");
    let longer = LeaseAnswer::decode(&result(0, RESULT_BYTES_MAX + 1).encode());
    assert!(matches!(longer, Err(LeaseWireError::Result(_))), "{longer:?}");
}

#[test]
fn what_a_later_release_asks_or_answers_is_an_error() {
    for bytes in [&[9_u8][..], &[], &[3], &[5, 0]] {
        assert!(LeaseQuestion::decode(bytes).is_err() && LeaseAnswer::decode(bytes).is_err(), "{bytes:?}");
    }
}
