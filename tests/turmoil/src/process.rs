//! A process: a runtime of its own, run a millisecond at a time. It can be stopped, and goes on as after SIGSTOP and
//! SIGCONT: what it had begun is as it was, and its clock has run on.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep};

/// How long a process runs at a time.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// The time of the simulation, as it is read inside of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time {
    began: Duration,
    base: Instant,
}

impl Time {
    pub(crate) fn now(&self) -> Duration {
        self.began + self.base.elapsed()
    }
}

pub(crate) struct Process {
    runtime: Runtime,
    work: JoinHandle<()>,
    /// Until when it has run.
    ran_until: Duration,
}

impl Process {
    pub(crate) fn start<W>(now: Duration, work: impl FnOnce(Time) -> W) -> Self
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without input and output needs nothing of the system");
        let time = runtime.block_on(async { Time { began: now, base: Instant::now() } });
        let work = runtime.spawn(work(time));
        Self { runtime, work, ran_until: now }
    }

    /// Runs until a moment. If it did not run for longer than a tick, that is as if it had been stopped.
    pub(crate) fn run(&mut self, until: Duration) {
        let stood_still = until.saturating_sub(self.ran_until + TICK);
        if !stood_still.is_zero() {
            self.runtime.block_on(async { advance(stood_still).await });
        }
        self.runtime.block_on(async { sleep(TICK).await });
        self.ran_until = until;
        assert!(!self.work.is_finished(), "a service panicked");
    }
}
