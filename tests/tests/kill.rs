//! The controller is killed with SIGKILL at random moments: no acknowledged report is lost, none counts twice, with one
//! trainer the search ends bit for bit where an undisturbed one does, and with many theta is what the history makes it.

use std::{collections::BTreeMap, env, sync::Arc, time::Duration};

use asng_controller::asng::{Architecture, Asng, Marginal, Ranked, Settings, Value, Variable};
use asng_proto::v1::{self, ReportOutcome, StudyState, study_service_client::StudyServiceClient};
use asng_tests::{Controller, Postgres, create_request, loss, theta, train_ahead};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{sync::Semaphore, task::JoinSet};
use tonic::transport::Channel;

const STUDY: &str = "killed";
const TRAINERS: usize = 8;
/// Reports that are acknowledged between two kills, at most.
const SPACING: u32 = 28;

/// A search that is disturbed.
struct Disturbed {
    kills: usize,
    trainers: usize,
    /// The steps that each of them holds.
    in_hand: usize,
    steps_per_update: u32,
    /// True where the first half of the search is a warm-up, which ranks nothing.
    has_warm_up: bool,
}

impl Disturbed {
    fn steps(&self) -> u64 {
        (self.kills.max(20) as u64 + 1) * u64::from(SPACING)
    }

    fn warmup_steps(&self) -> u64 {
        if self.has_warm_up { self.steps() / 2 } else { 0 }
    }

    /// Runs it to its end on `controller`. Returns the losses of every acknowledged report, by step.
    async fn run(&self, controller: &mut Controller) -> BTreeMap<u64, Vec<f64>> {
        let mut studies = controller.studies();
        let mut request = create_request(STUDY, self.steps());
        let algorithm = request.spec.as_mut().unwrap().algorithm.as_mut().unwrap();
        algorithm.steps_per_update = Some(self.steps_per_update);
        algorithm.warmup_steps = self.has_warm_up.then(|| self.warmup_steps());
        studies.create_study(request).await.unwrap();

        // The trainers give a permit for each acknowledged report; between two kills the killer takes some.
        let acknowledgements = Arc::new(Semaphore::new(0));
        let mut trainers = JoinSet::new();
        let in_hand = self.in_hand;
        for i in 0..self.trainers {
            let (search, acknowledgements) = (controller.search(), acknowledgements.clone());
            trainers.spawn(async move {
                let mut reports = Vec::new();
                train_ahead(search, STUDY, &format!("trainer-{i}"), in_hand, |step, answer| {
                    acknowledgements.add_permits(1);
                    match answer.outcome() {
                        // A duplicate is of this very report: its first answer was lost with the process that gave it.
                        ReportOutcome::Applied
                        | ReportOutcome::Pending
                        | ReportOutcome::Duplicate => {
                            let losses: Vec<_> = step.rank.iter().map(loss).collect();
                            reports.push((step.step_id, losses));
                        }
                        other => panic!("{other:?}"),
                    }
                })
                .await;
                reports
            });
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.kills as u64);
        for _ in 0..self.kills {
            let reports = random.random_range(1..SPACING);
            acknowledgements.acquire_many(reports).await.unwrap().forget();
            // Any moment within a step: not a wait for anything.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..3000))).await;
            controller.kill();
            controller.restart();
        }
        let mut acknowledged = BTreeMap::new();
        for (step, losses) in trainers.join_all().await.into_iter().flatten() {
            assert!(acknowledged.insert(step, losses).is_none(), "step {step} counted twice");
        }
        assert_eq!(acknowledged.len() as u64, self.steps(), "every step was acknowledged once");

        let request = v1::GetStudyRequest { name: STUDY.into() };
        let study = studies.get_study(request).await.unwrap().into_inner().study.unwrap();
        let progress = study.progress.unwrap();
        assert_eq!(study.state, StudyState::Finished as i32);
        let counts = (progress.applied, progress.pending, progress.outstanding, progress.stale);
        assert_eq!(counts, (self.steps(), 0, 0, 0));
        acknowledged
    }
}

/// The final theta of a search by one trainer.
async fn theta_of_one(
    kills: usize,
    in_hand: usize,
    steps_per_update: u32,
    has_warm_up: bool,
) -> Vec<u64> {
    let directory = tempfile::tempdir().unwrap();
    let mut controller = Controller::start(directory.path());
    let disturbed = Disturbed { kills, trainers: 1, in_hand, steps_per_update, has_warm_up };
    disturbed.run(&mut controller).await;
    theta(&mut controller.studies(), STUDY).await
}

#[tokio::test]
async fn twenty_kills_leave_no_trace_in_theta() {
    let (disturbed, undisturbed) =
        tokio::join!(theta_of_one(20, 1, 1, true), theta_of_one(0, 1, 1, true));
    assert_eq!(disturbed, undisturbed);
}

#[tokio::test]
async fn kills_leave_no_trace_when_steps_are_gathered() {
    let (disturbed, undisturbed) =
        tokio::join!(theta_of_one(5, 1, 4, false), theta_of_one(0, 1, 4, false));
    assert_eq!(disturbed, undisturbed);
}

#[tokio::test]
async fn kills_leave_no_trace_when_a_trainer_holds_several_steps() {
    let (disturbed, undisturbed) =
        tokio::join!(theta_of_one(10, 4, 1, true), theta_of_one(0, 4, 1, true));
    assert_eq!(disturbed, undisturbed);
}

#[tokio::test]
async fn the_history_explains_theta_after_kills_on_sqlite() {
    let directory = tempfile::tempdir().unwrap();
    history_explains_theta(Controller::start(directory.path())).await;
}

#[tokio::test]
async fn the_history_explains_theta_after_kills_on_postgresql() {
    let Some(postgres) = Postgres::start() else { return };
    let directory = tempfile::tempdir().unwrap();
    let store = postgres.url("asng");
    history_explains_theta(Controller::start_with(directory.path(), &["--store", &store])).await;
}

/// Kills a search by many trainers, `ASNG_KILLS` times, and computes theta again from its history.
async fn history_explains_theta(mut controller: Controller) {
    let kills = env::var("ASNG_KILLS").map_or(20, |kills| kills.parse().expect("a number"));
    let disturbed =
        Disturbed { kills, trainers: TRAINERS, in_hand: 3, steps_per_update: 3, has_warm_up: true };
    let acknowledged = disturbed.run(&mut controller).await;
    let mut studies = controller.studies();
    let history = history(&mut studies).await;
    let kept: BTreeMap<_, _> =
        history.iter().map(|report| (report.step_id, report.losses.clone())).collect();
    assert_eq!(kept.len(), history.len(), "no step is in the history twice");
    assert_eq!(kept, acknowledged, "the history has what was acknowledged, and nothing else");
    let in_warm_up = |report: &v1::Report| report.applied < disturbed.warmup_steps();
    assert!(history.iter().all(|report| report.rank.is_empty() == in_warm_up(report)));
    assert_eq!(recomputed(&history), theta(&mut studies, STUDY).await);
}

/// The whole history, page by page.
async fn history(studies: &mut StudyServiceClient<Channel>) -> Vec<v1::Report> {
    let mut reports = Vec::new();
    let mut request =
        v1::ListReportsRequest { study: STUDY.into(), page_size: 70, ..Default::default() };
    loop {
        let page = studies.list_reports(request.clone()).await.unwrap().into_inner();
        reports.extend(page.reports);
        if page.next_page_token.is_empty() {
            return reports;
        }
        request.page_token = page.next_page_token;
    }
}

/// The distribution to which the reports lead, in the form of `theta`.
fn recomputed(history: &[v1::Report]) -> Vec<u64> {
    let mut variables = vec![Variable::Categorical { choices: 5 }; 10];
    variables.push(Variable::Integer { low: 8, high: 64 });
    let draw = |draw: &v1::Draw| {
        let value = |(value, variable): (&f64, &Variable)| match variable {
            Variable::Integer { .. } => Value::Real(*value),
            _ => Value::Choice(*value as u32),
        };
        Architecture(draw.values.iter().zip(&variables).map(value).collect())
    };
    let mut updates: BTreeMap<u64, Vec<&v1::Report>> = BTreeMap::new();
    for report in history {
        assert_eq!(report.outcome(), ReportOutcome::Applied, "step {}", report.step_id);
        updates.entry(report.update).or_default().push(report);
    }
    let mut asng = Asng::new(&variables, Settings::default()).unwrap();
    let mut generations = 0;
    for (generation, (update, steps)) in (1..).zip(updates) {
        assert_eq!(update, generation, "no update is missing");
        let architectures: Vec<Vec<_>> =
            steps.iter().map(|step| step.rank.iter().map(draw).collect()).collect();
        let ranked: Vec<_> = architectures
            .iter()
            .zip(steps)
            .filter(|(architectures, _)| !architectures.is_empty())
            .map(|(architectures, step)| Ranked { architectures, losses: &step.losses })
            .collect();
        if !ranked.is_empty() {
            asng.tell(&ranked).unwrap();
        }
        generations = generation;
    }
    let mut bits = vec![generations, asng.state().snr_factor.to_bits()];
    for marginal in asng.marginals() {
        match marginal {
            Marginal::Categorical(probabilities) => {
                bits.extend(probabilities.iter().map(|p| p.to_bits()));
            }
            Marginal::Integer { mean, deviation } => {
                bits.extend([mean.to_bits(), deviation.to_bits()]);
            }
        }
    }
    bits
}
