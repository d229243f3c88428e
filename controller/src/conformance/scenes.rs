//! The script: each scene plays one fault and judges one rule by what the trainer does next.

use std::{future::Future, pin::Pin, time::Duration};

use asng_proto::v1::{self, ReportOutcome};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    Call, Verdict,
    stage::{LEASE, Over, Played, Stage, Told, seconds},
};

/// How long the controller is away when it is killed.
const AWAY: Duration = Duration::from_secs(1);
/// How long a slow reply takes.
const SLOW: Duration = Duration::from_secs(2);
/// The pause that UNAVAILABLE asks for.
const ASKED_PAUSE: Duration = Duration::from_secs(1);
/// How long every call is UNAVAILABLE, without a word of when to come again.
const OUTAGE: Duration = Duration::from_secs(3);
/// Calls in the first and in the second half of an outage, at most.
const OUTAGE_CALLS: [usize; 2] = [20, 8];
/// Share of a pause after which it counts as waited for: clocks and networks have their say.
const WAITED: f64 = 0.8;
/// How long an ended study is watched.
const QUIET: Duration = Duration::from_secs(2);

type Playing<'a> = Pin<Box<dyn Future<Output = Result<Played, Over>> + Send + 'a>>;

/// A fault and the rule that it shows.
pub(super) struct Scene {
    pub(super) rule: &'static str,
    pub(super) expected: &'static str,
    pub(super) play: for<'a> fn(&'a mut Stage) -> Playing<'a>,
}

/// The rule of the scene for which the offered study has a warm-up of one step.
pub(super) const WARM_UP: &str = "warm-up";

/// In the order in which they are played.
pub(super) const SCENES: [Scene; 15] = [
    Scene {
        rule: "unserved",
        expected: "the trainer releases a step that it cannot serve, or rejects the study, and asks for other work",
        play: |stage| Box::pin(unserved(stage)),
    },
    Scene {
        rule: "lost-lease",
        expected: "the trainer repeats a LeaseStep whose response was lost with the same request_id",
        play: |stage| Box::pin(lost_lease(stage)),
    },
    Scene {
        rule: "description",
        expected: "the trainer describes the variables on request, and repeats the description if the response was lost",
        play: |stage| Box::pin(description(stage)),
    },
    Scene {
        rule: WARM_UP,
        expected: "the trainer reports a step of the warm-up, which has no `rank` architectures, without losses, and continues",
        play: |stage| Box::pin(warm_up(stage)),
    },
    Scene {
        rule: "lost-report",
        expected: "the trainer repeats a report whose response was lost: the same step, lease and losses",
        play: |stage| Box::pin(lost_report(stage)),
    },
    Scene {
        rule: "restart",
        expected: "the trainer reconnects to a restarted controller, and repeats the report that was in flight",
        play: |stage| Box::pin(restart(stage)),
    },
    Scene {
        rule: "slow-reply",
        expected: "the trainer waits for a slow response, or repeats the report",
        play: |stage| Box::pin(slow_reply(stage)),
    },
    Scene {
        rule: "overtaken",
        expected: "the trainer continues after it has lost a lease, and after the outcome DUPLICATE",
        play: |stage| Box::pin(overtaken(stage)),
    },
    Scene {
        rule: "stale",
        expected: "the trainer continues after the outcome STALE",
        play: |stage| Box::pin(outcome(stage, ReportOutcome::Stale)),
    },
    Scene {
        rule: "pending",
        expected: "the trainer continues after the outcome PENDING",
        play: |stage| Box::pin(outcome(stage, ReportOutcome::Pending)),
    },
    Scene {
        rule: "ordered",
        expected: "a report that is sent before the one before it is answered names that one's step in `after`, and comes again when it is refused",
        play: |stage| Box::pin(ordered(stage)),
    },
    Scene {
        rule: "retry-info",
        expected: "after UNAVAILABLE with RetryInfo, the trainer repeats the report, and not before that time",
        play: |stage| Box::pin(retry_info(stage)),
    },
    Scene {
        rule: "back-off",
        expected: "while calls are UNAVAILABLE for 3 s, the trainer sends at most 20 in the first half and 8 in the second; then it repeats the report",
        play: |stage| Box::pin(back_off(stage)),
    },
    Scene {
        rule: "no-work",
        expected: "after `no_work`, the trainer asks again, and not before `retry_after`",
        play: |stage| Box::pin(no_work(stage)),
    },
    Scene {
        rule: "extension",
        expected: "the trainer extends a lease before it expires, until it reports the step",
        play: |stage| Box::pin(extension(stage)),
    },
];

/// The last one.
pub(super) const FINISHED: Scene = Scene {
    rule: "finished",
    expected: "after the end of a study, the trainer asks at most once more for its steps",
    play: |stage| Box::pin(finished(stage)),
};

/// In place of the last one, for a trainer with several steps in hand.
pub(super) const QUEUE_RELEASED: Scene = Scene {
    rule: "queue-released",
    expected: "a trainer that cannot go on gives back the steps that wait",
    play: |stage| Box::pin(queue_released(stage)),
};

async fn unserved(stage: &mut Stage) -> Result<Played, Over> {
    let asked = loop {
        match stage.next().await? {
            Call::Lease(asked) => break asked,
            other => drop(stage.answer(other).await),
        }
    };
    let Some(step) = stage.hand_out_unserved(asked).await? else {
        return Ok((Verdict::NotSeen, "the trainer names its study in LeaseStep".into()));
    };
    stage.fault("the variables of a study were not those of its space");
    let mut let_go = None;
    loop {
        let call = stage.next_of_any_kind().await?;
        match &call {
            Call::Release(asked) if asked.request.lease_id == step.lease_id => {
                let_go.get_or_insert("the trainer released its step");
            }
            Call::Describe(asked) if asked.request.study == step.study => {
                let_go.get_or_insert("the trainer rejected the study");
            }
            Call::Report(asked) if asked.request.lease_id == step.lease_id => {
                stage.answer(call).await;
                return Ok(stage.verdict(false, "the trainer reported its step"));
            }
            Call::Lease(_) => {
                // The next scene begins with the same request, sent again.
                drop(call);
                stage.told = Told::Nothing;
                return Ok(match let_go {
                    Some(how) => stage.verdict(true, format!("{how}, and asked for other work")),
                    None => {
                        stage.verdict(false, "the trainer kept its step, and asked for other work")
                    }
                });
            }
            _ => {}
        }
        stage.answer(call).await;
    }
}

async fn lost_lease(stage: &mut Stage) -> Result<Played, Over> {
    let mut first = None;
    loop {
        match (stage.next().await?, &first) {
            (Call::Lease(asked), None) => {
                // What the controller says is what gets lost.
                drop(stage.really_lease(asked.request.clone()).await);
                first = Some(asked.request.request_id);
                stage.fault("the response to a LeaseStep was lost");
            }
            (Call::Lease(asked), Some(first)) => {
                let again = asked.request.request_id.clone();
                let same = !again.is_empty() && again == *first;
                let what = format!("the request_id was {first:?}, then {again:?}");
                stage.answer(Call::Lease(asked)).await;
                return Ok(stage.verdict(same, what));
            }
            (other, _) => drop(stage.answer(other).await),
        }
    }
}

async fn description(stage: &mut Stage) -> Result<Played, Over> {
    let first = loop {
        if stage.told == Told::Step {
            return Ok((Verdict::NotSeen, "the study came with its variables".into()));
        }
        match stage.next().await? {
            Call::Describe(asked) => break asked.request,
            other => drop(stage.answer(other).await),
        }
    };
    drop(stage.really_describe(first.clone()).await);
    stage.fault("the response to DescribeSpace was lost");
    let call = stage.next().await?;
    let played = match &call {
        Call::Describe(again) if again.request.answer == first.answer => {
            stage.verdict(true, "the trainer repeated the description")
        }
        Call::Describe(_) => stage.verdict(false, "the trainer sent a different description"),
        // The answer to LeaseStep says whether the description is there.
        _ => stage.verdict(true, "the trainer asked for the next step"),
    };
    stage.answer(call).await;
    Ok(played)
}

async fn warm_up(stage: &mut Stage) -> Result<Played, Over> {
    let step = loop {
        match (stage.unranked(), stage.told) {
            (Some(step), _) => break step,
            (None, Told::Step) => {
                return Ok((Verdict::NotSeen, "the study has no warm-up, or it is over".into()));
            }
            (None, _) => {
                let call = stage.next().await?;
                stage.answer(call).await;
            }
        }
    };
    let id = step.step_id;
    stage.fault(format!("step {id} had no `rank` architectures"));
    let wrong = loop {
        let call = stage.next().await?;
        let what = match &call {
            Call::Describe(_) | Call::Extend(_) => None,
            Call::Lease(_) if stage.in_hand > 1 => None,
            Call::Report(asked) if asked.request.step_id == id => {
                let request = asked.request.clone();
                if request.losses.is_empty() {
                    stage.answer(call).await;
                    return goes_on(stage, &request).await;
                }
                Some(format!("the trainer reported it with {} losses", request.losses.len()))
            }
            other => Some(format!("the trainer called {} without a report of it", name(other))),
        };
        stage.answer(call).await;
        if let Some(what) = what {
            break what;
        }
    };
    // The other scenes need steps that are ranked.
    let v1::Step { study, step_id, lease_id, .. } = step;
    let trainer_id = "another".into();
    let end_warm_up =
        v1::ReportStepRequest { study, step_id, lease_id, trainer_id, ..Default::default() };
    stage.taken_from_another(end_warm_up).await;
    Ok(stage.verdict(false, wrong))
}

async fn lost_report(stage: &mut Stage) -> Result<Played, Over> {
    let asked = stage.report().await?;
    drop(stage.really_report(asked.request.clone()).await);
    let step = asked.request.step_id;
    stage.fault(format!("the report of step {step} was stored and its response lost"));
    drop(asked.reply);
    repeated(stage, &asked.request).await
}

async fn restart(stage: &mut Stage) -> Result<Played, Over> {
    let asked = stage.report().await?;
    drop(stage.really_report(asked.request.clone()).await);
    stage.door.shut().await;
    drop(asked.reply);
    sleep(AWAY).await;
    stage.door.reopen().await.map_err(|error| Over::Broken(error.into()))?;
    let (step, away) = (asked.request.step_id, seconds(AWAY));
    stage.fault(format!(
        "the controller was unreachable for {away} after it had stored the report of step {step}"
    ));
    repeated(stage, &asked.request).await
}

async fn slow_reply(stage: &mut Stage) -> Result<Played, Over> {
    let mut asked = stage.report().await?;
    let first = asked.request.clone();
    let answer = stage.really_report(first.clone()).await;
    stage.fault(format!(
        "the response to the report of step {} took {}",
        first.step_id,
        seconds(SLOW)
    ));
    let end = Instant::now() + SLOW;
    let mut gave_up = None;
    while let Some(call) = stage.next_until(end).await {
        match call {
            // Whoever sent it before no longer waits.
            Call::Report(again) if is_same(&again.request, &first) => asked = again,
            other => {
                let hurries = matches!(&other, Call::Report(_))
                    || matches!(&other, Call::Lease(_) if first.lease_next);
                if hurries && stage.in_hand == 1 {
                    gave_up.get_or_insert(name(&other));
                }
                stage.answer(other).await;
            }
        }
    }
    stage.give(asked.reply, answer);
    match gave_up {
        Some(call) => Ok(stage.verdict(false, format!("the trainer called {call} meanwhile"))),
        None => goes_on(stage, &first).await,
    }
}

async fn overtaken(stage: &mut Stage) -> Result<Played, Over> {
    let step = stage.handed().await?;
    let by_another = v1::ReportStepRequest {
        study: step.study,
        step_id: step.step_id,
        lease_id: step.lease_id,
        trainer_id: "another".into(),
        losses: vec![0.0; step.rank.len()],
        ..Default::default()
    };
    if !stage.taken_from_another(by_another.clone()).await {
        return Ok((
            Verdict::NotSeen,
            "the study needs costs, which only the trainer can compute".into(),
        ));
    }
    stage.fault(format!("step {} was reported by another trainer first", step.step_id));
    loop {
        match stage.next().await? {
            Call::Extend(asked) => drop(stage.answer(Call::Extend(asked)).await),
            Call::Report(asked) if asked.request.lease_id == by_another.lease_id => {
                stage.answer(Call::Report(asked)).await;
                return goes_on(stage, &by_another).await;
            }
            // Other steps in hand go on.
            other if stage.in_hand > 1 && !is_about(&other, &by_another.lease_id) => {
                drop(stage.answer(other).await);
            }
            other => {
                stage.answer(other).await;
                return Ok(stage.verdict(true, "the trainer dropped the step"));
            }
        }
    }
}

async fn outcome(stage: &mut Stage, outcome: ReportOutcome) -> Result<Played, Over> {
    let asked = stage.report().await?;
    let answer = stage.really_report(asked.request.clone()).await.map(|mut answer| {
        answer.set_outcome(outcome);
        answer
    });
    let (step, outcome) = (asked.request.step_id, outcome.as_str_name());
    stage.give(asked.reply, answer);
    stage.fault(format!("the report of step {step} was answered with {outcome}"));
    goes_on(stage, &asked.request).await
}

async fn ordered(stage: &mut Stage) -> Result<Played, Over> {
    if stage.in_hand == 1 {
        return Ok((Verdict::NotSeen, "the trainer has one step in hand; see --in-hand".into()));
    }
    let first = stage.report().await?;
    let answer = stage.really_report(first.request.clone()).await;
    let before = first.request.step_id;
    let end = Instant::now() + SLOW;
    let second = loop {
        match stage.next_until(end).await {
            Some(Call::Report(asked)) if asked.request.step_id != before => break Some(asked),
            Some(other) => drop(stage.answer(other).await),
            None => break None,
        }
    };
    let Some(second) = second else {
        stage.give(first.reply, answer);
        let seen = format!("no report came in {} after that of step {before}", seconds(SLOW));
        return Ok((Verdict::NotSeen, format!("{seen}, which was not answered")));
    };
    let (step, after) = (second.request.step_id, second.request.after);
    stage
        .fault(format!("step {step} was reported before the report of step {before} was answered"));
    let details = ErrorDetails::with_retry_info(Some(ASKED_PAUSE));
    let refusal = Status::with_error_details(Code::Unavailable, "not in turn, on purpose", details);
    let _ = second.reply.send(Err(refusal));
    stage.give(first.reply, answer);
    let (verdict, seen) = repeated(stage, &second.request).await?;
    let verdict = if after == before { verdict } else { Verdict::Failed };
    Ok((verdict, format!("{seen}; `after` was {after}")))
}

async fn queue_released(stage: &mut Stage) -> Result<Played, Over> {
    let asked = loop {
        let asked = stage.report().await?;
        // Until enough steps have been leased ahead.
        if stage.in_hand == 1 || !stage.held().is_empty() {
            break asked;
        }
        stage.answer(Call::Report(asked)).await;
    };
    let waiting = stage.held();
    if waiting.is_empty() {
        stage.answer(Call::Report(asked)).await;
        return Ok((Verdict::NotSeen, "no step waits; see --in-hand".into()));
    }
    let step = asked.request.step_id;
    let _ = asked.reply.send(Err(Status::invalid_argument("refused, on purpose")));
    stage.fault(format!(
        "the report of step {step} was refused for good while steps {waiting:?} waited"
    ));
    while waiting.iter().any(|step| stage.held().contains(step)) {
        let call = stage.next().await?;
        stage.answer(call).await;
    }
    Ok(stage.verdict(true, "they came back"))
}

async fn retry_info(stage: &mut Stage) -> Result<Played, Over> {
    let asked = stage.report().await?;
    let details = ErrorDetails::with_retry_info(Some(ASKED_PAUSE));
    let refusal = Status::with_error_details(
        Code::Unavailable,
        "try again later (fault injected by the test)",
        details,
    );
    // Whoever no longer waits sends it again as well.
    let _ = asked.reply.send(Err(refusal));
    let start = Instant::now();
    stage.fault(format!("UNAVAILABLE asked for a pause of {}", seconds(ASKED_PAUSE)));
    let (verdict, seen) = repeated(stage, &asked.request).await?;
    let paused = start.elapsed();
    if verdict == Verdict::Passed && paused < ASKED_PAUSE.mul_f64(WAITED) {
        return Ok((Verdict::Failed, format!("{seen}, after {}", seconds(paused))));
    }
    Ok((verdict, seen))
}

async fn back_off(stage: &mut Stage) -> Result<Played, Over> {
    let asked = stage.report().await?;
    drop(asked.reply);
    let start = Instant::now();
    let mut calls = [1, 0];
    // Dropped calls are UNAVAILABLE. Leases are extended at their own pace.
    while let Some(call) = stage.next_until(start + OUTAGE).await {
        let half = usize::from(start.elapsed() >= OUTAGE / 2);
        calls[half] += usize::from(!matches!(call, Call::Extend(_)));
    }
    let [early, late] = calls;
    stage.fault(format!(
        "all calls were UNAVAILABLE for {}: the trainer made {early} in the first half and {late} in the second",
        seconds(OUTAGE)
    ));
    let (verdict, seen) = repeated(stage, &asked.request).await?;
    // Each report on its way is tried by itself.
    let most = OUTAGE_CALLS.map(|calls| calls * stage.in_hand);
    if early > most[0] || late > most[1] {
        return Ok((Verdict::Failed, seen));
    }
    Ok((verdict, seen))
}

async fn no_work(stage: &mut Stage) -> Result<Played, Over> {
    let asked = stage.report().await?;
    let study = asked.request.study.clone();
    stage.pause(&study).await;
    stage.answer(Call::Report(asked)).await;
    stage.fault("the study was paused");
    loop {
        let told = stage.told;
        let call = stage.next().await?;
        if let (Call::Lease(_), Told::NoWork(when, retry_after)) = (&call, told) {
            let waited = when.elapsed();
            stage.resume(&study).await;
            stage.answer(call).await;
            let (asked, after) = (seconds(retry_after), seconds(waited));
            let enough = waited >= retry_after.mul_f64(WAITED);
            return Ok(stage.verdict(
                enough,
                format!("the trainer was told to ask again after {asked}, and asked after {after}"),
            ));
        }
        stage.answer(call).await;
    }
}

async fn extension(stage: &mut Stage) -> Result<Played, Over> {
    let step = stage.handed().await?;
    let start = Instant::now();
    let (mut ends, mut extended) = (start + LEASE, 0);
    stage.fault(format!("step {} was handed out with a lease of {}", step.step_id, seconds(LEASE)));
    let done = loop {
        let Some(call) = stage.next_until(ends).await else { break None };
        match &call {
            Call::Extend(asked) if asked.request.lease_id == step.lease_id => {
                extended += 1;
                ends = Instant::now() + LEASE;
            }
            Call::Report(asked) if asked.request.lease_id == step.lease_id => break Some(call),
            Call::Release(asked) if asked.request.lease_id == step.lease_id => break Some(call),
            _ => {}
        }
        stage.answer(call).await;
    };
    let Some(done) = done else {
        return Ok(stage.verdict(false, format!("the lease expired after {extended} extensions")));
    };
    stage.answer(done).await;
    let took = format!("the trainer held it for {}", seconds(start.elapsed()));
    let played = stage.verdict(true, format!("{took} and extended its lease {extended} times"));
    Ok(if extended == 0 { (Verdict::NotSeen, took + ", less than a lease") } else { played })
}

async fn finished(stage: &mut Stage) -> Result<Played, Over> {
    if stage.told != Told::Finished {
        let asked = stage.report().await?;
        stage.stop(&asked.request.study).await;
        stage.fault("the study was stopped");
        stage.answer(Call::Report(asked)).await;
        // Without `lease_next`, the trainer has yet to ask.
        while stage.told == Told::Step {
            let call = stage.next().await?;
            stage.answer(call).await;
        }
    }
    stage.fault("the study has ended");
    let end = Instant::now() + QUIET;
    let (mut leases, mut reports) = (0, 0);
    while let Some(call) = stage.next_until(end).await {
        leases +=
            usize::from(matches!(&call, Call::Lease(asked) if !asked.request.study.is_empty()));
        reports += usize::from(matches!(&call, Call::Report(_)));
        // Further reports may have been on their way.
        if leases > 1 || reports >= stage.in_hand {
            return Ok(stage.verdict(false, format!("the trainer called {}", name(&call))));
        }
        stage.answer(call).await;
    }
    Ok(stage.verdict(true, format!("the trainer asked for its steps {leases} times more")))
}

/// Waits for the report `first` to be sent again, and judges whether it is the same.
async fn repeated(stage: &mut Stage, first: &v1::ReportStepRequest) -> Result<Played, Over> {
    loop {
        let call = stage.next().await?;
        let played = match &call {
            Call::Report(again) if is_same(&again.request, first) => {
                Some(stage.verdict(true, "the trainer repeated the report"))
            }
            Call::Report(again) if again.request.lease_id == first.lease_id => {
                let (before, now) = (&first.losses, &again.request.losses);
                Some(stage.verdict(false, format!("the losses were {before:?}, then {now:?}")))
            }
            Call::Report(again) if stage.in_hand == 1 => {
                let next = again.request.step_id;
                Some(stage.verdict(false, format!("the trainer reported step {next} instead")))
            }
            _ => None,
        };
        stage.answer(call).await;
        if let Some(played) = played {
            return Ok(played);
        }
    }
}

/// Waits until the trainer does anything else than to report the step of `done` again.
async fn goes_on(stage: &mut Stage, done: &v1::ReportStepRequest) -> Result<Played, Over> {
    loop {
        let call = stage.next().await?;
        let played = match &call {
            // One that was on its way.
            Call::Extend(asked) if asked.request.lease_id == done.lease_id => None,
            Call::Report(asked) if asked.request.lease_id == done.lease_id => {
                Some(stage.verdict(false, "the trainer repeated the report"))
            }
            other => {
                let what = format!("the trainer called {} next", name(other));
                Some(stage.verdict(true, what))
            }
        };
        stage.answer(call).await;
        if let Some(played) = played {
            return Ok(played);
        }
    }
}

/// Returns true if a call concerns the step with this lease.
fn is_about(call: &Call, lease: &str) -> bool {
    match call {
        Call::Report(asked) => asked.request.lease_id == lease,
        Call::Extend(asked) => asked.request.lease_id == lease,
        Call::Release(asked) => asked.request.lease_id == lease,
        Call::Lease(_) | Call::Describe(_) => false,
    }
}

/// Returns true if two reports are equal, bit for bit: NaN is not equal to itself.
fn is_same(a: &v1::ReportStepRequest, b: &v1::ReportStepRequest) -> bool {
    let bits = |report: &v1::ReportStepRequest| {
        report.losses.iter().map(|loss| loss.to_bits()).collect::<Vec<_>>()
    };
    a.lease_id == b.lease_id && a.step_id == b.step_id && bits(a) == bits(b)
}

fn name(call: &Call) -> String {
    match call {
        Call::Lease(_) => "LeaseStep".into(),
        Call::Describe(_) => "DescribeSpace".into(),
        Call::Report(asked) => format!("ReportStep of step {}", asked.request.step_id),
        Call::Extend(_) => "ExtendLease".into(),
        Call::Release(_) => "ReleaseStep".into(),
    }
}
