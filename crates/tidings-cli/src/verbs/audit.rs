//! `audit`: whether the node holds what others hold.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style, plain};

/// Pause between two looks at the progress.
const POLL: Duration = Duration::from_millis(200);

/// Has the node compare everything, waits for that, and says what was found; exit 1 if entries are inconsistent, 7 if
/// not all could be compared.
pub(crate) async fn run(client: &Client, output: &Output) -> Result<(), Failure> {
    let begun = client.post(&["v1", "coherence", "audit"], &json!({})).await?;
    let former = begun.receipt.map(|answer| answer["former_began_ms"].clone()).unwrap_or_default();
    let report = finished(client, &former, output).await?;
    if output.is_json() {
        output.json(&report)?;
    } else {
        tell(&report, output)?;
    }
    verdict(&report)
}

/// The report, once there is one.
async fn finished(client: &Client, former: &Json, output: &Output) -> Result<Json, Failure> {
    let bar = if output.shows_progress() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {per_sec} {msg}") {
        bar.set_style(style);
    }
    let mut seen = false;
    loop {
        let coherence: Json = client.document(&["v1", "coherence"]).await?;
        let audit = &coherence["audit"];
        let requested = &audit["requested"];
        if *requested != Json::Null && requested["began_ms"] != *former {
            bar.finish_and_clear();
            return Ok(requested.clone());
        }
        seen |= audit["progress"]["requested"] == true;
        if is_lost(audit, seen || *former != Json::Null) {
            bar.finish_and_clear();
            let message = "the node was started anew, and knows of no audit";
            return Err(Failure::new(Exit::Failed, message).hint("begin it again"));
        }
        let progress = &audit["progress"];
        bar.set_length(count(progress, "of"));
        bar.set_position(count(progress, "entries"));
        bar.set_message(match count(progress, "suspects") {
            0 => String::new(),
            suspects => format!("{suspects} differ and are looked at again"),
        });
        tokio::time::sleep(POLL).await;
    }
}

/// Whether a node knows nothing of the audit that it was told to begin: `known` says whether it has shown that one, or
/// another before.
fn is_lost(audit: &Json, known: bool) -> bool {
    known && audit["requested"] == Json::Null && audit["progress"] == Json::Null
}

fn count(of: &Json, name: &str) -> u64 {
    of[name].as_u64().unwrap_or(0)
}

fn tell(report: &Json, output: &Output) -> Result<(), Failure> {
    let counts = &report["counts"];
    let seconds = report["duration_ms"].as_f64().unwrap_or_default() / 1e3;
    let [entries, held] = ["entries", "held"].map(|name| count(counts, name));
    // Those of caches that nobody else hosts are not looked at.
    let all = count(report, "of");
    let of = if all > entries { format!(" of {all}") } else { String::new() };
    output.line(format!(
        "{entries}{of} entries looked at in {seconds:.1} s, {held} times a peer held one too"
    ))?;
    for peer in report["peers"].as_array().into_iter().flatten() {
        let node = plain(peer["node"].as_str().unwrap_or_default());
        let gap =
            peer["gap"].as_str().map_or_else(String::new, |gap| format!("; not all of them: {}", plain(gap)));
        output.line(format!("{node}: asked about {}{gap}", count(peer, "compared")))?;
    }
    let found = report["inconsistencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !found.is_empty() {
        let rows: Vec<Vec<String>> = found.iter().map(row).collect();
        output.table(&["CACHE", "KEY", "PEER", "AGE HERE", "AGE THERE"], &rows)?;
    }
    let [inconsistent, lag] = ["inconsistent", "lag"].map(|name| count(counts, name));
    let style = if inconsistent == 0 { Style::Good } else { Style::Bad };
    let inconsistent = output.paint(style, &format!("{inconsistent} inconsistent"));
    output.line(format!("{inconsistent}, {lag} differed while a change was under way"))
}

fn row(found: &Json) -> Vec<String> {
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    let age = |name: &str| format!("{:.1}s", found[name].as_f64().unwrap_or_default() / 1e3);
    vec![text("cache"), text("key"), text("peer"), age("age_ms"), age("peer_age_ms")]
}

fn verdict(report: &Json) -> Result<(), Failure> {
    let counts = &report["counts"];
    let inconsistent = count(counts, "inconsistent");
    if inconsistent > 0 {
        let message =
            format!("{inconsistent} entries have another value on another node, and no change explains it");
        let hint = "was the system of record changed without telling the cache, or are the values not meant to be \
            equal (audit = false)?";
        return Err(Failure::new(Exit::Failed, message).hint(hint));
    }
    if report["complete"] == false {
        if count(counts, "compared") == 0 {
            let message = "nothing was compared: no live member answered for any of the audited caches";
            let hint = "are the others there, and do they have the same caches, with audit = true?";
            return Err(Failure::new(Exit::Partial, message).hint(hint));
        }
        let [unsettled, unexamined] = ["unsettled", "unexamined"].map(|name| count(counts, name));
        let message =
            format!("not everything was compared; {} differences are not judged", unsettled + unexamined);
        return Err(Failure::new(Exit::Partial, message));
    }
    Ok(())
}

/// What audits have found so far, on one line; nothing if none has compared anything.
pub(crate) fn summary(coherence: &Json, output: &Output) -> Option<String> {
    let counts = &coherence["audit"]["counts"];
    let [compared, inconsistent, lag] = ["compared", "inconsistent", "lag"].map(|name| count(counts, name));
    if compared == 0 {
        return None;
    }
    let found = format!("{inconsistent} inconsistent");
    let found = if inconsistent == 0 { found } else { output.paint(Style::Bad, &found) };
    Some(format!("{found}, {lag} lagging, of {compared} entries compared with peers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(inconsistent: u64, complete: bool) -> Json {
        json!({ "complete": complete, "counts": { "inconsistent": inconsistent, "unsettled": 1 } })
    }

    #[test]
    fn an_audit_that_was_seen_and_is_not_known_any_more_is_lost() {
        let audit = |requested, progress| json!({ "requested": requested, "progress": progress });
        let (none, some) = (Json::Null, json!({ "began_ms": 1 }));
        assert!(is_lost(&audit(none.clone(), none.clone()), true));
        assert!(!is_lost(&audit(none.clone(), none.clone()), false), "it has not begun yet");
        assert!(!is_lost(&audit(none.clone(), some.clone()), true), "it is under way");
        assert!(!is_lost(&audit(some, none), true), "another one is remembered until it is over");
    }

    #[test]
    fn an_inconsistency_weighs_more_than_a_gap() {
        let exit = |inconsistent, complete| verdict(&report(inconsistent, complete)).map_err(|it| it.exit());
        assert_eq!(exit(0, true), Ok(()));
        assert_eq!(exit(0, false), Err(Exit::Partial));
        assert_eq!(exit(1, true), Err(Exit::Failed));
        assert_eq!(exit(1, false), Err(Exit::Failed));
    }
}
