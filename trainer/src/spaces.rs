//! `asng-trainer space`: lists the spaces of image classification, checks one, draws an architecture.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::{
    files,
    images::Info,
    study,
    tasks::{
        self, Domain, Variable,
        classification::{
            cells::Ends,
            check::{Report, Spread},
            definition::{BUILT_IN, Definition, MAX_BYTES},
        },
        settings::{Given, PRESET, Preset, sentence},
        space::Space,
    },
};

/// The subcommands of `space`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the spaces that ship with the trainer
    List(List),
    /// Check a space file: variables, number of architectures, size of the networks
    Check(Check),
    /// Draw an architecture as a Graphviz digraph
    Draw(Draw),
    /// Print the file of a space that ships, to make one's own of it
    Show {
        /// The name of the space
        #[arg(value_name = "NAME")]
        name: PathBuf,
    },
}

/// The arguments of `space list`.
#[derive(Debug, Args)]
pub struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `space check`.
#[derive(Debug, Args)]
pub struct Check {
    /// A space file, or the name of a space that ships
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Height and width of the images in pixels
    #[arg(long, default_value = "32", value_name = "N", value_parser = clap::value_parser!(u16).range(4..=1024))]
    image_size: u16,
    /// Number of classes
    #[arg(long, default_value = "10", value_name = "N", value_parser = clap::value_parser!(u16).range(2..))]
    classes: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The arguments of `space draw`.
#[derive(Debug, Args)]
pub struct Draw {
    /// A space file, or the name of a space that ships
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// random:SEED, the values as a JSON list, or a file with such a list or an architecture.json
    #[arg(long, default_value = "random:0", value_name = "ARCHITECTURE")]
    architecture: String,
    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE.dot")]
    out: Option<PathBuf>,
}

/// Runs a subcommand.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::List(List { json }) => list(json),
        Command::Check(check) => self::check(&check),
        Command::Show { name } => {
            print!("{}", read(&name)?.0);
            Ok(())
        }
        Command::Draw(Draw { file, architecture, out }) => {
            let (_, Definition { family, .. }) = read(&file)?;
            let variables = family.variables();
            let values = self::architecture(&architecture, &variables)?;
            let dot = family.dot(&values);
            match out {
                Some(out) => fs::write(&out, dot).map_err(files::Error::cannot("write", &out))?,
                None => print!("{dot}"),
            }
            Ok(())
        }
    }
}

/// Reads a space file. The name of a space that ships is that space, unless there is such a file.
fn read(file: &Path) -> anyhow::Result<(String, Definition)> {
    let built_in = file.to_str().and_then(Definition::built_in);
    let text = match built_in.filter(|_| !file.exists()) {
        Some(text) => text.to_owned(),
        None => {
            let mut text = String::new();
            // One byte more than is allowed, so that longer files are refused.
            let limit = MAX_BYTES as u64 + 1;
            let read = File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text));
            read.map_err(files::Error::cannot("read", file)).with_context(|| {
                let names = BUILT_IN.map(|(name, _)| name).join(", ");
                format!("{} is neither a file that can be read nor one of {names}", file.display())
            })?;
            text
        }
    };
    let definition = Definition::parse(&text)
        .with_context(|| format!("{} is no valid space", file.display()))?;
    Ok((text, definition))
}

/// Errors if a study or a retraining cannot have the settings of one of the presets.
fn check_presets(text: &str, definition: &Definition, ends: &Ends) -> anyhow::Result<()> {
    let classes = (0..ends.classes).map(|class| class.to_string()).collect();
    let info = Info { shape: ends.image, classes, ..Info::default() };
    let values = vec![0; definition.family.variables().len()];
    for preset in [Preset::Paper, Preset::Quick] {
        let space = Space {
            name: definition.family.name().into(),
            definition: text.into(),
            settings: [(PRESET.into(), preset.name().into())].into(),
        };
        let task = study::task(&space)?;
        if let Err(violations) = task.retraining(&info, &values, preset, &Given::new()) {
            bail!("retraining.{}: {}", preset.name(), sentence(&violations));
        }
    }
    Ok(())
}

fn architecture(text: &str, variables: &[Variable]) -> anyhow::Result<Vec<i64>> {
    if let Some(seed) = text.strip_prefix("random:") {
        let seed = seed
            .parse()
            .with_context(|| format!("--architecture {text}: the seed must be a whole number"))?;
        return Ok(tasks::draw(variables, &mut ChaCha8Rng::seed_from_u64(seed)));
    }
    let read = if text.trim_start().starts_with('[') {
        text.to_owned()
    } else {
        let file = Path::new(text);
        fs::read_to_string(file).map_err(files::Error::cannot("read", file)).with_context(|| {
            format!("--architecture {text} is none of random:SEED, a JSON list such as [0,1,2] and a file")
        })?
    };
    let read: Value =
        serde_json::from_str(&read).with_context(|| format!("--architecture {text} is no JSON"))?;
    let values = if read.is_array() { &read } else { &read["values"] };
    let Ok(values) = serde_json::from_value::<Vec<i64>>(values.clone()) else {
        bail!("--architecture {text} has no list of whole numbers, alone or as \"values\"");
    };
    tasks::check(variables, &values).with_context(|| format!("--architecture {text}"))?;
    Ok(values)
}

fn list(json: bool) -> anyhow::Result<()> {
    let mut spaces = Vec::new();
    for (name, text) in BUILT_IN {
        let Definition { description, source, family, .. } = Definition::parse(text)?;
        let variables = family.variables().len();
        if json {
            spaces.push(json!({
                "name": name, "family": family.name(), "variables": variables, "description": description, "source": source,
            }));
        } else {
            println!("{name:<12} {:<6} {variables:>3} variables  {description}", family.name());
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&spaces)?);
    }
    Ok(())
}

fn check(arguments: &Check) -> anyhow::Result<()> {
    let &Check { ref file, image_size, classes, json } = arguments;
    let (text, definition) = read(file)?;
    let side = i64::from(image_size);
    let divisor = definition.family.divisor();
    if side % divisor != 0 {
        bail!(
            "--image-size {side}: networks of {} halve images without a remainder; give a multiple of {divisor}",
            definition.name
        );
    }
    let ends = Ends { image: [3, side, side], classes: classes.into() };
    check_presets(&text, &definition, &ends)
        .with_context(|| format!("{} is no valid space", file.display()))?;
    let report = Report::new(&definition.family, &ends);
    if json {
        println!("{}", serde_json::to_string_pretty(&as_json(&definition, &ends, &report))?);
    } else {
        print!("{}", as_text(&definition, &ends, &report));
    }
    Ok(())
}

fn as_json(definition: &Definition, ends: &Ends, report: &Report) -> Value {
    let variable = |variable: &Variable| match &variable.domain {
        Domain::Categorical(choices) => json!({ "name": variable.name, "choices": choices }),
        Domain::Integer { low, high } => json!({ "name": variable.name, "low": low, "high": high }),
    };
    let Definition { name, description, source, presets, family, .. } = definition;
    json!({
        "name": name,
        "description": description,
        "source": source,
        "family": family.name(),
        "variables": family.variables().iter().map(variable).collect::<Vec<_>>(),
        "presets": presets,
        "image": ends.image,
        "classes": ends.classes,
        "size": report,
    })
}

fn as_text(definition: &Definition, ends: &Ends, report: &Report) -> String {
    let Definition { name, description, source, presets, family, .. } = definition;
    let mut lines = vec![format!("{name}: {description}")];
    let mut line = |key: &str, value: String| lines.push(format!("{key:<16} {value}"));
    if let Some(source) = source {
        line("source", source.clone());
    }
    line("family", family.name().to_owned());
    for (preset, settings) in presets {
        let settings: Vec<String> =
            settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
        line(&format!("preset {preset}"), settings.join(" "));
    }
    line("free parameters", report.free_parameters.to_string());
    line("architectures", architectures(report.architectures_log10));
    line("supernet", format!("{} parameters", grouped(report.supernet_parameters)));
    let [channels, height, width] = ends.image;
    lines.push(format!("\nNetworks for {channels}x{height}x{width} images and {} classes, of 1,000 drawn and the extremes found from them:", ends.classes));
    lines.push(format!("{:<16} {:>14} {:>14} {:>14}", "", "smallest", "median", "largest"));
    for (name, spread) in [("parameters", report.parameters), ("multiply-adds", report.macs)] {
        let Spread { smallest, median, largest } = spread;
        let [smallest, median, largest] = [smallest, median, largest].map(grouped);
        lines.push(format!("{name:<16} {smallest:>14} {median:>14} {largest:>14}"));
    }
    lines.push(format!("\n{} variables:", report.variables));
    lines.extend(variables(&family.variables()));
    lines.join("\n") + "\n"
}

/// Returns a line for each run of variables with the same choices.
fn variables(variables: &[Variable]) -> Vec<String> {
    let line = |run: &[Variable]| {
        let names = match run {
            [first, .., last] => format!("{} .. {}", first.name, last.name),
            _ => run[0].name.clone(),
        };
        let choices = match &run[0].domain {
            Domain::Categorical(choices) => choices.join(" "),
            Domain::Integer { low, high } => format!("{low} to {high}"),
        };
        format!("  {names}: {choices}")
    };
    variables.chunk_by(|a, b| a.domain == b.domain).map(line).collect()
}

fn architectures(log10: f64) -> String {
    if log10 < 15.0 {
        grouped(10_f64.powf(log10).round() as i64)
    } else {
        format!("{:.1}e{}", 10_f64.powf(log10.fract()), log10.trunc())
    }
}

/// Writes a number with commas between thousands.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_space_that_ships_is_read_by_its_name_and_reported() {
        for (name, _) in BUILT_IN {
            let (text, definition) = read(Path::new(name)).unwrap();
            let ends = Ends { image: [3, 32, 32], classes: 10 };
            check_presets(&text, &definition, &ends).unwrap();
            for (good, bad, error) in [
                ("[presets.quick]", "[presets.quick]\ndepth = 3", "presets.quick.depth is unknown"),
                ("[presets.paper]", "[presets.paper]\nseed = -1", "presets.paper.seed must be a"),
                ("[retraining.paper]", "[retraining.paper]\nseed = 'x'", "retraining.paper: seed"),
            ] {
                let text = text.replace(good, bad);
                let definition = Definition::parse(&text).unwrap();
                let found = check_presets(&text, &definition, &ends).unwrap_err().to_string();
                assert!(found.contains(error), "{found}");
            }
            let report = Report::new(&definition.family, &ends);
            let text = as_text(&definition, &ends, &report);
            for part in [name, "preset quick", "free parameters", "architectures", "supernet"] {
                assert!(text.contains(part), "{text}");
            }
            assert_eq!(as_json(&definition, &ends, &report)["size"]["variables"], report.variables);
        }
    }

    #[test]
    fn files_are_refused_with_the_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("my.toml");
        let (_, mobile) = BUILT_IN.iter().find(|(name, _)| *name == "mobile").unwrap();
        fs::write(&file, mobile.replace("k[3,5,7]_s1", "k[3,5,8]_s1")).unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        let line = 1 + mobile.lines().position(|line| line.contains("k[3,5,7]_s1")).unwrap();
        assert!(
            error.contains(&format!(
                "line {line}: chain.rows[1]: \"k[3,5,8]\": a kernel is an odd number"
            )),
            "{error}"
        );
        let error = format!("{:#}", read(&directory.path().join("none.toml")).unwrap_err());
        assert!(error.contains("enas-micro") && error.contains("no such file"), "{error}");
        fs::write(&file, "#".repeat(MAX_BYTES + 1)).unwrap();
        assert!(format!("{:#}", read(&file).unwrap_err()).contains("at most 65536 bytes"));
    }

    #[test]
    fn an_architecture_is_random_or_a_list_or_a_file() {
        let family = read(Path::new("nasbench201")).unwrap().1.family;
        let variables = family.variables();
        let find =
            |text: &str| architecture(text, &variables).map_err(|error| format!("{error:#}"));
        assert_eq!(find("random:7"), find("random:7"));
        assert_eq!(find("[0,1,2,3,4,0]"), Ok(vec![0, 1, 2, 3, 4, 0]));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("architecture.json");
        fs::write(&file, family.describe(&[0, 1, 2, 3, 4, 0]).to_string()).unwrap();
        assert_eq!(find(file.to_str().unwrap()), Ok(vec![0, 1, 2, 3, 4, 0]));
        for (text, problem) in [
            ("[0,1,2,3,4,5]", "normal.node3.from2 is 0 to 4, not 5"),
            ("[0,1]", "6 values, not 2"),
            ("[0,\"a\"]", "no list of whole numbers"),
            ("[0,", "is no JSON"),
            ("random:x", "seed must be a whole number"),
            ("nowhere.json", "is none of random:SEED"),
        ] {
            let error = find(text).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([7, 1_000, 2_274_052].map(grouped), ["7", "1,000", "2,274,052"]);
        assert_eq!(architectures(15_625_f64.log10()), "15,625");
        assert_eq!(architectures(18.5), "3.2e18");
    }
}
