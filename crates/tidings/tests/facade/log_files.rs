//! A process that is killed, and the next one with its node id, which finds what it had written down.

use std::fs;
use std::future::Ready;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tidings::{
    Cache, LogFileError, LogFileReport, Node, NodeBuilder, Origin, Retention, StartError, WriteError,
    WriteThroughError,
};
use tidings_proto::log::Life;

use crate::common::{PATIENCE, fill, for_a_while, member, open_on, until};

/// So long that the former life is followed before its end costs a floor, however busy the machine is.
const LONG_BOUND: Duration = Duration::from_secs(6);

/// So short that a floor does not keep a test waiting.
pub(crate) const SHORT_BOUND: Duration = Duration::from_millis(500);

/// So little that a test can fill it: as much as the library takes.
const SMALL: Retention = Retention { events: 65_536, bytes: Retention::BYTES_MIN };

pub(crate) fn builder(id: &str, bound: Duration, seeds: &[&Node]) -> NodeBuilder {
    Node::builder("log-files")
        .node_id(id)
        .write_horizon(Duration::ZERO)
        .gossip_interval(Duration::from_millis(200))
        .max_staleness(bound)
        .retention(SMALL)
        .seeds(seeds.iter().map(|node| node.address().to_string()))
}

fn settled(nodes: &[&Node]) -> bool {
    nodes.iter().all(|node| {
        let members = node.members();
        members.len() == nodes.len() && members.iter().all(|it| it.synced()) && node.doubts().is_empty()
    })
}

/// Starts a node with log files. Who was killed in this process lets go of them a moment later.
pub(crate) async fn start_in(directory: &Path, bound: Duration, seeds: &[&Node]) -> Node {
    let started = async || builder("n3", bound, seeds).log_dir(directory).start().await;
    for _ in 0.. {
        match started().await {
            Err(StartError::LogFiles(LogFileError::InUse(_))) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            result => return result.expect("it starts"),
        }
    }
    unreachable!()
}

/// Two nodes that hold an entry of three keys each, and what was left of a third one that had changed one of them and
/// begun to write another, of neither of which anybody has heard.
struct Killed {
    first: Node,
    second: Node,
    caches: [Cache<String, u64>; 2],
    former: Origin,
    directory: TempDir,
    bound: Duration,
}

async fn killed(bound: Duration) -> Killed {
    killed_while(bound, |_, changes| {
        let key = "open".to_owned();
        std::mem::forget(changes.begin_write(&key).expect("it is open"));
    })
    .await
}

async fn killed_while(bound: Duration, under_way: impl FnOnce(&Node, &Cache<String, u64>)) -> Killed {
    killed_in(TempDir::new().expect("a directory"), bound, under_way).await
}

async fn killed_in(
    directory: TempDir,
    bound: Duration,
    under_way: impl FnOnce(&Node, &Cache<String, u64>),
) -> Killed {
    let first = builder("n1", bound, &[]).start().await.expect("it starts");
    let second = builder("n2", bound, &[&first]).start().await.expect("it starts");
    let third = start_in(directory.path(), bound, &[&first, &second]).await;
    let changes = open_on(&third);
    let caches = [&first, &second].map(open_on);
    until("all are in step", || settled(&[&first, &second, &third])).await;
    // Something that everybody has, so that none of them follows its next records from the beginning.
    changes.insert("before".to_owned(), 1).expect("it is open");
    let former = third.origin();
    let applied = |node: &&Node| node.following().iter().any(|it| it.origin == former && it.applied == 1);
    until("it is everywhere", || [&first, &second].iter().all(applied)).await;
    for key in ["changed", "open", "kept"] {
        fill(&caches, key, 1).await;
    }
    [&first, &second].iter().for_each(|node| node.set_denied(&["n3".to_owned()]));
    until("nobody hears it", || {
        [&first, &second].iter().all(|node| member(node, "n3").is_none_or(|third| third.rtt.is_none()))
    })
    .await;
    changes.insert("changed".to_owned(), 2).expect("it is open");
    under_way(&third, &changes);
    drop((third, changes));
    [&first, &second].iter().for_each(|node| node.set_denied(&[]));
    Killed { first, second, caches, former, directory, bound }
}

/// Which entries are held once the next life is in step, nobody doubts anything, and so many have followed the former.
async fn after_the_next_life(killed: Killed, followed: u64) -> [[bool; 3]; 2] {
    let Killed { first, second, caches, former, directory, bound } = killed;
    let next = start_in(directory.path(), bound, &[&first, &second]).await;
    assert!(next.origin().incarnation > former.incarnation);
    until("doubt is over", || settled(&[&first, &second, &next])).await;
    let held =
        caches.map(|cache| ["changed", "open", "kept"].map(|key| cache.get(&key.to_owned()) == Some(1)));
    let count = || next.log_files().expect("it has some").followed;
    until("who has followed it is counted", || count() >= followed).await;
    assert_eq!(count(), followed);
    for node in [first, second, next] {
        node.shutdown(PATIENCE).await;
    }
    held
}

/// Spoils the files of a killed life and asserts that its end costs everybody a floor, as it does without log files.
async fn is_not_trusted(spoil: impl FnOnce(&Path)) {
    let killed = killed(SHORT_BOUND).await;
    // Once nobody writes there any more.
    drop(start_lock(killed.directory.path()).await);
    spoil(killed.directory.path());
    assert_eq!(after_the_next_life(killed, 0).await, [[false; 3]; 2], "a floor leaves nothing");
}

pub(crate) async fn start_lock(directory: &Path) -> fs::File {
    let lock = fs::File::open(directory.join("lock")).expect("it is there");
    until("it is let go of", || lock.try_lock().is_ok()).await;
    lock
}

/// The files of lanes that hold anything.
fn lanes(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    let filled = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        name.starts_with("lane-") && path.metadata().expect("a file").len() > 0
    };
    entries.filter(filled).collect()
}

fn change_life(directory: &Path, change: impl FnOnce(&mut Life)) {
    let path = directory.join("life");
    let mut life = Life::decode(&fs::read(&path).expect("it is there")).expect("it is sound");
    change(&mut life);
    fs::write(path, life.encode()).expect("it is writable");
}

#[tokio::test]
async fn a_killed_life_is_followed_to_its_end_and_costs_the_keys_that_it_changed() {
    let killed = killed(LONG_BOUND).await;
    let held = after_the_next_life(killed, 2).await;
    assert_eq!(
        held,
        [[false, false, true]; 2],
        "the changed key, and the one that was being written, are gone"
    );
}

#[tokio::test]
async fn neither_a_record_that_was_cut_short_nor_a_start_that_fails_costs_more() {
    let killed = killed(LONG_BOUND).await;
    drop(start_lock(killed.directory.path()).await);
    // Nobody had seen it.
    for path in lanes(killed.directory.path()) {
        let begun = fs::read(&path).expect("it is there")[..20].to_vec();
        fs::File::options().append(true).open(path).expect("a file").write_all(&begun).expect("room");
    }
    let taken = killed.first.address();
    let failed = builder("n3", LONG_BOUND, &[]).listen(taken).log_dir(killed.directory.path()).start().await;
    assert!(matches!(failed, Err(StartError::Bind(_))), "{failed:?}");
    assert_eq!(after_the_next_life(killed, 2).await, [[false, false, true]; 2]);
}

#[tokio::test]
async fn without_log_files_the_end_costs_a_floor() {
    is_not_trusted(|directory| fs::remove_file(directory.join("life")).expect("it is there")).await;
}

#[tokio::test]
async fn a_life_that_was_killed_in_a_write_from_which_others_follow_costs_a_floor() {
    let killed = killed_while(SHORT_BOUND, |node, changes| {
        let pages = node.cache::<String, u64>("pages").open().expect("the name is free");
        changes.derive(&pages, |key| [key.clone()]).expect("there is no circle");
        let key = "open".to_owned();
        std::mem::forget(changes.begin_write(&key).expect("it is open"));
    });
    assert_eq!(after_the_next_life(killed.await, 0).await, [[false; 3]; 2]);
}

#[tokio::test]
async fn a_write_that_a_kill_has_cut_short_does_not_undo_what_was_written_since() {
    let directory = TempDir::new().expect("a directory");
    let first = builder("n1", LONG_BOUND, &[]).start().await.expect("it starts");
    let third = start_in(directory.path(), LONG_BOUND, &[&first]).await;
    let copies =
        |node: &Node| node.cache::<String, u64>("copies").replicate().open().expect("the name is free");
    let (here, there) = (copies(&first), copies(&third));
    until("both are in step", || settled(&[&first, &third])).await;
    let key = "k".to_owned();
    there.insert(key.clone(), 1).expect("it is open");
    until("it has travelled", || here.get(&key) == Some(1)).await;
    std::mem::forget(there.begin_write(&key).expect("it is open"));
    drop((third, there));
    // Its wall clock has gone on.
    for_a_while(Duration::from_millis(5)).await;
    here.insert(key.clone(), 2).expect("it is open");
    let next = start_in(directory.path(), LONG_BOUND, &[&first]).await;
    until("it was followed", || next.log_files().is_some_and(|files| files.followed == 1)).await;
    assert_eq!(here.get(&key), Some(2));
    let there = copies(&next);
    until("it has travelled again", || there.get(&key) == Some(2)).await;
}

#[tokio::test]
async fn files_with_a_changed_byte_are_not_trusted() {
    is_not_trusted(|directory| {
        let path = lanes(directory).pop().expect("a lane");
        let mut bytes = fs::read(&path).expect("it is there");
        *bytes.last_mut().expect("it is filled") ^= 1;
        fs::write(path, bytes).expect("it is writable");
    })
    .await;
}

#[tokio::test]
async fn files_from_before_the_machine_went_down_are_not_trusted() {
    is_not_trusted(|directory| change_life(directory, |life| life.machine = "before".to_owned())).await;
}

#[tokio::test]
async fn files_of_another_node_are_not_trusted() {
    is_not_trusted(|directory| {
        change_life(directory, |life| life.origin.node = "n9".parse().expect("a good name"));
    })
    .await;
}

#[tokio::test]
async fn files_of_a_life_that_peers_do_not_name_are_served_to_nobody() {
    is_not_trusted(|directory| {
        change_life(directory, |life| life.origin.incarnation.0 -= 1);
    })
    .await;
}

#[tokio::test]
async fn two_nodes_do_not_share_log_files_and_nobody_else_reads_them() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("made").join("for it");
    let first = builder("n1", LONG_BOUND, &[]).log_dir(&path).start().await.expect("it starts");
    let refused = builder("n2", LONG_BOUND, &[]).log_dir(&path).start().await;
    assert!(matches!(refused, Err(StartError::LogFiles(LogFileError::InUse(_)))), "{refused:?}");
    let file = builder("n2", LONG_BOUND, &[]).log_dir(path.join("life")).start().await;
    assert!(matches!(file, Err(StartError::LogFiles(LogFileError::Unusable { .. }))), "{file:?}");
    let entries: Vec<PathBuf> =
        fs::read_dir(&path).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(entries.len(), 2 + 2 * 4, "{entries:?}");
    for entry in entries {
        assert_eq!(entry.metadata().expect("a file").permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
    assert!(first.shutdown(PATIENCE).await);
    assert!(first.log_files().is_some_and(|files| files.written && files.failures == 0));
}

/// Has it that what says whose the log files are can be neither replaced nor removed, nor they be written.
fn stick(directory: &Path, changes: &Cache<String, u64>) {
    let life = directory.join("life");
    fs::rename(&life, directory.join("held")).expect("it is there");
    fs::create_dir_all(life.join("held")).expect("nothing is there");
    // More writes than are written down, none of which ends.
    for number in 0..10_000 {
        let key = format!("{number:04000}");
        match changes.begin_write(&key) {
            Ok(open) => std::mem::forget(open),
            Err(refused) => {
                assert!(matches!(refused, WriteError::Stuck(_)), "{refused}");
                return;
            }
        };
    }
    panic!("they hold more than they may");
}

fn let_go(directory: &Path) {
    fs::remove_dir_all(directory.join("life")).expect("it is there");
}

fn is_stuck(node: &Node) -> bool {
    node.log_files().is_some_and(|files| files.stuck)
}

#[tokio::test]
async fn a_node_whose_log_files_are_stuck_refuses_every_change_until_they_are_not() {
    let directory = TempDir::new().expect("a directory");
    let node = builder("n1", SHORT_BOUND, &[]).log_dir(directory.path()).start().await.expect("it starts");
    let changes = open_on(&node);
    let pages = node.cache::<String, u64>("pages").open().expect("the name is free");
    let copies = node.cache::<String, u64>("copies").replicate().open().expect("the name is free");
    changes.derive(&pages, |key| [key.clone()]).expect("there is no circle");
    let key = "kept".to_owned();
    // What is from before the floor that a node starts with does not count.
    for_a_while(SHORT_BOUND).await;
    for cache in [&changes, &pages, &copies] {
        cache.insert(key.clone(), 1).expect("it is open");
        assert_eq!(cache.get(&key), Some(1));
    }
    let life = node.origin();
    stick(directory.path(), &pages);
    let stuck = |made: Result<(), WriteError>| assert!(matches!(made, Err(WriteError::Stuck(_))), "{made:?}");
    until("it takes another incarnation", || node.origin().incarnation > life.incarnation).await;
    for cache in [&changes, &pages, &copies] {
        stuck(cache.insert(key.clone(), 2).map(drop));
        stuck(cache.write().insert_many([(key.clone(), 2)]).map(drop));
        stuck(cache.remove(&key).map(drop));
        stuck(cache.invalidate_prefix("ke").map(drop));
        stuck(cache.clear().map(drop));
        let write = || -> Ready<Result<u64, ()>> { panic!("it does not run") };
        let written = cache.write_through(&key, write).await;
        assert!(matches!(written, Err(WriteThroughError::Cache(WriteError::Stuck(_)))));
        assert_eq!(cache.get(&key), Some(1), "what is refused changes nothing");
    }
    let why = node.readiness().expect_err("it makes no changes").to_string();
    assert!(why.contains("log files"), "{why}");
    let_go(directory.path());
    until("it makes changes again", || changes.insert(key.clone(), 3).is_ok()).await;
    for cache in [&changes, &pages, &copies] {
        cache.insert(key.clone(), 3).expect("nothing is stuck");
    }
    assert!(!directory.path().join("life").exists(), "nobody trusts what lacks that");
    assert_eq!(node.log_files(), Some(LogFileReport { failures: 1, ..LogFileReport::default() }));
}

#[tokio::test]
async fn what_a_node_with_stuck_log_files_could_not_tell_is_doubted_by_its_peers() {
    let directory = TempDir::new().expect("a directory");
    let first = builder("n1", SHORT_BOUND, &[]).start().await.expect("it starts");
    let third = start_in(directory.path(), SHORT_BOUND, &[&first]).await;
    let (held, changes) = (open_on(&first), open_on(&third));
    until("both are in step", || settled(&[&first, &third])).await;
    let key = "k".to_owned();
    held.insert(key.clone(), 1).expect("it is open");
    let write = changes.begin_write(&key).expect("it is open");
    stick(directory.path(), &changes);
    let ended = write.insert_versioned(2, 2);
    assert!(matches!(ended, Err(WriteError::Stuck(_))), "{ended:?}");
    assert_eq!(changes.get(&key), None);
    until("it is not served any more", || held.get(&key).is_none()).await;
    until("doubt is over", || first.doubts().is_empty()).await;
    assert_eq!(held.get(&key), None, "a floor stands for what was not told");
    let_go(directory.path());
    until("it tells what it changes again", || !is_stuck(&third) && changes.remove(&key).is_ok()).await;
    until("both are in step", || settled(&[&first, &third])).await;
}

#[tokio::test]
async fn what_is_in_files_that_were_stuck_is_all_that_their_life_has_done() {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().to_owned();
    let killed = killed_in(directory, LONG_BOUND, |_, changes| {
        let key = "open".to_owned();
        std::mem::forget(changes.begin_write(&key).expect("it is open"));
        stick(&path, changes);
        let refused = changes.insert("kept".to_owned(), 2);
        assert!(matches!(refused, Err(WriteError::Stuck(_))), "{refused:?}");
    });
    let killed = killed.await;
    drop(start_lock(&path).await);
    // As a file system that was read-only and is mounted anew.
    let_go(&path);
    fs::rename(path.join("held"), path.join("life")).expect("it is there");
    assert_eq!(after_the_next_life(killed, 2).await, [[false, false, true]; 2]);
}
