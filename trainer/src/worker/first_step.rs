//! Studies whose first step since they were opened is not reported yet, in a file of the work directory. A process that is killed in such
//! a step, for instance because it needs more memory than the machine has, leaves the study in the file for the next process.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::files;

/// The number of studies that the file holds; further ones displace others.
const MAX_STUDIES: usize = 100;

/// The file and its content.
pub(super) struct FirstSteps {
    file: PathBuf,
    studies: BTreeMap<String, Begun>,
}

/// A study and the number of times its first step was begun since one of its steps was last reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// The study's name.
    pub(super) study: String,
    pub(super) times: u32,
}

impl FirstSteps {
    /// Reads the file of earlier processes in `work_dir`. A file that cannot be read counts as empty.
    pub(super) fn read(work_dir: &Path) -> FirstSteps {
        let file = work_dir.join("first-steps.json");
        let studies = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        FirstSteps { file, studies: studies.unwrap_or_default() }
    }

    /// Returns the studies by id.
    pub(super) fn studies(&self) -> &BTreeMap<String, Begun> {
        &self.studies
    }

    /// Records that the first step of a study is begun.
    pub(super) fn begin(&mut self, study: &str, study_id: &str) {
        if self.studies.len() >= MAX_STUDIES && !self.studies.contains_key(study_id) {
            self.studies.pop_first();
        }
        let begun = Begun { study: study.into(), times: 0 };
        let begun = self.studies.entry(study_id.into()).or_insert(begun);
        begun.times = begun.times.saturating_add(1);
        self.write();
    }

    /// Removes a study: a step of it has not killed the process.
    pub(super) fn survived(&mut self, study_id: &str) {
        if self.studies.remove(study_id).is_some() {
            self.write();
        }
    }

    fn write(&self) {
        let written = if self.studies.is_empty() {
            match fs::remove_file(&self.file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(files::Error::cannot("remove", &self.file)),
            }
        } else {
            files::write(&self.file, serde_json::json!(self.studies).to_string())
        };
        // A full disk or a missing directory is reported where checkpoints are written.
        if let Err(error) = written {
            debug!("first steps are not recorded: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_stays_in_the_file_until_a_step_is_survived() {
        let directory = tempfile::tempdir().unwrap();
        let read = || FirstSteps::read(directory.path()).studies;
        assert!(read().is_empty());
        for times in 1..=3 {
            let mut process = FirstSteps::read(directory.path());
            process.begin("huge", "1");
            process.begin("good", "2");
            process.survived("2");
            assert_eq!(read(), [("1".into(), Begun { study: "huge".into(), times })].into());
        }
        FirstSteps::read(directory.path()).survived("1");
        assert!(read().is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "no file is left");
    }

    #[test]
    fn a_damaged_file_is_as_none_and_a_directory_that_is_gone_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("first-steps.json"), "{\"1\":").unwrap();
        let mut process = FirstSteps::read(directory.path());
        assert!(process.studies().is_empty());
        process.file = directory.path().join("gone/first-steps.json");
        for i in 0..200 {
            process.begin("s", &i.to_string());
        }
        assert_eq!(process.studies().len(), MAX_STUDIES);
    }
}
