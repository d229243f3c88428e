//! From bytes to a network's input: augmentation and normalisation of a whole batch by tensor
//! operations on the device it is on. Knows nothing of files or of the order of batches.

use tch::{Device, IndexOp, Kind, Tensor};

use super::{
    augment::{Augment, Draw},
    data_set::{Info, to_device},
};

/// Turns batches of pixels into batches of input: type, memory layout and normalisation.
#[derive(Debug)]
pub struct Preprocess {
    mean: Tensor, // [1, 3, 1, 1] or [1, 1, 1, 1], in units of the whole range, as `std`
    std: Tensor,
    channels_last: bool,
}

impl Preprocess {
    /// Prepares for the pixels of a data set on `device`. `kind` is the input's type, `Float` or `Double`. `channels_last` keeps the
    /// shape `[B, C, H, W]` but lays the channels of a pixel side by side in memory, which doubles the speed of convolutions on a
    /// CPU.
    pub fn new(info: &Info, device: Device, kind: Kind, channels_last: bool) -> Self {
        Self::with(&info.mean, &info.std, device, kind, channels_last)
    }

    /// Prepares for pixels of any number of channels that are to lie between 0 and 1, as inpainting wants them.
    pub fn unit(device: Device, kind: Kind, channels_last: bool) -> Self {
        Self::with(&[0.0], &[1.0], device, kind, channels_last)
    }

    fn with(mean: &[f64], std: &[f64], device: Device, kind: Kind, channels_last: bool) -> Self {
        let [mean, std] = [mean, std].map(|values| {
            Tensor::from_slice(values).view([1, -1, 1, 1]).to_kind(kind).to_device(device)
        });
        Self { mean, std, channels_last }
    }

    /// Normalises and does nothing else: for evaluation. `pixels` is uint8 `[B, C, H, W]`; so is the
    /// result in shape.
    pub fn plain(&self, pixels: &Tensor) -> Tensor {
        self.lay_out(&self.normalise(pixels))
    }

    /// Augments and normalises the pixels of batch `number`, uint8 `[B, C, H, W]`, by what `seed`
    /// decides for that number.
    pub fn augmented(&self, pixels: &Tensor, augment: Augment, seed: u64, number: u64) -> Tensor {
        let (count, _, height, width) = pixels.size4().expect("[B, C, H, W]");
        self.apply(pixels, augment, &augment.draw(seed, number, count, height, width))
    }

    fn apply(&self, pixels: &Tensor, augment: Augment, draws: &[Draw]) -> Tensor {
        let (_, _, height, width) = pixels.size4().expect("[B, C, H, W]");
        let device = pixels.device();
        // One transfer for all numbers: [5, B, 1], so that each row broadcasts along an axis.
        let numbers: Vec<i64> = [
            draws.iter().map(|draw| draw.top).collect::<Vec<_>>(),
            draws.iter().map(|draw| draw.left).collect(),
            draws.iter().map(|draw| i64::from(draw.mirrored)).collect(),
            draws.iter().map(|draw| draw.row).collect(),
            draws.iter().map(|draw| draw.column).collect(),
        ]
        .concat();
        let numbers = to_device(&Tensor::from_slice(&numbers).view([5, -1, 1]), device);
        let [top, left, mirrored, row, column] = [0, 1, 2, 3, 4].map(|i| numbers.i(i)); // [B, 1]
        let rows = Tensor::arange(height, (Kind::Int64, device)); // [H]
        let columns = Tensor::arange(width, (Kind::Int64, device)); // [W]

        // Column x of a mirrored crop is column W - 1 - x of the crop: x + mirrored (W - 1 - 2 x).
        let turn = &columns * -2 + (width - 1);
        let from_rows = top + &rows; // [B, H]
        let from_columns = left + &columns + mirrored * turn; // [B, W]
        let image = Tensor::arange(draws.len() as i64, (Kind::Int64, device));
        let padding = i64::from(augment.padding);
        let cropped = pixels
            .constant_pad_nd([padding; 4])
            // Indices on both sides of a slice put the indexed axes first: [B, H, W, C].
            .index(&[
                Some(image.view([-1, 1, 1])),
                None,
                Some(from_rows.unsqueeze(2)),
                Some(from_columns.unsqueeze(1)),
            ])
            .permute([0, 3, 1, 2]);

        let mut input = self.normalise(&cropped);
        let reach = i64::from(augment.cutout / 2);
        if reach > 0 {
            let inside = |positions: &Tensor, centre: &Tensor| {
                let distance = positions - centre; // [B, H] or [B, W]
                distance.ge(-reach).logical_and(&distance.lt(reach))
            };
            let hole = inside(&rows, &row)
                .unsqueeze(2)
                .logical_and(&inside(&columns, &column).unsqueeze(1)); // [B, H, W]
            input = input.masked_fill(&hole.unsqueeze(1), 0.0);
        }
        self.lay_out(&input)
    }

    /// The same three operations as torchvision's ToTensor and Normalize, in the same order.
    fn normalise(&self, pixels: &Tensor) -> Tensor {
        (pixels.to_kind(self.mean.kind()) / 255.0 - &self.mean) / &self.std
    }

    fn lay_out(&self, input: &Tensor) -> Tensor {
        match self.channels_last {
            // tch has no memory_format argument.
            true => input.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
            false => input.contiguous(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cifar::{MEAN, STD};
    use super::*;

    const SIDE: i64 = 12;

    /// Bytes that differ from pixel to pixel: [count, 3, SIDE, SIDE].
    fn pixels(count: i64) -> Tensor {
        let bytes: Vec<u8> =
            (0..count * 3 * SIDE * SIDE).map(|i| (i * 7919 % 251 + 1) as u8).collect();
        Tensor::from_slice(&bytes).view([count, 3, SIDE, SIDE])
    }

    fn cpu(kind: Kind, channels_last: bool) -> Preprocess {
        Preprocess::with(&MEAN, &STD, Device::Cpu, kind, channels_last)
    }

    /// One image after another, one pixel after another, as the papers say it.
    fn slow_reference(pixels: &Tensor, augment: Augment, draws: &[Draw]) -> Tensor {
        let bytes = Vec::<u8>::try_from(pixels.reshape([-1])).unwrap();
        let padding = i64::from(augment.padding);
        let half = i64::from(augment.cutout) / 2;
        let mut result = Vec::new();
        for (image, draw) in draws.iter().enumerate() {
            let (first_row, last_row) = (draw.row - half, draw.row + half);
            let (first_column, last_column) = (draw.column - half, draw.column + half);
            for channel in 0..3 {
                for y in 0..SIDE {
                    for x in 0..SIDE {
                        let crop_x = if draw.mirrored { SIDE - 1 - x } else { x };
                        let (from_y, from_x) =
                            (draw.top + y - padding, draw.left + crop_x - padding);
                        let inside = (0..SIDE).contains(&from_y) && (0..SIDE).contains(&from_x);
                        let plane = (image * 3 + channel) as i64 * SIDE * SIDE;
                        let byte = match inside {
                            true => bytes[(plane + from_y * SIDE + from_x) as usize],
                            false => 0,
                        };
                        let cut = (first_row..last_row).contains(&y)
                            && (first_column..last_column).contains(&x);
                        result.push(match cut {
                            true => 0.0,
                            false => (f64::from(byte) / 255.0 - MEAN[channel]) / STD[channel],
                        });
                    }
                }
            }
        }
        Tensor::from_slice(&result).view([-1, 3, SIDE, SIDE])
    }

    fn assert_agrees(augment: Augment) {
        let pixels = pixels(40);
        let draws = augment.draw(9, 5, 40, SIDE, SIDE);
        let expected = slow_reference(&pixels, augment, &draws);
        for channels_last in [false, true] {
            let input = cpu(Kind::Double, channels_last).augmented(&pixels, augment, 9, 5);
            assert_eq!(input.size(), [40, 3, SIDE, SIDE]);
            let difference = (&input - &expected).abs().max().double_value(&[]);
            assert!(difference < 1e-12, "{augment:?}: {difference}");
        }
        let input = cpu(Kind::Float, true).augmented(&pixels, augment, 9, 5);
        assert_eq!(input.kind(), Kind::Float);
        let difference = (input.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{augment:?} in f32: {difference}");
    }

    #[test]
    fn each_part_agrees_with_the_slow_reference() {
        let none = Augment { padding: 0, flip: false, cutout: 0 };
        for augment in [
            none,
            Augment { padding: 4, ..none },
            Augment { flip: true, ..none },
            Augment { cutout: 6, ..none },
            Augment { cutout: 5, ..none },
            Augment { cutout: 100, ..none },
            Augment::PAPER,
            Augment { padding: 2, flip: true, cutout: 8 },
        ] {
            assert_agrees(augment);
        }
    }

    #[test]
    fn cutout_removes_what_its_centre_says_and_is_clipped_at_the_border() {
        let augment = Augment { padding: 0, flip: false, cutout: 4 };
        let centre = Draw { top: 0, left: 0, mirrored: false, row: 6, column: 6 };
        let corner = Draw { row: 0, column: SIDE - 1, ..centre };
        let input = cpu(Kind::Float, false).apply(&pixels(2), augment, &[centre, corner]);
        let holes = |image: i64| input.i((image, 0)).eq(0.0).sum(Kind::Int64).int64_value(&[]);
        assert_eq!(holes(0), 16); // rows and columns 4 to 7
        assert_eq!(holes(1), 2 * 3); // rows 0 and 1, columns 9 to 11
    }

    #[test]
    fn evaluation_only_normalises() {
        let pixels = pixels(5);
        let before = pixels.copy();
        let prepare = cpu(Kind::Double, false);
        let input = prepare.plain(&pixels);
        let none = Augment { padding: 0, flip: false, cutout: 0 };
        let draws = none.draw(0, 0, 5, SIDE, SIDE);
        let difference = (input - slow_reference(&pixels, none, &draws)).abs().max();
        assert!(difference.double_value(&[]) < 1e-12);

        let augmented = prepare.augmented(&pixels, Augment::PAPER, 1, 1);
        assert_ne!(augmented, prepare.plain(&pixels));
        assert_eq!(pixels, before, "the resident pixels are never written to");
    }

    #[test]
    fn the_same_number_gives_the_same_bits_and_another_does_not() {
        let pixels = pixels(8);
        let prepare = cpu(Kind::Float, true);
        let input = |seed, number| prepare.augmented(&pixels, Augment::PAPER, seed, number);
        assert_eq!(input(1, 2), input(1, 2));
        assert_ne!(input(1, 2), input(1, 3));
        assert_ne!(input(1, 2), input(2, 2));
    }

    #[test]
    fn channels_last_changes_the_memory_and_not_the_values() {
        let pixels = pixels(2);
        for augmented in [false, true] {
            let [planes, last] = [false, true].map(|channels_last| {
                let prepare = cpu(Kind::Float, channels_last);
                match augmented {
                    true => prepare.augmented(&pixels, Augment::PAPER, 3, 4),
                    false => prepare.plain(&pixels),
                }
            });
            assert_eq!(planes, last);
            assert_eq!(planes.stride(), [3 * SIDE * SIDE, SIDE * SIDE, SIDE, 1]);
            assert_eq!(last.stride(), [3 * SIDE * SIDE, 1, 3 * SIDE, 3]);
        }
    }

    #[test]
    fn unit_pixels_lie_between_0_and_1_and_may_be_grey() {
        let preprocess = Preprocess::unit(Device::Cpu, Kind::Float, true);
        let bytes: Vec<u8> = (0..2 * 3 * 4).map(|i| (i * 255 / 23) as u8).collect();
        let pixels = Tensor::from_slice(&bytes).view([2, 1, 3, 4]);
        let plain = preprocess.plain(&pixels);
        assert_eq!(plain.size(), [2, 1, 3, 4]);
        assert_eq!(f64::try_from(plain.max()).unwrap(), 1.0);
        assert_eq!(f64::try_from(plain.min()).unwrap(), 0.0);
        let mirrored = plain.flip([3]);
        let (mut seen, mut kept) = (false, false);
        for number in 0..20 {
            let augmented = preprocess.augmented(&pixels, Augment::FLIP, 1, number);
            for image in 0..2 {
                seen |= augmented.i(image) == mirrored.i(image);
                kept |= augmented.i(image) == plain.i(image);
                assert!(
                    augmented.i(image) == mirrored.i(image) || augmented.i(image) == plain.i(image)
                );
            }
        }
        assert!(seen && kept);
    }
}
