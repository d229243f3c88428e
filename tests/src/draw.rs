//! Curves of benchmarks, a panel for each problem.

use std::{ops::Range, path::Path};

use anyhow::Context;
use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, ValueFormatter},
    },
    prelude::*,
};

/// Width and height of a panel, in pixels.
const PANEL: (u32, u32) = (560, 420);

/// Points in order.
pub struct Curve {
    /// For people.
    pub label: String,
    /// The points.
    pub points: Vec<(f64, f64)>,
}

/// The axes of every panel.
pub struct Axes {
    /// Title of the horizontal axis.
    pub x: &'static str,
    /// By which factor, from one line to the next; absent: the axis is linear.
    pub base: Option<f64>,
    /// Title of the vertical axis.
    pub y: &'static str,
    /// Where that begins; below the lowest point when absent.
    pub bottom: Option<f64>,
}

/// Writes an SVG file of panels, each a title and curves.
pub fn draw(file: &Path, axes: &Axes, panels: &[(String, Vec<Curve>)]) -> anyhow::Result<()> {
    let size = (PANEL.0, PANEL.1 * panels.len() as u32);
    let area = SVGBackend::new(file, size).into_drawing_area();
    area.fill(&WHITE)?;
    for (area, (title, curves)) in area.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let range = |values: &mut dyn Iterator<Item = f64>| {
            let (low, high) = values
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                    (low.min(value), high.max(value))
                });
            low..high
        };
        let across = range(&mut points().map(|point| point.0));
        let up = range(&mut points().map(|point| point.1));
        let margin = 0.05 * (up.end - up.start);
        let up = axes.bottom.unwrap_or(up.start - margin)..up.end + margin;
        match axes.base {
            Some(base) => panel(area, title, axes, (across.log_scale().base(base), up), curves)?,
            None => panel(area, title, axes, (across, up), curves)?,
        }
    }
    area.present().with_context(|| format!("cannot write {}", file.display()))
}

fn panel<X>(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    axes: &Axes,
    (across, up): (X, Range<f64>),
    curves: &[Curve],
) -> anyhow::Result<()>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(24)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(across, up)?;
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (i, Curve { label, points }) in curves.iter().enumerate() {
        let style = Palette99::pick(i).stroke_width(2);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style);
        chart.draw_series(LineSeries::new(points.iter().copied(), style))?.label(label).legend(key);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
