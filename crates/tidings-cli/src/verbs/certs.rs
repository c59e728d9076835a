//! `certs`: the certificates of a cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tidings_proto::id::NodeId;
use tidings_transport::{Authority, AuthorityError, CertificateInfo, inspect};

use crate::args::CertsVerb;
use crate::clock;
use crate::exit::{Exit, Failure, chain};
use crate::files::{self, Draft, Present};
use crate::output::Output;

/// Names of the authority's files, without what tells them apart.
const AUTHORITY: &str = "ca";

/// What becomes of nodes whose authority is replaced.
const REPLACED: &str = "a new authority would make every certificate that this one issued worthless; \
    `certs init --force` replaces it nevertheless, and keeps the old files beside it";

/// Runs a verb about certificates.
pub(crate) fn run(verb: &CertsVerb, output: &Output) -> Result<(), Failure> {
    match verb {
        CertsVerb::Init { cluster, out, force } => {
            let authority =
                Authority::generate(cluster).map_err(|error| cannot("make the authority", &error))?;
            let drafts = authority_files(&authority, out);
            if *force {
                drafts.iter().try_for_each(|draft| keep_old(&draft.path))?;
            }
            files::write(&drafts, if *force { Present::Replaced } else { Present::Kept(REPLACED) })?;
            written(&drafts, output)?;
            output.note(format!(
                "keep {} to yourself: whoever has it can join the cluster",
                drafts[1].path.display()
            ));
            Ok(())
        }
        CertsVerb::Issue { dir, node, san, validity, force } => {
            let authority = stored_authority(dir)?;
            let drafts = node_files(&authority, dir, node, san, *validity)?;
            files::write(&drafts, Present::forced(*force))?;
            written(&drafts, output)
        }
        CertsVerb::Inspect { file } => show(&read(file)?, output),
    }
}

/// The files of an authority: its certificate, then its key.
pub(crate) fn authority_files(authority: &Authority, directory: &Path) -> [Draft; 2] {
    let [certificate, key] = paths(directory, AUTHORITY);
    [Draft::public(certificate, authority.ca_pem()), Draft::secret(key, authority.key_pem())]
}

/// Whether any part of an authority is in a directory.
pub(crate) fn has_authority(directory: &Path) -> bool {
    paths(directory, AUTHORITY).iter().any(|path| path.symlink_metadata().is_ok())
}

/// The files of a node: its certificate, then its key.
///
/// # Errors
/// A name is neither an IP address nor a DNS name, or the node is called as the authority's files are (exit 2).
pub(crate) fn node_files(
    authority: &Authority,
    directory: &Path,
    node: &NodeId,
    names: &[String],
    validity: Duration,
) -> Result<[Draft; 2], Failure> {
    // Also where the file system does not tell the two apart.
    if node.as_str().eq_ignore_ascii_case(AUTHORITY) {
        let message = format!("no node can be called {node}: its files would be those of the authority");
        return Err(Failure::new(Exit::Usage, message));
    }
    let [certificate, key] = paths(directory, node.as_str());
    let issued =
        authority.issue(node, names, validity).map_err(|error| cannot("issue the certificate", &error))?;
    Ok([Draft::public(certificate, issued.cert_pem), Draft::secret(key, issued.key_pem)])
}

/// Reads what a certificate says.
///
/// # Errors
/// The file is not there, or is no certificate.
pub(crate) fn read(file: &Path) -> Result<CertificateInfo, Failure> {
    inspect(&files::read(file)?).map_err(|error| cannot(&format!("read {}", file.display()), &error))
}

/// Says which files were written.
///
/// # Errors
/// As printing may fail.
pub(crate) fn written(drafts: &[Draft], output: &Output) -> Result<(), Failure> {
    let paths: Vec<&PathBuf> = drafts.iter().map(|draft| &draft.path).collect();
    if output.is_json() {
        return output.json(&json!({ "written": paths }));
    }
    paths.iter().try_for_each(|path| output.line(path.display()))
}

/// A failure with everything that led to it.
pub(crate) fn cannot(what: &str, error: &AuthorityError) -> Failure {
    Failure::new(Exit::Failed, format!("cannot {what}: {}", chain(error)))
}

/// The authority in a directory.
///
/// # Errors
/// It is not there, not whole, or cannot be used.
pub(crate) fn stored_authority(directory: &Path) -> Result<Authority, Failure> {
    let [certificate, key] = paths(directory, AUTHORITY).map(|path| {
        files::read(&path).map_err(|failure| {
            failure.hint("an authority is ca.pem and ca.key; `tidings certs init` makes a new one")
        })
    });
    let (certificate, key) = (certificate?, key?);
    Authority::from_pem(&certificate, &key)
        .map_err(|error| cannot(&format!("use the authority in {}", directory.display()), &error))
}

fn paths(directory: &Path, name: &str) -> [PathBuf; 2] {
    ["pem", "key"].map(|kind| directory.join(format!("{name}.{kind}")))
}

/// Keeps what is about to be replaced, under a name of its own.
fn keep_old(path: &Path) -> Result<(), Failure> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let mut old = path.as_os_str().to_owned();
    old.push(format!(".old-{}", clock::wall_clock().unix_timestamp()));
    fs::hard_link(path, &old).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot keep {} as {}: {error}", path.display(), old.display()))
    })
}

fn show(info: &CertificateInfo, output: &Output) -> Result<(), Failure> {
    let (start, end) = (clock::show(info.not_before), clock::show(info.not_after));
    let now = clock::wall_clock();
    let valid = info.not_before <= now && now < info.not_after;
    if output.is_json() {
        return output.json(&json!({
            "cluster": info.cluster,
            "node": info.node,
            "is_ca": info.is_ca,
            "serial": info.serial,
            "issuer": info.issuer,
            "not_before": start,
            "not_after": end,
            "valid": valid,
            "sans": info.sans,
        }));
    }
    let unknown = || "-".to_owned();
    let what = match (&info.node, info.is_ca) {
        (Some(node), _) => format!("node {node}"),
        (None, true) => "authority".to_owned(),
        (None, false) => "neither a node's nor an authority's".to_owned(),
    };
    output.line(format!("certificate  {what}"))?;
    output.line(format!("cluster      {}", info.cluster.clone().unwrap_or_else(unknown)))?;
    output.line(format!("valid        {start} to {end}{}", if valid { "" } else { " (not now)" }))?;
    output.line(format!("serial       {}", info.serial))?;
    output.line(format!("issuer       {}", info.issuer))?;
    output.line(format!("names        {}", info.sans.join(", ")))
}
