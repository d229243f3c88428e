//! Peak signal-to-noise ratio and structural similarity against scikit-image. tests/data/quality.py
//! wrote what it computes and says how to write it again; this test repeats the formula that fills
//! the images.

use asng_trainer::quality::{psnr, ssim};
use tch::{Kind, Tensor};

const REFERENCE: &str = include_str!("data/quality.txt");

/// `smooth` of quality.py.
fn smooth([channels, height, width]: [i64; 3]) -> Tensor {
    let mut values = Vec::new();
    for channel in 0..channels {
        for y in 0..height {
            for x in 0..width {
                let phase = 0.3 * x as f64 + 0.2 * (y * channel) as f64 + channel as f64;
                values.push(0.5 + 0.4 * phase.sin());
            }
        }
    }
    Tensor::from_slice(&values).view([1, channels, height, width])
}

/// `wave` of quality.py.
fn wave(shape: [i64; 3]) -> Tensor {
    let entry = |k: i64| (0.37 * k as f64 * k as f64 + 0.7).sin();
    let values: Vec<f64> = (0..shape.iter().product()).map(entry).collect();
    Tensor::from_slice(&values).view([1, shape[0], shape[1], shape[2]])
}

fn only(tensor: &Tensor) -> f64 {
    assert_eq!(tensor.size(), [1]);
    f64::try_from(tensor.squeeze()).unwrap()
}

#[test]
fn both_are_scikit_image_s() {
    let mut cases = 0;
    for line in REFERENCE.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let shape = [0, 1, 2].map(|i| words[i].parse().unwrap());
        let [noise, their_psnr, their_ssim] = [3, 4, 5].map(|i| words[i].parse::<f64>().unwrap());
        let truth = smooth(shape);
        // Not clipped here: that is ours to do.
        let images = &truth + noise * wave(shape);
        let our_psnr = only(&psnr(&images, &truth).unwrap());
        let our_ssim = only(&ssim(&images, &truth).unwrap());
        assert!((our_psnr - their_psnr).abs() < 1e-9, "{line}: {our_psnr}");
        assert!((our_ssim - their_ssim).abs() < 1e-11, "{line}: {our_ssim}");
        cases += 1;
    }
    assert_eq!(cases, 16);
}

#[test]
fn each_image_of_a_batch_has_its_own() {
    let truth = Tensor::cat(&[smooth([3, 16, 12]), smooth([3, 16, 12])], 0);
    let noise = Tensor::cat(&[0.1 * wave([3, 16, 12]), 0.0 * wave([3, 16, 12])], 0);
    let images = &truth + noise;
    let alone = only(&ssim(&images.narrow(0, 0, 1), &truth.narrow(0, 0, 1)).unwrap());
    let both = Vec::<f64>::try_from(ssim(&images, &truth).unwrap()).unwrap();
    assert!((both[0] - alone).abs() < 1e-14 && alone < 0.99);
    assert!((both[1] - 1.0).abs() < 1e-12);
    let both = Vec::<f64>::try_from(psnr(&images, &truth).unwrap()).unwrap();
    assert!(both[0] < 40.0 && both[1] == f64::INFINITY, "{both:?}");
}

#[test]
fn bytes_and_32_bits_are_fine_and_small_images_an_error() {
    let truth = smooth([1, 11, 11]);
    assert!(ssim(&truth.to_kind(Kind::Float), &truth).is_ok());
    let small = smooth([1, 11, 10]);
    assert!(ssim(&small, &small).is_err());
    assert!(psnr(&truth.view([11, 11]), &truth.view([11, 11])).is_err());
}
