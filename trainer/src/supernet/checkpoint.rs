//! Named tensors in a safetensors file: written whole or not at all, and loaded whole or not at
//! all.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use tch::{Device, TchError, Tensor};

use super::Error;
use crate::files;

/// Tensors by name, for one prefix of the file.
pub(super) type Part<'a> = (&'static str, &'a BTreeMap<String, Tensor>);

/// As [`Part`], to load into.
pub(super) type PartMut<'a> = (&'static str, &'a mut BTreeMap<String, Tensor>);

/// Numbers by name that a file keeps beside the tensors: how far a training has come.
pub type Numbers = BTreeMap<String, f64>;

/// The prefix of [`Numbers`] in a file.
pub(super) const NUMBERS: &str = "progress";

/// Copies of tensors by name, in the machine's memory: what goes into a file while the originals move on.
#[derive(Debug)]
pub struct Snapshot(Vec<(String, Tensor)>);

impl Snapshot {
    /// Copies every part's tensors, named `<prefix>/<name>`.
    pub(super) fn of(parts: &[Part]) -> Result<Snapshot, Error> {
        let mut tensors = Vec::new();
        for (prefix, part) in parts {
            for (name, tensor) in *part {
                let copy =
                    tensor.f_detach()?.f_to_device_(Device::Cpu, tensor.kind(), false, true)?;
                tensors.push((format!("{prefix}/{name}"), copy.f_contiguous()?));
            }
        }
        Ok(Snapshot(tensors))
    }

    /// Writes it to a safetensors file. A file that was there stays until the new one is safely on the disk.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let written = files::replace(path, |temporary| {
            Tensor::write_safetensors(&self.0, temporary).map_err(io_error)
        });
        Ok(written.map_err(files::Error::cannot("write checkpoint", path))?)
    }
}

/// The operating system's error within one of writing safetensors, of which tch passes on the text alone.
fn io_error(error: TchError) -> io::Error {
    let text = error.to_string();
    let code = text.split_once("code: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    code.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error)
}

/// Numbers as tensors, for a part of a file.
pub(super) fn tensors(numbers: &Numbers) -> Result<BTreeMap<String, Tensor>, Error> {
    let tensor =
        |(name, number): (&String, &f64)| Ok((name.clone(), Tensor::f_from_slice(&[*number])?));
    numbers.iter().map(tensor).collect()
}

/// Reads the numbers of a file.
pub fn numbers(path: &Path) -> Result<Numbers, Error> {
    File::open(path).map_err(files::Error::cannot("read checkpoint", path))?;
    let stored = Tensor::read_safetensors(path).map_err(|error| Error::OtherNetwork {
        file: path.display().to_string(),
        reason: error.to_string(),
    });
    let mut numbers = Numbers::new();
    for (name, tensor) in stored? {
        if let Some((NUMBERS, name)) = name.split_once('/') {
            numbers.insert(name.to_owned(), f64::try_from(tensor)?);
        }
    }
    Ok(numbers)
}

/// Takes the numbers back from tensors of the same names.
pub(super) fn read_numbers(
    numbers: &mut Numbers,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), Error> {
    for (number, tensor) in numbers.values_mut().zip(tensors.values()) {
        *number = f64::try_from(tensor)?;
    }
    Ok(())
}

/// Reads what [`Snapshot::write`] wrote into tensors of the same names and shapes; nothing changes unless all
/// of them fit. What the file has under other prefixes is left alone.
pub(super) fn load(path: &Path, parts: &mut [PartMut]) -> Result<(), Error> {
    File::open(path).map_err(files::Error::cannot("read checkpoint", path))?;
    let other = |reason: String| Error::OtherNetwork { file: path.display().to_string(), reason };
    let stored = Tensor::read_safetensors(path).map_err(|error| other(error.to_string()))?;
    let mut stored: BTreeMap<String, Tensor> = stored.into_iter().collect();
    stored.retain(|name, _| {
        let prefix = name.split_once('/').map(|(prefix, _)| prefix);
        parts.iter().any(|part| Some(part.0) == prefix)
    });
    let mut copies = Vec::new();
    for (prefix, part) in parts.iter_mut() {
        for (name, tensor) in part.iter_mut() {
            let name = format!("{prefix}/{name}");
            let Some(source) = stored.remove(&name) else {
                return Err(other(format!("it has no tensor {name}")));
            };
            if source.size() != tensor.size() {
                let (got, wanted) = (source.size(), tensor.size());
                return Err(other(format!("{name} has the shape {got:?}, not {wanted:?}")));
            }
            copies.push((tensor, source));
        }
    }
    if let Some(name) = stored.keys().next() {
        return Err(other(format!("its tensor {name} is unknown")));
    }
    let _guard = tch::no_grad_guard();
    for (tensor, source) in copies {
        tensor.f_copy_(&source)?;
    }
    Ok(())
}
