//! The network of the space `enas-micro`: a stem, cells, a classifier and an auxiliary head. The
//! same code is the supernet, with every operation of every node, and one architecture alone, with
//! only its own.
//!
//! Source: the authors' `classification/cnn_model_micro.py` and `operations.py`. Parameters are
//! named by their place, counted from 0: `stem.conv.weight`, `cell3.input1.conv.weight`,
//! `cell3.node2.from1.sep_conv_3x3.depthwise1.weight` (`from0` and `from1` are the cell's inputs,
//! `from2` is node 0), `cell3.output.conv.weight`, `auxiliary.conv2.weight`, `classifier.bias`.

mod cell;
mod measure;
mod operation;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, nn};

use self::cell::Cell;
use super::layers::{BatchNorm, Conv, ConvSize, Linear, NormKind, global_pool};
use super::{Error, Snapshot, initial};
use crate::space::enas_micro::{AUXILIARY_CHANNELS, Architecture, Size};

pub use super::layers::Mode;

/// What a network makes of a batch of images.
#[derive(Debug)]
pub struct Logits {
    /// `[batch, classes]`
    pub main: Tensor,
    /// `[batch, classes]`, of the auxiliary head: in training only, and never of a supernet.
    pub auxiliary: Option<Tensor>,
}

/// A network with its weights.
#[derive(Debug)]
pub struct Network {
    stem_conv: Conv,
    stem_norm: BatchNorm,
    cells: Vec<Cell>,
    classifier: Linear,
    auxiliary: Auxiliary,
    auxiliary_cell: usize,
    shared: bool,
    parameters: BTreeMap<String, Tensor>,
    statistics: BTreeMap<String, Tensor>,
}

impl Network {
    /// Every operation of every node. Batch normalisation has no weight and bias in the cells, and
    /// uses the batch's statistics always, in [`Mode::Evaluate`] too.
    pub fn supernet(size: &Size, seed: u64, device: Device, kind: Kind) -> Result<Network, Error> {
        Network::new(size, None, seed, device, kind)
    }

    /// One architecture's own operations. Batch normalisation has weight, bias and running
    /// statistics everywhere.
    pub fn alone(
        size: &Size,
        architecture: &Architecture,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Result<Network, Error> {
        Network::new(size, Some(architecture), seed, device, kind)
    }

    fn new(
        size: &Size,
        alone: Option<&Architecture>,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Result<Network, Error> {
        let mut store = nn::VarStore::new(device);
        store.set_kind(kind);
        let root = store.root();
        let shared = alone.is_none();
        let ends_norm = NormKind { affine: true, running: !shared };
        let cell_norm = NormKind { affine: !shared, running: !shared };

        let stem_channels = size.stem_channels();
        let stem_size = ConvSize {
            kernel: 3,
            padding: 1,
            ..ConvSize::pointwise(size.image_channels, stem_channels)
        };
        let stem_conv = Conv::new(&(&root / "stem" / "conv"), stem_size)?;
        let stem_norm = BatchNorm::new(&(&root / "stem" / "norm"), stem_channels, ends_norm)?;
        let sizes = size.cells();
        let mut cells = Vec::with_capacity(sizes.len());
        for (index, cell) in sizes.iter().enumerate() {
            let graph = alone.map(|architecture| architecture.graph(cell));
            let path = &root / format!("cell{index}");
            let read_by_cells = index + 1 < sizes.len();
            cells.push(Cell::new(&path, cell, size.nodes, graph, cell_norm, read_by_cells)?);
        }
        let last_channels = sizes[sizes.len() - 1].channels;
        let classifier = Linear::new(&(&root / "classifier"), last_channels, size.classes)?;
        let auxiliary_cell = size.auxiliary_cell();
        let auxiliary_channels = sizes[auxiliary_cell].channels;
        let auxiliary =
            Auxiliary::new(&(&root / "auxiliary"), auxiliary_channels, size.classes, ends_norm)?;

        let (mut parameters, statistics): (BTreeMap<_, _>, BTreeMap<_, _>) =
            store.variables().into_iter().partition(|(_, tensor)| tensor.requires_grad());
        initial::draw(&mut parameters, seed)?;
        Ok(Network {
            stem_conv,
            stem_norm,
            cells,
            classifier,
            auxiliary,
            auxiliary_cell,
            shared,
            parameters,
            statistics,
        })
    }

    /// The logits of an architecture for `images` `[batch, channels, height, width]`, whose height
    /// and width must be divisible by 4, and 32 for the auxiliary head. A network built for one
    /// architecture refuses others.
    pub fn forward(
        &self,
        images: &Tensor,
        architecture: &Architecture,
        mode: Mode,
    ) -> Result<Logits, Error> {
        let images = channels_last(images)?;
        let stem = self.stem_conv.forward(&images)?; // [batch, 3c, h, w]
        let stem = self.stem_norm.forward_relu(&stem, mode)?; // for the cells
        let mut last_two = [stem.shallow_clone(), stem];
        let mut auxiliary = None;
        for (index, cell) in self.cells.iter().enumerate() {
            let output = cell.forward(&last_two, architecture, mode)?; // [batch, c, h, w]
            if index == self.auxiliary_cell && !self.shared && mode != Mode::Evaluate {
                auxiliary = Some(self.auxiliary.forward(&output, mode)?);
            }
            let [_, previous] = last_two;
            last_two = [previous, output];
        }
        let main = self.classifier.forward(&global_pool(&last_two[1])?)?; // [batch, classes]
        Ok(Logits { main, auxiliary })
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

/// The second classifier, which helps to train a deep network (Szegedy et al. 2015).
#[derive(Debug)]
struct Auxiliary {
    conv1: Conv,
    norm1: BatchNorm,
    conv2: Conv,
    norm2: BatchNorm,
    classifier: Linear,
}

impl Auxiliary {
    fn new(
        path: &nn::Path,
        channels: i64,
        classes: i64,
        norm: NormKind,
    ) -> Result<Auxiliary, Error> {
        let [first, second] = AUXILIARY_CHANNELS;
        let conv2 = ConvSize { kernel: 2, ..ConvSize::pointwise(first, second) };
        Ok(Auxiliary {
            conv1: Conv::new(&(path / "conv1"), ConvSize::pointwise(channels, first))?,
            norm1: BatchNorm::new(&(path / "norm1"), first, norm)?,
            conv2: Conv::new(&(path / "conv2"), conv2)?,
            norm2: BatchNorm::new(&(path / "norm2"), second, norm)?,
            classifier: Linear::new(&(path / "classifier"), second, classes)?,
        })
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Error> {
        let x = x.f_relu()?; // [batch, c, 8, 8]
        let x = x.f_avg_pool2d([5, 5], [3, 3], [0, 0], false, true, None::<i64>)?; // [.., 2, 2]
        let x = self.norm1.forward_relu(&self.conv1.forward(&x)?, mode)?; // [batch, 128, 2, 2]
        let x = self.norm2.forward_relu(&self.conv2.forward(&x)?, mode)?; // [batch, 768, 1, 1]
        self.classifier.forward(&global_pool(&x)?)
    }
}

/// The same values with the channels of a pixel side by side in memory. Every operation after it
/// keeps that layout, in which the network takes half the time on a CPU.
pub(super) fn channels_last(images: &Tensor) -> Result<Tensor, Error> {
    Ok(images.f_permute([0, 2, 3, 1])?.f_contiguous()?.f_permute([0, 3, 1, 2])?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::space::enas_micro::variables;

    prop_compose! {
        fn any_size()(
            nodes in 1_usize..4,
            cells in 3_usize..6,
            channels in 1_i64..4,
            image_channels in 1_i64..4,
            classes in 2_i64..5,
        ) -> Size {
            Size { nodes, cells, channels, image_channels, classes }
        }
    }

    fn any_architecture(size: Size) -> impl Strategy<Value = (Size, Architecture)> {
        let choices = variables(size.nodes).into_iter().map(|v| 0..v.choices.len() as i64);
        let decode = move |values: Vec<i64>| Architecture::decode(size.nodes, &values).unwrap();
        choices.collect::<Vec<_>>().prop_map(move |values| (size, decode(values)))
    }

    fn count(network: &Network) -> i64 {
        network.parameters().values().map(|parameter| parameter.numel() as i64).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn every_architecture_runs_and_the_closed_forms_count_right(
            (size, architecture) in any_size().prop_flat_map(any_architecture),
        ) {
            let images = Tensor::ones([2, size.image_channels, 32, 32], (Kind::Float, Device::Cpu));
            let shape = vec![2, size.classes];
            let train = Mode::Train { drop_path: 0.5 };

            let shared = Network::supernet(&size, 0, Device::Cpu, Kind::Float).unwrap();
            prop_assert_eq!(count(&shared), size.supernet_parameters());
            prop_assert!(shared.statistics().is_empty());
            let logits = shared.forward(&images, &architecture, train).unwrap();
            prop_assert_eq!(logits.main.size(), shape.clone());
            prop_assert!(logits.auxiliary.is_none());

            let alone = Network::alone(&size, &architecture, 0, Device::Cpu, Kind::Float).unwrap();
            let counted = architecture.parameters(&size, true) + size.auxiliary_parameters();
            prop_assert_eq!(count(&alone), counted);
            let logits = alone.forward(&images, &architecture, train).unwrap();
            prop_assert_eq!(logits.main.size(), shape.clone());
            prop_assert_eq!(logits.auxiliary.unwrap().size(), shape);
        }
    }

    #[test]
    fn weights_start_within_pytorch_s_bounds() {
        let size = Size { nodes: 2, cells: 3, channels: 4, image_channels: 3, classes: 10 };
        let network = Network::supernet(&size, 0, Device::Cpu, Kind::Float).unwrap();
        let largest = |name: &str| f64::try_from(network.parameters()[name].abs().max()).unwrap();
        for (name, fan_in) in [
            ("stem.conv.weight", 27),
            ("cell0.node0.from0.sep_conv_5x5.depthwise1.weight", 25),
            ("auxiliary.conv2.weight", 128 * 4),
            ("classifier.weight", 16),
            ("classifier.bias", 16),
        ] {
            let bound = 1.0 / f64::from(fan_in).sqrt();
            assert!(largest(name) <= bound && largest(name) > 0.7 * bound, "{name}");
        }
        assert_eq!(largest("stem.norm.bias"), 0.0);
        assert_eq!(largest("stem.norm.weight"), 1.0);
    }
}
