//! `stream`: topics and their events.

mod offline;
mod transfer;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Map, Value as Json, json};
use tidings::streams::{Name, PAYLOAD_BYTES_MAX};

use super::confirm::confirm;
use crate::args::{Global, NewestFirst, PublishArgs, StreamVerb, TrimArgs, ViewArgs};
use crate::client::{Call, Client};
use crate::exit::{Exit, Failure};
use crate::output::{Output, plain};
use crate::{files, units};

/// How long a request may take that reads a whole store: gigabytes, from a disk that is busy.
const EVERYTHING: Duration = Duration::from_secs(3_600);

/// Runs a verb about topics.
pub(crate) async fn run(verb: StreamVerb, global: &Global, output: &Output) -> Result<(), Failure> {
    match &verb {
        StreamVerb::Verify { dir: Some(directory) } => return offline::verify(directory, output).await,
        StreamVerb::Export { topic, out, dir: Some(directory) } => {
            return offline::export(directory, topic, out.as_deref(), output).await;
        }
        _ => {}
    }
    let client = &super::client(global, output)?;
    match verb {
        StreamVerb::Ls => list(client, output).await,
        StreamVerb::Info { topic } => {
            let document = get(client, &["v1", "streams", topic.as_str()]).await?;
            if output.is_json() {
                return output.json(&document);
            }
            super::cache::fields("", &document, output)
        }
        StreamVerb::Publish(args) => publish(client, args, output).await,
        StreamVerb::View(args) => view(client, &args, output).await,
        StreamVerb::Trim(args) => trim(client, &args, output).await,
        StreamVerb::Purge { topic, force, dry_run, yes } => {
            let what = if force { ", also those that groups have not settled" } else { "" };
            if !dry_run {
                confirm(&format!("all events of {topic} are removed{what}"), yes).await?;
            }
            let limits = json!({ "max_events": 0, "force": force, "dry_run": dry_run });
            let trimmed = trim_one(client, &topic, &limits).await?;
            told_trimmed(&[(topic, trimmed)], false, output)
        }
        StreamVerb::Replay(args) => transfer::replay(client, &args, output).await,
        StreamVerb::Export { topic, out, .. } => {
            transfer::export(client, &topic, out.as_deref(), output).await
        }
        StreamVerb::Import { topic, file } => transfer::import(client, &topic, file, output).await,
        StreamVerb::Verify { .. } => {
            let call = Call::new(Method::POST, &["v1", "stream-store", "verify"]).waiting(EVERYTHING);
            verified(&client.call(call).await?.0, output)
        }
    }
}

/// A document of the API.
pub(super) async fn get(client: &Client, path: &[&str]) -> Result<Json, Failure> {
    Ok(client.call(Call::new(Method::GET, path)).await?.0)
}

/// The items of a list in an answer.
pub(super) fn items<'a>(document: &'a Json, name: &str) -> &'a [Json] {
    document[name].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A cell of a table.
pub(super) fn cell(of: &Json, name: &str) -> String {
    match &of[name] {
        Json::Null => "-".to_owned(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Rows of a table from a list.
pub(super) fn rows(list: &[Json], names: &[&str]) -> Vec<Vec<String>> {
    list.iter().map(|item| names.iter().map(|name| cell(item, name)).collect()).collect()
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let document = get(client, &["v1", "streams"]).await?;
    if output.is_json() {
        return output.json(&document);
    }
    let names = ["name", "events", "bytes", "last", "last_time", "groups", "lag"];
    let rows = rows(items(&document, "streams"), &names);
    output.table(&["TOPIC", "EVENTS", "BYTES", "LAST", "PUBLISHED", "GROUPS", "LAG"], &rows)?;
    let store = &document["store"];
    let dead = document["dead_letters"].as_u64().unwrap_or_default();
    output.note(format!("{dead} dead letters; {}", described(store)));
    Ok(())
}

/// How streams stand, or why that is not known. Neither: the node has none.
pub(super) async fn status(client: &Client) -> Result<(Option<Json>, Option<String>), Failure> {
    match client.document(&["v1", "streams"]).await {
        Ok(document) => Ok((Some(document), None)),
        Err(failure) if failure.exit() == Exit::NotFound => Ok((None, None)),
        // The store's server is away; the node is there, as it has just shown.
        Err(failure) => Ok((None, failure.to_string().lines().next().map(str::to_owned))),
    }
}

/// The same in a line.
pub(super) fn summary(document: &Json) -> String {
    let topics = items(document, "streams");
    let sum = |name: &str| topics.iter().filter_map(|topic| topic[name].as_u64()).sum::<u64>();
    let furthest = topics.iter().max_by_key(|topic| topic["lag"].as_u64());
    let behind = match furthest.filter(|topic| topic["lag"].as_u64() > Some(0)) {
        Some(topic) => format!("{} behind by {}", plain(&cell(topic, "name")), cell(topic, "lag")),
        None => "none behind".to_owned(),
    };
    format!(
        "{}: {} topics, {} events, {} dead letters; {} groups, {behind}, {} pending",
        described(&document["store"]),
        topics.len(),
        sum("events"),
        document["dead_letters"].as_u64().unwrap_or_default(),
        sum("groups"),
        sum("pending"),
    )
}

/// What a store is, as every answer about streams says.
pub(super) fn described(store: &Json) -> String {
    let driver = plain(&cell(store, "driver"));
    match plain(&cell(store, "durability")).as_str() {
        "server" => format!("{driver} store that nodes share, as durable as its server"),
        durability => format!("{driver} store of {}, {durability}", plain(&cell(store, "node"))),
    }
}

async fn publish(client: &Client, args: PublishArgs, output: &Output) -> Result<(), Failure> {
    let payload = if args.payload == "-" {
        let read = files::read_whole(args.payload.into(), PAYLOAD_BYTES_MAX as u64).await;
        read.map_err(|error| Failure::new(Exit::Failed, format!("cannot read stdin: {error}")))?
    } else {
        args.payload.into_bytes()
    };
    let mut draft = match String::from_utf8(payload) {
        Ok(text) => json!({ "payload": text }),
        Err(bytes) => json!({ "payload_base64": STANDARD.encode(bytes.as_bytes()) }),
    };
    draft["key"] = args.key.into();
    draft["content_type"] = args.content_type.into();
    draft["not_before"] = args.not_before.into();
    let headers: Map<String, Json> =
        args.headers.into_iter().map(|(name, value)| (name, Json::String(value))).collect();
    draft["headers"] = headers.into();
    let path = ["v1", "streams", args.topic.as_str(), "events"];
    let call = Call::new(Method::POST, &path).header("idempotency-key", args.idempotency_key.as_deref());
    let (published, _) = client.call(call.json(&draft)).await?;
    if output.is_json() {
        return output.json(&published);
    }
    if published["duplicate"] == true {
        output.note("it had been published with this idempotency key before");
    }
    output.line(cell(&published, "id"))
}

async fn view(client: &Client, args: &ViewArgs, output: &Output) -> Result<(), Failure> {
    let topic = args.topic.as_str();
    if let Some(id) = args.id {
        let event = get(client, &["v1", "streams", topic, "events", &id.to_string()]).await?;
        return if output.is_json() { output.json(&event) } else { super::cache::fields("", &event, output) };
    }
    let order = match args.order {
        NewestFirst::Newest => "desc",
        NewestFirst::Oldest => "asc",
    };
    let path = ["v1", "streams", topic, "events"];
    let call = Call::new(Method::GET, &path)
        .query("after", args.after)
        .query("from", args.from.as_deref())
        .query("until", args.until.as_deref())
        .query("limit", Some(args.limit))
        .query("order", Some(order));
    let (page, _) = client.call(call).await?;
    if output.is_json() {
        return output.json(&page);
    }
    let rows: Vec<Vec<String>> = items(&page, "events")
        .iter()
        .map(|event| vec![cell(event, "id"), cell(event, "time"), cell(event, "key"), excerpt(event)])
        .collect();
    output.table(&["ID", "PUBLISHED", "KEY", "PAYLOAD"], &rows)?;
    if let Some(next) = page["next"].as_str() {
        output.note(format!("there is more: --after {next}"));
    }
    Ok(())
}

/// As much of a payload as fits on a line.
pub(super) fn excerpt(event: &Json) -> String {
    const CHARS: usize = 60;
    let Some(text) = event["payload"].as_str() else {
        let base64 = event["payload_base64"].as_str().unwrap_or_default();
        return format!("({} bytes)", STANDARD.decode(base64).map_or(0, |bytes| bytes.len()));
    };
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

async fn trim(client: &Client, args: &TrimArgs, output: &Output) -> Result<(), Failure> {
    let limits = json!({
        "max_events": args.max_events,
        "max_age": args.max_age.map(units::show_duration),
        "max_bytes": args.max_bytes,
        "force": args.force,
        "dry_run": args.dry_run,
    });
    let topics = match &args.topic {
        Some(topic) => vec![topic.clone()],
        None => {
            let document = get(client, &["v1", "streams"]).await?;
            let names = items(&document, "streams").iter().filter(|topic| topic["events"] != 0);
            names.filter_map(|topic| Name::new(topic["name"].as_str()?).ok()).collect()
        }
    };
    let mut trimmed = Vec::new();
    for topic in topics {
        let of_topic = trim_one(client, &topic, &limits).await?;
        trimmed.push((topic, of_topic));
    }
    told_trimmed(&trimmed, args.all, output)
}

async fn trim_one(client: &Client, topic: &Name, limits: &Json) -> Result<Json, Failure> {
    let path = ["v1", "streams", topic.as_str(), "trim"];
    Ok(client.call(Call::new(Method::POST, &path).json(limits).waiting(EVERYTHING)).await?.0)
}

/// Says what was removed: of all topics as a list, however many there are.
fn told_trimmed(trimmed: &[(Name, Json)], all: bool, output: &Output) -> Result<(), Failure> {
    if output.is_json() {
        let topics: Vec<Json> = trimmed
            .iter()
            .map(|(topic, of_topic)| {
                let mut of_topic = of_topic.clone();
                of_topic["topic"] = topic.as_str().into();
                of_topic
            })
            .collect();
        return match &topics[..] {
            [one] if !all => output.json(one),
            _ => output.json(&json!({ "topics": topics })),
        };
    }
    for (topic, of_topic) in trimmed {
        let [removed, kept] = ["removed", "kept_for_groups"].map(|name| cell(of_topic, name));
        let would = if of_topic["dry_run"] == true { "would be " } else { "" };
        output.line(format!("{topic}: {removed} events {would}removed, {kept} kept for groups"))?;
    }
    Ok(())
}

/// Says what a look at everything has found; exit 1 if that is damage.
fn verified(report: &Json, output: &Output) -> Result<(), Failure> {
    let damage = items(report, "damage");
    if output.is_json() {
        output.json(report)?;
    } else {
        let [events, dead] = ["events", "dead_letters"].map(|name| cell(report, name));
        output.line(format!("{events} events and {dead} dead letters are sound"))?;
        if !damage.is_empty() {
            let rows = rows(damage, &["place", "topic", "first", "last", "bytes"]);
            output.table(&["DAMAGED", "TOPIC", "FIRST", "LAST", "BYTES"], &rows)?;
        }
    }
    if damage.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, format!("{} parts of the store cannot be read", damage.len())))
}
