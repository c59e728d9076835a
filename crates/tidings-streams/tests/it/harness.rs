//! What tests of stores share: a clock that is moved by hand, and stores in directories of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tempfile::TempDir;
use tidings_streams::conformance::Harness;
use tidings_streams::embedded::{Config, Embedded};
use tidings_streams::{Driver, Durability, Timestamp};

/// A clock that stands still until it is moved.
#[derive(Clone, Debug)]
pub(crate) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000_000)))
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }

    pub(crate) fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_back(&self, time: Duration) {
        self.0.fetch_sub(time.as_millis() as u64, Ordering::Relaxed);
    }

    pub(crate) fn config(&self, durability: Durability) -> Config {
        let clock = self.clone();
        Config { durability, clock: Arc::new(move || clock.now()) }
    }
}

/// Embedded stores, in directories that go with the harness.
#[derive(Debug)]
pub(crate) struct EmbeddedHarness {
    pub(crate) clock: TestClock,
    durability: Durability,
    /// The clock goes on with every look at it.
    ticks: bool,
    stores: Mutex<Vec<(Arc<dyn Driver>, TempDir)>>,
}

impl EmbeddedHarness {
    pub(crate) fn new(durability: Durability) -> Self {
        Self { clock: TestClock::new(), durability, ticks: false, stores: Mutex::default() }
    }

    /// With a clock that goes on by a millisecond whenever a store looks at it.
    pub(crate) fn ticking() -> Self {
        Self { ticks: true, ..Self::new(Durability::Relaxed) }
    }

    fn config(&self) -> Config {
        let (clock, ticks) = (self.clock.clone(), self.ticks);
        let now = move || {
            if ticks {
                clock.pass(Duration::from_millis(1));
            }
            clock.now()
        };
        Config { durability: self.durability, clock: Arc::new(now) }
    }
}

#[async_trait]
impl Harness for EmbeddedHarness {
    async fn driver(&self) -> Arc<dyn Driver> {
        let directory = tempfile::tempdir().expect("a directory");
        let opened = Embedded::open(directory.path(), self.config()).await;
        let driver: Arc<dyn Driver> = Arc::new(opened.expect("it opens"));
        self.stores.lock().push((Arc::clone(&driver), directory));
        driver
    }

    async fn reopen(&self, driver: Arc<dyn Driver>) -> Option<Arc<dyn Driver>> {
        driver.close().await.expect("it closes");
        let path = {
            let stores = self.stores.lock();
            let (_, directory) = stores.iter().find(|(one, _)| Arc::ptr_eq(one, &driver))?;
            directory.path().to_owned()
        };
        let opened = Embedded::open(&path, self.config()).await;
        let new: Arc<dyn Driver> = Arc::new(opened.expect("it opens again"));
        for (one, _) in self.stores.lock().iter_mut().filter(|(one, _)| Arc::ptr_eq(one, &driver)) {
            *one = Arc::clone(&new);
        }
        Some(new)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn pass(&self, time: Duration) {
        self.clock.pass(time);
    }
}
