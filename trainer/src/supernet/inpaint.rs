//! The network of the spaces `inpaint-cat` and `inpaint-int`: an encoder of convolutions, a decoder
//! that is its mirror image in transposed convolutions, and a last 3x3 transposed convolution to
//! the channels of the image. The same code is the supernet, with every module of every node, and
//! one architecture alone, with only its own.
//!
//! Source: the authors' `inpainting/inpainting_cat/cae_model.py`, `inpainting_int/cae_model.py` and
//! `common/operations.py`. As there:
//!
//! * A node is a convolution (no bias, padded by half its kernel) and a ReLU. Its mirror node is a
//!   transposed convolution of the same kernel and stride, with *the same number of channels*, to
//!   the height and width that the node read, and a ReLU. A skip node's output is added to its
//!   mirror node's before that ReLU; the two have the same shape, so nothing has to be padded.
//! * A node without skip has stride 2 and is bypassed, with its mirror node, where height or width
//!   is 1 already.
//! * Each module of each node has weights of its own, for each kernel and with and without skip, in
//!   the encoder and in the decoder, all of them with the most channels a node can have. The last
//!   convolution's are shared by all.
//!
//! And otherwise:
//!
//! * The authors pad a node's input with zero channels to the most there can be, convolve, and drop
//!   the channels of the output that the node does not have. Here the *weight* is cut to the
//!   channels that there are, before the convolution. The numbers are the same; 64 channels
//!   instead of 256 take a sixteenth of the time.
//! * Heights and widths may be odd: the mirror node then restores the odd size. (The authors'
//!   would be one pixel too large.)
//! * In a network alone, a node that comes after a bypassed one has weights for the channels it
//!   really reads. (The authors' are built for the channels of the bypassed node, and are fed zeros.)
//! * Batch normalisation is possible between convolution and ReLU, in a mirror node before the
//!   addition. The authors have none.
//!
//! Parameters are named by their place: `node3.conv_5x5_skip.conv.weight`,
//! `node3.conv_5x5_skip.mirror.weight`, alone also `node3.conv_5x5_skip.conv_norm.bias` and so on;
//! `output.weight`.

mod measure;
mod node;
mod retrained;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, nn};

use self::node::{Node, NodeSize, Transposed};
use super::enas_micro::channels_last;
use super::layers::NormKind;
use super::{Error, Snapshot, initial, search};
use crate::space::inpaint::{Architecture, Layer, Module, OUTPUT_KERNEL, Size};

pub use self::retrained::{Retrained, TrainOutcome};
pub use super::layers::Mode;

/// Shared weights with their optimiser.
pub type Supernet = search::Supernet<Network>;

/// A minibatch, on the network's device and of its kind.
#[derive(Debug)]
pub struct Batch {
    /// `[batch, channels, height, width]`, from 0 to 1. What the network should say.
    pub images: Tensor,
    /// `[batch, 1, height, width]`: 1 where the network sees the image, 0 where it sees black.
    pub mask: Tensor,
}

/// The quality of an architecture on one batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean squared error; not finite for a diverged network.
    pub loss: f64,
    /// Mean peak signal-to-noise ratio of the images, in decibels.
    pub psnr: f64,
    /// Mean structural similarity of the images, at most 1.
    pub ssim: f64,
}

/// A network with its weights.
#[derive(Debug)]
pub struct Network {
    /// By place in the row and choice.
    nodes: BTreeMap<(usize, Module), Node>,
    output: Transposed,
    parameters: BTreeMap<String, Tensor>,
    statistics: BTreeMap<String, Tensor>,
}

impl Network {
    /// Every module of every node, with the most channels. Batch normalisation, if any, has no
    /// weight and bias and uses the batch's statistics always.
    pub fn supernet(size: &Size, seed: u64, device: Device, kind: Kind) -> Result<Network, Error> {
        let most = size.channels;
        let norm = size.batch_norm.then_some(NormKind { affine: false, running: false });
        let node = |node, module| {
            let size = NodeSize { module, inputs: most, mirror_inputs: most, channels: most };
            ((node, module), size)
        };
        let nodes = (0..size.nodes).flat_map(|index| Module::ALL.map(|module| node(index, module)));
        Network::new(nodes.collect(), norm, [most, size.image_channels], seed, device, kind)
    }

    /// One architecture's own layers, for images of that shape (channels, height, width). Batch
    /// normalisation, if any, has weight, bias and running statistics.
    pub fn alone(
        architecture: &Architecture,
        image: [i64; 3],
        batch_norm: bool,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Result<Network, Error> {
        let layers = architecture.layers(image);
        let norm = batch_norm.then_some(NormKind { affine: true, running: true });
        let last = layers.first().map_or(image[0], |layer| layer.channels);
        let node = |layer: &Layer| {
            let &Layer { node, module, inputs, mirror_inputs, channels, .. } = layer;
            ((node, module), NodeSize { module, inputs, mirror_inputs, channels })
        };
        let nodes = layers.iter().map(node).collect();
        Network::new(nodes, norm, [last, image[0]], seed, device, kind)
    }

    fn new(
        sizes: BTreeMap<(usize, Module), NodeSize>,
        norm: Option<NormKind>,
        output: [i64; 2],
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Result<Network, Error> {
        let mut store = nn::VarStore::new(device);
        store.set_kind(kind);
        let root = store.root();
        let mut nodes = BTreeMap::new();
        for ((node, module), size) in sizes {
            let path = &root / format!("node{node}") / module.name();
            nodes.insert((node, module), Node::new(&path, size, norm)?);
        }
        let output = Transposed::new(&(&root / "output"), output, OUTPUT_KERNEL)?;
        let (mut parameters, statistics): (BTreeMap<_, _>, BTreeMap<_, _>) =
            store.variables().into_iter().partition(|(_, tensor)| tensor.requires_grad());
        initial::draw(&mut parameters, seed)?;
        Ok(Network { nodes, output, parameters, statistics })
    }

    /// What an architecture makes of the visible parts of images, in their shape `[batch,
    /// channels, height, width]`. A network built for one architecture refuses others.
    pub fn forward(
        &self,
        visible: &Tensor,
        architecture: &Architecture,
        mode: Mode,
    ) -> Result<Tensor, Error> {
        let (_, channels, height, width) = visible.size4()?;
        let layers = architecture.layers([channels, height, width]);
        let mut x = channels_last(visible)?;
        let mut skipped = Vec::new();
        for layer in &layers {
            x = self.node(layer)?.encode(&x, layer, mode)?; // [batch, channels, halved]
            if layer.module.skip {
                skipped.push(x.shallow_clone());
            }
        }
        for layer in layers.iter().rev() {
            let encoded = if layer.module.skip { skipped.pop() } else { None };
            x = self.node(layer)?.decode(&x, layer, encoded, mode)?; // [batch, channels, image]
        }
        let last = layers.first().map_or(channels, |layer| layer.channels);
        self.output.forward(&x, [last, channels], 1, [0, 0]) // the shape of `visible`
    }

    fn node(&self, layer: &Layer) -> Result<&Node, Error> {
        let missing = || Error::NotBuilt(format!("{} at node {}", layer.module.name(), layer.node));
        self.nodes.get(&(layer.node, layer.module)).ok_or_else(missing)
    }

    /// Everything that is trained, by name.
    pub fn parameters(&self) -> &BTreeMap<String, Tensor> {
        &self.parameters
    }

    /// The running statistics, by name; none in a supernet.
    pub fn statistics(&self) -> &BTreeMap<String, Tensor> {
        &self.statistics
    }

    /// The parameters, to move or to load into. The tensors are the network's own: assigning
    /// another one has no effect.
    pub fn parameters_mut(&mut self) -> &mut BTreeMap<String, Tensor> {
        &mut self.parameters
    }

    /// Copies of parameters and statistics.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        Snapshot::of(&[("weight", &self.parameters), ("statistic", &self.statistics)])
    }

    /// Parameters and statistics, to load into.
    pub(super) fn tensors_mut(
        &mut self,
    ) -> (&mut BTreeMap<String, Tensor>, &mut BTreeMap<String, Tensor>) {
        (&mut self.parameters, &mut self.statistics)
    }
}

#[cfg(test)]
mod tests;
