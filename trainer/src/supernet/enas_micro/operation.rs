//! The operations of a node, and the two layers that bring a cell's inputs to its shape. Those that
//! begin with a ReLU in the paper are given what comes out of it.

use std::cell::OnceCell;

use tch::{Tensor, nn};

use super::super::Error;
use super::super::layers::{BatchNorm, Conv, ConvSize, Mode, NormKind, every_other};
use crate::space::enas_micro::Op;

/// What operations read: as it is, or behind a ReLU, which is computed once for all that want it.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) plain: Tensor,
    relu: OnceCell<Tensor>,
}

impl Value {
    pub(super) fn new(plain: Tensor) -> Value {
        Value { plain, relu: OnceCell::new() }
    }

    fn relu(&self) -> Result<Tensor, Error> {
        if let Some(relu) = self.relu.get() {
            return Ok(relu.shallow_clone());
        }
        let relu = self.plain.f_relu()?;
        Ok(self.relu.get_or_init(|| relu).shallow_clone())
    }
}

/// A 1x1 convolution and batch normalisation behind a ReLU (authors' `ReLUConvBN`).
#[derive(Debug)]
pub(super) struct ConvNorm {
    conv: Conv,
    norm: BatchNorm,
}

impl ConvNorm {
    pub(super) fn new(
        path: &nn::Path,
        inputs: i64,
        outputs: i64,
        norm: NormKind,
    ) -> Result<Self, Error> {
        let conv = Conv::new(&(path / "conv"), ConvSize::pointwise(inputs, outputs))?;
        Ok(ConvNorm { conv, norm: BatchNorm::new(&(path / "norm"), outputs, norm)? })
    }

    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Error> {
        self.norm.forward(&self.conv.forward(x)?, mode)
    }
}

/// Halves height and width without losing a pixel: half of the output's channels see the even
/// pixels, the other half those one further right and down (authors' `FactorizedReduce`). Height
/// and width must be even.
#[derive(Debug)]
pub(super) struct FactorizedReduce {
    conv1: Conv,
    conv2: Conv,
    norm: BatchNorm,
}

impl FactorizedReduce {
    pub(super) fn new(
        path: &nn::Path,
        inputs: i64,
        outputs: i64,
        norm: NormKind,
    ) -> Result<Self, Error> {
        let half = ConvSize::pointwise(inputs, outputs / 2);
        Ok(FactorizedReduce {
            conv1: Conv::new(&(path / "conv1"), half)?,
            conv2: Conv::new(&(path / "conv2"), half)?,
            norm: BatchNorm::new(&(path / "norm"), outputs, norm)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Error> {
        let halves =
            [self.conv1.forward(&every_other(x, 0)?)?, self.conv2.forward(&every_other(x, 1)?)?];
        self.norm.forward(&Tensor::f_cat(&halves, 1)?, mode) // [batch, c', h / 2, w / 2]
    }
}

/// Depthwise convolution, 1x1 convolution and batch normalisation behind a ReLU, twice; the first
/// depthwise convolution has the stride (authors' `SepConv`).
#[derive(Debug)]
pub(super) struct SepConv {
    depthwise1: Conv,
    pointwise1: Conv,
    norm1: BatchNorm,
    depthwise2: Conv,
    pointwise2: Conv,
    norm2: BatchNorm,
}

impl SepConv {
    fn new(
        path: &nn::Path,
        channels: i64,
        kernel: i64,
        stride: i64,
        norm: NormKind,
    ) -> Result<Self, Error> {
        let pointwise = ConvSize::pointwise(channels, channels);
        Ok(SepConv {
            depthwise1: Conv::new(
                &(path / "depthwise1"),
                ConvSize::depthwise(channels, kernel, stride),
            )?,
            pointwise1: Conv::new(&(path / "pointwise1"), pointwise)?,
            norm1: BatchNorm::new(&(path / "norm1"), channels, norm)?,
            depthwise2: Conv::new(
                &(path / "depthwise2"),
                ConvSize::depthwise(channels, kernel, 1),
            )?,
            pointwise2: Conv::new(&(path / "pointwise2"), pointwise)?,
            norm2: BatchNorm::new(&(path / "norm2"), channels, norm)?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Error> {
        let x = self.pointwise1.forward(&self.depthwise1.forward(x)?)?;
        let x = self.norm1.forward_relu(&x, mode)?;
        let x = self.pointwise2.forward(&self.depthwise2.forward(&x)?)?;
        self.norm2.forward(&x, mode)
    }
}

/// What a choice of an operation is at its place in the network.
#[derive(Debug)]
pub(super) enum Operation {
    Identity,
    /// The identity with stride 2.
    Reduce(FactorizedReduce),
    AvgPool {
        stride: i64,
    },
    MaxPool {
        stride: i64,
    },
    SepConv(SepConv),
}

impl Operation {
    pub(super) fn new(
        path: &nn::Path,
        op: Op,
        channels: i64,
        stride: i64,
        norm: NormKind,
    ) -> Result<Operation, Error> {
        Ok(match op {
            Op::Identity if stride == 1 => Operation::Identity,
            Op::Identity => {
                Operation::Reduce(FactorizedReduce::new(path, channels, channels, norm)?)
            }
            Op::AvgPool3x3 => Operation::AvgPool { stride },
            Op::MaxPool3x3 => Operation::MaxPool { stride },
            Op::SepConv3x3 => Operation::SepConv(SepConv::new(path, channels, 3, stride, norm)?),
            Op::SepConv5x5 => Operation::SepConv(SepConv::new(path, channels, 5, stride, norm)?),
        })
    }

    /// True where drop path has nothing to drop.
    pub(super) fn is_identity(&self) -> bool {
        matches!(self, Operation::Identity)
    }

    pub(super) fn forward(&self, x: &Value, mode: Mode) -> Result<Tensor, Error> {
        const CEIL_MODE: bool = false;
        match self {
            Operation::Identity => Ok(x.plain.shallow_clone()),
            Operation::Reduce(layer) => layer.forward(&x.relu()?, mode),
            Operation::AvgPool { stride } => {
                let padding_counts = true;
                Ok(x.plain.f_avg_pool2d(
                    [3, 3],
                    [*stride; 2],
                    [1, 1],
                    CEIL_MODE,
                    padding_counts,
                    None::<i64>,
                )?)
            }
            Operation::MaxPool { stride } => {
                Ok(x.plain.f_max_pool2d([3, 3], [*stride; 2], [1, 1], [1, 1], CEIL_MODE)?)
            }
            Operation::SepConv(layer) => layer.forward(&x.relu()?, mode),
        }
    }
}
