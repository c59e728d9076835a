use super::super::frail::{Fault, Frail};
use super::super::publish::Batch;
use super::super::retention::Trimming;
use super::*;
use crate::call::{Page, Start, TrimMode};
use crate::error::{GroupError, PublishError};
use crate::event::{NewEvent, Published};
use crate::settings::{Retention, Topic, TopicSettings};

fn topic(settings: TopicSettings) -> Topic {
    Topic { name: Name::new("orders").unwrap(), settings: settings.into() }
}

fn published(store: &mut Store, topic: &Topic, events: Vec<NewEvent>) -> Vec<Published> {
    match store.publish(topic, events).unwrap() {
        Batch::Published(published) => published,
        Batch::Wait(events) => panic!("{} events wait for what is not there to be read", events.len()),
    }
}

fn opened(path: &Path) -> Store {
    Store::open(path, &Config { durability: Durability::Relaxed, ..Config::default() }).unwrap()
}

#[test]
fn one_call_makes_no_more_dead_letters_than_memory_is_meant_for() {
    let home = tempfile::tempdir().unwrap();
    let settings = TopicSettings {
        max_deliveries: std::num::NonZeroU32::MIN,
        min_idle_time: Duration::ZERO,
        ..TopicSettings::default()
    };
    let (mut store, topic, group) = (opened(home.path()), topic(settings), Name::new("g").unwrap());
    store.create_group(&topic, &group, Start::Earliest).unwrap();
    for _ in 0..20 {
        published(&mut store, &topic, vec![NewEvent::new(vec![7; 1 << 20])]);
        store.flush().unwrap();
    }
    let mut taken = 0;
    let mut calls = 0;
    while store.dead.last() < 20 {
        store.flush().unwrap();
        let received = store.receive(&topic, &group, &group, 100, 0.5).unwrap();
        taken += received.deliveries.len();
        let is_told = received.more || !received.deliveries.is_empty() || store.dead.last() >= 20;
        assert!(is_told, "nobody is told that more is to be done");
        assert!(store.waiting <= 24 << 20, "{} bytes wait", store.waiting);
        calls += 1;
        assert!(calls < 100, "they are never given up");
    }
    assert_eq!(taken, 20, "some were delivered twice");
}

#[test]
fn a_publish_is_not_refused_for_what_retention_cannot_read() {
    let home = tempfile::tempdir().unwrap();
    let retention = Retention { max_events: Some(1), ..Retention::default() };
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings { retention, ..Default::default() }));
    published(&mut store, &topic, vec![NewEvent::new("a"), NewEvent::new("b"), NewEvent::new("c")]);
    store.flush().unwrap();
    let directory = home.path().join("v1").join("topics").join("orders");
    for entry in std::fs::read_dir(directory).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let stored = published(&mut store, &topic, vec![NewEvent::new("d")]);
    assert_eq!(stored.len(), 1);
}

#[test]
fn a_group_that_begins_at_a_moment_gets_what_was_published_in_the_same_flush() {
    let home = tempfile::tempdir().unwrap();
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings::default()));
    let group = Name::new("g").unwrap();
    let begin = store.now();
    published(&mut store, &topic, vec![NewEvent::new("a")]);
    store.create_group(&topic, &group, Start::Time(begin)).unwrap();
    store.flush().unwrap();
    let received = store.receive(&topic, &group, &group, 10, 0.5).unwrap();
    assert_eq!(received.deliveries.len(), 1);
}

#[test]
fn retention_by_age_leaves_named_what_cannot_be_read_and_need_not_be_old() {
    let home = tempfile::tempdir().unwrap();
    let retention = Retention { max_age: Some(Duration::from_secs(3_600)), ..Retention::default() };
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings { retention, ..Default::default() }));
    published(&mut store, &topic, vec![NewEvent::new("a"), NewEvent::new("b")]);
    store.close().unwrap();
    drop(store);
    let directory = home.path().join("v1").join("topics").join("orders");
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(byte) = bytes.get_mut(30) {
            *byte ^= 1;
        }
        std::fs::write(&path, bytes).unwrap();
    }
    let mut store = opened(home.path());
    published(&mut store, &topic, vec![NewEvent::new("c")]);
    store.flush().unwrap();
    let mut looked = store.verify(super::super::look::Verifying::default()).unwrap();
    while !looked.1 {
        looked = store.verify(looked.0).unwrap();
    }
    assert_eq!(looked.0.report.damage.len(), 1, "{:?}", looked.0.report);
    let later = Arc::new(|| Timestamp::now().after(Duration::from_secs(7_200)));
    store.config.clock = later;
    let (trimmed, _) = store.retain(&topic, 100).unwrap();
    assert_eq!((trimmed.removed, store.topics[&topic.name].floor), (2, 4), "it goes with what is behind it");
}

/// Has a topic hold an event as a later release might write it.
fn publish_unknown(store: &mut Store, topic: &Topic) {
    let now = store.now();
    let stored = store.topic_or_new(&topic.name).unwrap();
    stored.log.append(now.0, |out| out.extend_from_slice(b"\x02whatever"));
    store.touch(&topic.name);
}

#[test]
fn a_sound_event_that_nobody_understands_stops_its_group_and_is_not_passed_over() {
    let home = tempfile::tempdir().unwrap();
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings::default()));
    let group = Name::new("g").unwrap();
    store.create_group(&topic, &group, Start::Earliest).unwrap();
    published(&mut store, &topic, vec![NewEvent::new("a")]);
    publish_unknown(&mut store, &topic);
    published(&mut store, &topic, vec![NewEvent::new("b")]);
    store.flush().unwrap();
    let before = store.receive(&topic, &group, &group, 10, 0.5).unwrap();
    assert_eq!((before.deliveries.len(), before.more), (1, true), "what lies before it");
    for _ in 0..2 {
        let refused = store.receive(&topic, &group, &group, 10, 0.5).unwrap_err();
        assert!(matches!(refused, GroupError::Store(StoreError::Unsupported { .. })), "{refused:?}");
    }
    let info = store.group_infos(&topic).unwrap().remove(0);
    assert_eq!((info.next.major(), info.lag), (2, 3));
    // With a key it cannot be told any more what was published with the same one.
    let keyed = vec![NewEvent::new("c").idempotency_key("k")];
    let refused = store.publish(&topic, keyed).unwrap_err();
    assert!(matches!(refused, PublishError::Store(StoreError::Unsupported { .. })), "{refused:?}");
    drop(store);
    let refused = Store::open(home.path(), &Config::default()).err().unwrap();
    assert!(matches!(refused, OpenError::Store(StoreError::Unsupported { .. })), "{refused:?}");
}

#[test]
fn a_journal_of_a_later_release_is_left_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let mut store = opened(home.path());
    store.create_group(&topic(TopicSettings::default()), &Name::new("g").unwrap(), Start::Earliest).unwrap();
    store.journal.append_raw(b"\x02whatever");
    store.close().unwrap();
    drop(store);
    let journals = home.path().join("v1").join("journal");
    let listed = |path: &Path| {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let before = listed(&journals);
    let refused = Store::open(home.path(), &Config::default()).err().unwrap();
    assert!(matches!(refused, OpenError::Store(StoreError::Unsupported { .. })), "{refused:?}");
    assert_eq!(listed(&journals), before);
}

#[test]
fn a_journal_before_the_newest_is_left_as_it_is_too_where_a_later_release_has_written_in_it() {
    let home = tempfile::tempdir().unwrap();
    let mut store = opened(home.path());
    store.create_group(&topic(TopicSettings::default()), &Name::new("g").unwrap(), Start::Earliest).unwrap();
    store.journal.append_raw(b"\x02whatever");
    store.renew_journal().unwrap();
    drop(store);
    let journals = home.path().join("v1").join("journal");
    let newest = std::fs::read_dir(&journals).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&newest, &bytes).unwrap();
    let refused = Store::open(home.path(), &Config::default()).err().unwrap();
    assert!(matches!(refused, OpenError::Store(StoreError::Unsupported { .. })), "{refused:?}");
    assert_eq!(std::fs::read(&newest).unwrap(), bytes);
}

#[test]
fn keys_of_a_large_window_are_read_in_steps() {
    let home = tempfile::tempdir().unwrap();
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings::default()));
    for number in 0..20 {
        let event = NewEvent::new(vec![7; 1 << 20]).idempotency_key(format!("k{number}"));
        published(&mut store, &topic, vec![event]);
        store.flush().unwrap();
    }
    drop(store);
    let mut store = opened(home.path());
    let mut events = vec![NewEvent::new("x").idempotency_key("k7")];
    let mut steps = 0;
    let again = loop {
        match store.publish(&topic, events).unwrap() {
            Batch::Published(again) => break again,
            Batch::Wait(these) => events = these,
        }
        steps += 1;
    };
    assert_eq!((again[0].id.major(), again[0].duplicate), (8, true));
    assert!(steps >= 2, "{steps} steps");
}

#[test]
fn a_long_topic_is_trimmed_in_steps_as_it_would_be_at_once() {
    let home = tempfile::tempdir().unwrap();
    let retention = Retention::default();
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings { retention, ..Default::default() }));
    let group = Name::new("g").unwrap();
    store.create_group(&topic, &group, Start::Earliest).unwrap();
    for _ in 0..30 {
        published(&mut store, &topic, vec![NewEvent::new(vec![7; 1_000]); 1_000]);
        store.flush().unwrap();
    }
    let unneeded = Start::Id(crate::id::EventId::new(25_001));
    store.seek(&topic, &group, unneeded, false).unwrap();
    let limits = Retention { max_events: Some(1_000), ..Retention::default() };
    let trimmed = |store: &mut Store, mode| {
        let (mut so_far, mut steps) = (Trimming::new(limits.clone(), mode), 1);
        loop {
            let (further, done) = store.trim(&topic, so_far).unwrap();
            if done {
                return (further.trimmed, steps);
            }
            (so_far, steps) = (further, steps + 1);
        }
    };
    let (would, _) = trimmed(&mut store, TrimMode { dry_run: true, force: false });
    assert_eq!((would.removed, would.kept_for_groups), (25_000, 4_000));
    let (forced, _) = trimmed(&mut store, TrimMode { dry_run: true, force: true });
    assert_eq!((forced.removed, forced.kept_for_groups), (29_000, 0));
    let (did, steps) = trimmed(&mut store, TrimMode::default());
    assert_eq!(did, would);
    assert!(steps > 3, "{steps} steps");
    assert_eq!(trimmed(&mut store, TrimMode { dry_run: false, force: true }).0.removed, 4_000);
    assert_eq!(store.info(&topic.name).unwrap().events, 1_000);
}

#[test]
fn pages_that_wait_to_be_answered_count_as_what_is_held() {
    let home = tempfile::tempdir().unwrap();
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings::default()));
    published(&mut store, &topic, vec![NewEvent::new(vec![7; 1 << 20]); 4]);
    store.flush().unwrap();
    assert_eq!(store.held(), 0);
    store.read(&topic.name, &Page { limit: 10, ..Page::default() }).unwrap();
    assert_eq!(store.held(), 4 << 20);
}

#[test]
fn of_what_is_given_up_nobody_is_told_before_it_is_written() {
    let root = Path::new("/store");
    let disk = Frail::new(1, root, None);
    let config = Config { durability: Durability::Relaxed, ..Config::default() };
    let mut store = Store::open_on(Arc::new(disk.clone()), root, &config).unwrap();
    let settings = TopicSettings {
        max_deliveries: std::num::NonZeroU32::MIN,
        min_idle_time: Duration::ZERO,
        ..TopicSettings::default()
    };
    let (topic, group, other) = (topic(settings), Name::new("g").unwrap(), Name::new("h").unwrap());
    for group in [&group, &other] {
        store.create_group(&topic, group, Start::Earliest).unwrap();
    }
    published(&mut store, &topic, vec![NewEvent::new("a"), NewEvent::new("b")]);
    store.flush().unwrap();
    assert_eq!(store.receive(&topic, &group, &group, 10, 0.5).unwrap().deliveries.len(), 2);
    store.flush().unwrap();
    assert_eq!(store.receive(&topic, &group, &group, 10, 0.5).unwrap().deliveries.len(), 0);
    assert_eq!(store.take_buried(), [], "it is not written yet");
    disk.fail(1, Fault::Error);
    store.flush().unwrap_err();
    store.recover().unwrap();
    let received = store.receive(&topic, &other, &other, 10, 0.5).unwrap();
    store.flush().unwrap();
    assert_eq!((received.deliveries.len(), store.take_buried()), (2, Vec::new()), "they are another's");
    store.receive(&topic, &other, &other, 10, 0.5).unwrap();
    store.flush().unwrap();
    assert_eq!(store.take_buried(), [(topic.name.clone(), other, 2)]);
    // What is given up by maintenance its answer says.
    published(&mut store, &topic, vec![NewEvent::new("c")]);
    store.flush().unwrap();
    store.receive(&topic, &group, &group, 10, 0.5).unwrap();
    store.flush().unwrap();
    store.take_buried();
    assert!(store.bury_all_spent(&topic, 0.5).unwrap().0.iter().any(|(_, _, buried)| *buried > 0));
    store.flush().unwrap();
    assert_eq!(store.take_buried(), []);
}

#[test]
fn a_store_that_works_again_still_names_what_it_could_not_read() {
    let home = tempfile::tempdir().unwrap();
    let mut store = opened(home.path());
    store.create_group(&topic(TopicSettings::default()), &Name::new("g").unwrap(), Start::Earliest).unwrap();
    store.close().unwrap();
    drop(store);
    let journals = home.path().join("v1").join("journal");
    for entry in std::fs::read_dir(&journals).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let mut store = opened(home.path());
    let found = store.found.clone();
    assert!(!found.is_empty(), "nothing is damaged");
    store.recover().unwrap();
    store.recover().unwrap();
    assert_eq!(store.found, found);
}

#[test]
fn what_is_given_up_before_another_group_cannot_be_read_is_told() {
    let root = Path::new("/store");
    let mut found = 0;
    for fault in 1..40 {
        let disk = Frail::new(1, root, None);
        let config = Config { durability: Durability::Relaxed, ..Config::default() };
        let mut store = Store::open_on(Arc::new(disk.clone()), root, &config).unwrap();
        let settings = TopicSettings {
            max_deliveries: std::num::NonZeroU32::MIN,
            min_idle_time: Duration::ZERO,
            ..TopicSettings::default()
        };
        let topic = topic(settings);
        let groups = [Name::new("g").unwrap(), Name::new("h").unwrap()];
        for group in &groups {
            store.create_group(&topic, group, Start::Earliest).unwrap();
        }
        // So large that each has to be read by itself.
        published(&mut store, &topic, vec![NewEvent::new(vec![7; 1 << 20]); 3]);
        store.flush().unwrap();
        for group in &groups {
            assert_eq!(store.receive(&topic, group, group, 10, 0.5).unwrap().deliveries.len(), 3);
        }
        store.flush().unwrap();
        disk.fail(fault, Fault::Error);
        if store.bury_all_spent(&topic, 0.5).is_ok() {
            break;
        }
        let buried = store.dead.last();
        store.flush().unwrap();
        let told: u64 = store.take_buried().iter().map(|(_, _, events)| events).sum();
        assert_eq!(told, buried, "where call {fault} fails");
        found += u64::from(buried > 3);
    }
    assert!(found > 0, "none fails behind the first group");
}
