use super::super::disk::System;
use super::*;

/// A payload's size that fills a few segments with not too many records.
const LARGE: usize = 100_000;

fn opened(directory: &Path) -> Log {
    opened_with(directory, 1)
}

fn opened_with(directory: &Path, least: u64) -> Log {
    let disk: Arc<dyn Disk> = Arc::new(System::default());
    Log::open(&disk, directory, Known { least, kept: 0 }, |_| ()).unwrap()
}

/// The file that begins with a number.
fn file_of(directory: &Path, first: u64) -> PathBuf {
    let names = System::default().list(directory).unwrap().into_iter().map(|(name, _)| name);
    let name = names.into_iter().find(|name| parse(name).is_some_and(|(found, _)| found == first));
    directory.join(name.unwrap())
}

/// Records of which each one's moment is its number times ten.
fn filled(directory: &Path, records: u64) -> Log {
    let mut log = opened(directory);
    for number in 1..=records {
        log.append(number * 10, |out| out.resize(out.len() + LARGE, number as u8));
        log.flush(false).unwrap();
    }
    log
}

fn walked(log: &mut Log, from: u64) -> (Vec<u64>, Vec<(u64, u64)>) {
    let (mut ids, mut gaps) = (Vec::new(), Vec::new());
    let mut walk = log.walk(from).unwrap();
    while let Some(item) = walk.next().unwrap() {
        match item {
            Item::Record(record) => {
                assert!(record.rest.iter().all(|byte| *byte == record.id as u8), "record {}", record.id);
                ids.push(record.id);
            }
            Item::Gap { first, last, .. } => gaps.push((first, last)),
        }
    }
    (ids, gaps)
}

#[test]
fn a_walk_begins_at_any_record_of_any_segment() {
    let home = tempfile::tempdir().unwrap();
    let mut log = filled(&home.path().join("log"), 250);
    assert!(log.segments().len() >= 3);
    for from in [1, 2, 77, 84, 85, 86, 168, 249, 250, 251] {
        assert_eq!(walked(&mut log, from), ((from..=250).collect(), vec![]), "from {from}");
    }
}

#[test]
fn records_are_found_by_their_moments() {
    let home = tempfile::tempdir().unwrap();
    let mut log = filled(&home.path().join("log"), 250);
    for (time, wanted) in [(0, 1), (10, 1), (11, 2), (840, 84), (841, 85), (2_500, 250), (2_501, 251)] {
        assert_eq!(log.first_at(time, 1).unwrap(), wanted, "moment {time}");
    }
    assert_eq!(log.first_at(11, 9).unwrap(), 9);
}

#[test]
fn files_below_the_floor_are_freed_and_numbers_go_on() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("log");
    let mut log = filled(&directory, 250);
    log.drop_below(100).unwrap();
    assert!(log.first() > 1 && log.first() <= 100, "begins with {}", log.first());
    assert_eq!(walked(&mut log, 100).0, (100..=250).collect::<Vec<_>>());
    log.drop_below(251).unwrap();
    assert_eq!(log.bytes(), 0);
    drop(log);
    let mut log = opened(&directory);
    assert_eq!(log.append(9, |_| ()).0, 251);
}

#[test]
fn what_is_not_written_is_not_read() {
    let home = tempfile::tempdir().unwrap();
    let mut log = opened(&home.path().join("log"));
    log.append(1, |_| ());
    assert_eq!((walked(&mut log, 1).0, log.written(), log.last()), (vec![], 0, 1));
    log.flush(true).unwrap();
    assert_eq!((walked(&mut log, 1).0, log.written()), (vec![1], 1));
}

#[test]
fn a_reader_in_order_goes_on_where_it_was() {
    let home = tempfile::tempdir().unwrap();
    let mut log = filled(&home.path().join("log"), 100);
    let mut read = Vec::new();
    while (read.len() as u64) < 100 {
        let mut walk = log.walk(read.len() as u64 + 1).unwrap();
        for _ in 0..7 {
            if let Some(Item::Record(record)) = walk.next().unwrap() {
                read.push(record.id);
            }
        }
        walk.pause();
    }
    assert_eq!(read, (1..=100).collect::<Vec<_>>());
}

#[test]
fn a_tail_that_cannot_be_read_is_left_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("log");
    let mut log = opened(&directory);
    for number in 1..=3_u8 {
        log.append(1, |out| out.resize(out.len() + 50, number));
    }
    log.flush(true).unwrap();
    drop(log);
    let file = file_of(&directory, 1);
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 10]).unwrap();
    let mut log = opened(&directory);
    assert_eq!(log.append(2, |out| out.resize(out.len() + 50, 4)).0, 4, "a number is used again");
    log.flush(true).unwrap();
    assert_eq!(walked(&mut log, 1), (vec![1, 2, 4], vec![(3, 3)]));
    assert_eq!(std::fs::read(&file).unwrap(), &whole[..whole.len() - 10]);
}

#[test]
fn what_ended_too_early_is_missed() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("log");
    drop(opened(&directory));
    let mut log = opened_with(&directory, 6);
    assert_eq!(walked(&mut log, 1), (vec![], vec![(1, 5)]));
    assert_eq!(log.append(1, |_| ()).0, 6);
}
