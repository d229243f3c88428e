//! Networks and the optimiser against PyTorch, in 64 bits: enas-micro against the authors' own code, NAS-Bench-201 against plain
//! modules. tests/data/parity.py and nasbench201.py wrote what they compute and say how to write it again; this test repeats the
//! formula that fills the parameters.

use std::collections::BTreeMap;

use asng_trainer::{
    images::Info,
    optim::{Gradients, Method, Optimizer},
    tasks::{
        Batch, Task,
        network::{Mode, Network},
        settings::{Given, Preset},
        space::Space,
    },
};
use tch::{Device, Kind, Tensor};

const LOSS_TOLERANCE: f64 = 1e-10;
/// Of a gradient, relative to its norm.
const GRADIENT_TOLERANCE: f64 = 1e-7;
/// Gradients with a smaller norm are 0 but for rounding: those of a bias that a normalisation follows.
const SMALLEST_NORM: f64 = 1e-6;

/// The definition of a space and what PyTorch computes of it.
const ENAS: (&str, &str) = ("enas-micro", include_str!("data/parity.txt"));
const NAS_BENCH: (&str, &str) = ("nasbench201", include_str!("data/nasbench201.txt"));

const TRAIN: Mode = Mode::Train { drop_path: None };

/// `wave` of parity.py.
fn wave(name: &str, shape: &[i64]) -> Tensor {
    let phase = name.bytes().fold(0_u64, |phase, byte| (phase * 31 + u64::from(byte)) % 1_000_003);
    let entry = |k: i64| (0.37 * (k * k) as f64 + 0.001 * phase as f64).sin();
    let values: Vec<f64> = (0..shape.iter().product()).map(entry).collect();
    Tensor::from_slice(&values).view(shape)
}

/// `start` of parity.py.
fn start(name: &str, shape: &[i64]) -> Tensor {
    if let [_, inputs @ ..] = shape
        && !inputs.is_empty()
    {
        return wave(name, shape) * (3.0 / inputs.iter().product::<i64>() as f64).sqrt();
    }
    let wave: Tensor = 0.1 * wave(name, shape);
    if name.ends_with("weight") { 1.0 + wave } else { wave }
}

fn fill(network: &mut Network) {
    let _guard = tch::no_grad_guard();
    for (name, parameter) in &mut network.parameters {
        parameter.copy_(&start(name, &parameter.size()));
    }
}

/// Norm and projection of a gradient or a statistic, as parity.txt has them.
fn summary(kind: &str, name: &str, tensor: &Tensor) -> (f64, f64) {
    let _guard = tch::no_grad_guard();
    let dot = (tensor * wave(&format!("{kind} {name}"), &tensor.size())).sum(Kind::Double);
    (f64::try_from(tensor.norm()).unwrap(), f64::try_from(dot).unwrap())
}

/// A case of the data.
struct Case {
    title: String,
    task: Box<dyn Task>,
    size: Given,
    values: Vec<i64>,
    parameters: Option<i64>,
    loss: f64,
    evaluated: f64,
    gradients: BTreeMap<String, (f64, f64)>,
    statistics: BTreeMap<String, (f64, f64)>,
}

fn info() -> Info {
    let classes = (0..10).map(|class| class.to_string()).collect();
    Info { shape: [3, 32, 32], classes, ..Info::default() }
}

fn task(space: &str, settings: &Given) -> Box<dyn Task> {
    let (name, settings) = (space.to_owned(), settings.clone());
    Space { name, settings, ..Space::default() }.task().unwrap()
}

fn cases(kind: &str, (name, reference): (&str, &str)) -> Vec<Case> {
    let mut cases = Vec::new();
    for section in reference.split("\n\n").filter(|section| section.starts_with(kind)) {
        let mut case = Case {
            title: String::new(),
            task: task(name, &Given::new()),
            size: Given::new(),
            values: Vec::new(),
            parameters: None,
            loss: f64::NAN,
            evaluated: f64::NAN,
            gradients: BTreeMap::new(),
            statistics: BTreeMap::new(),
        };
        for line in section.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[0] {
                "search" | "alone" => {
                    case.title = format!("{name} {line}");
                    case.size.insert("cells".into(), words[3].into());
                    case.size.insert("channels".into(), words[5].into());
                    case.task = task(name, &case.size);
                }
                "values" => case.values = words[1..].iter().map(|v| v.parse().unwrap()).collect(),
                "parameters" => case.parameters = Some(words[1].parse().unwrap()),
                "loss" => case.loss = words[1].parse().unwrap(),
                "evaluated" => case.evaluated = words[1].parse().unwrap(),
                kind => {
                    let summary = (words[2].parse().unwrap(), words[3].parse().unwrap());
                    let summaries = match kind {
                        "gradient" => &mut case.gradients,
                        "statistic" => &mut case.statistics,
                        _ => panic!("{line}"),
                    };
                    summaries.insert(words[1].to_owned(), summary);
                }
            }
        }
        cases.push(case);
    }
    cases
}

fn batch() -> Batch {
    let labels: Vec<i64> = (0..4).map(|i| (3 * i + 1) % 10).collect();
    Batch { input: wave("images", &[4, 3, 32, 32]), target: Tensor::from_slice(&labels) }
}

fn check_loss(title: &str, ours: &Tensor, theirs: f64) {
    let ours = f64::try_from(ours).unwrap();
    println!("{title}: loss {ours}, difference {:e}", (ours - theirs).abs());
    assert!((ours - theirs).abs() < LOSS_TOLERANCE, "{title}: {ours}, not {theirs}");
}

/// Both sides have the same names, and for each the same numbers.
fn check_summaries(
    kind: &str,
    ours: &BTreeMap<String, Tensor>,
    theirs: &BTreeMap<String, (f64, f64)>,
) {
    assert!(ours.keys().eq(theirs.keys()), "other {kind}s exist");
    let mut largest = 0.0_f64;
    for (name, (norm, dot)) in theirs {
        let (our_norm, our_dot) = summary(kind, name, &ours[name]);
        let error = (our_norm - norm).abs().max((our_dot - dot).abs()) / norm.max(SMALLEST_NORM);
        assert!(
            error < GRADIENT_TOLERANCE,
            "{kind} {name}: {our_norm} {our_dot}, not {norm} {dot}"
        );
        largest = largest.max(error);
    }
    println!("{} {kind}s, largest relative difference {largest:e}", theirs.len());
}

fn check_supernets(reference: (&str, &str), expected: usize) {
    let batch = batch();
    let cases = cases("search", reference);
    assert_eq!(cases.len(), expected);
    for case in cases {
        let mut network = case.task.network(&info(), None, Device::Cpu, Kind::Double);
        fill(&mut network);
        let output = network.forward(&batch.input, &case.values, TRAIN);
        let [loss, _] = case.task.loss(&output, &batch);
        check_loss(&case.title, &loss, case.loss);
        let gradients = Gradients::of(&loss, &network.parameters);
        check_summaries("gradient", &gradients.named(), &case.gradients);
    }
}

fn check_alone(reference: (&str, &str), expected: usize) {
    let (batch, info) = (batch(), info());
    let cases = cases("alone", reference);
    assert_eq!(cases.len(), expected);
    for case in cases {
        let task = case.task.retraining(&info, &case.values, Preset::Paper, &case.size).unwrap();
        let mut network = task.network(&info, Some(&case.values), Device::Cpu, Kind::Double);
        let count = network.parameters.values().map(|parameter| parameter.numel() as i64).sum();
        assert_eq!(case.parameters, Some(count));
        fill(&mut network);
        let output = network.forward(&batch.input, &case.values, TRAIN);
        let [loss, _] = task.loss(&output, &batch);
        check_loss(&case.title, &loss, case.loss);
        let gradients = Gradients::of(&loss, &network.parameters);
        check_summaries("gradient", &gradients.named(), &case.gradients);
        check_summaries("statistic", &network.statistics, &case.statistics);
        let evaluated = network.forward(&batch.input, &case.values, Mode::Evaluate);
        assert!(evaluated.auxiliary.is_none());
        let [loss, _] = task.loss(&evaluated, &batch);
        check_loss("evaluated", &loss, case.evaluated);
    }
}

#[test]
fn enas_micro_is_the_authors() {
    check_supernets(ENAS, 3);
    check_alone(ENAS, 2);
}

#[test]
fn nasbench201_is_plain_pytorch() {
    check_supernets(NAS_BENCH, 2);
    check_alone(NAS_BENCH, 2);
}

#[test]
fn the_optimiser_is_pytorch_s() {
    let shape = [2, 3];
    let parameter = |name: &str| (name.to_owned(), wave(name, &shape).set_requires_grad(true));
    let mut parameters: BTreeMap<String, Tensor> = ["a", "b", "c"].map(parameter).into();
    let method = Method::Sgd { momentum: 0.9, weight_decay: 0.01 };
    let mut sgd = Optimizer::new(method, 2.0, &parameters);
    let mut steps = 0;
    for line in ENAS.1.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers =
            |words: &[&str]| -> Vec<f64> { words.iter().map(|w| w.parse().unwrap()).collect() };
        match words[0] {
            "step" => {
                let (touched, numbers) = (words[1], numbers(&words[2..]));
                let [learning_rate, scale, norm] = numbers[..] else { panic!("{line}") };
                // A loss whose gradient is the wave.
                let gradient = |name: char| scale * wave(&format!("{name}{steps}"), &shape);
                let terms = touched
                    .chars()
                    .map(|c| (&parameters[&c.to_string()] * gradient(c)).sum(Kind::Double));
                let loss: Tensor = terms.reduce(|sum, term| sum + term).unwrap();
                let gradients = Gradients::of(&loss, &parameters);
                let ours = sgd.step(&mut parameters, &gradients, learning_rate);
                assert!((f64::try_from(ours).unwrap() - norm).abs() < 1e-14);
                steps += 1;
            }
            "moved" => {
                let ours =
                    Vec::<f64>::try_from(parameters[words[1]].detach().flatten(0, -1)).unwrap();
                for (ours, theirs) in ours.iter().zip(numbers(&words[2..])) {
                    assert!((ours - theirs).abs() < 1e-14, "step {steps}, {line}: {ours}");
                }
            }
            _ => {}
        }
    }
    assert_eq!(steps, 5);
}

#[test]
fn counts_at_the_paper_s_size() {
    let network =
        task("enas-micro", &Given::new()).network(&info(), None, Device::Cpu, Kind::Float);
    let count = |prefix: &str| -> usize {
        let named = network.parameters.iter().filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, parameter)| parameter.numel()).sum()
    };
    assert_eq!(count(""), 2_274_052);
    assert_eq!(count("auxiliary."), 410_890);
}

/// The first version's weights of that seed. The stem is drawn last, so its values depend on all others' order and number.
#[test]
fn a_seed_gives_the_weights_that_it_gave_before() {
    let seed = [("seed".to_owned(), "7".to_owned())].into();
    let network = task("enas-micro", &seed).network(&info(), None, Device::Cpu, Kind::Float);
    let row = network.parameters["stem.conv.weight"].get(0).get(0).get(0);
    assert_eq!(Vec::<f32>::try_from(row).unwrap(), [0.1172501, 0.086630955, 0.11630447]);
}
