//! Random lists of what can happen to a study, against the real study and the real store, with a simple model of what
//! must hold checked after each. A failing list is made short and printed; `ASNG_LISTS` sets how many are tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
};

use proptest::prelude::*;

use super::*;
use crate::{
    asng::{Architecture, Asng, Ranked},
    study::{CostRule, Direction, Kind, LeaseId, Outcome, StepId, StopRule, TracePoint, Variable},
};

const TRAINERS: usize = 3;
const STUDY: &str = "s";

/// An operation. Numbers select among the existing studies and steps.
#[derive(Clone, Debug)]
enum Operation {
    /// A trainer asks for a step; under the request id of before, or a new one.
    Lease {
        trainer: usize,
        again: bool,
    },
    /// A trainer asks for several steps, each under a new request id.
    LeaseAhead {
        trainer: usize,
        steps: usize,
    },
    /// A trainer reports a step it has, or once had, and asks for the next.
    Report {
        trainer: usize,
        held: usize,
        losses: [f64; 2],
        sizes: [f64; 2],
        crash: bool,
    },
    Release {
        held: usize,
    },
    Extend {
        held: usize,
    },
    /// A trainer that has set the study aside asks for a step; then one that lacks its data set.
    SetAside {
        trainer: usize,
    },
    /// A trainer cannot serve the study.
    Reject,
    /// A trainer's process is started again.
    FreshStart {
        trainer: usize,
    },
    Wait {
        seconds: u64,
    },
    /// The wall clock jumps.
    Jump {
        seconds: u64,
    },
    Pause,
    Resume,
    Stop,
    /// A second has passed.
    Tick,
    /// The controller is started again.
    Restart,
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    use Operation::*;
    let loss = || prop_oneof![8 => -5.0..5.0, 1 => Just(f64::NAN), 1 => Just(1.0)];
    let size = || prop_oneof![4 => 0.0..10.0, 1 => Just(3.0)];
    let crash = prop::bool::weighted(0.1);
    let operation = prop_oneof![
        8 => (0..TRAINERS, any::<bool>()).prop_map(|(trainer, again)| Lease { trainer, again }),
        2 => (0..TRAINERS, 1..6_usize).prop_map(|(trainer, steps)| LeaseAhead { trainer, steps }),
        12 => (0..TRAINERS, any::<usize>(), [loss(), loss()], [size(), size()], crash).prop_map(
            |(trainer, held, losses, sizes, crash)| Report { trainer, held, losses, sizes, crash }
        ),
        1 => any::<usize>().prop_map(|held| Release { held }),
        1 => any::<usize>().prop_map(|held| Extend { held }),
        1 => (0..TRAINERS).prop_map(|trainer| SetAside { trainer }),
        1 => Just(Reject),
        1 => (0..TRAINERS).prop_map(|trainer| FreshStart { trainer }),
        2 => (0..90_u64).prop_map(|seconds| Wait { seconds }),
        1 => (0..1_000_000_u64).prop_map(|seconds| Jump { seconds }),
        1 => Just(Pause),
        2 => Just(Resume),
        1 => prop::bool::weighted(0.1).prop_map(|stop| if stop { Stop } else { Resume }),
        1 => Just(Tick),
        1 => Just(Restart),
    ];
    prop::collection::vec(operation, 1..60)
}

fn specs() -> impl Strategy<Value = Spec> {
    let numbers = (1..4_u32, 0..3_u32, 1..30_u64);
    let every = prop_oneof![3 => Just(None), 1 => (1..4_u64).prop_map(Some)];
    let limit = prop_oneof![1 => Just(None), 2 => (2..8_u32).prop_map(Some)];
    let max_seconds = prop_oneof![2 => Just(None), 1 => (1..300_u64).prop_map(Some)];
    let warmup = prop_oneof![1 => Just(None), 1 => (0..8_u64).prop_map(Some)];
    let direction = prop_oneof![2 => Just(Direction::Minimize), 1 => Just(Direction::Maximize)];
    (numbers, every, limit, max_seconds, warmup, direction).prop_map(
        |(
            (steps_per_update, max_staleness, max_steps),
            every,
            limit,
            max_seconds,
            warmup,
            direction,
        )| {
            let choices = ["a", "b", "c"].map(String::from).to_vec();
            let rule = |limit| CostRule {
                cost: "size".into(),
                weight: Some(0.5),
                limit: Some(f64::from(limit)),
            };
            Spec {
                direction,
                costs: limit.map(rule).into_iter().collect(),
                retention: every.map(Retention::Every),
                variables: vec![
                    Variable { name: "c".into(), kind: Kind::Categorical { choices } },
                    Variable { name: "i".into(), kind: Kind::Integer { low: -5, high: 5 } },
                ],
                seed: Some(1),
                steps_per_update: Some(steps_per_update),
                max_staleness: Some(max_staleness),
                max_steps,
                warmup_steps: warmup.map(|steps| steps.min(max_steps)),
                max_duration: max_seconds.map(Duration::from_secs),
                settings: [("dataset".to_owned(), "wanted".to_owned())].into(),
                ..Spec::default()
            }
        },
    )
}

/// The expected state of the study, kept apart from it.
struct Model {
    asng: Asng,
    max_staleness: u64,
    /// True if the history is not kept completely.
    forgets: bool,
    generation: u64,
    /// Every step ever handed out: its generation and what is ranked.
    sampled: BTreeMap<StepId, (u64, Arc<[Architecture]>)>,
    /// Steps whose report was acknowledged, with the outcome then.
    acknowledged: BTreeMap<StepId, Outcome>,
    limit: Option<f64>,
    /// The factor that turns reported values into losses: -1 where they are maximized.
    sign: f64,
    /// Losses and sizes that wait for their batch.
    pending: BTreeMap<StepId, ([f64; 2], [f64; 2])>,
    rejected: bool,
    /// Size and loss of all that was evaluated.
    evaluated: Vec<(f64, f64)>,
    /// Sizes of the architectures that were within the limit when they were last evaluated.
    within: BTreeMap<Vec<i64>, f64>,
    applied: u64,
    /// The exact values of each point of the trace: applied, diverged, and those of the optimiser.
    trace: Vec<(u64, u64, [f64; 4])>,
}

/// How much of the time that counts towards its limit a study loses by a restart.
const LOST: Duration = Duration::from_secs(10);

struct Simulation {
    location: Location,
    /// None only while it is started again.
    registry: Option<StudyRegistry>,
    now: Now,
    model: Model,
    /// Leases ever given, in order.
    leases: Vec<LeaseId>,
    requests: u64,
    /// Monotonic time when the study began.
    began: Instant,
    restarts: u32,
}

/// Starts a controller on what another has left that ended without a word.
fn load(location: &Location) -> StudyRegistry {
    if let Location::Postgres { url, .. } = location {
        // Otherwise it would have to wait until that one counts as gone.
        crate::store::forget_controllers(url);
    }
    let store = loop {
        match Store::open(location) {
            Ok(store) => break store,
            // A child that another test is starting has the lock's file open until it runs its own program.
            Err(store::Error::InUse(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    StudyRegistry::load(store, Limits::default()).unwrap()
}

fn commit(registry: &mut StudyRegistry) {
    let batch = registry.batch(Vec::new());
    batch.commit(&mut registry.store.lock(), |result| result.unwrap());
}

impl Simulation {
    fn new(location: Location, spec: Spec) -> Simulation {
        let shapes: Vec<_> = spec.variables.iter().map(Variable::shape).collect();
        let asng = Asng::new(&shapes, spec.optimiser()).unwrap();
        let max_staleness = spec.max_staleness();
        let forgets = spec.retention.is_some();
        let limit = spec.costs.first().and_then(|rule| rule.limit);
        let sign = if spec.direction == Direction::Maximize { -1.0 } else { 1.0 };
        let now = Now { monotonic: Instant::now(), wall: UNIX_EPOCH };
        let mut registry = load(&location);
        registry.create(STUDY, spec, "", false, now).unwrap();
        commit(&mut registry);
        let model = Model {
            asng,
            max_staleness,
            forgets,
            generation: 0,
            sampled: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            limit,
            sign,
            pending: BTreeMap::new(),
            rejected: false,
            evaluated: Vec::new(),
            within: BTreeMap::new(),
            applied: 0,
            trace: Vec::new(),
        };
        Simulation {
            location,
            registry: Some(registry),
            now,
            model,
            leases: Vec::new(),
            requests: 0,
            began: now.monotonic,
            restarts: 0,
        }
    }

    fn registry(&mut self) -> &mut StudyRegistry {
        self.registry.as_mut().unwrap()
    }

    fn study(&self) -> &Study {
        &self.registry.as_ref().unwrap().studies[STUDY]
    }

    /// Ends the process without a word, and starts another.
    fn restart(&mut self) {
        self.registry = None;
        self.registry = Some(load(&self.location));
        // Leases run anew from the clock that the loading read.
        self.now.monotonic = self.now.monotonic.max(Instant::now());
        self.restarts += 1;
        self.tick();
    }

    fn tick(&mut self) {
        let (now, had_ended) = (self.now, self.study().state().has_ended());
        self.registry().tick(now);
        if !had_ended && self.study().state().has_ended() {
            // Its time was over: what was pending has been applied.
            self.model.update();
        }
    }

    fn lease(&mut self, trainer: usize, origin: &Origin) {
        let (now, trainer) = (self.now, format!("t{trainer}"));
        let request = LeaseRequest {
            study: STUDY,
            trainer: &trainer,
            spaces: &[],
            data_sets: &["wanted".to_owned()],
            set_aside: &[],
            origin,
        };
        let (next, _) = self.registry().lease(&request, now).unwrap();
        if let Next::Step(id) = next {
            let study = self.study();
            let step = study.step(id).unwrap();
            let lease = study.lease_id(step);
            let in_warmup = step.applied < study.spec().warmup_steps();
            assert_eq!(step.rank.is_empty(), in_warmup, "the warm-up ranks nothing");
            let sampled = (step.generation, step.rank.clone());
            self.leases.push(lease);
            let first = self.model.sampled.entry(id).or_insert_with(|| sampled.clone());
            assert_eq!(*first, sampled, "a step never changes");
            assert!(
                !self.model.acknowledged.contains_key(&id),
                "a reported step is not handed out"
            );
        }
    }

    fn run(&mut self, operation: Operation) {
        use Operation::*;
        let held = |held: usize| {
            let leases = &self.leases;
            (!leases.is_empty()).then(|| leases[held % leases.len()])
        };
        match operation {
            Lease { trainer, again } => {
                self.requests += u64::from(!again);
                let origin = Origin::Request(self.requests.to_string());
                self.lease(trainer, &origin);
            }
            LeaseAhead { trainer, steps } => {
                for _ in 0..steps {
                    self.requests += 1;
                    self.lease(trainer, &Origin::Request(self.requests.to_string()));
                }
            }
            Report { trainer, held: number, losses, sizes, crash } => {
                let Some(lease) = held(number) else { return };
                let ranked = self.model.sampled[&lease.step].1.len();
                let report = study::Report {
                    lease,
                    trainer: format!("t{trainer}"),
                    losses: losses[..ranked].to_vec(),
                    costs: self.model.costs(&sizes[..ranked]),
                    metrics: BTreeMap::new(),
                };
                let now = self.now;
                let ended = self.study().state().has_ended();
                let receipt = self.registry().report(STUDY, report, now).unwrap();
                if crash {
                    // The process died before the commit: nobody was told, so nothing may have changed.
                    self.restart();
                } else {
                    let losses = losses.map(|reported| self.model.sign * reported);
                    self.model.report(lease.step, (losses, sizes), receipt, ended);
                    self.lease(trainer, &Origin::Report(lease));
                }
            }
            Release { held: number } => {
                let Some(lease) = held(number) else { return };
                let now = self.now;
                self.registry().change(STUDY, |study| study.release(lease, now)).unwrap();
            }
            Extend { held: number } => {
                let Some(lease) = held(number) else { return };
                let now = self.now;
                // Either it is held, or it is not.
                let _ = self.registry().change(STUDY, |study| study.extend(lease, now));
            }
            SetAside { trainer } => {
                let request = LeaseRequest {
                    study: STUDY,
                    trainer: &format!("t{trainer}"),
                    spaces: &[],
                    data_sets: &[],
                    set_aside: &[self.study().id()],
                    origin: &Origin::Request(self.requests.to_string()),
                };
                let now = self.now;
                let (next, about) = self.registry().lease(&request, now).unwrap();
                assert_eq!((next, about), (Next::NoWork(study::RETRY_WHEN_IDLE), None));
                let ended = self.study().state().has_ended();
                let lacks = ["other".to_owned()];
                let request = LeaseRequest { data_sets: &lacks, set_aside: &[], ..request };
                let (next, _) = self.registry().lease(&request, now).unwrap();
                let expected =
                    if ended { Next::Finished } else { Next::NoWork(study::RETRY_WHEN_IDLE) };
                assert_eq!(next, expected);
            }
            Reject => {
                let ended = self.study().state().has_ended();
                let counted = self.model.applied > 0 || !self.model.pending.is_empty();
                self.try_change(|study, now| study.reject(Vec::new(), now));
                let rejected = matches!(self.study().state(), State::Failed(_));
                self.model.rejected |= !ended && !counted;
                assert_eq!(rejected, self.model.rejected);
            }
            FreshStart { trainer } => {
                let trainer = format!("t{trainer}");
                self.registry().forget_trainer(&trainer).unwrap();
                let mut steps = self.model.sampled.keys();
                assert!(!steps.any(|step| self.study().is_held_by(&trainer, *step, self.now)));
            }
            Wait { seconds } => {
                self.now.monotonic += Duration::from_secs(seconds);
                self.tick();
            }
            Jump { seconds } => self.now.wall = UNIX_EPOCH + Duration::from_secs(seconds),
            Pause => self.try_change(Study::pause),
            Resume => self.try_change(Study::resume),
            Stop => {
                let now = self.now;
                let stop = |study: &mut Study| {
                    study.stop(now);
                    Ok(())
                };
                self.registry().change(STUDY, stop).unwrap();
                self.model.update();
            }
            Tick => self.tick(),
            Restart => self.restart(),
        }
        commit(self.registry());
    }

    /// Makes a change that the study may refuse in its present state.
    fn try_change(&mut self, change: impl FnOnce(&mut Study, Now) -> Result<(), study::Error>) {
        let now = self.now;
        let _ = self.registry().change(STUDY, |study| change(study, now));
    }

    fn check(&self) {
        let (study, model) = (self.study(), &self.model);
        let (spec, progress) = (study.spec(), study.progress());
        assert_eq!(study.asng().unwrap().state(), model.asng.state(), "theta");
        assert_eq!(progress.generation, model.generation);
        assert_eq!((progress.applied, study.pending()), (model.applied, model.pending.len()));
        let under_way = (study.outstanding() + study.pending()) as u64;
        assert!(under_way <= spec.steps_per_update() as u64 * (1 + spec.max_staleness()), "rule 6");
        assert!(progress.applied + under_way <= spec.max_steps || study.state().has_ended());
        let finished = progress.applied == spec.max_steps;
        let by_steps = State::Finished(StopRule::MaxSteps);
        assert_eq!(*study.state() == by_steps, finished, "rule 7");
        self.check_time();
        if study.state().has_ended() {
            assert_eq!((study.outstanding(), study.pending()), (0, 0));
        }
        let stale = model.acknowledged.values().filter(|outcome| **outcome == Outcome::Stale);
        assert_eq!(progress.stale, stale.count() as u64);
        let counted: BTreeSet<_> = model.sampled.keys().collect();
        assert_eq!(progress.sampled, counted.len() as u64, "every step sampled was handed out");
        self.check_costs();
    }

    /// The wall clock counts for nothing, and a restart costs little.
    fn check_time(&self) {
        let (study, limit) = (self.study(), self.study().spec().max_duration);
        let passed = self.now.monotonic - self.began;
        let over = limit.is_some_and(|limit| study.elapsed() >= limit);
        assert!(study.elapsed() <= passed);
        assert_eq!(*study.state() == State::Finished(StopRule::MaxDuration), over);
        if limit.is_some() && !study.state().has_ended() {
            assert!(study.elapsed() + LOST * (self.restarts + 1) >= passed);
        }
    }

    /// The final architecture is within the limit, and nothing is missing in the front.
    fn check_costs(&self) {
        let (study, model) = (self.study(), &self.model);
        let mode = model.asng.mode().settled(model.asng.variables());
        let chosen = study.chosen();
        let values = chosen.as_ref().map(|chosen| chosen.values.to_vec());
        if model.limit.is_none() || model.within.contains_key(&mode) {
            assert_eq!(values.as_ref(), Some(&mode));
        }
        if model.limit.is_some() {
            let size = chosen.map(|chosen| chosen.costs["size"]);
            assert_eq!(size, values.as_ref().and_then(|values| model.within.get(values)).copied());
            assert_eq!(size.is_some(), !model.within.is_empty());
        }
        let best = |(size, loss): (f64, f64)| {
            !model
                .evaluated
                .iter()
                .any(|&other| other.0 <= size && other.1 <= loss && other != (size, loss))
        };
        let front: BTreeSet<_> = model
            .evaluated
            .iter()
            .filter(|evaluated| best(**evaluated))
            .map(|(size, loss)| (size.to_bits(), loss.to_bits()))
            .collect();
        let selection = study.selection();
        let found = selection.fronts().get("size").into_iter().flatten();
        let found: BTreeSet<_> = found
            .map(|point| (point.cost.to_bits(), (model.sign * point.loss).to_bits()))
            .collect();
        assert_eq!(found, front);
    }
}

/// Returns the values of an optimiser that a trace contains.
fn figures(asng: &Asng) -> [f64; 4] {
    [asng.convergence(), asng.entropy(), asng.state().snr_factor, asng.signal_to_noise()]
}

impl Simulation {
    /// Returns the stored trace of a study.
    fn trace(&mut self, study: StudyId) -> Vec<TracePoint> {
        self.registry().settle().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let reader = store::Reader::new(&self.location).unwrap();
            reader.trace(study).await.unwrap()
        })
    }

    /// Few updates leave no window open: the trace has them all, to the bit and once, whatever was killed.
    fn check_trace(&mut self) {
        let told = |p: TracePoint| {
            let figures = [p.convergence, p.entropy, p.delta, p.signal_to_noise];
            (p.applied, p.diverged, figures)
        };
        let id = self.study().id();
        let trace: Vec<_> = self.trace(id).into_iter().map(told).collect();
        assert_eq!(trace, self.model.trace);
    }

    /// The history has every step that is not open, and theta follows from it.
    fn check_history(&mut self) {
        if self.model.forgets {
            return;
        }
        self.registry().settle().unwrap();
        let study = self.study();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let page = runtime.block_on(async {
            let reader = store::Reader::new(&self.location).unwrap();
            reader.history(study.id(), store::PageStart::After(StepId(0)), 1000).await.unwrap()
        });
        let open = study.outstanding() + study.pending();
        assert_eq!(page.steps.len() + open, self.model.sampled.len());
        let mut batches: BTreeMap<u64, Vec<&ClosedStep>> = BTreeMap::new();
        for past in &page.steps {
            assert_eq!(self.model.sampled[&past.step.id].1, past.step.rank);
            let outcome = self.model.acknowledged.get(&past.step.id);
            let stale = past.report.as_ref().map(|report| report.update.is_none());
            assert_eq!(stale, outcome.map(|outcome| *outcome == Outcome::Stale));
            let update = past.report.as_ref().and_then(|report| report.update);
            if let Some(update) = update.filter(|_| !past.step.rank.is_empty()) {
                batches.entry(update).or_default().push(past);
            }
        }
        let mut asng =
            Asng::new(study.asng().unwrap().variables(), study.spec().optimiser()).unwrap();
        for batch in batches.values() {
            let keys = batch.iter().map(|past| {
                let report = past.report.as_ref().unwrap();
                let sizes = report.costs.iter().map(|costs| costs["size"]).collect::<Vec<_>>();
                let sizes = sizes.try_into().unwrap_or_default();
                let losses: [f64; 2] = report.losses.clone().try_into().unwrap();
                self.model.keys(losses.map(|reported| self.model.sign * reported), sizes)
            });
            let keys: Vec<_> = keys.collect();
            let ranked = batch
                .iter()
                .zip(&keys)
                .map(|(past, losses)| Ranked { architectures: &past.step.rank, losses });
            asng.tell(&ranked.collect::<Vec<_>>()).unwrap();
        }
        assert_eq!(asng.state(), study.asng().unwrap().state(), "theta from the history");
    }
}

impl Model {
    /// Returns the costs to report for these sizes: none if there is no rule about them.
    fn costs(&self, sizes: &[f64]) -> Vec<study::Costs> {
        let costs = |&size| [("size".to_owned(), size)].into();
        if self.limit.is_none() { Vec::new() } else { sizes.iter().map(costs).collect() }
    }

    /// Losses as they rank: half of the size is added, and what is over the limit comes after all losses there are.
    fn keys(&self, losses: [f64; 2], sizes: [f64; 2]) -> [f64; 2] {
        let key = |i: usize| match self.limit {
            Some(limit) if sizes[i] > limit && losses[i].is_finite() => 1000.0 + sizes[i],
            Some(_) => losses[i] + 0.5 * sizes[i],
            None => losses[i],
        };
        [key(0), key(1)]
    }

    fn report(
        &mut self,
        step: StepId,
        reported: ([f64; 2], [f64; 2]),
        receipt: Receipt,
        ended: bool,
    ) {
        if let Some(first) = self.acknowledged.get(&step) {
            assert!(receipt.duplicate, "rule 2");
            let now = if *first == Outcome::Pending && !self.pending.contains_key(&step) {
                Outcome::Applied
            } else {
                *first
            };
            assert!(receipt.outcome.is_none_or(|outcome| outcome == now));
            assert!(receipt.outcome.is_some() || self.forgets, "it is no longer kept");
            return;
        }
        assert!(!receipt.duplicate);
        let outcome = receipt.outcome.unwrap();
        self.acknowledged.insert(step, outcome);
        let staleness = self.generation - self.sampled[&step].0;
        let too_late = staleness > self.max_staleness;
        assert_eq!(outcome == Outcome::Stale, too_late || ended, "rule 5");
        if outcome == Outcome::Stale {
            return;
        }
        self.pending.insert(step, reported);
        if outcome == Outcome::Applied {
            self.update();
        }
    }

    fn update(&mut self) {
        let mut batch = std::mem::take(&mut self.pending);
        if batch.is_empty() {
            return;
        }
        self.generation += 1;
        self.applied += batch.len() as u64;
        batch.retain(|step, _| !self.sampled[step].1.is_empty());
        let keys = batch.values().map(|(losses, sizes)| self.keys(*losses, *sizes));
        let keys: Vec<_> = keys.collect();
        let ranked: Vec<_> = batch
            .keys()
            .zip(&keys)
            .map(|(step, losses)| Ranked { architectures: &self.sampled[step].1, losses })
            .collect();
        if !ranked.is_empty() {
            self.asng.tell(&ranked).unwrap();
        }
        for (step, (losses, sizes)) in batch.iter().filter(|_| self.limit.is_some()) {
            let reported = losses.iter().zip(sizes).zip(self.sampled[step].1.iter());
            for ((&loss, &size), architecture) in reported.filter(|((l, _), _)| l.is_finite()) {
                self.evaluated.push((size, loss));
                let values = architecture.settled(self.asng.variables());
                if self.limit.is_some_and(|limit| size <= limit) {
                    self.within.insert(values, size);
                } else {
                    self.within.remove(&values);
                }
            }
        }
        let losses = batch.values().flat_map(|(losses, _)| losses);
        let diverged = losses.filter(|loss| !loss.is_finite()).count() as u64;
        self.trace.push((self.applied, diverged, figures(&self.asng)));
    }
}

fn keeps_the_rules(location: Location, spec: Spec, operations: Vec<Operation>) {
    let mut simulation = Simulation::new(location, spec);
    for operation in operations {
        simulation.run(operation);
        simulation.check();
    }
    simulation.check_trace();
    simulation.check_history();
}

/// Runs a study of more reports than its trace has points, with a crash on the way.
fn keeps_a_long_trace(location: Location) {
    let steps = 600;
    let choices = ["a", "b", "c"].map(String::from).to_vec();
    let variable = Variable { name: "v".into(), kind: Kind::Categorical { choices } };
    let spec =
        Spec { variables: vec![variable], seed: Some(1), max_steps: 1 << 20, ..Spec::default() };
    let mut simulation = Simulation::new(location, spec);
    let mut expected = Vec::new();
    for step in 1..=steps {
        simulation.lease(0, &Origin::Request(step.to_string()));
        let report = study::Report {
            lease: simulation.leases[step - 1],
            trainer: "t0".into(),
            losses: vec![1.0, 2.0],
            costs: Vec::new(),
            metrics: BTreeMap::new(),
        };
        let now = simulation.now;
        simulation.registry().report(STUDY, report, now).unwrap();
        expected.push((step as u64, figures(simulation.study().asng().unwrap())));
        if step % 50 == 0 {
            commit(simulation.registry());
        }
        if step % 200 == 0 {
            simulation.restart();
        }
    }
    let id = simulation.study().id();
    let trace = simulation.trace(id);
    let told =
        trace.iter().map(|p| (p.applied, [p.convergence, p.entropy, p.delta, p.signal_to_noise]));
    let expected: Vec<_> = expected.into_iter().filter(|(step, _)| step % 4 == 0).collect();
    assert_eq!(told.collect::<Vec<_>>(), expected);

    simulation.registry().delete(STUDY).unwrap();
    commit(simulation.registry());
    // The first takes the history, the next what else there is.
    for _ in 0..2 {
        let now = simulation.now;
        simulation.registry().tick(now);
    }
    assert_eq!(simulation.trace(id), []);
}

/// How many lists are tried.
fn lists() -> u32 {
    env::var("ASNG_LISTS").map_or(256, |lists| lists.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(lists()))]

    #[test]
    fn every_list_of_operations_keeps_the_rules(spec in specs(), operations in operations()) {
        let directory = tempfile::tempdir().unwrap();
        keeps_the_rules(Location::Directory(directory.path().into()), spec, operations);
    }
}

#[test]
fn a_long_trace_is_thinned_where_it_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    keeps_a_long_trace(Location::Directory(directory.path().into()));
}

#[test]
fn a_long_trace_is_thinned_in_postgres() {
    let Some(postgres) = crate::postgres::Postgres::start() else { return };
    let url = postgres.url("trace");
    keeps_a_long_trace(Location::Postgres { url, advertise: "http://here".into() });
}

/// The same, a twentieth as often, over PostgreSQL.
#[test]
fn every_list_of_operations_keeps_the_rules_in_postgres() {
    let Some(postgres) = crate::postgres::Postgres::start() else { return };
    let url = postgres.url("simulation");
    let config = ProptestConfig::with_cases(lists() / 20);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let lists = (specs(), operations());
    let checked = runner.run(&lists, |(spec, operations)| {
        let location = Location::Postgres { url: url.clone(), advertise: "http://here".into() };
        keeps_the_rules(location.clone(), spec, operations);
        let mut registry = load(&location);
        registry.delete(STUDY).unwrap();
        commit(&mut registry);
        Ok(())
    });
    checked.unwrap();
}
