//! Networks of the family chain against timm's: sizes of published networks, and loss and gradients in 64 bits.
//! tests/data/chain.py wrote what timm computes and says how to write it again.

use std::collections::BTreeMap;

use asng_trainer::tasks::{
    classification::{cells::Ends, chain::Chain},
    network::Mode,
};
use tch::{Device, Kind, Tensor};

const REFERENCE: &str = include_str!("data/chain.txt");

const MOBILENET_V2: &str = r#"
    stem = { channels = 32, kernel = 3, stride = 2 }
    head = { channels = 1280 }
    activation = "relu6"
    rows = [
        "ds_r1_k3_s1_c16", "ir_r2_k3_s2_e6_c24", "ir_r3_k3_s2_e6_c32", "ir_r4_k3_s2_e6_c64",
        "ir_r3_k3_s1_e6_c96", "ir_r3_k3_s2_e6_c160", "ir_r1_k3_s1_e6_c320",
    ]"#;
/// timm's name of MnasNet-A1 is semnasnet_100.
const MNASNET_A1: &str = r#"
    stem = { channels = 32, kernel = 3, stride = 2 }
    head = { channels = 1280 }
    activation = "relu"
    rows = [
        "ds_r1_k3_s1_e1_c16_noskip", "ir_r2_k3_s2_e6_c24", "ir_r3_k5_s2_e3_c40_se0.25", "ir_r4_k3_s2_e6_c80",
        "ir_r2_k3_s1_e6_c112_se0.25", "ir_r3_k5_s2_e6_c160_se0.25", "ir_r1_k3_s1_e6_c320",
    ]"#;
const EFFICIENTNET_B0: &str = r#"
    stem = { channels = 32, kernel = 3, stride = 2 }
    head = { channels = 1280 }
    activation = "silu"
    rows = [
        "ds_r1_k3_s1_e1_c16_se0.25", "ir_r2_k3_s2_e6_c24_se0.25", "ir_r2_k5_s2_e6_c40_se0.25",
        "ir_r3_k3_s2_e6_c80_se0.25", "ir_r3_k5_s1_e6_c112_se0.25", "ir_r4_k5_s2_e6_c192_se0.25",
        "ir_r1_k3_s1_e6_c320_se0.25",
    ]"#;
const EFFICIENTNET_V2_S: &str = r#"
    stem = { channels = 24, kernel = 3, stride = 2 }
    head = { channels = 1280 }
    activation = "silu"
    rows = [
        "cn_r2_k3_s1_e1_c24_skip", "er_r4_k3_s2_e4_c48", "er_r4_k3_s2_e4_c64", "ir_r6_k3_s2_e4_c128_se0.25",
        "ir_r9_k3_s1_e6_c160_se0.25", "ir_r15_k3_s2_e6_c256_se0.25",
    ]"#;
/// `ROWS` of chain.py.
const EVERY_BLOCK: &str = r#"
    stem = { channels = 16, kernel = 3, stride = 2 }
    head = { channels = 48 }
    activation = "silu"
    rows = [
        "ds_r1_k3_s1_e1_c16_se0.25", "ir_r2_k5_s2_e3_c24_se0.25", "er_r1_k3_s1_e2_c24_se0.5",
        "cn_r1_k3_s2_e1_c32_nhs", "ir_r2_k7_s1_e2.3_c32_noskip_nre", "ir_r1_k3_s2_e6_c40_nr6",
    ]"#;

fn chain(text: &str) -> Chain {
    Chain::new("chain", &toml::from_str(text).unwrap()).unwrap()
}

/// The numbers after each line's first word, or first two words.
fn reference(kind: &str) -> BTreeMap<&str, Vec<f64>> {
    let words = REFERENCE.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_kind = words.filter(|words| words[0] == kind);
    of_kind
        .map(|words| {
            let start = if words.len() > 2 { 2 } else { 1 };
            (
                words[start - 1],
                words[start..].iter().map(|number| number.parse().unwrap()).collect(),
            )
        })
        .collect()
}

#[test]
fn published_networks_have_the_size_that_timm_counts() {
    let published = reference("published");
    let ends = Ends { image: [3, 224, 224], classes: 1000 };
    let costs = |chain: &Chain| {
        let costs = chain.costs(&ends, &[], true);
        vec![costs.parameters as f64, costs.macs as f64]
    };
    assert_eq!(costs(&chain(MOBILENET_V2)), published["mobilenetv2_100"]);
    assert_eq!(costs(&chain(MNASNET_A1)), published["semnasnet_100"]);
    assert_eq!(costs(&chain(EFFICIENTNET_B0)), published["efficientnet_b0"]);
    // timm's tf_ variant pads other sides of an image, to the same size.
    assert_eq!(costs(&chain(EFFICIENTNET_V2_S)), published["tf_efficientnetv2_s"]);
    // timm keeps the head of a narrower MobileNetV2 at 1280 channels.
    let mut half = chain(&MOBILENET_V2.replace("1280", "2560"));
    half.width = 0.5;
    assert_eq!(costs(&half), published["mobilenetv2_050"]);
    // torchvision's documentation has the same counts: 3,504,872 parameters of MobileNetV2, 5,288,548 of EfficientNet-B0,
    // 21,458,488 of EfficientNetV2-S.
    assert_eq!(published["mobilenetv2_100"][0], 3_504_872.0);
    assert_eq!(published["efficientnet_b0"][0], 5_288_548.0);
    assert_eq!(published["tf_efficientnetv2_s"][0], 21_458_488.0);
}

/// `wave` of chain.py.
fn wave(name: &str, shape: &[i64]) -> Tensor {
    let phase = name.bytes().fold(0_u64, |phase, byte| (phase * 31 + u64::from(byte)) % 1_000_003);
    let entry = |k: i64| (0.37 * (k * k) as f64 + 0.001 * phase as f64).sin();
    let values: Vec<f64> = (0..shape.iter().product()).map(entry).collect();
    Tensor::from_slice(&values).view(shape)
}

/// `start` of chain.py.
fn start(name: &str, shape: &[i64]) -> Tensor {
    if let [_, inputs @ ..] = shape
        && !inputs.is_empty()
    {
        return wave(name, shape) * (3.0 / inputs.iter().product::<i64>() as f64).sqrt();
    }
    let wave: Tensor = 0.1 * wave(name, shape);
    if name.ends_with("weight") { 1.0 + wave } else { wave }
}

#[test]
fn every_kind_of_block_computes_what_timm_computes() {
    let ends = Ends { image: [3, 17, 17], classes: 5 };
    let network = chain(EVERY_BLOCK).network(&ends, Some(&[]), 1, Device::Cpu, Kind::Double);
    {
        let _guard = tch::no_grad_guard();
        for (name, parameter) in &network.parameters {
            parameter.shallow_clone().copy_(&start(name, &parameter.size()));
        }
    }
    let count: i64 = network.parameters.values().map(|tensor| tensor.numel() as i64).sum();
    assert_eq!(count as f64, number("parameters"));

    let images = wave("images", &[3, 3, 17, 17]);
    let labels = Tensor::from_slice(&[0_i64, 1, 2]);
    // tch's cross_entropy_for_logits computes in 32 bits.
    let loss_in = |mode| {
        let log_probabilities =
            network.forward(&images, &[], mode).main.log_softmax(1, Kind::Double);
        log_probabilities.nll_loss(&labels)
    };
    let loss = loss_in(Mode::Train { drop_path: None });
    loss.backward();
    let difference = (f64::try_from(&loss).unwrap() - number("loss")).abs();
    assert!(difference < 1e-10, "loss: {difference}");
    let evaluated = f64::try_from(loss_in(Mode::Evaluate)).unwrap();
    assert!((evaluated - number("evaluated")).abs() < 1e-10, "in evaluation: {evaluated}");

    let gradients = reference("gradient");
    assert_eq!(gradients.len(), network.parameters.len());
    let largest = gradients.values().map(|summary| summary[0]).fold(0.0, f64::max);
    for (name, parameter) in &network.parameters {
        let gradient = parameter.grad();
        let wave = wave(&format!("gradient {name}"), &gradient.size());
        let dot = f64::try_from((&gradient * wave).sum(Kind::Double)).unwrap();
        let difference = (dot - gradients[name.as_str()][1]).abs();
        assert!(difference < 1e-9 * largest, "{name}: {difference}");
    }
}

fn number(name: &str) -> f64 {
    reference(name)[name][0]
}
