//! The thread that has the store.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tidings_proto::histogram::{Histogram, Snapshot};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::gather::{CALLS_PER_FLUSH, Call, Inbox, Pace, Reply, What};
use super::store::Store;
use super::{Config, OpenError, Wakers};
use crate::burials::Burials;
use crate::error::StoreError;

/// Calls that wait for the thread. Beyond that callers wait to be let in: nothing is refused.
const CALLS_MAX: usize = 1_024;

/// Bytes that calls bring which wait for the thread or for the disk, in kibibytes: four flushes. Beyond that callers
/// wait to be let in. A call that brings more than all of it comes in alone.
const QUEUED_KIB_MAX: u32 = 64 << 10;

/// Bytes that one write and one sync stand for, in and out; one call more may come. Calls are small or large, and what
/// they bring is held until then.
const BYTES_PER_FLUSH: usize = 16 << 20;

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
    /// With those who are told what becomes of what was asked for.
    pub(super) async fn open(
        path: PathBuf,
        config: Config,
        (wakers, burials): (Arc<Wakers>, Arc<Burials>),
    ) -> Result<Self, OpenError> {
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
                        run(store, &calls, (&wakers, &burials), &times);
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
        drop(self.0.end());
        self.1.wake_all();
    }
}

/// Shortest time between a store's failure, or an attempt to have it work again, and the next attempt: that reads
/// what it holds, and whoever meets a full disk tries again at once.
const RECOVERY_PAUSE: Duration = Duration::from_secs(1);

/// Has a store that failed work again: its disk may have been full, and need not be so for ever.
#[derive(Debug, Default)]
struct Recovery {
    /// When it failed, or was tried last.
    tried: Option<Instant>,
}

impl Recovery {
    /// Whether it is to be tried now.
    fn is_due(&mut self, has_failed: bool, now: Instant) -> bool {
        if !has_failed {
            self.tried = None;
            return false;
        }
        let is_due = now.duration_since(*self.tried.get_or_insert(now)) >= RECOVERY_PAUSE;
        if is_due {
            self.tried = Some(now);
        }
        is_due
    }

    fn run(&mut self, store: &mut Store) {
        if !self.is_due(store.failed().is_some(), Instant::now()) {
            return;
        }
        match store.recover() {
            Ok(()) => tracing::info!("the store of streams works again"),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the store of streams still fails");
            }
        }
    }
}

/// What was done, and is answered by the next flush.
#[derive(Default)]
struct Done {
    replies: Vec<Reply>,
    closing: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Done {
    /// Whether nothing more should be done before a flush.
    fn is_full(&self, store: &Store) -> bool {
        self.closing.is_some() || self.replies.len() >= CALLS_PER_FLUSH || store.held() >= BYTES_PER_FLUSH
    }

    /// Does what was asked for, as far as one flush goes.
    fn work(&mut self, store: &mut Store, calls: &mut VecDeque<Call>) {
        while !self.is_full(store) {
            let Some(Call { what, place }) = calls.pop_front() else { return };
            drop(place);
            match what {
                What::Do(what) => {
                    let failed = store.failed().cloned();
                    self.replies.push(what(failed.map_or(Ok(&mut *store), Err)));
                }
                What::Close(reply) => self.closing = Some(reply),
            }
        }
    }

    /// Does what is asked for as it comes, until there is as much as is worth to be flushed. Nothing was done: nobody
    /// will ask any more.
    fn gather(
        store: &mut Store,
        inbox: &Inbox,
        (calls, pace): (&mut VecDeque<Call>, &mut Pace),
        recovery: &mut Recovery,
    ) -> Self {
        let mut done = Self::default();
        if !calls.is_empty() {
            recovery.run(store);
        }
        done.work(store, calls);
        if !pace.patience.is_zero() {
            done.wait(store, inbox, (&mut *calls, &mut *pace));
        }
        if done.replies.is_empty() && done.closing.is_none() {
            *calls = inbox.take_any();
            recovery.run(store);
            done.work(store, calls);
        }
        done
    }
}

impl Done {
    /// Waits for those who are worth to be waited for.
    fn wait(&mut self, store: &mut Store, inbox: &Inbox, (calls, pace): (&mut VecDeque<Call>, &mut Pace)) {
        let begun = Instant::now();
        let (sleeps, mut looks) = (begun + pace.patience, None);
        while self.replies.len() < pace.calls && !self.is_full(store) {
            match looks {
                None => {
                    let time = pace.look();
                    if !time.is_zero() {
                        pace.looked(inbox.look(begun + time));
                    }
                    looks = Some(begun + time);
                }
                Some(until) => drop(inbox.look(until)),
            }
            *calls = inbox.take_more(pace.calls - self.replies.len(), sleeps);
            if calls.is_empty() {
                return;
            }
            self.work(store, calls);
        }
    }
}

fn run(mut store: Store, inbox: &Inbox, (wakers, burials): (&Wakers, &Burials), times: &Histogram) {
    let (mut calls, mut pace, mut recovery) = (VecDeque::new(), Pace::default(), Recovery::default());
    loop {
        let Done { replies, closing } =
            Done::gather(&mut store, inbox, (&mut calls, &mut pace), &mut recovery);
        if replies.is_empty() && closing.is_none() {
            break;
        }
        let (begun, writes) = (Instant::now(), store.is_dirty());
        let written = store.flush();
        let took = begun.elapsed();
        if writes {
            times.record(took);
        }
        let answered = replies.len();
        pace.after(took, answered, answered + calls.len() + inbox.len());
        for (topic, group, events) in store.take_buried() {
            burials.tell(&topic, &group, events);
        }
        for reply in replies {
            reply(written.clone());
        }
        if written.is_err() {
            recovery.tried.get_or_insert_with(Instant::now);
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
    fn a_store_that_failed_is_tried_again_after_a_pause_and_not_at_every_call() {
        let mut recovery = Recovery::default();
        let at = |pauses: f64, begun: Instant| begun + RECOVERY_PAUSE.mul_f64(pauses);
        let begun = Instant::now();
        assert!(!recovery.is_due(false, begun), "it works");
        let due = |recovery: &mut Recovery, pauses| recovery.is_due(true, at(pauses, begun));
        let tries = [0.0, 0.5, 1.0, 1.5, 1.9, 2.1, 2.2].map(|pauses| due(&mut recovery, pauses));
        assert_eq!(tries, [false, false, true, false, false, true, false]);
        assert!(!recovery.is_due(false, at(9.0, begun)), "it works again");
        assert!(!due(&mut recovery, 10.0), "it has failed just now");
    }

    #[test]
    fn calls_are_done_as_they_come_and_flushed_together() {
        let disk = Frail::new(1, Path::new("/disk"), None);
        let mut store = Store::open_on(Arc::new(disk), Path::new("/disk"), &Config::default()).unwrap();
        let (inbox, places) = (Inbox::default(), Arc::new(Semaphore::new(CALLS_MAX)));
        let mut pace = Pace::default();
        (pace.calls, pace.patience) = (3, Duration::from_secs(3_600));
        let (told, done) = std::sync::mpsc::channel();
        let put = || {
            let told = told.clone();
            let place = Arc::clone(&places).try_acquire_owned().unwrap();
            let what = What::Do(Box::new(move |_| {
                told.send(()).unwrap();
                Box::new(|_| ())
            }));
            inbox.put(Call { what, place }).unwrap();
        };
        put();
        std::thread::scope(|scope| {
            let gathered = scope.spawn(|| {
                let mut calls = inbox.take_any();
                Done::gather(&mut store, &inbox, (&mut calls, &mut pace), &mut Recovery::default())
                    .replies
                    .len()
            });
            done.recv().unwrap();
            assert!(!gathered.is_finished(), "two more are waited for");
            put();
            put();
            assert_eq!(gathered.join().unwrap(), 3);
        });
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
            run(store, &calls, (&Wakers::default(), &Burials::default()), &times);
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

    fn told() -> (Arc<Wakers>, Arc<Burials>) {
        (Arc::default(), Arc::default())
    }

    #[tokio::test]
    async fn calls_that_bring_more_than_there_is_room_for_wait_outside() {
        let home = tempfile::tempdir().unwrap();
        let handle = Handle::open(home.path().to_owned(), Config::default(), told()).await.unwrap();
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
