//! The suite against a server, which goes by its own clock.
//!
//! A driver can be told another clock, and what is due follows it, but the moments of events are the server's. Random
//! walks pass some minutes and look at no such moments: they go by a clock that the tests move.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tidings_streams::conformance::{Case, Failure, Harness, cases, run_case};
use tidings_streams::nats::{Config, Nats};
use tidings_streams::{Driver, Timestamp};

use super::server::Server;
use crate::harness::TestClock;

/// Cases at a time: they sleep most of it.
const CASES_AT_A_TIME: usize = 16;

/// How often a case is tried that does not hold by the server's clock: time passes for the server whatever happens
/// here, and whoever stood still between two of a case's steps has not seen what it looks for.
const TRIES: usize = 5;

/// Stores of one server, told from each other by their prefixes.
struct NatsHarness {
    url: String,
    /// What stores go by. `None`: the server's clock.
    given: Option<TestClock>,
    made: AtomicU64,
    stores: Mutex<Vec<(Arc<dyn Driver>, Config)>>,
}

impl NatsHarness {
    fn new(server: &Server, given: Option<TestClock>) -> Self {
        Self { url: server.url(), given, made: AtomicU64::new(0), stores: Mutex::default() }
    }

    async fn open(&self, config: Config) -> Arc<dyn Driver> {
        let opened = match &self.given {
            Some(clock) => {
                let clock = clock.clone();
                let now = Arc::new(move || clock.now());
                Nats::connect_by_given_clock(&self.url, config.clone(), now).await
            }
            None => Nats::connect(&self.url, config.clone()).await,
        };
        let driver: Arc<dyn Driver> = Arc::new(opened.expect("the server is there"));
        self.stores.lock().push((Arc::clone(&driver), config));
        driver
    }
}

#[async_trait]
impl Harness for NatsHarness {
    async fn driver(&self) -> Arc<dyn Driver> {
        let prefix = format!("store-{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.open(Config { prefix, ..Config::default() }).await
    }

    async fn reopen(&self, driver: Arc<dyn Driver>) -> Option<Arc<dyn Driver>> {
        driver.close().await.expect("it closes");
        let config = {
            let stores = self.stores.lock();
            stores.iter().find(|(one, _)| Arc::ptr_eq(one, &driver))?.1.clone()
        };
        Some(self.open(config).await)
    }

    fn now(&self) -> Timestamp {
        self.given.as_ref().map_or_else(Timestamp::now, TestClock::now)
    }

    async fn pass(&self, time: Duration) {
        match &self.given {
            Some(clock) => clock.pass(time),
            None => tokio::time::sleep(time).await,
        }
    }
}

/// What the names of random walks begin with.
const WALKS: &str = "every_event_is_settled_once";

async fn check(harness: &NatsHarness, cases: Vec<Case>) {
    let running = stream::iter(cases).map(|case| async move { (case, run_case(harness, case).await) });
    let all: Vec<_> = running.buffer_unordered(CASES_AT_A_TIME).collect().await;
    let mut failures: Vec<Failure> = Vec::new();
    for (case, mut held) in all {
        // Once more by itself: what a driver does wrong it does wrong then too.
        for _ in 1..TRIES {
            if let Err(failure) = &held {
                println!("once more: {failure:?}");
                held = run_case(harness, case).await;
            }
        }
        failures.extend(held.err());
    }
    assert!(failures.is_empty(), "the driver does not conform: {failures:#?}");
}

#[tokio::test]
async fn the_nats_driver_conforms() {
    let server = Server::start().await;
    let short = cases().into_iter().filter(|case| !case.name.starts_with(WALKS)).collect();
    check(&NatsHarness::new(&server, None), short).await;
}

/// Walks with a server and a clock of their own.
async fn walk(is_wanted: impl Fn(&Case) -> bool) {
    let server = Server::start().await;
    let harness = NatsHarness::new(&server, Some(TestClock::new()));
    let wanted: Vec<Case> = cases().into_iter().filter(is_wanted).collect();
    assert_eq!(wanted.len(), 1, "{wanted:?}");
    let held = run_case(&harness, wanted[0]).await;
    assert_eq!(held, Ok(()), "the driver does not conform");
}

#[tokio::test]
async fn the_nats_driver_settles_every_event_once() {
    walk(|case| case.name == WALKS).await;
}

#[tokio::test]
async fn the_nats_driver_settles_every_event_once_and_in_the_order_of_its_key() {
    walk(|case| case.name.starts_with(WALKS) && case.name != WALKS).await;
}
