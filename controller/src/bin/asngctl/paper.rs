//! Pictures and reports of studies in files.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use asng_controller::pictures::{self, Picture, StudySnapshot};
use maud::{Markup, PreEscaped, html};
use prost_types::Timestamp;

use crate::{
    args::{PlotArgs, ReportArgs, What},
    client::{self, Controller},
    file::Draft,
    text,
};

/// Draws a picture into a file and returns its path.
pub(crate) async fn plot(
    controller: &mut Controller,
    url: &str,
    PlotArgs { name, what, out }: PlotArgs,
) -> anyhow::Result<PathBuf> {
    let (picture, word) = match what {
        What::Theta => (Picture::Theta, "theta"),
        What::Convergence => (Picture::Convergence, "convergence"),
        What::Loss => (Picture::Loss, "loss"),
        What::Architecture => (Picture::Architecture, "architecture"),
        What::Front => (Picture::Front, "front"),
    };
    let file = out.unwrap_or_else(|| format!("{name}-{word}.svg").into());
    let svg = pictures::svg(picture, &snapshot(controller, url, &name).await?)?;
    let content = match file.extension() {
        Some(ending) if ending == "html" => {
            pictures::document(&format!("{name}: {word}"), &html! { (PreEscaped(svg)) })
        }
        _ => svg,
    };
    write(&file, &content)?;
    Ok(file)
}

/// Writes a report and returns its path.
pub(crate) async fn report(
    controller: &mut Controller,
    url: &str,
    ReportArgs { name, out }: ReportArgs,
) -> anyhow::Result<PathBuf> {
    let file = out.unwrap_or_else(|| format!("{name}.html").into());
    let snapshot = snapshot(controller, url, &name).await?;
    write(&file, &pictures::document(&format!("Study {name}"), &all(&snapshot)))?;
    Ok(file)
}

async fn snapshot(
    controller: &mut Controller,
    url: &str,
    name: &str,
) -> anyhow::Result<StudySnapshot> {
    let study = client::study(controller, name).await?;
    Ok(client::snapshot(controller, url, study, None).await?)
}

fn write(file: &Path, content: &str) -> anyhow::Result<()> {
    let mut draft = Draft::new(file)?;
    draft
        .write_all(content.as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))?;
    draft.finish()
}

/// The sections of a study's page, and what a person needs who has nothing but the report.
fn all(snapshot: &StudySnapshot) -> Markup {
    let study = &snapshot.study;
    let written = Timestamp { nanos: 0, ..snapshot.now.into() };
    let space = study.spec.as_ref().map_or("", |spec| &spec.space);
    let facts = |rows: Vec<text::Row>| {
        html! {
            div.wide { table { tbody {
                @for [name, value] in rows { tr { th scope="row" { (name.trim()) } td.text { (value) } } }
            } } }
        }
    };
    html! {
        h1 { "Study " (study.name) }
        p.note { "Written " (written) " by asngctl " (env!("CARGO_PKG_VERSION")) "." }
        @for section in pictures::sections(snapshot) {
            section id=(section.id) { h2 { (section.title) } (section.body) }
        }
        @if study.mode.is_some() {
            section id="found" {
                h2 { "Architectures found" }
                p { "Chosen is the current best guess, mode the most likely architecture, incumbent the best evaluated one." }
                div.wide { table {
                    thead { tr { @for name in text::ARCHITECTURES { th scope="col" { (name.to_lowercase()) } } } }
                    tbody {
                        @for [variable, chosen, mode, incumbent] in text::architecture_rows(study) {
                            tr { th scope="row" { (variable) } td { (chosen) } td { (mode) } td { (incumbent) } }
                        }
                    }
                } }
                @if !space.is_empty() {
                    p { "This command trains the chosen architecture from scratch, while the controller has the study:" }
                    pre { "asng-trainer retrain --study " (study.name) " --out " (study.name) "-retrained" }
                }
            }
        }
        section id="study" { h2 { "Study" } (facts(text::about(study, snapshot.now))) }
        section id="spec" { h2 { "Spec" } (facts(text::spec(study))) }
    }
}
