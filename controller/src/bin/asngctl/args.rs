//! The command line: commands, arguments and their help.

use std::path::PathBuf;

use asng_client::Options;
use asng_proto::v1::StudyState;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::{
    conformance::{self, ConformanceArgs},
    file::is_standard,
    spec::{CLONE_EXAMPLE, CREATE_EXAMPLES, CloneArgs, CreateArgs},
};

/// Creates, shows, watches and ends the studies of an ASNG controller.
#[derive(Debug, Parser)]
#[command(name = "asngctl", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) options: Options,
    /// How results are printed.
    #[arg(long, global = true, help_heading = "Options of every command")]
    #[arg(value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Output,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  asngctl study create cifar --space enas-micro --max-steps 39000 --wait
  asngctl study watch cifar
  asngctl study list --output json
  ASNG_CONTROLLER=gpu-box asngctl study show cifar
  asngctl trainer status --trainer gpu-box:50053
  asngctl doctor --controller https://asng.lab --tls-ca ca.pem --token-file token

Results go to standard output; errors go to standard error as text, also with --output json.

Exit status: 0 on success, 1 on an error or a FAILED study, 2 if the command line is wrong, 130 after Ctrl-C.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Text and tables for people.
    #[default]
    Table,
    /// JSON for programs, with the names of the proto and times in RFC 3339; `watch` and `history` print one object per line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create, show, watch and end studies.
    Study {
        #[command(subcommand)]
        command: StudyCommand,
    },
    /// List trainers; show the status of one, evaluate an architecture with its weights, save its weights, or end it.
    Trainer {
        /// Address of the trainer: HOST, HOST:PORT or a URL, https:// for TLS; the options of TLS and tokens go for it as well.
        #[arg(long, global = true, env = "ASNG_TRAINER", value_name = "ADDRESS")]
        #[arg(default_value = "http://127.0.0.1:50053")]
        trainer: String,
        #[command(subcommand)]
        command: TrainerCommand,
    },
    /// Diagnose the connection to each controller address: name, port, TLS, health, clock, token; print a remedy for each failure.
    #[command(after_help = "Exit status: 0 if nothing failed, 1 otherwise.")]
    Doctor,
    /// Check the health of a controller or a trainer, for a container's health check.
    #[command(after_help = "Exit status: 0 if it is SERVING, 1 otherwise.")]
    Health {
        /// Address of the controller or trainer [default: the address of the controller].
        address: Option<String>,
    },
    /// Test a trainer against a controller that misbehaves on purpose, and report the verdict on each rule.
    #[command(after_help = conformance::HELP)]
    Conformance(ConformanceArgs),
    /// Print a shell's completion script for asngctl.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

const COMPLETIONS_HELP: &str = "\
For bash: source <(asngctl completions bash), in ~/.bashrc to keep it.";

#[derive(Debug, Subcommand)]
pub(crate) enum StudyCommand {
    /// Create a study; the same name and spec again return the study that exists.
    #[command(after_help = CREATE_EXAMPLES)]
    Create(Box<CreateArgs>),
    /// Create a study from the spec of another with the changes given here; a new seed is drawn.
    #[command(after_help = CLONE_EXAMPLE)]
    Clone(Box<CloneArgs>),
    /// List studies.
    List(ListArgs),
    /// Show a study: state, spec, progress, and the architectures found.
    Show(ShowArgs),
    /// Follow a study until it ends, through restarts of the controller; then print the architectures found.
    #[command(after_help = WATCH_HELP)]
    Watch(StudyName),
    /// Stop handing out steps; reports of steps already handed out still count.
    Pause(StudyName),
    /// Hand out steps again.
    Resume(StudyName),
    /// End a study early; its results stay, and it cannot be resumed.
    Stop(EndArgs),
    /// Remove a study and its history, whatever its state.
    Delete(EndArgs),
    /// Print the distribution that architectures are sampled from now.
    Distribution(StudyName),
    /// List the trainers that have worked on a study since its controller loaded it, the most recently seen first.
    Trainers(StudyName),
    /// Print the history: every closed step with its architectures and losses.
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
    /// Write one picture of a study to a file.
    #[command(after_help = PLOT_HELP)]
    Plot(PlotArgs),
    /// Write a report of a study as one self-contained HTML file.
    #[command(after_help = REPORT_HELP)]
    Report(ReportArgs),
    /// Export a study to a file, as an archive or for import by another controller.
    #[command(after_help = EXPORT_HELP)]
    Export(ExportArgs),
    /// Create a study from a file that `export` wrote.
    Import(ImportArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainerCommand {
    /// List all trainers that the controller has seen since its start: current study, spaces, data sets, and the spaces and
    /// studies that each cannot serve, with the reason.
    List,
    /// Show the status of a trainer: study, step, last losses, last checkpoint, and what it cannot serve, with the reason.
    Status,
    /// Evaluate an architecture on test images with the trainer's current shared weights, between two steps.
    Evaluate(EvaluateArgs),
    /// Save a trainer's weights, and wait until they are on disk.
    Checkpoint,
    /// Let a trainer finish and report its step, save its weights and exit.
    Drain,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// Architecture: chosen (the current best guess), mode (the most likely one) or incumbent (the best evaluated one), read
    /// from the controller; or its values, such as 0,3,1.
    #[arg(long, default_value = "chosen", value_name = "ARCHITECTURE", value_parser = Which::parse)]
    pub(crate) architecture: Which,
    /// Number of test images [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) images: Option<u32>,
}

/// An architecture of a study.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The current best guess at the final one.
    Chosen,
    /// The most likely one.
    Mode,
    /// The one with the best loss reported.
    Incumbent,
    /// The one with these values.
    Values(Vec<i64>),
}

impl Which {
    fn parse(text: &str) -> Result<Which, &'static str> {
        match text {
            "chosen" => Ok(Which::Chosen),
            "mode" => Ok(Which::Mode),
            "incumbent" => Ok(Which::Incumbent),
            values => {
                let values = values.split(',').map(|value| value.trim().parse());
                let values: Result<_, _> = values.collect();
                values
                    .map(Which::Values)
                    .map_err(|_| "expected chosen, mode, incumbent or values such as 0,3,1")
            }
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct StudyName {
    /// Name of the study.
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// Print only the definition of the study's space: the text of the space file that the study was created with.
    #[arg(long)]
    pub(crate) definition: bool,
}

const WATCH_HELP: &str = "\
On a terminal, a full-screen view shows progress, losses, the distribution and the trainers. Arrows, Page Up and Page Down scroll \
through the variables; q or Ctrl-C leaves, and the search goes on. If the output is not a terminal, a line is printed for each \
change: progress at most every 5 s, a change of state or an outage of the controller at once. With --output json, each \
line is the study as `show` prints it, with steps_per_second, eta_seconds and outage.

Exit status: 0 if the study ended FINISHED or STOPPED, 1 if it FAILED, 130 after q or Ctrl-C.";

/// A study to end for good.
#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// Do not ask for confirmation; required without a terminal.
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only studies of this owner.
    #[arg(long, value_name = "NAME")]
    pub(crate) owner: Option<String>,
    /// Only studies with this label; repeatable.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    pub(crate) labels: Vec<(String, String)>,
    /// Only studies in this state, such as running; repeatable.
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    pub(crate) states: Vec<StudyState>,
    /// Only studies whose name contains this text, ignoring case; up to 100 characters.
    #[arg(long = "name", value_name = "TEXT")]
    pub(crate) name_contains: Option<String>,
    /// List the newest study first [default: oldest first].
    #[arg(long)]
    pub(crate) newest_first: bool,
    /// List at most N studies, and the number that match if there are more [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
}

const HISTORY_HELP: &str = "\
CSV has a line for each architecture. Architectures whose `use` is train only trained the weights; those whose `use` is rank \
have a loss, and costs if these were reported. The columns metrics and costs hold JSON objects; the last columns are the \
variables. JSON has a line for each step, with the names of the proto. A step that was closed without a report has the outcome \
UNSPECIFIED.";

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// Format [default: csv, or json with --output json].
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Print the newest step first.
    #[arg(long)]
    pub(crate) newest_first: bool,
    /// File to write, atomically; - for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Format {
    /// One line for each architecture.
    #[default]
    Csv,
    /// One line for each step.
    Json,
}

const PLOT_HELP: &str = "\
Examples:
  asngctl study plot cifar --what theta --out theta.svg
  asngctl study plot cifar --what architecture --out cells.html

Both kinds of file are self-contained and follow the viewer's light or dark mode.";

#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// Picture to draw.
    #[arg(long, value_enum)]
    pub(crate) what: What,
    /// File to write, atomically, .svg or .html; - for SVG to standard output [default: NAME-WHAT.svg].
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    pub(crate) out: Option<PathBuf>,
}

/// A picture of a study.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum What {
    /// The distribution: the probability of each choice.
    Theta,
    /// Convergence, entropy, Delta and the signal-to-noise ratio over the steps.
    Convergence,
    /// Losses of ranked architectures over the steps.
    Loss,
    /// The current best guess as a graph of cells, or as a chain of blocks.
    Architecture,
    /// Loss against each cost.
    Front,
}

/// Parses the path of a picture; its extension selects the format.
fn picture_file(path: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(path);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("svg" | "html") => Ok(path),
        _ if is_standard(&path) => Ok(path),
        _ => Err("expected a name that ends with .svg or .html, or - for standard output"),
    }
}

const REPORT_HELP: &str = "\
The file is self-contained and can be opened offline. It holds the spec, progress, pictures, trainers, the latest reports, and \
the architectures found.";

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// File to write, atomically; - for standard output [default: NAME.html].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

const EXPORT_HELP: &str = "\
A study that is WAITING or RUNNING is not exported, since the original and the copy would both continue: pause it first, or pass \
--fork.";

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// File to write, atomically; - for standard output [default: NAME.asng].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Make the copy a study with its own id, so that the original may continue.
    #[arg(long)]
    pub(crate) fork: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// File that `export` wrote; - for standard input.
    pub(crate) file: PathBuf,
    /// Name of the imported study [default: its name when it was exported].
    #[arg(long)]
    pub(crate) name: Option<String>,
}

/// Parses a state as in the contract, without its prefix and whatever its case.
fn state(text: &str) -> Result<StudyState, String> {
    let state = StudyState::from_str_name(&format!("STUDY_STATE_{}", text.to_uppercase()));
    state
        .filter(|state| *state != StudyState::Unspecified)
        .ok_or_else(|| "expected waiting, running, paused, finished, stopped or failed".to_owned())
}

/// Parses `key=value`; the value may be empty and may hold further `=`.
pub(crate) fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("expected KEY=VALUE"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use clap::CommandFactory;

    use super::*;

    pub(crate) fn parse(arguments: &[&str]) -> Result<StudyCommand, clap::Error> {
        let line = ["asngctl", "study"].iter().chain(arguments);
        let Command::Study { command } = Cli::try_parse_from(line)?.command else {
            unreachable!("study was parsed")
        };
        Ok(command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_pair_is_split_at_its_first_equals_sign() {
        assert_eq!(pair("cells=8"), Ok(("cells".into(), "8".into())));
        assert_eq!(pair("url=a=b"), Ok(("url".into(), "a=b".into())));
        assert_eq!(pair("note="), Ok(("note".into(), String::new())));
        assert!(pair("cells").is_err());
        assert!(pair("=8").is_err());
    }

    #[test]
    fn a_picture_is_svg_or_html() {
        assert_eq!(picture_file("a/b.svg"), Ok("a/b.svg".into()));
        assert!(picture_file("b.html").is_ok() && picture_file("-").is_ok());
        assert!(picture_file("b.png").is_err() && picture_file("svg").is_err());
    }

    #[test]
    fn a_state_has_any_case_and_is_one_that_studies_have() {
        assert_eq!(state("running"), Ok(StudyState::Running));
        assert_eq!(state("FAILED"), Ok(StudyState::Failed));
        assert!(state("unspecified").is_err() && state("STUDY_STATE_FAILED").is_err());
    }

    #[test]
    fn an_architecture_is_named_or_given_by_its_values() {
        assert_eq!(Which::parse("incumbent"), Ok(Which::Incumbent));
        assert_eq!(Which::parse("0, 3,-1"), Ok(Which::Values(vec![0, 3, -1])));
        assert!(Which::parse("best").is_err() && Which::parse("").is_err());
    }
}
