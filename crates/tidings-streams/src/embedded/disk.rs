//! What the store asks of a file system, so that tests can take the power away at any call.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

/// Files that a store has open at once. It may have thousands, and a process is often allowed 1,024: beyond this the
/// one that was not used for longest is closed, and opened again when it is needed.
const OPEN_FILES_MAX: usize = 256;

/// Held as long as nobody else may have the store.
pub(super) type Lock = Arc<dyn Any + Send + Sync>;

/// Directories and the names in them. What was changed is kept by the disk once the directory is synced.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// Takes a file for one store alone. `None`: another has it.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;

    /// Makes a directory, and those that it lies in, where there are none.
    fn make_directory(&self, path: &Path) -> io::Result<()>;

    /// The names in a directory that are text, and the lengths of what they name.
    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>>;

    /// An empty file, in the place of the one of that name if there is one.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn Data>>;

    /// A file that is there.
    fn file(&self, path: &Path) -> Arc<dyn Data>;

    /// Gives a file another name. It is reached by that one from then on.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Has the disk keep which names there are in a directory.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// A file.
pub(super) trait Data: fmt::Debug + Send + Sync {
    fn length(&self) -> io::Result<u64>;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Has the disk keep what was written.
    fn sync(&self) -> io::Result<()>;
}

/// The file system that there is.
#[derive(Debug, Default)]
pub(super) struct System(Arc<Mutex<Pool>>);

#[derive(Debug, Default)]
struct Pool {
    uses: u64,
    open: HashMap<u64, Opened>,
    /// Which were used when, each by its last use.
    order: BTreeMap<u64, u64>,
    handles: u64,
}

#[derive(Debug)]
struct Opened {
    file: Arc<File>,
    used: u64,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Something was written that the disk need not have.
    dirty: AtomicBool,
    /// It could not be synced when it was closed: whoever asks for that later has to know.
    lost: AtomicBool,
}

#[derive(Debug)]
struct SystemFile {
    id: u64,
    path: PathBuf,
    state: Arc<State>,
    pool: Arc<Mutex<Pool>>,
}

impl Pool {
    fn insert(&mut self, id: u64, file: File, state: Arc<State>) -> Arc<File> {
        while self.open.len() >= OPEN_FILES_MAX {
            let Some((_, oldest)) = self.order.pop_first() else { break };
            let Some(closed) = self.open.remove(&oldest) else { continue };
            // What goes wrong while nobody has it open might be said to nobody.
            if closed.state.dirty.load(Ordering::Relaxed) {
                match closed.file.sync_data() {
                    Ok(()) => closed.state.dirty.store(false, Ordering::Relaxed),
                    Err(_) => closed.state.lost.store(true, Ordering::Relaxed),
                }
            }
        }
        self.uses += 1;
        let file = Arc::new(file);
        self.order.insert(self.uses, id);
        self.open.insert(id, Opened { file: Arc::clone(&file), used: self.uses, state });
        file
    }

    fn find(&mut self, id: u64) -> Option<Arc<File>> {
        let opened = self.open.get_mut(&id)?;
        self.uses += 1;
        self.order.remove(&std::mem::replace(&mut opened.used, self.uses));
        self.order.insert(self.uses, id);
        Some(Arc::clone(&opened.file))
    }

    fn close(&mut self, id: u64) {
        if let Some(opened) = self.open.remove(&id) {
            self.order.remove(&opened.used);
        }
    }
}

impl System {
    fn handle(&self, path: &Path) -> SystemFile {
        let mut pool = self.0.lock();
        pool.handles += 1;
        let (id, state) = (pool.handles, Arc::default());
        SystemFile { id, path: path.to_owned(), state, pool: Arc::clone(&self.0) }
    }
}

impl SystemFile {
    fn get(&self) -> io::Result<Arc<File>> {
        let mut pool = self.pool.lock();
        if let Some(file) = pool.find(self.id) {
            return Ok(file);
        }
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        Ok(pool.insert(self.id, file, Arc::clone(&self.state)))
    }
}

impl Drop for SystemFile {
    fn drop(&mut self) {
        self.pool.lock().close(self.id);
    }
}

impl Data for SystemFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.get()?.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.get()?.read_exact_at(buffer, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let file = self.get()?;
        self.state.dirty.store(true, Ordering::Relaxed);
        file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        if self.state.lost.load(Ordering::Relaxed) {
            return Err(io::Error::other("what was written could not be synced"));
        }
        self.get()?.sync_data()?;
        self.state.dirty.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Disk for System {
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Arc::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut listed = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                listed.push((name, entry.metadata()?.len()));
            }
        }
        Ok(listed)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn Data>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let handle = self.handle(path);
        self.0.lock().insert(handle.id, file, Arc::clone(&handle.state));
        Ok(Arc::new(handle))
    }

    fn file(&self, path: &Path) -> Arc<dyn Data> {
        Arc::new(self.handle(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_may_be_open_are_written_and_read() {
        let home = tempfile::tempdir().unwrap();
        let disk = System::default();
        let files: Vec<_> = (0..OPEN_FILES_MAX + 40)
            .map(|number| disk.create(&home.path().join(number.to_string())).unwrap())
            .collect();
        for (number, file) in files.iter().enumerate() {
            file.write_all_at(&number.to_le_bytes(), 0).unwrap();
            assert!(disk.0.lock().open.len() <= OPEN_FILES_MAX);
        }
        for (number, file) in files.iter().enumerate() {
            let mut bytes = [0; size_of::<usize>()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(usize::from_le_bytes(bytes), number);
            file.sync().unwrap();
        }
        drop(files);
        assert!(disk.0.lock().open.is_empty() && disk.0.lock().order.is_empty());
    }
}
