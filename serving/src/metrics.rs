//! The metrics that every program has: its RPCs, its release, and the resources of the process.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use crate::rpc;

/// Returns a registry with the metrics that every program has; it adds its own.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    rpc::register(&mut registry);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("asng_build", "The release that runs", build);
    registry.register_collector(Box::new(ThisProcess));
    registry
}

/// The resources of the process, under the names that every dashboard knows.
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
