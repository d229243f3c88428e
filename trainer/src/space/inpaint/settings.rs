//! A study's settings for these spaces, from the strings a person typed.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{Coding, MAX_CHANNELS, MAX_NODES, Size, Space};
use crate::space::setting::{self, Kind, Presets};
use crate::space::{Decision, Violation};

/// The largest supernet a study may ask for: 1.6 GB with its momentum. The paper's has 183,507,712
/// parameters.
const MAX_PARAMETERS: i64 = 200_000_000;

/// The largest batch_size x nodes x channels x pixels. The paper's is 16 x 20 x 256 x 64 x 64, a
/// third of this; encoder, decoder and their gradients together hold a few 32-bit numbers for each
/// when all nodes are active and none halves the image.
const MAX_ACTIVATIONS: i64 = 1 << 30;

/// Which part of the images is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mask {
    /// The middle: half as high and half as wide as the image.
    Center,
    /// 80 % of the pixels, drawn one by one.
    Pixel,
    /// The left, upper, right or lower half, drawn for each image.
    Half,
}

/// What a study can set about its supernet and the training of its weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Nodes in the row, 1 to 50.
    pub nodes: i64,
    /// How far back a node can read, 1 to 50.
    pub level_back: i64,
    /// Channels of the narrowest choice, 1 to 256; the widest has four times as many.
    pub channels: i64,
    /// Height and width that images are brought to, 16 to 256 pixels.
    pub image_size: i64,
    /// What is hidden.
    pub mask: Mask,
    /// Batch normalisation after the nodes' convolutions (not the output's). The authors have none.
    pub batch_norm: bool,
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
    /// Seed of the weights' initialisation, the order of the images and the masks.
    pub seed: i64,
}

/// The paper's, which searches for 50,000 steps.
impl Default for Settings {
    fn default() -> Self {
        Settings {
            nodes: 20,
            level_back: 5,
            channels: 64,
            image_size: 64,
            mask: Mask::Pixel,
            batch_norm: false,
            batch_size: 16,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 0.0,
            grad_clip: 5.0,
            seed: 0,
        }
    }
}

const TABLE: [(&str, Kind<Settings>); 12] = [
    ("nodes", Kind::Whole(1, MAX_NODES, |s| &mut s.nodes)),
    ("level_back", Kind::Whole(1, MAX_NODES, |s| &mut s.level_back)),
    ("channels", Kind::Whole(1, MAX_CHANNELS, |s| &mut s.channels)),
    ("image_size", Kind::Whole(16, 256, |s| &mut s.image_size)),
    (
        "mask",
        Kind::Word(&[
            ("center", |s| s.mask = Mask::Center),
            ("pixel", |s| s.mask = Mask::Pixel),
            ("half", |s| s.mask = Mask::Half),
        ]),
    ),
    (
        "batch_norm",
        Kind::Word(&[("true", |s| s.batch_norm = true), ("false", |s| s.batch_norm = false)]),
    ),
    ("batch_size", Kind::Whole(2, 4096, |s| &mut s.batch_size)),
    ("learning_rate", Kind::Real(0.0, 10.0, |s| &mut s.learning_rate)),
    ("momentum", Kind::Real(0.0, 0.999, |s| &mut s.momentum)),
    ("weight_decay", Kind::Real(0.0, 1.0, |s| &mut s.weight_decay)),
    ("grad_clip", Kind::Real(0.0, 1e6, |s| &mut s.grad_clip)),
    ("seed", Kind::Whole(0, i64::MAX, |s| &mut s.seed)),
];

impl Settings {
    /// A search that a laptop finishes: fewer and narrower nodes.
    pub fn quick() -> Settings {
        Settings { nodes: 6, channels: 4, ..Settings::default() }
    }

    /// Reads a study's settings. A setting that is absent keeps the value of `preset`, which is
    /// `paper` unless it says `quick`. The error lists everything that is wrong.
    pub fn parse(
        coding: Coding,
        settings: &BTreeMap<String, String>,
    ) -> Result<Settings, Vec<Violation>> {
        let presets = Presets { paper: Settings::default(), quick: Settings::quick() };
        let (parsed, mut violations) = setting::parse(coding.name(), presets, &TABLE, settings);
        if violations.is_empty() {
            violations.extend(parsed.too_large());
        }
        if violations.is_empty() { Ok(parsed) } else { Err(violations) }
    }

    /// The limits that no setting breaks alone.
    fn too_large(&self) -> Option<Violation> {
        let size = self.size(3);
        let parameters = size.supernet_parameters();
        let pixels = self.image_size * self.image_size;
        let activations = self.batch_size * self.nodes * size.channels * pixels;
        let description = if parameters > MAX_PARAMETERS {
            format!(
                "nodes and channels make a supernet of {parameters} parameters; at most \
                 {MAX_PARAMETERS} are allowed"
            )
        } else if activations > MAX_ACTIVATIONS {
            format!(
                "batch_size x nodes x 4 channels x image_size^2 must be at most {MAX_ACTIVATIONS}, \
                 not {activations}"
            )
        } else {
            return None;
        };
        Some(Violation { field: "settings".to_owned(), description })
    }

    /// The space whose variables are meant.
    pub fn space(&self, coding: Coding) -> Space {
        Space {
            coding,
            nodes: self.nodes as usize,
            level_back: self.level_back as usize,
            channels: self.channels,
        }
    }

    /// The space's variables.
    pub fn variables(&self, coding: Coding) -> Vec<Decision> {
        self.space(coding).variables()
    }

    /// The size of the supernet for images of `image_channels` channels.
    pub fn size(&self, image_channels: i64) -> Size {
        Size {
            nodes: self.nodes as usize,
            channels: self.space(Coding::Categorical).max_channels(),
            image_channels,
            batch_norm: self.batch_norm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(settings: &[(&str, &str)]) -> Result<Settings, Vec<Violation>> {
        let owned = settings.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        Settings::parse(Coding::Integer, &owned.collect())
    }

    #[test]
    fn the_paper_s_settings() {
        // Section 5.3, and the defaults of the authors' inpainting/inpainting_cat/main.py.
        let paper = Settings {
            nodes: 20,
            level_back: 5,
            channels: 64,
            image_size: 64,
            mask: Mask::Pixel,
            batch_norm: false,
            batch_size: 16,
            learning_rate: 0.025,
            momentum: 0.9,
            weight_decay: 0.0,
            grad_clip: 5.0,
            seed: 0,
        };
        assert_eq!(parse(&[("preset", "paper")]), Ok(paper.clone()));
        assert_eq!(paper.size(3).supernet_parameters(), 183_507_712);
        let mut free = 0;
        for decision in paper.variables(Coding::Categorical) {
            let Decision::Categorical(variable) = decision else { panic!("{decision:?}") };
            free += variable.choices.len() - 1;
        }
        assert_eq!(free, 214);
    }

    #[test]
    fn absent_settings_are_the_preset_s() {
        assert_eq!(parse(&[]), parse(&[("preset", "paper")]));
        assert_eq!(
            parse(&[("batch_norm", "true"), ("mask", "half"), ("preset", "quick")]),
            Ok(Settings { mask: Mask::Half, batch_norm: true, ..Settings::quick() })
        );
        assert_eq!(Settings::default().variables(Coding::Categorical).len(), 63);
        assert_eq!(Settings::default().variables(Coding::Integer).len(), 81);
    }

    #[test]
    fn every_violation_is_listed() {
        let violations = parse(&[
            ("batch_norm", "yes"),
            ("chanels", "16"),
            ("image_size", "8"),
            ("mask", "centre"),
            ("momentum", "NaN"),
            ("preset", "slow"),
            ("seed", "1"),
        ])
        .unwrap_err();
        let all: Vec<String> =
            violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
        assert_eq!(
            all,
            [
                "settings.batch_norm must be true or false, not \"yes\"",
                "settings.chanels is unknown; the settings of inpaint-int are preset, nodes, \
                 level_back, channels, image_size, mask, batch_norm, batch_size, learning_rate, \
                 momentum, weight_decay, grad_clip, seed",
                "settings.image_size must be a whole number from 16 to 256, not \"8\"",
                "settings.mask must be center or pixel or half, not \"centre\"",
                "settings.momentum must be a number from 0 to 0.999, not \"NaN\"",
                "settings.preset must be paper or quick, not \"slow\"",
            ]
        );
    }

    #[test]
    fn a_supernet_that_no_machine_holds_is_refused() {
        let violations = parse(&[("channels", "128")]).unwrap_err();
        assert_eq!(violations[0].field, "settings");
        assert!(violations[0].description.contains("parameters"), "{violations:?}");
        let largest = [("batch_size", "4096"), ("image_size", "256"), ("nodes", "50")];
        let violations =
            parse(&[largest[0], largest[1], largest[2], ("channels", "16")]).unwrap_err();
        assert!(violations[0].description.starts_with("batch_size x nodes"), "{violations:?}");
    }
}
