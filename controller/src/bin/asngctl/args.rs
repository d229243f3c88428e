//! What can be typed.

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

Exit status: 0 when all went well, 1 on an error or a FAILED study, 2 when the command line is wrong, 130 after Ctrl-C.";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: JSON, names as in the contract, times in RFC 3339. `watch` and `history` print an object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Studies: what is searched, how far it has come, what it has found.
    Study {
        #[command(subcommand)]
        command: StudyCommand,
    },
    /// Trainers: which ones the controller knows; what one does, how good an architecture is with its weights, saving and
    /// ending it.
    Trainer {
        /// Address of the trainer: HOST, HOST:PORT or a URL, https:// for TLS; the options of TLS and tokens go for it as well.
        #[arg(long, global = true, env = "ASNG_TRAINER", value_name = "ADDRESS")]
        #[arg(default_value = "http://127.0.0.1:50053")]
        trainer: String,
        #[command(subcommand)]
        command: TrainerCommand,
    },
    /// Check each controller address, one thing after the other, and say what to do about what fails.
    #[command(after_help = "Exit status: 0 when nothing failed, 1 otherwise.")]
    Doctor,
    /// Ask a controller, or a trainer, whether it is well: for the health check of a container.
    #[command(after_help = "Exit status: 0 when it is SERVING, 1 otherwise.")]
    Health {
        /// Address of what is asked [default: that of the controller].
        address: Option<String>,
    },
    /// Try a trainer on a controller that misbehaves on purpose, and say rule by rule what it did.
    #[command(after_help = conformance::HELP)]
    Conformance(ConformanceArgs),
    /// Print a script that makes a shell complete asngctl's command lines.
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
    /// Create a study with the spec of another, but for what is given here; its seed is drawn anew.
    #[command(after_help = CLONE_EXAMPLE)]
    Clone(Box<CloneArgs>),
    /// List studies.
    List(ListArgs),
    /// Show all of a study: state, spec, progress, mode and incumbent.
    Show(ShowArgs),
    /// Follow a study until it ends, through restarts of the controller; then print what it has found.
    #[command(after_help = WATCH_HELP)]
    Watch(StudyName),
    /// Stop handing out steps; reports of steps already handed out still count.
    Pause(StudyName),
    /// Hand out steps again.
    Resume(StudyName),
    /// End a study early and for good; its results stay.
    Stop(EndArgs),
    /// Remove a study and its history, whatever its state.
    Delete(EndArgs),
    /// Print the distribution that architectures are sampled from now.
    Distribution(StudyName),
    /// List the trainers that have worked on a study since its controller took it up, the latest heard of first.
    Trainers(StudyName),
    /// Print the history: every step of the past with its architectures and losses.
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
    /// Draw one picture of a study into a file.
    #[command(after_help = PLOT_HELP)]
    Plot(PlotArgs),
    /// Write what there is to see of a study into one HTML file, to be mailed or kept.
    #[command(after_help = REPORT_HELP)]
    Report(ReportArgs),
    /// Write all of a study to a file, to be kept or to be imported elsewhere.
    #[command(after_help = EXPORT_HELP)]
    Export(ExportArgs),
    /// Create a study from a file that `export` wrote.
    Import(ImportArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainerCommand {
    /// List all trainers that the controller has heard of since its start: what each works on, what it serves, which data sets
    /// it has, which spaces it cannot serve and which studies it has set aside, and why.
    List,
    /// Show what a trainer does: study, step, last losses, last checkpoint, what it cannot work on and why.
    Status,
    /// Measure an architecture on test images with the weights that the trainer has now, between two steps.
    Evaluate(EvaluateArgs),
    /// Have a trainer save its weights, and wait until they are on the disk.
    Checkpoint,
    /// Have a trainer finish and report its step, save its weights and end.
    Drain,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    /// The architecture: chosen (the final one as things stand), mode or incumbent, for which the controller is asked, or
    /// its values, such as 0,3,1.
    #[arg(long, default_value = "chosen", value_name = "ARCHITECTURE", value_parser = Which::parse)]
    pub(crate) architecture: Which,
    /// How many test images, the first ones; for cells in steps of 250 [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) images: Option<u32>,
}

/// Which architecture is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// The final one, as things stand.
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
    /// Print only the definition of the study's space, the text of the file that it was created with.
    #[arg(long)]
    pub(crate) definition: bool,
}

const WATCH_HELP: &str = "\
On a terminal this is a full-screen view: progress, losses, the distribution and the trainers. Arrows and Page Up and Down move \
through the variables, q or Ctrl-C leaves, and the search goes on. Elsewhere a line is printed when something has changed: progress \
at most every 5 s, another state or an outage of the controller at once. With --output json each \
line is the study as `show` prints it, with steps_per_second, eta_seconds and outage.

Exit status: 0 when the study ended FINISHED or STOPPED, 1 when it FAILED, 130 after q or Ctrl-C.";

/// A study to end for good.
#[derive(Debug, Args)]
pub(crate) struct EndArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// Do not ask; required without a terminal.
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
    /// Only studies whose name contains this text, whatever its case; up to 100 characters.
    #[arg(long = "name", value_name = "TEXT")]
    pub(crate) name_contains: Option<String>,
    /// From the newest study backwards [default: oldest first].
    #[arg(long)]
    pub(crate) newest_first: bool,
    /// Show at most N studies, and say how many match where these are more [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
}

const HISTORY_HELP: &str = "\
As CSV there is a line for each architecture: those of `use` train only trained the weights, those of rank \
have a loss, and costs if these were reported. Metrics and costs are JSON objects in a column each, variables are the \
last columns. As JSON there is a line \
for each step, with the names of the contract. A step that was closed unreported has the outcome UNSPECIFIED.";

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// How it is written [default: csv, or json with --output json].
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// From the end backwards.
    #[arg(long)]
    pub(crate) newest_first: bool,
    /// File to write, replaced when all is there; - for standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) out: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Format {
    /// A line for each architecture.
    #[default]
    Csv,
    /// A line for each step.
    Json,
}

const PLOT_HELP: &str = "\
Examples:
  asngctl study plot cifar --what theta --out theta.svg
  asngctl study plot cifar --what architecture --out cells.html

Both kinds of file need no other, and are dark where the viewer's screen is.";

#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// What is drawn.
    #[arg(long, value_enum)]
    pub(crate) what: What,
    /// File to write, .svg or .html, replaced when all is there; - for SVG to standard output [default: NAME-WHAT.svg].
    #[arg(long, value_name = "FILE", value_parser = picture_file)]
    pub(crate) out: Option<PathBuf>,
}

/// What can be drawn.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum What {
    /// The distribution: how likely each choice is.
    Theta,
    /// Convergence, entropy, Delta and the signal-to-noise ratio over the steps.
    Convergence,
    /// Losses of ranked architectures over the steps.
    Loss,
    /// The final architecture as a graph of cells, or as a chain of blocks.
    Architecture,
    /// Loss against each cost.
    Front,
}

/// Takes a path whose ending says what is written.
fn picture_file(path: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(path);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("svg" | "html") => Ok(path),
        _ if is_standard(&path) => Ok(path),
        _ => Err("expected a name that ends with .svg or .html, or - for standard output"),
    }
}

const REPORT_HELP: &str = "\
The file needs no other and asks for none: it can be opened where there is no network. It holds the spec, progress, pictures, \
trainers, the latest reports, and the architectures found.";

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// File to write, replaced when all is there; - for standard output [default: NAME.html].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

const EXPORT_HELP: &str = "\
A study that is WAITING or RUNNING would go on while its copy does too: pause it first, or make a --fork.";

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Name of the study.
    pub(crate) name: String,
    /// File to write, replaced when all is there; - for standard output [default: NAME.asng].
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// The copy is to become another study, and this one may go on.
    #[arg(long)]
    pub(crate) fork: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The file; - for standard input.
    pub(crate) file: PathBuf,
    /// Name of the imported study [default: the one it had].
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
