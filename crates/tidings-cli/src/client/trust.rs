//! Whose certificates a client believes.

use std::path::Path;

use reqwest::Certificate;

use crate::exit::{Exit, Failure};

/// The authorities in a file, or else those that the system trusts.
///
/// # Errors
/// The file cannot be read or has none, or the system has none.
pub(super) fn roots(file: Option<&Path>) -> Result<Vec<Certificate>, Failure> {
    let failed = |what: String| {
        Failure::new(Exit::Configuration, what)
            .hint("--ca-file or TIDINGS_CA_FILE names the authority of the node's certificate (PEM)")
    };
    let Some(file) = file else {
        let found = rustls_native_certs::load_native_certs();
        let roots: Vec<Certificate> =
            found.certs.iter().filter_map(|root| Certificate::from_der(root).ok()).collect();
        return if roots.is_empty() {
            Err(failed("this system trusts no authority for HTTPS".to_owned()))
        } else {
            Ok(roots)
        };
    };
    let shown = file.display();
    let pem = std::fs::read(file).map_err(|error| failed(format!("cannot read {shown}: {error}")))?;
    let roots =
        Certificate::from_pem_bundle(&pem).map_err(|error| failed(format!("cannot use {shown}: {error}")))?;
    if roots.is_empty() { Err(failed(format!("there is no certificate in {shown}"))) } else { Ok(roots) }
}
