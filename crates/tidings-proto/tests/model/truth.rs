//! The system of record, and the oracle: what was written, when each write was told, and so how old a hit may be.

use super::{KEYS, MAX_STALENESS, Ms};

/// One life of one node.
pub(crate) type Writer = (usize, u64);

#[derive(Debug)]
struct Committed {
    writer: Writer,
    /// From then on the bound counts: the append, or else the later of the commit and its writer's crash.
    told: Option<Ms>,
    appended: bool,
}

/// A write, from its start to its return.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) writer: Writer,
    pub(crate) key: usize,
    version: Option<usize>,
    crashed: bool,
    appended: bool,
}

#[derive(Debug)]
pub(crate) struct Truth {
    keys: Vec<Vec<Committed>>,
    writes: Vec<Write>,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self { keys: (0..KEYS).map(|_| Vec::new()).collect(), writes: Vec::new() }
    }

    /// The version that a load reads now: how many writes have been committed.
    pub(crate) fn version(&self, key: usize) -> usize {
        self.keys[key].len()
    }

    pub(crate) fn begin(&mut self, writer: Writer, key: usize) -> usize {
        self.writes.push(Write { writer, key, version: None, crashed: false, appended: false });
        self.writes.len() - 1
    }

    pub(crate) fn write(&self, id: usize) -> &Write {
        &self.writes[id]
    }

    pub(crate) fn commit(&mut self, id: usize, now: Ms) {
        let write = &mut self.writes[id];
        let told = write.crashed.then_some(now);
        self.keys[write.key].push(Committed { writer: write.writer, told, appended: false });
        write.version = Some(self.keys[write.key].len());
    }

    /// The write's invalidation is in its writer's log: the write returns.
    pub(crate) fn appended(&mut self, id: usize, now: Ms) {
        let write = &mut self.writes[id];
        write.appended = true;
        let version = write.version.expect("appended after the commit");
        let committed = &mut self.keys[write.key][version - 1];
        (committed.told, committed.appended) = (Some(now), true);
    }

    pub(crate) fn crashed(&mut self, writer: Writer, now: Ms) {
        for write in self.writes.iter_mut().filter(|write| write.writer == writer && !write.appended) {
            write.crashed = true;
            if let Some(version) = write.version {
                self.keys[write.key][version - 1].told = Some(now);
            }
        }
    }

    /// Judges an unmarked hit; returns how old it is.
    pub(crate) fn judge(
        &self,
        reader: Writer,
        key: usize,
        version: usize,
        now: Ms,
        excused: impl Fn(usize) -> bool,
    ) -> Result<Ms, String> {
        let mut oldest = 0;
        for (index, newer) in self.keys[key].iter().enumerate().skip(version) {
            let Some(told) = newer.told else { continue };
            let own = newer.writer == reader && newer.appended;
            let bound = if own { 0 } else { MAX_STALENESS };
            if now > told + bound && excused(newer.writer.0) {
                continue;
            }
            if now > told + bound {
                let (node, life) = newer.writer;
                return Err(format!(
                    "n{}#{} served version {version} of key {key} at {now}: version {} was told by n{node}#{life} \
                     at {told}, {} ms before",
                    reader.0,
                    reader.1,
                    index + 1,
                    now - told
                ));
            }
            oldest = oldest.max(now.saturating_sub(told));
        }
        Ok(oldest)
    }
}
