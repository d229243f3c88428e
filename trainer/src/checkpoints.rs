//! The checkpoints of a study: its newest weights, and those before them in case they turn out to be damaged.
//!
//! A checkpoint is a safetensors file and an entry in `checkpoints.json` with the file's digest. Both are written beside the
//! engine, to temporary files that are then renamed: a process that is killed at any moment leaves the checkpoints that
//! were complete. A file whose digest is another is never loaded.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::{Instant, SystemTime},
};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::{
    metrics,
    supernet::{self, Snapshot},
};

/// How many checkpoints are kept.
const KEPT: usize = 2;
/// Name of the list of checkpoints, newest first.
const LIST: &str = "checkpoints.json";

/// Why a checkpoint cannot be written or found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{}: {source}", .file.display())]
    File {
        /// The file or directory.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The list is not one.
    #[error(
        "{} is damaged: {source}; move the directory away to start with new weights",
        .file.display()
    )]
    List {
        /// The list.
        file: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Every checkpoint is damaged or missing.
    #[error(
        "none of the {count} checkpoints in {} is whole; move the directory away to start with new weights",
        .directory.display()
    )]
    AllDamaged {
        /// Where they are.
        directory: PathBuf,
        /// How many there should be.
        count: usize,
    },
    /// Tensors cannot be written.
    #[error(transparent)]
    Supernet(#[from] supernet::Error),
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// Name of the file.
    file: String,
    /// SHA-256 of its contents, hexadecimal.
    sha256: String,
}

/// Writes a study's checkpoints, one at a time.
#[derive(Debug)]
pub struct Checkpoints {
    directory: PathBuf,
    writing: Option<JoinHandle<Result<(), Error>>>,
}

impl Checkpoints {
    /// Those of the study in `directory`, which is made if it is not there.
    pub fn new(directory: PathBuf) -> Result<Checkpoints, Error> {
        fs::create_dir_all(&directory).map_err(at(&directory))?;
        Ok(Checkpoints { directory, writing: None })
    }

    /// Begins to write a checkpoint after step `step`. Waits for the one before, and fails if that failed.
    pub fn write(&mut self, step: u64, snapshot: Snapshot) -> Result<(), Error> {
        self.finish()?;
        let directory = self.directory.clone();
        let write = move || write(&directory, step, &snapshot);
        let writing = thread::Builder::new().name("checkpoint".into()).spawn(write);
        self.writing = Some(writing.map_err(Error::Thread)?);
        Ok(())
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until what has been begun is on the disk.
    pub fn finish(&mut self) -> Result<(), Error> {
        match self.writing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(written)) => written,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

/// The file of the newest whole checkpoint in `directory`; none if none has been written.
pub fn newest(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let list = read_list(directory)?;
    for Checkpoint { file, sha256 } in &list {
        let path = directory.join(file);
        match digest(&path) {
            Ok(found) if found == *sha256 => return Ok(Some(path)),
            Ok(_) => warn!(file = %path.display(), "checkpoint is damaged"),
            Err(error) => warn!(%error, "checkpoint cannot be read"),
        }
    }
    if list.is_empty() {
        return Ok(None);
    }
    Err(Error::AllDamaged { directory: directory.into(), count: list.len() })
}

/// The last checkpoint listed in `directory`, with the time of its file; none if there is none. Does not read its contents.
pub fn last(directory: &Path) -> Option<(PathBuf, SystemTime)> {
    let file = directory.join(&read_list(directory).ok()?.first()?.file);
    let time = fs::metadata(&file).ok()?.modified().ok()?;
    Some((file, time))
}

/// The last step that is in a checkpoint, by the name of its file.
pub fn step(file: &Path) -> Option<u64> {
    file.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

fn write(directory: &Path, step: u64, snapshot: &Snapshot) -> Result<(), Error> {
    let started = Instant::now();
    let file = format!("step-{step}.safetensors");
    let path = directory.join(&file);
    snapshot.write(&path)?;
    let mut list = read_list(directory)?;
    list.retain(|other| other.file != file);
    list.insert(0, Checkpoint { file, sha256: digest(&path)? });
    let old = list.split_off(list.len().min(KEPT));
    let text = serde_json::to_vec_pretty(&list);
    let list = directory.join(LIST);
    let failed = |source| Error::List { file: list.clone(), source };
    let temporary = list.with_extension("tmp");
    fs::write(&temporary, text.map_err(failed)?).map_err(at(&temporary))?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(at(&temporary))?;
    fs::rename(&temporary, &list).map_err(at(&list))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))?;
    for Checkpoint { file, .. } in old {
        // It is not in the list any more; what is left of it does no harm.
        let _ = fs::remove_file(directory.join(file));
    }
    metrics::checkpoint_written(started.elapsed());
    info!(file = %path.display(), "checkpoint written");
    Ok(())
}

fn read_list(directory: &Path) -> Result<Vec<Checkpoint>, Error> {
    let file = directory.join(LIST);
    match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).map_err(|source| Error::List { file, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File { file, source }),
    }
}

fn digest(file: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    let mut reader = File::open(file).map_err(at(file))?;
    let mut part = vec![0; 1 << 20];
    loop {
        match reader.read(&mut part).map_err(at(file))? {
            0 => break,
            read => hash.update(&part[..read]),
        }
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
}

fn at(file: &Path) -> impl FnOnce(io::Error) -> Error {
    let file = file.to_owned();
    |source| Error::File { file, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{space::toy::Settings, supernet::Toy};

    fn toy(seed: i64) -> Toy {
        Toy::new(&Settings { seed, ..Settings::default() })
    }

    /// Writes a checkpoint for each of `steps`, of weights that follow from the step.
    fn written(directory: &Path, steps: &[u64]) {
        let mut checkpoints = Checkpoints::new(directory.into()).unwrap();
        for &step in steps {
            checkpoints.write(step, toy(step as i64).snapshot().unwrap()).unwrap();
        }
        checkpoints.finish().unwrap();
    }

    #[test]
    fn the_newest_is_found_and_only_two_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made when it is needed");
        assert!(newest(&directory).unwrap().is_none());
        written(&directory, &[10, 20, 30]);
        let file = newest(&directory).unwrap().unwrap();
        let mut loaded = toy(0);
        loaded.load(&file).unwrap();
        assert_eq!(
            loaded.search_step(0, &[], &[vec![0; 30]], 0.0).best_noiseless,
            toy(30).search_step(0, &[], &[vec![0; 30]], 0.0).best_noiseless
        );
        let mut files: Vec<_> =
            fs::read_dir(&directory).unwrap().collect::<Result<_, _>>().unwrap();
        files.sort_by_key(fs::DirEntry::file_name);
        let names: Vec<_> = files.iter().map(fs::DirEntry::file_name).collect();
        assert_eq!(names, [LIST, "step-20.safetensors", "step-30.safetensors"]);
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_the_last_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        written(directory, &[1, 2]);
        let [first, second] = [1, 2].map(|step| directory.join(format!("step-{step}.safetensors")));
        assert_eq!(newest(directory).unwrap(), Some(second.clone()));
        assert_eq!(last(directory).map(|(file, _)| step(&file)), Some(Some(2)));
        // One bit, somewhere in the tensors.
        let mut bytes = fs::read(&second).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&second, bytes).unwrap();
        assert_eq!(newest(directory).unwrap(), Some(first.clone()));
        fs::remove_file(&first).unwrap();
        let error = newest(directory).unwrap_err();
        assert!(error.to_string().starts_with("none of the 2 checkpoints in"), "{error}");
        fs::write(directory.join(LIST), "[{").unwrap();
        assert!(matches!(newest(directory), Err(Error::List { .. })));
    }

    #[test]
    fn a_file_without_an_entry_is_not_a_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        written(directory, &[1]);
        // As a process leaves it that is killed between file and list.
        toy(2).snapshot().unwrap().write(&directory.join("step-2.safetensors")).unwrap();
        assert_eq!(newest(directory).unwrap(), Some(directory.join("step-1.safetensors")));
    }

    #[test]
    fn what_cannot_be_written_is_an_error_of_the_next_call() {
        let directory = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::new(directory.path().join("study")).unwrap();
        fs::remove_dir(directory.path().join("study")).unwrap();
        checkpoints.write(1, toy(1).snapshot().unwrap()).unwrap();
        assert!(checkpoints.finish().is_err());
        checkpoints.finish().expect("it has been told");
    }
}
