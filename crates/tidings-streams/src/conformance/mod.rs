//! What every driver has to do: the definition of correct, as cases that are run against one.
//!
//! Whoever writes a driver implements [`Harness`] for it, and runs [`check`] in a test:
//!
//! ```ignore
//! #[tokio::test(flavor = "multi_thread")]
//! async fn conforms() {
//!     tidings_streams::conformance::check(&MyHarness::new()).await;
//! }
//! ```
//!
//! Each case gets a store of its own. A case ends by a panic that says what was seen; [`run`] collects those, so that
//! a driver with several defects learns of all of them, and [`check`] panics with the list.

/// Lists cases by the names of their functions.
macro_rules! facts {
    ($($name:ident),* $(,)?) => {
        [$($crate::conformance::Case { name: stringify!($name), run: |lab| Box::pin($name(lab)) }),*]
    };
}

mod dead_letters;
mod groups;
mod lab;
mod operators;
mod ordered;
mod publishing;
mod retention;
mod walk;

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;

use crate::driver::Driver;
use crate::id::Timestamp;

pub use lab::Lab;

/// What the suite needs of whoever brings a driver.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A new store that nothing was ever published to.
    async fn driver(&self) -> Arc<dyn Driver>;

    /// Ends a driver as cleanly as it can be, and opens the same store again. `None`: the store does not outlive its
    /// driver, and what it keeps is not looked at.
    async fn reopen(&self, driver: Arc<dyn Driver>) -> Option<Arc<dyn Driver>>;

    /// What the store's clock says.
    fn now(&self) -> Timestamp;

    /// Lets time pass for the store: moves its clock, or sleeps where it has one of its own.
    async fn pass(&self, time: Duration);
}

/// A case under way.
type Running<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One thing that every driver has to do.
#[derive(Clone, Copy)]
pub struct Case {
    /// What, as a fact.
    pub name: &'static str,
    run: for<'a> fn(&'a Lab<'a>) -> Running<'a>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A case that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which case.
    pub case: &'static str,
    /// What was seen.
    pub seen: String,
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    all.extend(publishing::cases());
    all.extend(groups::cases());
    all.extend(ordered::cases());
    all.extend(dead_letters::cases());
    all.extend(retention::cases());
    all.extend(operators::cases());
    all.extend(walk::cases());
    all
}

/// Runs one case with a store of its own.
///
/// # Errors
/// [`Failure`].
pub async fn run_case(harness: &dyn Harness, case: Case) -> Result<(), Failure> {
    let running = async {
        let lab = Lab::new(harness).await;
        (case.run)(&lab).await;
        lab.end().await;
    };
    let ended = AssertUnwindSafe(running).catch_unwind().await;
    ended.map_err(|panic| Failure { case: case.name, seen: text_of(panic.as_ref()) })
}

/// Runs every case, and lists those that do not hold.
pub async fn run(harness: &dyn Harness) -> Vec<Failure> {
    let mut failures = Vec::new();
    for case in cases() {
        failures.extend(run_case(harness, case).await.err());
    }
    failures
}

/// Runs every case.
///
/// # Panics
/// If one does not hold, with the list of all that do not.
pub async fn check(harness: &dyn Harness) {
    let failures = run(harness).await;
    let lines: Vec<String> =
        failures.iter().map(|failure| format!("{}: {}", failure.case, failure.seen)).collect();
    assert!(failures.is_empty(), "the driver does not conform:\n{}", lines.join("\n"));
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}
