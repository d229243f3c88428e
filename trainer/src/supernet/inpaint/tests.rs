//! Of the network, the search and the retraining. tests/inpaint.rs compares with the authors' code.

use proptest::prelude::*;
use tch::{Device, IndexOp, Kind, Tensor};

use super::super::gradients::Gradients;
use super::super::{Numbers, StepOutcome};
use super::*;
use crate::space::Decision;
use crate::space::inpaint::{Coding, Settings, Space};

const SPACE: Space = Space { coding: Coding::Categorical, nodes: 4, level_back: 2, channels: 2 };
const TRAIN: Mode = Mode::Train { drop_path: 0.0 };

/// node0 and node2 are active in the first (skip, then down), all but node2 in the second.
fn architectures() -> [Architecture; 2] {
    let first =
        [2, 2, 0, /* 1 */ 0, 0, 0, /* 2 */ 5, 1, 0, /* 3 */ 0, 0, 0, 0, 0, 0];
    let second =
        [3, 0, 0, /* 1 */ 4, 2, 1, /* 2 */ 0, 0, 0, /* 3 */ 1, 1, 0, 0, 0, 1];
    [first, second].map(|values| Architecture::decode(&SPACE, &values).unwrap())
}

fn size(batch_norm: bool) -> Size {
    Size { nodes: 4, channels: 8, image_channels: 3, batch_norm }
}

fn network(batch_norm: bool) -> Network {
    Network::supernet(&size(batch_norm), 0, Device::Cpu, Kind::Double).unwrap()
}

/// Smooth images that differ, by formula, of which every third column is hidden.
fn batch(phase: f64) -> Batch {
    let value = |i: i64| (0.5 + 0.4 * (0.05 * i as f64 + phase).sin()) as f32;
    let images: Vec<f32> = (0..4 * 3 * 16 * 16).map(value).collect();
    let mask: Vec<f32> = (0..4 * 16 * 16).map(|i| f32::from(i % 3 != 0)).collect();
    Batch {
        images: Tensor::from_slice(&images).view([4, 3, 16, 16]),
        mask: Tensor::from_slice(&mask).view([4, 1, 16, 16]),
    }
}

fn images(kind: Kind) -> Tensor {
    batch(0.0).images.to_kind(kind)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach().flatten(0, -1)).unwrap()
}

fn count(network: &Network) -> i64 {
    network.parameters().values().map(|parameter| parameter.numel() as i64).sum()
}

fn any_architecture() -> impl Strategy<Value = Architecture> {
    let coding = prop::sample::select(Coding::ALL.to_vec());
    let space = (coding, 1_usize..8, 1_usize..4).prop_map(|(coding, nodes, level_back)| Space {
        coding,
        nodes,
        level_back,
        channels: 2,
    });
    space.prop_flat_map(|space| {
        let ranges = space.variables().into_iter().map(|variable| match variable {
            Decision::Categorical(v) => 0..=v.choices.len() as i64 - 1,
            Decision::Integer(v) => v.low..=v.high,
        });
        let decode = move |values: Vec<i64>| Architecture::decode(&space, &values).unwrap();
        ranges.collect::<Vec<_>>().prop_map(decode)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_architecture_gives_back_the_size_of_the_image_and_the_closed_forms_count_right(
        architecture in any_architecture(),
        image in prop::array::uniform3(1_i64..20),
        batch_norm: bool,
    ) {
        let channels = image[0] % 3 + 1;
        let image = [channels, image[1], image[2]];
        let nodes = architecture.nodes().len();
        let size = Size { nodes, channels: 8, image_channels: channels, batch_norm };
        let shared = Network::supernet(&size, 0, Device::Cpu, Kind::Float).unwrap();
        prop_assert_eq!(count(&shared), size.supernet_parameters());
        prop_assert!(shared.statistics().is_empty());
        let x = Tensor::ones([2, channels, image[1], image[2]], (Kind::Float, Device::Cpu));
        let output = shared.forward(&x, &architecture, TRAIN).unwrap();
        prop_assert_eq!(output.size(), x.size());

        let alone =
            Network::alone(&architecture, image, batch_norm, 0, Device::Cpu, Kind::Float).unwrap();
        prop_assert_eq!(count(&alone), architecture.parameters(image, batch_norm));
        for mode in [TRAIN, Mode::Evaluate] {
            let output = alone.forward(&x, &architecture, mode).unwrap();
            prop_assert_eq!(output.size(), x.size());
        }
    }
}

#[test]
fn a_cut_network_is_one_built_at_the_small_size() {
    for batch_norm in [false, true] {
        let shared = network(batch_norm);
        for architecture in architectures() {
            let image = [3, 16, 16];
            let mut alone =
                Network::alone(&architecture, image, batch_norm, 1, Device::Cpu, Kind::Double)
                    .unwrap();
            let _guard = tch::no_grad_guard();
            for (name, parameter) in alone.parameters_mut() {
                // Normalisations start at weight 1 and bias 0, which is what having none means.
                if let [first, second, ..] = parameter.size()[..] {
                    let part = shared.parameters()[name].i((..first, ..second));
                    parameter.copy_(&part);
                }
            }
            let x = images(Kind::Double);
            let cut = shared.forward(&x, &architecture, TRAIN).unwrap();
            let small = alone.forward(&x, &architecture, TRAIN).unwrap();
            assert!(f64::try_from((cut - small).abs().max()).unwrap() < 1e-13);
        }
    }
}

#[test]
fn only_active_nodes_have_a_gradient_and_only_in_the_channels_they_have() {
    let shared = network(false);
    let [architecture, _] = architectures();
    let output = shared.forward(&images(Kind::Double), &architecture, TRAIN).unwrap();
    let gradients = Gradients::of(&output.square().mean(Kind::Double), shared.parameters());
    let gradients = gradients.unwrap();
    let names: Vec<&str> = gradients.iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        [
            "node0.conv_3x3_skip.conv.weight",
            "node0.conv_3x3_skip.mirror.weight",
            "node2.conv_5x5_down.conv.weight",
            "node2.conv_5x5_down.mirror.weight",
            "output.weight"
        ]
    );
    for (name, gradient) in gradients.iter() {
        let [outer, inner] = match name {
            "node0.conv_3x3_skip.conv.weight" => [8, 3],
            "node0.conv_3x3_skip.mirror.weight" => [4, 8],
            "node2.conv_5x5_down.conv.weight" => [4, 8],
            "node2.conv_5x5_down.mirror.weight" => [4, 4],
            _ => [8, 3],
        };
        let sum = |tensor: Tensor| f64::try_from(tensor.abs().sum(Kind::Double)).unwrap();
        assert!(sum(gradient.i((..outer, ..inner))) > 0.0, "{name}");
        assert_eq!(sum(gradient.i((outer.., ..))) + sum(gradient.i((.., inner..))), 0.0, "{name}");
    }
}

#[test]
fn a_skip_node_hands_its_output_to_its_mirror_node() {
    let mut shared = network(false);
    let [architecture, _] = architectures();
    {
        let _guard = tch::no_grad_guard();
        for (name, parameter) in shared.parameters_mut() {
            if name.contains("mirror") {
                let _ = parameter.zero_();
            }
        }
    }
    // What node2 and the mirror nodes say is 0; node0's output is all that is left.
    let x = images(Kind::Double);
    let weight = |name: &str| shared.parameters()[name].shallow_clone();
    let conv = weight("node0.conv_3x3_skip.conv.weight").i((.., ..3));
    let node0 = x.conv2d(&conv, None::<Tensor>, 1, 1, 1, 1).relu();
    let expected = node0.conv_transpose2d(&weight("output.weight"), None::<Tensor>, 1, 1, 0, 1, 1);
    let output = shared.forward(&x, &architecture, TRAIN).unwrap();
    assert!(f64::try_from((output - expected).abs().max()).unwrap() < 1e-13);
}

/// Of these shapes, libtorch's own 1x1 convolution of stride 2 ends the program.
#[test]
fn a_1x1_node_that_halves_an_image_of_few_channels_can_be_trained() {
    let space = Space { coding: Coding::Categorical, nodes: 1, level_back: 1, channels: 64 };
    let architecture = Architecture::decode(&space, &[1, 2, 0, 0, 0, 0]).unwrap();
    let size = Size { nodes: 1, channels: 256, image_channels: 3, batch_norm: false };
    let shared = Network::supernet(&size, 0, Device::Cpu, Kind::Float).unwrap();
    let x = Tensor::ones([16, 3, 64, 64], (Kind::Float, Device::Cpu));
    let output = shared.forward(&x, &architecture, TRAIN).unwrap();
    let gradients = Gradients::of(&output.mean(Kind::Float), shared.parameters()).unwrap();
    assert!(f64::try_from(gradients.norm().unwrap()).unwrap() > 0.0);
}

#[test]
fn batch_statistics_take_every_channel_to_mean_0_and_so_forget_the_scale_of_the_image() {
    let shared = network(true);
    let [_, architecture] = architectures();
    let x = images(Kind::Double);
    let output = |x: &Tensor, mode| shared.forward(x, &architecture, mode).unwrap();
    let difference = output(&(&x * 50.0), TRAIN) - output(&x, Mode::Evaluate);
    assert!(f64::try_from(difference.abs().max()).unwrap() < 1e-2);
}

mod search {
    use super::*;

    fn supernet(seed: i64) -> Supernet {
        let settings = Settings {
            nodes: 4,
            level_back: 2,
            channels: 2,
            batch_norm: true,
            seed,
            ..Settings::default()
        };
        Supernet::new(&settings, 3, Device::Cpu).unwrap()
    }

    fn step(supernet: &mut Supernet) -> StepOutcome {
        let architectures = architectures();
        supernet.search_step(&batch(0.0), &architectures, &batch(1.0), &architectures, 0.1).unwrap()
    }

    #[test]
    fn the_rank_losses_are_those_of_the_moved_weights() {
        let mut supernet = supernet(0);
        let before = supernet.evaluate(&batch(1.0), &architectures()[0]).unwrap();
        let outcome = step(&mut supernet);
        let after = architectures().map(|a| supernet.evaluate(&batch(1.0), &a).unwrap());
        assert_eq!(outcome.losses, after.map(|evaluation| evaluation.loss));
        assert_eq!(outcome.rank_quality, (after[0].psnr + after[1].psnr) / 2.0);
        assert_ne!(before.loss, after[0].loss);
        assert!(outcome.gradient_norm > 0.0);
        assert!((-1.0..1.0).contains(&after[0].ssim));
    }

    #[test]
    fn steps_lower_the_loss_of_a_fixed_batch() {
        let mut supernet = supernet(0);
        let outcomes: Vec<_> = (0..40).map(|_| step(&mut supernet)).collect();
        let (first, last) = (&outcomes[0], &outcomes[39]);
        assert!(last.train_loss < 0.3 * first.train_loss, "{first:?} {last:?}");
        assert!(last.train_quality > first.train_quality + 3.0, "{first:?} {last:?}");
    }

    #[test]
    fn with_16_bits_the_losses_are_near() {
        let (mut exact, mut short) = (supernet(0), supernet(0));
        short.set_precision(crate::supernet::Precision::Bf16);
        let (exact, short) = (step(&mut exact), step(&mut short));
        assert_ne!(exact.losses, short.losses, "it has no effect");
        for (loss, exact) in short.losses.iter().zip(&exact.losses) {
            assert!((loss - exact).abs() < 0.03 * exact, "{loss}, not {exact}");
        }
        let norms = (short.gradient_norm, exact.gradient_norm);
        assert!((norms.0 - norms.1).abs() < 0.1 * norms.1, "{norms:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_weights_and_the_same_steps() {
        let (mut one, mut same, mut other) = (supernet(7), supernet(7), supernet(8));
        for _ in 0..2 {
            let outcome = step(&mut one);
            assert_eq!(outcome, step(&mut same));
            assert_ne!(outcome, step(&mut other));
        }
        let filled = |supernet: &Supernet| {
            values(&supernet.fill_in(&batch(0.0), &architectures()[1]).unwrap())
        };
        assert_eq!(filled(&one), filled(&same));
    }

    #[test]
    fn a_saved_supernet_continues_exactly() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let mut supernet = supernet(0);
        step(&mut supernet);
        supernet.snapshot().unwrap().write(&file).unwrap();
        let mut loaded = self::supernet(1);
        loaded.load(&file).unwrap();
        for _ in 0..2 {
            assert_eq!(step(&mut supernet), step(&mut loaded));
        }
        let settings = Settings { nodes: 5, channels: 2, ..Settings::default() };
        let mut longer = Supernet::new(&settings, 3, Device::Cpu).unwrap();
        assert!(matches!(longer.load(&file), Err(Error::OtherNetwork { .. })));
    }

    #[test]
    fn a_step_that_diverges_leaves_finite_weights_and_a_diverged_loss_is_a_value() {
        let mut supernet = supernet(0);
        let infinite = Batch { images: batch(0.0).images * f64::INFINITY, mask: batch(0.0).mask };
        let architectures = architectures();
        let outcome = supernet
            .search_step(&infinite, &architectures, &batch(1.0), &architectures, 0.1)
            .unwrap();
        assert!(!outcome.train_loss.is_finite() && !outcome.gradient_norm.is_finite());
        assert!(outcome.losses.iter().all(|loss| loss.is_finite()), "{outcome:?}");
        let outcome =
            supernet.search_step(&batch(1.0), &[], &infinite, &architectures, 0.1).unwrap();
        assert!(outcome.losses.iter().all(|loss| !loss.is_finite()), "{outcome:?}");
        assert!(outcome.train_loss.is_nan());
    }

    #[test]
    fn what_cannot_be_computed_is_an_error() {
        let mut supernet = supernet(0);
        let architectures = architectures();
        let five = Batch { images: batch(0.0).images.repeat([1, 3, 1, 1]), ..batch(0.0) };
        let error = supernet.evaluate(&five, &architectures[0]).unwrap_err();
        assert!(matches!(error, Error::Torch(_)), "{error}");
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        let flat = Batch { images: batch(0.0).images.i(0), ..batch(0.0) };
        assert!(matches!(supernet.evaluate(&flat, &architectures[0]), Err(Error::Torch(_))));
        let outcome = supernet.search_step(&batch(0.0), &architectures, &batch(0.0), &[], 0.1);
        assert!(matches!(outcome, Err(Error::NoArchitectures)));

        let longer = Space { nodes: 5, level_back: 1, ..SPACE };
        let values = [2, 0, 0].repeat(5).into_iter().chain([0, 0, 0]).collect::<Vec<_>>();
        let longer = Architecture::decode(&longer, &values).unwrap();
        let error = supernet.evaluate(&batch(0.0), &longer).unwrap_err();
        assert_eq!(error.to_string(), "this network has no conv_3x3_skip at node 4");
        let wider = Space { channels: 16, ..SPACE };
        let wider = Architecture::decode(&wider, &architectures[0].values()).unwrap();
        assert!(matches!(supernet.evaluate(&batch(0.0), &wider), Err(Error::Torch(_))));
    }
}

mod retrained {
    use super::*;

    fn retrained(seed: u64) -> Retrained {
        let [architecture, _] = architectures();
        Retrained::new(architecture, [3, 16, 16], true, 5.0, seed, Device::Cpu).unwrap()
    }

    #[test]
    fn training_lowers_the_loss_also_with_running_statistics() {
        let mut retrained = retrained(0);
        let before = retrained.evaluate(&batch(0.0)).unwrap();
        // The last steps move only the statistics, which trail behind the weights.
        for learning_rate in [[0.01; 50], [0.0; 50]].concat() {
            retrained.train_step(&batch(0.0), learning_rate).unwrap();
        }
        let after = retrained.evaluate(&batch(0.0)).unwrap();
        assert!(after.loss < 0.3 * before.loss, "{before:?} {after:?}");
        assert!(after.psnr > before.psnr && after.ssim > before.ssim, "{before:?} {after:?}");
    }

    #[test]
    fn a_saved_training_continues_exactly() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        let (mut one, mut other) = (retrained(0), retrained(1));
        one.train_step(&batch(0.0), 0.01).unwrap();
        one.save(&file, &Numbers::new()).unwrap();
        other.load(&file, &mut Numbers::new()).unwrap();
        assert_eq!(one.evaluate(&batch(1.0)).unwrap(), other.evaluate(&batch(1.0)).unwrap());
        for _ in 0..3 {
            assert_eq!(
                one.train_step(&batch(0.0), 0.01).unwrap(),
                other.train_step(&batch(0.0), 0.01).unwrap()
            );
        }
    }

    #[test]
    fn another_architecture_s_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("weights.safetensors");
        retrained(0).save(&file, &Numbers::new()).unwrap();
        let [_, architecture] = architectures();
        let mut other =
            Retrained::new(architecture, [3, 16, 16], true, 5.0, 0, Device::Cpu).unwrap();
        assert!(matches!(other.load(&file, &mut Numbers::new()), Err(Error::OtherNetwork { .. })));
    }
}
