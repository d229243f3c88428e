//! Values that are read from files, and read again when the files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::watch;
use tracing::{error, info};

/// A fault of a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {fault}", file.display())]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// The fault and its remedy. Contains no secret.
    pub fault: String,
}

impl Fault {
    pub(crate) fn new(file: &Path, fault: impl Into<String>) -> Fault {
        Fault { file: file.into(), fault: fault.into() }
    }
}

type Contents = Vec<Vec<u8>>;
type Parse<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, Fault> + Send + Sync>;

/// A value that was read from files, and what it takes to read it again.
pub struct Watched<T> {
    files: Vec<PathBuf>,
    parse: Parse<T>,
    seen: Result<Contents, Fault>,
    value: watch::Sender<Arc<T>>,
}

impl<T> Watched<T> {
    /// Reads the value; `parse` gets the contents in the order of `files`.
    pub(crate) async fn read(files: Vec<PathBuf>, parse: Parse<T>) -> Result<Watched<T>, Fault> {
        let contents = read(&files).await?;
        let value = watch::Sender::new(Arc::new(parse(&contents)?));
        Ok(Watched { files, parse, seen: Ok(contents), value })
    }

    /// The value, now and later.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.value.subscribe()
    }

    /// Reads the files; when they have changed, the value becomes theirs. While something is wrong with them it stays
    /// what it was, and the log says so once.
    pub(crate) async fn refresh(&mut self) {
        let found = read(&self.files).await;
        if found == self.seen {
            return;
        }
        let files = || self.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        match found.as_ref().map_err(Fault::clone).and_then(|contents| (self.parse)(contents)) {
            Ok(value) => {
                self.value.send_replace(Arc::new(value));
                info!(files = files().join(" "), "read again");
            }
            Err(fault) => error!(%fault, "cannot be read again; what was read before stays in use"),
        }
        self.seen = found;
    }
}

async fn read(files: &[PathBuf]) -> Result<Contents, Fault> {
    let mut contents = Vec::with_capacity(files.len());
    for file in files {
        let content = tokio::fs::read(file).await;
        contents.push(content.map_err(|error| Fault::new(file, error.to_string()))?);
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_file_that_breaks_changes_nothing_until_it_is_mended() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("number");
        let parse = |file: PathBuf| -> Parse<i32> {
            Box::new(move |contents| {
                let text = String::from_utf8_lossy(&contents[0]);
                text.parse().map_err(|_| Fault::new(&file, "is not a number"))
            })
        };
        fs::write(&file, "1").unwrap();
        let mut watched = Watched::read(vec![file.clone()], parse(file.clone())).await.unwrap();
        let value = watched.subscribe();
        for (content, expected) in [("2", 2), ("x", 2), ("3", 3)] {
            fs::write(&file, content).unwrap();
            watched.refresh().await;
            assert_eq!(**value.borrow(), expected, "{content}");
        }
        fs::remove_file(&file).unwrap();
        watched.refresh().await;
        assert_eq!(**value.borrow(), 3, "the file is gone");
        let fault = Watched::read(vec![file.clone()], parse(file)).await.err().unwrap();
        assert!(fault.to_string().ends_with("number: No such file or directory (os error 2)"));
    }
}
