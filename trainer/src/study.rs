//! What a study of the controller means here: its settings, its architectures, the directory of its files.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, bail};
use asng_client::{Connection, explain, insist};
use asng_proto::v1::{self, study_service_client::StudyServiceClient};

use crate::space::{
    Space,
    enas_micro::{Architecture, Description, Settings},
};

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

/// The space of a study, with its settings.
pub fn space(study: &v1::Study) -> anyhow::Result<Space> {
    let spec = study.spec.clone().unwrap_or_default();
    let Some(space) = Space::parse(&spec.space, &spec.settings) else {
        bail!(
            "study {:?} is of space {:?}, which this trainer does not know",
            study.name,
            spec.space
        );
    };
    space.map_err(|violations| {
        let all: Vec<_> =
            violations.iter().map(|v| format!("{} {}", v.field, v.description)).collect();
        anyhow::anyhow!("study {:?} has settings that cannot be: {}", study.name, all.join("; "))
    })
}

/// The settings of a study of space `enas-micro`.
pub fn settings(study: &v1::Study) -> anyhow::Result<Settings> {
    match space(study)? {
        Space::EnasMicro(settings) => Ok(settings),
        Space::Inpaint(..) | Space::Toy(_) => bail!(
            "study {:?} is of another space than enas-micro, which alone can be evaluated and retrained so far",
            study.name
        ),
    }
}

/// Where a trainer keeps a study's files within its own directory. A study that was deleted and made again under the same
/// name has another one.
pub fn directory(work_dir: &Path, study: &v1::Study) -> PathBuf {
    work_dir.join("studies").join(format!("{}-{}", study.name, study.study_id))
}

/// Which architecture of a study is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The most likely one.
    Mode,
    /// The one with the smallest loss reported.
    Incumbent,
    /// The one in a JSON file that `retrain` or a person wrote.
    File(PathBuf),
}

impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Choice, Self::Err> {
        Ok(match text {
            "mode" => Choice::Mode,
            "incumbent" => Choice::Incumbent,
            path => Choice::File(path.into()),
        })
    }
}

impl Choice {
    /// The architecture meant.
    pub fn of(&self, study: &v1::Study, settings: &Settings) -> anyhow::Result<Architecture> {
        let values = match self {
            Choice::Mode => study.mode.clone(),
            Choice::Incumbent => {
                study.incumbent.clone().and_then(|incumbent| incumbent.architecture)
            }
            Choice::File(path) => return read_architecture(path),
        };
        let Some(v1::Architecture { values }) = values else {
            bail!("study {:?} has no such architecture yet", study.name);
        };
        Ok(Architecture::decode(settings.nodes as usize, &values)?)
    }
}

/// Reads an architecture from a JSON file.
pub fn read_architecture(path: &Path) -> anyhow::Result<Architecture> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let description: Description = serde_json::from_str(&text)
        .with_context(|| format!("{} describes no architecture", path.display()))?;
    description.architecture().with_context(|| format!("{}", path.display()))
}
