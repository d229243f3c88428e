//! Words and figures for people, the same in pictures and on the command line. Takes `now`, reads no clock.

use std::time::{Duration, SystemTime};

use asng_proto::v1::{
    Direction, Report, SetAsideStudy, Study, StudyState, UnservedSpace, Variable, variable::Kind,
};
use prost_types::Timestamp;

use super::notes::Note;
use crate::study::Spec;

/// The state as it is written in the contract, without its prefix.
pub fn state(study: &Study) -> &'static str {
    study.state().as_str_name().trim_start_matches("STUDY_STATE_")
}

/// Steps of the warm-up, in which the weights are trained and nothing is ranked.
pub fn warmup_steps(study: &Study) -> u64 {
    let algorithm = study.spec.as_ref().and_then(|spec| spec.algorithm).unwrap_or_default();
    algorithm.warmup_steps.unwrap_or_else(|| Spec::default().warmup_steps())
}

/// How far the warm-up has come, such as "300 of 800 steps"; none before a study has begun and when the warm-up is over.
pub fn warm_up(study: &Study) -> Option<String> {
    let (steps, applied) = (warmup_steps(study), study.progress.unwrap_or_default().applied);
    let begun = !matches!(study.state(), StudyState::Waiting | StudyState::Failed);
    (begun && applied < steps).then(|| format!("{applied} of {steps} steps"))
}

/// Returns whether the reported losses are maximized.
pub fn maximizes(study: &Study) -> bool {
    study.spec.as_ref().is_some_and(|spec| spec.direction() == Direction::Maximize)
}

/// Returns the word for what is reported of an architecture, for titles: a loss, or a value that is maximized.
pub fn loss(study: &Study) -> &'static str {
    if maximizes(study) { "Value" } else { "Loss" }
}

/// Returns the name of the best loss or value.
pub fn best(study: &Study) -> &'static str {
    if maximizes(study) { "best value" } else { "best loss" }
}

/// Returns the plural of [`loss`].
pub fn losses(study: &Study) -> &'static str {
    if maximizes(study) { "Values" } else { "Losses" }
}

/// The outcome as it is written in the contract, without its prefix.
pub fn outcome(report: &Report) -> &'static str {
    report.outcome().as_str_name().trim_start_matches("REPORT_OUTCOME_")
}

/// The name of a value: of the choice for a categorical, the number itself for an integer.
pub fn choice(variable: &Variable, value: i64) -> String {
    let index = usize::try_from(value).ok();
    match &variable.kind {
        Some(Kind::Categorical(c)) => index.and_then(|i| c.choices.get(i)).cloned(),
        _ => None,
    }
    .unwrap_or_else(|| value.to_string())
}

/// Formats a duration in its two largest units, such as "2 days 23 h".
pub fn brief(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    let part = |part: &str| {
        let unit = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let count = &part[..part.len() - unit.len()];
        format!("{count} {}", if unit == "m" { "min" } else { unit })
    };
    text.split(' ').take(2).map(part).collect::<Vec<_>>().join(" ")
}

/// How long ago something was.
pub fn age(since: Timestamp, now: SystemTime) -> String {
    // Clocks of two machines differ: what was created in the future was created now.
    let since = SystemTime::try_from(since).unwrap_or(now);
    brief(now.duration_since(since).unwrap_or_default())
}

/// Time for the `remaining` steps at `rate` steps per second, where they move at all.
pub fn eta(remaining: u64, rate: f64) -> Option<Duration> {
    // Without speed this divides by zero, and infinity is no duration.
    Duration::try_from_secs_f64(remaining as f64 / rate).ok()
}

/// A number with as many digits as a person compares.
pub fn number(value: f64) -> String {
    if value == 0.0 || (1e-3..1e6).contains(&value.abs()) {
        format!("{value:.4}")
    } else {
        format!("{value:.3e}")
    }
}

/// Formats a cost in three digits with its unit, such as "4.78 M MACs".
pub fn cost(name: &str, value: f64) -> String {
    // Rounded first, so that 999,999 is 1 M and not 1000 k.
    let rounded: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    let number = match rounded.abs() {
        1e9..1e12 => format!("{} G", rounded / 1e9),
        1e6..1e9 => format!("{} M", rounded / 1e6),
        1e3..1e6 => format!("{} k", rounded / 1e3),
        size if size == 0.0 || (1e-3..1e3).contains(&size) => rounded.to_string(),
        _ => format!("{rounded:e}"),
    };
    let unit = match name {
        "macs" => "MACs",
        "latency_ms" => "ms",
        name => name,
    };
    format!("{number} {unit}")
}

/// Returns the number of steps that trainers hold, such as "1 step in progress".
pub fn in_progress(steps: u64) -> String {
    format!("{steps} {} in progress", if steps == 1 { "step" } else { "steps" })
}

/// Spaces that a trainer cannot serve, a line for each.
pub fn unserved(spaces: &[UnservedSpace]) -> String {
    let lines = spaces.iter().map(|unserved| format!("{}: {}", unserved.space, unserved.reason));
    lines.collect::<Vec<_>>().join("\n")
}

/// Studies that a trainer has set aside, a line for each.
pub fn set_aside(studies: &[SetAsideStudy]) -> String {
    let lines = studies.iter().map(|aside| {
        let note = Note {
            text: format!("{}: {}", aside.study, aside.reason),
            retry_after: aside.retry_after.and_then(|time| Duration::try_from(time).ok()),
        };
        note.to_string()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `text` in about `letters` letters, the end cut off where it is longer.
pub(super) fn short(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{AlgorithmSettings, Categorical, Progress, StudySpec};

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_value_is_named_by_its_choice_or_is_the_number() {
        let choices = vec!["conv3".into(), "conv5".into()];
        let kind = Some(Kind::Categorical(Categorical { choices }));
        let op = Variable { name: "op".into(), kind };
        // Whatever the wire brings.
        assert_eq!([1, 2, -1].map(|value| choice(&op, value)), ["conv5", "2", "-1"]);
        assert_eq!(choice(&Variable::default(), 3), "3");
    }

    #[test]
    fn enums_lose_their_prefix() {
        let study = |state| Study { state, ..Study::default() };
        assert_eq!(state(&study(StudyState::Waiting.into())), "WAITING");
        assert_eq!(state(&study(99)), "UNSPECIFIED");
    }

    #[test]
    fn numbers_names_and_durations_are_brief() {
        assert_eq!(
            [0.0, 0.5, -12.0, 1e-9].map(number),
            ["0.0000", "0.5000", "-12.0000", "1.000e-9"]
        );
        assert_eq!(brief(Duration::from_millis(93_784_900)), "1 day 2 h");
        assert_eq!(brief(seconds(2 * 86_400 + 62)), "2 days 1 min");
        assert_eq!(brief(Duration::from_millis(900)), "0 s");
        assert_eq!(cost("macs", 4_780_352.0), "4.78 M MACs");
        assert_eq!(cost("parameters", 19_794.0), "19.8 k parameters");
        assert_eq!(cost("parameters", 999_999.0), "1 M parameters");
        assert_eq!(cost("latency_ms", 3.24159), "3.24 ms");
        assert_eq!([0.0, 12.5, 1e-7].map(|x| cost("x", x)), ["0 x", "12.5 x", "1e-7 x"]);
        assert_eq!(short("größer", 6), "größer");
        assert_eq!(short("größere", 6), "größe…");
    }

    #[test]
    fn a_warm_up_is_told_of_while_it_lasts() {
        let told = |state: StudyState, applied, warmup_steps| {
            let algorithm = Some(AlgorithmSettings { warmup_steps, ..Default::default() });
            warm_up(&Study {
                state: state.into(),
                spec: Some(StudySpec { algorithm, ..Default::default() }),
                progress: Some(Progress { applied, ..Default::default() }),
                ..Study::default()
            })
        };
        for state in [StudyState::Running, StudyState::Paused, StudyState::Stopped] {
            assert_eq!(told(state, 300, Some(800)).as_deref(), Some("300 of 800 steps"));
            assert_eq!(told(state, 800, Some(800)), None);
            assert_eq!(told(state, 0, None), None);
        }
        assert_eq!(told(StudyState::Waiting, 0, Some(800)), None);
        assert_eq!(warm_up(&Study::default()), None);
    }

    #[test]
    fn eta_needs_speed() {
        assert_eq!(eta(100, 4.0), Some(seconds(25)));
        assert_eq!(eta(0, 4.0), Some(seconds(0)));
        assert_eq!(eta(100, 0.0), None);
        assert_eq!(eta(0, 0.0), None);
        assert_eq!(eta(u64::MAX, 1e-300), None);
    }
}
