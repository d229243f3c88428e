//! How a search goes with many trainers that all take equally long, one evaluation after the other, so that the figures are
//! those of any machine.

use std::collections::VecDeque;

use anyhow::ensure;
use asng_proto::v1::{
    self, AlgorithmSettings, ReportOutcome, lease_step_response::Next, marginal::Kind,
    search_service_client::SearchServiceClient, study_service_client::StudyServiceClient,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tonic::transport::Channel;

use super::{NasBench201, lease, report, request};
use crate::categoricals;

/// How trainers share a study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every report is an update; trainers never wait.
    Asynchronous,
    /// A report of each trainer makes an update, for which all wait.
    Synchronous,
}

/// For how many evaluations a cell has to be the most likely one.
const HELD: u64 = 200;

/// A function of 30 variables of 5 choices, each of which costs one more than the one before it; noise of deviation 1
/// hides as much.
struct Separable;

impl Separable {
    const VARIABLES: usize = 30;

    fn cost(variable: usize, choice: i64) -> i64 {
        // The best choice is not everywhere the first one.
        (choice + variable as i64) % 5
    }
}

/// The problem that is searched.
pub enum Problem<'a> {
    /// The function with noise. Solved when the best choices have a probability of 0.9 on average.
    Separable,
    /// Cells, each evaluation one of their trainings. Solved when the most likely one has had this accuracy in percent for
    /// 200 evaluations: it changes at first with every report, and may be good by chance.
    NasBench201(&'a NasBench201, f64),
}

impl Problem<'_> {
    fn variables(&self) -> Vec<v1::Variable> {
        match self {
            Problem::Separable => categoricals(Separable::VARIABLES),
            Problem::NasBench201(..) => NasBench201::variables(),
        }
    }

    fn loss(&self, architecture: &[i64], random: &mut ChaCha8Rng) -> f64 {
        match self {
            Problem::Separable => {
                let costs = architecture.iter().enumerate();
                let cost: i64 = costs.map(|(i, choice)| Separable::cost(i, *choice)).sum();
                let noise: f64 = StandardNormal.sample(random);
                cost as f64 + noise
            }
            Problem::NasBench201(table, _) => -table.of_one_training(architecture, random),
        }
    }

    /// For how many evaluations it has to be solved.
    fn held(&self) -> u64 {
        match self {
            Problem::Separable => 0,
            Problem::NasBench201(..) => HELD,
        }
    }

    /// Returns true if `theta`, a row for each variable, is a solution.
    fn solved(&self, theta: &[Vec<f64>]) -> bool {
        match self {
            Problem::Separable => {
                let best = |i: usize| (0..5).position(|choice| Separable::cost(i, choice) == 0);
                let sure = theta.iter().enumerate().map(|(i, row)| row[best(i).unwrap_or(0)]);
                sure.sum::<f64>() / theta.len() as f64 > 0.9
            }
            Problem::NasBench201(table, wanted) => {
                let likeliest = |row: &Vec<f64>| {
                    let choices = row.iter().enumerate();
                    choices.max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(choice, _)| choice as i64)
                };
                table.accuracy(&theta.iter().map(likeliest).collect::<Vec<_>>()) >= *wanted
            }
        }
    }
}

/// Searches with so many trainers; the evaluations that it took in all until the problem was solved, if that was within
/// `limit` evaluations.
pub async fn scale(
    problem: &Problem<'_>,
    mode: Mode,
    trainers: u64,
    controller: &Channel,
    name: &str,
    seed: u64,
    limit: u64,
) -> anyhow::Result<Option<u64>> {
    let mut studies = StudyServiceClient::new(controller.clone());
    let mut search = SearchServiceClient::new(controller.clone());
    let mut algorithm =
        AlgorithmSettings { lambda_x: Some(0), seed: Some(seed), ..Default::default() };
    if mode == Mode::Synchronous {
        algorithm.steps_per_update = Some(trainers as u32);
        algorithm.max_staleness = Some(0);
    }
    // More than it will take, since the last round may pass the limit.
    let request = request(name, problem.variables(), algorithm, limit);
    studies.create_study(request).await?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut evaluations = 0;
    let mut held = VecDeque::new();
    let mut solved_at = None;
    while evaluations < limit {
        // In the order in which trainers that take equally long would ask and report.
        for trainer in 0..trainers {
            let trainer = format!("trainer-{trainer}");
            if held.len() < trainers as usize {
                held.push_back(lease(&mut search, name, &trainer).await?);
            }
        }
        for trainer in 0..trainers {
            let Some(step) = held.pop_front() else { break };
            let losses = step.rank.iter().map(|a| problem.loss(&a.values, &mut random)).collect();
            evaluations += step.rank.len() as u64;
            let trainer = format!("trainer-{trainer}");
            let go_on = mode == Mode::Asynchronous;
            let answer = search.report_step(report(&step, &trainer, losses, go_on)).await?;
            let answer = answer.into_inner();
            let outcome = answer.outcome();
            ensure!(
                matches!(outcome, ReportOutcome::Applied | ReportOutcome::Pending),
                "{outcome:?}"
            );
            if let Some(Next::Step(step)) = answer.next.and_then(|next| next.next) {
                held.push_back(step);
            }
        }
        let solved = problem.solved(&theta(&mut studies, name).await?);
        solved_at = solved.then(|| solved_at.unwrap_or(evaluations));
        if solved_at.is_some_and(|at| evaluations - at >= problem.held()) {
            break;
        }
    }
    studies.stop_study(v1::StopStudyRequest { name: name.into() }).await?;
    Ok(solved_at)
}

async fn theta(
    studies: &mut StudyServiceClient<Channel>,
    name: &str,
) -> anyhow::Result<Vec<Vec<f64>>> {
    let request = v1::GetDistributionRequest { name: name.into() };
    let marginals = studies.get_distribution(request).await?.into_inner().marginals;
    let row = |marginal: v1::Marginal| match marginal.kind {
        Some(Kind::Categorical(categorical)) => categorical.probabilities,
        _ => Vec::new(),
    };
    Ok(marginals.into_iter().map(row).collect())
}
