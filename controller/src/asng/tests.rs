//! The optimiser as a whole: draws, updates, exact resume, what it refuses, and that it finds.

mod golden;
mod properties;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;

const TOY: [Variable; 10] = [categorical(5); 10];

const MIXED: [Variable; 6] = [
    categorical(3),
    integer(7, 7),
    categorical(1),
    integer(64, 256),
    categorical(2),
    integer(-3, 3),
];

const fn categorical(choices: usize) -> Variable {
    Variable::Categorical { choices }
}

const fn integer(low: i64, high: i64) -> Variable {
    Variable::Integer { low, high }
}

fn asng(variables: &[Variable]) -> Asng {
    Asng::new(variables, Settings::default()).unwrap()
}

fn with_algorithm(variables: &[Variable], algorithm: Algorithm) -> Asng {
    let settings = Settings { algorithm, ..Settings::default() };
    Asng::new(variables, settings).unwrap()
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn choices(row: &[u32]) -> Architecture {
    Architecture(row.iter().copied().map(Value::Choice).collect())
}

fn ranked<'a>(architectures: &'a [Architecture], losses: &'a [f64]) -> Ranked<'a> {
    Ranked { architectures, losses }
}

fn tell(asng: &mut Asng, architectures: &[Architecture], losses: &[f64]) -> Update {
    asng.tell(&[ranked(architectures, losses)]).unwrap()
}

/// Tells `updates` steps of `lambda` whose losses come from `loss`.
fn search(asng: &mut Asng, lambda: usize, updates: u64, loss: impl Fn(&[i64]) -> f64) {
    for seed in 0..updates {
        let architectures = asng.ask(lambda, &mut rng(seed));
        let settled = architectures.iter().map(|a| a.settled(asng.variables()));
        let losses: Vec<f64> = settled.map(|a| loss(&a)).collect();
        tell(asng, &architectures, &losses);
    }
}

/// Prefers one corner of any space.
fn slope(settled: &[i64]) -> f64 {
    let weighted = settled.iter().enumerate().map(|(i, &x)| x as f64 / (i + 1) as f64);
    weighted.sum()
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let run = || {
        let mut asng = asng(&MIXED);
        search(&mut asng, 4, 200, slope);
        (asng.state().to_bytes(), asng.ask(5, &mut rng(7)))
    };
    assert_eq!(run(), run());
}

#[test]
fn a_resumed_search_continues_bit_for_bit() {
    let mut straight = asng(&MIXED);
    search(&mut straight, 3, 50, slope);
    let state = State::from_bytes(&straight.state().to_bytes()).unwrap();
    let mut resumed = Asng::from_state(&MIXED, Settings::default(), state).unwrap();
    search(&mut straight, 3, 100, slope);
    search(&mut resumed, 3, 100, slope);
    assert_eq!(straight.state().to_bytes(), resumed.state().to_bytes());
}

#[test]
fn integers_come_in_antithetic_pairs() {
    let asng = asng(&MIXED);
    let drawn = asng.ask(5, &mut rng(1));
    let real = |i: usize| match drawn[i].0[3] {
        Value::Real(real) => real - 160.0,
        Value::Choice(_) => panic!("variable 3 is an integer"),
    };
    assert!((real(0) + real(1)).abs() < 1e-9 && (real(2) + real(3)).abs() < 1e-9);
    assert!(real(0) != real(2) && real(2) != real(4));
    assert_eq!(asng.ask(4, &mut rng(1)), drawn[..4]);
}

#[test]
fn draws_follow_the_distribution() {
    let mut asng = asng(&[categorical(3), MIXED[3]]);
    asng.state.theta = vec![0.5, 0.2, 0.3, 100.0, 16.0];
    let drawn = asng.ask(20_000, &mut rng(3));
    let (mut counts, mut sum_of_squares) = ([0.0; 3], 0.0);
    for architecture in &drawn {
        match architecture.0[..] {
            [Value::Choice(choice), Value::Real(real)] => {
                counts[choice as usize] += 1.0 / 20_000.0;
                sum_of_squares += (real - 100.0_f64).powi(2) / 20_000.0;
            }
            _ => panic!("{architecture:?}"),
        }
    }
    for (count, p) in counts.iter().zip([0.5_f64, 0.2, 0.3]) {
        assert!((count - p).abs() < 0.02, "{counts:?}");
    }
    assert!((sum_of_squares - 16.0).abs() < 1.0, "{sum_of_squares}");
}

#[test]
fn fixed_variables_are_carried_along() {
    let asng = asng(&MIXED);
    for architecture in asng.ask(4, &mut rng(0)).iter().chain([&asng.mode()]) {
        assert_eq!(architecture.settled(&MIXED)[1..3], [7, 0]);
    }
    let expected = [
        Marginal::Categorical(vec![1.0 / 3.0; 3]),
        Marginal::Integer { mean: 7.0, deviation: 0.0 },
        Marginal::Categorical(vec![1.0]),
        Marginal::Integer { mean: 160.0, deviation: 96.0 },
        Marginal::Categorical(vec![0.5; 2]),
        Marginal::Integer { mean: 0.0, deviation: 3.0 },
    ];
    assert_eq!(asng.marginals(), expected);
    assert_eq!(asng.convergence(), (1.0 / 3.0 + 0.0 + 0.5 + 0.0) / 4.0);
    assert!((asng.entropy() - 1.0).abs() < 1e-12, "{}", asng.entropy());
    assert_eq!(asng.signal_to_noise(), 0.0);
}

#[test]
fn a_draw_settles_within_its_variable() {
    let variables = [MIXED[3]; 4];
    let drawn = Architecture([63.2, 1e6, 100.5, 99.49].map(Value::Real).into());
    assert_eq!(drawn.settled(&variables), [64, 256, 101, 99]);
}

#[test]
fn json_keeps_choices_and_reals_apart() {
    let architecture = Architecture([Value::Choice(3), Value::Real(3.0), Value::Real(-0.1)].into());
    let json = serde_json::to_string(&architecture).unwrap();
    assert_eq!(json, "[3,3.0,-0.1]");
    let read: Architecture = serde_json::from_str(&json).unwrap();
    assert_eq!(read, architecture);
}

mod one_update {
    use super::*;

    #[test]
    fn nothing_changes_when_all_losses_tie() {
        let mut asng = asng(&TOY);
        let before = asng.state().clone();
        let architectures = asng.ask(2, &mut rng(0));
        for losses in [[1.5, 1.5], [-2.0, -2.0], [f64::NAN, f64::INFINITY]] {
            let update = tell(&mut asng, &architectures, &losses);
            assert_eq!(update.effect, Effect::Unchanged);
            assert_eq!(asng.state(), &before);
        }
    }

    #[test]
    fn theta_stays_and_s_decays_when_best_and_worst_are_the_same_architecture() {
        let mut asng = asng(&TOY);
        search(&mut asng, 2, 10, slope);
        let before = asng.state().clone();
        let beta = asng.delta() / 40.0_f64.sqrt();
        let twice = vec![choices(&[1; 10]); 2];
        assert_eq!(tell(&mut asng, &twice, &[1.0, 2.0]).effect, Effect::Decayed);
        let after = asng.state();
        assert_eq!(after.theta, before.theta);
        for (after, before) in after.s.iter().zip(&before.s) {
            assert_eq!(*after, (1.0 - beta) * before);
        }
        assert!(after.gamma > before.gamma && after.snr_factor != before.snr_factor);
    }

    #[test]
    fn diverged_losses_are_counted_and_come_last() {
        let mut asng = asng(&[categorical(2)]);
        let architectures = [choices(&[0]), choices(&[1])];
        let update = tell(&mut asng, &architectures, &[f64::NEG_INFINITY, 1e300]);
        assert_eq!((update.effect, update.diverged), (Effect::Moved, 1));
        assert_eq!(asng.mode(), choices(&[1]));
    }

    #[test]
    fn the_step_has_the_length_delta_in_the_fisher_norm() {
        let mut asng = asng(&TOY);
        let before = asng.state().theta.clone();
        let architectures = [choices(&[0; 10]), choices(&[1; 10])];
        tell(&mut asng, &architectures, &[0.0, 1.0]);
        let pairs = asng.state().theta.iter().zip(&before);
        let square_length: f64 = pairs.map(|(a, b)| (a - b).powi(2) / b).sum();
        assert!((square_length - 1.0).abs() < 1e-8, "{square_length}");
    }

    #[test]
    fn a_gathered_gradient_is_the_mean_over_steps_ranked_apart() {
        let asng = asng(&MIXED);
        let [a, b] = [1, 2].map(|seed| asng.ask(4, &mut rng(seed)));
        let steps = [ranked(&a, &[1.0, 2.0, 3.0, 4.0]), ranked(&b, &[104.0, 103.0, 102.0, 101.0])];
        let [first, second] = steps.map(|step| asng.gradient(&[step]).unwrap());
        let both = asng.gradient(&steps).unwrap();
        for ((both, first), second) in both.iter().zip(first).zip(second) {
            let mean = f64::midpoint(first, second);
            assert!((both - mean).abs() <= 1e-9, "{both} is not {mean}");
        }
    }

    #[test]
    fn a_step_that_ties_waters_down_the_gradient_of_its_batch() {
        let asng = asng(&TOY);
        let drawn = asng.ask(2, &mut rng(0));
        let (good, tied) = (ranked(&drawn, &[1.0, 2.0]), ranked(&drawn, &[5.0, 5.0]));
        let alone = asng.gradient(&[good]).unwrap();
        let halved: Vec<f64> = alone.iter().map(|g| g / 2.0).collect();
        assert_eq!(asng.gradient(&[good, tied]), Some(halved));
        assert_eq!(asng.gradient(&[tied, tied]), None);
    }

    /// The authors' tie test is relative to the loss, so that no negative losses ever tie.
    #[test]
    fn only_the_order_of_losses_counts_whatever_their_sign() {
        let drawn = asng(&TOY).ask(4, &mut rng(0));
        let after = |losses: [f64; 4]| {
            let mut asng = asng(&TOY);
            tell(&mut asng, &drawn, &losses);
            asng.state().clone()
        };
        assert_eq!(after([1.0, 2.0, 2.0, 4.0]), after([-4.0, -3.0, -3.0, -1.0]));
        assert_eq!(after([1.0, 1.0, 3.0, 4.0]), after([-4.0, -4.0, -3.0, -1.0]));
        assert_ne!(after([1.0, 2.0, 3.0, 4.0]), after([-4.0, -4.0, -3.0, -1.0]));
    }
}

mod refused {
    use super::*;

    #[test]
    fn spaces() {
        let new = |variables: &[Variable]| Asng::new(variables, Settings::default()).unwrap_err();
        assert_eq!(new(&[]), Error::NoFreeVariable);
        assert_eq!(new(&MIXED[1..3]), Error::NoFreeVariable);
        assert_eq!(new(&[categorical(usize::MAX); 2]), Error::TooManyParameters(usize::MAX));
        for (variable, reason) in [
            (categorical(0), "needs at least one choice"),
            (integer(2, 1), "has low above high"),
            (integer(0, 100_001), "has a bound outside -100000..=100000"),
            (integer(i64::MIN, i64::MAX), "has a bound outside -100000..=100000"),
        ] {
            assert_eq!(new(&[MIXED[0], variable]), Error::Variable { index: 1, reason });
        }
    }

    #[test]
    fn settings() {
        let refused = |settings: Settings| settings.check().unwrap_err().field;
        let default = Settings::default();
        for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(refused(Settings { alpha, ..default }), "alpha");
        }
        for delta_init in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let settings = Settings { delta_init, ..default };
            assert_eq!(refused(settings), "delta_init");
        }
        for delta_max in [0.99, f64::NAN, f64::NEG_INFINITY] {
            let settings = Settings { delta_max, ..default };
            assert_eq!(refused(settings), "delta_max");
        }
        let below = Settings { delta_init: 3.0, delta_max: 2.0, ..default };
        assert_eq!(
            Asng::new(&TOY, below).unwrap_err().to_string(),
            "delta_max is 2, it must be at least 1 and at least delta_init"
        );
    }

    #[test]
    fn batches_and_nothing_changes() {
        let mut asng = asng(&MIXED);
        let before = asng.state().clone();
        assert_eq!(asng.tell(&[]), Err(Error::NoSteps));

        let good = asng.ask(2, &mut rng(0));
        let mut refuse = |architectures: &[Architecture], losses: &[f64], expected: &str| {
            let batch = [ranked(&good, &[1.0, 2.0]), ranked(architectures, losses)];
            let error = asng.tell(&batch).unwrap_err();
            assert_eq!(error.to_string(), format!("step 1 of the batch {expected}"));
        };
        refuse(&good[..1], &[1.0], "ranks 1 architectures, at least 2 are needed");
        refuse(&good, &[1.0], "has 1 losses for 2 architectures");
        let does_not_fit = "ranks architecture 1, which does not fit the variables";
        for (variable, value) in [
            (0, Value::Choice(3)),
            (0, Value::Real(0.0)),
            (2, Value::Choice(1)),
            (3, Value::Choice(64)),
            (3, Value::Real(f64::NAN)),
            (3, Value::Real(1e200)),
        ] {
            let mut bad = good.clone();
            bad[1].0[variable] = value;
            refuse(&bad, &[1.0, 2.0], does_not_fit);
        }
        refuse(&[good[0].clone(), choices(&[0])], &[1.0, 2.0], does_not_fit);
        assert_eq!(asng.state(), &before);
    }

    #[test]
    fn states() {
        let mut good = asng(&MIXED);
        search(&mut good, 2, 20, slope);
        let refuse = |damage: &dyn Fn(&mut State), expected: &str| {
            let mut state = good.state().clone();
            damage(&mut state);
            let error = Asng::from_state(&MIXED, Settings::default(), state).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        refuse(&|s| s.theta.truncate(3), "theta has 3 numbers, not 9");
        refuse(&|s| s.theta[0] += 0.1, "variable 0: the probabilities sum to");
        refuse(&|s| s.theta[1] = f64::NAN, "variable 0: the probabilities sum to NaN");
        refuse(
            &|s| s.theta[..3].copy_from_slice(&[1.2, -0.1, -0.1]),
            "variable 0: probability -0.1 is below its floor",
        );
        refuse(&|s| s.theta[3] = 257.0, "variable 3: mean 257 is not between 64 and 256");
        refuse(&|s| s.theta[4] = -1.0, "variable 3: deviation NaN is not between");
        refuse(&|s| s.theta[4] = f64::INFINITY, "variable 3: deviation inf is not between");
        refuse(&|s| s.s.push(0.0), "s has 8 numbers, not 7");
        refuse(&|s| s.s[2] = f64::NAN, "s has a number that is not finite");
        refuse(&|s| s.gamma = 1.1, "gamma is 1.1");
        refuse(&|s| s.snr_factor = 0.0, "Delta is 0");
        refuse(&|s| s.snr_factor = f64::INFINITY, "Delta is inf");
    }
}

mod algorithms {
    use super::*;

    #[test]
    fn asng_finds_the_target_of_a_categorical_toy() {
        let mut asng = asng(&TOY);
        let target = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0];
        let mismatches = |x: &[i64]| x.iter().zip(target).filter(|(x, t)| *x != t).count() as f64;
        search(&mut asng, 2, 2000, mismatches);
        assert_eq!(asng.mode().settled(&TOY), target);
        assert!(asng.convergence() > 0.8, "{}", asng.convergence());
        assert!(asng.entropy() < 0.5, "{}", asng.entropy());
    }

    #[test]
    fn asng_finds_the_target_of_an_integer_toy() {
        let integers = [(1, 3), (64, 256), (-100, 100), (0, 1)];
        let variables = integers.map(|(low, high)| integer(low, high));
        let target = [3, 100, -37, 0];
        let distance = |x: &[i64]| {
            let relative = |((x, t), (low, high))| ((x - t) as f64 / (high - low) as f64).powi(2);
            x.iter().zip(target).zip(integers).map(relative).sum()
        };
        let mut asng = asng(&variables);
        search(&mut asng, 4, 4000, distance);
        let mode = asng.mode().settled(&variables);
        assert!(distance(&mode) < 1e-4, "{mode:?}");
        assert!(asng.convergence() > 0.9, "{}", asng.convergence());
    }

    #[test]
    fn sng_moves_theta_by_steps_of_one_length() {
        let mut sng = with_algorithm(&TOY, Algorithm::Sng);
        let start = sng.state().theta.clone();
        search(&mut sng, 2, 100, slope);
        assert_eq!(sng.delta(), 1.0);
        assert_ne!(sng.state().theta, start);
    }

    #[test]
    fn random_search_never_moves() {
        let mut random = with_algorithm(&MIXED, Algorithm::Random);
        let start = random.state().clone();
        search(&mut random, 2, 100, slope);
        assert_eq!(random.state(), &start);
        let drawn = random.ask(2, &mut rng(0));
        let update = tell(&mut random, &drawn, &[f64::NAN, 1.0]);
        assert_eq!((update.effect, update.diverged), (Effect::Unchanged, 1));
    }

    #[test]
    fn delta_stays_within_its_bounds() {
        let settings = Settings { delta_init: 100.0, delta_max: 100.0, ..Settings::default() };
        let mut asng = Asng::new(&TOY, settings).unwrap();
        assert_eq!(asng.delta(), 40.0_f64.sqrt()); // beta = 1
        search(&mut asng, 2, 100, slope);
        let noisy = Settings { alpha: 1e6, delta_max: 1.25, ..Settings::default() };
        let mut asng = Asng::new(&TOY, noisy).unwrap();
        search(&mut asng, 2, 100, slope);
        assert_eq!(asng.state().snr_factor, 1.25);
    }
}
