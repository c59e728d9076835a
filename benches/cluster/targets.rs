//! What tidings must reach against the references, and what it aims at. Ratios are tidings ÷ reference.

use tidings_benches::target::{Better, Target};

use crate::report::Metric;
use crate::setup::System;

/// A limit on the ratio of two systems in one metric.
pub(crate) struct Against {
    pub(crate) metric: Metric,
    pub(crate) anchor: System,
    pub(crate) target: Target,
}

const fn against(
    metric: Metric,
    anchor: System,
    name: &'static str,
    better: Better,
    must: f64,
    aim: f64,
) -> Against {
    Against { metric, anchor, target: Target { name, better, must, aim } }
}

use Better::{Higher, Lower};
use Metric::{BurstCpu, BurstRate, PacedCpu, PacedP50};

pub(crate) const CPU_VS_NATS_TLS: Against = against(
    BurstCpu(4),
    System::NatsTls,
    "CPU per applied event, 1→4, ÷ NATS with TLS",
    Lower,
    1.0 / 5.0,
    1.0 / 12.0,
);
pub(crate) const CPU_VS_REDIS_CRATE: Against = against(
    BurstCpu(4),
    System::RedisCrate,
    "CPU per applied event, 1→4, ÷ Redis, crate",
    Lower,
    1.0 / 5.0,
    1.0 / 13.0,
);
pub(crate) const CPU_VS_REDIS_RAW: Against = against(
    BurstCpu(4),
    System::RedisRaw,
    "CPU per applied event, 1→4, ÷ Redis, raw",
    Lower,
    1.0 / 1.6,
    1.0 / 4.0,
);
pub(crate) const CPU_VS_QUINN: Against = against(
    BurstCpu(4),
    System::Quinn,
    "CPU per applied event, 1→4, ÷ quinn, 104-byte frames",
    Lower,
    1.2,
    0.5,
);
pub(crate) const RATE_VS_NATS_TLS: Against =
    against(BurstRate(4), System::NatsTls, "applied events/s, 1→4, ÷ NATS with TLS", Higher, 3.0, 8.0);
pub(crate) const RATE_VS_REDIS_CRATE: Against =
    against(BurstRate(4), System::RedisCrate, "applied events/s, 1→4, ÷ Redis, crate", Higher, 3.0, 9.0);
pub(crate) const P50_VS_REDIS_CRATE: Against =
    against(PacedP50(1), System::RedisCrate, "put→evicted p50, 1→1, ÷ Redis, crate", Lower, 0.8, 0.45);
pub(crate) const P50_VS_NATS_TLS: Against =
    against(PacedP50(1), System::NatsTls, "put→evicted p50, 1→1, ÷ NATS with TLS", Lower, 0.7, 0.35);
pub(crate) const P50_FOUR_VS_NATS_TLS: Against =
    against(PacedP50(4), System::NatsTls, "put→evicted p50, 1→4, ÷ NATS with TLS", Lower, 0.8, 0.5);
pub(crate) const PUT_CPU_VS_NATS_TLS: Against =
    against(PacedCpu(4), System::NatsTls, "CPU per put at 10,000/s, 1→4, ÷ NATS with TLS", Lower, 0.8, 0.15);

pub(crate) const ALL: [Against; 10] = [
    CPU_VS_NATS_TLS,
    CPU_VS_REDIS_CRATE,
    CPU_VS_REDIS_RAW,
    CPU_VS_QUINN,
    RATE_VS_NATS_TLS,
    RATE_VS_REDIS_CRATE,
    P50_VS_REDIS_CRATE,
    P50_VS_NATS_TLS,
    P50_FOUR_VS_NATS_TLS,
    PUT_CPU_VS_NATS_TLS,
];
