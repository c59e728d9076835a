//! The suite against a server: by a clock that the tests move, and by the server's own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tidings_streams::conformance::{Case, Failure, Harness, cases, check, run_case};
use tidings_streams::redis::{Config, Redis};
use tidings_streams::{Driver, Timestamp};

use super::server::{Keeping, Server};
use crate::harness::TestClock;

/// Cases at a time: they sleep most of it.
const CASES_AT_A_TIME: usize = 16;

/// How often a case is tried that does not hold by the server's clock: time passes for the server whatever happens
/// here, and whoever stood still between two of a case's steps has not seen what it looks for.
const TRIES: usize = 5;

/// Stores of one server, told from each other by their prefixes.
struct RedisHarness {
    url: String,
    /// What stores go by, and the way to tell the server of it. `None`: by the server's own.
    given: Option<(TestClock, MultiplexedConnection)>,
    made: AtomicU64,
    stores: Mutex<Vec<(Arc<dyn Driver>, Config)>>,
}

impl RedisHarness {
    fn by_servers_clock(server: &Server) -> Self {
        Self { url: server.url(), given: None, made: AtomicU64::new(0), stores: Mutex::default() }
    }

    async fn by_given_clock(server: &Server) -> Self {
        let given = Some((TestClock::new(), server.connect().await));
        let harness = Self { given, ..Self::by_servers_clock(server) };
        harness.pass(Duration::ZERO).await;
        harness
    }

    async fn open(&self, config: Config) -> Arc<dyn Driver> {
        let opened = match self.given {
            Some(_) => Redis::connect_by_given_clock(&self.url, config.clone()).await,
            None => Redis::connect(&self.url, config.clone()).await,
        };
        let driver: Arc<dyn Driver> = Arc::new(opened.expect("the server is there"));
        self.stores.lock().push((Arc::clone(&driver), config));
        driver
    }
}

#[async_trait]
impl Harness for RedisHarness {
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
        self.given.as_ref().map_or_else(Timestamp::now, |(clock, _)| clock.now())
    }

    async fn pass(&self, time: Duration) {
        let Some((clock, connection)) = &self.given else { return tokio::time::sleep(time).await };
        clock.pass(time);
        let mut set = redis::cmd("SET");
        set.arg("clock").arg(clock.now().0).exec_async(&mut connection.clone()).await.expect("it is told");
    }
}

#[tokio::test]
async fn the_redis_driver_conforms() {
    let server = Server::start(Keeping::Nothing).await;
    check(&RedisHarness::by_given_clock(&server).await).await;
}

/// Random walks pass some minutes of the clock, and are looked at above.
fn is_short(case: &Case) -> bool {
    !case.name.starts_with("every_event_is_settled_once")
}

#[tokio::test]
async fn the_redis_driver_conforms_by_the_servers_clock() {
    let server = Server::start(Keeping::Nothing).await;
    let harness = RedisHarness::by_servers_clock(&server);
    let running = stream::iter(cases().into_iter().filter(is_short)).map(|case| {
        let harness = &harness;
        async move { (case, run_case(harness, case).await) }
    });
    let all: Vec<_> = running.buffer_unordered(CASES_AT_A_TIME).collect().await;
    let mut failures: Vec<Failure> = Vec::new();
    for (case, mut held) in all {
        // Once more by itself: what a driver does wrong it does wrong then too.
        for _ in 1..TRIES {
            if let Err(failure) = &held {
                println!("once more: {failure:?}");
                held = run_case(&harness, case).await;
            }
        }
        failures.extend(held.err());
    }
    assert!(failures.is_empty(), "the driver does not conform: {failures:#?}");
}
