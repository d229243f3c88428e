//! TorchScript with parameters and buffers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use asng_native::trace;
use tch::{CModule, Device, Kind, TchError, Tensor};

/// Traces a function of a parameter and a buffer, and loads the file.
fn traced(
    forward: impl Fn(&Tensor, &Tensor, &Tensor) -> Tensor,
) -> Result<(String, CModule), TchError> {
    let weight = Tensor::from_slice(&[1.0_f32, 2.0]).set_requires_grad(true);
    let weight = [("layer.conv_1x1.weight".to_owned(), weight)];
    let mean = [("mean".to_owned(), Tensor::from_slice(&[0.5_f32]))];
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("module.pt");
    let example = Tensor::zeros([1, 2], (Kind::Float, Device::Cpu));
    let forward = |x: &Tensor| forward(x, &weight[0].1, &mean[0].1);
    let graph = tch::no_grad(|| trace(&example, [&weight, &mean], &forward, &file))?;
    Ok((graph, CModule::load(&file)?))
}

#[test]
fn weights_are_parameters_of_submodules_that_can_be_converted_and_trained() {
    let (graph, mut module) =
        traced(|x, weight, mean| ((x - mean) * weight * 3.0).relu_()).unwrap();
    module.set_train();
    module.to(Device::Cpu, Kind::Double, false);
    let x = Tensor::from_slice(&[1.5_f64, 2.5]).view([1, 2]);
    let y = module.forward_ts(&[x]).unwrap();
    assert_eq!(Vec::<f64>::try_from(y.view(-1)).unwrap(), [3.0, 12.0]);
    y.sum(Kind::Double).backward();
    let [(name, weight)] = &module.named_parameters().unwrap()[..] else { panic!() };
    assert_eq!(name, "layer.conv_1x1.weight");
    assert_eq!(Vec::<f64>::try_from(weight.grad()).unwrap(), [3.0, 6.0]);

    let graph: serde_json::Value = serde_json::from_str(&graph).unwrap();
    let [sub, times_weight, times_3, relu] = &graph["nodes"].as_array().unwrap()[..] else {
        panic!()
    };
    let input = |node: &serde_json::Value, index: usize| node["inputs"][index].clone();
    assert_eq!((&sub["op"], input(sub, 0)), (&"sub".into(), graph["input"].clone()));
    assert_eq!((input(sub, 1), input(sub, 2)), ("mean".into(), 1.into()));
    assert_eq!(input(times_weight, 0), sub["output"]);
    assert_eq!(input(times_weight, 1), "layer.conv_1x1.weight");
    assert_eq!((input(times_3, 1), &times_3["shape"]), (3.into(), &[1, 2][..].into()));
    assert_eq!((&relu["op"], &relu["output"]), (&"relu".into(), &graph["output"]));
}

#[test]
fn a_tensor_that_is_not_named_is_an_error() {
    let other = Tensor::from_slice(&[1.0_f32, 2.0]);
    let error = traced(|x, _, _| x + &other).unwrap_err().to_string();
    assert!(error.contains("neither a parameter nor a buffer: Tensor"), "{error}");
}

#[test]
fn a_panic_passes_through_and_leaves_no_trace_open() {
    let wrong = |x: &Tensor, weight: &Tensor, _: &Tensor| x.matmul(weight).matmul(weight);
    let panic = catch_unwind(AssertUnwindSafe(|| traced(wrong).is_ok())).unwrap_err();
    assert!(panic.downcast_ref::<String>().unwrap().contains("matmul"), "it is libtorch's message");
    assert!(traced(|x, weight, _| x * weight).is_ok());
}
