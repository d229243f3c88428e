//! The layers with weights, each a few named tensors and a forward pass. Tensors are created as
//! zeros or ones; `initial` gives them their values.

use tch::{Kind, Tensor, nn};

use super::Error;

/// PyTorch's defaults for batch normalisation.
const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Batch statistics; each output of an operation is dropped for an image with the probability
    /// `drop_path` (FractalNet, Larsson et al. 2017), from libtorch's global generator.
    Train {
        /// 0 to below 1; 0 in the search.
        drop_path: f64,
    },
    /// Running statistics where a network keeps them, which a supernet does not; nothing is
    /// dropped.
    Evaluate,
}

/// A convolution without bias.
#[derive(Debug)]
pub(super) struct Conv {
    /// `[out, in / groups, kernel, kernel]`
    pub(super) weight: Tensor,
    stride: i64,
    padding: i64,
    groups: i64,
}

/// The shape of a [`Conv`].
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvSize {
    pub(super) inputs: i64,
    pub(super) outputs: i64,
    pub(super) kernel: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
    pub(super) groups: i64,
}

impl ConvSize {
    /// A 1x1 convolution.
    pub(super) fn pointwise(inputs: i64, outputs: i64) -> ConvSize {
        ConvSize { inputs, outputs, kernel: 1, stride: 1, padding: 0, groups: 1 }
    }

    /// One filter for each channel, padded so that stride 1 keeps the size.
    pub(super) fn depthwise(channels: i64, kernel: i64, stride: i64) -> ConvSize {
        let padding = kernel / 2;
        ConvSize { inputs: channels, outputs: channels, kernel, stride, padding, groups: channels }
    }
}

impl Conv {
    pub(super) fn new(path: &nn::Path, size: ConvSize) -> Result<Conv, Error> {
        let ConvSize { inputs, outputs, kernel, stride, padding, groups } = size;
        let weight = zeros(path, "weight", &[outputs, inputs / groups, kernel, kernel], true)?;
        Ok(Conv { weight, stride, padding, groups })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        self.forward_with(x, &self.weight)
    }

    /// The convolution with a part of its weight.
    pub(super) fn forward_with(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor, Error> {
        let stride = [self.stride; 2];
        let padding = [self.padding; 2];
        Ok(x.f_conv2d(weight, None::<Tensor>, stride, padding, [1, 1], self.groups)?)
    }
}

/// Every other row and column of pixels, from the `first` on.
///
/// Before a 1x1 convolution, in place of its stride of 2: libtorch 2.13 writes beyond its memory in the backward pass of
/// one with that stride on a CPU, for fewer than 16 channels that lie side by side.
pub(super) fn every_other(x: &Tensor, first: i64) -> Result<Tensor, Error> {
    Ok(x.f_slice(2, first, None::<i64>, 2)?.f_slice(3, first, None::<i64>, 2)?)
}

/// What the batch normalisations of a network have.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormKind {
    /// A trainable weight and bias for each channel.
    pub(super) affine: bool,
    /// Running statistics, updated by each pass in training and used in evaluation. Without them,
    /// batch statistics are used always: one set of statistics could not fit the activations of
    /// every architecture.
    pub(super) running: bool,
}

/// Batch normalisation over the channels.
#[derive(Debug)]
pub(super) struct BatchNorm {
    weight_and_bias: Option<(Tensor, Tensor)>,
    running_mean_and_var: Option<(Tensor, Tensor)>,
}

impl BatchNorm {
    pub(super) fn new(path: &nn::Path, channels: i64, kind: NormKind) -> Result<BatchNorm, Error> {
        let pair = |zero: &str, one: &str, trainable| -> Result<(Tensor, Tensor), Error> {
            let zeros = zeros(path, zero, &[channels], trainable)?;
            let ones = Tensor::f_ones([channels], (path.kind(), path.device()))?;
            Ok((zeros, path.add(one, ones, trainable)))
        };
        let weight_and_bias = match kind.affine {
            true => Some(pair("bias", "weight", true)?).map(|(bias, weight)| (weight, bias)),
            false => None,
        };
        let running_mean_and_var = match kind.running {
            true => Some(pair("running_mean", "running_var", false)?),
            false => None,
        };
        Ok(BatchNorm { weight_and_bias, running_mean_and_var })
    }

    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Error> {
        self.normalise(x, mode, false)
    }

    /// The normalisation and the ReLU after it, in one pass over the memory.
    pub(super) fn forward_relu(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Error> {
        self.normalise(x, mode, true)
    }

    fn normalise(&self, x: &Tensor, mode: Mode, relu: bool) -> Result<Tensor, Error> {
        let weight_and_bias = both(&self.weight_and_bias);
        let running_mean_and_var = both(&self.running_mean_and_var);
        if let (Mode::Evaluate, Some((mean, var))) = (mode, running_mean_and_var) {
            let (weight, bias) = weight_and_bias.unzip();
            let (training, cudnn) = (false, true);
            let y = x.f_batch_norm(
                weight,
                bias,
                Some(mean),
                Some(var),
                training,
                MOMENTUM,
                EPSILON,
                cudnn,
            )?;
            return Ok(if relu { y.f_relu()? } else { y });
        }
        let of_batch = asng_native::BatchNorm {
            weight_and_bias,
            running_mean_and_var,
            momentum: MOMENTUM,
            epsilon: EPSILON,
            relu,
        };
        Ok(of_batch.forward(x)?)
    }
}

fn both(pair: &Option<(Tensor, Tensor)>) -> Option<(&Tensor, &Tensor)> {
    pair.as_ref().map(|(first, second)| (first, second))
}

/// A fully connected layer.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    pub(super) fn new(path: &nn::Path, inputs: i64, outputs: i64) -> Result<Linear, Error> {
        let weight = zeros(path, "weight", &[outputs, inputs], true)?;
        let bias = zeros(path, "bias", &[outputs], true)?;
        Ok(Linear { weight, bias })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

/// The mean over height and width: `[batch, channels, height, width]` to `[batch, channels]`.
pub(super) fn global_pool(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.f_mean_dim([2, 3].as_slice(), false, None::<Kind>)?)
}

fn zeros(path: &nn::Path, name: &str, shape: &[i64], trainable: bool) -> Result<Tensor, Error> {
    let zeros = Tensor::f_zeros(shape, (path.kind(), path.device()))?;
    Ok(path.add(name, zeros, trainable))
}
