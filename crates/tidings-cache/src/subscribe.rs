//! Subscriptions: who hears which events of a cache on this node.

use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{FutureExt, Stream};
use tidings_proto::event::EventKind;
use tidings_proto::id::SlotSet;

use crate::builder::Settings;
use crate::core::Core;
use crate::domain::Domain;
use crate::event::{Event, RawEvent, WriterId};
use crate::filter::Filter;
use crate::key::Key;
use crate::reader::{Found, Reader};
use crate::stats::CacheStats;
use crate::topic::Topic;

/// Whose changes are heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Everybody's.
    #[default]
    All,
    /// This node's.
    Local,
    /// Other nodes'.
    Remote,
}

/// What happens to a subscriber that falls behind by more than its ring holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOverflow {
    /// It is told how many events it missed, and goes on with the oldest that are held.
    #[default]
    DropOldest,
    /// It is told how many it missed, and ends.
    Disconnect,
}

/// What a subscription yields.
#[derive(Clone, Debug)]
pub enum Item<E> {
    /// An event.
    Event(E),
    /// So many events of the partitions it reads were lost to it, before its filters.
    Lagged {
        /// How many.
        missed: u64,
    },
    /// Changes may have been missed: of the keys in these slots, whatever they are, nothing that was heard before is
    /// certain any more, nor is cached any more. Told whatever the filters.
    Fenced {
        /// Which classes of keys. All of them: everything.
        slots: SlotSet,
    },
}

/// A subscription cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// An empty list of kinds would hear nothing.
    #[error("kinds must not be empty")]
    NoKinds,
    /// The cache reports none of the kinds.
    #[error("the cache does not report {0:?}: open it with eviction_events(true)")]
    Unreported(Vec<EventKind>),
    /// The cache has fewer partitions.
    #[error("partition {partition} of {partitions}: expected 0 to {}", partitions - 1)]
    Partition {
        /// What was asked for.
        partition: usize,
        /// How many there are.
        partitions: usize,
    },
    /// A share `i` of `n` needs `i < n`.
    #[error("share {index} of {shares}")]
    Share {
        /// What was asked for.
        index: usize,
        /// Of how many.
        shares: usize,
    },
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
}

#[derive(Clone, Debug)]
enum Partitions {
    All,
    One(usize),
    Share(usize, usize),
}

/// Events that a subscriber is handed for one unit of the budget that tokio gives a task before it lets others run.
const EVENTS_PER_TURN: u32 = 8;

/// What a subscription needs of its cache, whatever its types.
pub(crate) trait Source: Send + Sync {
    fn topic(&self) -> &Arc<Topic>;
    fn stats(&self) -> &CacheStats;
    fn domain(&self) -> &Domain;
    fn settings(&self) -> &Settings;
    fn text(&self, key: &[u8]) -> Option<String>;
}

impl<K: Key, V: Clone + Send + Sync + 'static> Source for Core<K, V> {
    fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    fn stats(&self) -> &CacheStats {
        &self.stats
    }

    fn domain(&self) -> &Domain {
        &self.domain
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn text(&self, key: &[u8]) -> Option<String> {
        self.string_key(key)
    }
}

/// A subscription being described, for any type of key.
#[must_use = "a subscription hears nothing until it is started"]
pub struct RawSubscribe {
    source: Arc<dyn Source>,
    kinds: Option<Vec<EventKind>>,
    partitions: Partitions,
    prefix: Option<String>,
    scope: Scope,
    on_overflow: OnOverflow,
}

impl std::fmt::Debug for RawSubscribe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscribe").field("kinds", &self.kinds).field("partitions", &self.partitions).finish()
    }
}

impl RawSubscribe {
    pub(crate) fn new(source: Arc<dyn Source>) -> Self {
        Self {
            source,
            kinds: None,
            partitions: Partitions::All,
            prefix: None,
            scope: Scope::All,
            on_overflow: OnOverflow::default(),
        }
    }

    /// Hears only these kinds. Default: all. A cache reports [`EventKind::Expired`] and [`EventKind::Evicted`] only if
    /// it was opened with [`crate::CacheBuilder::eviction_events`].
    pub fn kinds(mut self, kinds: impl IntoIterator<Item = EventKind>) -> Self {
        self.kinds = Some(kinds.into_iter().collect());
        self
    }

    /// Hears all partitions. This is the default.
    pub fn all_partitions(mut self) -> Self {
        self.partitions = Partitions::All;
        self
    }

    /// Hears one partition.
    pub fn partition(mut self, partition: usize) -> Self {
        self.partitions = Partitions::One(partition);
        self
    }

    /// Hears the partitions that are `index` modulo `shares`: so `shares` subscribers divide the cache among them.
    pub fn assigned(mut self, index: usize, shares: usize) -> Self {
        self.partitions = Partitions::Share(index, shares);
        self
    }

    /// Hears only events that name a text key with this prefix (an event of several keys, if one of them has it), and
    /// those that name everything.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Whose changes are heard. Default: everybody's.
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// What happens when it falls behind. Default: [`OnOverflow::DropOldest`].
    pub fn on_overflow(mut self, on_overflow: OnOverflow) -> Self {
        self.on_overflow = on_overflow;
        self
    }

    /// Starts the subscription: it hears what happens from now on.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn start(self) -> Result<RawSubscription, SubscribeError> {
        let topic = self.source.topic();
        let partitions = topic.partitions();
        if let Some(kinds) = &self.kinds {
            if kinds.is_empty() {
                return Err(SubscribeError::NoKinds);
            }
            if !kinds.iter().any(|kind| self.source.settings().reports(*kind)) {
                return Err(SubscribeError::Unreported(kinds.clone()));
            }
        }
        let chosen: Vec<usize> = match self.partitions {
            Partitions::All => (0..partitions).collect(),
            Partitions::One(partition) if partition < partitions => vec![partition],
            Partitions::One(partition) => return Err(SubscribeError::Partition { partition, partitions }),
            Partitions::Share(index, shares) if index < shares => {
                (0..partitions).filter(|partition| partition % shares == index).collect()
            }
            Partitions::Share(index, shares) => return Err(SubscribeError::Share { index, shares }),
        };
        let id = WriterId(self.source.domain().next_subscription());
        let Some(reader) = Reader::start(topic, id, &chosen) else { return Err(SubscribeError::Closed) };
        let filter = Filter { own: id, kinds: self.kinds, prefix: self.prefix, scope: self.scope };
        Ok(RawSubscription {
            topic: topic.clone(),
            reader,
            ended: false,
            turn: 0,
            filter,
            on_overflow: self.on_overflow,
            source: self.source,
        })
    }
}

/// A running subscription for any type of key. Dropping it unsubscribes.
pub struct RawSubscription {
    source: Arc<dyn Source>,
    topic: Arc<Topic>,
    reader: Reader,
    ended: bool,
    /// Events handed out since the scheduler was last asked.
    turn: u32,
    filter: Filter,
    on_overflow: OnOverflow,
}

impl std::fmt::Debug for RawSubscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Drop for RawSubscription {
    fn drop(&mut self) {
        self.reader.leave(&self.topic);
    }
}

impl RawSubscription {
    /// Give this to [`crate::cache::Write::without`] to leave one's own changes out.
    #[must_use]
    pub fn id(&self) -> WriterId {
        self.filter.own
    }

    /// How many events wait in its rings.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.reader.backlog(&self.topic)
    }

    /// The next event, or `None` after the cache was closed (or, with [`OnOverflow::Disconnect`], after it lagged).
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Item<Arc<RawEvent>>> {
        poll_fn(|context| self.poll_item(context)).await
    }

    #[inline]
    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Item<Arc<RawEvent>>>> {
        while !self.ended && self.turn < EVENTS_PER_TURN {
            let Some(event) = self.reader.at_hand() else { break };
            self.turn += 1;
            if let Some(item) = self.filter.item(event, &*self.source) {
                return Poll::Ready(Some(item));
            }
        }
        if !self.ended && self.reader.is_idle(&self.topic, context.waker()) && !self.topic.is_closed() {
            return Poll::Pending;
        }
        self.poll_rings(context)
    }

    fn poll_rings(&mut self, context: &mut Context<'_>) -> Poll<Option<Item<Arc<RawEvent>>>> {
        while !self.ended {
            // A subscriber that always has something to read lets other tasks run all the same.
            let progress = ready!(tokio::task::coop::poll_proceed(context));
            match self.reader.next(&self.topic, context.waker()) {
                Found::Event(event) => {
                    progress.made_progress();
                    self.turn = 1;
                    if let Some(item) = self.filter.item(event, &*self.source) {
                        return Poll::Ready(Some(item));
                    }
                }
                Found::Missed(missed) => {
                    progress.made_progress();
                    self.source.stats().lagged.add(missed);
                    self.ended = self.on_overflow == OnOverflow::Disconnect;
                    return Poll::Ready(Some(Item::Lagged { missed }));
                }
                Found::Nothing if self.topic.is_closed() => break,
                Found::Nothing => return Poll::Pending,
            }
        }
        Poll::Ready(None)
    }
}

impl Stream for RawSubscription {
    type Item = Item<Arc<RawEvent>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(context)
    }
}

/// A subscription being described.
#[must_use = "a subscription hears nothing until it is started"]
#[derive(Debug)]
pub struct Subscribe<K> {
    raw: RawSubscribe,
    key: PhantomData<fn() -> K>,
}

macro_rules! forward {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*)),+ $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(self, $($arg: $type),*) -> Self {
            Self { raw: self.raw.$name($($arg),*), key: PhantomData }
        }
    )+};
}

impl<K: Key> Subscribe<K> {
    pub(crate) fn new(raw: RawSubscribe) -> Self {
        Self { raw, key: PhantomData }
    }

    forward! {
        /// As [`RawSubscribe::kinds`].
        kinds(kinds: impl IntoIterator<Item = EventKind>),
        /// As [`RawSubscribe::all_partitions`].
        all_partitions(),
        /// As [`RawSubscribe::partition`].
        partition(partition: usize),
        /// As [`RawSubscribe::assigned`].
        assigned(index: usize, shares: usize),
        /// As [`RawSubscribe::prefix`].
        prefix(prefix: impl Into<String>),
        /// As [`RawSubscribe::scope`].
        scope(scope: Scope),
        /// As [`RawSubscribe::on_overflow`].
        on_overflow(on_overflow: OnOverflow),
    }

    /// Starts the subscription: it hears what happens from now on.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn start(self) -> Result<Subscription<K>, SubscribeError> {
        Ok(Subscription { raw: self.raw.start()?, key: PhantomData })
    }

    /// Starts it and calls `listener` with every item, in a task of the node's that ends with the cache. A panic of
    /// the listener is counted, and the next event comes all the same. Dropping the handle unsubscribes.
    ///
    /// # Errors
    /// [`SubscribeError`].
    ///
    /// # Panics
    /// If called outside a tokio runtime.
    pub fn listen(
        self,
        mut listener: impl FnMut(Item<Event<K>>) + Send + 'static,
    ) -> Result<Listener, SubscribeError> {
        let mut subscription = self.start()?;
        let source = subscription.raw.source.clone();
        let id = subscription.id();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let tasks = source.domain().tasks().clone();
        let listening = async move {
            while let Some(item) = subscription.next().await {
                if std::panic::catch_unwind(AssertUnwindSafe(|| listener(item))).is_err() {
                    source.stats().panics.count();
                }
            }
        };
        tasks.spawn(async move {
            let mut stopped = stopped.fuse();
            futures_util::select_biased! {
                _ = stopped => {}
                () = Box::pin(listening).fuse() => {}
            }
        });
        Ok(Listener { id, _stop: stop })
    }
}

/// A listener that runs until this handle is dropped or its cache closed.
#[derive(Debug)]
pub struct Listener {
    id: WriterId,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Listener {
    /// Give this to [`crate::cache::Write::without`] to leave one's own changes out.
    #[must_use]
    pub fn id(&self) -> WriterId {
        self.id
    }
}

/// A running subscription. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription<K> {
    raw: RawSubscription,
    key: PhantomData<fn() -> K>,
}

impl<K: Key> Subscription<K> {
    /// As [`RawSubscription::id`].
    #[must_use]
    pub fn id(&self) -> WriterId {
        self.raw.id()
    }

    /// As [`RawSubscription::backlog`].
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.raw.backlog()
    }

    /// The next event, as [`RawSubscription::next`]. Events whose keys are of another type are passed over.
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing is lost.
    pub async fn next(&mut self) -> Option<Item<Event<K>>> {
        loop {
            match self.raw.next().await? {
                Item::Lagged { missed } => return Some(Item::Lagged { missed }),
                Item::Fenced { slots } => return Some(Item::Fenced { slots }),
                Item::Event(raw) => {
                    if let Some(event) = Event::decode(raw) {
                        return Some(Item::Event(event));
                    }
                    self.raw.source.stats().unpartitioned.count();
                }
            }
        }
    }
}
