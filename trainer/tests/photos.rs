//! A search and a retraining from a folder of photos, as the trainer is to do it: photos, halves,
//! batches, mirrored images, masks, steps.

use std::path::Path;

use asng_trainer::data::{Augment, Batches, Images, Photos, Preprocess, mask};
use asng_trainer::space::Decision;
use asng_trainer::space::inpaint::{Architecture, Coding, Mask, Retraining, Settings};
use asng_trainer::supernet::inpaint::{Batch, Retrained, Supernet};
use image::{Rgb, RgbImage};
use tch::{Device, Kind};

const SIDE: i64 = 16;

/// Writes photos of coloured gradients.
fn write_photos(directory: &Path) {
    for i in 0..24_u32 {
        let shade = |x: u32, speed: u32| (40 * (i % 5) + speed * x) as u8;
        let photo = RgbImage::from_fn(20, 26, |x, y| Rgb([shade(x, 5), shade(y, 3), shade(x, 2)]));
        photo.save(directory.join(format!("{i:06}.jpg"))).unwrap();
    }
}

fn settings(mask: Mask) -> Settings {
    Settings {
        nodes: 3,
        level_back: 2,
        channels: 4,
        image_size: SIDE,
        batch_size: 4,
        learning_rate: 0.05,
        mask,
        // With it the weights learn within tens of steps.
        batch_norm: true,
        ..Settings::quick()
    }
}

/// The smallest value of each variable, plus a number where there is room.
fn architecture(settings: &Settings, coding: Coding, number: i64) -> Architecture {
    let value = |decision: &Decision| match decision {
        Decision::Categorical(variable) => number % variable.choices.len() as i64,
        Decision::Integer(variable) => variable.low + number % (variable.high - variable.low + 1),
    };
    let values: Vec<i64> = settings.variables(coding).iter().map(value).collect();
    Architecture::decode(&settings.space(coding), &values).unwrap()
}

fn batch(
    images: &Images,
    batches: &mut Batches,
    preprocess: &Preprocess,
    mask: Mask,
    number: u64,
) -> Batch {
    let pixels = images.select(batches.get(number)).unwrap().pixels;
    let images = preprocess.augmented(&pixels, Augment::FLIP, 7, number).unwrap();
    let shape = [images.size()[0], SIDE, SIDE];
    let mask = mask::draw(mask, 7, number, shape, Kind::Float, Device::Cpu).unwrap();
    Batch { images, mask }
}

#[test]
fn a_search_on_photos_learns_to_fill_in_with_every_mask_and_in_both_spaces() {
    // Threads cost more than they gain on shapes this small.
    tch::set_num_threads(1);
    let directory = tempfile::tempdir().unwrap();
    write_photos(directory.path());
    let photos = Photos::load(directory.path(), SIDE as u16).unwrap();
    let (weights, ranking) = photos.search_halves().unwrap();
    let preprocess = Preprocess::unit(Device::Cpu, Kind::Float, true).unwrap();
    for (mask, coding) in [
        (Mask::Center, Coding::Categorical),
        (Mask::Pixel, Coding::Integer),
        (Mask::Half, Coding::Categorical),
    ] {
        let settings = settings(mask);
        let mut supernet = Supernet::new(&settings, 3, Device::Cpu).unwrap();
        let architectures = [2, 3].map(|number| architecture(&settings, coding, number));
        let mut batches = [7, 8].map(|seed| Batches::new(seed, 10, 4).unwrap());
        let mut losses = Vec::new();
        for number in 0..40 {
            let train = batch(&weights, &mut batches[0], &preprocess, mask, number);
            let rank = batch(&ranking, &mut batches[1], &preprocess, mask, number);
            let outcome = supernet
                .search_step(&train, &architectures, &rank, &architectures, settings.learning_rate)
                .unwrap();
            losses.push(outcome.losses.iter().sum::<f64>() / 2.0);
        }
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        assert!(mean(&losses[35..]) < 0.5 * losses[0], "{mask:?} {losses:?}");
    }
}

#[test]
fn the_chosen_architecture_is_trained_alone() {
    let directory = tempfile::tempdir().unwrap();
    write_photos(directory.path());
    let photos = Photos::load(directory.path(), SIDE as u16).unwrap();
    let preprocess = Preprocess::unit(Device::Cpu, Kind::Float, true).unwrap();
    let settings = settings(Mask::Center);
    let chosen = architecture(&settings, Coding::Categorical, 2);
    let retraining = Retraining { batch_size: 8, iterations: 60, ..Retraining::PAPER };
    let (image, clip) = ([3, SIDE, SIDE], retraining.grad_clip);
    let mut alone =
        Retrained::new(chosen, image, settings.batch_norm, clip, 0, Device::Cpu).unwrap();
    let mut batches = Batches::new(0, 21, retraining.batch_size as usize).unwrap();
    let test = batch(&photos.train, &mut batches, &preprocess, Mask::Center, 1000);
    let before = alone.evaluate(&test).unwrap();
    for iteration in 0..retraining.iterations {
        let batch = batch(&photos.train, &mut batches, &preprocess, Mask::Center, iteration);
        alone.train_step(&batch, 10.0 * retraining.learning_rate_at(iteration)).unwrap();
    }
    let after = alone.evaluate(&test).unwrap();
    assert!(after.psnr > before.psnr + 3.0, "{before:?} {after:?}");
    assert!(after.ssim > before.ssim && after.loss < before.loss, "{before:?} {after:?}");
}
