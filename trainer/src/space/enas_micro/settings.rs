//! A study's settings for this space, from the strings a person typed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Size, variables};
use crate::space::setting::{self, Kind, Presets};
use crate::space::{Variable, Violation};

/// The largest supernet a study may ask for: 200 million parameters, 1.6 GB with their momentum.
const MAX_PARAMETERS: i64 = 200_000_000;

/// The largest batch_size x cells x nodes x channels. A step of the paper (64 x 8 x 5 x 16 =
/// 40,960) holds about 1.2 GB, so this is about 30 GB; what a particular machine can hold, its
/// libtorch decides.
const MAX_ACTIVATIONS: i64 = 1 << 20;

/// What a study can set about its supernet and the training of its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Nodes in each cell, 1 to 10.
    pub nodes: i64,
    /// Cells of the supernet, two of which are reductions, 3 to 50.
    pub cells: i64,
    /// Channels of the cells before the first reduction, 4 to 256.
    pub channels: i64,
    /// Images in each minibatch, 2 to 4096.
    pub batch_size: i64,
    /// Learning rate at the start of the cosine, 0 to 10.
    pub learning_rate: f64,
    /// Momentum of SGD, 0 to 0.999.
    pub momentum: f64,
    /// Weight decay of SGD, 0 to 1.
    pub weight_decay: f64,
    /// Largest norm of all gradients together, 0 to 1e6; 0 does not clip.
    pub grad_clip: f64,
    /// Side of the square cut out of each image, 0 to 64 pixels; 0 cuts nothing.
    pub cutout: i64,
    /// Seed of the weights' initialisation and of the order and augmentation of the data.
    pub seed: i64,
}

/// The paper's, which searches for 39,000 steps: 100 epochs of half of CIFAR-10.
impl Default for Settings {
    fn default() -> Self {
        Settings {
            nodes: 5,
            cells: 8,
            channels: 16,
            batch_size: 64,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 3e-4,
            grad_clip: 5.0,
            cutout: 16,
            seed: 0,
        }
    }
}

const TABLE: [(&str, Kind<Settings>); 10] = [
    ("nodes", Kind::Whole(1, 10, |s| &mut s.nodes)),
    ("cells", Kind::Whole(3, 50, |s| &mut s.cells)),
    ("channels", Kind::Whole(4, 256, |s| &mut s.channels)),
    ("batch_size", Kind::Whole(2, 4096, |s| &mut s.batch_size)),
    ("learning_rate", Kind::Real(0.0, 10.0, |s| &mut s.learning_rate)),
    ("momentum", Kind::Real(0.0, 0.999, |s| &mut s.momentum)),
    ("weight_decay", Kind::Real(0.0, 1.0, |s| &mut s.weight_decay)),
    ("grad_clip", Kind::Real(0.0, 1e6, |s| &mut s.grad_clip)),
    ("cutout", Kind::Whole(0, 64, |s| &mut s.cutout)),
    ("seed", Kind::Whole(0, i64::MAX, |s| &mut s.seed)),
];

impl Settings {
    /// A search that a laptop finishes in minutes, of smaller cells in a smaller network.
    pub fn quick() -> Settings {
        Settings { nodes: 2, cells: 3, channels: 8, batch_size: 80, ..Settings::default() }
    }

    /// Reads a study's settings. A setting that is absent keeps the value of `preset`, which is
    /// `paper` unless it says `quick`. The error lists everything that is wrong.
    pub fn parse(settings: &BTreeMap<String, String>) -> Result<Settings, Vec<Violation>> {
        let presets = Presets { paper: Settings::default(), quick: Settings::quick() };
        let (parsed, mut violations) = setting::parse(super::NAME, presets, &TABLE, settings);
        if violations.is_empty() {
            violations.extend(parsed.too_large());
        }
        if violations.is_empty() { Ok(parsed) } else { Err(violations) }
    }

    /// The limits that no setting breaks alone.
    fn too_large(&self) -> Option<Violation> {
        // The paper's data; other images and numbers of classes change little.
        let parameters = self.size(3, 10).supernet_parameters();
        let activations = self.batch_size * self.cells * self.nodes * self.channels;
        let description = if parameters > MAX_PARAMETERS {
            format!(
                "nodes, cells and channels make a supernet of {parameters} parameters; at most \
                 {MAX_PARAMETERS} are allowed"
            )
        } else if activations > MAX_ACTIVATIONS {
            format!(
                "batch_size x cells x nodes x channels must be at most {MAX_ACTIVATIONS}, not \
                 {activations}"
            )
        } else {
            return None;
        };
        Some(Violation { field: "settings".to_owned(), description })
    }

    /// The space's variables.
    pub fn variables(&self) -> Vec<Variable> {
        variables(self.nodes as usize)
    }

    /// The size of the supernet for images of `image_channels` channels in `classes` classes.
    pub fn size(&self, image_channels: i64, classes: i64) -> Size {
        Size {
            nodes: self.nodes as usize,
            cells: self.cells as usize,
            channels: self.channels,
            image_channels,
            classes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(settings: &[(&str, &str)]) -> Result<Settings, Vec<Violation>> {
        let owned = settings.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        Settings::parse(&owned.collect())
    }

    #[test]
    fn the_paper_s_settings() {
        // Section 5.2, and the defaults of the authors' classification/main.py.
        let paper = Settings {
            nodes: 5,
            cells: 8,
            channels: 16,
            batch_size: 64,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 3e-4,
            grad_clip: 5.0,
            cutout: 16,
            seed: 0,
        };
        assert_eq!(parse(&[("preset", "paper")]), Ok(paper.clone()));
        assert_eq!(paper.variables().len(), 40);
        assert_eq!(paper.size(3, 10).supernet_parameters(), 2_274_052);
    }

    #[test]
    fn absent_settings_are_the_preset_s() {
        assert_eq!(parse(&[]), parse(&[("preset", "paper")]));
        assert_eq!(
            parse(&[("seed", "3"), ("preset", "quick")]),
            Ok(Settings { seed: 3, ..Settings::quick() })
        );
        let settings =
            parse(&[("cells", "5"), ("learning_rate", "1e-2"), ("cutout", "0")]).unwrap();
        assert_eq!(
            settings,
            Settings { cells: 5, learning_rate: 0.01, cutout: 0, ..Settings::default() }
        );
        assert_eq!(settings.variables().len(), 40);
    }

    #[test]
    fn every_violation_is_listed() {
        let violations = parse(&[
            ("cells", "2"),
            ("chanels", "16"),
            ("momentum", "NaN"),
            ("nodes", "five"),
            ("seed", "1"),
            ("weight_decay", "-1"),
        ])
        .unwrap_err();
        let fields: Vec<&str> = violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "settings.cells",
                "settings.chanels",
                "settings.momentum",
                "settings.nodes",
                "settings.weight_decay"
            ]
        );
        assert_eq!(violations[0].description, "must be a whole number from 3 to 50, not \"2\"");
        assert_eq!(
            violations[1].description,
            "is unknown; the settings of enas-micro are preset, nodes, cells, channels, batch_size, \
             learning_rate, momentum, weight_decay, grad_clip, cutout, seed"
        );
        assert_eq!(violations[2].description, "must be a number from 0 to 0.999, not \"NaN\"");
    }

    #[test]
    fn a_supernet_that_no_machine_holds_is_refused() {
        let violations =
            parse(&[("nodes", "10"), ("cells", "50"), ("channels", "256")]).unwrap_err();
        assert_eq!(violations[0].field, "settings");
        assert!(violations[0].description.contains("parameters"), "{violations:?}");
        let violations = parse(&[("batch_size", "4096")]).unwrap_err();
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
            let settings = [
                ("nodes", &*nodes.to_string()),
                ("cells", &*cells.to_string()),
                ("channels", &*channels.to_string()),
                ("batch_size", &*batch.to_string()),
            ];
            if let Ok(settings) = parse(&settings) {
                prop_assert!(settings.size(3, 10).supernet_parameters() <= MAX_PARAMETERS);
                prop_assert!(nodes * cells * channels * batch <= MAX_ACTIVATIONS);
                prop_assert!((1..=10).contains(&nodes) && cells >= 3 && channels >= 4);
            }
        }
    }
}
