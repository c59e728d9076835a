//! Does what the schedule says.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::children::Children;
use super::schedule::{Action, Event, Schedule};
use crate::exit::Failure;
use crate::output::Output;
use crate::replay::engine::Run;
use crate::replay::http::HttpNodes;

/// Chaos under way.
#[derive(Debug)]
pub(crate) struct Chaos {
    children: Children,
    schedule: Schedule,
    done: Arc<Mutex<Vec<String>>>,
    output: Output,
}

impl Chaos {
    /// Chaos of a seed for these nodes.
    pub(crate) fn new(children: Children, seed: u64, output: Output) -> Self {
        let schedule = Schedule::new(seed, children.count());
        Self { children, schedule, done: Arc::default(), output }
    }

    /// What has been done so far, shared.
    pub(crate) fn done(&self) -> Arc<Mutex<Vec<String>>> {
        Arc::clone(&self.done)
    }

    /// Goes on until told to end, and then undoes what is not undone yet and waits until every node is ready.
    ///
    /// # Errors
    /// A node cannot be killed, started or reached.
    pub(crate) async fn run(
        mut self,
        run: &Run<HttpNodes>,
        end: &CancellationToken,
    ) -> Result<Children, Failure> {
        let started = Instant::now();
        let mut undo = None;
        while let Some(event) = self.schedule.next() {
            if end.run_until_cancelled(sleep_until(started + event.at)).await.is_none() {
                if undo.is_some() {
                    self.act(Event { at: started.elapsed(), ..event }, run).await?;
                }
                break;
            }
            undo = if undo.is_none() { Some(()) } else { None };
            self.act(event, run).await?;
        }
        self.children.ready().await?;
        Ok(self.children)
    }

    async fn act(&mut self, event: Event, run: &Run<HttpNodes>) -> Result<(), Failure> {
        self.output.note(event);
        self.done.lock().push(event.to_string().trim_start().to_owned());
        let cuts = self.children.cuts();
        match event.action {
            Action::Kill(node) => {
                run.target().before_end_of(node).await;
                self.children.kill(node).await?;
            }
            Action::Restart(node) => self.children.restart(node)?,
            Action::Pause(node) => self.children.pause(node)?,
            Action::Continue(node) => self.children.resume(node)?,
            Action::CutOneWay(from, to) => cuts.add(from, to),
            Action::Cut(one, other) => {
                cuts.add(one, other);
                cuts.add(other, one);
            }
            Action::Isolate(node) => {
                for other in (0..self.children.count()).filter(|other| *other != node) {
                    cuts.add(node, other);
                    cuts.add(other, node);
                }
            }
            Action::Heal => cuts.clear(),
        }
        Ok(())
    }
}
