//! What protects the HTTP API.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};
use tidings_http::{CertificateError, TlsFiles, TokenFileError, Tokens};

use super::{Judge, chmod};
use crate::config::value::is_loopback;
use crate::exit::chain;

/// Judges where it listens, with which tokens and certificate, and where it writes down who did what.
pub(super) fn judge(judge: &mut Judge<'_>, listen: &str, directory: &Path) {
    let given = |path: &str| judge.text(path).map(|name| directory.join(name));
    let (tokens, cert, key) = (given("http.token_file"), given("http.tls_cert"), given("http.tls_key"));
    let audit = given("http.audit_file");
    if !is_loopback(listen) && (tokens.is_none() || cert.is_none() || key.is_none()) {
        let message = format!(
            "{listen} is not a loopback address: that needs token_file, tls_cert and tls_key beside it"
        );
        let help =
            "listen on 127.0.0.1 or [::1], or set all three: `tidings token create`, `tidings certs issue`";
        judge.error("http.listen", &message, help);
    }
    if let Some(file) = tokens {
        if let Err(error) = Tokens::read(&file) {
            let help = match &error {
                TokenFileError::Exposed(_) => chmod(&file),
                _ => "`tidings token create` prints a token, and its line for this file".to_owned(),
            };
            judge.error("http.token_file", &chain(&error), &help);
        } else if Tokens::is_readable_by_others(&file) {
            judge.warning("http.token_file", "others than its owner can read it", &chmod(&file));
        }
    }
    if let Some(file) = audit
        && let Err(error) = addable(&file)
    {
        let message = format!("cannot write to {}: {error}", file.display());
        let help = "name a file in a directory that the node may write to, as a service /var/lib/tidings";
        judge.error("http.audit_file", &message, help);
    }
    match (cert, key) {
        (Some(cert), Some(key)) => {
            judge.private("http.tls_key", &key);
            if let Err(error) = (TlsFiles { cert, key: key.clone() }).check() {
                let is_key = matches!(&error, CertificateError::Read { path, .. } if *path == key);
                let path = if is_key { "http.tls_key" } else { "http.tls_cert" };
                judge.error(path, &chain(&error), "`tidings certs issue` makes a certificate and its key");
            }
        }
        (Some(_), None) => judge.error("http.tls_key", "is needed beside tls_cert", "set both, or neither"),
        (None, Some(_)) => judge.error("http.tls_cert", "is needed beside tls_key", "set both, or neither"),
        (None, None) => {}
    }
}

/// Whether lines can be added to a file, which is not made by asking.
fn addable(file: &Path) -> io::Result<()> {
    match file.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(_) => Ok(access(file, Access::WRITE_OK)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
            Ok(access(directory.unwrap_or_else(|| Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)?)
        }
        Err(error) => Err(error),
    }
}
