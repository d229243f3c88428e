//! Progress of work that takes long: a bar on a terminal, elsewhere a line in the log every 30 seconds.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use tracing::info;

/// Time between two messages on a terminal, and in the log. A GPU is waited for at each.
const SHOWN: Duration = Duration::from_secs(1);
const LOGGED: Duration = Duration::from_secs(30);
/// The time left is told after so many batches, the first of which takes longer than the others, ...
const TIMED: u64 = 3;
/// ... or, where these take long, after this time.
const SOON: Duration = Duration::from_secs(10);

/// Counts batches and shows how far they have come.
pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    /// Batches done in this process.
    done: Cell<u64>,
    /// Time at which the first of them was done.
    first: Cell<Instant>,
    /// Set once the time left has been printed.
    told: Cell<bool>,
    /// Time of the last message.
    shown: Cell<Instant>,
}

impl Progress {
    /// Begins at batch `done` of `total`.
    pub(crate) fn new(done: u64, total: u64) -> anyhow::Result<Progress> {
        let bar = ProgressBar::new(total).with_style(ProgressStyle::with_template(
            "{bar:30} {pos}/{len} batches  {per_sec}  ETA {eta}  {msg}",
        )?);
        bar.set_position(done);
        bar.reset_eta();
        let started = Instant::now();
        let [first, shown] = [started; 2].map(Cell::new);
        let (done, told) = (Cell::new(0), Cell::new(false));
        Ok(Progress { bar, started, done, first, told, shown })
    }

    /// Counts a batch; `message` is shown beside the position from time to time, and waits for the batch. Returns the time left once,
    /// as soon as it can be told.
    pub(crate) fn advance(&self, message: impl FnOnce() -> String) -> Option<Duration> {
        let done = self.done.get() + 1;
        self.done.set(done);
        self.bar.inc(1);
        let every = if self.bar.is_hidden() { LOGGED } else { SHOWN };
        let due = self.shown.get().elapsed() >= every;
        // The first batches are waited for, so that the time left is that of batches which are done.
        let message = (due || done <= TIMED).then(message);
        let now = Instant::now();
        if done == 1 {
            self.first.set(now);
        }
        let (position, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let (spent, batches) = match done {
            1 => (now - self.started, 1),
            _ => (now - self.first.get(), done - 1),
        };
        let left = spent.div_f64(batches as f64).mul_f64(total.saturating_sub(position) as f64);
        if let Some(message) = message {
            if !self.bar.is_hidden() {
                self.bar.set_message(message);
            } else if due {
                info!("{}", line(position, total, left, &message));
            }
            if due {
                self.shown.set(now);
            }
        }
        let tell = done >= TIMED || now - self.started >= SOON;
        (tell && !self.told.replace(tell)).then_some(left)
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
}

fn line(position: u64, total: u64, left: Duration, message: &str) -> String {
    format!("batch {position} of {total}, about {} left; {message}", HumanDuration(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_position_time_left_and_message() {
        let text = line(3, 723, Duration::from_secs(6 * 3600), "loss 2.3");
        assert_eq!(text, "batch 3 of 723, about 6 hours left; loss 2.3");
    }

    #[test]
    fn the_time_left_is_told_at_once_when_a_batch_takes_long() {
        let mut progress = Progress::new(0, 101).unwrap();
        progress.started -= 2 * SOON;
        let left = progress.advance(String::new).unwrap().as_secs();
        assert!((2000..2100).contains(&left), "{left}");
        assert_eq!(progress.advance(String::new), None);
    }

    #[test]
    fn the_time_left_is_told_once_after_a_few_batches() {
        let progress = Progress::new(5, 10).unwrap();
        let told: Vec<_> = (0..5).map(|_| progress.advance(String::new).is_some()).collect();
        assert_eq!(told, [false, false, true, false, false]);
    }

    #[test]
    fn batches_are_waited_for_until_the_time_left_is_told_and_then_seldom() {
        let mut progress = Progress::new(0, 10).unwrap();
        let messages = Cell::new(0);
        let message = || {
            messages.set(messages.get() + 1);
            String::new()
        };
        for _ in 0..6 {
            progress.advance(message);
        }
        assert_eq!(messages.get(), TIMED);
        progress.shown = Cell::new(Instant::now() - LOGGED);
        for _ in 0..2 {
            progress.advance(message);
        }
        assert_eq!(messages.get(), TIMED + 1);
    }
}
