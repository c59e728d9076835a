//! What a node says of its entries when another one compares.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tidings_cache::AnyCache;
use tidings_proto::ask::Declined;
use tidings_proto::audit::{Answer, DIGEST_VERSION, Differing, Digested, Incomparable, Question};
use tidings_proto::id::Origin;
use tokio::sync::Semaphore;

use crate::asked::Answering;
use crate::bus::Bus;

/// Questions that are answered at once: each keeps a core busy. Who asks meanwhile is told to come again.
const ANSWERING_MAX: usize = 1;

/// Answers other nodes' auditors.
pub(super) struct Auditee {
    bus: Weak<Bus>,
    room: Arc<Semaphore>,
}

impl Auditee {
    /// The bus holds it, so it must not hold the bus.
    pub(super) fn new(bus: &Arc<Bus>) -> Self {
        Self { bus: Arc::downgrade(bus), room: Arc::new(Semaphore::new(ANSWERING_MAX)) }
    }
}

impl Answering for Auditee {
    fn answer(&self, peer: Origin, question: Bytes) -> BoxFuture<'static, Result<Bytes, Declined>> {
        let (bus, room) = (self.bus.upgrade(), self.room.clone().try_acquire_owned());
        async move {
            let (bus, room) = (bus.ok_or(Declined::Failed)?, room.map_err(|_| Declined::Busy)?);
            let question = Question::decode(&question).map_err(|error| {
                tracing::debug!(%peer, %error, "a question of an auditor that cannot be used");
                Declined::Failed
            })?;
            // Values are encoded, which may take longer than the bus should stand still for. If nobody waits any more,
            // it is finished all the same, and only then there is room for the next one.
            let answering = tokio::task::spawn_blocking(move || {
                let _room = room;
                answer(&bus, &question).encode()
            });
            answering.await.map(Bytes::from).map_err(|_| Declined::Failed)
        }
        .boxed()
    }
}

fn answer(bus: &Bus, question: &Question) -> Answer {
    let subject = question.subject();
    let open = bus.domain.cache_of(subject.cache());
    let why_not = match &open {
        None => Some(Incomparable::NotHosted),
        Some(cache) if !cache.is_audited() => Some(Incomparable::NotAudited),
        Some(cache) => {
            let same = subject.digests == DIGEST_VERSION && subject.schema == cache.settings().schema;
            (!same).then_some(Incomparable::OtherSchema)
        }
    };
    let (Some(cache), None) = (open, why_not) else {
        return Answer::Incomparable(why_not.unwrap_or(Incomparable::NotHosted));
    };
    let count = |keys: usize| bus.audits.answered.fetch_add(keys as u64, Ordering::Relaxed);
    match question {
        Question::Page(_, entries) => {
            count(entries.len());
            of_page(&*cache, entries)
        }
        Question::Keys(_, keys) => {
            count(keys.len());
            // Before the entries: what is held then has outlived everything that was applied by then.
            let age = bus.coherence.age();
            let applied_ago_ms = age.map(|age| age.as_millis() as u64 + 1);
            Answer::Keys { applied_ago_ms, held: keys.iter().map(|key| cache.held(key)).collect() }
        }
    }
}

fn of_page(cache: &dyn AnyCache, entries: &[Digested]) -> Answer {
    let (mut held, mut differing) = (0, Vec::new());
    for (at, entry) in entries.iter().enumerate() {
        let Some(own) = cache.held_by_hash(entry.key) else { continue };
        held += 1;
        if own.value != entry.value {
            differing.push(Differing { at: at as u32, held: own });
        }
    }
    Answer::Page { held, differing }
}
