//! The streams of the status page.

use std::fmt::{self, Write};

use tidings::streams::{Durability, GroupInfo, Name, StreamFigures, TopicInfo, figures};
use tokio::time::timeout;

use super::Text;
use crate::app::App;
use crate::limits::FIGURES_TIME;
use crate::quantity::{self, show_duration};
use crate::routes::streams::chain;

/// Lines of each table. Of further topics and groups only the number is said.
const LINES_MAX: usize = 100;

/// A store, and how everything in it stands, or why that is not known.
pub(super) struct Seen {
    store: String,
    figures: Result<StreamFigures, String>,
}

/// Looks at the node's store. `None`: there is none.
pub(super) async fn look(app: &App) -> Option<Seen> {
    let streams = app.node().streams()?;
    let driver = streams.driver();
    let (name, node) = (driver.name(), app.node().origin().node);
    let store = match driver.durability() {
        Durability::Sync => format!("{name} store of {node}, sync"),
        Durability::Relaxed => format!("{name} store of {node}, relaxed"),
        Durability::Server => format!("{name} store that nodes share, as durable as its server"),
    };
    let figures = match timeout(FIGURES_TIME, figures(streams)).await {
        Ok(seen) => seen.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer within {}", show_duration(FIGURES_TIME))),
    };
    Some(Seen { store, figures })
}

impl Seen {
    pub(super) fn write(&self, html: &mut String) -> fmt::Result {
        let store = Text(&self.store);
        let figures = match &self.figures {
            Ok(figures) => figures,
            Err(error) => {
                return writeln!(
                    html,
                    "<h2>Streams</h2>\n<p>{store}</p>\n<p class=\"bad\">{}</p>",
                    Text(error)
                );
            }
        };
        let topics = figures.topics.iter().map(|topic| &topic.info);
        let events: u64 = topics.clone().map(|topic| topic.events).sum();
        writeln!(
            html,
            "<h2>Streams</h2>\n<p>{store}: {} topics, {events} events, {} dead letters</p>",
            figures.topics.len(),
            figures.dead_letters
        )?;
        table(html, "<th>Topic<th>Events<th>Bytes<th>Published<th>Groups", topics, topic)?;
        let groups = |of: &'_ tidings::streams::TopicFigures| {
            of.groups.iter().map(|group| (of.info.name.clone(), group.clone())).collect::<Vec<_>>()
        };
        let groups = figures.topics.iter().flat_map(groups);
        table(html, "<th>Topic<th>Group<th>Lag<th>Age<th>Pending<th>Delivered again<th>Paused", groups, group)
    }
}

/// A table, unless there is nothing in it.
fn table<T>(
    html: &mut String,
    head: &str,
    lines: impl Iterator<Item = T>,
    write: impl Fn(&mut String, T) -> fmt::Result,
) -> fmt::Result {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return Ok(());
    }
    writeln!(html, "<table><tr>{head}</tr>")?;
    for line in lines.by_ref().take(LINES_MAX) {
        write(html, line)?;
    }
    html.push_str("</table>\n");
    match lines.count() {
        0 => Ok(()),
        more => writeln!(html, "<p>and {more} more</p>"),
    }
}

fn topic(html: &mut String, topic: &TopicInfo) -> fmt::Result {
    let published = topic.last_time.map_or_else(|| "-".to_owned(), |time| quantity::show_time(time.0));
    writeln!(
        html,
        "<tr><td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
        Text(&topic.name),
        topic.events,
        topic.bytes,
        Text(published),
        topic.groups
    )
}

fn group(html: &mut String, (topic, group): (Name, GroupInfo)) -> fmt::Result {
    writeln!(
        html,
        "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}</tr>",
        Text(topic),
        Text(&group.name),
        group.lag,
        Text(show_duration(group.lag_age)),
        group.pending,
        group.redeliveries,
        if group.paused { "yes" } else { "no" }
    )
}
