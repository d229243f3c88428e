//! What goes with a preset of the project's spaces in a study's spec, beside the settings that the trainer knows.

/// A preset of a space: how long its search is, and how the distribution starts.
#[derive(Debug)]
pub struct Preset {
    space: &'static str,
    name: &'static str,
    /// Reports after which the study is finished.
    pub max_steps: u64,
    /// Share of the steps that train only the weights.
    pub warmup: f64,
    /// Initial trust region; none: the controller's default, which is the paper's.
    pub delta_init: Option<f64>,
}

impl Preset {
    /// Returns the steps of the warm-up in a search of `max_steps`; none if there is no warm-up.
    pub fn warmup_steps(&self, max_steps: u64) -> Option<u64> {
        (self.warmup > 0.0).then_some((self.warmup * max_steps as f64).round() as u64)
    }
}

/// A search of the length that the paper gives it, from the first step.
const fn paper(space: &'static str, max_steps: u64) -> Preset {
    Preset { space, name: "paper", max_steps, warmup: 0.0, delta_init: None }
}

/// A shorter search, after a warm-up: shared weights that have learnt little favour the wrong architectures (docs/results.md).
const fn small(space: &'static str, name: &'static str, max_steps: u64) -> Preset {
    Preset { space, name, max_steps, warmup: 2.0 / 3.0, delta_init: None }
}

/// The families of spaces that files define, `cells` and `chain`, have those of the built-in spaces of the same kind.
const PRESETS: [Preset; 27] = [
    paper("enas-micro", 39_000),
    small("enas-micro", "small", 10_000),
    small("enas-micro", "quick", 2_000),
    paper("nasbench201", 39_000),
    small("nasbench201", "small", 15_000),
    small("nasbench201", "quick", 2_000),
    paper("darts", 39_000),
    small("darts", "small", 10_000),
    small("darts", "quick", 2_000),
    paper("mobile", 39_000),
    small("mobile", "small", 10_000),
    small("mobile", "quick", 2_000),
    paper("cells", 39_000),
    small("cells", "small", 10_000),
    small("cells", "quick", 2_000),
    paper("chain", 39_000),
    small("chain", "small", 10_000),
    small("chain", "quick", 2_000),
    paper("inpaint-cat", 50_000),
    small("inpaint-cat", "small", 10_000),
    small("inpaint-cat", "quick", 2_000),
    paper("inpaint-int", 50_000),
    small("inpaint-int", "small", 10_000),
    small("inpaint-int", "quick", 2_000),
    paper("toy", 100_000),
    Preset { space: "toy", name: "small", max_steps: 30_000, warmup: 0.0, delta_init: None },
    Preset { space: "toy", name: "quick", max_steps: 10_000, warmup: 0.0, delta_init: None },
];

/// Returns the preset `paper`, `small` or `quick` of a space, if the project's trainer has the space.
pub fn preset(space: &str, name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.space == space && preset.name == name)
}
