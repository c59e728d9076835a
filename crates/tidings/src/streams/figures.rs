//! How topics and groups stand.

use tidings_streams::{GroupInfo, StoreError, Streams, TopicInfo};

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

/// Asks a store how everything stands: two questions for each topic, one after the other.
///
/// # Errors
/// [`StoreError`].
///
/// # Cancel safety
/// Cancel-safe.
pub async fn figures(streams: &Streams) -> Result<StreamFigures, StoreError> {
    let mut topics = Vec::new();
    for name in streams.topics().await? {
        let topic = streams.stored(name);
        if let Some(info) = topic.info().await? {
            topics.push(TopicFigures { info, groups: topic.groups().await? });
        }
    }
    Ok(StreamFigures { topics, dead_letters: streams.dead_letter_count().await? })
}
