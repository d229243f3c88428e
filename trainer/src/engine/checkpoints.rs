//! The checkpoints of a study: its newest weights, and those before them in case they turn out to be damaged.
//!
//! A checkpoint is a safetensors file and an entry in `checkpoints.json` with the file's digest. Both are written beside the
//! engine, to temporary files that are then renamed: a process that is killed at any moment leaves the checkpoints that
//! were complete. A file whose digest is another is never loaded.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use data_encoding::HEXLOWER;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::{info, warn};

use crate::{
    files, metrics,
    torch::{self, Snapshot},
};

/// The number of checkpoints that are kept.
const KEPT: usize = 2;
/// Name of the list of checkpoints, newest first.
const LIST: &str = "checkpoints.json";
/// Pause after the first failure to write a checkpoint; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The reason why a checkpoint cannot be written or found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] files::Error),
    /// The list is not one.
    #[error("{} is damaged: {reason}; move the directory away to start with new weights", .file.display())]
    List {
        /// The list.
        file: PathBuf,
        /// The mistake in it.
        reason: serde_json::Error,
    },
    /// Every checkpoint is damaged or missing.
    #[error(
        "none of the {count} checkpoints in {} is whole; move the directory away to start with new weights",
        .directory.display()
    )]
    AllDamaged {
        /// Their directory.
        directory: PathBuf,
        /// The number of checkpoints in the list.
        count: usize,
    },
    /// Tensors cannot be written.
    #[error(transparent)]
    Torch(#[from] torch::Error),
    /// Weights are in memory alone, and writing them is tried again.
    #[error("{0}")]
    NotWritten(String),
}

impl Error {
    fn cause(&self) -> String {
        match self {
            Error::File(error) | Error::Torch(torch::Error::File(error)) => error.cause.to_string(),
            other => other.to_string(),
        }
    }
}

/// An entry of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Checkpoint {
    /// Name of the file.
    file: String,
    /// SHA-256 of its contents, hexadecimal.
    sha256: String,
}

/// Writes checkpoints on a thread of its own, beside the steps. A snapshot that cannot be written stays in memory, the newest of each
/// study, and is tried again with growing pauses until it is on the disk.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Weights to be written and the step after which they were taken, by their directory.
    waiting: BTreeMap<PathBuf, (u64, Snapshot)>,
    /// The directory of the snapshot that is being written.
    writing: Option<PathBuf>,
    /// The last attempt of each directory where that failed.
    failures: BTreeMap<PathBuf, Failure>,
    /// Attempts that have ended.
    attempts: u64,
}

struct Failure {
    reason: String,
    /// The reason without the file, which is another one for each step.
    cause: String,
    /// Number of the attempt.
    attempt: u64,
    pause: Duration,
    retry: Instant,
    /// Set when the next attempt is made before its time, which leaves the pause as it is.
    hastened: bool,
}

impl Failure {
    /// Has the next attempt made now.
    fn hasten(&mut self) {
        (self.retry, self.hastened) = (Instant::now(), true);
    }
}

impl Writer {
    /// Starts the thread, which ends some time after the last handle is gone.
    pub fn start() -> io::Result<Writer> {
        let shared = Arc::<Shared>::default();
        let work = Arc::downgrade(&shared);
        thread::Builder::new().name("checkpoints".into()).spawn(move || {
            while let Some(shared) = work.upgrade() {
                shared.write_next();
            }
        })?;
        Ok(Writer { shared })
    }

    /// Has the weights after step `step` written into `directory`, which is made if it is not there.
    pub fn write(&self, directory: &Path, step: u64, snapshot: Snapshot) {
        let mut queue = self.shared.queue.lock();
        queue.waiting.insert(directory.into(), (step, snapshot));
        queue.failures.get_mut(directory).map(Failure::hasten);
        self.shared.changed.notify_all();
    }

    /// Waits until all that is for `directory` is on the disk. Errors if an attempt to write it fails meanwhile; it goes on being
    /// tried.
    pub fn flush(&self, directory: &Path) -> Result<(), Error> {
        let mut queue = self.shared.queue.lock();
        let before = queue.attempts;
        queue.failures.get_mut(directory).map(Failure::hasten);
        self.shared.changed.notify_all();
        while queue.waiting.contains_key(directory) || queue.writing.as_deref() == Some(directory) {
            if let Some(failure) = queue.failures.get(directory)
                && failure.attempt > before
            {
                return Err(Error::NotWritten(failure.reason.clone()));
            }
            self.shared.changed.wait(&mut queue);
        }
        Ok(())
    }

    /// Tries to write everything. Errors with the first reason if something could not be.
    pub fn flush_all(&self) -> Result<(), Error> {
        let directories: Vec<_> = {
            let queue = self.shared.queue.lock();
            queue.waiting.keys().chain(&queue.writing).cloned().collect()
        };
        let results: Vec<_> = directories.iter().map(|directory| self.flush(directory)).collect();
        results.into_iter().collect()
    }

    /// Returns why checkpoints cannot be written now, one reason for each study that this concerns.
    pub fn problems(&self) -> Vec<String> {
        let queue = self.shared.queue.lock();
        queue.failures.values().map(|failure| failure.reason.clone()).collect()
    }
}

impl Shared {
    /// Writes the snapshot that is due first, or waits until one may be.
    fn write_next(&self) {
        let mut queue = self.queue.lock();
        let due = |directory| queue.failures.get(directory).map(|failure| failure.retry);
        let first = queue.waiting.keys().map(|directory| (due(directory), directory)).min();
        let directory = match first {
            None => {
                self.changed.wait_for(&mut queue, LONGEST_PAUSE);
                return;
            }
            Some((Some(due), _)) if due > Instant::now() => {
                self.changed.wait_until(&mut queue, due);
                return;
            }
            Some((_, directory)) => directory.clone(),
        };
        let Some((step, snapshot)) = queue.waiting.remove(&directory) else { return };
        queue.writing = Some(directory.clone());
        drop(queue);
        let written = write(&directory, step, &snapshot);
        let mut queue = self.queue.lock();
        queue.writing = None;
        queue.attempts += 1;
        let before = queue.failures.remove(&directory);
        match written {
            Ok(file) => {
                info!(file = %file.display(), "checkpoint written");
                // The cause of the other failures may be gone.
                queue.failures.values_mut().for_each(Failure::hasten);
            }
            Err(error) => {
                let (reason, cause) = (error.to_string(), error.cause());
                metrics::checkpoint_failed();
                let known = queue.failures.values().chain(&before).any(|f| f.cause == cause);
                if !known {
                    warn!("{reason}; the weights are kept in memory, and writing is tried again");
                }
                let pause = match before {
                    None => FIRST_PAUSE,
                    Some(before) if before.hastened => before.pause,
                    Some(before) => LONGEST_PAUSE.min(2 * before.pause),
                };
                let (attempt, retry) = (queue.attempts, Instant::now() + pause);
                queue.failures.insert(
                    directory.clone(),
                    Failure { reason, cause, attempt, pause, retry, hastened: false },
                );
                // Newer weights may have come meanwhile.
                queue.waiting.entry(directory).or_insert((step, snapshot));
            }
        }
        self.changed.notify_all();
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

/// Writes a checkpoint and enters it in the list.
fn write(directory: &Path, step: u64, snapshot: &Snapshot) -> Result<PathBuf, Error> {
    let started = Instant::now();
    fs::create_dir_all(directory).map_err(files::Error::cannot("make directory", directory))?;
    let file = format!("step-{step}.safetensors");
    let path = directory.join(&file);
    snapshot.write(&path)?;
    // These weights are whole, whatever became of the list since it was read at the study's start.
    let mut list = read_list(directory).unwrap_or_else(|error| {
        warn!("{error}; a new list is written");
        Vec::new()
    });
    list.retain(|other| other.file != file);
    list.insert(0, Checkpoint { file, sha256: digest(&path)? });
    let old = list.split_off(list.len().min(KEPT));
    files::write(&directory.join(LIST), format!("{:#}", serde_json::json!(list)))?;
    for Checkpoint { file, .. } in old {
        // It is not in the list any more; what is left of it does no harm.
        let _ = fs::remove_file(directory.join(file));
    }
    metrics::checkpoint_written(started.elapsed());
    Ok(path)
}

fn read_list(directory: &Path) -> Result<Vec<Checkpoint>, Error> {
    let file = directory.join(LIST);
    match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).map_err(|reason| Error::List { file, reason }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(files::Error::cannot("read", &file)(error).into()),
    }
}

fn digest(file: &Path) -> Result<String, files::Error> {
    let mut hash = Sha256::new();
    let mut reader = File::open(file).map_err(files::Error::cannot("read checkpoint", file))?;
    let mut part = vec![0; 1 << 20];
    loop {
        match reader.read(&mut part).map_err(files::Error::cannot("read checkpoint", file))? {
            0 => break,
            read => hash.update(&part[..read]),
        }
    }
    Ok(HEXLOWER.encode(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Tensors;

    fn weights(number: u64) -> Tensors {
        [("x".to_owned(), tch::Tensor::from_slice(&[number as f64; 3]))].into()
    }

    fn snapshot(number: u64) -> Snapshot {
        Snapshot::of(&[("weight", &weights(number))])
    }

    /// Writes a checkpoint for each of `steps`, of weights that follow from the step.
    fn written(directory: &Path, steps: &[u64]) {
        let writer = Writer::start().unwrap();
        for &step in steps {
            writer.write(directory, step, snapshot(step));
            writer.flush(directory).unwrap();
        }
    }

    #[test]
    fn the_newest_is_found_and_only_two_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made when it is needed");
        assert!(newest(&directory).unwrap().is_none());
        written(&directory, &[10, 20, 30]);
        let file = newest(&directory).unwrap().unwrap();
        let mut loaded = weights(0);
        torch::load(&file, &mut [("weight", &mut loaded)]).unwrap();
        assert_eq!(loaded, weights(30));
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
        snapshot(2).write(&directory.join("step-2.safetensors")).unwrap();
        assert_eq!(newest(directory).unwrap(), Some(directory.join("step-1.safetensors")));
    }

    #[test]
    fn what_cannot_be_written_is_kept_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let study = directory.path().join("study");
        fs::write(&study, "a file where the directory should be").unwrap();
        let writer = Writer::start().unwrap();
        writer.write(&study, 1, snapshot(1));
        let error = writer.flush(&study).unwrap_err().to_string();
        assert_eq!(error, format!("cannot make directory {}: file exists", study.display()));
        assert_eq!(writer.problems(), [error]);
        // Newer weights take the place of older ones.
        writer.write(&study, 2, snapshot(2));
        assert!(writer.flush_all().is_err());
        fs::remove_file(&study).unwrap();
        writer.flush_all().unwrap();
        assert!(writer.problems().is_empty());
        assert_eq!(newest(&study).unwrap(), Some(study.join("step-2.safetensors")));
        assert!(!study.join("step-1.safetensors").exists());
    }

    #[test]
    fn a_directory_that_was_deleted_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let study = directory.path().join("studies/study");
        written(&study, &[1]);
        fs::remove_dir_all(directory.path().join("studies")).unwrap();
        written(&study, &[2]);
        assert_eq!(newest(&study).unwrap(), Some(study.join("step-2.safetensors")));
    }
}
