//! Connecting: where a server is, whether it will do, and what a store has there.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Nats;
use super::config::{Config, ConnectError, VERSION_NEEDED_PARTS};
use super::error::{Refusal, of_api};
use super::link::{Clock, Link};
use super::names::Names;
use super::topics::{Known, stream_config};
use super::watch::Watches;
use super::wire::LETTER_BYTES_MAX;
use super::writer::Replicas;
use crate::burials::Burials;
use crate::decide::backoff;
use crate::error::StoreError;
use crate::event::{HEADER_BYTES_MAX, KEY_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::settings::{Backoff, WAIT_MAX};

/// How long one attempt to connect takes at most, however short the time of those who wait for it.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How long to wait before connecting again: all processes of a cluster lose a server at once, and should not all come
/// back at once.
const RECONNECT: Backoff =
    Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2), jitter: 0.5 };

/// How often a connection is tried that nothing comes on. Whoever calls waits no longer than its own time anyway.
const PING: Duration = Duration::from_secs(5);

/// Messages and requests that wait to be written, beyond which callers wait.
const UNWRITTEN_MAX: usize = 1_024;

/// How long burials are known to the server by their names alone.
const BURIALS_KNOWN: Duration = Duration::from_secs(600);

/// How often clocks are compared.
const CLOCKS_COMPARED: Duration = Duration::from_secs(600);

/// Bytes that a server should take in a message, so that it takes whatever is an event: text may take twice its bytes
/// as JSON, or more where it holds what cannot be shown.
const MAX_PAYLOAD_WANTED: usize =
    PAYLOAD_BYTES_MAX + 2 * (KEY_BYTES_MAX + HEADER_BYTES_MAX) + LETTER_BYTES_MAX;

impl Nats {
    pub(super) async fn open(url: &str, config: Config, clock: Option<Clock>) -> Result<Self, ConnectError> {
        config.validate()?;
        let servers = servers(url)?;
        let address = address(&servers);
        // Beyond that there may be no moment to wait for.
        let timeout = config.timeout.min(WAIT_MAX);
        let (sender, changes) = watch::channel(0);
        let deadline = Instant::now() + timeout;
        let unreachable = |reason: String| ConnectError::Unreachable { address: address.clone(), reason };
        let silent = |_| unreachable("no answer in time".to_owned());
        let dialled = timeout_at(deadline, options(&servers, sender, timeout).connect(servers.as_slice()))
            .await
            .map_err(silent)?;
        let client = dialled.map_err(|error| match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                let reason = format!("{error}; correct the user and the password in the URL");
                ConnectError::Refused { address: address.clone(), reason }
            }
            ConnectErrorKind::ServerParse => ConnectError::Url(error.to_string()),
            _ => unreachable(error.to_string()),
        })?;
        let context = ContextBuilder::new().timeout(timeout).ack_timeout(timeout).build(client.clone());
        timeout_at(deadline, judge(&client, &context, &address)).await.map_err(silent)??;
        let has_clock = clock.is_some();
        let link = Link::new((client, context), (address.clone(), timeout), changes, clock);
        let store = Self::new(Arc::new(link), &config);
        timeout_at(deadline, store.prepare(has_clock)).await.map_err(silent)?.map_err(
            |error| match error {
                StoreError::Unreachable(reason) => unreachable(reason),
                StoreError::Failed(reason) => {
                    ConnectError::Refused { address: address.clone(), reason: reason.to_string() }
                }
                other => unreachable(other.to_string()),
            },
        )?;
        store.say_hello(&address);
        Ok(store)
    }

    fn new(link: Arc<Link>, config: &Config) -> Self {
        let names = Names::new(&config.prefix);
        let watches = Watches::new(Arc::clone(&link), names.clone());
        Self {
            link,
            names,
            watches,
            replicas: Replicas::default(),
            known: Known::default(),
            burials: Burials::default(),
            copies: config.replicas,
            clocks_compared: Mutex::new(Instant::now()),
        }
    }

    /// Has the streams be there that all topics share.
    async fn prepare(&self, has_clock: bool) -> Result<(), StoreError> {
        let names = &self.names;
        let groups = stream_config(names.groups_stream(), vec![names.all_groups()], self.copies);
        self.stream_or_new(&groups).await?;
        let mut dead = stream_config(names.dead_stream(), vec![names.all_dead()], self.copies);
        dead.duplicate_window = BURIALS_KNOWN;
        self.stream_or_new(&dead).await?;
        if has_clock { Ok(()) } else { self.link.compare_clocks(&names.dead_stream()).await }
    }

    /// Compares clocks where that was long ago.
    pub(super) async fn compare_clocks_if_it_is_time(&self) -> Result<(), StoreError> {
        {
            let mut compared = self.clocks_compared.lock();
            if compared.elapsed() < CLOCKS_COMPARED {
                return Ok(());
            }
            *compared = Instant::now();
        }
        self.link.compare_clocks(&self.names.dead_stream()).await
    }

    fn say_hello(&self, address: &str) {
        let server = self.link.server();
        if server.max_payload < MAX_PAYLOAD_WANTED {
            tracing::warn!(
                address,
                max_payload = server.max_payload,
                wanted = MAX_PAYLOAD_WANTED,
                "the server takes no events of the largest size: raise its max_payload"
            );
        }
        tracing::info!(address, version = server.version, "streams are on a NATS server");
    }
}

/// Judges a URL, or several of one cluster with commas between them.
pub(super) fn servers(url: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    let servers = url.split(',').map(|one| {
        // A text without a scheme may be anything: it is not repeated.
        let address: ServerAddr = match one.trim().split_once("://") {
            Some(("nats" | "tls", _)) => one.trim().parse(),
            _ => return Err(ConnectError::Url("it begins with nats:// or tls://".to_owned())),
        }
        .map_err(|_| ConnectError::Url("it has no host, or an odd port".to_owned()))?;
        if address.host().is_empty() {
            return Err(ConnectError::Url("it has no host".to_owned()));
        }
        Ok(address)
    });
    servers.collect()
}

/// Servers without what lets one in.
fn address(servers: &[ServerAddr]) -> String {
    let each: Vec<String> =
        servers.iter().map(|server| format!("{}:{}", server.host(), server.port())).collect();
    each.join(",")
}

/// User and password, or a token alone, of the first server that has any in its URL.
fn signed_in(servers: &[ServerAddr]) -> ConnectOptions {
    let text = |part: &str| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned();
    let Some(server) = servers.iter().find(|server| server.has_user_pass()) else {
        return ConnectOptions::new();
    };
    match (server.username().map(text), server.password().map(text)) {
        (Some(user), Some(password)) => ConnectOptions::with_user_and_password(user, password),
        (Some(token), None) => ConnectOptions::with_token(token),
        (None, _) => ConnectOptions::new(),
    }
}

fn options(servers: &[ServerAddr], changes: watch::Sender<u64>, timeout: Duration) -> ConnectOptions {
    let changes = Arc::new(changes);
    signed_in(servers)
        .name("tidings")
        .connection_timeout(CONNECT_MAX.min(timeout))
        .request_timeout(Some(timeout))
        .ping_interval(PING)
        .client_capacity(UNWRITTEN_MAX)
        .reconnect_delay_callback(|attempts| {
            let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
            if attempts == 0 { Duration::ZERO } else { backoff(&RECONNECT, attempts, rand::random()) }
        })
        .event_callback(move |event| {
            let changes = Arc::clone(&changes);
            async move {
                tracing::debug!(%event, "the connection to a NATS server");
                if matches!(event, async_nats::Event::Connected | async_nats::Event::Disconnected) {
                    changes.send_modify(|changes| *changes += 1);
                }
            }
        })
}

/// Whether a server will do.
async fn judge(client: &Client, context: &Context, address: &str) -> Result<(), ConnectError> {
    let address = address.to_owned();
    let (major, minor, patch) = VERSION_NEEDED_PARTS;
    if !client.is_server_compatible(major, minor, patch) {
        return Err(ConnectError::TooOld { address, found: client.server_info().version });
    }
    match context.request::<_, _, Response<serde_json::Value>>("INFO", &serde_json::json!({})).await {
        Ok(Response::Ok(_)) => Ok(()),
        Ok(Response::Err { error }) => Err(match of_api(&error) {
            Refusal::Store(StoreError::Unreachable(reason)) => ConnectError::Unreachable { address, reason },
            _ => ConnectError::NoJetStream { address, reason: error.to_string() },
        }),
        Err(error) if error.kind() == RequestErrorKind::NoResponders => {
            Err(ConnectError::NoJetStream { address, reason: "nobody answers for it".to_owned() })
        }
        Err(error) => Err(ConnectError::Unreachable { address, reason: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_is_refused_without_its_password() {
        let urls = ["", "http://a:secret@b", "nats//secret", "nats://a:secret@", "nats://b,secret@c"];
        for url in urls {
            let refused = servers(url).unwrap_err().to_string();
            assert!(refused.contains("nats://") && !refused.contains("secret"), "{url}: {refused}");
        }
    }

    #[test]
    fn servers_of_a_cluster_have_commas_between_them() {
        let servers = servers("nats://user:secret@one:4222, tls://two").unwrap();
        assert_eq!(address(&servers), "one:4222,two:4222");
    }
}
