use proptest::prelude::*;

use super::UNCERTAIN;
use crate::event::{EventKind, Operation};
use crate::hash::CacheId;
use crate::id::{Lanes, Slot};
use crate::record::{BatchRef, Draft, DraftTarget, Opaque, Parts, RECORD_BYTES_MAX, Record, Target};

fn deleted(metadata: &[(String, String)]) -> Parts<'_> {
    Parts {
        kind: EventKind::Deleted,
        operation: Operation::WriteThrough,
        ignorable: false,
        cache: CacheId(0x0403_0201),
        slot: Slot::new(5).unwrap(),
        version: None,
        metadata,
        value: None,
        target: DraftTarget::Key(b"key"),
    }
}

fn body(draft: &Draft<'_>) -> Vec<u8> {
    let mut body = b"\x00\x01\x01\x00\x00\x05\x04\x03\x02\x01\x00".to_vec();
    let mut record = bytes::BytesMut::new();
    draft.write(0, &mut record);
    assert!(record.len() <= draft.bytes_max());
    body.extend_from_slice(&record);
    body
}

fn read(body: &[u8]) -> Result<Record<'_>, Opaque> {
    let batch = BatchRef::parse(body, Lanes::default()).unwrap();
    let records: Vec<_> = batch.records(1).collect();
    assert_eq!(records.len(), 1);
    records[0].1.unwrap()
}

#[test]
fn an_uncertain_record_says_so_and_all_else_as_ever() {
    let metadata = [("cause".to_owned(), "import".to_owned())];
    let parts = Parts { version: Some(300), value: Some(b"VAL"), ..deleted(&metadata) };
    let (certain, uncertain) =
        (body(&Draft::new(parts).unwrap()), body(&Draft::new(parts).unwrap().uncertain()));
    assert_eq!(uncertain.len(), certain.len() + 1);
    let certain = read(&certain).unwrap();
    assert!(!certain.uncertain);
    assert_eq!(read(&uncertain), Ok(Record { uncertain: true, ..certain }));
}

#[test]
fn bytes_of_an_uncertain_record_are_the_same_in_every_release() {
    let uncertain = body(&Draft::new(deleted(&[])).unwrap().uncertain());
    assert_eq!(uncertain[11..], b"\x0c\x03\x01\x02\x03\x04\x05\x87\x00\x01key"[..]);
}

#[test]
fn a_record_with_a_flag_of_a_later_release_is_opaque() {
    let mut later = body(&Draft::new(deleted(&[])).unwrap().uncertain());
    for bit in 2..8 {
        later[20] = UNCERTAIN | 1 << bit;
        let opaque = Opaque { ignorable: false, cache: CacheId(0x0403_0201), unknown_kind: None };
        assert_eq!(read(&later), Err(opaque), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn a_schema_is_read_back_with_everything_else(
        schema: u32,
        version: Option<u64>,
        uncertain: bool,
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        after in prop::sample::select(EventKind::ALL.to_vec()),
    ) {
        let parts = Parts { kind, version, ..deleted(&[]) };
        let before = |draft: Draft<'static>| if uncertain { draft.uncertain() } else { draft };
        let mut draft = before(Draft::new(parts).unwrap()).with_schema(schema).unwrap();
        if !uncertain {
            // In any order.
            let other = Draft::new(parts).unwrap().uncertain().with_schema(schema).unwrap();
            prop_assert_eq!(draft.clone().uncertain(), other);
        }
        for kind in [kind, after] {
            draft.set_kind(kind);
            let body = body(&draft);
            let record = read(&body).unwrap();
            prop_assert_eq!((record.kind, record.schema, record.version), (kind, schema, version));
            prop_assert_eq!((record.uncertain, record.target), (uncertain, Target::Key(b"key")));
        }
    }
}

#[test]
fn a_record_that_states_no_schema_is_as_before() {
    let plain = Draft::new(deleted(&[])).unwrap();
    assert_eq!(plain.clone().with_schema(0).unwrap(), plain);
    assert_eq!(read(&body(&plain)).unwrap().schema, 0);
}

#[test]
fn a_stated_schema_has_the_same_bytes_in_every_release() {
    let parts = Parts { version: Some(300), ..deleted(&[]) };
    let stated = body(&Draft::new(parts).unwrap().with_schema(129).unwrap());
    assert_eq!(stated[11..], b"\x10\x03\x01\x02\x03\x04\x05\xc7\x00\x02\x81\x01\xac\x02key"[..]);
}

#[test]
fn a_schema_that_is_cut_off_or_beyond_32_bits_is_opaque() {
    let sound = body(&Draft::new(deleted(&[])).unwrap().with_schema(1).unwrap());
    let broken = Opaque { ignorable: false, cache: CacheId(0x0403_0201), unknown_kind: None };
    let mut cut = sound[..21].to_vec();
    cut[11] = 9;
    assert_eq!(read(&cut), Err(broken));
    let mut wide = cut;
    wide.extend_from_slice(&[0x80, 0x80, 0x80, 0x80, 0x10]);
    wide[11] = 14;
    assert_eq!(read(&wide), Err(broken));
}

#[test]
fn a_schema_that_makes_a_record_too_long_is_refused() {
    let fits = vec![0; RECORD_BYTES_MAX - 64];
    let full = vec![0; RECORD_BYTES_MAX - 10 - 7 - 3 - 3 - 1];
    let draft = |value| Draft::new(Parts { value: Some(value), ..deleted(&[]) }).unwrap().with_schema(1);
    assert!(draft(&fits).is_ok());
    assert_eq!(draft(&full).unwrap_err().what, "record");
}
