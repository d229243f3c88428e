//! How good searches are on problems whose answers are known. Every algorithm is asked and told in the same way: those of
//! the controller through the real service, those that it does not have beside it.

mod nasbench201;
mod scaling;

use std::collections::VecDeque;

use anyhow::{Context, bail, ensure};
use asng_proto::v1::{
    self, AlgorithmSettings, lease_step_response::Next, search_service_client::SearchServiceClient,
    study_service_client::StudyServiceClient,
};
use rand::{RngExt, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tonic::transport::Channel;

pub use self::{
    nasbench201::{DataSet, NasBench201, Point},
    scaling::{Mode, Problem, scale},
};

/// An algorithm to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// One of the controller.
    Service(v1::Algorithm),
    /// Regularised evolution (Real et al., AAAI 2019), with the population of 10 and the samples of 3 of
    /// NAS-Bench-201's own baseline.
    Evolution,
}

/// A search without weights: asked for architectures and told their losses.
pub enum Search {
    /// Of a study.
    Service(Box<Service>),
    /// Of this process.
    Evolution(Box<Evolution>),
}

impl Search {
    /// A search of at most `evaluations`, an even number.
    pub async fn start(
        algorithm: Algorithm,
        controller: &Channel,
        name: &str,
        variables: Vec<v1::Variable>,
        evaluations: u64,
        seed: u64,
    ) -> anyhow::Result<Search> {
        Ok(match algorithm {
            Algorithm::Service(algorithm) => {
                let algorithm = AlgorithmSettings {
                    algorithm: algorithm.into(),
                    lambda_x: Some(0),
                    seed: Some(seed),
                    ..Default::default()
                };
                let request = request(name, variables, algorithm, evaluations / 2);
                Search::Service(Box::new(Service::start(controller, request).await?))
            }
            Algorithm::Evolution => Search::Evolution(Box::new(Evolution::new(&variables, seed))),
        })
    }

    /// Architectures to evaluate.
    pub fn ask(&mut self) -> anyhow::Result<Vec<Vec<i64>>> {
        match self {
            Search::Service(service) => {
                let step = service.step.as_ref().context("the study has ended")?;
                Ok(step.rank.iter().map(|architecture| architecture.values.clone()).collect())
            }
            Search::Evolution(evolution) => Ok(vec![evolution.ask()]),
        }
    }

    /// Tells the losses of those, in order.
    pub async fn tell(&mut self, losses: Vec<f64>) -> anyhow::Result<()> {
        match self {
            Search::Service(service) => service.report(losses).await,
            Search::Evolution(evolution) => {
                evolution.tell(losses[0]);
                Ok(())
            }
        }
    }

    /// The most likely architecture, of an algorithm that has one.
    pub async fn mode(&mut self) -> anyhow::Result<Option<Vec<i64>>> {
        match self {
            Search::Service(service) => Ok(Some(service.mode().await?)),
            Search::Evolution(_) => Ok(None),
        }
    }
}

/// A study that nobody else works on.
pub struct Service {
    search: SearchServiceClient<Channel>,
    studies: StudyServiceClient<Channel>,
    name: String,
    /// None when the study has ended.
    step: Option<v1::Step>,
}

/// The trainer of the studies.
const TRAINER: &str = "bench";

impl Service {
    async fn start(channel: &Channel, request: v1::CreateStudyRequest) -> anyhow::Result<Service> {
        let mut studies = StudyServiceClient::new(channel.clone());
        let mut search = SearchServiceClient::new(channel.clone());
        let name = request.name.clone();
        studies.create_study(request).await?;
        let step = lease(&mut search, &name, TRAINER).await?;
        Ok(Service { search, studies, name, step: Some(step) })
    }

    async fn report(&mut self, losses: Vec<f64>) -> anyhow::Result<()> {
        let step = self.step.take().context("the study has ended")?;
        let report = report(&step, TRAINER, losses, true);
        let answer = self.search.report_step(report).await?.into_inner();
        ensure!(answer.outcome() == v1::ReportOutcome::Applied, "{:?}", answer.outcome());
        self.step = match answer.next.and_then(|next| next.next) {
            Some(Next::Step(step)) => Some(step),
            Some(Next::Finished(_)) => None,
            other => bail!("no step, but {other:?}"),
        };
        Ok(())
    }

    async fn mode(&mut self) -> anyhow::Result<Vec<i64>> {
        let request = v1::GetStudyRequest { name: self.name.clone() };
        let study = self.studies.get_study(request).await?.into_inner().study;
        Ok(study.and_then(|study| study.mode).context("the study has no mode")?.values)
    }
}

/// A study of variables that are known.
fn request(
    name: &str,
    variables: Vec<v1::Variable>,
    algorithm: AlgorithmSettings,
    max_steps: u64,
) -> v1::CreateStudyRequest {
    let spec = v1::StudySpec {
        variables,
        algorithm: Some(algorithm),
        stop: Some(v1::StopRules { max_steps, ..Default::default() }),
        ..Default::default()
    };
    v1::CreateStudyRequest { name: name.into(), spec: Some(spec), ..Default::default() }
}

/// A step for a trainer of that name; there must be one.
async fn lease(
    search: &mut SearchServiceClient<Channel>,
    study: &str,
    trainer: &str,
) -> anyhow::Result<v1::Step> {
    let request = v1::LeaseStepRequest {
        study: study.into(),
        trainer_id: trainer.into(),
        ..Default::default()
    };
    match search.lease_step(request).await?.into_inner().next {
        Some(Next::Step(step)) => Ok(step),
        other => bail!("study {study} gives no step, but {other:?}"),
    }
}

fn report(
    step: &v1::Step,
    trainer: &str,
    losses: Vec<f64>,
    lease_next: bool,
) -> v1::ReportStepRequest {
    v1::ReportStepRequest {
        study: step.study.clone(),
        step_id: step.step_id,
        lease_id: step.lease_id.clone(),
        trainer_id: trainer.into(),
        losses,
        lease_next,
        ..Default::default()
    }
}

/// Regularised evolution: the best of a few of the population is changed in one place, and the oldest dies.
pub struct Evolution {
    choices: Vec<i64>,
    population: VecDeque<(Vec<i64>, f64)>,
    asked: Vec<i64>,
    random: ChaCha8Rng,
}

impl Evolution {
    const POPULATION: usize = 10;
    const SAMPLE: usize = 3;

    fn new(variables: &[v1::Variable], seed: u64) -> Evolution {
        let choices = |variable: &v1::Variable| match &variable.kind {
            Some(v1::variable::Kind::Categorical(categorical)) => categorical.choices.len() as i64,
            _ => panic!("only of categoricals"),
        };
        Evolution {
            choices: variables.iter().map(choices).collect(),
            population: VecDeque::new(),
            asked: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    fn ask(&mut self) -> Vec<i64> {
        let Evolution { choices, population, random, .. } = self;
        self.asked = if population.len() < Evolution::POPULATION {
            choices.iter().map(|choices| random.random_range(0..*choices)).collect()
        } else {
            let sample = population.as_slices().0.sample(random, Evolution::SAMPLE);
            let best = sample.min_by(|a, b| a.1.total_cmp(&b.1));
            let mut child = best.expect("the population is not empty").0.clone();
            let place = random.random_range(0..child.len());
            // Another choice: any but the present one.
            let step = random.random_range(1..choices[place]);
            child[place] = (child[place] + step) % choices[place];
            child
        };
        self.asked.clone()
    }

    fn tell(&mut self, loss: f64) {
        self.population.push_back((self.asked.clone(), loss));
        if self.population.len() > Evolution::POPULATION {
            self.population.pop_front();
        }
        self.population.make_contiguous();
    }
}
