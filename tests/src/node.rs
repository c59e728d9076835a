//! One node as a process: started, watched, stopped by signals.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::api::Api;
use crate::host::Host;
use crate::wait::until;

/// Longest time from the start of a process to its readiness.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// Lines of its log that a node shows at its end.
const LOG_LINES_SHOWN: usize = 60;

/// The program under test: `TIDINGS_BIN`, or what an optimised build leaves beside the tests, if it is that of the
/// present sources.
pub fn program() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find_program().map_err(|error| format!("{error:#}")));
    found.clone().map_err(anyhow::Error::msg)
}

fn find_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TIDINGS_BIN").map(PathBuf::from) {
        ensure!(path.is_file(), "TIDINGS_BIN: {} is not there", path.display());
        return Ok(path);
    }
    let test = std::env::current_exe().context("cannot tell where this test is")?;
    let target = test.ancestors().nth(3).context("this test is not in a target directory")?;
    let path = target.join("release/tidings");
    let built = modified(&path).context("`cargo build --release` builds it")?;
    // Cargo writes down beside it what it was built from.
    let sources =
        fs::read_to_string(path.with_extension("d")).context("what it was built from is not known")?;
    if let Some(newer) = newer_source(&sources, built) {
        bail!("{} is older than {newer}: `cargo build --release` builds it again", path.display());
    }
    Ok(path)
}

/// The first file of a list such as `program: source source` that was changed after a moment, or is not there any more.
fn newer_source(sources: &str, built: SystemTime) -> Option<String> {
    let (_, sources) = sources.split_once(": ")?;
    // A space in a name is escaped.
    let sources = sources.trim().replace("\\ ", "\0");
    let mut names = sources.split_whitespace().map(|name| name.replace('\0', " "));
    names.find(|name| modified(Path::new(name)).map_or(true, |changed| changed > built))
}

fn modified(path: &Path) -> Result<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).with_context(|| path.display().to_string())
}

/// Runs the program to its end; what it printed, if it succeeds.
pub fn run_program(arguments: &[&str]) -> Result<String> {
    let output = Command::new(program()?).args(arguments).stdin(Stdio::null()).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tidings {}: {}: {}", arguments.join(" "), output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a node runs: a program, and what that is told before all else.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its first arguments.
    pub first: Vec<String>,
}

/// A node that can be started, ended and paused. Ends with this.
#[derive(Debug)]
pub struct Node {
    id: String,
    config: PathBuf,
    host: Option<Arc<Host>>,
    api: Api,
    /// Instead of the program under test.
    other: Option<Program>,
    process: Option<Child>,
}

impl Node {
    /// A node with this configuration file, on a host of its own or on this machine. Not started.
    pub fn new(id: &str, config: &Path, http: &str, host: Option<Arc<Host>>) -> Result<Self> {
        let api = Api::new(http, host.as_ref().map(|host| host.runtime()))?;
        Ok(Self { id: id.to_owned(), config: config.to_owned(), host, api, other: None, process: None })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A client of it.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Whether it was started and not ended.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// Has it run another program from its next start on; `None`: the one under test again.
    pub fn runs(&mut self, other: Option<Program>) {
        self.other = other;
    }

    /// Starts it; it need not become ready.
    pub fn start(&mut self) -> Result<()> {
        assert!(self.process.is_none(), "{} runs already", self.id);
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = match &self.other {
            Some(Program { path, first }) => {
                let mut command = Command::new(path);
                command.args(first);
                command
            }
            None => Command::new(program()?),
        };
        command.args(["node", "--config"]).arg(&self.config).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let started = match &self.host {
            Some(host) => host.namespace().enter(|| command.spawn())?,
            None => command.spawn(),
        };
        self.process = Some(started.context("cannot start a node")?);
        Ok(())
    }

    /// Waits until it says it is ready; fails at once if it ends instead.
    pub async fn ready(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("not started")?;
        let (id, api) = (&self.id, &self.api);
        let what = format!("{id} is ready");
        let look = async || match process.try_wait()? {
            Some(status) => Ok(Some(status)),
            None => api.ready().await.map(|()| None),
        };
        let ended = until(&what, READY_WITHIN, look).await?;
        ensure!(ended.is_none(), "{id} ended: {}", ended.unwrap_or_default());
        Ok(())
    }

    /// Ends it without warning.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("not started")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Asks it to shut down; how it ended.
    pub async fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let process = self.process.as_mut().context("not started")?;
        let ended =
            until(&format!("{} ends", self.id), within, async || process.try_wait()?.context("it runs"))
                .await?;
        self.process = None;
        Ok(ended)
    }

    /// Stops its clock: no thread of it runs until [`Node::proceed`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn proceed(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Bytes of its memory that are resident.
    pub fn resident_bytes(&self) -> Result<u64> {
        const PAGE_BYTES: u64 = 4 << 10;
        let process = self.process.as_ref().context("not started")?;
        let statm = fs::read_to_string(format!("/proc/{}/statm", process.id()))?;
        let pages: u64 = statm.split(' ').nth(1).context("not as proc(5) says")?.parse()?;
        Ok(pages * PAGE_BYTES)
    }

    /// What it has printed in all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("not started")?;
        kill_process(Pid::from_child(process), signal).with_context(|| format!("cannot signal {}", self.id))
    }

    fn log_path(&self) -> PathBuf {
        self.config.with_extension("log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("cannot end {}: {error:#}", self.id);
        }
        // Seen only if the test fails: the output of others is not shown.
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("---- {}, the end of its log\n{}", self.id, shown.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;

    #[test]
    fn a_program_that_is_older_than_its_sources_is_noticed() {
        let directory = Directory::create().expect("a directory");
        let source = directory.path().join("a source.rs");
        fs::write(&source, "").expect("a file");
        let changed = modified(&source).expect("its time");
        let list = format!("program: {}\n", source.display().to_string().replace(' ', "\\ "));
        assert_eq!(newer_source(&list, changed), None);
        let before = changed - Duration::from_secs(1);
        assert_eq!(newer_source(&list, before), Some(source.display().to_string()));
        fs::remove_file(&source).expect("removed");
        assert_eq!(newer_source(&list, changed), Some(source.display().to_string()));
    }
}
