//! The pages.

use std::time::SystemTime;

use asng_proto::v1::{Progress, Study, StudyState, Trainer};
use axum::http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{
    Prefix,
    drawing::{Drawing, Listing, Part},
};
use crate::pictures::words;

/// The additions of pages to the style sheet of pictures.
pub(super) const STYLE: &str = include_str!("page.css");
/// Keeps a page as its study is. Without it, a reload does.
pub(super) const SCRIPT: &str = include_str!("page.js");
/// The glossary of the manual, a Markdown table of terms and meanings.
const GLOSSARY: &str = include_str!("../../../docs/glossary.md");
/// The page's icon: a distribution.
pub(super) const ICON: &str = include_str!("icon.svg");

/// The frame around a page.
#[derive(Clone, Default)]
pub(super) struct Frame {
    /// The beginning of the addresses of all pages.
    pub(super) prefix: Prefix,
    /// The name of the token of whoever is logged in.
    pub(super) token: Option<String>,
}

fn page(frame: &Frame, title: &str, events: Option<&str>, main: Markup) -> Markup {
    let prefix = &frame.prefix;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · ASNG-NAS" }
                link rel="icon" href={ (prefix) "/assets/icon.svg" };
                link rel="stylesheet" href={ (prefix) "/assets/style.css" };
                script src={ (prefix) "/assets/page.js" } defer {}
            }
            body data-events=[events] {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.home href={ (prefix) "/" } { "ASNG-NAS" }
                    a href={ (prefix) "/glossary" } { "Glossary" }
                    @if let Some(token) = &frame.token {
                        form method="post" action={ (prefix) "/logout" } {
                            span { (token) }
                            button { "Log out" }
                        }
                    }
                }
                p #notice role="status" {}
                main #main tabindex="-1" { (main) }
            }
        }
    }
}

/// States in the order of a study's life.
const STATES: [&str; 6] = ["WAITING", "RUNNING", "PAUSED", "FINISHED", "STOPPED", "FAILED"];

/// The list of studies, and the trainers.
pub(super) fn list(frame: &Frame, listing: &Listing, drawing: &Drawing, events: &str) -> Markup {
    page(
        frame,
        "Studies",
        Some(events),
        html! {
            h1 { "Studies" }
            form.search role="search" action={ (frame.prefix) "/" } {
                label for="name" { "Name contains" }
                input #name type="search" name="name" maxlength="100" value=(listing.name);
                label for="state" { "State" }
                select #state name="state" {
                    option value="" { "any" }
                    @for state in STATES {
                        option value=(state) selected[state == listing.state] { (state) }
                    }
                }
                button { "Search" }
                @if listing.is_filtered() { a href={ (frame.prefix) "/" } { "All studies" } }
            }
            div data-part="parts" { (parts(&drawing.parts)) }
        },
    )
}

/// One study. Controls are for those who may use them.
pub(super) fn study(
    frame: &Frame,
    name: &str,
    drawing: &Drawing,
    may_change: bool,
    events: Option<&str>,
) -> Markup {
    page(
        frame,
        name,
        events,
        html! {
            div.title {
                h1 { (name) }
                div data-part="state" role="status" { (PreEscaped(&drawing.state)) }
                @if may_change { div.controls data-part="controls" { (PreEscaped(&drawing.controls)) } }
            }
            div data-part="parts" { (parts(&drawing.parts)) }
        },
    )
}

/// All parts, each with a place of its own.
pub(super) fn parts(parts: &[Part]) -> Markup {
    html! {
        @for Part { id, title, body } in parts {
            section #(id) {
                @if !title.is_empty() { h2 { (title) } }
                div data-part=(id) { (PreEscaped(body)) }
            }
        }
    }
}

/// A study's state in a word, and what it waits for.
pub(super) fn state(study: &Study) -> Markup {
    let space = study.spec.as_ref().map_or("", |spec| &spec.space);
    html! {
        (badge(study))
        @if study.state() == StudyState::Waiting {
            " " span.note { "for a trainer that serves " code { (space) } }
        }
    }
}

fn badge(study: &Study) -> Markup {
    let state = words::state(study);
    html! { span.state.(state.to_lowercase()) { (state) } }
}

/// Returns the buttons for a study in its state; `elsewhere` is the address of another controller that owns it.
pub(super) fn controls(prefix: &Prefix, study: &Study, elsewhere: Option<&str>) -> Markup {
    let post = |what: &str, label: &str| {
        html! {
            form method="post" action=(format!("{prefix}/studies/{}/{what}", study.name)) {
                button { (label) }
            }
        }
    };
    let stop = || {
        html! {
            form action=(format!("{prefix}/studies/{}/stop", study.name)) { button { "Stop…" } }
        }
    };
    html! {
        @match (elsewhere, study.state()) {
            (Some(""), _) => span.note { "No running controller owns this study." },
            (Some(address), _) => span.note { "The controller at " code { (address) } " owns this study: pause or stop it there." },
            (None, StudyState::Waiting) => (stop()),
            (None, StudyState::Running) => { (post("pause", "Pause")) (stop()) },
            (None, StudyState::Paused) => { (post("resume", "Resume")) (stop()) },
            _ => {}
        }
    }
}

/// Returns the terms of the glossary and their meanings.
fn terms() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = GLOSSARY.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    rows.filter_map(|row| row.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
}

/// The glossary.
pub(super) fn glossary(frame: &Frame) -> Markup {
    // Code stands between backticks.
    let text = |text: &'static str| {
        html! {
            @for (i, part) in text.split('`').enumerate() {
                @if i % 2 == 1 { code { (part) } } @else { (part) }
            }
        }
    };
    page(
        frame,
        "Glossary",
        None,
        html! {
            h1 { "Glossary" }
            dl { @for (term, meaning) in terms() { dt { (term) } dd { (text(meaning)) } } }
        },
    )
}

/// Asks whether a study is to be stopped.
pub(super) fn ask_to_stop(frame: &Frame, study: &Study) -> Markup {
    let Progress { applied, max_steps, .. } = study.progress.unwrap_or_default();
    let here = format!("{}/studies/{}", frame.prefix, study.name);
    page(
        frame,
        &format!("Stop {}", study.name),
        None,
        html! {
            h1 { "Stop " (study.name) "?" }
            p {
                (applied) " of " (max_steps) " steps are done. A stopped study cannot be resumed; its results stay. To continue "
                "later, pause it."
            }
            div.controls {
                form method="post" action={ (here) "/stop" } {
                    button.danger { "Stop the study" }
                }
                a href=(here) { "Back to the study" }
            }
        },
    )
}

/// Asks for a token; `to` is the page that comes after.
pub(super) fn log_in(frame: &Frame, to: &str, fault: Option<&str>) -> Markup {
    page(
        frame,
        "Log in",
        None,
        html! {
            h1 { "Log in" }
            form.login method="post" action={ (frame.prefix) "/login" } {
                label for="token" { "Token" }
                input #token type="password" name="token" required autofocus autocomplete="current-password"
                    aria-describedby="about";
                input type="hidden" name="to" value=(to);
                button { "Log in" }
                @if let Some(fault) = fault { p.fault role="alert" { (fault) } }
                p.note #about {
                    "This controller needs a token; " code { "asng-controller token" } " creates one."
                }
            }
        },
    )
}

/// Says why there is not the page that was asked for.
pub(super) fn refusal(frame: &Frame, code: StatusCode, why: &str) -> Markup {
    let title = code.canonical_reason().unwrap_or("Refused");
    page(
        frame,
        title,
        None,
        html! {
            h1 { (title) }
            p { (why) }
            p { a href={ (frame.prefix) "/" } { "All studies" } }
        },
    )
}

/// A page of the list: studies of `total` that match, each with its speed where it moves, and the page after.
pub(super) fn studies(
    prefix: &Prefix,
    listing: &Listing,
    rows: &[(Study, Option<f64>)],
    total: u32,
    next: Option<&Listing>,
    now: SystemTime,
) -> Markup {
    let newest = listing.after.is_empty();
    let matching = if listing.is_filtered() { " matching" } else { "" };
    let row = |(study, rate): &(Study, Option<f64>)| {
        let Progress { applied, max_steps, .. } = study.progress.unwrap_or_default();
        let share = 100.0 * applied as f64 / max_steps.max(1) as f64;
        let eta = rate.and_then(|rate| words::eta(max_steps.saturating_sub(applied), rate));
        let best = study.incumbent.as_ref().map(|best| words::number(best.loss));
        let age = study.create_time.map(|time| words::age(time, now));
        html! {
            tr {
                th scope="row" { a href=(format!("{prefix}/studies/{}", study.name)) { (study.name) } }
                td { (badge(study)) }
                td.steps {
                    progress max=(max_steps.max(1)) value=(applied.min(max_steps)) aria-label="steps" {
                        (format!("{share:.1} %"))
                    }
                    span { (applied) " / " (max_steps) }
                }
                td.figure.aside { @if let Some(rate) = rate { (format!("{rate:.2}")) " steps/s" } }
                td.figure { @if let Some(eta) = eta { (words::brief(eta)) } }
                td.figure { @if let Some(best) = best { (best) } }
                td.aside { (study.owner) }
                td.figure.aside { @if let Some(age) = age { (age) " ago" } }
            }
        }
    };
    html! {
        @if rows.is_empty() && listing.is_filtered() {
            p { "No study matches." }
        } @else if rows.is_empty() && newest {
            p { "There are no studies yet. Create one and start a trainer, on this machine with" }
            pre { code { "asngctl study create first --space enas-micro --preset quick\nasng-trainer serve" } }
        } @else {
            p.note { (total) (matching) @if total == 1 { " study" } @else { " studies" } }
            div.wide tabindex="0" role="region" aria-label="Studies" { table.studies {
                thead { tr {
                    th scope="col" { "study" }
                    th scope="col" { "state" }
                    th scope="col" { "steps" }
                    th.figure.aside scope="col" { "rate" }
                    th.figure scope="col" { "time left" }
                    th.figure scope="col" { "best" }
                    th.aside scope="col" { "owner" }
                    th.figure.aside scope="col" { "created" }
                } }
                tbody { @for study in rows { (row(study)) } }
            } }
            nav.pages aria-label="Pages" {
                @if !newest { a href={ (prefix) "/" (listing.next(String::new()).query()) } { "Newest" } }
                @if let Some(next) = next { a href={ (prefix) "/" (next.query()) } { "Older" } }
            }
        }
    }
}

/// Trainers in their table, of up to 1000.
const TRAINERS: usize = 100;

/// All trainers of a controller: what each does, and what keeps it from other work.
pub(super) fn trainers(prefix: &Prefix, trainers: &[Trainer], now: SystemTime) -> Markup {
    let row = |trainer: &Trainer| {
        let seen = trainer.last_seen.map(|time| words::age(time, now));
        html! {
            tr {
                th scope="row" { (trainer.trainer_id) }
                td { @if let Some(seen) = seen { (seen) " ago" } }
                td {
                    @if !trainer.study.is_empty() {
                        a href=(format!("{prefix}/studies/{}", trainer.study)) { (trainer.study) }
                    }
                }
                td { (trainer.spaces.join(", ")) }
                td { (trainer.data_sets.join(", ")) }
                td.text { (words::unserved(&trainer.unserved)) }
                td.text { (words::set_aside(&trainer.set_aside)) }
            }
        }
    };
    html! {
        @if trainers.is_empty() {
            p { "No trainer has asked this controller for work since its start. Start one with " code { "asng-trainer serve" } "." }
        } @else {
            div.wide tabindex="0" role="region" aria-label="Trainers" { table.trainers {
                thead { tr {
                    th scope="col" { "trainer" }
                    th scope="col" { "last seen" }
                    th scope="col" { "works on" }
                    th scope="col" { "serves" }
                    th scope="col" { "data sets" }
                    th scope="col" { "cannot serve" }
                    th scope="col" { "set aside" }
                } }
                tbody { @for trainer in trainers.iter().take(TRAINERS) { (row(trainer)) } }
            } }
            @if trainers.len() > TRAINERS { p.note { (TRAINERS) " of " (trainers.len()) " trainers." } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_glossary_of_the_manual_is_shown_as_a_list_of_terms() {
        let rows = GLOSSARY.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(terms().count(), rows - 2, "all rows but the heading and its rule");
        let page = glossary(&Frame::default()).into_string();
        assert!(page.contains("<dt>warm-up</dt>") && page.contains("<code>warmup_steps</code>"));
        assert!(!page.contains('`') && !page.contains(" | "));
    }
}
