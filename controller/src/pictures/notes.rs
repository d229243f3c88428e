//! Notes about a study for people: why nobody works on it, and what wastes its reports. Takes `now`, reads no clock.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use asng_proto::v1::{Progress, SetAsideStudy, Study, StudyState, Trainer};

use super::words;
use crate::study::Spec;

/// A trainer without work asks every few seconds: one that was last heard of longer ago is not connected.
const CONNECTED: Duration = Duration::from_secs(60);
/// A trainer that computes a step extends its lease when a third of it has passed: one that works on another study, whose lease
/// is not known, is connected for this long.
const CONNECTED_WHEN_BUSY: Duration = Duration::from_secs(600);
/// Trainers that have a note of their own.
const TRAINERS: usize = 5;
/// Reports that have to arrive before their staleness says anything.
const LEAST_REPORTS: u64 = 20;

/// A note about a study.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The sentence; it does not change as time passes.
    pub text: String,
    /// The time until a trainer tries the study again.
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match self.retry_after {
            // The pause is over, and the trainer still works on another study.
            Some(time) if time.as_secs() == 0 => {
                f.write_str("; tries again when it has no other work")
            }
            Some(time) => write!(f, "; tries again in {}", words::brief(time)),
            None => Ok(()),
        }
    }
}

impl From<String> for Note {
    fn from(text: String) -> Note {
        Note { text, retry_after: None }
    }
}

/// Returns the notes about `study`. `trainers` are all that its controller has heard of, or `None` if that is not known; `serve`
/// is the command that starts one.
pub fn notes(
    study: &Study,
    trainers: Option<&[Trainer]>,
    serve: &str,
    now: SystemTime,
) -> Vec<Note> {
    let work = trainers.map(|trainers| work(study, trainers, serve, now));
    work.into_iter().flatten().chain(staleness(study)).collect()
}

/// Says who could work on a study that is WAITING or RUNNING, and why nobody does; of a study that somebody works on, only who
/// has set it aside.
fn work(study: &Study, trainers: &[Trainer], serve: &str, now: SystemTime) -> Vec<Note> {
    if !matches!(study.state(), StudyState::Waiting | StudyState::Running) {
        return Vec::new();
    }
    let waiting = study.state() == StudyState::Waiting;
    let (space, lease) = match &study.spec {
        Some(spec) => {
            (spec.space.as_str(), spec.lease.and_then(|lease| Duration::try_from(lease).ok()))
        }
        None => ("", None),
    };
    let own = lease.unwrap_or_default().max(CONNECTED);
    let is_connected = |trainer: &&Trainer| {
        let within = match trainer.study.as_str() {
            "" => CONNECTED,
            worked_on if worked_on == study.name => own,
            _ => CONNECTED_WHEN_BUSY,
        };
        silence(trainer, now).is_some_and(|silence| silence <= within)
    };
    let connected: Vec<_> = trainers.iter().filter(is_connected).collect();
    let worked_on = connected.iter().any(|trainer| trainer.study == study.name);
    let mut notes = Vec::new();
    let mut of_trainers: Vec<Note> = Vec::new();
    if worked_on || space.is_empty() {
        of_trainers.extend(connected.iter().filter_map(|trainer| set_aside(study, trainer)));
    } else {
        of_trainers.extend(connected.iter().map(|trainer| could_work(study, trainer, now)));
    }
    if !worked_on {
        let serve = with_data_set(serve, study);
        let serves = |trainer: &&&Trainer| trainer.spaces.iter().any(|s| s == space);
        let served = connected.iter().any(|trainer| serves(&trainer));
        let serving = connected.iter().filter(serves);
        let missing = serving.map(|trainer| lacking(study, trainer)).reduce(Option::and).flatten();
        let headline = match (connected.is_empty(), trainers.first()) {
            (true, None) => {
                format!("no trainer has asked this controller for work; start one with {serve}")
            }
            (true, Some(last)) => format!(
                "no trainer is connected; the last one was {}; start one with {serve}",
                last.trainer_id
            ),
            _ if space.is_empty() => {
                "no trainer works on this study; it has no space, so a trainer has to ask for it by its name"
                    .into()
            }
            _ if !served => format!("no connected trainer serves space {space}"),
            _ if missing.is_some() => {
                let missing = missing.unwrap_or_default();
                let fetch = KNOWN_DATA_SETS.contains(&missing);
                let fetch = if fetch { format!("fetch it with asng-trainer data fetch {missing}, then ") } else { String::new() };
                format!("no connected trainer that serves space {space} has data set {missing}; {fetch}start one with {serve}")
            }
            _ if waiting => String::new(),
            _ => "no trainer works on this study".into(),
        };
        notes.extend((!headline.is_empty()).then(|| headline.into()));
    }
    let more = of_trainers.len().saturating_sub(TRAINERS);
    of_trainers.truncate(TRAINERS);
    notes.extend(of_trainers);
    notes.extend((more > 0).then(|| format!("and {more} more trainers").into()));
    notes
}

/// How long ago a trainer was last heard of.
fn silence(trainer: &Trainer, now: SystemTime) -> Option<Duration> {
    let seen = SystemTime::try_from(trainer.last_seen?).ok()?;
    // Clocks of two machines differ: what was heard in the future was heard now.
    Some(now.duration_since(seen).unwrap_or_default())
}

/// The note that `trainer` has set `study` aside, if it has.
fn set_aside(study: &Study, trainer: &Trainer) -> Option<Note> {
    let is_it = |aside: &&SetAsideStudy| {
        // A later study may have the same name.
        aside.study == study.name && (aside.study_id.is_empty() || aside.study_id == study.study_id)
    };
    let aside = trainer.set_aside.iter().find(is_it)?;
    Some(Note {
        text: format!("{} has set this study aside: {}", trainer.trainer_id, aside.reason),
        retry_after: aside.retry_after.and_then(|time| Duration::try_from(time).ok()),
    })
}

/// Returns the data set that the study is about, if the trainer names its data sets and this is none of them.
fn lacking<'a>(study: &'a Study, trainer: &Trainer) -> Option<&'a str> {
    let wanted = study.spec.as_ref()?.settings.get("dataset")?;
    (!trainer.data_sets.is_empty() && !trainer.data_sets.contains(wanted)).then_some(wanted)
}

/// Data sets that trainers know by name, where their files are.
const KNOWN_DATA_SETS: [&str; 3] = ["cifar10", "cifar100", "fashion-mnist"];

/// Adds to `serve`, the command that starts a trainer, perhaps in backticks, the option by which the trainer has the data set that
/// the study is about.
fn with_data_set(serve: &str, study: &Study) -> String {
    let wanted = study.spec.as_ref().and_then(|spec| spec.settings.get("dataset"));
    match wanted.filter(|wanted| !KNOWN_DATA_SETS.contains(&&***wanted)) {
        Some(wanted) => match serve.strip_suffix('`') {
            Some(serve) => format!("{serve} --images {wanted}=DIR`"),
            None => format!("{serve} --images {wanted}=DIR"),
        },
        None => serve.into(),
    }
}

/// Says what keeps `trainer`, which works on no step of `study`, from it.
fn could_work(study: &Study, trainer: &Trainer, now: SystemTime) -> Note {
    if let Some(note) = set_aside(study, trainer) {
        return note;
    }
    let space = study.spec.as_ref().map_or("", |spec| &spec.space);
    let id = &trainer.trainer_id;
    let waiting = study.state() == StudyState::Waiting;
    let silent = silence(trainer, now).is_some_and(|silence| silence > CONNECTED);
    let silent = if silent { "; silent for more than a minute" } else { "" };
    let serves = trainer.spaces.iter().any(|served| served == space);
    let text = match (serves, trainer.study.as_str()) {
        (true, _) if lacking(study, trainer).is_some() => {
            let data_sets = trainer.data_sets.join(", ");
            format!("{id} ({}{silent}): has only the data sets {data_sets}", occupation(trainer))
        }
        (true, "") if waiting => {
            format!("waiting for {id}, which serves space {space} and has no other work")
        }
        (true, busy) if waiting => {
            format!(
                "waiting for {id}, which works on {busy} and describes new studies between two steps{silent}"
            )
        }
        _ => {
            let unserved = trainer.unserved.iter().find(|unserved| unserved.space == space);
            let reason = unserved.map(|unserved| format!(": {}", unserved.reason));
            format!("{id} ({}{silent}){}", occupation(trainer), reason.unwrap_or_default())
        }
    };
    text.into()
}

/// Returns the spaces and the work of a trainer, such as "serves enas-micro, toy; works on cifar".
fn occupation(trainer: &Trainer) -> String {
    let serves = match trainer.spaces.as_slice() {
        [] => "serves no space".to_owned(),
        spaces => format!("serves {}", spaces.join(", ")),
    };
    match trainer.study.as_str() {
        "" => format!("{serves}; has no work"),
        study => format!("{serves}; works on {study}"),
    }
}

/// Warns where more than a tenth of the reports came too late to count.
fn staleness(study: &Study) -> Option<Note> {
    let Progress { applied, pending, stale, .. } = study.progress.unwrap_or_default();
    let arrived = applied.saturating_add(pending).saturating_add(stale);
    if arrived < LEAST_REPORTS || stale <= arrived / 10 {
        return None;
    }
    let algorithm = study.spec.as_ref().and_then(|spec| spec.algorithm).unwrap_or_default();
    let limit = algorithm.max_staleness.map_or_else(|| Spec::default().max_staleness(), u64::from);
    Some(
        format!(
            "{stale} of {arrived} reports were STALE, late by more than {limit} updates (max_staleness), and had no effect; fewer or \
             equally fast trainers help, as does a clone of the study with a higher max_staleness, or with a longer lease if leases \
             ran out"
        )
        .into(),
    )
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{AlgorithmSettings, StudySpec, UnservedSpace};
    use prost_types::Timestamp;

    use super::*;

    const SERVE: &str = "asng-trainer serve";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1000)
    }

    fn study(state: StudyState) -> Study {
        Study {
            name: "faces".into(),
            study_id: "f1".into(),
            state: state.into(),
            spec: Some(StudySpec { space: "inpaint-cat".into(), ..Default::default() }),
            ..Study::default()
        }
    }

    fn trainer(id: &str, spaces: &[&str], study: &str) -> Trainer {
        Trainer {
            trainer_id: id.into(),
            last_seen: Some(Timestamp::from(now() - Duration::from_secs(3))),
            spaces: spaces.iter().map(ToString::to_string).collect(),
            study: study.into(),
            ..Trainer::default()
        }
    }

    fn told(study: &Study, trainers: &[Trainer]) -> Vec<String> {
        notes(study, Some(trainers), SERVE, now()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_study_without_trainers_says_how_to_start_one() {
        for state in [StudyState::Waiting, StudyState::Running] {
            assert_eq!(
                told(&study(state), &[]),
                [
                    "no trainer has asked this controller for work; start one with asng-trainer serve"
                ]
            );
            let silent = Trainer {
                last_seen: Some(Timestamp::from(now() - Duration::from_secs(61))),
                ..trainer("gpu-1", &["inpaint-cat"], "")
            };
            assert_eq!(
                told(&study(state), &[silent]),
                [
                    "no trainer is connected; the last one was gpu-1; start one with asng-trainer serve"
                ]
            );
        }
        assert_eq!(notes(&study(StudyState::Waiting), None, SERVE, now()), []);
    }

    #[test]
    fn a_trainer_that_cannot_serve_the_space_says_why() {
        let unserved = UnservedSpace {
            space: "inpaint-cat".into(),
            reason: "no photos in data/photos".into(),
        };
        let trainers = [
            Trainer {
                unserved: vec![unserved],
                ..trainer("gpu-1", &["enas-micro", "toy"], "cifar")
            },
            trainer("gpu-2", &[], ""),
        ];
        for state in [StudyState::Waiting, StudyState::Running] {
            assert_eq!(
                told(&study(state), &trainers),
                [
                    "no connected trainer serves space inpaint-cat",
                    "gpu-1 (serves enas-micro, toy; works on cifar): no photos in data/photos",
                    "gpu-2 (serves no space; has no work)",
                ]
            );
        }
    }

    #[test]
    fn a_data_set_that_no_trainer_has_is_named_with_what_to_do() {
        let about = |state, data_set: &str| {
            let mut study = study(state);
            let settings = &mut study.spec.as_mut().unwrap().settings;
            settings.insert("dataset".into(), data_set.into());
            study
        };
        let with = |id: &str, data_sets: &[&str]| Trainer {
            data_sets: data_sets.iter().map(ToString::to_string).collect(),
            ..trainer(id, &["inpaint-cat"], "")
        };
        let both = [with("gpu-1", &["cifar10"]), with("gpu-2", &["cifar10", "birds"])];
        for state in [StudyState::Waiting, StudyState::Running] {
            assert_eq!(
                told(&about(state, "flowers"), &both),
                [
                    "no connected trainer that serves space inpaint-cat has data set flowers; start one with asng-trainer \
                     serve --images flowers=DIR",
                    "gpu-1 (serves inpaint-cat; has no work): has only the data sets cifar10",
                    "gpu-2 (serves inpaint-cat; has no work): has only the data sets cifar10, birds",
                ]
            );
        }
        let waiting = about(StudyState::Waiting, "birds");
        assert_eq!(
            told(&waiting, &both),
            [
                "gpu-1 (serves inpaint-cat; has no work): has only the data sets cifar10",
                "waiting for gpu-2, which serves space inpaint-cat and has no other work",
            ]
        );
        let unheard = notes(&waiting, Some(&[]), "`serve -c x`", now());
        assert!(unheard[0].text.ends_with("; start one with `serve -c x --images birds=DIR`"));
        let fetched = told(&about(StudyState::Waiting, "cifar100"), &both);
        assert!(fetched[0].contains("asng-trainer data fetch cifar100, then"), "{fetched:?}");
        // One that names no data set may have any.
        let silent = told(&waiting, &[with("own", &[])]);
        assert_eq!(
            silent,
            ["waiting for own, which serves space inpaint-cat and has no other work"]
        );
    }

    #[test]
    fn a_busy_trainer_is_waited_for_also_while_it_is_silent() {
        let busy = trainer("gpu-1", &["inpaint-cat"], "cifar");
        let silent = |seconds, busy: &Trainer| Trainer {
            last_seen: Some(Timestamp::from(now() - Duration::from_secs(seconds))),
            ..busy.clone()
        };
        let words = "waiting for gpu-1, which works on cifar and describes new studies between two steps; silent for more \
                     than a minute";
        assert_eq!(told(&study(StudyState::Waiting), &[silent(600, &busy)]), [words]);
        assert!(
            told(&study(StudyState::Waiting), &[silent(601, &busy)])[0]
                .contains("no trainer is connected")
        );
        // Whoever works on this study has to extend its lease.
        let works = trainer("gpu-1", &["inpaint-cat"], "faces");
        let mut running = study(StudyState::Running);
        assert_eq!(told(&running, &[silent(60, &works)]), [""; 0]);
        assert!(told(&running, &[silent(61, &works)])[0].contains("no trainer is connected"));
        running.spec.as_mut().unwrap().lease =
            Some(prost_types::Duration { seconds: 300, nanos: 0 });
        assert_eq!(told(&running, &[silent(300, &works)]), [""; 0]);
        assert_eq!(
            told(&study(StudyState::Waiting), std::slice::from_ref(&busy)),
            ["waiting for gpu-1, which works on cifar and describes new studies between two steps"]
        );
        assert_eq!(
            told(&study(StudyState::Running), &[busy]),
            ["no trainer works on this study", "gpu-1 (serves inpaint-cat; works on cifar)"]
        );
        assert_eq!(
            told(&study(StudyState::Waiting), &[trainer("gpu-1", &["inpaint-cat"], "")]),
            ["waiting for gpu-1, which serves space inpaint-cat and has no other work"]
        );
    }

    #[test]
    fn a_trainer_that_has_set_the_study_aside_says_so_also_while_another_works_on_it() {
        let aside = |study: &str, id: &str| Trainer {
            set_aside: vec![SetAsideStudy {
                study: study.into(),
                study_id: id.into(),
                reason: "none of the 2 checkpoints is whole".into(),
                retry_after: Some(prost_types::Duration { seconds: 40, nanos: 0 }),
            }],
            ..trainer("gpu-1", &["inpaint-cat"], "")
        };
        let expected = "gpu-1 has set this study aside: none of the 2 checkpoints is whole; tries again in 40 s";
        let waiting = study(StudyState::Waiting);
        assert_eq!(told(&waiting, &[aside("faces", "f1")]), [expected]);
        let mut over = aside("faces", "f1");
        over.set_aside[0].retry_after = Some(prost_types::Duration::default());
        assert!(
            told(&waiting, &[over])[0].ends_with("whole; tries again when it has no other work")
        );
        assert!(told(&waiting, &[aside("faces", "f0")])[0].starts_with("waiting for gpu-1"));
        let running = study(StudyState::Running);
        let works = trainer("gpu-2", &["inpaint-cat"], "faces");
        assert_eq!(told(&running, &[works.clone(), aside("faces", "")]), [expected]);
        assert_eq!(told(&running, &[works, aside("other", "o")]), [""; 0]);
        for state in [StudyState::Paused, StudyState::Finished, StudyState::Failed] {
            assert_eq!(told(&study(state), &[aside("faces", "f1")]), [""; 0]);
        }
    }

    #[test]
    fn a_study_without_a_space_is_for_those_who_name_it() {
        let running = Study { spec: None, ..study(StudyState::Running) };
        let notes = told(&running, &[trainer("gpu-1", &["toy"], "")]);
        assert_eq!(notes.len(), 1);
        assert!(notes[0].contains("ask for it by its name"), "{notes:?}");
        assert_eq!(told(&running, &[trainer("own", &[], "faces")]), [""; 0]);
    }

    #[test]
    fn some_of_many_trainers_have_a_note() {
        let trainers: Vec<_> = (0..9).map(|i| trainer(&format!("gpu-{i}"), &["toy"], "")).collect();
        let notes = told(&study(StudyState::Waiting), &trainers);
        assert_eq!((notes.len(), notes[6].as_str()), (7, "and 4 more trainers"));
    }

    #[test]
    fn more_than_a_tenth_of_stale_reports_is_a_warning() {
        let note = |applied, pending, stale, max_staleness| {
            let algorithm = Some(AlgorithmSettings { max_staleness, ..Default::default() });
            let study = Study {
                progress: Some(Progress { applied, pending, stale, ..Default::default() }),
                spec: Some(StudySpec { algorithm, ..Default::default() }),
                ..study(StudyState::Finished)
            };
            told(&study, &[]).pop()
        };
        assert_eq!(note(10, 0, 9, None), None, "too few to say");
        assert_eq!(note(90, 0, 10, None), None, "a tenth");
        let told = note(17, 0, 3, Some(2)).unwrap();
        assert!(
            told.starts_with("3 of 20 reports were STALE, late by more than 2 updates"),
            "{told}"
        );
        assert!(note(80, 9, 11, None).unwrap().contains("more than 64 updates"));
        assert!(note(u64::MAX, u64::MAX, u64::MAX, None).is_some());
    }
}
