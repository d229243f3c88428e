//! The registry of operations that spaces of image classification choose from, under the names that the field uses.
//!
//! An [`Operation`] is a choice; `build` gives it weights at a place in a network, or counts them. To add one, add
//! a line to `OPERATIONS`, a `Kind`, and its arms in [`Operation::build`] and [`Layer::forward`].
//!
//! Sources: DARTS (Liu et al., ICLR 2019, `cnn/operations.py`) and NAS-Bench-201 (Dong and Yang, ICLR 2020, `cell_operations.py`).

use std::cell::OnceCell;

use tch::Tensor;

use crate::tasks::network::{
    BatchNorm, Builder, Conv, ConvSize, Mode, NormKind, channels_last, drop_path, every_other,
};

/// Every operation by its name.
const OPERATIONS: [(&str, Kind); 12] = [
    ("none", Kind::Zero),
    ("skip", Kind::Skip),
    // The name in the space of ENAS.
    ("identity", Kind::Skip),
    ("conv_1x1", Kind::Conv { kernel: 1 }),
    ("conv_3x3", Kind::Conv { kernel: 3 }),
    ("sep_conv_3x3", Kind::SepConv { kernel: 3 }),
    ("sep_conv_5x5", Kind::SepConv { kernel: 5 }),
    ("dil_conv_3x3", Kind::DilConv { kernel: 3 }),
    ("dil_conv_5x5", Kind::DilConv { kernel: 5 }),
    ("avg_pool_3x3", Kind::Pool(Pool::Average)),
    ("max_pool_3x3", Kind::Pool(Pool::Max)),
    ("res_block", Kind::ResBlock),
];

/// An operation that a space can choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Zeros: the edge does not exist.
    Zero,
    /// The identity; with stride 2 a [`FactorizedReduce`], with other channels a 1x1 [`ConvNorm`].
    Skip,
    /// A [`ConvNorm`].
    Conv { kernel: i64 },
    /// A [`SepConv`].
    SepConv { kernel: i64 },
    /// A [`DilConv`].
    DilConv { kernel: i64 },
    /// 3x3 pooling, behind a 1x1 [`ConvNorm`] where the channels change.
    Pool(Pool),
    /// A [`ResBlock`].
    ResBlock,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pool {
    Average,
    Max,
}

/// The options of pooling in which spaces differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pooling {
    /// Average pooling counts the zeros around the image as pixels (ENAS).
    pub count_padding: bool,
    /// Pooling is followed by batch normalisation without weight and bias (the supernet of DARTS).
    pub norm: bool,
}

/// The place of an operation in a network.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Channels of what it reads.
    pub inputs: i64,
    /// Channels of what it puts out.
    pub outputs: i64,
    /// Height and width of what it reads divided by those of what it puts out: 1 or 2.
    pub stride: i64,
    /// Height times width of what it puts out.
    pub pixels: i64,
    /// The options of pooling.
    pub pooling: Pooling,
}

impl Operation {
    /// Finds an operation by its name. The error lists those that exist, and the one that may be meant.
    pub fn parse(name: &str) -> Result<Operation, String> {
        if let Some(&(name, kind)) = OPERATIONS.iter().find(|(known, _)| *known == name) {
            return Ok(Operation { name, kind });
        }
        let names = OPERATIONS.map(|(known, _)| known);
        let near = |known: &&str| strsim::jaro_winkler(known, name);
        let nearest = names.into_iter().max_by(|a, b| near(a).total_cmp(&near(b)));
        let meant = match nearest.filter(|known| near(known) > 0.85) {
            Some(known) => format!("; did you mean {known:?}?"),
            None => ".".to_owned(),
        };
        Err(format!("unknown operation {name:?}{meant} Allowed: {}", names.join(", ")))
    }

    /// The name that it was parsed from.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// True of `none`, which puts out zeros.
    pub fn is_none(self) -> bool {
        self.kind == Kind::Zero
    }

    /// Returns the label in drawings, which includes a stride of 2.
    pub fn label(self, stride: i64) -> String {
        match self.kind {
            _ if stride == 1 => self.name.to_owned(),
            Kind::Skip => "factorized_reduce".to_owned(),
            _ => format!("{} /2", self.name),
        }
    }

    /// Makes its weights at `at`.
    pub fn build(self, at: &Builder, place: &Place) -> Layer {
        let Place { inputs, outputs, stride, pixels, pooling } = *place;
        let conv = |kernel, stride, pixels| {
            ConvNorm::new(at, ConvSize::square(inputs, outputs, kernel, stride), pixels)
        };
        Layer(match self.kind {
            Kind::Zero => Parts::Zero { outputs, stride },
            Kind::Skip if stride == 2 => {
                Parts::Reduce(FactorizedReduce::new(at, inputs, outputs, pixels))
            }
            Kind::Skip if inputs == outputs => Parts::Identity,
            Kind::Skip => Parts::Conv(conv(1, 1, pixels)),
            Kind::Conv { kernel } => Parts::Conv(conv(kernel, stride, pixels)),
            Kind::SepConv { kernel } => Parts::SepConv(SepConv::new(at, kernel, place)),
            Kind::DilConv { kernel } => Parts::DilConv(DilConv::new(at, kernel, place)),
            Kind::Pool(pool) => Parts::Pool {
                pool,
                stride,
                count_padding: pooling.count_padding,
                before: (inputs != outputs).then(|| conv(1, 1, pixels * stride * stride)),
                after: pooling
                    .norm
                    .then(|| BatchNorm::new(&at.at("norm").with_norm(NormKind::SHARED), outputs)),
            },
            Kind::ResBlock => Parts::ResBlock(ResBlock::new(at, place)),
        })
    }
}

/// An input of operations, as it is or behind a ReLU, which is computed once for all operations that read it.
#[derive(Debug)]
pub struct Value {
    /// As it is.
    pub plain: Tensor,
    relu: OnceCell<Tensor>,
}

impl Value {
    /// Of a tensor as it is.
    pub fn new(plain: Tensor) -> Value {
        Value { plain, relu: OnceCell::new() }
    }

    /// Of what came out of a ReLU already, for readers that all want it so.
    pub fn rectified(relu: Tensor) -> Value {
        Value { plain: relu.shallow_clone(), relu: relu.into() }
    }

    /// Behind a ReLU.
    pub fn relu(&self) -> &Tensor {
        self.relu.get_or_init(|| self.plain.relu())
    }
}

/// An operation with its weights.
#[derive(Debug)]
pub struct Layer(Parts);

#[derive(Debug)]
enum Parts {
    Identity,
    Zero {
        outputs: i64,
        stride: i64,
    },
    Conv(ConvNorm),
    Reduce(FactorizedReduce),
    SepConv(SepConv),
    DilConv(DilConv),
    Pool {
        pool: Pool,
        stride: i64,
        count_padding: bool,
        before: Option<ConvNorm>,
        after: Option<BatchNorm>,
    },
    ResBlock(ResBlock),
}

impl Layer {
    /// `[batch, inputs, height, width]` to `[batch, outputs, height / stride, width / stride]`; with drop path unless it is the
    /// identity.
    pub fn forward(&self, x: &Value, mode: Mode) -> Tensor {
        let y = match &self.0 {
            Parts::Identity => return x.plain.shallow_clone(),
            Parts::Zero { outputs, stride } => {
                // Made of the input and not of numbers, which a trace would keep.
                let channel = x.plain.narrow(1, 0, 1).slice(2, 0, None::<i64>, *stride);
                let zeros = channel.slice(3, 0, None::<i64>, *stride).zeros_like();
                channels_last(&zeros.expand([-1, *outputs, -1, -1], false))
            }
            Parts::Conv(layer) => layer.forward(x.relu(), mode),
            Parts::Reduce(layer) => layer.forward(x.relu(), mode),
            Parts::SepConv(layer) => layer.forward(x.relu(), mode),
            Parts::DilConv(layer) => layer.forward(x.relu(), mode),
            Parts::Pool { pool, stride, count_padding, before, after } => {
                let before = before.as_ref().map(|layer| layer.forward(x.relu(), mode));
                let x = before.as_ref().unwrap_or(&x.plain);
                let x = match pool {
                    Pool::Average => asng_native::average_pool(x, *stride, *count_padding),
                    Pool::Max => asng_native::max_pool(x, *stride),
                }
                .unwrap();
                match after {
                    Some(norm) => norm.forward(&x, mode),
                    None => x,
                }
            }
            Parts::ResBlock(layer) => layer.forward(x, mode),
        };
        drop_path(y, mode)
    }
}

/// A convolution and batch normalisation behind a ReLU (`ReLUConvBN`).
#[derive(Debug)]
pub(super) struct ConvNorm {
    /// A 1x1 convolution with stride 2 reads every other pixel.
    halve: bool,
    conv: Conv,
    norm: BatchNorm,
}

impl ConvNorm {
    /// `pixels` are height times width of the output.
    pub(super) fn new(at: &Builder, size: ConvSize, pixels: i64) -> ConvNorm {
        let halve = size.kernel == 1 && size.stride == 2;
        let stride = if halve { 1 } else { size.stride };
        let conv = Conv::new(&at.at("conv"), ConvSize { stride, ..size }, pixels);
        ConvNorm { halve, conv, norm: BatchNorm::new(&at.at("norm"), size.outputs) }
    }

    /// Of what came out of the ReLU.
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.norm.forward(&self.convolve(x), mode)
    }

    /// With another ReLU behind it.
    fn forward_relu(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.norm.forward_relu(&self.convolve(x), mode)
    }

    fn convolve(&self, x: &Tensor) -> Tensor {
        if self.halve { self.conv.forward(&every_other(x, 0)) } else { self.conv.forward(x) }
    }
}

/// Halves height and width behind a ReLU without losing a pixel: half of the output's channels see the even pixels, the other
/// half those one further right and down. Height and width must be even.
#[derive(Debug)]
pub(super) struct FactorizedReduce {
    conv1: Conv,
    conv2: Conv,
    norm: BatchNorm,
}

impl FactorizedReduce {
    /// `pixels` are height times width of the output.
    pub(super) fn new(at: &Builder, inputs: i64, outputs: i64, pixels: i64) -> FactorizedReduce {
        let half =
            |name, outputs| Conv::new(&at.at(name), ConvSize::pointwise(inputs, outputs), pixels);
        FactorizedReduce {
            conv1: half("conv1", outputs / 2),
            conv2: half("conv2", outputs - outputs / 2),
            norm: BatchNorm::new(&at.at("norm"), outputs),
        }
    }

    /// Of what came out of the ReLU.
    pub(super) fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let halves =
            [self.conv1.forward(&every_other(x, 0)), self.conv2.forward(&every_other(x, 1))];
        self.norm.forward(&Tensor::cat(&halves, 1), mode) // [batch, outputs, h / 2, w / 2]
    }
}

/// Depthwise convolution, 1x1 convolution and batch normalisation behind a ReLU, twice; the first depthwise convolution has the
/// stride, the second 1x1 convolution changes the channels.
#[derive(Debug)]
struct SepConv {
    depthwise1: Conv,
    pointwise1: Conv,
    norm1: BatchNorm,
    depthwise2: Conv,
    pointwise2: Conv,
    norm2: BatchNorm,
}

impl SepConv {
    fn new(at: &Builder, kernel: i64, place: &Place) -> SepConv {
        let Place { inputs, outputs, stride, pixels, .. } = *place;
        let conv = |name, size| Conv::new(&at.at(name), size, pixels);
        SepConv {
            depthwise1: conv("depthwise1", ConvSize::depthwise(inputs, kernel, stride)),
            pointwise1: conv("pointwise1", ConvSize::pointwise(inputs, inputs)),
            norm1: BatchNorm::new(&at.at("norm1"), inputs),
            depthwise2: conv("depthwise2", ConvSize::depthwise(inputs, kernel, 1)),
            pointwise2: conv("pointwise2", ConvSize::pointwise(inputs, outputs)),
            norm2: BatchNorm::new(&at.at("norm2"), outputs),
        }
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        let x = self.pointwise1.forward(&self.depthwise1.forward(x));
        let x = self.norm1.forward_relu(&x, mode);
        let x = self.pointwise2.forward(&self.depthwise2.forward(&x));
        self.norm2.forward(&x, mode)
    }
}

/// Depthwise convolution over every other pixel, 1x1 convolution and batch normalisation behind a ReLU.
#[derive(Debug)]
struct DilConv {
    depthwise: Conv,
    pointwise: Conv,
    norm: BatchNorm,
}

impl DilConv {
    fn new(at: &Builder, kernel: i64, place: &Place) -> DilConv {
        let Place { inputs, outputs, stride, pixels, .. } = *place;
        let depthwise = ConvSize {
            dilation: 2,
            padding: kernel - 1,
            ..ConvSize::depthwise(inputs, kernel, stride)
        };
        let pointwise = ConvSize::pointwise(inputs, outputs);
        DilConv {
            depthwise: Conv::new(&at.at("depthwise"), depthwise, pixels),
            pointwise: Conv::new(&at.at("pointwise"), pointwise, pixels),
            norm: BatchNorm::new(&at.at("norm"), outputs),
        }
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        self.norm.forward(&self.pointwise.forward(&self.depthwise.forward(x)), mode)
    }
}

/// Two 3x3 [`ConvNorm`]s, the first with the stride, added to the input, which 2x2 average pooling and a 1x1 convolution bring
/// to the output's shape (`ResNetBasicblock` of NAS-Bench-201).
#[derive(Debug)]
pub(super) struct ResBlock {
    conv1: ConvNorm,
    conv2: ConvNorm,
    shortcut: Shortcut,
}

#[derive(Debug)]
enum Shortcut {
    Identity,
    /// With stride 2.
    Halve(Conv),
    /// With other channels.
    Conv(ConvNorm),
}

impl ResBlock {
    /// At its place.
    pub(super) fn new(at: &Builder, place: &Place) -> ResBlock {
        let Place { inputs, outputs, stride, pixels, .. } = *place;
        let conv = |name, inputs, stride| {
            ConvNorm::new(&at.at(name), ConvSize::square(inputs, outputs, 3, stride), pixels)
        };
        let shortcut = ConvSize::pointwise(inputs, outputs);
        ResBlock {
            conv1: conv("conv1", inputs, stride),
            conv2: conv("conv2", outputs, 1),
            shortcut: match stride {
                2 => Shortcut::Halve(Conv::new(&at.at("shortcut"), shortcut, pixels)),
                _ if inputs == outputs => Shortcut::Identity,
                _ => Shortcut::Conv(ConvNorm::new(&at.at("shortcut"), shortcut, pixels)),
            },
        }
    }

    /// Of an input of any sign.
    pub(super) fn forward(&self, x: &Value, mode: Mode) -> Tensor {
        let y = self.conv1.forward_relu(x.relu(), mode);
        let y = self.conv2.forward(&y, mode);
        y + match &self.shortcut {
            Shortcut::Identity => x.plain.shallow_clone(),
            Shortcut::Halve(conv) => {
                conv.forward(&x.plain.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>))
            }
            Shortcut::Conv(conv) => conv.forward(x.relu(), mode),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::{CModule, Device, Kind as Numbers, nn};

    use super::*;
    use crate::tasks::network::DropPath;

    const TRAIN: Mode = Mode::Train { drop_path: None };

    fn place(inputs: i64, outputs: i64, stride: i64) -> Place {
        let pixels = 64 / (stride * stride);
        Place { inputs, outputs, stride, pixels, pooling: Pooling::default() }
    }

    fn images(channels: i64) -> Tensor {
        let values: Vec<f64> =
            (0..2 * channels * 64).map(|k| (0.37 * (k * k) as f64).sin()).collect();
        Tensor::from_slice(&values).view([2, channels, 8, 8])
    }

    fn forward(name: &str, place: &Place, x: &Tensor, mode: Mode) -> Tensor {
        let mut store = nn::VarStore::new(Device::Cpu);
        store.set_kind(Numbers::Double);
        let layer = Operation::parse(name)
            .unwrap()
            .build(&Builder::new(&store, NormKind::ALONE).at("operation"), place);
        layer.forward(&Value::new(x.shallow_clone()), mode)
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_and_all() {
        let error = Operation::parse("sepconv_3x3").unwrap_err();
        assert_eq!(
            error,
            "unknown operation \"sepconv_3x3\"; did you mean \"sep_conv_3x3\"? Allowed: none, skip, identity, conv_1x1, \
             conv_3x3, sep_conv_3x3, sep_conv_5x5, dil_conv_3x3, dil_conv_5x5, avg_pool_3x3, max_pool_3x3, res_block"
        );
        let error = Operation::parse("zzz").unwrap_err();
        assert!(error.starts_with("unknown operation \"zzz\". Allowed: none"), "{error}");
        assert_eq!(Operation::parse("identity").unwrap().name(), "identity");
    }

    /// Weights by hand: depthwise kernels have kernel² weights a channel, others inputs x outputs; a normalisation has two.
    #[test]
    fn every_operation_has_the_shape_and_the_weights_of_its_place() {
        for (name, same, wider, halved) in [
            ("none", 0, 0, 0),
            ("skip", 0, 4 * 6 + 12, 16 + 8),
            ("identity", 0, 4 * 6 + 12, 16 + 8),
            ("conv_1x1", 16 + 8, 24 + 12, 16 + 8),
            ("conv_3x3", 9 * 16 + 8, 9 * 24 + 12, 9 * 16 + 8),
            ("sep_conv_3x3", 2 * (36 + 16 + 8), 2 * 36 + 16 + 8 + 24 + 12, 2 * (36 + 16 + 8)),
            ("sep_conv_5x5", 2 * (100 + 16 + 8), 2 * 100 + 16 + 8 + 24 + 12, 2 * (100 + 16 + 8)),
            ("dil_conv_3x3", 36 + 16 + 8, 36 + 24 + 12, 36 + 16 + 8),
            ("dil_conv_5x5", 100 + 16 + 8, 100 + 24 + 12, 100 + 16 + 8),
            ("avg_pool_3x3", 0, 24 + 12, 0),
            ("max_pool_3x3", 0, 24 + 12, 0),
            ("res_block", 2 * (9 * 16 + 8), 9 * 24 + 9 * 36 + 24 + 36, 2 * (9 * 16 + 8) + 16),
        ] {
            for (inputs, outputs, stride, weights) in
                [(4, 4, 1, same), (4, 6, 1, wider), (4, 4, 2, halved)]
            {
                let place = place(inputs, outputs, stride);
                let operation = Operation::parse(name).unwrap();
                let counter = Builder::counting(NormKind::ALONE);
                operation.build(&counter, &place);
                assert_eq!(counter.costs().parameters, weights, "{name} {place:?}");
                let y = forward(name, &place, &images(inputs), TRAIN);
                assert_eq!(y.size(), [2, outputs, 8 / stride, 8 / stride], "{name} {place:?}");
            }
        }
        assert_eq!(OPERATIONS.len(), 12, "another operation needs its line above");
    }

    /// Export traces the network with one batch size, and the exported network is run with others.
    #[test]
    fn a_traced_operation_keeps_no_batch_size() {
        for (name, stride) in OPERATIONS.iter().flat_map(|&(name, _)| [(name, 1), (name, 2)]) {
            let x = images(4);
            let mut layer = {
                let mut store = nn::VarStore::new(Device::Cpu);
                store.set_kind(Numbers::Double);
                let builder = Builder::new(&store, NormKind::ALONE).at("operation");
                let layer = Operation::parse(name).unwrap().build(&builder, &place(4, 4, stride));
                store.freeze();
                move |x: &[Tensor]| {
                    vec![layer.forward(&Value::new(x[0].shallow_clone()), Mode::Evaluate)]
                }
            };
            let traced = {
                let _guard = tch::no_grad_guard();
                CModule::create_by_tracing("m", "forward", &[x.shallow_clone()], &mut layer)
                    .unwrap()
            };
            let three = Tensor::cat(&[&x, &x.narrow(0, 0, 1)], 0);
            let y = traced.forward_ts(&[three]).unwrap();
            assert_eq!(y.size(), [3, 4, 8 / stride, 8 / stride], "{name} at stride {stride}");
            let expected = &layer(&[x])[0];
            assert!(y.narrow(0, 0, 2).allclose(expected, 1e-9, 1e-9, false), "{name}");
        }
    }

    #[test]
    fn multiplications_are_counted_at_the_output() {
        let macs = |name: &str, stride| {
            let counter = Builder::counting(NormKind::ALONE);
            Operation::parse(name).unwrap().build(&counter, &place(4, 4, stride));
            counter.costs().macs
        };
        assert_eq!(macs("conv_3x3", 1), 9 * 16 * 64);
        assert_eq!(macs("skip", 2), 16 * 16);
        assert_eq!(macs("sep_conv_5x5", 2), 2 * (100 + 16) * 16);
        assert_eq!(macs("res_block", 2), (2 * 9 * 16 + 16) * 16);
        assert_eq!(macs("avg_pool_3x3", 1), 0);
    }

    #[test]
    fn average_pooling_counts_the_padding_where_the_space_says_so() {
        let ones = Tensor::ones([2, 4, 8, 8], (Numbers::Double, Device::Cpu));
        let corner = |count_padding| {
            let pooling = Pooling { count_padding, norm: false };
            let y = forward("avg_pool_3x3", &Place { pooling, ..place(4, 4, 1) }, &ones, TRAIN);
            y.double_value(&[0, 0, 0, 0])
        };
        assert_eq!(corner(false), 1.0);
        assert!((corner(true) - 4.0 / 9.0).abs() < 1e-12);
        let pooling = Pooling { count_padding: false, norm: true };
        let place = Place { pooling, ..place(4, 4, 1) };
        let y = forward("max_pool_3x3", &place, &images(4), TRAIN);
        assert!(y.mean(Numbers::Double).double_value(&[]).abs() < 1e-12);
    }

    #[test]
    fn drop_path_leaves_the_identity_alone() {
        let paths = DropPath::new(0.999, ChaCha8Rng::seed_from_u64(1));
        let mode = Mode::Train { drop_path: Some(&paths) };
        let x = images(4);
        assert_eq!(forward("skip", &place(4, 4, 1), &x, mode), x);
        assert_eq!(forward("max_pool_3x3", &place(4, 4, 1), &x, Mode::Evaluate).size(), x.size());
        let dropped = forward("max_pool_3x3", &place(4, 4, 1), &x, mode);
        assert_eq!(dropped.abs().max().double_value(&[]), 0.0);
    }
}
