//! The autoencoder: an encoder of convolutions, a decoder that is its mirror image in transposed convolutions, and a last 3x3
//! transposed convolution to the channels of the image. The same code is the supernet and one architecture alone.
//!
//! Source: the authors' `inpainting/inpainting_cat/cae_model.py`, `inpainting_int/cae_model.py` and `common/operations.py`. As
//! there:
//!
//! * A node is a convolution (no bias, padded by half its kernel) and a ReLU. Its mirror node is a transposed convolution of the
//!   same kernel, stride and number of channels, to the height and width of the node's input, and a ReLU. A skip node's output is
//!   added to its mirror node's before that ReLU; the two have the same shape, so nothing has to be padded.
//! * A node without skip has stride 2 and is bypassed, with its mirror node, where height or width is 1 already.
//! * Each module of each node has weights of its own, in the encoder and in the decoder, all with the most channels that a node
//!   can have. The weights of the last convolution are shared by all architectures.
//!
//! The differences:
//!
//! * The authors pad a node's input with zero channels to the most there can be, convolve, and drop the channels of the output
//!   that the node does not have. Here the *weight* is cut to the channels that there are, before the convolution. The numbers are
//!   the same; 64 channels instead of 256 take a sixteenth of the time.
//! * Heights and widths may be odd: the mirror node then restores the odd size. (The authors' would be one pixel too large.)
//! * In a network alone, a node after a bypassed one has weights for the channels that it really reads. (The authors' are built
//!   for the channels of the bypassed node, and are fed zeros.)
//! * Batch normalisation is possible between convolution and ReLU, in a mirror node before the addition. The authors have none.
//!
//! Parameters are named by their place: `node3.conv_5x5_skip.conv.weight`, `node3.conv_5x5_skip.mirror.weight`, alone also
//! `node3.conv_5x5_skip.conv_norm.bias` and so on; `output.weight`.

use std::collections::BTreeMap;

use tch::Tensor;

use super::architecture::{Architecture, Layer, Module};
use crate::tasks::network::{
    BatchNorm, Builder, Conv, ConvSize, Mode, channels_last, every_other, first_channels,
};

/// Height and width of the last convolution's kernel.
const OUTPUT_KERNEL: i64 = 3;

/// The layers of an autoencoder.
pub(super) struct Autoencoder {
    /// By index in the row and module.
    nodes: BTreeMap<(usize, Module), Node>,
    output: Transposed,
}

impl Autoencoder {
    /// Builds these layers for images of that shape (channels, height, width).
    pub(super) fn new(
        at: &Builder,
        layers: &[Layer],
        [channels, height, width]: [i64; 3],
        batch_norm: bool,
    ) -> Autoencoder {
        let node = |layer: &Layer| {
            let at = at.at(format!("node{}", layer.node)).at(layer.module);
            ((layer.node, layer.module), Node::new(&at, layer, batch_norm))
        };
        let nodes = layers.iter().map(node).collect();
        let last = layers.first().map_or(channels, |layer| layer.channels);
        let (at, pixels) = (at.at("output"), height * width);
        let output = Transposed::new(&at, [last, channels], OUTPUT_KERNEL, pixels);
        Autoencoder { nodes, output }
    }

    /// Computes images from their visible parts, both `[batch, channels, height, width]`. The layers must be among those that
    /// were built.
    pub(super) fn forward(
        &self,
        visible: &Tensor,
        architecture: &Architecture,
        mode: Mode,
    ) -> Tensor {
        let (_, channels, height, width) = visible.size4().unwrap(); // a batch of images
        let layers = architecture.layers([channels, height, width]);
        let node = |layer: &Layer| &self.nodes[&(layer.node, layer.module)];
        let mut x = channels_last(visible);
        let mut skipped = Vec::new();
        for layer in &layers {
            x = node(layer).encode(&x, layer, mode); // [batch, channels, halved]
            if layer.module.skip {
                skipped.push(x.shallow_clone());
            }
        }
        for layer in layers.iter().rev() {
            let encoded = if layer.module.skip { skipped.pop() } else { None };
            x = node(layer).decode(&x, layer, encoded, mode); // [batch, channels, image]
        }
        let last = layers.first().map_or(channels, |layer| layer.channels);
        self.output.forward(&x, [last, channels], 1, [0, 0]) // the shape of `visible`
    }
}

/// A node's module with its mirror node: a convolution and a transposed one, whose weights are cut to the channels of a layer.
struct Node {
    conv: Conv,
    conv_norm: Option<BatchNorm>,
    mirror: Transposed,
    mirror_norm: Option<BatchNorm>,
}

impl Node {
    fn new(at: &Builder, layer: &Layer, batch_norm: bool) -> Node {
        let &Layer { module, inputs, mirror_inputs, channels, .. } = layer;
        let kernel = module.kernel;
        let stride = if kernel == 1 { 1 } else { module.stride() }; // see `encode`
        let conv = ConvSize::square(inputs, channels, kernel, stride);
        let pixels = layer.halved().iter().product();
        let norm = |name| batch_norm.then(|| BatchNorm::new(&at.at(name), channels));
        Node {
            conv: Conv::new(&at.at("conv"), conv, pixels),
            conv_norm: norm("conv_norm"),
            mirror: Transposed::new(&at.at("mirror"), [mirror_inputs, channels], kernel, pixels),
            mirror_norm: norm("mirror_norm"),
        }
    }

    /// Computes the node of the encoder.
    fn encode(&self, x: &Tensor, layer: &Layer, mode: Mode) -> Tensor {
        let weight = first_channels(&self.conv.weight, &[layer.channels, layer.inputs]);
        let x = match (layer.module.kernel, layer.module.stride()) {
            (1, 2) => self.conv.forward_with(&every_other(x, 0), &weight),
            _ => self.conv.forward_with(x, &weight),
        };
        normalise(&self.conv_norm, x, mode).relu()
    }

    /// Computes the mirror node. `encoded` is a skip node's own output, which is added.
    fn decode(&self, x: &Tensor, layer: &Layer, encoded: Option<Tensor>, mode: Mode) -> Tensor {
        let stride = layer.module.stride();
        // Two sizes are halved to the same one; this tells them apart.
        let added = layer.image.map(|side| if stride == 2 { 1 - side % 2 } else { 0 });
        let x = self.mirror.forward(x, [layer.mirror_inputs, layer.channels], stride, added);
        let x = normalise(&self.mirror_norm, x, mode);
        match encoded {
            Some(encoded) => (x + encoded).relu(),
            None => x.relu(),
        }
    }
}

/// A transposed convolution without bias, padded so that stride 1 keeps the size.
struct Transposed {
    /// `[in, out, kernel, kernel]`
    weight: Tensor,
    kernel: i64,
}

impl Transposed {
    /// `pixels` are height times width of the input.
    fn new(at: &Builder, [inputs, outputs]: [i64; 2], kernel: i64, pixels: i64) -> Transposed {
        at.count_macs(inputs * outputs * kernel * kernel * pixels);
        let shape = [inputs, outputs, kernel, kernel];
        Transposed { weight: at.tensor("weight", &shape, 0.0, true), kernel }
    }

    /// Computes it with the first `channels` (in, out) of the weight, and with `added` rows and columns at the end.
    fn forward(&self, x: &Tensor, channels: [i64; 2], stride: i64, added: [i64; 2]) -> Tensor {
        let weight = first_channels(&self.weight, &channels);
        let bias = None::<Tensor>;
        if (self.kernel, stride) == (1, 2) {
            // For the reason of `every_other`.
            let x = x.conv2d(&weight.transpose(0, 1), bias, [1, 1], [0, 0], [1, 1], 1);
            return spread(&x, added);
        }
        let padding = [self.kernel / 2; 2];
        x.conv_transpose2d(&weight, bias, [stride; 2], padding, added, 1, [1, 1])
    }
}

/// Puts a row and a column of zeros between all rows and columns, and `added` ones after the last.
fn spread(x: &Tensor, added: [i64; 2]) -> Tensor {
    let (_, channels, height, width) = x.size4().unwrap(); // the output of a convolution
    let batch = -1; // derived, so that a trace takes any number of images
    let pixels = x.permute([0, 2, 3, 1]); // channels last, as they lie in memory
    let pixels = pixels.reshape([batch, height, 1, width, 1, channels]);
    let spread = pixels.constant_pad_nd([0, 0, 0, 1, 0, 0, 0, 1]);
    let spread = spread.reshape([batch, 2 * height, 2 * width, channels]);
    let [height, width] = [2 * height - 1 + added[0], 2 * width - 1 + added[1]];
    spread.narrow(1, 0, height).narrow(2, 0, width).permute([0, 3, 1, 2])
}

fn normalise(norm: &Option<BatchNorm>, x: Tensor, mode: Mode) -> Tensor {
    match norm {
        Some(norm) => norm.forward(&x, mode),
        None => x,
    }
}

/// tests/inpaint.rs compares with the authors' code.
#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, IndexOp, Kind, Reduction};

    use super::*;
    use crate::{
        images::Info,
        optim::{Gradients, Method, Optimizer},
        tasks::{
            Task,
            inpainting::{Coding, Inpainting},
            network::Network,
        },
        torch::Precision,
    };

    const TRAIN: Mode = Mode::Train { drop_path: None };

    /// Node 0 and node 2 are active in the first (skip, then down), all but node 2 in the second.
    const ARCHITECTURES: [[i64; 15]; 2] = [
        [2, 2, 0, /* 1 */ 0, 0, 0, /* 2 */ 5, 1, 0, /* 3 */ 0, 0, 0, 0, 0, 0],
        [3, 0, 0, /* 1 */ 4, 2, 1, /* 2 */ 0, 0, 0, /* 3 */ 1, 1, 0, 0, 0, 1],
    ];

    fn task(
        coding: Coding,
        [nodes, level_back, channels]: [usize; 3],
        batch_norm: bool,
    ) -> Inpainting {
        let settings = [
            ("nodes", nodes.to_string()),
            ("level_back", level_back.to_string()),
            ("channels", channels.to_string()),
            ("batch_norm", batch_norm.to_string()),
        ];
        let given = settings.map(|(name, text)| (name.to_owned(), text)).into();
        Inpainting::new(coding, &given).unwrap()
    }

    fn info(shape: [i64; 3]) -> Info {
        Info { shape, ..Info::default() }
    }

    /// Of [`ARCHITECTURES`], or of one of them alone.
    fn network(alone: Option<&[i64]>, batch_norm: bool, kind: Kind) -> Network {
        let task = task(Coding::Categorical, [4, 2, 2], batch_norm);
        task.network(&info([3, 16, 16]), alone, Device::Cpu, kind)
    }

    /// Smooth images that differ, by formula.
    fn images(kind: Kind) -> Tensor {
        let value = |i: i64| 0.5 + 0.4 * (0.05 * i as f64).sin();
        let images: Vec<f64> = (0..4 * 3 * 16 * 16).map(value).collect();
        Tensor::from_slice(&images).view([4, 3, 16, 16]).to_kind(kind)
    }

    /// The images with every third column hidden.
    fn visible(kind: Kind) -> Tensor {
        let mask = Tensor::arange(4 * 16 * 16, (Kind::Int64, Device::Cpu)).remainder(3).ne(0);
        images(kind) * mask.view([4, 1, 16, 16])
    }

    fn count(network: &Network) -> i64 {
        network.parameters.values().map(|parameter| parameter.numel() as i64).sum()
    }

    fn largest(tensor: Tensor) -> f64 {
        f64::try_from(tensor.abs().max()).unwrap()
    }

    fn any_architecture() -> impl Strategy<Value = (Coding, [usize; 3], Vec<i64>)> {
        let coding = prop::sample::select(Coding::ALL.to_vec());
        (coding, 1_usize..8, 1_usize..4).prop_flat_map(|(coding, nodes, level_back)| {
            let size = [nodes, level_back, 2];
            let variables = task(coding, size, false).variables();
            let ranges = variables.into_iter().map(|variable| {
                let (low, high) = variable.range();
                low..=high
            });
            ranges.collect::<Vec<_>>().prop_map(move |values| (coding, size, values))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn every_architecture_gives_back_the_size_of_the_image_and_is_counted_right(
            (coding, size, values) in any_architecture(),
            image in prop::array::uniform3(1_i64..20),
            batch_norm: bool,
        ) {
            let image = [image[0] % 3 + 1, image[1], image[2]];
            let (task, info) = (task(coding, size, batch_norm), info(image));
            let x = Tensor::ones([2, image[0], image[1], image[2]], (Kind::Float, Device::Cpu));
            let shared = task.network(&info, None, Device::Cpu, Kind::Float);
            prop_assert!(shared.statistics.is_empty());
            prop_assert_eq!(shared.forward(&x, &values, TRAIN).main.size(), x.size());

            let alone = task.network(&info, Some(&values), Device::Cpu, Kind::Float);
            prop_assert_eq!(count(&alone), task.costs(&info, &values).unwrap().parameters);
            for mode in [TRAIN, Mode::Evaluate] {
                prop_assert_eq!(alone.forward(&x, &values, mode).main.size(), x.size());
            }
        }
    }

    #[test]
    fn a_cut_network_is_one_built_at_the_small_size() {
        for batch_norm in [false, true] {
            let shared = network(None, batch_norm, Kind::Double);
            for values in &ARCHITECTURES {
                let mut alone = network(Some(values), batch_norm, Kind::Double);
                let _guard = tch::no_grad_guard();
                for (name, parameter) in &mut alone.parameters {
                    // Normalisations start at weight 1 and bias 0, which equals having none.
                    if let [first, second, ..] = parameter.size()[..] {
                        parameter.copy_(&shared.parameters[name].i((..first, ..second)));
                    }
                }
                let x = images(Kind::Double);
                let cut = shared.forward(&x, values, TRAIN).main;
                let small = alone.forward(&x, values, TRAIN).main;
                assert!(largest(cut - small) < 1e-13);
            }
        }
    }

    #[test]
    fn only_active_nodes_have_a_gradient_and_only_in_the_channels_they_have() {
        let shared = network(None, false, Kind::Double);
        let output = shared.forward(&images(Kind::Double), &ARCHITECTURES[0], TRAIN).main;
        let gradients = Gradients::of(&output.square().mean(Kind::Double), &shared.parameters);
        let gradients = gradients.named();
        let expected = [
            ("node0.conv_3x3_skip.conv.weight", [8, 3]),
            ("node0.conv_3x3_skip.mirror.weight", [4, 8]),
            ("node2.conv_5x5_down.conv.weight", [4, 8]),
            ("node2.conv_5x5_down.mirror.weight", [4, 4]),
            ("output.weight", [8, 3]),
        ];
        assert_eq!(gradients.len(), expected.len());
        for ((name, gradient), (expected, [outer, inner])) in gradients.into_iter().zip(expected) {
            assert_eq!(name, expected);
            let sum = |tensor: Tensor| f64::try_from(tensor.abs().sum(Kind::Double)).unwrap();
            assert!(sum(gradient.i((..outer, ..inner))) > 0.0, "{name}");
            let others = sum(gradient.i((outer.., ..))) + sum(gradient.i((.., inner..)));
            assert_eq!(others, 0.0, "{name}");
        }
    }

    #[test]
    fn a_skip_node_hands_its_output_to_its_mirror_node() {
        let mut shared = network(None, false, Kind::Double);
        let _guard = tch::no_grad_guard();
        for (name, parameter) in &mut shared.parameters {
            if name.contains("mirror") {
                let _ = parameter.zero_();
            }
        }
        // The outputs of the mirror nodes are 0; node 0's is all that is left.
        let x = images(Kind::Double);
        let none = None::<Tensor>;
        let conv = shared.parameters["node0.conv_3x3_skip.conv.weight"].i((.., ..3));
        let node0 = x.conv2d(&conv, none.as_ref(), 1, 1, 1, 1).relu();
        let weight = &shared.parameters["output.weight"];
        let expected = node0.conv_transpose2d(weight, none, 1, 1, 0, 1, 1);
        let output = shared.forward(&x, &ARCHITECTURES[0], TRAIN).main;
        assert!(largest(output - expected) < 1e-13);
    }

    /// With these shapes, libtorch's own 1x1 convolution of stride 2 ends the program.
    #[test]
    fn a_1x1_node_that_halves_an_image_of_few_channels_can_be_trained() {
        let task = task(Coding::Categorical, [1, 1, 64], false);
        let shared = task.network(&info([3, 64, 64]), None, Device::Cpu, Kind::Float);
        let x = Tensor::ones([16, 3, 64, 64], (Kind::Float, Device::Cpu));
        let output = shared.forward(&x, &[1, 2, 0, 0, 0, 0], TRAIN).main;
        let gradients = Gradients::of(&output.mean(Kind::Float), &shared.parameters);
        assert!(gradients.named().into_values().any(|gradient| largest(gradient) > 0.0));
    }

    #[test]
    fn batch_statistics_take_every_channel_to_mean_0_and_so_forget_the_scale_of_the_image() {
        let shared = network(None, true, Kind::Double);
        let x = images(Kind::Double);
        let output = |x: &Tensor, mode| shared.forward(x, &ARCHITECTURES[1], mode).main;
        assert!(largest(output(&(&x * 50.0), TRAIN) - output(&x, Mode::Evaluate)) < 1e-2);
    }

    #[test]
    fn with_16_bits_the_loss_is_near() {
        let shared = network(None, true, Kind::Float);
        for values in &ARCHITECTURES {
            let loss = |precision: Precision| {
                let _autocast = precision.enter(Device::Cpu);
                let output = shared.forward(&visible(Kind::Float), values, TRAIN).main;
                f64::try_from(output.mse_loss(&images(Kind::Float), Reduction::Mean)).unwrap()
            };
            let (exact, short) = (loss(Precision::F32), loss(Precision::Bf16));
            assert_ne!(short, exact);
            assert!((short - exact).abs() < 0.03 * exact, "{short}, not {exact}");
        }
    }

    #[test]
    fn training_lowers_the_loss_also_with_running_statistics() {
        let mut alone = network(Some(&ARCHITECTURES[0]), true, Kind::Float);
        let mut optimizer = Optimizer::new(Method::Adam, 5.0, &alone.parameters);
        let loss = |network: &Network, mode| {
            let output = network.forward(&visible(Kind::Float), &[], mode).main;
            output.mse_loss(&images(Kind::Float), Reduction::Mean)
        };
        let before = f64::try_from(loss(&alone, Mode::Evaluate)).unwrap();
        // The last steps move only the statistics, which trail behind the weights.
        for learning_rate in [[0.01; 50], [0.0; 50]].concat() {
            let gradients = Gradients::of(&loss(&alone, TRAIN), &alone.parameters);
            let _ = optimizer.step(&mut alone.parameters, &gradients, learning_rate);
        }
        let after = f64::try_from(loss(&alone, Mode::Evaluate)).unwrap();
        assert!(after < 0.3 * before, "{before} {after}");
    }
}
