//! The paper's artificial problem: what is asked of the controller, and what the authors' own code takes.

use asng_proto::v1::{self, Algorithm};

/// Steps to success of the authors' code (github.com/shirakawas/ASNG-NAS, PyTorch 2.13), of 29 seeds, in order.
pub const AUTHORS: [u64; 29] = [
    1277, 2044, 2481, 2979, 3355, 3358, 5692, 6018, 7071, 7717, 8154, 8508, 8969, 9308, 9450, 9635,
    9844, 9936, 12218, 12507, 12567, 13387, 15923, 16212, 16917, 18452, 20678, 24398, 25304,
];

/// Mann and Whitney's test, one-sided at 1 %: of the standard normal distribution.
pub const CRITICAL: f64 = 2.326;

/// Steps after which a search has failed: the paper's.
pub const MAX_STEPS: u64 = 100_000;

/// A study with the paper's settings: 30 variables of 5 choices, and success at a cost of 1/5 without noise.
/// `delta_init` is the length of a step, of SNG for good and of ASNG at the start.
pub fn request(
    name: &str,
    seed: u64,
    algorithm: Algorithm,
    delta_init: f64,
) -> v1::CreateStudyRequest {
    let target = v1::Target { metric: "best_noiseless".into(), value: 1.0 / 5.0, at_least: false };
    v1::CreateStudyRequest {
        name: name.into(),
        spec: Some(v1::StudySpec {
            space: "toy".into(),
            settings: [("seed".into(), seed.to_string())].into(),
            algorithm: Some(v1::AlgorithmSettings {
                algorithm: algorithm.into(),
                delta_init: Some(delta_init),
                seed: Some(seed),
                // The paper's own sequential algorithm; further trainers go to further studies.
                max_staleness: Some(0),
                ..Default::default()
            }),
            stop: Some(v1::StopRules {
                max_steps: MAX_STEPS,
                target: Some(target),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// How many deviations the ranks of `ours` lie above what they would be if both came from one distribution (Mann and
/// Whitney, 1947, by the normal approximation).
pub fn mann_whitney(ours: &[u64], theirs: &[u64]) -> f64 {
    let above = |x: &u64| -> f64 {
        theirs.iter().map(|y| f64::from(u8::from(x > y)) + f64::from(u8::from(x == y)) / 2.0).sum()
    };
    let (n, m) = (ours.len() as f64, theirs.len() as f64);
    let u: f64 = ours.iter().map(above).sum();
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_tells_better_from_worse() {
        let worse = AUTHORS.map(|steps| 2 * steps);
        assert!(mann_whitney(&worse, &AUTHORS) > CRITICAL);
        assert!(mann_whitney(&AUTHORS, &worse) < -CRITICAL);
        assert_eq!(mann_whitney(&AUTHORS, &AUTHORS), 0.0);
    }
}
