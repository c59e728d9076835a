use bytes::BytesMut;
use proptest::prelude::*;

use crate::event::{EventKind, Operation};
use crate::hash::CacheId;
use crate::hlc::Stamp;
use crate::id::{Lanes, Slot};
use crate::record::{Batch, BatchRef, Draft, DraftTarget, Opaque, Parts, RECORD_BYTES_MAX, Record};

const CACHE: CacheId = CacheId(0x0403_0201);

fn parts(version: Option<u64>) -> Parts<'static> {
    Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CACHE,
        slot: Slot::new(5).unwrap(),
        version,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(b"key"),
    }
}

fn written(draft: &Draft<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    draft.write(1, &mut out);
    assert!(out.len() <= draft.bytes_max());
    out.to_vec()
}

/// What a receiver makes of one record.
fn read<T>(record: &[u8], judge: impl FnOnce(Result<Record<'_>, Opaque>) -> T) -> T {
    let lanes = Lanes::default();
    let records = bytes::Bytes::copy_from_slice(record);
    let batch = Batch { lane: lanes.lane(0).unwrap(), first: 1, count: 1, base: Stamp(0), records };
    let body = [&batch.head()[..], &batch.records[..]].concat();
    let batch = BatchRef::parse(&body, lanes).unwrap();
    let (_, parsed) = batch.records(1).next().unwrap();
    judge(parsed.unwrap())
}

proptest! {
    #[test]
    fn a_schema_is_read_back_with_everything_else(
        schema: u32,
        version: Option<u64>,
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        after in prop::sample::select(EventKind::ALL.to_vec()),
    ) {
        let mut draft = Draft::new(Parts { kind, ..parts(version) }).unwrap().with_schema(schema).unwrap();
        for kind in [kind, after] {
            draft.set_kind(kind);
            read(&written(&draft), |record| {
                let record = record.unwrap();
                assert_eq!((record.kind, record.schema, record.version), (kind, schema, version));
                assert_eq!(record.target, crate::record::Target::Key(b"key"));
            });
        }
    }
}

#[test]
fn a_record_that_states_no_schema_is_as_before() {
    let plain = Draft::new(parts(Some(7))).unwrap();
    assert_eq!(plain.clone().with_schema(0).unwrap(), plain);
    assert_eq!(read(&written(&plain), |record| record.unwrap().schema), 0);
}

#[test]
fn a_stated_schema_has_the_same_bytes_in_every_release() {
    let draft = Draft::new(parts(Some(300))).unwrap().with_schema(129).unwrap();
    assert_eq!(written(&draft), b"\x10\x0e\x01\x02\x03\x04\x05\x45\x01\x03\x81\x01\xac\x02key");
}

#[test]
fn what_cannot_be_understood_is_opaque() {
    let sound = written(&Draft::new(parts(Some(1))).unwrap().with_schema(1).unwrap());
    let altered = |at: usize, byte: u8| {
        let mut record = sound.clone();
        record[at] = byte;
        read(&record, |record| record.map(|record| record.kind))
    };
    assert_eq!(altered(9, 1), Ok(EventKind::Inserted));
    // A kind of a newer release, within the cache that it names.
    let unknown = Opaque { ignorable: false, cache: CACHE, unknown_kind: true };
    assert_eq!(altered(9, 0), Err(unknown));
    assert_eq!(altered(9, 14), Err(unknown));
    let mut cut = sound[..10].to_vec();
    cut[0] = 9;
    let broken = Opaque { ignorable: false, cache: CACHE, unknown_kind: false };
    assert_eq!(read(&cut, |record| record.map(|record| record.kind)), Err(broken));
    // A schema beyond 32 bits.
    let mut wide = sound[..10].to_vec();
    wide.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x10, 1]);
    wide[0] = 15;
    assert_eq!(read(&wide, |record| record.map(|record| record.kind)), Err(broken));
}

#[test]
fn a_schema_that_makes_a_record_too_long_is_refused() {
    let fits = vec![0; RECORD_BYTES_MAX - 64];
    let full = vec![0; RECORD_BYTES_MAX - 10 - 7 - 3 - 3];
    let draft = |value| Draft::new(Parts { value: Some(value), ..parts(None) }).unwrap().with_schema(1);
    assert!(draft(&fits).is_ok());
    assert_eq!(draft(&full).unwrap_err().what, "record");
}
