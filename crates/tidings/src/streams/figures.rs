//! How topics and groups stand.

use futures_util::stream::iter;
use futures_util::{StreamExt, TryStreamExt};
use tidings_streams::{GroupInfo, StoreError, Stream, Streams, TopicInfo};

/// How everything in a store stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamFigures {
    /// Every topic that there is, by name.
    pub topics: Vec<TopicFigures>,
    /// Dead letters of all topics.
    pub dead_letters: u64,
}

/// How one topic stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFigures {
    /// What it holds.
    pub info: TopicInfo,
    /// Its groups, by name.
    pub groups: Vec<GroupInfo>,
}

/// Topics that are asked about at once: a store answers together what it is asked together.
const TOPICS_AT_ONCE: usize = 64;

/// Asks a store how everything stands.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancel safety
/// Cancel-safe.
pub async fn figures(streams: &Streams) -> Result<StreamFigures, StoreError> {
    let names = streams.topics().await?;
    let asked = iter(names.into_iter().map(|name| of_topic(streams.stored(name))));
    let topics: Vec<Option<TopicFigures>> = asked.buffered(TOPICS_AT_ONCE).try_collect().await?;
    let dead_letters = streams.dead_letter_count().await?;
    Ok(StreamFigures { topics: topics.into_iter().flatten().collect(), dead_letters })
}

async fn of_topic(topic: Stream) -> Result<Option<TopicFigures>, StoreError> {
    let Some(info) = topic.info().await? else { return Ok(None) };
    Ok(Some(TopicFigures { info, groups: topic.groups().await? }))
}
