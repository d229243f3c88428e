//! A network with its weights, and the layers that networks are built of.
//!
//! The code that builds a network also counts it: with [`Builder::counting`] the same calls add up parameters and
//! multiplications and make no tensor, so counts and networks cannot disagree.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Display,
    rc::Rc,
    vec,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, nn};

use crate::torch::{Snapshot, Tensors};

/// PyTorch's defaults for batch normalisation.
const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// The prefix of the names of tensors that only training needs.
pub const AUXILIARY: &str = "auxiliary.";

/// The purpose of a forward pass.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// Batch statistics.
    Train {
        /// The outputs of operations that are dropped; none in the search.
        drop_path: Option<&'a DropPath>,
    },
    /// Running statistics where a network keeps them, which a supernet does not; nothing is dropped.
    Evaluate,
}

/// The result of a forward pass.
#[derive(Debug)]
pub struct Output {
    /// The logits `[batch, classes]` of a classifier, or the images of an autoencoder.
    pub main: Tensor,
    /// Logits `[batch, classes]` of the auxiliary head: in training only, and never of a supernet.
    pub auxiliary: Option<Tensor>,
}

/// Computes an architecture's output for a batch of inputs. A network of one architecture alone ignores the values.
pub type Forward = Box<dyn Fn(&Tensor, &[i64], Mode) -> Output>;

/// A network with its weights.
pub struct Network {
    /// Everything that is trained, by name. The tensors are the network's own: change them in place.
    pub parameters: Tensors,
    /// The running statistics, by name; none in a supernet.
    pub statistics: Tensors,
    forward: Forward,
}

impl Network {
    /// Takes the weights that layers have put into `store` and draws their initial values, decided by `seed`.
    pub fn new(store: &nn::VarStore, seed: u64, forward: Forward) -> Network {
        let (mut parameters, statistics): (Tensors, Tensors) =
            store.variables().into_iter().partition(|(_, tensor)| tensor.requires_grad());
        initialise(&mut parameters, seed);
        Network { parameters, statistics, forward }
    }

    /// A network of these parameters, with their values as they are.
    pub fn of(parameters: Tensors, forward: Forward) -> Network {
        Network { parameters, statistics: Tensors::new(), forward }
    }

    /// Computes the output of the architecture with these values.
    pub fn forward(&self, input: &Tensor, values: &[i64], mode: Mode) -> Output {
        (self.forward)(input, values, mode)
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.parameters.values().next().map_or(Device::Cpu, Tensor::device)
    }

    /// Copies parameters and statistics.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(&[("weight", &self.parameters), ("statistic", &self.statistics)])
    }
}

/// Fills the weights of convolutions and linear layers, and the biases of the latter, uniformly within +-1 / sqrt(inputs of an
/// output), in the order of the names. That is PyTorch's default (Kaiming's bound with a = sqrt(5)), and leaves normalisations
/// at weight 1, bias 0. Drawn on the CPU by a named generator, so that a seed gives the same weights on every device.
fn initialise(parameters: &mut Tensors, seed: u64) {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut fan_ins = BTreeMap::new();
    for (name, parameter) in &*parameters {
        if let Some(layer) = name.strip_suffix(".weight")
            && let [_, inputs @ ..] = parameter.size().as_slice()
            && !inputs.is_empty()
        {
            fan_ins.insert(layer.to_owned(), inputs.iter().product::<i64>());
        }
    }
    let _guard = tch::no_grad_guard();
    for (name, parameter) in parameters {
        let fan_in = name.rsplit_once('.').and_then(|(layer, _)| fan_ins.get(layer));
        if let Some(&fan_in) = fan_in {
            let bound = 1.0 / (fan_in as f32).sqrt();
            let draw = |_| generator.random_range(-bound..bound);
            let values: Vec<f32> = (0..parameter.numel()).map(draw).collect();
            parameter.copy_(&Tensor::from_slice(&values).view(parameter.size().as_slice()));
        }
    }
}

/// The costs of an architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// Weights that are trained.
    pub parameters: i64,
    /// Multiplications, each with an addition, of convolutions and linear layers for one image.
    pub macs: i64,
}

/// The kind of a network's batch normalisations.
#[derive(Clone, Copy, Debug)]
pub struct NormKind {
    /// A trainable weight and bias for each channel.
    pub affine: bool,
    /// Running statistics, updated by each pass in training and used in evaluation. Without them, batch statistics are used
    /// always: one set of statistics could not fit the activations of every architecture.
    pub running: bool,
}

impl NormKind {
    /// In the cells and blocks of a supernet.
    pub const SHARED: NormKind = NormKind { affine: false, running: false };
    /// In a network of one architecture alone.
    pub const ALONE: NormKind = NormKind { affine: true, running: true };
}

/// The place in a network where layers put their weights.
#[derive(Clone)]
pub struct Builder<'a> {
    /// None when only costs are counted.
    path: Option<nn::Path<'a>>,
    norm: NormKind,
    costs: Rc<Cell<Costs>>,
}

impl<'a> Builder<'a> {
    /// Puts weights into `store`.
    pub fn new(store: &'a nn::VarStore, norm: NormKind) -> Builder<'a> {
        Builder { path: Some(store.root()), norm, costs: Rc::default() }
    }

    /// Makes no tensor: layers are counted alone.
    pub fn counting(norm: NormKind) -> Builder<'static> {
        Builder { path: None, norm, costs: Rc::default() }
    }

    /// The place `name` below this one.
    pub fn at(&self, name: impl Display) -> Builder<'a> {
        let path = self.path.as_ref().map(|path| path / name.to_string());
        Builder { path, norm: self.norm, costs: self.costs.clone() }
    }

    /// The same place with other normalisations.
    pub fn with_norm(&self, norm: NormKind) -> Builder<'a> {
        Builder { norm, ..self.clone() }
    }

    /// The costs of all layers built so far, here and at every place of the same network.
    pub fn costs(&self) -> Costs {
        self.costs.get()
    }

    /// Adds multiplications.
    pub fn count_macs(&self, macs: i64) {
        let Costs { parameters, macs: before } = self.costs.get();
        self.costs.set(Costs { parameters, macs: before + macs });
    }

    /// Makes a tensor filled with `value`; an undefined one when counting.
    pub fn tensor(&self, name: &str, shape: &[i64], value: f64, trainable: bool) -> Tensor {
        if trainable {
            let Costs { parameters, macs } = self.costs.get();
            let parameters = parameters + shape.iter().product::<i64>();
            self.costs.set(Costs { parameters, macs });
        }
        let Some(path) = &self.path else { return Tensor::new() };
        path.add(name, Tensor::full(shape, value, (path.kind(), path.device())), trainable)
    }
}

/// The shape of a [`Conv`].
#[derive(Clone, Copy, Debug)]
pub struct ConvSize {
    /// Channels of the input.
    pub inputs: i64,
    /// Channels of the output.
    pub outputs: i64,
    /// Height and width of the kernel.
    pub kernel: i64,
    /// Height and width of the input divided by those of the output.
    pub stride: i64,
    /// Zeros added to each side of the input.
    pub padding: i64,
    /// Distance between two pixels of the kernel.
    pub dilation: i64,
    /// Groups of channels that are convolved separately.
    pub groups: i64,
}

impl ConvSize {
    /// A 1x1 convolution.
    pub fn pointwise(inputs: i64, outputs: i64) -> ConvSize {
        ConvSize { inputs, outputs, kernel: 1, stride: 1, padding: 0, dilation: 1, groups: 1 }
    }

    /// A convolution of that kernel, padded so that stride 1 keeps the size.
    pub fn square(inputs: i64, outputs: i64, kernel: i64, stride: i64) -> ConvSize {
        ConvSize { kernel, stride, padding: kernel / 2, ..ConvSize::pointwise(inputs, outputs) }
    }

    /// One filter for each channel, padded so that stride 1 keeps the size.
    pub fn depthwise(channels: i64, kernel: i64, stride: i64) -> ConvSize {
        ConvSize { groups: channels, ..ConvSize::square(channels, channels, kernel, stride) }
    }
}

/// A convolution without bias.
#[derive(Debug)]
pub struct Conv {
    /// `[out, in / groups, kernel, kernel]`
    pub weight: Tensor,
    size: ConvSize,
}

impl Conv {
    /// `pixels` are height times width of the output.
    pub fn new(at: &Builder, size: ConvSize, pixels: i64) -> Conv {
        let ConvSize { inputs, outputs, kernel, groups, .. } = size;
        at.count_macs(outputs * inputs / groups * kernel * kernel * pixels);
        let shape = [outputs, inputs / groups, kernel, kernel];
        Conv { weight: at.tensor("weight", &shape, 0.0, true), size }
    }

    /// `[batch, in, height, width]` to `[batch, out, height / stride, width / stride]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_with(x, &self.weight)
    }

    /// The convolution with a part of its weight: the first output and input channels, or a smaller kernel.
    pub fn forward_with(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let ConvSize { stride, dilation, groups, kernel, padding, .. } = self.size;
        let used = weight.size();
        let padding = padding - dilation * (kernel - used[2]) / 2;
        if groups > 1 {
            return asng_native::depthwise(x, weight, stride, padding, dilation).unwrap();
        }
        x.conv2d(weight, None::<Tensor>, [stride; 2], [padding; 2], [dilation; 2], groups)
    }
}

/// Batch normalisation over the channels.
#[derive(Debug)]
pub struct BatchNorm {
    /// On a GPU, constant ones and zeros where there are no others: cuDNN does not normalise without.
    weight_and_bias: Option<(Tensor, Tensor)>,
    running_mean_and_var: Option<(Tensor, Tensor)>,
}

impl BatchNorm {
    /// Of the kind that `at` is for.
    pub fn new(at: &Builder, channels: i64) -> BatchNorm {
        let pair = |one: (&str, f64), other: (&str, f64), trainable| {
            let tensor = |(name, value)| at.tensor(name, &[channels], value, trainable);
            (tensor(one), tensor(other))
        };
        let on_gpu = at.path.as_ref().filter(|path| path.device().is_cuda());
        let constants = |path: &nn::Path| {
            let filled = |value| Tensor::full([channels], value, (path.kind(), path.device()));
            (filled(1.0), filled(0.0))
        };
        BatchNorm {
            weight_and_bias: match at.norm.affine {
                true => Some(pair(("weight", 1.0), ("bias", 0.0), true)),
                false => on_gpu.map(constants),
            },
            running_mean_and_var: at
                .norm
                .running
                .then(|| pair(("running_mean", 0.0), ("running_var", 1.0), false)),
        }
    }

    /// Keeps the shape `[batch, channels, height, width]`.
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.normalise(x, mode, false)
    }

    /// The normalisation and the ReLU after it, in one pass over the memory.
    pub fn forward_relu(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.normalise(x, mode, true)
    }

    fn normalise(&self, x: &Tensor, mode: Mode, relu: bool) -> Tensor {
        // A layer may use its first channels alone.
        let first = |all: &Tensor| first_channels(all, &x.size()[1..2]);
        let weight_and_bias = both(&self.weight_and_bias).map(|(w, b)| (first(w), first(b)));
        let weight_and_bias = both(&weight_and_bias);
        let running_mean_and_var = both(&self.running_mean_and_var);
        if let (Mode::Evaluate, Some((mean, var))) = (mode, running_mean_and_var) {
            let (weight, bias) = weight_and_bias.unzip();
            let (training, cudnn) = (false, true);
            let (mean, var) = (Some(mean), Some(var));
            let y = x.batch_norm(weight, bias, mean, var, training, MOMENTUM, EPSILON, cudnn);
            return if relu { y.relu() } else { y };
        }
        let (momentum, epsilon) = (MOMENTUM, EPSILON);
        asng_native::BatchNorm { weight_and_bias, running_mean_and_var, momentum, epsilon, relu }
            .forward(x)
            .unwrap()
    }
}

fn both(pair: &Option<(Tensor, Tensor)>) -> Option<(&Tensor, &Tensor)> {
    pair.as_ref().map(|(first, second)| (first, second))
}

/// A fully connected layer.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// With a bias.
    pub fn new(at: &Builder, inputs: i64, outputs: i64) -> Linear {
        at.count_macs(inputs * outputs);
        Linear {
            weight: at.tensor("weight", &[outputs, inputs], 0.0, true),
            bias: at.tensor("bias", &[outputs], 0.0, true),
        }
    }

    /// `[batch, in]` to `[batch, out]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// The number of outputs.
    pub fn outputs(&self) -> i64 {
        self.bias.size()[0]
    }

    /// `[batch, in]` to `[batch, outputs]`, with the first columns and rows of the weight.
    pub fn forward_first(&self, x: &Tensor, outputs: i64) -> Tensor {
        let weight = first_channels(&self.weight, &[outputs, x.size()[1]]);
        x.linear(&weight, Some(first_channels(&self.bias, &[outputs])))
    }
}

/// The part of a weight that belongs to the first channels along its first dimensions, sharing memory.
pub fn first_channels(weight: &Tensor, channels: &[i64]) -> Tensor {
    let mut part = weight.shallow_clone();
    for (dimension, &channels) in channels.iter().enumerate() {
        if channels < part.size()[dimension] {
            part = part.narrow(dimension as i64, 0, channels);
        }
    }
    part
}

/// The mean over height and width: `[batch, channels, height, width]` to `[batch, channels]`.
pub fn global_pool(x: &Tensor) -> Tensor {
    x.mean_dim([2, 3].as_slice(), false, None::<Kind>)
}

/// Every other row and column of pixels, from the `first` on.
///
/// Before a 1x1 convolution, in place of its stride of 2: libtorch 2.13 writes beyond its memory in the backward pass of
/// one with that stride on a CPU, for fewer than 16 channels that lie side by side.
pub fn every_other(x: &Tensor, first: i64) -> Tensor {
    x.slice(2, first, None::<i64>, 2).slice(3, first, None::<i64>, 2)
}

/// The same values with the channels of a pixel side by side in memory. Every operation after it keeps that layout, in which
/// convolutions take half the time on a CPU.
pub fn channels_last(images: &Tensor) -> Tensor {
    images.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Sets outputs of operations to 0, each for a random part of the images, and scales the others so that the mean stays (FractalNet,
/// Larsson et al. 2017). One serves one forward pass. A named generator draws on the CPU, so that a seed drops the same on every
/// device.
#[derive(Debug)]
pub struct DropPath {
    /// The probability that an image keeps an output.
    kept: f64,
    generator: RefCell<ChaCha8Rng>,
    /// `[batch, 1, 1, 1]` of 0 and 1 / kept, on the device, for the next outputs.
    masks: RefCell<vec::IntoIter<Tensor>>,
}

impl DropPath {
    /// Masks that are drawn and brought to a device together: enough for 20 cells of 5 nodes.
    const TOGETHER: i64 = 256;

    /// Drops with a probability from 0 to below 1.
    pub fn new(probability: f64, generator: ChaCha8Rng) -> DropPath {
        let (generator, masks) = (RefCell::new(generator), RefCell::new(Vec::new().into_iter()));
        DropPath { kept: 1.0 - probability, generator, masks }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let mut masks = self.masks.borrow_mut();
        if masks.len() == 0 {
            *masks = self.draw(x.size()[0]).to_device(x.device()).unbind(0).into_iter();
        }
        let mask = masks.next().expect("more than one was drawn");
        x * mask.to_kind(x.kind())
    }

    /// `[TOGETHER, batch, 1, 1, 1]`
    fn draw(&self, batch: i64) -> Tensor {
        let mut generator = self.generator.borrow_mut();
        let draw = |_| if generator.random_bool(self.kept) { 1.0 / self.kept } else { 0.0 };
        let values: Vec<f64> = (0..Self::TOGETHER * batch).map(draw).collect();
        let values = Tensor::from_slice(&values).to_kind(Kind::Float);
        values.view([Self::TOGETHER, batch, 1, 1, 1])
    }
}

/// The output of an operation, dropped for some images in training; nothing is dropped in evaluation.
pub fn drop_path(x: Tensor, mode: Mode) -> Tensor {
    match mode {
        Mode::Train { drop_path: Some(paths) } => paths.apply(&x),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_generator_decides_what_is_dropped_and_the_mean_stays() {
        let x = Tensor::ones([50, 2, 1, 1], (Kind::Double, Device::Cpu));
        let draw = |seed| {
            let paths = DropPath::new(0.4, ChaCha8Rng::seed_from_u64(seed));
            let outputs: Vec<Tensor> =
                (0..DropPath::TOGETHER + 2).map(|_| paths.apply(&x)).collect();
            Tensor::stack(&outputs, 0) // [outputs, batch, channels, 1, 1]
        };
        let dropped = draw(1);
        assert_eq!((dropped.size(), dropped.kind()), (vec![258, 50, 2, 1, 1], Kind::Double));
        assert_eq!(dropped, draw(1));
        assert_ne!(dropped, draw(2));
        // A whole image or nothing of it; no two outputs alike, those of the second drawing included.
        assert_eq!(dropped.select(2, 0), dropped.select(2, 1));
        let masks = dropped.select(2, 0).view([258, 50]).ne(0.0).to_kind(Kind::Int64);
        let masks = Vec::<Vec<i64>>::try_from(masks).unwrap();
        assert_eq!(masks.into_iter().collect::<BTreeSet<_>>().len(), 258);
        let (mean, largest) = (dropped.mean(Kind::Double), dropped.max());
        assert!((mean.double_value(&[]) - 1.0).abs() < 0.03, "{mean:?}");
        assert!((largest.double_value(&[]) - 1.0 / 0.6).abs() < 1e-6);
    }

    /// As on a GPU, where cuDNN normalises no other way.
    #[test]
    fn a_constant_weight_and_bias_change_nothing() {
        let values: Vec<f64> = (0..4 * 3 * 5 * 5).map(|i| (0.37 * (i * i) as f64).sin()).collect();
        let x = channels_last(&Tensor::from_slice(&values).view([4, 3, 5, 5]));
        let norm = |weight_and_bias| BatchNorm { weight_and_bias, running_mean_and_var: None };
        // Of more channels than are used.
        let filled = |value| Tensor::full([7], value, (Kind::Double, Device::Cpu));
        for relu in [false, true] {
            let of = |norm: &BatchNorm| norm.normalise(&x, Mode::Evaluate, relu);
            let difference = of(&norm(None)) - of(&norm(Some((filled(1.0), filled(0.0)))));
            assert!(difference.abs().max().double_value(&[]) < 1e-14);
        }
    }
}
