//! Counts of operations.

use asng_native::count_calls;
use tch::{Device, Kind, Tensor};

#[test]
fn operations_are_counted_forward_and_backward_and_on_this_thread_alone() {
    let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let compute = || {
        let loss = x.sin().sin().sum(Kind::Float);
        Tensor::run_backward(&[loss], &[&x], false, false);
    };
    let counts = count_calls(|| {
        compute();
        std::thread::scope(|scope| scope.spawn(|| drop(Tensor::from(1.0).sqrt())).join().unwrap());
    });
    // Each has a cosine as its derivative.
    assert_eq!(["sin", "cos", "sum"].map(|name| counts[name]), [2, 2, 1]);
    assert!(!counts.contains_key("sqrt"), "{counts:?}");
    assert_eq!(count_calls(|| ()).len(), 0);
    assert!(std::panic::catch_unwind(|| count_calls(|| panic!("on purpose"))).is_err());
    assert_eq!(count_calls(compute), counts);
}
