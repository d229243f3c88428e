//! The distribution as a heat map: a row for each variable, a cell for each choice.

use std::ops::Range;

use asng_proto::v1::{IntegerMarginal, Marginal, Variable, marginal, variable::Kind};
use maud::{Markup, html};

use super::{
    StudySnapshot,
    ink::Ink,
    panel::{Panel, WIDTH},
    words,
};

const ROW: f64 = 20.0;
/// Where the rows begin: below the heading of their panel.
const TOP: f64 = 24.0;
/// Where the cells begin: beside the names of the variables.
const LEFT: f64 = 124.0;
/// The largest width of a letter of a name, and of a choice.
const LETTER: f64 = 6.1;
const SMALL_LETTER: f64 = 5.4;
/// From this probability on a cell is so strong that words on it are better read in the colour of the surface.
const DARK: f64 = 0.7;
/// Rows in one panel, when their names tell no groups.
const ROWS: usize = 20;
/// Variables that are drawn.
const VARIABLES: usize = 256;
/// Cells that are drawn, and of these in a row.
const CELLS: usize = 4096;
const ROW_CELLS: Range<usize> = 16..64;

/// The panels, or none while the variables are not known.
pub(super) fn panels(snapshot: &StudySnapshot) -> Vec<Panel> {
    let marginals = snapshot.distribution.as_ref().map_or(&[][..], |d| &d.marginals);
    let rows: Vec<Row<'_>> = marginals
        .iter()
        .zip(&snapshot.study.variables)
        .take(VARIABLES)
        .map(|(marginal, variable)| Row { marginal, variable, fixed: is_fixed(snapshot, variable) })
        .collect();
    let cells = (CELLS / rows.len().max(1)).clamp(ROW_CELLS.start, ROW_CELLS.end);
    groups(&rows).into_iter().map(|(name, rows)| panel(name, &rows, cells)).collect()
}

/// Returns the note below the panels, if some variables are left out.
pub(super) fn note(snapshot: &StudySnapshot) -> Option<String> {
    let variables = snapshot.distribution.as_ref()?.marginals.len();
    (variables > VARIABLES).then(|| {
        format!("The first {VARIABLES} of {variables} variables; `asngctl study distribution` prints all.")
    })
}

struct Row<'a> {
    marginal: &'a Marginal,
    variable: &'a Variable,
    fixed: bool,
}

fn is_fixed(snapshot: &StudySnapshot, variable: &Variable) -> bool {
    let by_itself = match &variable.kind {
        Some(Kind::Categorical(c)) => c.choices.len() == 1,
        Some(Kind::Integer(i)) => i.low == i.high,
        None => false,
    };
    by_itself
        || snapshot.study.spec.as_ref().is_some_and(|spec| spec.fixed.contains_key(&variable.name))
}

/// The rows of a panel by the cell in their names, as `normal` in `normal.node0.op1`; else so many to a panel, a node in one.
fn groups<'a, 'b>(rows: &'b [Row<'a>]) -> Vec<(Option<&'a str>, Vec<&'b Row<'a>>)> {
    let cell = |row: &Row<'a>| row.variable.name.rsplitn(3, '.').nth(2).unwrap_or_default();
    let cells: Vec<&[Row<'_>]> = rows.chunk_by(|a, b| cell(a) == cell(b)).collect();
    if cells.len() > 1 && cells.iter().all(|rows| (4..=2 * ROWS).contains(&rows.len())) {
        return cells.iter().map(|rows| (Some(cell(&rows[0])), rows.iter().collect())).collect();
    }
    let node = |row: &Row<'a>| row.variable.name.rsplit_once('.').map(|(node, _)| node);
    let each = rows.len().div_ceil(rows.len().div_ceil(ROWS).max(1));
    let mut panels: Vec<(Option<&str>, Vec<&Row<'_>>)> = Vec::new();
    for rows in rows.chunk_by(|a, b| node(a).is_some() && node(a) == node(b)) {
        match panels.last_mut() {
            Some((_, panel)) if panel.len() < each && panel.len() + rows.len() <= 2 * ROWS => {
                panel.extend(rows);
            }
            _ => panels.push((None, rows.iter().collect())),
        }
    }
    panels
}

fn panel(group: Option<&str>, rows: &[&Row<'_>], cells: usize) -> Panel {
    let top = if group.is_some_and(|name| !name.is_empty()) { TOP } else { 2.0 };
    let body = html! {
        @if let Some(name) = group {
            text x="0" y="13" font-size="13" font-weight="600" fill=(Ink::Text) { (words::short(name, 60)) }
        }
        @for (i, row) in rows.iter().enumerate() {
            g transform=(format!("translate(0 {})", top + i as f64 * ROW)) {
                (name(group, row))
                @match &row.marginal.kind {
                    Some(marginal::Kind::Categorical(c)) => (choices(row, &c.probabilities, cells)),
                    Some(marginal::Kind::Integer(i)) => (integer(row, i)),
                    None => {}
                }
            }
        }
    };
    let likely: Vec<_> = rows.iter().map(|row| likeliest(row)).collect();
    let label = format!("The most likely value of each variable: {}", likely.join(", "));
    Panel { width: WIDTH, height: top + rows.len() as f64 * ROW + 2.0, label, body }
}

fn name(group: Option<&str>, row: &Row<'_>) -> Markup {
    let name = &row.variable.name;
    let shown = group.and_then(|group| name.strip_prefix(group)).unwrap_or(name);
    let shown = shown.trim_start_matches('.');
    let ink = if row.fixed { Ink::Faint } else { Ink::Text };
    let letters = ((LEFT - 8.0) / LETTER) as usize;
    html! {
        text x=(LEFT - 8.0) y="14" font-size="11" text-anchor="end" fill=(ink) {
            (words::short(shown, letters))
            @if shown.chars().count() > letters { title { (name) } }
        }
    }
}

/// A cell for each choice, or for some neighbours where there are more than `cells`.
fn choices(row: &Row<'_>, probabilities: &[f64], cells: usize) -> Markup {
    let choices = probabilities.len();
    let each = choices.div_ceil(cells).max(1);
    let width = (WIDTH - LEFT) / choices.div_ceil(each).max(1) as f64;
    let gap = if width > 8.0 { 2.0 } else { 0.5 };
    let cell = |(i, chunk): (usize, &[f64])| {
        let first = i * each;
        // Their sum, between 0 and 1 whatever the wire brings.
        let p = chunk.iter().sum::<f64>().clamp(0.0, 1.0);
        let p = if p.is_nan() { 0.0 } else { p };
        let of = |choice: usize| words::choice(row.variable, choice as i64);
        let name = match chunk.len() {
            1 => of(first),
            n => format!("{} to {}", of(first), of(first + n - 1)),
        };
        let fixed = if row.fixed { ", fixed" } else { "" };
        let title = format!("{} = {name}: {p:.3}{fixed}", row.variable.name);
        let fits = name.chars().count() as f64 * SMALL_LETTER < width - gap - 2.0;
        let ink = if p > DARK && !row.fixed { Ink::Surface } else { Ink::Text };
        let colour = if row.fixed { Ink::Grid } else { Ink::Blue };
        let x = LEFT + i as f64 * width;
        html! {
            g {
                title { (title) }
                rect x=(format!("{x:.1}")) y="1" width=(format!("{:.1}", width - gap)) height=(ROW - 2.0)
                    fill=(Ink::Grid) fill-opacity="0.4" {}
                @if p > 0.0 {
                    rect x=(format!("{x:.1}")) y="1" width=(format!("{:.1}", width - gap)) height=(ROW - 2.0)
                        fill=(colour) fill-opacity=(format!("{p:.3}")) {}
                }
                @if fits {
                    text x=(format!("{:.1}", x + (width - gap) / 2.0)) y="13.5" font-size="9.5" text-anchor="middle"
                        fill=(ink) { (name) }
                }
            }
        }
    };
    html! { @for chunk in probabilities.chunks(each).enumerate() { (cell(chunk)) } }
}

/// The range as a line, what lies within a deviation as a band, the mean as a stroke.
fn integer(row: &Row<'_>, marginal: &IntegerMarginal) -> Markup {
    let Some(Kind::Integer(bounds)) = &row.variable.kind else { return html! {} };
    let (low, high) = (bounds.low as f64, bounds.high as f64);
    let (left, right) = (LEFT + 42.0, WIDTH - 44.0);
    let place = |value: f64| {
        let share = if high > low { (value - low) / (high - low) } else { 0.5 };
        let share = if share.is_nan() { 0.5 } else { share.clamp(0.0, 1.0) };
        left + share * (right - left)
    };
    let IntegerMarginal { mean, deviation } = *marginal;
    let (from, to, at) = (place(mean - deviation), place(mean + deviation), place(mean));
    let colour = if row.fixed { Ink::Faint } else { Ink::Blue };
    let fixed = if row.fixed { ", fixed" } else { "" };
    let title = format!(
        "{}: mean {mean:.2}, deviation {deviation:.2}, of {} to {}{fixed}",
        row.variable.name, bounds.low, bounds.high
    );
    let value = format!("{mean:.1}");
    html! {
        g {
            title { (title) }
            rect x=(LEFT) y="1" width=(WIDTH - LEFT - 2.0) height=(ROW - 2.0) fill=(Ink::Grid) fill-opacity="0.4" {}
            text x=(left - 6.0) y="13.5" font-size="9.5" text-anchor="end" fill=(Ink::Faint) { (bounds.low) }
            text x=(right + 6.0) y="13.5" font-size="9.5" fill=(Ink::Faint) { (bounds.high) }
            line x1=(left) x2=(right) y1="10" y2="10" stroke=(Ink::Faint) stroke-width="0.75" {}
            rect x=(format!("{from:.1}")) y="4" width=(format!("{:.1}", to - from)) height="12" fill=(colour)
                fill-opacity="0.35" {}
            line x1=(format!("{at:.1}")) x2=(format!("{at:.1}")) y1="2" y2="18" stroke=(colour) stroke-width="2.5" {}
            @if at > (left + right) / 2.0 {
                text x=(format!("{:.1}", from.min(at) - 4.0)) y="13.5" font-size="9.5" text-anchor="end" fill=(Ink::Text)
                    stroke=(Ink::Surface) stroke-width="2" paint-order="stroke" { (value) }
            } @else {
                text x=(format!("{:.1}", to.max(at) + 4.0)) y="13.5" font-size="9.5" fill=(Ink::Text)
                    stroke=(Ink::Surface) stroke-width="2" paint-order="stroke" { (value) }
            }
        }
    }
}

/// A row in words.
fn likeliest(row: &Row<'_>) -> String {
    let name = &row.variable.name;
    match &row.marginal.kind {
        Some(marginal::Kind::Categorical(c)) => {
            let best = (0..).zip(&c.probabilities).max_by(|a, b| a.1.total_cmp(b.1));
            let (choice, p) = best.unwrap_or((0, &0.0));
            format!("{name} {} {p:.2}", words::choice(row.variable, choice))
        }
        Some(marginal::Kind::Integer(i)) => format!("{name} {:.1} ± {:.1}", i.mean, i.deviation),
        None => name.clone(),
    }
}
