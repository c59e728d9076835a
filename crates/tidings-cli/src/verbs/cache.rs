//! `cache`: looking into and changing the caches of a node.

use std::io::IsTerminal;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value as Json, json};
use tidings_http::limits::VALUE_BYTES_MAX;

use crate::args::{CacheVerb, InvalidateArgs, PutArgs};
use crate::client::{Change, Client, Lookup, Put};
use crate::exit::{Exit, Failure};
use crate::files;
use crate::output::{Output, plain};

/// Runs a verb about caches.
pub(crate) async fn run(verb: CacheVerb, client: &Client, output: &Output) -> Result<(), Failure> {
    match verb {
        CacheVerb::Ls => list(client, output).await,
        CacheVerb::Info(args) => {
            let document: Json = client.document(&["v1", "caches", &args.cache]).await?;
            if output.is_json() { output.json(&document) } else { fields("", &document, output) }
        }
        CacheVerb::Get { cache, key } => get(client, &cache.cache, &key, output).await,
        CacheVerb::Where { cache, key, wait } => holders(client, (&cache.cache, &key), wait, output).await,
        CacheVerb::Put(args) => put(client, args, output).await,
        CacheVerb::Del { cache, key, acked } => {
            let change = client.delete(&cache.cache, &key, acked).await?;
            told(&change, output, || format!("{} is deleted from {}", named(&key), cache.cache))
        }
        CacheVerb::Invalidate(args) => invalidate(client, &args, output).await,
    }
}

/// Says what came of a change; exit 7 if some peers have not applied it.
///
/// # Errors
/// Exit 7, or printing failed.
pub(crate) fn told(change: &Change, output: &Output, done: impl Fn() -> String) -> Result<(), Failure> {
    match &change.receipt {
        Some(receipt) if output.is_json() => output.json(receipt)?,
        None if output.is_json() => output.json(&json!({ "ok": true }))?,
        Some(receipt) if receipt.get("applied").is_some() => fields("", receipt, output)?,
        _ => output.note(done()),
    }
    if change.partial {
        let message = "done here, but some peers have not said in time that they applied it";
        return Err(Failure::new(Exit::Partial, message).hint("they will; --acked sets how long to wait"));
    }
    Ok(())
}

/// Names of the caches in `GET /v1/caches`, whether it is a list or holds one.
pub(crate) fn names(document: &Json) -> Vec<String> {
    let name = |cache: &Json| cache.get("name").unwrap_or(cache).as_str().map(ToOwned::to_owned);
    caches(document).iter().filter_map(name).collect()
}

fn caches(document: &Json) -> &[Json] {
    let list = document.as_array().or_else(|| document.get("caches").and_then(Json::as_array));
    list.map(Vec::as_slice).unwrap_or_default()
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let document: Json = client.document(&["v1", "caches"]).await?;
    if output.is_json() {
        return output.json(&document);
    }
    let cell = |cache: &Json, name: &str| match cache.get(name).or_else(|| cache.get("statistics")?.get(name))
    {
        Some(Json::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "-".to_owned(),
    };
    const FIELDS: [&str; 4] = ["name", "mode", "entries", "partitions"];
    let rows: Vec<Vec<String>> = caches(&document)
        .iter()
        .map(|cache| FIELDS.iter().map(|field| cell(cache, field)).collect())
        .collect();
    output.table(&["NAME", "MODE", "ENTRIES", "PARTITIONS"], &rows)
}

async fn get(client: &Client, cache: &str, key: &str, output: &Output) -> Result<(), Failure> {
    match client.get(cache, key).await? {
        Lookup::Hit { value, stale, age } => {
            if stale {
                output.warn("the node says that this value may be older than promised");
            }
            if !output.is_json() {
                output.bytes(&value)?;
                // The value alone goes into a file or a pipe; a terminal's prompt wants a line of its own.
                let prompt = std::io::stdout().is_terminal() && !value.ends_with(b"\n");
                return if prompt { output.line("") } else { Ok(()) };
            }
            let text = std::str::from_utf8(&value).ok();
            let bytes = value.len();
            output.json(&json!({ "cache": cache, "key": key, "value": text, "bytes": bytes, "age": age, "stale": stale }))
        }
        Lookup::Miss { .. } => {
            Err(Failure::new(Exit::NotFound, format!("{cache} does not hold {key:?} on this node")))
        }
    }
}

async fn holders(
    client: &Client,
    (cache, key): (&str, &str),
    wait: Option<Duration>,
    output: &Output,
) -> Result<(), Failure> {
    let (document, partial) = client.holders(cache, key, wait).await?;
    let nodes = document["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    if output.is_json() {
        output.json(&document)?;
    } else {
        let rows: Vec<Vec<String>> = nodes.iter().map(holder).collect();
        output.table(&["NODE", "HOLDS IT", "AGE", "VALUE'S HASH", "APPLIED ALL UP TO"], &rows)?;
    }
    if partial {
        let message = "some nodes do not say whether they hold it";
        return Err(Failure::new(Exit::Partial, message).hint("--wait sets how long they are waited for"));
    }
    Ok(())
}

/// What one node says of a key, as a row.
fn holder(node: &Json) -> Vec<String> {
    let text = |name: &str| node[name].as_str();
    let seconds = |name: &str| node[name].as_f64().map(|ms| format!("{:.3}s", ms / 1e3));
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    let holds = match (node["holds"].as_bool(), text("reason")) {
        (Some(true), _) => "yes".to_owned(),
        (Some(false), None) => "no".to_owned(),
        (Some(false), Some(_)) => format!("no: {}", text("detail").unwrap_or_default()),
        (None, _) => format!("unknown: {}", text("detail").unwrap_or_default()),
    };
    let name = text("node").unwrap_or_default().to_owned();
    let digest = text("digest").map(ToOwned::to_owned);
    let applied = seconds("applied_ms").map(|time| format!("{time} ago"));
    vec![name, holds, or_none(seconds("age_ms")), or_none(digest), or_none(applied)]
}

async fn put(client: &Client, args: PutArgs, output: &Output) -> Result<(), Failure> {
    let value = if args.value == "-" {
        let value = files::read_whole(args.value.into(), VALUE_BYTES_MAX as u64).await;
        Bytes::from(value.map_err(|error| Failure::new(Exit::Failed, format!("cannot read stdin: {error}")))?)
    } else {
        Bytes::from(args.value)
    };
    let put = Put { ttl: args.ttl, tags: args.tags, metadata: args.meta, acked: args.acked };
    let change = client.put(&args.cache.cache, &args.key, value, &put).await?;
    told(&change, output, || format!("{} is in {}", named(&args.key), args.cache.cache))
}

async fn invalidate(client: &Client, args: &InvalidateArgs, output: &Output) -> Result<(), Failure> {
    let what = &args.what;
    let body = if what.all {
        json!({ "all": true })
    } else if let Some(prefix) = &what.prefix {
        json!({ "prefix": prefix })
    } else if what.tags.is_empty() {
        json!({ "keys": what.keys })
    } else {
        json!({ "tags": what.tags })
    };
    let change = client.invalidate(&args.cache.cache, &body, args.acked).await?;
    told(&change, output, || format!("{} is invalidated as named", args.cache.cache))
}

/// A key in a sentence.
fn named(key: &str) -> &str {
    if key.is_empty() { "the empty key" } else { key }
}

/// Prints a document field by field, nested ones by their path.
pub(super) fn fields(path: &str, document: &Json, output: &Output) -> Result<(), Failure> {
    match document {
        Json::Object(members) => members.iter().try_for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            fields(&path, value, output)
        }),
        Json::String(text) => output.line(format!("{:<32} {}", plain(path), plain(text))),
        value => output.line(format!("{:<32} {value}", plain(path))),
    }
}
