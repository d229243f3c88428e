//! From a folder of photos to an exported network, as the trainer does it: a search of the engine, a retraining, its evaluation
//! and its export, in a space of autoencoders and in one of classifiers.

use std::{fs, path::Path, sync::Arc};

use asng_trainer::{
    engine::{Config, Engine, Error, Step},
    evaluate, export,
    images::Catalogue,
    retrain,
    tasks::{Domain, Task, Variable, space::Space},
    torch::Precision,
};
use clap::{Args, FromArgMatches};
use image::{Rgb, RgbImage};
use tch::Device;

/// A space, the settings of its study and those of a retraining.
type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const AUTOENCODERS: Case = (
    "inpaint-int",
    &[
        ("nodes", "3"),
        ("level_back", "2"),
        ("channels", "4"),
        ("mask", "center"),
        // With it the weights learn within tens of steps.
        ("batch_norm", "true"),
        ("batch_size", "4"),
        ("learning_rate", "0.05"),
        ("image_size", "16"),
    ],
    "--iterations 60 --evaluate-every 30 --batch-size 8 --learning-rate 0.01",
);
const CLASSIFIERS: Case = (
    "enas-micro",
    &[
        ("preset", "quick"),
        ("channels", "4"),
        ("batch_size", "8"),
        ("learning_rate", "0.1"),
        ("dataset", "photos"),
        ("image_size", "16"),
    ],
    "--preset quick --cells 3 --channels 4 --epochs 6 --batch-size 8",
);

/// Writes photos of coloured gradients, the brighter ones in a folder of their own.
fn write_photos(directory: &Path) {
    for i in 0..40_u32 {
        let class = i % 2;
        let folder = directory.join(["dark", "light"][class as usize]);
        fs::create_dir_all(&folder).unwrap();
        let shade = |x: u32, speed: u32| (90 * class + 10 * (i % 5) + speed * x) as u8;
        let photo = RgbImage::from_fn(20, 26, |x, y| Rgb([shade(x, 4), shade(y, 3), shade(x, 2)]));
        photo.save(folder.join(format!("{i:06}.jpg"))).unwrap();
    }
}

/// The photos in `directory`, and where they are decoded to.
fn catalogue(directory: &Path) -> Catalogue {
    let photos = directory.join("photos");
    write_photos(&photos);
    Catalogue::new(&[("photos".into(), photos)], &directory.join("cache")).unwrap()
}

fn task((name, settings, _): Case) -> Box<dyn Task> {
    let settings = settings.iter().map(|(name, text)| (name.to_string(), text.to_string()));
    let settings = settings.collect();
    Space { name: name.into(), settings, ..Space::default() }.task().unwrap()
}

/// The smallest value of each variable, plus a number where there is room.
fn architecture(task: &dyn Task, number: i64) -> Vec<i64> {
    let value = |variable: &Variable| match &variable.domain {
        Domain::Categorical(choices) => number % choices.len() as i64,
        Domain::Integer { low, high } => low + number % (high - low + 1),
    };
    task.variables().iter().map(value).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn start(catalogue: &Arc<Catalogue>) -> Engine {
    let (catalogue, device, precision) = (catalogue.clone(), Device::Cpu, Precision::F32);
    // More threads cost more than they gain on shapes this small.
    let threads = Some(1);
    Engine::start(Config { catalogue, device, threads, precision, measure_latency: false }).unwrap()
}

#[tokio::test]
async fn a_search_learns_is_saved_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let catalogue = Arc::new(catalogue(directory.path()));
    for case in [AUTOENCODERS, CLASSIFIERS] {
        let study = directory.path().join(case.0);
        let engine = start(&catalogue);
        assert!(!engine.open(task(case), study.clone()).await.unwrap(), "there are weights");
        let all = [2, 3].map(|number| architecture(&*task(case), number)).to_vec();
        let mut losses = Vec::new();
        for batch in 0..40 {
            let progress = batch as f64 / 40.0;
            let step = Step { batch, train: all.clone(), rank: all.clone(), progress };
            let outcome = engine.step(step).await.unwrap();
            assert_eq!(outcome.costs.len(), 2);
            losses.push(mean(&outcome.losses));
        }
        assert!(mean(&losses[35..]) < 0.5 * losses[0], "{} {losses:?}", case.0);
        let evaluate = |engine: Engine| {
            let (study, values) = (study.clone(), all[0].clone());
            async move { engine.evaluate(study, values, None).await.unwrap() }
        };
        let before = evaluate(engine.clone()).await;
        assert_eq!(before.step, 40);
        engine.close().await.unwrap();

        let engine = start(&catalogue);
        assert!(engine.open(task(case), study.clone()).await.unwrap(), "there are no weights");
        let after = evaluate(engine).await;
        assert_eq!((after.step, after.images, after.metrics), (40, before.images, before.metrics));
    }
    // Weights belong to the images that they were trained on.
    fs::remove_file(directory.path().join("photos/dark/000000.jpg")).unwrap();
    let study = directory.path().join(CLASSIFIERS.0);
    let error = start(&catalogue).open(task(CLASSIFIERS), study).await.unwrap_err();
    assert!(matches!(error, Error::OtherImages(_)), "{error}");
}

/// Reads the options of a command.
fn parse<A: Args + FromArgMatches>(line: &str) -> A {
    let command = A::augment_args(clap::Command::new("test"));
    let words = ["test"].into_iter().chain(line.split_whitespace());
    A::from_arg_matches(&command.get_matches_from(words)).unwrap()
}

#[tokio::test]
async fn an_architecture_is_retrained_evaluated_and_exported() {
    tch::set_num_threads(1);
    let directory = tempfile::tempdir().unwrap();
    let (work_dir, catalogue) = (directory.path(), catalogue(directory.path()));
    let (device, nobody) = (Device::Cpu, asng_client::Options::default());
    for (space, settings, flags) in [AUTOENCODERS, CLASSIFIERS] {
        let out = directory.path().join(space);
        let (shown, exported) = (out.display(), out.join("exported"));
        let set: String =
            settings.iter().map(|(name, text)| format!("--set {name}={text} ")).collect();
        let typed = format!("--space {space} {set} --architecture random:2 {flags} --out {shown}");
        // What cannot be trained leaves nothing behind.
        let too_few = format!("{typed} --train-images 7");
        let error =
            retrain::run(parse(&too_few), &nobody, work_dir, &catalogue, device).await.unwrap_err();
        assert_eq!(error.to_string(), "--batch-size 8: there are 7 training images");
        assert!(!out.exists());
        retrain::run(parse(&typed), &nobody, work_dir, &catalogue, device).await.unwrap();
        let log = fs::read_to_string(out.join("log.csv")).unwrap();
        let column = log.lines().next().unwrap().split(',').position(|name| name == "test_loss");
        let losses = log.lines().skip(1);
        let losses =
            losses.map(|row| row.split(',').nth(column.unwrap()).unwrap().parse().unwrap());
        let losses: Vec<f64> = losses.collect();
        assert!(losses.last() < losses.first(), "{space} {losses:?}");

        // Finished, it is evaluated again.
        let again = format!("--out {shown}");
        retrain::run(parse(&again), &nobody, work_dir, &catalogue, device).await.unwrap();
        assert_eq!(fs::read_to_string(out.join("log.csv")).unwrap(), log);

        let evaluated = parse(&format!("--retrained {shown} --json"));
        evaluate::run(evaluated, &nobody, work_dir, &catalogue, device).await.unwrap();
        export::run(&parse(&format!("--retrained {shown} --out {}", exported.display()))).unwrap();
        let text = fs::read_to_string(exported.join("network.json")).unwrap();
        let description: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(description["data"]["name"], "photos");
        assert_eq!(description["finished"], true);
        assert!(exported.join("network.pt").exists());
    }
    fs::remove_file(directory.path().join("photos/dark/000000.jpg")).unwrap();
    let again = format!("--out {}", directory.path().join(CLASSIFIERS.0).display());
    let error =
        retrain::run(parse(&again), &nobody, work_dir, &catalogue, device).await.unwrap_err();
    assert!(error.to_string().contains("the images of data set photos have changed"), "{error}");
}
