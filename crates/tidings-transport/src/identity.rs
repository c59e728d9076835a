//! Who this node is: its certificate and key, and the authorities whose certificates it trusts.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ring::hmac;
use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tidings_proto::id::NodeId;
use tokio::sync::watch;

use crate::authority::{Authority, AuthorityError, CertificateInfo, describe};
use crate::stats::RefusedReason;
use crate::tls::{self, TlsError};

/// Validity of a certificate made for development, which lives as long as its process.
const DEVELOPMENT_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The private key of the development authority. Anyone can read it here, so it proves nothing: an identity under
/// it is for processes on one host, and no node that uses it listens on anything but loopback.
const DEVELOPMENT_SEED: &[u8; 32] = b"tidings development: not secret!";

/// What precedes the seed of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// An identity could not be read or used. One that was in use before stays in use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no certificate where one should be.
    #[error("no certificate in PEM form in the {0}")]
    NoCertificate(&'static str),
    /// There is no private key.
    #[error("no private key in PEM form")]
    NoKey,
    /// A trusted authority's certificate cannot be used.
    #[error("certificate of the authority")]
    Root(#[source] rustls::Error),
    /// The private key cannot be used, or is not the certificate's.
    #[error("certificate and private key do not go together")]
    Key(#[source] rustls::Error),
    /// The certificate would be refused by every peer.
    #[error("the certificate is not acceptable to those who trust the same authority")]
    Unacceptable(#[source] webpki::Error),
    /// The certificate does not name exactly one node of one cluster.
    #[error("the certificate does not name exactly one node")]
    NoNode,
    /// The certificate is another node's.
    #[error("the certificate is for node {node} of cluster {cluster}")]
    OtherNode {
        /// Whose it is.
        node: NodeId,
        /// Of which cluster.
        cluster: String,
    },
    /// The certificate for development could not be made.
    #[error("certificate for development")]
    Development(#[source] AuthorityError),
    /// Only an identity that was read from files can be read again.
    #[error("the identity was not read from files")]
    NoFiles,
    /// An identity for development belongs to no node before it is bound to one.
    #[error("the identity does not belong to a node yet")]
    Unbound,
    /// TLS cannot be set up with it.
    #[error("TLS configuration")]
    Tls(#[source] TlsError),
}

/// A node's certificate, private key and trusted authorities. Clones are the same identity: what one reloads, all use.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    source: Source,
    held: ArcSwapOption<Credentials>,
    /// Notifies of every replacement.
    replaced: watch::Sender<()>,
}

#[derive(Debug)]
enum Source {
    Development,
    Files { ca: PathBuf, cert: PathBuf, key: PathBuf },
    Pem,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.0.held.load();
        let node = held.as_ref().map(|held| &held.node);
        f.debug_struct("Identity")
            .field("source", &self.0.source)
            .field("node", &node)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads an identity from PEM files: the trusted authorities, the node's certificate (with intermediates after
    /// it, if any), its private key.
    ///
    /// # Errors
    /// [`IdentityError`]: unreadable, not belonging together, or unacceptable to peers, for example expired.
    pub fn from_pem_files(
        ca: impl AsRef<Path>,
        cert: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, IdentityError> {
        let [ca, cert, key] = [ca.as_ref(), cert.as_ref(), key.as_ref()].map(Path::to_owned);
        let credentials = Credentials::read_files(&ca, &cert, &key)?;
        Ok(Self::new(Source::Files { ca, cert, key }, Some(credentials)))
    }

    /// An identity from PEM texts, as [`Identity::from_pem_files`].
    ///
    /// # Errors
    /// [`IdentityError`], as there.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, IdentityError> {
        Ok(Self::new(Source::Pem, Some(Credentials::read(ca.as_bytes(), cert.as_bytes(), key.as_bytes())?)))
    }

    /// An identity without files, for several nodes on one host: its certificate is made when it is bound to a
    /// node, under an authority whose key is public. Proves nothing; a node that uses it listens on loopback only.
    #[must_use]
    pub fn development() -> Self {
        Self::new(Source::Development, None)
    }

    /// Whether it was made by [`Identity::development`].
    #[must_use]
    pub fn is_development(&self) -> bool {
        matches!(self.0.source, Source::Development)
    }

    /// The identity of one node: this one, if it is that node's; for development a new one of its own.
    ///
    /// # Errors
    /// [`IdentityError::OtherNode`] if the certificate names another node or cluster.
    pub fn of_node(&self, cluster: &str, node: &NodeId) -> Result<Self, IdentityError> {
        if self.is_development() {
            let credentials = Credentials::development(cluster, node)?;
            return Ok(Self::new(Source::Development, Some(credentials)));
        }
        self.credentials()?.expect_node(cluster, node)?;
        Ok(self.clone())
    }

    /// Reads the files again. New handshakes use what is read; connections that are up stay up. On an error
    /// nothing changes.
    ///
    /// # Errors
    /// [`IdentityError::NoFiles`] if the identity is not from files; [`IdentityError::OtherNode`] if they are now
    /// those of another node; else as [`Identity::from_pem_files`].
    pub fn reload(&self) -> Result<(), IdentityError> {
        let Source::Files { ca, cert, key } = &self.0.source else { return Err(IdentityError::NoFiles) };
        self.replace(Credentials::read_files(ca, cert, key)?)
    }

    /// Replaces the certificate, the key and the trusted authorities, as [`Identity::reload`] does.
    ///
    /// # Errors
    /// [`IdentityError`], as there.
    pub fn reload_pem(&self, ca: &str, cert: &str, key: &str) -> Result<(), IdentityError> {
        self.replace(Credentials::read(ca.as_bytes(), cert.as_bytes(), key.as_bytes())?)
    }

    /// Notifies of every time that it was reloaded, by whichever clone.
    #[must_use]
    pub fn reloads(&self) -> watch::Receiver<()> {
        self.0.replaced.subscribe()
    }

    /// What the node's certificate says.
    ///
    /// # Errors
    /// [`IdentityError::Unbound`] for an identity for development that is no node's yet.
    pub fn info(&self) -> Result<CertificateInfo, IdentityError> {
        describe(self.credentials()?.leaf()).ok_or(IdentityError::NoNode)
    }

    pub(crate) fn credentials(&self) -> Result<Arc<Credentials>, IdentityError> {
        self.0.held.load_full().ok_or(IdentityError::Unbound)
    }

    fn new(source: Source, held: Option<Credentials>) -> Self {
        let held = ArcSwapOption::new(held.map(Arc::new));
        Self(Arc::new(Inner { source, held, replaced: watch::Sender::new(()) }))
    }

    fn replace(&self, new: Credentials) -> Result<(), IdentityError> {
        let old = self.credentials()?;
        new.expect_node(&old.cluster, &old.node)?;
        self.0.held.store(Some(Arc::new(new)));
        self.0.replaced.send_replace(());
        Ok(())
    }
}

/// Everything that one handshake needs, of one reading.
pub(crate) struct Credentials {
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) server: Arc<rustls::ServerConfig>,
    pub(crate) client: Arc<rustls::ClientConfig>,
    /// Secret of the node that outlives a restart with the same key.
    pub(crate) secret: [u8; 32],
}

impl Credentials {
    fn read_files(ca: &Path, cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
        };
        Self::read(&read(ca)?, &read(cert)?, &read(key)?)
    }

    fn read(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for root in certificates(ca, "authority's file")? {
            roots.add(root).map_err(IdentityError::Root)?;
        }
        let chain = certificates(cert, "node's file")?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| IdentityError::NoKey)?;
        let secret = keyed(key.secret_der(), b"tidings node secret");
        Self::assemble(roots, chain, key, secret)
    }

    fn development(cluster: &str, node: &NodeId) -> Result<Self, IdentityError> {
        let mut key = PKCS8_ED25519.to_vec();
        key.extend_from_slice(DEVELOPMENT_SEED);
        let key = rcgen::KeyPair::try_from(key).map_err(AuthorityError::Certificate);
        let authority = key.and_then(|key| Authority::with_key(cluster, key));
        let issue = |authority: &Authority| authority.issue(node, &[], DEVELOPMENT_VALIDITY);
        let (authority, issued) = authority
            .and_then(|authority| issue(&authority).map(|issued| (authority, issued)))
            .map_err(IdentityError::Development)?;
        let made =
            Self::read(authority.ca_pem().as_bytes(), issued.cert_pem.as_bytes(), issued.key_pem.as_bytes())?;
        // The key is new in every process; what survives a restart has to come from elsewhere.
        Ok(Self { secret: keyed(DEVELOPMENT_SEED, format!("{cluster}/{node}").as_bytes()), ..made })
    }

    fn assemble(
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        secret: [u8; 32],
    ) -> Result<Self, IdentityError> {
        let roots = Arc::new(roots);
        let leaf = chain.first().ok_or(IdentityError::NoNode)?;
        let named = describe(leaf).ok_or(IdentityError::NoNode)?;
        let (Some(cluster), Some(node)) = (named.cluster, named.node) else {
            return Err(IdentityError::NoNode);
        };
        match tls::leaf_identity(leaf, &cluster) {
            Ok(_) => {}
            Err(RefusedReason::WrongCluster) => return Err(IdentityError::OtherNode { node, cluster }),
            Err(_) => return Err(IdentityError::NoNode),
        }
        verify_chain(leaf, &chain[1..], &roots).map_err(IdentityError::Unacceptable)?;
        let key = CertifiedKey::from_der(chain, key, &tls::provider()).map_err(IdentityError::Key)?;
        let key = Arc::new(key);
        let server = tls::server(&cluster, &key, &roots).map_err(IdentityError::Tls)?;
        let client = tls::client(&cluster, &key, &roots).map_err(IdentityError::Tls)?;
        Ok(Self { cluster, node, key, roots, server: server.into(), client: client.into(), secret })
    }

    /// The node's own certificate.
    pub(crate) fn leaf(&self) -> &CertificateDer<'static> {
        // Never empty: `assemble` has looked at the first.
        &self.key.cert[0]
    }

    /// Certificates between the node's and its authority's.
    pub(crate) fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.key.cert[1..]
    }

    fn expect_node(&self, cluster: &str, node: &NodeId) -> Result<(), IdentityError> {
        if self.cluster == cluster && self.node == *node {
            return Ok(());
        }
        Err(IdentityError::OtherNode { node: self.node.clone(), cluster: self.cluster.clone() })
    }
}

/// Verifies a node's certificate now, for both sides of a handshake, as peers do.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &RootCertStore,
) -> Result<(), webpki::Error> {
    let leaf = webpki::EndEntityCert::try_from(leaf)?;
    let algorithms = tls::provider().signature_verification_algorithms.all;
    for usage in [webpki::KeyUsage::client_auth(), webpki::KeyUsage::server_auth()] {
        leaf.verify_for_usage(algorithms, &roots.roots, intermediates, UnixTime::now(), usage, None, None)?;
    }
    Ok(())
}

/// A secret derived from another, for one purpose.
pub(crate) fn keyed(secret: &[u8], purpose: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), purpose);
    let mut derived = [0; 32];
    derived.copy_from_slice(tag.as_ref());
    derived
}

fn certificates(pem: &[u8], place: &'static str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.ok().filter(|read| !read.is_empty()).ok_or(IdentityError::NoCertificate(place))
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
