//! TLS for HTTP: a certificate from files, which can be read again while connections go on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// The files of a certificate for HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those that lead from it to its authority, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
}

/// A certificate for HTTPS cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// A file cannot be read, or what is in it is no PEM of its kind.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The key is not that of the certificate, or one of them cannot be used.
    #[error("{cert} and its key cannot be used")]
    Unusable {
        /// Which.
        cert: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

impl TlsFiles {
    /// Reads the files as a start does.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn check(&self) -> Result<(), CertificateError> {
        self.read().map(drop)
    }

    fn read(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |error: pem::Error| CertificateError::Read { path, source: io_error(error) }
        };
        let chain = CertificateDer::pem_file_iter(&self.cert)
            .and_then(|sections| sections.collect::<Result<Vec<_>, _>>())
            .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
            .map_err(unreadable(&self.cert))?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(unreadable(&self.key))?;
        let unusable = |source| CertificateError::Unusable { cert: self.cert.clone(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Nothing may be replayed, and nothing is remembered of who was here: a handshake costs a millisecond.
        config.max_early_data_size = 0;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }
}

fn io_error(error: pem::Error) -> io::Error {
    match error {
        pem::Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// The certificate that new connections get.
pub(crate) struct Tls {
    files: TlsFiles,
    config: ArcSwap<ServerConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn read(files: TlsFiles) -> Result<Self, CertificateError> {
        let config = ArcSwap::new(files.read()?);
        Ok(Self { files, config })
    }

    /// Reads the files again: connections that are there go on as they are. What cannot be used changes nothing.
    pub(crate) fn reload(&self) -> Result<(), CertificateError> {
        self.config.store(self.files.read()?);
        Ok(())
    }

    pub(crate) fn files(&self) -> &TlsFiles {
        &self.files
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.load_full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let files = TlsFiles { cert: path("cert.pem"), key: path("key.pem") };
        assert!(matches!(files.check(), Err(CertificateError::Read { path, .. }) if path == files.cert));
        std::fs::write(&files.cert, "nothing").unwrap();
        assert!(matches!(files.check(), Err(CertificateError::Read { path, .. }) if path == files.cert));
        let [one, other] =
            [0, 1].map(|_| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
        std::fs::write(&files.cert, one.cert.pem()).unwrap();
        assert!(matches!(files.check(), Err(CertificateError::Read { path, .. }) if path == files.key));
        std::fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(matches!(files.check(), Err(CertificateError::Unusable { .. })));
        std::fs::write(&files.key, one.signing_key.serialize_pem()).unwrap();
        files.check().unwrap();
    }

    #[test]
    fn nothing_is_sent_before_the_handshake_and_nothing_is_resumed() {
        let directory = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: directory.path().join("c"), key: directory.path().join("k") };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        let config = files.read().unwrap();
        assert_eq!((config.max_early_data_size, config.send_tls13_tickets), (0, 0));
        assert!(!config.session_storage.can_cache());
    }
}
