//! Adaptive stochastic natural gradient (ASNG): the optimiser behind every study.
//!
//! [`Asng::ask`] draws architectures from a distribution, [`Asng::tell`] moves the distribution
//! towards those whose losses were smaller, and [`Asng::state`] is all that must be kept to
//! continue bit for bit. The method is Algorithm 1 of Akimoto et al., "Adaptive Stochastic Natural
//! Gradient Method for One-Shot Neural Architecture Search", ICML 2019, arXiv 1905.08537; the
//! constants are those of the authors' code, github.com/shirakawas/ASNG-NAS.
//!
//! Pure `f64` arithmetic. It knows nothing of studies, leases, clocks, storage or networks, keeps
//! no random generator, and never learns what a choice means.
//!
//! | symbol | here | meaning |
//! | --- | --- | --- |
//! | θ | `theta` | a probability for each choice, a mean and a variance for each integer |
//! | n | `n` | free parameters: K - 1 for a categorical, 2 for an integer |
//! | λ | `lambda` | architectures in one step |
//! | u | `utilities` | what the ranking within a step is worth, from 1/μ to -1/μ |
//! | G | `gradient` | the natural gradient of θ |
//! | w | `w` | F^(1/2) G, F the Fisher information of θ |
//! | s | `s` | moving average of w / ‖w‖ |
//! | γ | `gamma` | the weight gathered in s |
//! | Δ | `snr_factor` | grows while ‖s‖² says noise, shrinks while it says signal |
//! | Δ_max | `delta_max` | upper bound of Δ |
//! | δ_init | `delta_init` | length of a step at Δ = 1 |
//! | δ | `delta` | length of the present step, δ_init / Δ |
//! | β | `beta` | rate of the moving averages, δ / √n |
//! | α | `alpha` | ‖s‖² above which steps lengthen, once γ is near 1 |

mod distribution;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod utility;

use std::ops::Range;

use rand::Rng;
use serde::{Deserialize, Serialize};

use self::{distribution::Family, utility::utilities};
pub use self::{
    space::{Architecture, Value, Variable, is_settled},
    state::State,
};

/// Keeps w / ‖w‖ defined when w = 0; the authors' constant.
const NORM_EPSILON: f64 = 1e-9;

/// By how much a probability, a sum or gamma may be off in a state that comes from elsewhere.
const TOLERANCE: f64 = 1e-9;

/// Bounds the memory that one space can ask for.
const MAX_PARAMETERS: usize = 1_000_000;

/// How theta moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Steps whose length adapts to the signal-to-noise ratio.
    #[default]
    Asng,
    /// Stochastic natural gradient with steps of one length: Delta never changes.
    Sng,
    /// Random search: theta never changes.
    Random,
}

/// The settings that a user may choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How theta moves.
    pub algorithm: Algorithm,
    /// Threshold on the signal-to-noise ratio, in `[1e-6, 1e6]`.
    pub alpha: f64,
    /// Length of a step at Delta = 1, in `[1e-6, 1e6]`.
    pub delta_init: f64,
    /// Upper bound of Delta: at least 1 and `delta_init`, and possibly infinite.
    pub delta_max: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            algorithm: Algorithm::Asng,
            alpha: 1.5,
            delta_init: 1.0,
            delta_max: f64::INFINITY,
        }
    }
}

impl Settings {
    /// Checks every range. None depends on the space, so this can precede its description.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        let positive = 1e-6..=1e6; // far beyond any use, and every product stays finite
        let least = self.delta_init.max(1.0);
        let (field, value, allowed) = if !positive.contains(&self.alpha) {
            ("alpha", self.alpha, "between 1e-6 and 1e6")
        } else if !positive.contains(&self.delta_init) {
            ("delta_init", self.delta_init, "between 1e-6 and 1e6")
        } else if !(least..=f64::INFINITY).contains(&self.delta_max) {
            ("delta_max", self.delta_max, "at least 1 and at least delta_init")
        } else {
            return Ok(());
        };
        Err(InvalidSetting { field, value, allowed })
    }
}

/// A setting is out of range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("{field} is {value}, it must be {allowed}")]
pub struct InvalidSetting {
    /// Name of the setting.
    pub field: &'static str,
    /// The given value.
    pub value: f64,
    /// The allowed values.
    pub allowed: &'static str,
}

/// One step's architectures with their losses: what is ranked against each other.
#[derive(Clone, Copy, Debug)]
pub struct Ranked<'a> {
    /// At least two, as [`Asng::ask`] drew them.
    pub architectures: &'a [Architecture],
    /// One for each architecture. NaN and infinities mean that it diverged.
    pub losses: &'a [f64],
}

/// The result of one [`Asng::tell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The effect on the state.
    pub effect: Effect,
    /// How many losses were NaN or infinite.
    pub diverged: usize,
}

/// The effect of an update on the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Theta moved.
    Moved,
    /// The gradient was 0 although losses differed (best and worst were the same architecture):
    /// theta stays, s decays, gamma and Delta move.
    Decayed,
    /// Nothing changed: within each step all losses tied, or the algorithm is random search.
    Unchanged,
}

/// The distribution of one variable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marginal {
    /// A probability for each choice.
    Categorical(Vec<f64>),
    /// A normal distribution over the draws of an integer.
    Integer {
        /// Its mean.
        mean: f64,
        /// Its standard deviation; 0 when the integer is fixed.
        deviation: f64,
    },
}

/// Invalid arguments. Nothing has changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is nothing to search.
    #[error("no variable is free: each has a single possible value")]
    NoFreeVariable,
    /// The space is out of proportion.
    #[error("the space has {0} free parameters, more than {MAX_PARAMETERS}")]
    TooManyParameters(usize),
    /// A variable makes no sense.
    #[error("variable {index} {reason}")]
    Variable {
        /// Its place in the space.
        index: usize,
        /// The reason.
        reason: &'static str,
    },
    /// A setting is out of range.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// An update needs at least one step.
    #[error("an update needs at least one step")]
    NoSteps,
    /// A step cannot be ranked.
    #[error("step {step} of the batch {reason}")]
    Step {
        /// Its place in the batch.
        step: usize,
        /// The reason.
        reason: String,
    },
    /// A state is damaged, or belongs to another space or other settings.
    #[error("invalid state: {0}")]
    State(String),
}

/// A free variable.
#[derive(Clone, Debug)]
struct Free {
    /// Its place among all variables.
    index: usize,
    /// Its place in theta and in the gradient.
    range: Range<usize>,
    family: Family,
}

/// The optimiser of one study.
#[derive(Clone, Debug)]
pub struct Asng {
    variables: Vec<Variable>,
    settings: Settings,
    /// Holds the values of the fixed variables; copies get those of the free ones.
    template: Architecture,
    free: Vec<Free>,
    n: usize,
    state: State,
}

impl Asng {
    /// Starts in the middle of the space, with theta as wide as it may be.
    pub fn new(variables: &[Variable], settings: Settings) -> Result<Asng, Error> {
        settings.check()?;
        let mut n = 0_usize;
        let mut categoricals = 0;
        for (index, variable) in variables.iter().enumerate() {
            variable.check().map_err(|reason| Error::Variable { index, reason })?;
            n = n.saturating_add(variable.parameters());
            let categorical = matches!(variable, Variable::Categorical { choices: 2.. });
            categoricals += usize::from(categorical);
        }
        if n == 0 {
            return Err(Error::NoFreeVariable);
        }
        if n > MAX_PARAMETERS {
            return Err(Error::TooManyParameters(n));
        }

        let mut template = Vec::with_capacity(variables.len());
        let mut free = Vec::with_capacity(variables.len());
        let mut theta = Vec::new();
        for (index, &variable) in variables.iter().enumerate() {
            template.push(match variable {
                Variable::Categorical { .. } => Value::Choice(0),
                Variable::Fixed { choice, .. } => Value::Choice(choice as u32),
                Variable::Integer { low, .. } => Value::Real(low as f64),
            });
            if variable.parameters() > 0 {
                let family = Family::new(variable, categoricals);
                let start = theta.len();
                family.start(&mut theta);
                let range = start..theta.len();
                free.push(Free { index, range, family });
            }
        }
        let snr_factor = smallest_snr_factor(settings, n).max(1.0);
        Ok(Asng {
            variables: variables.to_vec(),
            settings,
            template: Architecture(template.into()),
            free,
            n,
            state: State { theta, s: vec![0.0; n], gamma: 0.0, snr_factor },
        })
    }

    /// Lets the free variable with this index start elsewhere than in the middle; one that is fixed stays as it is. An
    /// error says what is wrong with `start`.
    pub fn start_at(&mut self, index: usize, start: &Marginal) -> Result<(), String> {
        match self.free.iter().find(|free| free.index == index) {
            Some(free) => free.family.start_at(&mut self.state.theta[free.range.clone()], start),
            None => Ok(()),
        }
    }

    /// Continues from a state to which the same variables and settings have led.
    pub fn from_state(
        variables: &[Variable],
        settings: Settings,
        state: State,
    ) -> Result<Asng, Error> {
        let mut asng = Asng::new(variables, settings)?;
        asng.check_state(&state).map_err(Error::State)?;
        asng.state = state;
        Ok(asng)
    }

    fn check_state(&self, state: &State) -> Result<(), String> {
        let theta_len = self.state.theta.len();
        if state.theta.len() != theta_len {
            return Err(format!("theta has {} numbers, not {theta_len}", state.theta.len()));
        }
        for free in &self.free {
            let checked = free.family.check(&state.theta[free.range.clone()]);
            checked.map_err(|reason| format!("variable {}: {reason}", free.index))?;
        }
        if state.s.len() != self.n {
            return Err(format!("s has {} numbers, not {}", state.s.len(), self.n));
        }
        if !state.s.iter().all(|number| number.is_finite()) {
            return Err("s has a number that is not finite".to_owned());
        }
        if !(0.0..=1.0 + TOLERANCE).contains(&state.gamma) {
            return Err(format!("gamma is {}, not between 0 and 1", state.gamma));
        }
        let lowest = smallest_snr_factor(self.settings, self.n);
        let highest = self.settings.delta_max.min(f64::MAX);
        if !(lowest..=highest).contains(&state.snr_factor) {
            let found = state.snr_factor;
            return Err(format!("Delta is {found}, not between {lowest} and {highest}"));
        }
        Ok(())
    }

    /// All that changes: what to store, and what [`Asng::from_state`] takes.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The space, fixed variables included.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// Length of the next step of theta, in the norm of the Fisher information.
    pub fn delta(&self) -> f64 {
        self.settings.delta_init / self.state.snr_factor
    }

    fn theta(&self, free: &Free) -> &[f64] {
        &self.state.theta[free.range.clone()]
    }

    /// Draws `lambda` architectures: choices independently, integers in antithetic pairs (the
    /// draws of architectures 2i and 2i + 1 mirror each other in the mean; an odd last is alone).
    pub fn ask(&self, lambda: usize, rng: &mut impl Rng) -> Vec<Architecture> {
        let mut architectures: Vec<Architecture> = Vec::with_capacity(lambda);
        for i in 0..lambda {
            let mut architecture = self.template.clone();
            for free in &self.free {
                let twin = (i % 2 == 1).then(|| architectures[i - 1].0[free.index]);
                architecture.0[free.index] = free.family.draw(self.theta(free), twin, rng);
            }
            architectures.push(architecture);
        }
        architectures
    }

    /// Moves theta once, by the mean gradient of the steps in `batch`. Losses are compared within
    /// their step only, and steps may have been drawn from earlier states. An error changes nothing.
    pub fn tell(&mut self, batch: &[Ranked<'_>]) -> Result<Update, Error> {
        self.check_batch(batch)?;
        let losses = batch.iter().flat_map(|step| step.losses);
        let diverged = losses.filter(|loss| !loss.is_finite()).count();
        let effect = match self.gradient(batch) {
            Some(gradient) if self.settings.algorithm != Algorithm::Random => {
                self.follow(&gradient)
            }
            _ => Effect::Unchanged,
        };
        Ok(Update { effect, diverged })
    }

    fn check_batch(&self, batch: &[Ranked<'_>]) -> Result<(), Error> {
        if batch.is_empty() {
            return Err(Error::NoSteps);
        }
        for (step, ranked) in batch.iter().enumerate() {
            let (lambda, losses) = (ranked.architectures.len(), ranked.losses.len());
            let reason = if lambda < 2 {
                format!("ranks {lambda} architectures, at least 2 are needed")
            } else if losses != lambda {
                format!("has {losses} losses for {lambda} architectures")
            } else if let Some(i) =
                ranked.architectures.iter().position(|a| !a.fits(&self.variables))
            {
                format!("ranks architecture {i}, which does not fit the variables")
            } else {
                continue;
            };
            return Err(Error::Step { step, reason });
        }
        Ok(())
    }

    /// G: the mean over steps of the mean over architectures of u (T(c) - theta). `None` when
    /// every utility is 0.
    fn gradient(&self, batch: &[Ranked<'_>]) -> Option<Vec<f64>> {
        let mut gradient = vec![0.0; self.state.theta.len()];
        let mut all_tied = true;
        for step in batch {
            let count = (step.losses.len() * batch.len()) as f64;
            for (architecture, utility) in step.architectures.iter().zip(utilities(step.losses)) {
                if utility == 0.0 {
                    continue;
                }
                all_tied = false;
                for free in &self.free {
                    let value = architecture.0[free.index];
                    let gradient = &mut gradient[free.range.clone()];
                    free.family.accumulate(self.theta(free), value, utility / count, gradient);
                }
            }
        }
        (!all_tied).then_some(gradient)
    }

    /// w = F^(1/2) G, with F at the present theta.
    fn whiten(&self, gradient: &[f64]) -> Vec<f64> {
        let mut w = Vec::with_capacity(self.n);
        for free in &self.free {
            free.family.whiten(self.theta(free), &gradient[free.range.clone()], &mut w);
        }
        w
    }

    /// Takes one step along the gradient and adapts the length of the next.
    fn follow(&mut self, gradient: &[f64]) -> Effect {
        let delta = self.delta();
        let beta = delta / (self.n as f64).sqrt();
        let w = self.whiten(gradient);
        let r = square_norm(&w).sqrt() + NORM_EPSILON;
        let moves = gradient.iter().any(|&g| g != 0.0);

        let state = &mut self.state;
        if moves {
            for free in &self.free {
                let theta = &mut state.theta[free.range.clone()];
                free.family.advance(theta, &gradient[free.range.clone()], delta / r);
            }
        }
        for (s, w) in state.s.iter_mut().zip(&w) {
            *s = (1.0 - beta) * *s + (beta * (2.0 - beta)).sqrt() * w / r;
        }
        state.gamma = (1.0 - beta).powi(2) * state.gamma + beta * (2.0 - beta);
        if self.settings.algorithm == Algorithm::Asng {
            let growth = (beta * (state.gamma - square_norm(&state.s) / self.settings.alpha)).exp();
            // The authors have no lower bound; this one keeps beta <= 1.
            let lowest = smallest_snr_factor(self.settings, self.n);
            state.snr_factor = (state.snr_factor * growth).clamp(lowest, self.settings.delta_max);
        }
        if moves { Effect::Moved } else { Effect::Decayed }
    }

    /// The most likely architecture: the first of the likeliest choices, the mean of an integer.
    pub fn mode(&self) -> Architecture {
        let mut mode = self.template.clone();
        for free in &self.free {
            mode.0[free.index] = free.family.mode(self.theta(free));
        }
        mode
    }

    /// How probable settled architectures of this space are: logarithms, up to a summand that all share, of choices'
    /// probabilities and the density at integers.
    pub fn log_probabilities<'a>(&self, settled: impl Iterator<Item = &'a [i64]>) -> Vec<f64> {
        let logs: Vec<f64> = self.state.theta.iter().map(|parameter| parameter.ln()).collect();
        let of_free = |free: &Free, values: &[i64]| {
            let logs = &logs[free.range.clone()];
            free.family.log_probability(self.theta(free), logs, values[free.index])
        };
        let of_all = |values| self.free.iter().map(|free| of_free(free, values)).sum();
        settled.map(of_all).collect()
    }

    /// How settled theta is, from 0 to 1: the mean over free variables of the largest probability,
    /// or of how far a deviation has come from its largest (0) to its smallest (1).
    pub fn convergence(&self) -> f64 {
        let certainty = |free: &Free| free.family.certainty(self.theta(free));
        self.free.iter().map(certainty).sum::<f64>() / self.free.len() as f64
    }

    /// How open theta is, from 1 to 0: the mean over free variables of a categorical's entropy, over the largest that it can
    /// have, or of an integer's deviation, over the largest that it can have.
    pub fn entropy(&self) -> f64 {
        let entropy = |free: &Free| free.family.entropy(self.theta(free));
        self.free.iter().map(entropy).sum::<f64>() / self.free.len() as f64
    }

    /// ‖s‖² / γ: steps lengthen while it is above alpha. 0 before the first update, never infinite.
    pub fn signal_to_noise(&self) -> f64 {
        let State { s, gamma, .. } = &self.state;
        if *gamma > 0.0 { (square_norm(s) / gamma).min(f64::MAX) } else { 0.0 }
    }

    /// The distribution of every variable, fixed ones included.
    pub fn marginals(&self) -> Vec<Marginal> {
        let fixed = |variable: &Variable| match *variable {
            Variable::Categorical { choices } => Marginal::Categorical(vec![1.0; choices]),
            Variable::Fixed { choices, choice } => {
                let mut probabilities = vec![0.0; choices];
                probabilities[choice] = 1.0;
                Marginal::Categorical(probabilities)
            }
            Variable::Integer { low, .. } => Marginal::Integer { mean: low as f64, deviation: 0.0 },
        };
        let mut marginals: Vec<Marginal> = self.variables.iter().map(fixed).collect();
        for free in &self.free {
            marginals[free.index] = free.family.marginal(self.theta(free));
        }
        marginals
    }
}

/// Delta at which beta = 1.
fn smallest_snr_factor(settings: Settings, n: usize) -> f64 {
    settings.delta_init / (n as f64).sqrt()
}

fn square_norm(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum()
}
