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
    /// Have cuDNN try its algorithms on each new shape and keep the fastest; each architecture of a search has new shapes
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
        Cuda::cudnn_set_benchmark(self.cudnn_benchmark);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cudnn_is_nothing_to_a_cpu() {
        let error = Options { cudnn_benchmark: true, ..Options::default() }.apply(Device::Cpu);
        assert!(error.unwrap_err().to_string().contains("give --device cuda:0"));
        Options::default().apply(Device::Cpu).unwrap();
    }
}
