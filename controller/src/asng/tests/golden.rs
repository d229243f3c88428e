//! Replays of traces that came from elsewhere; testdata/README.md says from where.

use super::*;

#[derive(Deserialize)]
struct Trace {
    categories: Vec<usize>,
    #[serde(default)]
    integers: Vec<(i64, i64)>,
    updates: Vec<TracedUpdate>,
}

#[derive(Deserialize)]
struct TracedUpdate {
    #[serde(alias = "architectures")]
    categorical: Vec<Vec<u32>>,
    #[serde(default)]
    integer: Vec<Vec<f64>>,
    losses: Vec<f64>,
    after: Option<After>,
}

/// The state, which a trace holds after some of its updates.
#[derive(Deserialize)]
struct After {
    theta: Vec<Vec<f64>>,
    #[serde(default)]
    mean: Vec<f64>,
    #[serde(default)]
    second_moment: Vec<f64>,
    s: Vec<f64>,
    gamma: f64,
    #[serde(rename = "Delta")]
    snr_factor: f64,
}

/// Returns how many updates had a gradient of 0.
fn replay(json: &str, tolerance: f64) -> usize {
    let trace: Trace = serde_json::from_str(json).unwrap();
    let mut variables: Vec<_> = trace.categories.iter().map(|&k| categorical(k)).collect();
    variables.extend(trace.integers.iter().map(|&(low, high)| integer(low, high)));
    let mut asng = asng(&variables);
    let (mut decayed, mut checked) = (0, 0);
    for (i, update) in trace.updates.iter().enumerate() {
        let mut drawn: Vec<_> = update.categorical.iter().map(|row| choices(row)).collect();
        for (architecture, reals) in drawn.iter_mut().zip(&update.integer) {
            let reals = reals.iter().map(|&real| Value::Real(real));
            architecture.0 = architecture.0.iter().copied().chain(reals).collect();
        }
        let effect = tell(&mut asng, &drawn, &update.losses).effect;
        decayed += usize::from(effect == Effect::Decayed);
        if let Some(after) = &update.after {
            compare(asng.state(), after, tolerance, i);
            checked += 1;
        }
    }
    assert!(checked >= 4, "only {checked} states compared");
    decayed
}

fn compare(state: &State, after: &After, tolerance: f64, update: usize) {
    let free_rows: Vec<_> = after.theta.iter().filter(|row| row.len() > 1).collect();
    let rows: Vec<f64> = free_rows.iter().copied().flatten().copied().collect();
    let (probabilities, moments) = state.theta.split_at(rows.len());
    let (moments, _) = moments.as_chunks();
    let means: Vec<f64> = moments.iter().map(|&[m, _]| m).collect();
    let second_moments: Vec<f64> = moments.iter().map(|&[m, v]| m * m + v).collect();
    // The traces hold the first components of all integers, then the second ones.
    let (categoricals, integers) = state.s.split_at(rows.len() - free_rows.len());
    let (first, second) = (integers.iter().step_by(2), integers.iter().skip(1).step_by(2));
    let s: Vec<f64> = categoricals.iter().chain(first).chain(second).copied().collect();

    for (what, found, expected) in [
        ("theta", probabilities, &rows[..]),
        ("mean", &means, &after.mean),
        ("second moment", &second_moments, &after.second_moment),
        ("s", &s, &after.s),
        ("gamma", &[state.gamma], &[after.gamma]),
        ("Delta", &[state.snr_factor], &[after.snr_factor]),
    ] {
        assert_eq!(found.len(), expected.len(), "{what} after update {update}");
        for (x, y) in found.iter().zip(expected) {
            // Relative, or absolute where the expected number is small.
            let allowed = tolerance * if y.abs() < 1e-3 { 1.0 } else { y.abs() };
            assert!((x - y).abs() <= allowed, "{what} after update {update}: {x} is not {y}");
        }
    }
}

#[test]
fn categorical_enas_lambda2() {
    replay(include_str!("../testdata/categorical_enas_lambda2.json"), 1e-12);
}

#[test]
fn categorical_toy_lambda6() {
    replay(include_str!("../testdata/categorical_toy_lambda6.json"), 1e-12);
}

/// In 14 of its updates the best and the worst architecture are the same.
#[test]
fn categorical_ragged_lambda4() {
    let decayed = replay(include_str!("../testdata/categorical_ragged_lambda4.json"), 1e-12);
    assert_eq!(decayed, 14);
}

#[test]
fn mixed_lambda2() {
    replay(include_str!("../testdata/mixed_lambda2.json"), 1e-9);
}

#[test]
fn mixed_lambda6() {
    replay(include_str!("../testdata/mixed_lambda6.json"), 1e-9);
}
