//! How a search went: a point for each window of it, fewer and longer ones as it grows.
//!
//! A window ends with the update by which the applied reports reach or pass a multiple of the stride. The stride is the least
//! power of two that leaves room for all points, so it follows from the number of applied reports, and where windows end
//! from the sizes of updates: nothing of it has to be kept. When the stride doubles, the points that are not on the
//! coarser grid are joined with the next, which leaves those that the larger stride would have given from the start.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Progress;
use crate::asng::Asng;

/// Points of a trace at most, the open window included.
pub const MAX_POINTS: usize = 256;
/// Names of metrics that a trace tells of.
const MAX_METRICS: usize = 16;
/// Bytes of such a name, so that a trace fits into a message.
const MAX_METRIC_NAME: usize = 100;
/// Losses of a window that are kept in memory.
const SAMPLE: usize = 256;

/// A window of a search, told as it was at its end. Its numbers are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TracePoint {
    /// Reports applied until then.
    pub applied: u64,
    /// Updates of theta until then.
    pub generation: u64,
    /// The time of the point, to the millisecond.
    #[serde(rename = "time_ms", serialize_with = "to_ms", deserialize_with = "from_ms")]
    pub time: SystemTime,
    /// Convergence of theta.
    pub convergence: f64,
    /// Entropy of theta.
    pub entropy: f64,
    /// The paper's Delta.
    pub delta: f64,
    /// Of the updates.
    pub signal_to_noise: f64,
    /// Of the architectures that were ranked in the window; none where all diverged.
    pub losses: Option<LossBand>,
    /// Losses in the window that were not finite.
    pub diverged: u64,
    /// Means of the metrics reported in the window.
    pub metrics: BTreeMap<String, f64>,
}

/// Quartiles of losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossBand {
    /// A quarter is smaller.
    pub low: f64,
    /// Half are smaller.
    pub median: f64,
    /// Three quarters are smaller.
    pub high: f64,
}

/// Reports in a window, when so many have been applied.
fn stride(applied: u64) -> u64 {
    (applied / MAX_POINTS as u64 + 1).next_power_of_two()
}

/// Returns true if an update ends a window that raises the applied reports from `before` to `after`.
pub(super) fn ends_window(before: u64, after: u64) -> bool {
    before / stride(after) < after / stride(after)
}

/// Returns true if that update leaves no room for points of the stride before.
pub(super) fn fills_trace(before: u64, after: u64) -> bool {
    stride(before) < stride(after)
}

/// Joins points until all are on the grid of the last one's stride, but for that itself.
pub fn thin(points: Vec<TracePoint>) -> Vec<TracePoint> {
    let stride = points.last().map_or(1, |last| stride(last.applied));
    let mut thinned = Vec::new();
    let (mut end, mut open) = (0, None::<TracePoint>);
    for point in points {
        let applied = point.applied;
        let joined = match open.take() {
            Some(earlier) => earlier.join(point, end),
            None => point,
        };
        if end / stride < applied / stride {
            thinned.push(joined);
            end = applied;
        } else {
            open = Some(joined);
        }
    }
    thinned.extend(open);
    thinned
}

impl TracePoint {
    /// Returns true if a point that comes from elsewhere could be of a study.
    pub fn is_sound(&self) -> bool {
        let losses = self.losses.iter().flat_map(|band| [band.low, band.median, band.high]);
        let figures = [self.convergence, self.entropy, self.delta, self.signal_to_noise];
        let mut numbers = figures.into_iter().chain(losses).chain(self.metrics.values().copied());
        numbers.all(f64::is_finite)
            && self.metrics.len() <= MAX_METRICS
            && self.metrics.keys().all(|name| name.len() <= MAX_METRIC_NAME)
    }

    /// One point for two neighbours, of which this one began after `start` reports.
    fn join(self, later: TracePoint, start: u64) -> TracePoint {
        let both = later.applied.saturating_sub(start).max(1);
        let share = later.applied.saturating_sub(self.applied) as f64 / both as f64;
        let mean = |a: f64, b: f64| finite(a * (1.0 - share) + b * share);
        let losses = match (self.losses, later.losses) {
            (Some(a), Some(b)) => Some(LossBand {
                low: mean(a.low, b.low),
                median: mean(a.median, b.median),
                high: mean(a.high, b.high),
            }),
            (a, b) => a.or(b),
        };
        let mut metrics = self.metrics;
        for (name, b) in later.metrics {
            let joined = metrics.get(&name).map_or(b, |a| mean(*a, b));
            metrics.insert(name, joined);
        }
        let diverged = self.diverged.saturating_add(later.diverged);
        TracePoint { losses, diverged, metrics, ..later }
    }
}

/// The reports in the window that is open.
#[derive(Clone, Debug, Default)]
pub(super) struct TraceWindow {
    /// The time of its last update; none if it has had none.
    time: Option<SystemTime>,
    /// Of its finite losses the first, and each whose number is divisible by 2^`halvings`.
    sample: Vec<f64>,
    halvings: u32,
    finite: u64,
    diverged: u64,
    /// Mean and number of figures.
    metrics: BTreeMap<String, (f64, u64)>,
}

impl TraceWindow {
    /// Takes what was reported of a step.
    pub(super) fn add(&mut self, losses: &[f64], metrics: &BTreeMap<String, f64>, now: SystemTime) {
        self.time = Some(now);
        for &loss in losses {
            if loss.is_finite() {
                self.add_loss(loss);
            } else {
                self.diverged += 1;
            }
        }
        for (name, &figure) in metrics.iter().filter(|(_, figure)| figure.is_finite()) {
            if let Some((mean, count)) = self.metrics.get_mut(name) {
                *count += 1;
                *mean = finite(*mean + (figure / *count as f64 - *mean / *count as f64));
            } else if self.metrics.len() < MAX_METRICS && name.len() <= MAX_METRIC_NAME {
                self.metrics.insert(name.clone(), (figure, 1));
            }
        }
    }

    fn add_loss(&mut self, loss: f64) {
        if self.finite.is_multiple_of(1 << self.halvings) {
            if self.sample.len() == SAMPLE {
                let mut number = 0;
                self.sample.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                self.halvings += 1;
            }
            self.sample.push(loss);
        }
        self.finite += 1;
    }

    /// The window as a point, were it to end now; none if it has had no update.
    pub(super) fn point(&self, progress: &Progress, asng: &Asng) -> Option<TracePoint> {
        let mut sorted = self.sample.clone();
        sorted.sort_by(f64::total_cmp);
        let metrics = self.metrics.iter().filter(|(_, (_, count))| *count > 0);
        Some(TracePoint {
            applied: progress.applied,
            generation: progress.generation,
            time: self.time?,
            convergence: asng.convergence(),
            entropy: asng.entropy(),
            delta: asng.state().snr_factor,
            signal_to_noise: asng.signal_to_noise(),
            losses: (!sorted.is_empty()).then(|| LossBand {
                low: quantile(&sorted, 0.25),
                median: quantile(&sorted, 0.5),
                high: quantile(&sorted, 0.75),
            }),
            diverged: self.diverged,
            metrics: metrics.map(|(name, (mean, _))| (name.clone(), *mean)).collect(),
        })
    }

    /// Makes it the next one. The names of metrics are known by then.
    pub(super) fn end(&mut self) {
        self.sample.clear();
        for figures in self.metrics.values_mut() {
            *figures = (0.0, 0);
        }
        (self.time, self.halvings, self.finite, self.diverged) = (None, 0, 0, 0);
    }
}

/// A number that rounding may have carried beyond the largest there is.
fn finite(number: f64) -> f64 {
    number.clamp(f64::MIN, f64::MAX)
}

fn to_ms<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    serializer.serialize_u64(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn from_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    Ok(UNIX_EPOCH + Duration::from_millis(u64::deserialize(deserializer)?))
}

/// Returns the quantile of sorted numbers, of which there is at least one: that below which a share of them lies, interpolated
/// between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    let weight = place.fract();
    (1.0 - weight) * below + weight * above
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(applied: u64) -> TracePoint {
        TracePoint {
            applied,
            generation: applied,
            time: UNIX_EPOCH,
            convergence: 0.0,
            entropy: 1.0,
            delta: 1.0,
            signal_to_noise: 0.0,
            losses: None,
            diverged: 0,
            metrics: BTreeMap::new(),
        }
    }

    /// Returns the trace of a study that is updated by so many reports each time.
    fn traced(updates: impl IntoIterator<Item = u64>) -> Vec<TracePoint> {
        let (mut points, mut before, mut end) = (Vec::new(), 0, 0);
        for reports in updates {
            let after = before + reports;
            if ends_window(before, after) {
                points.push(TracePoint { diverged: after - end, ..point(after) });
                end = after;
            } else {
                assert!(!fills_trace(before, after), "at {after}");
            }
            if fills_trace(before, after) {
                points = thin(points);
            }
            // With the window that is open.
            assert!(points.len() < MAX_POINTS, "{} points at {after}", points.len());
            before = after;
        }
        points
    }

    fn ends(points: &[TracePoint]) -> Vec<u64> {
        points.iter().map(|point| point.applied).collect()
    }

    #[test]
    fn a_long_trace_has_few_points_at_equal_distances() {
        let points = traced(std::iter::repeat_n(1, 100_000));
        assert_eq!(ends(&points), (512..=100_000).step_by(512).collect::<Vec<_>>());
        assert!(points.iter().all(|point| point.diverged == 512), "nothing is lost");
        assert_eq!(ends(&traced(std::iter::repeat_n(1, 255))), (1..=255).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn thinning_leaves_what_the_larger_stride_would_have_given(
            updates in prop::collection::vec(prop_oneof![1..4_u64, 1..200_u64, 200..300_u64], 1..3000)
        ) {
            let points = traced(updates.iter().copied());
            let stride = stride(updates.iter().sum());
            let (mut before, mut expected) = (0, Vec::new());
            for reports in updates {
                let after = before + reports;
                if before / stride < after / stride {
                    expected.push(after);
                }
                before = after;
            }
            prop_assert_eq!(ends(&points), expected);
            prop_assert_eq!(thin(points.clone()), points);
        }
    }

    #[test]
    fn neighbours_are_joined_by_their_share_of_reports() {
        let band = |median| Some(LossBand { low: median - 1.0, median, high: f64::MAX });
        let metrics = |name: &str, value| BTreeMap::from([(name.to_owned(), value)]);
        let earlier =
            TracePoint { losses: band(8.0), metrics: metrics("both", 0.0), ..point(1030) };
        let later = TracePoint {
            losses: band(4.0),
            metrics: [metrics("both", 4.0), metrics("late", 7.0)].into_iter().flatten().collect(),
            convergence: 0.5,
            diverged: 5,
            ..point(1040)
        };
        let joined = earlier.clone().join(later.clone(), 1000);
        assert_eq!(joined.losses, Some(LossBand { low: 6.0, median: 7.0, high: f64::MAX }));
        let expected = [("both".to_owned(), 1.0), ("late".to_owned(), 7.0)].into();
        assert_eq!((&joined.metrics, joined.diverged), (&expected, 5));
        assert_eq!((joined.applied, joined.convergence), (1040, 0.5), "as it was at its end");
        let diverged = TracePoint { losses: None, ..later };
        assert_eq!(earlier.join(diverged, 1000).losses, band(8.0));
    }

    #[test]
    fn a_long_stretch_keeps_a_sample_of_its_losses() {
        let asng = Asng::new(
            &[crate::asng::Variable::Categorical { choices: 3 }],
            crate::asng::Settings::default(),
        );
        let (asng, progress) = (asng.unwrap(), Progress::default());
        let mut window = TraceWindow::default();
        assert_eq!(window.point(&progress, &asng), None);
        for i in 0..10_000 {
            let figures = [("i".to_owned(), f64::from(i)), ("bad".to_owned(), f64::NAN)].into();
            window.add(&[f64::from(i), f64::INFINITY], &figures, UNIX_EPOCH);
            assert!(window.sample.len() <= SAMPLE);
        }
        let point = window.point(&progress, &asng).unwrap();
        let LossBand { low, median, high } = point.losses.unwrap();
        for (found, expected) in [(low, 2500.0), (median, 5000.0), (high, 7500.0)] {
            assert!((found - expected).abs() < 100.0, "{found} is not {expected}");
        }
        assert_eq!(point.diverged, 10_000);
        assert_eq!(point.metrics.keys().collect::<Vec<_>>(), ["i"]);
        assert!((point.metrics["i"] - 4999.5).abs() < 1e-6);

        window.end();
        assert_eq!(window.point(&progress, &asng), None);
        let many = (0..50).map(|i| (format!("m{i:02}"), f64::MAX)).collect();
        for _ in 0..3 {
            window.add(&[1.0], &many, UNIX_EPOCH);
        }
        let point = window.point(&progress, &asng).unwrap();
        assert_eq!(point.losses, Some(LossBand { low: 1.0, median: 1.0, high: 1.0 }));
        assert_eq!(point.metrics.len(), MAX_METRICS - 1, "a name is known already");
        assert!(point.is_sound(), "{point:?}");
        let text = serde_json::to_string(&point).unwrap();
        assert_eq!(serde_json::from_str::<TracePoint>(&text).unwrap(), point);
        let unsound = TracePoint { delta: f64::INFINITY, ..point };
        assert!(!unsound.is_sound());
    }
}
