//! The pages.

use std::time::SystemTime;

use asng_proto::v1::{Progress, Study, StudyState};
use axum::http::StatusCode;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::drawing::{Drawing, Part};
use crate::pictures::words;

/// What pages add to the style sheet of pictures.
pub(super) const STYLE: &str = include_str!("page.css");
/// Keeps a page as its study is. Without it, a reload does.
pub(super) const SCRIPT: &str = include_str!("page.js");
/// The page's icon: a distribution.
pub(super) const ICON: &str = include_str!("icon.svg");

/// What is around a page.
#[derive(Default)]
pub(super) struct Frame {
    /// The name of the token of whoever is logged in.
    pub(super) token: Option<String>,
}

fn page(frame: &Frame, title: &str, events: Option<&str>, main: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · ASNG-NAS" }
                link rel="icon" href="/assets/icon.svg";
                link rel="stylesheet" href="/assets/style.css";
                script src="/assets/page.js" defer {}
            }
            body data-events=[events] {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.home href="/" { "ASNG-NAS" }
                    @if let Some(token) = &frame.token {
                        form method="post" action="/logout" {
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

/// The list of studies.
pub(super) fn list(frame: &Frame, drawing: &Drawing, events: &str) -> Markup {
    page(
        frame,
        "Studies",
        Some(events),
        html! {
            h1 { "Studies" }
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
            span.note { "for a trainer that serves " code { (space) } }
        }
    }
}

fn badge(study: &Study) -> Markup {
    let state = words::state(study);
    html! { span.state.(state.to_lowercase()) { (state) } }
}

/// What can be done with a study in its state; `elsewhere` is the address of another controller that owns it.
pub(super) fn controls(study: &Study, elsewhere: Option<&str>) -> Markup {
    let post = |what: &str, label: &str| {
        html! {
            form method="post" action=(format!("/studies/{}/{what}", study.name)) {
                button { (label) }
            }
        }
    };
    let stop = || {
        html! {
            form action=(format!("/studies/{}/stop", study.name)) { button { "Stop…" } }
        }
    };
    html! {
        @match (elsewhere, study.state()) {
            (Some(""), _) => span.note { "No controller owns this study now." },
            (Some(address), _) => span.note { "Owned by the controller at " code { (address) } ", where it can be paused and stopped." },
            (None, StudyState::Waiting) => (stop()),
            (None, StudyState::Running) => { (post("pause", "Pause")) (stop()) },
            (None, StudyState::Paused) => { (post("resume", "Resume")) (stop()) },
            _ => {}
        }
    }
}

/// Asks whether a study is to be stopped.
pub(super) fn ask_to_stop(frame: &Frame, study: &Study) -> Markup {
    let Progress { applied, max_steps, .. } = study.progress.unwrap_or_default();
    page(
        frame,
        &format!("Stop {}", study.name),
        None,
        html! {
            h1 { "Stop " (study.name) "?" }
            p {
                "It has done " (applied) " of " (max_steps) " steps. Stopping ends it for good: what has been found stays, but it "
                "cannot be resumed. To go on later, pause it."
            }
            div.controls {
                form method="post" action=(format!("/studies/{}/stop", study.name)) {
                    button.danger { "Stop it for good" }
                }
                a href=(format!("/studies/{}", study.name)) { "Back to the study" }
            }
        },
    )
}

/// Asks for a token; `to` is the page that comes after.
pub(super) fn log_in(to: &str, fault: Option<&str>) -> Markup {
    page(
        &Frame::default(),
        "Log in",
        None,
        html! {
            h1 { "Log in" }
            form.login method="post" action="/login" {
                label for="token" { "Token" }
                input #token type="password" name="token" required autofocus autocomplete="current-password"
                    aria-describedby="about";
                input type="hidden" name="to" value=(to);
                button { "Log in" }
                @if let Some(fault) = fault { p.fault role="alert" { (fault) } }
                p.note #about {
                    "This controller shows its studies to whoever has one of its tokens, which "
                    code { "asng-controller token" } " makes."
                }
            }
        },
    )
}

/// Says why there is not the page that was asked for.
pub(super) fn refusal(code: StatusCode, why: &str) -> Markup {
    let title = code.canonical_reason().unwrap_or("Refused");
    page(
        &Frame::default(),
        title,
        None,
        html! {
            h1 { (title) }
            p { (why) }
            p { a href="/" { "All studies" } }
        },
    )
}

/// A page of the list: studies, each with its speed where it moves, and the token of the page after.
pub(super) fn studies(
    rows: &[(Study, Option<f64>)],
    next: &str,
    newest: bool,
    now: SystemTime,
) -> Markup {
    let row = |(study, rate): &(Study, Option<f64>)| {
        let Progress { applied, max_steps, .. } = study.progress.unwrap_or_default();
        let share = 100.0 * applied as f64 / max_steps.max(1) as f64;
        let eta = rate.and_then(|rate| words::eta(max_steps.saturating_sub(applied), rate));
        let best = study.incumbent.as_ref().map(|best| words::number(best.loss));
        let age = study.create_time.map(|time| words::age(time, now));
        html! {
            tr {
                th scope="row" { a href=(format!("/studies/{}", study.name)) { (study.name) } }
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
        @if rows.is_empty() && newest {
            p { "There are no studies yet. On this machine," }
            pre { code { "asngctl study create first --space enas-micro --preset quick" } }
            p { "creates one; " code { "asng-trainer serve" } " works on it." }
        } @else {
            div.wide tabindex="0" role="region" aria-label="Studies" { table.studies {
                thead { tr {
                    th scope="col" { "study" }
                    th scope="col" { "state" }
                    th scope="col" { "steps" }
                    th.figure.aside scope="col" { "rate" }
                    th.figure scope="col" { "time left" }
                    th.figure scope="col" { "best loss" }
                    th.aside scope="col" { "owner" }
                    th.figure.aside scope="col" { "created" }
                } }
                tbody { @for study in rows { (row(study)) } }
            } }
            nav.pages aria-label="Pages" {
                @if !newest { a href="/" { "Newest" } }
                @if !next.is_empty() { a href=(format!("/?after={next}")) { "Older" } }
            }
        }
    }
}
