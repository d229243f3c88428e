//! Peak signal-to-noise ratio and structural similarity, for each image of a batch. Values beyond 0 and 1 count as 0 and 1, as in
//! the authors' `inpainting/common/utils.py`; everything is computed in 64 bits.
//!
//! The structural similarity (Wang et al. 2004) is that of scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
//! use_sample_covariance=False, data_range=1, channel_axis=...)`: a window of 11 pixels (3.5 sigma to each side, rounded), and the
//! mean over channels and over the pixels at least 5 from the border. There the window lies inside the image, so it makes no
//! difference how scikit-image continues an image beyond its border.

use tch::{Kind, Tensor};

/// The deviation of the Gaussian window, in pixels.
const SIGMA: f64 = 1.5;
/// Pixels of the window to each side of its centre.
const RADIUS: i64 = 5;
/// K1 and K2 of Wang et al., squared.
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// Returns the peak signal-to-noise ratio in decibels of each of a batch of images `[batch, channels, height, width]`: `[batch]`,
/// infinite for an image without error.
pub fn psnr(images: &Tensor, truth: &Tensor) -> Tensor {
    let error = (clip(images) - clip(truth)).square();
    error.mean_dim([1, 2, 3].as_slice(), false, Kind::Double).log10() * -10.0
}

/// Returns the structural similarity of each of a batch of images `[batch, channels, height, width]`, at least 11 pixels high and
/// wide: `[batch]`, 1 for an image without error.
pub fn ssim(images: &Tensor, truth: &Tensor) -> Tensor {
    let (x, y) = (clip(images), clip(truth));
    let (mean_x, mean_y) = (blur(&x), blur(&y));
    let squares = mean_x.square() + mean_y.square();
    let product = mean_x * mean_y;
    let variances = blur(&(x.square() + y.square())) - &squares;
    let covariance = blur(&(x * y)) - &product;
    let similarity =
        (product * 2.0 + C1) * (covariance * 2.0 + C2) / ((squares + C1) * (variances + C2));
    similarity.mean_dim([1, 2, 3].as_slice(), false, Kind::Double)
}

/// Converts to 64 bits from 0 to 1.
fn clip(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Double).clamp(0.0, 1.0)
}

/// Returns the Gaussian mean around each pixel at least [`RADIUS`] from the border.
fn blur(images: &Tensor) -> Tensor {
    let (batch, channels, height, width) = images.size4().unwrap(); // a batch of images
    let weight = |offset: i64| (-0.5 * (offset as f64 / SIGMA).powi(2)).exp();
    let weights: Vec<f64> = (-RADIUS..=RADIUS).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    let window = (Tensor::from_slice(&weights) / sum).to_device(images.device());
    let blur = |x: &Tensor, shape: [i64; 4]| {
        x.conv2d(&window.view(shape), None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)
    };
    let planes = images.reshape([batch * channels, 1, height, width]);
    let planes = blur(&blur(&planes, [1, 1, -1, 1]), [1, 1, 1, -1]);
    planes.view([batch, channels, height - 2 * RADIUS, width - 2 * RADIUS])
}

/// tests/data/quality.py wrote the numbers of scikit-image and describes how to write them again; these tests repeat the formula
/// that fills the images.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::attempt;

    const REFERENCE: &str = include_str!("../../../tests/data/quality.txt");

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
            let [noise, their_psnr, their_ssim] =
                [3, 4, 5].map(|i| words[i].parse::<f64>().unwrap());
            let truth = smooth(shape);
            let images = &truth + noise * wave(shape); // beyond 0 and 1, too
            let (our_psnr, our_ssim) = (only(&psnr(&images, &truth)), only(&ssim(&images, &truth)));
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
        let alone = only(&ssim(&images.narrow(0, 0, 1), &truth.narrow(0, 0, 1)));
        let both = Vec::<f64>::try_from(ssim(&images, &truth)).unwrap();
        assert!((both[0] - alone).abs() < 1e-14 && alone < 0.99);
        assert!((both[1] - 1.0).abs() < 1e-12);
        let both = Vec::<f64>::try_from(psnr(&images, &truth)).unwrap();
        assert!(both[0] < 40.0 && both[1] == f64::INFINITY, "{both:?}");
    }

    #[test]
    fn other_kinds_are_converted_and_small_images_an_error() {
        let truth = smooth([1, 11, 11]);
        assert!(only(&ssim(&truth.to_kind(Kind::Float), &truth)) > 0.999);
        let small = smooth([1, 11, 10]);
        assert!(attempt(|| ssim(&small, &small)).is_err());
    }
}
