//! Every limit of the transport, with its unit and its reason, and the quinn configurations made of them. quinn's
//! defaults suit a public server; several are unbounded for what is done here.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, NoneTokenLog, ServerConfig,
    TransportConfig, ValidationTokenConfig, VarInt,
};
use ring::hmac;
use tidings_proto::ask::{ANSWER_BYTES_MAX, QUESTION_BYTES_MAX};
use tidings_proto::frame::MEMBERS_MAX;
use tidings_proto::id::{Lanes, NAME_BYTES_MAX};

use crate::identity::keyed;

/// Requested UDP socket buffers, in bytes: with the system's default a burst to several peers is lost in the kernel.
/// The system may grant less.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Bytes that a peer may send ahead on one stream before they are read. One lane at 100 ms round trip then moves
/// 10 MB/s.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// Streams whose windows a connection grants beside those of the lanes: control, one that gossip and lanes which are
/// followed anew share, one for all questions, and one for all answers.
const WINDOWS_BESIDE_LANES: u32 = 4;

/// Questions that two nodes may have open to each other at once, each way. More are declined.
pub const QUESTIONS_MAX: u8 = 64;

/// Bytes of answers to one peer that are on their way at once: the window that they share, so that none of a lane's is
/// taken up by what nobody has read yet. Further answers wait.
pub const ANSWERS_BYTES: u32 = STREAM_WINDOW_BYTES;

/// Bytes of answers to one peer that are held for it, whether it reads them or not: eight of the longest. Each has as
/// many of them as the longest takes while it is being made, and then what it takes itself. Further questions wait for
/// that before anything is done about them.
pub const ANSWERS_HELD_BYTES: u32 = 8 * ANSWER_BYTES_MAX as u32;

/// Time in which a peer that opened a stream must have said whole what it asks for: a lane, or an answer.
pub const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Bi-directional streams that an admitted peer may have open: one per lane of this node's, as many again while it
/// follows them anew, control, and its questions.
#[must_use]
pub fn bi_streams(own: Lanes) -> u32 {
    2 * u32::from(own.count()) + 1 + u32::from(QUESTIONS_MAX)
}

/// Lanes of others' logs that a peer which relays may follow here at a time: of 256 origins with four lanes each, where
/// a cluster of as many nodes as there can be needs a tenth, or of 16 with 64. Each costs some kilobytes, or 16 KiB while
/// what the peer wants on it is half said, for [`REQUEST_TIME`] at most. Further ones wait, and those who wait for too long
/// ask elsewhere.
pub const RELAYED_LANES_MAX: u32 = 1_024;

/// Longest body of a control frame, in bytes: a member set of the greatest size.
pub const CONTROL_FRAME_BYTES_MAX: usize = MEMBERS_MAX * (NAME_BYTES_MAX + 40) + (16 << 10);

/// Longest body that a follower sends on a lane's stream after its request, in bytes: an acknowledgement, thrice over.
pub const FOLLOWER_FRAME_BYTES_MAX: usize = 64;

/// Bi-directional streams that a peer may have open before it is admitted: control.
pub const BI_STREAMS_UNADMITTED: u32 = 1;

/// Streams of gossip that a peer may have open. Each holds at most one frame.
pub const GOSSIP_STREAMS_MAX: u32 = 4;

/// Bytes of datagrams kept in either direction. Gossip is small and replaceable; beyond this it is dropped.
pub const DATAGRAM_BUFFER_BYTES: usize = 256 << 10;

/// Longest gossip frame, in bytes.
pub const GOSSIP_FRAME_BYTES_MAX: usize = 64 << 10;

/// Gossip frames that wait for a link or for a stream; beyond this the oldest, or the newcomer, is dropped.
pub const GOSSIP_QUEUE_FRAMES: usize = 8;

/// Time in which a gossip frame must cross on its stream. A later one would be of no use.
pub const GOSSIP_STREAM_TIME: Duration = Duration::from_secs(5);

/// Handshakes from peers at once. Each costs about a millisecond of CPU and up to a stream window of memory.
pub const HANDSHAKES_MAX: usize = 64;

/// Of these, those that only addresses of known or wanted peers may take.
pub const HANDSHAKES_RESERVED: usize = 16;

/// Handshakes at once from one IP address that is not a peer's: a rack of nodes behind one, starting together.
pub const HANDSHAKES_PER_IP_MAX: usize = 16;

/// From this many handshakes at once on, a peer must first show that it receives at its address, so that forged
/// senders cannot take all of them.
pub const HANDSHAKES_UNVALIDATED_MAX: usize = 16;

/// Connection attempts by this node at once, all addresses together: enough for the unreachable half of a hundred
/// nodes.
pub const DIALS_MAX: usize = 256;

/// Addresses that this node dials, or remembers as unreachable for now, at most. Gossip names addresses.
pub const DIAL_ADDRESSES_MAX: usize = 4_096;

/// Connection attempts to one address at once, and as many beside a silent link: an attempt begun before an outage ends waits longer than a new one.
/// As many as begin within [`DIAL_TIME`], so that none has to wait for another.
pub const DIALS_PER_ADDRESS_MAX: usize = 4;

/// Time in which a peer must have finished its handshake, `Hello` included.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(5);

/// Time in which it must have shown its certificate: as long as a node that dials has patience.
pub const HANDSHAKE_TLS_TIME: Duration = DIAL_TIME;

/// Time in which an attempt of this node must have become a link.
pub const DIAL_TIME: Duration = Duration::from_millis(1_500);

/// Longest pause between the starts of two attempts to a wanted address.
pub const DIAL_PAUSE_MAX: Duration = Duration::from_millis(500);

/// A link that lasted this long is dialled again at once when it ends; before that, the pauses between attempts grow.
pub const LINK_SETTLED_TIME: Duration = Duration::from_secs(10);

/// Longest pause between attempts to an address that is not wanted but that gossip is sent to.
pub const DIAL_PAUSE_UNWANTED_MAX: Duration = Duration::from_secs(5);

/// Connections to one node at once: the link, a second beside it, and the same from the other side.
pub const LINKS_PER_NODE_MAX: usize = 4;

/// A link on which no probe sent within this time was answered counts as silent: a newer one is preferred to it.
pub const SILENCE: Duration = Duration::from_secs(1);

/// Connections at once to lives that are over and are followed to their end. Each is bounded as any other peer's before
/// it is admitted; more are refused, and come again.
pub const FORMER_LINKS_MAX: usize = 16;

/// How long such a connection may last: what a log holds by default crosses a slow link in that time. Whatever is
/// missing then is resumed on the next one.
pub const FORMER_LINK_TIME: Duration = Duration::from_secs(10);

/// Time that the live holder of a node id has to answer when another process claims it.
pub const LIVENESS_TIME: Duration = Duration::from_millis(500);

/// A connection that is not kept stays open for this long, so that nothing in flight on it is lost.
pub const SURPLUS_GRACE: Duration = Duration::from_millis(500);

/// The same for a silent one, on which nothing can be in flight any more.
pub const SURPLUS_GRACE_SILENT: Duration = Duration::from_millis(250);

/// Time that a session has to end by itself once its connection is gone.
pub const SESSION_END_TIME: Duration = Duration::from_secs(1);

/// Silence after which QUIC gives a connection up. The session's probes notice a crash earlier; this bounds it.
pub const IDLE_TIMEOUT: Duration = Duration::from_millis(2_500);

/// Pause after which QUIC itself says that it is there: twice within the idle timeout.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Packets that a peer gathers before it acknowledges them: more than come within [`ACK_DELAY_MAX`] at 10,000 events a
/// second in a packet each, or the wake-ups for acknowledgements would be a third of all. A connection's first 64
/// packets, which the congestion window does not let go at once, wait for that time instead, thrice at most.
const ACK_PACKETS: u32 = 64;

/// Longest that it gathers, so that a small congestion window on a lossy path opens again in time.
const ACK_DELAY_MAX: Duration = Duration::from_millis(5);

/// Round-trip time assumed before one is measured, so that a lost first packet is sent again after 0.3 s, not 1 s.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// First UDP payload size in bytes: every IPv6 path carries it.
const INITIAL_MTU: u16 = 1_200;

/// Largest UDP payload size that is searched for, in bytes: Ethernet without assuming jumbo frames.
const DISCOVERED_MTU_MAX: u16 = 1_452;

/// The same to a peer on this host. quinn sends up to ten packets in one call, which together must stay below 64 KiB.
const DISCOVERED_MTU_LOOPBACK_MAX: u16 = 6_500;

/// Largest UDP payload accepted, in bytes. Costs address space for the receive buffers, memory only as it is used.
const UDP_PAYLOAD_BYTES_MAX: u16 = DISCOVERED_MTU_LOOPBACK_MAX;

/// Out-of-order handshake bytes kept per connection: a chain of certificates fits.
const CRYPTO_BUFFER_BYTES: usize = 16 << 10;

/// Connection attempts that wait for this node to look at them.
const INCOMING_MAX: usize = 256;

/// Bytes kept of each of them, and of all together: more than a first flight.
const INCOMING_BYTES: u64 = 16 << 10;
const INCOMING_BYTES_TOTAL: u64 = 1 << 20;

/// How long a peer has to come back with the proof that it receives at its address.
const RETRY_TOKEN_TIME: Duration = Duration::from_secs(15);

/// Shortest pause between two stateless resets. Each answers one packet, and is smaller than it.
const RESET_PAUSE: Duration = Duration::from_millis(20);

/// Limits of a connection before its peer is admitted. `bi_streams` is what the peer may open by then.
pub(crate) fn transport(bi_streams: u32, peer: IpAddr) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    let loopback = peer.to_canonical().is_loopback();
    discovery.upper_bound(if loopback { DISCOVERED_MTU_LOOPBACK_MAX } else { DISCOVERED_MTU_MAX });
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold((ACK_PACKETS - 1).into()).max_ack_delay(Some(ACK_DELAY_MAX));
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acks))
        .max_concurrent_bidi_streams(bi_streams.into())
        .max_concurrent_uni_streams(0_u32.into())
        .max_idle_timeout(IdleTimeout::try_from(IDLE_TIMEOUT).ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window((WINDOWS_BESIDE_LANES * STREAM_WINDOW_BYTES).into())
        .send_window(u64::from(WINDOWS_BESIDE_LANES * STREAM_WINDOW_BYTES))
        .initial_rtt(INITIAL_RTT)
        .initial_mtu(INITIAL_MTU)
        .min_mtu(INITIAL_MTU)
        .mtu_discovery_config(Some(discovery))
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .congestion_controller_factory(Arc::new(CubicConfig::default()))
        .allow_spin(false);
    config
}

/// Grants an admitted peer what a link needs. The windows of all lanes together are granted, so that lanes which
/// are not read for a while never hold up control.
pub(crate) fn admit(connection: &quinn::Connection, own: Lanes, peer: Lanes) {
    let windows = |lanes: Lanes| (u32::from(lanes.count()) + WINDOWS_BESIDE_LANES) * STREAM_WINDOW_BYTES;
    connection.set_receive_window(VarInt::from_u32(windows(peer)));
    connection.set_send_window(windows(own).into());
    connection.set_max_concurrent_bi_streams(bi_streams(own).into());
    connection.set_max_concurrent_uni_streams(GOSSIP_STREAMS_MAX.into());
}

/// Grants an admitted peer the streams that it follows others' logs on, while this node relays.
pub(crate) fn grant_relayed(connection: &quinn::Connection, own: Lanes) {
    connection.set_max_concurrent_bi_streams((bi_streams(own) + RELAYED_LANES_MAX).into());
}

/// Limits of the endpoint. Its reset key and connection ids are derived from the node's secret: a node that is
/// back on its port resets the connections of its former life at once, instead of letting them time out.
pub(crate) fn endpoint(secret: &[u8; 32], seed: Option<[u8; 32]>) -> EndpointConfig {
    let reset = keyed(secret, b"stateless reset");
    let ids = keyed(secret, b"connection ids");
    let id_key = ids.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)));
    config
        .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(id_key)))
        .min_reset_interval(RESET_PAUSE)
        .rng_seed(seed);
    // The value is within the range that it may have.
    let _ = config.max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX);
    config
}

/// Limits for those who connect; [`transport`] has the rest.
pub(crate) fn server(crypto: Arc<dyn quinn::crypto::ServerConfig>) -> ServerConfig {
    let mut tokens = ValidationTokenConfig::default();
    tokens.sent(0).log(Arc::new(NoneTokenLog));
    let mut config = ServerConfig::with_crypto(crypto);
    config
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL)
        .retry_token_lifetime(RETRY_TOKEN_TIME)
        .validation_token_config(tokens);
    config
}

const _: () = assert!(
    QUESTIONS_MAX as usize * QUESTION_BYTES_MAX <= STREAM_WINDOW_BYTES as usize,
    "all open questions share one window"
);
