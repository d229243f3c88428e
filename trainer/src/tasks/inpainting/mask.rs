//! The hidden parts of a minibatch, drawn on the CPU from a seed and the number of the minibatch.
//!
//! Source: the authors' `inpainting/common/utils.py`.

use rand::{RngExt, seq::IndexedRandom};
use tch::Tensor;

use crate::images::{generator, to_device};

/// The probability that [`Mask::Pixel`] hides a pixel.
const HIDDEN: f64 = 0.8;

/// The part of the images that is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// The middle: half as high and half as wide as the image.
    Center,
    /// 80 % of the pixels, drawn one by one.
    Pixel,
    /// The left, upper, right or lower half, drawn for each image.
    Half,
}

impl Mask {
    /// The names of the masks.
    pub(super) const NAMES: [&'static str; 3] = ["center", "pixel", "half"];

    /// Returns the mask of that name.
    pub(super) fn named(name: &str) -> Option<Mask> {
        match name {
            "center" => Some(Mask::Center),
            "pixel" => Some(Mask::Pixel),
            "half" => Some(Mask::Half),
            _ => None,
        }
    }

    /// Draws the mask of minibatch `number` for images `[batch, channels, height, width]`: `[batch, 1, height, width]` of the same
    /// kind and device, 1 where a pixel is visible and 0 where it is hidden.
    pub(super) fn draw(self, seed: u64, number: u64, images: &Tensor) -> Tensor {
        let (batch, _, height, width) = images.size4().unwrap(); // a batch of images
        let mut rng = generator(seed, b"mask\0\0\0\0", number);
        let mut visible: Vec<f32> = Vec::new();
        for _ in 0..batch {
            // Rows and columns of the hidden rectangle, unless pixels are drawn one by one.
            let (rows, columns) = match self {
                Mask::Center => (height / 4..3 * height / 4, width / 4..3 * width / 4),
                Mask::Pixel => {
                    let pixel = |_| f32::from(!rng.random_bool(HIDDEN));
                    visible.extend((0..height * width).map(pixel));
                    continue;
                }
                Mask::Half => {
                    let (y, x) = (height / 2, width / 2);
                    let halves = [
                        (0..height, 0..x),
                        (0..y, 0..width),
                        (0..height, x..width),
                        (y..height, 0..width),
                    ];
                    halves.choose(&mut rng).expect("there are four").clone()
                }
            };
            for y in 0..height {
                let hidden = |x| rows.contains(&y) && columns.contains(&x);
                visible.extend((0..width).map(|x| f32::from(!hidden(x))));
            }
        }
        let visible = Tensor::from_slice(&visible).view([batch, 1, height, width]);
        to_device(&visible.to_kind(images.kind()), images.device())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, IndexOp, Kind};

    use super::*;

    fn draw(mask: Mask, seed: u64, number: u64, [count, height, width]: [i64; 3]) -> Tensor {
        let images = Tensor::zeros([count, 3, height, width], (Kind::Float, Device::Cpu));
        mask.draw(seed, number, &images)
    }

    fn rows(mask: &Tensor) -> Vec<Vec<f32>> {
        Vec::try_from(mask).unwrap()
    }

    fn mean(mask: &Tensor) -> f64 {
        f64::try_from(mask.mean(Kind::Double)).unwrap()
    }

    #[test]
    fn every_name_is_a_mask() {
        let named = Mask::NAMES.map(Mask::named);
        assert_eq!(named, [Mask::Center, Mask::Pixel, Mask::Half].map(Some));
        assert_eq!(Mask::named("centre"), None);
    }

    #[test]
    fn the_center_is_hidden_in_every_image() {
        let masks = draw(Mask::Center, 0, 0, [2, 4, 8]);
        assert_eq!(masks.size(), [2, 1, 4, 8]);
        let (full, middle) = ([1.0; 8], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        for image in 0..2 {
            assert_eq!(rows(&masks.i((image, 0))), [full, middle, middle, full]);
        }
    }

    #[test]
    fn four_pixels_of_five_are_hidden_each_on_its_own() {
        let masks = draw(Mask::Pixel, 1, 5, [16, 64, 64]);
        assert!((mean(&masks) - 0.2).abs() < 0.01);
        assert_ne!(masks.i(0), masks.i(1));
        // Neighbours agree as often as independent draws do: 0.8^2 + 0.2^2.
        let agree = masks.i((.., .., .., ..63)).eq_tensor(&masks.i((.., .., .., 1..)));
        assert!((mean(&agree.to_kind(Kind::Float)) - 0.68).abs() < 0.01);
    }

    #[test]
    fn each_image_loses_one_of_four_halves() {
        let masks = draw(Mask::Half, 1, 0, [64, 4, 6]);
        let (none, all) = ([0.0; 6], [1.0; 6]);
        let left = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        let right = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0];
        let mut counts = [0; 4];
        for image in 0..64 {
            let mask = rows(&masks.i((image, 0)));
            let halves = [[left; 4], [none, none, all, all], [right; 4], [all, all, none, none]];
            counts[halves.iter().position(|half| mask == half).unwrap()] += 1;
        }
        assert!(counts.iter().all(|&count| count > 5), "{counts:?}");
    }

    #[test]
    fn a_batch_number_repeats_and_the_next_differs() {
        for mask in [Mask::Pixel, Mask::Half] {
            let draw = |seed, number| draw(mask, seed, number, [16, 8, 8]);
            assert_eq!(draw(1, 7), draw(1, 7));
            assert_ne!(draw(1, 7), draw(1, 8));
            assert_ne!(draw(1, 7), draw(2, 7));
        }
    }

    /// A run must be repeatable after an upgrade of rand.
    #[test]
    fn the_draws_of_seed_42_are_pinned() {
        let pixels = draw(Mask::Pixel, 42, 3, [1, 2, 8]);
        let expected = [[0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0; 8]];
        assert_eq!(rows(&pixels.i((0, 0))), expected);
        let upper_corners = draw(Mask::Half, 42, 3, [6, 2, 2]).i((.., 0, 0));
        let (left, upper, right, lower) = ([0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]);
        assert_eq!(rows(&upper_corners), [upper, upper, right, left, left, lower]);
    }
}
