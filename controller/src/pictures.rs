//! Pictures and tables of a study, for the page, for files and for reports: SVG and HTML from the replies of StudyService.
//! Colours are those of the style sheet, so that a page can be light or dark.

mod cells;
mod chain;
mod chart;
mod course;
mod front;
mod ink;
pub mod notes;
mod panel;
mod tables;
#[cfg(test)]
mod tests;
mod theta;
pub mod words;

use std::time::SystemTime;

use asng_proto::v1;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::{notes::Note, panel::Panel};

/// The style sheet of the page, of reports and of pictures.
pub const STYLE: &str = include_str!("pictures/style.css");

/// All that is shown of a study, as StudyService answers it.
#[derive(Clone, Debug)]
pub struct StudySnapshot {
    /// The study.
    pub study: v1::Study,
    /// The distribution that it samples from; absent while its variables are not known.
    pub distribution: Option<v1::GetDistributionResponse>,
    /// How the search went, oldest first.
    pub trace: Vec<v1::TracePoint>,
    /// The latest of its history, newest first.
    pub reports: Vec<v1::Report>,
    /// The trainers that have worked on it.
    pub trainers: Vec<v1::Trainer>,
    /// Notes about the study for people.
    pub notes: Vec<Note>,
    /// Steps per second, where that is known.
    pub rate: Option<f64>,
    /// The time of the requests.
    pub now: SystemTime,
}

impl StudySnapshot {
    /// A study of which nothing else is known.
    pub fn of(study: v1::Study, now: SystemTime) -> StudySnapshot {
        StudySnapshot {
            study,
            distribution: None,
            trace: Vec::new(),
            reports: Vec::new(),
            trainers: Vec::new(),
            notes: Vec::new(),
            rate: None,
            now,
        }
    }
}

/// A part of a study's page or report: a heading and a picture or table that is drawn anew when it changes.
pub struct Section {
    /// Names it within a page.
    pub id: &'static str,
    /// Its heading.
    pub title: &'static str,
    /// The content below the heading.
    pub body: Markup,
}

/// The sections that have something to show, in the order of reading.
pub fn sections(snapshot: &StudySnapshot) -> Vec<Section> {
    let section = |id, title, body| Section { id, title, body };
    let drawn = |id, title, panels: Vec<Panel>| {
        (!panels.is_empty()).then(|| section(id, title, panel::within_page(&panels)))
    };
    let theta = drawn("theta", "Distribution", theta::panels(snapshot)).map(|theta| {
        let note = theta::note(snapshot);
        let body = html! { (theta.body) @if let Some(note) = note { p.note { (note) } } };
        Section { body, ..theta }
    });
    let losses = course::losses(snapshot).into_iter().chain(course::metrics(snapshot)).collect();
    let (losses_title, front_title) = match words::maximizes(&snapshot.study) {
        true => ("Values and metrics", "Value against cost"),
        false => ("Losses and metrics", "Loss against cost"),
    };
    let trainers = tables::trainers(snapshot).map(|table| section("trainers", "Trainers", table));
    let reports =
        tables::reports(snapshot).map(|table| section("reports", "Recent reports", table));
    let all = [
        Some(section("progress", "Progress", tables::progress(snapshot))),
        theta,
        drawn("convergence", "Convergence", course::convergence(snapshot)),
        drawn("loss", losses_title, losses),
        drawn("architecture", "Current best guess", architecture(snapshot)),
        drawn("front", front_title, front::panels(snapshot)),
        trainers,
        reports,
    ];
    all.into_iter().flatten().collect()
}

/// The final architecture as graphs of cells, or as a chain.
fn architecture(snapshot: &StudySnapshot) -> Vec<Panel> {
    cells::panels(snapshot).into_iter().chain(chain::panels(snapshot)).collect()
}

/// A document of HTML that needs no other file and asks for none.
pub fn document(title: &str, body: &Markup) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { (body) }
        }
    };
    document.into_string()
}

/// A picture that stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Picture {
    /// The distribution as a heat map.
    Theta,
    /// Convergence, entropy, Delta and signal-to-noise ratio.
    Convergence,
    /// Losses of ranked architectures.
    Loss,
    /// The final architecture as graphs of cells, or as a chain of blocks.
    Architecture,
    /// Loss against cost.
    Front,
}

/// A study has nothing that a picture could show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Nothing(&'static str);

/// Draws one picture as an SVG file with its style inside.
pub fn svg(picture: Picture, snapshot: &StudySnapshot) -> Result<String, Nothing> {
    let maximizes = words::maximizes(&snapshot.study);
    let no_trace = if words::warm_up(&snapshot.study).is_some() { WARM_UP } else { NO_TRACE };
    let (what, panels, nothing) = match picture {
        Picture::Theta => {
            let nothing = "the study's variables are not known yet: there is no distribution";
            ("distribution", theta::panels(snapshot), nothing)
        }
        Picture::Convergence => ("convergence", course::convergence(snapshot), NO_TRACE),
        Picture::Loss => {
            let what = if maximizes { "values" } else { "losses" };
            (what, course::losses(snapshot), no_trace)
        }
        Picture::Architecture => {
            let nothing = "no graph can be drawn: no variable is named NODE.input, CELL.NODE.input, CELL.NODE.from0 or \
                           stage0.block0 (docs/external-trainers.md describes these names)";
            ("architecture", architecture(snapshot), nothing)
        }
        Picture::Front => {
            let what = if maximizes { "value against cost" } else { "loss against cost" };
            (what, front::panels(snapshot), "no report of the study has costs")
        }
    };
    if panels.is_empty() {
        return Err(Nothing(nothing));
    }
    Ok(panel::file(&format!("{}: {what}", snapshot.study.name), STYLE, &panels))
}

const WARM_UP: &str = "no architecture has been ranked yet: the study is in its warm-up, whose steps train the weights alone";
const NO_TRACE: &str = "the controller has no trace of the search: no report has been applied yet, or the controller is older \
                        than this program";
