//! The configuration of a node: read whole, judged whole, before anything is bound.

mod check;
mod finding;
mod render;
mod settings;
mod source;
mod streams;
mod typed;
mod value;

use std::path::{Path, PathBuf};

pub(crate) use self::finding::{Finding, Severity, any_error};
pub(crate) use self::render::{default_file, document, effective, schema};
pub(crate) use self::source::Values;
pub(crate) use self::streams::{Store, Streams};
pub(crate) use self::typed::{Cache, Capacity, Config, Identity};
use crate::exit::{Exit, Failure};
use crate::files;

/// Longest configuration, in bytes: a thousand times the default one with its comments is no configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A configuration and everything that was found about it.
#[derive(Debug)]
pub(crate) struct Judged {
    /// Every value with its origin.
    pub(crate) values: Values,
    /// The configuration, if it can be used.
    pub(crate) config: Option<Config>,
    /// Errors and warnings, in the order of the file where they have a line.
    pub(crate) findings: Vec<Finding>,
}

/// Reads and judges a file; `-` is stdin. Variables named `TIDINGS_SECTION__KEY` override it.
///
/// # Errors
/// The file cannot be read. What it says is judged, and never an error here.
pub(crate) async fn load(file: &Path) -> Result<Judged, Failure> {
    let text = read(file).await?;
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
        .collect();
    Ok(judge(&text, &variables, &directory_of(file)))
}

/// Judges a text. `directory` is where relative paths start.
pub(crate) fn judge(text: &str, variables: &[(String, String)], directory: &Path) -> Judged {
    let mut findings = Vec::new();
    let values = Values::read(text, variables, &mut findings);
    let readable = findings.iter().all(|finding| !finding.key.is_empty());
    if readable {
        check::whole(&values, directory, &mut findings);
    }
    findings.sort_by_key(|finding| finding.line.unwrap_or(usize::MAX));
    let config = if any_error(&findings) { None } else { Config::of(&values, directory) };
    Judged { values, config, findings }
}

async fn read(file: &Path) -> Result<String, Failure> {
    let bytes = files::read_whole(file.to_owned(), FILE_BYTES_MAX).await;
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    text.map_err(|error| {
        Failure::new(Exit::Configuration, format!("cannot read {}: {error}", file.display()))
            .hint("`tidings config default` prints one to start from, `tidings init` writes one")
    })
}

fn directory_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str) -> Judged {
        judge(text, &[], Path::new("/nonexistent"))
    }

    const SOUND: &str = "[cluster]\nname = \"c\"\nnode_id = \"n1\"\n[tls]\ndevelopment = true\n";

    fn errors(text: &str) -> Vec<String> {
        judged(text)
            .findings
            .iter()
            .filter(|f| f.severity == Severity::Error)
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn smallest_configuration_is_sound() {
        let judged = judged(SOUND);
        assert_eq!(judged.findings, []);
        let config = judged.config.unwrap();
        assert_eq!(config.cluster.node_id.as_str(), "n1");
        assert_eq!(config.coherence.lanes.count(), 4);
        assert!(config.http.is_none());
    }

    #[test]
    fn default_file_is_sound() {
        let judged = judged(&default_file());
        assert_eq!(judged.findings, []);
        assert!(judged.config.is_some());
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let found = errors(
            "[cluster]\nname = \"no spaces\"\nlisten = \"nowhere\"\n[coherence]\nlanes = 3\nmax_staleness = \"0s\"\n\
             [[cache]]\nname = \"a\"\nmax_capacity = 0\n[[cache]]\nname = \"a\"\n[http]\nlisten = \"0.0.0.0:80\"\n",
        );
        for part in [
            "cluster.name (line 2)",
            "cluster.listen (line 3)",
            "cluster.node_id: ",
            "coherence.lanes (line 5)",
            "coherence.max_staleness (line 6)",
            "cache[0].max_capacity (line 9)",
            "cache[1].name (line 11)",
            "http.listen (line 13)",
            "tls: ",
        ] {
            assert!(found.iter().any(|text| text.starts_with(part)), "{part} is not in {found:#?}");
        }
    }

    #[test]
    fn development_identity_is_for_loopback_only() {
        for listen in ["0.0.0.0:7401", "192.0.2.1:7401", "example.org:7401"] {
            let text = SOUND
                .replace("node_id", &format!("listen = \"{listen}\"\nadvertise = \"127.0.0.1:1\"\nnode_id"));
            let found = errors(&text);
            assert!(found.iter().any(|text| text.starts_with("tls.development")), "{listen}: {found:?}");
        }
        assert_eq!(errors(&SOUND.replace("node_id", "listen = \"[::1]:7401\"\nnode_id")), [""; 0]);
    }

    #[test]
    fn missing_certificates_are_named_with_their_path() {
        let text = SOUND.replace("development = true", "ca = \"a.pem\"\ncert = \"b.pem\"\nkey = \"b.key\"");
        let found = errors(&text);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("/nonexistent/a.pem"), "{found:?}");
    }

    #[test]
    fn unspecified_addresses_must_not_be_advertised() {
        let text = SOUND.replace("node_id", "listen = \"0.0.0.0:7401\"\nnode_id");
        assert!(
            errors(&text).iter().any(|text| text.starts_with("cluster.advertise")),
            "{:?}",
            errors(&text)
        );
    }

    #[test]
    fn what_is_not_available_yet_is_a_warning() {
        let judged = judged(&format!(
            "{SOUND}[http]\nlisten = \"127.0.0.1:0\"\npage_size = 7\n[telemetry]\notlp_endpoint = \"http://x:1\"\n"
        ));
        assert!(judged.config.is_some());
        let keys: Vec<&str> = judged.findings.iter().map(|finding| finding.key.as_str()).collect();
        assert_eq!(keys, ["http.page_size", "telemetry.otlp_endpoint"]);
        assert!(
            judged.findings.iter().all(|finding| finding.message.contains("not available in this release"))
        );
    }

    #[test]
    fn an_address_that_others_can_reach_needs_tls_and_tokens() {
        let with = |more: &str| errors(&format!("{SOUND}[http]\nlisten = \"0.0.0.0:1\"\n{more}"));
        for more in ["", "token_file = \"t\"\n", "tls_cert = \"c\"\ntls_key = \"k\"\n"] {
            let found = with(more);
            assert!(found.iter().any(|text| text.starts_with("http.listen (line 7)")), "{more}: {found:?}");
        }
        let all = with("token_file = \"t\"\ntls_cert = \"c\"\ntls_key = \"k\"\n");
        assert!(!all.iter().any(|text| text.starts_with("http.listen")), "{all:?}");
        assert!(all[0].starts_with("http.token_file (line 8): cannot read /nonexistent/t"), "{all:?}");
        assert!(all[1].starts_with("http.tls_cert (line 9): cannot read /nonexistent/c"), "{all:?}");
        let alone = errors(&format!("{SOUND}[http]\nlisten = \"127.0.0.1:1\"\ntls_cert = \"c\"\n"));
        assert!(alone[0].starts_with("http.tls_key: is needed beside tls_cert"), "{alone:?}");
    }

    #[test]
    fn an_audit_file_that_cannot_be_written_is_an_error_and_judging_makes_none() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("taken")).unwrap();
        let found = |name: &str| {
            let text = format!("{SOUND}[http]\nlisten = \"127.0.0.1:1\"\naudit_file = \"{name}\"\n");
            let judged = judge(&text, &[], directory.path());
            judged.findings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for name in ["taken", "none/audit", "/proc/none/audit"] {
            let found = found(name);
            assert!(found[0].starts_with("http.audit_file (line 8): cannot write to "), "{name}: {found:?}");
        }
        assert_eq!(found("audit"), Vec::<String>::new());
        assert!(!directory.path().join("audit").exists());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_judging_panic(text in "(?s).{0,200}", key in "[a-z_]{1,12}", value in "[a-z0-9\\[\\]{}\"=. ]{0,20}") {
            judged(&text);
            judged(&format!("[cluster]\n{key} = {value}\n"));
            judged(&format!("[[cache]]\n{key} = {value}\n[{key}]\n"));
        }
    }
}
