//! The distribution of one free variable: a categorical over at least two choices, or the normal
//! distribution of an integer's draws. Knows its own part of theta and nothing of the rest, of
//! losses or of step lengths.
//!
//! An integer's part of theta is m and v, mean and variance, and its gradient is kept as
//! G1 = mean u (c - m) and H = mean u (c - m)^2. The paper's coordinates are m and m2 = m^2 + v,
//! whose gradient is G1 and G2 = H + 2 m G1. F and the steps are those of the paper's coordinates;
//! only m2 - m^2, which loses every digit of a small v beside a large m, is never computed.

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

use super::{Marginal, TOLERANCE, Value, Variable};

/// Smallest deviation of an integer; the authors' constant.
const MIN_DEVIATION: f64 = 0.25;

/// By how much the sum of probabilities that a person gives may be off.
const START_TOLERANCE: f64 = 1e-3;

/// The kind of one free variable's distribution, and what restricts its parameters.
#[derive(Clone, Debug)]
pub(super) enum Family {
    /// Theta: a probability for each choice. Gradient: the same.
    Categorical { choices: usize, floor: f64 },
    /// Theta: m, v. Gradient: G1, H.
    Integer { low: f64, high: f64 },
}

use Family::{Categorical, Integer};

impl Family {
    /// `categoricals` is the number of free ones in the space.
    pub(super) fn new(variable: Variable, categoricals: usize) -> Family {
        match variable {
            Variable::Categorical { choices } => {
                // The authors' 1 / (d (K - 1)) would exceed 1 / K for one or two variables.
                let floor = 1.0 / (categoricals.max(3) * (choices - 1)) as f64;
                Categorical { choices, floor }
            }
            Variable::Integer { low, high } => Integer { low: low as f64, high: high as f64 },
            Variable::Fixed { .. } => unreachable!("a fixed variable has no distribution"),
        }
    }

    /// Appends the parameters a study starts with.
    pub(super) fn start(&self, theta: &mut Vec<f64>) {
        match *self {
            Categorical { choices, .. } => {
                theta.extend(std::iter::repeat_n(1.0 / choices as f64, choices));
            }
            Integer { low, high } => {
                theta.extend([f64::midpoint(low, high), max_deviation(low, high).powi(2)]);
            }
        }
    }

    /// Takes over a distribution that a person gives, restricted to what this one may be, or says what is wrong with it.
    pub(super) fn start_at(&self, theta: &mut [f64], start: &Marginal) -> Result<(), String> {
        match (self, start) {
            (Categorical { choices, .. }, Marginal::Categorical(probabilities)) => {
                if probabilities.len() != *choices {
                    let count = probabilities.len();
                    return Err(format!("{count} probabilities for {choices} choices"));
                }
                let sum: f64 = probabilities.iter().sum();
                if !probabilities.iter().all(|p| (0.0..=1.0).contains(p))
                    || (sum - 1.0).abs() > START_TOLERANCE
                {
                    return Err(format!(
                        "probabilities lie between 0 and 1 and sum to 1, not {sum}"
                    ));
                }
                theta.copy_from_slice(probabilities);
                self.advance(theta, &vec![0.0; *choices], 0.0);
                Ok(())
            }
            (&Integer { low, high }, &Marginal::Integer { mean, deviation }) => {
                if !(low..=high).contains(&mean) || !(0.0..=f64::MAX).contains(&deviation) {
                    return Err(format!(
                        "mean {mean} is to lie within {low} and {high}, deviation {deviation} not below 0"
                    ));
                }
                theta[0] = mean;
                theta[1] = deviation.clamp(MIN_DEVIATION, max_deviation(low, high)).powi(2);
                Ok(())
            }
            _ => Err("a categorical and an integer have different distributions".to_owned()),
        }
    }

    /// Says what is wrong with parameters that come from elsewhere.
    pub(super) fn check(&self, theta: &[f64]) -> Result<(), String> {
        match *self {
            Categorical { floor, .. } => {
                let sum: f64 = theta.iter().sum();
                if (sum - 1.0).abs() > TOLERANCE || sum.is_nan() {
                    return Err(format!("the probabilities sum to {sum}"));
                }
                match theta.iter().find(|&&p| p < floor - TOLERANCE) {
                    Some(p) => Err(format!("probability {p} is below its floor {floor}")),
                    None => Ok(()),
                }
            }
            Integer { low, high } => {
                let [m, v] = [theta[0], theta[1]];
                if !(low..=high).contains(&m) {
                    return Err(format!("mean {m} is not between {low} and {high}"));
                }
                let (deviation, max) = (v.sqrt(), max_deviation(low, high));
                if !(MIN_DEVIATION..=max).contains(&deviation) {
                    let limits = format!("not between {MIN_DEVIATION} and {max}");
                    return Err(format!("deviation {deviation} is {limits}"));
                }
                Ok(())
            }
        }
    }

    /// Draws a value; an integer with a twin becomes its mirror image in the mean.
    pub(super) fn draw(&self, theta: &[f64], twin: Option<Value>, rng: &mut impl Rng) -> Value {
        match (self, twin) {
            (Categorical { .. }, _) => {
                let u: f64 = rng.random();
                let mut cumulative = 0.0;
                let inversion = theta.iter().position(|p| {
                    cumulative += p;
                    u < cumulative
                });
                // None: the sum was rounded to less than u.
                Value::Choice(inversion.unwrap_or(theta.len() - 1) as u32)
            }
            (Integer { .. }, Some(Value::Real(twin))) => Value::Real(2.0 * theta[0] - twin),
            (Integer { .. }, _) => {
                let z: f64 = rng.sample(StandardNormal);
                Value::Real(theta[0] + theta[1].sqrt() * z)
            }
        }
    }

    /// Adds `weight` (T(c) - theta) to the gradient, without the terms that are the same for every
    /// c: a step's utilities sum to 0 and cancel them, whatever theta the step was drawn from.
    pub(super) fn accumulate(&self, theta: &[f64], c: Value, weight: f64, gradient: &mut [f64]) {
        match c {
            Value::Choice(choice) => gradient[choice as usize] += weight,
            Value::Real(real) => {
                let distance = real - theta[0];
                gradient[0] += weight * distance;
                gradient[1] += weight * distance * distance;
            }
        }
    }

    /// Appends w = F^(1/2) G, one number for each free parameter.
    pub(super) fn whiten(&self, theta: &[f64], gradient: &[f64], w: &mut Vec<f64>) {
        match *self {
            Categorical { choices, .. } => {
                let last = theta[choices - 1];
                let (theta, gradient) = (&theta[..choices - 1], &gradient[..choices - 1]);
                let share = gradient.iter().sum::<f64>() / (last + last.sqrt());
                for (p, g) in theta.iter().zip(gradient) {
                    w.push(g / p.sqrt() + p.sqrt() * share);
                }
            }
            Integer { .. } => {
                let ([m, v], [g1, h]) = ([theta[0], theta[1]], [gradient[0], gradient[1]]);
                // F in (m, m2), with G2 = H + 2 m G1 put in.
                let q = 2.0_f64.sqrt() * v * v.sqrt();
                let k = (v * (1.0 + 4.0 * m * m + 2.0 * v) + 2.0 * q).sqrt();
                w.push(((2.0 * v * v + q) * g1 - 2.0 * m * v * h) / (k * q));
                w.push((2.0 * m * q * g1 + (v + q) * h) / (k * q));
            }
        }
    }

    /// Adds `step` G to theta and restricts the result.
    pub(super) fn advance(&self, theta: &mut [f64], gradient: &[f64], step: f64) {
        match *self {
            Categorical { choices, floor } => {
                for (p, g) in theta.iter_mut().zip(gradient) {
                    *p = (*p + step * g).max(floor);
                }
                let sum: f64 = theta.iter().sum();
                let excess = (sum - 1.0) / (sum - floor * choices as f64);
                for p in theta.iter_mut() {
                    *p -= excess * (*p - floor);
                }
                let sum: f64 = theta.iter().sum();
                for p in theta {
                    *p /= sum;
                }
            }
            Integer { low, high } => {
                let ([m, v], [g1, h]) = ([theta[0], theta[1]], [gradient[0], gradient[1]]);
                let unclipped = m + step * g1;
                let clipped = unclipped.clamp(low, high);
                // (m2 + step G2) - clipped^2, where m2 is not clipped.
                let v = v + step * h - (step * g1).powi(2)
                    + (unclipped - clipped) * (unclipped + clipped);
                theta[0] = clipped;
                theta[1] = v.clamp(MIN_DEVIATION.powi(2), max_deviation(low, high).powi(2));
            }
        }
    }

    /// The first among the likeliest choices, or the mean.
    pub(super) fn mode(&self, theta: &[f64]) -> Value {
        match self {
            Categorical { .. } => {
                let largest = largest(theta);
                let first = theta.iter().position(|&p| p == largest);
                Value::Choice(first.unwrap_or_default() as u32)
            }
            Integer { .. } => Value::Real(theta[0]),
        }
    }

    /// Logarithm of the probability of a choice, or of the density at a number but for what is the same at all numbers.
    /// `logs` are the logarithms of theta.
    pub(super) fn log_probability(&self, theta: &[f64], logs: &[f64], settled: i64) -> f64 {
        match self {
            Categorical { .. } => logs[settled as usize],
            Integer { .. } => -(settled as f64 - theta[0]).powi(2) / (2.0 * theta[1]),
        }
    }

    /// The largest probability, or how far the deviation has come from its largest (0) to its
    /// smallest (1).
    pub(super) fn certainty(&self, theta: &[f64]) -> f64 {
        match *self {
            Categorical { .. } => largest(theta),
            Integer { low, high } => {
                let range = max_deviation(low, high) - MIN_DEVIATION;
                1.0 - (theta[1].sqrt() - MIN_DEVIATION) / range
            }
        }
    }

    /// The entropy of the choices, or the deviation, over the largest that it can be.
    pub(super) fn entropy(&self, theta: &[f64]) -> f64 {
        match *self {
            Categorical { choices, .. } => {
                let nats: f64 = theta.iter().map(|p| -p * p.ln()).sum();
                nats / (choices as f64).ln()
            }
            Integer { low, high } => theta[1].sqrt() / max_deviation(low, high),
        }
    }

    /// The parameters as others see them.
    pub(super) fn marginal(&self, theta: &[f64]) -> Marginal {
        match self {
            Categorical { .. } => Marginal::Categorical(theta.to_vec()),
            Integer { .. } => Marginal::Integer { mean: theta[0], deviation: theta[1].sqrt() },
        }
    }
}

/// Largest deviation of an integer, which is also its first.
fn max_deviation(low: f64, high: f64) -> f64 {
    (high - low) / 2.0
}

fn largest(probabilities: &[f64]) -> f64 {
    probabilities.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn categorical(choices: usize) -> Family {
        Family::new(Variable::Categorical { choices }, 3)
    }

    fn integer(low: i64, high: i64) -> Family {
        Family::new(Variable::Integer { low, high }, 0)
    }

    fn square_norm_of_whitened(family: &Family, theta: &[f64], gradient: &[f64]) -> f64 {
        let mut w = Vec::new();
        family.whiten(theta, gradient, &mut w);
        w.iter().map(|x| x * x).sum()
    }

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} is not {expected}");
    }

    /// w.w = G^T F G, which for a categorical is the sum of G_j^2 / theta_j over all K choices.
    #[test]
    fn whitening_a_categorical_gives_the_fisher_norm() {
        let (theta, gradient) = ([0.2, 0.5, 0.1, 0.2], [0.1, -0.3, 0.25, -0.05]);
        let expected: f64 = theta.iter().zip(gradient).map(|(p, g)| g * g / p).sum();
        assert_close(square_norm_of_whitened(&categorical(4), &theta, &gradient), expected);
    }

    /// The same for a normal distribution, in its mean and variance: G1^2 / v + H^2 / (2 v^2).
    #[test]
    fn whitening_an_integer_gives_the_fisher_norm() {
        for (m, v) in [(0.0, 1.0), (160.0, 0.0625), (-1e5, 0.0625), (1e5, 1e10)] {
            let (g1, h) = (0.3, -0.7);
            let expected = g1 * g1 / v + h * h / (2.0 * v * v);
            let found = square_norm_of_whitened(&integer(-100_000, 100_000), &[m, v], &[g1, h]);
            assert_close(found, expected);
        }
    }

    /// The formula of w as it stands in the paper's coordinates, for a mean that keeps its digits.
    #[test]
    fn whitening_an_integer_agrees_with_the_second_moment_form() {
        let (m, v, g1, h) = (2.5_f64, 0.64_f64, 0.3, -0.7);
        let (sd, g2) = (v.sqrt(), h + 2.0 * m * g1);
        let q = 2.0_f64.sqrt() * sd.powi(3);
        let k = (v * (1.0 + 4.0 * m * m + 2.0 * v) + 2.0 * q).sqrt();
        let mut w = Vec::new();
        integer(1, 9).whiten(&[m, v], &[g1, h], &mut w);
        assert_close(w[0], ((v * (4.0 * m * m + 2.0 * v) + q) * g1 - 2.0 * m * v * g2) / (k * q));
        assert_close(w[1], (-2.0 * m * v * g1 + (v + q) * g2) / (k * q));
    }

    #[test]
    fn a_probability_stops_at_its_floor() {
        let mut theta = [0.25; 4];
        categorical(4).advance(&mut theta, &[1.0, 0.0, 0.0, -1.0], 10.0);
        assert_close(theta[3], 1.0 / 9.0);
        assert_close(theta.iter().sum(), 1.0);
        assert!(theta[0] > 0.6 && theta[1] == theta[2]);
    }

    /// Clipping the mean first leaves the distance that was cut off in the variance.
    #[test]
    fn the_variance_is_what_the_second_moment_leaves_beside_the_clipped_mean() {
        let mut theta = [8.0, 4.0];
        integer(0, 10).advance(&mut theta, &[3.0, 1.0], 1.0);
        let second_moment: f64 = 8.0 * 8.0 + 4.0 + (1.0 + 2.0 * 8.0 * 3.0);
        assert_eq!(theta, [10.0, second_moment - 100.0]);
    }

    #[test]
    fn a_small_variance_survives_beside_a_large_mean() {
        let mut theta = [99_999.0, 0.07];
        integer(-100_000, 100_000).advance(&mut theta, &[1e-7, 1e-12], 1.0);
        assert_close(theta[1], 0.07 + 1e-12 - 1e-14);
    }

    #[test]
    fn a_start_is_restricted_or_refused() {
        let mut theta = [0.0; 4];
        let certain = Marginal::Categorical(vec![1.0, 0.0, 0.0, 0.0]);
        categorical(4).start_at(&mut theta, &certain).unwrap();
        categorical(4).check(&theta).unwrap();
        assert_close(theta[0], 2.0 / 3.0);
        let mut theta = [0.0; 2];
        integer(0, 10)
            .start_at(&mut theta, &Marginal::Integer { mean: 3.0, deviation: 0.0 })
            .unwrap();
        assert_eq!(theta, [3.0, 0.0625]);
        for refused in [
            Marginal::Categorical(vec![0.5, 0.5]),
            Marginal::Categorical(vec![0.5, 0.5, 0.5, 0.5]),
            Marginal::Categorical(vec![f64::NAN; 4]),
            Marginal::Integer { mean: 1.0, deviation: 1.0 },
        ] {
            assert!(categorical(4).start_at(&mut [0.0; 4], &refused).is_err(), "{refused:?}");
        }
        for (mean, deviation) in [(-1.0, 1.0), (f64::NAN, 1.0), (1.0, -1.0), (1.0, f64::INFINITY)] {
            let refused = Marginal::Integer { mean, deviation };
            assert!(integer(0, 10).start_at(&mut [0.0; 2], &refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn the_mode_is_the_first_of_the_likeliest() {
        assert_eq!(categorical(3).mode(&[0.2, 0.4, 0.4]), Value::Choice(1));
        assert_eq!(integer(1, 4).mode(&[2.5, 1.0]), Value::Real(2.5));
    }

    #[test]
    fn entropy_is_a_share_of_the_largest() {
        assert_close(categorical(4).entropy(&[0.25; 4]), 1.0);
        assert_close(categorical(3).entropy(&[0.5, 0.25, 0.25]), 1.5 / 3_f64.log2());
        assert_eq!(integer(0, 10).entropy(&[5.0, 25.0]), 1.0);
        assert_eq!(integer(0, 10).entropy(&[7.0, 0.0625]), 0.05);
    }

    #[test]
    fn an_integer_is_certain_at_its_smallest_deviation() {
        assert_eq!(integer(0, 10).certainty(&[5.0, 25.0]), 0.0);
        assert_eq!(integer(0, 10).certainty(&[5.0, 0.0625]), 1.0);
    }
}
