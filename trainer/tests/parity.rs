//! The network and the optimiser against the authors' own PyTorch code, in 64 bits.
//! tests/data/parity.py wrote what it computes and says how to write it again; this test repeats
//! the formula that fills the parameters.

use std::collections::BTreeMap;

use asng_trainer::space::enas_micro::{Architecture, Size};
use asng_trainer::supernet::AUXILIARY_WEIGHT;
use asng_trainer::supernet::enas_micro::{Mode, Network};
use asng_trainer::supernet::gradients::Gradients;
use asng_trainer::supernet::loss::cross_entropy;
use asng_trainer::supernet::sgd::{Rates, Sgd};
use tch::{Device, Kind, Tensor};

const LOSS_TOLERANCE: f64 = 1e-10;
/// Of a gradient, relative to its norm.
const GRADIENT_TOLERANCE: f64 = 1e-7;

const REFERENCE: &str = include_str!("data/parity.txt");

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
    for (name, parameter) in network.parameters_mut() {
        parameter.copy_(&start(name, &parameter.size()));
    }
}

/// Norm and projection of a gradient or a statistic, as parity.txt has them.
fn summary(kind: &str, name: &str, tensor: &Tensor) -> (f64, f64) {
    let _guard = tch::no_grad_guard();
    let dot = (tensor * wave(&format!("{kind} {name}"), &tensor.size())).sum(Kind::Double);
    (f64::try_from(tensor.norm()).unwrap(), f64::try_from(dot).unwrap())
}

/// A case of parity.txt.
#[derive(Default)]
struct Case {
    title: String,
    size: Option<Size>,
    values: Vec<i64>,
    parameters: Option<i64>,
    loss: f64,
    evaluated: f64,
    gradients: BTreeMap<String, (f64, f64)>,
    statistics: BTreeMap<String, (f64, f64)>,
}

fn cases(kind: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for section in REFERENCE.split("\n\n").filter(|section| section.starts_with(kind)) {
        let mut case = Case::default();
        for line in section.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[0] {
                "search" | "alone" => {
                    let (cells, channels) = (words[3].parse().unwrap(), words[5].parse().unwrap());
                    case.title = line.to_owned();
                    case.size =
                        Some(Size { nodes: 5, cells, channels, image_channels: 3, classes: 10 });
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

fn batch() -> (Tensor, Tensor) {
    let labels: Vec<i64> = (0..4).map(|i| (3 * i + 1) % 10).collect();
    (wave("images", &[4, 3, 32, 32]), Tensor::from_slice(&labels))
}

fn check_loss(title: &str, ours: &Tensor, theirs: f64) {
    let ours = f64::try_from(ours).unwrap();
    println!("{title}: loss {ours}, difference {:e}", (ours - theirs).abs());
    assert!((ours - theirs).abs() < LOSS_TOLERANCE, "{title}: {ours}, not {theirs}");
}

/// Both sides have the same names, and for each the same numbers.
fn check_summaries<'a>(
    kind: &str,
    ours: impl Iterator<Item = (&'a str, &'a Tensor)>,
    theirs: &BTreeMap<String, (f64, f64)>,
) {
    let ours: BTreeMap<&str, &Tensor> = ours.collect();
    assert!(ours.keys().copied().eq(theirs.keys().map(String::as_str)), "other {kind}s exist");
    let mut largest = 0.0_f64;
    for (name, (norm, dot)) in theirs {
        let (our_norm, our_dot) = summary(kind, name, ours[name.as_str()]);
        let error = (our_norm - norm).abs().max((our_dot - dot).abs()) / norm;
        assert!(
            error < GRADIENT_TOLERANCE,
            "{kind} {name}: {our_norm} {our_dot}, not {norm} {dot}"
        );
        largest = largest.max(error);
    }
    println!("{} {kind}s, largest relative difference {largest:e}", theirs.len());
}

#[test]
fn the_supernet_is_the_authors() {
    let (images, labels) = batch();
    let cases = cases("search");
    assert_eq!(cases.len(), 3);
    for case in cases {
        let architecture = Architecture::decode(5, &case.values).unwrap();
        let mut network =
            Network::supernet(&case.size.unwrap(), 0, Device::Cpu, Kind::Double).unwrap();
        fill(&mut network);
        let logits =
            network.forward(&images, &architecture, Mode::Train { drop_path: 0.0 }).unwrap();
        let loss = cross_entropy(&logits.main, &labels).unwrap();
        check_loss(&case.title, &loss, case.loss);
        let gradients = Gradients::of(&loss, network.parameters()).unwrap();
        check_summaries("gradient", gradients.iter(), &case.gradients);
    }
}

#[test]
fn the_network_alone_is_the_authors() {
    let (images, labels) = batch();
    let cases = cases("alone");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let size = case.size.unwrap();
        let architecture = Architecture::decode(5, &case.values).unwrap();
        let parameters = architecture.parameters(&size, true) + size.auxiliary_parameters();
        assert_eq!(Some(parameters), case.parameters);
        let mut network =
            Network::alone(&size, &architecture, 0, Device::Cpu, Kind::Double).unwrap();
        fill(&mut network);
        let logits =
            network.forward(&images, &architecture, Mode::Train { drop_path: 0.0 }).unwrap();
        let auxiliary = cross_entropy(&logits.auxiliary.unwrap(), &labels).unwrap();
        let loss = cross_entropy(&logits.main, &labels).unwrap() + AUXILIARY_WEIGHT * auxiliary;
        check_loss(&case.title, &loss, case.loss);
        let gradients = Gradients::of(&loss, network.parameters()).unwrap();
        check_summaries("gradient", gradients.iter(), &case.gradients);
        let statistics = network.statistics().iter().map(|(name, tensor)| (name.as_str(), tensor));
        check_summaries("statistic", statistics, &case.statistics);
        let evaluated = network.forward(&images, &architecture, Mode::Evaluate).unwrap();
        assert!(evaluated.auxiliary.is_none());
        let loss = cross_entropy(&evaluated.main, &labels).unwrap();
        check_loss("evaluated", &loss, case.evaluated);
    }
}

#[test]
fn the_optimiser_is_pytorch_s() {
    let shape = [2, 3];
    let parameter = |name: &str| (name.to_owned(), wave(name, &shape).set_requires_grad(true));
    let mut parameters: BTreeMap<String, Tensor> = ["a", "b", "c"].map(parameter).into();
    let rates = Rates { momentum: 0.9, weight_decay: 0.01, grad_clip: 2.0 };
    let mut sgd = Sgd::new(&parameters, rates).unwrap();
    let mut steps = 0;
    for line in REFERENCE.lines() {
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
                let gradients = Gradients::of(&loss, &parameters).unwrap();
                let ours = sgd.step(&mut parameters, &gradients, learning_rate).unwrap();
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
    let size = Size { nodes: 5, cells: 8, channels: 16, image_channels: 3, classes: 10 };
    let network = Network::supernet(&size, 0, Device::Cpu, Kind::Float).unwrap();
    let count = |prefix: &str| -> usize {
        let named = network.parameters().iter().filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, parameter)| parameter.numel()).sum()
    };
    assert_eq!(count(""), 2_274_052);
    assert_eq!(count("auxiliary."), 410_890);
}
