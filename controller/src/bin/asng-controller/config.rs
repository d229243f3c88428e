//! Reads the options of `serve` from flags, else the environment, else a TOML file, else defaults. An option is declared once, in
//! [`Options`]; the file's values are installed as its defaults, so they are checked as those of flags are.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use asng_client::{CONTROLLER_PORT, environment, telemetry};
use asng_controller::{Config, store::Location, studies, web};
use asng_serving::{Exposure, limits::Limits, listen_address};
use clap::{
    Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind,
    parser::ValueSource,
};
use tokio::sync::Notify;

use crate::{backup, certs, token};

/// Runs the studies of a neural architecture search: leases steps to trainers, stores their reports and updates the
/// distributions.
#[derive(Parser)]
#[command(name = "asng-controller", version, after_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) serve: Options,
}

const EXAMPLES: &str = "\
Examples:
  On this machine alone:
    asng-controller --state-dir ./asng-state
    asngctl study create first --space enas-micro --max-steps 1000
  For others, under mutual TLS:
    asng-controller certs --out ./certs --host controller.example.org
    asng-controller --listen 0.0.0.0:50051 --tls-client-ca certs/ca.pem \\
      --tls-cert certs/server.pem --tls-key certs/server-key.pem

All state is kept in the state directory; an acknowledged report survives a crash at any moment. After SIGTERM, running requests \
finish and the controller exits; a second SIGTERM ends it at once. Certificates and tokens are read again on SIGHUP and when their \
files change.

Exit status: 0 after SIGTERM or Ctrl-C, 1 on an error, 2 if the command line or configuration is wrong.";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve studies (default).
    Serve(Box<Options>),
    /// Create a private certificate authority, and certificates for the controller and its clients.
    Certs(certs::Options),
    /// Create a token and its entry for the token file.
    Token(token::Options),
    /// Copy the studies of a state directory to a file, also while the controller runs.
    Backup(backup::BackupOptions),
    /// Restore the studies from a file that `backup` wrote.
    Restore(backup::RestoreOptions),
}

/// Options of `serve`, from a flag, its environment variable or the configuration file.
#[derive(Args)]
pub(crate) struct Options {
    /// TOML file of options, named as the flags: `state-dir = "/var/lib/asng"`. Flags and environment variables take
    /// precedence.
    #[arg(long, env = "ASNG_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to serve gRPC on: HOST:PORT, HOST, PORT on loopback, or :PORT on every interface. Port 0 takes any free port
    /// and logs it.
    #[arg(long, env = "ASNG_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    #[arg(value_parser = |text: &str| listen_address(text, CONTROLLER_PORT))]
    pub(crate) listen: SocketAddr,
    /// Directory of the SQLite database, created if it does not exist; for one controller at a time.
    #[arg(long, env = "ASNG_STATE_DIR", value_name = "DIR", default_value = "asng-state")]
    state_dir: PathBuf,
    /// Store the studies in PostgreSQL instead, which several controllers may share: postgres://USER:PASSWORD@HOST/DATABASE.
    #[arg(long, env = "ASNG_STORE", value_name = "URL")]
    store: Option<String>,
    /// Address to which other controllers on the same PostgreSQL redirect clients [default: the address of --listen].
    #[arg(long, env = "ASNG_ADVERTISE", value_name = "ADDRESS", requires = "store")]
    advertise: Option<String>,
    #[command(flatten)]
    pub(crate) web: web::Options,
    #[command(flatten)]
    pub(crate) telemetry: telemetry::Options,
    /// Time that running requests have to finish when the controller shuts down.
    #[arg(long, env = "ASNG_GRACE", value_name = "DURATION", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    grace: Duration,

    /// PEM file of the controller's certificate; read again when it changes, as are the other files here.
    #[arg(long, env = "ASNG_SERVE_TLS_CERT", value_name = "FILE", help_heading = ACCESS)]
    tls_cert: Option<PathBuf>,
    /// PEM file of the certificate's private key.
    #[arg(long, env = "ASNG_SERVE_TLS_KEY", value_name = "FILE", help_heading = ACCESS)]
    tls_key: Option<PathBuf>,
    /// PEM file of the certificate authority of the clients; with it, every client must have a certificate (mutual TLS).
    #[arg(long, env = "ASNG_SERVE_TLS_CLIENT_CA", value_name = "FILE", help_heading = ACCESS)]
    tls_client_ca: Option<PathBuf>,
    /// TOML file of tokens; with it, every client must have one of them. `asng-controller token` creates its entries.
    #[arg(long, env = "ASNG_SERVE_TOKEN_FILE", value_name = "FILE", help_heading = ACCESS)]
    token_file: Option<PathBuf>,
    /// Allow other machines to connect in plain text, or without authentication.
    #[arg(long, env = "ASNG_SERVE_INSECURE", help_heading = ACCESS)]
    pub(crate) insecure: bool,

    /// Largest request, in bytes.
    #[arg(long, env = "ASNG_MAX_MESSAGE_SIZE", value_name = "BYTES", help_heading = LIMITS)]
    #[arg(default_value_t = 16 << 20)]
    max_message_size: usize,
    /// Largest number of open connections; further ones are closed.
    #[arg(long, env = "ASNG_MAX_CONNECTIONS", value_name = "N", help_heading = LIMITS)]
    #[arg(default_value_t = 4096)]
    max_connections: usize,
    /// Largest number of concurrent requests on one connection; further ones wait.
    #[arg(long, env = "ASNG_MAX_STREAMS", value_name = "N", help_heading = LIMITS)]
    #[arg(default_value_t = 1000)]
    max_streams: u32,
    /// Time until the response to a request must begin.
    #[arg(long, env = "ASNG_REQUEST_TIMEOUT", value_name = "DURATION", help_heading = LIMITS)]
    #[arg(default_value = "60s", value_parser = humantime::parse_duration)]
    request_timeout: Duration,
    /// Largest number of studies.
    #[arg(long, env = "ASNG_MAX_STUDIES", value_name = "N", help_heading = LIMITS)]
    #[arg(default_value_t = 10_000)]
    max_studies: usize,
    /// Largest size of the database in bytes. Near it, warnings are logged; beyond it, no study is created and no step is
    /// leased, but reports still count [default: no limit].
    #[arg(long, env = "ASNG_DISK_BUDGET", value_name = "BYTES", help_heading = LIMITS)]
    disk_budget: Option<u64>,
    /// Requests per second of each client, identified by the name of its token or else its address [default: no limit].
    #[arg(long, env = "ASNG_RATE_LIMIT", value_name = "N", help_heading = LIMITS)]
    rate_limit: Option<NonZeroU32>,
}

const ACCESS: &str = "Who may connect";
const LIMITS: &str = "Limits";

impl Options {
    /// Reads the files that the options name, and refuses what would be open to the world by oversight.
    pub(crate) async fn config(self, reload: Arc<Notify>) -> anyhow::Result<Config> {
        let location = match self.store {
            None => Location::Directory(self.state_dir),
            Some(url) => {
                if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
                    bail!(
                        "--store must be the URL of a PostgreSQL, postgres://...; for SQLite, omit --store and give --state-dir"
                    );
                }
                if self.advertise.is_none() && self.listen.ip().is_unspecified() {
                    bail!(
                        "--store needs --advertise ADDRESS: other machines cannot connect to {}",
                        self.listen
                    );
                }
                let tls = self.tls_cert.is_some();
                let advertise =
                    self.advertise.map(|own| asng_client::url(&own, CONTROLLER_PORT, tls));
                let advertise = advertise.transpose().context("--advertise")?.unwrap_or_default();
                Location::Postgres { url, advertise }
            }
        };
        let exposure = Exposure {
            prefix: "",
            tls_cert: self.tls_cert,
            tls_key: self.tls_key,
            tls_client_ca: self.tls_client_ca,
            token_file: self.token_file,
            insecure: self.insecure,
        };
        let (tls, tokens) = exposure.read(self.listen).await?;
        if self.web.https() && tls.is_none() {
            bail!("--http https:// needs both --tls-cert and --tls-key");
        }
        let limits = Limits {
            max_message_size: self.max_message_size,
            max_connections: self.max_connections,
            max_streams: self.max_streams,
            request_timeout: self.request_timeout,
            rate_limit: self.rate_limit,
        };
        Ok(Config {
            location,
            studies: studies::Limits { studies: self.max_studies, disk: self.disk_budget },
            serving: asng_serving::Config { tls, tokens, limits, grace: self.grace, reload },
        })
    }
}

/// The command line, with what it leaves open from the environment and the file; and every option of `serve` in effect,
/// in words. Ends the program when something is wrong.
pub(crate) fn parse() -> (Cli, String) {
    let mut command = environment::with_variables(Cli::command());
    let mut matches = environment::matches(&command).unwrap_or_else(|error| error.exit());
    if let Some(file) = serve_matches(&matches).get_one::<PathBuf>("config").cloned() {
        command = match with_file(command, &file) {
            Ok(command) => command,
            Err(error) => {
                refuse(ErrorKind::ValueValidation, format!("{}: {error}", file.display()))
            }
        };
        // Without the file all was well.
        matches = command.clone().try_get_matches().unwrap_or_else(|error| {
            let error = error.to_string();
            let text = error.trim_start_matches("error: ").lines().next().unwrap_or_default();
            refuse(ErrorKind::ValueValidation, format!("{}: {text}", file.display()))
        });
    }
    let in_effect = in_effect(&command, serve_matches(&matches));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    (cli, in_effect)
}

/// Ends the program as for a wrong command line.
pub(crate) fn refuse(kind: ErrorKind, message: String) -> ! {
    Cli::command().error(kind, message).exit()
}

fn serve_matches(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand_matches("serve").unwrap_or(matches)
}

/// Options of `serve` that a file can hold.
fn is_option(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !matches!(long, "config" | "help" | "version"))
}

/// Installs the values of a file as defaults.
fn with_file(command: clap::Command, file: &Path) -> Result<clap::Command, String> {
    let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
    let known: Vec<_> = command
        .get_arguments()
        .filter(|arg| is_option(arg))
        .filter_map(Arg::get_long)
        .map(String::from)
        .collect();
    let mut values = BTreeMap::new();
    for (key, value) in table {
        if !known.contains(&key) {
            let near = |option: &&String| strsim::jaro_winkler(option, &key);
            let nearest = known.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
            let nearest = nearest.map_or("", |nearest| nearest);
            return Err(format!("there is no option `{key}`; the nearest is `{nearest}`"));
        }
        let value = match value {
            toml::Value::String(value) => value,
            toml::Value::Integer(value) => value.to_string(),
            toml::Value::Boolean(value) => value.to_string(),
            _ => return Err(format!("`{key}` must be a string, an integer, true or false")),
        };
        values.insert(key, value);
    }
    let install = |arg: Arg| match arg.get_long().and_then(|long| values.get(long)) {
        Some(value) => arg.default_value(value.clone()),
        None => arg,
    };
    Ok(command.mut_args(install).mut_subcommand("serve", |serve| serve.mut_args(install)))
}

/// The options in effect and where each comes from, passwords masked.
fn in_effect(command: &clap::Command, matches: &ArgMatches) -> String {
    let mut parts = Vec::new();
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        let (Some(long), Ok(Some(values))) = (arg.get_long(), matches.try_get_raw(id)) else {
            continue;
        };
        let values: Vec<_> = values.map(|value| masked(&value.to_string_lossy())).collect();
        let source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => " (flag)",
            Some(ValueSource::EnvVariable) => " (environment)",
            _ => "",
        };
        parts.push(format!("{long}={}{source}", values.join(" ")));
    }
    parts.join(", ")
}

/// A value without the password that it may hold as a URL.
fn masked(value: &str) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value.into() };
    let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let user = match user.split_once(':') {
        Some((user, _)) => format!("{user}:***@"),
        None if user.is_empty() => String::new(),
        None => format!("{user}@"),
    };
    let host = match host.split_once("password=") {
        Some((before, after)) => {
            let after =
                after.split_once('&').map_or(String::new(), |(_, after)| format!("&{after}"));
            format!("{before}password=***{after}")
        }
        None => host.into(),
    };
    format!("{scheme}://{user}{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options of a command line and a file, without the environment of whoever runs the tests.
    fn options(arguments: &[&str], file: &str) -> Result<String, String> {
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), file).unwrap();
        let command = environment::with_variables(Cli::command()).mut_args(|arg| arg.env(None));
        let command = with_file(command, path.path())?;
        let arguments = ["asng-controller"].iter().chain(arguments);
        let matches = command.clone().try_get_matches_from(arguments);
        let matches = matches.map_err(|error| error.to_string())?;
        Ok(in_effect(&command, serve_matches(&matches)))
    }

    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_a_default() {
        let file = "grace = \"3s\"\nmax-studies = 5\ninsecure = true";
        for serve in [&[][..], &["serve"]] {
            let flags = [serve, &["--max-studies", "7", "--insecure=false"]].concat();
            let effect = options(&flags, file).unwrap();
            for expected in ["grace=3s,", "max-studies=7 (flag)", "insecure=false (flag)"] {
                assert!(effect.contains(expected), "{effect}");
            }
            assert!(effect.contains("listen=127.0.0.1:50051,"), "{effect}");
        }
        assert!(options(&["--insecure"], "").unwrap().contains("insecure=true (flag)"));
    }

    #[test]
    fn what_a_file_cannot_hold_is_refused_with_a_sentence() {
        let refused = |file| options(&[], file).unwrap_err();
        assert_eq!(
            refused("state_dir = \"x\""),
            "there is no option `state_dir`; the nearest is `state-dir`"
        );
        assert!(refused("config = \"x\"").starts_with("there is no option `config`"));
        assert_eq!(refused("grace = []"), "`grace` must be a string, an integer, true or false");
        assert!(refused("grace = 3").contains("invalid value '3' for '--grace <DURATION>'"));
        assert!(refused("grace =").contains("TOML parse error at line 1"));
    }

    #[test]
    fn passwords_are_masked() {
        for (value, expected) in [
            ("asng-state", "asng-state"),
            ("http://host:1/path", "http://host:1/path"),
            ("postgres://me@host/db", "postgres://me@host/db"),
            ("postgres://me:se:cr@et@host/db", "postgres://me:***@host/db"),
            ("postgres://h/db?password=x&a=b", "postgres://h/db?password=***&a=b"),
            ("postgres://h/db?a=b&password=x", "postgres://h/db?a=b&password=***"),
        ] {
            assert_eq!(masked(value), expected);
        }
    }
}
