//! A one-shot search on NAS-Bench-201 as `cargo xtask bench oneshot` does it, in a few steps:
//! judged by the table, and taken as it is when it is whole.

use asng_tests::oneshot::{Arm, Bench, Drawn, Plan};

#[tokio::test]
async fn a_search_is_judged_by_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let settings = [("cells", "5"), ("channels", "4"), ("batch_size", "8")];
    let plan = Plan {
        steps: 6,
        warmup_steps: 3,
        delta_init: None,
        fixed_step: 0.1,
        settings: settings.map(|(name, value)| (name.into(), value.into())).into(),
        candidates: 4,
        random_cells: 4,
        test_images: 40,
    };
    let bench = Bench::start(directory.path(), plan.clone(), 1).unwrap();
    let searched = bench.run(Arm::Asng, 1).await.unwrap();
    let found = searched.result.clone().unwrap();
    assert!((5.0..92.0).contains(&found.cell.accuracies[0]), "{:?}", found.cell);
    assert!((1..=15_625).contains(&found.cell.ranks[0]));
    assert_eq!(found.random.len(), 4);
    let last = searched.curve.last().unwrap();
    assert_eq!((last.step, last.mode), (6, Some(found.mode.accuracies[0])));
    assert!(searched.curve.iter().all(|point| point.mode.is_some() == (point.step > 3)));
    let uniform = bench.run(Arm::Uniform, 1).await.unwrap().result.unwrap();
    assert_ne!(uniform.random, found.random, "other weights");
    let cells = |random: &[Drawn]| -> Vec<Vec<i64>> {
        random.iter().map(|drawn| drawn.architecture.clone()).collect()
    };
    assert_eq!(cells(&uniform.random), cells(&found.random), "the same cells");
    drop(bench);

    // A finished search is not repeated, and other searches need another directory.
    let bench = Bench::start(directory.path(), plan.clone(), 1).unwrap();
    assert_eq!(bench.run(Arm::Asng, 1).await.unwrap(), searched);
    drop(bench);
    let bench = Bench::start(directory.path(), Plan { steps: 7, ..plan }, 1).unwrap();
    let error = bench.run(Arm::Asng, 1).await.unwrap_err().to_string();
    assert!(error.contains("asng-1.json is of other searches"), "{error}");
}
