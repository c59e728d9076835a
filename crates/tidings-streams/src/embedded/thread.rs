//! The thread that has the store.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::store::Store;
use super::{Config, OpenError, Wakers};
use crate::error::StoreError;

/// Calls that wait for the thread. Beyond that callers wait to be let in: nothing is refused.
const CALLS_MAX: usize = 1_024;

/// Bytes that calls bring which wait for the thread or for the disk, in kibibytes: four flushes. Beyond that callers wait
/// to be let in. A call that brings more than all of it comes in alone.
const QUEUED_KIB_MAX: u32 = 64 << 10;

/// Calls that one write and one sync stand for, at most: none of them should wait for much more than its own.
const CALLS_PER_FLUSH: usize = 512;

/// Bytes that one write and one sync stand for, in and out; one call more may come. Calls are small or large, and what
/// they bring is held until then.
const BYTES_PER_FLUSH: usize = 16 << 20;

/// For as many calls as the last flush stood for, what share of the time that it took is waited for. Who is answered by
/// a flush most likely asks for more: a sync that stood for one of them would keep all others waiting.
const GATHERED_SHARE: u32 = 4;

/// Longest wait for more calls: of a disk that takes its time, what nobody notices beside it.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// Shortest wait for more calls that is worth being put to sleep for.
const GATHER_MIN: Duration = Duration::from_micros(10);

/// What a call leaves behind: told once everything before it is written.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What to do, with the store, or with why nothing is done any more.
type Work = Box<dyn FnOnce(Result<&mut Store, StoreError>) -> Reply + Send>;

enum What {
    Do(Work),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

struct Call {
    what: What,
    /// One of [`CALLS_MAX`]: free once the thread has taken the call.
    place: OwnedSemaphorePermit,
}

pub(super) struct Handle {
    calls: SyncSender<Call>,
    places: Arc<Semaphore>,
    /// In kibibytes.
    room: Arc<Semaphore>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    pub(super) async fn open(path: PathBuf, config: Config, wakers: Arc<Wakers>) -> Result<Self, OpenError> {
        let (calls, inbox) = sync_channel(CALLS_MAX);
        let (opened, open) = oneshot::channel();
        let thread = std::thread::Builder::new().name("tidings-streams".to_owned()).spawn(move || {
            // Whoever waits is told when the thread is gone, whatever ended it: then it is refused.
            let _told = Told(Arc::clone(&wakers));
            match Store::open(&path, &config) {
                // Nobody waits any more: the store closes as it is dropped.
                Ok(store) => {
                    if opened.send(Ok(())).is_ok() {
                        run(store, &inbox, &wakers);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        let ended = || std::io::Error::other("the store's thread ended");
        open.await.unwrap_or_else(|_| Err(ended().into()))?;
        let (places, room) = (Semaphore::new(CALLS_MAX), Semaphore::new(QUEUED_KIB_MAX as usize));
        let (places, room) = (Arc::new(places), Arc::new(room));
        Ok(Self { calls, places, room, thread: Mutex::new(Some(thread)) })
    }

    /// Does something with the store, and answers once it is written.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(what, false, None).await
    }

    /// The same for a call that brings so many bytes.
    pub(super) async fn call_with<T: Send + 'static>(
        &self,
        bytes: usize,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).min(QUEUED_KIB_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
        self.send(what, false, Some(room.expect("it is never closed"))).await
    }

    /// The same, and nothing is done if the one who asked has gone by then.
    pub(super) async fn call_if_awaited<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        self.send(what, true, None).await
    }

    async fn send<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Store) -> T + Send + 'static,
        if_awaited: bool,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.enter(What::Do(Box::new(move |store| {
            if if_awaited && reply.is_closed() {
                return Box::new(|_| ());
            }
            let result = store.map(what);
            Box::new(move |written: Result<(), StoreError>| {
                drop(room);
                drop(reply.send(written.and(result)));
            })
        })))
        .await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn enter(&self, what: What) -> Result<(), StoreError> {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("it is never closed");
        // Whoever has a place finds room in the channel: it is never full, only closed.
        self.calls.try_send(Call { what, place }).map_err(|_| StoreError::Closed)
    }

    /// Has the store closed, and waits for its thread. A second call finds it closed.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.enter(What::Close(reply)).await;
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
        let (closed, _) = sync_channel(1);
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

/// How many calls a flush stands for, and how long it is worth to wait for as many again.
#[derive(Debug, Default)]
struct Pace {
    calls: usize,
    patience: Duration,
}

impl Pace {
    /// After a flush that stood for so many calls and took so long.
    fn after(calls: usize, took: Duration) -> Self {
        let patience = (took / GATHERED_SHARE).min(GATHER_MAX);
        Self { calls, patience: if patience < GATHER_MIN { Duration::ZERO } else { patience } }
    }
}

/// The next call of a flush that stands for `taken` so far; nobody is waited for beyond the deadline.
fn next(inbox: &Receiver<Call>, pace: &Pace, taken: usize, deadline: &mut Option<Instant>) -> Option<Call> {
    if let Ok(call) = inbox.try_recv() {
        return Some(call);
    }
    if taken >= pace.calls || pace.patience.is_zero() {
        return None;
    }
    let deadline = deadline.get_or_insert_with(|| Instant::now() + pace.patience);
    inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}

fn run(mut store: Store, inbox: &Receiver<Call>, wakers: &Wakers) {
    let mut pace = Pace::default();
    while let Ok(first) = inbox.recv() {
        let (mut replies, mut closing, mut deadline) = (Vec::new(), None, None);
        let mut call = Some(first);
        while let Some(Call { what, place }) = call.take() {
            drop(place);
            match what {
                What::Do(what) => {
                    let failed = store.failed().cloned();
                    replies.push(what(failed.map_or(Ok(&mut store), Err)));
                }
                What::Close(reply) => {
                    closing = Some(reply);
                    break;
                }
            }
            if replies.len() < CALLS_PER_FLUSH && store.held() < BYTES_PER_FLUSH {
                call = next(inbox, &pace, replies.len(), &mut deadline);
            }
        }
        let begun = Instant::now();
        let written = store.flush();
        pace = Pace::after(replies.len(), begun.elapsed());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_calls_as_before_are_waited_for_and_no_longer_than_a_share_of_a_flush() {
        assert_eq!(Pace::after(16, Duration::from_millis(2)).patience, Duration::from_micros(500));
        assert_eq!(Pace::after(16, Duration::from_secs(1)).patience, GATHER_MAX);
        assert_eq!(Pace::after(16, Duration::from_micros(5)).patience, Duration::ZERO);
        let (calls, inbox) = sync_channel::<Call>(1);
        let pace = Pace { calls: 2, patience: Duration::from_secs(3_600) };
        assert!(next(&inbox, &pace, 2, &mut None).is_none(), "nobody is missing");
        drop(calls);
        assert!(next(&inbox, &pace, 1, &mut None).is_none(), "nobody can come any more");
        let mut passed = Some(Instant::now());
        let (_calls, inbox) = sync_channel::<Call>(1);
        assert!(next(&inbox, &pace, 1, &mut passed).is_none(), "the time has passed");
    }
}
