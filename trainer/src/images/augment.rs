//! The random part of augmentation: where each image of a batch is cropped, whether it is mirrored
//! and where it is cut out. Pure; [`super::preprocess`] applies it to tensors.

use rand::RngExt;

use super::batches::generator;

/// The augmentation of training images, in this order: crop, flip, normalisation, cutout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Augment {
    /// Black pixels added to each side of an image before its own size is cropped from anywhere.
    pub padding: u16,
    /// True if images are mirrored left to right, each with probability 1/2.
    pub flip: bool,
    /// Side in pixels of the square that is set to 0 (the mean colour); 0 for none. Its centre lies
    /// anywhere in the image and what is beyond the border is clipped (DeVries and Taylor, "Improved
    /// Regularization of Convolutional Neural Networks with Cutout", 2017). As in their code it
    /// reaches `cutout / 2` pixels to either side, so an odd side counts as the even one below it.
    pub cutout: u16,
}

impl Augment {
    /// The augmentation of the ASNG paper's search and of its retraining.
    pub const PAPER: Self = Self { padding: 4, flip: true, cutout: 16 };

    /// The augmentation of the paper's inpainting: mirrored or not, and nothing else.
    pub const FLIP: Self = Self { padding: 0, flip: true, cutout: 0 };

    /// Draws for the `count` images, `height` by `width` pixels, of batch `number`. Everything is
    /// drawn whatever is switched on: runs that differ in their cutout alone see the same crops.
    pub(super) fn draw(
        self,
        seed: u64,
        number: u64,
        count: i64,
        height: i64,
        width: i64,
    ) -> Vec<Draw> {
        let mut rng = generator(seed, b"augment\0", number);
        let offsets = 0..=2 * i64::from(self.padding);
        let draw = |_| Draw {
            top: rng.random_range(offsets.clone()),
            left: rng.random_range(offsets.clone()),
            mirrored: rng.random::<bool>() && self.flip,
            row: rng.random_range(0..height),
            column: rng.random_range(0..width),
        };
        (0..count).map(draw).collect()
    }
}

/// The draws for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draw {
    /// First row of the crop in the padded image.
    pub(super) top: i64,
    /// First column of the crop in the padded image.
    pub(super) left: i64,
    /// True if the crop is mirrored.
    pub(super) mirrored: bool,
    /// Row of the cutout's centre.
    pub(super) row: i64,
    /// Column of the cutout's centre.
    pub(super) column: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_cover_their_whole_ranges() {
        let draws = Augment::PAPER.draw(1, 0, 4000, 32, 32);
        for value in 0..=8 {
            assert!(draws.iter().any(|draw| draw.top == value), "top {value}");
            assert!(draws.iter().any(|draw| draw.left == value), "left {value}");
        }
        assert!(draws.iter().all(|draw| draw.top <= 8 && draw.left <= 8));
        for value in 0..32 {
            assert!(draws.iter().any(|draw| draw.row == value), "row {value}");
            assert!(draws.iter().any(|draw| draw.column == value), "column {value}");
        }
        let mirrored = draws.iter().filter(|draw| draw.mirrored).count();
        assert!((1800..2200).contains(&mirrored), "{mirrored} of 4000 mirrored");
    }

    #[test]
    fn a_batch_number_repeats_and_the_next_differs() {
        let draw = |seed, number| Augment::PAPER.draw(seed, number, 16, 32, 32);
        assert_eq!(draw(1, 7), draw(1, 7));
        assert_ne!(draw(1, 7), draw(1, 8));
        assert_ne!(draw(1, 7), draw(2, 7));
    }

    #[test]
    fn switching_parts_off_leaves_the_others_as_they_were() {
        let full = Augment::PAPER.draw(1, 7, 16, 32, 32);
        let plain = Augment { flip: false, cutout: 0, ..Augment::PAPER }.draw(1, 7, 16, 32, 32);
        for (full, plain) in full.iter().zip(plain) {
            assert_eq!((full.top, full.left), (plain.top, plain.left));
            assert!(!plain.mirrored);
        }
    }

    /// As for the order of batches: a run must be repeatable after an upgrade of rand.
    #[test]
    fn the_draws_of_seed_42_are_pinned() {
        let draw = Augment::PAPER.draw(42, 3, 1, 32, 32)[0];
        assert_eq!(draw, Draw { top: 0, left: 1, mirrored: true, row: 12, column: 22 });
    }
}
