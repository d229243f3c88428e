//! The full-screen view of `watch`. A thread owns the terminal: it draws what it is sent and reads the keys. The terminal is
//! as it was before when the thread has ended, and also after a panic.

use std::{
    io,
    sync::mpsc::{self, TryRecvError},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use asng_controller::pictures::words::in_progress;
use asng_proto::v1::{Marginal, Progress, Report, Trainer, Variable, marginal, variable::Kind};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Gauge, Paragraph, Row, Sparkline, Table, Wrap},
};
use tokio::sync::oneshot;

use crate::{names, text, watch::View};

/// How long a key or something new to draw may wait.
const PAUSE: Duration = Duration::from_millis(50);
/// Columns of the name of a variable.
const NAME: usize = 24;
/// Columns of its heat map at most, two for a cell.
const MAP: usize = 48;
/// Rows of the table of trainers.
const TRAINERS: usize = 6;
/// Rows that notes take at most.
const NOTES: usize = 6;
/// Rows that a page up or down moves.
const PAGE: usize = 10;

const ACCENT: Style = Style::new().fg(Color::Blue);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const WARNING: Style = Style::new().fg(Color::Yellow);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// The view, until it is dropped.
pub(crate) struct FullScreen {
    /// `None` only while it is dropped.
    views: Option<mpsc::Sender<View>>,
    thread: Option<JoinHandle<()>>,
    left: Option<oneshot::Receiver<io::Result<()>>>,
}

impl FullScreen {
    /// Takes the terminal.
    pub(crate) fn open() -> io::Result<FullScreen> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        let (views, received) = mpsc::channel();
        let (leave, left) = oneshot::channel();
        let thread = thread::Builder::new().name("screen".into()).spawn(move || {
            let result = run(terminal, &received);
            ratatui::restore();
            // Nobody waits for it when the study has ended.
            let _ = leave.send(result);
        });
        let thread = thread.inspect_err(|_| ratatui::restore())?;
        Ok(FullScreen { views: Some(views), thread: Some(thread), left: Some(left) })
    }

    /// Draws this from now on.
    pub(crate) fn show(&self, view: View) {
        if let Some(views) = &self.views {
            // A thread that has ended says so in `left`.
            let _ = views.send(view);
        }
    }

    /// Is ready when somebody has asked to leave, or the terminal has failed. To be called once.
    pub(crate) fn left(&mut self) -> impl Future<Output = io::Result<()>> + use<> {
        let left = self.left.take();
        async move {
            match left {
                Some(left) => left
                    .await
                    .unwrap_or_else(|_| Err(io::Error::other("the screen's thread has died"))),
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        drop(self.views.take());
        if let Some(thread) = self.thread.take() {
            // It has told of a panic itself.
            let _ = thread.join();
        }
    }
}

/// Draws and reads keys until one of them says to leave, or nothing more is sent.
fn run(mut terminal: DefaultTerminal, views: &mpsc::Receiver<View>) -> io::Result<()> {
    let (mut view, mut scroll) = (None, 0);
    loop {
        let mut changed = false;
        loop {
            match views.try_recv() {
                Ok(next) => (view, changed) = (Some(next), true),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        if event::poll(PAUSE)? {
            match event::read()? {
                Event::Key(key) if is_leaving(key) => return Ok(()),
                Event::Key(key) => scroll = scrolled(scroll, key),
                _ => {}
            }
            changed = true;
        }
        if let Some(view) = view.as_ref().filter(|_| changed) {
            terminal.draw(|frame| draw(frame, view, &mut scroll, SystemTime::now()))?;
        }
    }
}

fn is_leaving(key: KeyEvent) -> bool {
    let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// The first variable shown after a key; [`draw`] sees to it that there is one.
fn scrolled(scroll: usize, key: KeyEvent) -> usize {
    match key.code {
        _ if key.kind == KeyEventKind::Release => scroll,
        KeyCode::Up | KeyCode::Char('k') => scroll.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => scroll + 1,
        KeyCode::PageUp => scroll.saturating_sub(PAGE),
        KeyCode::PageDown => scroll + PAGE,
        KeyCode::Home => 0,
        KeyCode::End => usize::MAX / 2,
        _ => scroll,
    }
}

fn draw(frame: &mut Frame<'_>, view: &View, scroll: &mut usize, now: SystemTime) {
    let trainers = match view.snapshot.trainers.len() {
        0 => 0,
        n => n.min(TRAINERS) as u16 + 2,
    };
    let losses = losses(view);
    let sparkline = if losses.is_empty() { 0 } else { 5 };
    let notes = notes(view);
    let width = usize::from(frame.area().width).max(1);
    let noted: usize = notes.iter().map(|note| note.width().div_ceil(width)).sum();
    let rows = [1, 1, 2, noted.min(NOTES) as u16, sparkline].map(Constraint::Length);
    let rows = rows.into_iter().chain([Constraint::Min(0), Constraint::Length(trainers)]);
    let areas = Layout::vertical(rows).split(frame.area());
    let [title, gauge, facts, noted, sparkline, theta, trainers] = areas[..] else { return };
    frame.render_widget(self::title(view), title);
    frame.render_widget(self::gauge(view), gauge);
    frame.render_widget(self::facts(view), facts);
    frame.render_widget(Paragraph::new(notes).wrap(Wrap { trim: true }), noted);
    draw_losses(frame, sparkline, &losses, text::loss(&view.snapshot.study));
    draw_theta(frame, theta, view, scroll);
    draw_trainers(frame, trainers, &view.snapshot.trainers, now);
}

fn title(view: &View) -> Paragraph<'_> {
    let study = &view.snapshot.study;
    let space = study.spec.as_ref().map_or("", |spec| &spec.space);
    let mut spans = vec![
        Span::styled(study.name.clone(), BOLD),
        Span::raw(format!("  {space}  {}  ", names::state(study))),
    ];
    spans.push(match view.outage {
        true => Span::styled(
            "the controller does not answer, retrying; last seen:",
            Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        ),
        false => Span::styled("q leaves, arrows scroll", FAINT),
    });
    Paragraph::new(Line::from(spans))
}

fn gauge(view: &View) -> Gauge<'_> {
    let Progress { applied, max_steps, .. } = view.progress();
    let ratio = (applied as f64 / max_steps.max(1) as f64).min(1.0);
    let mut label = format!("{applied}/{max_steps} steps, {:.1} %", 100.0 * ratio);
    label.extend(text::warm_up(&view.snapshot.study).map(|steps| format!("  warm-up: {steps}")));
    label.extend(view.snapshot.rate.map(|rate| format!("  {rate:.2} steps/s")));
    label.extend(view.eta().map(|eta| format!("  ETA {}", text::brief(eta))));
    Gauge::default().ratio(ratio).label(label).gauge_style(ACCENT).use_unicode(true)
}

fn facts(view: &View) -> Paragraph<'_> {
    let (study, p) = (&view.snapshot.study, view.progress());
    let mut facts = vec![format!("convergence {:.3}", p.convergence)];
    if let Some(last) = view.snapshot.trace.last() {
        facts.push(format!("entropy {:.3}", last.entropy));
        facts.push(format!("Delta {}", text::number(last.delta)));
        facts.push(format!("signal/noise {:.2}", last.signal_to_noise));
    }
    facts.extend(study.incumbent.as_ref().map(|best| text::best(study, best)));
    facts.extend((p.outstanding > 0).then(|| in_progress(p.outstanding)));
    let counts = [("stale", p.stale), ("diverged", p.diverged), ("over a limit", p.over_limit)];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    facts.extend(counts.map(|(name, count)| format!("{count} {name}")));
    Paragraph::new(facts.join("  ")).wrap(Wrap { trim: true })
}

fn notes(view: &View) -> Vec<Line<'_>> {
    view.snapshot.notes.iter().map(|note| Line::styled(note.to_string(), WARNING)).collect()
}

/// Median losses over time; of the latest reports where the controller tells nothing of the past.
fn losses(view: &View) -> Vec<f64> {
    let snapshot = &view.snapshot;
    let medians: Vec<f64> =
        snapshot.trace.iter().filter_map(|p| p.losses.as_ref()).map(|band| band.median).collect();
    let of_report = |report: &Report| {
        let mut losses: Vec<f64> =
            report.losses.iter().copied().filter(|l| l.is_finite()).collect();
        losses.sort_by(f64::total_cmp);
        losses.get(losses.len() / 2).copied()
    };
    let losses = match medians.is_empty() {
        true => snapshot.reports.iter().rev().filter_map(of_report).collect(),
        false => medians,
    };
    losses.into_iter().filter(|loss| loss.is_finite()).collect()
}

fn draw_losses(frame: &mut Frame<'_>, area: Rect, losses: &[f64], name: &str) {
    let Some(last) = losses.last() else { return };
    let low = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let high = losses.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let [title, bars] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let figures = [*last, low, high].map(text::number);
    let words = format!("  {} now, from {} to {}", figures[0], figures[1], figures[2]);
    let title_line = Line::from(vec![
        Span::styled(format!("Median {}", name.to_lowercase()), BOLD),
        Span::raw(words),
    ]);
    frame.render_widget(Paragraph::new(title_line), title);
    // As many as there are columns: each the mean of its share.
    let columns = losses.len().min(usize::from(bars.width).max(1));
    let column = |i: usize| {
        let share = &losses[i * losses.len() / columns..(i + 1) * losses.len() / columns];
        let mean = share.iter().sum::<f64>() / share.len() as f64;
        // Eight to a row, so that also the smallest is to be seen.
        let height = (mean - low) / (high - low).max(f64::MIN_POSITIVE);
        1 + (1000.0 * height) as u64
    };
    let data: Vec<u64> = (0..columns).map(column).collect();
    frame.render_widget(Sparkline::default().data(&data).max(1001).style(ACCENT), bars);
}

fn draw_theta(frame: &mut Frame<'_>, area: Rect, view: &View, scroll: &mut usize) {
    let snapshot = &view.snapshot;
    let Some(distribution) = &snapshot.distribution else { return };
    let rows: Vec<_> = distribution.marginals.iter().zip(&snapshot.study.variables).collect();
    let shown = usize::from(area.height.saturating_sub(1));
    *scroll = (*scroll).min(rows.len().saturating_sub(shown));
    let end = (*scroll + shown).min(rows.len());
    let mut title = vec![Span::styled("Distribution", BOLD)];
    if end - *scroll < rows.len() {
        let place = format!("  variables {} to {end} of {}", *scroll + 1, rows.len());
        title.push(Span::styled(place, FAINT));
    }
    let cells = |(marginal, variable): &(&Marginal, &Variable)| columns(marginal, variable);
    let map = rows.iter().map(cells).max().unwrap_or(0);
    let visible =
        rows[*scroll..end].iter().map(|(marginal, variable)| line(marginal, variable, map));
    let lines: Vec<Line<'_>> = [Line::from(title)].into_iter().chain(visible).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// Columns that a variable's heat map takes.
fn columns(marginal: &Marginal, variable: &Variable) -> usize {
    match (&marginal.kind, &variable.kind) {
        (Some(marginal::Kind::Categorical(c)), _) => (2 * c.probabilities.len()).min(MAP),
        (_, Some(Kind::Integer(_))) => MAP / 2,
        _ => 0,
    }
}

/// Name, heat map, and the likeliest in words.
fn line<'a>(marginal: &Marginal, variable: &'a Variable, map: usize) -> Line<'a> {
    let (blocks, words) = match (&marginal.kind, &variable.kind) {
        (Some(marginal::Kind::Categorical(c)), _) => {
            let cells = c.probabilities.len().clamp(1, MAP / 2);
            let each = c.probabilities.len().div_ceil(cells).max(1);
            let sums = c.probabilities.chunks(each).map(|chunk| chunk.iter().sum::<f64>());
            let blocks = sums.map(shade).collect::<String>();
            let best = (0..).zip(&c.probabilities).max_by(|a, b| a.1.total_cmp(b.1));
            let words =
                best.map(|(i, p)| format!("{}: {:.1} %", names::choice(variable, i), 100.0 * p));
            (blocks, words.unwrap_or_default())
        }
        (Some(marginal::Kind::Integer(i)), Some(Kind::Integer(bounds))) => {
            let (low, high) = (bounds.low as f64, bounds.high as f64);
            let columns = MAP / 2;
            let at = |value: f64| {
                let share = (value - low) / (high - low).max(1.0);
                (share.clamp(0.0, 1.0) * (columns - 1) as f64).round() as usize
            };
            let (from, mean, to) = (at(i.mean - i.deviation), at(i.mean), at(i.mean + i.deviation));
            let block = |column| match column {
                _ if column == mean => '█',
                _ if (from..=to).contains(&column) => '▒',
                _ => '·',
            };
            let words =
                format!("{:.2} ± {:.2}, of {} to {}", i.mean, i.deviation, bounds.low, bounds.high);
            ((0..columns).map(block).collect(), words)
        }
        _ => Default::default(),
    };
    let name: String = variable.name.chars().take(NAME).collect();
    Line::from(vec![
        Span::raw(format!("{name:<NAME$} ")),
        Span::styled(format!("{blocks:<map$} "), ACCENT),
        Span::raw(words),
    ])
}

/// A cell, the darker the likelier.
fn shade(p: f64) -> &'static str {
    match p {
        p if p >= 0.875 => "██",
        p if p >= 0.625 => "▓▓",
        p if p >= 0.375 => "▒▒",
        p if p >= 0.125 => "░░",
        _ => "··",
    }
}

fn draw_trainers(frame: &mut Frame<'_>, area: Rect, trainers: &[Trainer], now: SystemTime) {
    let row = |trainer: &Trainer| {
        Row::new([
            trainer.trainer_id.clone(),
            text::or_dash(trainer.last_seen.map(|seen| format!("{} ago", text::age(seen, now)))),
            text::or_dash(trainer.holds.first().map(|step| format!("step {step}"))),
            trainer.applied.to_string(),
            trainer.stale.to_string(),
            trainer.expired.to_string(),
            format!("{:.2}", trainer.mean_staleness),
        ])
    };
    let header = ["trainer", "last seen", "holds", "applied", "stale", "expired", "staleness"];
    let widths = [24, 16, 14, 9, 7, 7, 9].map(Constraint::Max);
    let table = Table::new(trainers.iter().take(TRAINERS).map(row), widths);
    let [_, area] = Layout::vertical([Constraint::Max(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(table.header(Row::new(header).style(BOLD)), area);
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use asng_controller::pictures::StudySnapshot;
    use asng_proto::v1::{
        AlgorithmSettings, CategoricalMarginal, GetDistributionResponse, IntegerMarginal, LossBand,
        TracePoint,
    };
    use prost_types::Timestamp;
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::text::tests::a_study;

    /// A study of `pairs` times a categorical and an integer.
    fn view(pairs: usize) -> View {
        let mut study = a_study();
        study.variables = vec![study.variables; pairs].concat();
        let op = marginal::Kind::Categorical(CategoricalMarginal { probabilities: vec![0.1, 0.9] });
        let width = marginal::Kind::Integer(IntegerMarginal { mean: 36.0, deviation: 14.0 });
        let marginals = [op, width].map(|kind| Marginal { name: String::new(), kind: Some(kind) });
        let trace = (0..100_u32).map(|i| TracePoint {
            losses: Some(LossBand { median: 3.0 - f64::from(i) / 50.0, ..LossBand::default() }),
            entropy: 0.5,
            ..TracePoint::default()
        });
        let trainer = Trainer {
            trainer_id: "gpu-box".into(),
            last_seen: Some(Timestamp::default()),
            holds: vec![51],
            applied: 50,
            ..Trainer::default()
        };
        let snapshot = StudySnapshot {
            study,
            distribution: Some(GetDistributionResponse {
                marginals: vec![marginals; pairs].concat(),
                ..GetDistributionResponse::default()
            }),
            trace: trace.collect(),
            reports: Vec::new(),
            trainers: vec![trainer],
            notes: Vec::new(),
            rate: Some(2.0),
            now: UNIX_EPOCH,
        };
        View { snapshot, outage: false }
    }

    /// The lines of a terminal, and the first variable shown.
    fn lines(view: &View, (width, height): (u16, u16), mut scroll: usize) -> (Vec<String>, usize) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(7);
        terminal.draw(|frame| draw(frame, view, &mut scroll, now)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        ((0..height).map(line).collect(), scroll)
    }

    #[test]
    fn a_search_is_seen_at_a_glance() {
        let mut view = view(1);
        view.snapshot.notes = vec!["gpu-box has set this study aside".to_owned().into()];
        let (lines, _) = lines(&view, (100, 24), 0);
        let text = lines.join("\n");
        let has = |words: &str| assert!(text.contains(words), "{words} in\n{text}");
        has("a  toy  RUNNING");
        has("50/200 steps, 25.0 %  2.00 steps/s  ETA 1 min 15 s");
        has("best loss 0.5000");
        has("entropy 0.500");
        has("1.0200 now, from 1.0200 to 3.0000");
        has("··██");
        has("conv5: 90.0 %");
        has("36.00 ± 14.00, of 8 to 64");
        has("gpu-box                  7 s ago          step 51");
        has("gpu-box has set this study aside");
        assert!(!text.contains("does not answer"));
    }

    #[test]
    fn a_warm_up_is_told_and_has_no_losses_to_draw() {
        let mut view = view(1);
        let algorithm = AlgorithmSettings { warmup_steps: Some(60), ..Default::default() };
        view.snapshot.study.spec.as_mut().unwrap().algorithm = Some(algorithm);
        view.snapshot.study.incumbent = None;
        view.snapshot.trace.iter_mut().for_each(|point| point.losses = None);
        let text = lines(&view, (100, 24), 0).0.join("\n");
        assert!(text.contains("50/200 steps, 25.0 %  warm-up: 50 of 60 steps  2.00 st"), "{text}");
        assert!(!text.contains(" now, from "), "{text}");
    }

    #[test]
    fn many_variables_scroll_and_never_past_the_last() {
        let view = view(50);
        let (first, scroll) = lines(&view, (80, 24), 0);
        assert_eq!(scroll, 0);
        assert!(first.iter().any(|line| line.contains("variables 1 to 11 of 100")), "{first:#?}");
        let end = scrolled(0, KeyEvent::from(KeyCode::End));
        let (last, scroll) = lines(&view, (80, 24), end);
        assert!(last.iter().any(|line| line.contains("variables 90 to 100 of 100")), "{last:#?}");
        assert_eq!(scroll, 89);
        assert_eq!(scrolled(scroll, KeyEvent::from(KeyCode::Up)), 88);
    }

    #[test]
    fn an_outage_an_unknown_space_and_a_tiny_terminal_are_drawn() {
        let view = View { snapshot: StudySnapshot::of(a_study(), UNIX_EPOCH), outage: true };
        assert!(lines(&view, (100, 24), 0).0[0].contains("does not answer"));
        for size in [(1, 1), (10, 3), (40, 7)] {
            lines(&self::view(3), size, 5);
        }
    }

    #[test]
    fn q_escape_and_control_c_leave() {
        let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
        assert!(is_leaving(KeyEvent::from(KeyCode::Char('q'))) && is_leaving(control('c')));
        assert!(is_leaving(KeyEvent::from(KeyCode::Esc)));
        assert!(!is_leaving(KeyEvent::from(KeyCode::Char('c'))) && !is_leaving(control('d')));
    }
}
