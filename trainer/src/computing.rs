//! Options of computing that trade digits or start-up time for speed.

use anyhow::ensure;
use clap::Args;
use tch::{Cuda, Device};

use crate::torch::Precision;

/// The options.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Options {
    /// Number format of convolutions and matrix products; the weights keep 32 bits
    #[arg(long, env = "ASNG_PRECISION", value_enum, default_value_t)]
    pub precision: Precision,
    /// Have cuDNN try its algorithms on each new shape and keep the fastest
    #[arg(long, env = "ASNG_CUDNN_BENCHMARK")]
    pub cudnn_benchmark: bool,
}

impl Options {
    /// Sets what belongs to the process, before it computes on `device`.
    pub fn apply(self, device: Device) -> anyhow::Result<()> {
        ensure!(
            !self.cudnn_benchmark || device.is_cuda(),
            "--cudnn-benchmark is for GPUs: give --device cuda:0 and so on, or leave it out"
        );
        let tf32 = self.precision == Precision::Tf32;
        ensure!(
            !tf32 || device.is_cuda(),
            "--precision tf32 is for GPUs: give --device cuda:0 and so on, or --precision f32"
        );
        asng_native::allow_tf32(tf32);
        Cuda::cudnn_set_benchmark(self.cudnn_benchmark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_gpus_is_refused_on_a_cpu() {
        let benchmark = Options { cudnn_benchmark: true, ..Options::default() };
        let tf32 = Options { precision: Precision::Tf32, ..Options::default() };
        for (options, option) in [(benchmark, "--cudnn-benchmark"), (tf32, "--precision tf32")] {
            let error = options.apply(Device::Cpu).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{option} is for GPUs: give --device cuda:0")),
                "{error}"
            );
        }
        Options::default().apply(Device::Cpu).unwrap();
    }
}
