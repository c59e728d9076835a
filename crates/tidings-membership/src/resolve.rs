//! Looking names up, on threads of its own.
//!
//! The system's resolver cannot be given up on: it answers when it likes, and a thread waits for it until then. On a
//! runtime's blocking threads, of which there are few, a name server that does not answer would in time hold all of
//! them, and with them everything else that runs there, and the end of the runtime. So each name has at most one
//! thread, which nobody waits for: it holds nothing but the name, and ends with its look-up or with the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a name may take before it counts as unresolved for now. Its look-up goes on, and whoever asks for the name
/// again gets its answer.
pub(crate) const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a look-up found, or why it found nothing.
pub(crate) type Answer = Result<BTreeSet<SocketAddr>, String>;

type Lookup = dyn Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync;

/// The answers of look-ups that have not ended, by name.
type UnderWay = Mutex<BTreeMap<String, watch::Receiver<Option<Answer>>>>;

/// Looks up `host:port`. Clones share the look-ups that are under way: of each name there is at most one, so there are
/// never more than there are names in the configuration.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<Lookup>,
    under_way: Arc<UnderWay>,
}

impl Default for Resolver {
    /// Asks the system.
    fn default() -> Self {
        Self::with(|name| Ok(name.to_socket_addrs()?.collect()))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Asks this function, which may block, instead of the system.
    #[must_use]
    pub fn with(lookup: impl Fn(&str) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static) -> Self {
        Self { lookup: Arc::new(lookup), under_way: Arc::default() }
    }

    /// The addresses of a name: at least one, or why there is none, or none in time.
    ///
    /// Cancel safe: a look-up that has begun goes on, and serves whoever asks next.
    pub(crate) async fn resolve(&self, name: &str) -> Answer {
        let mut answer = self.join(name).map_err(|error| error.to_string())?;
        let answered = timeout(RESOLVE_TIMEOUT, answer.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(answer)) => answer.clone().unwrap_or_else(|| Err("no answer".to_owned())),
            Ok(Err(_)) => Err("the look-up broke off".to_owned()),
            Err(_) => Err(format!("no answer within {RESOLVE_TIMEOUT:?}")),
        }
    }

    /// Joins the look-up of a name that is under way, or begins one.
    fn join(&self, name: &str) -> io::Result<watch::Receiver<Option<Answer>>> {
        let mut under_way = self.under_way.lock();
        if let Some(answer) = under_way.get(name) {
            return Ok(answer.clone());
        }
        let (sender, answer) = watch::channel(None);
        let ending = Ending { under_way: Arc::clone(&self.under_way), name: name.to_owned() };
        let lookup = Arc::clone(&self.lookup);
        under_way.insert(name.to_owned(), answer.clone());
        // If no thread can be made, the closure is dropped here, and its `ending` wants the lock.
        drop(under_way);
        thread::Builder::new().name("tidings-resolve".to_owned()).spawn(move || {
            let found = lookup(&ending.name);
            let found = found.map(BTreeSet::from_iter).map_err(|error| error.to_string());
            let found = found
                .and_then(|found| if found.is_empty() { Err("no address".to_owned()) } else { Ok(found) });
            // In this order: who does not find the look-up any more begins another, and who does gets its answer.
            drop(ending);
            sender.send_replace(Some(found));
        })?;
        Ok(answer)
    }
}

/// Takes a look-up off the list when it ends, however it ends.
struct Ending {
    under_way: Arc<UnderWay>,
    name: String,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// A resolver that hangs at names that begin with `hung` until it is told to go on, and counts its look-ups.
    fn resolver() -> (Resolver, mpsc::SyncSender<()>, Arc<AtomicUsize>) {
        let (go, wait) = mpsc::sync_channel::<()>(1);
        let (wait, asked) = (Mutex::new(wait), Arc::new(AtomicUsize::new(0)));
        let counter = Arc::clone(&asked);
        let resolver = Resolver::with(move |name| {
            counter.fetch_add(1, Ordering::SeqCst);
            if name.starts_with("hung") {
                // It also goes on once the test has ended.
                let _ = wait.lock().recv();
            }
            Ok(vec![SocketAddr::from(([10, 0, 0, 1], 7))])
        });
        (resolver, go, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_hangs_is_not_begun_again_and_its_late_answer_counts() {
        let (resolver, go, asked) = resolver();
        for _ in 0..20 {
            assert_eq!(resolver.resolve("hung:1").await, Err("no answer within 5s".to_owned()));
        }
        assert_eq!(resolver.under_way.lock().len(), 1, "one look-up");
        let mut late = resolver.join("hung:1").unwrap();
        go.send(()).unwrap();
        assert!(late.wait_for(Option::is_some).await.unwrap().as_ref().unwrap().is_ok());
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(resolver.under_way.lock().is_empty(), "the next one asks again");
    }

    #[tokio::test]
    async fn names_that_hang_delay_no_other() {
        let (resolver, _go, _) = resolver();
        let hung: Vec<_> =
            (0..100).map(|number| resolver.join(&format!("hung-{number}:1")).unwrap()).collect();
        assert!(resolver.resolve("sound:1").await.is_ok());
        assert!(hung.iter().all(|answer| answer.borrow().is_none()));
    }

    #[tokio::test]
    async fn what_the_system_cannot_resolve_is_an_error_with_its_reason() {
        assert!(Resolver::default().resolve("localhost:7").await.is_ok());
        let failing = Resolver::with(|_| Err(io::Error::other("no such name")));
        assert_eq!(failing.resolve("a:1").await, Err("no such name".to_owned()));
        assert_eq!(Resolver::with(|_| Ok(vec![])).resolve("a:1").await, Err("no address".to_owned()));
    }
}
