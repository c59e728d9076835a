//! Events out of a topic and into one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Map, Value as Json, json};
use tempfile::NamedTempFile;
use tidings::streams::{EventId, Name, from_line};
use tidings_http::limits::IMPORT_BYTES_MAX;
use tokio::sync::mpsc;

use super::{EVERYTHING, cell, get, items};
use crate::args::ReplayEventsArgs;
use crate::client::{Call, Client};
use crate::exit::{Exit, Failure, chain};
use crate::output::Output;

/// Lines of one request, at most.
const STEP_LINES: usize = 500;

/// Events of a page that is replayed.
const STEP_EVENTS: usize = 200;

/// Parts that are read ahead of what is sent.
const PARTS_AHEAD: usize = 2;

/// Where an export goes: stdout, or a file that appears once it is whole.
pub(super) enum Target<'a> {
    Stdout(BufWriter<io::Stdout>),
    File { file: BufWriter<NamedTempFile>, path: &'a Path },
}

impl<'a> Target<'a> {
    pub(super) fn new(path: Option<&'a Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Stdout(BufWriter::new(io::stdout()))) };
        let directory = match path.parent() {
            Some(directory) if !directory.as_os_str().is_empty() => directory,
            _ => Path::new("."),
        };
        let file = NamedTempFile::new_in(directory).map_err(|error| cannot_write(&error))?;
        Ok(Self::File { file: BufWriter::new(file), path })
    }

    /// Everything was written.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(mut out) => out.flush().map_err(|error| cannot_write(&error)),
            Self::File { file, path } => {
                let file = file.into_inner().map_err(|error| cannot_write(error.error()))?;
                file.as_file().sync_all().map_err(|error| cannot_write(&error))?;
                file.persist(path).map(drop).map_err(|error| cannot_write(&error.error))
            }
        }
    }
}

impl Write for Target<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout(out) => out.write(bytes),
            Self::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

/// Why what was exported cannot be written; nothing to complain about where the reader has seen enough.
pub(super) fn cannot_write(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(Exit::Ok),
        _ => Failure::new(Exit::Failed, format!("cannot write the events: {error}")),
    }
}

fn bar(output: &Output, length: Option<u64>) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} events {per_sec}") {
        bar.set_style(style);
    }
    bar
}

/// Writes all events of a topic.
pub(super) async fn export(
    client: &Client,
    topic: &Name,
    out: Option<&Path>,
    output: &Output,
) -> Result<(), Failure> {
    let info = get(client, &["v1", "streams", topic.as_str()]).await?;
    let bar = bar(output, info["events"].as_u64());
    let mut target = Target::new(out)?;
    let mut exported = 0;
    let path = ["v1", "streams", topic.as_str(), "export"];
    let taken = client.download(Call::new(Method::GET, &path).waiting(EVERYTHING), |bytes| {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        exported += lines;
        bar.inc(lines);
        target.write_all(bytes).map_err(|error| cannot_write(&error))
    });
    let taken = taken.await;
    bar.finish_and_clear();
    taken?;
    target.finish()?;
    told_exported(exported, out, output)
}

/// Says how many there were: on stdout only where the events are not.
pub(super) fn told_exported(exported: u64, out: Option<&Path>, output: &Output) -> Result<(), Failure> {
    match out {
        Some(path) if output.is_json() => output.json(&json!({ "exported": exported, "file": path })),
        Some(path) => {
            output.note(format!("{exported} events are in {}", path.display()));
            Ok(())
        }
        None => {
            output.note(format!("{exported} events"));
            Ok(())
        }
    }
}

/// Lines that are sent together.
#[derive(Debug, Default)]
struct Part {
    text: String,
    lines: usize,
}

impl Part {
    fn has_room(&self, line: &str) -> bool {
        self.lines < STEP_LINES && (self.lines == 0 || self.text.len() + line.len() < IMPORT_BYTES_MAX)
    }

    fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.lines += 1;
    }
}

async fn send(client: &Client, topic: &Name, part: Part) -> Result<u64, Failure> {
    if part.lines == 0 {
        return Ok(0);
    }
    let path = ["v1", "streams", topic.as_str(), "import"];
    let call = Call::new(Method::POST, &path).header("content-type", Some("application/x-ndjson"));
    let (answer, _) = client.call(call.body(part.text)).await?;
    Ok(answer["imported"].as_u64().unwrap_or_default())
}

/// Publishes an event for every line of a file.
pub(super) async fn import(
    client: &Client,
    topic: &Name,
    file: PathBuf,
    output: &Output,
) -> Result<(), Failure> {
    let bar = bar(output, None);
    // A read cannot be cancelled: Ctrl-C must not wait for it.
    let (parts, mut ready) = mpsc::channel(PARTS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || read(&file, &parts));
    let mut imported = 0;
    while let Some(part) = ready.recv().await {
        let sent = send(client, topic, part).await.map_err(|failure| {
            failure.hint(format!("{imported} events were imported before this part of the file"))
        });
        let sent = sent.inspect_err(|_| bar.finish_and_clear())?;
        imported += sent;
        bar.set_position(imported);
    }
    bar.finish_and_clear();
    let read = reading.await.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    read.map_err(|failure| failure.hint(format!("{imported} events before it were imported")))?;
    if output.is_json() {
        return output.json(&json!({ "imported": imported }));
    }
    output.note(format!("{imported} events were published to {topic}"));
    Ok(())
}

/// Reads lines and judges each, so that one that is none is told with its number.
fn read(file: &Path, parts: &mpsc::Sender<Part>) -> Result<(), Failure> {
    let cannot = |error: io::Error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {}: {error}", file.display()))
    };
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).map_err(cannot)?)
    };
    let (mut source, mut part, mut number) = (BufReader::new(source), Part::default(), 0);
    loop {
        let mut line = String::new();
        number += 1;
        let most = IMPORT_BYTES_MAX as u64;
        if source.by_ref().take(most).read_line(&mut line).map_err(cannot)? == 0 {
            break;
        }
        let line = line.trim_end();
        if line.is_empty() {
            continue;
        }
        if let Err(error) = from_line(line) {
            // What is right before it counts.
            let _ = parts.blocking_send(part);
            return Err(Failure::new(Exit::Failed, format!("line {number}: {}", chain(&error))));
        }
        if !part.has_room(line) && parts.blocking_send(std::mem::take(&mut part)).is_err() {
            return Ok(());
        }
        part.push(line);
    }
    let _ = parts.blocking_send(part);
    Ok(())
}

/// Publishes events of a topic again, to another one.
pub(super) async fn replay(client: &Client, args: &ReplayEventsArgs, output: &Output) -> Result<(), Failure> {
    let topic = args.topic.as_str();
    let info = get(client, &["v1", "streams", topic]).await?;
    // What comes meanwhile, perhaps of the replay itself, is not replayed.
    let last: Option<EventId> = info["last"].as_str().and_then(|id| id.parse().ok());
    let bar = bar(output, None);
    let (mut after, mut replayed) = (args.after.map(|id| id.to_string()), 0);
    loop {
        let path = ["v1", "streams", topic, "events"];
        let call = Call::new(Method::GET, &path)
            .query("after", after.as_deref())
            .query("from", args.from.as_deref())
            .query("until", args.until.as_deref())
            .query("limit", Some(STEP_EVENTS));
        let (page, _) = client.call(call).await?;
        let id = |event: &Json| event["id"].as_str().and_then(|id| id.parse::<EventId>().ok());
        let wanted: Vec<&Json> = items(&page, "events").iter().filter(|event| id(event) <= last).collect();
        let mut part = Part::default();
        for event in &wanted {
            let line = line_of(event);
            if !part.has_room(&line) {
                send_unless(args.dry_run, client, &args.to, std::mem::take(&mut part)).await?;
            }
            part.push(&line);
        }
        send_unless(args.dry_run, client, &args.to, part).await?;
        replayed += wanted.len();
        bar.set_position(replayed as u64);
        let is_over = wanted.len() < items(&page, "events").len() || page["next"].is_null();
        if is_over {
            break;
        }
        after = Some(cell(&page, "next"));
    }
    bar.finish_and_clear();
    if output.is_json() {
        return output.json(&json!({ "replayed": replayed, "to": args.to, "dry_run": args.dry_run }));
    }
    let would = if args.dry_run { "would be" } else { "were" };
    output.line(format!("{replayed} events {would} published to {}", args.to))
}

async fn send_unless(dry_run: bool, client: &Client, topic: &Name, part: Part) -> Result<(), Failure> {
    if !dry_run {
        send(client, topic, part).await?;
    }
    Ok(())
}

/// An event to be published anew: without what was said of when and how often it may be.
fn line_of(event: &Json) -> String {
    let kept = ["payload", "payload_base64", "content_type", "key", "headers"];
    let fields = kept.into_iter().filter(|name| !event[name].is_null());
    let line: Map<String, Json> = fields.map(|name| (name.to_owned(), event[name].clone())).collect();
    Json::Object(line).to_string()
}
