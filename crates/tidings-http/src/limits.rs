//! What one client can make the server hold.

use std::time::Duration;

/// Connections at once of those who have been let in: with a token, or without where none is needed. Every open
/// subscription holds one; a connection holds about 16 KiB. More are answered 429.
pub const CONNECTIONS_MAX: usize = 256;

/// Subscriptions to events at once, so that they leave connections for everything else. More are answered 429.
pub const SUBSCRIPTIONS_MAX: usize = 128;

/// Reads at once that may wait for another load of their key: with every subscription open they still leave a quarter
/// of all connections for everything else. More are answered with what is held here, or else 429.
pub const WAITING_READS_MAX: usize = 64;

/// Questions at once where a key is held: each asks every member. More are answered 429.
pub const LOOKS_MAX: usize = 8;

/// Requests at once that wait for events of a stream, or claim some: they leave three quarters of all connections for
/// everything else. More are answered 429.
pub const RECEIVES_MAX: usize = 64;

/// Requests at once that read pages of events, or all of them, import some, or retry or purge many dead letters: each
/// holds up to 8 MiB. More are answered 429.
pub const STREAM_READS_MAX: usize = 16;

/// Looks at everything in a store of streams at once: it reads as fast as the disk does. More are answered 429.
pub const VERIFIES_MAX: usize = 1;

/// Longest event to publish, as its document, in bytes: a payload of 1 MiB takes 1.4 in base64. Longer ones are answered
/// 413.
pub const EVENT_BYTES_MAX: usize = 2 << 20;

/// Longest body of lines to import, in bytes: a few events of the largest size.
pub const IMPORT_BYTES_MAX: usize = 4 << 20;

/// Longest time that a request waits for events of a stream: beyond it clients ask again, so that nobody waits for one
/// who has gone.
pub const RECEIVE_TIME_MAX: Duration = Duration::from_secs(60);

/// Events, or whatever else is listed, on a page, unless the client says.
pub const PAGE_ITEMS: usize = 50;

/// How long one request to retry or to purge dead letters goes on: the answer says where the next one begins.
pub const DEAD_LETTERS_TIME: Duration = Duration::from_secs(10);

/// Dead letters that are retried in a second, unless the client says.
pub const RETRIES_PER_SECOND: u32 = 1_000;

/// How long the store of streams is waited for by a scrape: without its answer there are no gauges of it.
pub const FIGURES_TIME: Duration = Duration::from_secs(2);

/// How old what the store of streams has told a scrape may be for another one: whoever scrapes, it is asked once in
/// this time.
pub const FIGURES_AGE_MAX: Duration = Duration::from_secs(1);

/// Longest value, in bytes. Longer ones are answered 413.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Longest document in a request, in bytes: it names keys or settings.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// How much of what nobody wants is read and dropped, in bytes: of a body that is too long, and of what still comes
/// after the last answer of a connection. So its sender gets to see the answer.
pub const DRAINED_BYTES_MAX: usize = 8 << 20;

/// Longest head of a request that a connection buffers, in bytes: a key of 4 KiB takes 12 KiB in a path.
pub const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long the head of a request may take, and how long a connection may be idle.
pub const HEAD_TIME: Duration = Duration::from_secs(60);

/// How long the body of a request may take.
pub const BODY_TIME: Duration = Duration::from_secs(10);

/// How long a client may leave an answer waiting of which it takes less than [`WRITE_BYTES_MIN`]. Then its connection
/// is closed, for another may want its place.
pub const WRITE_TIME: Duration = Duration::from_secs(10);

/// What the system has to take of a waiting answer in [`WRITE_TIME`], in bytes. It takes more once a client has read
/// some 90 kB of what it holds, never the bytes of each read: with [`SEND_BUFFER_BYTES`], who reads 16 kB a second is
/// never cut off.
pub const WRITE_BYTES_MIN: usize = 64 << 10;

/// What the system may hold of an answer that a client has not taken, in bytes; Linux doubles it. Left to itself it
/// holds 4 MB on loopback and takes more only once a third of that was read, so that who reads 100 kB a second would
/// look as if it did not read at all. With 128 KiB even 16 kB a second is cut off.
pub const SEND_BUFFER_BYTES: usize = 32 << 10;

/// How long a connection is kept after its last answer for a client that still sends: long enough for a round trip to
/// anywhere, after which it has seen the answer.
pub const LINGER_TIME: Duration = Duration::from_secs(1);

/// Connections at once on which nobody has been let in yet. Beyond it the oldest one of the address that has most of
/// them is closed, so that who only opens connections keeps nobody else from getting in.
pub const LOBBY_MAX: usize = 128;

/// How long a connection may take until somebody is let in on it, or is again after that one counts no more.
pub const LOBBY_TIME: Duration = Duration::from_secs(30);

/// How long a TLS handshake may take: two round trips to anywhere, on a slow machine.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Tokens in a file: each request with a token is compared with all of them.
pub const TOKENS_MAX: usize = 256;

/// Longest token file, in bytes: as many tokens with long names and comments.
pub const TOKEN_FILE_BYTES_MAX: u64 = 256 << 10;

/// Longest token, in bytes; those that the program makes have 51.
pub const TOKEN_BYTES_MAX: usize = 256;

/// Tokens that are none which an address may show in [`FAILURES_TIME`] until it is answered 429.
pub const FAILURES_MAX: u32 = 10;

/// After so long an address begins anew.
pub const FAILURES_TIME: Duration = Duration::from_secs(60);

/// Addresses whose failures are remembered; a hundred bytes each.
pub const FAILED_ADDRESSES_MAX: usize = 4_096;

/// Sessions of browsers at once; a hundred bytes each. Beyond it the one that was used least recently ends.
pub const SESSIONS_MAX: usize = 1_024;

/// How long a session lasts: a working day.
pub const SESSION_TIME: Duration = Duration::from_secs(12 * 60 * 60);

/// How long a session lasts without a request.
pub const SESSION_IDLE_TIME: Duration = Duration::from_secs(60 * 60);

/// Longest form to log in with, in bytes: a token, percent-encoded.
pub const LOGIN_BYTES_MAX: usize = 4 << 10;

/// What people did that is remembered for `GET /v1/audit`, and as much again of what services did and of what was
/// refused, logins and logouts among it: at most some kilobyte each.
pub const TRAIL_MAX: usize = 2_048;

/// Longest target in the trail, in bytes; of longer ones the beginning is kept.
pub const TARGET_BYTES_MAX: usize = 512;

/// Lines that may wait for the audit file. Beyond it requests wait for the disk.
pub const TRAIL_QUEUE_MAX: usize = 1_024;

/// Longest id of a request that is taken over from its sender, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;

/// Pause between two looks at whether the token file or a certificate has changed.
pub const FILES_POLL: Duration = Duration::from_secs(1);

/// How long requests under way may go on after the server was told to end, or their connection.
pub const GRACE_TIME: Duration = Duration::from_secs(5);

/// How long draining waits for peers: one that is there acknowledges within milliseconds.
pub const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Pause between two looks at who has acknowledged what.
pub(crate) const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Pause after a connection could not be accepted, which is usually for want of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a fill token is good for: longer than a load takes, short enough that forgotten ones do not pile up. One
/// that may have been waited for is good for that time besides.
pub const FILL_TIME: Duration = Duration::from_secs(10);

/// Longest time that a read waits for what another load of its key brings, as clients say it.
pub const WAIT_TIME_MAX: Duration = Duration::from_secs(60);

/// How long members are waited for that are asked whether they hold a key, unless the client says: one that is there
/// answers within milliseconds, also while it is audited.
pub const WHERE_TIME: Duration = Duration::from_secs(1);

/// The longest that a client may say.
pub const WHERE_TIME_MAX: Duration = Duration::from_secs(10);

/// Pause between comments on a silent stream of events, so that a broken connection is noticed.
pub const KEEP_ALIVE_TIME: Duration = Duration::from_secs(15);

/// Caches that may be open before no more can be opened over HTTP.
pub const CACHES_MAX: usize = 1_024;

/// Longest time that an answer waits for peers to have applied a change: whoever has not by then has ended, or is cut
/// off for long.
pub const ACKED_TIME_MAX: Duration = Duration::from_secs(60);

/// Longest time to live or to idle that can be set: beyond it a typing error is likelier than a wish.
pub const LIFETIME_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
