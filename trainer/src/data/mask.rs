//! What an autoencoder does not see of a batch, drawn on the CPU from (seed, number of the batch)
//! like everything else: one draw for each batch, so that all architectures ranked on it are asked
//! the same question.
//!
//! Source: the authors' `inpainting/common/utils.py`.

use rand::RngExt;
use rand::seq::IndexedRandom;
use tch::{Device, Kind, Tensor};

use super::{Error, generator, to_device};
use crate::space::inpaint::Mask;

/// Part of the pixels that [`Mask::Pixel`] hides.
const HIDDEN: f64 = 0.8;

/// Draws the masks of batch `number` for images of that shape (count, height, width): `[count, 1,
/// height, width]`, 1 where a pixel is seen and 0 where it is hidden, in all its channels.
pub fn draw(
    mask: Mask,
    seed: u64,
    number: u64,
    shape: [i64; 3],
    kind: Kind,
    device: Device,
) -> Result<Tensor, Error> {
    let [count, height, width] = shape;
    let mut rng = generator(seed, b"mask\0\0\0\0", number);
    let mut seen: Vec<f32> = Vec::new();
    for _ in 0..count {
        // Rows and columns of the hidden rectangle, unless pixels are drawn one by one.
        let (rows, columns) = match mask {
            Mask::Center => (height / 4..3 * height / 4, width / 4..3 * width / 4),
            Mask::Pixel => {
                let pixels = (0..height * width).map(|_| f32::from(!rng.random_bool(HIDDEN)));
                seen.extend(pixels);
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
            let inside = |x| rows.contains(&y) && columns.contains(&x);
            seen.extend((0..width).map(|x| f32::from(!inside(x))));
        }
    }
    let seen = Tensor::f_from_slice(&seen)?.f_view([count, 1, height, width])?;
    Ok(to_device(&seen.f_to_kind(kind)?, device)?)
}

#[cfg(test)]
mod tests {
    use tch::IndexOp;

    use super::*;

    fn drawn(mask: Mask, seed: u64, number: u64, shape: [i64; 3]) -> Tensor {
        draw(mask, seed, number, shape, Kind::Float, Device::Cpu).unwrap()
    }

    fn rows(mask: &Tensor) -> Vec<Vec<f32>> {
        Vec::try_from(mask).unwrap()
    }

    fn mean(mask: &Tensor) -> f64 {
        f64::try_from(mask.mean(Kind::Double)).unwrap()
    }

    #[test]
    fn the_center_is_hidden_in_every_image() {
        let masks = drawn(Mask::Center, 0, 0, [2, 4, 8]);
        assert_eq!(masks.size(), [2, 1, 4, 8]);
        let (full, middle) = ([1.0; 8], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
        for image in 0..2 {
            assert_eq!(rows(&masks.i((image, 0))), [full, middle, middle, full]);
        }
    }

    #[test]
    fn four_pixels_of_five_are_hidden_each_on_its_own() {
        let masks = drawn(Mask::Pixel, 1, 5, [16, 64, 64]);
        assert!((mean(&masks) - 0.2).abs() < 0.01);
        assert_ne!(masks.i(0), masks.i(1));
        // Neighbours agree as often as independent draws do: 0.8^2 + 0.2^2.
        let agree = masks.i((.., .., .., ..63)).eq_tensor(&masks.i((.., .., .., 1..)));
        assert!((mean(&agree.to_kind(Kind::Float)) - 0.68).abs() < 0.01);
    }

    #[test]
    fn each_image_loses_one_of_four_halves() {
        let masks = drawn(Mask::Half, 1, 0, [64, 4, 6]);
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
            let drawn = |seed, number| drawn(mask, seed, number, [16, 8, 8]);
            assert_eq!(drawn(1, 7), drawn(1, 7));
            assert_ne!(drawn(1, 7), drawn(1, 8));
            assert_ne!(drawn(1, 7), drawn(2, 7));
        }
    }

    /// As for the order of batches: a run must be repeatable after an upgrade of rand.
    #[test]
    fn the_draws_of_seed_42_are_pinned() {
        let pixels = drawn(Mask::Pixel, 42, 3, [1, 2, 8]);
        let expected = [[0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [0.0; 8]];
        assert_eq!(rows(&pixels.i((0, 0))), expected);
        let upper_corners = drawn(Mask::Half, 42, 3, [6, 2, 2]).i((.., 0, 0));
        let (left, upper, right, lower) = ([0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0]);
        assert_eq!(rows(&upper_corners), [upper, upper, right, left, left, lower]);
    }
}
