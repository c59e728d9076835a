//! `config`: checking, showing and explaining configuration.

use std::path::Path;

use serde_json::json;

use crate::args::ConfigVerb;
use crate::config::{self, Finding, Judged, Severity, any_error};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Style};

/// Runs a verb about configuration.
pub(crate) async fn run(verb: &ConfigVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        ConfigVerb::Check { file } => check(file, output).await,
        ConfigVerb::Show { file } => show(file, output).await,
        ConfigVerb::Default if output.is_json() => output.json(&config::default_file()),
        ConfigVerb::Default => output.bytes(config::default_file().as_bytes()),
        ConfigVerb::Schema => {
            let text = serde_json::to_string_pretty(&config::schema()).unwrap_or_default();
            output.line(text)
        }
    }
}

/// Tells what was found: on stdout as JSON, else on stderr.
///
/// # Errors
/// Exit 78 if the configuration cannot be used; everything has been said then.
pub(crate) fn report(file: &Path, judged: &Judged, output: &Output) -> Result<(), Failure> {
    let sound = !any_error(&judged.findings);
    if output.is_json() {
        output.json(&json!({ "file": file, "ok": sound, "findings": judged.findings }))?;
    } else {
        for finding in &judged.findings {
            tell(finding, output);
        }
    }
    if sound { Ok(()) } else { Err(unusable(file, judged, output)) }
}

/// Tells what is worth knowing about a configuration that can be used, on stderr.
pub(crate) fn remarks(judged: &Judged, output: &Output) {
    judged.findings.iter().for_each(|finding| tell(finding, output));
}

async fn check(file: &Path, output: &Output) -> Result<(), Failure> {
    let judged = config::load(file).await?;
    report(file, &judged, output)?;
    if !output.is_json() {
        let warnings = judged.findings.len();
        let more = if warnings == 0 { String::new() } else { format!(", {warnings} to note") };
        output.note(format!("{}: ok{more}", file.display()));
    }
    Ok(())
}

async fn show(file: &Path, output: &Output) -> Result<(), Failure> {
    let judged = config::load(file).await?;
    if any_error(&judged.findings) {
        return report(file, &judged, output);
    }
    remarks(&judged, output);
    if output.is_json() {
        return output.json(&config::document(&judged.values));
    }
    let values = config::effective(&judged.values);
    let rows: Vec<Vec<String>> = values
        .iter()
        .map(|(key, value, origin)| vec![key.clone(), value.to_string(), origin.to_string()])
        .collect();
    output.table(&["KEY", "VALUE", "ORIGIN"], &rows)
}

fn tell(finding: &Finding, output: &Output) {
    match finding.severity {
        Severity::Error => output.error(&Failure::new(Exit::Configuration, finding.to_string())),
        Severity::Warning => output.warn(finding),
    }
}

fn unusable(file: &Path, judged: &Judged, output: &Output) -> Failure {
    if output.is_json() {
        return Failure::silent(Exit::Configuration);
    }
    let errors = judged.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let problems = if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") };
    let file = output.paint(Style::Bold, &file.display().to_string());
    Failure::new(Exit::Configuration, format!("{file} cannot be used: {problems}"))
        .hint("`tidings config default` prints a configuration with every setting explained")
}
