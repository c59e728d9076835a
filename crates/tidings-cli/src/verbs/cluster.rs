//! `members`, `status`, `forget`, `drain`: the cluster as one node sees it.

use serde::Deserialize;
use serde_json::{Value as Json, json};
use tidings_proto::id::NodeId;

use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style, plain};
use crate::units;

/// `GET /v1/cluster`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "each is the field of its name")]
pub(crate) struct Cluster {
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) incarnation: Json,
    pub(crate) ready: bool,
    pub(crate) relays: bool,
    pub(crate) expelled_ms: Option<f64>,
    pub(crate) members: Vec<Member>,
}

/// A member as the answering node sees it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "each is the field of its name")]
pub(crate) struct Member {
    pub(crate) node: String,
    #[serde(rename = "self")]
    pub(crate) is_self: bool,
    pub(crate) incarnation: Json,
    pub(crate) state: String,
    pub(crate) address: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) via: Option<String>,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) synced: bool,
    pub(crate) lag_events: Option<u64>,
    pub(crate) confirmed_ms: Option<f64>,
    pub(crate) lanes: Option<u64>,
    pub(crate) clock_ahead_ms: Option<f64>,
    pub(crate) clock_off: bool,
}

impl Member {
    /// Whether the answering node has to keep in step with it.
    pub(crate) fn is_live_peer(&self) -> bool {
        !self.is_self && matches!(self.state.as_str(), "live" | "suspect")
    }
}

/// Lists the members.
pub(crate) async fn members(client: &Client, output: &Output) -> Result<(), Failure> {
    let document: Json = cluster(client).await?;
    if output.is_json() {
        return output.json(&document);
    }
    let cluster = read(document)?;
    let rows: Vec<Vec<String>> = cluster.members.iter().map(row).collect();
    output.table(
        &["NODE", "STATE", "ADDRESS", "INCARNATION", "VIA", "RTT", "SYNCED", "LAG", "CONFIRMED", "VERSION"],
        &rows,
    )
}

/// Says how the node and its caches are.
pub(crate) async fn status(client: &Client, output: &Output) -> Result<(), Failure> {
    let document = cluster(client).await?;
    let (ready, reasons) = client.readiness().await?;
    let caches: Json = client.document(&["v1", "caches"]).await?;
    let coherence = match client.document(&["v1", "coherence"]).await {
        // A node of an earlier release measures none.
        Err(failure) if failure.exit() == Exit::NotFound => Json::Null,
        measured => measured?,
    };
    let (streams, streams_problem) = super::stream::status(client).await?;
    if output.is_json() {
        return output
            .json(&json!({ "cluster": document, "ready": ready, "readiness": reasons, "caches": caches,
                "coherence": coherence, "streams": streams, "streams_problem": streams_problem }));
    }
    let cluster = read(document)?;
    let readiness = if ready {
        output.paint(Style::Good, "ready")
    } else {
        format!("{}: {}", output.paint(Style::Bad, "not ready"), plain(&reasons))
    };
    let count = |state: &str| cluster.members.iter().filter(|member| member.state == state).count();
    let behind = cluster.members.iter().filter(|member| member.is_live_peer() && !member.synced).count();
    let (node, name) = (plain(&cluster.node), plain(&cluster.cluster));
    output.line(format!("node     {node} of cluster {name}, {readiness}"))?;
    output.line(format!(
        "members  {} live, {} suspect, {} lost, {} left; {behind} not in step",
        count("live"),
        count("suspect"),
        count("lost"),
        count("left")
    ))?;
    if cluster.relays {
        let relayed =
            cluster.members.iter().filter(|member| member.is_live_peer() && member.via.is_some()).count();
        output.line(format!("relays   stand for {relayed} of the others"))?;
    }
    if let Some(expelled_ms) = cluster.expelled_ms {
        let text = format!("expelled: no member has heard {node} for {:.0} s", expelled_ms / 1e3);
        output.line(format!("place    {}", output.paint(Style::Bad, &text)))?;
    }
    let doubts = coherence["doubts"].as_array().map(Vec::as_slice).unwrap_or_default();
    for text in doubts.iter().filter_map(|doubt| doubt["text"].as_str()) {
        output.line(format!("doubt    {}", output.paint(Style::Caution, &plain(text))))?;
    }
    if coherence != Json::Null {
        output.line(format!("writes   {}", writes(&coherence)))?;
    }
    if let Some(audits) = super::audit::summary(&coherence, output) {
        output.line(format!("audits   {audits}"))?;
    }
    for member in cluster.members.iter().filter(|member| member.clock_off) {
        let ahead = member.clock_ahead_ms.unwrap_or_default() / 1e3;
        let text = format!("the one of {} is {ahead:.1} s ahead of {node}'s", plain(&member.node));
        output.line(format!("clocks   {}", output.paint(Style::Caution, &text)))?;
    }
    let own = cluster.members.iter().find(|member| member.is_self).and_then(|own| own.lanes);
    for member in cluster.members.iter().filter(|member| member.state != "left") {
        if let (Some(ours), Some(theirs)) = (own, member.lanes)
            && ours != theirs
        {
            let text =
                format!("{} has {theirs}, {node} has {ours}: set coherence.lanes alike", plain(&member.node));
            output.line(format!("lanes    {}", output.paint(Style::Caution, &text)))?;
        }
    }
    let names: Vec<String> = super::cache::names(&caches).iter().map(|name| plain(name)).collect();
    output
        .line(format!("caches   {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") }))?;
    match (streams, streams_problem) {
        (Some(streams), _) => output.line(format!("streams  {}", super::stream::summary(&streams))),
        (None, Some(problem)) => {
            output.line(format!("streams  {}", output.paint(Style::Bad, &plain(&problem))))
        }
        (None, None) => Ok(()),
    }
}

/// How soon all live nodes had what this one wrote in the last minute.
fn writes(coherence: &Json) -> String {
    let within = coherence["writes"]["within"].as_array().map(Vec::as_slice).unwrap_or_default();
    let share = |row: &Json| {
        let share = row["last_minute"].as_f64()?;
        Some(format!("{} within {} ms", units::show_share(share), row["ms"]))
    };
    let shares: Vec<String> = within.iter().filter_map(share).collect();
    match &coherence["writes"]["pending"] {
        pending if shares.is_empty() => format!("none in the last minute, {pending} pending"),
        pending => format!("coherent everywhere: {}; {pending} pending", shares.join(", ")),
    }
}

/// Declares a lost node ended.
pub(crate) async fn forget(client: &Client, node: &NodeId, output: &Output) -> Result<(), Failure> {
    let change = client.post(&["v1", "cluster", "forget"], &json!({ "node": node })).await?;
    super::cache::told(&change, output, || format!("{node} is forgotten"))
}

/// Tells the node to hand over.
pub(crate) async fn drain(client: &Client, output: &Output) -> Result<(), Failure> {
    let change = client.post(&["v1", "drain"], &json!({})).await?;
    super::cache::told(&change, output, || format!("{} is draining", client.address()))
}

/// The cluster, as a document.
///
/// # Errors
/// As a request may fail.
pub(crate) async fn cluster(client: &Client) -> Result<Json, Failure> {
    client.document(&["v1", "cluster"]).await
}

/// The cluster, typed.
///
/// # Errors
/// The document is not what the API promises.
pub(crate) fn read(document: Json) -> Result<Cluster, Failure> {
    serde_json::from_value(document).map_err(|error| {
        Failure::new(Exit::Failed, format!("the node gave an answer that makes no sense: {error}"))
    })
}

fn row(member: &Member) -> Vec<String> {
    let milliseconds = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}ms"));
    let name = if member.is_self { format!("{} (self)", member.node) } else { member.node.clone() };
    let state = match member.state.as_str() {
        "" => "-".to_owned(),
        state => state.to_owned(),
    };
    let synced = if member.is_self {
        "-"
    } else if member.synced {
        "yes"
    } else {
        "no"
    };
    vec![
        name,
        state,
        member.address.clone().unwrap_or_else(|| "-".to_owned()),
        member.incarnation.to_string().trim_matches('"').to_owned(),
        member.via.clone().unwrap_or_else(|| "-".to_owned()),
        milliseconds(member.rtt_ms),
        synced.to_owned(),
        member.lag_events.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
        milliseconds(member.confirmed_ms),
        member.version.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
