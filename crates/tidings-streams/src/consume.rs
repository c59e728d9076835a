//! Consuming by a handler: as many at a time as wanted, each delivery settled by what became of it.

use std::any::Any;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::call::ReceiveRequest;
use crate::delivery::{Delivery, SettleError};
use crate::error::GroupError;
use crate::name::Name;
use crate::streams::Group;

/// How long one look at the store waits for events. Whoever waits is woken: this only bounds what a server has to
/// remember of somebody who is gone.
const WAIT: Duration = Duration::from_secs(30);

/// How long a consumer waits before it asks a store again that failed; doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// An event may take this share of the topic's `min_idle_time` before it is extended by as much again.
const EXTEND_AFTER: f64 = 0.5;

/// How to consume.
#[derive(Clone, Debug)]
pub struct ConsumeOptions {
    /// As whom.
    pub consumer: Name,
    /// Most handlers at a time. Default: 1.
    pub concurrency: usize,
    /// Ends by itself after so many deliveries, exactly. Default: never.
    pub max: Option<u64>,
    /// Ends by itself when nothing came for so long. Default: never.
    pub idle: Option<Duration>,
    /// Acknowledges each event **before** its handler runs: what fails or crashes then is lost. Default: no.
    pub auto_ack: bool,
    /// Extends deliveries whose handlers take long, so that nobody else gets them meanwhile. Default: yes.
    pub extend: bool,
}

impl ConsumeOptions {
    /// One handler at a time, for ever.
    #[must_use]
    pub fn new(consumer: Name) -> Self {
        Self { consumer, concurrency: 1, max: None, idle: None, auto_ack: false, extend: true }
    }
}

/// What a consumer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumed {
    /// Deliveries that were acknowledged.
    pub acked: u64,
    /// Deliveries that failed: what a handler said, or a panic of it.
    pub failed: u64,
    /// Deliveries whose word came too late, or could not be stored: they are delivered again.
    pub unsettled: u64,
}

impl Consumed {
    /// All deliveries.
    #[must_use]
    pub fn deliveries(&self) -> u64 {
        self.acked + self.failed + self.unsettled
    }
}

/// A consumer that runs.
#[derive(Debug)]
#[must_use = "dropping it stops the consumer"]
pub struct Consumer {
    stop: CancellationToken,
    counts: Arc<Counts>,
    ended: Arc<Mutex<Option<GroupError>>>,
    done: CancellationToken,
}

#[derive(Debug, Default)]
struct Counts {
    acked: AtomicU64,
    failed: AtomicU64,
    unsettled: AtomicU64,
}

impl Counts {
    fn read(&self) -> Consumed {
        Consumed {
            acked: self.acked.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            unsettled: self.unsettled.load(Ordering::Relaxed),
        }
    }
}

impl Consumer {
    /// What it has done so far.
    #[must_use]
    pub fn consumed(&self) -> Consumed {
        self.counts.read()
    }

    /// Takes nothing more, lets the handlers that run finish, settles what they had, and ends. Nothing of this
    /// consumer is pending then.
    ///
    /// # Errors
    /// [`GroupError`] by which it had ended before.
    pub async fn stop(self) -> Result<Consumed, GroupError> {
        self.stop.cancel();
        self.ended().await
    }

    /// Waits until it ends by itself: at its `max`, when it was `idle` for as long as it may, when its group is
    /// removed, or with the streams.
    ///
    /// # Errors
    /// [`GroupError`] by which it ended.
    pub async fn ended(&self) -> Result<Consumed, GroupError> {
        self.done.cancelled().await;
        match self.ended.lock().clone() {
            Some(error) => Err(error),
            None => Ok(self.counts.read()),
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Group {
    /// Hands every event to a handler: what it answers with `Ok` is acknowledged, with an error failed, and a panic of
    /// it is a failure like others. The consumer takes no more events than handlers are free for, so that none waits
    /// while its time passes.
    ///
    /// A store that cannot be reached is asked again later. When the group is removed or the store is closed, the
    /// consumer ends.
    pub fn consume<H, F, E>(&self, options: ConsumeOptions, handler: H) -> Consumer
    where
        H: Fn(Arc<Delivery>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let streams = self.stream().streams();
        let stop = streams.stopping().child_token();
        let (counts, done) = (Arc::<Counts>::default(), CancellationToken::new());
        let ended = Arc::<Mutex<Option<GroupError>>>::default();
        let run = Run {
            group: self.clone(),
            options,
            handler: Arc::new(handler),
            stop: stop.clone(),
            counts: Arc::clone(&counts),
        };
        let (noted, finished) = (Arc::clone(&ended), done.clone().drop_guard());
        streams.tasks().spawn(async move {
            let result = run.run().await;
            *noted.lock() = result.err();
            drop(finished);
        });
        Consumer { stop, counts, ended, done }
    }
}

struct Run<H> {
    group: Group,
    options: ConsumeOptions,
    handler: Arc<H>,
    stop: CancellationToken,
    counts: Arc<Counts>,
}

impl<H, F, E> Run<H>
where
    H: Fn(Arc<Delivery>) -> F + Send + Sync + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Display + Send + 'static,
{
    async fn run(self) -> Result<(), GroupError> {
        let mut handlers = JoinSet::new();
        let result = self.take(&mut handlers).await;
        while handlers.join_next().await.is_some() {}
        result
    }

    /// Takes events as long as there is somebody to handle them.
    async fn take(&self, handlers: &mut JoinSet<()>) -> Result<(), GroupError> {
        let mut left = self.options.max.unwrap_or(u64::MAX);
        let mut retry = RETRY_FIRST;
        let mut busy = Instant::now();
        while left > 0 && !self.stop.is_cancelled() {
            while handlers.try_join_next().is_some() {}
            let free = self.options.concurrency.max(1) - handlers.len();
            if free == 0 {
                handlers.join_next().await;
                continue;
            }
            let max = free.min(usize::try_from(left).unwrap_or(usize::MAX));
            let is_busy = !handlers.is_empty();
            // Nobody is idle whose handlers run: it waits until one of them is free.
            let idle = self.options.idle.filter(|_| !is_busy);
            let wait = idle.map_or(WAIT, |idle| idle.saturating_sub(busy.elapsed()));
            let received = self.receive(max, wait, handlers).await;
            if is_busy {
                busy = Instant::now();
            }
            match received {
                Ok(deliveries) => {
                    retry = RETRY_FIRST;
                    let is_idle = idle.is_some_and(|idle| busy.elapsed() >= idle);
                    if deliveries.is_empty() && is_idle {
                        return Ok(());
                    }
                    if !deliveries.is_empty() {
                        busy = Instant::now();
                    }
                    left -= deliveries.len() as u64;
                    for delivery in deliveries {
                        handlers.spawn(handle(
                            Arc::clone(&self.handler),
                            delivery,
                            self.options.clone(),
                            Arc::clone(&self.counts),
                        ));
                    }
                }
                Err(GroupError::Store(error)) if is_passing(&error) => {
                    let slept = self.stop.run_until_cancelled(tokio::time::sleep(retry)).await;
                    retry = (retry * 2).min(RETRY_MAX);
                    if slept.is_none() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives, and stops waiting when a handler becomes free: there is more to ask for then.
    async fn receive(
        &self,
        max: usize,
        wait: Duration,
        handlers: &mut JoinSet<()>,
    ) -> Result<Vec<Delivery>, GroupError> {
        let stop = self.stop.child_token();
        let consumer = self.options.consumer.clone();
        let receive = self.group.receive_until(ReceiveRequest { consumer, max, wait, stop: stop.clone() });
        tokio::pin!(receive);
        loop {
            tokio::select! {
                received = &mut receive => return received,
                Some(_) = handlers.join_next() => stop.cancel(),
            }
        }
    }
}

/// Whether it is worth asking again.
fn is_passing(error: &crate::StoreError) -> bool {
    matches!(error, crate::StoreError::Unreachable(_))
}

async fn handle<H, F, E>(handler: Arc<H>, delivery: Delivery, options: ConsumeOptions, counts: Arc<Counts>)
where
    H: Fn(Arc<Delivery>) -> F + Send + Sync,
    F: Future<Output = Result<(), E>> + Send,
    E: Display + Send,
{
    let delivery = Arc::new(delivery);
    if options.auto_ack {
        let acked = delivery.ack().await;
        let told = count(&counts, &counts.acked, acked);
        if told {
            // What becomes of it changes nothing any more.
            drop(guarded(handler.as_ref(), &delivery).await);
        }
        return;
    }
    let handled = {
        // A store that is slow to extend must not keep the handler from going on.
        let keeping = async {
            loop {
                tokio::time::sleep(delivery.group_idle_time().mul_f64(EXTEND_AFTER)).await;
                // Whether it worked is seen when the delivery is settled.
                drop(delivery.keep().await);
            }
        };
        tokio::select! {
            handled = guarded(handler.as_ref(), &delivery) => handled,
            () = keeping, if options.extend => unreachable!("it never ends"),
        }
    };
    match handled {
        Ok(()) => drop(count(&counts, &counts.acked, delivery.ack().await)),
        Err(reason) => drop(count(&counts, &counts.failed, delivery.fail(reason).await.map(drop))),
    }
}

/// Counts what became of a word. Whether it was stored.
fn count(counts: &Counts, stored: &AtomicU64, result: Result<(), SettleError>) -> bool {
    let counter = if result.is_ok() { stored } else { &counts.unsettled };
    counter.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = &result {
        tracing::debug!(error = error as &dyn std::error::Error, "a delivery was not settled");
    }
    result.is_ok()
}

/// Runs a handler. What it panics with is what it failed with.
async fn guarded<H, F, E>(handler: &H, delivery: &Arc<Delivery>) -> Result<(), String>
where
    H: Fn(Arc<Delivery>) -> F,
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    let delivery = Arc::clone(delivery);
    // What an error says is the handler's code too.
    let handling = async move { handler(delivery).await.map_err(|error| error.to_string()) };
    match AssertUnwindSafe(handling).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(format!("the handler panicked: {}", text_of(panic.as_ref()))),
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
