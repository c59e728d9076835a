//! Metrics, read from the node at every scrape. Labels name caches, nodes and reasons, never keys.
//!
//! Counts of one origin are the sum over its lives that the node still remembers.

mod audit;
mod caches;
mod coherence;
mod leases;
mod relays;
mod streams;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tidings::{BroadcastError, Following, MemberInfo, MissingReason, Node, NodeId, RefusedReason, State};
use tidings_proto::histogram::Snapshot;

pub(crate) use self::streams::StreamsSeen;
use crate::app::Door;
use crate::doubt;
use crate::readiness::Readiness;

/// Every state, for one sample each.
const STATES: [State; 4] = [State::Live, State::Suspect, State::Lost, State::Left];

/// The first bucket of a histogram ends at this power of two, in seconds: 8 µs.
const BUCKETS_LEAST: i32 = -17;

/// So many times two buckets are one in the text, which leaves 4 per factor of two, 13 per factor of ten, up to 128 s:
/// exact to a fifth, with half as many series.
const BUCKETS_COARSER: u32 = 1;

type Labels = Vec<(&'static str, String)>;

/// A registry with everything that one node counts.
pub(crate) fn registry(
    node: Node,
    readiness: Arc<Readiness>,
    door: Door,
    streams: Arc<StreamsSeen>,
) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(NodeMetrics(node, readiness, door, streams)));
    registry
}

#[derive(Debug)]
struct NodeMetrics(Node, Arc<Readiness>, Door, Arc<StreamsSeen>);

impl Collector for NodeMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Output(encoder);
        self.node(&mut out)?;
        self.events(&mut out)?;
        self.members(&mut out)?;
        self.receipts(&mut out)?;
        leases::encode(&self.0, &mut out)?;
        relays::encode(&self.0, &mut out)?;
        coherence::encode(&self.0, &mut out)?;
        audit::encode(&self.0, &mut out)?;
        caches::encode(&self.0, &mut out)?;
        streams::encode(&self.0, &self.3, &mut out)?;
        self.refused(&mut out)?;
        self.transport(&mut out)
    }
}

/// Writes families: all samples of one name together.
struct Output<'a>(DescriptorEncoder<'a>);

impl Output<'_> {
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in samples {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            } else {
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn gauge(
        &mut self,
        name: &str,
        unit: Option<Unit>,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                family.encode_gauge(&value)?;
            } else {
                family.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    /// Durations in seconds. The buckets are the same in every scrape, so that no series appears or vanishes.
    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, Snapshot)>,
    ) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (labels, times) in samples {
            let buckets: Vec<_> = times
                .buckets(BUCKETS_LEAST, BUCKETS_COARSER)
                // The encoder spells this one `+Inf`.
                .map(|(bound, count)| (if bound.is_finite() { bound } else { f64::MAX }, count))
                .collect();
            let (sum, count) = (seconds(times.sum()), times.count());
            if labels.is_empty() {
                family.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            } else {
                let mut metric = family.encode_family(&labels)?;
                metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

fn one<T>(value: T) -> [(Labels, T); 1] {
    [(Labels::new(), value)]
}

fn labelled<T>(name: &'static str, samples: impl IntoIterator<Item = (&'static str, T)>) -> Vec<(Labels, T)> {
    samples.into_iter().map(|(text, value)| (vec![(name, text.to_owned())], value)).collect()
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

impl NodeMetrics {
    fn node(&self, out: &mut Output<'_>) -> fmt::Result {
        let node = &self.0;
        let version = vec![("version", tidings::RELEASE.to_owned())];
        let mut build = out.0.encode_descriptor("tidings_build", "The release.", None, MetricType::Info)?;
        build.encode_info(&version)?;
        let never = f64::INFINITY;
        out.gauge(
            "tidings_freshness_age",
            Some(Unit::Seconds),
            "Everything that every relevant member did up to so long ago is applied here; infinite for never.",
            one(node.freshness_age().map_or(never, seconds)),
        )?;
        let ready = f64::from(u8::from(self.1.unready().is_empty()));
        out.gauge("tidings_ready", None, "1 if the node should get requests, as /readyz says.", one(ready))?;
        let doubts = node.doubts();
        let help = "Reasons for which not every hit counts.";
        out.gauge("tidings_doubts", None, help, one(doubts.len() as f64))?;
        let alike = |code| doubts.iter().filter(|doubt| doubt::code(doubt) == code).count() as f64;
        let reasons = doubt::CODES.map(|code| (code, alike(code)));
        let help = "Reasons for which not every hit counts, of each kind.";
        out.gauge("tidings_doubt_reasons", None, help, labelled("reason", reasons))?;
        let known = f64::from(u8::from(node.is_known()));
        out.gauge(
            "tidings_known",
            None,
            "1 if everybody who is there knows of the node, so that its changes count for the bound everywhere.",
            one(known),
        )?;
        let expiry = node.identity().info().ok().map(|info| info.not_after.unix_timestamp() as f64);
        out.gauge(
            "tidings_tls_certificate_expiry",
            Some(Unit::Seconds),
            "End of the validity of the node's certificate, in seconds since 1970.",
            expiry.into_iter().flat_map(one),
        )
    }

    fn events(&self, out: &mut Output<'_>) -> fmt::Result {
        let following = self.0.following();
        let sum = |counter: fn(&Following) -> u64| following.iter().map(counter).sum::<u64>();
        let remote = self.0.domain().remote_stats();
        out.counter(
            "tidings_events_published",
            "Changes made by users on this node, one per change.",
            one(self.0.domain().events_published()),
        )?;
        // The node itself stands for 'nobody yet': a counter is there from the start.
        let mut applied = BTreeMap::<NodeId, u64>::from([(self.0.origin().node, 0)]);
        for Following { origin, applied: count, .. } in &following {
            *applied.entry(origin.node.clone()).or_default() += count;
        }
        out.counter(
            "tidings_events_applied",
            "Changes made by users on other nodes that were applied here, one per change.",
            applied.into_iter().map(|(node, count)| (vec![("origin", node.to_string())], count)),
        )?;
        let duplicates = sum(|following| following.duplicates);
        out.counter(
            "tidings_events_duplicates",
            "Records that came again, and were dropped.",
            one(duplicates),
        )?;
        out.counter(
            "tidings_events_rejected",
            "What other nodes sent and could not be used: breaches of the protocol, which disconnect, and records \
             that could not be understood, whose slots were fenced.",
            labelled("reason", [("protocol", sum(|following| following.rejected)), ("opaque", remote.opaque.get())]),
        )?;
        out.counter(
            "tidings_events_skipped",
            "Records that need not be applied here.",
            labelled(
                "reason",
                [
                    ("canary", remote.canaries.get()),
                    ("unknown_cache", remote.unknown_cache.get()),
                    ("unknown_kind", remote.ignored.get()),
                ],
            ),
        )?;
        let gaps = sum(|following| following.gaps);
        out.counter("tidings_follow_gaps", "Gaps, after which the rest was asked for again.", one(gaps))?;
        let resets = sum(|following| following.resets);
        out.counter("tidings_follow_resets", "Logs that no longer held what was missing here.", one(resets))?;
        out.counter(
            "tidings_fences",
            "Times that a lane's slots became unreadable, and why.",
            labelled("reason", [("reset", resets), ("opaque", remote.opaque.get())]),
        )?;
        out.counter(
            "tidings_hearsay_refused",
            "Lives that members named and that were not taken note of: more than can be, or of the far future.",
            one(self.0.hearsay_refused()),
        )?;
        let files = self.0.log_files().unwrap_or_default();
        out.counter(
            "tidings_log_files_failures",
            "Times that the node's log files were given up, for they could not be written.",
            one(files.failures),
        )?;
        out.counter(
            "tidings_log_files_followed",
            "Members that have followed the former life of this node to its end, from its log files.",
            one(files.followed),
        )?;
        out.gauge(
            "tidings_log_files_stuck",
            None,
            "1 while the node makes no changes, for its log files can be neither written nor removed.",
            one(f64::from(u8::from(files.stuck))),
        )?;
        let slots = remote.fenced_slots.get();
        out.counter("tidings_fenced_slots", "Slots that became unreadable, counted per cache.", one(slots))
    }

    fn members(&self, out: &mut Output<'_>) -> fmt::Result {
        let members = self.0.members();
        let others = || members.iter().filter(|member| !member.this_node);
        let of = |name: &'static str, member: &MemberInfo| vec![(name, member.node.to_string())];
        out.gauge(
            "tidings_follow_synced",
            None,
            "1 if everything that the member did up to a second ago is applied here.",
            others().map(|member| (of("origin", member), f64::from(u8::from(member.synced())))),
        )?;
        out.gauge(
            "tidings_follow_relayed",
            None,
            "1 if the member is followed by way of another one.",
            others().map(|member| (of("origin", member), f64::from(u8::from(member.via.is_some())))),
        )?;
        out.gauge(
            "tidings_peer_lag",
            None,
            "Records of this node that the peer has not acknowledged.",
            others().map(|member| (of("peer", member), member.lag_events as f64)),
        )?;
        out.histogram(
            "tidings_invalidation_duration",
            "From when the bus heard of a change on this node to the peer's acknowledgement that it is applied or \
             fenced there.",
            others()
                .filter_map(|member| Some((of("peer", member), self.0.invalidation_times(&member.node)?))),
        )?;
        out.gauge(
            "tidings_peer_rtt",
            Some(Unit::Seconds),
            "Round trip to the peer.",
            others().filter_map(|member| Some((of("peer", member), seconds(member.rtt?)))),
        )?;
        out.gauge(
            "tidings_peer_clock_offset",
            Some(Unit::Seconds),
            "How far the peer's wall clock is ahead of this node's, to half of a round trip.",
            others().filter_map(|member| Some((of("peer", member), member.clock?.ahead))),
        )?;
        out.counter(
            "tidings_clock_offsets_exceeded",
            "Times that a peer's wall clock came to be further away than max_clock_offset.",
            one(self.0.clock_offsets_exceeded()),
        )?;
        let states = members.iter().flat_map(|member| {
            STATES.map(|state| {
                let labels = vec![("node", member.node.to_string()), ("state", state.name().to_owned())];
                (labels, f64::from(u8::from(member.state == state)))
            })
        });
        out.gauge("tidings_member_state", None, "1 for the state that the member is in.", states)
    }

    fn receipts(&self, out: &mut Output<'_>) -> fmt::Result {
        let counts = self.0.receipts();
        let outcomes = [
            ("complete", counts.complete),
            ("partial", counts.partial),
            ("abandoned", counts.abandoned),
            ("failed", counts.failed),
        ];
        out.counter(
            "tidings_receipts",
            "Receipts that were asked for, by what came of them.",
            labelled("outcome", outcomes),
        )?;
        let reasons = MissingReason::ALL.iter().zip(counts.missing);
        out.counter(
            "tidings_receipts_missing",
            "Times that a receipt named a peer that had not said in time that it had applied a change, and why.",
            labelled("reason", reasons.map(|(reason, count)| (reason.as_str(), count))),
        )?;
        let waiting = counts.waiting as f64;
        out.gauge("tidings_receipts_waiting", None, "Receipts that are waited for.", one(waiting))?;
        out.histogram(
            "tidings_receipt_duration",
            "How long complete and partial receipts were waited for.",
            one(counts.times),
        )
    }

    fn refused(&self, out: &mut Output<'_>) -> fmt::Result {
        let Door { access, trail, lobby, room } = &self.2;
        let displaced = [("lobby", lobby.displaced())];
        out.counter(
            "tidings_http_refused",
            "Requests and connections over HTTP for which there was no room.",
            labelled("room", room.refused().into_iter().chain(displaced)),
        )?;
        out.counter(
            "tidings_http_denied",
            "Requests over HTTP that were not allowed.",
            labelled("reason", access.refused()),
        )?;
        out.counter(
            "tidings_http_audit_lost",
            "Lines of the audit log that are not in its file, though there is one.",
            one(trail.lost()),
        )
    }

    fn transport(&self, out: &mut Output<'_>) -> fmt::Result {
        let stats = self.0.transport_stats();
        out.counter(
            "tidings_handshake_refused",
            "Handshakes that this node refused.",
            labelled("reason", RefusedReason::ALL.map(|reason| (reason.as_str(), stats.refused(reason)))),
        )?;
        out.counter(
            "tidings_broadcast_errors",
            "Failures to get changes to a peer, which follows later what it misses, or fences it.",
            labelled("reason", BroadcastError::ALL.map(|why| (why.as_str(), stats.broadcast_errors(why)))),
        )?;
        out.counter("tidings_dials", "Connections that this node began.", one(stats.dials.get()))?;
        out.counter(
            "tidings_dials_failed",
            "Of those, the ones that came to nothing.",
            one(stats.dials_failed.get()),
        )?;
        out.counter("tidings_links_opened", "Links that came up.", one(stats.links_opened.get()))?;
        out.counter("tidings_links_closed", "Links that ended.", one(stats.links_closed.get()))?;
        let dropped = stats.gossip_dropped.get() + stats.gossip_malformed.get();
        out.counter("tidings_gossip_received", "Gossip frames taken.", one(stats.gossip_received.get()))?;
        out.counter("tidings_gossip_dropped", "Gossip frames that were not sent or not taken.", one(dropped))
    }
}
