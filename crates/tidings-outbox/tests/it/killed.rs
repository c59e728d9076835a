//! Processes that are killed at any moment while they commit, roll back and relay.
//!
//! The child is this test binary itself. Every order is a row of a table and an event, both or neither: whoever killed
//! it compares the two, and with what the child has said.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::{Connection, Pool, Postgres, Sqlite, Transaction};
use tidings_outbox::Outbox;
use tidings_streams::{NewEvent, Streams};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::databases::Lab;
use crate::world::{PATIENCE, World, config, events, open, settings, text};

/// Tells the child which database it has. Without it the child's test does nothing.
const CHILD: &str = "TIDINGS_OUTBOX_CHILD";

/// How often a process is killed, in each database. `TIDINGS_TEST_SCALE=10` makes it a hundred.
const KILLS: f64 = 10.0;

/// Most of what a child says before it is killed.
const LINES_MAX: u64 = 80;

/// How much later it is killed at most, in microseconds: a few times what a commit takes.
const DELAY_MAX: u64 = 20_000;

/// Transactions that a child has under way at a time.
const WRITERS: u64 = 3;

/// What a child is told.
#[derive(Debug)]
struct Told {
    address: String,
    store: PathBuf,
    life: u64,
    /// Every other life only commits: what it leaves is for the next one.
    relays: bool,
}

impl Told {
    const NAMES: [&'static str; 4] =
        ["TIDINGS_OUTBOX_ADDRESS", "TIDINGS_OUTBOX_STORE", "TIDINGS_OUTBOX_LIFE", "TIDINGS_OUTBOX_RELAYS"];

    fn tell(&self, child: &mut Command) {
        let store = self.store.to_str().expect("UTF-8").to_owned();
        let values = [self.address.clone(), store, self.life.to_string(), self.relays.to_string()];
        child.envs(Self::NAMES.into_iter().zip(values));
    }

    fn hear() -> Self {
        let [address, store, life, relays] = Self::NAMES.map(|name| std::env::var(name).expect(name));
        let (life, relays) = (life.parse().expect("a number"), relays.parse().expect("a truth"));
        Self { address, store: store.into(), life, relays }
    }
}

/// No window at all: what keeps an event from being published twice is not the topic's memory of keys.
async fn streams(store: &Path) -> Streams {
    Streams::start(open(store).await, settings(Duration::ZERO)).expect("they agree")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    match std::env::var(CHILD).as_deref() {
        Ok(<Sqlite as Lab>::LABEL) => Box::pin(live::<Sqlite>(Told::hear())).await,
        Ok(<Postgres as Lab>::LABEL) => Box::pin(live::<Postgres>(Told::hear())).await,
        Ok(other) => panic!("there is no database {other}"),
        Err(_) => {}
    }
}

async fn live<DB: Lab>(told: Told) {
    let (pool, outbox) = (DB::reach(&told.address), Outbox::<DB>::new("shop_").expect("a prefix"));
    let streams = streams(&told.store).await;
    let _relay = told.relays.then(|| outbox.relay(&pool, streams.clone(), config()));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (pool, outbox) = (pool.clone(), outbox.clone());
        let life = told.life;
        writers.spawn(async move {
            for number in 0_u64.. {
                order(&pool, &outbox, &format!("{life}.{writer}.{number}"), (writer + number) % 4).await;
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("it does not panic");
    }
}

/// Writes an order and its event.
async fn write<DB: Lab>(connection: &mut DB::Connection, outbox: &Outbox<DB>, name: &str, event: NewEvent) {
    let enqueued = outbox.publish(connection, "orders", event).await.expect("it is written");
    if !enqueued.duplicate {
        DB::say(connection, &format!("INSERT INTO orders VALUES ('{name}')")).await;
    }
}

/// One transaction of one of four kinds.
async fn order<DB: Lab>(pool: &Pool<DB>, outbox: &Outbox<DB>, name: &str, kind: u64) {
    let mut transaction: Transaction<'_, DB> = pool.begin().await.expect("it is there");
    let event = NewEvent::new(name.to_owned());
    match kind {
        0 => write::<DB>(&mut transaction, outbox, name, event).await,
        1 => {
            // The same order twice.
            let event = event.idempotency_key(name);
            write::<DB>(&mut transaction, outbox, name, event.clone()).await;
            write::<DB>(&mut transaction, outbox, name, event).await;
        }
        2 => {
            write::<DB>(&mut transaction, outbox, name, event).await;
            let mut savepoint = Connection::begin(&mut *transaction).await.expect("it is there");
            let part = format!("{name}.never");
            write::<DB>(&mut savepoint, outbox, &part, NewEvent::new(part.clone())).await;
            savepoint.rollback().await.expect("it is rolled back");
        }
        _ => {
            let name = format!("{name}.never");
            write::<DB>(&mut transaction, outbox, &name, NewEvent::new(name.clone())).await;
            return transaction.rollback().await.expect("it is rolled back");
        }
    }
    transaction.commit().await.expect("it commits");
    outbox.wake();
    println!("@ {name}");
}

/// Runs a child, kills it once it has said so much, and hears it out: the orders that it has committed.
fn live_and_die<DB: Lab>(told: &Told, lines: u64, delay: Duration) -> BTreeSet<String> {
    let mut child = Command::new(std::env::current_exe().expect("this binary"));
    told.tell(child.env(CHILD, DB::LABEL));
    let child = child.args(["killed::child", "--exact", "--nocapture", "--test-threads=1"]);
    let mut child = child.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut said = BTreeSet::new();
    let mut is_killed = false;
    for line in BufReader::new(child.stdout.take().expect("it is piped")).lines() {
        let Ok(line) = line else { break };
        // What libtest says comes first on the line, if at all.
        let Some((_, name)) = line.split_once("@ ") else { continue };
        said.insert(name.to_owned());
        if said.len() as u64 >= lines && !is_killed {
            // What it says comes at a certain point of its work: it should die at any.
            #[allow(clippy::disallowed_methods, reason = "when a process dies is chosen, not waited for")]
            std::thread::sleep(delay);
            child.kill().expect("it can be killed");
            is_killed = true;
        }
    }
    child.wait().expect("it has ended");
    assert!(is_killed, "the child ended by itself after {said:?}");
    said
}

/// Every order has one event, and no event is without an order.
fn judge(orders: &BTreeSet<String>, events: &BTreeMap<String, usize>) -> Result<(), String> {
    for name in orders {
        match events.get(name) {
            Some(1) => {}
            Some(times) => return Err(format!("{name} was published {times} times")),
            None => return Err(format!("{name} was committed, and not published")),
        }
    }
    match events.keys().find(|name| !orders.contains(*name)) {
        Some(ghost) => Err(format!("{ghost} was not committed, and published")),
        None => Ok(()),
    }
}

async fn every_committed_event_arrives_once_however_processes_are_killed<DB: Lab>() {
    let scale = std::env::var("TIDINGS_TEST_SCALE").map_or(1.0, |text| text.parse().expect("a number"));
    let kills = (KILLS * scale).ceil() as u64;
    // Its database; the store is the children's.
    let world = World::<DB>::new().await;
    let home = tempfile::tempdir().expect("a directory");
    let (mut chance, mut said, mut left) = (11_u64, BTreeSet::new(), 0);
    for life in 0..kills {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lines = 1 + (chance >> 33) % LINES_MAX;
        let delay = Duration::from_micros((chance >> 13) % DELAY_MAX);
        let (address, store) = (world.address.clone(), home.path().to_owned());
        let told = Told { address, store, life, relays: life % 3 != 0 };
        said.extend(tokio::task::block_in_place(|| live_and_die::<DB>(&told, lines, delay)));
        left += u64::from(world.backlog().await.waiting > 0);
    }
    assert!(left >= kills / 3, "only {left} of {kills} lives left something between commit and relay");

    let streams = streams(home.path()).await;
    let relay = world.outbox.relay(&world.pool, streams.clone(), config());
    world.relayed().await;
    let begun = Instant::now();
    loop {
        let mut connection = world.connection().await;
        let orders: BTreeSet<String> =
            DB::texts(&mut connection, "SELECT name FROM orders").await.into_iter().collect();
        let mut published = BTreeMap::new();
        for event in events(&streams, "orders").await {
            *published.entry(text(&event)).or_default() += 1;
        }
        assert!(published.values().all(|times| *times == 1), "{:?}", judge(&orders, &published));
        // A server may end a transaction of one that was killed a moment later.
        match judge(&orders, &published) {
            Ok(()) => {
                assert!(said.is_subset(&orders), "what was said to be committed is not there");
                assert!(!orders.iter().any(|name| name.ends_with("never")), "{orders:?}");
                break;
            }
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{}, {kills} kills: {error}", DB::LABEL),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = relay.stop().await;
    assert_eq!((status.failed, status.unsure), (0, 0), "{status:?}");
    streams.shutdown().await.expect("it closes");
    println!("{}: {kills} kills, {left} with events left, {} orders", DB::LABEL, said.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_committed_event_arrives_once_however_processes_are_killed_in_sqlite() {
    Box::pin(every_committed_event_arrives_once_however_processes_are_killed::<Sqlite>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_committed_event_arrives_once_however_processes_are_killed_in_postgres() {
    Box::pin(every_committed_event_arrives_once_however_processes_are_killed::<Postgres>()).await;
}
