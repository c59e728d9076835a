use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Wake;

use proptest::prelude::*;

use super::*;
use crate::event::{EventKind, Operation};
use crate::hash::CacheId;
use crate::record::{BatchRef, DraftTarget, Parts, Target};

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

fn draft(key: &[u8]) -> Draft<'_> {
    Draft::new(Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CacheId(1),
        slot: slot(0),
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(key),
    })
    .unwrap()
}

fn sized(value: usize) -> Draft<'static> {
    static ZEROS: [u8; RECORD_BYTES_MAX] = [0; RECORD_BYTES_MAX];
    Draft::new(Parts {
        kind: EventKind::Inserted,
        operation: Operation::Insert,
        ignorable: false,
        cache: CacheId(1),
        slot: slot(0),
        version: None,
        metadata: &[],
        value: Some(&ZEROS[..value]),
        target: DraftTarget::Key(b"k"),
    })
    .unwrap()
}

fn slot(index: u8) -> Slot {
    Slot::new(index).unwrap()
}

fn lane(index: u8) -> LaneId {
    Lanes::default().lane(index).unwrap()
}

/// The sequences and keys of batches, as a receiver reads them from the wire.
fn keys(batches: &[Batch]) -> Vec<(Sequence, Vec<u8>)> {
    let mut keys = Vec::new();
    for batch in batches {
        let body = [&batch.head()[..], &batch.records[..]].concat();
        let parsed = BatchRef::parse(&body, Lanes::default()).unwrap();
        assert_eq!(parsed.next(), batch.next());
        for (at, record) in parsed.records(FIRST) {
            let Target::Key(key) = record.unwrap().unwrap().target else { panic!("not a key") };
            keys.push((at, key.to_vec()));
        }
    }
    keys
}

fn append(log: &ChangeLog, text: &str) -> Appended {
    log.append(slot(0), 1, &draft(text.as_bytes())).unwrap()
}

fn numbered(log: &ChangeLog, count: u64) {
    for n in log.heads()[0] + 1..=log.heads()[0] + count {
        assert_eq!(append(log, &n.to_string()).sequence, n);
    }
}

fn read(log: &ChangeLog, cursor: &mut Cursor, bytes_max: usize) -> (Read, Vec<(Sequence, Vec<u8>)>) {
    let mut out = Vec::new();
    let got = log.read(lane(0), cursor, bytes_max, &mut out);
    (got, keys(&out))
}

fn small(events: u64) -> ChangeLog {
    ChangeLog::new(Lanes::default(), Retention { events, bytes: 0 })
}

#[test]
fn an_empty_log_resumes_at_its_first_sequence_and_nowhere_else() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    assert_eq!(log.heads(), [0; 4]);
    assert_eq!(log.resume(lane(0), 1), Answer::Resume(Cursor { next: 1 }));
    for from in [0, 2, u64::MAX] {
        assert_eq!(log.resume(lane(0), from), Answer::Reset(Cursor { next: 1 }));
    }
    assert_eq!(read(&log, &mut Cursor { next: 1 }, 1 << 20), (Read::Empty, vec![]));
}

#[test]
fn an_event_goes_to_the_lane_of_its_slot() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    for index in 0..64 {
        assert_eq!(log.append(slot(index), 1, &draft(b"k")).unwrap().lane, lane(index % 4));
    }
    assert_eq!(log.heads(), [16; 4]);
}

#[test]
fn a_position_in_the_middle_of_a_segment_is_read_from_there() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    numbered(&log, 10);
    let mut cursor = Cursor { next: 7 };
    let (got, keys) = read(&log, &mut cursor, 1 << 20);
    assert_eq!(got, Read::Some);
    assert_eq!(keys, (7..=10).map(|n| (n, n.to_string().into_bytes())).collect::<Vec<_>>());
    assert_eq!(cursor.next, 11);
}

#[test]
fn a_read_hands_out_at_least_one_segment_and_else_no_more_than_asked_for() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let mut sealing = Cursor { next: FIRST };
    for _ in 0..4 {
        numbered(&log, 10);
        assert_eq!(read(&log, &mut sealing, usize::MAX).0, Read::Some);
    }
    let mut cursor = Cursor { next: FIRST };
    assert_eq!(read(&log, &mut cursor, 1).1.len(), 10);
    assert_eq!(read(&log, &mut cursor, 10 * 12 * 2).1.len(), 20);
    assert_eq!(read(&log, &mut cursor, usize::MAX).1.len(), 10);
}

#[test]
fn an_overrun_is_told_and_the_cursor_stands_at_the_head() {
    let log = small(8);
    numbered(&log, 8);
    let mut slow = Cursor { next: FIRST };
    numbered(&log, 8);
    assert_eq!(log.resume(lane(0), 2), Answer::Reset(Cursor { next: 17 }));
    assert_eq!(read(&log, &mut slow, 1 << 20), (Read::Overrun(17), vec![]));
    assert_eq!(slow.next, 17);
    numbered(&log, 1);
    assert_eq!(read(&log, &mut slow, 1 << 20), (Read::Some, vec![(17, b"17".to_vec())]));
}

#[test]
fn a_cursor_beyond_the_head_is_an_overrun() {
    let log = small(8);
    numbered(&log, 3);
    let mut cursor = Cursor { next: 9 };
    assert_eq!(read(&log, &mut cursor, 1 << 20), (Read::Overrun(4), vec![]));
}

#[test]
fn the_largest_record_is_held_by_the_smallest_log() {
    let log = ChangeLog::new(Lanes::default(), Retention { events: 1, bytes: 0 });
    let large = sized(RECORD_BYTES_MAX - 64);
    for _ in 0..3 {
        let sequence = log.append(slot(0), 1, &large).unwrap().sequence;
        let mut out = Vec::new();
        let mut cursor = Cursor { next: sequence };
        assert_eq!(log.read(lane(0), &mut cursor, 0, &mut out), Read::Some);
        assert_eq!((out.len(), out[0].count), (1, 1));
        assert!(out[0].records.len() + out[0].head().len() <= crate::frame::FRAME_BYTES_MAX);
    }
}

#[test]
fn every_segment_fits_a_frame() {
    let log = ChangeLog::new(Lanes::default(), Retention { events: 1 << 20, bytes: 64 << 20 });
    for n in 0..3_000_usize {
        let size = if n.is_multiple_of(97) { (n * 7_919) % (RECORD_BYTES_MAX - 64) } else { n % 600 };
        let _ = log.append(slot(0), 1, &sized(size)).unwrap();
    }
    let (mut cursor, mut out) = (Cursor { next: FIRST }, Vec::new());
    assert_eq!(log.read(lane(0), &mut cursor, usize::MAX, &mut out), Read::Some);
    assert!(out.len() > 30);
    for batch in out {
        let body = batch.head().len() + batch.records.len();
        assert!(body <= crate::frame::FRAME_BYTES_MAX, "{body}");
    }
}

#[test]
fn a_waiting_reader_is_woken_exactly_when_its_lane_gets_an_event() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cursor = Cursor { next: FIRST };
    let mut out = Vec::new();
    log.listen(lane(0), &waker);
    log.listen(lane(0), &waker);
    assert_eq!(log.read(lane(0), &mut cursor, 1, &mut out), Read::Empty);
    log.append(slot(1), 1, &draft(b"elsewhere")).unwrap().waiters.wake();
    assert_eq!(woken.times(), 0);
    let appended = append(&log, "here");
    assert_eq!(woken.times(), 0, "woken under the caller's locks");
    appended.waiters.wake();
    assert_eq!(woken.times(), 1, "asked twice, woken once");
    append(&log, "again").waiters.wake();
    assert_eq!(woken.times(), 1, "woken without having asked again");
    assert_eq!(log.read(lane(0), &mut cursor, 1, &mut out), Read::Some);
}

#[test]
fn every_waiting_reader_is_woken() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let readers: Vec<_> = (0..5).map(|_| Arc::new(Woken::default())).collect();
    for reader in &readers {
        let waker = Waker::from(reader.clone());
        log.listen(lane(0), &waker);
    }
    append(&log, "news").waiters.wake();
    assert!(readers.iter().all(|reader| reader.times() == 1));
}

#[test]
fn a_sealed_log_refuses_appends_and_is_read_to_its_end() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    numbered(&log, 3);
    let mut caught_up = Cursor { next: 4 };
    log.listen(lane(0), &waker);
    assert_eq!(log.read(lane(0), &mut caught_up, 1, &mut Vec::new()), Read::Empty);
    assert_eq!(log.seal(), [3, 0, 0, 0]);
    assert_eq!(woken.times(), 1);
    assert_eq!(log.append(slot(0), 1, &draft(b"late")).unwrap_err(), Sealed.into());
    assert_eq!(log.append_to_all(1, &draft(b"late"), || panic!("ran")).unwrap_err(), Sealed.into());
    assert_eq!(log.heads(), [3, 0, 0, 0]);
    let mut cursor = Cursor { next: FIRST };
    assert_eq!(read(&log, &mut cursor, 1 << 20).1.len(), 3);
    assert_eq!(read(&log, &mut cursor, 1 << 20).0, Read::End);
    assert_eq!(read(&log, &mut caught_up, 1 << 20).0, Read::End);
    assert_eq!(log.resume(lane(0), 4), Answer::Resume(Cursor { next: 4 }));
}

#[test]
fn an_event_for_all_lanes_is_in_each_under_one_stamp_later_than_all_before() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    for _ in 0..100 {
        let _ = log.append(slot(2), 5, &draft(b"k")).unwrap();
    }
    let before = log.append(slot(2), 5, &draft(b"k")).unwrap();
    let mut heads = Vec::new();
    let appended = log.append_to_all(5, &draft(b"all"), || heads.push(())).unwrap();
    assert_eq!(heads.len(), 1);
    assert_eq!(appended.iter().map(|one| one.lane.index()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(appended.iter().map(|one| one.sequence).collect::<Vec<_>>(), [1, 1, 102, 1]);
    assert!(appended.iter().all(|one| one.stamp == appended[0].stamp && one.stamp > before.stamp));
    for index in 0..4 {
        assert!(log.append(slot(index), 5, &draft(b"k")).unwrap().stamp > appended[0].stamp);
    }
}

#[test]
fn what_is_appended_under_an_earlier_stamp_is_read_in_its_place() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let begun = log.stamp_in(slot(0), 5);
    let later = append(&log, "later").stamp;
    let own = log.append_as(slot(0), begun, &draft(b"own")).unwrap();
    assert_eq!((own.sequence, own.stamp), (2, begun));
    let last = append(&log, "last").stamp;
    assert!(later < last, "the clock goes on");
    let mut batches = Vec::new();
    assert_eq!(log.read(lane(0), &mut Cursor { next: FIRST }, 1 << 20, &mut batches), Read::Some);
    let bodies: Vec<_> =
        batches.iter().map(|batch| [&batch.head()[..], &batch.records[..]].concat()).collect();
    let batches = bodies.iter().map(|body| BatchRef::parse(body, log.lanes()).unwrap());
    let stamps: Vec<_> = batches
        .flat_map(|batch| batch.records(1).map(|(_, record)| record.unwrap().unwrap().stamp))
        .collect();
    assert_eq!(stamps, [later, begun, last]);
}

#[test]
fn what_an_event_for_all_lanes_does_before_unlocking_is_done_before_any_later_event() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let (entered, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !entered.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            assert_eq!(append(&log, "later").sequence, 2);
            assert!(done.load(Ordering::SeqCst));
        });
        let appended = log.append_to_all(1, &draft(b"all"), || {
            entered.store(true, Ordering::SeqCst);
            (0..1_000).for_each(|_| std::thread::yield_now());
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(appended.unwrap().len(), 4);
    });
}

#[test]
fn concurrent_appends_are_contiguous_and_ordered_in_every_lane() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 3_000;
    let log = ChangeLog::new(Lanes::default(), Retention { events: 1 << 20, bytes: 64 << 20 });
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let log = &log;
            scope.spawn(move || {
                let mut last = [0; 4];
                for n in 0..EACH {
                    let key = [writer.to_le_bytes(), n.to_le_bytes()].concat();
                    let appended = log.append(slot((n % 64) as u8), 1, &draft(&key)).unwrap();
                    let last = &mut last[appended.lane.index()];
                    assert!(*last < appended.sequence);
                    *last = appended.sequence;
                    appended.waiters.wake();
                }
            });
        }
        for index in 0..4 {
            let log = &log;
            scope.spawn(move || follow_to(log, lane(index), WRITERS * EACH / 4));
        }
    });
    assert_eq!(log.heads(), [WRITERS * EACH / 4; 4]);
}

/// Reads a lane to `head` beside its writers, sleeping whenever it is empty.
fn follow_to(log: &ChangeLog, lane: LaneId, head: Sequence) {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let (mut cursor, mut batches) = (Cursor { next: FIRST }, Vec::new());
    while cursor.next <= head {
        log.listen(lane, &waker);
        match log.read(lane, &mut cursor, 4_096, &mut batches) {
            Read::Some => {}
            Read::Empty => std::thread::park(),
            other => panic!("{other:?}"),
        }
    }
    let mut of_writer = [None; 4];
    for (index, (at, key)) in keys(&batches).into_iter().enumerate() {
        assert_eq!(at, index as u64 + 1);
        let n = u64::from_le_bytes(key[8..].try_into().unwrap());
        let last = &mut of_writer[usize::from(key[0])];
        assert!(last.is_none_or(|last| last < n));
        *last = Some(n);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Read { from: prop::sample::Index, bytes_max: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop_oneof![9 => 0_usize..300, 1 => 0_usize..100_000].prop_map(Step::Append),
        1 => (any::<prop::sample::Index>(), 0_usize..200_000)
            .prop_map(|(from, bytes_max)| Step::Read { from, bytes_max }),
    ]
}

proptest! {
    #[test]
    fn retention_is_never_exceeded_and_what_is_held_can_be_read(
        events in 1_u64..300,
        bytes in prop_oneof![Just(0), Just(usize::MAX / 2), Just(2 << 20)],
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let retention = Retention { events, bytes };
        let mut log = LaneLog::new(lane(0), retention);
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Append(size) => {
                    let head = log.head();
                    let appended = log.append(&sized(size), Stamp(n as u64));
                    prop_assert_eq!(appended.unwrap().sequence, head + 1);
                    prop_assert_eq!(log.head(), head + 1);
                }
                Step::Read { from, bytes_max } => {
                    let held = log.oldest()..log.head() + 1;
                    let mut cursor = Cursor { next: held.start + from.index(1 + (held.end - held.start) as usize) as u64 };
                    prop_assert_eq!(log.resume(cursor.next), Answer::Resume(cursor));
                    let mut out = Vec::new();
                    let (start, mut next) = (cursor.next, cursor.next);
                    let got = log.read(&mut cursor, bytes_max, &mut out);
                    prop_assert_eq!(got, if start == held.end { Read::Empty } else { Read::Some });
                    for (at, _) in keys(&out) {
                        prop_assert_eq!(at, next);
                        next += 1;
                    }
                    prop_assert_eq!(next, cursor.next);
                    let handed: usize = out.iter().map(|batch| batch.records.len()).sum();
                    prop_assert!(out.len() <= 1 || handed <= bytes_max);
                }
            }
            let held = log.head() + 1 - log.oldest();
            prop_assert!(held <= events, "{} events held of {}", held, events);
            prop_assert!(held >= events.min(log.head()) * 15 / 16 || bytes != usize::MAX / 2, "only {} events", held);
            prop_assert!(log.bytes() <= bytes.max(Retention::BYTES_MIN), "{} bytes", log.bytes());
        }
    }
}
