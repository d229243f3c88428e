//! Properties that hold in any space, for any settings and any losses.

use proptest::{collection::vec, prelude::*};

use super::{super::space::INTEGER_LIMIT, *};

fn any_variable() -> impl Strategy<Value = Variable> {
    let bound = prop_oneof![Just(-INTEGER_LIMIT), Just(INTEGER_LIMIT), -300..300_i64];
    let last_few = INTEGER_LIMIT - 3..INTEGER_LIMIT;
    prop_oneof![
        (1..=50_usize).prop_map(categorical),
        Just(categorical(2)),
        (bound.clone(), bound).prop_map(|(a, b)| integer(a.min(b), a.max(b))),
        last_few.prop_map(|low| integer(low, INTEGER_LIMIT)),
        (1..9_usize, 0..9_usize)
            .prop_map(|(choices, choice)| Variable::Fixed { choices, choice: choice % choices }),
    ]
}

fn any_space() -> impl Strategy<Value = Vec<Variable>> {
    prop_oneof![
        8 => vec(any_variable(), 1..8),
        1 => Just(vec![categorical(2); 2]),
    ]
    .prop_filter("nothing is free", |space| space.iter().any(|v| v.parameters() > 0))
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let algorithm = prop_oneof![
        4 => Just(Algorithm::Asng),
        1 => Just(Algorithm::Sng),
        1 => Just(Algorithm::Random),
    ];
    let positive = || prop_oneof![Just(1.5), Just(1e-6), Just(1e6), 0.01..100.0];
    (algorithm, positive(), positive(), any::<bool>()).prop_map(
        |(algorithm, alpha, delta_init, bounded)| {
            let delta_max = if bounded { f64::max(delta_init, 1.0) } else { f64::INFINITY };
            Settings { algorithm, alpha, delta_init, delta_max }
        },
    )
}

/// The losses of a few steps: any bits, or a few small numbers that often tie.
fn any_batch() -> impl Strategy<Value = Vec<Vec<f64>>> {
    let loss = prop_oneof![
        any::<f64>(),
        any::<u64>().prop_map(f64::from_bits),
        (-3..3).prop_map(f64::from)
    ];
    (2..=16_usize, 1..=4_usize)
        .prop_flat_map(move |(lambda, steps)| vec(vec(loss.clone(), lambda), steps))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn invariants_hold_for_any_losses(
        space in any_space(),
        settings in any_settings(),
        batches in vec(any_batch(), 1..30),
        seed: u64,
    ) {
        let mut asng = Asng::new(&space, settings).unwrap();
        let mut rng = rng(seed);
        for losses in &batches {
            let drawn: Vec<_> = losses.iter().map(|l| asng.ask(l.len(), &mut rng)).collect();
            let steps: Vec<_> = drawn.iter().zip(losses)
                .map(|(architectures, losses)| ranked(architectures, losses))
                .collect();
            asng.tell(&steps).unwrap();

            // Finite numbers, sums, floors, means and deviations within their limits.
            prop_assert_eq!(asng.check_state(asng.state()), Ok(()));
            prop_assert!((0.0..=1.0).contains(&asng.convergence()));
            for (&variable, value) in space.iter().zip(asng.mode().settled(&space)) {
                let (low, high) = match variable {
                    Variable::Categorical { choices } => (0, choices as i64 - 1),
                    Variable::Integer { low, high } => (low, high),
                    Variable::Fixed { choice, .. } => (choice as i64, choice as i64),
                };
                prop_assert!((low..=high).contains(&value));
            }
        }
        let state = State::from_bytes(&asng.state().to_bytes()).unwrap();
        prop_assert_eq!(&state, asng.state());
        prop_assert!(Asng::from_state(&space, settings, state).is_ok());
    }

    #[test]
    fn bytes_from_anywhere_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(state) = State::from_bytes(&bytes) {
            let _ = Asng::from_state(&TOY, Settings::default(), state);
        }
    }
}
