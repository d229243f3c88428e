//! `asng-trainer export`: a retrained network for other programs.
//!
//! | file | what it is |
//! | --- | --- |
//! | `network.pt` | TorchScript: reads images from 0 to 1, normalises them itself, on any number of them |
//! | `network.onnx` | the same as ONNX |
//! | `weights.safetensors` | weights, running statistics and constants by name, without what only training needs |
//! | `network.json` | the network, its inputs and its outputs |
//! | `architecture.dot` | its graph, for Graphviz |

mod onnx;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use tch::{CModule, Device, Kind, Tensor};

use crate::{
    evaluate::Weights,
    files,
    retrain::record::{Progress, Record},
    study,
    tasks::network::AUXILIARY,
    torch,
};

/// The largest difference between the outputs of the loaded TorchScript and of the network, relative to the largest output.
const TOLERANCE: f64 = 1e-4;

/// The most bytes that TorchScript adds to the weights, for the code of the network, and to each of them.
const TORCHSCRIPT_CODE: usize = 4 << 20;
const TORCHSCRIPT_TENSOR: usize = 1 << 10;

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
    /// Formats of the network's file, beside its weights and its description; the file of another format is removed
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "torchscript,onnx",
        value_name = "FORMAT,…"
    )]
    format: Vec<Format>,
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

/// A file that other programs compute the network's outputs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// network.pt, for PyTorch and libtorch; weights are parameters, so that it can be converted and trained
    #[value(name = "torchscript")]
    TorchScript,
    /// network.onnx, for ONNX Runtime and others: operators of version 17
    Onnx,
}

/// The results of an export.
#[derive(Debug, Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    files: BTreeMap<&'a str, &'a Path>,
    finished: bool,
    progress: Progress,
}

/// The files of an exported network.
#[derive(Debug)]
struct Files {
    torchscript: PathBuf,
    onnx: PathBuf,
    weights: PathBuf,
    description: PathBuf,
    graph: PathBuf,
}

/// Writes all files and prints their paths.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { retrained, weights, format, out, overwrite, json } = arguments;
    let exported = Exported::load(retrained, *weights)?;
    let progress = exported.progress;
    let files = Files::of(out);
    if !overwrite {
        files.check(&exported, out)?;
    }
    torch::attempt(|| exported.write(&files, out, format))??;
    let files = files.written(format);
    if *json {
        let files = files.into_iter().collect();
        let written = Written { files, finished: progress.finished(), progress };
        println!("{}", serde_json::to_string(&written)?);
        return Ok(());
    }
    println!("network      {}, {progress}", retrained.display());
    for (name, file) in files {
        println!("{name:11}  {}", file.display());
    }
    Ok(())
}

/// A network on its way to other programs, on the CPU.
struct Exported {
    forward: Box<dyn Fn(&Tensor) -> Tensor>,
    /// Channels, height and width of an image.
    image: [i64; 3],
    /// Its parameters and its buffers, by name.
    tensors: [Vec<(String, Tensor)>; 2],
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
            onnx: directory.join("network.onnx"),
            weights: directory.join("weights.safetensors"),
            description: directory.join("network.json"),
            graph: directory.join("architecture.dot"),
        }
    }

    /// The file of each format.
    fn networks(&self) -> [(Format, &'static str, &Path); 2] {
        [
            (Format::TorchScript, "torchscript", &self.torchscript),
            (Format::Onnx, "onnx", &self.onnx),
        ]
    }

    /// The files that are there after an export, by what they are.
    fn written(&self, formats: &[Format]) -> Vec<(&'static str, &Path)> {
        let networks = self.networks().into_iter().filter(|(format, ..)| formats.contains(format));
        let rest: [(_, &Path); 3] = [
            ("weights", &self.weights),
            ("description", &self.description),
            ("graph", &self.graph),
        ];
        networks.map(|(_, name, file)| (name, file)).chain(rest).collect()
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
                for file in [&self.torchscript, &self.onnx, &self.weights] {
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
        let parameters = used(&network.parameters).collect();
        let mut buffers: Vec<_> = used(&network.statistics).collect();
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
        let exported = task.exported(network, info, &record.values);
        buffers.extend(exported.constants);
        Ok(Exported {
            image: info.shape,
            dot: task.dot(&record.values),
            forward: exported.forward,
            tensors: [parameters, buffers],
            description,
            progress,
        })
    }

    /// Writes all files, first the one that identifies the network. Files of other formats, of an earlier export, are removed.
    fn write(&self, files: &Files, directory: &Path, formats: &[Format]) -> anyhow::Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        files::write(&files.description, serde_json::to_string_pretty(&self.description)?)?;
        let tensors = || self.tensors.iter().flatten();
        whole(&files.weights, |part| {
            let tensors: Vec<_> = tensors().map(|(name, tensor)| (name, tensor)).collect();
            Ok(Tensor::write_safetensors(&tensors, part)?)
        })?;
        let size = fs::metadata(&files.weights).map_or(0, |metadata| metadata.len());
        let mut trace = String::new();
        // Whatever the formats are: ONNX is made of what is compared with the network as TorchScript.
        whole(&files.torchscript, |part| {
            // libtorch ends the process when a disk is full, so the space is taken beforehand: the weights again, and the code.
            let code = TORCHSCRIPT_CODE + TORCHSCRIPT_TENSOR * tensors().count();
            fs::write(part, vec![0; size as usize + code])?;
            trace = self.write_torchscript(part)?;
            Ok(())
        })?;
        if formats.contains(&Format::Onnx) {
            let [input, output] = ["input", "output"].map(|name| &self.description[name]);
            files::write(&files.onnx, onnx::write(&trace, tensors(), input, output)?)?;
        }
        for (format, _, file) in files.networks() {
            if !formats.contains(&format) && file.exists() {
                fs::remove_file(file).map_err(files::Error::cannot("remove", file))?;
            }
        }
        Ok(files::write(&files.graph, &self.dot)?)
    }

    /// Traces the network on two images, compares the written file on three others, and returns the trace's graph.
    fn write_torchscript(&self, file: &Path) -> anyhow::Result<String> {
        let _guard = tch::no_grad_guard();
        let [channels, height, width] = self.image;
        let images =
            |count| Tensor::rand([count, channels, height, width], (Kind::Float, Device::Cpu));
        let tensors = self.tensors.each_ref().map(Vec::as_slice);
        let graph = asng_native::trace(&images(2), tensors, &self.forward, file)?;
        let others = images(3);
        let loaded = CModule::load(file)?.forward_ts(&[&others])?;
        let expected = (self.forward)(&others);
        let largest = f64::try_from(expected.abs().max())?.max(1.0);
        let difference = f64::try_from((loaded - expected).abs().max())?;
        ensure!(
            difference <= TOLERANCE * largest,
            "the outputs of the TorchScript differ from the network's by {difference}"
        );
        Ok(graph)
    }
}

/// Writes a file, whole or not at all.
fn whole(file: &Path, write: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let written = files::replace(file, |part| write(part).map_err(io::Error::other));
    Ok(written.map_err(files::Error::cannot("write", file))?)
}

/// Returns the tensors that a network needs when it is used, by name.
fn used(tensors: &torch::Tensors) -> impl Iterator<Item = (String, Tensor)> {
    let used = tensors.iter().filter(|(name, _)| !name.starts_with(AUXILIARY));
    used.map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;
    use crate::{
        retrain::record::{
            LAST, RECORD,
            tests::{begin, example, given},
        },
        tasks::{settings::Preset, space::Space},
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

    /// A small network of each space, with every operation and activation among them.
    fn networks() -> Vec<Record> {
        let chain = r#"
            name = "activations"
            description = "every activation"
            source = "this test"
            [chain]
            stem = { channels = 8, kernel = 3, stride = 2 }
            activation = "hard_swish"
            rows = ["er_r[1-2]_k3_s1_e2_c8_se0.25", "cn_r1_k3_s2_c16_nsw", "ds_r1_k[3,5]_s1_c16_se0.5_nre", "ir_r1_k3_s1_e2_c24_nr6"]
        "#;
        let network = |name: &str, definition: &str, settings, values: &[i64]| {
            let (name, definition) = (name.to_owned(), definition.to_owned());
            let space = Space { name, definition, settings: given(settings) };
            let variables = study::task(&space).unwrap().variables();
            let cycle = (0..).zip(&variables).map(|(i, variable)| {
                let (low, high) = variable.range();
                low + i % (high - low + 1)
            });
            let values = if values.is_empty() { cycle.collect() } else { values.to_vec() };
            begin(space, &values, Preset::Quick, &given(&[]))
        };
        // Module and inputs of each node: with batch normalisation, every module of the space that fits images of 16 pixels.
        let nodes = [0, 0, 0, 1, 0, 1, 2, 1, 2, 3, 1, 3, 4, 0, 4, 5, 0, 4, 0, 0, 4];
        let inpainting = [("nodes", "6"), ("channels", "2"), ("batch_norm", "true")];
        vec![
            network("enas-micro", "", &[("nodes", "2")], &[]),
            // The first node is read by the others although its only edge is `none`.
            network("nasbench201", "", &[], &[0, 1, 2, 3, 4, 1]),
            network("darts", "", &[("nodes", "4")], &[]),
            network("mobile", "", &[("width", "0.25")], &[]),
            network("chain", chain, &[], &[]),
            network("inpaint-cat", "", &inpainting, &nodes),
        ]
    }

    /// A retraining in `directory` with the weights of its start, and with normalisations that do something.
    fn load(directory: &Path, record: &Record) -> Exported {
        let mut network = record.network(Device::Cpu).unwrap();
        let _guard = tch::no_grad_guard();
        for tensor in network.parameters.values_mut().chain(network.statistics.values_mut()) {
            if let [channels] = tensor.size()[..] {
                *tensor += (Tensor::arange(channels, (Kind::Float, Device::Cpu)) * 1.7).sin() * 0.2;
            }
        }
        let numbers = ["iterations", "seconds", "best"].map(|name| (name.to_owned(), 0.0));
        let snapshot = network.snapshot().with(&numbers.into());
        snapshot.write(&directory.join(LAST)).unwrap();
        fs::write(directory.join(RECORD), serde_json::to_string(record).unwrap()).unwrap();
        Exported::load(directory, Weights::Last).unwrap()
    }

    fn export(directory: &Path, record: &Record) -> (Exported, Files) {
        let exported = load(directory, record);
        let out = directory.join("exported");
        let files = Files::of(&out);
        exported.write(&files, &out, Format::value_variants()).unwrap();
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
        let trained = |name: &str| !name.contains("running") && !name.contains("normalisation");
        let trained = tensors.iter().filter(|(name, _)| trained(name));
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
    fn formats_that_are_not_asked_for_are_no_longer_there() {
        let directory = tempfile::tempdir().unwrap();
        let (exported, files) = export(directory.path(), &autoencoder());
        let there = || [files.torchscript.exists(), files.onnx.exists()];
        assert_eq!(there(), [true, true]);
        let out = directory.path().join("exported");
        exported.write(&files, &out, &[Format::Onnx]).unwrap();
        assert_eq!(there(), [false, true]);
        exported.write(&files, &out, &[Format::TorchScript]).unwrap();
        assert_eq!(there(), [true, false]);
        let written = files.written(&[Format::TorchScript]);
        assert_eq!((written[0], written.len()), (("torchscript", &*files.torchscript), 4));
    }

    /// Runs check.py. Skipped outside of CI if Python has not the packages that it needs.
    fn check(program: &str, needed: &str, directories: &[PathBuf]) {
        let python = env::var_os("ASNG_PYTHON").unwrap_or_else(|| "python3".into());
        let run = |script: &str| {
            Command::new(&python).args(["-c", script, program]).args(directories).output()
        };
        if !run(&format!("import numpy, {needed}")).is_ok_and(|output| output.status.success()) {
            assert!(env::var_os("CI").is_none(), "{} lacks {needed}", python.display());
            eprintln!("skipped: {} lacks {needed}; ASNG_PYTHON names another", python.display());
            return;
        }
        let output = run(include_str!("export/check.py")).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn other_programs_compute_what_the_network_computes() {
        let parent = tempfile::tempdir().unwrap();
        let mut directories = Vec::new();
        for record in networks() {
            let directory = parent.path().join(&record.space.name);
            fs::create_dir(&directory).unwrap();
            let (exported, _) = export(&directory, &record);
            let _guard = tch::no_grad_guard();
            let case = |count| {
                let images = images(&exported, count);
                let output = (exported.forward)(&images).contiguous();
                assert!(f64::try_from(output.std(true)).unwrap() > 1e-3, "it is constant");
                [(format!("images{count}"), images), (format!("output{count}"), output)]
            };
            let cases: Vec<_> = [1, 7].into_iter().flat_map(case).collect();
            Tensor::write_safetensors(&cases, directory.join("exported/cases")).unwrap();
            directories.push(directory.join("exported"));
        }
        check("onnx", "onnx, onnxruntime", &directories);
        check("torch", "torch", &directories);
    }
}
