//! Durable streams: nothing where the node has none.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use tidings::Node;
use tidings::streams::{GroupInfo, StreamCounts, StreamFigures, TopicCounts, figures};
use tokio::sync::Mutex as Turn;
use tokio::time::{Instant, timeout};

use super::{Labels, Output, one};
use crate::limits::{FIGURES_AGE_MAX, FIGURES_TIME};

/// Topics of which gauges are shown: each is several series. Of further ones there are none.
const TOPICS_MAX: usize = 1_024;

/// Stands for the topics that are too many to be counted by name; no topic can be called so.
const OTHERS: &str = "(others)";

type Count = fn(&TopicCounts) -> u64;

/// What becomes of what is handed out.
const OUTCOMES: [(&str, Count); 4] = [
    ("acked", |counts| counts.acked),
    ("retried", |counts| counts.retried),
    ("dead", |counts| counts.dead),
    ("unsettled", |counts| counts.unsettled),
];

/// How streams stood when they were last looked at: a scrape cannot wait while it writes.
#[derive(Debug, Default)]
pub(crate) struct StreamsSeen {
    last: Mutex<Option<StreamFigures>>,
    /// Who looks, and when the last look ended.
    turn: Turn<Option<Instant>>,
}

impl StreamsSeen {
    /// Looks, unless somebody has in the last [`FIGURES_AGE_MAX`]; who looks is waited for. A store that does not
    /// answer in time leaves no figures.
    ///
    /// # Cancel safety
    /// Dropped, it leaves the look to the next one.
    pub(crate) async fn look(&self, node: &Node) {
        let Some(streams) = node.streams() else { return };
        self.look_by(async || timeout(FIGURES_TIME, figures(streams)).await.ok().and_then(Result::ok)).await;
    }

    async fn look_by(&self, figures: impl AsyncFnOnce() -> Option<StreamFigures>) {
        let mut looked = self.turn.lock().await;
        if looked.is_some_and(|at| at.elapsed() < FIGURES_AGE_MAX) {
            return;
        }
        let seen = figures().await;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        *looked = Some(Instant::now());
    }

    fn last(&self) -> Option<StreamFigures> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) fn encode(node: &Node, seen: &StreamsSeen, out: &mut Output<'_>) -> fmt::Result {
    let Some(counts) = node.stream_counts() else { return Ok(()) };
    counted(&counts, out)?;
    captured(node, out)?;
    let seen = seen.last();
    let up = f64::from(u8::from(seen.is_some()));
    out.gauge(
        "tidings_stream_store_up",
        None,
        "1 if the store of streams has answered this scrape, or one in the second before.",
        one(up),
    )?;
    // Noughts would say that nothing waits and nothing is dead.
    seen.map_or(Ok(()), |seen| standing(&seen, out))
}

fn counted(counts: &StreamCounts, out: &mut Output<'_>) -> fmt::Result {
    let others = (counts.others != TopicCounts::default()).then_some((OTHERS, &counts.others));
    let topics: Vec<(&str, &TopicCounts)> =
        counts.topics.iter().map(|(name, counts)| (name.as_str(), counts)).chain(others).collect();
    let of = |count: Count| -> Vec<(Labels, u64)> {
        topics.iter().map(|(topic, counts)| (vec![("topic", (*topic).to_owned())], count(counts))).collect()
    };
    out.counter("tidings_stream_published", "Events that this node has published.", of(|it| it.published))?;
    out.counter(
        "tidings_stream_duplicates",
        "Events that were not stored again, for their idempotency keys were known.",
        of(|it| it.duplicates),
    )?;
    out.counter("tidings_stream_received", "Events that this node has handed out.", of(|it| it.received))?;
    let settled = topics.iter().flat_map(|(topic, counts)| {
        OUTCOMES.map(|(outcome, count)| {
            let labels = vec![("topic", (*topic).to_owned()), ("outcome", outcome.to_owned())];
            (labels, count(counts))
        })
    });
    out.counter(
        "tidings_stream_settled",
        "What became of what was handed out, as this node was told.",
        settled,
    )?;
    out.counter(
        "tidings_stream_trimmed",
        "Events that this node has removed by hand or as it looked after topics; not what publishing has removed.",
        of(|it| it.trimmed),
    )?;
    out.histogram(
        "tidings_stream_append_duration",
        "How long publishing took, until it was stored as durably as the store does.",
        one(counts.appends.clone()),
    )?;
    out.histogram(
        "tidings_stream_fsync_duration",
        "How long the embedded store took to write and sync once, for all that was asked meanwhile.",
        counts.flushes.iter().cloned().flat_map(one),
    )
}

fn captured(node: &Node, out: &mut Output<'_>) -> fmt::Result {
    let captures = node.captures();
    let of = |count: fn(&tidings::streams::CaptureReport) -> u64| -> Vec<(Labels, u64)> {
        let labels = |report: &tidings::streams::CaptureReport| {
            vec![("cache", report.cache.to_string()), ("topic", report.topic.to_string())]
        };
        captures.iter().map(|report| (labels(report), count(report))).collect()
    };
    out.counter(
        "tidings_stream_captured",
        "Events that were published for changes in a cache.",
        of(|report| report.captured),
    )?;
    out.counter(
        "tidings_stream_capture_missed",
        "Changes in a cache that could not be captured: the store was behind for too long.",
        of(|report| report.missed),
    )
}

fn standing(seen: &StreamFigures, out: &mut Output<'_>) -> fmt::Result {
    let topics = || seen.topics.iter().take(TOPICS_MAX);
    let length =
        topics().map(|topic| (vec![("topic", topic.info.name.to_string())], topic.info.events as f64));
    out.gauge("tidings_stream_length", None, "Events that the topic holds.", length)?;
    let groups = |count: fn(&GroupInfo) -> u64| {
        topics().flat_map(move |topic| {
            topic.groups.iter().map(move |group| {
                let labels = vec![("topic", topic.info.name.to_string()), ("group", group.name.to_string())];
                (labels, count(group))
            })
        })
    };
    let gauge = |count: fn(&GroupInfo) -> u64| groups(count).map(|(labels, count)| (labels, count as f64));
    out.gauge(
        "tidings_group_lag",
        None,
        "Events that the group has not settled, taken or not.",
        gauge(|group| group.lag),
    )?;
    out.gauge(
        "tidings_group_pending",
        None,
        "Events that the group has taken and not settled.",
        gauge(|group| group.pending),
    )?;
    out.counter(
        "tidings_group_redeliveries",
        "Deliveries beyond the first of an event, since the store was opened.",
        groups(|group| group.redeliveries),
    )?;
    out.gauge("tidings_dead_letters", None, "Dead letters that are there.", one(seen.dead_letters as f64))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_store_is_asked_by_one_scrape_at_a_time_and_once_a_second_whoever_scrapes() {
        let (seen, looks, under_way) = (StreamsSeen::default(), AtomicU32::new(0), AtomicU32::new(0));
        let scrape = async || {
            let figures = async || {
                assert_eq!(under_way.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                sleep(Duration::from_millis(100)).await;
                under_way.fetch_sub(1, Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
                None
            };
            seen.look_by(figures).await;
        };
        tokio::join!(scrape(), scrape(), scrape());
        scrape().await;
        assert_eq!(looks.load(Ordering::Relaxed), 1);
        sleep(FIGURES_AGE_MAX).await;
        tokio::join!(scrape(), scrape());
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }
}
