//! How close images are to what they should be: peak signal-to-noise ratio and structural
//! similarity, for each image of a batch. Values beyond 0 and 1 count as 0 and 1, as in the
//! authors' `inpainting/common/utils.py`; all is computed in 64 bits.
//!
//! The structural similarity (Wang et al. 2004) is what scikit-image's
//! `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
//! data_range=1, channel_axis=...)` gives: a window of 11 pixels (3.5 sigma to each side, rounded),
//! and the mean over channels and over the pixels at least 5 from the border. There the window lies
//! inside the image, so that how scikit-image continues an image beyond its border plays no part.

use tch::{Kind, TchError, Tensor};

/// Of the Gaussian window, in pixels.
const SIGMA: f64 = 1.5;
/// Pixels of the window to each side of its centre.
const RADIUS: i64 = 5;
/// K1 and K2 of Wang et al., squared.
const C1: f64 = 0.01 * 0.01;
const C2: f64 = 0.03 * 0.03;

/// Peak signal-to-noise ratio in decibels of each of a batch of images `[batch, channels, height,
/// width]`: `[batch]`, infinite for an image without error.
pub fn psnr(images: &Tensor, truth: &Tensor) -> Result<Tensor, TchError> {
    let error = range(images)?.f_sub(&range(truth)?)?.f_square()?;
    error.f_mean_dim([1, 2, 3].as_slice(), false, Kind::Double)?.f_log10()?.f_mul_scalar(-10.0)
}

/// Structural similarity of each of a batch of images `[batch, channels, height, width]`, at least
/// 11 pixels high and wide: `[batch]`, 1 for an image without error.
pub fn ssim(images: &Tensor, truth: &Tensor) -> Result<Tensor, TchError> {
    let (x, y) = (range(images)?, range(truth)?);
    let (mean_x, mean_y) = (blur(&x)?, blur(&y)?);
    let (square_x, square_y) = (mean_x.f_square()?, mean_y.f_square()?);
    let product = mean_x.f_mul(&mean_y)?;
    let variances = blur(&x.f_square()?.f_add(&y.f_square()?)?)?;
    let variances = variances.f_sub(&square_x)?.f_sub(&square_y)?;
    let covariance = blur(&x.f_mul(&y)?)?.f_sub(&product)?;

    let luminance = product.f_mul_scalar(2.0)?.f_add_scalar(C1)?;
    let structure = covariance.f_mul_scalar(2.0)?.f_add_scalar(C2)?;
    let scale = square_x.f_add(&square_y)?.f_add_scalar(C1)?;
    let scale = scale.f_mul(&variances.f_add_scalar(C2)?)?;
    let similarity = luminance.f_mul(&structure)?.f_div(&scale)?;
    similarity.f_mean_dim([1, 2, 3].as_slice(), false, Kind::Double)
}

/// In 64 bits, without what is below 0 or above 1.
fn range(images: &Tensor) -> Result<Tensor, TchError> {
    images.f_to_kind(Kind::Double)?.f_clamp(0.0, 1.0)
}

/// The Gaussian mean around each pixel at least `RADIUS` from the border.
fn blur(images: &Tensor) -> Result<Tensor, TchError> {
    let (batch, channels, height, width) = images.size4()?;
    let weight = |offset: i64| (-0.5 * (offset as f64 / SIGMA).powi(2)).exp();
    let weights: Vec<f64> = (-RADIUS..=RADIUS).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    let window = Tensor::f_from_slice(&weights)?.f_div_scalar(sum)?.f_to_device(images.device())?;
    let blur = |x: &Tensor, shape: [i64; 4]| {
        x.f_conv2d(&window.f_view(shape)?, None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)
    };
    let planes = images.f_reshape([batch * channels, 1, height, width])?;
    let planes = blur(&blur(&planes, [1, 1, -1, 1])?, [1, 1, 1, -1])?;
    planes.f_view([batch, channels, height - 2 * RADIUS, width - 2 * RADIUS])
}
