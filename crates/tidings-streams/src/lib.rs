//! Durable streams.

mod call;
#[cfg(feature = "conformance")]
pub mod conformance;
mod consume;
pub mod decide;
mod delivery;
mod driver;
#[cfg(feature = "embedded")]
pub mod embedded;
mod error;
mod event;
mod id;
pub mod ledger;
mod name;
mod redrive;
mod settings;
mod streams;
mod transfer;

pub use call::*;
pub use consume::{ConsumeOptions, Consumed, Consumer};
pub use delivery::{Delivery, Failed, SettleError};
pub use driver::Driver;
pub use error::{DeadLetterError, GroupError, PublishError, StoreError};
pub use event::*;
pub use id::{DeadLetterId, EventId, InvalidId, Timestamp};
pub use name::{InvalidName, NAME_BYTES_MAX, Name};
pub use redrive::Redriven;
pub use settings::{
    Backoff, InvalidSettings, Retention, Settings, Topic, TopicError, TopicSettings, WAIT_MAX,
};
pub use streams::{Group, Stream, StreamError, Streams};
pub use transfer::{ImportError, LineError, from_line, to_line};
