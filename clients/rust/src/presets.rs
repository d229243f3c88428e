//! The part of a study's spec that a preset of the project's spaces sets, besides the settings of the trainer.

/// How a preset of a space searches.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Reports after which the study is finished.
    pub max_steps: u64,
    /// Share of the steps that train only the weights.
    warmup: f64,
    /// Initial trust region; none: the controller's default, which is the paper's.
    pub delta_init: Option<f64>,
}

impl Preset {
    /// Returns the steps of the warm-up in a search of `max_steps`; none if there is no warm-up.
    pub fn warmup_steps(&self, max_steps: u64) -> Option<u64> {
        (self.warmup > 0.0).then_some((self.warmup * max_steps as f64).round() as u64)
    }
}

/// The searches of spaces of one kind.
struct Kind {
    spaces: &'static [&'static str],
    /// Reports of `paper`, `small` and `quick`.
    max_steps: [u64; 3],
    /// Those of `small` and `quick`. `paper` is the paper's search: it has no warm-up, and the default trust region.
    warmup: f64,
    delta_init: Option<f64>,
}

/// Shared weights that have learnt little favour the wrong architectures (docs/results.md).
const WARMUP: f64 = 2.0 / 3.0;

const KINDS: [Kind; 4] = [
    // The families of spaces that files define, `cells` and `chain`, search as the built-in spaces of the same kind.
    Kind {
        spaces: &["enas-micro", "darts", "mobile", "cells", "chain"],
        max_steps: [39_000, 10_000, 2_000],
        warmup: WARMUP,
        delta_init: None,
    },
    Kind {
        spaces: &["nasbench201"],
        max_steps: [39_000, 15_000, 2_000],
        warmup: WARMUP,
        delta_init: None,
    },
    // Shared weights of autoencoders learn shallow networks before deep ones: small steps of theta at first.
    Kind {
        spaces: &["inpaint-cat", "inpaint-int"],
        max_steps: [50_000, 10_000, 2_000],
        warmup: WARMUP,
        delta_init: Some(0.2),
    },
    // The artificial problem is searched as the paper searches it, from the first step.
    Kind { spaces: &["toy"], max_steps: [100_000, 30_000, 10_000], warmup: 0.0, delta_init: None },
];

/// Returns the preset `paper`, `small` or `quick` of a space, if the project's trainer has the space.
pub fn preset(space: &str, name: &str) -> Option<Preset> {
    let kind = KINDS.iter().find(|kind| kind.spaces.contains(&space))?;
    let [paper, small, quick] = kind.max_steps;
    let Kind { warmup, delta_init, .. } = *kind;
    match name {
        "paper" => Some(Preset { max_steps: paper, warmup: 0.0, delta_init: None }),
        "small" => Some(Preset { max_steps: small, warmup, delta_init }),
        "quick" => Some(Preset { max_steps: quick, warmup, delta_init }),
        _ => None,
    }
}
