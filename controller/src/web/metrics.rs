//! The text of `/metrics`: what was counted, what the process takes, and a look at the studies.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use super::studies::Snapshot;
use crate::{metrics, rpc};

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything but the studies.
pub(super) fn registry() -> Registry {
    let mut registry = Registry::default();
    rpc::register(&mut registry);
    metrics::register(&mut registry);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("asng_build", "The release that runs", build);
    registry.register_collector(Box::new(ThisProcess));
    registry
}

/// The text of all that is in `registry`, and of the studies if they have answered.
pub(super) fn text(registry: &Registry, studies: Option<Snapshot>) -> String {
    let mut text = String::new();
    let mut shelf = Registry::default();
    if let Some(studies) = studies {
        shelf.register_collector(Box::new(studies));
    }
    // Unwrap safety: writing to a string does not fail, nor do our collectors by themselves.
    text::encode_registry(&mut text, registry).unwrap();
    text::encode_registry(&mut text, &shelf).unwrap();
    text::encode_eof(&mut text).unwrap();
    text
}

/// What the process takes of the machine, under the names that every dashboard knows.
#[derive(Debug)]
struct ThisProcess;

impl Collector for ThisProcess {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // What the operating system does not tell is left out.
        let process = metrics_process::collector::collect();
        if let Some(cpu) = process.cpu_seconds_total {
            let help = "User and system time of all threads.";
            let unit = Some(&Unit::Seconds);
            let cpu_time =
                encoder.encode_descriptor("process_cpu", help, unit, MetricType::Counter)?;
            ConstCounter::new(cpu).encode(cpu_time)?;
        }
        let (bytes, seconds) = (Some(&Unit::Bytes), Some(&Unit::Seconds));
        let gauges = [
            ("process_resident_memory", "Memory in RAM.", bytes, process.resident_memory_bytes),
            ("process_virtual_memory", "Address space.", bytes, process.virtual_memory_bytes),
            ("process_open_fds", "Open file descriptors.", None, process.open_fds),
            ("process_max_fds", "File descriptors allowed.", None, process.max_fds),
            ("process_threads", "Threads.", None, process.threads),
            (
                "process_start_time",
                "Start since the Unix epoch.",
                seconds,
                process.start_time_seconds,
            ),
        ];
        for (name, help, unit, value) in gauges {
            if let Some(value) = value {
                let gauge = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
                ConstGauge::new(value).encode(gauge)?;
            }
        }
        Ok(())
    }
}
