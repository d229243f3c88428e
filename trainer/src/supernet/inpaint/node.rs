//! A node's module with its mirror node: a convolution and a transposed one, whose weights are cut
//! to the channels of the architecture at hand.

use tch::{Tensor, nn};

use super::super::Error;
use super::super::layers::{BatchNorm, Conv, ConvSize, Mode, NormKind, every_other};
use crate::space::inpaint::{Layer, Module};

/// The shape of a [`Node`]'s weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct NodeSize {
    pub(super) module: Module,
    pub(super) inputs: i64,
    pub(super) mirror_inputs: i64,
    pub(super) channels: i64,
}

#[derive(Debug)]
pub(super) struct Node {
    conv: Conv,
    conv_norm: Option<BatchNorm>,
    mirror: Transposed,
    mirror_norm: Option<BatchNorm>,
}

impl Node {
    pub(super) fn new(
        path: &nn::Path,
        size: NodeSize,
        norm: Option<NormKind>,
    ) -> Result<Node, Error> {
        let NodeSize { module, inputs, mirror_inputs, channels } = size;
        let kernel = module.kernel;
        let stride = if kernel == 1 { 1 } else { module.stride() }; // see `encode`
        let padding = kernel / 2;
        let conv = ConvSize { kernel, stride, padding, ..ConvSize::pointwise(inputs, channels) };
        let new_norm = |name| match norm {
            Some(kind) => BatchNorm::new(&(path / name), channels, kind).map(Some),
            None => Ok(None),
        };
        let mirror = [mirror_inputs, channels];
        Ok(Node {
            conv: Conv::new(&(path / "conv"), conv)?,
            conv_norm: new_norm("conv_norm")?,
            mirror: Transposed::new(&(path / "mirror"), mirror, kernel)?,
            mirror_norm: new_norm("mirror_norm")?,
        })
    }

    /// The node of the encoder.
    pub(super) fn encode(&self, x: &Tensor, layer: &Layer, mode: Mode) -> Result<Tensor, Error> {
        let weight = cut(&self.conv.weight, [layer.channels, layer.inputs])?;
        let x = match (layer.module.kernel, layer.module.stride()) {
            (1, 2) => self.conv.forward_with(&every_other(x, 0)?, &weight)?,
            _ => self.conv.forward_with(x, &weight)?,
        };
        Ok(normalise(&self.conv_norm, x, mode)?.f_relu()?)
    }

    /// The mirror node; `encoded` is the node's own output if it is to be added.
    pub(super) fn decode(
        &self,
        x: &Tensor,
        layer: &Layer,
        encoded: Option<Tensor>,
        mode: Mode,
    ) -> Result<Tensor, Error> {
        let channels = [layer.mirror_inputs, layer.channels];
        let stride = layer.module.stride();
        // Two sizes are halved to the same one; this tells them apart.
        let even = layer.image.map(|side| if stride == 2 { 1 - side % 2 } else { 0 });
        let x = self.mirror.forward(x, channels, stride, even)?;
        let x = normalise(&self.mirror_norm, x, mode)?;
        let x = match encoded {
            Some(encoded) => x.f_add(&encoded)?,
            None => x,
        };
        Ok(x.f_relu()?)
    }
}

/// A transposed convolution without bias, padded so that stride 1 keeps the size.
#[derive(Debug)]
pub(super) struct Transposed {
    /// `[in, out, kernel, kernel]`
    weight: Tensor,
    kernel: i64,
}

impl Transposed {
    pub(super) fn new(
        path: &nn::Path,
        [inputs, outputs]: [i64; 2],
        kernel: i64,
    ) -> Result<Transposed, Error> {
        let options = (path.kind(), path.device());
        let zeros = Tensor::f_zeros([inputs, outputs, kernel, kernel], options)?;
        Ok(Transposed { weight: path.add("weight", zeros, true), kernel })
    }

    /// With the first `channels` (in, out) of the weight, and so many rows and columns added at the
    /// end.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        channels: [i64; 2],
        stride: i64,
        added: [i64; 2],
    ) -> Result<Tensor, Error> {
        let weight = cut(&self.weight, channels)?;
        let bias = None::<Tensor>;
        if (self.kernel, stride) == (1, 2) {
            // For the reason of `every_other`.
            let x = x.f_conv2d(&weight.f_transpose(0, 1)?, bias, [1, 1], [0, 0], [1, 1], 1)?;
            return spread(&x, added);
        }
        let padding = [self.kernel / 2; 2];
        Ok(x.f_conv_transpose2d(&weight, bias, [stride; 2], padding, added, 1, [1, 1])?)
    }
}

/// The weight of the first channels along the first two dimensions.
fn cut(weight: &Tensor, channels: [i64; 2]) -> Result<Tensor, Error> {
    Ok(weight.f_narrow(0, 0, channels[0])?.f_narrow(1, 0, channels[1])?)
}

/// Puts a row and a column of zeros between all rows and columns, and so many after the last ones.
fn spread(x: &Tensor, added: [i64; 2]) -> Result<Tensor, Error> {
    let (batch, channels, height, width) = x.size4()?;
    let pixels = x.f_permute([0, 2, 3, 1])?; // channels last, as they lie in memory
    let pixels = pixels.f_reshape([batch, height, 1, width, 1, channels])?;
    let spread = pixels.f_constant_pad_nd([0, 0, 0, 1, 0, 0, 0, 1])?;
    let spread = spread.f_reshape([batch, 2 * height, 2 * width, channels])?;
    let [height, width] = [2 * height - 1 + added[0], 2 * width - 1 + added[1]];
    let spread = spread.f_narrow(1, 0, height)?.f_narrow(2, 0, width)?;
    Ok(spread.f_permute([0, 3, 1, 2])?)
}

fn normalise(norm: &Option<BatchNorm>, x: Tensor, mode: Mode) -> Result<Tensor, Error> {
    match norm {
        Some(norm) => norm.forward(&x, mode),
        None => Ok(x),
    }
}
