//! `asng-trainer export`: a retrained network for other programs.
//!
//! | file | what it is |
//! | --- | --- |
//! | `network.pt` | TorchScript: reads images from 0 to 1, normalises them itself, on any number of them |
//! | `weights.safetensors` | weights and running statistics by name, without what only training needs |
//! | `network.json` | the network, its inputs and its outputs |
//! | `architecture.dot` | its graph, for Graphviz |

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tch::{CModule, Device, Kind, Tensor};

use crate::{
    evaluate::Weights,
    files,
    retrain::record::{Progress, Record},
    study,
    tasks::{self, network::AUXILIARY},
    torch,
};

/// The largest difference between the outputs of the loaded TorchScript and of the network, relative to the largest output.
const TOLERANCE: f64 = 1e-4;

/// The most bytes that TorchScript adds to the weights, for the code of the network.
const TORCHSCRIPT_CODE: usize = 4 << 20;

/// The options of `export`.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Arguments {
    /// The directory of the network, which `retrain` made
    #[arg(long, value_name = "DIR")]
    retrained: PathBuf,
    /// Its weights to export
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

/// The results of an export.
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

/// Writes all files and prints their paths.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { retrained, weights, out, overwrite, json } = arguments;
    let exported = Exported::load(retrained, *weights)?;
    let progress = exported.progress;
    let files = Files::of(out);
    if !overwrite {
        files.check(&exported, out)?;
    }
    torch::attempt(|| exported.write(&files, out))??;
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

/// A network on its way to other programs, on the CPU.
struct Exported {
    forward: tasks::Exported,
    /// Channels, height and width of an image.
    image: [i64; 3],
    tensors: Vec<(String, Tensor)>,
    description: Value,
    dot: String,
    progress: Progress,
}

/// The key of `network.json` with the digest of the retraining.
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
        let progress = record.progress(directory)?;
        let file = weights.file(directory)?;
        let (task, info) = (record.task()?, &record.data);
        let network = record.trained(&file, Device::Cpu)?;
        let tensors = named(&network.parameters, &network.statistics);
        let mut description = json!({
            "architecture": study::describe(&record.space, &record.values)?,
            "retraining_settings": record.settings,
            "parameters": record.parameters()?,
            "data": info,
            DIGEST: record.digest()?,
            "finished": progress.finished(),
            "progress": progress,
        });
        for (name, value) in task.interface(info) {
            description[name] = value;
        }
        Ok(Exported {
            image: info.shape,
            dot: task.dot(&record.values),
            forward: task.exported(network, info, &record.values),
            tensors,
            description,
            progress,
        })
    }

    /// Writes all files, first the one that identifies the network.
    fn write(&self, files: &Files, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        files::write(&files.description, serde_json::to_string_pretty(&self.description)?)?;
        whole(&files.weights, |part| Ok(Tensor::write_safetensors(&self.tensors, part)?))?;
        let size = fs::metadata(&files.weights).map_or(0, |metadata| metadata.len());
        whole(&files.torchscript, |part| {
            // libtorch ends the process when a disk is full, so the space is taken beforehand: the weights again, and the code.
            fs::write(part, vec![0; size as usize + TORCHSCRIPT_CODE])?;
            self.write_torchscript(part)
        })?;
        Ok(files::write(&files.graph, &self.dot)?)
    }

    /// Traces the network on two images, and compares the written file on three others.
    fn write_torchscript(&self, file: &Path) -> anyhow::Result<()> {
        let _guard = tch::no_grad_guard();
        let [channels, height, width] = self.image;
        let images =
            |count| Tensor::rand([count, channels, height, width], (Kind::Float, Device::Cpu));
        let mut forward = |images: &[Tensor]| vec![(self.forward)(&images[0])];
        let module = CModule::create_by_tracing("Network", "forward", &[images(2)], &mut forward)?;
        module.save(file)?;
        let others = images(3);
        let loaded = CModule::load(file)?.forward_ts(&[&others])?;
        let expected = (self.forward)(&others);
        let largest = f64::try_from(expected.abs().max())?.max(1.0);
        let difference = f64::try_from((loaded - expected).abs().max())?;
        ensure!(
            difference <= TOLERANCE * largest,
            "the outputs of the TorchScript differ from the network's by {difference}"
        );
        Ok(())
    }
}

/// Writes a file, whole or not at all.
fn whole(file: &Path, write: impl Fn(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let written = files::replace(file, |part| write(part).map_err(io::Error::other));
    Ok(written.map_err(files::Error::cannot("write", file))?)
}

/// Returns the tensors that a network needs when it is used, by name. They no longer require gradients, which a trace cannot hold.
fn named(parameters: &torch::Tensors, statistics: &torch::Tensors) -> Vec<(String, Tensor)> {
    let tensors = parameters.iter().chain(statistics);
    let tensors = tensors.map(|(name, tensor)| (name.clone(), tensor.set_requires_grad(false)));
    tensors.filter(|(name, _)| !name.starts_with(AUXILIARY)).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, process::Command};

    use super::*;
    use crate::{
        retrain::record::{
            LAST, RECORD,
            tests::{example, given},
        },
        tasks::settings::Preset,
    };

    fn classifier() -> Record {
        seeded("0")
    }

    fn seeded(seed: &str) -> Record {
        let size = [("cells", "3"), ("channels", "4"), ("batch_size", "4"), ("seed", seed)];
        example("enas-micro", Preset::Paper, &given(&size))
    }

    fn autoencoder() -> Record {
        example("inpaint-cat", Preset::Paper, &given(&[]))
    }

    /// A retraining in `directory` with the weights of its start.
    fn load(directory: &Path, record: &Record) -> Exported {
        let numbers = ["iterations", "seconds", "best"].map(|name| (name.to_owned(), 0.0));
        let snapshot = record.network(Device::Cpu).unwrap().snapshot().with(&numbers.into());
        snapshot.write(&directory.join(LAST)).unwrap();
        fs::write(directory.join(RECORD), serde_json::to_string(record).unwrap()).unwrap();
        Exported::load(directory, Weights::Last).unwrap()
    }

    fn export(directory: &Path, record: &Record) -> (Exported, Files) {
        let exported = load(directory, record);
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
    fn torchscript_computes_what_the_network_computes_for_any_number_of_images() {
        for record in [classifier(), autoencoder()] {
            let directory = tempfile::tempdir().unwrap();
            let (exported, files) = export(directory.path(), &record);
            let module = CModule::load(&files.torchscript).unwrap();
            for count in [1, 5] {
                let images = images(&exported, count);
                let expected = (exported.forward)(&images);
                let output = module.forward_ts(&[&images]).unwrap();
                assert_eq!(output.size()[0], count);
                let difference = f64::try_from((output - &expected).abs().max()).unwrap();
                assert!(difference < 1e-5, "{difference}");
                assert!(f64::try_from(expected.std(true)).unwrap() > 1e-3, "it is constant");
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
        assert_eq!(description["output"]["classes"][0], "wave 0");
        assert_eq!(description["architecture"]["space"], "enas-micro");
        assert_eq!(description["finished"], false);
        let trained = tensors.iter().filter(|(name, _)| !name.contains("running"));
        let trained: usize = trained.map(|(_, tensor)| tensor.numel()).sum();
        assert_eq!(description["parameters"], trained);
    }

    #[test]
    fn files_of_another_network_are_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (exported, files) = export(directory.path(), &classifier());
        let out = directory.path().join("exported");
        assert!(files.check(&exported, &out).is_ok());
        let refused = |record: &Record| {
            let directory = tempfile::tempdir().unwrap();
            let error = files.check(&load(directory.path(), record), &out).unwrap_err().to_string();
            assert!(error.ends_with("or replace them with --overwrite"), "{error}");
            error
        };
        assert!(refused(&seeded("1")).contains("(of another retraining of this architecture)"));
        assert!(refused(&autoencoder()).contains("(of another architecture)"));
        fs::remove_file(&files.description).unwrap();
        assert!(refused(&classifier()).contains("network.pt without a network.json"));
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
        let expected = (exported.forward)(&images);
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
