//! Progress of work that takes long: a bar on a terminal, elsewhere a line in the log every 30 seconds.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use tracing::info;

/// Time between two lines in the log.
const EVERY: Duration = Duration::from_secs(30);
/// Batches that are timed, after the first one, before the time left is told.
const TIMED: u64 = 2;

/// Counts batches and shows how far they have come.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Batches done in this process.
    done: Cell<u64>,
    /// When the first of them was done, which takes longer than the others.
    first: Cell<Instant>,
    logged: Cell<Instant>,
}

impl Progress {
    /// Begins at batch `done` of `total`.
    pub(crate) fn new(done: u64, total: u64) -> anyhow::Result<Progress> {
        let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
            "{bar:30} {pos}/{len} batches  {per_sec}  ETA {eta}  {msg}",
        )?);
        bar.set_position(done);
        bar.reset_eta();
        let now = Instant::now();
        Ok(Progress { bar, done: Cell::new(0), first: Cell::new(now), logged: Cell::new(now) })
    }

    /// Counts a batch; `message` is shown beside the position. Returns the time left once, as soon as it can be told.
    pub(crate) fn advance(&self, message: impl FnOnce() -> String) -> Option<Duration> {
        let (now, done) = (Instant::now(), self.done.get() + 1);
        self.done.set(done);
        if done == 1 {
            self.first.set(now);
        }
        self.bar.inc(1);
        let left = left(now - self.first.get(), done - 1, self.total() - self.bar.position());
        if !self.bar.is_hidden() {
            self.bar.set_message(message());
        } else if now - self.logged.get() >= EVERY {
            self.logged.set(now);
            let (position, total) = (self.bar.position(), self.total());
            info!("{}", line(position, total, left, &message()));
        }
        left.filter(|_| done == 1 + TIMED)
    }

    /// Shows what is done now, on a terminal.
    pub(crate) fn show(&self, message: &'static str) {
        self.bar.set_message(message);
    }

    /// Writes to standard error without disturbing the bar.
    pub(crate) fn print(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Leaves the bar as it is.
    pub(crate) fn finish(&self) {
        self.bar.finish();
    }

    fn total(&self) -> u64 {
        self.bar.length().unwrap_or_default()
    }
}

/// Returns the time that `remaining` batches take, if `done` took `spent`; none before any is done.
fn left(spent: Duration, done: u64, remaining: u64) -> Option<Duration> {
    (done > 0).then(|| spent.div_f64(done as f64).mul_f64(remaining as f64))
}

fn line(position: u64, total: u64, left: Option<Duration>, message: &str) -> String {
    let left = left.map(|left| format!(", about {} left", HumanDuration(left)));
    format!("batch {position} of {total}{}; {}", left.unwrap_or_default(), message.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_position_time_left_and_message() {
        assert_eq!(line(1, 9, left(EVERY, 0, 8), "loss 2.3"), "batch 1 of 9; loss 2.3");
        let left = left(Duration::from_secs(60), 2, 720);
        assert_eq!(line(3, 723, left, "loss 2.3"), "batch 3 of 723, about 6 hours left; loss 2.3");
    }

    #[test]
    fn the_time_left_is_told_once_after_a_few_batches() {
        let progress = Progress::new(5, 10).unwrap();
        let told: Vec<_> = (0..5).map(|_| progress.advance(String::new).is_some()).collect();
        assert_eq!(told, [false, false, true, false, false]);
    }
}
