//! One test for each promise of ARCHITECTURE.md, "Rules of a step", under the rule's number.

use super::*;
use crate::asng::Ranked;

struct Bench {
    study: Study,
    now: Now,
}

fn spec() -> Spec {
    let choices = ["a", "b", "c"].map(String::from).to_vec();
    let variable = |i: usize| Variable {
        name: format!("v{i}"),
        kind: Kind::Categorical { choices: choices.clone() },
    };
    Spec { variables: (0..4).map(variable).collect(), max_steps: 100, ..Spec::default() }
}

impl Bench {
    fn new(spec: Spec) -> Bench {
        assert_eq!(spec.violations(), []);
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let study = Study::new(StudyId(7), "s", spec, 42, "", Vec::new(), now).unwrap();
        Bench { study, now }
    }

    fn advance(&mut self, seconds: u64) {
        self.now.monotonic += Duration::from_secs(seconds);
    }

    fn next(&mut self, trainer: &str, request: &str) -> Next {
        self.study.lease(trainer, &[], &Origin::Request(request.into()), self.now).unwrap()
    }

    /// Leases a step under a request id that no other call uses.
    fn lease(&mut self, trainer: &str) -> Step {
        let request = format!("{}-{:?}", self.study.progress.sampled, self.now.monotonic);
        match self.next(trainer, &request) {
            Next::Step(id) => self.study.step(id).unwrap().clone(),
            other => panic!("no step: {other:?}"),
        }
    }

    fn report_as(&mut self, trainer: &str, step: &Step, losses: &[f64]) -> Result<Receipt, Error> {
        let report = Report {
            lease: self.study.lease_id(step),
            trainer: trainer.into(),
            losses: losses.to_vec(),
            costs: Vec::new(),
            metrics: BTreeMap::new(),
        };
        self.study.report(report, None, self.now)
    }

    fn report(&mut self, step: &Step, losses: &[f64]) -> Receipt {
        self.report_as("t", step, losses).unwrap()
    }

    fn theta(&self) -> Vec<f64> {
        self.study.asng().unwrap().state().theta.clone()
    }
}

/// Returns the step that an event adds to the history.
fn past(event: Event) -> Option<ClosedStep> {
    match event {
        Event::StepClosed(past) => Some(*past),
        _ => None,
    }
}

#[test]
fn rule_1_the_same_seed_and_step_give_the_same_architectures() {
    let (mut one, mut two) = (Bench::new(spec()), Bench::new(spec()));
    for _ in 0..20 {
        let (a, b) = (one.lease("x"), two.lease("y"));
        assert_eq!((&a.train, &a.rank), (&b.train, &b.rank));
        one.report(&a, &[1.0, 2.0]);
        two.report(&b, &[1.0, 2.0]);
    }
    assert_eq!(one.theta(), two.theta());
    let mut other = Bench::new(spec());
    other.study.seed = 43;
    assert_ne!(other.lease("x").train, Bench::new(spec()).lease("x").train);
}

#[test]
fn rule_2_the_first_report_counts_and_nothing_counts_twice() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    assert_eq!(bench.report(&step, &[1.0, 2.0]).outcome, Some(Outcome::Applied));
    let theta = bench.theta();
    assert!(bench.study.is_closed(step.id));
    let known = ClosedOutcome { outcome: Some(Outcome::Applied), generation: 0, applied: 0 };
    let report = Report {
        lease: bench.study.lease_id(&step),
        trainer: "b".into(),
        losses: vec![2.0, 1.0],
        costs: Vec::new(),
        metrics: BTreeMap::new(),
    };
    let again = bench.study.report(report, Some(known), bench.now).unwrap();
    assert_eq!((again.duplicate, again.outcome), (true, Some(Outcome::Applied)));
    assert_eq!(bench.theta(), theta);
    assert_eq!((bench.study.progress.applied, bench.study.progress.duplicate), (1, 1));
}

#[test]
fn rule_3_the_same_request_gets_the_same_step_while_it_is_this_trainers() {
    let mut bench = Bench::new(spec());
    let first = bench.next("a", "r1");
    assert_eq!(bench.next("a", "r1"), first);
    assert_ne!(bench.next("b", "r1"), first, "another trainer may draw the same id");
    bench.advance(61);
    assert_eq!(bench.next("b", "r2"), first, "its lease ran out");
    let third = bench.next("a", "r1");
    assert_ne!(third, first, "the step is b's now");
}

#[test]
fn rule_3_a_report_sent_again_gets_the_same_next_step() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    let origin = Origin::Report(bench.study.lease_id(&step));
    bench.report(&step, &[1.0, 2.0]);
    let next = bench.study.lease("a", &[], &origin, bench.now).unwrap();
    assert_eq!(bench.study.lease("a", &[], &origin, bench.now).unwrap(), next);
    assert_eq!(bench.study.progress.sampled, 2);
}

#[test]
fn rule_4_an_expired_step_goes_to_the_next_trainer_as_it_was() {
    let mut bench = Bench::new(spec());
    let lost = bench.lease("a");
    bench.advance(59);
    assert_ne!(bench.lease("b").id, lost.id);
    bench.advance(1);
    let found = bench.lease("b");
    assert_eq!((found.id, &found.train, &found.rank), (lost.id, &lost.train, &lost.rank));
    assert_ne!(bench.study.lease_id(&found), bench.study.lease_id(&lost));
    assert_eq!(
        bench.report(&lost, &[1.0, 2.0]).outcome,
        Some(Outcome::Applied),
        "a may still be first"
    );
    assert_eq!(bench.study.progress.expired, 1);
}

#[test]
fn rule_4_extending_keeps_a_lease_and_a_lost_one_cannot_be_extended() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    let lease = bench.study.lease_id(&step);
    for _ in 0..5 {
        bench.advance(59);
        assert_eq!(bench.study.extend(lease, bench.now).unwrap(), Duration::from_secs(60));
    }
    assert_ne!(bench.lease("b").id, step.id);
    bench.advance(60);
    let held = bench.study.extend(lease, bench.now);
    assert!(matches!(held, Err(Error::LeaseNotHeld(_))), "{held:?}");
}

#[test]
fn rule_4_a_released_step_and_those_of_a_restarted_trainer_come_back_at_once() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    let lease = bench.study.lease_id(&step);
    bench.study.release(lease, bench.now).unwrap();
    let again = bench.lease("b");
    assert_eq!(again.id, step.id);
    bench.study.release(lease, bench.now).unwrap();
    assert!(bench.study.step(step.id).unwrap().lease.is_some(), "the old lease releases nothing");
    bench.study.forget_trainer("b");
    assert_eq!(bench.lease("b").id, step.id);
}

#[test]
fn rule_4_a_trainer_with_several_steps_loses_none_by_a_restart() {
    let spec = || Spec { max_staleness: Some(3), ..spec() };
    let (mut killed, mut other) = (Bench::new(spec()), Bench::new(spec()));
    // A second makes another request of it.
    let lease = |bench: &mut Bench| {
        bench.advance(1);
        bench.lease("t")
    };
    let lease_all = |bench: &mut Bench| [1, 2, 3, 4].map(|_| lease(bench));
    let mut queue: Vec<Step> = lease_all(&mut killed).into();
    let mut unharmed: Vec<Step> = lease_all(&mut other).into();
    assert!(matches!(killed.next("t", "x"), Next::NoWork(_)), "1 + max_staleness are out");
    for i in 0..30 {
        if i % 7 == 3 {
            killed.study.forget_trainer("t");
            assert!(!queue.iter().any(|step| killed.study.is_held_by("t", step.id, killed.now)));
            queue = lease_all(&mut killed).into();
        }
        for (bench, queue) in [(&mut killed, &mut queue), (&mut other, &mut unharmed)] {
            let step = queue.remove(0);
            let receipt = bench.report(&step, &[i as f64, 2.0]);
            assert_eq!(receipt.outcome, Some(Outcome::Applied));
            assert_eq!(receipt.staleness, i.min(3));
            queue.push(lease(bench));
        }
    }
    assert_eq!(killed.theta(), other.theta());
}

#[test]
fn rule_5_a_report_staler_than_allowed_changes_nothing() {
    let mut bench = Bench::new(Spec { max_staleness: Some(1), ..spec() });
    let (slow, one) = (bench.lease("slow"), bench.lease("t"));
    bench.report(&one, &[1.0, 2.0]);
    let two = bench.lease("t");
    bench.report(&two, &[1.0, 2.0]);
    let theta = bench.theta();
    let receipt = bench.report(&slow, &[1.0, 2.0]);
    assert_eq!((receipt.outcome, receipt.staleness), (Some(Outcome::Stale), 2));
    assert_eq!((bench.theta(), bench.study.progress.stale), (theta, 1));
}

#[test]
fn rule_5_an_expired_step_that_is_no_longer_fresh_is_closed_and_its_report_is_stale() {
    let mut bench = Bench::new(Spec { max_staleness: Some(1), ..spec() });
    let slow = bench.lease("slow");
    for _ in 0..2 {
        let step = bench.lease("t");
        bench.report(&step, &[1.0, 2.0]);
    }
    bench.advance(61);
    assert_ne!(bench.lease("t").id, slow.id);
    assert!(bench.study.is_closed(slow.id));
    let closed = ClosedOutcome { outcome: None, generation: 0, applied: 0 };
    let report = Report {
        lease: bench.study.lease_id(&slow),
        trainer: "slow".into(),
        losses: vec![1.0, 2.0],
        costs: Vec::new(),
        metrics: BTreeMap::new(),
    };
    let receipt = bench.study.report(report, Some(closed), bench.now).unwrap();
    assert_eq!((receipt.outcome, receipt.duplicate), (Some(Outcome::Stale), false));
}

#[test]
fn rule_6_reports_wait_for_their_batch_and_their_order_leaves_no_trace() {
    let spec = Spec { steps_per_update: Some(3), max_staleness: Some(0), ..spec() };
    let losses = [[1.0, 2.0], [5.0, 4.0], [3.0, 9.0]];
    let mut thetas = Vec::new();
    for order in [[0, 1, 2], [2, 0, 1]] {
        let mut bench = Bench::new(spec.clone());
        let steps = [bench.lease("a"), bench.lease("b"), bench.lease("c")];
        assert!(matches!(bench.next("d", "x"), Next::NoWork(_)), "P (1 + max_staleness) are out");
        let outcomes = order.map(|i| bench.report(&steps[i], &losses[i]).outcome);
        assert_eq!(outcomes, [Outcome::Pending, Outcome::Pending, Outcome::Applied].map(Some));
        assert_eq!((bench.study.progress.generation, bench.study.progress.applied), (1, 3));
        let passed: Vec<_> = bench.study.take_events().into_iter().filter_map(past).collect();
        assert_eq!(
            passed.iter().map(|past| past.step.id).collect::<Vec<_>>(),
            [1, 2, 3].map(StepId)
        );
        assert!(passed.iter().all(|past| past.report.as_ref().unwrap().update == Some(1)));
        thetas.push(bench.theta());
    }
    assert_eq!(thetas[0], thetas[1]);
}

#[test]
fn rule_6_a_pending_report_sent_again_is_a_duplicate() {
    let mut bench = Bench::new(Spec { steps_per_update: Some(2), ..spec() });
    let step = bench.lease("a");
    bench.report(&step, &[1.0, 2.0]);
    let again = bench.report(&step, &[9.0, 9.0]);
    assert_eq!((again.duplicate, again.outcome), (true, Some(Outcome::Pending)));
    assert_eq!(bench.study.pending(), 1);
}

#[test]
fn rule_7_the_study_ends_exactly_at_max_steps_and_applies_a_last_partial_batch() {
    let mut bench = Bench::new(Spec { steps_per_update: Some(2), max_steps: 3, ..spec() });
    let steps = [bench.lease("a"), bench.lease("b"), bench.lease("c")];
    assert!(matches!(bench.next("d", "x"), Next::NoWork(_)), "3 are outstanding");
    let outcomes = [0, 1, 2].map(|i| bench.report(&steps[i], &[1.0, 2.0]).outcome);
    assert_eq!(outcomes, [Outcome::Pending, Outcome::Applied, Outcome::Applied].map(Some));
    assert_eq!(*bench.study.state(), State::Finished(StopRule::MaxSteps));
    assert_eq!((bench.study.progress.applied, bench.study.progress.generation), (3, 2));
    assert_eq!(bench.next("a", "y"), Next::Finished);
}

#[test]
fn rule_7_a_paused_study_takes_reports_and_hands_out_nothing() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    bench.study.pause(bench.now).unwrap();
    bench.study.pause(bench.now).unwrap();
    assert!(matches!(bench.next("a", "x"), Next::NoWork(_)));
    assert_eq!(bench.report(&step, &[1.0, 2.0]).outcome, Some(Outcome::Applied));
    bench.study.resume(bench.now).unwrap();
    assert!(matches!(bench.next("a", "x"), Next::Step(_)));
}

#[test]
fn rule_7_stopping_applies_what_is_pending_and_closes_the_rest() {
    let mut bench = Bench::new(Spec { steps_per_update: Some(4), ..spec() });
    let (reported, open) = (bench.lease("a"), bench.lease("b"));
    bench.report(&reported, &[1.0, 2.0]);
    bench.study.stop(bench.now);
    assert_eq!((bench.study.progress.applied, bench.study.outstanding()), (1, 0));
    assert!(bench.study.is_closed(open.id));
    assert_eq!(bench.next("a", "x"), Next::Finished);
    assert!(bench.study.resume(bench.now).is_err());
}

#[test]
fn rule_7_a_study_whose_time_is_over_ends_at_once_and_late_reports_are_stale() {
    let hour = Duration::from_secs(3600);
    let mut bench =
        Bench::new(Spec { max_duration: Some(hour), steps_per_update: Some(3), ..spec() });
    let (reported, open) = (bench.lease("a"), bench.lease("b"));
    bench.report(&reported, &[1.0, 2.0]);
    bench.now.monotonic += hour - Duration::from_millis(1);
    bench.study.tick(bench.now);
    assert_eq!(*bench.study.state(), State::Running);
    bench.now.monotonic += Duration::from_millis(1);
    bench.study.take_events();
    assert_eq!(bench.report(&open, &[1.0, 2.0]).outcome, Some(Outcome::Stale));
    assert_eq!(*bench.study.state(), State::Finished(StopRule::MaxDuration));
    assert_eq!((bench.study.progress.applied, bench.study.progress.stale), (1, 1));
    let events = bench.study.take_events();
    assert!(
        events.iter().any(|event| matches!(event, Event::ReportedLate(id, _) if *id == open.id))
    );
}

#[test]
fn rule_7_jumps_of_the_wall_clock_and_time_without_a_controller_do_not_count() {
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
    let mut bench = Bench::new(Spec { max_duration: Some(hour), ..spec() });
    bench.now.wall += 2 * hour;
    bench.advance(60);
    bench.study.tick(bench.now);
    assert_eq!((bench.study.elapsed(), bench.study.state()), (minute, &State::Running));
    bench.now.wall -= 2 * hour;
    bench.study.pause(bench.now).unwrap();
    bench.advance(60);
    bench.study.tick(bench.now);
    assert_eq!(bench.study.elapsed(), 2 * minute, "pauses count");

    // Another controller takes it over, later and on another monotonic clock.
    bench.study = Study::restore(bench.study.record()).unwrap();
    bench.advance(3600);
    bench.now.wall += 3 * hour;
    bench.study.tick(bench.now);
    assert_eq!(bench.study.elapsed(), 2 * minute);
    bench.advance(57 * 60);
    bench.study.tick(bench.now);
    assert_eq!(*bench.study.state(), State::Paused);
    bench.advance(60);
    bench.study.tick(bench.now);
    assert_eq!(*bench.study.state(), State::Finished(StopRule::MaxDuration));
    bench.advance(60);
    bench.study.tick(bench.now);
    assert_eq!(bench.study.elapsed(), hour, "it has ended");
}

#[test]
fn passing_time_is_an_event_every_ten_seconds_and_only_where_there_is_a_limit() {
    let hour = Duration::from_secs(3600);
    for (max_duration, expected) in [(Some(hour), vec![9, 19, 29]), (None, vec![])] {
        let mut bench = Bench::new(Spec { max_duration, ..spec() });
        bench.study.take_events();
        let mut noted = Vec::new();
        for second in 0..30 {
            bench.advance(1);
            bench.study.tick(bench.now);
            let events = bench.study.take_events();
            assert!(events.iter().all(|event| *event == Event::TimePassed), "{events:?}");
            noted.extend((!events.is_empty()).then_some(second));
        }
        assert_eq!(noted, expected);
    }
}

#[test]
fn rule_7_a_study_ends_when_theta_has_converged() {
    let mut bench = Bench::new(Spec { convergence: Some(0.5), max_steps: 10_000, ..spec() });
    let mut steps = 0;
    while !bench.study.state().has_ended() {
        let step = bench.lease("a");
        // The more zeros the better.
        let loss = |a: &Architecture| bench.study.settle(a).iter().sum::<i64>() as f64;
        let losses: Vec<_> = step.rank.iter().map(loss).collect();
        bench.report(&step, &losses);
        steps += 1;
    }
    assert_eq!(*bench.study.state(), State::Finished(StopRule::Convergence));
    assert!(bench.study.convergence() >= 0.5 && steps < 10_000);
}

#[test]
fn rule_7_a_study_ends_when_a_report_reaches_the_target() {
    let target = |metric: &str, value, at_least| Target { metric: metric.into(), value, at_least };
    for (target, missed, reached) in [
        (target("loss", 0.5, false), [0.6, f64::NEG_INFINITY], [9.0, 0.5]),
        (target("accuracy", 0.5, true), [0.4, 0.4], [0.5, 0.5]),
    ] {
        let mut bench =
            Bench::new(Spec { target: Some(target), steps_per_update: Some(3), ..spec() });
        let report = |bench: &mut Bench, losses: [f64; 2]| {
            let step = bench.lease("a");
            let report = Report {
                lease: bench.study.lease_id(&step),
                trainer: "a".into(),
                losses: losses.to_vec(),
                costs: Vec::new(),
                metrics: [("accuracy".into(), losses[0])].into(),
            };
            bench.study.report(report, None, bench.now).unwrap().outcome
        };
        assert_eq!(report(&mut bench, missed), Some(Outcome::Pending));
        assert_eq!(*bench.study.state(), State::Running);
        assert_eq!(report(&mut bench, reached), Some(Outcome::Applied));
        assert_eq!(*bench.study.state(), State::Finished(StopRule::Target));
        assert_eq!(bench.study.progress.applied, 2, "what was pending is applied");
    }
}

#[test]
fn a_fixed_variable_keeps_its_value_and_theta_can_start_elsewhere() {
    let integer = Variable { name: "w".into(), kind: Kind::Integer { low: 1, high: 9 } };
    let spec = Spec {
        variables: spec().variables.into_iter().chain([integer]).collect(),
        fixed: [("v1".into(), "c".into()), ("w".into(), "7".into())].into(),
        ..spec()
    };
    let start = vec![NamedMarginal {
        name: "v0".into(),
        marginal: crate::asng::Marginal::Categorical(vec![0.0, 1.0, 0.0]),
    }];
    assert_eq!(spec.violations(), []);
    let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
    let study = Study::new(StudyId(7), "s", spec.clone(), 42, "", start.clone(), now).unwrap();
    let mut bench = Bench { study, now };
    let step = bench.lease("a");
    for architecture in step.train.iter().chain(step.rank.iter()) {
        let values = bench.study.settle(architecture);
        assert_eq!((values[1], values[4]), (2, 7));
    }
    let mode = bench.study.settle(&bench.study.mode().unwrap());
    assert_eq!((mode[0], mode[1], mode[4]), (1, 2, 7));
    bench.report(&step, &[1.0, 2.0]);
    let restored = Study::restore(bench.study.record()).unwrap();
    assert_eq!(restored.asng().unwrap().state(), bench.study.asng().unwrap().state());

    let unknown = vec![NamedMarginal { name: "x".into(), ..start[0].clone() }];
    let refused = Study::new(StudyId(7), "s", spec.clone(), 42, "", unknown, now).unwrap_err();
    assert_eq!(refused[0].field, "spec.start[\"x\"]");
    for (name, value) in [("v1", "d"), ("w", "10"), ("w", "x"), ("nobody", "a")] {
        let spec = Spec { fixed: [(name.into(), value.into())].into(), ..spec.clone() };
        assert_eq!(spec.violations()[0].field, format!("spec.fixed[{name:?}]"));
    }
}

#[test]
fn settings_that_do_not_go_with_a_description_fail_the_study_and_not_the_trainer() {
    let waiting = Spec {
        space: "toy".into(),
        variables: Vec::new(),
        fixed: [("nobody".into(), "a".into())].into(),
        ..spec()
    };
    let mut bench = Bench::new(waiting);
    bench.study.describe(spec().variables, None, bench.now).unwrap();
    let State::Failed(violations) = bench.study.state() else { panic!("not failed") };
    assert_eq!(violations[0].field, "spec.fixed[\"nobody\"]");
}

#[test]
fn rule_12_the_warm_up_ranks_nothing_and_theta_stays() {
    let mut bench = Bench::new(Spec { warmup_steps: Some(3), convergence: Some(0.1), ..spec() });
    let theta = bench.theta();
    for _ in 0..3 {
        let step = bench.lease("t");
        assert_eq!((step.train.len(), step.rank.len()), (2, 0));
        let error = bench.report_as("t", &step, &[1.0, 2.0]).unwrap_err();
        assert!(matches!(error, Error::Invalid(found) if found[0].field == "losses"));
        assert_eq!(bench.report(&step, &[]).outcome, Some(Outcome::Applied));
    }
    assert_eq!((bench.theta(), bench.study.incumbent()), (theta.clone(), None));
    assert_eq!((bench.study.progress.applied, bench.study.progress.generation), (3, 3));
    assert_eq!(*bench.study.state(), State::Running, "theta that does not move has not converged");

    let step = bench.lease("t");
    assert_eq!(step.rank.len(), 2);
    bench.study = Study::restore(bench.study.record()).unwrap();
    bench.report(&step, &[1.0, 2.0]);
    assert_ne!(bench.theta(), theta);
}

#[test]
fn rule_12_a_report_of_a_closed_step_of_the_warm_up_has_no_losses() {
    let mut bench = Bench::new(Spec { warmup_steps: Some(1), max_staleness: Some(0), ..spec() });
    let step = bench.lease("t");
    bench.study.stop(bench.now);
    bench.study.take_events();
    let report = |losses: &[f64]| Report {
        lease: bench.study.lease_id(&step),
        trainer: "t".into(),
        losses: losses.to_vec(),
        costs: Vec::new(),
        metrics: BTreeMap::new(),
    };
    let closed = Some(ClosedOutcome { outcome: None, generation: 0, applied: 0 });
    for (losses, outcome) in [(&[1.0, 2.0][..], None), (&[], Some(Outcome::Stale))] {
        let receipt = bench.study.clone().report(report(losses), closed, bench.now);
        assert_eq!(receipt.ok().map(|receipt| receipt.outcome), outcome.map(Some));
    }
}

#[test]
fn rule_12_a_batch_in_which_the_warm_up_ends_moves_theta_by_what_it_ranks() {
    let losses = [1.0, 2.0];
    let spec = |steps| Spec { steps_per_update: Some(steps), warmup_steps: Some(1), ..spec() };
    let mut bench = Bench::new(spec(2));
    let warm = [bench.lease("a"), bench.lease("b"), bench.lease("late")];
    let ranked = [0, 1].map(|i| bench.report(&warm[i], &[]).outcome);
    assert_eq!(ranked, [Outcome::Pending, Outcome::Applied].map(Some));
    let last = bench.lease("a");
    assert_eq!((last.id, last.rank.len()), (StepId(4), 2));
    bench.report(&warm[2], &[]);
    bench.report(&last, &losses);

    let study = Bench::new(spec(2)).study;
    let mut asng = study.asng().unwrap().clone();
    asng.tell(&[Ranked { architectures: &last.rank, losses: &losses }]).unwrap();
    assert_eq!(bench.theta(), asng.state().theta);
}

#[test]
fn a_record_that_makes_no_sense_is_refused() {
    let mut bench = Bench::new(Spec { steps_per_update: Some(3), ..spec() });
    for trainer in ["a", "b"] {
        let step = bench.lease(trainer);
        bench.report(&step, &[1.0, 2.0]);
    }
    bench.lease("c");
    let record = bench.study.record();
    assert!(Study::restore(record.clone()).is_ok());
    let spoil: [fn(&mut Record); 10] = [
        |record| record.spec.warmup_steps = Some(1),
        |record| record.progress.generation = u64::MAX,
        |record| record.progress.sampled = 1,
        |record| record.progress.expired = u64::MAX,
        |record| record.live[0].attempt = u32::MAX,
        |record| record.live[0].rank = [].into(),
        |record| record.live[0].id = record.pending[0].step.id,
        |record| record.pending[0].losses.clear(),
        |record| record.state = State::Stopped,
        |record| record.variables = None,
    ];
    for (i, spoil) in spoil.iter().enumerate() {
        let mut record = record.clone();
        spoil(&mut record);
        assert!(Study::restore(record).is_err(), "{i}");
    }
}

#[test]
fn rule_8_diverged_losses_rank_last_and_are_counted() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    bench.report(&step, &[f64::NAN, 1e300]);
    assert_eq!(bench.study.progress.diverged, 1);
    assert_eq!(bench.study.incumbent().unwrap().architecture, step.rank[1]);
    let step = bench.lease("a");
    let theta = bench.theta();
    bench.report(&step, &[f64::NAN, f64::NEG_INFINITY]);
    assert_eq!((bench.theta(), bench.study.progress.diverged), (theta, 3), "they tie");
}

#[test]
fn rule_8_bad_reports_are_refused_and_change_nothing() {
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    let before = bench.study.clone();
    for losses in [&[][..], &[1.0], &[1.0, 2.0, 3.0]] {
        assert!(matches!(bench.report_as("t", &step, losses), Err(Error::Invalid(_))));
    }
    let unknown = Step { id: StepId(2), ..step.clone() };
    assert!(matches!(bench.report_as("t", &unknown, &[1.0, 2.0]), Err(Error::UnknownStep(_))));
    let never_given = Step { attempt: 2, ..step.clone() };
    let refused = bench.report_as("t", &never_given, &[1.0, 2.0]);
    assert!(matches!(refused, Err(Error::UnknownLease { .. })));
    bench.study.id = StudyId(8);
    let other_study = bench.study.lease_id(&step);
    bench.study.id = StudyId(7);
    let report = Report {
        lease: other_study,
        trainer: "t".into(),
        losses: vec![1.0, 2.0],
        costs: Vec::new(),
        metrics: BTreeMap::new(),
    };
    let refused = bench.study.report(report, None, bench.now);
    assert!(matches!(refused, Err(Error::UnknownLease { .. })), "a study deleted and made again");
    assert_eq!(format!("{before:?}"), format!("{:?}", bench.study));
}

#[test]
fn a_study_waits_for_its_description_and_the_first_one_wins() {
    let variables = spec().variables;
    let waiting = Spec { space: "enas-micro".into(), variables: Vec::new(), ..spec() };
    let mut bench = Bench::new(waiting);
    let lease = |bench: &mut Bench, spaces: &[&str]| {
        let spaces: Vec<_> = spaces.iter().map(ToString::to_string).collect();
        bench.study.lease("a", &spaces, &Origin::Request("r".into()), bench.now)
    };
    assert!(matches!(lease(&mut bench, &["toy"]), Err(Error::OtherSpace { .. })));
    assert_eq!(lease(&mut bench, &["enas-micro"]).unwrap(), Next::Describe);
    assert!(matches!(bench.study.describe(Vec::new(), None, bench.now), Err(Error::Invalid(_))));
    bench.study.describe(variables.clone(), None, bench.now).unwrap();
    bench.study.describe(variables.clone(), None, bench.now).unwrap();
    let other = bench.study.describe(variables[1..].to_vec(), None, bench.now);
    assert!(matches!(other, Err(Error::DescribedDifferently)));
    assert!(matches!(lease(&mut bench, &["enas-micro"]).unwrap(), Next::Step(_)));
}

#[test]
fn a_rule_about_a_cost_that_is_not_reported_fails_the_study() {
    let rule = |cost: &str| CostRule { cost: cost.into(), weight: Some(1.0), limit: None };
    let costs = vec![rule("parameters"), rule("params")];
    let fixed = [("nobody".to_string(), "a".to_string())].into();
    let waiting = Spec { space: "toy".into(), variables: Vec::new(), costs, ..spec() };
    let both = Spec { fixed, ..waiting.clone() };
    let described = |spec: &Spec, costs: Option<&[&str]>| {
        let mut bench = Bench::new(spec.clone());
        let costs = costs.map(|costs| costs.iter().map(ToString::to_string).collect::<Vec<_>>());
        bench.study.describe(super::tests::spec().variables, costs.as_deref(), bench.now).unwrap();
        match bench.study.state {
            State::Failed(violations) => violations.iter().map(ToString::to_string).collect(),
            State::Running => Vec::new(),
            other => panic!("{other:?}"),
        }
    };
    assert!(described(&waiting, None).is_empty());
    assert!(described(&waiting, Some(&["params", "parameters", "macs"])).is_empty());
    assert_eq!(
        described(&waiting, Some(&["parameters", "macs"])),
        ["spec.costs[1].cost: unknown cost \"params\"; this space reports parameters, macs"]
    );
    assert_eq!(
        described(&both, Some(&[])),
        [
            "spec.costs[0].cost: unknown cost \"parameters\"; this space reports no costs",
            "spec.costs[1].cost: unknown cost \"params\"; this space reports no costs",
            "spec.fixed[\"nobody\"]: the study has no variable of this name"
        ]
    );
}

#[test]
fn a_rejected_study_fails_with_the_reasons() {
    let waiting = Spec { space: "enas-micro".into(), variables: Vec::new(), ..spec() };
    let mut bench = Bench::new(waiting);
    let reasons = vec![Violation::new("settings.cells", "is 2; must be between 3 and 50")];
    bench.study.reject(reasons.clone(), bench.now).unwrap();
    assert_eq!(*bench.study.state(), State::Failed(reasons));
    assert!(bench.study.describe(spec().variables, None, bench.now).is_err());
}

#[test]
fn a_study_that_came_with_its_variables_can_be_rejected_until_a_report_counts() {
    let reasons = vec![Violation::new("spec.variables", "no such network")];
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    bench.study.pause(bench.now).unwrap();
    bench.study.take_events();
    bench.study.reject(reasons.clone(), bench.now).unwrap();
    assert_eq!(*bench.study.state(), State::Failed(reasons.clone()));
    let mut events = bench.study.take_events().into_iter();
    let closed = events.next().and_then(past).unwrap();
    assert_eq!((closed.step.id, closed.report), (step.id, None));
    assert_eq!(events.next(), Some(Event::StateChanged(State::Failed(reasons.clone()))));
    // As of any study that has ended.
    assert_eq!(bench.next("a", "x"), Next::Finished);
    let lease = bench.study.lease_id(&step);
    assert!(matches!(bench.study.extend(lease, bench.now), Err(Error::LeaseNotHeld(_))));
    let report = Report {
        lease,
        trainer: "a".into(),
        losses: vec![1.0, 2.0],
        costs: Vec::new(),
        metrics: BTreeMap::new(),
    };
    let closed = ClosedOutcome { outcome: None, generation: 0, applied: 0 };
    let late = bench.study.report(report, Some(closed), bench.now).unwrap();
    assert_eq!((late.outcome, late.duplicate), (Some(Outcome::Stale), false));
    assert!(bench.study.reject(reasons.clone(), bench.now).is_err());

    // A report that waits for its batch counts too.
    for steps_per_update in [1, 2] {
        let mut bench = Bench::new(Spec { steps_per_update: Some(steps_per_update), ..spec() });
        let step = bench.lease("a");
        bench.report(&step, &[1.0, 2.0]);
        let refused = bench.study.reject(reasons.clone(), bench.now);
        assert!(matches!(refused, Err(Error::HasReports(1))), "{refused:?}");
        assert_eq!(*bench.study.state(), State::Running);
    }
    // A trainer that has described a space does not take that back.
    let mut bench = Bench::new(Spec { space: "toy".into(), variables: Vec::new(), ..spec() });
    bench.study.describe(spec().variables, None, bench.now).unwrap();
    assert!(matches!(bench.study.reject(reasons, bench.now), Err(Error::WrongState { .. })));
}

fn with_a_limit() -> Spec {
    let rule = CostRule { cost: "size".into(), weight: Some(1.0), limit: Some(10.0) };
    Spec { costs: vec![rule], ..spec() }
}

impl Bench {
    fn report_sizes(
        &mut self,
        step: &Step,
        losses: [f64; 2],
        costs: &[(&str, f64)],
    ) -> Result<Receipt, Error> {
        let costs = costs.iter().map(|(name, cost)| [(name.to_string(), *cost)].into());
        let report = Report {
            lease: self.study.lease_id(step),
            trainer: "t".into(),
            losses: losses.to_vec(),
            costs: costs.collect(),
            metrics: BTreeMap::new(),
        };
        self.study.report(report, None, self.now)
    }

    fn chosen(&self) -> Option<Vec<i64>> {
        self.study.chosen().map(|chosen| chosen.values.to_vec())
    }
}

#[test]
fn rule_8_a_report_without_a_cost_that_a_rule_is_about_is_refused_and_changes_nothing() {
    let mut bench = Bench::new(with_a_limit());
    let step = bench.lease("a");
    let before = format!("{:?}", bench.study);
    for costs in [&[][..], &[("size", 1.0)], &[("size", 1.0), ("time", 1.0)]] {
        let refused = bench.report_sizes(&step, [1.0, 2.0], costs);
        let Err(Error::Invalid(violations)) = refused else { panic!("{refused:?}") };
        assert_eq!(violations[0].field, "costs");
    }
    let three = [("size", 1.0), ("size", 1.0), ("size", 1.0)];
    assert!(bench.report_sizes(&step, [1.0, 2.0], &three).is_err());
    assert_eq!(format!("{:?}", bench.study), before);
    // Without rules costs are welcome.
    let mut bench = Bench::new(spec());
    let step = bench.lease("a");
    bench.report_sizes(&step, [1.0, 2.0], &[("size", 1.0), ("time", 1.0)]).unwrap();
    assert_eq!(bench.study.selection().fronts().keys().collect::<Vec<_>>(), ["size", "time"]);
}

#[test]
fn rule_8_what_is_over_a_limit_ranks_after_what_is_within() {
    let (mut limited, mut plain) = (Bench::new(with_a_limit()), Bench::new(spec()));
    for (losses, sizes, as_if) in [
        ([1.0, 2.0], [11.0, 10.0], [2.0, 1.0]), // over, within
        ([1.0, 2.0], [30.0, 20.0], [2.0, 1.0]), // both over, one by more
        ([1.0, 2.0], [5.0, 1.0], [2.0, 1.0]),   // 6 and 3 together
        ([f64::NAN, 2.0], [1.0, 99.0], [2.0, 1.0]),
        ([1.0, 2.0], [2.0, 1.0], [1.0, 1.0]), // they tie
    ] {
        let (a, b) = (limited.lease("t"), plain.lease("t"));
        assert_eq!(a.rank, b.rank);
        limited.report_sizes(&a, losses, &sizes.map(|size| ("size", size))).unwrap();
        plain.report(&b, &as_if);
        assert_eq!(limited.theta(), plain.theta());
    }
    let progress = limited.study.progress;
    assert_eq!((progress.over_limit, progress.diverged), (4, 1));
}

#[test]
fn rule_11_incumbent_target_and_final_architecture_are_within_the_limits() {
    let target = Target { metric: "loss".into(), value: 0.5, at_least: false };
    let mut bench = Bench::new(Spec { target: Some(target), ..with_a_limit() });
    assert_eq!(bench.chosen(), None, "nothing was evaluated");
    let step = bench.lease("a");
    bench.report_sizes(&step, [0.1, f64::NAN], &[("size", 11.0), ("size", 1.0)]).unwrap();
    assert_eq!(*bench.study.state(), State::Running, "the target counts within the limits alone");
    assert_eq!((bench.study.incumbent(), bench.chosen()), (None, None));

    let step = bench.lease("a");
    bench.report_sizes(&step, [3.0, 9.0], &[("size", 9.0), ("size", 2.0)]).unwrap();
    let incumbent = bench.study.incumbent().unwrap();
    assert_eq!((incumbent.loss, incumbent.costs["size"]), (9.0, 2.0), "11 together, not 12");
    let chosen = bench.chosen().unwrap();
    assert!(step.rank.iter().any(|ranked| bench.study.settle(ranked) == chosen));
    let restored = Study::restore(bench.study.record()).unwrap();
    assert_eq!(restored.chosen(), bench.study.chosen());
    assert_eq!(restored.incumbent(), bench.study.incumbent());

    let spoil: [fn(&mut Record); 3] = [
        |record| record.spec.costs[0].limit = Some(1.0),
        |record| {
            record.incumbent = None;
            record.spec.costs[0].limit = Some(1.0);
        },
        |record| record.incumbent.as_mut().unwrap().costs.clear(),
    ];
    for (i, spoil) in spoil.iter().enumerate() {
        let mut record = bench.study.record();
        spoil(&mut record);
        assert!(Study::restore(record).is_err(), "{i}");
    }
}

#[test]
fn rule_8_maximizing_is_minimizing_the_negated_losses_bit_for_bit() {
    let target = |value, at_least| Some(Target { metric: "loss".into(), value, at_least });
    let spec = Spec { steps_per_update: Some(2), lambda_theta: Some(6), ..spec() };
    let mut minimizes = Bench::new(Spec { target: target(-9.0, false), ..spec.clone() });
    let direction = Direction::Maximize;
    let mut maximizes = Bench::new(Spec { direction, target: target(9.0, true), ..spec });
    for step in 0..20 {
        let (a, b) = (minimizes.lease("t"), maximizes.lease("t"));
        assert_eq!(a.rank, b.rank);
        // Some diverge, and some tie.
        let worst = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][step % 3];
        let mut losses: Vec<f64> =
            a.rank.iter().map(|a| 1.0 - minimizes.study.settle(a)[0] as f64).collect();
        losses[step % 6] = if step == 19 { -9.0 } else { worst };
        let negated: Vec<f64> = losses.iter().map(|loss| -loss).collect();
        minimizes.report(&a, &losses);
        maximizes.report(&b, &negated);
        maximizes.study = Study::restore(maximizes.study.record()).unwrap();
        assert_eq!(
            minimizes.study.asng().unwrap().state(),
            maximizes.study.asng().unwrap().state()
        );
        assert_eq!(minimizes.study.progress, maximizes.study.progress);
        let [a, b] = [&minimizes, &maximizes].map(|bench| bench.study.incumbent().unwrap());
        assert_eq!((a.loss, &a.architecture, a.step), (-b.loss, &b.architecture, b.step));
    }
    assert_eq!(maximizes.study.incumbent().unwrap().loss, 9.0);
    for bench in [minimizes, maximizes] {
        assert_eq!(*bench.study.state(), State::Finished(StopRule::Target));
    }
}

#[test]
fn rule_11_without_a_limit_the_final_architecture_is_the_mode() {
    for costs in [Vec::new(), vec![CostRule { limit: None, ..with_a_limit().costs.remove(0) }]] {
        let mut bench = Bench::new(Spec { costs, ..spec() });
        for _ in 0..5 {
            assert_eq!(bench.chosen(), Some(bench.study.settle(&bench.study.mode().unwrap())));
            let step = bench.lease("a");
            bench.report_sizes(&step, [1.0, 2.0], &[("size", 1.0), ("size", 2.0)]).unwrap();
        }
    }
}

/// Returns the point that an event adds to the trace.
fn traced(event: Event) -> Option<TracePoint> {
    match event {
        Event::Traced { point, .. } => Some(*point),
        _ => None,
    }
}

#[test]
fn a_stretch_of_the_search_is_told_as_it_was_at_its_end() {
    let mut bench = Bench::new(Spec { steps_per_update: Some(4), ..spec() });
    for i in 0..10 {
        let step = bench.lease("t");
        bench.advance(1);
        bench.report(&step, &[f64::from(i), if i == 5 { f64::NAN } else { 2.0 }]);
    }
    assert_eq!(bench.study.current_window(), None, "what is pending is not in it yet");
    bench.study.stop(bench.now);
    let points: Vec<_> = bench.study.take_events().into_iter().filter_map(traced).collect();
    let told: Vec<_> = points.iter().map(|p| (p.applied, p.generation, p.diverged)).collect();
    assert_eq!(told, [(4, 1, 0), (8, 2, 1), (10, 3, 0)]);
    assert_eq!(points[0].losses, Some(LossBand { low: 1.75, median: 2.0, high: 2.0 }));
    let (last, asng) = (points.last().unwrap(), bench.study.asng().unwrap());
    assert_eq!((last.convergence, last.entropy), (asng.convergence(), asng.entropy()));
    assert_eq!(last.signal_to_noise, asng.signal_to_noise());
    assert!(last.signal_to_noise > 0.0 && last.entropy < 1.0, "{points:?}");
}

#[test]
fn a_study_knows_its_trainers_by_what_they_did() {
    let mut bench = Bench::new(Spec { max_staleness: Some(3), ..spec() });
    let (late, lost, held) = (bench.lease("a"), bench.lease("b"), bench.lease("c"));
    for _ in 0..4 {
        let step = bench.lease("d");
        bench.report_as("d", &step, &[1.0, 2.0]).unwrap();
    }
    let closed = ClosedOutcome { outcome: Some(Outcome::Applied), generation: 0, applied: 0 };
    let report = Report {
        lease: LeaseId { study: StudyId(7), step: StepId(4), attempt: 1 },
        trainer: "d".into(),
        losses: vec![1.0, 2.0],
        costs: Vec::new(),
        metrics: BTreeMap::new(),
    };
    assert!(bench.study.report(report, Some(closed), bench.now).unwrap().duplicate);
    bench.advance(30);
    bench.now.wall += Duration::from_secs(30);
    assert_eq!(bench.report_as("a", &late, &[1.0, 2.0]).unwrap().outcome, Some(Outcome::Stale));
    bench.study.extend(bench.study.lease_id(&held), bench.now).unwrap();
    bench.advance(30);
    bench.study.tick(bench.now);
    assert!(bench.study.step(lost.id).is_none_or(|step| step.lease.is_none()));

    let trainers = bench.study.trainers();
    let told = |name: &str| {
        let (_, seen, t, holds) = trainers.iter().find(|(other, ..)| *other == name).unwrap();
        let seen = seen.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        (seen, holds.clone(), [t.applied, t.stale, t.duplicate, t.expired], t.mean_staleness())
    };
    assert_eq!(told("a"), (30, vec![], [0, 1, 0, 0], 4.0));
    assert_eq!(told("b"), (0, vec![], [0, 0, 0, 1], 0.0));
    assert_eq!(told("c"), (30, vec![held.id], [0, 0, 0, 0], 0.0));
    assert_eq!(told("d"), (0, vec![], [4, 0, 1, 0], 0.0));
    assert!(["a", "c"].contains(&trainers[0].0), "the latest heard of first");
}
