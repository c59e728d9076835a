//! The files in which a log is written down.
//!
//! An input is what stands in them between lengths and checksums, which are added here: what is changed would not get
//! behind those otherwise.

use std::sync::{Arc, Mutex, PoisonError};

use tidings_proto::event::{EventKind, Operation};
use tidings_proto::hash::{CacheId, HASH_VERSION};
use tidings_proto::id::{Incarnation, Lanes, LogId, NodeId, Origin, Slot};
use tidings_proto::log::{Answer, ChangeLog, Cursor, Life, Put, Read, Recovered, Retention, Sink};
use tidings_proto::record::{BatchRef, Draft, DraftTarget, Parts};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Whose the files are.
const LOG: LogId = LogId(7);

/// First byte of an input that is of the file which says so; others are of a lane, and begin its second file at an entry
/// without bytes.
const LIFE: u8 = 0;

fn life() -> Life {
    Life {
        cluster: "demo".to_owned(),
        origin: Origin { node: NodeId::new("n1").expect("a valid node id"), incarnation: Incarnation(9) },
        log: LOG,
        lanes: Lanes::new(1).expect("a power of two"),
        hash_version: HASH_VERSION,
        machine: "since then".to_owned(),
    }
}

fn entry(seed: u64, body: &[u8], out: &mut Vec<u8>) {
    let length = body.len() as u32;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&(!length).to_le_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(&xxh3_64_with_seed(body, seed).to_le_bytes());
}

/// What a life has left. What is trusted can be served.
pub(crate) fn files(bytes: &[u8]) -> bool {
    let Some((first, mut rest)) = bytes.split_first() else { return false };
    if *first == LIFE {
        let mut file = b"tidings log 1\n".to_vec();
        entry(0, rest, &mut file);
        let Ok(life) = Life::decode(&file) else { return false };
        assert_eq!(Life::decode(&life.encode()).as_ref(), Ok(&life), "what is written is read");
        return true;
    }
    let (mut files, mut at) = ([Vec::new(), Vec::new()], 0);
    while let Some((length, more)) = rest.split_first() {
        let (body, more) = more.split_at(usize::from(*length).min(more.len()));
        rest = more;
        match body {
            [] if at == 0 => at = 1,
            body => entry(LOG.0, body, &mut files[at]),
        }
    }
    let Ok(recovered) = Recovered::read(life(), &[files]) else { return false };
    serve(recovered);
    true
}

fn serve(recovered: Recovered) {
    let open = recovered.open_writes();
    let (log, heads) = recovered.into_log();
    let lane = log.lanes().lane(0).expect("there is one");
    let (mut cursor, mut batches) = (Cursor { next: heads[0] + 1 }, Vec::new());
    assert_eq!(log.read(lane, &mut cursor, 1, &mut batches), Read::End);
    // From the oldest that is held: whoever asks for less is sent to the head.
    cursor.next = heads[0] + 1 - held(&log, heads[0]);
    while log.read(lane, &mut cursor, 1 << 10, &mut batches) == Read::Some {}
    let mut uncertain = 0;
    for batch in batches {
        let body = [&batch.head()[..], &batch.records].concat();
        let read = BatchRef::parse(&body, log.lanes()).expect("a head of its own");
        uncertain += read.records(1).filter(|(_, it)| matches!(it, Ok(Ok(it)) if it.uncertain)).count();
    }
    assert!(uncertain >= open, "every write that was under way is told");
}

/// How many records are held: as many as resume.
fn held(log: &ChangeLog, head: u64) -> u64 {
    let lane = log.lanes().lane(0).expect("there is one");
    let resumes = |count: &u64| {
        let from = head.checked_sub(*count).map(|before| before + 1);
        from.is_some_and(|from| matches!(log.resume(lane, from), Answer::Resume(_)))
    };
    (1..).take_while(resumes).last().unwrap_or(0)
}

/// A life, and what logs have written down.
pub(crate) fn samples() -> Vec<Vec<u8>> {
    let encoded = life().encode();
    let head = b"tidings log 1\n".len() + 8;
    let life = [&[LIFE][..], &encoded[head..encoded.len() - 8]].concat();
    vec![life, written(2), written(9)]
}

/// Two files as a log with some writes leaves them, each with so many records at most.
fn written(events: u64) -> Vec<u8> {
    let disk = Arc::new(Mutex::new(([Vec::new(), Vec::new()], 1)));
    let kept = disk.clone();
    let sink: Sink = Box::new(move |put| {
        let (files, present) = &mut *kept.lock().unwrap_or_else(PoisonError::into_inner);
        match put {
            Put::Append(bytes) => files[*present].extend_from_slice(bytes),
            Put::Turn(bytes) => {
                *present ^= 1;
                files[*present] = bytes.to_vec();
            }
            Put::GiveUp(why) => unreachable!("{why}"),
        }
        Ok(())
    });
    let lanes = Lanes::new(1).expect("a power of two");
    let log = ChangeLog::written_down(lanes, Retention { events, bytes: 0 }, LOG, vec![sink]);
    let (slot, cache) = (Slot::of_hash(0), CacheId(0x0102_0304));
    let begin = |key: &[u8]| log.write_begins(slot, || 1_700_000_000_000, Some((cache, key)));
    let ended = begin(b"\x05ended").expect("it is not stuck").expect("it is written down");
    let _under_way = begin(b"\x04open");
    for key in [&b"\x01a"[..], b"\x02bc", b"\x03def", b"\x01a"] {
        let draft = Draft::new(Parts {
            kind: EventKind::Deleted,
            operation: Operation::Remove,
            ignorable: false,
            cache,
            slot,
            version: None,
            metadata: &[],
            value: None,
            target: DraftTarget::Key(key),
        });
        log.append(slot, 1_700_000_000_000, &draft.expect("it is small")).expect("it is open").waiters.wake();
    }
    log.write_ended(ended);
    drop(log);
    let (files, _) = &*disk.lock().unwrap_or_else(PoisonError::into_inner);
    let mut sample = vec![1];
    for (turn, file) in files.iter().enumerate() {
        if turn == 1 {
            sample.push(0);
        }
        let mut rest = &file[..];
        while let Some((length, _)) = rest.split_first() {
            let length = usize::from(*length);
            sample.push(length as u8);
            sample.extend_from_slice(&rest[8..][..length]);
            rest = &rest[8 + length + 8..];
        }
    }
    sample
}
