//! The command line of a program together with its environment variables, by the same rules in every program: an empty
//! variable counts as unset, a boolean is one of eight words, and an error in a variable's value names the variable.

use std::{env, ffi::OsStr};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, Error, FromArgMatches,
    builder::StyledStr,
    error::{ContextKind, ContextValue},
};

/// Parses the command line and the environment. Ends the program with status 2 if either is wrong.
pub fn parse<P: CommandFactory + FromArgMatches>() -> P {
    let mut command = with_variables(P::command());
    let matches = matches(&command).unwrap_or_else(|error| error.exit());
    P::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Applies the rules for variables to the arguments of `command` and of its subcommands.
pub fn with_variables(command: Command) -> Command {
    command.mut_args(with_variable).mut_subcommands(with_variables)
}

/// Parses the program's command line and environment with a command [with variables](with_variables).
pub fn matches(command: &Command) -> Result<ArgMatches, Error> {
    command.clone().try_get_matches().map_err(|error| naming_variable(command, error))
}

fn with_variable(arg: Arg) -> Arg {
    let Some(variable) = arg.get_env().map(OsStr::to_owned) else { return arg };
    let arg = match arg.get_action() {
        ArgAction::SetTrue => with_value(arg),
        _ => arg,
    };
    match env::var_os(variable) {
        Some(value) if value.is_empty() => arg.env(None),
        _ => arg,
    }
}

/// Makes a flag an option whose value may be left out.
fn with_value(flag: Arg) -> Arg {
    flag.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name("BOOL")
        .value_parser(boolean)
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
}

/// Parses a boolean, in upper or lower case.
fn boolean(text: &str) -> Result<bool, &'static str> {
    match &*text.to_ascii_lowercase() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("expected 1, true, yes, on, 0, false, no or off"),
    }
}

/// Adds the variable to an error about a value that came from one.
fn naming_variable(command: &Command, mut error: Error) -> Error {
    let value = match (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue)) {
        (Some(ContextValue::String(arg)), Some(ContextValue::String(value))) => {
            let mut command = command.clone();
            // Arguments are displayed in full once they are built.
            command.build();
            variable_of(&command, arg, value)
        }
        _ => None,
    };
    if let Some(variable) = value {
        let source = format!("the value is that of the environment variable {variable}");
        let source = ContextValue::StyledStrs(vec![StyledStr::from(source)]);
        error.insert(ContextKind::Suggested, source);
    }
    error
}

/// Returns the variable of the argument that is displayed as `displayed`, if `value` is its value.
fn variable_of(command: &Command, displayed: &str, value: &str) -> Option<String> {
    let has_value = |variable: &&OsStr| env::var_os(variable).is_some_and(|set| set == *value);
    let arguments = command.get_arguments().filter(|arg| arg.to_string() == displayed);
    let variable = arguments.filter_map(Arg::get_env).find(has_value);
    variable
        .map(|variable| variable.to_string_lossy().into_owned())
        .or_else(|| command.get_subcommands().find_map(|sub| variable_of(sub, displayed, value)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[arg(long, env = "ASNG_TEST_NEVER_SET")]
        insecure: bool,
        #[arg(long)]
        plain: bool,
    }

    fn parse(arguments: &[&str]) -> Result<Cli, String> {
        let arguments = ["cli"].iter().chain(arguments);
        let matches = with_variables(Cli::command()).try_get_matches_from(arguments);
        let matches = matches.map_err(|error| error.to_string())?;
        Ok(Cli::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn a_flag_with_a_variable_takes_a_boolean_or_nothing() {
        assert!(!parse(&[]).unwrap().insecure);
        assert!(parse(&["--insecure"]).unwrap().insecure);
        for word in ["1", "true", "Yes", "ON"] {
            assert!(parse(&[&format!("--insecure={word}")]).unwrap().insecure, "{word}");
        }
        for word in ["0", "False", "NO", "off"] {
            assert!(!parse(&[&format!("--insecure={word}")]).unwrap().insecure, "{word}");
        }
        let error = parse(&["--insecure=maybe"]).unwrap_err();
        assert!(error.contains("expected 1, true, yes, on, 0, false, no or off"), "{error}");
        assert!(parse(&["--plain"]).unwrap().plain);
        assert!(parse(&["--plain=true"]).is_err(), "a flag without a variable stays a flag");
    }
}
