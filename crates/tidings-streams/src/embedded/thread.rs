//! The thread that has the store.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tidings_proto::histogram::{Histogram, Snapshot};
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

/// Longest wait for more calls, if a flush takes longer: of a disk that takes its time, what nobody notices beside it.
const GATHER_MAX: Duration = Duration::from_millis(2);

/// What a flush takes at least where it is worth to be put to sleep for more calls: one that syncs nothing takes less.
const GATHERED_FLUSH_MIN: Duration = Duration::from_micros(30);

/// Where waiting for more calls was in vain it is tried again after so many flushes: it costs each of them an eighth then.
const FLUSHES_PER_TRIAL: u32 = 8;

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
    /// One of [`CALLS_MAX`]: free once the thread has come to the call.
    place: OwnedSemaphorePermit,
}

/// Calls on their way to the thread. Whoever puts one there has a place, so there are no more than of those.
#[derive(Default)]
struct Inbox {
    state: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    calls: VecDeque<Call>,
    /// The thread sleeps until there are so many: it is not woken for each.
    wanted: usize,
    is_closed: bool,
}

impl Inbox {
    fn put(&self, call: Call) -> Result<(), StoreError> {
        let mut waiting = self.state.lock();
        if waiting.is_closed {
            return Err(StoreError::Closed);
        }
        waiting.calls.push_back(call);
        if waiting.calls.len() >= waiting.wanted {
            self.arrived.notify_one();
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.state.lock().calls.len()
    }

    /// Lets nobody in any more.
    fn close(&self) {
        self.state.lock().is_closed = true;
        self.arrived.notify_one();
    }

    /// All calls, once there are as many as are worth waiting for or, after a while, any. None: it is closed.
    fn take(&self, pace: &mut Pace) -> VecDeque<Call> {
        let mut waiting = self.state.lock();
        if !pace.patience.is_zero() {
            waiting.wanted = pace.calls;
            let too_few = |waiting: &mut Waiting| waiting.calls.len() < waiting.wanted && !waiting.is_closed;
            self.arrived.wait_while_for(&mut waiting, too_few, pace.patience);
        }
        pace.came = waiting.calls.len() >= pace.calls;
        waiting.wanted = 1;
        self.arrived.wait_while(&mut waiting, |waiting| waiting.calls.is_empty() && !waiting.is_closed);
        std::mem::take(&mut waiting.calls)
    }
}

pub(super) struct Handle {
    inbox: Arc<Inbox>,
    places: Arc<Semaphore>,
    /// In kibibytes.
    room: Arc<Semaphore>,
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
        let inbox = Arc::<Inbox>::default();
        let calls = Arc::clone(&inbox);
        let (opened, open) = oneshot::channel();
        let flushes = Arc::<Histogram>::default();
        let times = Arc::clone(&flushes);
        let thread = std::thread::Builder::new().name("tidings-streams".to_owned()).spawn(move || {
            // Whoever waits is told when the thread is gone, whatever ended it: then it is refused.
            let _told = Told(Arc::clone(&calls), Arc::clone(&wakers));
            match Store::open(&path, &config) {
                // Nobody waits any more: the store closes as it is dropped.
                Ok(store) => {
                    if opened.send(Ok(())).is_ok() {
                        run(store, (&calls, &wakers), &times);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        })?;
        let ended = || std::io::Error::other("the store's thread ended");
        open.await.unwrap_or_else(|_| Err(ended().into()))?;
        let (places, room) = (Semaphore::new(CALLS_MAX), Semaphore::new(QUEUED_KIB_MAX as usize));
        let (places, room) = (Arc::new(places), Arc::new(room));
        Ok(Self { inbox, places, room, thread: Mutex::new(Some(thread)), flushes })
    }

    pub(super) fn flush_times(&self) -> Snapshot {
        self.flushes.snapshot()
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
        self.inbox.put(Call { what, place })
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
        self.inbox.close();
        if let Some(thread) = self.thread.lock().take() {
            drop(thread.join());
        }
    }
}

struct Told(Arc<Inbox>, Arc<Wakers>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.close();
        let left = std::mem::take(&mut self.0.state.lock().calls);
        drop(left);
        self.1.wake_all();
    }
}

/// How many calls are worth waiting for, and how long.
///
/// Whoever was answered by a flush most likely asks for more at once, and a sync that stood for the first of them would
/// keep all others waiting. They are waited for as long as a flush takes, where that was not in vain the last time.
#[derive(Debug, Default)]
struct Pace {
    calls: usize,
    patience: Duration,
    /// There were so many when they were taken.
    came: bool,
    /// Flushes since they were waited for.
    flushes: u32,
}

impl Pace {
    /// After a flush that took so long, and with so many callers: those that it answered, and those that have come
    /// meanwhile.
    fn after(&mut self, took: Duration, callers: usize) {
        self.flushes += 1;
        let is_worth = callers > 1 && took >= GATHERED_FLUSH_MIN;
        let waits = is_worth && (self.came || self.flushes >= FLUSHES_PER_TRIAL);
        self.calls = callers.min(CALLS_PER_FLUSH);
        self.patience = if waits { took.min(GATHER_MAX) } else { Duration::ZERO };
        if waits {
            self.flushes = 0;
        }
    }
}

fn run(mut store: Store, (inbox, wakers): (&Inbox, &Wakers), times: &Histogram) {
    let (mut calls, mut pace) = (VecDeque::new(), Pace::default());
    loop {
        if calls.is_empty() {
            calls = inbox.take(&mut pace);
        }
        if calls.is_empty() {
            break;
        }
        let (mut replies, mut closing) = (Vec::new(), None);
        while replies.len() < CALLS_PER_FLUSH && store.held() < BYTES_PER_FLUSH {
            let Some(Call { what, place }) = calls.pop_front() else { break };
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
        }
        let (begun, writes) = (Instant::now(), store.is_dirty());
        let written = store.flush();
        let took = begun.elapsed();
        if writes {
            times.record(took);
        }
        pace.after(took, replies.len() + inbox.len());
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
    use std::path::Path;

    use super::super::frail::{Fault, Frail};
    use super::*;

    #[test]
    fn callers_are_waited_for_while_they_come_and_else_now_and_then() {
        const FLUSH: Duration = Duration::from_micros(200);
        let mut pace = Pace { came: true, ..Pace::default() };
        pace.after(FLUSH, 16);
        assert_eq!((pace.calls, pace.patience), (16, FLUSH));
        pace.after(Duration::from_secs(1), 2_000);
        assert_eq!((pace.calls, pace.patience), (CALLS_PER_FLUSH, GATHER_MAX));
        pace.after(FLUSH, 1);
        assert_eq!(pace.patience, Duration::ZERO, "nobody else is there");
        pace.after(Duration::from_micros(5), 16);
        assert_eq!(pace.patience, Duration::ZERO, "nothing was synced");
        let mut pace = Pace::default();
        let waits = (0..80).filter(|_| {
            pace.after(FLUSH, 16);
            !pace.patience.is_zero()
        });
        assert_eq!(waits.count(), 10, "they never come");
    }

    #[test]
    fn calls_are_taken_together_once_there_are_enough() {
        let inbox = Inbox::default();
        let places = Arc::new(Semaphore::new(2));
        let call = || Call {
            what: What::Do(Box::new(|_| Box::new(|_| ()))),
            place: Arc::clone(&places).try_acquire_owned().unwrap(),
        };
        let pace = || Pace { calls: 2, patience: Duration::from_secs(3_600), ..Pace::default() };
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| inbox.take(&mut pace()).len());
            inbox.put(call()).unwrap();
            inbox.put(call()).unwrap();
            assert_eq!(taken.join().unwrap(), 2);
        });
        inbox.close();
        assert!(inbox.take(&mut pace()).is_empty(), "nobody can come any more");
        assert!(matches!(inbox.put(call()), Err(StoreError::Closed)));
    }

    #[tokio::test]
    async fn a_store_that_failed_with_much_to_write_still_answers_and_closes() {
        const PATIENCE: Duration = Duration::from_secs(60);
        let disk = Frail::new(1, Path::new("/disk"), None);
        let (inbox, flushes) = (Arc::<Inbox>::default(), Arc::<Histogram>::default());
        let (calls, times) = (Arc::clone(&inbox), Arc::clone(&flushes));
        let store = Store::open_on(Arc::new(disk.clone()), Path::new("/disk"), &Config::default()).unwrap();
        let thread = std::thread::spawn(move || {
            let _told = Told(Arc::clone(&calls), Arc::default());
            run(store, (&calls, &Wakers::default()), &times);
        });
        let (places, room) = (Semaphore::new(CALLS_MAX), Semaphore::new(QUEUED_KIB_MAX as usize));
        let thread = Mutex::new(Some(thread));
        // Not dropped where this fails: that waits for the thread.
        let handle = std::mem::ManuallyDrop::new(Handle {
            inbox,
            places: places.into(),
            room: room.into(),
            thread,
            flushes,
        });
        let much = handle.call(move |store| {
            for _ in 0..=BYTES_PER_FLUSH >> 20 {
                store.journal.append_raw(&[7; 1 << 20]);
            }
            disk.fail(1, Fault::Cut);
        });
        assert!(matches!(much.await, Err(StoreError::Failed(_))));
        let next = tokio::time::timeout(PATIENCE, handle.call(|_| ())).await;
        assert!(matches!(next, Ok(Err(StoreError::Failed(_)))), "{next:?}");
        let closed = tokio::time::timeout(PATIENCE, handle.close()).await;
        assert!(matches!(closed, Ok(Err(StoreError::Failed(_)))), "{closed:?}");
    }

    #[tokio::test]
    async fn calls_that_bring_more_than_there_is_room_for_wait_outside() {
        let home = tempfile::tempdir().unwrap();
        let handle = Handle::open(home.path().to_owned(), Config::default(), Arc::default()).await.unwrap();
        let (go_on, waits) = std::sync::mpsc::sync_channel::<()>(0);
        let first = handle.call_with(48 << 20, move |_| waits.recv());
        let second = handle.call_with(32 << 20, |_| ());
        let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
        tokio::select! {
            biased;
            _ = &mut first => panic!("nothing lets it go on"),
            _ = &mut second => panic!("there is no room for it"),
            () = std::future::ready(()) => {}
        }
        assert!(handle.places.available_permits() >= CALLS_MAX - 1, "the second is let in");
        go_on.send(()).unwrap();
        first.await.unwrap().unwrap();
        second.await.unwrap();
        assert_eq!(handle.room.available_permits(), QUEUED_KIB_MAX as usize);
        handle.close().await.unwrap();
    }
}
