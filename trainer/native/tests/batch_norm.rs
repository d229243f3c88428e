//! The fused operation against libtorch's own, in 64 bits, and what it refuses.

mod common;

use asng_native::BatchNorm;
use tch::{Device, Kind, Tensor};

use crate::common::{channels_last, difference, wave};

const MOMENTUM: f64 = 0.1;
const EPSILON: f64 = 1e-5;
const TOLERANCE: f64 = 1e-10;

/// The arguments of an operation, each case with its own tensors.
struct Case {
    x: Tensor,
    affine: Option<(Tensor, Tensor)>,
    running: Option<(Tensor, Tensor)>,
    relu: bool,
}

impl Case {
    fn new(
        shape: [i64; 4],
        kind: Kind,
        last: bool,
        affine: bool,
        running: bool,
        relu: bool,
    ) -> Case {
        let channels = [shape[1]];
        let leaf = |values: Tensor| values.to_kind(kind).detach().set_requires_grad(true);
        // Means of some deviations, and other ones for each channel.
        let x = wave(&shape, 0.0) + 3.0 * wave(&[1, shape[1], 1, 1], 1.0);
        let x = if last { channels_last(&x) } else { x };
        Case {
            x: leaf(x),
            affine: affine
                .then(|| (leaf(1.0 + 0.5 * wave(&channels, 2.0)), leaf(wave(&channels, 3.0)))),
            running: running.then(|| {
                let variance = wave(&channels, 5.0) + 1.5;
                (wave(&channels, 4.0).to_kind(kind), variance.to_kind(kind))
            }),
            relu,
        }
    }

    fn ours(&self) -> Tensor {
        self.options().forward(&self.x).unwrap()
    }

    fn options(&self) -> BatchNorm<'_> {
        BatchNorm {
            weight_and_bias: self.affine.as_ref().map(|(weight, bias)| (weight, bias)),
            running_mean_and_var: self.running.as_ref().map(|(mean, var)| (mean, var)),
            momentum: MOMENTUM,
            epsilon: EPSILON,
            relu: self.relu,
        }
    }

    fn libtorchs(&self) -> Tensor {
        let (weight, bias) = self.affine.as_ref().map(|(w, b)| (w, b)).unzip();
        let (mean, var) = self.running.as_ref().map(|(m, v)| (m, v)).unzip();
        let y = self.x.batch_norm(weight, bias, mean, var, true, MOMENTUM, EPSILON, true);
        if self.relu { y.relu() } else { y }
    }

    /// The result, the gradients of a loss that sees each element differently, and the running statistics.
    fn all(&self, y: Tensor) -> Vec<(&'static str, Tensor)> {
        let loss = (&y * wave(&y.size(), 6.0).to_kind(y.kind())).sum(None::<Kind>);
        let mut inputs = vec![("gradient of x", &self.x)];
        if let Some((weight, bias)) = &self.affine {
            inputs.extend([("gradient of weight", weight), ("gradient of bias", bias)]);
        }
        let (names, inputs): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
        let gradients = Tensor::run_backward(&[loss], &inputs, false, false);
        let mut all = vec![("result", y.detach())];
        all.extend(names.into_iter().zip(gradients));
        if let Some((mean, var)) = &self.running {
            all.extend([("running mean", mean.copy()), ("running variance", var.copy())]);
        }
        all
    }
}

fn agree(shape: [i64; 4], kind: Kind, tolerance: f64) {
    for bits in 0..16 {
        let [last, affine, running, relu] = [1, 2, 4, 8].map(|bit| bits & bit != 0);
        let case = || Case::new(shape, kind, last, affine, running, relu);
        let (ours, theirs) = (case(), case());
        let pairs = ours.all(ours.ours()).into_iter().zip(theirs.all(theirs.libtorchs()));
        for ((name, ours), (_, theirs)) in pairs {
            assert_eq!((ours.size(), ours.kind()), (theirs.size(), theirs.kind()));
            let difference = difference(&ours, &theirs);
            assert!(
                difference < tolerance,
                "{name} of {shape:?}, channels last {last}, affine {affine}, running {running}, \
                 ReLU {relu}: {difference:e}"
            );
        }
    }
}

#[test]
fn results_gradients_and_statistics_are_libtorch_s() {
    for channels in [1, 3, 7, 16, 33, 130, 512] {
        agree([4, channels, 5, 6], Kind::Double, TOLERANCE);
        agree([5, channels, 1, 1], Kind::Double, TOLERANCE);
        agree([4, channels, 5, 6], Kind::Float, 1e-4);
    }
    // Many blocks of rows, the last one short; rows longer than a block.
    agree([3, 16, 41, 43], Kind::Double, TOLERANCE);
    agree([2, 9000, 2, 3], Kind::Double, TOLERANCE);
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let case = Case::new([3, 7, 2, 2], Kind::Double, true, true, false, true);
    let loss = || (case.ours() * wave(&[3, 7, 2, 2], 6.0)).sum(None::<Kind>);
    let (weight, bias) = case.affine.as_ref().unwrap();
    let inputs = [&case.x, weight, bias];
    let gradients = Tensor::run_backward(&[loss()], &inputs, false, false);
    let _guard = tch::no_grad_guard();
    for (input, gradient) in inputs.into_iter().zip(gradients) {
        let gradient = Vec::<f64>::try_from(gradient.reshape([-1])).unwrap();
        for (i, gradient) in gradient.into_iter().enumerate() {
            let at = |change: f64| {
                let step = Tensor::zeros([input.numel() as i64], (Kind::Double, Device::Cpu));
                let _ = step.get(i as i64).fill_(change);
                let _ = input.shallow_clone().g_add_(&step.view(input.size().as_slice()));
                f64::try_from(loss()).unwrap()
            };
            let step = 1e-6;
            let (above, below) = (at(step), at(-2.0 * step));
            at(step);
            let slope = (above - below) / (2.0 * step);
            assert!((slope - gradient).abs() < 1e-7, "{i}: {gradient}, not {slope}");
        }
    }
}

#[test]
fn the_layout_stays() {
    for last in [true, false] {
        let case = Case::new([4, 7, 5, 6], Kind::Float, last, false, false, true);
        assert_eq!(case.ours().stride(), case.x.stride());
    }
}

#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    let mut case = Case::new([8, 16, 16, 16], Kind::Float, true, false, false, false);
    let small = case.ours();
    case.x = &case.x + 4096.0;
    // The mean of 4096 leaves 12 of the 24 bits of a number.
    assert!(difference(&case.ours(), &small) < 1e-2);
    let variance = f64::try_from(case.ours().var(false)).unwrap();
    assert!((variance - 1.0).abs() < 1e-3, "{variance}");
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let case = Case::new([2, 3, 2, 2], Kind::Float, true, false, false, true);
    let _ = case.x.detach().narrow(1, 1, 1).fill_(f64::NAN);
    let nan =
        Vec::<bool>::try_from(case.ours().isnan().all_dim(0, false).select(1, 0).select(1, 0));
    assert_eq!(nan.unwrap(), [false, true, false]);
}

#[test]
fn the_number_of_threads_leaves_no_trace() {
    let results = [1, 2, 3].map(|threads| {
        tch::set_num_threads(threads);
        let case = Case::new([16, 16, 32, 32], Kind::Float, true, true, true, true);
        case.all(case.ours())
    });
    for other in &results[1..] {
        for ((name, one), (_, other)) in results[0].iter().zip(other) {
            assert!(one.equal(other), "{name}");
        }
    }
}

#[test]
fn without_gradients_the_result_is_the_same() {
    let case = Case::new([4, 7, 5, 6], Kind::Float, true, true, false, true);
    let with = case.ours();
    let _guard = tch::no_grad_guard();
    let without = case.ours();
    assert!(!without.requires_grad() && with.requires_grad());
    assert!(with.equal(&without));
}

#[test]
fn wrong_shapes_are_errors_that_say_so() {
    let case = Case::new([2, 3, 4, 4], Kind::Double, true, true, true, true);
    for (x, expected) in [
        (wave(&[2, 3, 4], 0.0), "batch_norm: x has 3 dimensions, not 4"),
        (wave(&[2, 5, 4, 4], 0.0), "batch_norm: x has 5 channels, weights or statistics are [3]"),
        (
            wave(&[1, 3, 1, 1], 0.0),
            "batch_norm: statistics need more than one value for each channel, x is [1, 3, 1, 1]",
        ),
    ] {
        let error = case.options().forward(&x).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let integers = case.x.to_kind(Kind::Int64);
    assert!(case.options().forward(&integers).is_err());
    let half_of_it = Case::new([2, 3, 4, 4], Kind::Float, true, true, true, true);
    assert!(half_of_it.options().forward(&case.x).is_err());
}

#[test]
fn a_second_derivative_is_an_error() {
    let case = Case::new([2, 3, 4, 4], Kind::Double, true, false, false, true);
    let loss = case.ours().square().sum(None::<Kind>);
    let error = Tensor::f_run_backward(&[loss], &[&case.x], true, true).unwrap_err().to_string();
    assert!(error.contains("there is no second derivative"), "{error}");
}
