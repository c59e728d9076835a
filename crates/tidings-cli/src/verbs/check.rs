//! `check`: probes for monitoring systems, with the exit codes these expect.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use time::OffsetDateTime;

use super::cluster::{self, Cluster};
use super::{certs, client};
use crate::args::{CheckVerb, Global};
use crate::client::Client;
use crate::clock;
use crate::exit::Failure;
use crate::output::{Output, Style};
use crate::units;

/// What a probe found. The numbers are those that monitoring plug-ins exit with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub(crate) enum Health {
    /// As it should be.
    Ok = 0,
    /// Needs a look.
    Warning = 1,
    /// Broken.
    Critical = 2,
    /// Cannot be told.
    Unknown = 3,
}

/// What a probe says.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Verdict {
    health: Health,
    summary: String,
}

/// Runs a probe.
pub(crate) async fn run(verb: &CheckVerb, global: &Global, output: &Output) -> Result<ExitCode, Failure> {
    let verdict = match verb {
        CheckVerb::Node => node(global, output).await,
        CheckVerb::Ready => ready(global, output).await,
        CheckVerb::Cluster => whole_cluster(global, output).await,
        CheckVerb::Certs { paths, warning, critical } => {
            certificates(paths, *warning, *critical, clock::wall_clock())
        }
    };
    if output.is_json() {
        output.json(&verdict)?;
    } else {
        let (word, style) = match verdict.health {
            Health::Ok => ("OK", Style::Good),
            Health::Warning => ("WARNING", Style::Caution),
            Health::Critical => ("CRITICAL", Style::Bad),
            Health::Unknown => ("UNKNOWN", Style::Caution),
        };
        output.line(format!("{} - {}", output.paint(style, word), verdict.summary))?;
    }
    Ok(ExitCode::from(verdict.health as u8))
}

impl Verdict {
    fn new(health: Health, summary: impl Into<String>) -> Self {
        Self { health, summary: summary.into() }
    }
}

async fn node(global: &Global, output: &Output) -> Verdict {
    let client = match client(global, output) {
        Ok(client) => client,
        Err(failure) => return Verdict::new(Health::Unknown, one_line(&failure)),
    };
    if let Err(verdict) = readiness(&client).await {
        return verdict;
    }
    match cluster::cluster(&client).await.and_then(cluster::read) {
        Ok(cluster) => judge_node(&cluster),
        Err(failure) => Verdict::new(Health::Unknown, one_line(&failure)),
    }
}

/// A node that is ready and lags behind a member that is not well should get requests all the same: were it taken out of
/// service for that, one member that stalls would take out all.
async fn ready(global: &Global, output: &Output) -> Verdict {
    match client(global, output) {
        Ok(client) => match readiness(&client).await {
            Ok(()) => Verdict::new(Health::Ok, "ready"),
            Err(verdict) => verdict,
        },
        Err(failure) => Verdict::new(Health::Unknown, one_line(&failure)),
    }
}

async fn readiness(client: &Client) -> Result<(), Verdict> {
    match client.readiness().await {
        Ok((true, _)) => Ok(()),
        Ok((false, reasons)) => {
            Err(Verdict::new(Health::Critical, format!("not ready: {}", reasons.replace('\n', " "))))
        }
        Err(failure) => Err(Verdict::new(Health::Critical, one_line(&failure))),
    }
}

async fn whole_cluster(global: &Global, output: &Output) -> Verdict {
    let asked = match client(global, output) {
        Ok(client) => cluster::cluster(&client).await.and_then(cluster::read),
        Err(failure) => Err(failure),
    };
    match asked {
        Ok(cluster) => judge_cluster(&cluster),
        Err(failure) => Verdict::new(Health::Unknown, one_line(&failure)),
    }
}

fn judge_node(cluster: &Cluster) -> Verdict {
    let behind = behind(cluster);
    if behind.is_empty() {
        Verdict::new(Health::Ok, format!("{} is ready and in step with its members", cluster.node))
    } else {
        Verdict::new(Health::Warning, format!("{} is not in step with {}", cluster.node, behind.join(", ")))
    }
}

fn judge_cluster(cluster: &Cluster) -> Verdict {
    let named = |state: &str| -> Vec<&str> {
        cluster
            .members
            .iter()
            .filter(|member| member.state == state)
            .map(|member| member.node.as_str())
            .collect()
    };
    let (lost, suspect, behind) = (named("lost"), named("suspect"), behind(cluster));
    let off: Vec<&str> =
        cluster.members.iter().filter(|member| member.clock_off).map(|member| member.node.as_str()).collect();
    if cluster.expelled_ms.is_some() {
        Verdict::new(Health::Critical, format!("expelled: no member hears {} any more", cluster.node))
    } else if !lost.is_empty() {
        Verdict::new(Health::Critical, format!("lost: {}", lost.join(", ")))
    } else if !suspect.is_empty() {
        Verdict::new(Health::Warning, format!("suspect: {}", suspect.join(", ")))
    } else if !behind.is_empty() {
        Verdict::new(Health::Warning, format!("not in step: {}", behind.join(", ")))
    } else if !off.is_empty() {
        Verdict::new(Health::Warning, format!("wall clocks differ too much: {}", off.join(", ")))
    } else {
        Verdict::new(
            Health::Ok,
            format!("{} members of {}, all live and in step", named("live").len(), cluster.cluster),
        )
    }
}

fn behind(cluster: &Cluster) -> Vec<&str> {
    let behind = cluster.members.iter().filter(|member| member.is_live_peer() && !member.synced);
    behind.map(|member| member.node.as_str()).collect()
}

fn certificates(paths: &[PathBuf], warning: Duration, critical: Duration, now: OffsetDateTime) -> Verdict {
    let mut verdicts: Vec<Verdict> = Vec::new();
    for path in paths {
        match pem_files(path) {
            Ok(files) => verdicts.extend(files.iter().map(|file| certificate(file, warning, critical, now))),
            Err(error) => {
                verdicts
                    .push(Verdict::new(Health::Unknown, format!("cannot read {}: {error}", path.display())));
            }
        }
    }
    // What is known to be broken matters more than what is not known.
    let weight = |verdict: &Verdict| match verdict.health {
        Health::Critical => 3,
        Health::Unknown => 2,
        Health::Warning => 1,
        Health::Ok => 0,
    };
    let worst = verdicts.iter().map(weight).max();
    match worst {
        None => Verdict::new(Health::Unknown, "no certificate there (*.pem)"),
        Some(0) => Verdict::new(
            Health::Ok,
            format!("{} certificates valid for {} or longer", verdicts.len(), units::show_duration(warning)),
        ),
        Some(worst) => {
            let told: Vec<&Verdict> = verdicts.iter().filter(|verdict| weight(verdict) == worst).collect();
            let summaries: Vec<&str> = told.iter().map(|verdict| verdict.summary.as_str()).collect();
            Verdict::new(told[0].health, summaries.join("; "))
        }
    }
}

fn pem_files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "pem") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn certificate(file: &Path, warning: Duration, critical: Duration, now: OffsetDateTime) -> Verdict {
    let info = match certs::read(file) {
        Ok(info) => info,
        Err(failure) => return Verdict::new(Health::Unknown, one_line(&failure)),
    };
    let end = clock::show(info.not_after);
    let health = if info.not_after <= now + critical {
        Health::Critical
    } else if info.not_before > now {
        return Verdict::new(Health::Critical, format!("{} is not valid yet", file.display()));
    } else if info.not_after <= now + warning {
        Health::Warning
    } else {
        Health::Ok
    };
    let verb = if info.not_after <= now { "expired" } else { "expires" };
    Verdict::new(health, format!("{} {verb} {end}", file.display()))
}

fn one_line(failure: &Failure) -> String {
    failure.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use tidings_proto::id::NodeId;
    use tidings_transport::Authority;

    use super::*;
    use crate::verbs::cluster::Member;

    fn cluster(states: &[(&str, bool)]) -> Cluster {
        let member = |(index, (state, synced)): (usize, &(&str, bool))| Member {
            node: format!("n{index}"),
            is_self: index == 0,
            state: (*state).to_owned(),
            synced: *synced,
            ..Member::default()
        };
        Cluster {
            node: "n0".to_owned(),
            members: states.iter().enumerate().map(member).collect(),
            ..Cluster::default()
        }
    }

    #[test]
    fn cluster_is_judged_by_its_worst_member() {
        for (states, expected) in [
            (&[("live", false), ("live", true)][..], Health::Ok),
            (&[("live", true), ("live", false)], Health::Warning),
            (&[("live", true), ("suspect", true)], Health::Warning),
            (&[("live", true), ("suspect", true), ("lost", false)], Health::Critical),
            (&[("live", true), ("left", false)], Health::Ok),
        ] {
            assert_eq!(judge_cluster(&cluster(states)).health, expected, "{states:?}");
        }
    }

    #[test]
    fn a_node_that_is_expelled_is_critical_though_it_remembers_no_member() {
        let alone = Cluster { expelled_ms: Some(61_000.0), ..cluster(&[("live", true)]) };
        assert_eq!(judge_cluster(&alone).health, Health::Critical);
    }

    #[test]
    fn a_wall_clock_that_is_off_is_worth_a_warning() {
        let mut cluster = cluster(&[("live", true), ("live", true)]);
        cluster.members[1].clock_off = true;
        let verdict = judge_cluster(&cluster);
        assert_eq!(verdict.health, Health::Warning);
        assert!(verdict.summary.contains("n1"), "{verdict:?}");
    }

    #[test]
    fn certificates_are_judged_by_the_time_they_have_left() {
        let directory = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let authority = Authority::generate("c").unwrap();
        let issued = authority.issue(&NodeId::new("n1").unwrap(), &[], 30 * day).unwrap();
        std::fs::write(directory.path().join("n1.pem"), issued.cert_pem).unwrap();
        let now = clock::wall_clock();
        let at = |later: Duration| {
            certificates(&[directory.path().to_path_buf()], 14 * day, 3 * day, now + later).health
        };
        assert_eq!(at(Duration::ZERO), Health::Ok);
        assert_eq!(at(20 * day), Health::Warning);
        assert_eq!(at(28 * day), Health::Critical);
        assert_eq!(at(40 * day), Health::Critical);
    }

    #[test]
    fn no_certificates_are_unknown() {
        let directory = tempfile::tempdir().unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        let verdict = certificates(&[directory.path().to_path_buf()], day, day, clock::wall_clock());
        assert_eq!(verdict.health, Health::Unknown);
    }
}
