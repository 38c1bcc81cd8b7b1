//! Metrics of the memory that streams hold.
//!
//! Owns reading the [`MemoryBudget`] when somebody asks; nothing is counted here. Streams that were
//! cut off for want of memory are in the count of closed streams, by their reason.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{Registry, Unit};
use crate::memory::MemoryBudget;

/// Metrics of what streams hold.
#[derive(Debug)]
pub struct MemoryMetrics(Arc<MemoryBudget>);

impl MemoryMetrics {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry, budget: &Arc<MemoryBudget>) {
        registry.register_collector(Box::new(Self(Arc::clone(budget))));
    }
}

impl Collector for MemoryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, bytes) in [
            (
                "stream_memory",
                "What waits in memory for readers of streams, or for their credit.",
                self.0.held(),
            ),
            (
                "stream_memory_limit",
                "How much may wait (max-memory).",
                self.0.limit(),
            ),
        ] {
            let unit = Some(&Unit::Bytes);
            let gauge = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX)).encode(gauge)?;
        }
        let refused = encoder.encode_descriptor(
            "memory_refusals",
            "Requests for a stream that were refused for want of memory.",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.0.refused()).encode(refused)
    }
}
