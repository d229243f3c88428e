//! The output for people: sentences, sections and tables. Takes `now`, reads no clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

pub(crate) use asng_controller::pictures::words::{
    age, brief, loss, maximizes, number, set_aside, unserved, warm_up,
};
use asng_controller::pictures::{notes::Note, words};
use asng_proto::v1::{
    Algorithm, Architecture, CostRule, FieldViolation, Front, GetDistributionResponse, Incumbent,
    Progress, StopReason, StopRules, Study, StudySpec, StudyState, Trainer, Variable, marginal,
    retention::Keep, start::From,
};
use comfy_table::{ContentArrangement, Table, presets};
use prost_types::Timestamp;

use crate::names;

/// The state of a study, and the notes about it in a line each.
pub(crate) fn sentence(study: &Study, notes: &[Note]) -> String {
    let mut text = format!("study `{}` is {}", study.name, names::state(study));
    if study.state() == StudyState::Waiting {
        let spec = study.spec.clone().unwrap_or_default();
        text += &format!(" for a trainer that serves `{}`", spec.space);
        if let Some(data_set) = spec.settings.get("dataset") {
            text += &format!(" and has data set `{data_set}`");
        }
    }
    if let Some(steps) = warm_up(study) {
        text += &format!("; warm-up: {steps}");
    }
    notes.iter().fold(text, |text, note| format!("{text}\n  {note}"))
}

/// Returns the reasons why a study FAILED, one field a line, and what to do.
pub(crate) fn failure(study: &Study) -> String {
    let title = format!("study `{}` FAILED: a trainer rejected its settings", study.name);
    let text = violations(title, &study.failure);
    format!("{text}\nCorrect them and create the study again, with --replace.")
}

fn violations(title: String, violations: &[FieldViolation]) -> String {
    violations.iter().fold(title, |text, v| format!("{text}\n  {}: {}", v.field, v.description))
}

/// The last words of `watch`.
pub(crate) fn ending(study: &Study) -> String {
    let how = match study.state() {
        StudyState::Stopped => "was stopped",
        _ => "is finished",
    };
    let Progress { applied, max_steps, .. } = study.progress.unwrap_or_default();
    let mut text = format!("study `{}` {how} after {applied} of {max_steps} steps", study.name);
    if let Some(reason) = early_end(study) {
        text += &format!(": {reason}");
    }
    if study.mode.is_some() {
        text += &format!("\n\n{}", architectures(study));
    }
    for front in &study.fronts {
        text += &format!("\n\n{}", self::front(front, loss(study)));
    }
    text
}

/// Formats the incumbent's loss and costs, such as "best loss 1.6118 (4.78 M MACs, 19.8 k parameters)".
pub(crate) fn best(study: &Study, best: &Incumbent) -> String {
    let costs: Vec<_> = best.costs.iter().map(|(name, &cost)| words::cost(name, cost)).collect();
    let costs = if costs.is_empty() { String::new() } else { format!(" ({})", costs.join(", ")) };
    format!("{} {}{costs}", words::best(study), number(best.loss))
}

/// Which stop rule ended a study before its steps did.
fn early_end(study: &Study) -> Option<&'static str> {
    match study.stop_reason() {
        StopReason::MaxDuration => Some("its max_duration has passed"),
        StopReason::Convergence => Some("it has converged"),
        StopReason::Target => Some("its target was reached"),
        StopReason::Unspecified | StopReason::MaxSteps | StopReason::Request => None,
    }
}

/// A line for each study.
pub(crate) fn list(studies: &[Study], now: SystemTime) -> String {
    let header = ["NAME", "STATE", "SPACE", "OWNER", "STEPS", "CONVERGENCE", "BEST", "AGE"];
    let mut table = table(header);
    for study in studies {
        let progress = study.progress.unwrap_or_default();
        table.add_row([
            study.name.clone(),
            names::state(study).to_owned(),
            or_dash(study.spec.as_ref().map(|spec| spec.space.clone())),
            or_dash(Some(study.owner.clone())),
            format!("{}/{}", progress.applied, progress.max_steps),
            format!("{:.3}", progress.convergence),
            or_dash(study.incumbent.as_ref().map(|i| number(i.loss))),
            or_dash(study.create_time.map(|t| age(t, now))),
        ]);
    }
    render(table)
}

/// A line for each trainer of a study.
pub(crate) fn trainers(trainers: &[Trainer], now: SystemTime) -> String {
    let header =
        ["TRAINER", "SEEN", "HOLDS", "APPLIED", "STALE", "DUPLICATE", "EXPIRED", "MEAN-STALENESS"];
    let mut table = table(header);
    for trainer in trainers {
        let holds: Vec<_> = trainer.holds.iter().map(ToString::to_string).collect();
        table.add_row([
            trainer.trainer_id.clone(),
            or_dash(trainer.last_seen.map(|time| format!("{} ago", age(time, now)))),
            or_dash(Some(holds.join(" "))),
            trainer.applied.to_string(),
            trainer.stale.to_string(),
            trainer.duplicate.to_string(),
            trainer.expired.to_string(),
            format!("{:.1}", trainer.mean_staleness),
        ]);
    }
    render(table)
}

/// A line or more for each trainer of a controller.
pub(crate) fn all_trainers(trainers: &[Trainer], now: SystemTime) -> String {
    if trainers.is_empty() {
        return "no trainer has asked this controller for work since its start".to_owned();
    }
    let header =
        ["TRAINER", "SEEN", "WORKS-ON", "SERVES", "DATA-SETS", "CANNOT-SERVE", "SET-ASIDE"];
    let mut table = table(header);
    for trainer in trainers {
        table.add_row([
            trainer.trainer_id.clone(),
            or_dash(trainer.last_seen.map(|time| format!("{} ago", age(time, now)))),
            or_dash(Some(trainer.study.clone())),
            or_dash(Some(trainer.spaces.join(", "))),
            or_dash(Some(trainer.data_sets.join(", "))),
            or_dash(Some(unserved(&trainer.unserved))),
            or_dash(Some(set_aside(&trainer.set_aside))),
        ]);
    }
    render(table)
}

/// All of a study, and the notes about it.
pub(crate) fn show(study: &Study, notes: &[Note], now: SystemTime) -> String {
    let notes: Vec<_> = notes.iter().map(ToString::to_string).collect();
    let notes = (!notes.is_empty()).then(|| row("notes", notes.join("\n")));
    let mut sections = vec![
        section(
            &format!("Study {}", study.name),
            about(study, now).into_iter().chain(notes).collect(),
        ),
        section("Spec", spec(study)),
        section("Progress", progress(study)),
    ];
    if study.mode.is_some() {
        let title = "Architectures: current best guess (chosen), most likely (mode), best evaluated (incumbent)";
        sections.push(format!("{title}\n{}", architectures(study)));
    }
    sections.extend(study.fronts.iter().map(|front| self::front(front, loss(study))));
    sections.join("\n\n")
}

pub(crate) type Row = [String; 2];

pub(crate) fn row(name: &str, value: impl ToString) -> Row {
    [format!("  {name}"), value.to_string()]
}

pub(crate) fn about(study: &Study, now: SystemTime) -> Vec<Row> {
    let ago = |time: Option<Timestamp>| {
        let whole = time.map(|t| Timestamp { nanos: 0, ..t });
        or_dash(whole.map(|t| format!("{t} ({} ago)", age(t, now))))
    };
    let mut rows = vec![
        row("state", names::state(study)),
        row("since", ago(study.state_time)),
        row("created", ago(study.create_time)),
        row("id", &study.study_id),
        row("owner", or_dash(Some(study.owner.clone()))),
    ];
    if study.stop_reason() != StopReason::Unspecified {
        rows.push(row("stop reason", names::stop_reason(study)));
    }
    if study.state() == StudyState::Failed {
        rows.push(row("reason", violations("a trainer rejected:".into(), &study.failure)));
    }
    rows
}

/// The spec as submitted, with the defaults in force.
pub(crate) fn spec(study: &Study) -> Vec<Row> {
    let spec = study.spec.clone().unwrap_or_default();
    let a = spec.algorithm.unwrap_or_default();
    let algorithm = names::algorithm(&a).to_lowercase();
    let typed = (a.algorithm() != Algorithm::Unspecified).then(|| algorithm.clone());
    let drawn = if a.seed.is_none() { " (drawn)" } else { "" };
    let pairs = |map: &BTreeMap<String, String>| {
        let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
        or_dash(Some(pairs.join("\n")))
    };
    let defaults = names::defaults();
    let variables = match study.variables.len() {
        0 => "not known yet".to_owned(),
        n if spec.variables.is_empty() => format!("{n}, described by a trainer"),
        n => format!("{n}, submitted"),
    };
    vec![
        row("space", space(&spec)),
        row("settings", pairs(&spec.settings)),
        row("variables", variables),
        row("fixed", pairs(&spec.fixed)),
        row("labels", pairs(&spec.labels)),
        row("start", start(&spec)),
        row("stop", spec.stop.as_ref().map(stop).unwrap_or_default()),
        row("direction", names::direction(&spec)),
        row("costs", costs(study, &spec.costs)),
        row("algorithm", or_default(typed, Some(algorithm))),
        row("alpha", or_default(a.alpha, defaults.alpha)),
        row("delta_init", or_default(a.delta_init, defaults.delta_init)),
        row("delta_max", or_default(a.delta_max, defaults.delta_max)),
        row("lambda_x", or_default(a.lambda_x, defaults.lambda_x)),
        row("lambda_theta", or_default(a.lambda_theta, defaults.lambda_theta)),
        row("steps_per_update", or_default(a.steps_per_update, defaults.steps_per_update)),
        row("max_staleness", or_default(a.max_staleness, defaults.max_staleness)),
        row("warmup_steps", or_default(a.warmup_steps, defaults.warmup_steps)),
        row("seed", format!("{}{drawn}", study.seed)),
        row("lease", or_default(spec.lease, Some(names::default_lease()))),
        row("history", history(&spec)),
    ]
}

/// The space's name; of one that a file defines, its family, and the name and size of the file's text.
fn space(StudySpec { space, space_definition: text, .. }: &StudySpec) -> String {
    if text.is_empty() {
        return or_dash(Some(space.clone()));
    }
    let name = crate::space::name(text).map_or_else(String::new, |name| format!(" {name},"));
    format!("{space}, defined by a file:{name} {} bytes (--definition prints it)", text.len())
}

fn start(spec: &StudySpec) -> String {
    match spec.start.as_ref().and_then(|start| start.from.as_ref()) {
        Some(From::Study(name)) => format!("where study `{name}` was"),
        Some(From::Distribution(d)) => {
            format!("from a distribution of {} variables", d.marginals.len())
        }
        None => "in the middle (default)".to_owned(),
    }
}

/// The stop rules, a line for each.
fn stop(stop: &StopRules) -> String {
    let mut rules = vec![format!("after {} steps", stop.max_steps)];
    if let Some(duration) = stop.max_duration.and_then(|d| Duration::try_from(d).ok()) {
        rules.push(format!("after {}", humantime::format_duration(duration)));
    }
    rules.extend(stop.convergence.map(|convergence| format!("at convergence {convergence}")));
    rules.extend(stop.target.as_ref().map(|target| {
        let relation = if target.at_least { ">=" } else { "<=" };
        format!("at {} {relation} {}", target.metric, target.value)
    }));
    rules.join("\n")
}

/// Formats the rules about costs, a line for each.
fn costs(study: &Study, rules: &[CostRule]) -> String {
    let counts = match maximizes(study) {
        true => "subtracted from the value",
        false => "added to the loss",
    };
    let rule = |CostRule { cost, weight, limit }: &CostRule| {
        let limit = limit.map(|limit| format!("{cost} <= {limit}"));
        let weight = weight.map(|weight| format!("{weight} x {cost} {counts}"));
        limit.into_iter().chain(weight)
    };
    match rules {
        [] => "no rules (default)".to_owned(),
        rules => rules.iter().flat_map(rule).collect::<Vec<_>>().join("\n"),
    }
}

fn history(spec: &StudySpec) -> String {
    match spec.retention.and_then(|retention| retention.keep) {
        Some(Keep::Every(steps)) => format!("keeps every step divisible by {steps}"),
        Some(Keep::Last(steps)) => format!("keeps the newest {steps} steps"),
        None => "keeps all steps (default)".to_owned(),
    }
}

fn or_default<T: ToString>(value: Option<T>, default: Option<T>) -> String {
    match (value, default) {
        (Some(value), _) => value.to_string(),
        (None, Some(default)) => format!("{} (default)", default.to_string()),
        (None, None) => "none (default)".to_owned(),
    }
}

fn progress(study: &Study) -> Vec<Row> {
    let p = study.progress.unwrap_or_default();
    let percent = 100.0 * p.applied as f64 / p.max_steps.max(1) as f64;
    let best = study.incumbent.as_ref();
    let mut rows =
        vec![row("applied", format!("{} of {} ({percent:.1} %)", p.applied, p.max_steps))];
    rows.extend(warm_up(study).map(|steps| row("warm-up", steps)));
    rows.extend([
        row("generation", p.generation),
        row("convergence", format!("{:.3}", p.convergence)),
        row(
            words::best(study),
            or_dash(best.map(|i| format!("{} (step {})", number(i.loss), i.step_id))),
        ),
        row("pending", p.pending),
        row("steps in progress", p.outstanding),
        row("stale", p.stale),
        row("duplicate", p.duplicate),
        row("diverged", p.diverged),
        row("over a limit", p.over_limit),
        row("expired leases", p.expired),
    ]);
    rows
}

/// The final architecture, mode and incumbent.
fn architectures(study: &Study) -> String {
    let mut table = table(ARCHITECTURES);
    table.add_rows(architecture_rows(study));
    render(table)
}

/// The columns of [`architecture_rows`].
pub(crate) const ARCHITECTURES: [&str; 4] = ["VARIABLE", "CHOSEN", "MODE", "INCUMBENT"];

/// The final architecture, mode and incumbent, a row for each variable; then one for each cost that is known.
pub(crate) fn architecture_rows(study: &Study) -> Vec<[String; 4]> {
    let chosen = study.chosen.as_ref();
    let incumbent = study.incumbent.as_ref();
    let architectures: [Option<&Architecture>; 3] = [
        chosen.and_then(|chosen| chosen.architecture.as_ref()),
        study.mode.as_ref(),
        incumbent.and_then(|incumbent| incumbent.architecture.as_ref()),
    ];
    let variables = study.variables.iter().enumerate().map(|(i, variable)| {
        let [chosen, mode, incumbent] = architectures.map(|architecture| {
            let value = architecture.and_then(|a| a.values.get(i));
            or_dash(value.map(|&value| names::choice(variable, value)))
        });
        [variable.name.clone(), chosen, mode, incumbent]
    });
    let known = [chosen.map(|chosen| &chosen.costs), incumbent.map(|incumbent| &incumbent.costs)];
    let names: BTreeSet<_> = known.iter().copied().flatten().flat_map(BTreeMap::keys).collect();
    let costs = names.into_iter().map(|name| {
        let [chosen, incumbent] = known.map(|costs| {
            let cost = costs.and_then(|costs| costs.get(name));
            or_dash(cost.map(ToString::to_string))
        });
        [format!("({name})"), chosen, "-".into(), incumbent]
    });
    variables.chain(costs).collect()
}

/// Points of a front that a person compares.
const POINTS: usize = 12;

/// Formats the best losses, or values, by cost.
fn front(front: &Front, loss: &str) -> String {
    let points = &front.points;
    let title =
        format!("{loss} against {}: evaluated architectures on the Pareto front", front.cost);
    let mut table = table([&*front.cost.to_uppercase(), &loss.to_uppercase(), "STEP"]);
    let rows = points.len().min(POINTS);
    for row in 0..rows {
        // The ends, and as many between them at equal distances.
        let point = &points[row * (points.len() - 1) / (rows - 1).max(1)];
        table.add_row([point.cost.to_string(), number(point.loss), point.step_id.to_string()]);
    }
    let some = if points.len() > rows {
        format!(" ({rows} of {} points; all with --output json)", points.len())
    } else {
        String::new()
    };
    format!("{title}{some}\n{}", render(table))
}

/// A line for each variable: its choices, the likeliest first, or the normal distribution of an integer.
pub(crate) fn distribution(d: &GetDistributionResponse, variables: &[Variable]) -> String {
    let mut table = table(["VARIABLE", "DISTRIBUTION"]);
    for (marginal, variable) in d.marginals.iter().zip(variables) {
        let text = match &marginal.kind {
            Some(marginal::Kind::Categorical(c)) => {
                let mut choices: Vec<(i64, f64)> =
                    (0..).zip(c.probabilities.iter().copied()).collect();
                choices.sort_by(|a, b| b.1.total_cmp(&a.1));
                let named = choices
                    .iter()
                    .map(|&(i, p)| format!("{}: {:.1} %", names::choice(variable, i), 100.0 * p));
                named.collect::<Vec<_>>().join("  ")
            }
            Some(marginal::Kind::Integer(i)) => {
                format!("mean {:.2}  deviation {:.2}", i.mean, i.deviation)
            }
            None => String::new(),
        };
        table.add_row([marginal.name.clone(), or_dash(Some(text))]);
    }
    format!("generation {}, Delta {}\n\n{}", d.generation, number(d.delta), render(table))
}

pub(crate) fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}

pub(crate) fn section(title: &str, rows: Vec<Row>) -> String {
    let mut table = table([]);
    table.add_rows(rows);
    format!("{title}\n{}", render(table))
}

/// A table without lines: as wide as the terminal allows, plain columns in a pipe.
fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if N > 0 {
        table.set_header(header);
    }
    table
}

fn render(mut table: Table) -> String {
    if let Some(first) = table.column_mut(0) {
        first.set_padding((0, 1));
    }
    table.trim_fmt()
}

#[cfg(test)]
pub(crate) mod tests {
    use asng_proto::v1::{
        AlgorithmSettings, Architecture, Candidate, CategoricalMarginal, FrontPoint, Incumbent,
        IntegerMarginal, Marginal, SetAsideStudy, Target, UnservedSpace,
    };

    use super::*;
    use crate::names::tests::two_variables;

    fn a_point(i: u32) -> FrontPoint {
        let (cost, loss) = (i.into(), 1.0 / f64::from(i));
        FrontPoint { cost, loss, step_id: (2 * i).into(), ..FrontPoint::default() }
    }

    pub(crate) fn a_study() -> Study {
        let best = Architecture { values: vec![1, 64] };
        Study {
            name: "a".into(),
            spec: Some(StudySpec {
                space: "toy".into(),
                stop: Some(StopRules {
                    max_steps: 200,
                    target: Some(Target { metric: "loss".into(), value: 0.25, at_least: false }),
                    ..StopRules::default()
                }),
                costs: vec![CostRule {
                    cost: "size".into(),
                    weight: Some(1e-7),
                    limit: Some(20.0),
                }],
                fixed: [("depth".to_string(), "3".to_string())].into(),
                ..StudySpec::default()
            }),
            state: StudyState::Running.into(),
            variables: two_variables(),
            progress: Some(Progress { applied: 50, max_steps: 200, ..Progress::default() }),
            mode: Some(Architecture { values: vec![0, 36] }),
            chosen: Some(Candidate {
                architecture: Some(Architecture { values: vec![1, 12] }),
                costs: [("size".to_string(), 12.5)].into(),
            }),
            fronts: vec![Front { cost: "size".into(), points: (1..40).map(a_point).collect() }],
            incumbent: Some(Incumbent {
                architecture: Some(best),
                loss: 0.5,
                step_id: 7,
                costs: [("size".to_string(), 30.0)].into(),
            }),
            create_time: Some(Timestamp::default()),
            seed: 3,
            owner: "lab".into(),
            ..Study::default()
        }
    }

    fn has_line(text: &str, words: &[&str]) -> bool {
        text.lines().any(|line| line.split_whitespace().eq(words.iter().copied()))
    }

    #[test]
    fn a_list_has_a_line_for_each_study() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(3 * 3600 + 62);
        let text = list(&[a_study(), Study::default()], now);
        assert!(
            has_line(
                &text,
                &["a", "RUNNING", "toy", "lab", "50/200", "0.000", "0.5000", "3", "h", "1", "min"]
            ),
            "{text}"
        );
        assert!(has_line(&text, &["UNSPECIFIED", "-", "-", "0/0", "0.000", "-", "-"]), "{text}");
    }

    #[test]
    fn trainers_have_a_line_each_with_what_they_hold() {
        let trainer = Trainer {
            trainer_id: "gpu-1".into(),
            last_seen: Some(Timestamp::default()),
            holds: vec![7, 9],
            applied: 40,
            stale: 2,
            mean_staleness: 1.25,
            ..Trainer::default()
        };
        let text = trainers(&[trainer], SystemTime::UNIX_EPOCH + Duration::from_secs(62));
        let words = ["gpu-1", "1", "min", "2", "s", "ago", "7", "9", "40", "2", "0", "0", "1.2"];
        assert!(has_line(&text, &words), "{text}");
    }

    #[test]
    fn a_study_is_shown_with_its_defaults_and_names() {
        let text = show(&a_study(), &[], SystemTime::UNIX_EPOCH);
        assert!(has_line(&text, &["space", "toy"]), "{text}");
        let mut defined = a_study();
        let definition = "name = 'mine'\n[cells]\n";
        (defined.spec.as_mut().unwrap().space_definition) = definition.into();
        let row = "toy, defined by a file: mine, 22 bytes (--definition prints it)";
        assert!(show(&defined, &[], SystemTime::UNIX_EPOCH).contains(row));
        assert!(has_line(&text, &["alpha", "1.5", "(default)"]), "{text}");
        assert!(has_line(&text, &["seed", "3", "(drawn)"]), "{text}");
        assert!(has_line(&text, &["applied", "50", "of", "200", "(25.0", "%)"]), "{text}");
        assert!(has_line(&text, &["op", "conv5", "conv3", "conv5"]), "{text}");
        assert!(has_line(&text, &["owner", "lab"]), "{text}");
        assert!(has_line(&text, &["fixed", "depth=3"]), "{text}");
        assert!(has_line(&text, &["stop", "after", "200", "steps"]), "{text}");
        assert!(has_line(&text, &["at", "loss", "<=", "0.25"]), "{text}");
        assert!(has_line(&text, &["width", "12", "36", "64"]), "{text}");
        assert!(has_line(&text, &["(size)", "12.5", "-", "30"]), "{text}");
        assert!(has_line(&text, &["costs", "size", "<=", "20"]), "{text}");
        assert!(
            has_line(&text, &["0.0000001", "x", "size", "added", "to", "the", "loss"]),
            "{text}"
        );
        assert!(has_line(&text, &["SIZE", "LOSS", "STEP"]), "{text}");
        assert!(text.contains("(12 of 39 points; all with --output json)"), "{text}");
        for line in [["1", "1.0000", "2"], ["39", "0.0256", "78"]] {
            assert!(has_line(&text, &line), "{text}");
        }
    }

    #[test]
    fn a_warm_up_is_told_of_until_it_is_over() {
        let mut study = a_study();
        let told = |study: &Study| {
            (sentence(study, &[]), show(study, &[], SystemTime::UNIX_EPOCH).contains("warm-up"))
        };
        assert_eq!(told(&study), ("study `a` is RUNNING".into(), false));
        let algorithm = AlgorithmSettings { warmup_steps: Some(60), ..Default::default() };
        study.spec.as_mut().unwrap().algorithm = Some(algorithm);
        assert_eq!(told(&study), ("study `a` is RUNNING; warm-up: 50 of 60 steps".into(), true));
        let text = show(&study, &[], SystemTime::UNIX_EPOCH);
        assert!(has_line(&text, &["warm-up", "50", "of", "60", "steps"]), "{text}");
        study.progress.as_mut().unwrap().applied = 60;
        assert_eq!(told(&study), ("study `a` is RUNNING".into(), false));
    }

    #[test]
    fn a_waiting_study_has_its_notes_a_line_each() {
        let study = Study { state: StudyState::Waiting.into(), ..a_study() };
        let notes = ["one note".to_owned(), "another".to_owned()].map(Note::from);
        let expected =
            "study `a` is WAITING for a trainer that serves `toy`\n  one note\n  another";
        assert_eq!(sentence(&study, &notes), expected);
        let mut about = study.clone();
        about.spec.as_mut().unwrap().settings.insert("dataset".into(), "flowers".into());
        assert_eq!(
            sentence(&about, &[]),
            "study `a` is WAITING for a trainer that serves `toy` and has data set `flowers`"
        );
        let text = show(&study, &notes, SystemTime::UNIX_EPOCH);
        assert!(has_line(&text, &["notes", "one", "note"]), "{text}");
        assert!(has_line(&text, &["another"]), "{text}");
    }

    #[test]
    fn all_trainers_are_listed_with_what_keeps_them_from_work() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(3);
        let aside = |study: &str, seconds| SetAsideStudy {
            study: study.into(),
            reason: "no whole checkpoint".into(),
            retry_after: Some(prost_types::Duration { seconds, nanos: 0 }),
            ..Default::default()
        };
        let trainer = Trainer {
            trainer_id: "gpu-1".into(),
            last_seen: Some(Timestamp::default()),
            study: "cifar".into(),
            spaces: vec!["enas-micro".into(), "toy".into()],
            data_sets: vec!["cifar10".into(), "flowers".into()],
            unserved: vec![UnservedSpace {
                space: "inpaint-cat".into(),
                reason: "no photos".into(),
            }],
            set_aside: vec![aside("x", 40), aside("y", 90)],
            ..Trainer::default()
        };
        let text = all_trainers(&[trainer, Trainer::default()], now);
        let facts = "gpu-1 3 s ago cifar enas-micro, toy cifar10, flowers inpaint-cat: no photos x: no whole checkpoint; tries again in 40 s";
        assert!(has_line(&text, &facts.split(' ').collect::<Vec<_>>()), "{text}");
        let facts = "y: no whole checkpoint; tries again in 1 min 30 s";
        assert!(has_line(&text, &facts.split(' ').collect::<Vec<_>>()), "{text}");
        assert!(has_line(&text, &["-", "-", "-", "-", "-", "-"]), "{text}");
        assert!(all_trainers(&[], now).contains("no trainer has asked"));
    }

    #[test]
    fn a_failed_study_says_which_field_was_rejected() {
        let violation =
            FieldViolation { field: "settings.cells".into(), description: "is 0".into() };
        let study =
            Study { state: StudyState::Failed.into(), failure: vec![violation], ..a_study() };
        assert!(failure(&study).contains("\n  settings.cells: is 0\nCorrect them"));
        let text = show(&study, &[], SystemTime::UNIX_EPOCH);
        assert!(has_line(&text, &["settings.cells:", "is", "0"]), "{text}");
    }

    #[test]
    fn an_early_end_has_a_reason() {
        let ended = |reason: StopReason| {
            let state = StudyState::Finished.into();
            let (mode, fronts, stop_reason) = (None, Vec::new(), reason.into());
            ending(&Study { state, stop_reason, mode, fronts, ..a_study() })
        };
        let text = "study `a` is finished after 50 of 200 steps";
        assert_eq!(ended(StopReason::MaxSteps), text);
        assert_eq!(ended(StopReason::Target), format!("{text}: its target was reached"));
    }

    #[test]
    fn a_distribution_names_its_choices() {
        let op =
            marginal::Kind::Categorical(CategoricalMarginal { probabilities: vec![0.25, 0.75] });
        let width = marginal::Kind::Integer(IntegerMarginal { mean: 36.0, deviation: 0.25 });
        let marginals = [("op", op), ("width", width)]
            .map(|(name, kind)| Marginal { name: name.into(), kind: Some(kind) });
        let d = GetDistributionResponse { generation: 4, marginals: marginals.into(), delta: 1.0 };
        let text = distribution(&d, &two_variables());
        assert!(has_line(&text, &["op", "conv5:", "75.0", "%", "conv3:", "25.0", "%"]), "{text}");
        assert!(has_line(&text, &["width", "mean", "36.00", "deviation", "0.25"]), "{text}");
    }
}
