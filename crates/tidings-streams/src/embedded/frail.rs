//! A disk in memory that forgets what it was not made to keep when its power is cut, and that fails at a call.
//!
//! It is as hostile as a file system may be. Of what was written to a file and not synced each page survives or not, by
//! chance, and so does each change of a name in a directory. A sync that fails leaves pages that are read as they were
//! written, of which the disk has some, and that no later sync writes: they count as clean.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Data, Disk, Lock};

const PAGE_BYTES: usize = 4_096;

/// Draws numbers, the same ones for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = Self(seed);
        for _ in 0..4 {
            chance.below(2);
        }
        chance
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    pub(super) fn is_heads(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails, and those behind it do not.
    Error,
    /// Nothing works any more.
    Cut,
}

/// How a store might be wrong, as its disk would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// It syncs nothing.
    Unsynced,
    /// It syncs no directory.
    NamesUnsynced,
    /// It does not write again what is there already.
    TrustsClean,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File(usize),
}

#[derive(Clone, Debug)]
enum Renaming {
    Put(PathBuf, Node),
    Move(PathBuf, PathBuf, Node),
    Take(PathBuf),
}

#[derive(Debug, Default)]
struct Content {
    /// As it is read.
    read: Vec<u8>,
    /// As the disk has it.
    kept: Vec<u8>,
    /// What the disk need not have: places, and what was written there.
    dirty: Vec<(usize, Vec<u8>)>,
}

impl Content {
    fn keep(&mut self, mut which: impl FnMut() -> bool) {
        for (offset, bytes) in std::mem::take(&mut self.dirty) {
            if which() {
                put(&mut self.kept, offset, &bytes);
            }
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

#[derive(Debug)]
struct Media {
    names: BTreeMap<PathBuf, Node>,
    kept: BTreeMap<PathBuf, Node>,
    /// Changes of names that the disk need not have, in their order.
    renamings: Vec<Renaming>,
    files: Vec<Content>,
    chance: Chance,
    calls: u64,
    fault: Option<(u64, Fault)>,
    defect: Option<Defect>,
}

impl Media {
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.fault {
            Some((at, Fault::Error)) if self.calls == at => Err(io::Error::other("it fails")),
            Some((at, Fault::Cut)) if self.calls >= at => Err(io::Error::other("the power is cut")),
            _ => Ok(()),
        }
    }

    fn rename(&mut self, renaming: Renaming) {
        apply(&mut self.names, &renaming);
        self.renamings.push(renaming);
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(file)) => Ok(*file),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, renaming: &Renaming) {
    match renaming {
        Renaming::Put(path, node) => drop(names.insert(path.clone(), *node)),
        Renaming::Move(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
        Renaming::Take(path) => drop(names.remove(path)),
    }
}

fn is_in(renaming: &Renaming, directory: &Path) -> bool {
    let (Renaming::Put(path, _) | Renaming::Move(_, path, _) | Renaming::Take(path)) = renaming;
    path.parent() == Some(directory)
}

#[derive(Clone, Debug)]
pub(super) struct Frail(Arc<Mutex<Media>>);

#[derive(Debug)]
struct FrailFile {
    path: PathBuf,
    disk: Frail,
}

impl Frail {
    /// An empty disk but for a directory.
    pub(super) fn new(seed: u64, root: &Path, defect: Option<Defect>) -> Self {
        let names: BTreeMap<PathBuf, Node> =
            root.ancestors().map(|path| (path.to_owned(), Node::Directory)).collect();
        Self(Arc::new(Mutex::new(Media {
            kept: names.clone(),
            names,
            renamings: Vec::new(),
            files: Vec::new(),
            chance: Chance::new(seed),
            calls: 0,
            fault: None,
            defect,
        })))
    }

    /// Has one of the next calls fail.
    pub(super) fn fail(&self, calls: u64, fault: Fault) {
        let mut media = self.0.lock();
        media.fault = Some((media.calls + calls, fault));
    }

    /// Nothing fails any more. The process that had the disk is gone, and what it wrote is there.
    pub(super) fn restart(&self) {
        self.0.lock().fault = None;
    }

    /// The power goes and comes back: what the disk was not made to keep may be gone.
    pub(super) fn cut(&self) {
        let media = &mut *self.0.lock();
        media.fault = None;
        for renaming in std::mem::take(&mut media.renamings) {
            if media.chance.is_heads() {
                apply(&mut media.kept, &renaming);
            }
        }
        // What lies in a directory goes with it.
        let kept = media.kept.clone();
        media.kept.retain(|path, _| path.ancestors().skip(1).all(|above| kept.contains_key(above)));
        media.names = media.kept.clone();
        for content in &mut media.files {
            // Sometimes all of it, sometimes none: what lies between is worse, and so is that.
            let (all, none) = (media.chance.below(4) == 0, media.chance.below(4) == 0);
            content.keep(|| all || (!none && media.chance.is_heads()));
            content.read.clone_from(&content.kept);
        }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Media) -> io::Result<T>) -> io::Result<T> {
        let media = &mut *self.0.lock();
        media.call()?;
        what(media)
    }
}

impl Data for FrailFile {
    fn length(&self) -> io::Result<u64> {
        self.disk.with(|media| Ok(media.files[media.file(&self.path)?].read.len() as u64))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.with(|media| {
            let content = &media.files[media.file(&self.path)?].read;
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let there = content.get(from..from + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(there);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let media = &mut *self.disk.0.lock();
        let (called, file) = (media.call(), media.file(&self.path)?);
        // Of a write that fails some may have come there.
        let most =
            if called.is_ok() { bytes.len() } else { media.chance.below(bytes.len() as u64 + 1) as usize };
        let content = &mut media.files[file];
        let mut at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = &bytes[..most];
        while !rest.is_empty() {
            let (page, behind) = rest.split_at(rest.len().min(PAGE_BYTES - at % PAGE_BYTES));
            let is_there = content.read.get(at..at + page.len()) == Some(page);
            put(&mut content.read, at, page);
            if !(is_there && media.defect == Some(Defect::TrustsClean)) {
                content.dirty.push((at, page.to_owned()));
            }
            at += page.len();
            rest = behind;
        }
        called
    }

    fn sync(&self) -> io::Result<()> {
        let media = &mut *self.disk.0.lock();
        let (called, file) = (media.call(), media.file(&self.path)?);
        let content = &mut media.files[file];
        match &called {
            Ok(()) if media.defect == Some(Defect::Unsynced) => {}
            Ok(()) => content.keep(|| true),
            // Nothing that is cut off tells the disk anything.
            Err(_) if matches!(media.fault, Some((_, Fault::Cut))) => {}
            Err(_) => content.keep(|| media.chance.is_heads()),
        }
        called
    }
}

impl Disk for Frail {
    fn lock(&self, _path: &Path) -> io::Result<Option<Lock>> {
        let lock: Lock = Arc::new(());
        self.with(|_| Ok(Some(lock)))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.with(|media| {
            let mut missing: Vec<&Path> =
                path.ancestors().take_while(|path| !media.names.contains_key(*path)).collect();
            while let Some(path) = missing.pop() {
                media.rename(Renaming::Put(path.to_owned(), Node::Directory));
            }
            Ok(())
        })
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<(String, u64)>> {
        self.with(|media| {
            let here = media.names.iter().filter(|(path, _)| path.parent() == Some(directory));
            let listed = here.map(|(path, node)| {
                let length = if let Node::File(file) = node { media.files[*file].read.len() } else { 0 };
                (path.file_name().unwrap().to_str().unwrap().to_owned(), length as u64)
            });
            Ok(listed.collect())
        })
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn Data>> {
        self.with(|media| {
            media.files.push(Content::default());
            media.rename(Renaming::Put(path.to_owned(), Node::File(media.files.len() - 1)));
            Ok(())
        })?;
        Ok(self.file(path))
    }

    fn file(&self, path: &Path) -> Arc<dyn Data> {
        Arc::new(FrailFile { path: path.to_owned(), disk: self.clone() })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|media| {
            let node = Node::File(media.file(from)?);
            media.rename(Renaming::Move(from.to_owned(), to.to_owned(), node));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|media| {
            media.file(path)?;
            media.rename(Renaming::Take(path.to_owned()));
            Ok(())
        })
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.with(|media| {
            if matches!(media.defect, Some(Defect::Unsynced | Defect::NamesUnsynced)) {
                return Ok(());
            }
            let (now, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut media.renamings).into_iter().partition(|one| is_in(one, directory));
            now.iter().for_each(|renaming| apply(&mut media.kept, renaming));
            media.renamings = later;
            Ok(())
        })
    }
}
