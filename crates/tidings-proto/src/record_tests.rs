use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

const CACHE: CacheId = CacheId(0x0403_0201);

fn lanes() -> Lanes {
    Lanes::default()
}

fn slot(index: u8) -> Slot {
    Slot::new(index).unwrap()
}

fn deleted(key: &[u8]) -> Parts<'_> {
    Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CACHE,
        slot: slot(5),
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(key),
    }
}

/// The body of an `Events` frame with these records.
fn body(first: Sequence, base: u64, records: &[(Draft<'_>, u64)]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for (draft, delta) in records {
        let before = out.len();
        draft.write(*delta, &mut out);
        assert!(out.len() - before <= draft.bytes_max());
    }
    let batch = Batch {
        lane: lanes().lane(1).unwrap(),
        first,
        count: u32::try_from(records.len()).unwrap(),
        base: Stamp(base),
        records: out.freeze(),
    };
    [&batch.head()[..], &batch.records[..]].concat()
}

type Item<'a> = (Sequence, Result<Result<Record<'a>, Opaque>, Unsound>);

fn items(body: &[u8]) -> Result<Vec<Item<'_>>, Unsound> {
    Ok(BatchRef::parse(body, lanes())?.records(FIRST_EVER).collect())
}

const FIRST_EVER: Sequence = 1;

/// Reads everything that a receiver could read of a record.
fn walk(record: &Record<'_>) -> usize {
    let target = match record.target {
        Target::Keys(keys) | Target::MoreKeys(keys) => {
            assert_eq!(keys.iter().count(), keys.len());
            keys.iter().map(<[u8]>::len).sum()
        }
        Target::Key(key) => key.len(),
        Target::Tag(text) | Target::Prefix(text) => text.len(),
        Target::All => 0,
    };
    target + record.metadata.iter().map(|(name, text)| name.len() + text.len()).sum::<usize>()
}

#[derive(Clone, Debug)]
enum OwnedTarget {
    Key(Vec<u8>),
    Keys(Vec<Bytes>),
    MoreKeys(Vec<Bytes>),
    Tag(String),
    Prefix(String),
    All,
}

#[derive(Clone, Debug)]
struct Owned {
    kind: EventKind,
    operation: u8,
    ignorable: bool,
    cache: u32,
    slot: u8,
    version: Option<u64>,
    metadata: Vec<(String, String)>,
    value: Option<Vec<u8>>,
    target: OwnedTarget,
    delta: u64,
}

impl Owned {
    fn draft(&self) -> Draft<'_> {
        let target = match &self.target {
            OwnedTarget::Key(key) => DraftTarget::Key(key),
            OwnedTarget::Keys(keys) => DraftTarget::Keys(keys),
            OwnedTarget::MoreKeys(keys) => DraftTarget::MoreKeys(keys),
            OwnedTarget::Tag(tag) => DraftTarget::Tag(tag),
            OwnedTarget::Prefix(prefix) => DraftTarget::Prefix(prefix),
            OwnedTarget::All => DraftTarget::All,
        };
        Draft::new(Parts {
            kind: self.kind,
            operation: Operation::of(self.operation).unwrap(),
            ignorable: self.ignorable,
            cache: CacheId(self.cache),
            slot: slot(self.slot),
            version: self.version,
            metadata: &self.metadata,
            value: self.value.as_deref(),
            target,
        })
        .unwrap()
    }

    fn assert_is(&self, record: &Record<'_>, base: u64) {
        assert_eq!((record.kind, record.operation as u8), (self.kind, self.operation));
        assert_eq!((record.cache.0, record.slot), (self.cache, slot(self.slot)));
        assert_eq!(record.stamp, Stamp(base + self.delta));
        assert_eq!((record.version, record.value), (self.version, self.value.as_deref()));
        let metadata: Vec<_> = self.metadata.iter().map(|(name, text)| (&name[..], &text[..])).collect();
        assert_eq!(record.metadata.iter().collect::<Vec<_>>(), metadata);
        match (&self.target, record.target) {
            (OwnedTarget::Key(sent), Target::Key(got)) => assert_eq!(sent, got),
            (OwnedTarget::Keys(sent), Target::Keys(got))
            | (OwnedTarget::MoreKeys(sent), Target::MoreKeys(got)) => {
                assert_eq!((got.len(), got.is_empty()), (sent.len(), sent.is_empty()));
                assert_eq!(got.iter().collect::<Vec<_>>(), *sent);
            }
            (OwnedTarget::Tag(sent), Target::Tag(got)) | (OwnedTarget::Prefix(sent), Target::Prefix(got)) => {
                assert_eq!(sent, got);
            }
            (OwnedTarget::All, Target::All) => {}
            (sent, got) => panic!("sent {sent:?}, got {got:?}"),
        }
    }
}

prop_compose! {
    fn owned()(
        kind in prop::sample::select(EventKind::ALL.to_vec()),
        (operation, ignorable, cache, slot) in (0_u8..12, any::<bool>(), any::<u32>(), 0_u8..64),
        version in any::<Option<u64>>(),
        metadata in prop::collection::vec((".{0,12}", ".{0,40}"), 0..3),
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
        target in target(),
        delta in prop_oneof![0_u64..200, 0_u64..1 << 40, 1_u64 << 41..1 << 43],
    ) -> Owned {
        Owned { kind, operation, ignorable, cache, slot, version, metadata, value, target, delta }
    }
}

fn target() -> impl Strategy<Value = OwnedTarget> {
    let key = || prop::collection::vec(any::<u8>(), 0..200);
    let keys = move || prop::collection::vec(key().prop_map(Bytes::from), 0..5);
    prop_oneof![
        4 => key().prop_map(OwnedTarget::Key),
        1 => keys().prop_map(OwnedTarget::Keys),
        1 => keys().prop_map(OwnedTarget::MoreKeys),
        1 => ".{0,30}".prop_map(OwnedTarget::Tag),
        1 => ".{0,30}".prop_map(OwnedTarget::Prefix),
        1 => Just(OwnedTarget::All),
    ]
}

fn batch_of(events: &[Owned]) -> Vec<u8> {
    let records: Vec<_> = events.iter().map(|event| (event.draft(), event.delta)).collect();
    body(7, 1 << 50, &records)
}

proptest! {
    #[test]
    fn what_was_written_is_read(events in prop::collection::vec(owned(), 1..6)) {
        let body = batch_of(&events);
        let items = items(&body).unwrap();
        prop_assert_eq!(items.len(), events.len());
        for ((at, item), (index, event)) in items.into_iter().zip(events.iter().enumerate()) {
            prop_assert_eq!(at, 7 + index as u64);
            event.assert_is(&item.unwrap().unwrap(), 1 << 50);
        }
    }

    #[test]
    fn records_before_the_wanted_one_are_passed_over(
        events in prop::collection::vec(owned(), 1..6), skipped in 0_u64..8,
    ) {
        let body = batch_of(&events);
        let batch = BatchRef::parse(&body, lanes()).unwrap();
        let wanted: Vec<_> = batch.records(7 + skipped).map(|(at, item)| (at, item.unwrap().unwrap())).collect();
        prop_assert_eq!(wanted.len(), events.len().saturating_sub(skipped as usize));
        for (at, record) in wanted {
            events[(at - 7) as usize].assert_is(&record, 1 << 50);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), lanes in 0_u32..7) {
        let lanes = Lanes::new(1 << lanes).unwrap();
        if let Ok(batch) = BatchRef::parse(&bytes, lanes) {
            for (_, item) in batch.records(FIRST_EVER) {
                if let Ok(Ok(record)) = item {
                    walk(&record);
                }
            }
        }
    }

    #[test]
    fn a_garbled_batch_never_panics_and_never_reads_beyond_its_bytes(
        events in prop::collection::vec(owned(), 1..4),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut body = batch_of(&events);
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        if let Ok(items) = items(&body) {
            let read: usize = items.iter().filter_map(|(_, item)| Some(walk(&(*item).ok()?.ok()?))).sum();
            prop_assert!(read <= body.len());
            let unsound = items.iter().position(|(_, item)| item.is_err());
            prop_assert!(unsound.is_none_or(|at| at + 1 == items.len()), "something followed an unsound item");
        }
    }

    #[test]
    fn a_truncated_batch_is_unsound_and_what_came_before_the_cut_is_whole(
        events in prop::collection::vec(owned(), 1..4), cut in any::<prop::sample::Index>(),
    ) {
        let body = batch_of(&events);
        let cut = &body[..cut.index(body.len())];
        if let Ok(items) = items(cut) {
            let ((_, last), whole) = items.split_last().unwrap();
            prop_assert!(last.is_err());
            for ((_, item), event) in whole.iter().zip(&events) {
                event.assert_is(&item.unwrap().unwrap(), 1 << 50);
            }
        }
    }
}

/// A batch of two deletions whose first record's body `change` may alter; the second tells whether reading went on.
fn altered(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut first = BytesMut::new();
    Draft::new(deleted(b"first")).unwrap().write(0, &mut first);
    let mut record = first[1..].to_vec();
    change(&mut record);
    let mut body = body(1, 0, &[(Draft::new(deleted(b"second")).unwrap(), 0)]);
    let second = body.split_off(11);
    body[2] = 2;
    body.push(u8::try_from(record.len()).unwrap());
    [body, record, second].concat()
}

fn first_of_two(body: &[u8]) -> Result<Record<'_>, Opaque> {
    let items = items(body).unwrap();
    assert_eq!(items.len(), 2);
    let (at, second) = items[1];
    assert_eq!((at, second.unwrap().unwrap().target), (2, Target::Key(b"second")));
    items[0].1.unwrap()
}

const BROKEN: Opaque = Opaque { ignorable: false, cache: CACHE, unknown_kind: None };

#[test]
fn an_unaltered_record_is_read() {
    assert_eq!(first_of_two(&altered(|_| ())).unwrap().target, Target::Key(b"first"));
}

#[test]
fn an_unknown_kind_is_opaque_and_reading_goes_on() {
    for (kind, ignorable) in [(0x00, false), (0x08, false), (0x0f, false), (0x18, true), (0xf8, true)] {
        let (body, unknown_kind) = (altered(|record| record[0] = kind), Some(kind & 0x0f));
        assert_eq!(first_of_two(&body), Err(Opaque { ignorable, cache: CACHE, unknown_kind }));
    }
}

#[test]
fn an_unknown_kind_needs_no_more_than_the_common_header() {
    let body = altered(|record| {
        record[0] = 0x0f;
        record.truncate(6);
    });
    assert_eq!(first_of_two(&body), Err(Opaque { ignorable: false, cache: CACHE, unknown_kind: Some(15) }));
    let alone = [&[1, 1, 1][..], &[0; 8], &[6, 0x0f, 1, 2, 3, 4, 5]].concat();
    let items = items(&alone).unwrap();
    assert!(matches!(items[..], [(1, Ok(Err(Opaque { unknown_kind: Some(15), .. })))]), "{items:?}");
}

#[test]
fn a_known_kind_may_carry_the_ignorable_bit() {
    let body = altered(|record| record[0] |= IGNORABLE);
    assert_eq!(first_of_two(&body).unwrap().kind, EventKind::Deleted);
}

#[test]
fn a_broken_body_of_a_known_kind_is_opaque_and_never_ignorable() {
    type Break = fn(&mut Vec<u8>);
    let breaks: [(&str, Break); 11] = [
        ("reserved flag", |record| record[6] |= HAS_MORE),
        ("unknown operation", |record| record[6] = 0x0c),
        ("unknown target", |record| record[0] |= 6 << 5),
        ("everything, and a key", |record| record[0] |= 4 << 5),
        ("tag that is not UTF-8", |record| {
            record[0] |= 2 << 5;
            record[8] = 0xff;
        }),
        ("cut after the header", |record| record.truncate(6)),
        ("value longer than the record", |record| {
            record[6] |= HAS_VALUE;
            record[8] = 0x7f;
        }),
        ("metadata longer than the record", |record| {
            record[6] |= HAS_METADATA;
            record[8] = 0x7f;
        }),
        ("metadata name without a text", |record| {
            record[6] |= HAS_METADATA;
            record.splice(8.., [2, 1, b'a']).for_each(drop);
        }),
        ("metadata text that is not UTF-8", |record| {
            record[6] |= HAS_METADATA;
            record.splice(8.., [4, 1, b'a', 1, 0xff]).for_each(drop);
        }),
        ("stamp of eleven bytes", |record| record.splice(7..8, [0xff; 11]).for_each(drop)),
    ];
    for (what, change) in breaks {
        for bit in [0, IGNORABLE] {
            let body = altered(|record| {
                change(record);
                record[0] |= bit;
            });
            assert_eq!(first_of_two(&body), Err(BROKEN), "{what}");
        }
    }
}

#[test]
fn keys_that_do_not_fill_their_record_are_opaque() {
    for keys in [&[1, 2, b'a', b'b', 0][..], &[2, 1, b'a'], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0]] {
        let body = altered(|record| {
            record[0] |= 1 << 5;
            record.truncate(8);
            record.extend_from_slice(keys);
        });
        assert_eq!(first_of_two(&body), Err(BROKEN), "{keys:?}");
    }
}

#[test]
fn an_overlong_key_is_opaque() {
    let value = vec![0; KEY_BYTES_MAX + 1];
    let parts = Parts { value: Some(&value), target: DraftTarget::Key(b""), ..deleted(b"") };
    let mut body = body(1, 0, &[(Draft::new(parts).unwrap(), 0)]);
    // Without its flag, the value and its length are read as the key.
    body[11 + 2 + 6] &= !HAS_VALUE;
    assert_eq!(items(&body).unwrap(), [(1, Ok(Err(BROKEN)))]);
}

#[test]
fn a_record_whose_header_is_broken_is_unsound_and_the_last() {
    let breaks: [fn(&mut Vec<u8>); 3] =
        [|record| record[5] = 64, |record| record.truncate(5), |record| record.truncate(0)];
    for change in breaks {
        let body = altered(change);
        let items = items(&body).unwrap();
        assert!(matches!(items[..], [(1, Err(_))]), "{items:?}");
    }
}

#[test]
fn bytes_after_the_last_record_are_unsound() {
    let draft = Draft::new(deleted(b"key")).unwrap();
    let mut body = body(1, 0, &[(draft.clone(), 0), (draft, 0)]);
    body[2] = 1;
    let items = items(&body).unwrap();
    assert!(matches!(items[..], [(1, Ok(Ok(_))), (2, Err(_))]), "{items:?}");
}

#[test]
fn a_batch_head_that_cannot_be_is_unsound() {
    let sound = body(1, 0, &[(Draft::new(deleted(b"key")).unwrap(), 0)]);
    assert!(items(&sound).is_ok());
    let head = |lane: u8, first: &[u8], count: &[u8]| [&[lane], first, count, &sound[3..]].concat();
    let end = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    for (what, body) in [
        ("no such lane", head(4, &[1], &[1])),
        ("sequence 0", head(1, &[0], &[1])),
        ("no record", head(1, &[1], &[0])),
        ("more records than bytes", head(1, &[1], &[3])),
        ("a count beyond 32 bits", head(1, &[1], &[0x80, 0x80, 0x80, 0x80, 0x10])),
        ("sequences beyond 64 bits", head(1, &end, &[1])),
        (
            "a varint beyond 64 bits",
            head(1, &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02], &[1]),
        ),
        ("a varint of eleven bytes", head(1, &[0xff; 11], &[1])),
    ] {
        assert!(items(&body).is_err(), "{what}");
    }
}

#[test]
fn stamps_beyond_64_bits_are_opaque() {
    let body = body(1, u64::MAX, &[(Draft::new(deleted(b"key")).unwrap(), 1)]);
    assert_eq!(items(&body).unwrap(), [(1, Ok(Err(BROKEN)))]);
}

#[test]
fn what_exceeds_a_limit_is_refused_with_its_name() {
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    let text = String::from_utf8(long.clone()).unwrap();
    let keys = [Bytes::from(long.clone())];
    let metadata = [(text.clone(), String::new())];
    let value = vec![0; RECORD_BYTES_MAX];
    for (what, parts) in [
        ("key", deleted(&long)),
        ("key", Parts { target: DraftTarget::Keys(&keys), ..deleted(b"") }),
        ("tag", Parts { target: DraftTarget::Tag(&text), ..deleted(b"") }),
        ("prefix", Parts { target: DraftTarget::Prefix(&text), ..deleted(b"") }),
        ("metadata", Parts { metadata: &metadata, ..deleted(b"") }),
        ("record", Parts { value: Some(&value), ..deleted(b"") }),
    ] {
        assert_eq!(Draft::new(parts).unwrap_err().what, what);
    }
    assert!(Draft::new(deleted(&long[1..])).is_ok());
}

#[test]
fn of_the_records_of_one_change_one_is_counted_and_of_an_informational_event_none() {
    let counted = |kind, target| {
        let body = body(1, 0, &[(Draft::new(Parts { kind, target, ..deleted(b"") }).unwrap(), 1)]);
        let record = items(&body).unwrap().remove(0).1.unwrap().unwrap();
        [0, 1].map(|lane| record.is_counted(Lanes::default().lane(lane).unwrap()))
    };
    assert_eq!(counted(EventKind::Inserted, DraftTarget::Key(b"a")), [true; 2]);
    assert_eq!(counted(EventKind::Updated, DraftTarget::Keys(&[])), [true; 2]);
    assert_eq!(counted(EventKind::Updated, DraftTarget::MoreKeys(&[])), [false; 2]);
    let of_all = [DraftTarget::All, DraftTarget::Tag("t"), DraftTarget::Prefix("p")];
    assert_eq!(of_all.map(|target| counted(EventKind::Cleared, target)), [[true, false]; 3]);
    let told = [EventKind::Expired, EventKind::Evicted, EventKind::Invalidated];
    assert_eq!(told.map(|kind| counted(kind, DraftTarget::Key(b"a"))), [[false; 2]; 3]);
}

#[test]
fn bytes_on_the_wire_are_the_same_in_every_release() {
    let metadata = [("cause".to_owned(), "import".to_owned())];
    let keys = [Bytes::from_static(b"a"), Bytes::from_static(b"bc")];
    let full = Parts {
        kind: EventKind::Inserted,
        operation: Operation::WriteThrough,
        ignorable: true,
        version: Some(300),
        metadata: &metadata,
        value: Some(b"VAL"),
        ..deleted(b"key")
    };
    let drafts = [
        Draft::new(deleted(b"key")).unwrap(),
        Draft::new(full).unwrap(),
        Draft::new(Parts { target: DraftTarget::Keys(&keys), ..deleted(b"") }).unwrap(),
        Draft::new(Parts { target: DraftTarget::MoreKeys(&keys), ..deleted(b"") }).unwrap(),
        Draft::new(Parts { target: DraftTarget::Tag("t"), ..deleted(b"") }).unwrap(),
        Draft::new(Parts { target: DraftTarget::Prefix("p:"), ..deleted(b"") }).unwrap(),
        Draft::new(Parts {
            kind: EventKind::Cleared,
            operation: Operation::Clear,
            target: DraftTarget::All,
            ..deleted(b"")
        })
        .unwrap(),
    ];
    let records: Vec<_> = drafts.into_iter().zip([0, 1, 2, 3, 127, 128, 1 << 16]).collect();
    let golden: &[&[u8]] = &[
        b"\x01\x80\x01\x07\x00\x00\x05\x04\x03\x02\x01\x00",
        b"\x0b\x03\x01\x02\x03\x04\x05\x05\x00key",
        b"\x1f\x11\x01\x02\x03\x04\x05\x77\x01\xac\x02\x0d\x05cause\x06import\x03VALkey",
        b"\x0e\x23\x01\x02\x03\x04\x05\x05\x02\x02\x01a\x02bc",
        b"\x0e\xa3\x01\x02\x03\x04\x05\x05\x03\x02\x01a\x02bc",
        b"\x09\x43\x01\x02\x03\x04\x05\x05\x7ft",
        b"\x0b\x63\x01\x02\x03\x04\x05\x05\x80\x01p:",
        b"\x0a\x84\x01\x02\x03\x04\x05\x09\x80\x80\x04",
    ];
    assert_eq!(body(128, 0x0001_0203_0405_0000, &records), golden.concat());
}

#[test]
fn an_event_with_a_24_byte_key_takes_at_most_36_bytes_in_a_batch_of_64() {
    let draft = Draft::new(deleted(&[b'k'; 24])).unwrap();
    let bytes = |spread: u64| {
        let records: Vec<_> = (0..64).map(|n| (draft.clone(), n * spread)).collect();
        let body = body(1_000_000, 1 << 58, &records);
        (body.len() + crate::frame::HEADER_BYTES) as f64 / 64.0
    };
    assert!(bytes(1) <= 36.0, "{} within a millisecond", bytes(1));
    // A stamp of a later millisecond takes two bytes more.
    assert!(bytes(1 << 14) <= 36.5, "{} over 16 ms", bytes(1 << 14));
}
