//! Loads that go on without a caller: tasks that their cache ends and the domain joins.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Most background loads of one cache at once: each holds a task, some kB, and a request of its source. Beyond it
/// nothing is refreshed, and a load that is slow is given up instead of going on.
const LOADS_MAX: usize = 1_024;

/// How long a load may go on in the background where the cache has no hard timeout: one that never ends must not keep
/// its place, and its key, for ever.
pub(crate) const LOAD_TIME: Duration = Duration::from_secs(60);

/// The background loads of one cache.
#[derive(Debug)]
pub(crate) struct Background {
    places: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Room for one more, and where it runs.
pub(crate) struct Place {
    permit: OwnedSemaphorePermit,
    handle: Handle,
    stop: CancellationToken,
}

impl Background {
    pub(crate) fn new() -> Self {
        Self { places: Arc::new(Semaphore::new(LOADS_MAX)), stop: CancellationToken::new() }
    }

    /// Nothing outside a runtime, while too many are under way, or once they were ended.
    pub(crate) fn place(&self) -> Option<Place> {
        if self.stop.is_cancelled() {
            return None;
        }
        let handle = Handle::try_current().ok()?;
        let permit = self.places.clone().try_acquire_owned().ok()?;
        Some(Place { permit, handle, stop: self.stop.clone() })
    }

    /// Ends all of them.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}

impl Place {
    /// Runs a load until it ends, is ended, or has taken `limit`.
    pub(crate) fn run<T>(
        self,
        tasks: &TaskTracker,
        limit: Duration,
        load: impl Future<Output = T> + Send + 'static,
    ) {
        let Self { permit, handle, stop } = self;
        let running = async move {
            let _ = stop.run_until_cancelled_owned(timeout(limit, load)).await;
            drop(permit);
        };
        tasks.spawn_on(running, &handle);
    }
}
