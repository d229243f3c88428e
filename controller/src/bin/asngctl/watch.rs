//! Follows a study through restarts of the controller, in lines or on a [full screen](crate::screen). [`Rate`] and [`Screen`] take the time as an argument; the clock is
//! read in [`show`] alone.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, IsTerminal, Write},
    time::{Duration, Instant, SystemTime},
};

use asng_client::is_transient;
use asng_controller::pictures::{StudySnapshot, notes::Note, words};
use asng_proto::v1::{Progress, Study, StudyState, WatchStudyRequest, WatchStudyResponse};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tonic::{Status, Streaming};

use crate::{
    args::Output,
    client::{self, Controller},
    json, names, print_line,
    screen::FullScreen,
    text,
};

/// The display is updated after this time even without a change of the study, since speed and ages change.
const TICK: Duration = Duration::from_secs(1);
/// A controller that does not answer is asked again after 1, 2, 4 and then every 8 seconds.
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// Least time between two lines about progress.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Speed is measured over this time: long enough for steps that take seconds, short enough to see a change.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Follows a study until its state satisfies `until` and returns it as it was then, or `None` after Ctrl-C or SIGTERM, or when
/// somebody has left the screen.
pub(crate) async fn follow(
    controller: &mut Controller,
    url: &str,
    name: &str,
    mut screen: Screen,
    until: impl Fn(StudyState) -> bool,
) -> anyhow::Result<Option<Study>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let left = screen.left();
    let around = controller.clone();
    let feed = Feed { controller, name, stream: None };
    tokio::select! {
        study = show(feed, around, url, screen, until) => study.map(Some),
        signal = tokio::signal::ctrl_c() => Ok(signal.map(|()| None)?),
        _ = terminate.recv() => Ok(None),
        left = left => Ok(left.map(|()| None)?),
    }
}

async fn show(
    mut feed: Feed<'_>,
    mut around: Controller,
    url: &str,
    mut screen: Screen,
    until: impl Fn(StudyState) -> bool,
) -> anyhow::Result<Study> {
    let mut rate = Rate::default();
    // A first request that fails is more likely a wrong URL than an outage: no retry.
    let study = loop {
        if let Some(study) = feed.next().await? {
            break study;
        }
    };
    let mut view = View::new(study);
    let mut backoff = TICK;
    let mut noted = None::<Instant>;
    loop {
        if !view.outage {
            rate.record(Instant::now(), view.progress().applied);
            let running = view.snapshot.study.state() == StudyState::Running;
            view.snapshot.rate = rate.per_second().filter(|_| running);
            if let Screen::Full(_) = screen {
                let StudySnapshot { study, rate, .. } = view.snapshot.clone();
                // An outage is the feed's to find; until then the picture is a little old.
                if let Ok(Ok(snapshot)) =
                    timeout(TICK, client::snapshot(&around, url, study, rate)).await
                {
                    view.snapshot = snapshot;
                }
            } else if noted.is_none_or(|noted| noted.elapsed() >= TICK) {
                let notes = client::notes_about(&mut around, url, &view.snapshot.study);
                view.snapshot.notes = timeout(TICK, notes).await.unwrap_or_default();
                noted = Some(Instant::now());
            }
        }
        screen.show(&view, Instant::now())?;
        if until(view.snapshot.study.state()) {
            return Ok(view.snapshot.study);
        }
        if view.outage {
            tokio::time::sleep(backoff).await;
        }
        match feed.next().await {
            Ok(Some(study)) => (view.snapshot.study, view.outage, backoff) = (study, false, TICK),
            Ok(None) => {}
            Err(status) if is_transient(&status) => {
                backoff = if view.outage { (2 * backoff).min(MAX_BACKOFF) } else { TICK };
                view.outage = true;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// A study's changes, over a stream that is opened when there is none.
struct Feed<'a> {
    controller: &'a mut Controller,
    name: &'a str,
    stream: Option<Streaming<WatchStudyResponse>>,
}

impl Feed<'_> {
    /// The study when it has changed, or `None` when a tick has passed without.
    async fn next(&mut self) -> Result<Option<Study>, Status> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let request = WatchStudyRequest { name: self.name.into() };
                self.controller.watch_study(request).await?.into_inner()
            }
        };
        let news = match timeout(TICK, stream.message()).await {
            Ok(Ok(Some(reply))) => Some(client::received(reply.study)?),
            Ok(Ok(None)) => return Err(Status::unavailable("the controller ended the stream")),
            Ok(Err(status)) => return Err(status),
            Err(_) => None,
        };
        self.stream = Some(stream);
        Ok(news)
    }
}

/// The facts about a study at one moment. Only a full screen shows, and is given, more than the study, its notes and its rate.
#[derive(Clone)]
pub(crate) struct View {
    /// The study; steps per second while it is RUNNING.
    pub(crate) snapshot: StudySnapshot,
    /// True if the controller has not answered since.
    pub(crate) outage: bool,
}

impl View {
    fn new(study: Study) -> View {
        View { snapshot: StudySnapshot::of(study, SystemTime::now()), outage: false }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.snapshot.study.progress.unwrap_or_default()
    }

    pub(crate) fn eta(&self) -> Option<Duration> {
        let Progress { applied, max_steps, .. } = self.progress();
        words::eta(max_steps.saturating_sub(applied), self.snapshot.rate?)
    }

    fn line(&self) -> String {
        let (study, progress) = (&self.snapshot.study, self.progress());
        let mut parts = vec![
            names::state(study).to_owned(),
            format!("{} of {} steps", progress.applied, progress.max_steps),
        ];
        parts.extend(words::warm_up(study).map(|steps| format!("warm-up: {steps}")));
        parts.extend(self.snapshot.rate.map(|rate| format!("{rate:.2} steps/s")));
        parts.extend(self.eta().map(|eta| format!("ETA {}", text::brief(eta))));
        parts.push(format!("convergence {:.3}", progress.convergence));
        parts.extend(study.incumbent.as_ref().map(|best| text::best(study, best)));
        if progress.over_limit > 0 {
            parts.push(format!("{} over a limit", progress.over_limit));
        }
        parts.push(words::in_progress(progress.outstanding));
        let outage = "the controller does not answer, retrying; last seen: ";
        format!("{}{}", if self.outage { outage } else { "" }, parts.join(", "))
    }

    /// The study as `show` prints it, and how it moves.
    fn json(&self) -> Value {
        let mut value = json::study_with_notes(&self.snapshot.study, &self.snapshot.notes);
        value["steps_per_second"] = self.snapshot.rate.into();
        value["eta_seconds"] = self.eta().map(|eta| eta.as_secs()).into();
        value["outage"] = self.outage.into();
        value
    }
}

/// Where a [`View`] goes.
pub(crate) enum Screen {
    /// All of a terminal.
    Full(FullScreen),
    /// One line of a terminal, drawn over and over, that disappears at the end; notes stay above it.
    Live { bar: ProgressBar, notes: Vec<Note> },
    /// A line whenever something has changed.
    Lines { output: Output, last: Option<Box<(Instant, View)>> },
    /// Notes on stderr, when they have changed: stdout is for the result.
    Notes(Vec<Note>),
}

impl Screen {
    pub(crate) fn new(output: Output) -> Screen {
        if output == Output::Json || !io::stdout().is_terminal() {
            return Screen::Lines { output, last: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
        // Unwrap safety: the template is a constant.
        bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").unwrap());
        Screen::Live { bar, notes: Vec::new() }
    }

    /// All of the terminal, if there is one and somebody reads it.
    pub(crate) fn full(output: Output) -> io::Result<Screen> {
        if output == Output::Json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Ok(Screen::new(output));
        }
        FullScreen::open().map(Screen::Full)
    }

    /// Is ready when somebody has left a full screen.
    fn left(&mut self) -> impl Future<Output = io::Result<()>> + use<> {
        let left = match self {
            Screen::Full(full) => Some(full.left()),
            _ => None,
        };
        async {
            match left {
                Some(left) => left.await,
                None => std::future::pending().await,
            }
        }
    }

    fn show(&mut self, view: &View, now: Instant) -> io::Result<()> {
        match self {
            Screen::Full(full) => full.show(view.clone()),
            Screen::Live { bar, notes } => {
                if are_news(notes, &view.snapshot.notes) {
                    notes.clone_from(&view.snapshot.notes);
                    notes.iter().for_each(|note| bar.println(note.to_string()));
                }
                bar.set_message(view.line());
                bar.tick();
            }
            Screen::Lines { output, last } if is_due(last.as_deref(), view, now) => {
                let before = last.replace(Box::new((now, view.clone())));
                if *output == Output::Json {
                    return print_line(view.json());
                }
                let before = before.map(|before| before.1);
                if before.as_ref().is_none_or(|before| before.line() != view.line()) {
                    print_line(view.line())?;
                }
                let told = before.map_or_else(Vec::new, |before| before.snapshot.notes);
                let notes = &view.snapshot.notes;
                if are_news(&told, notes) {
                    notes.iter().try_for_each(|note| print_line(format_args!("  {note}")))?;
                }
            }
            Screen::Lines { .. } => {}
            Screen::Notes(told) => {
                if are_news(told, &view.snapshot.notes) {
                    told.clone_from(&view.snapshot.notes);
                    // Nobody has to read them.
                    told.iter().for_each(|note| drop(writeln!(io::stderr(), "{note}")));
                }
            }
        }
        Ok(())
    }
}

/// Returns true if the notes differ from those before; their order, which follows the trainers' last requests, and the time until
/// a trainer tries again do not count.
fn are_news(before: &[Note], notes: &[Note]) -> bool {
    let texts =
        |notes: &[Note]| notes.iter().map(|note| note.text.clone()).collect::<BTreeSet<_>>();
    texts(before) != texts(notes)
}

/// Another state, other notes and an outage are told at once, mere progress not too often.
fn is_due(last: Option<&(Instant, View)>, view: &View, now: Instant) -> bool {
    last.is_none_or(|(at, last)| {
        let turn =
            (last.snapshot.study.state, last.outage) != (view.snapshot.study.state, view.outage);
        turn || are_news(&last.snapshot.notes, &view.snapshot.notes)
            || (last.snapshot.study != view.snapshot.study
                && now.duration_since(*at) >= LINE_INTERVAL)
    })
}

/// Speed over a sliding window.
#[derive(Default)]
struct Rate {
    /// Steps applied at a time, oldest first.
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn record(&mut self, now: Instant, applied: u64) {
        // Another study has taken the name.
        if self.samples.back().is_some_and(|(_, before)| applied < *before) {
            self.samples.clear();
        }
        self.samples.push_back((now, applied));
        while self.samples.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Steps per second, once there are two samples.
    fn per_second(&self) -> Option<f64> {
        let ((start, first), (end, last)) = (self.samples.front()?, self.samples.back()?);
        let seconds = end.duration_since(*start).as_secs_f64();
        (seconds > 0.0).then(|| (last - first) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use asng_proto::v1::{AlgorithmSettings, Incumbent, StudySpec};

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn speed_is_that_of_the_window() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        assert_eq!(rate.per_second(), None);
        rate.record(start, 100);
        assert_eq!(rate.per_second(), None);
        rate.record(start + seconds(10), 120);
        assert_eq!(rate.per_second(), Some(2.0));
        rate.record(start + seconds(70), 420);
        assert_eq!(rate.per_second(), Some(5.0), "the first sample has left the window");
        rate.record(start + seconds(130), 420);
        assert_eq!(rate.per_second(), Some(0.0));
    }

    #[test]
    fn speed_starts_anew_with_another_study_of_the_name() {
        let (start, mut rate) = (Instant::now(), Rate::default());
        rate.record(start, 100);
        rate.record(start + seconds(1), 3);
        assert_eq!(rate.per_second(), None);
    }

    #[test]
    fn notes_in_another_order_or_with_less_time_left_are_no_news() {
        let note = |text: &str, left| Note { text: text.into(), retry_after: Some(seconds(left)) };
        let before = [note("a waits", 9), note("b waits", 80)];
        assert!(!are_news(&before, &[note("b waits", 79), note("a waits", 8)]));
        assert!(are_news(&before, &[note("a waits", 9)]));
        assert!(are_news(&before, &[note("a waits", 9), note("b has failed", 80)]));
    }

    #[test]
    fn a_line_tells_of_the_warm_up() {
        let algorithm = AlgorithmSettings { warmup_steps: Some(800), ..Default::default() };
        let view = View::new(Study {
            state: StudyState::Running.into(),
            spec: Some(StudySpec { algorithm: Some(algorithm), ..Default::default() }),
            progress: Some(Progress { applied: 300, max_steps: 2000, ..Default::default() }),
            ..Study::default()
        });
        let line = view.line();
        let expected = "RUNNING, 300 of 2000 steps, warm-up: 300 of 800 steps, convergence 0.000, 0 steps in progress";
        assert_eq!(line, expected);
    }

    #[test]
    fn a_line_tells_of_the_best_architecture_and_of_an_outage() {
        let costs = [("macs", 4_780_352.0), ("parameters", 19_794.0)];
        let costs = costs.map(|(name, cost)| (name.to_owned(), cost)).into();
        let mut view = View::new(Study {
            state: StudyState::Running.into(),
            progress: Some(Progress {
                applied: 9,
                max_steps: 20,
                outstanding: 1,
                ..Default::default()
            }),
            incumbent: Some(Incumbent { loss: 1.6118, costs, ..Default::default() }),
            ..Study::default()
        });
        view.outage = true;
        let expected = "the controller does not answer, retrying; last seen: RUNNING, 9 of 20 steps, convergence 0.000, \
                        best loss 1.6118 (4.78 M MACs, 19.8 k parameters), 1 step in progress";
        assert_eq!(view.line(), expected);
    }

    #[test]
    fn a_line_is_printed_on_change_and_not_too_often() {
        let start = Instant::now();
        let view = |applied, outage| {
            let progress = Some(Progress { applied, ..Progress::default() });
            View { outage, ..View::new(Study { progress, ..Study::default() }) }
        };
        let last = (start, view(1, false));
        assert!(is_due(None, &view(1, false), start));
        assert!(!is_due(Some(&last), &view(2, false), start + seconds(4)));
        assert!(is_due(Some(&last), &view(2, false), start + seconds(5)));
        assert!(!is_due(Some(&last), &view(1, false), start + seconds(60)));
        assert!(is_due(Some(&last), &view(1, true), start + seconds(1)));
    }

    #[test]
    fn notes_are_told_when_they_change_and_not_as_time_passes() {
        let note = |text: &str, seconds| Note {
            text: text.into(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let view = |notes: &[Note]| {
            let mut view = View::new(Study::default());
            view.snapshot.notes = notes.to_vec();
            view
        };
        let start = Instant::now();
        let last = (start, view(&[note("a", 40)]));
        assert!(!is_due(Some(&last), &view(&[note("a", 39)]), start + seconds(60)));
        for notes in [&[][..], &[note("b", 40)], &[note("a", 40), note("b", 1)]] {
            assert!(is_due(Some(&last), &view(notes), start), "{notes:?}");
        }
    }
}
