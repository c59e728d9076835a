//! `dlq`: dead letters.

use std::num::NonZeroU32;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::confirm::confirm;
use super::stream::{get, items, rows};
use crate::args::{DeadVerb, Filter, LettersArgs};
use crate::client::{Call, Client};
use crate::exit::{Exit, Failure};
use crate::output::Output;

/// How long a node goes on with one request about many dead letters, and some more.
const MANY: Duration = Duration::from_secs(20);

/// Dead letters of a page that are only counted.
const COUNTED: usize = 1_000;

/// Runs a verb about dead letters.
pub(crate) async fn run(verb: DeadVerb, client: &Client, output: &Output) -> Result<(), Failure> {
    match verb {
        DeadVerb::Ls { filter, after, limit } => {
            let call = filtered(Call::new(Method::GET, &LETTERS), &filter);
            let (page, _) = client.call(call.query("after", after).query("limit", Some(limit))).await?;
            if output.is_json() {
                return output.json(&page);
            }
            let fields = ["id", "topic", "group", "original_id", "attempts", "last_failed", "error"];
            let headings = ["ID", "TOPIC", "GROUP", "EVENT", "ATTEMPTS", "FAILED", "ERROR"];
            output.table(&headings, &rows(items(&page, "events"), &fields))?;
            if let Some(next) = page["next"].as_str() {
                output.note(format!("there is more: --after {next}"));
            }
            Ok(())
        }
        DeadVerb::View { id } => {
            let letter = get(client, &["v1", "dead-letters", &id.to_string()]).await?;
            if output.is_json() { output.json(&letter) } else { super::cache::fields("", &letter, output) }
        }
        DeadVerb::Retry { letters, rate } => retry(client, &letters, rate, output).await,
        DeadVerb::Purge { letters, yes } => purge(client, &letters, yes, output).await,
    }
}

const LETTERS: [&str; 2] = ["v1", "dead-letters"];

fn filtered<'a>(call: Call<'a>, filter: &Filter) -> Call<'a> {
    let Filter { topic, group, stream } = filter;
    call.query("topic", topic.as_ref()).query("group", group.as_ref()).query("stream", stream.as_ref())
}

/// Which ones has to be said.
fn named(letters: &LettersArgs) -> Result<(), Failure> {
    let Filter { topic, group, stream } = &letters.filter;
    let is_named = !letters.ids.is_empty() || letters.all;
    if is_named || topic.is_some() || group.is_some() || stream.is_some() {
        return Ok(());
    }
    let message = "which dead letters?";
    Err(Failure::new(Exit::Usage, message).hint("name their ids, --topic, --group or --stream, or --all"))
}

async fn count(client: &Client, letters: &LettersArgs) -> Result<usize, Failure> {
    if !letters.ids.is_empty() {
        return Ok(letters.ids.len());
    }
    let (mut after, mut counted) = (None, 0);
    loop {
        let call = filtered(Call::new(Method::GET, &LETTERS), &letters.filter);
        let call = call.query("after", after.as_deref()).query("limit", Some(COUNTED));
        let (page, _) = client.call(call).await?;
        counted += items(&page, "events").len();
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return Ok(counted),
        }
    }
}

async fn would_be(
    client: &Client,
    letters: &LettersArgs,
    done: &str,
    output: &Output,
) -> Result<(), Failure> {
    let count = count(client, letters).await?;
    if output.is_json() {
        return output.json(&json!({ "letters": count, "dry_run": true }));
    }
    output.line(format!("{count} dead letters would be {done}"))
}

fn spinner(output: &Output) -> ProgressBar {
    if !output.shows_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} dead letters") {
        bar.set_style(style);
    }
    bar
}

async fn retry(
    client: &Client,
    letters: &LettersArgs,
    rate: NonZeroU32,
    output: &Output,
) -> Result<(), Failure> {
    named(letters)?;
    if letters.dry_run {
        return would_be(client, letters, "retried", output).await;
    }
    let bar = spinner(output);
    let (mut retried, mut stayed) = (0, 0);
    if letters.ids.is_empty() {
        let Filter { topic, group, stream } = &letters.filter;
        let mut what = json!({ "topic": topic, "group": group, "stream": stream, "all": letters.all,
            "per_second": rate });
        loop {
            let call = Call::new(Method::POST, &["v1", "dead-letters", "retry"]).json(&what).waiting(MANY);
            let (done, _) = client.call(call).await?;
            let count = |name: &str| done[name].as_u64().unwrap_or_default();
            (retried, stayed) = (retried + count("retried"), stayed + count("stayed"));
            bar.set_position(retried);
            if done["next"].is_null() {
                break;
            }
            what["after"] = done["next"].clone();
        }
    }
    for id in &letters.ids {
        client.call(Call::new(Method::POST, &["v1", "dead-letters", &id.to_string(), "retry"])).await?;
        retried += 1;
        bar.set_position(retried);
    }
    bar.finish_and_clear();
    told(&json!({ "retried": retried, "stayed": stayed }), output, || {
        format!("{retried} dead letters are published again")
    })?;
    if stayed > 0 {
        let message = format!("{stayed} dead letters stay: their groups are gone");
        return Err(Failure::new(Exit::Partial, message).hint("`tidings group add` makes a group again"));
    }
    Ok(())
}

async fn purge(client: &Client, letters: &LettersArgs, yes: bool, output: &Output) -> Result<(), Failure> {
    named(letters)?;
    if letters.dry_run {
        return would_be(client, letters, "removed", output).await;
    }
    let count = if yes { 0 } else { count(client, letters).await? };
    confirm(&format!("{count} dead letters are removed"), yes).await?;
    let bar = spinner(output);
    let mut purged = 0;
    if letters.ids.is_empty() {
        let mut after: Option<String> = None;
        loop {
            let call = filtered(Call::new(Method::DELETE, &LETTERS), &letters.filter).waiting(MANY);
            let call = call.query("all", letters.all.then_some(true)).query("after", after.as_deref());
            let (done, _) = client.call(call).await?;
            purged += done["purged"].as_u64().unwrap_or_default();
            bar.set_position(purged);
            match done["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
    }
    for id in &letters.ids {
        client.call(Call::new(Method::DELETE, &["v1", "dead-letters", &id.to_string()])).await?;
        purged += 1;
        bar.set_position(purged);
    }
    bar.finish_and_clear();
    told(&json!({ "purged": purged }), output, || format!("{purged} dead letters are removed"))
}

fn told(document: &Json, output: &Output, done: impl Fn() -> String) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(document);
    }
    output.note(done());
    Ok(())
}
