//! Mixed precision, on the CPU.

use asng_native::Autocast;
use tch::{Device, Kind, Tensor};

#[test]
fn products_have_16_bits_as_long_as_it_lives_and_gradients_have_32() {
    let weight = Tensor::ones([3, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let x = Tensor::from_slice(&[1.0_f32, 2.0, 1.0 / 3.0]).view([1, 3]);
    let outer = Autocast::new(Device::Cpu);
    drop(Autocast::new(Device::Cpu));
    let y = x.matmul(&weight);
    let loss = y.sum(Kind::Float);
    drop(outer);
    assert_eq!((y.kind(), loss.kind()), (Kind::BFloat16, Kind::Float));
    let gradient = &Tensor::run_backward(&[loss], &[&weight], false, false)[0];
    assert_eq!(gradient.kind(), Kind::Float);
    assert_eq!(x.matmul(&weight).kind(), Kind::Float);
}

#[test]
fn a_weight_that_was_moved_is_converted_anew() {
    let weight = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
    let sum = || {
        let _autocast = Autocast::new(Device::Cpu);
        f64::try_from(x.matmul(&weight).sum(Kind::Float)).unwrap()
    };
    assert_eq!(sum(), 4.0);
    let _ = tch::no_grad(|| weight.shallow_clone().fill_(2.0));
    assert_eq!(sum(), 8.0);
}
