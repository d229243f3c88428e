//! The study spec that a command line means. Ranges are stated here for people and checked by the controller, which
//! says what is wrong with which field.

use std::{collections::BTreeMap, mem, path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use asng_client::preset;
use asng_proto::v1::{
    Algorithm, CostRule, Direction, Distribution, Retention, Start, StudySpec, Target,
    retention::Keep, start::From,
};
use clap::Args;

use crate::{args::pair, file::is_standard, space, start, variables};

pub(crate) const CREATE_EXAMPLES: &str = r#"Examples:
  The paper's search, a small one, and one with settings of your own, in a space of the project's trainer:
    asngctl study create cifar --space enas-micro --preset paper
    asngctl study create small --space enas-micro --preset quick --wait
    asngctl study create own --space enas-micro --set cells=12 --max-steps 50000
  A space of your own, defined by a file, on your own images:
    asngctl study create mine --space-file my.toml --set dataset=flowers --preset quick
  At most 100,000 parameters, and a preference for smaller networks:
    asngctl study create light --space enas-micro --preset paper --limit parameters=100000 --penalty parameters=1e-7
  Variables of an external trainer:
    asngctl study create mine --variables variables.json --max-steps 10000
  where variables.json holds them in order:
    [{"name": "op", "choices": ["conv3", "conv5"]}, {"name": "width", "low": 8, "high": 64}]"#;

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name: 1 to 100 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or digit.
    pub(crate) name: String,
    /// Name of a space that trainers serve, such as enas-micro; optional with --variables.
    #[arg(long, required_unless_present_any = ["variables", "space_file"])]
    space: Option<String>,
    /// TOML file that defines the space, of the family cells or chain, up to 65536 bytes; - for standard input. It is stored with
    /// the study, so that trainers need no copy of it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["space", "variables"])]
    space_file: Option<PathBuf>,
    /// JSON array of 1 to 4096 variables, - for standard input [default: a trainer that serves the space describes them].
    #[arg(long, value_name = "FILE")]
    variables: Option<PathBuf>,
    /// Preset of the project's trainer: paper, small (tens of minutes to hours on two cores) or quick (minutes). Sets the
    /// setting preset, and defaults for --max-steps, --warmup-steps and --delta-init.
    #[arg(long, value_parser = ["paper", "small", "quick"], conflicts_with = "variables")]
    preset: Option<String>,
    /// Number of reports after which the study is finished, 1 to 10^12; learning-rate schedules follow it [default: the preset's].
    #[arg(long, value_name = "N", required_unless_present = "preset")]
    max_steps: Option<u64>,
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    pub(crate) creation: CreationArgs,
}

pub(crate) const CLONE_EXAMPLE: &str = "\
Example: the same search with another setting
  asngctl study clone cifar cifar-12 --set cells=12";

#[derive(Debug, Args)]
pub(crate) struct CloneArgs {
    /// Name of the study whose spec is taken.
    pub(crate) source: String,
    /// Name of the new study.
    pub(crate) name: String,
    /// Number of reports after which the study is finished, 1 to 10^12; learning-rate schedules follow it.
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    #[command(flatten)]
    spec: SpecArgs,
    #[command(flatten)]
    pub(crate) creation: CreationArgs,
}

/// Options of `create` and `clone` alike.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct CreationArgs {
    /// Replace the study of this name if it is FAILED; it is deleted first, with its history.
    #[arg(long)]
    pub(crate) replace: bool,
    /// Wait until a trainer has described the space or rejected the settings (exit status 1), and print what the study waits
    /// for.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Options of a spec, new or cloned.
#[derive(Debug, Args)]
struct SpecArgs {
    /// Direction of the search: minimize the reported values, such as losses, or maximize them, such as accuracies. The
    /// project's trainer supports only minimize [default: minimize].
    #[arg(long, value_parser = direction)]
    direction: Option<Direction>,
    /// Setting of the space or the training, interpreted by the trainer; repeatable, up to 100.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,
    /// Fix a variable to one value, the name of a choice or an integer; repeatable.
    #[arg(long = "fix", value_name = "NAME=VALUE", value_parser = pair)]
    fixed: Vec<(String, String)>,
    /// Finish after this time since the variables became known, such as 12h; 1s to 10 years. Pauses count; time without a
    /// running controller does not.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_duration: Option<Duration>,
    /// Finish when the convergence of the distribution reaches X, above 0 and up to 1.
    #[arg(long, value_name = "X")]
    converged_at: Option<f64>,
    /// Finish when a report has a metric that meets the target; "loss" is the best loss of the report.
    #[arg(long, value_name = "METRIC<=X | METRIC>=X", value_parser = target)]
    target: Option<Target>,
    /// Largest allowed cost, by its name in reports; the project's trainer reports parameters and macs; repeatable.
    #[arg(long = "limit", value_name = "COST=MAX", value_parser = cost)]
    limits: Vec<(String, f64)>,
    /// Amount that each unit of a cost adds to the loss, or subtracts from a value that is maximized; repeatable.
    #[arg(long = "penalty", value_name = "COST=WEIGHT", value_parser = cost)]
    penalties: Vec<(String, f64)>,
    /// Start from the current distribution of this study.
    #[arg(long, value_name = "STUDY", conflicts_with = "start_distribution")]
    start_from: Option<String>,
    /// Start from a distribution in JSON, as `study distribution --output json` prints it; - for standard input.
    #[arg(long, value_name = "FILE")]
    start_distribution: Option<PathBuf>,
    /// Algorithm that updates the distribution: asng, or as baselines sng (constant step size) and random [default: asng].
    #[arg(long, value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// Threshold of the signal-to-noise ratio of updates, above 0 [default: 1.5].
    #[arg(long, value_name = "X")]
    alpha: Option<f64>,
    /// Initial trust region (the paper's delta^0), above 0 [default: 1].
    #[arg(long, value_name = "X")]
    delta_init: Option<f64>,
    /// Upper bound of the paper's Delta, above 0 [default: none].
    #[arg(long, value_name = "X")]
    delta_max: Option<f64>,
    /// Architectures per step to train weights on, 0 to 1024; 0 when there are no weights [default: 2].
    #[arg(long, value_name = "N")]
    lambda_x: Option<u32>,
    /// Architectures per step to be ranked, 2 to 1024 [default: 2].
    #[arg(long, value_name = "N")]
    lambda_theta: Option<u32>,
    /// Steps gathered into one update of the distribution, 1 to 1024 [default: 1].
    #[arg(long, value_name = "N")]
    steps_per_update: Option<u32>,
    /// Largest staleness, in generations, at which a report still counts, 0 to 1000000; 0 makes the search sequential [default: 64].
    #[arg(long, value_name = "N")]
    max_staleness: Option<u32>,
    /// Steps that only train the weights, before the distribution is updated: 0 to the number of steps [default: 0].
    #[arg(long, value_name = "N")]
    warmup_steps: Option<u64>,
    /// Seed of all random draws of the study, 0 to 2^64 - 1 [default: drawn by the controller].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Time a trainer may hold a step without extending its lease, such as 90s; 1s to 24h [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// Label for people and access rules; repeatable, up to 50.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Owner of the study [default: the name of the token in use].
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Keep only steps whose number is divisible by K in the history [default: all].
    #[arg(long, value_name = "K", conflicts_with = "keep_last")]
    keep_every: Option<u64>,
    /// Keep only about the newest N steps in the history [default: all].
    #[arg(long, value_name = "N")]
    keep_last: Option<u64>,
}

impl CreateArgs {
    /// The spec that was typed. Reads the files.
    pub(crate) fn into_spec(self) -> anyhow::Result<StudySpec> {
        let files = [&self.variables, &self.space_file, &self.spec.start_distribution];
        ensure!(
            files.iter().filter(|file| file.as_deref().is_some_and(is_standard)).count() < 2,
            "--variables, --space-file and --start-distribution cannot both be read from standard input: give a file for one of them"
        );
        let variables = self.variables.as_deref().map(variables::read).transpose()?;
        let mut spec = StudySpec {
            space: self.space.unwrap_or_default(),
            variables: variables.unwrap_or_default(),
            ..Default::default()
        };
        if let Some(file) = &self.space_file {
            (spec.space, spec.space_definition) = space::read(file)?;
        }
        let preset = self.preset.as_deref().and_then(|name| preset(&spec.space, name));
        let max_steps = self.max_steps.or(preset.map(|preset| preset.max_steps));
        let max_steps = max_steps.with_context(|| {
            format!(
                "space {:?} has no presets with a number of steps: give --max-steps",
                spec.space
            )
        })?;
        spec.stop.get_or_insert_default().max_steps = max_steps;
        if let Some(preset) = preset {
            let algorithm = spec.algorithm.get_or_insert_default();
            algorithm.delta_init = preset.delta_init;
            algorithm.warmup_steps = preset.warmup_steps(max_steps);
        }
        spec.settings.extend(self.preset.map(|preset| ("preset".into(), preset)));
        self.spec.change(&mut spec)?;
        Ok(spec)
    }
}

impl CloneArgs {
    /// The spec of the source, changed as was typed. Reads the files.
    pub(crate) fn into_spec(self, mut spec: StudySpec) -> anyhow::Result<StudySpec> {
        let stop = spec.stop.get_or_insert_default();
        stop.max_steps = self.max_steps.unwrap_or(stop.max_steps);
        self.spec.change(&mut spec)?;
        Ok(spec)
    }
}

impl SpecArgs {
    fn change(self, spec: &mut StudySpec) -> anyhow::Result<()> {
        insert(&mut spec.settings, self.settings, "--set")?;
        if let Some(name) = spec.settings.get("dataset") {
            let allowed =
                |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
            ensure!(
                (1..=64).contains(&name.len()) && name.bytes().all(allowed),
                "--set dataset={name}: the name of a data set has 1 to 64 of the characters a-z, 0-9, dot, underscore and hyphen"
            );
        }
        spec.direction = self.direction.map_or(spec.direction, Into::into);
        insert(&mut spec.fixed, self.fixed, "--fix")?;
        insert(&mut spec.labels, self.labels, "--label")?;
        for (cost, limit) in self.limits {
            rule(&mut spec.costs, cost).limit = Some(limit);
        }
        for (cost, weight) in self.penalties {
            rule(&mut spec.costs, cost).weight = Some(weight);
        }

        let algorithm = spec.algorithm.get_or_insert_default();
        algorithm.algorithm = self.algorithm.map_or(algorithm.algorithm, Into::into);
        algorithm.alpha = self.alpha.or(algorithm.alpha);
        algorithm.delta_init = self.delta_init.or(algorithm.delta_init);
        algorithm.delta_max = self.delta_max.or(algorithm.delta_max);
        algorithm.lambda_x = self.lambda_x.or(algorithm.lambda_x);
        algorithm.lambda_theta = self.lambda_theta.or(algorithm.lambda_theta);
        algorithm.steps_per_update = self.steps_per_update.or(algorithm.steps_per_update);
        algorithm.max_staleness = self.max_staleness.or(algorithm.max_staleness);
        algorithm.warmup_steps = self.warmup_steps.or(algorithm.warmup_steps);
        // A clone with the seed of its source would repeat it.
        algorithm.seed = self.seed;

        let stop = spec.stop.get_or_insert_default();
        let max_duration = self.max_duration.map(prost_types::Duration::try_from).transpose()?;
        stop.max_duration = max_duration.or(stop.max_duration);
        stop.convergence = self.converged_at.or(stop.convergence);
        stop.target = self.target.or(stop.target.take());

        let lease = self.lease.map(prost_types::Duration::try_from).transpose()?;
        spec.lease = lease.or(spec.lease);
        spec.owner = self.owner.unwrap_or(mem::take(&mut spec.owner));
        let keep = self.keep_every.map(Keep::Every).or(self.keep_last.map(Keep::Last));
        if let Some(keep) = keep {
            spec.retention = Some(Retention { keep: Some(keep) });
        }
        let marginals = self.start_distribution.as_deref().map(start::read).transpose()?;
        let distribution = |marginals| From::Distribution(Distribution { marginals });
        if let Some(from) = self.start_from.map(From::Study).or(marginals.map(distribution)) {
            spec.start = Some(Start { from: Some(from) });
        }
        Ok(())
    }
}

/// The rule about a cost, a new one if there is none.
fn rule(rules: &mut Vec<CostRule>, cost: String) -> &mut CostRule {
    let place = rules.iter().position(|rule| rule.cost == cost).unwrap_or_else(|| {
        rules.push(CostRule { cost, ..CostRule::default() });
        rules.len() - 1
    });
    &mut rules[place]
}

fn insert(
    map: &mut BTreeMap<String, String>,
    pairs: Vec<(String, String)>,
    flag: &str,
) -> anyhow::Result<()> {
    let mut typed = BTreeMap::new();
    for (key, value) in pairs {
        ensure!(typed.insert(key.clone(), value).is_none(), "{flag} {key} is given twice");
    }
    map.extend(typed);
    Ok(())
}

/// Parses `cost=x`.
fn cost(text: &str) -> Result<(String, f64), &'static str> {
    let (cost, figure) = pair(text)?;
    Ok((cost, figure.trim().parse().map_err(|_| "the value after = must be a number")?))
}

/// Parses `metric<=x` or `metric>=x`.
fn target(text: &str) -> Result<Target, &'static str> {
    let (metric, value, at_least) = text
        .split_once("<=")
        .map(|(metric, value)| (metric, value, false))
        .or_else(|| text.split_once(">=").map(|(metric, value)| (metric, value, true)))
        .ok_or("expected METRIC<=X or METRIC>=X, in quotes")?;
    let value = value.trim().parse().map_err(|_| "X must be a number")?;
    Ok(Target { metric: metric.trim().into(), value, at_least })
}

fn direction(name: &str) -> Result<Direction, &'static str> {
    match name {
        "minimize" => Ok(Direction::Minimize),
        "maximize" => Ok(Direction::Maximize),
        _ => Err("expected minimize or maximize"),
    }
}

fn algorithm(name: &str) -> Result<Algorithm, &'static str> {
    match name {
        "asng" => Ok(Algorithm::Asng),
        "sng" => Ok(Algorithm::Sng),
        "random" => Ok(Algorithm::Random),
        _ => Err("expected asng, sng or random"),
    }
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{AlgorithmSettings, StopRules};

    use super::*;
    use crate::args::{StudyCommand, tests::parse};

    fn create(arguments: &[&str]) -> anyhow::Result<StudySpec> {
        let command = parse(&[&["create", "a", "--max-steps", "9"], arguments].concat())?;
        let StudyCommand::Create(args) = command else { unreachable!("create was parsed") };
        args.into_spec()
    }

    fn clone(spec: StudySpec, arguments: &[&str]) -> anyhow::Result<StudySpec> {
        let command = parse(&[&["clone", "a", "b"], arguments].concat())?;
        let StudyCommand::Clone(args) = command else { unreachable!("clone was parsed") };
        args.into_spec(spec)
    }

    #[test]
    fn a_target_is_reached_from_above_or_below() {
        let expected =
            |metric: &str, value, at_least| Target { metric: metric.into(), value, at_least };
        assert_eq!(target("loss<=0.5"), Ok(expected("loss", 0.5, false)));
        assert_eq!(target("accuracy >= 9e-1"), Ok(expected("accuracy", 0.9, true)));
        for text in ["loss", "loss=1", "loss<1", "loss<=", "loss<=x"] {
            assert!(target(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_cost_has_one_rule_which_a_clone_may_change() {
        let flags = ["--space=toy", "--penalty=time=0.5", "--limit=size=1e5", "--limit=time=3"];
        let rule = |cost: &str, weight, limit| CostRule { cost: cost.into(), weight, limit };
        let spec = create(&flags).unwrap();
        let time = rule("time", Some(0.5), Some(3.0));
        assert_eq!(spec.costs, [rule("size", None, Some(1e5)), time.clone()]);
        let cloned = clone(spec, &["--limit=size=2"]).unwrap();
        assert_eq!(cloned.costs, [rule("size", None, Some(2.0)), time]);
        assert!(create(&["--space=toy", "--limit=size"]).is_err());
        assert!(create(&["--space=toy", "--limit=size=big"]).is_err());
    }

    #[test]
    fn what_is_not_typed_is_not_submitted() {
        let spec = create(&["--space", "toy"]).unwrap();
        let stop = Some(StopRules { max_steps: 9, ..Default::default() });
        let algorithm = Some(AlgorithmSettings::default());
        let expected = StudySpec { space: "toy".into(), stop, algorithm, ..Default::default() };
        assert_eq!(spec, expected);
    }

    #[test]
    fn what_is_typed_is_submitted() {
        let flags = ["--space=toy", "--set=k=1", "--algorithm=sng", "--alpha=2", "--lease=2m 1s"];
        let spec = create(&flags).unwrap();
        let algorithm = spec.algorithm.unwrap();
        assert_eq!((algorithm.algorithm(), algorithm.alpha), (Algorithm::Sng, Some(2.0)));
        assert_eq!(spec.lease.unwrap().seconds, 121);
        assert_eq!(spec.settings["k"], "1");

        let flags =
            ["--max-duration=1h", "--converged-at=0.9", "--target=loss<=0", "--fix=op=conv3"];
        let more = ["--space=toy", "--label=team=vision", "--owner=lab", "--keep-last=5"];
        let spec = create(&[&flags[..], &more, &["--start-from=b"]].concat()).unwrap();
        let stop = spec.stop.unwrap();
        assert_eq!((stop.max_duration.unwrap().seconds, stop.convergence), (3600, Some(0.9)));
        assert_eq!(stop.target.unwrap().metric, "loss");
        assert_eq!(
            (&*spec.fixed["op"], &*spec.labels["team"], &*spec.owner),
            ("conv3", "vision", "lab")
        );
        assert_eq!(spec.retention.unwrap().keep, Some(Keep::Last(5)));
        assert_eq!(spec.start.unwrap().from, Some(From::Study("b".into())));
    }

    #[test]
    fn a_preset_brings_its_steps_their_size_and_a_warm_up() {
        let create = |flags: &[&str]| {
            let command = parse(&[&["create", "a"], flags].concat())?;
            let StudyCommand::Create(args) = command else { unreachable!("create was parsed") };
            args.into_spec()
        };
        let paper = create(&["--space=enas-micro", "--preset=paper"]).unwrap();
        assert_eq!((paper.stop.unwrap().max_steps, &*paper.settings["preset"]), (39_000, "paper"));
        let quick = create(&["--space=toy", "--preset=quick", "--set=seed=1"]).unwrap();
        assert_eq!((quick.stop.unwrap().max_steps, quick.settings.len()), (10_000, 2));
        let short = create(&["--space=toy", "--preset=quick", "--max-steps=9"]).unwrap();
        assert_eq!(short.stop.unwrap().max_steps, 9);
        assert!(create(&["--space=mine", "--preset=quick"]).is_err());
        let start = |flags: &[&str]| {
            let algorithm = create(&[&["--space=darts"], flags].concat()).unwrap().algorithm;
            algorithm.map(|algorithm| (algorithm.warmup_steps, algorithm.delta_init)).unwrap()
        };
        assert_eq!(start(&["--preset=paper"]), (None, None));
        assert_eq!(start(&["--preset=small"]), (Some(6_667), None));
        assert_eq!(start(&["--preset=quick"]), (Some(1_333), None));
        assert_eq!(start(&["--preset=quick", "--max-steps=9"]), (Some(6), None));
        let own = ["--preset=quick", "--warmup-steps=7", "--delta-init=0.5"];
        assert_eq!(start(&own), (Some(7), Some(0.5)));
        assert_eq!(start(&["--max-steps=9"]), (None, None));
        let size = |flags: &[&str]| create(flags).unwrap().algorithm.unwrap().delta_init;
        assert_eq!(size(&["--space=inpaint-cat", "--preset=quick"]), Some(0.2));
        assert_eq!(size(&["--space=inpaint-cat", "--preset=quick", "--delta-init=1"]), Some(1.0));
        assert_eq!(size(&["--space=inpaint-cat", "--preset=paper"]), None);
    }

    #[test]
    fn a_space_file_brings_its_family_its_text_and_the_steps_of_presets() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let text = "[chain]\n";
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let command = parse(&["create", "a", "--space-file", path, "--preset=paper"]).unwrap();
        let StudyCommand::Create(args) = command else { unreachable!("create was parsed") };
        let spec = args.into_spec().unwrap();
        assert_eq!((&*spec.space, &*spec.space_definition), ("chain", text));
        assert_eq!(spec.stop.clone().unwrap().max_steps, 39_000);
        assert_eq!(clone(spec, &[]).unwrap().space_definition, text);
    }

    #[test]
    fn a_clone_has_the_spec_of_its_source_but_for_what_is_typed() {
        let flags = ["--space=toy", "--set=k=1", "--set=l=2", "--alpha=2", "--label=a=b"];
        let more = ["--seed=7", "--lease=9s", "--owner=lab", "--keep-every=3", "--converged-at=1"];
        let source = create(&[flags, more].concat()).unwrap();
        let mut expected = source.clone();
        expected.algorithm.as_mut().unwrap().seed = None;
        assert_eq!(clone(source.clone(), &[]).unwrap(), expected);

        let mut maximizes = source.clone();
        maximizes.direction = Direction::Maximize.into();
        assert_eq!(clone(maximizes.clone(), &[]).unwrap().direction(), Direction::Maximize);
        assert_eq!(
            clone(maximizes, &["--direction=minimize"]).unwrap().direction(),
            Direction::Minimize
        );
        assert!(clone(source.clone(), &["--direction=up"]).is_err());

        let changed = clone(source, &["--set=k=3", "--max-steps=8", "--seed=1"]).unwrap();
        expected.settings.insert("k".into(), "3".into());
        expected.stop.as_mut().unwrap().max_steps = 8;
        expected.algorithm.as_mut().unwrap().seed = Some(1);
        assert_eq!(changed, expected);
    }

    #[test]
    fn what_contradicts_itself_is_an_error() {
        for flags in [
            &[][..],
            &["--space=toy", "--set=k=1", "--set=k=2"],
            &["--space=toy", "--keep-every=1", "--keep-last=1"],
            &["--space=toy", "--start-from=a", "--start-distribution=f"],
            &["--space=toy", "--space-file=my.toml"],
            &["--variables=-", "--space-file=my.toml"],
            &["--space-file=-", "--start-distribution=-"],
        ] {
            assert!(create(flags).is_err(), "{flags:?}");
        }
    }
}
