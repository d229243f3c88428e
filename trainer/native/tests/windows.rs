//! Pooling and depthwise convolution against libtorch's own.

mod common;

use asng_native::{average_pool, depthwise, max_pool};
use tch::{Kind, Tensor};

use crate::common::{channels_last, difference, wave};

const TOLERANCE: f64 = 1e-10;

/// `[batch, channels, height, width]`: rows that fill vectors and rows that do not, windows larger than the image, many blocks.
const SHAPES: [[i64; 4]; 8] = [
    [2, 3, 5, 6],
    [4, 16, 8, 8],
    [1, 33, 7, 3],
    [2, 7, 1, 1],
    [2, 5, 1, 4],
    [2, 5, 4, 1],
    [3, 20, 2, 2],
    [3, 16, 41, 43],
];

/// Asserts that two operations have the same results, and the same gradients of a loss that sees each element differently.
fn agree(case: &str, inputs: &[&Tensor], ours: impl Fn() -> Tensor, theirs: impl Fn() -> Tensor) {
    let all = |y: Tensor| {
        let loss = (&y * wave(&y.size(), 6.0).to_kind(y.kind())).sum(None::<Kind>);
        let mut all = Tensor::run_backward(&[loss], inputs, false, false);
        all.push(y.detach());
        all
    };
    let tolerance = if inputs[0].kind() == Kind::Double { TOLERANCE } else { 1e-4 };
    for (place, (ours, theirs)) in all(ours()).iter().zip(all(theirs())).enumerate() {
        assert_eq!((ours.size(), ours.kind()), (theirs.size(), theirs.kind()), "{case}, {place}");
        let difference = difference(ours, &theirs);
        assert!(difference < tolerance, "{case}, tensor {place}: {difference:e}");
    }
}

fn leaf(x: Tensor) -> Tensor {
    x.detach().set_requires_grad(true)
}

fn libtorchs_average(x: &Tensor, stride: i64, count_padding: bool) -> Tensor {
    x.avg_pool2d([3, 3], [stride; 2], [1, 1], false, count_padding, None::<i64>)
}

fn libtorchs_max(x: &Tensor, stride: i64) -> Tensor {
    x.max_pool2d([3, 3], [stride; 2], [1, 1], [1, 1], false)
}

#[test]
fn pooling_is_libtorch_s() {
    for shape in SHAPES {
        for kind in [Kind::Double, Kind::Float] {
            let x = wave(&shape, 0.0).to_kind(kind);
            let equal_numbers = (&x * 2.0).round();
            for x in [leaf(channels_last(&x)), leaf(x.copy()), leaf(channels_last(&equal_numbers))]
            {
                let case = format!("{shape:?} {kind:?} {:?}", x.stride());
                for stride in [1, 2] {
                    let ours = || max_pool(&x, stride).unwrap();
                    agree(&case, &[&x], ours, || libtorchs_max(&x, stride));
                    for padding in [false, true] {
                        let ours = || average_pool(&x, stride, padding).unwrap();
                        agree(&case, &[&x], ours, || libtorchs_average(&x, stride, padding));
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_a_number_spreads_to_its_window_alone() {
    let x = channels_last(&wave(&[1, 16, 5, 5], 0.0));
    let _ = x.narrow(2, 1, 1).narrow(3, 3, 1).fill_(f64::NAN);
    for (ours, theirs) in [
        (max_pool(&x, 1).unwrap(), libtorchs_max(&x, 1)),
        (average_pool(&x, 1, true).unwrap(), libtorchs_average(&x, 1, true)),
    ] {
        assert!(ours.isnan().equal(&theirs.isnan()));
        assert_eq!(ours.isnan().sum(None::<Kind>).int64_value(&[]), 9 * 16);
    }
}

#[test]
fn depthwise_convolution_is_libtorch_s() {
    let mut cases = 0;
    for shape in SHAPES {
        for (kernel, stride, dilation) in [
            (3, 1, 1),
            (5, 1, 1),
            (7, 1, 1),
            (3, 2, 1),
            (5, 2, 1),
            (3, 1, 2),
            (5, 1, 2),
            (5, 2, 2),
            (9, 1, 1),
        ] {
            for (kind, last, padding) in [
                (Kind::Double, true, dilation * (kernel / 2)),
                (Kind::Double, true, 0),
                (Kind::Float, true, dilation * (kernel / 2)),
                (Kind::Double, false, 1),
            ] {
                let [_, channels, height, width] = shape;
                if height.min(width) + 2 * padding <= dilation * (kernel - 1) {
                    continue;
                }
                let x = wave(&shape, 0.0).to_kind(kind);
                let x = leaf(if last { channels_last(&x) } else { x });
                let weight = leaf(wave(&[channels, 1, kernel, kernel], 1.0).to_kind(kind));
                let theirs = || {
                    let (stride, padding, dilation) = ([stride; 2], [padding; 2], [dilation; 2]);
                    x.conv2d(&weight, None::<Tensor>, stride, padding, dilation, channels)
                };
                let ours = || depthwise(&x, &weight, stride, padding, dilation).unwrap();
                let case =
                    format!("{shape:?} {kind:?} {last} {kernel} {stride} {padding} {dilation}");
                agree(&case, &[&x, &weight], ours, theirs);
                cases += 1;
            }
        }
    }
    assert!(cases > 150, "{cases}");
}

#[test]
fn one_gradient_alone_is_computed_too() {
    let x = channels_last(&wave(&[2, 16, 6, 6], 0.0));
    let weight = leaf(wave(&[16, 1, 5, 5], 1.0));
    let theirs = || x.conv2d(&weight, None::<Tensor>, [1, 1], [2, 2], [1, 1], 16);
    agree("weight", &[&weight], || depthwise(&x, &weight, 1, 2, 1).unwrap(), theirs);
}

#[test]
fn an_error_is_libtorch_s() {
    let x = channels_last(&wave(&[2, 16, 6, 6], 0.0));
    let weight = wave(&[8, 1, 5, 5], 1.0);
    let error = depthwise(&x, &weight, 1, 2, 1).unwrap_err().to_string();
    assert!(error.contains("16"), "{error}");
    assert!(max_pool(&wave(&[3], 0.0), 1).is_err());
    assert!(average_pool(&wave(&[3], 0.0), 1, false).is_err());
}

#[test]
fn the_number_of_threads_leaves_no_trace() {
    let results = [1, 2, 3].map(|threads| {
        tch::set_num_threads(threads);
        let x = leaf(channels_last(&wave(&[16, 16, 32, 32], 0.0).to_kind(Kind::Float)));
        let weight = leaf(wave(&[16, 1, 5, 5], 1.0).to_kind(Kind::Float));
        let y = max_pool(
            &average_pool(&depthwise(&x, &weight, 1, 2, 1).unwrap(), 1, false).unwrap(),
            1,
        );
        let loss =
            (y.unwrap() * wave(&[16, 16, 32, 32], 6.0).to_kind(Kind::Float)).sum(None::<Kind>);
        Tensor::run_backward(&[loss], &[&x, &weight], false, false)
    });
    for other in &results[1..] {
        assert!(results[0].iter().zip(other).all(|(one, other)| one.equal(other)));
    }
}
