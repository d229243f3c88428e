//! Pictures of one width, side by side where there is room.

use maud::{Markup, html};

/// Width of every panel. Where it is drawn it may be scaled.
pub(super) const WIDTH: f64 = 480.0;
/// Between panels in a file.
const GAP: f64 = 24.0;

/// A drawing with words that say the same.
pub(super) struct Panel {
    /// Its drawing is this wide, scaled to [`WIDTH`] where it is another.
    pub(super) width: f64,
    /// Its height, in the unit of `width`.
    pub(super) height: f64,
    /// The essence in words.
    pub(super) label: String,
    /// Elements of SVG.
    pub(super) body: Markup,
}

impl Panel {
    fn view_box(&self) -> String {
        format!("0 0 {:.0} {:.0}", self.width, self.height)
    }
}

/// Panels within a page, which flow as the page is wide.
pub(super) fn within_page(panels: &[Panel]) -> Markup {
    html! {
        div.panels {
            @for panel in panels {
                svg role="img" aria-label=(panel.label) viewBox=(panel.view_box())
                    xmlns="http://www.w3.org/2000/svg" { (panel.body) }
            }
        }
    }
}

/// Panels as a file of SVG, in two columns.
pub(super) fn file(title: &str, style: &str, panels: &[Panel]) -> String {
    let columns = panels.len().min(2);
    let width = columns as f64 * (WIDTH + GAP) + GAP;
    let mut heights = vec![GAP; columns];
    let placed: Vec<_> = panels
        .iter()
        .enumerate()
        .map(|(i, panel)| {
            let (column, height) = (i % columns, panel.height * WIDTH / panel.width);
            let top = heights[column];
            heights[column] += height + GAP;
            (GAP + column as f64 * (WIDTH + GAP), top, height, panel)
        })
        .collect();
    let height = heights.iter().fold(0.0_f64, |high, &height| high.max(height));
    let markup = html! {
        svg xmlns="http://www.w3.org/2000/svg" role="img" width=(width) height=(format!("{height:.0}"))
            viewBox=(format!("0 0 {width} {height:.0}")) {
            title { (title) }
            style { (maud::PreEscaped(style)) }
            rect width=(width) height=(format!("{height:.0}")) fill=(super::ink::Ink::Surface) {}
            @for (left, top, height, panel) in placed {
                svg role="img" aria-label=(panel.label) x=(left) y=(format!("{top:.1}")) width=(WIDTH)
                    height=(format!("{height:.1}")) viewBox=(panel.view_box()) { (panel.body) }
            }
        }
    };
    // Names may hold what XML cannot.
    let allowed =
        |c| c >= ' ' && c != '\u{FFFE}' && c != '\u{FFFF}' || matches!(c, '\t' | '\n' | '\r');
    markup.into_string().chars().map(|c| if allowed(c) { c } else { '\u{FFFD}' }).collect()
}
