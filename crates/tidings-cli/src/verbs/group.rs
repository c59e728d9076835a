//! `group`: the groups of a topic.

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::confirm::confirm;
use super::stream::{cell, excerpt, get, items, rows};
use crate::args::{GroupArgs, GroupVerb};
use crate::client::{Call, Client};
use crate::exit::Failure;
use crate::output::Output;
use crate::units;

/// Runs a verb about groups.
pub(crate) async fn run(verb: GroupVerb, client: &Client, output: &Output) -> Result<(), Failure> {
    match verb {
        GroupVerb::Ls { topic } => {
            let document = get(client, &["v1", "streams", topic.as_str(), "groups"]).await?;
            let fields = ["name", "paused", "lag", "pending", "redeliveries", "next"];
            let headings = ["GROUP", "PAUSED", "LAG", "PENDING", "REDELIVERIES", "NEXT"];
            listed(&document, "groups", &fields, &headings, output)
        }
        GroupVerb::Add { group, start } => {
            let path = path(&group);
            let call = Call::new(Method::PUT, &path).json(&json!({ "start": start }));
            let (made, _) = client.call(call).await?;
            told(&made, output, || format!("{} is at {}", group.group, cell(&made, "next")))
        }
        GroupVerb::Rm { group, yes } => {
            let what =
                format!("group {} of {} is removed with all it has not settled", group.group, group.topic);
            confirm(&what, yes).await?;
            client.call(Call::new(Method::DELETE, &path(&group))).await?;
            told(&json!({ "ok": true }), output, || format!("{} is removed", group.group))
        }
        GroupVerb::Pending { group, after, limit } => {
            let path = [&path(&group)[..], &["pending"]].concat();
            let call = Call::new(Method::GET, &path).query("after", after).query("limit", Some(limit));
            let (document, _) = client.call(call).await?;
            let fields = ["id", "attempts", "consumer", "idle_ms", "state", "until", "error"];
            let headings = ["ID", "ATTEMPTS", "CONSUMER", "IDLE (MS)", "STATE", "UNTIL", "ERROR"];
            listed(&document, "pending", &fields, &headings, output)?;
            if let (false, Some(next)) = (output.is_json(), document["next"].as_str()) {
                output.note(format!("there may be more: --after {next}"));
            }
            Ok(())
        }
        GroupVerb::Claim { group, consumer, min_idle, max } => {
            let path = [&path(&group)[..], &["claim"]].concat();
            let min_idle = units::show_duration(min_idle);
            let what = json!({ "consumer": consumer, "min_idle": min_idle, "max": max });
            let (claimed, _) = client.call(Call::new(Method::POST, &path).json(&what)).await?;
            if output.is_json() {
                return output.json(&claimed);
            }
            let row = |event: &Json| {
                let [id, attempts, key] = ["id", "attempts", "key"].map(|name| cell(event, name));
                vec![id, attempts, key, excerpt(event)]
            };
            let rows: Vec<Vec<String>> = items(&claimed, "events").iter().map(row).collect();
            output.table(&["ID", "ATTEMPTS", "KEY", "PAYLOAD"], &rows)
        }
        GroupVerb::Seek { group, to, dry_run, yes } => {
            seek(client, &group, &to, (dry_run, yes), output).await
        }
        GroupVerb::Pause(group) => switch(client, &group, "pause", output).await,
        GroupVerb::Resume(group) => switch(client, &group, "resume", output).await,
    }
}

fn path(group: &GroupArgs) -> [&str; 5] {
    ["v1", "streams", group.topic.as_str(), "groups", group.group.as_str()]
}

async fn seek(
    client: &Client,
    group: &GroupArgs,
    to: &str,
    (dry_run, yes): (bool, bool),
    output: &Output,
) -> Result<(), Failure> {
    if !dry_run {
        let what = format!("group {} of {} goes on from {to}", group.group, group.topic);
        confirm(&what, yes).await?;
    }
    let path = [&path(group)[..], &["seek"]].concat();
    let call = Call::new(Method::POST, &path).json(&json!({ "to": to, "dry_run": dry_run }));
    let (sought, _) = client.call(call).await?;
    if output.is_json() {
        return output.json(&sought);
    }
    let [from, to, again, skipped] = ["from", "to", "again", "skipped"].map(|name| cell(&sought, name));
    let would = if dry_run { "would go" } else { "goes" };
    output.line(format!(
        "{} {would} on from {to} instead of {from}: {again} events again, {skipped} skipped",
        group.group
    ))
}

async fn switch(client: &Client, group: &GroupArgs, verb: &str, output: &Output) -> Result<(), Failure> {
    let path = [&path(group)[..], &[verb]].concat();
    let (now, _) = client.call(Call::new(Method::POST, &path)).await?;
    let is = if now["paused"] == true { "is paused" } else { "takes events" };
    told(&now, output, || format!("{} {is}", group.group))
}

fn told(document: &Json, output: &Output, done: impl Fn() -> String) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(document);
    }
    output.note(done());
    Ok(())
}

fn listed(
    document: &Json,
    list: &str,
    fields: &[&str],
    headings: &[&str],
    output: &Output,
) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(document);
    }
    output.table(headings, &rows(items(document, list), fields))
}
