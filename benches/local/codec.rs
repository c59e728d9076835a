//! Encoding and decoding of a batch of events: the records of tidings beside an owned struct with bincode's derive.

use std::hint::black_box;

use bincode::config::{Configuration, standard};
use bincode::{Decode, Encode};
use bytes::BytesMut;
use tidings_benches::interleave::{Case, Sample, timed};
use tidings_benches::target::Verdict;
use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hash::CacheId;
use tidings_proto::hlc::Stamp;
use tidings_proto::id::{FIRST, Lanes, Slot};
use tidings_proto::record::{Batch, BatchRef, Draft, DraftTarget, Parts, Target};

use crate::targets;

pub(crate) const NAME: &str = "codec";
pub(crate) const BINCODE: &str = "bincode derive, encode + decode";
pub(crate) const BINCODE_ENCODE: &str = "bincode derive, encode";
pub(crate) const BINCODE_DECODE: &str = "bincode derive, decode";
pub(crate) const RECORDS: &str = "records, encode + decode";
pub(crate) const RECORDS_ENCODE: &str = "records, encode";
pub(crate) const RECORDS_DECODE: &str = "records, decode";

/// Events of a batch.
const EVENTS: u64 = 64;

/// Batches of a sample.
const BATCHES: u64 = 300;

/// Between the stamps of two events, in the low bits of a hybrid clock: about a microsecond.
const STAMP_STEP: u64 = 66;

/// What a plain change event holds; it says as much as a record does together with its batch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
struct Event {
    node: u64,
    incarnation: u64,
    sequence: u64,
    stamp: u64,
    kind: u8,
    operation: u8,
    cache: u32,
    slot: u8,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
    version: Option<u64>,
}

fn key(number: u64) -> Vec<u8> {
    format!("k:{number:022}").into_bytes()
}

fn events() -> Vec<Event> {
    let event = |number| Event {
        node: 0x1234_5678_9abc_def0,
        incarnation: 1_780_000_000_000,
        sequence: 1_000_000 + number,
        stamp: (1_780_000_000_000 << 16) + STAMP_STEP * number,
        kind: 2,
        operation: 1,
        cache: 0x89ab_cdef,
        slot: 4,
        key: key(number),
        value: None,
        version: None,
    };
    (0..EVENTS).map(event).collect()
}

pub(crate) fn cases() -> Vec<Case<'static>> {
    let both = |encode: fn() -> Sample, decode: fn() -> Sample| {
        move || {
            let (encode, decode) = (encode(), decode());
            Sample { operations: encode.operations, nanoseconds: encode.nanoseconds + decode.nanoseconds }
        }
    };
    vec![
        Case { name: BINCODE_ENCODE, sample: Box::new(bincode_encode) },
        Case { name: BINCODE_DECODE, sample: Box::new(bincode_decode) },
        Case { name: BINCODE, sample: Box::new(both(bincode_encode, bincode_decode)) },
        Case { name: RECORDS_ENCODE, sample: Box::new(records_encode) },
        Case { name: RECORDS_DECODE, sample: Box::new(records_decode) },
        Case { name: RECORDS, sample: Box::new(both(records_encode, records_decode)) },
    ]
}

/// Judges the bytes per event. Returns whether they pass.
pub(crate) fn judge_bytes() -> bool {
    let plain = bincode::encode_to_vec(events(), CONFIG).expect("events encode").len() as f64 / EVENTS as f64;
    let mut records = BytesMut::new();
    encode_records(&keys(), &mut records);
    let batch = batch(records);
    let ours = (batch.head().len() + batch.records.len()) as f64 / EVENTS as f64;
    println!(
        "bytes per event with a 24-byte key, batch of {EVENTS}: bincode derive {plain:.1}, records {ours:.1}"
    );
    let (line, verdict) = targets::BYTES_PER_EVENT.line(ours);
    println!("  {line}");
    verdict != Verdict::Fail
}

const CONFIG: Configuration = standard();

fn bincode_encode() -> Sample {
    let events = events();
    let mut buffer = vec![0; 16 << 10];
    timed(EVENTS * BATCHES, || {
        for _ in 0..BATCHES {
            let used = bincode::encode_into_slice(black_box(&events), &mut buffer, CONFIG);
            black_box(used.expect("the buffer is large enough"));
        }
    })
}

fn bincode_decode() -> Sample {
    let bytes = bincode::encode_to_vec(events(), CONFIG).expect("events encode");
    timed(EVENTS * BATCHES, || {
        for _ in 0..BATCHES {
            let decoded = bincode::decode_from_slice::<Vec<Event>, _>(black_box(&bytes), CONFIG);
            black_box(decoded.expect("what was encoded decodes"));
        }
    })
}

fn keys() -> Vec<Vec<u8>> {
    (0..EVENTS).map(key).collect()
}

fn encode_records(keys: &[Vec<u8>], out: &mut BytesMut) {
    for (number, key) in keys.iter().enumerate() {
        let draft = Draft::new(Parts {
            kind: EventKind::Updated,
            operation: Operation::Insert,
            ignorable: false,
            cache: CacheId(0x89ab_cdef),
            slot: Slot::new(4).expect("a slot"),
            version: None,
            metadata: &[],
            value: None,
            target: DraftTarget::Key(key),
        });
        draft.expect("a short key").write(STAMP_STEP * number as u64, out);
    }
}

fn batch(records: BytesMut) -> Batch {
    let lane = Lanes::default().ids().next().expect("a lane");
    Batch {
        lane,
        first: FIRST,
        count: EVENTS as u32,
        base: Stamp(1_780_000_000_000 << 16),
        records: records.freeze(),
    }
}

fn records_encode() -> Sample {
    let keys = keys();
    let mut out = BytesMut::with_capacity(16 << 10);
    timed(EVENTS * BATCHES, || {
        for _ in 0..BATCHES {
            out.clear();
            encode_records(black_box(&keys), &mut out);
            black_box(&out);
        }
    })
}

fn records_decode() -> Sample {
    let mut records = BytesMut::new();
    encode_records(&keys(), &mut records);
    let batch = batch(records);
    let mut body = BytesMut::from(&batch.head()[..]);
    body.extend_from_slice(&batch.records);
    timed(EVENTS * BATCHES, || {
        for _ in 0..BATCHES {
            let batch = BatchRef::parse(black_box(&body), Lanes::default()).expect("what was encoded parses");
            for (sequence, record) in batch.records(FIRST) {
                let record = record.expect("sound").expect("known");
                let Target::Key(key) = record.target else { panic!("one key was encoded") };
                black_box((sequence, record.stamp, record.cache, record.slot, key));
            }
        }
    })
}
