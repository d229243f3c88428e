//! Named tensors in a safetensors file, written whole or not at all and loaded whole or not at all.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::Path,
};

use tch::{Device, TchError, Tensor};

use super::error::Error;
use crate::files;

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Returns a tensor of zeros for each of these.
pub fn zeros_like(tensors: &Tensors) -> Tensors {
    let _guard = tch::no_grad_guard();
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.zeros_like())).collect()
}

/// Numbers by name that a file keeps beside the tensors: the progress of a training.
pub type Numbers = BTreeMap<String, f64>;

/// The prefix of [`Numbers`] in a file.
const NUMBERS: &str = "progress";

/// Copies of tensors in main memory, to be written while the originals move on.
#[derive(Debug)]
pub struct Snapshot(Vec<(String, Tensor)>);

impl Snapshot {
    /// Copies the tensors of every part, named `<prefix>/<name>`. Those of one kind on one device are copied together: a GPU is
    /// waited for once.
    pub fn of(parts: &[(&str, &Tensors)]) -> Snapshot {
        let _guard = tch::no_grad_guard();
        let mut groups: HashMap<_, (Vec<String>, Vec<&Tensor>)> = HashMap::new();
        for (prefix, part) in parts {
            for (name, tensor) in *part {
                let (names, tensors) = groups.entry((tensor.kind(), tensor.device())).or_default();
                names.push(format!("{prefix}/{name}"));
                tensors.push(tensor);
            }
        }
        let copy = |(names, tensors): (Vec<String>, Vec<&Tensor>)| {
            let flat: Vec<Tensor> = tensors.iter().map(|tensor| tensor.reshape([-1])).collect();
            let lengths: Vec<i64> = flat.iter().map(|tensor| tensor.numel() as i64).collect();
            let copies = Tensor::cat(&flat, 0).to_device(Device::Cpu).split_with_sizes(lengths, 0);
            let shaped = copies.into_iter().zip(tensors).map(|(copy, like)| copy.view_as(like));
            names.into_iter().zip(shaped.collect::<Vec<_>>())
        };
        Snapshot(groups.into_values().flat_map(copy).collect())
    }

    /// Adds numbers.
    pub fn with(mut self, numbers: &Numbers) -> Snapshot {
        let tensors = numbers.iter();
        self.0.extend(
            tensors.map(|(name, n)| (format!("{NUMBERS}/{name}"), Tensor::from_slice(&[*n]))),
        );
        self
    }

    /// Writes a safetensors file. A file that was there stays until the new one is safely on the disk.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let write =
            |temporary: &Path| Tensor::write_safetensors(&self.0, temporary).map_err(io_error);
        Ok(files::replace(path, write).map_err(files::Error::cannot("write checkpoint", path))?)
    }
}

/// Returns the operating system's error within one of writing safetensors, of which tch keeps the text alone.
fn io_error(error: TchError) -> io::Error {
    let text = error.to_string();
    let code = text.split_once("code: ").and_then(|(_, rest)| rest.split(',').next()?.parse().ok());
    code.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error)
}

fn read(path: &Path) -> Result<Vec<(String, Tensor)>, Error> {
    File::open(path).map_err(files::Error::cannot("read checkpoint", path))?;
    Tensor::read_safetensors(path).map_err(|error| other(path, error.to_string()))
}

fn other(path: &Path, reason: String) -> Error {
    Error::OtherNetwork { file: path.display().to_string(), reason }
}

/// Reads the numbers of a file.
pub fn numbers(path: &Path) -> Result<Numbers, Error> {
    let mut numbers = Numbers::new();
    for (name, tensor) in read(path)? {
        if let Some((NUMBERS, name)) = name.split_once('/') {
            let number = f64::try_from(tensor).map_err(|error| other(path, error.to_string()))?;
            numbers.insert(name.to_owned(), number);
        }
    }
    Ok(numbers)
}

/// Reads what [`Snapshot::write`] wrote into tensors of the same names and shapes; nothing changes unless all of them fit.
/// Tensors of the file under other prefixes are ignored.
pub fn load(path: &Path, parts: &mut [(&str, &mut Tensors)]) -> Result<(), Error> {
    let mut stored: Tensors = read(path)?.into_iter().collect();
    stored.retain(|name, _| {
        let prefix = name.split_once('/').map(|(prefix, _)| prefix);
        parts.iter().any(|part| Some(part.0) == prefix)
    });
    let mut copies = Vec::new();
    for (prefix, part) in parts.iter_mut() {
        for (name, tensor) in part.iter_mut() {
            let name = format!("{prefix}/{name}");
            let Some(source) = stored.remove(&name) else {
                return Err(other(path, format!("it has no tensor {name}")));
            };
            if source.size() != tensor.size() {
                let (got, wanted) = (source.size(), tensor.size());
                return Err(other(path, format!("{name} has the shape {got:?}, not {wanted:?}")));
            }
            copies.push((tensor, source));
        }
    }
    if let Some(name) = stored.keys().next() {
        return Err(other(path, format!("its tensor {name} is unknown")));
    }
    let _guard = tch::no_grad_guard();
    for (tensor, source) in copies {
        tensor.f_copy_(&source)?;
    }
    Ok(())
}
