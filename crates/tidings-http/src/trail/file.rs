//! The file of the trail: JSON, a line each, only ever added to.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Line;

/// Lines that are written together.
const BATCH_LINES: usize = 256;

/// Opens the file, which its owner alone may read.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Writes lines as they come.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) lines: mpsc::Receiver<Line>,
    /// Set when the file is to be opened anew, for somebody may have moved it away.
    pub(crate) reopen: Arc<AtomicBool>,
    pub(crate) lost: Arc<AtomicU64>,
}

impl Writer {
    /// Writes until it is told to stop, and then what is there. What cannot be written is counted and logged: requests
    /// are answered all the same.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { path, file, mut lines, reopen, lost } = self;
        let (mut file, mut torn) = (tokio::fs::File::from_std(file), false);
        let mut batch = Vec::with_capacity(BATCH_LINES);
        loop {
            tokio::select! {
                biased;
                taken = lines.recv_many(&mut batch, BATCH_LINES) => if taken == 0 { return },
                () = stop.cancelled(), if !lines.is_closed() => {
                    lines.close();
                    continue;
                }
            }
            if reopen.swap(false, Ordering::Relaxed) {
                file = reopened(&path, file).await;
            }
            let mut text = String::new();
            if torn {
                // What was written in part is a line of its own.
                text.push('\n');
            }
            batch.iter().for_each(|line| text.push_str(&line.text));
            let written = async {
                file.write_all(text.as_bytes()).await?;
                file.flush().await
            };
            match written.await {
                Ok(()) => {
                    torn = false;
                    for line in batch.drain(..) {
                        // Who asked may have gone.
                        let _ = line.written.send(());
                    }
                }
                Err(error) => {
                    torn = true;
                    let lines = batch.len();
                    lost.fetch_add(lines as u64, Ordering::Relaxed);
                    tracing::error!(path = %path.display(), lines, %error, "the audit file was not written");
                    batch.clear();
                }
            }
        }
    }
}

/// The file that has the path now, or else the one that had it.
async fn reopened(path: &Path, file: tokio::fs::File) -> tokio::fs::File {
    let opened = {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || open(&path)).await
    };
    match opened.map_err(io::Error::other).flatten() {
        Ok(opened) => tokio::fs::File::from_std(opened),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "the audit file was not opened anew");
            file
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    async fn write(lines: &mpsc::Sender<Line>, text: &str) -> bool {
        let (written, told) = oneshot::channel();
        lines.send(Line { text: text.to_owned(), written }).await.unwrap();
        told.await.is_ok()
    }

    fn writer(path: &Path, file: File) -> (Writer, mpsc::Sender<Line>) {
        let (sender, lines) = mpsc::channel(8);
        (Writer { path: path.to_owned(), file, lines, reopen: Arc::default(), lost: Arc::default() }, sender)
    }

    #[tokio::test]
    async fn lines_are_there_when_they_are_said_to_be_and_a_moved_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("audit"), directory.path().join("audit.1"));
        std::fs::write(&path, "before\n").unwrap();
        let (writer, lines) = writer(&path, open(&path).unwrap());
        let (reopen, stop) = (writer.reopen.clone(), CancellationToken::new());
        let test = async {
            assert!(write(&lines, "one\n").await);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\none\n");
            std::fs::rename(&path, &moved).unwrap();
            reopen.store(true, Ordering::Relaxed);
            assert!(write(&lines, "two\n").await);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
            assert_eq!(std::fs::read_to_string(&moved).unwrap(), "before\none\n");
            stop.cancel();
        };
        tokio::join!(writer.run(stop.clone()), test);
        assert!(lines.is_closed());
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_counted_and_keeps_nobody_waiting() {
        let (writer, lines) = writer(Path::new("/dev/full"), open(Path::new("/dev/full")).unwrap());
        let (lost, stop) = (writer.lost.clone(), CancellationToken::new());
        let test = async {
            assert!(!write(&lines, "one\n").await);
            assert_eq!(lost.load(Ordering::Relaxed), 1);
            stop.cancel();
        };
        tokio::join!(writer.run(stop.clone()), test);
    }
}
