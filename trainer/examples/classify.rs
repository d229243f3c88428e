//! Classifies images with a network that `asng-trainer export` wrote: `classify EXPORTED DIR`.
//!
//! DIR has a folder of images for each class, of the size that the network reads. It uses nothing of the trainer: TorchScript and
//! `network.json` are all that another program needs. Prints the part of the images whose class was found.

use std::{env, fs, path::Path};

use anyhow::Context;
use tch::{CModule, Device, Kind, Tensor};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [exported, images] = &arguments[..] else { anyhow::bail!("usage: classify EXPORTED DIR") };
    let text = fs::read_to_string(Path::new(exported).join("network.json"))?;
    let description: serde_json::Value = serde_json::from_str(&text)?;
    let grey = description["input"]["shape"][1] == 1;
    let classes = description["output"]["classes"].as_array().context("it is no classifier")?;
    let network = CModule::load(Path::new(exported).join("network.pt"))?;
    let (mut found, mut all) = (0, 0);
    for (label, class) in classes.iter().enumerate() {
        let folder = Path::new(images).join(class.as_str().context("a class has no name")?);
        for file in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let image = image::open(file?.path())?;
            let (height, width) = (i64::from(image.height()), i64::from(image.width()));
            let (bytes, channels) = match grey {
                true => (image.into_luma8().into_raw(), 1),
                false => (image.into_rgb8().into_raw(), 3),
            };
            let pixels = Tensor::from_slice(&bytes).view([1, height, width, channels]);
            let input = pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
            let logits = network.forward_ts(&[input.to_device(Device::Cpu)])?;
            found += i32::from(logits.argmax(-1, false).int64_value(&[0]) == label as i64);
            all += 1;
        }
    }
    println!("{}", f64::from(found) / f64::from(all));
    Ok(())
}
