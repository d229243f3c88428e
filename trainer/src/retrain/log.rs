//! The log of a retraining: a row of `log.csv` for each evaluation.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// The file's name.
pub(crate) const LOG: &str = "log.csv";

/// Metrics with the names that the log has for them.
pub(super) type Named = Vec<(String, f64)>;

/// A row of the log.
pub(super) struct Row {
    /// Minibatches done.
    pub(super) iteration: u64,
    /// Passes over the training images.
    pub(super) epoch: f64,
    /// The learning rate of the last minibatch.
    pub(super) learning_rate: f64,
    /// Means over the minibatches since the last row, then what the test images say.
    pub(super) metrics: Named,
    /// Time spent since the beginning.
    pub(super) seconds: f64,
}

/// The file, open to be written to.
pub(super) struct Log {
    file: PathBuf,
    rows: File,
    empty: bool,
}

impl Log {
    /// Opens the log in `directory`, and takes back what it has beyond `iterations`: an interruption came between that
    /// and the checkpoint, and it will be logged again.
    pub(super) fn open(directory: &Path, iterations: u64) -> anyhow::Result<Log> {
        let file = directory.join(LOG);
        let open = || -> io::Result<Log> {
            let text = match fs::read_to_string(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
                text => text?,
            };
            let kept = |line: &&str| {
                let first = line.split(',').next().and_then(|first| first.parse().ok());
                line.ends_with('\n') && first.is_none_or(|iteration: u64| iteration <= iterations)
            };
            let kept: String = text.split_inclusive('\n').take_while(kept).collect();
            let rows = OpenOptions::new().create(true).append(true).open(&file)?;
            rows.set_len(kept.len() as u64)?;
            Ok(Log { file: file.clone(), rows, empty: kept.is_empty() })
        };
        open().with_context(|| format!("cannot write {}", file.display()))
    }

    /// Adds a row; it is on the disk when this returns.
    pub(super) fn write(&mut self, row: &Row) -> anyhow::Result<()> {
        let Row { iteration, epoch, learning_rate, metrics, seconds } = row;
        let mut text = String::new();
        if self.empty {
            let names = metrics.iter().map(|(name, _)| format!(",{name}"));
            text = format!("iteration,epoch,learning_rate{},seconds\n", names.collect::<String>());
        }
        let metrics = metrics.iter().map(|(_, figure)| format!(",{figure}"));
        let metrics: String = metrics.collect();
        text += &format!("{iteration},{epoch},{learning_rate}{metrics},{seconds:.1}\n");
        let written = self.rows.write_all(text.as_bytes()).and_then(|()| self.rows.sync_data());
        self.empty = false;
        written.with_context(|| format!("cannot write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(iteration: u64) -> Row {
        let metrics = vec![("train_loss".into(), 0.5), ("test_accuracy".into(), f64::NAN)];
        Row { iteration, epoch: 0.25, learning_rate: 0.1, metrics, seconds: 1.26 }
    }

    #[test]
    fn rows_beyond_the_checkpoint_and_torn_ones_are_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = Log::open(directory.path(), 0).unwrap();
        log.write(&row(8)).unwrap();
        log.write(&row(16)).unwrap();
        log.rows.write_all(b"24,0.7").unwrap();
        Log::open(directory.path(), 17).unwrap().write(&row(24)).unwrap();
        Log::open(directory.path(), 20).unwrap().write(&row(24)).unwrap();
        let text = fs::read_to_string(directory.path().join(LOG)).unwrap();
        let expected = "\
iteration,epoch,learning_rate,train_loss,test_accuracy,seconds
8,0.25,0.1,0.5,NaN,1.3
16,0.25,0.1,0.5,NaN,1.3
24,0.25,0.1,0.5,NaN,1.3
";
        assert_eq!(text, expected);
        Log::open(directory.path(), 0).unwrap().write(&row(8)).unwrap();
        let text = fs::read_to_string(directory.path().join(LOG)).unwrap();
        assert_eq!(text.lines().count(), 2);
    }
}
