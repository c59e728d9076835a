//! A store that no node has open: looked at where it lies.

use std::io::Write;
use std::path::Path;

use tidings::streams::embedded::{Config, Embedded, LAYOUT};
use tidings::streams::{Driver, Name, Page, Settings, StoreError, to_line};
use tidings_http::documents;

use super::transfer::{Target, cannot_write};
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use crate::setup;

/// Events that are in memory at a time.
const STEP_EVENTS: usize = 500;

/// Opens a store, looks at everything in it, and closes it.
pub(super) async fn verify(directory: &Path, output: &Output) -> Result<(), Failure> {
    let store = open(directory).await?;
    let report = store.verify().await;
    close(&store).await?;
    let report = report.map_err(|error| failed(&error))?;
    super::verified(&documents::verified(&report), output)
}

/// Opens a store, writes all events of a topic, and closes it.
pub(super) async fn export(
    directory: &Path,
    topic: &Name,
    out: Option<&Path>,
    output: &Output,
) -> Result<(), Failure> {
    let store = open(directory).await?;
    let exported = write(&store, topic, out).await;
    close(&store).await?;
    let Some(exported) = exported? else {
        let message = format!("there is no topic {topic} in {}", directory.display());
        return Err(Failure::new(Exit::NotFound, message));
    };
    super::transfer::told_exported(exported, out, output)
}

/// Writes all events of a topic. How many there were; `None`: there is no such topic.
async fn write(store: &Embedded, topic: &Name, out: Option<&Path>) -> Result<Option<u64>, Failure> {
    // How it is kept is not asked for by what is read.
    let topic = Settings::default().stored(topic.clone());
    if store.topic(&topic).await.map_err(|error| failed(&error))?.is_none() {
        return Ok(None);
    }
    let mut target = Target::new(out)?;
    let (mut page, mut exported) = (Page { limit: STEP_EVENTS, ..Page::default() }, 0);
    loop {
        let found = store.read(&topic, &page).await.map_err(|error| failed(&error))?;
        for event in &found.events {
            writeln!(target, "{}", to_line(event)).map_err(|error| cannot_write(&error))?;
        }
        exported += found.events.len() as u64;
        let Some(next) = found.next else { break };
        page.after = Some(next);
    }
    target.finish()?;
    Ok(Some(exported))
}

/// Opens the store alone: [`tidings::streams::Streams`] would look after it, and remove what the settings of whoever
/// keeps it had kept.
async fn open(directory: &Path) -> Result<Embedded, Failure> {
    // Opening makes a store where there is none.
    if !directory.join(LAYOUT).is_dir() {
        return Err(Failure::new(Exit::NotFound, format!("there is no store in {}", directory.display())));
    }
    let store = Embedded::open(directory, Config::default()).await;
    store.map_err(|error| setup::cannot_open(&error.into()))
}

async fn close(store: &Embedded) -> Result<(), Failure> {
    store.close().await.map_err(|error| failed(&error))
}

fn failed(error: &StoreError) -> Failure {
    Failure::new(Exit::Failed, chain(error))
}
