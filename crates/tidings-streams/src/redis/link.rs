//! The connection that all calls share, made anew when it is lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::config::{Config, ConnectError, Server, connection_info};
use super::error::{Means, REFUSES, meaning};
use super::script::{Call, Clock, Script, Scripts};
use crate::decide::backoff;
use crate::error::StoreError;
use crate::settings::{Backoff, WAIT_MAX};

/// How long one attempt to connect takes at most, however short the time of those who wait for it.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How long to wait before connecting again: all processes of a cluster lose a server at once, and should not all come
/// back at once.
const RECONNECT: Backoff =
    Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2), jitter: 0.5 };

/// Commands that wait to be written, beyond which callers wait. An answer is waited for by each caller itself.
const UNWRITTEN_MAX: usize = 256;

/// Whether a call may be made again when nobody knows whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Twice is as good as once.
    Harmless,
    /// It would be done twice.
    Never,
}

#[derive(Debug)]
pub(super) struct Link {
    door: Arc<Door>,
    timeout: Duration,
    current: Mutex<Current>,
    /// Held by whoever connects: one at a time.
    attempts: tokio::sync::Mutex<Attempts>,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections: what was lost may have been replaced already.
    number: u64,
    server: Option<Server>,
}

/// What is said to the server.
#[derive(Clone, Copy)]
enum Words<'a> {
    Command(&'a Cmd),
    Transaction(&'a Pipeline),
}

impl Words<'_> {
    async fn said(self, connection: &mut MultiplexedConnection) -> RedisResult<Value> {
        let answer = match self {
            Self::Command(command) => return command.query_async(connection).await,
            Self::Transaction(commands) => commands.query_async::<Value>(connection).await?,
        };
        if let Value::Array(answers) = &answer {
            let failed = answers.iter().find_map(|answer| match answer {
                Value::ServerError(error) => Some(error.clone()),
                _ => None,
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
        }
        Ok(answer)
    }
}

/// Where the server is, and what it has to know.
#[derive(Debug)]
struct Door {
    client: Client,
    address: String,
    scripts: Scripts,
}

type Opened = Result<(MultiplexedConnection, Server), ConnectError>;

#[derive(Default)]
struct Attempts {
    /// The one that is being made: it outlives a call whose time is over, and the next one goes on with it.
    opening: Option<BoxFuture<'static, Opened>>,
    failed: u32,
    next: Option<Instant>,
    last: Option<ConnectError>,
}

impl Link {
    pub(super) async fn connect(url: &str, config: &Config, clock: Clock) -> Result<Arc<Self>, ConnectError> {
        let info = connection_info(url)?;
        let address = info.addr().to_string();
        let client = Client::open(info).map_err(|error| ConnectError::Url(error.to_string()))?;
        // Beyond that there may be no moment to wait for.
        let timeout = config.timeout.min(WAIT_MAX);
        let link = Self {
            door: Arc::new(Door { client, address, scripts: Scripts::new(clock) }),
            timeout,
            current: Mutex::default(),
            attempts: tokio::sync::Mutex::default(),
            closed: CancellationToken::new(),
        };
        let opened = tokio::time::timeout(timeout, link.door.clone().open()).await;
        let (connection, server) = opened.unwrap_or_else(|_| Err(link.door.silent()))?;
        if server.evicts {
            tracing::warn!(
                address = link.door.address,
                "the server removes keys when its memory is full, events among them: set maxmemory-policy noeviction"
            );
        }
        tracing::info!(
            address = link.door.address,
            version = %server.version,
            appends = server.appends,
            "streams are on a Redis server"
        );
        link.replace(connection, server);
        Ok(Arc::new(link))
    }

    pub(super) fn scripts(&self) -> &Scripts {
        &self.door.scripts
    }

    /// What the server said of itself when it was last connected to.
    pub(super) fn server(&self) -> Server {
        self.current.lock().server.clone().expect("a link is made with a connection")
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub(super) fn close(&self) {
        self.closed.cancel();
        self.current.lock().connection = None;
    }

    /// Runs a script.
    pub(super) async fn run(&self, call: Call, script: &Script, repeat: Repeat) -> Result<Value, StoreError> {
        self.ask(&call.command, Some(script), repeat).await
    }

    /// The same, by a deadline of the caller's.
    pub(super) async fn run_until(
        &self,
        call: Call,
        script: &Script,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<Value, StoreError> {
        self.say(Words::Command(&call.command), Some(script), repeat, deadline).await
    }

    /// Runs a command that changes nothing.
    pub(super) async fn read(&self, command: &Cmd) -> Result<Value, StoreError> {
        self.ask(command, None, Repeat::Harmless).await
    }

    /// Runs a command.
    pub(super) async fn ask(
        &self,
        command: &Cmd,
        script: Option<&Script>,
        repeat: Repeat,
    ) -> Result<Value, StoreError> {
        self.say(Words::Command(command), script, repeat, Instant::now() + self.timeout).await
    }

    /// Runs several commands as one step, of which all are done. Answers what each of them does, or the first error.
    pub(super) async fn transact(
        &self,
        commands: &Pipeline,
        script: &Script,
        repeat: Repeat,
    ) -> Result<Value, StoreError> {
        self.say(Words::Transaction(commands), Some(script), repeat, Instant::now() + self.timeout).await
    }

    async fn say(
        &self,
        words: Words<'_>,
        script: Option<&Script>,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<Value, StoreError> {
        let asking = self.ask_until(words, script, repeat, deadline);
        match self.closed.run_until_cancelled(asking).await {
            Some(answer) => answer,
            None => Err(StoreError::Closed),
        }
    }

    async fn ask_until(
        &self,
        words: Words<'_>,
        script: Option<&Script>,
        repeat: Repeat,
        deadline: Instant,
    ) -> Result<Value, StoreError> {
        let mut tries = 0;
        loop {
            let (number, mut connection) = self.connection(deadline).await?;
            let answered = timeout_at(deadline, words.said(&mut connection)).await;
            let Ok(answered) = answered else {
                self.lose(number);
                return Err(self.unreachable(format!("no answer within {:?}", self.timeout)));
            };
            let error = match answered {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            tries += 1;
            match (meaning(&error), script) {
                (Means::NoScript, Some(script)) if tries <= SCRIPT_TRIES => {
                    // It was restarted, or told to forget. What comes of this is seen in the next round.
                    drop(timeout_at(deadline, script.load().query_async::<Value>(&mut connection)).await);
                }
                (Means::NoScript, _) => return Err(self.unreachable("it forgets scripts at once".to_owned())),
                (Means::Later(reason), _) => self.wait(tries, deadline, reason).await?,
                (Means::Demoted, _) => {
                    self.lose(number);
                    self.wait(tries, deadline, "it has become a replica".to_owned()).await?;
                }
                (Means::Refused(error), _) => return Err(error),
                (Means::Lost(reason), _) => {
                    self.lose(number);
                    if repeat == Repeat::Never {
                        return Err(self.unreachable(reason));
                    }
                    // The first time it most likely was an old connection. One that is lost at once will be again.
                    if tries > 1 {
                        self.wait(tries, deadline, reason).await?;
                    }
                }
            }
        }
    }

    async fn wait(&self, tries: u32, deadline: Instant, reason: String) -> Result<(), StoreError> {
        let until = Instant::now() + backoff(&RECONNECT, tries, rand::random());
        if until >= deadline {
            return Err(self.unreachable(reason));
        }
        tokio::time::sleep_until(until).await;
        Ok(())
    }

    pub(super) fn unreachable(&self, reason: String) -> StoreError {
        self.door.unreachable(reason).into()
    }

    /// The connection there is, or a new one: at once, or when enough time has passed since the last attempt.
    async fn connection(&self, deadline: Instant) -> Result<(u64, MultiplexedConnection), StoreError> {
        if let Some(found) = self.found() {
            return Ok(found);
        }
        let Ok(mut attempts) = timeout_at(deadline, self.attempts.lock()).await else {
            return Err(self.unreachable(format!("no connection within {:?}", self.timeout)));
        };
        loop {
            if let Some(found) = self.found() {
                return Ok(found);
            }
            if let Some(next) = attempts.next {
                if next >= deadline {
                    let last = attempts.last.clone();
                    return Err(
                        last.map_or_else(|| self.unreachable("it is gone".to_owned()), StoreError::from)
                    );
                }
                tokio::time::sleep_until(next).await;
            }
            let opening = attempts.opening.get_or_insert_with(|| self.door.clone().open().boxed());
            let Ok(opened) = timeout_at(deadline, opening).await else {
                return Err(self.door.silent().into());
            };
            attempts.opening = None;
            match opened {
                Ok((connection, server)) => {
                    *attempts = Attempts::default();
                    self.replace(connection, server);
                }
                Err(error) => {
                    attempts.failed = attempts.failed.saturating_add(1);
                    attempts.next =
                        Some(Instant::now() + backoff(&RECONNECT, attempts.failed, rand::random()));
                    attempts.last = Some(error.clone());
                    let error = StoreError::from(error);
                    if !matches!(error, StoreError::Unreachable(_)) || Instant::now() >= deadline {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn found(&self) -> Option<(u64, MultiplexedConnection)> {
        let current = self.current.lock();
        current.connection.clone().map(|connection| (current.number, connection))
    }

    fn replace(&self, connection: MultiplexedConnection, server: Server) {
        let mut current = self.current.lock();
        current.number += 1;
        current.server = Some(server);
        if !self.closed.is_cancelled() {
            current.connection = Some(connection);
        }
    }

    fn lose(&self, number: u64) {
        let mut current = self.current.lock();
        if current.number == number {
            current.connection = None;
        }
    }

    /// A connection of one's own, for what holds one up.
    pub(super) async fn dial(&self) -> Result<MultiplexedConnection, RedisError> {
        self.door.dial().await
    }
}

impl fmt::Debug for Attempts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Attempts")
            .field("failed", &self.failed)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Door {
    /// A connection to a server that will do, which knows all scripts.
    async fn open(self: Arc<Self>) -> Opened {
        let deadline = Instant::now() + CONNECT_MAX;
        let opening = async {
            let mut connection = self.dial().await?;
            let info: String = redis::cmd("INFO").query_async(&mut connection).await?;
            Ok::<_, RedisError>((connection, info))
        };
        let (mut connection, info) = self.within(deadline, opening).await?;
        let reason = "it does not say its release: is it a Redis server?".to_owned();
        let unknown = || ConnectError::Refused { address: self.address.clone(), reason };
        let server = Server::parse(&info).ok_or_else(unknown)?;
        server.judge(&self.address)?;
        let mut scripts = redis::pipe();
        for script in self.scripts.all() {
            scripts.add_command(script.load()).ignore();
        }
        self.within(deadline, scripts.exec_async(&mut connection)).await?;
        Ok((connection, server))
    }

    async fn within<T>(
        &self,
        deadline: Instant,
        opening: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, ConnectError> {
        match timeout_at(deadline, opening).await {
            Err(_) => Err(self.silent()),
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(error)) => Err(match meaning(&error) {
                Means::Refused(StoreError::Failed(refused)) => {
                    let reason = refused.to_string().trim_start_matches(REFUSES).to_owned();
                    ConnectError::Refused { address: self.address.clone(), reason }
                }
                Means::Demoted => ConnectError::Replica { address: self.address.clone() },
                _ => self.unreachable(error.to_string()),
            }),
        }
    }

    fn silent(&self) -> ConnectError {
        self.unreachable("no answer in time".to_owned())
    }

    fn unreachable(&self, reason: String) -> ConnectError {
        ConnectError::Unreachable { address: self.address.clone(), reason }
    }

    async fn dial(&self) -> Result<MultiplexedConnection, RedisError> {
        // Each caller has a deadline, which bounds more than an answer.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(UNWRITTEN_MAX);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }
}

/// How often a server is told a script that it does not know.
const SCRIPT_TRIES: u32 = 3;
