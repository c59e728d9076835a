use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Wake;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::super::journal::{OpenWrite, Put, Sink, Unwritten};
use super::super::{Answer, AppendError, Cursor, Read, Sealed, Stuck};
use super::*;
use crate::id::Incarnation;
use crate::record::{BatchRef, Record, Target};

const ID: LogId = LogId(0x5eed);
const WALL_MS: u64 = 1_700_000_000_000;

/// How often somebody was woken.
#[derive(Default)]
struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Files in memory, and what became of them.
#[derive(Debug, Default)]
struct Disk {
    files: Vec<[Vec<u8>; 2]>,
    present: Vec<usize>,
    /// Bytes that the newest write put into its file.
    newest: (usize, usize),
    given_up: Option<&'static str>,
    full: bool,
    /// Nor can anything be taken away.
    stuck: bool,
    /// Of this lane.
    stuck_at: Option<usize>,
    writes: usize,
}

fn sinks(disk: &Arc<Mutex<Disk>>, lanes: Lanes) -> Vec<Sink> {
    let sink = |lane: LaneId| -> Sink {
        let (disk, lane) = (disk.clone(), lane.index());
        Box::new(move |put| {
            let mut disk = disk.lock();
            disk.writes += 1;
            let bytes = match put {
                _ if disk.stuck || disk.stuck_at == Some(lane) => return Err(Unwritten::Stuck),
                _ if disk.full => return Err(Unwritten::GivenUp),
                Put::GiveUp(why) => {
                    disk.given_up = Some(why);
                    return Err(Unwritten::GivenUp);
                }
                Put::Turn(bytes) => {
                    disk.present[lane] ^= 1;
                    let present = disk.present[lane];
                    disk.files[lane][present].clear();
                    bytes
                }
                Put::Append(bytes) => bytes,
            };
            let present = disk.present[lane];
            disk.files[lane][present].extend_from_slice(bytes);
            disk.newest = (lane, bytes.len());
            Ok(())
        })
    };
    *disk.lock() = Disk {
        files: vec![Default::default(); usize::from(lanes.count())],
        present: vec![1; usize::from(lanes.count())],
        ..Disk::default()
    };
    lanes.ids().map(sink).collect()
}

fn written_down(lanes: u8, events: u64) -> (ChangeLog, Arc<Mutex<Disk>>) {
    let (lanes, disk) = (Lanes::new(lanes).unwrap(), Arc::default());
    let sinks = sinks(&disk, lanes);
    (ChangeLog::written_down(lanes, Retention { events, bytes: 0 }, ID, sinks), disk)
}

fn life(lanes: Lanes) -> Life {
    let origin = Origin { node: "n1".parse().unwrap(), incarnation: Incarnation(7) };
    let machine = "since then".to_owned();
    Life { cluster: "shop".to_owned(), origin, log: ID, lanes, hash_version: HASH_VERSION, machine }
}

fn read(disk: &Disk) -> Result<Recovered, Distrust> {
    let lanes = Lanes::new(u8::try_from(disk.files.len()).unwrap()).unwrap();
    Recovered::read(life(lanes), &disk.files)
}

fn slot(number: u8) -> Slot {
    Slot::new(number).unwrap()
}

fn append(log: &ChangeLog, slot: Slot, key: &[u8]) {
    append_at(log, slot, key, WALL_MS).unwrap();
}

fn append_at(log: &ChangeLog, slot: Slot, key: &[u8], wall_ms: u64) -> Result<(), AppendError> {
    let draft = Draft::new(Parts {
        kind: EventKind::Updated,
        operation: Operation::Insert,
        ignorable: false,
        cache: CacheId(9),
        slot,
        version: None,
        metadata: &[],
        value: None,
        target: DraftTarget::Key(key),
    });
    log.append(slot, wall_ms, &draft.unwrap())?.waiters.wake();
    Ok(())
}

fn begin(log: &ChangeLog, slot: Slot, key: &[u8]) -> Option<OpenWrite> {
    log.write_begins(slot, || WALL_MS, Some((CacheId(9), key))).unwrap()
}

/// A record as a peer understands it: its sequence, stamp, key and whether its truth is uncertain.
type Seen = (Sequence, Stamp, Option<Vec<u8>>, bool);

/// What a lane has from a position on, which it holds.
fn from(log: &ChangeLog, lane: LaneId, next: Sequence) -> Vec<Seen> {
    let Answer::Resume(mut cursor) = log.resume(lane, next) else { panic!("{next} is not held") };
    let mut batches = Vec::new();
    while log.read(lane, &mut cursor, usize::MAX, &mut batches) == Read::Some {}
    let mut seen = Vec::new();
    for batch in batches {
        let body = [&batch.head()[..], &batch.records].concat();
        for (sequence, record) in BatchRef::parse(&body, log.lanes()).unwrap().records(1) {
            let Record { stamp, target, uncertain, .. } = record.unwrap().unwrap();
            let key = if let Target::Key(key) = target { Some(key.to_vec()) } else { None };
            seen.push((sequence, stamp, key, uncertain));
        }
    }
    seen
}

/// The oldest position that a lane holds.
fn oldest(log: &ChangeLog, lane: LaneId) -> Sequence {
    (1..).find(|next| matches!(log.resume(lane, *next), Answer::Resume(_))).unwrap()
}

#[test]
fn what_a_lane_remembers_is_there_after_any_number_of_files() {
    let (log, disk) = written_down(2, 8);
    for number in 0..100_u8 {
        append(&log, slot(number % 7), &[number]);
        let recovered = read(&disk.lock()).unwrap();
        assert_eq!(recovered.open_writes(), 0);
        let (former, heads) = recovered.into_log();
        assert_eq!(heads, log.heads());
        for lane in log.lanes().ids() {
            let held = oldest(&log, lane);
            assert_eq!(from(&former, lane, held), from(&log, lane, held), "lane {}", lane.number());
            let next = heads[lane.index()] + 1;
            assert_eq!(former.read(lane, &mut Cursor { next }, 1, &mut Vec::new()), Read::End);
            assert!(next - oldest(&former, lane) <= 16, "more than two files' worth");
        }
    }
    assert!(oldest(&read(&disk.lock()).unwrap().into_log().0, log.lanes().lane(0).unwrap()) > 1);
}

#[test]
fn a_write_that_is_under_way_is_told_as_uncertain_after_everything_else() {
    let (log, disk) = written_down(1, 4);
    let lane = log.lanes().lane(0).unwrap();
    let begin = |key: &[u8]| begin(&log, slot(3), key).unwrap();
    let (lost, done) = (begin(b"lost"), begin(b"done"));
    for number in 0..20 {
        append(&log, slot(3), &[number]);
    }
    log.write_ended(done);
    assert_eq!(read(&disk.lock()).unwrap().open_writes(), 1, "it was carried from file to file");
    let (former, heads) = read(&disk.lock()).unwrap().into_log();
    let (last, uncertain) = (heads[0], from(&former, lane, heads[0]));
    assert_eq!(last, log.heads()[0] + 1);
    assert_eq!(uncertain, [(last, uncertain[0].1, Some(b"lost".to_vec()), true)]);
    assert_eq!(former.append(slot(3), 0, &Draft::canary()).err(), Some(Sealed.into()));
    log.write_ended(lost);
    assert_eq!(read(&disk.lock()).unwrap().open_writes(), 0);
}

#[test]
fn a_write_that_is_under_way_removes_what_is_older_than_its_beginning_and_nothing_later() {
    let (log, disk) = written_down(1, 100);
    let lane = log.lanes().lane(0).unwrap();
    let begin_at = |key: &[u8], wall_ms| {
        log.write_begins(slot(3), || wall_ms, Some((CacheId(9), key))).unwrap().unwrap()
    };
    let held = |key, at| append_at(&log, slot(3), key, WALL_MS + at).unwrap();
    held(b"before both", 0);
    let first = begin_at(b"first", WALL_MS + 10);
    held(b"between", 10);
    let second = begin_at(b"second", WALL_MS + 20);
    held(b"after both", 30);
    let (former, heads) = read(&disk.lock()).unwrap().into_log();
    let seen = from(&former, lane, 1);
    assert_eq!(seen.len() as u64, heads[0]);
    let stamp_of =
        |name: &str| seen.iter().find(|seen| seen.2.as_deref() == Some(name.as_bytes())).unwrap().1;
    let stamps = ["before both", "first", "between", "second", "after both"].map(stamp_of);
    assert!(stamps.is_sorted_by(|one, next| one < next), "{stamps:?}");
    assert_eq!((stamps[1].wall_ms(), stamps[3].wall_ms()), (WALL_MS + 10, WALL_MS + 20));
    [first, second].into_iter().for_each(|write| log.write_ended(write));
}

#[test]
fn nothing_is_appended_while_files_that_lack_it_may_be_trusted() {
    let (log, disk) = written_down(2, 100);
    let under_way = begin(&log, slot(1), b"under way").unwrap();
    append(&log, slot(0), b"before");
    disk.lock().stuck = true;
    let stuck = Some(AppendError::Stuck(Stuck));
    assert_eq!(append_at(&log, slot(0), b"lost", WALL_MS).err(), stuck);
    assert_eq!(log.append_to_all(WALL_MS, &Draft::canary(), || panic!("it is not made")).err(), stuck);
    assert_eq!(log.write_begins(slot(0), || WALL_MS, Some((CacheId(9), b"key"))), Err(Stuck));
    assert_eq!(log.write_begins(slot(0), || WALL_MS, None), Err(Stuck));
    log.write_ended(under_way);
    assert_eq!(log.heads(), [1, 0]);
    let recovered = read(&disk.lock()).unwrap();
    assert_eq!(recovered.open_writes(), 1, "the end of a write cannot be noted either");
    let (former, _) = recovered.into_log();
    let lane = log.lanes().lane(0).unwrap();
    assert_eq!(from(&former, lane, 1), from(&log, lane, 1), "what the log has is in the files");
    // Somebody has taken them away: nobody trusts them, and changes are made again.
    {
        let mut disk = disk.lock();
        (disk.stuck, disk.full) = (false, true);
    }
    append(&log, slot(0), b"after");
    assert_eq!(from(&log, lane, 2)[0].2, Some(b"after".to_vec()), "nobody has seen what was refused");
    assert_eq!(begin(&log, slot(0), b"key"), None);
}

#[test]
fn of_a_change_of_all_lanes_whose_last_is_stuck_readers_of_the_first_are_woken() {
    let (log, disk) = written_down(2, 100);
    let lanes: Vec<LaneId> = log.lanes().ids().collect();
    let wakes = Arc::new(Wakes::default());
    log.listen(lanes[0], &wakes.clone().into());
    disk.lock().stuck_at = Some(1);
    assert!(log.append_to_all(WALL_MS, &Draft::canary(), || panic!("it is not made")).is_err());
    assert_eq!((log.heads(), wakes.0.load(Ordering::SeqCst)), (vec![1, 0], 1));
    let (_, heads) = read(&disk.lock()).unwrap().into_log();
    assert_eq!(heads, log.heads());
}

#[test]
fn a_life_that_ended_in_a_change_of_keys_that_nobody_can_name_is_not_trusted() {
    let (log, disk) = written_down(4, 4);
    let deriving = log.write_begins(slot(5), || WALL_MS, None).unwrap().unwrap();
    append(&log, slot(5), b"source");
    assert_eq!(read(&disk.lock()).unwrap_err(), Distrust::Unnamed);
    log.write_ended(deriving);
    assert!(read(&disk.lock()).is_ok());
}

#[test]
fn a_log_that_is_sealed_lets_go_of_its_files() {
    let (log, disk) = written_down(2, 100);
    let under_way = begin(&log, slot(0), b"k").unwrap();
    assert!(Arc::strong_count(&disk) > 1);
    log.seal();
    assert_eq!(Arc::strong_count(&disk), 1);
    log.write_ended(under_way);
    assert!(begin(&log, slot(0), b"k").is_none());
    assert_eq!(read(&disk.lock()).unwrap().open_writes(), 1, "what had not ended by then is taken for open");
}

#[test]
fn a_log_that_is_not_written_down_notes_no_writes() {
    let log = ChangeLog::new(Lanes::default(), Retention::default());
    let no_clock = || panic!("it is not read");
    assert_eq!(log.write_begins(slot(1), no_clock, Some((CacheId(9), b"key"))), Ok(None));
}

#[test]
fn what_cannot_be_written_is_not_tried_again_and_changes_go_on() {
    let (log, disk) = written_down(1, 100);
    append(&log, slot(0), b"before");
    disk.lock().full = true;
    append(&log, slot(0), b"lost");
    disk.lock().full = false;
    let writes = disk.lock().writes;
    append(&log, slot(0), b"after");
    assert_eq!(begin(&log, slot(0), b"key"), None);
    assert_eq!(disk.lock().writes, writes, "a file with a hole would be trusted");
    assert_eq!(log.heads(), [3]);
}

#[test]
fn more_writes_under_way_than_a_file_holds_give_up_the_files() {
    let (log, disk) = written_down(1, 100);
    let key = [7; KEY_BYTES_MAX];
    let most = Retention::BYTES_MIN / 4 / KEY_BYTES_MAX;
    let open: Vec<OpenWrite> = (0..most + 1).map_while(|_| begin(&log, slot(0), &key)).collect();
    assert!((most / 2..=most).contains(&open.len()), "{} of {most}", open.len());
    assert!(disk.lock().given_up.is_some());
    open.into_iter().for_each(|write| log.write_ended(write));
}

#[test]
fn files_are_as_large_as_what_a_lane_remembers_and_no_larger() {
    let (log, disk) = written_down(1, u64::MAX);
    let key = [7; KEY_BYTES_MAX];
    for _ in 0..1_000 {
        append(&log, slot(0), &key);
        let disk = disk.lock();
        assert!(disk.files[0].iter().all(|file| file.len() <= Retention::BYTES_MIN));
    }
    let (former, heads) = read(&disk.lock()).unwrap().into_log();
    let held = heads[0] + 1 - oldest(&former, log.lanes().lane(0).unwrap());
    assert!(held as usize * KEY_BYTES_MAX > Retention::BYTES_MIN / 2, "{held} records");
}

#[test]
fn a_life_is_trusted_by_its_own_node_in_its_own_cluster_on_a_machine_that_stayed_up() {
    let judged = |change: fn(&mut Life)| {
        let mut life = life(Lanes::default());
        change(&mut life);
        let read = Life::decode(&life.encode()).unwrap();
        assert_eq!(read, life);
        read.judge("shop", &"n1".parse().unwrap(), "since then")
    };
    assert_eq!(judged(|_| {}), Ok(()));
    assert_eq!(judged(|life| life.cluster = "bar".to_owned()), Err(Distrust::Cluster("bar".to_owned())));
    let other: NodeId = "n2".parse().unwrap();
    assert_eq!(judged(|life| life.origin.node = "n2".parse().unwrap()), Err(Distrust::Node(other)));
    assert_eq!(judged(|life| life.hash_version += 1), Err(Distrust::Hash));
    assert_eq!(judged(|life| life.machine = "later".to_owned()), Err(Distrust::Machine));
    let unknown = Life { machine: String::new(), ..life(Lanes::default()) };
    assert_eq!(unknown.judge("shop", &"n1".parse().unwrap(), ""), Err(Distrust::Machine));
}

#[test]
fn a_life_has_golden_bytes() {
    let encoded = life(Lanes::default()).encode();
    let (magic, entry) = encoded.split_at(MAGIC.len());
    assert_eq!(magic, b"tidings log 1\n");
    let body = b"\x04shop\x02n1\x07\xfb\xed\x5e\x04\x02\x0asince then";
    assert_eq!(entry[..4], u32::try_from(body.len()).unwrap().to_le_bytes());
    assert_eq!(entry[8..entry.len() - 8], body[..]);
    for at in 0..encoded.len() {
        let mut flipped = encoded.clone();
        flipped[at] ^= 0x20;
        assert_eq!(Life::decode(&flipped), Err(Distrust::Unreadable), "byte {at}");
        assert_eq!(Life::decode(&encoded[..at]), Err(Distrust::Unreadable), "{at} bytes");
    }
}

#[test]
fn a_lane_that_is_missing_or_of_another_log_is_not_trusted() {
    let (log, disk) = written_down(2, 4);
    (0..30).for_each(|number| append(&log, slot(number % 2), &[number]));
    let files = disk.lock().files.clone();
    let mut of = life(log.lanes());
    let damaged = |read: Result<Recovered, Distrust>| matches!(read, Err(Distrust::Damaged { .. }));
    assert!(Recovered::read(of.clone(), &files).is_ok());
    assert!(damaged(Recovered::read(of.clone(), &files[..1])));
    assert!(damaged(Recovered::read(of.clone(), &[files[0].clone(), Default::default()])));
    assert!(damaged(Recovered::read(of.clone(), &[files[1].clone(), files[0].clone()])), "lanes exchanged");
    let older = [files[0].clone(), [files[1][0].clone(), files[1][0].clone()]];
    assert!(damaged(Recovered::read(of.clone(), &older)), "twice the same file");
    of.log = LogId(ID.0 + 1);
    assert!(damaged(Recovered::read(of, &files)));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(u8, u8),
    All,
    Begin(u8),
    End(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..64_u8, any::<u8>()).prop_map(|(slot, key)| Step::Append(slot, key)),
        1 => Just(Step::All),
        2 => (0..64_u8).prop_map(Step::Begin),
        2 => any::<usize>().prop_map(Step::End),
    ];
    prop::collection::vec(step, 1..60)
}

/// Does these steps; returns how many writes are under way in the end.
fn run(log: &ChangeLog, steps: &[Step]) -> usize {
    let mut open = Vec::new();
    for step in steps {
        match *step {
            Step::Append(at, key) => append(log, slot(at), &[key; 20]),
            Step::All => {
                let appended = log.append_to_all(WALL_MS, &Draft::canary(), || {}).unwrap();
                appended.into_iter().for_each(|appended| appended.waiters.wake());
            }
            Step::Begin(at) => open.push(begin(log, slot(at), &[at]).unwrap()),
            Step::End(_) if open.is_empty() => {}
            Step::End(which) => log.write_ended(open.swap_remove(which % open.len())),
        }
    }
    open.len()
}

proptest! {
    #[test]
    fn everything_that_was_written_is_recovered(steps in steps(), events in 1..12_u64) {
        let (log, disk) = written_down(4, events);
        let open = run(&log, &steps);
        let recovered = read(&disk.lock()).unwrap();
        prop_assert_eq!(recovered.open_writes(), open);
        prop_assert_eq!(recovered.lanes.iter().map(|tail| tail.next - 1).collect::<Vec<_>>(), log.heads());
    }

    #[test]
    fn who_is_killed_in_the_middle_of_a_write_loses_that_one_alone(
        steps in steps(), events in 1..12_u64, cut in any::<prop::sample::Index>(),
    ) {
        let (log, disk) = written_down(4, events);
        run(&log, &steps);
        let before = log.heads();
        append(&log, slot(1), b"not seen by anybody");
        let mut disk = disk.lock();
        let (lane, bytes) = disk.newest;
        let present = disk.present[lane];
        let file = &mut disk.files[lane][present];
        file.truncate(file.len() - 1 - cut.index(bytes - 1));
        let recovered = read(&disk).unwrap();
        prop_assert_eq!(recovered.lanes.iter().map(|tail| tail.next - 1).collect::<Vec<_>>(), before);
    }

    #[test]
    fn who_is_killed_in_the_middle_of_a_new_file_loses_nothing(steps in steps(), cut in any::<prop::sample::Index>()) {
        let (log, disk) = written_down(1, 4);
        let open = run(&log, &steps);
        // As far as it got before anything was written behind it.
        let mut disk = disk.lock();
        let next = log.heads()[0] + 1;
        let (page, present) = ((0_u64..).find(|page| is_page(&disk, 0, *page)).unwrap(), disk.present[0]);
        let mut begun = Vec::new();
        put_entry(ID, &[&[PAGE], &(page + 1).to_le_bytes(), &[0], &next.to_le_bytes()], &mut begun);
        begun.truncate(cut.index(begun.len()));
        disk.files[0][present ^ 1] = begun;
        let recovered = read(&disk).unwrap();
        prop_assert_eq!((recovered.lanes[0].next, recovered.open_writes()), (next, open));
    }

    #[test]
    fn no_byte_can_be_changed_unnoticed(
        steps in steps(), events in 1..12_u64, at in any::<prop::sample::Index>(), by in 1..=u8::MAX,
    ) {
        let (log, disk) = written_down(2, events);
        run(&log, &steps);
        let mut files = disk.lock().files.clone();
        let all = files.iter_mut().flatten().flat_map(|file| file.iter_mut());
        let count = disk.lock().files.iter().flatten().map(Vec::len).sum::<usize>();
        *all.into_iter().nth(at.index(count)).unwrap() ^= by;
        let judged = Recovered::read(life(log.lanes()), &files);
        prop_assert!(matches!(judged, Err(Distrust::Damaged { .. })), "{:?}", judged);
    }
}

/// Whether the present file of a lane is the one of this number.
fn is_page(disk: &Disk, lane: usize, number: u64) -> bool {
    let file = &disk.files[lane][disk.present[lane]];
    file[HEAD_BYTES + 1..][..8] == number.to_le_bytes()
}
