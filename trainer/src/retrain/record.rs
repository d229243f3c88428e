//! Everything that decides a retraining, as it is written beside the weights: with it, the network can be built again.

use std::{fmt, fs, io, path::Path};

use anyhow::{Context, ensure};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Device, Kind};

use crate::{
    images::{Catalogue, DataSet, Info},
    study::{self, Found, Source},
    tasks::{
        self, Length, Task,
        network::Network,
        settings::{Given, Preset},
        space::Space,
    },
    torch,
};

/// The file of a [`Record`].
pub(crate) const RECORD: &str = "retraining.json";
/// The file of the newest weights, with all that is needed to go on.
pub(crate) const LAST: &str = "last.safetensors";
/// The file of the weights with the best metric on the test images.
pub(crate) const BEST: &str = "best.safetensors";

/// The name of the number of minibatches done in [`LAST`].
pub(super) const ITERATIONS: &str = "iterations";

/// Everything that decides a retraining.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The space, with the settings of the study.
    #[serde(flatten)]
    pub(crate) space: Space,
    /// The architecture: one value for each variable.
    pub(crate) values: Vec<i64>,
    /// The origin of the architecture.
    pub(crate) source: Source,
    /// The source of all settings that were not given.
    pub(crate) preset: Preset,
    /// Every setting of the retraining.
    #[serde(rename = "retraining")]
    pub(crate) settings: Given,
    /// Training and test images that are used, the first ones.
    pub(crate) train_images: i64,
    pub(crate) test_images: i64,
    /// The images.
    pub(crate) data: Info,
}

impl Record {
    /// Begins the record of a new retraining. Errors with what is wrong with the settings or the images.
    pub(crate) fn new(
        Found { space, values, source }: Found,
        preset: Preset,
        given: &Given,
        [train_images, test_images]: [Option<i64>; 2],
        catalogue: &Catalogue,
    ) -> anyhow::Result<(Record, DataSet)> {
        let task = study::task(&space)?;
        tasks::check(&task.variables(), &values)?;
        let none = format!("an architecture of the space {} is no network to retrain", space.name);
        ensure!(task.images().is_some(), none);
        // Neither the size of images nor their number of channels is known before the settings are.
        let size = given.get("image_size").and_then(|size| size.parse().ok());
        let mut request = task.images().context(none)?;
        request.image_size = size.or(request.image_size).filter(|size| *size > 0);
        let data = catalogue.open(&request)?;
        let retraining = retraining(&*task, &data.info, &values, preset, given)?;
        retraining.accepts(&data.info).map_err(anyhow::Error::msg)?;
        let all = data.train.len();
        let train_images = train_images.unwrap_or(all);
        ensure!(
            (1..=all).contains(&train_images),
            "--train-images: there are {all} training images, not {train_images}"
        );
        let batch_size = retraining.training().batch_size;
        ensure!(
            batch_size <= train_images,
            "--batch-size {batch_size}: there are {train_images} training images"
        );
        let record = Record {
            space,
            values,
            source,
            preset,
            settings: retraining.settings(),
            train_images,
            test_images: test_images.unwrap_or(data.test.len()),
            data: data.info.clone(),
        };
        Ok((record, data))
    }

    /// Reads it from the directory of a retraining.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Record> {
        let record = Record::find(directory)?;
        record.with_context(|| {
            format!(
                "there is no {}: give the --out of a `retrain` that has begun",
                directory.join(RECORD).display()
            )
        })
    }

    /// Reads it from a directory in which there may be no retraining.
    pub(crate) fn find(directory: &Path) -> anyhow::Result<Option<Record>> {
        let file = directory.join(RECORD);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("cannot read {}", file.display()))?,
        };
        let read = || -> anyhow::Result<Record> {
            let record: Record = serde_json::from_str(&text)?;
            tasks::check(&study::task(&record.space)?.variables(), &record.values)?;
            Ok(record)
        };
        read().map(Some).with_context(|| format!("{} describes no retraining", file.display()))
    }

    /// Returns the task of the retraining.
    pub(crate) fn task(&self) -> anyhow::Result<Box<dyn Task>> {
        self.task_with(&self.settings)
    }

    /// Returns the task of the retraining with other settings.
    pub(crate) fn task_with(&self, settings: &Given) -> anyhow::Result<Box<dyn Task>> {
        let task = study::task(&self.space)?;
        retraining(&*task, &self.data, &self.values, self.preset, settings)
    }

    /// Reads the images. Errors if they are not those that the retraining has begun with.
    pub(crate) fn data(&self, catalogue: &Catalogue) -> anyhow::Result<DataSet> {
        let data = catalogue.open(&self.task()?.images().context("the task has no images")?)?;
        ensure!(
            data.info.digest == self.data.digest,
            "the images of data set {} have changed since this network was trained; restore them, or retrain it with another --out",
            self.data.name
        );
        Ok(data)
    }

    /// Builds the network with new weights.
    pub(crate) fn network(&self, device: Device) -> anyhow::Result<Network> {
        let task = self.task()?;
        let build = || task.network(&self.data, Some(&self.values), device, Kind::Float);
        Ok(torch::attempt(build)?)
    }

    /// Builds the network with the weights in `file`.
    pub(crate) fn trained(&self, file: &Path, device: Device) -> anyhow::Result<Network> {
        let mut network = self.network(device)?;
        let Network { parameters, statistics, .. } = &mut network;
        torch::load(file, &mut [("weight", parameters), ("statistic", statistics)])?;
        Ok(network)
    }

    /// Returns the number of trainable parameters, without those that only training needs.
    pub(crate) fn parameters(&self) -> anyhow::Result<i64> {
        let costs = self.task()?.costs(&self.data, &self.values);
        Ok(costs.context("the architecture is no network")?.parameters)
    }

    /// Returns the origin of the architecture and its values, such as "chosen of study a: 0,4,1".
    pub(crate) fn architecture(&self) -> String {
        format!("{}: {}", self.source, study::list(&self.values))
    }

    /// Returns a number that no other retraining has: SHA-256, hexadecimal.
    pub(crate) fn digest(&self) -> anyhow::Result<String> {
        Ok(HEXLOWER.encode(&Sha256::digest(serde_json::to_vec(self)?)))
    }

    /// Returns the length of the training as text, such as "600 epochs of 625 batches of 80 images".
    pub(crate) fn length(&self) -> anyhow::Result<String> {
        let training = self.task()?.training();
        let (per_epoch, size) = (self.per_epoch(training.batch_size), training.batch_size);
        Ok(match training.length {
            Length::Epochs(epochs) => {
                let epochs = plural(epochs, "epoch");
                format!("{epochs} of {} of {size} images", plural(per_epoch, "batch"))
            }
            Length::Batches { total, .. } => format!("{} of {size} images", plural(total, "batch")),
        })
    }

    /// Returns how far the retraining in `directory` has come.
    pub(crate) fn progress(&self, directory: &Path) -> anyhow::Result<Progress> {
        let last = directory.join(LAST);
        let iterations = match last.exists() {
            true => *torch::numbers(&last)?
                .get(ITERATIONS)
                .with_context(|| format!("{} is no checkpoint of a retraining", last.display()))?
                as u64,
            false => 0,
        };
        let training = self.task()?.training();
        let per_epoch = self.per_epoch(training.batch_size);
        Ok(match training.length {
            Length::Epochs(epochs) => {
                Progress { iterations, total: epochs * per_epoch, per_epoch: Some(per_epoch) }
            }
            Length::Batches { total, .. } => Progress { iterations, total, per_epoch: None },
        })
    }

    /// Returns the whole minibatches of a pass over the training images.
    fn per_epoch(&self, batch_size: i64) -> u64 {
        (self.train_images / batch_size.max(1)) as u64
    }
}

fn retraining(
    task: &dyn Task,
    info: &Info,
    values: &[i64],
    preset: Preset,
    given: &Given,
) -> anyhow::Result<Box<dyn Task>> {
    let task = task.retraining(info, values, preset, given);
    task.map_err(|violations| {
        let flags = violations.iter().map(|violation| {
            let name = violation.field.trim_start_matches("settings.").replace('_', "-");
            format!("--{name} {}", violation.description)
        });
        anyhow::anyhow!("{}", flags.collect::<Vec<_>>().join("; "))
    })
}

/// The progress of a retraining.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Progress {
    /// Minibatches done.
    iterations: u64,
    /// Minibatches in all.
    total: u64,
    /// Minibatches of an epoch, where the length is a number of epochs.
    #[serde(skip)]
    per_epoch: Option<u64>,
}

impl Progress {
    pub(crate) fn finished(&self) -> bool {
        self.iterations >= self.total
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, per_unit) = match self.per_epoch {
            Some(per_epoch) => ("epoch", per_epoch.max(1)),
            None => ("batch", 1),
        };
        let total = plural(self.total / per_unit, unit);
        if self.finished() {
            return write!(f, "finished: {total}");
        }
        let tenths = self.iterations * 10 / per_unit;
        write!(f, "not finished: {}", tenths / 10)?;
        if !tenths.is_multiple_of(10) {
            write!(f, ".{}", tenths % 10)?;
        }
        write!(f, " of {total}")
    }
}

/// Returns a number of epochs or batches as text.
fn plural(count: u64, unit: &str) -> String {
    match (count, unit) {
        (1, _) => format!("1 {unit}"),
        (_, "batch") => format!("{count} batches"),
        _ => format!("{count} {unit}s"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tch::Tensor;

    use super::*;
    use crate::images::Images;

    pub(crate) fn given(settings: &[(&str, &str)]) -> Given {
        settings.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    /// The images of an example: 8 for training, of which 4 are tested, each of a class of its own.
    pub(crate) fn data() -> DataSet {
        let byte = |k: i64| (127.5 * (1.0 + (0.3 * (k * k) as f64).sin())) as u8;
        let pixels: Vec<u8> = (0..8 * 3 * 16 * 16).map(byte).collect();
        let train = Images {
            pixels: Tensor::from_slice(&pixels).view([8, 3, 16, 16]),
            labels: Tensor::arange(8, (Kind::Int64, Device::Cpu)),
        };
        let info = Info {
            name: "waves".into(),
            classes: (0..8).map(|class| format!("wave {class}")).collect(),
            shape: [3, 16, 16],
            mean: vec![0.5; 3],
            std: vec![0.25; 3],
            digest: "0".into(),
        };
        DataSet { info, test: train.narrow(0, 4), train, refused: Vec::new(), sorted: false }
    }

    /// Begins a retraining on [`data`] in a space of cells or of autoencoders.
    pub(crate) fn example(space: &str, preset: Preset, settings: &Given) -> Record {
        // Small architectures with every operation of their space, and the settings of their studies.
        let (of_study, values): (&[_], &[_]) = match space {
            "enas-micro" => (&[("nodes", "2")], &[0, 1, 3, 0, 2, 0, 4, 1, 1, 1, 2, 2, 0, 1, 0, 3]),
            _ => (
                &[
                    ("nodes", "3"),
                    ("level_back", "2"),
                    ("channels", "2"),
                    ("mask", "half"),
                    ("batch_norm", "true"),
                ],
                &[3, 2, 0, 4, 0, 1, 1, 1, 0, 0, 0, 0],
            ),
        };
        let space = Space { name: space.into(), settings: given(of_study), ..Space::default() };
        begin(space, values, preset, settings)
    }

    /// Begins a retraining of these values on [`data`].
    pub(crate) fn begin(space: Space, values: &[i64], preset: Preset, given: &Given) -> Record {
        let task = study::task(&space).unwrap();
        let data = data();
        Record {
            settings: retraining(&*task, &data.info, values, preset, given).unwrap().settings(),
            space,
            values: values.to_vec(),
            source: Source { architecture: "mode".into(), study: Some("a".into()), study_id: None },
            preset,
            train_images: data.train.len(),
            test_images: data.test.len(),
            data: data.info,
        }
    }

    #[test]
    fn a_record_is_read_back_from_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(RECORD);
        assert!(Record::find(directory.path()).unwrap().is_none());
        let error = Record::read(directory.path()).unwrap_err().to_string();
        assert!(error.ends_with("give the --out of a `retrain` that has begun"), "{error}");
        for space in ["enas-micro", "inpaint-cat"] {
            let record = example(space, Preset::Paper, &Given::new());
            fs::write(&file, serde_json::to_string_pretty(&record).unwrap()).unwrap();
            let read = Record::read(directory.path()).unwrap();
            assert_eq!(read, record);
            assert_eq!(read.digest().unwrap(), record.digest().unwrap());
            assert!(record.architecture().starts_with("mode of study a: "));
            let cut = Record { values: record.values[1..].to_vec(), ..record };
            fs::write(&file, serde_json::to_string(&cut).unwrap()).unwrap();
            let error = Record::read(directory.path()).unwrap_err().to_string();
            assert!(error.ends_with("retraining.json describes no retraining"), "{error}");
        }
        fs::write(&file, "{").unwrap();
        assert!(Record::find(directory.path()).is_err());
    }

    #[test]
    fn lengths_are_told_in_epochs_or_batches() {
        let length = |space| example(space, Preset::Paper, &given(&[("batch_size", "4")])).length();
        assert_eq!(length("enas-micro").unwrap(), "600 epochs of 2 batches of 4 images");
        assert_eq!(length("inpaint-cat").unwrap(), "500000 batches of 4 images");
    }

    #[test]
    fn progress_is_told_in_epochs_or_batches() {
        let text =
            |iterations, total, per_epoch| Progress { iterations, total, per_epoch }.to_string();
        assert_eq!(text(75_000, 375_000, Some(625)), "not finished: 120 of 600 epochs");
        assert_eq!(text(75_100, 375_000, Some(625)), "not finished: 120.1 of 600 epochs");
        assert_eq!(text(375_000, 375_000, Some(625)), "finished: 600 epochs");
        assert_eq!(text(20, 500, None), "not finished: 20 of 500 batches");
    }
}
