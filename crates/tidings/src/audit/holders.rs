//! Where one key is held: the auditor's question, asked once of everybody.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tidings_cache::{AnyCache, Cache, Key, KeyError};
use tidings_membership::State;
use tidings_proto::ask::{Declined, Topic};
use tidings_proto::audit::{Answer, Held, Incomparable, Question, Subject};
use tidings_proto::codec;
use tidings_proto::id::NodeId;
use tidings_proto::record::KEY_BYTES_MAX;
use tidings_proto::time::Tick;
use tidings_transport::AskError;

use crate::bus::Bus;
use crate::node::Node;

/// Members that are asked at once. A small question each; of more, each waits until another one has answered.
const ASKED_MAX: usize = 64;

/// Between two questions to a member that is busy: it answers one auditor at a time, each within milliseconds.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// What one member says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which member.
    pub node: NodeId,
    /// Whether it is the asking node.
    pub this_node: bool,
    /// What it says, or why nothing is known.
    pub told: Result<Holding, Untold>,
}

/// What a member holds under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// What a read there would be answered with; nothing if it would miss.
    pub entry: Option<HeldEntry>,
    /// Everything that all members did up to so long ago had been applied there when it looked. Nothing if that member
    /// cannot say so of any time. It may be less long ago: the way of the question is counted in.
    pub applied: Option<Duration>,
}

/// An entry without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldEntry {
    /// How long ago its load began.
    pub age: Duration,
    /// A hash of its value: of equal values the same on every node.
    pub digest: u64,
}

/// Why it is not known what a member holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Untold {
    /// The cache is not open there, so that no read of it is answered.
    #[error("the cache is not open there")]
    NotHosted,
    /// The cache's values have another schema there, or another hash, of which this release knows nothing.
    #[error("the cache has another schema there")]
    OtherSchema,
    /// The cache is not audited there ([`tidings_cache::CacheBuilder::audited`]).
    #[error("the cache is not audited there")]
    NotAudited,
    /// There is no link to it, or it broke.
    #[error("it cannot be reached")]
    Unreachable,
    /// It did not answer in time; it may be busy with other questions.
    #[error("it did not answer in time")]
    Late,
    /// It is of a release that does not answer this, or its answer made no sense.
    #[error("it does not answer such questions")]
    Unanswered,
}

impl Untold {
    /// Its name, in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotHosted => "not_hosted",
            Self::OtherSchema => "other_schema",
            Self::NotAudited => "not_audited",
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::Unanswered => "unanswered",
        }
    }
}

impl From<Incomparable> for Untold {
    fn from(why: Incomparable) -> Self {
        match why {
            Incomparable::NotHosted => Self::NotHosted,
            Incomparable::OtherSchema => Self::OtherSchema,
            Incomparable::NotAudited => Self::NotAudited,
        }
    }
}

/// It was not asked where a key is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HoldersError {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The cache is not audited on this node ([`tidings_cache::CacheBuilder::audited`]): what it holds can be compared
    /// with nothing.
    #[error("the cache is not audited")]
    NotAudited,
}

impl Node {
    /// Which members hold a key of a cache, and up to when each of them has applied what all did: this node first, then
    /// everybody else that has not left. Members that have not answered within `time` are [`Untold::Late`].
    ///
    /// Of what a member holds only its age and a hash of its value are told; the cache has to be audited
    /// ([`tidings_cache::CacheBuilder::audited`]). The answers are of different moments, and a change may be under way:
    /// two digests that differ mean nothing by themselves ([`Node::audit`] judges that).
    ///
    /// # Errors
    /// [`HoldersError`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn holders<K: Key, V: Clone + Send + Sync + 'static>(
        &self,
        cache: &Cache<K, V>,
        key: &K,
        time: Duration,
    ) -> Result<Vec<Holder>, HoldersError> {
        let key = codec::encode(key).map_err(KeyError::Encode)?;
        if key.len() > KEY_BYTES_MAX {
            return Err(KeyError::TooLong(key.len()).into());
        }
        let cache = cache.erased();
        if !cache.is_audited() {
            return Err(HoldersError::NotAudited);
        }
        let (bus, key) = (self.bus(), Bytes::from(key));
        let subject = Subject::new(cache.id(), cache.settings().schema);
        let question = Question::Keys(subject, vec![key.to_vec()]);
        let deadline = bus.domain.clock().now().after(time);
        let here = Holder { node: self.origin().node, this_node: true, told: Ok(own(bus, cache, key).await) };
        let view = bus.membership().map(|membership| membership.view()).unwrap_or_default();
        let members = view.members.values().filter(|member| member.state != State::Left);
        let others: Vec<NodeId> = members.map(|member| member.record.origin.node.clone()).collect();
        let asked = futures_util::stream::iter(others).map(|node| {
            let question = &question;
            async move {
                let told = ask(bus, &node, question, deadline).await;
                Holder { node, this_node: false, told }
            }
        });
        let mut holders = vec![here];
        holders.extend(asked.buffered(ASKED_MAX).collect::<Vec<_>>().await);
        Ok(holders)
    }
}

/// What this node holds.
async fn own(bus: &Bus, cache: Arc<dyn AnyCache>, key: Bytes) -> Holding {
    // Before the entry: what is held then has outlived everything that was applied by then.
    let applied = bus.coherence.age();
    // A value is encoded for its digest, which may take longer than a runtime should stand still for.
    let held = tokio::task::spawn_blocking(move || cache.held(&key)).await;
    Holding { entry: held.ok().flatten().map(entry), applied }
}

fn entry(held: Held) -> HeldEntry {
    HeldEntry { age: held.age(), digest: held.value }
}

/// What a member holds. Who is busy is asked again until the deadline.
async fn ask(bus: &Bus, node: &NodeId, question: &Question, deadline: Tick) -> Result<Holding, Untold> {
    let (clock, body) = (bus.domain.clock(), question.encode());
    loop {
        let asked = clock.now();
        let left = deadline.since(asked);
        if left.is_zero() {
            return Err(Untold::Late);
        }
        let answer = match bus.ask(node, Topic::Audit, &body, left).await {
            Ok(answer) => answer,
            Err(AskError::Busy | AskError::Declined(Declined::Busy)) => {
                tokio::time::sleep(BUSY_PAUSE.min(left)).await;
                continue;
            }
            Err(error) => return Err(untold(&error)),
        };
        return match Answer::decode(&answer, question) {
            Ok(Answer::Keys { applied_ago_ms, held }) => {
                // It looked after it was asked.
                let way = clock.now().since(asked);
                let applied = applied_ago_ms.map(|ago| Duration::from_millis(ago).saturating_add(way));
                Ok(Holding { entry: held.first().copied().flatten().map(entry), applied })
            }
            Ok(Answer::Incomparable(why)) => Err(why.into()),
            Ok(Answer::Page { .. }) | Err(_) => Err(Untold::Unanswered),
        };
    }
}

fn untold(error: &AskError) -> Untold {
    match error {
        AskError::Late(_) => Untold::Late,
        // A release that knows no questions ends the stream without a word.
        AskError::Declined(_) | AskError::TooLong(_) | AskError::Frame(_) | AskError::Read(None) => {
            Untold::Unanswered
        }
        _ => Untold::Unreachable,
    }
}
