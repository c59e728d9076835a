//! The thread that has the store.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tidings_proto::histogram::{Histogram, Snapshot};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::store::Store;
use super::{Config, OpenError, Wakers};
use crate::error::StoreError;

/// Calls that wait for the thread. Beyond that callers wait to be let in: nothing is refused.
const CALLS_MAX: usize = 1_024;

/// Calls that one write and one sync stand for, at most: none of them should wait for much more than its own.
const CALLS_PER_FLUSH: usize = 512;

/// Bytes that one write and one sync stand for, in and out; one call more may come. Calls are small or large, and what
/// they bring is held until then.
const BYTES_PER_FLUSH: usize = 16 << 20;

/// What a call leaves behind: told once everything before it is written.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What to do, with the store, or with why nothing is done any more.
type Work = Box<dyn FnOnce(Result<&mut Store, StoreError>) -> Reply + Send>;

enum Call {
    Do(Work),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

pub(super) struct Handle {
    calls: mpsc::Sender<Call>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// How long writing took, the syncs included, each time that there was something to write.
    flushes: Arc<Histogram>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) async fn open(path: PathBuf, config: Config, wakers: Arc<Wakers>) -> Result<Self, OpenError> {
        let (calls, inbox) = mpsc::channel(CALLS_MAX);
        let (opened, open) = oneshot::channel();
        let flushes = Arc::<Histogram>::default();
        let times = Arc::clone(&flushes);
        let thread = std::thread::Builder::new().name("tidings-streams".to_owned()).spawn(move || {
            // Whoever waits is told when the thread is gone, whatever ended it: then it is refused.
            let _told = Told(Arc::clone(&wakers));
            match Store::open(&path, &config) {
                // Nobody waits any more: the store closes as it is dropped.
                Ok(store) => {
                    if opened.send(Ok(())).is_ok() {
                        run(store, inbox, &wakers, &times);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        let ended = || std::io::Error::other("the store's thread ended");
        open.await.unwrap_or_else(|_| Err(ended().into()))?;
        Ok(Self { calls, thread: Mutex::new(Some(thread)), flushes })
    }

    pub(super) fn flush_times(&self) -> Snapshot {
        self.flushes.snapshot()
    }

    /// Does something with the store, and answers once it is written.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(what, false).await
    }

    /// The same, and nothing is done if the one who asked has gone by then.
    pub(super) async fn call_if_awaited<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(what, true).await
    }

    async fn send<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
        if_awaited: bool,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let call = Call::Do(Box::new(move |store| {
            if if_awaited && reply.is_closed() {
                return Box::new(|_| ());
            }
            let result = store.map(what);
            Box::new(move |written: Result<(), StoreError>| drop(reply.send(written.and(result))))
        }));
        self.calls.send(call).await.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Has the store closed, and waits for its thread. A second call finds it closed.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.calls.send(Call::Close(reply)).await;
        let closed = match sent {
            Ok(()) => answer.await.unwrap_or(Ok(())),
            Err(_) => Ok(()),
        };
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It has nothing left to do but to let go of its files.
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the store's thread panicked");
            }
        }
        closed
    }
}

impl Drop for Handle {
    /// The thread ends by itself once nobody can call it, after it has written what it was asked to.
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.calls, closed));
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

struct Told(Arc<Wakers>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.wake_all();
    }
}

fn run(mut store: Store, mut inbox: mpsc::Receiver<Call>, wakers: &Wakers, times: &Histogram) {
    while let Some(first) = inbox.blocking_recv() {
        let mut replies = Vec::new();
        let mut closing = None;
        let mut call = Some(first);
        while let Some(next) = call.take() {
            match next {
                Call::Do(what) => {
                    let failed = store.failed().cloned();
                    replies.push(what(failed.map_or(Ok(&mut store), Err)));
                }
                Call::Close(reply) => {
                    closing = Some(reply);
                    break;
                }
            }
            if replies.len() < CALLS_PER_FLUSH && store.waiting < BYTES_PER_FLUSH {
                call = inbox.try_recv().ok();
            }
        }
        let began = store.is_dirty().then(Instant::now);
        let written = store.flush();
        if let Some(began) = began {
            times.record(began.elapsed());
        }
        for reply in replies {
            reply(written.clone());
        }
        if written.is_err() {
            wakers.wake_all();
        }
        for topic in store.take_woken() {
            wakers.wake(&topic);
        }
        if let Some(reply) = closing {
            let closed = store.close();
            drop(store);
            drop(reply.send(closed));
            return;
        }
    }
    if let Err(error) = store.close() {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the store of streams was not closed cleanly"
        );
    }
}
