//! What every program tells in `/metrics`: its RPCs, its release, and what the process takes.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};

use crate::rpc;

/// What every program tells; it adds its own.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    rpc::register(&mut registry);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("asng_build", "The release that runs", build);
    registry.register_collector(Box::new(ThisProcess));
    registry
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
