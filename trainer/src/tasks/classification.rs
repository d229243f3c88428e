//! Image classification: spaces that are files, of the families cells and chain.
//!
//! [`definition`] reads a space file; [`cells`] and [`chain`] are the two families, whose networks are built of the registry of
//! [`operation`]s; [`report`] collects predictions.

pub mod cells;
pub mod chain;
pub mod check;
pub mod definition;
mod family;
mod fault;
mod mbconv;
pub mod operation;
pub mod report;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Reduction, Tensor};

use self::{
    cells::Ends,
    definition::{BUILT_IN, Definition, Family},
};
use super::{
    Batch, Draw, Exported, Length, Task, Training, Variable, means,
    network::{Costs, Mode, Network, Output},
    settings::{self, Given, Kind as Setting, Preset, Row, Violation},
};
use crate::{
    images::{Augment, IMAGE_SIZES, Images, Info, Preprocess, Request},
    optim::Method,
};

/// The weight of the auxiliary head's loss (authors' `weight_auxiliary`).
const AUXILIARY_WEIGHT: f64 = 0.4;
/// The largest supernet that a study may ask for: 200 million parameters, 1.6 GB with their momentum.
const MAX_PARAMETERS: i64 = 200_000_000;
/// The largest batch_size x cells x nodes x channels. A step of the paper (64 x 8 x 5 x 16 = 40,960) holds about 1.2 GB, so this
/// is about 30 GB; libtorch decides what a particular machine can hold.
const MAX_ACTIVATIONS: i64 = 1 << 20;
/// Images are padded by a part of their side before they are cropped: 4 pixels at 32, as in the paper.
const PADDING: i64 = 8;

/// The families of spaces whose definition comes with the study.
const FAMILIES: [&str; 2] = ["cells", "chain"];

/// The names that studies of this task have for their spaces.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.into_iter().map(|(name, _)| name).chain(FAMILIES)
}

/// Returns the family of a space file. Errors if the file is not one.
pub fn family(text: &str) -> anyhow::Result<String> {
    let definition = Definition::parse(text).context("not a space file")?;
    Ok(definition.family.name().into())
}

/// A space with the settings of a study or of a retraining.
#[derive(Clone, Debug)]
pub struct Classification {
    /// The space, with the size of its networks.
    family: Family,
    definition: Definition,
    settings: Settings,
    /// True if networks are trained alone.
    alone: bool,
}

/// All that can be set beside the size of the networks.
#[derive(Clone, Debug, PartialEq)]
struct Settings {
    /// The size of networks, for [`Family`].
    nodes: i64,
    cells: i64,
    channels: i64,
    width: f64,
    /// The images.
    dataset: String,
    /// Height and width that images are brought to; 0 leaves them as they are.
    image_size: i64,
    /// True if training images are mirrored at random.
    flip: bool,
    /// Side of the square cut out of each training image, in pixels.
    cutout: i64,
    batch_size: i64,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    grad_clip: f64,
    seed: i64,
    /// Passes over the training images.
    epochs: i64,
    /// The largest network alone, without the auxiliary head: it decides the channels where they are 0.
    max_parameters: i64,
    /// Probability of dropping an operation's output that is reached at the end.
    drop_path: f64,
}

impl Settings {
    /// Returns the settings of a definition without presets.
    fn new(family: &Family) -> Settings {
        let (nodes, cells, channels, width) = match family {
            Family::Cells(cells) => (cells.nodes, cells.cells, cells.channels, 1.0),
            Family::Chain(chain) => (1, 1, 1, chain.width),
        };
        Settings {
            nodes,
            cells,
            channels,
            width,
            dataset: "cifar10".into(),
            image_size: 0,
            flip: true,
            cutout: 0,
            batch_size: 64,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 3e-4,
            grad_clip: 5.0,
            seed: 0,
            epochs: 0,
            max_parameters: 0,
            drop_path: 0.0,
        }
    }
}

/// The settings of a study, or of a retraining, of a space of that family.
fn table(family: &Family, alone: bool) -> Vec<Row<Settings>> {
    let mut rows: Vec<Row<Settings>> = match family {
        Family::Cells(_) => vec![
            ("cells", Setting::Whole(3, if alone { 100 } else { 50 }, |s| &mut s.cells)),
            match alone {
                // 0: as many as `max_parameters` allows.
                true => ("channels", Setting::Whole(0, 1024, |s| &mut s.channels)),
                false => ("channels", Setting::Whole(4, 256, |s| &mut s.channels)),
            },
        ],
        Family::Chain(_) => vec![("width", Setting::Real(0.1, 4.0, |s| &mut s.width))],
    };
    match alone {
        false => {
            if let Family::Cells(_) = family {
                rows.push(("nodes", Setting::Whole(1, 10, |s| &mut s.nodes)));
            }
            rows.push(("dataset", Setting::Name(|s| &mut s.dataset)));
        }
        true => {
            if let Family::Cells(_) = family {
                let range = (0, i64::MAX);
                rows.push((
                    "max_parameters",
                    Setting::Whole(range.0, range.1, |s| &mut s.max_parameters),
                ));
            }
            rows.push(("epochs", Setting::Whole(1, 1_000_000, |s| &mut s.epochs)));
            rows.push(("drop_path", Setting::Real(0.0, 0.9, |s| &mut s.drop_path)));
        }
    }
    rows.extend([
        ("image_size", Setting::Whole(0, 256, |s: &mut Settings| &mut s.image_size)),
        ("flip", Setting::Flag(|s| &mut s.flip)),
        ("cutout", Setting::Whole(0, 256, |s| &mut s.cutout)),
        ("batch_size", Setting::Whole(2, 4096, |s| &mut s.batch_size)),
        ("learning_rate", Setting::Real(0.0, 10.0, |s| &mut s.learning_rate)),
        ("momentum", Setting::Real(0.0, 0.999, |s| &mut s.momentum)),
        ("weight_decay", Setting::Real(0.0, 1.0, |s| &mut s.weight_decay)),
        ("grad_clip", Setting::Real(0.0, 1e6, |s| &mut s.grad_clip)),
        ("seed", Setting::Whole(0, i64::MAX, |s| &mut s.seed)),
    ]);
    rows
}

impl Classification {
    /// The built-in space `name`, or that of `definition` whose family is `name`, with a study's settings. Errors with everything
    /// that is wrong.
    pub fn new(
        name: &str,
        definition: &str,
        given: &Given,
    ) -> Result<Classification, Vec<Violation>> {
        let violation =
            |field: &str, description: String| vec![Violation { field: field.into(), description }];
        let text = match definition {
            "" => Definition::built_in(name).ok_or_else(|| {
                violation("space_definition", "is needed for a space that does not ship".into())
            })?,
            text => text,
        };
        let definition = Definition::parse(text)
            .map_err(|error| violation("space_definition", error.to_string()))?;
        if definition.family.variables().is_empty() {
            let description = "leaves nothing to search: every choice has one value; put several into brackets or lists";
            return Err(violation("space_definition", description.into()));
        }
        let preset = settings::preset(given).map_err(|violation| vec![violation])?;
        let mut settings = Settings::new(&definition.family);
        let table = table(&definition.family, false);
        let owner = format!("the space {}", definition.name);
        let mut violations = Vec::new();
        if let Some(given) = definition.presets.get(preset.name()) {
            for violation in settings::apply(&owner, &mut settings, &table, given) {
                let Violation { field, description } = violation;
                let setting = field.trim_start_matches("settings.");
                let description = format!("presets.{}.{setting} {description}", preset.name());
                violations.push(Violation { field: "space_definition".into(), description });
            }
        }
        violations.extend(settings::apply(&owner, &mut settings, &table, given));
        let family = definition.family.clone();
        let mut classification = Classification { family, definition, settings, alone: false };
        classification.resize();
        violations.extend(classification.bad_image_size());
        if violations.is_empty() {
            violations.extend(classification.too_large());
        }
        if violations.is_empty() { Ok(classification) } else { Err(violations) }
    }

    /// Gives networks the size that the settings name.
    fn resize(&mut self) {
        let Settings { nodes, cells, channels, width, .. } = self.settings;
        match &mut self.family {
            Family::Cells(family) => {
                (family.nodes, family.cells, family.channels) = (nodes, cells, channels);
            }
            Family::Chain(chain) => chain.width = width,
        }
    }

    /// Errors if images cannot be brought to the size that is set.
    fn bad_image_size(&self) -> Option<Violation> {
        let size = self.settings.image_size;
        (size != 0 && !IMAGE_SIZES.contains(&size)).then(|| {
            let (low, high) = (IMAGE_SIZES.start(), IMAGE_SIZES.end());
            Violation::new("image_size", format!("must be 0 or from {low} to {high}, not {size}"))
        })
    }

    /// The limits that no setting breaks alone.
    fn too_large(&self) -> Option<Violation> {
        // CIFAR-10's images; others, and other numbers of classes, change little.
        let parameters = self.family.supernet_parameters(&Ends { image: [3, 32, 32], classes: 10 });
        if parameters > MAX_PARAMETERS {
            let description = format!(
                "these make a supernet of {parameters} parameters; at most {MAX_PARAMETERS} are allowed"
            );
            return Some(Violation::new("", description));
        }
        let (side, divisor) = (self.settings.image_size, self.family.divisor());
        if side % divisor != 0 {
            let description =
                format!("must be divisible by {divisor} for networks of this space, not {side}");
            return Some(Violation::new("image_size", description));
        }
        let Settings { batch_size, cells, nodes, channels, .. } = self.settings;
        let activations = batch_size * cells * nodes * channels;
        (activations > MAX_ACTIVATIONS).then(|| {
            let description = format!(
                "batch_size x cells x nodes x channels must be at most {MAX_ACTIVATIONS}, not {activations}"
            );
            Violation::new("", description)
        })
    }
}

fn ends(info: &Info) -> Ends {
    Ends { image: info.shape, classes: info.classes.len() as i64 }
}

impl Task for Classification {
    fn variables(&self) -> Vec<Variable> {
        self.family.variables()
    }

    fn settings(&self) -> Given {
        settings::all(&self.settings, &table(&self.family, self.alone))
    }

    fn describe(&self, values: &[i64]) -> Map<String, Value> {
        match self.family.describe(values) {
            Value::Object(described) => described,
            _ => Map::new(),
        }
    }

    fn dot(&self, values: &[i64]) -> String {
        self.family.dot(values)
    }

    fn images(&self) -> Option<Request> {
        let Settings { dataset, image_size, .. } = &self.settings;
        let image_size = Some(*image_size).filter(|size| *size > 0);
        Some(Request { name: dataset.clone(), image_size, labels: true })
    }

    fn normalised(&self) -> bool {
        true
    }

    fn accepts(&self, info: &Info) -> Result<(), String> {
        let ([_, height, width], divisor) = (info.shape, self.family.divisor());
        if height % divisor == 0 && width % divisor == 0 {
            return Ok(());
        }
        Err(format!(
            "networks of the space {} need images whose height and width are divisible by {divisor}; those of data set {} are {height} \
             x {width}: set image_size, such as image_size={}",
            self.definition.name,
            info.name,
            (height.max(16) as u64).next_multiple_of(divisor as u64)
        ))
    }

    fn training(&self) -> Training {
        let settings = &self.settings;
        Training {
            batch_size: settings.batch_size,
            learning_rate: settings.learning_rate,
            method: Method::Sgd {
                momentum: settings.momentum,
                weight_decay: settings.weight_decay,
            },
            grad_clip: settings.grad_clip,
            seed: settings.seed.cast_unsigned(),
            length: Length::Epochs(settings.epochs.cast_unsigned()),
            drop_path: settings.drop_path,
        }
    }

    fn costs(&self, info: &Info, values: &[i64]) -> Option<Costs> {
        Some(self.family.costs(&ends(info), values, self.alone))
    }

    fn network(&self, info: &Info, alone: Option<&[i64]>, device: Device, kind: Kind) -> Network {
        self.family.network(&ends(info), alone, self.settings.seed.cast_unsigned(), device, kind)
    }

    fn batch(&self, images: &Images, preprocess: &Preprocess, draw: Draw) -> Batch {
        let input = match draw {
            Draw::Augmented { seed, number } => {
                let Settings { flip, cutout, .. } = self.settings;
                let padding = (images.pixels.size()[2] / PADDING) as u16;
                let augment = Augment { padding, flip, cutout: cutout as u16 };
                preprocess.augmented(&images.pixels, augment, seed, number)
            }
            Draw::Plain { .. } => preprocess.plain(&images.pixels),
        };
        Batch { input, target: images.labels.shallow_clone() }
    }

    /// Mean cross-entropy, and the part of the images whose class was found.
    fn loss(&self, output: &Output, batch: &Batch) -> [Tensor; 2] {
        let main = cross_entropy(&output.main, &batch.target);
        let loss = match &output.auxiliary {
            Some(auxiliary) => main + cross_entropy(auxiliary, &batch.target) * AUXILIARY_WEIGHT,
            None => main,
        };
        [loss, found(&output.main, &batch.target, 1)]
    }

    fn step_metrics(&self, train: &[f64], rank: &[f64]) -> Vec<(&'static str, f64)> {
        means([("train_accuracy", train), ("rank_accuracy", rank)])
    }

    fn test_metrics(&self) -> &'static [&'static str] {
        &["accuracy", "top5_accuracy", "loss"]
    }

    fn test(&self, main: &Tensor, batch: &Batch) -> Vec<Tensor> {
        let labels = &batch.target;
        vec![found(main, labels, 1), found(main, labels, 5), cross_entropy(main, labels)]
    }

    fn retraining(
        &self,
        info: &Info,
        values: &[i64],
        preset: Preset,
        given: &Given,
    ) -> Result<Box<dyn Task>, Vec<Violation>> {
        let mut task = Classification { alone: true, ..self.clone() };
        let owner = format!("a retraining of the space {}", self.definition.name);
        let table = table(&self.family, true);
        // The training is that of the preset; the images are the study's.
        let Settings { nodes, dataset, image_size, flip, width, .. } = task.settings;
        task.settings = Settings {
            nodes,
            dataset,
            image_size,
            flip,
            width,
            ..Settings::new(&self.definition.family)
        };
        let preset = self.definition.retraining(preset);
        let mut violations = settings::apply(&owner, &mut task.settings, &table, &preset);
        violations.extend(settings::apply(&owner, &mut task.settings, &table, given));
        violations.extend(task.bad_image_size());
        if let Family::Cells(cells) = &mut task.family
            && task.settings.channels == 0
        {
            cells.cells = task.settings.cells;
            match cells.widest(&ends(info), values, task.settings.max_parameters) {
                Some(channels) => task.settings.channels = channels,
                None => violations.push(Violation::new(
                    "max_parameters",
                    "is too small for this many cells of this architecture",
                )),
            }
        }
        task.resize();
        if violations.is_empty() { Ok(Box::new(task)) } else { Err(violations) }
    }

    fn interface(&self, info: &Info) -> Map<String, Value> {
        let [channels, height, width] = info.shape;
        let names: &[&str] = if channels == 1 { &["grey"] } else { &["red", "green", "blue"] };
        let interface = json!({
            "task": "classification",
            "input": {
                "name": "images",
                "shape": ["batch", channels, height, width],
                "type": "float32",
                "range": [0, 1],
                "channels": names,
                "normalisation": {"inside": true, "mean": info.mean, "std": info.std},
            },
            "output": {
                "name": "logits",
                "shape": ["batch", info.classes.len()],
                "classes": info.classes,
            },
        });
        // Unwrap safety: an object was written.
        interface.as_object().unwrap().clone()
    }

    /// Normalises images, and returns the logits.
    fn exported(&self, network: Network, info: &Info, values: &[i64]) -> Exported {
        let channels =
            |values: &[f64]| Tensor::from_slice(values).to_kind(Kind::Float).view([1, -1, 1, 1]);
        let (mean, std, values) = (channels(&info.mean), channels(&info.std), values.to_vec());
        let constants = [("mean", &mean), ("std", &std)]
            .map(|(name, tensor)| (format!("normalisation.{name}"), tensor.shallow_clone()));
        let forward = move |images: &Tensor| {
            network.forward(&((images - &mean) / &std), &values, Mode::Evaluate).main
        };
        Exported { forward: Box::new(forward), constants: constants.into() }
    }
}

/// Mean cross-entropy of logits `[batch, classes]` for labels `[batch]`, without dimensions.
///
/// Not tch's `cross_entropy_for_logits`, which computes in 32 bits whatever the network's kind. 16 bits become 32 here as well: a
/// loss of three digits ranks nothing.
fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Tensor {
    const IGNORE_INDEX: i64 = -100;
    let kind = if logits.kind() == Kind::BFloat16 { Kind::Float } else { logits.kind() };
    let log_probabilities = logits.to_kind(kind).log_softmax(-1, None::<Kind>);
    log_probabilities.g_nll_loss(labels, None::<Tensor>, Reduction::Mean, IGNORE_INDEX)
}

/// The part of the batch whose label is among the `count` largest logits, without dimensions.
fn found(logits: &Tensor, labels: &Tensor, count: i64) -> Tensor {
    if count == 1 {
        return logits.argmax(-1, false).eq_tensor(labels).mean(Kind::Double);
    }
    let (largest, sorted) = (true, false);
    let (_, classes) = logits.topk(count.min(logits.size()[1]), -1, largest, sorted);
    classes.eq_tensor(&labels.unsqueeze(1)).any_dim(1, false).mean(Kind::Double)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::torch::read;

    fn given(settings: &[(&str, &str)]) -> Given {
        settings.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    fn new(settings: &[(&str, &str)]) -> Result<Classification, Vec<Violation>> {
        Classification::new("enas-micro", "", &given(settings))
    }

    fn info(shape: [i64; 3], classes: i64) -> Info {
        let classes = (0..classes).map(|class| class.to_string()).collect();
        Info { name: "flowers".into(), classes, shape, ..Info::default() }
    }

    fn retraining(
        study: &Classification,
        preset: Preset,
        settings: &[(&str, &str)],
    ) -> Result<Box<dyn Task>, Vec<Violation>> {
        let values = vec![0; study.variables().len()];
        study.retraining(&info([3, 32, 32], 10), &values, preset, &given(settings))
    }

    #[test]
    fn the_defaults_of_a_study_are_the_paper_s() {
        // Section 5.2, and the defaults of the authors' classification/main.py.
        let task = new(&[("preset", "paper")]).unwrap();
        let settings = Settings {
            nodes: 5,
            cells: 8,
            channels: 16,
            cutout: 16,
            flip: true,
            batch_size: 64,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 3e-4,
            grad_clip: 5.0,
            seed: 0,
            dataset: "cifar10".into(),
            ..task.settings.clone()
        };
        assert_eq!(task.settings, settings);
        assert_eq!(task.variables().len(), 40);
        let ends = Ends { image: [3, 32, 32], classes: 10 };
        assert_eq!(task.family.supernet_parameters(&ends), 2_274_052);
        assert_eq!(new(&[]).unwrap().settings, settings);
        let quick = new(&[("preset", "quick"), ("learning_rate", "1e-2")]).unwrap();
        assert_eq!(quick.settings.cells, 3);
        assert_eq!(quick.settings.learning_rate, 0.01);
        assert_eq!(quick.variables().len(), 16);
        let again = Classification::new("enas-micro", "", &quick.settings()).unwrap();
        assert_eq!(again.settings, quick.settings);
    }

    #[test]
    fn every_violation_is_listed() {
        let violations = new(&[
            ("cells", "2"),
            ("chanels", "16"),
            ("epochs", "3"),
            ("momentum", "NaN"),
            ("nodes", "five"),
            ("seed", "1"),
            ("weight_decay", "-1"),
        ]);
        assert_eq!(
            settings::sentence(&violations.unwrap_err()),
            "cells must be a whole number from 3 to 50, not \"2\"; \
             chanels is unknown; the settings of the space enas-micro are preset, cells, channels, nodes, dataset, image_size, flip, \
             cutout, batch_size, learning_rate, momentum, weight_decay, grad_clip, seed; \
             epochs is unknown; the settings of the space enas-micro are preset, cells, channels, nodes, dataset, image_size, flip, \
             cutout, batch_size, learning_rate, momentum, weight_decay, grad_clip, seed; \
             momentum must be a number from 0 to 0.999, not \"NaN\"; \
             nodes must be a whole number from 1 to 10, not \"five\"; \
             weight_decay must be a number from 0 to 1, not \"-1\""
        );
    }

    #[test]
    fn what_is_wrong_with_a_definition_is_told_with_its_place() {
        let field = |definition: &str| {
            let violations = Classification::new("cells", definition, &Given::new()).unwrap_err();
            violations.into_iter().map(|violation| violation.field).collect::<Vec<_>>()
        };
        assert_eq!(field("name = 1"), ["space_definition"]);
        assert_eq!(field(""), ["space_definition"]);
        let text = Definition::built_in("enas-micro").unwrap();
        let text = text.replacen("batch_size = 64", "batch_size = 1", 1);
        assert_eq!(field(&text), ["space_definition"]);
        let fixed = "name = 'fixed'\ndescription = ''\n[chain]\nstem = { channels = 8, kernel = 3, stride = 1 }\n\
                     activation = 'relu'\nrows = ['ds_r1_k3_s1_c8']";
        let violations = Classification::new("chain", fixed, &Given::new()).unwrap_err();
        assert!(settings::sentence(&violations).starts_with("leaves nothing to search"));
    }

    #[test]
    fn a_supernet_that_no_machine_holds_is_refused() {
        let violations = new(&[("nodes", "10"), ("cells", "50"), ("channels", "256")]).unwrap_err();
        assert_eq!(violations[0].field, "settings");
        assert!(violations[0].description.contains("parameters"), "{violations:?}");
        let violations = new(&[("batch_size", "4096")]).unwrap_err();
        assert!(violations[0].description.starts_with("batch_size x cells"), "{violations:?}");
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_within_the_limits(
            nodes in 0_i64..12,
            cells in 0_i64..60,
            channels in 0_i64..300,
            batch in 0_i64..5000,
        ) {
            let [a, b, c, d] = [nodes, cells, channels, batch].map(|number| number.to_string());
            let given = [("nodes", &*a), ("cells", &*b), ("channels", &*c), ("batch_size", &*d)];
            if let Ok(task) = new(&given) {
                let ends = Ends { image: [3, 32, 32], classes: 10 };
                prop_assert!(task.family.supernet_parameters(&ends) <= MAX_PARAMETERS);
                prop_assert!(nodes * cells * channels * batch <= MAX_ACTIVATIONS);
                prop_assert!((1..=10).contains(&nodes) && cells >= 3 && channels >= 4);
            }
        }
    }

    #[test]
    fn retrainings_are_the_paper_s_whatever_the_search_was() {
        // Section 5.2, and the defaults of the authors' classification/main_retrain.py.
        let paper = Training {
            batch_size: 80,
            learning_rate: 0.025,
            method: Method::Sgd { momentum: 0.9, weight_decay: 3e-4 },
            grad_clip: 5.0,
            seed: 0,
            length: Length::Epochs(600),
            drop_path: 0.3,
        };
        let changed = [("batch_size", "8"), ("learning_rate", "1"), ("cutout", "1"), ("seed", "3")];
        let study = new(&changed).unwrap();
        let task = retraining(&study, Preset::Paper, &[]).unwrap();
        assert_eq!(task.training(), paper);
        let settings = task.settings();
        assert_eq!(
            [&settings["cells"], &settings["cutout"], &settings["flip"]],
            ["20", "16", "true"]
        );

        let quick = retraining(&study, Preset::Quick, &[("epochs", "5")]).unwrap();
        assert_eq!(
            quick.training(),
            Training { length: Length::Epochs(5), drop_path: 0.0, ..paper }
        );
        assert_eq!([&quick.settings()["cells"], &quick.settings()["cutout"]], ["5", "0"]);

        let refused = retraining(&study, Preset::Paper, &[("nodes", "3"), ("epochs", "0")]);
        assert_eq!(
            settings::sentence(&refused.err().unwrap()),
            "epochs must be a whole number from 1 to 1000000, not \"0\"; nodes is unknown; the settings of a retraining of the space \
             enas-micro are preset, cells, channels, max_parameters, epochs, drop_path, image_size, flip, cutout, batch_size, \
             learning_rate, momentum, weight_decay, grad_clip, seed"
        );
    }

    #[test]
    fn channels_are_as_many_as_the_parameters_allow() {
        let study = new(&[]).unwrap();
        let (values, info) = (vec![0; 40], info([3, 32, 32], 10));
        let parameters = |settings: &[(&str, &str)]| {
            let task = retraining(&study, Preset::Paper, settings).unwrap();
            let channels: i64 = task.settings()["channels"].parse().unwrap();
            (task.costs(&info, &values).unwrap().parameters, channels)
        };
        for limit in [4_000_000, 100_000] {
            let text = limit.to_string();
            let (fits, channels) = parameters(&[("max_parameters", &*text)]);
            let (too_many, _) = parameters(&[("channels", &*(channels + 1).to_string())]);
            assert!(fits <= limit && too_many > limit, "{fits} {too_many}");
        }
        assert_eq!(parameters(&[]), parameters(&[("max_parameters", "4000000")]));
        let refused = retraining(&study, Preset::Paper, &[("max_parameters", "9")]).err().unwrap();
        assert_eq!(refused[0].field, "settings.max_parameters");
    }

    #[test]
    fn images_keep_their_size_or_are_brought_to_one_that_is_allowed() {
        let size =
            |text| new(&[("image_size", text)]).map(|task| task.images().unwrap().image_size);
        assert_eq!((size("0"), size("16")), (Ok(None), Ok(Some(16))));
        let expected = [Violation::new("image_size", "must be 0 or from 16 to 256, not 15")];
        assert_eq!(size("15").unwrap_err(), expected);
        let study = new(&[("image_size", "16")]).unwrap();
        let refused = retraining(&study, Preset::Paper, &[("image_size", "15")]);
        assert_eq!(refused.err().unwrap(), expected);
    }

    #[test]
    fn settings_reproduce_the_retraining() {
        let study = new(&[("preset", "quick"), ("dataset", "flowers"), ("flip", "false")]).unwrap();
        let changed = [("seed", "7"), ("image_size", "48"), ("max_parameters", "50000")];
        let quick = retraining(&study, Preset::Quick, &changed).unwrap();
        let settings = quick.settings();
        let values = vec![0; study.variables().len()];
        let info = info([3, 32, 32], 10);
        let resumed = study.retraining(&info, &values, Preset::Paper, &settings).unwrap();
        assert_eq!(resumed.settings(), settings);
        assert_eq!(resumed.training(), quick.training());
        assert_eq!(resumed.costs(&info, &values), quick.costs(&info, &values));
        assert_eq!(settings["flip"], "false");
        let request = Request { name: "flowers".into(), image_size: Some(48), labels: true };
        assert_eq!(resumed.images(), Some(request));
    }

    #[test]
    fn square_images_that_can_be_halved_are_accepted() {
        let task = new(&[]).unwrap();
        for shape in [[3, 32, 32], [1, 28, 28], [3, 64, 64]] {
            assert_eq!(task.accepts(&info(shape, 2)), Ok(()));
        }
        assert_eq!(
            task.accepts(&info([3, 30, 34], 2)).unwrap_err(),
            "networks of the space enas-micro need images whose height and width are divisible by 4; those of data set flowers are 30 \
             x 34: set image_size, such as image_size=32"
        );
    }

    #[test]
    fn the_auxiliary_head_counts_two_fifths() {
        let task = new(&[]).unwrap();
        let logits = |rows: [[f64; 3]; 2]| Tensor::from_slice(&rows.concat()).view([2, 3]);
        let batch = Batch { input: Tensor::new(), target: Tensor::from_slice(&[0_i64, 2]) };
        // The cross-entropy of logits ln(p) is -ln(p) of the label.
        let main = || logits([[0.5, 0.25, 0.25], [0.5, 0.375, 0.125]].map(|row| row.map(f64::ln)));
        let auxiliary = logits([[0.25, 0.5, 0.25]; 2].map(|row| row.map(f64::ln)));
        let loss = |auxiliary| read(&task.loss(&Output { main: main(), auxiliary }, &batch));
        let ln2 = 2_f64.ln();
        let close = |ours: &[f64], expected: [f64; 2]| {
            assert!((ours[0] - expected[0]).abs() < 1e-12, "{ours:?}, not {expected:?}");
            assert_eq!(ours[1], expected[1]);
        };
        close(&loss(None), [(ln2 + 3.0 * ln2) / 2.0, 0.5]);
        close(&loss(Some(auxiliary)), [2.0 * ln2 + 0.4 * 2.0 * ln2, 0.5]);
        // With three classes, every label is among the five most likely.
        let tested = read(&task.test(&main(), &batch));
        assert_eq!(tested[..2], [0.5, 1.0]);
        assert_eq!(task.test_metrics(), ["accuracy", "top5_accuracy", "loss"]);
        assert_eq!(task.step_metrics(&[0.5, 1.0], &[]), [("train_accuracy", 0.75)]);
    }

    #[test]
    fn the_label_is_looked_for_among_the_largest_logits() {
        // Seven classes, from the least to the most likely.
        let logits = Tensor::arange(7, (Kind::Float, Device::Cpu)).expand([4, 7], false);
        let labels = Tensor::from_slice(&[6_i64, 5, 2, 1]);
        let found = |count| f64::try_from(found(&logits, &labels, count)).unwrap();
        assert_eq!([found(1), found(2), found(5), found(7)], [0.25, 0.5, 0.75, 1.0]);
    }

    #[test]
    fn exported_functions_normalise_inside() {
        let task = new(&[("preset", "quick")]).unwrap();
        let mut info = info([3, 8, 8], 2);
        (info.mean, info.std) = (vec![0.5, 0.25, 0.0], vec![0.5, 1.0, 2.0]);
        let values = vec![0; task.variables().len()];
        let alone = retraining(&task, Preset::Quick, &[("channels", "4")]).unwrap();
        let build = || alone.network(&info, Some(&values), Device::Cpu, Kind::Float);
        let images = Tensor::full([2, 3, 8, 8], 0.5, (Kind::Float, Device::Cpu));
        let normalised = Tensor::from_slice(&[0_f32, 0.25, 0.25]).view([1, 3, 1, 1]);
        let _guard = tch::no_grad_guard();
        let expected =
            build().forward(&normalised.expand([2, 3, 8, 8], false), &values, Mode::Evaluate);
        assert_eq!((alone.exported(build(), &info, &values).forward)(&images), expected.main);
        let interface = Value::Object(alone.interface(&info));
        assert_eq!(interface["input"]["normalisation"]["mean"], json!([0.5, 0.25, 0.0]));
        assert_eq!(interface["output"]["classes"], json!(["0", "1"]));
    }
}
