//! Files that must not be lost, nor read by others, and input that must end.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::exit::{Exit, Failure};
use crate::units;

/// Whom a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// Anybody: mode 0644.
    Public,
    /// Its owner: mode 0600.
    Secret,
}

/// A file to write.
#[derive(Debug)]
pub(crate) struct Draft {
    /// Where.
    pub(crate) path: PathBuf,
    /// What.
    pub(crate) text: String,
    /// For whom.
    pub(crate) secrecy: Secrecy,
}

impl Draft {
    /// A file for anybody.
    pub(crate) fn public(path: PathBuf, text: impl Into<String>) -> Self {
        Self { path, text: text.into(), secrecy: Secrecy::Public }
    }

    /// A file for its owner.
    pub(crate) fn secret(path: PathBuf, text: impl Into<String>) -> Self {
        Self { path, text: text.into(), secrecy: Secrecy::Secret }
    }
}

/// What happens to files that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    /// They are replaced.
    Replaced,
    /// Nothing is written, and the user is told what to do.
    Kept(&'static str),
}

impl Present {
    /// As `--force` says.
    pub(crate) fn forced(force: bool) -> Self {
        if force { Self::Replaced } else { Self::Kept("--force replaces it") }
    }
}

/// Writes files, making their directories. Each appears whole; if one of them cannot be put in place, those that were
/// not there before are taken back.
///
/// # Errors
/// One is there (exit 6), or cannot be written.
pub(crate) fn write(drafts: &[Draft], present: Present) -> Result<(), Failure> {
    if let Present::Kept(hint) = present
        && let Some(draft) = drafts.iter().find(|draft| draft.path.symlink_metadata().is_ok())
    {
        return Err(exists(&draft.path, hint));
    }
    let cannot = |draft: &Draft, error: &io::Error| {
        Failure::new(Exit::Failed, format!("cannot write {}: {error}", draft.path.display()))
    };
    let prepare = |draft| prepared(draft).map_err(|error| cannot(draft, &error));
    let files = drafts.iter().map(prepare).collect::<Result<Vec<_>, _>>()?;
    let mut placed: Vec<&Path> = Vec::new();
    for (draft, file) in drafts.iter().zip(files) {
        let done = match present {
            Present::Replaced => file.persist(&draft.path),
            Present::Kept(_) => file.persist_noclobber(&draft.path),
        };
        if let Err(error) = done {
            if present != Present::Replaced {
                // What cannot be taken back is named by the next try.
                placed.iter().for_each(|path| drop(fs::remove_file(path)));
            }
            return Err(match (present, error.error.kind()) {
                (Present::Kept(hint), ErrorKind::AlreadyExists) => exists(&draft.path, hint),
                _ => cannot(draft, &error.error),
            });
        }
        placed.push(&draft.path);
    }
    Ok(())
}

/// Reads a file that the user named.
///
/// # Errors
/// It is not there (exit 3), or cannot be read.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| {
        let exit = if error.kind() == ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
        Failure::new(exit, format!("cannot read {}: {error}", path.display()))
    })
}

/// Reads a file, or stdin if it is `-`, to its end. The caller can give up meanwhile, which a read by itself cannot.
///
/// # Errors
/// It cannot be read, or is longer than `bytes_max`.
pub(crate) async fn read_whole(path: PathBuf, bytes_max: u64) -> io::Result<Vec<u8>> {
    let read = move || {
        let source: Box<dyn Read> =
            if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(fs::File::open(path)?) };
        let mut bytes = Vec::new();
        source.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            let message = format!("it is longer than {}", units::show_bytes(bytes_max));
            return Err(io::Error::new(ErrorKind::FileTooLarge, message));
        }
        Ok(bytes)
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// A file beside its place that is complete but for its name. It never had the mode of one that it replaces.
fn prepared(draft: &Draft) -> io::Result<NamedTempFile> {
    let mode = match draft.secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    let directory = match draft.path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)?;
    let permissions = Permissions::from_mode(mode);
    let mut file = tempfile::Builder::new().permissions(permissions).tempfile_in(directory)?;
    file.write_all(draft.text.as_bytes()).and_then(|()| file.as_file().sync_all())?;
    Ok(file)
}

fn exists(path: &Path, hint: &str) -> Failure {
    Failure::new(Exit::Conflict, format!("{} is there already", path.display())).hint(hint)
}
