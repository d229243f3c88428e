//! How a search went: curves over the steps that were applied.

use std::collections::BTreeSet;

use asng_proto::v1::TracePoint;

use super::{
    StudySnapshot,
    chart::{Chart, Layer, Scale, Shape},
    ink::Ink,
    panel::Panel,
    words,
};

/// The threshold of the signal-to-noise ratio where a spec leaves it out.
const DEFAULT_ALPHA: f64 = 1.5;

/// Convergence with entropy, Delta, and the signal-to-noise ratio.
pub(super) fn convergence(snapshot: &StudySnapshot) -> Vec<Panel> {
    let line = |ink, label: &str, value: fn(&TracePoint) -> f64| {
        let points =
            snapshot.trace.iter().map(|point| (point.applied as f64, value(point))).collect();
        Layer { ink, shape: Shape::Line { points, label: label.into() } }
    };
    let settings = snapshot.study.spec.as_ref().and_then(|spec| spec.algorithm).unwrap_or_default();
    let alpha = settings.alpha.unwrap_or(DEFAULT_ALPHA);
    let level = Shape::Level { y: alpha, label: "alpha".into() };
    let both = vec![
        line(Ink::Orange, "entropy", |point| point.entropy),
        line(Ink::Blue, "convergence", |point| point.convergence),
    ];
    let delta = vec![line(Ink::Blue, "Delta", |point| point.delta)];
    let signal = vec![
        Layer { ink: Ink::Faint, shape: level },
        line(Ink::Blue, "s/n", |point| point.signal_to_noise),
    ];
    let charts = [
        ("Convergence, and entropy of the distribution", Scale::Unit, both),
        ("Delta (step size = delta_init / Delta)", Scale::Fit, delta),
        ("Signal-to-noise ratio of the updates", Scale::Fit, signal),
    ];
    let panels = charts.into_iter().filter_map(|(title, scale, layers)| {
        (!snapshot.trace.is_empty()).then(|| chart(snapshot, title.into(), scale, layers)).flatten()
    });
    panels.collect()
}

/// Losses of ranked architectures, and where some diverged.
pub(super) fn losses(snapshot: &StudySnapshot) -> Vec<Panel> {
    let bands = || {
        let trace = snapshot.trace.iter();
        trace.filter_map(|point| Some((point.applied as f64, point.losses.as_ref()?)))
    };
    let diverged = snapshot.trace.iter().filter(|point| point.diverged > 0);
    let diverged: Vec<f64> = diverged.map(|point| point.applied as f64).collect();
    let total: u64 = snapshot.trace.iter().map(|point| point.diverged).fold(0, u64::saturating_add);
    let losses = words::losses(&snapshot.study);
    let mut title = format!("{losses} of ranked architectures: median and interquartile range");
    if total > 0 {
        title = format!("{losses}: median and interquartile range; {total} diverged (marks below)");
    }
    let median = bands().map(|(x, band)| (x, band.median)).collect();
    let layers = vec![
        Layer {
            ink: Ink::Blue,
            shape: Shape::Band(bands().map(|(x, band)| (x, band.low, band.high)).collect()),
        },
        Layer { ink: Ink::Blue, shape: Shape::Line { points: median, label: "median".into() } },
        Layer { ink: Ink::Orange, shape: Shape::Rug(diverged) },
    ];
    chart(snapshot, title, Scale::Fit, layers).into_iter().collect()
}

/// A chart for each metric of the trainers.
pub(super) fn metrics(snapshot: &StudySnapshot) -> Vec<Panel> {
    let names: BTreeSet<&String> = snapshot.trace.iter().flat_map(|p| p.metrics.keys()).collect();
    let panel = |name: &String| {
        let trace = snapshot.trace.iter();
        let points = trace.filter_map(|p| Some((p.applied as f64, *p.metrics.get(name)?)));
        let shape = Shape::Line { points: points.collect(), label: String::new() };
        chart(snapshot, name.clone(), Scale::Fit, vec![Layer { ink: Ink::Blue, shape }])
    };
    names.into_iter().filter_map(panel).collect()
}

/// A chart over the steps, with the warm-up behind what is drawn.
fn chart(
    snapshot: &StudySnapshot,
    title: String,
    scale: Scale,
    layers: Vec<Layer>,
) -> Option<Panel> {
    let applied = snapshot.study.progress.unwrap_or_default().applied;
    let warmed_up = words::warmup_steps(&snapshot.study).min(applied);
    let span = || {
        let shape = Shape::Span { x: [0.0, warmed_up as f64], label: "warm-up".into() };
        Layer { ink: Ink::Grid, shape }
    };
    let layers = (warmed_up > 0).then(span).into_iter().chain(layers).collect();
    Chart { title, x: "steps".into(), scale, layers }.draw()
}
