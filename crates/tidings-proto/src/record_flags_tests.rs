//! The flags beyond a record's first byte of them.

use super::*;

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
    for bit in 1..8 {
        later[20] = UNCERTAIN | 1 << bit;
        let opaque = Opaque { ignorable: false, cache: CacheId(0x0403_0201), unknown_kind: None };
        assert_eq!(read(&later), Err(opaque), "bit {bit}");
    }
}
