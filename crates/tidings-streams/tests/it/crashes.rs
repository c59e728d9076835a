//! Processes that are killed at any moment while they publish, settle, retry and trim.
//!
//! The child is this test binary itself. It says on its standard output what it is about to do and what the store has
//! acknowledged; the one who killed it compares that with what is stored.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::num::NonZeroU32;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{
    Action, Backoff, Damage, DeadLetter, DeadLetterId, DeadLetterPage, Driver, Event, EventId, Name,
    NewEvent, Outcome, PAGE_EVENTS_MAX, Page, Place, ReceiveRequest, Retention, Settlement, Start, Topic,
    TopicSettings, TrimMode,
};
use tokio_util::sync::CancellationToken;

/// Tells the child where its store is. Without it the child's test does nothing.
const STORE: &str = "TIDINGS_STREAMS_CHILD";

/// How often a process is killed. More by `TIDINGS_STREAMS_KILLS`.
const KILLS: u64 = 50;

/// Kills that one store has to outlive.
const KILLS_PER_STORE: u64 = 10;

/// Most of what a child says before it is killed.
const LINES_MAX: u64 = 300;

/// How much later it is killed at most, in microseconds: a few times what a write takes.
const DELAY_MAX: u64 = 20_000;

fn name(text: &str) -> Name {
    Name::new(text).expect("it is a name")
}

fn topic(text: &str) -> Topic {
    let settings = TopicSettings {
        retention: Retention::default(),
        max_deliveries: NonZeroU32::new(2).expect("two is not zero"),
        min_idle_time: Duration::from_secs(2),
        backoff: Backoff { initial: Duration::from_millis(1), max: Duration::from_millis(5), jitter: 0.2 },
        ..TopicSettings::default()
    };
    Topic { name: name(text), settings: settings.into() }
}

/// `kept` is never trimmed and its dead letters are retried, `trimmed` is the opposite.
const TOPICS: [&str; 2] = ["kept", "trimmed"];

#[test]
fn child() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let store: Arc<dyn Driver> =
            Arc::new(Embedded::open(Path::new(&path), Config::default()).await.expect("it opens"));
        let mut tasks = tokio::task::JoinSet::new();
        for text in TOPICS {
            store.create_group(&topic(text), &name("g"), Start::Earliest).await.expect("it is made");
            tasks.spawn(publish(Arc::clone(&store), text));
            tasks.spawn(settle(Arc::clone(&store), text, "c1"));
            tasks.spawn(settle(Arc::clone(&store), text, "c2"));
        }
        tasks.spawn(retry(Arc::clone(&store)));
        tasks.spawn(trim(store));
        while tasks.join_next().await.is_some() {}
    });
}

fn say(words: &[&dyn std::fmt::Display]) {
    let words: Vec<String> = words.iter().map(ToString::to_string).collect();
    println!("@ {}", words.join(" "));
}

async fn publish(store: Arc<dyn Driver>, text: &str) {
    for number in 0_u64.. {
        let events = (0..=number % 3).map(|_| NewEvent::new(format!("{number}").repeat(20))).collect();
        for one in store.publish(&topic(text), events).await.expect("it is published") {
            say(&[&"published", &text, &one.id]);
        }
    }
}

async fn settle(store: Arc<dyn Driver>, text: &str, consumer: &str) {
    let (topic, group) = (topic(text), name("g"));
    loop {
        let stop = CancellationToken::new();
        let wait = Duration::from_millis(100);
        let request = ReceiveRequest { consumer: name(consumer), max: 3, wait, stop };
        for one in store.receive(&topic, &group, request).await.expect("it is there") {
            let id = one.event.id;
            let action = if id.major() % 3 == 0 {
                Action::Fail { reason: "by its number".to_owned() }
            } else {
                say(&[&"acking", &text, &id]);
                Action::Ack
            };
            let word = Settlement { id, tag: Some(one.tag), action };
            match store.settle(&topic, &group, vec![word]).await.expect("it is there")[0] {
                Outcome::Acked => say(&[&"acked", &text, &id]),
                Outcome::Buried(dead) => say(&[&"buried", &text, &id, &dead]),
                _ => {}
            }
        }
    }
}

async fn retry(store: Arc<dyn Driver>) {
    let filter = tidings_streams::DeadLetterFilter { topic: Some(name("kept")), ..Default::default() };
    loop {
        let page = DeadLetterPage { filter: filter.clone(), after: None, limit: 1 };
        for letter in store.dead_letters(&page).await.expect("they can be read").letters {
            say(&[&"retrying", &letter.id]);
            let new = store.retry(letter.id).await.expect("it can be retried");
            say(&[&"retried", &letter.id, &new]);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn trim(store: Arc<dyn Driver>) {
    let limits = Retention { max_events: Some(20), ..Retention::default() };
    loop {
        store.trim(&topic("trimmed"), &limits, TrimMode::default()).await.expect("it can be trimmed");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// What a store has said, over all lives of its processes.
#[derive(Debug, Default)]
struct Said {
    published: BTreeSet<(String, EventId)>,
    acking: BTreeSet<(String, EventId)>,
    acked: BTreeSet<(String, EventId)>,
    buried: BTreeMap<DeadLetterId, (String, EventId)>,
    retrying: BTreeSet<DeadLetterId>,
    retried: BTreeMap<DeadLetterId, EventId>,
}

impl Said {
    /// Whether what cannot be read is of something that was acknowledged. What groups did was compared.
    fn names(&self, damage: &Damage) -> bool {
        let Some((first, last)) = damage.ids else { return damage.place != Place::Groups };
        match &damage.place {
            Place::Topic(topic) => {
                let of = |id| (topic.as_str().to_owned(), id);
                self.published.range(of(first)..=of(last)).next().is_some()
            }
            _ => self.buried.range(DeadLetterId(first)..=DeadLetterId(last)).next().is_some(),
        }
    }

    fn hear(&mut self, line: &str) {
        // What libtest says comes first on the line, if at all. The last line may be cut.
        let Some(words) = line.split_once("@ ").map(|(_, words)| words.split(' ').collect::<Vec<_>>()) else {
            return;
        };
        let of = |text: &str, id: &str| (text.to_owned(), id.parse::<EventId>().expect("an id"));
        let dead = |id: &str| id.parse::<DeadLetterId>().expect("an id");
        match words[..] {
            ["published", text, id] => drop(self.published.insert(of(text, id))),
            ["acking", text, id] => drop(self.acking.insert(of(text, id))),
            ["acked", text, id] => drop(self.acked.insert(of(text, id))),
            ["buried", text, id, letter] => drop(self.buried.insert(dead(letter), of(text, id))),
            ["retrying", letter] => drop(self.retrying.insert(dead(letter))),
            ["retried", letter, new] => drop(self.retried.insert(dead(letter), of("", new).1)),
            _ => panic!("the child said {line:?}"),
        }
    }
}

/// Everything that a store holds.
struct Holds {
    events: BTreeMap<EventId, Event>,
    first: EventId,
    /// What the group has looked at and not settled.
    open: BTreeSet<EventId>,
    next: EventId,
    dead: Vec<DeadLetter>,
}

impl Holds {
    fn is_open(&self, id: &EventId) -> bool {
        self.open.contains(id) || *id >= self.next
    }
}

async fn holds(store: &Embedded, text: &str) -> Holds {
    let topic = topic(text);
    let (mut page, mut events) = (Page { limit: PAGE_EVENTS_MAX, ..Page::default() }, BTreeMap::new());
    loop {
        let found = store.read(&topic, &page).await.expect("it can be read");
        events.extend(found.events.into_iter().map(|event| (event.id, event)));
        match found.next {
            Some(next) => page.after = Some(next),
            None => break,
        }
    }
    let mut open = BTreeSet::new();
    let pending = store.pending(&topic, &name("g"), None, PAGE_EVENTS_MAX).await.expect("it is there");
    open.extend(pending.iter().map(|one| one.id));
    let next = store.groups(&topic).await.expect("they can be listed")[0].next;
    let filter = tidings_streams::DeadLetterFilter { topic: Some(topic.name.clone()), ..Default::default() };
    let (mut page, mut dead) = (DeadLetterPage { filter, after: None, limit: PAGE_EVENTS_MAX }, Vec::new());
    loop {
        let found = store.dead_letters(&page).await.expect("they can be read");
        dead.extend(found.letters);
        match found.next {
            Some(next) => page.after = Some(next),
            None => break,
        }
    }
    let info = store.topic(&topic).await.expect("it can be asked").expect("it is there");
    Holds { events, first: info.first.unwrap_or(next), open, next, dead }
}

fn compare(said: &Said, text: &str, holds: &Holds, what: &str) {
    let is_open = |id: &EventId| holds.is_open(id);
    let mut letters = BTreeMap::<EventId, usize>::new();
    for letter in &holds.dead {
        *letters.entry(letter.event.id).or_default() += 1;
        assert!(!is_open(&letter.event.id), "{what}: {} is a dead letter and in the stream", letter.event.id);
    }
    assert!(letters.values().all(|count| *count == 1), "{what}: twice among dead letters: {letters:?}");
    let retried = || holds.events.values().filter_map(|event| event.retried.as_ref());
    let retries: BTreeSet<DeadLetterId> = retried().map(|retried| retried.dead_letter).collect();
    let originals: BTreeSet<EventId> = retried().map(|retried| retried.original).collect();
    let ours = |(of, id): &(String, EventId)| (of == text).then_some(*id);
    for id in said.published.iter().filter_map(ours) {
        let there = holds.events.contains_key(&id);
        let may_be_trimmed = text == "trimmed" && id < holds.first;
        assert!(there || may_be_trimmed, "{what}: {id} was acknowledged, and is lost");
        assert!(there || !is_open(&id), "{what}: {id} was trimmed before it was settled");
        let key = (text.to_owned(), id);
        let was_buried = said.buried.values().any(|buried| *buried == key);
        let is_dead = letters.contains_key(&id);
        let is_retried = originals.contains(&id);
        let accounted = is_open(&id) || is_dead || is_retried || said.acking.contains(&key) || was_buried;
        assert!(accounted, "{what}: {id} is in neither the stream nor the dead letters");
        assert!(!said.acked.contains(&key) || !is_open(&id), "{what}: {id} was acknowledged, and is open");
        assert!(
            !(said.acked.contains(&key) && is_dead),
            "{what}: {id} was acknowledged, and is a dead letter"
        );
    }
    for (dead, (_, id)) in said.buried.iter().filter(|(_, (of, _))| of == text) {
        let is_dead = holds.dead.iter().any(|letter| letter.id == *dead);
        assert!(!is_open(id), "{what}: {id} was given up, and is open");
        if text == "kept" {
            let (is_there, is_retried) = (is_dead, retries.contains(dead));
            assert!(
                is_there != is_retried,
                "{what}: dead letter {dead} of {id}: {is_there}, retried {is_retried}"
            );
            assert!(is_there || said.retrying.contains(dead), "{what}: nobody retried {dead}");
        } else {
            assert!(is_dead, "{what}: dead letter {dead} of {id} is lost");
        }
    }
    for (dead, new) in said.retried.iter().filter(|_| text == "kept") {
        let event = holds.events.get(new).and_then(|event| event.retried.as_ref());
        assert!(
            event.is_some_and(|retried| retried.dead_letter == *dead),
            "{what}: the retry of {dead} is lost"
        );
    }
}

/// Runs a child, kills it once it has said so much, and hears it out.
fn live_and_die(path: &Path, said: &mut Said, lines: u64, delay: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["crashes::child", "--exact", "--nocapture", "--test-threads=1"])
        .env(STORE, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut heard = 0;
    for line in BufReader::new(child.stdout.take().expect("it is piped")).lines() {
        let Ok(line) = line else { break };
        said.hear(&line);
        heard += u64::from(line.contains("@ "));
        if heard == lines {
            // What it says comes at a certain point of its work: it should die at any.
            #[allow(clippy::disallowed_methods, reason = "when a process dies is chosen, not waited for")]
            std::thread::sleep(delay);
            // Its last line comes whole or not at all: a pipe takes such short writes at once.
            child.kill().expect("it can be killed");
        }
    }
    child.wait().expect("it has ended");
    heard
}

#[tokio::test]
async fn no_acknowledged_event_is_lost_however_a_process_is_killed() {
    let kills =
        std::env::var("TIDINGS_STREAMS_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let mut chance = 11_u64;
    for store in 0..kills.div_ceil(KILLS_PER_STORE) {
        let home = tempfile::tempdir().expect("a directory");
        let mut said = Said::default();
        for kill in 0..KILLS_PER_STORE {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let lines = 1 + (chance >> 33) % LINES_MAX;
            let delay = Duration::from_micros((chance >> 13) % DELAY_MAX);
            let what = format!("store {store}, kill {kill}, {delay:?} after {lines} lines");
            let heard = live_and_die(home.path(), &mut said, lines, delay);
            assert!(heard >= lines, "{what}: the child ended by itself after {heard} lines");
            let opened = Embedded::open(home.path(), Config::default()).await.expect("it opens");
            for text in TOPICS {
                let holds = holds(&opened, text).await;
                compare(&said, text, &holds, &what);
                // What was about to be acknowledged was not: a later life has to account for it anew.
                said.acking.retain(|(of, id)| of != text || !holds.is_open(id));
            }
            let report = opened.verify().await.expect("it can be verified");
            // A kill may cut a write short at the end of a page.
            assert!(report.damage.iter().all(|damage| !said.names(damage)), "{what}: {report:?}");
            opened.close().await.expect("it closes");
        }
        assert!(!said.acked.is_empty() && !said.buried.is_empty(), "nothing was settled");
    }
}
