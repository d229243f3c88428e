//! An architecture as a chain of blocks, from the image to the classifier. The controller knows no spaces; it goes by the names of
//! variables:
//!
//! * The value of `stageR.blockB` is what the block does. A block that does `skip` is not there.
//! * The value of `stageR.channels` is the width of the stage.

use asng_proto::v1::Variable;
use maud::{Markup, html};

use super::{
    StudySnapshot, cells,
    ink::Ink,
    panel::{Panel, WIDTH},
    words,
};

/// Longer chains are not drawn.
const BLOCKS: usize = 256;
/// Letters of a word in a block, and of the name of a stage.
const LETTERS: usize = 26;
/// The largest width of a letter.
const LETTER: f64 = 5.9;
/// Width of a block.
const BOX: f64 = 18.0;
/// Between two blocks of a stage.
const GAP: f64 = 3.0;
/// Between two stages.
const STAGE_GAP: f64 = 10.0;
/// Height of the two lines below the blocks.
const BELOW: f64 = 34.0;
/// The operation of a block that is left out.
const SKIP: &str = "skip";

/// Returns a panel with the current best guess at the final architecture, if its space is a chain.
pub(super) fn panels(snapshot: &StudySnapshot) -> Vec<Panel> {
    let Some(architecture) = cells::architecture(snapshot) else { return Vec::new() };
    let stages = stages(&snapshot.study.variables, &architecture.values);
    let blocks: usize = stages.iter().map(|stage| stage.blocks.len()).sum();
    if (1..=BLOCKS).contains(&blocks) { vec![draw(&stages)] } else { Vec::new() }
}

/// Blocks that have the same width.
struct Stage<'a> {
    name: &'a str,
    /// The number of channels, where it is searched.
    channels: Option<String>,
    /// The operation of each block.
    blocks: Vec<String>,
}

fn stages<'a>(variables: &'a [Variable], values: &[i64]) -> Vec<Stage<'a>> {
    let is_numbered = |name: &str, word| {
        let number = name.strip_prefix(word).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut stages: Vec<Stage<'_>> = Vec::new();
    for (variable, &value) in variables.iter().zip(values) {
        let Some((name, what)) = variable.name.split_once('.') else { continue };
        if !is_numbered(name, "stage") || what != "channels" && !is_numbered(what, "block") {
            continue;
        }
        let place = stages.iter().position(|stage| stage.name == name).unwrap_or_else(|| {
            stages.push(Stage { name, channels: None, blocks: Vec::new() });
            stages.len() - 1
        });
        let chosen = words::choice(variable, value);
        match what {
            "channels" => stages[place].channels = Some(chosen),
            _ => stages[place].blocks.push(chosen),
        }
    }
    stages
}

impl Stage<'_> {
    /// Returns the lines below its blocks.
    fn lines(&self) -> [String; 2] {
        let channels = self.channels.as_ref().map(|channels| format!("{channels} ch"));
        [words::short(self.name, LETTERS), words::short(&channels.unwrap_or_default(), LETTERS)]
    }

    fn blocks_width(&self) -> f64 {
        (self.blocks.len() as f64 * (BOX + GAP) - GAP).max(0.0)
    }

    /// Returns the width of its blocks or of the lines below them, whichever is larger.
    fn width(&self) -> f64 {
        let letters = self.lines().iter().map(|line| line.chars().count()).max();
        self.blocks_width().max(letters.unwrap_or(0) as f64 * LETTER)
    }

    fn sentence(&self) -> String {
        let channels = self.channels.as_ref().map(|channels| format!(" of {channels} channels"));
        format!("{}{}: {}", self.name, channels.unwrap_or_default(), self.blocks.join(", "))
    }
}

fn draw(stages: &[Stage<'_>]) -> Panel {
    let words = stages.iter().flat_map(|stage| &stage.blocks).map(|word| word.chars().count());
    let letters = words.chain(["classifier".len()]).max().unwrap_or(0).min(LETTERS);
    let tall = LETTER * letters as f64 + 14.0;
    let middle = tall / 2.0;
    let mut lefts = Vec::new();
    let mut left = BOX + STAGE_GAP;
    for stage in stages {
        lefts.push(left);
        left += stage.width() + STAGE_GAP;
    }
    let right = left + BOX;
    let width = WIDTH.max(right + 2.0);
    let body = html! {
        g transform=(format!("translate({:.1} 2)", (width - right) / 2.0)) {
            line x1="0" x2=(format!("{right:.1}")) y1=(middle) y2=(middle) stroke=(Ink::Faint) stroke-width="1.2" {}
            (block(0.0, tall, "image", Form::End))
            @for (stage, left) in stages.iter().zip(lefts) { (draw_stage(stage, left, tall)) }
            (block(left, tall, "classifier", Form::End))
        }
    };
    let sentences: Vec<_> = stages.iter().map(Stage::sentence).collect();
    Panel { width, height: tall + BELOW + 4.0, label: sentences.join("; "), body }
}

fn draw_stage(stage: &Stage<'_>, left: f64, tall: f64) -> Markup {
    let width = stage.width();
    let middle = format!("{:.1}", left + width / 2.0);
    let first = left + (width - stage.blocks_width()) / 2.0;
    let [name, channels] = stage.lines();
    html! {
        @for (i, word) in stage.blocks.iter().enumerate() {
            @let form = if word == SKIP { Form::Skipped } else { Form::Block };
            (block(first + i as f64 * (BOX + GAP), tall, word, form))
        }
        line x1=(format!("{left:.1}")) x2=(format!("{:.1}", left + width)) y1=(tall + 6.0) y2=(tall + 6.0)
            stroke=(Ink::Grid) stroke-width="2" {}
        text x=(middle) y=(tall + 19.0) font-size="10" text-anchor="middle" fill=(Ink::Text) { (name) }
        text x=(middle) y=(tall + 31.0) font-size="10" text-anchor="middle" fill=(Ink::Faint) { (channels) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The image, or the classifier.
    End,
    Block,
    /// A block that is left out.
    Skipped,
}

/// Draws a block with its word from the bottom up.
fn block(left: f64, tall: f64, word: &str, form: Form) -> Markup {
    let (x, y) = (left + BOX / 2.0 + 3.3, tall / 2.0);
    let (stroke, ink) = match form {
        Form::End => (Ink::Faint, Ink::Text),
        Form::Block => (Ink::Blue, Ink::Text),
        Form::Skipped => (Ink::Faint, Ink::Faint),
    };
    html! {
        g {
            rect x=(format!("{left:.1}")) width=(BOX) height=(tall) rx=(if form == Form::End { 9 } else { 3 })
                fill=(Ink::Surface) {}
            rect x=(format!("{left:.1}")) width=(BOX) height=(tall) rx=(if form == Form::End { 9 } else { 3 })
                fill=(if form == Form::Block { Ink::Blue } else { Ink::Surface }) fill-opacity="0.14" stroke=(stroke)
                stroke-dasharray=[(form == Form::Skipped).then_some("3 3")] {}
            text x=(format!("{x:.1}")) y=(y) font-size="10" text-anchor="middle" fill=(ink)
                transform=(format!("rotate(-90 {x:.1} {y})")) { (words::short(word, LETTERS)) }
        }
    }
}
