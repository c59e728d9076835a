//! A store that no node has open: looked at where it lies.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use tidings::streams::embedded::{Config, Embedded};
use tidings::streams::{Damage, Name, Place, Settings, StoreError, Streams};

use super::transfer::Target;
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;
use crate::setup;

/// Opens a store, looks at everything in it, and closes it.
pub(super) async fn verify(directory: &Path, output: &Output) -> Result<(), Failure> {
    let streams = open(directory).await?;
    let report = streams.verify().await;
    close(&streams).await?;
    let report = report.map_err(|error| failed(&error))?;
    let damage: Vec<Json> = report.damage.iter().map(damaged).collect();
    let document = json!({
        "sound": damage.is_empty(),
        "events": report.events,
        "dead_letters": report.dead_letters,
        "damage": damage,
    });
    super::verified(&document, output)
}

/// Opens a store, writes all events of a topic, and closes it.
pub(super) async fn export(
    directory: &Path,
    topic: &Name,
    out: Option<&Path>,
    output: &Output,
) -> Result<(), Failure> {
    let streams = open(directory).await?;
    let stream = streams.stored(topic.clone());
    let exported = async {
        if stream.info().await.map_err(|error| failed(&error))?.is_none() {
            let message = format!("there is no topic {topic} in {}", directory.display());
            return Err(Failure::new(Exit::NotFound, message));
        }
        let mut target = Target::new(out)?;
        let write = |line: &str| {
            target.write_all(line.as_bytes())?;
            Ok::<(), Broken>(target.write_all(b"\n")?)
        };
        let exported = stream.export(write).await.map_err(|Broken(failure)| failure)?;
        target.finish()?;
        Ok(exported)
    }
    .await;
    close(&streams).await?;
    super::transfer::told_exported(exported?, out, output)
}

/// Why an export broke off.
struct Broken(Failure);

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self(failed(&error))
    }
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self(super::transfer::cannot_write(&error))
    }
}

async fn open(directory: &Path) -> Result<Streams, Failure> {
    // Opening makes a store where there is none.
    if !directory.is_dir() {
        return Err(Failure::new(Exit::NotFound, format!("there is no directory {}", directory.display())));
    }
    let store = Embedded::open(directory, Config::default()).await;
    let store = store.map_err(|error| setup::cannot_open(&error.into()))?;
    Streams::start(Arc::new(store), Settings::default())
        .map_err(|error| Failure::new(Exit::Configuration, error.to_string()))
}

async fn close(streams: &Streams) -> Result<(), Failure> {
    streams.shutdown().await.map_err(|error| failed(&error))
}

fn failed(error: &StoreError) -> Failure {
    Failure::new(Exit::Failed, chain(error))
}

fn damaged(damage: &Damage) -> Json {
    let (place, topic) = match &damage.place {
        Place::Topic(name) => ("topic", Some(name.as_str())),
        Place::DeadLetters => ("dead_letters", None),
        Place::Groups => ("groups", None),
    };
    json!({
        "place": place,
        "topic": topic,
        "first": damage.ids.map(|(first, _)| first.to_string()),
        "last": damage.ids.map(|(_, last)| last.to_string()),
        "bytes": damage.bytes,
    })
}
