//! Flipped and missing bytes: found, named, and hiding nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tidings_streams::embedded::Embedded;
use tidings_streams::{
    Action, DeadLetterPage, Driver, Durability, EventId, Name, NewEvent, PAGE_EVENTS_MAX, Page, Place,
    ReceiveRequest, Retention, Settlement, Start, Topic, TopicSettings,
};
use tokio_util::sync::CancellationToken;

use crate::harness::TestClock;

/// What a store held when it was closed.
#[derive(Debug)]
struct Sound {
    directory: TempDir,
    clock: TestClock,
    events: BTreeMap<u64, Vec<u8>>,
    /// What the group has not settled.
    open: BTreeSet<u64>,
    dead: BTreeSet<u64>,
}

fn topic() -> Topic {
    let settings = TopicSettings {
        retention: Retention::default(),
        max_deliveries: 1.try_into().expect("one is not zero"),
        ..TopicSettings::default()
    };
    Topic { name: name("orders"), settings: settings.into() }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

/// A directory in memory where there is one: a file that is opened a thousand times need not reach a disk.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

fn request(max: usize) -> ReceiveRequest {
    ReceiveRequest { consumer: name("c"), max, wait: Duration::ZERO, stop: CancellationToken::new() }
}

impl Sound {
    /// Events of which some were acknowledged, one given up, some taken, and the rest never looked at.
    async fn new(count: u64) -> Self {
        let (directory, clock) = (directory(), TestClock::new());
        let store =
            Embedded::open(directory.path(), clock.config(Durability::Relaxed)).await.expect("it opens");
        let topic = topic();
        let mut events = BTreeMap::new();
        store.create_group(&topic, &name("g"), Start::Earliest).await.expect("it is made");
        for number in 1..=count {
            let payload = format!("event {number} {}", "x".repeat((number % 40) as usize)).into_bytes();
            let event = NewEvent::new(payload.clone()).key(format!("key {}", number % 3));
            let published = store.publish(&topic, vec![event]).await.expect("it is published");
            events.insert(published[0].id.major(), payload);
        }
        let taken =
            store.receive(&topic, &name("g"), request(count as usize / 2)).await.expect("it is there");
        let mut open: BTreeSet<u64> = events.keys().copied().collect();
        let mut dead = BTreeSet::new();
        for (place, one) in taken.iter().enumerate() {
            let fail = Action::Fail { reason: "it fails".to_owned() };
            let action = match place % 4 {
                0 | 1 => Action::Ack,
                2 => fail,
                _ => continue,
            };
            if place % 4 == 2 {
                dead.insert(one.event.id.major());
            }
            open.remove(&one.event.id.major());
            let word = Settlement { id: one.event.id, tag: Some(one.tag), action };
            store.settle(&topic, &name("g"), vec![word]).await.expect("it is there");
        }
        store.close().await.expect("it closes");
        Self { directory, clock, events, open, dead }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut directories = vec![self.directory.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).expect("it can be listed") {
                let path = entry.expect("it can be listed").path();
                if path.is_dir() { directories.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        files
            .iter()
            .map(|file| file.strip_prefix(self.directory.path()).expect("it is within").to_owned())
            .collect()
    }

    /// A copy, with one file changed.
    fn changed(&self, file: &Path, change: impl Fn(&mut Vec<u8>)) -> TempDir {
        let copy = directory();
        for other in self.files() {
            let mut bytes = std::fs::read(self.directory.path().join(&other)).expect("it can be read");
            let path = copy.path().join(&other);
            std::fs::create_dir_all(path.parent().expect("it has one")).expect("it is made");
            if other == *file {
                change(&mut bytes);
            }
            std::fs::write(&path, &bytes).expect("it is written");
        }
        copy
    }

    /// Opens a damaged copy, and compares all that it yields.
    async fn check(&self, copy: &Path, what: &str, must_be_found: bool) {
        let store = Embedded::open(copy, self.clock.config(Durability::Relaxed)).await;
        let store = store.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let topic = topic();
        let read = readable(&store, &topic).await;
        let missing: BTreeSet<u64> =
            self.events.keys().copied().filter(|id| !read.contains_key(id)).collect();
        for (id, payload) in &read {
            assert_eq!(self.events.get(id), Some(payload), "{what}: event {id}");
        }
        let report = store.verify().await.expect("it can be verified");
        let named = |place: &Place| -> BTreeSet<u64> {
            let ids =
                report.damage.iter().filter(|damage| damage.place == *place).filter_map(|damage| damage.ids);
            ids.flat_map(|(first, last)| first.major()..=last.major()).collect()
        };
        let events = named(&Place::Topic(topic.name.clone()));
        assert!(missing.is_subset(&events), "{what}: {missing:?} are missing, {events:?} are named");
        assert!(events.iter().all(|id| !read.contains_key(id)), "{what}: {events:?} are named, and there");
        let letters = dead(&store).await;
        assert!(letters.is_subset(&self.dead), "{what}: {letters:?}");
        let gone = self.dead.len() - letters.len();
        assert!(
            gone <= named(&Place::DeadLetters).len(),
            "{what}: {gone} dead letters are missing, not named"
        );
        assert!(!must_be_found || !report.damage.is_empty(), "{what}: not found");
        self.clock.pass(Duration::from_secs(60));
        let delivered = delivered(&store, &topic).await;
        let given_up = dead(&store).await;
        for id in self.open.difference(&missing) {
            let there = delivered.contains(id) || given_up.contains(id);
            assert!(there, "{what}: event {id} is hidden from its group");
        }
        store.close().await.expect("it closes");
    }
}

/// The events of all dead letters.
async fn dead(store: &Embedded) -> BTreeSet<u64> {
    let page = DeadLetterPage { limit: PAGE_EVENTS_MAX, ..DeadLetterPage::default() };
    let letters = store.dead_letters(&page).await.expect("they can be read").letters;
    letters.iter().map(|letter| letter.event.id.major()).collect()
}

async fn readable(store: &Embedded, topic: &Topic) -> BTreeMap<u64, Vec<u8>> {
    let (mut page, mut read) = (Page { limit: PAGE_EVENTS_MAX, ..Page::default() }, BTreeMap::new());
    loop {
        let found = store.read(topic, &page).await.expect("it can be read");
        read.extend(found.events.iter().map(|event| (event.id.major(), event.payload.to_vec())));
        match found.next {
            Some(next) => page.after = Some(next),
            None => return read,
        }
    }
}

/// What the group gets, where it still is there; where it is not, all that there is for a new one.
async fn delivered(store: &Embedded, topic: &Topic) -> BTreeSet<u64> {
    store.create_group(topic, &name("g"), Start::Earliest).await.expect("it is there or made");
    let mut delivered = BTreeSet::new();
    loop {
        let taken = store.receive(topic, &name("g"), request(1_000)).await.expect("it is there");
        if taken.is_empty() {
            return delivered;
        }
        delivered.extend(taken.iter().map(|one| one.event.id.major()));
        let ack = |id: EventId| Settlement { id, tag: None, action: Action::Ack };
        let words = taken.iter().map(|one| ack(one.event.id)).collect();
        store.settle(topic, &name("g"), words).await.expect("it is there");
    }
}

/// What a new store's journal begins with: two frames, which hold two bytes each.
const BEGINNING_BYTES: usize = 2 * (20 + 2);

/// Damages of a larger store that are tried. More by `TIDINGS_STREAMS_DAMAGES`, and then each bit of a small one too.
const DAMAGES: usize = 500;
const MORE_DAMAGES: &str = "TIDINGS_STREAMS_DAMAGES";

fn damages() -> usize {
    std::env::var(MORE_DAMAGES).map_or(DAMAGES, |number| number.parse().expect("a number"))
}

/// The bits of a byte that are flipped, one at a time.
fn bits(place: usize) -> std::ops::Range<usize> {
    let one = place % 8;
    if damages() > DAMAGES { 0..8 } else { one..one + 1 }
}

fn is_journal(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "journal")
}

#[tokio::test]
async fn every_flipped_byte_of_a_small_store_is_found_and_hides_nothing_else() {
    let sound = Sound::new(20).await;
    let mut flipped = 0;
    for file in sound.files() {
        let length =
            std::fs::metadata(sound.directory.path().join(&file)).expect("it is there").len() as usize;
        for place in 0..length {
            for bit in bits(place) {
                let copy = sound.changed(&file, |bytes| bytes[place] ^= 1 << bit);
                let what = format!("bit {bit} of byte {place} of {}", file.display());
                sound.check(copy.path(), &what, true).await;
            }
            flipped += 1;
        }
    }
    assert!(flipped > 1_000, "{flipped} bytes");
}

#[tokio::test]
async fn a_small_store_that_is_cut_anywhere_keeps_the_rest() {
    let sound = Sound::new(20).await;
    for file in sound.files() {
        let length =
            std::fs::metadata(sound.directory.path().join(&file)).expect("it is there").len() as usize;
        for cut in 0..length {
            let copy = sound.changed(&file, |bytes| bytes.truncate(cut));
            // A journal that ends early between two changes looks like that of a process that was killed then, but not
            // one without its beginning.
            let found = !is_journal(&file) || cut < BEGINNING_BYTES;
            sound.check(copy.path(), &format!("{} cut to {cut}", file.display()), found).await;
        }
    }
}

#[tokio::test]
async fn random_damage_of_a_larger_store_is_found_and_hides_nothing_else() {
    let sound = Sound::new(1_000).await;
    let files: Vec<(PathBuf, usize)> = sound
        .files()
        .into_iter()
        .map(|file| {
            (
                file.clone(),
                std::fs::metadata(sound.directory.path().join(&file)).expect("it is there").len() as usize,
            )
        })
        .filter(|(_, length)| *length > 0)
        .collect();
    let all: usize = files.iter().map(|(_, length)| length).sum();
    let mut chance = 7_u64;
    let mut draw = |bound: usize| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) as usize % bound
    };
    for round in 0..damages() {
        let mut place = draw(all);
        let (file, length) = files
            .iter()
            .find(|(_, length)| {
                let here = place < *length;
                if !here {
                    place -= length;
                }
                here
            })
            .expect("the place is in a file");
        let bit = draw(8);
        let cuts = round % 5 == 4;
        let copy =
            sound.changed(file, |bytes| if cuts { bytes.truncate(place) } else { bytes[place] ^= 1 << bit });
        let what = format!("round {round}: byte {place} of {length} in {}, cut: {cuts}", file.display());
        sound.check(copy.path(), &what, !(cuts && is_journal(file))).await;
    }
}
