//! `watch`: the change events of a cache as they happen.

use clap::ValueEnum;
use serde_json::{Value as Json, json};

use crate::args::WatchArgs;
use crate::client::{Client, Event};
use crate::exit::{Exit, Failure};
use crate::output::{Output, plain};

/// Follows the change events of a cache.
pub(crate) async fn run(args: &WatchArgs, client: &Client, output: &Output) -> Result<(), Failure> {
    let mut events = client.events(&args.cache.cache, &query(args)).await?;
    output.note(format!("watching {} on {}; Ctrl-C ends", args.cache.cache, client.address()));
    let mut shown = 0;
    while args.limit.is_none_or(|limit| shown < limit) {
        let Some(event) = events.next().await? else {
            return Err(Failure::new(Exit::Unreachable, "the node ended the stream of events"));
        };
        if event.name == "lagged" {
            lagged(&event, output)?;
            continue;
        }
        shown += 1;
        let data: Json = serde_json::from_str(&event.data).unwrap_or_else(|_| event.data.clone().into());
        if output.is_json() { output.json(&data)? } else { output.line(line(&event, &data))? }
    }
    Ok(())
}

fn query(args: &WatchArgs) -> Vec<(&'static str, String)> {
    fn words<T: ValueEnum>(values: &[T]) -> Option<String> {
        let words: Vec<String> = values
            .iter()
            .filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
            .collect();
        (!words.is_empty()).then(|| words.join(","))
    }
    let mut query = Vec::new();
    query.extend(words(&args.kinds).map(|kinds| ("kinds", kinds)));
    query.extend(args.partition.map(|partition| ("partition", partition.to_string())));
    query.extend(args.prefix.clone().map(|prefix| ("prefix", prefix)));
    query.extend(words(&args.scope).map(|scope| ("scope", scope)));
    query
}

/// What was missed is data to a program, and a warning to a person.
fn lagged(event: &Event, output: &Output) -> Result<(), Failure> {
    let data: Json = serde_json::from_str(&event.data).unwrap_or_default();
    let missed = data.get("missed").cloned().unwrap_or_default();
    if output.is_json() {
        return output.json(&json!({ "kind": "lagged", "missed": missed }));
    }
    output.warn(format!("too slow: {missed} events were missed"));
    Ok(())
}

fn line(event: &Event, data: &Json) -> String {
    let text = |name: &str| match data.get(name) {
        None | Some(Json::Null) => "-".to_owned(),
        Some(Json::String(text)) => plain(text),
        Some(other) => other.to_string(),
    };
    let target = match data.get("target") {
        Some(Json::String(all)) => all.clone(),
        Some(Json::Object(target)) => {
            let one = |(name, value): (&String, &Json)| match (name.as_str(), value) {
                ("key", Json::String(key)) => key.clone(),
                (name, Json::String(value)) => format!("{name} {value}"),
                (name, value) => format!("{name} {value}"),
            };
            target.iter().map(one).collect::<Vec<_>>().join(" ")
        }
        _ => "-".to_owned(),
    };
    let origin = plain(data.pointer("/origin/node").and_then(Json::as_str).unwrap_or("-"));
    let (name, target) = (plain(&event.name), plain(&target));
    format!("{}  {name:<11} {target}  from {origin}  {}", text("time"), text("operation"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_on_one_line() {
        let data = json!({ "kind": "deleted", "operation": "remove", "cache": "users", "target": { "key": "42" },
            "origin": { "node": "n2", "incarnation": 7 }, "time": "12:00:00" });
        let event = Event { name: "deleted".to_owned(), ..Event::default() };
        assert_eq!(line(&event, &data), "12:00:00  deleted     42  from n2  remove");
        let data = json!({ "target": { "key": "\u{1b}[2J\nFAKE" } });
        assert_eq!(line(&event, &data), "-  deleted     \\u{1b}[2J\\nFAKE  from -  -");
    }
}
