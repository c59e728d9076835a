//! A disk that is full: said clearly, nothing acknowledged is lost, and the store goes on once there is room.
//!
//! The disk is a file system in memory of a few mebibytes, which is mounted for the test: that takes root, with
//! CAP_SYS_ADMIN.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{
    Action, DeadLetterPage, Driver, EventId, GroupError, Name, NewEvent, Outcome, PAGE_EVENTS_MAX, Page,
    PublishError, ReceiveRequest, Retention, Settlement, Start, StoreError, Topic, TopicSettings,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const DISK_BYTES: u64 = 4 << 20;

/// What somebody else has on the disk, and then removes.
const BALLAST_BYTES: usize = 1 << 20;

const PAYLOAD_BYTES: usize = 50_000;

/// Longest wait for the store to go on: it tries once a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk of its own; it goes with this.
struct Disk(TempDir);

impl Disk {
    fn mount() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (size, place) = (format!("size={DISK_BYTES}"), directory.path());
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(place).status();
        let mounted = mounted.expect("there is mount(8)");
        assert!(
            mounted.success(),
            "a file system cannot be mounted: this test needs root, with CAP_SYS_ADMIN"
        );
        Self(directory)
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
        assert!(std::thread::panicking() || done.is_ok_and(|done| done.success()), "it cannot be unmounted");
    }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

fn topic() -> Topic {
    let settings = TopicSettings {
        retention: Retention::default(),
        max_deliveries: 1.try_into().expect("one is not zero"),
        min_idle_time: Duration::from_millis(200),
        ..TopicSettings::default()
    };
    Topic { name: name("orders"), settings: settings.into() }
}

async fn opened(path: &Path) -> Embedded {
    Embedded::open(path, Config::default()).await.expect("it opens")
}

fn event(number: usize) -> NewEvent {
    let mut payload = format!("{number} ").into_bytes();
    payload.resize(PAYLOAD_BYTES, b'x');
    NewEvent::new(payload)
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Failed(source) if source.kind() == ErrorKind::StorageFull)
}

/// What was acknowledged.
#[derive(Default)]
struct Said {
    published: BTreeSet<(EventId, usize)>,
    acked: BTreeSet<EventId>,
    buried: BTreeSet<EventId>,
    tried: usize,
}

impl Said {
    async fn publish(&mut self, store: &Embedded) -> Result<(), PublishError> {
        self.tried += 1;
        let published = store.publish(&topic(), vec![event(self.tried)]).await?;
        self.published.insert((published[0].id, self.tried));
        Ok(())
    }

    /// Takes an event, and acknowledges it or gives it up.
    async fn work(&mut self, store: &Embedded) -> Result<(), GroupError> {
        let (wait, stop) = (Duration::ZERO, CancellationToken::new());
        let request = ReceiveRequest { consumer: name("c"), max: 1, wait, stop };
        for one in store.receive(&topic(), &name("g"), request).await? {
            let id = one.event.id;
            let action = match id.major() % 3 {
                0 => Action::Fail { reason: "by its number".to_owned() },
                _ => Action::Ack,
            };
            let word = Settlement { id, tag: Some(one.tag), action };
            match store.settle(&topic(), &name("g"), vec![word]).await?[0] {
                Outcome::Acked => drop(self.acked.insert(id)),
                Outcome::Buried(_) => drop(self.buried.insert(id)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Compares all that there is.
    async fn compare(&self, store: &Embedded) {
        let (mut page, mut held) = (Page { limit: PAGE_EVENTS_MAX, ..Page::default() }, BTreeSet::new());
        loop {
            let found = store.read(&topic(), &page).await.expect("it can be read");
            for event in found.events {
                let text = String::from_utf8_lossy(&event.payload).into_owned();
                let number = text.split(' ').next().and_then(|number| number.parse().ok());
                assert_eq!(event.payload.len(), PAYLOAD_BYTES);
                held.insert((event.id, number.expect("it begins with its number")));
            }
            match found.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        let lost: Vec<_> = self.published.difference(&held).collect();
        assert!(lost.is_empty(), "acknowledged, and lost: {lost:?}");
        let pending = store.pending(&topic(), &name("g"), None, PAGE_EVENTS_MAX).await.expect("it is there");
        let next = store.groups(&topic()).await.expect("they can be listed")[0].next;
        let is_open = |id: &EventId| *id >= next || pending.iter().any(|one| one.id == *id);
        let open: Vec<_> = self.acked.union(&self.buried).filter(|id| is_open(id)).collect();
        assert!(open.is_empty(), "settled, and open: {open:?}");
        let page = DeadLetterPage { limit: PAGE_EVENTS_MAX, ..DeadLetterPage::default() };
        let letters = store.dead_letters(&page).await.expect("they can be read").letters;
        let dead: BTreeSet<EventId> = letters.iter().map(|letter| letter.event.id).collect();
        assert_eq!(dead.len(), letters.len(), "an event is given up twice");
        assert!(self.buried.is_subset(&dead), "given up, and lost: {:?}", self.buried.difference(&dead));
        let both: Vec<_> = dead.iter().filter(|id| is_open(id)).collect();
        assert!(both.is_empty(), "in the stream and among the dead letters: {both:?}");
        let acked: Vec<_> = self.acked.intersection(&dead).collect();
        assert!(acked.is_empty(), "acknowledged, and given up: {acked:?}");
    }
}

/// Tries until it works, and says how often it did not.
async fn goes_on(said: &mut Said, store: &Embedded) -> usize {
    let until = Instant::now() + PATIENCE;
    let mut refused = 0;
    loop {
        match said.publish(store).await {
            Ok(()) => return refused,
            Err(error) if Instant::now() >= until => panic!("it does not go on: {error:?}"),
            Err(_) => refused += 1,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_said_loses_nothing_and_is_over_once_there_is_room() {
    let disk = Disk::mount();
    std::fs::write(disk.ballast(), vec![7; BALLAST_BYTES]).expect("there is room for it");
    let (store, mut said) = (opened(&disk.store()).await, Said::default());
    store.create_group(&topic(), &name("g"), Start::Earliest).await.expect("it is made");
    let full = loop {
        match said.publish(&store).await {
            Ok(()) if said.tried < 20 => said.work(&store).await.expect("there is room"),
            Ok(()) => {}
            Err(error) => break error,
        }
        assert!(said.tried as u64 * (PAYLOAD_BYTES as u64) < DISK_BYTES, "it is never full");
    };
    let PublishError::Store(error) = &full else { panic!("{full:?}") };
    assert!(is_full(error), "not said to be full: {error:?}");
    assert!(!said.acked.is_empty() && !said.buried.is_empty(), "nothing was settled before");
    // It says so again and again, also when it has tried to go on; what is small may find room then.
    let until = Instant::now() + Duration::from_millis(2_500);
    while Instant::now() < until {
        let refused = said.publish(&store).await.expect_err("there is no room");
        assert!(matches!(&refused, PublishError::Store(error) if is_full(error)), "{refused:?}");
        let worked = said.work(&store).await;
        assert!(
            worked.is_ok() || matches!(&worked, Err(GroupError::Store(error)) if is_full(error)),
            "{worked:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::remove_file(disk.ballast()).expect("it was there");
    goes_on(&mut said, &store).await;
    said.compare(&store).await;
    for _ in 0..5 {
        said.work(&store).await.expect("there is room");
    }
    said.compare(&store).await;
    store.close().await.expect("it closes");
    let store = opened(&disk.store()).await;
    said.compare(&store).await;
    let report = store.verify().await.expect("it can be verified");
    let ours = |id: &EventId| said.published.iter().any(|(published, _)| published == id);
    let names_ours = |(first, last): (EventId, EventId)| {
        (first.major()..=last.major()).any(|number| ours(&EventId::new(number)))
    };
    let named = report.damage.iter().any(|damage| damage.ids.is_some_and(names_ours));
    assert!(!named, "what was acknowledged is damaged: {report:?}");
    store.close().await.expect("it closes");
}

#[tokio::test]
async fn a_disk_that_fills_again_and_again_loses_nothing() {
    let disk = Disk::mount();
    let (store, mut said) = (opened(&disk.store()).await, Said::default());
    store.create_group(&topic(), &name("g"), Start::Earliest).await.expect("it is made");
    let mut refusals = 0;
    for round in 0..4 {
        // Somebody else takes all but a little.
        let room = free_bytes(disk.0.path()).saturating_sub(200_000 + 70_000 * round);
        std::fs::write(disk.ballast(), vec![7; room]).expect("there is room for it");
        loop {
            let published = said.publish(&store).await;
            let worked = said.work(&store).await;
            if published.is_err() || worked.is_err() {
                refusals += 1;
                break;
            }
        }
        std::fs::remove_file(disk.ballast()).expect("it was there");
        goes_on(&mut said, &store).await;
        said.compare(&store).await;
    }
    assert_eq!(refusals, 4);
    store.close().await.expect("it closes");
}

fn free_bytes(path: &Path) -> usize {
    let stat = rustix::fs::statvfs(path).expect("it can be asked");
    usize::try_from(stat.f_bavail * stat.f_frsize).expect("a small disk")
}
