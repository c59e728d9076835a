//! A consumer of a group, which says on its standard output what it handles: `handled`, when, and the number that the
//! payload begins with; `late`, which it left to others; `unheard`, what it acknowledged too late.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::api::Api;

/// Events that a consumer takes at a time.
pub const BATCH: usize = 20;

/// How long a delivery is its consumer's.
pub const IDLE: Duration = Duration::from_secs(2);

/// How much of that a consumer uses: it handles nothing that might be somebody else's by then, however long it stood
/// still.
const USED: Duration = Duration::from_millis(1_500);

/// The group that it is of.
pub const GROUP: [&str; 5] = ["v1", "streams", "requests", "groups", "g"];

/// What is asked of the group.
#[must_use]
pub fn of_group(what: &'static str) -> [&'static str; 6] {
    [GROUP[0], GROUP[1], GROUP[2], GROUP[3], GROUP[4], what]
}

/// On a clock that all processes have.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Takes some events, handles each, and acknowledges them together.
pub async fn consume(api: &Api, name: &str) -> Result<()> {
    let asked = now();
    let ask = json!({ "max": BATCH, "wait": "1s", "consumer": name });
    let answer = api.send(api.request(Method::POST, &of_group("receive")).json(&ask)).await?;
    let taken: Value = answer.must_be(StatusCode::OK)?.json()?;
    let mut done = Vec::new();
    for event in taken["events"].as_array().context("no events")? {
        let at = now();
        if at - asked > USED {
            println!("late");
            continue;
        }
        let number = event["payload"].as_str().and_then(|payload| payload.split(' ').next());
        println!("handled {} {}", at.as_nanos(), number.context("no number")?);
        done.push(json!({ "id": event["id"], "delivery": event["delivery"] }));
    }
    if done.is_empty() {
        return Ok(());
    }
    let answer =
        api.send(api.request(Method::POST, &of_group("ack")).json(&json!({ "deliveries": done }))).await?;
    ensure!(answer.status.is_success(), "not acknowledged: {}", answer.text());
    let results: Value = answer.json()?;
    for one in results["results"].as_array().context("no results")? {
        if one["outcome"] != "acked" {
            println!("unheard {}", one["id"]);
        }
    }
    Ok(())
}
