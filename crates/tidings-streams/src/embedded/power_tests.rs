//! A store on a disk that fails at any call and whose power is cut at any other: nothing that was acknowledged is lost.
//!
//! The store is used without its thread, so that a seed decides everything.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::frail::{Chance, Defect, Fault, Frail};
use super::look::Verifying;
use super::publish::Batch;
use super::retention::Trimming;
use super::store::Store;
use super::{Config, OpenError};
use crate::call::{
    Action, Damage, DeadLetterPage, Delivered, Durability, Outcome, PAGE_EVENTS_MAX, Page, Place, Settlement,
    Start, TrimMode,
};
use crate::error::StoreError;
use crate::event::{DeadLetter, Event, NewEvent};
use crate::id::{DeadLetterId, EventId, Timestamp};
use crate::name::Name;
use crate::settings::{Backoff, Retention, Topic, TopicSettings};

/// Stores that are tried, each over some lives. More by `TIDINGS_STREAMS_POWER_SEEDS`.
const SEEDS: u64 = 300;

/// Stores with a planted defect that are tried until it is found.
const SEEDS_OF_DEFECTS: u64 = 400;

/// Lives of the processes that have one store.
const LIVES: u64 = 6;

/// Most calls of the disk before one fails: what a life makes in some dozen flushes.
const CALLS_MAX: u64 = 160;

const ROOT: &str = "/disk";

/// `kept` is never trimmed and its dead letters are retried, `trimmed` is the opposite.
const TOPICS: [&str; 2] = ["kept", "trimmed"];

type Key = (&'static str, u64);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn topic(text: &str) -> Topic {
    let settings = TopicSettings {
        retention: Retention::default(),
        max_deliveries: NonZeroU32::new(2).unwrap(),
        min_idle_time: Duration::from_secs(2),
        backoff: Backoff { initial: Duration::from_millis(1), max: Duration::from_millis(5), jitter: 0.2 },
        ..TopicSettings::default()
    };
    Topic { name: name(text), settings: settings.into() }
}

/// What a store has said, over all lives of its processes.
#[derive(Debug, Default)]
struct Said {
    published: BTreeMap<Key, Vec<u8>>,
    acking: BTreeSet<Key>,
    acked: BTreeSet<Key>,
    buried: BTreeMap<u64, Key>,
    retrying: BTreeSet<u64>,
    retried: BTreeMap<u64, u64>,
}

/// What a store says once what was done is written.
#[derive(Debug)]
enum Word {
    Published(Key, Vec<u8>),
    Acked(Key),
    Buried(u64, Key),
    Retried(u64, u64),
    Delivered(&'static str, Vec<Delivered>),
}

struct World {
    disk: Frail,
    clock: Arc<AtomicU64>,
    chance: Chance,
    said: Said,
    /// What consumers have.
    held: Vec<(&'static str, Delivered)>,
    events: u64,
    /// Of most events, in bytes.
    size: u64,
    durability: Durability,
    /// How often a store that failed went on.
    recovered: u64,
}

impl World {
    fn new(seed: u64, durability: Durability, defect: Option<Defect>) -> Self {
        let mut chance = Chance::new(seed);
        // A few have so large events that files are full before long.
        let size =
            if chance.below(24) == 0 { 300_000 } else { [20, 200, 2_000, 5_000][chance.below(4) as usize] };
        Self {
            disk: Frail::new(seed, Path::new("/"), defect),
            clock: Arc::new(AtomicU64::new(1_700_000_000_000)),
            chance,
            said: Said::default(),
            held: Vec::new(),
            events: 0,
            size,
            durability,
            recovered: 0,
        }
    }

    fn open(&self) -> Result<Store, OpenError> {
        let clock = Arc::clone(&self.clock);
        let now = move || Timestamp(clock.load(Ordering::Relaxed));
        let config = Config { durability: self.durability, clock: Arc::new(now) };
        Store::open_on(Arc::new(self.disk.clone()), Path::new(ROOT), &config)
    }

    /// One process: it opens the store, works, and ends as the disk has it or as chance has it.
    fn live(&mut self) -> Result<(), String> {
        let Ok(mut store) = self.open() else { return Ok(()) };
        if !with_groups(&mut store) {
            return Ok(());
        }
        for _ in 0..10 + self.chance.below(30) {
            self.clock.fetch_add(self.chance.below(700), Ordering::Relaxed);
            let mut words = Vec::new();
            for _ in 0..1 + self.chance.below(4) {
                // What fails by itself was not acknowledged.
                drop(self.work(&mut store, &mut words));
            }
            if store.flush().is_err() {
                // Whoever has it open may have it take up what its files hold.
                if self.chance.is_heads() || store.recover().is_err() || !with_groups(&mut store) {
                    return Ok(());
                }
                self.recovered += 1;
                continue;
            }
            self.hear(words)?;
        }
        if self.chance.is_heads() {
            drop(store.close());
        }
        Ok(())
    }

    fn work(&mut self, store: &mut Store, words: &mut Vec<Word>) -> Result<(), Box<dyn std::error::Error>> {
        let text = TOPICS[self.chance.below(2) as usize];
        let (topic, group) = (topic(text), name("g"));
        match self.chance.below(12) {
            0..4 => {
                self.events += 1;
                let size = 1 + self.chance.below(self.size * 2) as usize;
                let payload = format!("{} ", self.events).into_bytes().into_iter().cycle().take(size + 8);
                let payload: Vec<u8> = payload.collect();
                let Batch::Published(ids) = store.publish(&topic, vec![NewEvent::new(payload.clone())])?
                else {
                    panic!("there are no idempotency keys");
                };
                words.push(Word::Published((text, ids[0].id.major()), payload));
            }
            4..7 => {
                let most = 1 + self.chance.below(3) as usize;
                let received = store.receive(&topic, &group, &name("c"), most, 0.5)?;
                words.push(Word::Delivered(text, received.deliveries));
            }
            7..10 => {
                let Some((text, one)) = self.held.pop() else { return Ok(()) };
                self.settle(store, words, text, &one)?;
            }
            10 => {
                let page = DeadLetterPage { limit: 3, ..DeadLetterPage::default() };
                let letters = store.dead_letters(&page)?.letters;
                let Some(letter) = letters.iter().find(|letter| letter.topic == name("kept")) else {
                    return Ok(());
                };
                self.said.retrying.insert(letter.id.0.major());
                let new = store.retry(letter.id)?;
                words.push(Word::Retried(letter.id.0.major(), new.major()));
            }
            _ => trim(store)?,
        }
        Ok(())
    }

    fn settle(
        &mut self,
        store: &mut Store,
        words: &mut Vec<Word>,
        text: &'static str,
        one: &Delivered,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let id = one.event.id;
        let action = if id.major().is_multiple_of(3) {
            Action::Fail { reason: "by its number".to_owned() }
        } else {
            self.said.acking.insert((text, id.major()));
            Action::Ack
        };
        let word = Settlement { id, tag: Some(one.tag), action };
        match store.settle(&topic(text), &name("g"), &word, 0.5)? {
            Outcome::Acked => words.push(Word::Acked((text, id.major()))),
            Outcome::Buried(dead) => words.push(Word::Buried(dead.0.major(), (text, id.major()))),
            _ => {}
        }
        Ok(())
    }

    fn hear(&mut self, words: Vec<Word>) -> Result<(), String> {
        for word in words {
            match word {
                Word::Published(key, payload) => {
                    if self.said.published.insert(key, payload).is_some() {
                        return Err(format!("{key:?} was given twice"));
                    }
                }
                Word::Acked(key) => drop(self.said.acked.insert(key)),
                Word::Buried(dead, key) => drop(self.said.buried.insert(dead, key)),
                Word::Retried(dead, new) => drop(self.said.retried.insert(dead, new)),
                Word::Delivered(text, these) => {
                    self.held.extend(these.into_iter().map(|one| (text, one)));
                }
            }
        }
        Ok(())
    }

    /// Opens the store as it is and compares it with all that was said.
    fn compare(&mut self) -> Result<(), String> {
        let mut store = self.open().map_err(|error| format!("it does not open: {error:?}"))?;
        for text in TOPICS {
            let Some(holds) = holds(&mut store, text).map_err(|error| format!("{error:?}"))? else {
                let lost = self.said.published.keys().find(|(of, _)| *of == text);
                lost.map_or(Ok(()), |lost| Err(format!("{lost:?} was acknowledged, and its topic is lost")))?;
                continue;
            };
            compare(&self.said, text, &holds)?;
            self.said.acking.retain(|(of, id)| *of != text || !holds.is_open(*id));
        }
        let mut looked = (Verifying::default(), false);
        while !looked.1 {
            looked = store.verify(looked.0).map_err(|error| format!("it cannot be verified: {error}"))?;
        }
        let report = looked.0.report;
        let named = report.damage.iter().find(|damage| self.said.names(damage));
        if let Some(damage) = named {
            return Err(format!("what was acknowledged is damaged: {damage:?}"));
        }
        if self.chance.is_heads() {
            store.close().map_err(|error| format!("it does not close: {error}"))?;
        }
        Ok(())
    }

    /// Some lives of a store. Each ends by a failure, a cut, or neither; then the power goes or does not.
    fn run(&mut self, cuts: bool) -> Result<(), String> {
        for life in 0..LIVES {
            let calls = 1 + self.chance.below(CALLS_MAX);
            let fault = if cuts && self.chance.is_heads() { Fault::Cut } else { Fault::Error };
            if self.chance.below(8) > 0 {
                self.disk.fail(calls, fault);
            }
            let what = format!("life {life}, {fault:?} at call {calls}");
            self.live().map_err(|error| format!("{what}: {error}"))?;
            self.held.clear();
            self.disk.restart();
            // What is found while the power is on must still be there once it was off.
            for round in 0..2 {
                if cuts && (fault == Fault::Cut || round > 0 || self.chance.is_heads()) {
                    self.disk.cut();
                }
                self.compare().map_err(|error| format!("{what}, look {round}: {error}"))?;
            }
        }
        Ok(())
    }
}

/// Makes the groups that are not there. Whether that could be done.
fn with_groups(store: &mut Store) -> bool {
    TOPICS.iter().all(|text| store.create_group(&topic(text), &name("g"), Start::Earliest).is_ok())
}

impl Said {
    fn names(&self, damage: &Damage) -> bool {
        let Some((first, last)) = damage.ids else { return damage.place != Place::Groups };
        let range = first.major()..=last.major();
        match &damage.place {
            Place::Topic(topic) => {
                self.published.keys().any(|(of, id)| *of == topic.as_str() && range.contains(id))
            }
            _ => self.buried.range(range).next().is_some(),
        }
    }
}

fn trim(store: &mut Store) -> Result<(), StoreError> {
    let limits = Retention { max_events: Some(10), ..Retention::default() };
    let mut trimming = Trimming::new(limits, TrimMode::default());
    loop {
        let (further, done) = store.trim(&topic("trimmed"), trimming)?;
        if done {
            return Ok(());
        }
        trimming = further;
    }
}

/// Everything that a store holds of a topic.
struct Holds {
    events: BTreeMap<u64, Event>,
    first: u64,
    /// What the group has looked at and not settled.
    open: BTreeSet<u64>,
    next: u64,
    dead: Vec<DeadLetter>,
}

impl Holds {
    fn is_open(&self, id: u64) -> bool {
        self.open.contains(&id) || id >= self.next
    }
}

fn holds(store: &mut Store, text: &str) -> Result<Option<Holds>, Box<dyn std::error::Error>> {
    let topic = topic(text);
    let Some(info) = store.info(&topic.name) else { return Ok(None) };
    let Some(group) = store.group_infos(&topic)?.pop() else { return Ok(None) };
    let (mut page, mut events) = (Page { limit: PAGE_EVENTS_MAX, ..Page::default() }, BTreeMap::new());
    loop {
        let found = store.read(&topic.name, &page)?;
        events.extend(found.events.into_iter().map(|event| (event.id.major(), event)));
        match found.next {
            Some(next) => page.after = Some(next),
            None => break,
        }
    }
    let pending = store.pending(&topic, &name("g"), None, usize::MAX)?;
    let open = pending.iter().map(|one| one.id.major()).collect();
    let (mut page, mut dead) =
        (DeadLetterPage { limit: PAGE_EVENTS_MAX, ..DeadLetterPage::default() }, Vec::new());
    loop {
        let found = store.dead_letters(&page)?;
        dead.extend(found.letters.into_iter().filter(|letter| letter.topic == topic.name));
        match found.next {
            Some(next) => page.after = Some(next),
            None => break,
        }
    }
    let next = group.next.major();
    Ok(Some(Holds { events, first: info.first.map_or(next, EventId::major), open, next, dead }))
}

fn compare(said: &Said, text: &'static str, holds: &Holds) -> Result<(), String> {
    let check = |holds: bool, what: String| if holds { Ok(()) } else { Err(format!("{text}: {what}")) };
    let mut letters = BTreeMap::<u64, usize>::new();
    for letter in &holds.dead {
        let id = letter.event.id.major();
        *letters.entry(id).or_default() += 1;
        check(!holds.is_open(id), format!("{id} is a dead letter and in the stream"))?;
    }
    check(letters.values().all(|count| *count == 1), format!("twice among dead letters: {letters:?}"))?;
    let retried = || holds.events.values().filter_map(|event| event.retried.as_ref());
    let retries: BTreeSet<u64> = retried().map(|retried| retried.dead_letter.0.major()).collect();
    let originals: BTreeSet<u64> = retried().map(|retried| retried.original.major()).collect();
    for ((_, id), payload) in said.published.iter().filter(|((of, _), _)| *of == text) {
        let (id, key) = (*id, (text, *id));
        let event = holds.events.get(&id);
        let may_be_trimmed = text == "trimmed" && id < holds.first;
        check(event.is_some() || may_be_trimmed, format!("{id} was acknowledged, and is lost"))?;
        check(event.is_none_or(|event| event.payload == payload), format!("{id} is another one"))?;
        let open = holds.is_open(id);
        check(event.is_some() || !open, format!("{id} was trimmed before it was settled"))?;
        let was_buried = said.buried.values().any(|buried| *buried == key);
        let is_dead = letters.contains_key(&id);
        let accounted =
            open || is_dead || originals.contains(&id) || said.acking.contains(&key) || was_buried;
        check(accounted, format!("{id} is in neither the stream nor the dead letters"))?;
        let was_acked = said.acked.contains(&key);
        check(!(was_acked && open), format!("{id} was acknowledged, and is open"))?;
        check(!(was_acked && is_dead), format!("{id} was acknowledged, and is a dead letter"))?;
    }
    for (dead, (_, id)) in said.buried.iter().filter(|(_, (of, _))| *of == text) {
        let letter = DeadLetterId(EventId::new(*dead));
        let is_there = holds.dead.iter().any(|one| one.id == letter);
        check(!holds.is_open(*id), format!("{id} was given up, and is open"))?;
        let is_retried = retries.contains(dead);
        check(is_there != is_retried, format!("dead letter {dead}: {is_there}, retried {is_retried}"))?;
        check(is_there || said.retrying.contains(dead), format!("nobody retried {dead}"))?;
    }
    for (dead, new) in said.retried.iter().filter(|_| text == "kept") {
        let event = holds.events.get(new).and_then(|event| event.retried.as_ref());
        let is_its = event.is_some_and(|retried| retried.dead_letter.0.major() == *dead);
        check(is_its, format!("the retry of {dead} is lost"))?;
    }
    Ok(())
}

fn seeds() -> u64 {
    std::env::var("TIDINGS_STREAMS_POWER_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_wherever_a_call_fails_or_the_power_is_cut() {
    let (mut published, mut buried, mut retried, mut recovered) = (0, 0, 0, 0);
    for seed in 0..seeds() {
        let mut world = World::new(seed, Durability::Sync, None);
        if let Err(error) = world.run(true) {
            panic!("seed {seed}: {error}");
        }
        published += world.said.published.len();
        buried += world.said.buried.len();
        retried += world.said.retried.len();
        recovered += world.recovered;
    }
    assert!(published > 1_000 && buried > 100 && retried > 20, "{published}, {buried}, {retried}");
    assert!(recovered > 20, "{recovered}");
}

#[test]
fn a_relaxed_store_loses_nothing_while_the_power_is_on() {
    for seed in 0..seeds() / 4 {
        let mut world = World::new(seed, Durability::Relaxed, None);
        if let Err(error) = world.run(false) {
            panic!("seed {seed}: {error}");
        }
    }
}

#[test]
fn a_store_that_leaves_out_a_sync_is_found() {
    for defect in [Defect::Unsynced, Defect::NamesUnsynced, Defect::TrustsClean] {
        let found = (0..SEEDS_OF_DEFECTS)
            .find(|seed| World::new(*seed, Durability::Sync, Some(defect)).run(true).is_err());
        println!("{defect:?} is found by seed {found:?}");
        assert!(found.is_some(), "{defect:?} is not found");
    }
}
