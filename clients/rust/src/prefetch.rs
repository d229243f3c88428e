//! The number of steps that a trainer leases ahead of the one that it computes, so that it need not wait for a distant controller.
//!
//! With `K` steps ahead, a step that takes `C` and a round trip `R`, a trainer does `min(1 / C, (K + 1) / (C + R))` steps per unit of
//! time. The distribution that a step is drawn from is then `K` updates old when the step is reported.

use std::{collections::VecDeque, fmt, str::FromStr, time::Duration};

/// The largest number of steps ahead.
pub const MAX_PREFETCH: usize = 64;
/// The number of measurements whose median counts.
const MEASUREMENTS: usize = 15;
/// The number of measurements without which nothing is leased ahead.
const ENOUGH: usize = 3;
/// The share of a step's time below which a round trip is no reason to lease ahead.
const NEGLIGIBLE: f64 = 0.03;
/// The reserve for round trips that take longer than usual, in steps.
const RESERVE: f64 = 0.5;

/// The number of steps that are leased ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefetch {
    /// This number, up to [`MAX_PREFETCH`].
    Steps(usize),
    /// As many as hide the round trip, by measured times.
    Auto,
}

impl Default for Prefetch {
    /// Nothing is leased ahead: a search with one trainer is then the same however long anything takes.
    fn default() -> Prefetch {
        Prefetch::Steps(0)
    }
}

impl fmt::Display for Prefetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefetch::Steps(steps) => steps.fmt(f),
            Prefetch::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Prefetch {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefetch, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Prefetch::Auto),
            (_, Ok(steps)) if steps <= MAX_PREFETCH => Ok(Prefetch::Steps(steps)),
            _ => Err(format!("is a number from 0 to {MAX_PREFETCH}, or auto")),
        }
    }
}

/// Measured times, and the number of steps ahead that follows from them.
#[derive(Clone, Debug)]
pub struct Pace {
    prefetch: Prefetch,
    computing: VecDeque<Duration>,
    round_trips: VecDeque<Duration>,
}

impl Pace {
    /// Returns a pace without measurements.
    pub fn new(prefetch: Prefetch) -> Pace {
        Pace { prefetch, computing: VecDeque::new(), round_trips: VecDeque::new() }
    }

    /// Records the time from the begin of a step until it can be reported.
    pub fn computed(&mut self, time: Duration) {
        record(&mut self.computing, time);
    }

    /// Records the time from a report to its reply.
    pub fn answered(&mut self, time: Duration) {
        record(&mut self.round_trips, time);
    }

    /// Returns the number of steps to hold beside the one that is computed.
    pub fn ahead(&self) -> usize {
        match self.prefetch {
            Prefetch::Steps(steps) => steps,
            Prefetch::Auto => {
                let (Some(computing), Some(round_trip)) =
                    (median(&self.computing), median(&self.round_trips))
                else {
                    return 0;
                };
                let steps = round_trip.as_secs_f64() / computing.as_secs_f64().max(1e-9);
                if steps < NEGLIGIBLE {
                    return 0;
                }
                ((steps + RESERVE).ceil() as usize).min(MAX_PREFETCH)
            }
        }
    }
}

fn record(times: &mut VecDeque<Duration>, time: Duration) {
    if times.len() == MEASUREMENTS {
        times.pop_front();
    }
    times.push_back(time);
}

fn median(times: &VecDeque<Duration>) -> Option<Duration> {
    let mut sorted: Vec<_> = times.iter().filter(|_| times.len() >= ENOUGH).collect();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_auto_and_small_numbers_are_read() {
        for text in ["auto", "0", "64"] {
            assert_eq!(text.parse::<Prefetch>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "65", "Auto", "1.5", "99999999999999999999"] {
            assert!(text.parse::<Prefetch>().is_err(), "{text}");
        }
    }

    #[test]
    fn auto_hides_the_round_trip_and_no_more() {
        let ms = Duration::from_millis;
        for (computing, round_trip, ahead) in
            [(30, 100, 4), (30, 117, 5), (30, 1, 1), (100, 2, 0), (3000, 80, 0), (1, 500, 64)]
        {
            let mut pace = Pace::new(Prefetch::Auto);
            for _ in 0..ENOUGH {
                assert_eq!(pace.ahead(), 0, "too little is known");
                pace.computed(ms(computing));
                pace.answered(ms(round_trip));
            }
            for _ in 0..MEASUREMENTS / 3 {
                // Some calls take long, such as the one that opens a study and one that is tried again.
                pace.computed(ms(60_000));
                pace.answered(ms(60_000));
                pace.computed(ms(computing));
                pace.answered(ms(round_trip));
            }
            assert_eq!(pace.ahead(), ahead, "{computing} ms, {round_trip} ms");
        }
    }
}
