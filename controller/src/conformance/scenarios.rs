//! The script: each scenario plays one fault and judges one rule by what the trainer does next.

use std::{future::Future, pin::Pin, time::Duration};

use asng_proto::v1::{self, ReportOutcome};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{
    Call, Verdict,
    harness::{Harness, LEASE, Over, Played, Told, seconds},
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
pub(super) struct Scenario {
    pub(super) rule: &'static str,
    pub(super) expected: &'static str,
    pub(super) play: for<'a> fn(&'a mut Harness) -> Playing<'a>,
}

/// The rule of the scenario for which the offered study has a warm-up of one step.
pub(super) const WARM_UP: &str = "warm-up";

/// In the order in which they are played.
pub(super) const SCENES: [Scenario; 15] = [
    Scenario {
        rule: "unserved",
        expected: "the trainer releases a step that it cannot serve, or rejects the study, and asks for other work",
        play: |harness| Box::pin(unserved(harness)),
    },
    Scenario {
        rule: "lost-lease",
        expected: "the trainer repeats a LeaseStep whose response was lost with the same request_id",
        play: |harness| Box::pin(lost_lease(harness)),
    },
    Scenario {
        rule: "description",
        expected: "the trainer describes the variables on request, and repeats the description if the response was lost",
        play: |harness| Box::pin(description(harness)),
    },
    Scenario {
        rule: WARM_UP,
        expected: "the trainer reports a step of the warm-up, which has no `rank` architectures, without losses, and continues",
        play: |harness| Box::pin(warm_up(harness)),
    },
    Scenario {
        rule: "lost-report",
        expected: "the trainer repeats a report whose response was lost: the same step, lease and losses",
        play: |harness| Box::pin(lost_report(harness)),
    },
    Scenario {
        rule: "restart",
        expected: "the trainer reconnects to a restarted controller, and repeats the report that was in flight",
        play: |harness| Box::pin(restart(harness)),
    },
    Scenario {
        rule: "slow-reply",
        expected: "the trainer waits for a slow response, or repeats the report",
        play: |harness| Box::pin(slow_reply(harness)),
    },
    Scenario {
        rule: "overtaken",
        expected: "the trainer continues after it has lost a lease, and after the outcome DUPLICATE",
        play: |harness| Box::pin(overtaken(harness)),
    },
    Scenario {
        rule: "stale",
        expected: "the trainer continues after the outcome STALE",
        play: |harness| Box::pin(outcome(harness, ReportOutcome::Stale)),
    },
    Scenario {
        rule: "pending",
        expected: "the trainer continues after the outcome PENDING",
        play: |harness| Box::pin(outcome(harness, ReportOutcome::Pending)),
    },
    Scenario {
        rule: "ordered",
        expected: "a report that is sent before the one before it is answered names that one's step in `after`, and comes again when it is refused",
        play: |harness| Box::pin(ordered(harness)),
    },
    Scenario {
        rule: "retry-info",
        expected: "after UNAVAILABLE with RetryInfo, the trainer repeats the report, and not before that time",
        play: |harness| Box::pin(retry_info(harness)),
    },
    Scenario {
        rule: "back-off",
        expected: "while calls are UNAVAILABLE for 3 s, the trainer sends at most 20 in the first half and 8 in the second; then it repeats the report",
        play: |harness| Box::pin(back_off(harness)),
    },
    Scenario {
        rule: "no-work",
        expected: "after `no_work`, the trainer asks again, and not before `retry_after`",
        play: |harness| Box::pin(no_work(harness)),
    },
    Scenario {
        rule: "extension",
        expected: "the trainer extends a lease before it expires, until it reports the step",
        play: |harness| Box::pin(extension(harness)),
    },
];

/// The last one.
pub(super) const FINISHED: Scenario = Scenario {
    rule: "finished",
    expected: "after the end of a study, the trainer asks at most once more for its steps",
    play: |harness| Box::pin(finished(harness)),
};

/// In place of the last one, for a trainer with several steps in hand.
pub(super) const QUEUE_RELEASED: Scenario = Scenario {
    rule: "queue-released",
    expected: "a trainer that cannot go on gives back the steps that wait",
    play: |harness| Box::pin(queue_released(harness)),
};

async fn unserved(harness: &mut Harness) -> Result<Played, Over> {
    let asked = loop {
        match harness.next().await? {
            Call::Lease(asked) => break asked,
            other => drop(harness.answer(other).await),
        }
    };
    let Some(step) = harness.hand_out_unserved(asked).await? else {
        return Ok((Verdict::NotSeen, "the trainer names its study in LeaseStep".into()));
    };
    harness.fault("the variables of a study were not those of its space");
    let mut let_go = None;
    loop {
        let call = harness.next_of_any_kind().await?;
        match &call {
            Call::Release(asked) if asked.request.lease_id == step.lease_id => {
                let_go.get_or_insert("the trainer released its step");
            }
            Call::Describe(asked) if asked.request.study == step.study => {
                let_go.get_or_insert("the trainer rejected the study");
            }
            Call::Report(asked) if asked.request.lease_id == step.lease_id => {
                harness.answer(call).await;
                return Ok(harness.verdict(false, "the trainer reported its step"));
            }
            Call::Lease(_) => {
                // The next scenario begins with the same request, sent again.
                drop(call);
                harness.told = Told::Nothing;
                return Ok(match let_go {
                    Some(how) => harness.verdict(true, format!("{how}, and asked for other work")),
                    None => harness
                        .verdict(false, "the trainer kept its step, and asked for other work"),
                });
            }
            _ => {}
        }
        harness.answer(call).await;
    }
}

async fn lost_lease(harness: &mut Harness) -> Result<Played, Over> {
    let mut first = None;
    loop {
        match (harness.next().await?, &first) {
            (Call::Lease(asked), None) => {
                // What the controller says is what gets lost.
                drop(harness.really_lease(asked.request.clone()).await);
                first = Some(asked.request.request_id);
                harness.fault("the response to a LeaseStep was lost");
            }
            (Call::Lease(asked), Some(first)) => {
                let again = asked.request.request_id.clone();
                let same = !again.is_empty() && again == *first;
                let what = format!("the request_id was {first:?}, then {again:?}");
                harness.answer(Call::Lease(asked)).await;
                return Ok(harness.verdict(same, what));
            }
            (other, _) => drop(harness.answer(other).await),
        }
    }
}

async fn description(harness: &mut Harness) -> Result<Played, Over> {
    let first = loop {
        if harness.told == Told::Step {
            return Ok((Verdict::NotSeen, "the study came with its variables".into()));
        }
        match harness.next().await? {
            Call::Describe(asked) => break asked.request,
            other => drop(harness.answer(other).await),
        }
    };
    drop(harness.really_describe(first.clone()).await);
    harness.fault("the response to DescribeSpace was lost");
    let call = harness.next().await?;
    let played = match &call {
        Call::Describe(again) if again.request.answer == first.answer => {
            harness.verdict(true, "the trainer repeated the description")
        }
        Call::Describe(_) => harness.verdict(false, "the trainer sent a different description"),
        // The answer to LeaseStep says whether the description is there.
        _ => harness.verdict(true, "the trainer asked for the next step"),
    };
    harness.answer(call).await;
    Ok(played)
}

async fn warm_up(harness: &mut Harness) -> Result<Played, Over> {
    let step = loop {
        match (harness.unranked(), harness.told) {
            (Some(step), _) => break step,
            (None, Told::Step) => {
                return Ok((Verdict::NotSeen, "the study has no warm-up, or it is over".into()));
            }
            (None, _) => {
                let call = harness.next().await?;
                harness.answer(call).await;
            }
        }
    };
    let id = step.step_id;
    harness.fault(format!("step {id} had no `rank` architectures"));
    let wrong = loop {
        let call = harness.next().await?;
        let what = match &call {
            Call::Describe(_) | Call::Extend(_) => None,
            Call::Lease(_) if harness.in_hand > 1 => None,
            Call::Report(asked) if asked.request.step_id == id => {
                let request = asked.request.clone();
                if request.losses.is_empty() {
                    harness.answer(call).await;
                    return goes_on(harness, &request).await;
                }
                Some(format!("the trainer reported it with {} losses", request.losses.len()))
            }
            other => Some(format!("the trainer called {} without a report of it", name(other))),
        };
        harness.answer(call).await;
        if let Some(what) = what {
            break what;
        }
    };
    // The other scenarios need steps that are ranked.
    let v1::Step { study, step_id, lease_id, .. } = step;
    let trainer_id = "another".into();
    let end_warm_up =
        v1::ReportStepRequest { study, step_id, lease_id, trainer_id, ..Default::default() };
    harness.taken_from_another(end_warm_up).await;
    Ok(harness.verdict(false, wrong))
}

async fn lost_report(harness: &mut Harness) -> Result<Played, Over> {
    let (asked, _) = harness.stored_report().await?;
    let step = asked.request.step_id;
    harness.fault(format!("the report of step {step} was stored and its response lost"));
    drop(asked.reply);
    repeated(harness, &asked.request).await
}

async fn restart(harness: &mut Harness) -> Result<Played, Over> {
    let (asked, _) = harness.stored_report().await?;
    harness.relay.shut().await;
    drop(asked.reply);
    sleep(AWAY).await;
    harness.relay.reopen().await.map_err(|error| Over::Broken(error.into()))?;
    let (step, away) = (asked.request.step_id, seconds(AWAY));
    harness.fault(format!(
        "the controller was unreachable for {away} after it had stored the report of step {step}"
    ));
    repeated(harness, &asked.request).await
}

async fn slow_reply(harness: &mut Harness) -> Result<Played, Over> {
    let (mut asked, answer) = harness.stored_report().await?;
    let first = asked.request.clone();
    harness.fault(format!(
        "the response to the report of step {} took {}",
        first.step_id,
        seconds(SLOW)
    ));
    let end = Instant::now() + SLOW;
    let mut gave_up = None;
    while let Some(call) = harness.next_until(end).await {
        match call {
            // Whoever sent it before no longer waits.
            Call::Report(again) if is_same(&again.request, &first) => asked = again,
            other => {
                let hurries = matches!(&other, Call::Report(_))
                    || matches!(&other, Call::Lease(_) if first.lease_next);
                if hurries && harness.in_hand == 1 {
                    gave_up.get_or_insert(name(&other));
                }
                harness.answer(other).await;
            }
        }
    }
    harness.give(asked.reply, answer);
    match gave_up {
        Some(call) => Ok(harness.verdict(false, format!("the trainer called {call} meanwhile"))),
        None => goes_on(harness, &first).await,
    }
}

async fn overtaken(harness: &mut Harness) -> Result<Played, Over> {
    let step = harness.handed().await?;
    let by_another = v1::ReportStepRequest {
        study: step.study,
        step_id: step.step_id,
        lease_id: step.lease_id,
        trainer_id: "another".into(),
        losses: vec![0.0; step.rank.len()],
        ..Default::default()
    };
    if !harness.taken_from_another(by_another.clone()).await {
        return Ok((
            Verdict::NotSeen,
            "the study needs costs, which only the trainer can compute".into(),
        ));
    }
    harness.fault(format!("step {} was reported by another trainer first", step.step_id));
    loop {
        match harness.next().await? {
            Call::Extend(asked) => drop(harness.answer(Call::Extend(asked)).await),
            Call::Report(asked) if asked.request.lease_id == by_another.lease_id => {
                harness.answer(Call::Report(asked)).await;
                return goes_on(harness, &by_another).await;
            }
            // Other steps in hand go on.
            other if harness.in_hand > 1 && !is_about(&other, &by_another.lease_id) => {
                drop(harness.answer(other).await);
            }
            other => {
                harness.answer(other).await;
                return Ok(harness.verdict(true, "the trainer dropped the step"));
            }
        }
    }
}

async fn outcome(harness: &mut Harness, outcome: ReportOutcome) -> Result<Played, Over> {
    let (asked, answer) = harness.stored_report().await?;
    let answer = answer.map(|mut answer| {
        answer.set_outcome(outcome);
        answer
    });
    let (step, outcome) = (asked.request.step_id, outcome.as_str_name());
    harness.give(asked.reply, answer);
    harness.fault(format!("the report of step {step} was answered with {outcome}"));
    goes_on(harness, &asked.request).await
}

async fn ordered(harness: &mut Harness) -> Result<Played, Over> {
    if harness.in_hand == 1 {
        return Ok((Verdict::NotSeen, "the trainer has one step in hand; see --in-hand".into()));
    }
    let (first, answer) = harness.stored_report().await?;
    let before = first.request.step_id;
    let end = Instant::now() + SLOW;
    let second = loop {
        match harness.next_until(end).await {
            Some(Call::Report(asked)) if asked.request.step_id != before => break Some(asked),
            Some(other) => drop(harness.answer(other).await),
            None => break None,
        }
    };
    let Some(second) = second else {
        harness.give(first.reply, answer);
        let seen = format!("no report came in {} after that of step {before}", seconds(SLOW));
        return Ok((Verdict::NotSeen, format!("{seen}, which was not answered")));
    };
    let (step, after) = (second.request.step_id, second.request.after);
    // With several steps in hand the report before it may still be on its way.
    let is_named = after == before || after != step && harness.held().contains(&after);
    harness
        .fault(format!("step {step} was reported before the report of step {before} was answered"));
    let details = ErrorDetails::with_retry_info(Some(ASKED_PAUSE));
    let refusal = Status::with_error_details(Code::Unavailable, "not in turn, on purpose", details);
    let _ = second.reply.send(Err(refusal));
    harness.give(first.reply, answer);
    let (verdict, seen) = repeated(harness, &second.request).await?;
    let verdict = if is_named { verdict } else { Verdict::Failed };
    Ok((verdict, format!("{seen}; `after` was {after}")))
}

async fn queue_released(harness: &mut Harness) -> Result<Played, Over> {
    let asked = loop {
        let asked = harness.report().await?;
        // Until enough steps have been leased ahead.
        if harness.in_hand == 1 || !harness.held().is_empty() {
            break asked;
        }
        harness.answer(Call::Report(asked)).await;
    };
    let waiting = harness.held();
    if waiting.is_empty() {
        harness.answer(Call::Report(asked)).await;
        return Ok((Verdict::NotSeen, "no step waits; see --in-hand".into()));
    }
    let step = asked.request.step_id;
    let _ = asked.reply.send(Err(Status::invalid_argument("refused, on purpose")));
    harness.fault(format!(
        "the report of step {step} was refused for good while steps {waiting:?} waited"
    ));
    while waiting.iter().any(|step| harness.held().contains(step)) {
        let call = harness.next().await?;
        harness.answer(call).await;
    }
    Ok(harness.verdict(true, "they came back"))
}

async fn retry_info(harness: &mut Harness) -> Result<Played, Over> {
    let asked = harness.report().await?;
    let details = ErrorDetails::with_retry_info(Some(ASKED_PAUSE));
    let refusal = Status::with_error_details(
        Code::Unavailable,
        "try again later (fault injected by the test)",
        details,
    );
    // Whoever no longer waits sends it again as well.
    let _ = asked.reply.send(Err(refusal));
    let start = Instant::now();
    harness.fault(format!("UNAVAILABLE asked for a pause of {}", seconds(ASKED_PAUSE)));
    let (verdict, seen) = repeated(harness, &asked.request).await?;
    let paused = start.elapsed();
    if verdict == Verdict::Passed && paused < ASKED_PAUSE.mul_f64(WAITED) {
        return Ok((Verdict::Failed, format!("{seen}, after {}", seconds(paused))));
    }
    Ok((verdict, seen))
}

async fn back_off(harness: &mut Harness) -> Result<Played, Over> {
    let asked = harness.report().await?;
    drop(asked.reply);
    let start = Instant::now();
    let mut calls = [1, 0];
    // Dropped calls are UNAVAILABLE. Leases are extended at their own pace.
    while let Some(call) = harness.next_until(start + OUTAGE).await {
        let half = usize::from(start.elapsed() >= OUTAGE / 2);
        calls[half] += usize::from(!matches!(call, Call::Extend(_)));
    }
    let [early, late] = calls;
    harness.fault(format!(
        "all calls were UNAVAILABLE for {}: the trainer made {early} in the first half and {late} in the second",
        seconds(OUTAGE)
    ));
    let (verdict, seen) = repeated(harness, &asked.request).await?;
    // Each report on its way is tried by itself.
    let most = OUTAGE_CALLS.map(|calls| calls * harness.in_hand);
    if early > most[0] || late > most[1] {
        return Ok((Verdict::Failed, seen));
    }
    Ok((verdict, seen))
}

async fn no_work(harness: &mut Harness) -> Result<Played, Over> {
    let asked = harness.report().await?;
    let study = asked.request.study.clone();
    harness.pause(&study).await;
    harness.answer(Call::Report(asked)).await;
    harness.fault("the study was paused");
    loop {
        let told = harness.told;
        let call = harness.next().await?;
        if let (Call::Lease(_), Told::NoWork(when, retry_after)) = (&call, told) {
            let waited = when.elapsed();
            harness.resume(&study).await;
            harness.answer(call).await;
            let (asked, after) = (seconds(retry_after), seconds(waited));
            let enough = waited >= retry_after.mul_f64(WAITED);
            return Ok(harness.verdict(
                enough,
                format!("the trainer was told to ask again after {asked}, and asked after {after}"),
            ));
        }
        harness.answer(call).await;
    }
}

async fn extension(harness: &mut Harness) -> Result<Played, Over> {
    let step = harness.handed().await?;
    let start = Instant::now();
    let (mut ends, mut extended) = (start + LEASE, 0);
    harness.fault(format!(
        "step {} was handed out with a lease of {}",
        step.step_id,
        seconds(LEASE)
    ));
    let done = loop {
        let Some(call) = harness.next_until(ends).await else { break None };
        match &call {
            Call::Extend(asked) if asked.request.lease_id == step.lease_id => {
                extended += 1;
                ends = Instant::now() + LEASE;
            }
            Call::Report(asked) if asked.request.lease_id == step.lease_id => break Some(call),
            Call::Release(asked) if asked.request.lease_id == step.lease_id => break Some(call),
            _ => {}
        }
        harness.answer(call).await;
    };
    let Some(done) = done else {
        return Ok(harness.verdict(false, format!("the lease expired after {extended} extensions")));
    };
    harness.answer(done).await;
    let took = format!("the trainer held it for {}", seconds(start.elapsed()));
    let played = harness.verdict(true, format!("{took} and extended its lease {extended} times"));
    Ok(if extended == 0 { (Verdict::NotSeen, took + ", less than a lease") } else { played })
}

async fn finished(harness: &mut Harness) -> Result<Played, Over> {
    if harness.told != Told::Finished {
        let asked = harness.report().await?;
        harness.stop(&asked.request.study).await;
        harness.fault("the study was stopped");
        harness.answer(Call::Report(asked)).await;
        // Without `lease_next`, the trainer has yet to ask.
        while harness.told == Told::Step {
            let call = harness.next().await?;
            harness.answer(call).await;
        }
    }
    harness.fault("the study has ended");
    let end = Instant::now() + QUIET;
    let (mut leases, mut reports) = (0, 0);
    while let Some(call) = harness.next_until(end).await {
        leases +=
            usize::from(matches!(&call, Call::Lease(asked) if !asked.request.study.is_empty()));
        reports += usize::from(matches!(&call, Call::Report(_)));
        // Further reports may have been on their way.
        if leases > 1 || reports >= harness.in_hand {
            return Ok(harness.verdict(false, format!("the trainer called {}", name(&call))));
        }
        harness.answer(call).await;
    }
    Ok(harness.verdict(true, format!("the trainer asked for its steps {leases} times more")))
}

/// Waits for the report `first` to be sent again, and judges whether it is the same.
async fn repeated(harness: &mut Harness, first: &v1::ReportStepRequest) -> Result<Played, Over> {
    loop {
        let call = harness.next().await?;
        let played = match &call {
            Call::Report(again) if is_same(&again.request, first) => {
                Some(harness.verdict(true, "the trainer repeated the report"))
            }
            Call::Report(again) if again.request.lease_id == first.lease_id => {
                let (before, now) = (&first.losses, &again.request.losses);
                Some(harness.verdict(false, format!("the losses were {before:?}, then {now:?}")))
            }
            Call::Report(again) if harness.in_hand == 1 => {
                let next = again.request.step_id;
                Some(harness.verdict(false, format!("the trainer reported step {next} instead")))
            }
            _ => None,
        };
        harness.answer(call).await;
        if let Some(played) = played {
            return Ok(played);
        }
    }
}

/// Waits until the trainer does anything else than to report the step of `done` again.
async fn goes_on(harness: &mut Harness, done: &v1::ReportStepRequest) -> Result<Played, Over> {
    loop {
        let call = harness.next().await?;
        let played = match &call {
            // One that was on its way.
            Call::Extend(asked) if asked.request.lease_id == done.lease_id => None,
            Call::Report(asked) if asked.request.lease_id == done.lease_id => {
                Some(harness.verdict(false, "the trainer repeated the report"))
            }
            other => {
                let what = format!("the trainer called {} next", name(other));
                Some(harness.verdict(true, what))
            }
        };
        harness.answer(call).await;
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
