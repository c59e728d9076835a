//! What protects the HTTP API.

use std::path::Path;

use tidings_http::{CertificateError, TlsFiles, TokenFileError, Tokens};

use super::{Judge, chmod};
use crate::config::value::is_loopback;
use crate::exit::chain;

/// Judges where it listens, and with which tokens and certificate.
pub(super) fn judge(judge: &mut Judge<'_>, listen: &str, directory: &Path) {
    let given = |path: &str| judge.text(path).map(|name| directory.join(name));
    let (tokens, cert, key) = (given("http.token_file"), given("http.tls_cert"), given("http.tls_key"));
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
