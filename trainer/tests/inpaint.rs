//! Compares the autoencoders and Adam with the authors' own PyTorch code, in 64 bits. tests/data/inpaint.py wrote their numbers
//! and describes how to write them again; this test repeats the formula that fills parameters and images.

use std::collections::BTreeMap;

use asng_trainer::{
    images::Info,
    optim::{Gradients, Method, Optimizer},
    tasks::{
        Task,
        inpainting::{Coding, Inpainting},
        network::{Mode, Network},
    },
};
use tch::{Device, Kind, Reduction, Tensor};

/// The largest error of a loss, absolute, and of a gradient, relative to its norm.
const TOLERANCE: f64 = 1e-12;

const REFERENCE: &str = include_str!("data/inpaint.txt");

/// `wave` of inpaint.py.
fn wave(name: &str, shape: &[i64]) -> Tensor {
    let phase = name.bytes().fold(0_u64, |phase, byte| (phase * 31 + u64::from(byte)) % 1_000_003);
    let entry = |k: i64| (0.37 * (k * k) as f64 + 0.001 * phase as f64).sin();
    let values: Vec<f64> = (0..shape.iter().product()).map(entry).collect();
    Tensor::from_slice(&values).view(shape)
}

fn fill(network: &mut Network) {
    let _guard = tch::no_grad_guard();
    for (name, parameter) in &mut network.parameters {
        let shape = parameter.size();
        let scale = (3.0 / shape[1..].iter().product::<i64>() as f64).sqrt();
        parameter.copy_(&(wave(name, &shape) * scale));
    }
}

/// A network of the reference with its numbers.
#[derive(Default)]
struct Case {
    title: String,
    values: Vec<i64>,
    parameters: Option<i64>,
    loss: f64,
    /// Norm and projection, by parameter.
    gradients: BTreeMap<String, (f64, f64)>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in REFERENCE.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if ["search", "alone"].contains(&words[0]) {
            cases.push(Case { title: line.to_owned(), ..Case::default() });
        }
        let Some(case) = cases.last_mut() else { continue };
        match words[0] {
            "values" => case.values = words[1..].iter().map(|v| v.parse().unwrap()).collect(),
            "parameters" => case.parameters = Some(words[1].parse().unwrap()),
            "loss" => case.loss = words[1].parse().unwrap(),
            "gradient" => {
                let summary = (words[2].parse().unwrap(), words[3].parse().unwrap());
                case.gradients.insert(words[1].to_owned(), summary);
            }
            _ => {}
        }
    }
    cases
}

#[test]
fn the_networks_are_the_authors() {
    let cases = cases();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let words: Vec<&str> = case.title.split(' ').collect();
        let side: i64 = words[3].parse().unwrap();
        let given = [("nodes", "20"), ("level_back", "5"), ("channels", "2")];
        let given = given.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let task = Inpainting::new(Coding::named(words[1]).unwrap(), &given).unwrap();
        let info = Info { shape: [3, side, side], ..Info::default() };
        let alone = (words[0] == "alone").then_some(case.values.as_slice());
        if alone.is_some() {
            let costs = task.costs(&info, &case.values).unwrap();
            assert_eq!(Some(costs.parameters), case.parameters);
        }
        let mut network = task.network(&info, alone, Device::Cpu, Kind::Double);
        fill(&mut network);
        let images: Tensor = 0.5 + 0.5 * wave("images", &[2, 3, side, side]);
        let mask = wave("mask", &[2, 1, side, side]).gt(0.0).to_kind(Kind::Double);
        let mode = Mode::Train { drop_path: None };
        let output = network.forward(&(&images * mask), &case.values, mode).main;
        let loss = output.mse_loss(&images, Reduction::Mean);
        let ours = f64::try_from(&loss).unwrap();
        println!("{}: loss {ours}, difference {:e}", case.title, (ours - case.loss).abs());
        assert!((ours - case.loss).abs() < TOLERANCE, "{}: {ours}", case.title);

        let gradients = Gradients::of(&loss, &network.parameters).named();
        assert!(
            gradients.keys().eq(case.gradients.keys()),
            "{}: others have gradients",
            case.title
        );
        for (name, (norm, dot)) in &case.gradients {
            let gradient = &gradients[name];
            let our_norm = f64::try_from(gradient.norm()).unwrap();
            let projected = gradient * wave(&format!("gradient {name}"), &gradient.size());
            let our_dot = f64::try_from(projected.sum(Kind::Double)).unwrap();
            let error = (our_norm - norm).abs().max((our_dot - dot).abs());
            assert!(error <= TOLERANCE * norm, "{} {name}: {our_norm} {our_dot}", case.title);
        }
    }
}

#[test]
fn adam_is_pytorch_s() {
    let shape = [2, 3];
    let parameter = |name: &str| (name.to_owned(), wave(name, &shape).set_requires_grad(true));
    let mut parameters: BTreeMap<String, Tensor> = ["a", "b"].map(parameter).into();
    let mut adam = Optimizer::new(Method::Adam, 2.0, &parameters);
    let mut steps = 0;
    for line in REFERENCE.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers =
            |words: &[&str]| -> Vec<f64> { words.iter().map(|w| w.parse().unwrap()).collect() };
        match words[0] {
            "step" => {
                let [learning_rate, scale, norm] = numbers(&words[1..])[..] else {
                    panic!("{line}")
                };
                // A loss whose gradient is the wave.
                let term = |name: &str| {
                    let gradient = scale * wave(&format!("{name}{steps}"), &shape);
                    (&parameters[name] * gradient).sum(Kind::Double)
                };
                let gradients = Gradients::of(&(term("a") + term("b")), &parameters);
                let ours = adam.step(&mut parameters, &gradients, learning_rate);
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
    assert_eq!(steps, 4);
}
