use std::sync::mpsc;
use std::thread;

use tempfile::TempDir;

use tidings_proto::id::{Incarnation, Slot};
use tidings_proto::log::{AppendError, Stuck};
use tidings_proto::record::Draft;

use super::*;

fn life(files: &LogFiles) -> Life {
    Life {
        cluster: "shop".to_owned(),
        origin: Origin { node: "n1".parse().expect("a good name"), incarnation: Incarnation(1) },
        log: LogId(7),
        lanes: Lanes::default(),
        hash_version: HASH_VERSION,
        machine: files.state.machine.clone(),
    }
}

/// Nothing can be put there any more, and nothing taken away: neither can be done to a directory that holds something.
fn keep_life(directory: &TempDir) {
    let life = directory.path().join(LIFE);
    fs::remove_file(&life).expect("it is there");
    fs::create_dir_all(life.join("held")).expect("nothing is there");
}

fn let_go_of_life(directory: &TempDir) {
    fs::remove_dir_all(directory.path().join(LIFE)).expect("it is there");
    fs::write(directory.path().join(LIFE), "").expect("there is room");
}

fn append(log: &ChangeLog) -> Result<(), AppendError> {
    log.append(Slot::of_hash(0), 1, &Draft::canary())?.waiters.wake();
    Ok(())
}

/// A log in a directory of its own, which says so.
fn written(directory: &TempDir) -> (LogFiles, ChangeLog) {
    let files = LogFiles::open(directory.path()).expect("nobody else is there");
    let log = files.log(Lanes::default(), Retention::default(), LogId(7));
    files.state.belong_to(&life(&files));
    assert!(directory.path().join(LIFE).exists() && files.are_written());
    (files, log)
}

#[test]
fn who_meets_a_failure_of_another_lane_goes_on_only_once_nobody_trusts_the_files() {
    let directory = TempDir::new().expect("a directory");
    let (files, _log) = written(&directory);
    let lane = Lanes::default().ids().next().expect("there is one");
    let mut sink = LaneFiles::create(files.state.clone(), LogId(8), lane).expect("there is room");
    let (done, is_done) = mpsc::channel();
    let life = files.state.life.lock();
    files.state.failed.store(true, Ordering::Release);
    thread::scope(|scope| {
        scope.spawn(|| done.send(sink(Put::Append(b"a record"))).expect("it is waited for"));
        let early = is_done.recv_timeout(Duration::from_millis(50));
        assert!(early.is_err(), "the file that says whose they are is still being taken away");
        drop(life);
        assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(Err(Unwritten::GivenUp)));
    });
}

#[test]
fn files_that_could_never_be_trusted_are_not_begun() {
    let directory = TempDir::new().expect("a directory");
    let (path, boot_id) = (directory.path().join("log"), directory.path().join("boot_id"));
    let opens = || LogFiles::open_since(&path, &boot_id);
    let unknown = || matches!(opens(), Err(LogFileError::Unusable { path, .. }) if path == boot_id);
    assert!(unknown(), "nothing says since when the machine runs");
    fs::write(&boot_id, "\n").expect("there is room");
    assert!(unknown() && !path.exists());
    fs::write(&boot_id, "since today\n").expect("there is room");
    opens().expect("it is known");
}

#[test]
fn files_that_cannot_be_written_are_trusted_by_nobody() {
    let directory = TempDir::new().expect("a directory");
    let (files, log) = written(&directory);
    assert_eq!(files.state.fail(&io::Error::other("no room")), Unwritten::GivenUp);
    assert!(!directory.path().join(LIFE).exists());
    assert_eq!((files.are_written(), files.are_stuck()), (false, false));
    assert_eq!(append(&log), Ok(()));
}

#[test]
fn nothing_is_appended_until_files_that_cannot_be_written_were_taken_away() {
    let directory = TempDir::new().expect("a directory");
    let (files, log) = written(&directory);
    append(&log).expect("there is room");
    keep_life(&directory);
    assert_eq!(files.state.fail(&io::Error::other("no room")), Unwritten::Stuck);
    files.state.give_up();
    assert_eq!((files.are_stuck(), files.report().stuck), (true, true));
    let heads = log.heads();
    assert_eq!(append(&log), Err(Stuck.into()));
    assert_eq!(log.heads(), heads);
    // What they name is not changed meanwhile: it is the last life that made any changes.
    files.state.belong_to(&Life { log: LogId(8), ..life(&files) });
    assert!(directory.path().join(LIFE).is_dir());
    let_go_of_life(&directory);
    files.state.give_up();
    assert!(!files.are_stuck() && !directory.path().join(LIFE).exists());
    assert_eq!(append(&log), Ok(()));
    assert_eq!(files.report(), LogFileReport { failures: 1, ..LogFileReport::default() });
}

#[test]
fn a_log_without_files_is_stuck_while_those_of_the_last_one_cannot_be_taken_away() {
    let directory = TempDir::new().expect("a directory");
    let (files, last) = written(&directory);
    drop(last);
    keep_life(&directory);
    let lane = Lanes::default().lane(0).expect("there is one");
    // Its files cannot be made.
    fs::create_dir(directory.path().join(lane_file(LogId(8), lane, 0))).expect("nothing is there");
    let log = files.log(Lanes::default(), Retention::default(), LogId(8));
    assert_eq!(append(&log), Err(Stuck.into()));
    let_go_of_life(&directory);
    files.state.give_up();
    assert_eq!(append(&log), Ok(()));
}

#[test]
fn nothing_is_changed_in_a_log_whose_node_is_gone_and_whose_files_another_may_have_read() {
    let directory = TempDir::new().unwrap();
    let (files, log) = written(&directory);
    assert_eq!(append(&log), Ok(()));
    drop(files);
    assert_eq!(append(&log), Err(Stuck.into()));
}
