//! Curves over two axes.

use std::ops::Range;

use maud::{PreEscaped, html};
use plotters::{
    coord::{
        CoordTranslate,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
        types::RangedCoordf64,
    },
    prelude::*,
};

use super::{
    ink::Ink,
    panel::{Panel, WIDTH},
    words::short,
};

/// Height of a chart.
const HEIGHT: f64 = 246.0;
/// The height below the axis: the ticks, and the name of the axis.
const BELOW: f64 = 38.0;
/// plotters knows whole pixels only, so it is given smaller ones: this many to one of ours.
const FINE: f64 = 4.0;
/// Size of the letters at axes, and what one of them is wide at most.
const LETTERS: f64 = 11.0;
const LETTER: f64 = 6.0;
/// Least distance between the baselines of two labels.
const LABEL_GAP: f64 = 13.0;
/// The largest value that has a place on an axis.
const LARGE: f64 = 1e100;

/// A chart.
pub(super) struct Chart {
    /// The title, above the chart.
    pub(super) title: String,
    /// The name of the horizontal axis.
    pub(super) x: String,
    /// How values go upwards.
    pub(super) scale: Scale,
    /// The layers, the lowest first.
    pub(super) layers: Vec<Layer>,
}

/// How values go upwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0 to 1.
    Unit,
    /// As far as there are values; logarithmic where they are positive and far apart.
    Fit,
}

/// Something in one colour.
pub(super) struct Layer {
    pub(super) ink: Ink,
    pub(super) shape: Shape,
}

/// A shape. Values that are not finite are left out.
pub(super) enum Shape {
    /// A curve, named at its end.
    Line { points: Vec<(f64, f64)>, label: String },
    /// An area between curves: x, low, high.
    Band(Vec<(f64, f64, f64)>),
    /// Points.
    Dots(Vec<(f64, f64)>),
    /// A circle around a point, named.
    Ring { at: (f64, f64), label: String },
    /// A level, named at its end.
    Level { y: f64, label: String },
    /// A vertical line, named at its top.
    Upright { x: f64, label: String },
    /// A light area between two places, from the bottom to the top, named there.
    Span { x: [f64; 2], label: String },
    /// Short lines at the bottom.
    Rug(Vec<f64>),
}

impl Shape {
    /// The points that it must have room for.
    fn points(&self) -> Vec<(f64, f64)> {
        match self {
            Shape::Line { points, .. } | Shape::Dots(points) => points.clone(),
            Shape::Band(band) => {
                band.iter().flat_map(|&(x, low, high)| [(x, low), (x, high)]).collect()
            }
            Shape::Ring { at, .. } => vec![*at],
            Shape::Level { .. } | Shape::Upright { .. } | Shape::Span { .. } | Shape::Rug(_) => {
                Vec::new()
            }
        }
    }
}

/// Words beside the chart: where, in which colour.
struct Label {
    y: f64,
    ink: Ink,
    text: String,
}

impl Chart {
    /// Draws it, if there is a point to be drawn.
    pub(super) fn draw(&self) -> Option<Panel> {
        let points: Vec<_> = self.layers.iter().flat_map(|layer| layer.shape.points()).collect();
        let points = points.into_iter().filter(|&(x, y)| fits(x) && fits(y));
        let (xs, ys): (Vec<f64>, Vec<f64>) = points.unzip();
        let levels = self.layers.iter().filter_map(|layer| match layer.shape {
            Shape::Level { y, .. } if fits(y) => Some(y),
            _ => None,
        });
        let strokes = self.layers.iter().flat_map(|layer| match &layer.shape {
            Shape::Upright { x, .. } => std::slice::from_ref(x),
            Shape::Span { x, .. } => x,
            Shape::Rug(xs) => xs,
            _ => &[],
        });
        let xs = span(xs.iter().chain(strokes).copied().filter(|&x| fits(x)))?;
        let ys = span(ys.iter().copied().chain(levels))?;
        let log = self.scale == Scale::Fit && ys.start > 0.0 && ys.end / ys.start >= 100.0;
        // Memory can be written to; plotters has no other cause to fail.
        self.draw_within(roomy(xs, 0.0), ys, log).ok()
    }

    fn draw_within(
        &self,
        xs: Range<f64>,
        ys: Range<f64>,
        log: bool,
    ) -> Result<Panel, Box<dyn std::error::Error>> {
        // From here on y is its logarithm if the axis is logarithmic.
        let up = |y: f64| if log { y.log10() } else { y };
        let ys = match self.scale {
            Scale::Unit => 0.0..1.0,
            Scale::Fit => roomy(up(ys.start)..up(ys.end), 0.06),
        };
        let (x_ticks, y_ticks) = (ticks(&xs, 5), if log { decades(&ys) } else { ticks(&ys, 5) });
        let (x_text, y_text) = (labels(&x_ticks), labels(&y_ticks));
        let y_text: Vec<String> = if log {
            y_ticks.iter().map(|&y| plain(10_f64.powi(y as i32), 0)).collect()
        } else {
            y_text
        };
        let word = |ticks: &[f64], text: &[String], value: f64| {
            let tick = ticks.iter().position(|&tick| tick == value);
            tick.map(|tick| text[tick].clone()).unwrap_or_default()
        };
        let ends = self.layers.iter().map(|layer| match &layer.shape {
            Shape::Line { label, .. } | Shape::Level { label, .. } => label.chars().count(),
            _ => 0,
        });
        let right = 10.0 + LETTER * ends.max().unwrap_or(0) as f64;
        let left = 10.0 + LETTER * y_text.iter().map(String::len).max().unwrap_or(0) as f64;

        let mut svg = String::new();
        let size = (fine(WIDTH) as u32, fine(HEIGHT) as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(fine(30.0))
            .margin_right(fine(right))
            .x_label_area_size(fine(BELOW))
            .y_label_area_size(fine(left))
            .build_cartesian_2d(
                Axis { range: xs.clone(), ticks: x_ticks.clone() },
                Axis { range: ys.clone(), ticks: y_ticks.clone() },
            )?;
        // The backend divides what it is given by 1.24.
        let letters = ("sans-serif", LETTERS * FINE * 1.24).into_font().color(&Ink::Faint.rgb());
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(Ink::Grid.rgb().stroke_width(3))
            .bold_line_style(Ink::Grid.rgb().stroke_width(3))
            .light_line_style(TRANSPARENT)
            .label_style(letters)
            .set_all_tick_mark_size(fine(3.0))
            .x_label_formatter(&|&x| word(&x_ticks, &x_text, x))
            .y_label_formatter(&|&y| word(&y_ticks, &y_text, y))
            .draw()?;

        // What is beyond an axis may have no place in whole pixels.
        let unit = self.scale == Scale::Unit;
        let within =
            |&(x, y): &(f64, f64)| fits(x) && fits(y) && (!unit || (0.0..=1.0).contains(&y));
        let frame = chart.as_coord_spec().clone();
        let place = |x: f64, y: f64| {
            let (x, y) = frame.translate(&(x, y));
            (f64::from(x) / FINE, f64::from(y) / FINE)
        };
        let (mut beside, mut above) = (Vec::new(), Vec::new());
        let mut essence = Vec::new();
        for Layer { ink, shape } in &self.layers {
            let colour = ink.rgb();
            match shape {
                Shape::Line { points, label } => {
                    let points: Vec<_> = points.iter().copied().filter(within).collect();
                    let Some(&(x, y)) = points.last() else { continue };
                    essence.push(
                        format!("{label} {} at the end", plain(y, 3)).trim_start().to_owned(),
                    );
                    if !label.is_empty() {
                        beside.push(Label { y: place(x, up(y)).1, ink: *ink, text: label.clone() });
                    }
                    let curve = points.iter().map(|&(x, y)| (x, up(y)));
                    if points.len() == 1 {
                        let dot = Circle::new((x, up(y)), fine(2.5), colour.filled());
                        chart.draw_series([dot])?;
                    } else {
                        chart.draw_series(LineSeries::new(curve, colour.stroke_width(7)))?;
                    }
                }
                Shape::Band(band) => {
                    let low = band.iter().map(|&(x, low, _)| (x, low));
                    let high = band.iter().rev().map(|&(x, _, high)| (x, high));
                    let around = low.chain(high).filter(|p| within(p)).map(|(x, y)| (x, up(y)));
                    let around: Vec<_> = around.collect();
                    chart.draw_series([Polygon::new(around, colour.mix(0.18))])?;
                }
                Shape::Dots(points) => {
                    let points = points.iter().copied().filter(within);
                    let dot = |(x, y)| Circle::new((x, up(y)), fine(1.8), colour.filled());
                    chart.draw_series(points.map(dot))?;
                }
                Shape::Ring { at: at @ (x, y), label } if within(at) => {
                    let style = colour.stroke_width(7);
                    chart.draw_series([Circle::new((*x, up(*y)), fine(5.0), style)])?;
                    let (x, y) = place(*x, up(*y));
                    above.push((x + 8.0, y - 7.0, *ink, label));
                }
                Shape::Level { y, label } if within(&(0.0, *y)) => {
                    let line = [(xs.start, up(*y)), (xs.end, up(*y))];
                    chart.draw_series(LineSeries::new(line, colour.stroke_width(4)))?;
                    let y = place(xs.end, up(*y)).1;
                    beside.push(Label { y, ink: *ink, text: label.clone() });
                }
                Shape::Upright { x, label } if fits(*x) => {
                    let line = [(*x, ys.start), (*x, ys.end)];
                    chart.draw_series(LineSeries::new(line, colour.stroke_width(4)))?;
                    let x = place(*x, ys.end).0;
                    above.push((x, 27.0, *ink, label));
                }
                Shape::Span { x: [from, to], label } if fits(*from) && fits(*to) => {
                    let corners = [(*from, ys.start), (*to, ys.end)];
                    chart.draw_series([Rectangle::new(corners, colour.mix(0.5).filled())])?;
                    above.push((place(*from, ys.end).0, 27.0, Ink::Faint, label));
                    essence.push(format!("{label} until {}", plain(*to, 0)));
                }
                Shape::Rug(xs) => {
                    let height = 0.04 * (ys.end - ys.start);
                    let line = |&x: &f64| {
                        let line = vec![(x, ys.start), (x, ys.start + height)];
                        PathElement::new(line, colour.stroke_width(5))
                    };
                    chart.draw_series(xs.iter().filter(|&&x| fits(x)).map(line))?;
                }
                Shape::Ring { .. }
                | Shape::Level { .. }
                | Shape::Upright { .. }
                | Shape::Span { .. } => {}
            }
        }
        area.present()?;
        drop(chart);
        drop(area);
        spread(&mut beside);
        let elements = svg.find('>').map_or("", |open| svg[open + 1..].trim_end());
        let elements = elements.strip_suffix("</svg>").unwrap_or(elements);
        let body = html! {
            g transform=(format!("scale({})", 1.0 / FINE)) { (PreEscaped(elements)) }
            text x="0" y="13" font-size="13" font-weight="600" fill=(Ink::Text) { (short(&self.title, 66)) }
            text x=(WIDTH - right) y=(HEIGHT - 2.0) font-size=(LETTERS) text-anchor="end" fill=(Ink::Faint) {
                (short(&self.x, 40))
            }
            @for Label { y, ink, text } in &beside {
                text x=(WIDTH - right + 6.0) y=(format!("{:.1}", y + 4.0)) font-size=(LETTERS) fill=(ink) { (text) }
            }
            @for (x, y, ink, text) in &above {
                text x=(format!("{x:.1}")) y=(format!("{y:.1}")) font-size=(LETTERS) fill=(ink)
                    text-anchor=(if *x > WIDTH / 2.0 { "end" } else { "start" }) { (text) }
            }
        };
        let label = format!("{}: {}", self.title, essence.join(", "));
        Ok(Panel { width: WIDTH, height: HEIGHT, label, body })
    }
}

/// A range of numbers, with ticks where we want them.
#[derive(Clone)]
struct Axis {
    range: Range<f64>,
    ticks: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range.clone()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// In the pixels of plotters.
fn fine(length: f64) -> i32 {
    (length * FINE).round() as i32
}

fn fits(value: f64) -> bool {
    value.abs() <= LARGE
}

/// From the smallest to the largest of some.
fn span(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    values.fold(None, |span, value| match span {
        None => Some(value..value),
        Some(Range { start, end }) => Some(start.min(value)..end.max(value)),
    })
}

/// With a margin at both ends, a share of its length, and never without length.
fn roomy(Range { start, end }: Range<f64>, margin: f64) -> Range<f64> {
    let length = end - start;
    // So short that an axis has no digits for it.
    if length <= 1e-9 * start.abs().max(end.abs()) {
        let around = if start == 0.0 { 1.0 } else { 0.5 * start.abs() };
        return start - around..end + around;
    }
    start - margin * length..end + margin * length
}

fn ticks(range: &Range<f64>, number: usize) -> Vec<f64> {
    RangedCoordf64::from(range.clone()).key_points(number)
}

/// Powers of ten as logarithms; where there is but one or none, some between.
fn decades(range: &Range<f64>) -> Vec<f64> {
    let (first, last) = (range.start.floor() as i32, range.end.ceil() as i32);
    let every = (last - first) / 6 + 1;
    let all = (first..=last).step_by(every as usize).map(f64::from);
    all.filter(|tick| range.contains(tick)).collect()
}

/// Ticks in words, all with the digits that tell them apart.
fn labels(ticks: &[f64]) -> Vec<String> {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
    let digits = if step < 1.0 { (-step.log10()).ceil() as usize } else { 0 };
    ticks.iter().map(|&tick| plain(tick, digits)).collect()
}

/// A figure as an axis or a sentence has it.
pub(super) fn plain(value: f64, digits: usize) -> String {
    let size = value.abs();
    let with_unit = |unit: f64, letter: &str| {
        let text = format!("{:.2}", value / unit);
        format!("{}{letter}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match size {
        _ if size == 0.0 => "0".into(),
        _ if !(1e-4..1e9).contains(&size) => {
            let text = format!("{value:.2e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            format!("{mantissa}e{exponent}")
        }
        _ if size >= 1e6 => with_unit(1e6, "M"),
        _ if size >= 1e4 => with_unit(1e3, "k"),
        _ if size < 1.0 && digits == 0 => value.to_string(),
        _ => format!("{value:.digits$}"),
    }
}

/// Moves labels apart that would cover each other.
fn spread(labels: &mut [Label]) {
    labels.sort_by(|a, b| a.y.total_cmp(&b.y));
    for i in 1..labels.len() {
        labels[i].y = labels[i].y.max(labels[i - 1].y + LABEL_GAP);
    }
    let mut lowest = HEIGHT - BELOW;
    for label in labels.iter_mut().rev() {
        label.y = label.y.min(lowest);
        lowest = label.y - LABEL_GAP;
    }
}
