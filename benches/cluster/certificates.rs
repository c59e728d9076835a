//! An authority and one certificate for everybody, made for a run, and the TLS settings that use them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;

/// The name in the certificate.
pub(crate) const NAME: &str = "localhost";

/// Writes `ca.pem`, `node.pem` and `node.key`.
pub(crate) fn make(directory: &Path) -> Result<()> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    fs::write(directory.join("ca.pem"), authority.self_signed(&authority_key)?.pem())?;

    let mut node = CertificateParams::new([NAME.to_owned(), "127.0.0.1".to_owned()])?;
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let node_key = KeyPair::generate()?;
    let node = node.signed_by(&node_key, &Issuer::from_params(&authority, &authority_key))?;
    fs::write(directory.join("node.pem"), node.pem())?;
    fs::write(directory.join("node.key"), node_key.serialize_pem())?;
    Ok(())
}

pub(crate) fn server(directory: &Path) -> Result<rustls::ServerConfig> {
    let provider = Arc::new(default_provider());
    let roots = Arc::new(roots(directory)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let (chain, key) = identity(directory)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

pub(crate) fn client(directory: &Path) -> Result<rustls::ClientConfig> {
    let (chain, key) = identity(directory)?;
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn roots(directory: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca.pem"))?)?;
    Ok(roots)
}

fn identity(directory: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = vec![CertificateDer::from_pem_file(directory.join("node.pem"))?];
    Ok((chain, PrivateKeyDer::from_pem_file(directory.join("node.key"))?))
}
