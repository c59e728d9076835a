//! Who is told of events that are given up while somebody receives.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::name::Name;

/// What is called with a topic, a group of it, and how many of its events became dead letters. It must not wait.
pub type TellBurials = Arc<dyn Fn(&Name, &Name, u64) + Send + Sync>;

/// Where a driver keeps whom it tells: see [`crate::Driver::watch_burials`].
#[derive(Default)]
pub struct Burials(OnceLock<TellBurials>);

impl Burials {
    /// Tells from now on. Who came first stays.
    pub fn watch(&self, tell: TellBurials) {
        // Who comes later has asked a driver that is somebody else's.
        let _ = self.0.set(tell);
    }

    /// Says that so many events became dead letters.
    pub fn tell(&self, topic: &Name, group: &Name, events: u64) {
        if let Some(tell) = self.0.get().filter(|_| events > 0) {
            tell(topic, group, events);
        }
    }
}

impl fmt::Debug for Burials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Burials").field(&self.0.get().is_some()).finish()
    }
}
