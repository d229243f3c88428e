//! What a study of the controller means here: its settings, its architectures, the directory of its files.

use std::{
    collections::BTreeMap,
    fmt, fs,
    future::Future,
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

use crate::space::{
    Space, enas_micro,
    inpaint::{self, Coding},
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
pub fn space(study: &v1::Study) -> anyhow::Result<Space> {
    let spec = study.spec.clone().unwrap_or_default();
    named(&spec.space, &spec.settings).with_context(|| format!("study {:?}", study.name))
}

/// The space of that name, with those settings.
pub fn named(name: &str, settings: &BTreeMap<String, String>) -> anyhow::Result<Space> {
    let Some(space) = Space::parse(name, settings) else {
        bail!("this trainer does not know the space {name:?}");
    };
    space.map_err(|violations| {
        let all: Vec<_> =
            violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
        anyhow::anyhow!("these settings cannot be: {}", all.join("; "))
    })
}

/// Where a trainer keeps a study's files within its own directory. A study that was deleted and made again under the same
/// name has another one.
pub fn directory(work_dir: &Path, study: &v1::Study) -> PathBuf {
    work_dir.join("studies").join(format!("{}-{}", study.name, study.study_id))
}

/// The final architecture of a study, as things stand.
pub fn chosen(study: &v1::Study) -> Option<v1::Architecture> {
    study.chosen.as_ref()?.architecture.clone()
}

/// Which architecture is meant.
#[derive(Clone, Debug, Args)]
pub struct Subject {
    /// The study whose architecture, space and settings are meant
    #[arg(long)]
    pub study: Option<String>,
    /// The architecture: "chosen" (the study's final one as things stand: the most likely one, within the limits on costs),
    /// "mode" (the most likely one), "incumbent" (the one with the smallest loss reported), "random:SEED" (drawn uniformly),
    /// or a JSON file [default: chosen]
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
    /// Where it comes from.
    pub source: Source,
}

/// Where an architecture comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// "chosen", "mode", "incumbent", "random:SEED" or the path of a file.
    pub architecture: String,
    /// The name of its study, if it is of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study: Option<String>,
    /// The id of its study.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub study_id: Option<String>,
    /// The settings of its space that were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

impl Source {
    /// Returns the source of an architecture of `study`, if there is one, that was named by `choice`.
    pub(crate) fn new(choice: &Choice, study: Option<&v1::Study>) -> Source {
        let spec = study.and_then(|study| study.spec.as_ref());
        Source {
            architecture: choice.to_string(),
            study: study.map(|study| study.name.clone()),
            study_id: study.map(|study| study.study_id.clone()),
            settings: spec.map(|spec| spec.settings.clone()).unwrap_or_default(),
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

impl Subject {
    /// The architecture, of that study if it is of one; without a study, `space_alone` is the one of a random
    /// architecture.
    pub fn find(
        &self,
        study: Option<&v1::Study>,
        space_alone: Option<Space>,
    ) -> anyhow::Result<Found> {
        let given = match study {
            Some(study) => Some(space(study)?),
            None => space_alone,
        };
        let choice = self.architecture.as_ref().unwrap_or(&Choice::Chosen);
        let source = Source::new(choice, study);
        let of_study = |values: Option<v1::Architecture>| {
            let study = study.context(
                "name the --study whose architecture is meant, or give --architecture a file",
            )?;
            let v1::Architecture { values } = values.with_context(|| {
                format!(
                    "study {:?} has no such architecture yet, or none within its limits",
                    study.name
                )
            })?;
            Ok(Found { space: space(study)?, values, source: source.clone() })
        };
        match choice {
            Choice::Chosen => of_study(study.and_then(chosen)),
            Choice::Mode => of_study(study.and_then(|study| study.mode.clone())),
            Choice::Incumbent => {
                let incumbent = study.and_then(|study| study.incumbent.clone());
                of_study(incumbent.and_then(|incumbent| incumbent.architecture))
            }
            Choice::Random(seed) => {
                let space = given.context(
                    "name the --study or the --space that the random architecture is of",
                )?;
                let values = space.draw(&mut ChaCha8Rng::seed_from_u64(*seed));
                Ok(Found { space, values, source })
            }
            Choice::File(path) => {
                let (of_file, values) = read_architecture(path)?;
                match given {
                    None => Ok(Found { space: of_file, values, source }),
                    Some(space) if space.variables() == of_file.variables() => {
                        Ok(Found { space, values, source })
                    }
                    Some(_) => {
                        bail!("{} is of another space than the one named", path.display())
                    }
                }
            }
        }
    }
}

/// Which architecture a person named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The final one of the study, as things stand.
    Chosen,
    /// The most likely one of the study.
    Mode,
    /// The one of the study with the smallest loss reported.
    Incumbent,
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
            (_, Some(seed)) => Choice::Random(seed.parse().map_err(|_| "say random:0 or so")?),
            (path, None) => Choice::File(path.into()),
        })
    }
}

/// Reads an architecture from a JSON file: its space, which has the settings' defaults but for what the file says, and one
/// value for each variable.
fn read_architecture(path: &Path) -> anyhow::Result<(Space, Vec<i64>)> {
    #[derive(Deserialize)]
    struct Named {
        #[serde(default)]
        space: Option<String>,
    }
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let found = || -> anyhow::Result<(Space, Vec<i64>)> {
        let Named { space } = serde_json::from_str(&text)?;
        if let Some(coding) = space.as_deref().and_then(Coding::named) {
            let described: inpaint::Description = serde_json::from_str(&text)?;
            let values = described.architecture()?.values();
            let settings = inpaint::Settings {
                nodes: described.architecture()?.nodes().len() as i64,
                level_back: described.level_back,
                channels: described.channels,
                ..inpaint::Settings::default()
            };
            return Ok((Space::Inpaint(coding, settings), values));
        }
        let described: enas_micro::Description = serde_json::from_str(&text)?;
        ensure!(
            described.space == enas_micro::NAME,
            "networks of space {:?} are unknown",
            described.space
        );
        let architecture = described.architecture()?;
        let nodes = architecture.normal.nodes.len() as i64;
        let settings = enas_micro::Settings { nodes, ..enas_micro::Settings::default() };
        Ok((Space::EnasMicro(settings), architecture.values()))
    };
    found().with_context(|| format!("{} describes no architecture", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(architecture: &str, space: Option<&str>) -> anyhow::Result<Found> {
        let settings = [("nodes".to_owned(), "3".to_owned())].into();
        let space = space.map(|name| named(name, &settings).unwrap());
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
        let architecture = |value| v1::Architecture { values: vec![value] };
        let chosen = v1::Candidate { architecture: Some(architecture(2)), ..Default::default() };
        let study = v1::Study {
            name: "s".into(),
            spec: Some(v1::StudySpec { space: "toy".into(), ..Default::default() }),
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
            subject.find(Some(study), None).map(|found| found.values)
        };
        assert_eq!(find(&study, &[]).unwrap(), [2]);
        assert_eq!(find(&study, &["--architecture", "mode"]).unwrap(), [1]);
        let error = find(&v1::Study { chosen: None, ..study }, &[]).unwrap_err().to_string();
        assert!(error.ends_with("or none within its limits"), "{error}");
    }

    #[test]
    fn a_file_says_its_space_and_old_ones_are_of_cells() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("architecture.json");
        let read = |text: serde_json::Value, space| {
            fs::write(&file, text.to_string()).unwrap();
            find(file.to_str().unwrap(), space)
        };
        let Found { space, values, .. } = find("random:1", Some("enas-micro")).unwrap();
        let cells = enas_micro::Architecture::decode(3, &values).unwrap().describe();
        let mut text = serde_json::to_value(cells).unwrap();
        text.as_object_mut().unwrap().remove("space");
        let found = read(text.clone(), None).unwrap();
        assert_eq!((found.space, found.values), (space, values));
        assert_eq!(found.source.to_string(), file.to_str().unwrap());
        let error = read(text, Some("inpaint-cat")).unwrap_err().to_string();
        assert!(error.ends_with("is of another space than the one named"), "{error}");

        let found = find("random:1", Some("inpaint-int")).unwrap();
        let Space::Inpaint(coding, settings) = &found.space else { panic!() };
        let row = inpaint::Architecture::decode(&settings.space(*coding), &found.values).unwrap();
        let text = serde_json::to_value(row.describe()).unwrap();
        for space in [None, Some("inpaint-int")] {
            let read = read(text.clone(), space).unwrap();
            assert_eq!((&read.space, &read.values), (&found.space, &found.values));
        }
        let error = read(serde_json::json!({"space": "toy", "values": [1]}), None).unwrap_err();
        assert!(error.to_string().ends_with("describes no architecture"), "{error}");
    }
}
