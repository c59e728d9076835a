//! What a change log really holds in memory, measured from outside. A process of its own: nothing else allocates.

#![cfg(target_os = "linux")]

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hash::CacheId;
use tidings_proto::id::{FIRST, Lanes, Slot};
use tidings_proto::log::{Answer, ChangeLog, Cursor, Read, Retention, SEGMENT_BYTES};
use tidings_proto::record::{Draft, DraftTarget, Parts};

/// Enough that what the allocator and the test harness hold does not count.
const RETENTION_BYTES: usize = 16 << 20;

/// Several times what fits, so that every page of the log has been written.
const EVENTS: u64 = 1_000_000;

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("has a resident size");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number of kB") << 10
}

/// The shortest keys make the largest share of overhead: a reader that never sleeps seals a segment per event.
#[test]
fn many_segments_of_one_event_stay_within_the_retention() {
    let slot = Slot::new(0).expect("a slot");
    let draft = Draft::new(Parts {
        kind: EventKind::Deleted,
        operation: Operation::Remove,
        ignorable: false,
        cache: CacheId(1),
        slot,
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(b"k"),
    })
    .expect("a short key");
    let lanes = Lanes::new(1).expect("one lane");
    let log = ChangeLog::new(lanes, Retention { events: u64::MAX, bytes: RETENTION_BYTES });
    let lane = lanes.lane(0).expect("the lane");
    let (mut cursor, mut out) = (Cursor { next: FIRST }, Vec::new());
    let before = resident_bytes();
    for _ in 0..EVENTS {
        let _ = log.append(slot, 1, &draft).expect("not sealed");
        assert_eq!(log.read(lane, &mut cursor, 1, &mut out), Read::Some);
        assert_eq!((out.len(), out[0].count), (1, 1));
        out.clear();
        assert!(log.bytes() <= RETENTION_BYTES);
    }
    assert!(matches!(log.resume(lane, EVENTS * 3 / 4), Answer::Reset(_)), "the log held nearly everything");
    let grown = resident_bytes().saturating_sub(before);
    let allowed = RETENTION_BYTES + 2 * SEGMENT_BYTES + (2 << 20);
    println!("{} MiB accounted for, {} MiB resident", log.bytes() >> 20, grown >> 20);
    assert!(grown <= allowed, "{grown} bytes resident, {allowed} allowed");
    assert!(grown >= RETENTION_BYTES / 2, "{grown} bytes resident: too few to have measured the log");
}
