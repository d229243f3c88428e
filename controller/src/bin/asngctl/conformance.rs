//! Tries a trainer on a controller that misbehaves on purpose.

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, ensure};
use asng_client::CONTROLLER_PORT;
use asng_controller::conformance::{self, Config, Finding, Verdict};
use asng_proto::v1::{CreateStudyRequest, StopRules, StudySpec};
use asng_serving::listen_address;
use clap::{Args, builder::PossibleValuesParser};
use serde_json::json;
use tokio::{net::TcpListener, signal::ctrl_c};

use crate::{
    INTERRUPTED,
    args::{Output, pair},
    print_line, variables,
};

pub(crate) const HELP: &str = "\
Start one trainer against the address, with one step at a time, or as many as --in-hand says:
  asng-trainer serve --controller http://127.0.0.1:50051
The trainer works on the study that is offered, or on one that it creates; either needs about 50 steps. To test the extension of \
leases, let steps take more than a second. The test uses plain text on loopback only: TLS and tokens are not tested.

Exit status: 0 if nothing failed, 1 otherwise, 130 after Ctrl-C.";

#[derive(Debug, Args)]
pub(crate) struct ConformanceArgs {
    /// Loopback address to listen on; port 0 takes any free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    #[arg(value_parser = |text: &str| listen_address(text, CONTROLLER_PORT))]
    listen: SocketAddr,
    /// Space of the study that is offered [default: toy, or none with --variables].
    #[arg(long)]
    space: Option<String>,
    /// Setting of the space, interpreted by the trainer; repeatable.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,
    /// JSON array of the variables, as for `study create`, - for standard input [default: the trainer describes them].
    #[arg(long, value_name = "FILE")]
    variables: Option<PathBuf>,
    /// Time without a call after which the trainer counts as gone.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "60s")]
    timeout: Duration,
    /// Number of steps that the trainer holds at a time: one more than it leases ahead.
    #[arg(long, value_name = "STEPS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=65))]
    in_hand: u16,
    /// Scenarios to run, before the end of the study [default: all].
    #[arg(value_parser = PossibleValuesParser::new(conformance::scenarios().map(|(rule, _)| rule)))]
    scenarios: Vec<String>,
}

/// Plays the scenarios and prints what was found, as it is found.
pub(crate) async fn run(args: ConformanceArgs, output: Output) -> anyhow::Result<ExitCode> {
    let ConformanceArgs { listen, space, settings, variables, timeout, in_hand, scenarios } = args;
    ensure!(
        listen.ip().to_canonical().is_loopback(),
        "{listen} is not a loopback address, and the test serves plain text without tokens: listen on 127.0.0.1"
    );
    let default_space = if variables.is_some() { "" } else { "toy" };
    let spec = StudySpec {
        space: space.unwrap_or_else(|| default_space.into()),
        settings: settings.into_iter().collect(),
        variables: variables.as_deref().map(variables::read).transpose()?.unwrap_or_default(),
        stop: Some(StopRules { max_steps: 1000, ..Default::default() }),
        ..Default::default()
    };
    let offer =
        CreateStudyRequest { name: "conformance".into(), spec: Some(spec), ..Default::default() };
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener.local_addr()?;
    writeln!(io::stderr(), "listening on http://{address}: start one trainer against it")?;

    let mut findings = Vec::new();
    let say = |finding: Finding| {
        if output == Output::Table {
            // If nobody reads any more, the last line says so.
            let _ = print_line(line(&finding));
        }
        findings.push(finding);
    };
    let config = Config { offer, timeout, scenarios, in_hand: in_hand.into() };
    tokio::select! {
        played = conformance::run(config, listener, say) => played?,
        _ = ctrl_c() => return Ok(INTERRUPTED.into()),
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let [passed, failed, not_seen] =
        [Verdict::Passed, Verdict::Failed, Verdict::NotSeen].map(count);
    match output {
        Output::Table => {
            print_line(format_args!("{passed} passed, {failed} failed, {not_seen} not seen"))
        }
        Output::Json => print_line(json!({
            "passed": passed,
            "failed": failed,
            "not_seen": not_seen,
            "findings": findings.iter().map(|finding| json!({
                "rule": finding.rule,
                "expected": finding.expected,
                "verdict": word(finding.verdict),
                "seen": finding.seen,
            })).collect::<Vec<_>>(),
        })),
    }?;
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(Finding { rule, expected, verdict, seen }: &Finding) -> String {
    let line = format!("{:<9} {rule:<14} {seen}", word(*verdict));
    match verdict {
        Verdict::Failed => format!("{line}\n{:25}expected: {expected}", ""),
        Verdict::Passed | Verdict::NotSeen => line,
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::NotSeen => "not seen",
    }
}
