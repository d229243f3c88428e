//! What can be typed, and the study spec that it means. Ranges are stated here for people and checked by the
//! controller, which says what is wrong with which field.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::ensure;
use asng_proto::v1::{Algorithm, AlgorithmSettings, StopRules, StudySpec};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tonic::transport::Endpoint;

use crate::{client, variables};

/// Defaults of the contract, for the fields a spec leaves out.
pub(crate) const DEFAULTS: AlgorithmSettings = AlgorithmSettings {
    algorithm: Algorithm::Asng as i32,
    alpha: Some(1.5),
    delta_init: Some(1.0),
    delta_max: None,
    lambda_x: Some(2),
    lambda_theta: Some(2),
    steps_per_update: Some(1),
    max_staleness: Some(64),
    seed: None,
};

/// Default of the contract for a lease that a spec leaves out.
pub(crate) const DEFAULT_LEASE: prost_types::Duration =
    prost_types::Duration { seconds: 60, nanos: 0 };

/// Creates, shows, watches and ends the studies of an ASNG controller.
#[derive(Debug, Parser)]
#[command(name = "asngctl", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// The controller to talk to.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    #[arg(env = "ASNG_CONTROLLER", value_name = "URL")]
    #[arg(default_value = "http://127.0.0.1:50051", value_parser = client::endpoint)]
    pub(crate) controller: Endpoint,
    /// How results are printed.
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    #[arg(value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EVERYWHERE: &str = "Options of every command";

const EXAMPLES: &str = "\
Examples:
  asngctl study create cifar --space enas-micro --max-steps 39000 --wait
  asngctl study watch cifar
  asngctl study list --output json
  ASNG_CONTROLLER=http://gpu-box:50051 asngctl study show cifar

Exit status: 0 when all went well, 1 on an error or a FAILED study, 2 when the command line is wrong, 130 after Ctrl-C.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: names as in the contract, times in RFC 3339.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Studies: what is searched, how far it has come, what it has found.
    Study {
        #[command(subcommand)]
        command: StudyCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StudyCommand {
    /// Create a study; the same name and spec again return the study that exists.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List all studies, oldest first.
    List,
    /// Show all of a study: state, spec, progress, mode and incumbent.
    Show(StudyName),
    /// Follow a study until it ends, through restarts of the controller; then print its mode.
    #[command(after_help = WATCH_HELP)]
    Watch(StudyName),
    /// Stop handing out steps; reports of steps already handed out still count.
    Pause(StudyName),
    /// Hand out steps again.
    Resume(StudyName),
    /// End a study early and for good; its results stay.
    Stop(StudyName),
    /// Remove a study and its history, whatever its state.
    Delete(DeleteArgs),
    /// Print the distribution that architectures are sampled from now.
    Distribution(StudyName),
}

#[derive(Debug, Args)]
pub(crate) struct StudyName {
    /// Name of the study.
    pub(crate) name: String,
}

const CREATE_EXAMPLES: &str = r#"Examples:
  A space that trainers know, under settings of its own:
    asngctl study create cifar --space enas-micro --set cells=8 --max-steps 39000 --wait
  Variables of an external trainer:
    asngctl study create mine --variables variables.json --max-steps 10000
  where variables.json holds them in order:
    [{"name": "op", "choices": ["conv3", "conv5"]}, {"name": "width", "low": 8, "high": 64}]"#;

const WATCH_HELP: &str = "\
On a terminal this is one live line. Elsewhere a line is printed when something has changed: progress \
at most every 5 s, another state or an outage of the controller at once. With --output json each \
line is the study as `show` prints it, with steps_per_second, eta_seconds and outage.

Exit status: 0 when the study ended FINISHED or STOPPED, 1 when it FAILED, 130 after Ctrl-C.";

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// Do not ask; required without a terminal.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name: 1 to 100 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or digit.
    pub(crate) name: String,
    /// Name of a space that trainers know, such as enas-micro; may be left out with --variables.
    #[arg(long, required_unless_present = "variables")]
    space: Option<String>,
    /// Setting of the space and its training, understood by the trainer; repeatable, up to 100.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// JSON array of variables, 1 to 4096; left out: a trainer that serves the space describes them.
    #[arg(long, value_name = "FILE")]
    variables: Option<PathBuf>,
    /// Reports after which the study is finished, 1 to 10^12; schedules of trainers follow it.
    #[arg(long, value_name = "N")]
    max_steps: u64,
    /// How the distribution moves: asng, or as baselines sng (constant step) and random [default: asng].
    #[arg(long, value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// Threshold of the signal-to-noise ratio of updates, no unit, above 0 [default: 1.5].
    #[arg(long, value_name = "X")]
    alpha: Option<f64>,
    /// Initial trust region (the paper's delta^0), no unit, above 0 [default: 1].
    #[arg(long, value_name = "X")]
    delta_init: Option<f64>,
    /// Upper bound of the paper's Delta, no unit, above 0 [default: none].
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
    /// Generations a report may be late and still count, 0 to 1000000; 0 is sequential [default: 64].
    #[arg(long, value_name = "N")]
    max_staleness: Option<u32>,
    /// Seed of everything the study draws, 0 to 2^64 - 1 [default: drawn by the controller].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long a trainer may keep a step without a sign of life, such as 90s, 1s to 24h [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    lease: Option<Duration>,
    /// Wait until a trainer has described the space, or rejected the settings (exit status 1).
    #[arg(long)]
    pub(crate) wait: bool,
}

impl CreateArgs {
    /// The spec that was typed. Reads the variables file.
    pub(crate) fn into_spec(self) -> anyhow::Result<StudySpec> {
        let mut settings = BTreeMap::new();
        for (key, value) in self.settings {
            ensure!(settings.insert(key.clone(), value).is_none(), "--set {key} is given twice");
        }
        let variables = self.variables.as_deref().map(variables::read).transpose()?;
        let algorithm = AlgorithmSettings {
            algorithm: self.algorithm.unwrap_or_default().into(),
            alpha: self.alpha,
            delta_init: self.delta_init,
            delta_max: self.delta_max,
            lambda_x: self.lambda_x,
            lambda_theta: self.lambda_theta,
            steps_per_update: self.steps_per_update,
            max_staleness: self.max_staleness,
            seed: self.seed,
        };
        Ok(StudySpec {
            space: self.space.unwrap_or_default(),
            settings,
            variables: variables.unwrap_or_default(),
            algorithm: Some(algorithm),
            stop: Some(StopRules { max_steps: self.max_steps, ..Default::default() }),
            lease: self.lease.map(prost_types::Duration::try_from).transpose()?,
            ..Default::default()
        })
    }
}

/// Parses `key=value`; the value may be empty and may hold further `=`.
fn setting(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE"),
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
    use clap::CommandFactory;

    use super::*;

    fn create(arguments: &[&str]) -> anyhow::Result<StudySpec> {
        let line = ["asngctl", "study", "create", "a", "--max-steps", "9"].iter().chain(arguments);
        let Command::Study { command } = Cli::try_parse_from(line)?.command;
        let StudyCommand::Create(args) = command else { unreachable!("create was parsed") };
        args.into_spec()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_setting_is_split_at_its_first_equals_sign() {
        assert_eq!(setting("cells=8"), Ok(("cells".into(), "8".into())));
        assert_eq!(setting("url=a=b"), Ok(("url".into(), "a=b".into())));
        assert_eq!(setting("note="), Ok(("note".into(), String::new())));
        assert!(setting("cells").is_err());
        assert!(setting("=8").is_err());
    }

    #[test]
    fn what_is_not_typed_is_not_submitted() {
        let spec = create(&["--space", "toy"]).unwrap();
        assert_eq!(spec.algorithm, Some(AlgorithmSettings::default()));
        assert_eq!((spec.lease, spec.variables.len()), (None, 0));
    }

    #[test]
    fn what_is_typed_is_submitted() {
        let flags = ["--space=toy", "--set=k=1", "--algorithm=sng", "--alpha=2", "--lease=2m 1s"];
        let spec = create(&flags).unwrap();
        let algorithm = spec.algorithm.unwrap();
        assert_eq!((algorithm.algorithm(), algorithm.alpha), (Algorithm::Sng, Some(2.0)));
        assert_eq!(spec.lease.unwrap().seconds, 121);
        assert_eq!(spec.settings["k"], "1");
    }

    #[test]
    fn a_setting_given_twice_and_a_missing_space_are_errors() {
        assert!(create(&["--space=toy", "--set=k=1", "--set=k=2"]).is_err());
        assert!(create(&[]).is_err());
    }
}
