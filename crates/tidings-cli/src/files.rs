//! Writing files that must not be lost, nor read by others.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Failure};

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

/// Writes files, making their directories. Without `force`, nothing is written if one of them is there.
///
/// # Errors
/// One is there (exit 6), or cannot be written.
pub(crate) fn write(drafts: &[Draft], force: bool) -> Result<(), Failure> {
    if let Some(draft) = drafts.iter().find(|draft| !force && draft.path.symlink_metadata().is_ok()) {
        return Err(exists(&draft.path));
    }
    for draft in drafts {
        let written = write_one(draft, force);
        written.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => exists(&draft.path),
            _ => Failure::new(Exit::Failed, format!("cannot write {}: {error}", draft.path.display())),
        })?;
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

fn write_one(draft: &Draft, force: bool) -> io::Result<()> {
    let mode = match draft.secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    if let Some(directory) = draft.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory)?;
    }
    // A replaced file changes at once and whole, and never keeps the mode of the old one.
    let target = if force { beside(&draft.path) } else { draft.path.clone() };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&target)?;
    file.write_all(draft.text.as_bytes()).and_then(|()| file.sync_all())?;
    if force { fs::rename(&target, &draft.path) } else { Ok(()) }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    path.with_file_name(name)
}

fn exists(path: &Path) -> Failure {
    Failure::new(Exit::Conflict, format!("{} is there already", path.display())).hint("--force replaces it")
}
