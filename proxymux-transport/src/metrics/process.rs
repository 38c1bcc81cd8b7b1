//! Metrics of the process as the kernel sees it, and of its tasks that panicked.
//!
//! Owns reading `/proc/self`, and asking the runtime, when somebody asks; nothing is kept. What
//! cannot be read has no sample. Panics are counted by the hook in `telemetry`.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tokio::runtime::Handle;

use super::{Registry, Unit};
use crate::telemetry::panics;

/// Metrics of this process.
#[derive(Debug)]
pub struct ProcessMetrics {
    /// Where the daemon's tasks run; the admin address has a runtime of its own.
    runtime: Option<Handle>,
}

impl ProcessMetrics {
    /// Registers the metrics. To be called in the daemon's runtime, whose tasks are counted.
    pub fn register(registry: &mut Registry) {
        let runtime = Handle::try_current().ok();
        registry.register_collector(Box::new(Self { runtime }));
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let resident = status_bytes("VmRSS:").and_then(|bytes| i64::try_from(bytes).ok());
        if let Some(bytes) = resident {
            let memory = encoder.encode_descriptor(
                "resident_memory",
                "Memory of the process that is in RAM (VmRSS).",
                Some(&Unit::Bytes),
                MetricType::Gauge,
            )?;
            ConstGauge::new(bytes).encode(memory)?;
        }
        if let Some(open) = open_files() {
            let files = encoder.encode_descriptor(
                "open_fds",
                "File descriptors that the process has open.",
                None,
                MetricType::Gauge,
            )?;
            ConstGauge::new(open).encode(files)?;
        }
        let tasks = encoder.encode_descriptor(
            "tasks",
            "Tasks that have not ended: some for the daemon, some for each session, one for each connection.",
            None,
            MetricType::Gauge,
        )?;
        let alive = self.runtime.as_ref().map(|r| r.metrics().num_alive_tasks());
        if let Some(alive) = alive.and_then(|alive| i64::try_from(alive).ok()) {
            ConstGauge::new(alive).encode(tasks)?;
        }
        let panicked = encoder.encode_descriptor(
            "tasks_panicked",
            "Tasks that ended in a panic, which is a bug.",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(panics()).encode(panicked)
    }
}

/// Bytes, from a line of this process's status such as `VmRSS:      7656 kB`.
pub(crate) fn status_bytes(key: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

fn open_files() -> Option<i64> {
    let entries = std::fs::read_dir("/proc/self/fd").ok()?;
    // One of them is that of the directory itself.
    i64::try_from(entries.count().saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_descriptors_of_this_process_are_plausible() {
        let bytes = status_bytes("VmRSS:").unwrap();
        assert!((1 << 20..1 << 33).contains(&bytes), "{bytes}");

        let before = open_files().unwrap();
        let _one_more = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(open_files().unwrap(), before + 1);
    }
}
