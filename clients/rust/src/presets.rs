//! What goes with a preset of the project's spaces in a study's spec, beside the settings that the trainer knows.

/// A search of a space as the paper made it, or small.
#[derive(Debug)]
pub struct Preset {
    space: &'static str,
    name: &'static str,
    /// Reports after which the study is finished.
    pub max_steps: u64,
    /// The paper's delta at the start; none: the controller's default.
    pub delta_init: Option<f64>,
}

/// Few steps want small ones of theta at first: shared weights of autoencoders learn shallow networks before deep ones.
///
/// The families of spaces that files define, `cells` and `chain`, have those of `enas-micro`, as the spaces of the same kind.
const PRESETS: [Preset; 18] = [
    Preset { space: "enas-micro", name: "paper", max_steps: 39_000, delta_init: None },
    Preset { space: "enas-micro", name: "quick", max_steps: 2_000, delta_init: None },
    Preset { space: "nasbench201", name: "paper", max_steps: 39_000, delta_init: None },
    Preset { space: "nasbench201", name: "quick", max_steps: 2_000, delta_init: None },
    Preset { space: "darts", name: "paper", max_steps: 39_000, delta_init: None },
    Preset { space: "darts", name: "quick", max_steps: 2_000, delta_init: None },
    Preset { space: "mobile", name: "paper", max_steps: 39_000, delta_init: None },
    Preset { space: "mobile", name: "quick", max_steps: 2_000, delta_init: None },
    Preset { space: "cells", name: "paper", max_steps: 39_000, delta_init: None },
    Preset { space: "cells", name: "quick", max_steps: 2_000, delta_init: None },
    Preset { space: "chain", name: "paper", max_steps: 39_000, delta_init: None },
    Preset { space: "chain", name: "quick", max_steps: 2_000, delta_init: None },
    Preset { space: "inpaint-cat", name: "paper", max_steps: 50_000, delta_init: None },
    Preset { space: "inpaint-cat", name: "quick", max_steps: 2_000, delta_init: Some(0.2) },
    Preset { space: "inpaint-int", name: "paper", max_steps: 50_000, delta_init: None },
    Preset { space: "inpaint-int", name: "quick", max_steps: 2_000, delta_init: Some(0.2) },
    Preset { space: "toy", name: "paper", max_steps: 100_000, delta_init: None },
    Preset { space: "toy", name: "quick", max_steps: 10_000, delta_init: None },
];

/// The preset `paper` or `quick` of a space, if the project's trainer has the space.
pub fn preset(space: &str, name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.space == space && preset.name == name)
}
