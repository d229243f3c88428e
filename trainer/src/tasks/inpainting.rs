//! Image inpainting: an autoencoder fills in the hidden parts of photos. The task of the spaces `inpaint-cat` and `inpaint-int`.
//!
//! Sources: Akimoto et al. (ICML 2019), sections 5.2 and 5.3, and their `inpainting/`; Suganuma et al., "Exploiting the Potential
//! of Standard Convolutional Autoencoders for Image Restoration by Evolutionary Search" (ICML 2018).

mod architecture;
mod mask;
pub mod metrics;
mod network;
pub mod sheet;
mod space;

use serde_json::{Map, Value, json};
use tch::{Device, Kind, Reduction, Tensor, nn};

use self::{mask::Mask, network::Autoencoder, space::Space};
use super::{
    Batch, Draw, Exported, Length, Task, Training, Variable, means,
    network::{Builder, Costs, Mode, Network, NormKind, Output},
    settings::{self, Given, Kind as Setting, Preset, Row, Violation},
};
use crate::{
    images::{Augment, Images, Info, Preprocess, Request},
    optim::Method,
    torch::Tensors,
};

pub use self::space::Coding;

/// The largest supernet of a study: 1.6 GB with its momentum. The paper's has 183,507,712 parameters.
const MAX_PARAMETERS: i64 = 200_000_000;

/// The largest batch_size x nodes x channels x pixels of a study. The paper's is 16 x 20 x 256 x 64 x 64, a third of this; encoder,
/// decoder and their gradients together hold a few 32-bit numbers for each when all nodes are active and none halves the image.
const MAX_ACTIVATIONS: i64 = 1 << 30;

/// The seed of the masks of test images, which are the same for everybody.
const TEST_SEED: u64 = 0x7e57;

/// The smallest height and width for which the structural similarity is defined.
const MIN_SIDE: i64 = 11;

/// The task with its settings, for a search or for a retraining.
#[derive(Clone, Debug, PartialEq)]
pub struct Inpainting {
    coding: Coding,
    settings: Settings,
    retraining: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Settings {
    /// Nodes in the row.
    nodes: i64,
    /// Places before a node that it can read.
    level_back: i64,
    /// Channels of the narrowest choice; the widest has four times as many.
    channels: i64,
    /// The data set.
    dataset: String,
    /// Momentum of SGD, in a search.
    momentum: f64,
    /// Weight decay of SGD, in a search.
    weight_decay: f64,
    /// The largest norm of all gradients together; 0 does not clip.
    grad_clip: f64,
    /// Height and width that images are scaled to.
    image_size: i64,
    /// The name of a [`Mask`].
    mask: String,
    /// Batch normalisation after the nodes' convolutions, but not the output's. The authors have none.
    batch_norm: bool,
    /// Images in a minibatch.
    batch_size: i64,
    /// Learning rate at the start of the schedule.
    learning_rate: f64,
    /// Seed of the weights, the order of the images and the masks.
    seed: i64,
    /// Minibatches of a retraining.
    iterations: i64,
    /// Minibatches of a retraining between two evaluations.
    evaluate_every: i64,
}

/// First the settings that only a study has, then those of studies and retrainings, then those that only a retraining has.
static TABLE: [Row<Settings>; 15] = [
    ("nodes", Setting::Whole(1, 50, |s| &mut s.nodes)),
    ("level_back", Setting::Whole(1, 50, |s| &mut s.level_back)),
    ("channels", Setting::Whole(1, 256, |s| &mut s.channels)),
    ("dataset", Setting::Name(|s| &mut s.dataset)),
    ("momentum", Setting::Real(0.0, 0.999, |s| &mut s.momentum)),
    ("weight_decay", Setting::Real(0.0, 1.0, |s| &mut s.weight_decay)),
    ("grad_clip", Setting::Real(0.0, 1e6, |s| &mut s.grad_clip)),
    ("image_size", Setting::Whole(16, 256, |s| &mut s.image_size)),
    ("mask", Setting::Word(&Mask::NAMES, |s| &mut s.mask)),
    ("batch_norm", Setting::Flag(|s| &mut s.batch_norm)),
    ("batch_size", Setting::Whole(2, 4096, |s| &mut s.batch_size)),
    ("learning_rate", Setting::Real(0.0, 10.0, |s| &mut s.learning_rate)),
    ("seed", Setting::Whole(0, i64::MAX, |s| &mut s.seed)),
    ("iterations", Setting::Whole(1, 1_000_000_000, |s| &mut s.iterations)),
    ("evaluate_every", Setting::Whole(1, 1_000_000_000, |s| &mut s.evaluate_every)),
];

impl Inpainting {
    /// Reads a study's settings; the paper's search takes 50,000 steps. Errors with everything that is wrong.
    pub fn new(coding: Coding, given: &Given) -> Result<Inpainting, Vec<Violation>> {
        let preset = settings::preset(given).map_err(|violation| vec![violation])?;
        let (nodes, channels) = match preset {
            Preset::Paper => (20, 64),
            Preset::Small => (8, 8),
            Preset::Quick => (6, 4),
        };
        let settings = Settings {
            nodes,
            level_back: 5,
            channels,
            dataset: "photos".into(),
            momentum: 0.9,
            weight_decay: 0.0,
            grad_clip: 5.0,
            image_size: 64,
            mask: "pixel".into(),
            batch_norm: false,
            batch_size: 16,
            learning_rate: 0.025,
            seed: 0,
            iterations: 1,
            evaluate_every: 1,
        };
        let mut task = Inpainting { coding, settings, retraining: false };
        let table = task.table();
        let mut violations = settings::apply(coding.name(), &mut task.settings, table, given);
        if violations.is_empty() {
            violations.extend(task.too_large());
        }
        if violations.is_empty() { Ok(task) } else { Err(violations) }
    }

    fn table(&self) -> &'static [Row<Settings>] {
        if self.retraining { &TABLE[7..] } else { &TABLE[..13] }
    }

    /// Checks the limits on combinations of settings.
    fn too_large(&self) -> Option<Violation> {
        let Settings { nodes, image_size, batch_size, batch_norm, .. } = self.settings;
        let (image, layers) = ([3, image_size, image_size], self.space().layers());
        let parameters = count(&layers, image, batch_norm, NormKind::SHARED).parameters;
        let activations =
            batch_size * nodes * self.space().max_channels() * image_size * image_size;
        let description = if parameters > MAX_PARAMETERS {
            format!(
                "nodes and channels make a supernet of {parameters} parameters; at most {MAX_PARAMETERS} are allowed"
            )
        } else if activations > MAX_ACTIVATIONS {
            format!(
                "batch_size x nodes x 4 channels x image_size^2 must be at most {MAX_ACTIVATIONS}, not {activations}"
            )
        } else {
            return None;
        };
        Some(Violation::new("", description))
    }

    fn space(&self) -> Space {
        let Settings { nodes, level_back, channels, .. } = self.settings;
        let (nodes, level_back) = (nodes as usize, level_back as usize);
        Space { coding: self.coding, nodes, level_back, channels }
    }

    fn mask(&self) -> Mask {
        Mask::named(&self.settings.mask).expect("the table allows only names of masks")
    }
}

/// Counts the autoencoder that [`Autoencoder::new`] builds of these layers.
fn count(
    layers: &[architecture::Layer],
    image: [i64; 3],
    batch_norm: bool,
    norm: NormKind,
) -> Costs {
    let builder = Builder::counting(norm);
    Autoencoder::new(&builder, layers, image, batch_norm);
    builder.costs()
}

/// Returns the mean squared error over all pixels, hidden or not.
fn squared_error(output: &Tensor, batch: &Batch) -> Tensor {
    output.mse_loss(&batch.target, Reduction::Mean)
}

impl Task for Inpainting {
    fn variables(&self) -> Vec<Variable> {
        self.space().variables()
    }

    fn settings(&self) -> Given {
        settings::all(&self.settings, self.table())
    }

    fn describe(&self, values: &[i64]) -> Map<String, Value> {
        let Settings { level_back, channels, .. } = self.settings;
        let encoder = self.space().decode(values).encoder();
        object(json!({ "level_back": level_back, "channels": channels, "encoder": encoder }))
    }

    fn dot(&self, values: &[i64]) -> String {
        self.space().decode(values).dot(self.coding.name())
    }

    fn images(&self) -> Option<Request> {
        let Settings { dataset, image_size, .. } = &self.settings;
        Some(Request { name: dataset.clone(), image_size: Some(*image_size), labels: false })
    }

    fn normalised(&self) -> bool {
        false
    }

    fn accepts(&self, info: &Info) -> Result<(), String> {
        let [channels, height, width] = info.shape;
        if [1, 3].contains(&channels) && height == width && height >= MIN_SIDE {
            return Ok(());
        }
        Err(format!(
            "images for inpainting must have 1 or 3 channels and be square, with sides of at least {MIN_SIDE} pixels; those of \
             {} have {channels} channels and {height} x {width} pixels",
            info.name
        ))
    }

    fn training(&self) -> Training {
        let Settings { batch_size, learning_rate, grad_clip, momentum, weight_decay, .. } =
            self.settings;
        let Settings { seed, iterations, evaluate_every, .. } = self.settings;
        Training {
            batch_size,
            learning_rate,
            method: match self.retraining {
                true => Method::Adam,
                false => Method::Sgd { momentum, weight_decay },
            },
            grad_clip,
            seed: seed.cast_unsigned(),
            length: Length::Batches {
                total: iterations.cast_unsigned(),
                evaluate_every: evaluate_every.cast_unsigned(),
            },
            drop_path: 0.0,
        }
    }

    fn costs(&self, info: &Info, values: &[i64]) -> Option<Costs> {
        let layers = self.space().decode(values).layers(info.shape);
        Some(count(&layers, info.shape, self.settings.batch_norm, NormKind::ALONE))
    }

    fn network(&self, info: &Info, alone: Option<&[i64]>, device: Device, kind: Kind) -> Network {
        let Settings { batch_norm, seed, .. } = self.settings;
        let mut store = nn::VarStore::new(device);
        store.set_kind(kind);
        let space = self.space();
        let alone = alone.map(|values| space.decode(values));
        let (layers, norm) = match &alone {
            Some(architecture) => (architecture.layers(info.shape), NormKind::ALONE),
            None => (space.layers(), NormKind::SHARED),
        };
        let builder = Builder::new(&store, norm);
        let autoencoder = Autoencoder::new(&builder, &layers, info.shape, batch_norm);
        let forward = move |visible: &Tensor, values: &[i64], mode: Mode| {
            let main = match &alone {
                Some(architecture) => autoencoder.forward(visible, architecture, mode),
                None => autoencoder.forward(visible, &space.decode(values), mode),
            };
            Output { main, auxiliary: None }
        };
        Network::new(&store, seed.cast_unsigned(), Box::new(forward))
    }

    /// All architectures that are trained or ranked on a minibatch get the same mask.
    fn batch(&self, images: &Images, preprocess: &Preprocess, draw: Draw) -> Batch {
        let (target, seed, number) = match draw {
            Draw::Augmented { seed, number } => {
                (preprocess.augmented(&images.pixels, Augment::FLIP, seed, number), seed, number)
            }
            Draw::Plain { number } => (preprocess.plain(&images.pixels), TEST_SEED, number),
        };
        Batch { input: &target * self.mask().draw(seed, number, &target), target }
    }

    /// The mean squared error, and the peak signal-to-noise ratio in decibels.
    fn loss(&self, output: &Output, batch: &Batch) -> [Tensor; 2] {
        let psnr = metrics::psnr(&output.main.detach(), &batch.target).mean(Kind::Double);
        [squared_error(&output.main, batch), psnr]
    }

    fn step_metrics(&self, train: &[f64], rank: &[f64]) -> Vec<(&'static str, f64)> {
        means([("train_psnr", train), ("rank_psnr", rank)])
    }

    fn test_metrics(&self) -> &'static [&'static str] {
        &["psnr", "ssim", "loss"]
    }

    fn test(&self, main: &Tensor, batch: &Batch) -> Vec<Tensor> {
        vec![
            metrics::psnr(main, &batch.target).mean(Kind::Double),
            metrics::ssim(main, &batch.target).mean(Kind::Double),
            squared_error(main, batch),
        ]
    }

    /// The input: hidden parts stay black.
    fn baseline(&self, batch: &Batch) -> Option<Tensor> {
        Some(batch.input.shallow_clone())
    }

    /// The paper's section 5.2; the authors evaluate at the end only.
    fn retraining(
        &self,
        _: &Info,
        _: &[i64],
        preset: Preset,
        given: &Given,
    ) -> Result<Box<dyn Task>, Vec<Violation>> {
        let (iterations, evaluate_every) = match preset {
            Preset::Paper => (500_000, 5_000),
            Preset::Small => (5_000, 1_000),
            Preset::Quick => (1_000, 200),
        };
        let settings = Settings {
            grad_clip: 5.0,
            batch_size: 16,
            learning_rate: 0.001,
            seed: 0,
            iterations,
            evaluate_every,
            ..self.settings.clone()
        };
        let mut task = Inpainting { settings, retraining: true, ..*self };
        let owner = format!("a retraining of the space {}", self.coding.name());
        let table = task.table();
        let violations = settings::apply(&owner, &mut task.settings, table, given);
        if violations.is_empty() { Ok(Box::new(task)) } else { Err(violations) }
    }

    fn interface(&self, info: &Info) -> Map<String, Value> {
        let Settings { mask, batch_norm, .. } = &self.settings;
        let [channels, height, width] = info.shape;
        let shape = json!(["batch", channels, height, width]);
        object(json!({
            "task": "inpainting",
            "mask": mask,
            "batch_norm": batch_norm,
            "input": {
                "name": "images",
                "shape": shape,
                "type": "float32",
                "range": [0, 1],
                "hidden": "0 in all channels",
            },
            "output": {"name": "restored", "shape": shape, "range": [0, 1]},
        }))
    }

    fn exported(&self, network: Network, _: &Info, values: &[i64]) -> Exported {
        let values = values.to_vec();
        let forward = move |images: &Tensor| {
            network.forward(images, &values, Mode::Evaluate).main.clamp(0.0, 1.0)
        };
        Exported { forward: Box::new(forward), constants: Tensors::new() }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::iter::zip;

    use tch::{CModule, IndexOp};

    use super::*;
    use crate::torch;

    fn given(settings: &[(&str, &str)]) -> Given {
        settings.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    fn new(settings: &[(&str, &str)]) -> Result<Inpainting, Vec<Violation>> {
        Inpainting::new(Coding::Integer, &given(settings))
    }

    fn info(shape: [i64; 3]) -> Info {
        Info { name: "photos".into(), shape, ..Info::default() }
    }

    /// Four nodes in a chain, as values: kernel (1 to 3), skip, channels of each.
    fn chain(nodes: [[i64; 3]; 4]) -> Vec<i64> {
        nodes.into_iter().flat_map(|[k, s, c]| [k, s, c, 0]).chain([0]).collect()
    }

    const CHAIN: [[i64; 3]; 4] = [[2, 0, 2], [1, 1, 5], [3, 0, 3], [1, 1, 8]];
    const SMALL: [(&str, &str); 3] = [("nodes", "4"), ("level_back", "1"), ("channels", "2")];

    #[test]
    fn the_defaults_are_the_paper_s() {
        // Section 5.3, and the defaults of the authors' inpainting/inpainting_cat/main.py.
        let task = new(&[("preset", "paper")]).unwrap();
        let settings = Settings {
            nodes: 20,
            level_back: 5,
            channels: 64,
            dataset: "photos".into(),
            momentum: 0.9,
            weight_decay: 0.0,
            grad_clip: 5.0,
            image_size: 64,
            mask: "pixel".into(),
            batch_norm: false,
            batch_size: 16,
            learning_rate: 0.025,
            seed: 0,
            ..task.settings.clone()
        };
        assert_eq!(task.settings, settings);
        let image = [3, 64, 64];
        let supernet = count(&task.space().layers(), image, false, NormKind::SHARED);
        assert_eq!(supernet.parameters, 183_507_712);
        assert_eq!(new(&[]).unwrap(), task);
        let quick = new(&[("preset", "quick"), ("mask", "half")]).unwrap();
        let expected = Settings { nodes: 6, channels: 4, mask: "half".into(), ..settings };
        assert_eq!(quick.settings, expected);
    }

    #[test]
    fn every_violation_is_listed() {
        let violations = new(&[
            ("batch_norm", "yes"),
            ("image_size", "8"),
            ("iterations", "7"),
            ("mask", "centre"),
            ("seed", "1"),
        ]);
        assert_eq!(
            settings::sentence(&violations.unwrap_err()),
            "batch_norm must be true or false, not \"yes\"; \
             image_size must be a whole number from 16 to 256, not \"8\"; \
             iterations is unknown; the settings of inpaint-int are preset, nodes, level_back, channels, dataset, momentum, \
             weight_decay, grad_clip, image_size, mask, batch_norm, batch_size, learning_rate, seed; \
             mask must be center or pixel or half, not \"centre\""
        );
    }

    #[test]
    fn a_supernet_that_no_machine_holds_is_refused() {
        let violations = new(&[("channels", "128")]).unwrap_err();
        assert_eq!(violations[0].field, "settings");
        assert!(violations[0].description.contains("of 734017024 parameters"), "{violations:?}");
        let largest = [("batch_size", "4096"), ("image_size", "256"), ("nodes", "50")];
        let violations =
            new(&[largest[0], largest[1], largest[2], ("channels", "16")]).unwrap_err();
        assert!(violations[0].description.starts_with("batch_size x nodes"), "{violations:?}");
    }

    #[test]
    fn settings_reproduce_the_task() {
        let given = given(&[("preset", "quick"), ("mask", "half"), ("dataset", "cats")]);
        let study = Inpainting::new(Coding::Categorical, &given).unwrap();
        assert_eq!(Inpainting::new(Coding::Categorical, &study.settings()), Ok(study.clone()));

        let retraining = |preset, settings: &Given| {
            study.retraining(&info([3, 64, 64]), &[], preset, settings).unwrap()
        };
        let changed = [("seed".to_owned(), "7".to_owned()), ("mask".into(), "center".into())];
        let quick = retraining(Preset::Quick, &changed.into());
        let resumed = retraining(Preset::Paper, &quick.settings());
        assert_eq!(resumed.settings(), quick.settings());
        assert_eq!(resumed.training(), quick.training());
        assert_eq!(resumed.settings()["mask"], "center");
        assert_eq!(resumed.images(), study.images());
        assert_eq!(resumed.variables(), study.variables());
    }

    #[test]
    fn retrainings_are_the_paper_s_whatever_the_search_was() {
        // Section 5.2. The evaluations on the way are ours.
        let paper = Training {
            batch_size: 16,
            learning_rate: 0.001,
            method: Method::Adam,
            grad_clip: 5.0,
            seed: 0,
            length: Length::Batches { total: 500_000, evaluate_every: 5_000 },
            drop_path: 0.0,
        };
        let changed = [("batch_size", "4"), ("learning_rate", "1"), ("seed", "3")];
        let study = new(&[changed[0], changed[1], changed[2], ("grad_clip", "0")]).unwrap();
        assert_eq!(study.training().method, Method::Sgd { momentum: 0.9, weight_decay: 0.0 });
        let retraining =
            |preset, given: &Given| study.retraining(&info([3, 64, 64]), &[], preset, given);
        assert_eq!(retraining(Preset::Paper, &Given::new()).unwrap().training(), paper);
        let length = Length::Batches { total: 1_000, evaluate_every: 200 };
        let quick = retraining(Preset::Quick, &Given::new()).unwrap();
        assert_eq!(quick.training(), Training { length, ..paper });
        let rate = |iteration| paper.learning_rate_at(iteration, 1);
        assert_eq!([0, 199_999].map(rate), [1e-3; 2]);
        assert_eq!([200_000, 399_999].map(rate), [0.1 * 1e-3; 2]);
        assert_eq!([400_000, 499_999, u64::MAX].map(rate), [0.01 * 1e-3; 3]);

        let refused = retraining(Preset::Paper, &given(&[("nodes", "3")]));
        assert_eq!(
            settings::sentence(&refused.err().unwrap()),
            "nodes is unknown; the settings of a retraining of the space inpaint-int are preset, image_size, mask, batch_norm, \
             batch_size, learning_rate, seed, iterations, evaluate_every"
        );
    }

    #[test]
    fn costs_are_counted_as_by_hand() {
        let costs = |batch_norm| {
            let settings = [SMALL[0], SMALL[1], SMALL[2], ("batch_norm", batch_norm)];
            new(&settings).unwrap().costs(&info([3, 16, 16]), &chain(CHAIN)).unwrap()
        };
        let encoder = 9 * 3 * 2 + 2 * 5 + 25 * 5 * 3 + 3 * 8;
        let decoder = 8 * 8 + 25 * 8 * 3 + 3 * 5 + 9 * 5 * 2;
        let output = 9 * 2 * 3;
        let macs = (9 * 2 * (3 + 5) + 5 * (2 + 3)) * 8 * 8
            + (25 * 3 * (5 + 8) + 3 * 8 + 8 * 8) * 4 * 4
            + output * 16 * 16;
        let parameters = encoder + decoder + output;
        assert_eq!(costs("false"), Costs { parameters, macs });
        let norms = 4 * (2 + 5 + 3 + 8);
        assert_eq!(costs("true"), Costs { parameters: parameters + norms, macs });
    }

    #[test]
    fn square_images_in_colour_or_grey_are_accepted() {
        let task = new(&[]).unwrap();
        for shape in [[3, 64, 64], [1, 28, 28], [1, 11, 11]] {
            assert_eq!(task.accepts(&info(shape)), Ok(()));
        }
        for shape in [[4, 64, 64], [3, 64, 48], [1, 10, 10]] {
            assert!(task.accepts(&info(shape)).is_err(), "{shape:?}");
        }
        assert_eq!(
            task.accepts(&info([2, 8, 16])).unwrap_err(),
            "images for inpainting must have 1 or 3 channels and be square, with sides of at least 11 pixels; those of photos \
             have 2 channels and 8 x 16 pixels"
        );
    }

    #[test]
    fn batches_hide_the_same_parts_for_the_same_number() {
        let task = new(&[]).unwrap();
        let pixels = Tensor::arange(2 * 3 * 16 * 16, (Kind::Int64, Device::Cpu)).remainder(255) + 1;
        let pixels = pixels.to_kind(Kind::Uint8).view([2, 3, 16, 16]);
        let images = Images { pixels, labels: Tensor::from_slice(&[0_i64, 0]) };
        let preprocess = Preprocess::unit(Device::Cpu, Kind::Float, true);
        let batch = |draw| task.batch(&images, &preprocess, draw);

        let plain = batch(Draw::Plain { number: 64 });
        assert_eq!(plain.target, preprocess.plain(&images.pixels));
        let mask = Mask::Pixel.draw(0x7e57, 64, &plain.target);
        assert_eq!(plain.input, &plain.target * &mask);
        assert_eq!(plain.input, task.baseline(&plain).unwrap());

        let augmented = batch(Draw::Augmented { seed: 5, number: 3 });
        let flipped = preprocess.augmented(&images.pixels, Augment::FLIP, 5, 3);
        assert_eq!(augmented.target, flipped);
        assert_eq!(augmented.input, &flipped * Mask::Pixel.draw(5, 3, &flipped));
        assert_eq!(augmented.input.i((.., 0)).eq(0.0), augmented.input.i((.., 2)).eq(0.0));
    }

    #[test]
    fn losses_and_metrics_are_those_of_all_pixels() {
        let task = new(&[]).unwrap();
        let target = Tensor::full([2, 3, 16, 16], 0.5, (Kind::Float, Device::Cpu));
        let batch = Batch { input: target.zeros_like(), target: target.shallow_clone() };
        let main = &target + Tensor::from_slice(&[0.1_f32, 0.01]).view([2, 1, 1, 1]);
        let [loss, psnr] = [(0.01 + 0.0001) / 2.0, (20.0 + 40.0) / 2.0];
        let close = |ours: &[Tensor], expected: &[f64]| {
            let near = |(ours, expected): (f64, &f64)| (ours - expected).abs() < 1e-5 * expected;
            let ours = torch::read(ours);
            assert!(zip(ours.iter().copied(), expected).all(near), "{ours:?}, not {expected:?}");
        };
        let tested = task.test(&main, &batch);
        assert_eq!(tested.len(), task.test_metrics().len());
        close(&[tested[0].shallow_clone(), tested[2].shallow_clone()], &[psnr, loss]);
        let output = Output { main, auxiliary: None };
        close(&task.loss(&output, &batch), &[loss, psnr]);
        assert_eq!(
            task.step_metrics(&[1.0, 2.0], &[3.0]),
            [("train_psnr", 1.5), ("rank_psnr", 3.0)]
        );
        assert_eq!(task.step_metrics(&[1.0], &[]), [("train_psnr", 1.0)]);
    }

    #[test]
    fn architectures_are_described_by_their_choices() {
        let settings = given(&[("nodes", "3"), ("level_back", "2"), ("channels", "8")]);
        let task = Inpainting::new(Coding::Categorical, &settings).unwrap();
        let values = [2, 2, 0, /* node1 */ 4, 0, 1, /* node2 */ 1, 1, 0, 0, 0, 1];
        assert_eq!(
            Value::Object(task.describe(&values)),
            json!({
                "level_back": 2,
                "channels": 8,
                "encoder": [
                    {"node": "node0", "module": "conv_3x3_skip", "channels": 32, "input": "image"},
                    {"node": "node2", "module": "conv_1x1_down", "channels": 16, "input": "node0"},
                ],
            })
        );
        assert!(task.dot(&values).starts_with("digraph \"inpaint-cat\" {"));
    }

    #[test]
    fn exported_functions_stay_between_0_and_1() {
        let (task, info) = (new(&SMALL).unwrap(), info([3, 16, 16]));
        let interface = Value::Object(task.interface(&info));
        assert_eq!(interface["input"]["shape"], json!(["batch", 3, 16, 16]));
        let values = chain(CHAIN);
        let mut network = task.network(&info, Some(&values), Device::Cpu, Kind::Float);
        let images = Tensor::ones([2, 3, 16, 16], (Kind::Float, Device::Cpu));
        let expected = tch::no_grad(|| {
            for parameter in network.parameters.values_mut() {
                let _ = parameter.abs_().g_mul_scalar_(2.0);
            }
            network.forward(&images, &[], Mode::Evaluate).main
        });
        assert!(f64::try_from(expected.max()).unwrap() > 1.0);
        let output = tch::no_grad(|| (task.exported(network, &info, &values).forward)(&images));
        assert_eq!(output, expected.clamp(0.0, 1.0));
    }

    #[test]
    fn a_trace_of_every_module_takes_any_number_of_images() {
        let settings = given(&[("nodes", "6"), ("channels", "2"), ("batch_norm", "true")]);
        let task = Inpainting::new(Coding::Categorical, &settings).unwrap();
        let info = info([3, 18, 18]); // 9 and 5 on the way
        let values = [[0, 0, 0], [1, 0, 1], [2, 1, 2], [3, 1, 3], [4, 0, 4], [5, 0, 4], [0, 0, 4]];
        let values = values.concat();
        assert_eq!(task.space().decode(&values).active(), [0, 1, 2, 3, 4, 5]);
        let network = task.network(&info, Some(&values), Device::Cpu, Kind::Float);
        for parameter in network.parameters.values() {
            let _ = parameter.set_requires_grad(false);
        }
        let function = task.exported(network, &info, &values).forward;
        let images = |count| Tensor::rand([count, 3, 18, 18], (Kind::Float, Device::Cpu)) + 0.5;
        let mut forward = |images: &[Tensor]| vec![function(&images[0])];
        let traced = CModule::create_by_tracing("Network", "forward", &[images(2)], &mut forward);
        let traced = traced.unwrap();
        for count in [1, 5] {
            let images = images(count);
            let output = traced.forward_ts(&[&images]).unwrap();
            let difference = (output - function(&images)).abs().max();
            assert!(f64::try_from(difference).unwrap() < 1e-5);
        }
    }
}
