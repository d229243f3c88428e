//! `asngctl`, the command line for people: creates, shows, watches and ends the studies of controllers over gRPC, and asks trainers. It
//! knows the contract, and of the controller's insides only which defaults a spec has.
//!
//! [`args`] is what can be typed, [`client`] the connection, [`text`] and [`mod@json`] the two outputs, [`watch`] the
//! live line, [`screen`] the live screen, [`history`] the past, [`paper`] pictures and reports; [`archive`] keeps studies in files,
//! [`mod@file`] makes files appear when complete;
//! [`mod@trainer`] asks trainers; [`variables`], [`space`] and [`start`] read a file each, [`names`] has words for the contract's values; [`doctor`] looks for
//! what is wrong; [`conformance`] tries trainers.

mod archive;
mod args;
mod client;
mod conformance;
mod doctor;
mod file;
mod history;
mod json;
mod names;
mod paper;
mod screen;
mod space;
mod spec;
mod start;
mod text;
mod trainer;
mod variables;
mod watch;

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    time::SystemTime,
};

use anyhow::{bail, ensure};
use asng_client::{Connection, Options, environment};
use asng_proto::v1::{
    CreateStudyRequest, DeleteStudyRequest, GetDistributionRequest, ListStudiesRequest,
    ListTrainersRequest, PauseStudyRequest, ResumeStudyRequest, StopStudyRequest, Study,
    StudyState,
};
use clap::{CommandFactory, error::ErrorKind};
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::{
    args::{Cli, Command, EndArgs, Format, ListArgs, Output, ShowArgs, StudyCommand, StudyName},
    client::{Controller, received},
    file::is_standard,
    watch::Screen,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Cli { options, output, command } = environment::parse();
    let result = match command {
        Command::Study { command } => {
            let connection = connect(&options);
            let url = connection.url();
            let done = run(client::connect(connection), &url, output, command).await;
            done.map_err(|error| client::explained(error, &url))
        }
        Command::Trainer { trainer, command } => {
            trainer::run(&options, &trainer, output, command).await
        }
        Command::Doctor => doctor::examine(&options, output).await,
        Command::Health { address } => {
            let serving = doctor::is_serving(options, address).await;
            serving.and_then(|word| {
                print(output, || word.clone(), || json!({ "health": word }))?;
                Ok(ExitCode::SUCCESS)
            })
        }
        Command::Conformance(args) => conformance::run(args, output).await,
        Command::Completions { .. } if output == Output::Json => {
            refuse("completions prints a script for a shell; leave out --output json")
        }
        Command::Completions { shell } => completions(shell).map_err(Into::into),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is closed too.
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Makes the connection of the options. Ends the program if an option is wrong.
fn connect(options: &Options) -> Connection {
    options.connect().unwrap_or_else(|error| refuse(format!("{error:#}")))
}

/// Ends the program as for a wrong command line.
fn refuse(message: impl Display) -> ! {
    Cli::command().error(ErrorKind::ValueValidation, message).exit()
}

fn completions(shell: Shell) -> io::Result<ExitCode> {
    // Straight to stdout it would panic when nobody reads it.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "asngctl", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

/// Returns true if the reader of our output has closed it, as `head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

async fn run(
    mut controller: Controller,
    url: &str,
    output: Output,
    command: StudyCommand,
) -> anyhow::Result<ExitCode> {
    let say = |study: &Study| print(output, || text::sentence(study, &[]), || json::study(study));
    match command {
        StudyCommand::Create(args) => {
            let (name, creation) = (args.name.clone(), args.creation);
            let spec = Some(args.into_spec()?);
            let request = CreateStudyRequest { name, spec, replace_failed: creation.replace };
            return create(controller, url, request, creation.wait, output).await;
        }
        StudyCommand::Clone(args) => {
            let (name, creation) = (args.name.clone(), args.creation);
            let source = client::study(&mut controller, &args.source).await?;
            let spec = args.into_spec(source.spec.unwrap_or_default())?;
            let spec = Some(spec);
            let request = CreateStudyRequest { name, spec, replace_failed: creation.replace };
            return create(controller, url, request, creation.wait, output).await;
        }
        StudyCommand::List(args) => {
            let (studies, matching) = list(&mut controller, args).await?;
            let all = || studies.iter().map(json::study).collect();
            print(output, || text::list(&studies, SystemTime::now()), all)?;
            if studies.len() < matching {
                let text = format!("{} of {matching} studies that match", studies.len());
                match output {
                    Output::Table => print_line(text)?,
                    // Stdout is for the studies; nobody has to read this.
                    Output::Json => drop(writeln!(io::stderr(), "{text}")),
                }
            }
        }
        StudyCommand::Show(ShowArgs { name, definition: true }) => {
            let spec = client::study(&mut controller, &name).await?.spec.unwrap_or_default();
            let text = spec.space_definition;
            ensure!(
                !text.is_empty(),
                "study `{name}` was not created with a space file: trainers know its space `{}` by name",
                spec.space
            );
            print(output, || text.trim_end().into(), || json!({ "space_definition": text }))?;
        }
        StudyCommand::Show(ShowArgs { name, definition: false }) => {
            let study = client::study(&mut controller, &name).await?;
            let notes = client::notes_about(&mut controller, url, &study).await;
            let text = || text::show(&study, &notes, SystemTime::now());
            print(output, text, || json::study_with_notes(&study, &notes))?;
        }
        StudyCommand::Watch(StudyName { name }) => {
            // Fails before anything is drawn if there is no such study.
            let study = client::study(&mut controller, &name).await?;
            let ended = names::has_ended(study.state());
            let screen = if ended { Screen::new(output) } else { Screen::full(output)? };
            let followed = watch::follow(&mut controller, url, &name, screen, names::has_ended);
            let Some(study) = followed.await? else { return Ok(INTERRUPTED.into()) };
            ensure_not_failed(&study)?;
            if output == Output::Table {
                print_line(text::ending(&study))?;
            }
        }
        StudyCommand::Pause(StudyName { name }) => {
            let reply = controller.pause_study(PauseStudyRequest { name }).await?;
            say(&received(reply.into_inner().study)?)?;
        }
        StudyCommand::Resume(StudyName { name }) => {
            let reply = controller.resume_study(ResumeStudyRequest { name }).await?;
            say(&received(reply.into_inner().study)?)?;
        }
        StudyCommand::Stop(EndArgs { name, yes }) => {
            if !yes {
                confirm(&mut controller, "stop", &name).await?;
            }
            let reply = controller.stop_study(StopStudyRequest { name }).await?;
            say(&received(reply.into_inner().study)?)?;
        }
        StudyCommand::Delete(EndArgs { name, yes }) => {
            if !yes {
                confirm(&mut controller, "delete", &name).await?;
            }
            controller.delete_study(DeleteStudyRequest { name: name.clone() }).await?;
            print(output, || format!("study `{name}` is deleted"), || json!({ "deleted": name }))?;
        }
        StudyCommand::Distribution(StudyName { name }) => {
            let study = client::study(&mut controller, &name).await?;
            let reply = controller.get_distribution(GetDistributionRequest { name }).await?;
            let (distribution, variables) = (reply.into_inner(), &study.variables);
            let text = || text::distribution(&distribution, variables);
            print(output, text, || json::distribution(&distribution, variables))?;
        }
        StudyCommand::Trainers(StudyName { name }) => {
            let reply = controller.list_trainers(ListTrainersRequest { name }).await?;
            let trainers = reply.into_inner().trainers;
            let all = || trainers.iter().map(json::trainer).collect();
            print(output, || text::trainers(&trainers, SystemTime::now()), all)?;
        }
        StudyCommand::History(args) => {
            let format = if output == Output::Json { Format::Json } else { Format::Csv };
            history::write(&mut controller, &args, format).await?;
            written(output, "history", &args.out)?;
        }
        StudyCommand::Plot(args) => {
            refuse_two_outputs(output, args.out.as_deref());
            let file = paper::plot(&mut controller, url, args).await?;
            written(output, "picture", &file)?;
        }
        StudyCommand::Report(args) => {
            refuse_two_outputs(output, args.out.as_deref());
            let file = paper::report(&mut controller, url, args).await?;
            written(output, "report", &file)?;
        }
        StudyCommand::Export(args) => {
            refuse_two_outputs(output, args.out.as_deref());
            let name = args.name.clone();
            let archive::Exported { file, reports } =
                archive::export(&mut controller, args).await?;
            if !is_standard(&file) {
                let file = file.display();
                let text =
                    || format!("study `{name}` with {reports} steps of history is in {file}");
                let json =
                    || json!({ "exported": name, "file": file.to_string(), "reports": reports });
                print(output, text, json)?;
            }
        }
        StudyCommand::Import(args) => say(&archive::import(&mut controller, args).await?)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The exit status after Ctrl-C, as shells expect it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// Creates a study, follows it until it is described if that is asked for, and prints it.
async fn create(
    mut controller: Controller,
    url: &str,
    request: CreateStudyRequest,
    wait: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let name = request.name.clone();
    let mut study = received(controller.create_study(request).await?.into_inner().study)?;
    let mut notes = Vec::new();
    if study.state() == StudyState::Waiting && wait {
        let screen = match output {
            Output::Table => {
                print_line(text::sentence(&study, &[]))?;
                Screen::new(output)
            }
            Output::Json => Screen::Notes(Vec::new()),
        };
        let described = |state| state != StudyState::Waiting;
        let followed = watch::follow(&mut controller, url, &name, screen, described);
        let Some(described) = followed.await? else { return Ok(INTERRUPTED.into()) };
        study = described;
    } else if study.state() == StudyState::Waiting {
        notes = client::notes_about(&mut controller, url, &study).await;
    }
    print(output, || text::sentence(&study, &notes), || json::study(&study))?;
    ensure_not_failed(&study)?;
    Ok(ExitCode::SUCCESS)
}

/// Studies on a page, the most that a controller returns.
const PAGE: u32 = 1000;

/// Returns the studies that match, up to a limit, and the number of all that do.
async fn list(controller: &mut Controller, args: ListArgs) -> anyhow::Result<(Vec<Study>, usize)> {
    let ListArgs { owner, labels, states, name_contains, newest_first, limit } = args;
    let limit = limit.unwrap_or(u32::MAX);
    let mut request = ListStudiesRequest {
        page_size: limit.min(PAGE),
        owner: owner.unwrap_or_default(),
        labels: labels.into_iter().collect(),
        newest_first,
        states: states.into_iter().map(Into::into).collect(),
        name_contains: name_contains.unwrap_or_default(),
        ..Default::default()
    };
    let mut studies = Vec::new();
    loop {
        let page = controller.list_studies(request.clone()).await?.into_inner();
        studies.extend(page.studies);
        if page.next_page_token.is_empty() || studies.len() >= limit as usize {
            studies.truncate(limit as usize);
            return Ok((studies, page.total_size as usize));
        }
        request.page_token = page.next_page_token;
    }
}

/// Asks on the terminal whether to `verb` a study. Errors if the answer is not yes.
async fn confirm(controller: &mut Controller, verb: &str, name: &str) -> anyhow::Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "without a terminal to confirm on, `study {verb}` needs --yes"
    );
    let study = client::study(controller, name).await?;
    let (state, applied) = (names::state(&study), study.progress.unwrap_or_default().applied);
    let mut stderr = io::stderr();
    write!(stderr, "{verb} study `{name}` ({state}, {applied} reports) for good? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "cancelled; the study is unchanged");
    Ok(())
}

fn ensure_not_failed(study: &Study) -> anyhow::Result<()> {
    if study.state() == StudyState::Failed {
        bail!("{}", text::failure(study));
    }
    Ok(())
}

/// Refuses --output json, which describes the file written, where that file is standard output.
fn refuse_two_outputs(output: Output, out: Option<&Path>) {
    if output == Output::Json && out.is_some_and(is_standard) {
        refuse("--out - and --output json both write to standard output: leave out one of them");
    }
}

/// Prints where a file was written, unless it is standard output.
fn written(output: Output, what: &str, file: &Path) -> io::Result<()> {
    if is_standard(file) {
        return Ok(());
    }
    let file = file.display();
    print(output, || format!("the {what} is in {file}"), || json!({ "file": file.to_string() }))
}

fn print(
    output: Output,
    text: impl FnOnce() -> String,
    json: impl FnOnce() -> Value,
) -> io::Result<()> {
    match output {
        Output::Table => print_line(text()),
        Output::Json => print_line(format_args!("{:#}", json())),
    }
}

/// Prints to stdout. Unlike `println!`, a reader that has gone is an error and no panic.
fn print_line(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}
