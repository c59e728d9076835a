use super::*;
use crate::call::Start;
use crate::event::NewEvent;
use crate::settings::{Retention, Topic, TopicSettings};

fn topic(settings: TopicSettings) -> Topic {
    Topic { name: Name::new("orders").unwrap(), settings: settings.into() }
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
        store.publish(&topic, vec![NewEvent::new(vec![7; 1 << 20])]).unwrap();
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
    store.publish(&topic, vec![NewEvent::new("a"), NewEvent::new("b"), NewEvent::new("c")]).unwrap();
    store.flush().unwrap();
    let directory = home.path().join("v1").join("topics").join("orders");
    for entry in std::fs::read_dir(directory).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let published = store.publish(&topic, vec![NewEvent::new("d")]).unwrap();
    assert_eq!(published.len(), 1);
}

#[test]
fn a_group_that_begins_at_a_moment_gets_what_was_published_in_the_same_flush() {
    let home = tempfile::tempdir().unwrap();
    let (mut store, topic) = (opened(home.path()), topic(TopicSettings::default()));
    let group = Name::new("g").unwrap();
    let begin = store.now();
    store.publish(&topic, vec![NewEvent::new("a")]).unwrap();
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
    store.publish(&topic, vec![NewEvent::new("a"), NewEvent::new("b")]).unwrap();
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
    store.publish(&topic, vec![NewEvent::new("c")]).unwrap();
    store.flush().unwrap();
    let mut looked = store.verify(super::super::look::Verifying::default()).unwrap();
    while !looked.1 {
        looked = store.verify(looked.0).unwrap();
    }
    assert_eq!(looked.0.report.damage.len(), 1, "{:?}", looked.0.report);
    let later = Arc::new(|| Timestamp::now().after(Duration::from_secs(7_200)));
    store.clock = later;
    let trimmed = store.retain(&topic, 100).unwrap();
    assert_eq!((trimmed.removed, store.topics[&topic.name].floor), (2, 4), "it goes with what is behind it");
}
