//! Loss, or the value that is maximized, against cost.

use asng_proto::v1::Front;

use super::{
    StudySnapshot,
    chart::{Chart, Layer, Scale, Shape},
    ink::Ink,
    panel::Panel,
    words,
};

/// A chart for each cost: what was paid for which loss.
pub(super) fn panels(snapshot: &StudySnapshot) -> Vec<Panel> {
    snapshot.study.fronts.iter().filter_map(|front| chart(snapshot, front).draw()).collect()
}

fn chart(snapshot: &StudySnapshot, front: &Front) -> Chart {
    let cost = &front.cost;
    let points: Vec<(f64, f64)> = front.points.iter().map(|p| (p.cost, p.loss)).collect();
    let evaluated =
        snapshot.reports.iter().flat_map(|report| report.losses.iter().zip(&report.costs));
    let evaluated = evaluated.filter_map(|(&loss, c)| Some((*c.figures.get(cost)?, loss)));
    let line = |ink, points| Layer { ink, shape: Shape::Line { points, label: String::new() } };
    let mut layers = vec![
        Layer { ink: Ink::Grid, shape: Shape::Dots(evaluated.collect()) },
        line(Ink::Blue, steps(&points)),
        Layer { ink: Ink::Blue, shape: Shape::Dots(points) },
    ];
    let spec = snapshot.study.spec.as_ref();
    let rule = spec.and_then(|spec| spec.costs.iter().find(|rule| rule.cost == *cost));
    if let Some(limit) = rule.and_then(|rule| rule.limit) {
        let shape = Shape::Upright { x: limit, label: "limit".into() };
        layers.push(Layer { ink: Ink::Orange, shape });
    }
    if let Some(chosen) = &snapshot.study.chosen {
        let label = "chosen".to_owned();
        let on_front = front.points.iter().find(|point| point.architecture == chosen.architecture);
        let shape = match (on_front, chosen.costs.get(cost)) {
            (Some(point), _) => Some(Shape::Ring { at: (point.cost, point.loss), label }),
            // Its loss is not known.
            (None, Some(&x)) => Some(Shape::Upright { x, label }),
            (None, None) => None,
        };
        layers.extend(shape.map(|shape| Layer { ink: Ink::Green, shape }));
    }
    let best = if words::maximizes(&snapshot.study) { "Largest value" } else { "Smallest loss" };
    let title = format!("{best} by {cost}: Pareto front of the evaluated architectures");
    Chart { title, x: cost.clone(), scale: Scale::Fit, layers }
}

/// The corners between points: the loss changes where the cost is paid.
fn steps(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let corners = points.windows(2).flat_map(|pair| [pair[0], (pair[1].0, pair[0].1)]);
    corners.chain(points.last().copied()).collect()
}
