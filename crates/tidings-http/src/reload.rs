//! Reading the token file and the certificate again, while requests go on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::access::{TokenFileError, Tokens};
use crate::app::App;
use crate::limits::FILES_POLL;
use crate::tls::{CertificateError, Tls};

/// Something could not be read again, and is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// The tokens.
    #[error("the tokens are those of before")]
    Tokens(#[source] TokenFileError),
    /// The certificate.
    #[error("the certificate for HTTPS is that of before")]
    Certificate(#[source] CertificateError),
}

/// Reads a server's files again. Clones are of the same server, which does so by itself when a file changes.
#[derive(Clone, Debug)]
pub struct Reloader(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    app: App,
    tls: Option<Arc<Tls>>,
    reopen: Arc<AtomicBool>,
    seen: Mutex<Seen>,
}

/// How files stood when they were last looked at.
#[derive(Debug, Default)]
struct Seen {
    tokens: Vec<Option<Stamp>>,
    certificate: Vec<Option<Stamp>>,
}

/// What differs when a file has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    bytes: u64,
    file: u64,
}

impl Reloader {
    pub(crate) fn new(app: App, tls: Option<Arc<Tls>>, reopen: Arc<AtomicBool>) -> Self {
        let new = Self(Arc::new(Shared { app, tls, reopen, seen: Mutex::default() }));
        let now = new.look();
        *new.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
        new
    }

    /// Reads tokens and certificate, and opens the audit file anew. Connections and sessions go on; a session whose token
    /// is no more is over. What cannot be used changes nothing. Reads small files in place.
    ///
    /// # Errors
    /// Everything that could not be used.
    pub fn reload(&self) -> Result<(), Vec<ReloadError>> {
        let now = self.look();
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
        self.0.reopen.store(true, Ordering::Relaxed);
        let failed: Vec<ReloadError> =
            [self.tokens(), self.certificate()].into_iter().filter_map(Result::err).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed) }
    }

    /// Reads what has changed since the last look. Says what came of it in the log.
    fn catch_up(&self) {
        let now = self.look();
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (tokens, certificate) = (now.tokens != seen.tokens, now.certificate != seen.certificate);
        *seen = now;
        drop(seen);
        let read = |what: &str, outcome: Result<(), ReloadError>| match outcome {
            Ok(()) => tracing::info!("{what} has changed and was read"),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "{what} has changed"),
        };
        if tokens {
            read("the token file", self.tokens());
        }
        if certificate {
            read("the certificate for HTTPS", self.certificate());
        }
    }

    fn tokens(&self) -> Result<(), ReloadError> {
        let Some(path) = &self.0.app.options().token_file else { return Ok(()) };
        self.0.app.access().replace(Tokens::read(path).map_err(ReloadError::Tokens)?);
        Ok(())
    }

    fn certificate(&self) -> Result<(), ReloadError> {
        self.0.tls.as_ref().map_or(Ok(()), |tls| tls.reload().map_err(ReloadError::Certificate))
    }

    fn look(&self) -> Seen {
        let stamps = |paths: &[&PathBuf]| paths.iter().map(|path| stamp(path)).collect();
        let files = self.0.tls.as_ref().map(|tls| tls.files());
        Seen {
            tokens: stamps(&self.0.app.options().token_file.iter().collect::<Vec<_>>()),
            certificate: files.map_or_else(Vec::new, |files| stamps(&[&files.cert, &files.key])),
        }
    }

    /// Looks at the files every [`FILES_POLL`], until it is told to stop.
    pub(crate) async fn watch(self, stop: CancellationToken) {
        let mut ticks = interval(FILES_POLL);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let this = self.clone();
            // The disk may be slow, or somebody else's.
            if let Err(error) = tokio::task::spawn_blocking(move || this.catch_up()).await {
                tracing::error!(%error, "files could not be looked at");
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = path.metadata().ok()?;
    #[cfg(unix)]
    let file = std::os::unix::fs::MetadataExt::ino(&metadata);
    #[cfg(not(unix))]
    let file = 0;
    Some(Stamp { modified: metadata.modified().ok()?, bytes: metadata.len(), file })
}
