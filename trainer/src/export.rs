//! `asng-trainer export`: a retrained network for other programs.
//!
//! | file | what it is |
//! | --- | --- |
//! | `network.pt` | TorchScript: reads images from 0 to 1, normalises them itself, on any number of them |
//! | `weights.safetensors` | weights and running statistics by name, without what only training needs |
//! | `network.json` | what the network is, what it reads and says |
//! | `architecture.dot` | its graph, for Graphviz |

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tch::{CModule, Device, Kind, Tensor};

use crate::{
    data::cifar10,
    evaluate::Weights,
    files,
    retrain::recipe::{self, Progress, Recipe, Record},
    supernet::{self, enas_micro::Mode},
};

/// CIFAR-10's, in the order of its labels.
const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// The auxiliary head's tensors, which are for training only.
const AUXILIARY: &str = "auxiliary.";

/// By how much the loaded TorchScript may differ from the network, relative to the largest number of what it says.
const TOLERANCE: f64 = 1e-4;

/// What to export.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Arguments {
    /// The directory of the network, which `retrain` made
    #[arg(long, value_name = "DIR")]
    retrained: PathBuf,
    /// Which of its weights
    #[arg(long, value_enum, default_value = "last")]
    weights: Weights,
    /// Directory for the files, made if it is not there. The same network may be exported there again, as it trains further
    #[arg(long, default_value = "exported", value_name = "DIR")]
    out: PathBuf,
    /// Replace the files of another network in --out
    #[arg(long)]
    overwrite: bool,
    /// Print the files as one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Written {
    #[serde(flatten)]
    files: Files,
    finished: bool,
    progress: Progress,
}

/// The files of an exported network.
#[derive(Debug, Serialize)]
struct Files {
    torchscript: PathBuf,
    weights: PathBuf,
    description: PathBuf,
    graph: PathBuf,
}

/// Writes all files and says where they are.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { retrained, weights, out, overwrite, json } = arguments;
    let exported = Exported::load(retrained, *weights)?;
    let progress = exported.progress;
    let files = Files::of(out);
    if !overwrite {
        files.check(&exported, out)?;
    }
    exported.write(&files, out)?;
    if *json {
        let written = Written { files, finished: progress.finished(), progress };
        println!("{}", serde_json::to_string(&written)?);
        return Ok(());
    }
    println!("network      {}, {progress}", retrained.display());
    println!("torchscript  {}", files.torchscript.display());
    println!("weights      {}", files.weights.display());
    println!("description  {}", files.description.display());
    println!("graph        {}", files.graph.display());
    Ok(())
}

/// From images of 0 to 1 to what the network says of them.
type Forward = Box<dyn Fn(&Tensor) -> Result<Tensor, supernet::Error>>;

/// A network on its way to other programs, on the CPU.
struct Exported {
    forward: Forward,
    /// Channels, height and width of an image.
    image: [i64; 3],
    tensors: Vec<(String, Tensor)>,
    description: Value,
    dot: String,
    progress: Progress,
}

/// The key of `network.json` that says which retraining the network is of.
const DIGEST: &str = "retraining";

impl Files {
    fn of(directory: &Path) -> Files {
        Files {
            torchscript: directory.join("network.pt"),
            weights: directory.join("weights.safetensors"),
            description: directory.join("network.json"),
            graph: directory.join("architecture.dot"),
        }
    }

    /// Errors if one of the files is there and of another network than `exported`.
    fn check(&self, exported: &Exported, directory: &Path) -> anyhow::Result<()> {
        let refused = |reason: String| {
            anyhow::anyhow!(
                "{} has the files of another network ({reason}); give another --out, or replace them with --overwrite",
                directory.display()
            )
        };
        let text = match fs::read_to_string(&self.description) {
            Ok(text) => text,
            Err(_) => {
                for file in [&self.torchscript, &self.weights, &self.description] {
                    let reason = || format!("{} without a network.json", file.display());
                    ensure!(!file.exists(), refused(reason()));
                }
                let graph = fs::read_to_string(&self.graph);
                let reason = || format!("{} is of another architecture", self.graph.display());
                ensure!(
                    graph.is_err() || graph.is_ok_and(|dot| dot == exported.dot),
                    refused(reason())
                );
                return Ok(());
            }
        };
        let other: Value = serde_json::from_str(&text).unwrap_or_default();
        let same = |key| other[key] == exported.description[key];
        ensure!(same("architecture"), refused("of another architecture".to_owned()));
        ensure!(same(DIGEST), refused("of another retraining of this architecture".to_owned()));
        Ok(())
    }
}

impl Exported {
    fn load(directory: &Path, weights: Weights) -> anyhow::Result<Exported> {
        let record = Record::read(directory)?;
        let progress = record.recipe.progress(directory)?;
        let file = weights.file(directory)?;
        let mut exported = match &record.recipe {
            Recipe::Classification(recipe) => classifier(recipe, progress, &file),
            Recipe::Inpainting(recipe) => autoencoder(recipe, progress, &file),
        }?;
        let description = &mut exported.description;
        description[DIGEST] = record.recipe.digest()?.into();
        description["finished"] = progress.finished().into();
        description["progress"] = serde_json::to_value(progress)?;
        Ok(exported)
    }

    /// Writes all files, first the one that says what they are of.
    fn write(&self, files: &Files, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        files::write(&files.description, serde_json::to_string_pretty(&self.description)?)?;
        whole(&files.weights, |part| Ok(Tensor::write_safetensors(&self.tensors, part)?))?;
        whole(&files.torchscript, |part| self.write_torchscript(part))?;
        Ok(files::write(&files.graph, &self.dot)?)
    }

    /// Traces the network on two images, and compares what was written on three others.
    fn write_torchscript(&self, file: &Path) -> anyhow::Result<()> {
        let _guard = tch::no_grad_guard();
        let images = |count| {
            let [channels, height, width] = self.image;
            Tensor::f_rand([count, channels, height, width], (Kind::Float, Device::Cpu))
        };
        let mut fault = None;
        let mut forward = |images: &[Tensor]| match (self.forward)(&images[0]) {
            Ok(output) => vec![output],
            Err(error) => {
                fault = Some(error);
                vec![images[0].shallow_clone()]
            }
        };
        let module = CModule::create_by_tracing("Network", "forward", &[images(2)?], &mut forward)?;
        if let Some(fault) = fault {
            return Err(fault.into());
        }
        module.save(file)?;
        let others = images(3)?;
        let loaded = CModule::load(file)?.forward_ts(&[&others])?;
        let expected = (self.forward)(&others)?;
        let largest = f64::try_from(expected.f_abs()?.f_max()?)?.max(1.0);
        let difference = f64::try_from(loaded.f_sub(&expected)?.f_abs()?.f_max()?)?;
        ensure!(
            difference <= TOLERANCE * largest,
            "the TorchScript says other numbers than the network: they differ by {difference}"
        );
        Ok(())
    }
}

/// Writes a file, whole or not at all.
fn whole(file: &Path, write: impl Fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let written = files::replace(file, |part| write(part).map_err(io::Error::other));
    Ok(written.map_err(files::Error::cannot("write", file))?)
}

fn classifier(
    recipe: &recipe::Classification,
    progress: Progress,
    file: &Path,
) -> anyhow::Result<Exported> {
    let mut network = recipe.network(Device::Cpu)?;
    network.load_weights(file)?;
    let network = network.into_network();
    let tensors = named(network.parameters(), network.statistics())?;
    let architecture = recipe.architecture.architecture()?;
    let channels = |values: [f64; 3]| {
        Tensor::f_from_slice(&values)?.f_to_kind(Kind::Float)?.f_view([1, 3, 1, 1])
    };
    let (mean, std) = (channels(cifar10::MEAN)?, channels(cifar10::STD)?);
    let dot = architecture.dot();
    let image = [3, cifar10::SIDE, cifar10::SIDE];
    let description = json!({
        "task": "classification",
        "architecture": recipe.architecture,
        "cells": recipe.schedule.cells,
        "channels": recipe.channels,
        "parameters": architecture.parameters(&recipe.size()?, true),
        "input": {
            "name": "images",
            "shape": ["batch", image[0], image[1], image[2]],
            "type": "float32",
            "range": [0, 1],
            "channels": ["red", "green", "blue"],
            "normalisation": {"inside": true, "mean": cifar10::MEAN, "std": cifar10::STD},
        },
        "output": {"name": "logits", "shape": ["batch", cifar10::CLASSES], "classes": CLASSES},
    });
    let forward = move |images: &Tensor| {
        let images = images.f_sub(&mean)?.f_div(&std)?;
        Ok(network.forward(&images, &architecture, Mode::Evaluate)?.main)
    };
    Ok(Exported { forward: Box::new(forward), image, tensors, description, dot, progress })
}

fn autoencoder(
    recipe: &recipe::Inpainting,
    progress: Progress,
    file: &Path,
) -> anyhow::Result<Exported> {
    let mut network = recipe.network(Device::Cpu)?;
    network.load_weights(file)?;
    let network = network.into_network();
    let tensors = named(network.parameters(), network.statistics())?;
    let architecture = recipe.architecture.architecture()?;
    let dot = architecture.dot();
    let image = recipe.image;
    let shape = json!(["batch", image[0], image[1], image[2]]);
    let description = json!({
        "task": "inpainting",
        "architecture": recipe.architecture,
        "mask": recipe.mask,
        "batch_norm": recipe.batch_norm,
        "parameters": architecture.parameters(image, recipe.batch_norm),
        "input": {
            "name": "images",
            "shape": shape,
            "type": "float32",
            "range": [0, 1],
            "hidden": "0 in all channels",
        },
        "output": {"name": "images", "shape": shape, "range": [0, 1]},
    });
    let forward = move |images: &Tensor| {
        let output = network.forward(images, &architecture, Mode::Evaluate)?;
        Ok(output.f_clamp(0.0, 1.0)?)
    };
    Ok(Exported { forward: Box::new(forward), image, tensors, description, dot, progress })
}

/// What a network needs when it is used, by name. They no longer ask for gradients, which a trace cannot hold.
fn named(
    parameters: &BTreeMap<String, Tensor>,
    statistics: &BTreeMap<String, Tensor>,
) -> Result<Vec<(String, Tensor)>, tch::TchError> {
    let mut tensors = Vec::new();
    for (name, tensor) in parameters.iter().chain(statistics) {
        let tensor = tensor.f_set_requires_grad(false)?;
        if !name.starts_with(AUXILIARY) {
            tensors.push((name.clone(), tensor));
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::space::{
        enas_micro::{self, Retraining},
        inpaint::{self, Coding, Mask, Space},
    };

    /// Every operation, in cells of both kinds.
    fn classifier() -> Recipe {
        let values = [0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3];
        let architecture = enas_micro::Architecture::decode(2, &values).unwrap();
        Recipe::Classification(recipe::Classification {
            architecture: architecture.describe(),
            channels: 4,
            schedule: Retraining { cells: 3, ..Retraining::PAPER },
            seed: 0,
            images: 1,
            test_images: 1,
        })
    }

    /// Nodes with and without skip, and an odd size on the way.
    fn autoencoder() -> Recipe {
        let space = Space { coding: Coding::Categorical, nodes: 3, level_back: 2, channels: 2 };
        let values = [3, 2, 0, 4, 0, 1, 1, 1, 0, 0, 0, 0];
        let architecture = inpaint::Architecture::decode(&space, &values).unwrap();
        Recipe::Inpainting(recipe::Inpainting {
            architecture: architecture.describe(),
            image: [3, 18, 18],
            mask: Mask::Half,
            batch_norm: true,
            schedule: inpaint::Retraining::PAPER,
            seed: 0,
            images: 1,
            test_images: 1,
        })
    }

    /// Exports a network with the weights of its start; what it makes of images, and what was written.
    fn export(directory: &Path, recipe: &Recipe) -> (Exported, Files) {
        let file = directory.join(recipe::LAST);
        let start = [("iterations".to_owned(), 0.0)].into();
        match recipe {
            Recipe::Classification(recipe) => {
                recipe.network(Device::Cpu).unwrap().save(&file, &start).unwrap();
            }
            Recipe::Inpainting(recipe) => {
                recipe.network(Device::Cpu).unwrap().save(&file, &start).unwrap();
            }
        }
        let text = serde_json::to_string(recipe).unwrap();
        fs::write(directory.join(recipe::RECIPE), text).unwrap();
        let exported = Exported::load(directory, Weights::Last).unwrap();
        let out = directory.join("exported");
        let files = Files::of(&out);
        exported.write(&files, &out).unwrap();
        (exported, files)
    }

    fn images(exported: &Exported, count: i64) -> Tensor {
        let [channels, height, width] = exported.image;
        let numbers = Tensor::arange(count * channels * height * width, (Kind::Float, Device::Cpu));
        let numbers: Tensor = (numbers * 0.37).sin() * 0.5 + 0.5;
        numbers.view([count, channels, height, width])
    }

    #[test]
    fn torchscript_says_what_the_network_says_of_any_number_of_images() {
        for recipe in [classifier(), autoencoder()] {
            let directory = tempfile::tempdir().unwrap();
            let (exported, files) = export(directory.path(), &recipe);
            let module = CModule::load(&files.torchscript).unwrap();
            for count in [1, 5] {
                let images = images(&exported, count);
                let expected = (exported.forward)(&images).unwrap();
                let output = module.forward_ts(&[&images]).unwrap();
                assert_eq!(output.size()[0], count);
                let difference = f64::try_from((output - &expected).abs().max()).unwrap();
                assert!(difference < 1e-5, "{difference}");
                assert!(f64::try_from(expected.std(true)).unwrap() > 1e-3, "it says nothing");
            }
        }
    }

    #[test]
    fn the_weights_are_those_that_a_network_is_used_with() {
        let directory = tempfile::tempdir().unwrap();
        let (_, files) = export(directory.path(), &classifier());
        let tensors = Tensor::read_safetensors(&files.weights).unwrap();
        let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        assert_eq!(tensors["stem.conv.weight"].size(), [12, 3, 3, 3]);
        assert_eq!(tensors["stem.norm.running_mean"].size(), [12]);
        assert!(tensors.keys().all(|name| !name.starts_with(AUXILIARY)));
        let text = fs::read_to_string(&files.description).unwrap();
        let description: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(description["output"]["classes"][0], "airplane");
        assert_eq!(description["architecture"]["space"], "enas-micro");
        let trained = tensors.iter().filter(|(name, _)| !name.contains("running"));
        let trained: usize = trained.map(|(_, tensor)| tensor.numel()).sum();
        assert_eq!(description["parameters"], trained);
    }

    #[test]
    fn pytorch_reads_it() {
        let python = |script: &str, arguments: &[&Path]| {
            Command::new("python3").args(["-c", script]).args(arguments).output()
        };
        if !python("import torch", &[]).is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: python3 has no torch");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (exported, files) = export(directory.path(), &classifier());
        let images = images(&exported, 3);
        let expected = (exported.forward)(&images).unwrap();
        let file = directory.path().join("case.safetensors");
        Tensor::write_safetensors(&[("images", images), ("expected", expected)], &file).unwrap();
        let script = "\
import json, struct, sys, torch
data = open(sys.argv[2], 'rb').read()
size = struct.unpack('<Q', data[:8])[0]
def tensor(name):
    entry = json.loads(data[8:8 + size])[name]
    first, last = entry['data_offsets']
    part = bytearray(data[8 + size + first:8 + size + last])
    return torch.frombuffer(part, dtype=torch.float32).view(entry['shape'])
output = torch.jit.load(sys.argv[1])(tensor('images'))
assert (output - tensor('expected')).abs().max() < 1e-5
";
        let output = python(script, &[&files.torchscript, &file]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
