//! Tables and counters of a study.

use asng_proto::v1::{Progress, Report, Trainer};
use maud::{Markup, html};
use prost_types::Timestamp;

use super::{StudySnapshot, words};

/// Reports in a table of the latest.
const REPORTS: usize = 20;
/// Trainers in their table, of up to 1000.
const TRAINERS: usize = 100;
/// Losses of one report that are printed.
const LOSSES: usize = 4;
/// Letters of a name or a list in a table.
const LETTERS: usize = 40;

/// How far the study has come.
pub(super) fn progress(snapshot: &StudySnapshot) -> Markup {
    let study = &snapshot.study;
    let p: Progress = study.progress.unwrap_or_default();
    let state = words::state(study);
    let share = 100.0 * p.applied as f64 / p.max_steps.max(1) as f64;
    let eta =
        snapshot.rate.and_then(|rate| words::eta(p.max_steps.saturating_sub(p.applied), rate));
    let mut facts = vec![
        ("state", state.to_owned()),
        ("steps", format!("{} of {} ({share:.1} %)", p.applied, p.max_steps)),
        ("convergence", format!("{:.3}", p.convergence)),
    ];
    facts.extend(words::warm_up(study).map(|steps| ("warm-up", steps)));
    facts.extend(study.incumbent.as_ref().map(|best| {
        (words::best(study), format!("{} (step {})", words::number(best.loss), best.step_id))
    }));
    facts.extend(snapshot.rate.map(|rate| ("rate", format!("{rate:.2} steps/s"))));
    facts.extend(eta.map(|eta| ("time left", words::brief(eta))));
    let counts = [
        ("steps in progress", p.outstanding),
        ("pending", p.pending),
        ("stale", p.stale),
        ("duplicate", p.duplicate),
        ("diverged", p.diverged),
        ("over a limit", p.over_limit),
        ("expired leases", p.expired),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    facts.extend(counts.map(|(name, count)| (name, count.to_string())));
    html! {
        progress max=(p.max_steps.max(1)) value=(p.applied.min(p.max_steps)) aria-label="steps" {
            (format!("{share:.1} %"))
        }
        dl.facts { @for (name, fact) in facts { div { dt { (name) } dd { (fact) } } } }
        @if !snapshot.notes.is_empty() { ul.notes { @for note in &snapshot.notes { li { (note) } } } }
        @if !study.failure.is_empty() {
            p { "A trainer rejected its settings:" }
            ul { @for f in &study.failure { li { code { (f.field) } ": " (f.description) } } }
        }
    }
}

/// Returns a table of the trainers that have worked on the study.
pub(super) fn trainers(snapshot: &StudySnapshot) -> Option<Markup> {
    let all = &snapshot.trainers;
    let row = |trainer: &Trainer| {
        html! {
            tr {
                th scope="row" title=(trainer.trainer_id) { (words::short(&trainer.trainer_id, LETTERS)) }
                td { (ago(snapshot, trainer.last_seen)) }
                td { (holds(&trainer.holds)) }
                td.figure { (trainer.applied) }
                td.figure { (trainer.stale) }
                td.figure { (trainer.duplicate) }
                td.figure { (trainer.expired) }
                td.figure { (format!("{:.2}", trainer.mean_staleness)) }
            }
        }
    };
    let table = || {
        html! {
            div.wide { table {
                thead { tr {
                    th scope="col" { "trainer" }
                    th scope="col" { "last seen" }
                    th scope="col" { "holds" }
                    th.figure scope="col" { "applied" }
                    th.figure scope="col" { "stale" }
                    th.figure scope="col" { "duplicate" }
                    th.figure scope="col" { "expired" }
                    th.figure scope="col" { "mean staleness" }
                } }
                tbody { @for trainer in all.iter().take(TRAINERS) { (row(trainer)) } }
            } }
            @if all.len() > TRAINERS { p.note { (TRAINERS) " of " (all.len()) " trainers." } }
        }
    };
    (!all.is_empty()).then(table)
}

fn holds(steps: &[u64]) -> String {
    match steps {
        [] => "–".to_owned(),
        [step] => format!("step {step}"),
        [first, ..] => format!("{} steps from {first}", steps.len()),
    }
}

/// The latest of its history.
pub(super) fn reports(snapshot: &StudySnapshot) -> Option<Markup> {
    let row = |report: &Report| {
        let outcome = match words::outcome(report) {
            "UNSPECIFIED" => "closed unreported".to_owned(),
            outcome => outcome.to_lowercase(),
        };
        let mut losses: Vec<_> =
            report.losses.iter().take(LOSSES).map(|&loss| loss_of(loss)).collect();
        if report.losses.len() > LOSSES {
            losses.push(format!("… ({})", report.losses.len()));
        }
        html! {
            tr {
                th.figure scope="row" { (report.step_id) }
                td { (outcome) }
                td.figure { (report.staleness) }
                td title=(report.trainer_id) { (words::short(&report.trainer_id, LETTERS)) }
                td.figure { (losses.join(", ")) }
                td { (ago(snapshot, report.report_time)) }
            }
        }
    };
    let table = || {
        html! {
            div.wide { table {
                thead { tr {
                    th.figure scope="col" { "step" }
                    th scope="col" { "outcome" }
                    th.figure scope="col" { "staleness" }
                    th scope="col" { "trainer" }
                    th.figure scope="col" { (words::losses(&snapshot.study).to_lowercase()) }
                    th scope="col" { "when" }
                } }
                tbody { @for report in snapshot.reports.iter().take(REPORTS) { (row(report)) } }
            } }
        }
    };
    (!snapshot.reports.is_empty()).then(table)
}

fn loss_of(loss: f64) -> String {
    if loss.is_finite() { words::number(loss) } else { "diverged".to_owned() }
}

/// How long ago, with the time itself for whoever points at it.
fn ago(snapshot: &StudySnapshot, time: Option<Timestamp>) -> Markup {
    // A year that no calendar has would be no time.
    let valid = |time: &Timestamp| time.seconds >= 0 && time.seconds < 253_402_300_800;
    let Some(time) = time.filter(valid) else { return html! { "–" } };
    let whole = Timestamp { nanos: 0, ..time };
    html! { time datetime=(whole) title=(whole) { (words::age(time, snapshot.now)) " ago" } }
}
