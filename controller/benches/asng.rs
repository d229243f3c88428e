//! How fast the optimiser is alone: a step of the paper's search space, drawn and learned from.

use asng_controller::asng::{Asng, Ranked, Settings, Variable};
use criterion::{Criterion, criterion_group, criterion_main};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn step(criterion: &mut Criterion) {
    let variables = [Variable::Categorical { choices: 5 }; 40];
    let mut asng = Asng::new(&variables, Settings::default()).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    criterion.bench_function("ask 2 + 2, tell 2 (40 variables of 5 choices)", |bencher| {
        bencher.iter(|| {
            let _train = asng.ask(2, &mut random);
            let rank = asng.ask(2, &mut random);
            asng.tell(&[Ranked { architectures: &rank, losses: &[0.0, 1.0] }]).unwrap()
        });
    });
}

criterion_group!(benches, step);
criterion_main!(benches);
