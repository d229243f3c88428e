//! Blocks of mobile networks: mobile inverted bottlenecks (Sandler et al., MobileNetV2, CVPR 2018), with squeeze-and-excitation
//! (Hu et al., CVPR 2018) as in MnasNet and EfficientNet, and their relatives. Sizes follow timm's builder.
//!
//! A block uses the first channels of its weights: as many as its input has, and as many as its caller asks for.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::super::network::{
    BatchNorm, Builder, Conv, ConvSize, Linear, Mode, drop_path, every_other, first_channels,
    global_pool,
};

/// The function after a normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// min(max(x, 0), 6)
    Relu6,
    /// x min(max(x + 3, 0), 6) / 6, of MobileNetV3
    HardSwish,
    /// x sigmoid(x), also called swish
    Silu,
}

impl Activation {
    fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Activation::Relu => x.relu(),
            Activation::Relu6 => x.relu6(),
            Activation::HardSwish => x.hardswish(),
            Activation::Silu => x.silu(),
        }
    }
}

/// The layers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// 1x1 to more channels, depthwise, 1x1 to the output's channels.
    Inverted,
    /// Depthwise, 1x1.
    Separable,
    /// Full convolution to more channels, 1x1 to the output's channels.
    Fused,
    /// One full convolution.
    Conv,
}

/// One choice of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Operation {
    pub(super) kind: BlockKind,
    pub(super) kernel: i64,
    /// Channels in the middle divided by those of the input; 1 unless inverted or fused.
    pub(super) expansion: f64,
    /// Squeezed channels divided by those of the block's input; 0 without squeeze-and-excitation.
    pub(super) squeeze: f64,
}

/// The field's name, such as `mbconv_k5_e6_se0.25`.
impl Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Operation { kind, kernel, expansion, squeeze } = self;
        match kind {
            BlockKind::Inverted => write!(f, "mbconv_k{kernel}_e{expansion}")?,
            BlockKind::Separable => write!(f, "ds_k{kernel}")?,
            BlockKind::Fused => write!(f, "fused_k{kernel}_e{expansion}")?,
            BlockKind::Conv => write!(f, "conv_k{kernel}")?,
        }
        if *squeeze > 0.0 { write!(f, "_se{squeeze}") } else { Ok(()) }
    }
}

impl Operation {
    /// Channels between the first and the last layer.
    fn middle(&self, inputs: i64) -> i64 {
        match self.kind {
            BlockKind::Inverted | BlockKind::Fused => divisible(inputs as f64 * self.expansion),
            BlockKind::Separable | BlockKind::Conv => inputs,
        }
    }

    /// Channels that squeeze-and-excitation squeezes the middle to: relative to the block's input, as in timm.
    fn squeezed(&self, inputs: i64) -> i64 {
        let middle = self.middle(inputs) as f64;
        ((middle * (self.squeeze / self.expansion)).round_ties_even() as i64).max(1)
    }
}

/// Rounds a number of channels to a multiple of 8, at least 8 and not below 0.9 of it (MobileNet's `make_divisible`).
pub(super) fn divisible(channels: f64) -> i64 {
    let rounded = ((channels + 4.0) as i64 / 8 * 8).max(8);
    if (rounded as f64) < 0.9 * channels { rounded + 8 } else { rounded }
}

/// A convolution, its normalisation and perhaps an activation.
#[derive(Debug)]
pub(super) struct Layer {
    conv: Conv,
    norm: BatchNorm,
    activation: Option<Activation>,
    /// The stride of a 1x1 convolution is taken before it: see [`every_other`].
    pointwise_stride: bool,
}

impl Layer {
    /// `image` is the height and width of the input, and becomes that of the output.
    pub(super) fn new(
        at: &Builder,
        size: ConvSize,
        image: &mut [i64; 2],
        activation: Option<Activation>,
    ) -> Layer {
        *image = image.map(|side| (side + size.stride - 1) / size.stride);
        let pointwise_stride = size.kernel == 1 && size.stride > 1;
        let size = ConvSize { stride: if pointwise_stride { 1 } else { size.stride }, ..size };
        Layer {
            conv: Conv::new(at, size, image[0] * image[1]),
            norm: BatchNorm::new(&at.at("norm"), size.outputs),
            activation,
            pointwise_stride,
        }
    }

    /// `[batch, in, height, width]` to `[batch, outputs, height / stride, width / stride]`, rounded up.
    pub(super) fn forward(&self, x: &Tensor, outputs: i64, mode: Mode) -> Tensor {
        let inputs = x.size()[1].min(self.conv.weight.size()[1]); // 1 if depthwise
        let weight = first_channels(&self.conv.weight, &[outputs, inputs]);
        let x = match self.pointwise_stride {
            true => self.conv.forward_with(&every_other(x, 0), &weight),
            false => self.conv.forward_with(x, &weight),
        };
        match self.activation {
            None => self.norm.forward(&x, mode),
            Some(Activation::Relu) => self.norm.forward_relu(&x, mode),
            Some(activation) => activation.apply(&self.norm.forward(&x, mode)),
        }
    }
}

/// The shape of a block, whatever its operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSize {
    /// Channels of the input.
    pub(super) inputs: i64,
    /// Channels of the output.
    pub(super) outputs: i64,
    pub(super) stride: i64,
    pub(super) activation: Activation,
    /// Adds the input where it has the shape of the output.
    pub(super) residual: bool,
}

impl BlockSize {
    pub(super) fn has_residual(&self) -> bool {
        self.residual && self.stride == 1 && self.inputs == self.outputs
    }
}

/// A block with its weights.
#[derive(Debug)]
pub(super) struct Block {
    operation: Operation,
    first: Option<Layer>,
    depthwise: Option<Layer>,
    squeeze_excite: Option<SqueezeExcite>,
    project: Option<Layer>,
    residual: bool,
}

impl Block {
    /// `image` is the height and width of the input, and becomes that of the output.
    pub(super) fn new(
        at: &Builder,
        operation: Operation,
        size: BlockSize,
        image: &mut [i64; 2],
    ) -> Block {
        let BlockSize { inputs, outputs, stride, activation, residual } = size;
        let Operation { kind, kernel, squeeze, .. } = operation;
        let middle = operation.middle(inputs);
        let first = match kind {
            BlockKind::Inverted => Some(ConvSize::pointwise(inputs, middle)),
            BlockKind::Fused => Some(ConvSize::square(inputs, middle, kernel, stride)),
            BlockKind::Conv => Some(ConvSize::square(inputs, outputs, kernel, stride)),
            BlockKind::Separable => None,
        };
        let depthwise = match kind {
            BlockKind::Inverted | BlockKind::Separable => {
                Some(ConvSize::depthwise(middle, kernel, stride))
            }
            BlockKind::Fused | BlockKind::Conv => None,
        };
        let project = (kind != BlockKind::Conv).then_some(ConvSize::pointwise(middle, outputs));
        let mut layer = |name, size: Option<ConvSize>, activation| {
            size.map(|size| Layer::new(&at.at(name), size, image, activation))
        };
        Block {
            operation,
            first: layer(
                if kind == BlockKind::Conv { "conv" } else { "expand" },
                first,
                Some(activation),
            ),
            depthwise: layer("depthwise", depthwise, Some(activation)),
            squeeze_excite: (squeeze > 0.0).then(|| {
                let squeezed = operation.squeezed(inputs);
                SqueezeExcite::new(&at.at("squeeze_excite"), middle, squeezed, activation)
            }),
            project: layer("project", project, None),
            residual: residual && stride == 1,
        }
    }

    /// `[batch, in, height, width]` to `[batch, outputs, height / stride, width / stride]`, rounded up.
    pub(super) fn forward(&self, x: &Tensor, outputs: i64, mode: Mode) -> Tensor {
        let inputs = x.size()[1];
        let middle = self.operation.middle(inputs);
        let mut y = x.shallow_clone();
        if let Some(first) = &self.first {
            let channels = if self.project.is_some() { middle } else { outputs };
            y = first.forward(&y, channels, mode);
        }
        if let Some(depthwise) = &self.depthwise {
            y = depthwise.forward(&y, middle, mode);
        }
        if let Some(squeeze_excite) = &self.squeeze_excite {
            y = squeeze_excite.forward(&y, self.operation.squeezed(inputs));
        }
        if let Some(project) = &self.project {
            y = project.forward(&y, outputs, mode);
        }
        if self.residual && inputs == outputs { drop_path(y, mode) + x } else { y }
    }
}

/// Multiplies each channel by a number from 0 to 1 that is computed from the means of all channels.
#[derive(Debug)]
struct SqueezeExcite {
    reduce: Linear,
    expand: Linear,
    activation: Activation,
}

impl SqueezeExcite {
    fn new(at: &Builder, channels: i64, squeezed: i64, activation: Activation) -> SqueezeExcite {
        SqueezeExcite {
            reduce: Linear::new(&at.at("reduce"), channels, squeezed),
            expand: Linear::new(&at.at("expand"), squeezed, channels),
            activation,
        }
    }

    fn forward(&self, x: &Tensor, squeezed: i64) -> Tensor {
        let channels = x.size()[1];
        let reduced = self.reduce.forward_first(&global_pool(x), squeezed);
        let scale = self.expand.forward_first(&self.activation.apply(&reduced), channels);
        x * scale.sigmoid().view([-1, channels, 1, 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_rounded_as_timm_rounds_them() {
        // timm.layers.make_divisible, computed with timm 1.0.
        let expected = [(1.0, 8), (11.0, 16), (12.0, 16), (20.0, 24), (33.6, 32), (60.0, 64)];
        for (channels, rounded) in expected {
            assert_eq!(divisible(channels), rounded, "{channels}");
        }
        for tenth in 1..20_000 {
            let [less, more] = [tenth, tenth + 1].map(|tenth| divisible(tenth as f64 / 10.0));
            assert!(less <= more, "wider inputs never need fewer channels");
        }
    }

    #[test]
    fn squeezed_channels_are_relative_to_the_input_of_the_block() {
        let kind = BlockKind::Inverted;
        let operation = Operation { kind, kernel: 3, expansion: 6.0, squeeze: 0.25 };
        assert_eq!(operation.to_string(), "mbconv_k3_e6_se0.25");
        assert_eq!((operation.middle(16), operation.squeezed(16)), (96, 4));
    }
}
