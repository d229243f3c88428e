//! Studies of the controller: their spaces, their architectures, the directories of their files.

use std::{
    fmt, fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use asng_client::{Connection, explain, insist, insist_for};
use asng_proto::v1::{self, study_service_client::StudyServiceClient};
use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tonic::{Response, Status};

use crate::{
    files,
    tasks::{self, Task, settings, space::Space},
};

/// Time that a command waits for a controller that does not answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks for the study `name`, until a controller answers.
pub async fn get(connection: &Connection, name: &str) -> anyhow::Result<v1::Study> {
    let request = v1::GetStudyRequest { name: name.into() };
    let answer = insist(&request, |request| {
        let mut studies = StudyServiceClient::new(connection.clone());
        async move { studies.get_study(request).await }
    });
    match answer.await {
        Ok(answer) => answer.study.context("the controller sent no study"),
        Err(status) => bail!("{}", explain(&status, &connection.url())),
    }
}

/// Asks for the study `name`. Errors if no controller answers within `patience`.
pub(crate) async fn get_within(
    patience: Duration,
    connection: &Connection,
    name: &str,
) -> anyhow::Result<v1::Study> {
    let request = v1::GetStudyRequest { name: name.into() };
    let answer = call_within(patience, connection, &request, |request| {
        let mut studies = StudyServiceClient::new(connection.clone());
        async move { studies.get_study(request).await }
    });
    answer.await?.study.context("the controller sent no study")
}

/// Calls a controller until one answers. Errors if none does within `patience`.
pub(crate) async fn call_within<R: Clone, T, F>(
    patience: Duration,
    connection: &Connection,
    request: &R,
    call: impl FnMut(R) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let url = connection.url();
    let answer = insist_for(patience, &url, request, call).await;
    answer.map_err(|status| anyhow::Error::msg(explain(&status, &url)))
}

/// The space of a study, with its settings.
pub fn space(study: &v1::Study) -> Space {
    let v1::StudySpec { space: name, space_definition: definition, settings, .. } =
        study.spec.clone().unwrap_or_default();
    Space { name, definition, settings }
}

/// The task of a space. Errors with everything that is wrong with its definition or its settings.
pub fn task(space: &Space) -> anyhow::Result<Box<dyn Task>> {
    space.task().map_err(|violations| {
        anyhow::anyhow!("space {}: {}", space.name, settings::sentence(&violations))
    })
}

/// Returns the directory of a study's files within a trainer's own. A study that was deleted and made again under the same
/// name has another one.
pub fn directory(work_dir: &Path, study: &v1::Study) -> PathBuf {
    work_dir.join("studies").join(format!("{}-{}", study.name, study.study_id))
}

/// The current best guess at the final architecture of a study.
pub fn chosen(study: &v1::Study) -> Option<v1::Architecture> {
    study.chosen.as_ref()?.architecture.clone()
}

/// A space that belongs to no study.
#[derive(Clone, Debug, Args)]
pub struct SpaceArguments {
    /// Space by its name, such as enas-micro, where there is no study
    #[arg(long)]
    space: Option<String>,
    /// Space file, in place of --space
    #[arg(long, conflicts_with = "space", value_name = "FILE")]
    pub(crate) space_file: Option<PathBuf>,
    /// A setting of that space, as of a study; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
}

impl SpaceArguments {
    /// Returns the space that was named, if one was. Errors if its file cannot be used.
    pub(crate) fn space(&self) -> anyhow::Result<Option<Space>> {
        let settings = self.settings.iter().cloned().collect();
        if let Some(file) = &self.space_file {
            let definition = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let name = tasks::classification::family(&definition)
                .with_context(|| format!("{} is no space file", file.display()))?;
            return Ok(Some(Space { name, definition, settings }));
        }
        if self.space.is_none() && !self.settings.is_empty() {
            bail!("--set is for a space: name one with --space or --space-file");
        }
        let space =
            |name: &String| Space { name: name.clone(), definition: String::new(), settings };
        Ok(self.space.as_ref().map(space))
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The architecture that a command is about.
#[derive(Clone, Debug, Args)]
pub struct Subject {
    /// Study whose architecture, space and settings are used
    #[arg(long)]
    pub study: Option<String>,
    /// The architecture: "chosen" (the study's current best guess: the most likely one, within the limits on costs),
    /// "mode" (the most likely one), "incumbent" (the one with the smallest loss reported), "selected" (the one that
    /// `asng-trainer select` chose, in --work-dir), "random:SEED" (drawn uniformly), or a JSON file [default: chosen]
    #[arg(long, value_name = "WHICH")]
    pub(crate) architecture: Option<Choice>,
}

/// An architecture that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its space, with the study's settings if it is of one.
    pub space: Space,
    /// One value for each variable of the space.
    pub values: Vec<i64>,
    /// Its origin.
    pub source: Source,
}

/// The origin of an architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// "chosen", "mode", "incumbent", "selected", "random:SEED" or the path of a file.
    pub architecture: String,
    /// The name of its study, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study: Option<String>,
    /// The id of its study.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study_id: Option<String>,
}

impl Source {
    /// Returns the source of an architecture of `study`, if there is one, that was named by `choice`.
    pub(crate) fn new(choice: &Choice, study: Option<&v1::Study>) -> Source {
        Source {
            architecture: choice.to_string(),
            study: study.map(|study| study.name.clone()),
            study_id: study.map(|study| study.study_id.clone()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.architecture)?;
        match &self.study {
            Some(study) => write!(f, " of study {study}"),
            None => Ok(()),
        }
    }
}

/// Returns the values of an architecture as text, such as "0,4,1".
pub(crate) fn list(values: &[i64]) -> String {
    let values: Vec<_> = values.iter().map(ToString::to_string).collect();
    values.join(",")
}

/// Errors if the study has FAILED.
pub(crate) fn check_alive(study: &v1::Study) -> anyhow::Result<()> {
    let name = &study.name;
    if study.state() == v1::StudyState::Failed {
        bail!("study {name:?} has FAILED; `asngctl study show {name}` has the reason");
    }
    Ok(())
}

/// The name of the file of a [`Selection`] in the directory of its study.
const SELECTED: &str = "selected.json";

/// The architecture of a study that `select` chose, and what the choice is based on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Selection {
    /// The name of the study.
    pub(crate) study: String,
    /// Its id.
    pub(crate) study_id: String,
    /// The last step of the search that is in the shared weights.
    pub(crate) step: Option<u64>,
    /// The number of architectures that were compared.
    pub(crate) candidates: usize,
    /// The number of images that they were evaluated on.
    pub(crate) images: i64,
    /// The seed that drew them.
    pub(crate) seed: u64,
    /// The loss of the chosen one.
    pub(crate) loss: f64,
    /// The chosen one: one value for each variable.
    pub(crate) values: Vec<i64>,
}

impl Selection {
    /// Writes it to the directory of its study and returns the file.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        let file = directory.join(SELECTED);
        files::write(&file, serde_json::to_string_pretty(self)?)?;
        Ok(file)
    }

    /// Reads the one of `study`. Errors with what to do if there is none, or it is of another study.
    pub(crate) fn read(work_dir: &Path, study: &v1::Study) -> anyhow::Result<Selection> {
        let file = directory(work_dir, study).join(SELECTED);
        let run = format!("run `asng-trainer select --study {}` first", study.name);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "no architecture of study {:?} has been selected with the --work-dir {}: {run}",
                study.name,
                work_dir.display()
            ),
            text => text.with_context(|| format!("cannot read {}", file.display()))?,
        };
        let read = || -> anyhow::Result<Selection> {
            let selection: Selection = serde_json::from_str(&text)?;
            let (theirs, ours) = (&selection.study_id, &study.study_id);
            ensure!(theirs == ours, "it is of a study with the id {theirs}, not {ours}");
            tasks::check(&task(&space(study))?.variables(), &selection.values)?;
            Ok(selection)
        };
        read().with_context(|| format!("{} cannot be used; {run}", file.display()))
    }
}

impl Subject {
    /// Finds the architecture, of that study if it is of one, and in that trainer's directory if it was selected; without a study,
    /// `space_alone` is the one of a random architecture.
    pub fn find(
        &self,
        of: Option<(&v1::Study, &Path)>,
        space_alone: Option<Space>,
    ) -> anyhow::Result<Found> {
        let study = of.map(|(study, _)| study);
        let given = study.map(space).or(space_alone);
        let choice = self.architecture.as_ref().unwrap_or(&Choice::Chosen);
        let source = Source::new(choice, study);
        let of_study = |values: Option<v1::Architecture>| {
            let study = study.context(
                "name the --study whose architecture is meant, or give --architecture a file",
            )?;
            check_alive(study)?;
            let v1::Architecture { values } = values.with_context(|| {
                format!(
                    "study {:?} has no such architecture yet, or none within its limits",
                    study.name
                )
            })?;
            Ok(Found { space: space(study), values, source: source.clone() })
        };
        match choice {
            Choice::Chosen => of_study(study.and_then(chosen)),
            Choice::Mode => of_study(study.and_then(|study| study.mode.clone())),
            Choice::Incumbent => {
                let incumbent = study.and_then(|study| study.incumbent.clone());
                of_study(incumbent.and_then(|incumbent| incumbent.architecture))
            }
            Choice::Selected => {
                let read = |(study, work_dir)| Selection::read(work_dir, study);
                let values = of.map(read).transpose()?.map(|selection| selection.values);
                of_study(values.map(|values| v1::Architecture { values }))
            }
            Choice::Random(seed) => {
                let space = given.context(
                    "name the --study or the --space that the random architecture is of",
                )?;
                Ok(Found { values: draw(&space, *seed)?, space, source })
            }
            Choice::File(path) => {
                let (of_file, values) = read_architecture(path)?;
                let space = given.unwrap_or_else(|| of_file.clone());
                if task(&space)?.variables() != task(&of_file)?.variables() {
                    bail!("{} is of another space than the one named", path.display());
                }
                Ok(Found { space, values, source })
            }
        }
    }
}

/// Draws an architecture uniformly.
pub(crate) fn draw(space: &Space, seed: u64) -> anyhow::Result<Vec<i64>> {
    Ok(tasks::draw(&task(space)?.variables(), &mut ChaCha8Rng::seed_from_u64(seed)))
}

/// Which architecture a person named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The study's current best guess at the final one.
    Chosen,
    /// The most likely one of the study.
    Mode,
    /// The one of the study with the smallest loss reported.
    Incumbent,
    /// The one of the study that `select` chose.
    Selected,
    /// The one that this seed draws.
    Random(u64),
    /// The one in a JSON file that `retrain` or a person wrote.
    File(PathBuf),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::Chosen => f.write_str("chosen"),
            Choice::Mode => f.write_str("mode"),
            Choice::Incumbent => f.write_str("incumbent"),
            Choice::Selected => f.write_str("selected"),
            Choice::Random(seed) => write!(f, "random:{seed}"),
            Choice::File(path) => path.display().fmt(f),
        }
    }
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, Self::Err> {
        Ok(match (text, text.strip_prefix("random:")) {
            ("chosen", _) => Choice::Chosen,
            ("mode", _) => Choice::Mode,
            ("incumbent", _) => Choice::Incumbent,
            ("selected", _) => Choice::Selected,
            (_, Some(seed)) => Choice::Random(seed.parse().map_err(|_| "say random:0 or so")?),
            (path, None) => Choice::File(path.into()),
        })
    }
}

/// An architecture as JSON, for people, for other programs, and to be read back by `--architecture FILE`.
pub(crate) fn describe(space: &Space, values: &[i64]) -> anyhow::Result<serde_json::Value> {
    let mut described = serde_json::to_value(space)?;
    described["values"] = values.into();
    for (name, value) in task(space)?.describe(values) {
        described[name] = value;
    }
    Ok(described)
}

/// Reads an architecture from a JSON file: its space with the settings, and one value for each variable.
fn read_architecture(path: &Path) -> anyhow::Result<(Space, Vec<i64>)> {
    #[derive(Deserialize)]
    struct Described {
        #[serde(flatten)]
        space: Space,
        values: Vec<i64>,
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let read = || -> anyhow::Result<(Space, Vec<i64>)> {
        let Described { space, values } = serde_json::from_str(&text)?;
        tasks::check(&task(&space)?.variables(), &values)?;
        Ok((space, values))
    };
    read().with_context(|| format!("{} describes no architecture", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(architecture: &str, space: Option<&str>) -> anyhow::Result<Found> {
        let space = space.map(|name| Space {
            name: name.into(),
            settings: [("nodes".to_owned(), "3".to_owned())].into(),
            ..Space::default()
        });
        let subject = Subject { study: None, architecture: Some(architecture.parse().unwrap()) };
        subject.find(None, space)
    }

    #[test]
    fn a_seed_draws_an_architecture_of_any_space() {
        for space in ["enas-micro", "inpaint-cat", "inpaint-int"] {
            let find = |choice| find(choice, Some(space)).unwrap();
            assert_eq!(find("random:1"), find("random:1"));
            assert_ne!(find("random:1"), find("random:2"));
        }
        let error = find("random:1", None).unwrap_err().to_string();
        assert!(error.starts_with("name the --study or the --space"), "{error}");
        let error = find("mode", None).unwrap_err().to_string();
        assert!(error.starts_with("name the --study whose"), "{error}");
    }

    #[test]
    fn a_study_s_final_architecture_is_meant_unless_another_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let architecture = |value| v1::Architecture { values: vec![value] };
        let chosen = v1::Candidate { architecture: Some(architecture(2)), ..Default::default() };
        let study = v1::Study {
            name: "s".into(),
            study_id: "id".into(),
            spec: Some(v1::StudySpec {
                space: "toy".into(),
                settings: [("variables".to_owned(), "10".to_owned())].into(),
                ..Default::default()
            }),
            mode: Some(architecture(1)),
            chosen: Some(chosen),
            ..Default::default()
        };
        let find = |study: &v1::Study, arguments: &[&str]| {
            #[derive(clap::Parser)]
            struct Line {
                #[command(flatten)]
                subject: Subject,
            }
            let line = [&["program"], arguments].concat();
            let Line { subject } = clap::Parser::parse_from(line);
            subject.find(Some((study, directory.path())), None).map(|found| found.values)
        };
        assert_eq!(find(&study, &[]).unwrap(), [2]);
        assert_eq!(find(&study, &["--architecture", "mode"]).unwrap(), [1]);
        let selected = |study| find(study, &["--architecture", "selected"]);
        let error = selected(&study).unwrap_err().to_string();
        assert!(error.ends_with("run `asng-trainer select --study s` first"), "{error}");
        let of_study = super::directory(directory.path(), &study);
        fs::create_dir_all(&of_study).unwrap();
        for (study_id, variables, message) in [
            (&*study.study_id, 10, ""),
            ("other", 10, "it is of a study with the id other, not id"),
            (&*study.study_id, 9, "an architecture of this space has 10 values, not 9"),
        ] {
            let selection = Selection {
                study: "s".into(),
                study_id: study_id.into(),
                step: Some(7),
                candidates: 3,
                images: 100,
                seed: 0,
                loss: 0.5,
                values: vec![3; variables],
            };
            selection.write(&of_study).unwrap();
            match selected(&study) {
                Ok(values) => assert_eq!((values, message), (selection.values, "")),
                Err(error) => {
                    let error = format!("{error:#}");
                    assert!(
                        error.ends_with(message) && error.contains("study s` first"),
                        "{error}"
                    );
                }
            }
        }
        let error = find(&v1::Study { chosen: None, ..study }, &[]).unwrap_err().to_string();
        assert!(error.ends_with("or none within its limits"), "{error}");
    }

    #[test]
    fn a_file_says_its_space() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("architecture.json");
        let read = |text: &serde_json::Value, space| {
            fs::write(&file, text.to_string()).unwrap();
            find(file.to_str().unwrap(), space)
        };
        for name in ["enas-micro", "inpaint-int"] {
            let Found { space, values, .. } = find("random:1", Some(name)).unwrap();
            let text = describe(&space, &values).unwrap();
            let found = read(&text, None).unwrap();
            assert_eq!((found.space, found.values), (space, values));
            assert_eq!(found.source.to_string(), file.to_str().unwrap());
            let error = read(&text, Some("inpaint-cat")).unwrap_err().to_string();
            assert!(error.ends_with("is of another space than the one named"), "{error}");
        }
        for text in [
            serde_json::json!({"space": "enas-micro"}),
            serde_json::json!({"space": "enas-micro", "values": [0, 1]}),
            serde_json::json!({"space": "enas", "values": [0, 1]}),
            serde_json::json!({"space": "enas-micro", "settings": {"nodes": "0"}, "values": []}),
        ] {
            let error = read(&text, None).unwrap_err().to_string();
            assert!(error.ends_with("describes no architecture"), "{error}");
        }
    }
}
