//! An architecture as graphs of cells. The controller knows no spaces; it goes by the names of variables:
//!
//! * `CELL.NODE.WHAT`, or `NODE.WHAT` where there is but one cell, says something of a node.
//! * Where WHAT is `input`, or `input` with a number, the value is the name of what the node reads: another node of the cell,
//!   or anything else, which is an input of the cell.
//! * Where WHAT is `from` with a number, the node reads the node of that number: `node2.from0` reads `node0`. The value says what is
//!   done with it; with `none` it is not read. The cell's result is its last node.
//! * Any other WHAT says what the node does. One that ends with the number of an input, as `op1`, is of that input.
//! * The cell's result is its node `output`, and nodes that it does not need are left out. Without a node of that name it is
//!   what no other node reads.

use std::collections::HashMap;

use asng_proto::v1::{Architecture, Variable, variable::Kind};
use maud::{Markup, html};

use super::{
    StudySnapshot,
    ink::Ink,
    panel::{Panel, WIDTH},
    words,
};

/// Larger cells, and more of them, are not drawn.
const NODES: usize = 64;
const INPUTS: usize = 256;
const CELLS: usize = 8;
/// Letters of a word in a graph.
const LETTERS: usize = 22;
/// The largest width of a letter, in operations and in names.
const LETTER: f64 = 5.5;
/// Height of a node, and of what is between two of them.
const BOX: f64 = 38.0;
const BETWEEN: f64 = 30.0;
/// Between two things in a row.
const GAP: f64 = 16.0;
/// Where the graph begins: below the name of the cell.
const TOP: f64 = 26.0;
/// The name of a node that is the cell's result.
const OUTPUT: &str = "output";

/// Returns the current best guess at the final architecture: the most likely one if nothing else is known.
pub(super) fn architecture(snapshot: &StudySnapshot) -> Option<&Architecture> {
    let chosen = snapshot.study.chosen.as_ref().and_then(|chosen| chosen.architecture.as_ref());
    chosen.or(snapshot.study.mode.as_ref())
}

/// A panel for each cell of the final architecture.
pub(super) fn panels(snapshot: &StudySnapshot) -> Vec<Panel> {
    let Some(architecture) = architecture(snapshot) else { return Vec::new() };
    let cells = cells(&snapshot.study.variables, &architecture.values);
    let drawn = cells.iter().filter(|cell| {
        let inputs: usize = cell.nodes.iter().map(|node| node.inputs.len()).sum();
        (inputs > 0 || cell.ends_with_last) && inputs <= INPUTS && cell.nodes.len() <= NODES
    });
    drawn.take(CELLS).filter_map(Cell::draw).collect()
}

/// Nodes that belong together.
struct Cell<'a> {
    name: &'a str,
    /// True if its result is its last node.
    ends_with_last: bool,
    nodes: Vec<Node<'a>>,
}

struct Node<'a> {
    name: &'a str,
    inputs: Vec<Input<'a>>,
    /// The operations of the node: the number of the input that each reads, and its name.
    does: Vec<(&'a str, String)>,
}

struct Input<'a> {
    number: &'a str,
    source: String,
}

fn cells<'a>(variables: &'a [Variable], values: &[i64]) -> Vec<Cell<'a>> {
    let mut cells: Vec<Cell<'_>> = Vec::new();
    // A cell and a node of each name.
    let mut places: HashMap<(&str, &str), (usize, usize)> = HashMap::new();
    let mut cell_places: HashMap<&str, usize> = HashMap::new();
    for (variable, &value) in variables.iter().zip(values) {
        let mut parts = variable.name.rsplitn(3, '.');
        let (Some(what), Some(node)) = (parts.next(), parts.next()) else { continue };
        let name = parts.next().unwrap_or_default();
        let cell = *cell_places.entry(name).or_insert_with(|| {
            cells.push(Cell { name, ends_with_last: false, nodes: Vec::new() });
            cells.len() - 1
        });
        let (cell, node) = *places.entry((name, node)).or_insert_with(|| {
            let nodes = &mut cells[cell].nodes;
            nodes.push(Node { name: node, inputs: Vec::new(), does: Vec::new() });
            (cell, nodes.len() - 1)
        });
        let cell = &mut cells[cell];
        let node = &mut cell.nodes[node];
        let stem = what.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = &what[stem.len()..];
        let chosen = words::choice(variable, value);
        match &variable.kind {
            Some(Kind::Categorical(_)) if stem == "input" => {
                node.inputs.push(Input { number, source: chosen });
            }
            Some(Kind::Categorical(_)) if stem == "from" && !number.is_empty() => {
                cell.ends_with_last = true;
                if chosen != "none" {
                    node.inputs.push(Input { number, source: format!("node{number}") });
                    node.does.push((number, chosen));
                }
            }
            // A bare number says little.
            _ if chosen.parse::<f64>().is_ok() => {
                node.does.push((number, format!("{stem} {chosen}")));
            }
            _ => node.does.push((number, chosen)),
        }
    }
    cells
}

impl Node<'_> {
    /// Returns the operations on an input.
    fn does_with(&self, input: &Input<'_>) -> Vec<&str> {
        let of =
            self.does.iter().filter(|(number, _)| *number == input.number && !number.is_empty());
        of.map(|(_, word)| word.as_str()).collect()
    }

    /// Returns the operations on all inputs.
    fn does(&self) -> Vec<&str> {
        let numbers: Vec<_> = self.inputs.iter().map(|input| input.number).collect();
        let of = self.does.iter().filter(|(n, _)| n.is_empty() || !numbers.contains(n));
        of.map(|(_, word)| word.as_str()).collect()
    }

    fn sentence(&self) -> String {
        let inputs = self.inputs.iter().map(|input| match self.does_with(input)[..] {
            [] => input.source.clone(),
            ref does => format!("{} of {}", does.join(" "), input.source),
        });
        let parts: Vec<String> = self.does().into_iter().map(str::to_owned).chain(inputs).collect();
        match parts.join(", ").as_str() {
            "" => format!("{} is nothing", self.name),
            parts => format!("{} is {parts}", self.name),
        }
    }
}

impl Cell<'_> {
    /// Which nodes its result needs.
    fn needed(&self) -> Vec<bool> {
        let place = |name: &str| self.nodes.iter().position(|node| node.name == name);
        let last = self.nodes.len().checked_sub(1).filter(|_| self.ends_with_last);
        let Some(output) = place(OUTPUT).or(last) else { return vec![true; self.nodes.len()] };
        let mut needed = vec![false; self.nodes.len()];
        let mut open = vec![output];
        while let Some(node) = open.pop() {
            if !std::mem::replace(&mut needed[node], true) {
                open.extend(
                    self.nodes[node].inputs.iter().filter_map(|input| place(&input.source)),
                );
            }
        }
        needed
    }

    /// Draws it, unless nodes read each other in a circle.
    fn draw(&self) -> Option<Panel> {
        let needed = self.needed();
        let nodes: Vec<&Node<'_>> =
            self.nodes.iter().zip(&needed).filter(|(_, needed)| **needed).map(|(n, _)| n).collect();
        let unused: Vec<&str> = self
            .nodes
            .iter()
            .zip(&needed)
            .filter(|(_, needed)| !**needed)
            .map(|(n, _)| n.name)
            .collect();
        let graph = Graph::new(&nodes)?.arranged();
        let width = WIDTH.max(graph.width);
        let below = TOP + graph.height() + 18.0;
        let unused = match unused[..] {
            [] => String::new(),
            ref unused => format!("Not used: {}", unused.join(", ")),
        };
        let body = html! {
            text x="0" y="13" font-size="13" font-weight="600" fill=(Ink::Text) { (words::short(self.name, 60)) }
            g transform=(format!("translate({:.1} {TOP})", (width - graph.width) / 2.0)) { (graph.draw()) }
            @if !unused.is_empty() {
                text x="0" y=(format!("{below:.0}")) font-size="11" fill=(Ink::Faint) { (words::short(&unused, 84)) }
            }
        };
        let sentences: Vec<_> = nodes.iter().map(|node| node.sentence()).collect();
        let mut label = format!("{} {}", self.name, sentences.join("; ")).trim().to_owned();
        if !unused.is_empty() {
            label += &format!(". {unused}");
        }
        let height = if unused.is_empty() { below - 16.0 } else { below + 4.0 };
        Some(Panel { width, height, label, body })
    }
}

/// Things in layers, each below all that it reads, and what goes from one layer to the next.
struct Graph {
    things: Vec<Thing>,
    links: Vec<Link>,
    layers: Vec<Vec<usize>>,
    width: f64,
}

struct Thing {
    kind: Form,
    layer: usize,
    width: f64,
    /// Its middle.
    x: f64,
}

enum Form {
    /// An input of the cell, or its result.
    End(String),
    /// A node: what it does with each of its inputs and how wide that is, what it does with all, its name.
    Node { ports: Vec<(String, f64)>, does: String, name: String },
    /// A line on its way to a layer further below.
    Line,
}

struct Link {
    from: usize,
    to: usize,
    /// Which input of a node it is.
    port: usize,
}

impl Graph {
    fn new(nodes: &[&Node<'_>]) -> Option<Graph> {
        let wide = |text: &str| LETTER * text.chars().count() as f64 + 12.0;
        let mut things: Vec<Thing> = Vec::new();
        for node in nodes {
            let port = |input| {
                let word = words::short(&node.does_with(input).join(" "), LETTERS);
                let width = wide(&word);
                (word, width)
            };
            let mut ports: Vec<(String, f64)> = node.inputs.iter().map(port).collect();
            let (does, name) = (
                words::short(&node.does().join(" · "), 2 * LETTERS),
                words::short(node.name, LETTERS),
            );
            let labelled = ports.iter().any(|(word, _)| !word.is_empty());
            let across: f64 =
                if labelled { ports.iter().map(|(_, width)| width).sum() } else { 0.0 };
            let width = across.max(wide(&does)).max(wide(&name)).max(56.0);
            // Together as wide as the node.
            let spare = (width - ports.iter().map(|(_, width)| width).sum::<f64>())
                / ports.len().max(1) as f64;
            ports.iter_mut().for_each(|(_, width)| *width += spare);
            things.push(Thing { kind: Form::Node { ports, does, name }, layer: 0, width, x: 0.0 });
        }
        let end = |name: &str| {
            let name = words::short(name, LETTERS);
            let width = wide(&name).max(56.0);
            Thing { kind: Form::End(name), layer: 0, width, x: 0.0 }
        };
        let mut places: HashMap<&str, usize> =
            nodes.iter().enumerate().map(|(i, node)| (node.name, i)).collect();
        // From, to, port.
        let mut edges: Vec<(usize, usize, usize)> = Vec::new();
        for (to, node) in nodes.iter().enumerate() {
            for (port, input) in node.inputs.iter().enumerate() {
                let from = *places.entry(&input.source).or_insert_with(|| {
                    things.push(end(&input.source));
                    things.len() - 1
                });
                edges.push((from, to, port));
            }
        }
        if !places.contains_key(OUTPUT) {
            let unread = |node: &usize| edges.iter().all(|(from, ..)| from != node);
            let results: Vec<usize> = (0..nodes.len()).filter(unread).collect();
            edges.extend(results.into_iter().map(|from| (from, things.len(), 0)));
            things.push(end(OUTPUT));
        }

        // The longest path to each; a circle would make it ever longer.
        for round in 0.. {
            let mut changed = false;
            for &(from, to, _) in &edges {
                if things[to].layer <= things[from].layer {
                    things[to].layer = things[from].layer + 1;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
            if round > things.len() {
                return None;
            }
        }
        let mut lines: HashMap<(usize, usize), usize> = HashMap::new();
        let mut links = Vec::new();
        for (source, to, port) in edges {
            let mut from = source;
            for layer in things[source].layer + 1..things[to].layer {
                // What goes from one source to several layers shares a line.
                let next = *lines.entry((source, layer)).or_insert_with(|| {
                    things.push(Thing { kind: Form::Line, layer, width: 4.0, x: 0.0 });
                    links.push(Link { from, to: things.len() - 1, port: 0 });
                    things.len() - 1
                });
                from = next;
            }
            links.push(Link { from, to, port });
        }
        let deepest = things.iter().map(|thing| thing.layer).max()?;
        let mut layers = vec![Vec::new(); deepest + 1];
        for (i, thing) in things.iter().enumerate() {
            layers[thing.layer].push(i);
        }
        Some(Graph { things, links, layers, width: 0.0 })
    }

    /// Moves everything to where what it is linked with is, layer by layer, down and up, until links go sideways least.
    fn arranged(mut self) -> Graph {
        let mut above = vec![Vec::new(); self.things.len()];
        let mut below = vec![Vec::new(); self.things.len()];
        for (i, link) in self.links.iter().enumerate() {
            above[link.to].push(i);
            below[link.from].push(i);
        }
        let middle = |graph: &Graph, thing: usize, down: bool| {
            let links = if down { &above[thing] } else { &below[thing] };
            let end = |&link: &usize| {
                let link = &graph.links[link];
                match down {
                    true => graph.things[link.from].x - graph.port(link),
                    false => graph.things[link.to].x + graph.port(link),
                }
            };
            match links.len() {
                0 => graph.things[thing].x,
                n => links.iter().map(end).sum::<f64>() / n as f64,
            }
        };
        let mut best = (f64::INFINITY, Vec::new());
        for sweep in 0..=12 {
            let down = sweep % 2 == 0;
            let order: Vec<usize> = match down {
                true => (0..self.layers.len()).collect(),
                false => (0..self.layers.len()).rev().collect(),
            };
            for layer in order {
                let wishes =
                    self.layers[layer].iter().map(|&thing| (middle(&self, thing, down), thing));
                let mut wishes: Vec<(f64, usize)> = wishes.collect();
                wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
                let mut right = f64::NEG_INFINITY;
                for &(wish, thing) in &wishes {
                    let half = self.things[thing].width / 2.0;
                    self.things[thing].x = wish.max(right + GAP + half);
                    right = self.things[thing].x + half;
                }
                let moved: f64 =
                    wishes.iter().map(|&(wish, thing)| self.things[thing].x - wish).sum();
                for &(_, thing) in &wishes {
                    self.things[thing].x -= moved / wishes.len() as f64;
                }
                self.layers[layer] = wishes.into_iter().map(|(_, thing)| thing).collect();
            }
            let sideways = self.links.iter().map(|link| {
                (self.things[link.from].x - self.things[link.to].x - self.port(link)).abs()
            });
            let sideways: f64 = sideways.sum();
            if sideways < best.0 {
                best = (sideways, self.things.iter().map(|thing| thing.x).collect());
            }
        }
        for (thing, x) in self.things.iter_mut().zip(best.1) {
            thing.x = x;
        }
        let left = |thing: &Thing| thing.x - thing.width / 2.0;
        let start = self.things.iter().map(left).fold(f64::INFINITY, f64::min) - 2.0;
        for thing in &mut self.things {
            thing.x -= start;
        }
        let ends = self.things.iter().map(|thing| thing.x + thing.width / 2.0);
        self.width = ends.fold(0.0, f64::max) + 2.0;
        self
    }

    /// Where a link ends, from the middle of its node.
    fn port(&self, link: &Link) -> f64 {
        let Thing { kind: Form::Node { ports, .. }, width, .. } = &self.things[link.to] else {
            return 0.0;
        };
        let before: f64 = ports.iter().take(link.port).map(|(_, width)| width).sum();
        before + ports.get(link.port).map_or(0.0, |(_, width)| width / 2.0) - width / 2.0
    }

    fn height(&self) -> f64 {
        self.layers.len() as f64 * (BOX + BETWEEN) - BETWEEN
    }

    fn draw(&self) -> Markup {
        let top = |thing: &Thing| thing.layer as f64 * (BOX + BETWEEN);
        let curve = |link: &Link| {
            let (from, to) = (&self.things[link.from], &self.things[link.to]);
            let (x, y) = (from.x, top(from) + from.bottom());
            let (u, v) = (to.x + self.port(link), top(to) + to.top());
            let bend = (v - y) / 2.0;
            format!("M{x:.1} {y:.1}C{x:.1} {:.1} {u:.1} {:.1} {u:.1} {v:.1}", y + bend, v - bend)
        };
        html! {
            g fill="none" stroke=(Ink::Faint) stroke-width="1.2" {
                @for link in &self.links { path d=(curve(link)) {} }
            }
            @for thing in &self.things {
                g transform=(format!("translate({:.1} {:.1})", thing.x - thing.width / 2.0, top(thing))) { (thing.draw()) }
            }
        }
    }
}

impl Thing {
    /// Where its upper edge is within its layer.
    fn top(&self) -> f64 {
        match self.kind {
            Form::End(_) => 8.0,
            Form::Node { .. } | Form::Line => 0.0,
        }
    }

    fn bottom(&self) -> f64 {
        match self.kind {
            Form::End(_) => BOX - 8.0,
            Form::Node { .. } | Form::Line => BOX,
        }
    }

    fn draw(&self) -> Markup {
        let middle = format!("{:.1}", self.width / 2.0);
        let width = format!("{:.1}", self.width);
        match &self.kind {
            Form::End(name) => html! {
                rect y=(self.top()) width=(width) height=(self.bottom() - self.top()) rx="11" fill=(Ink::Surface)
                    stroke=(Ink::Faint) {}
                text x=(middle) y=(BOX / 2.0 + 3.5) font-size="10" text-anchor="middle" fill=(Ink::Text) { (name) }
            },
            Form::Node { ports, does, name } => {
                let labelled = ports.iter().any(|(word, _)| !word.is_empty());
                let mut lefts = Vec::new();
                let mut left = 0.0;
                for (_, width) in ports {
                    lefts.push(left);
                    left += width;
                }
                let plain = !labelled && does.is_empty();
                let name_line = match (labelled, does.is_empty()) {
                    (true, false) => format!("{name} · {does}"),
                    _ => name.clone(),
                };
                html! {
                    rect width=(width) height=(BOX) rx="3" fill=(Ink::Surface) {}
                    @if !plain { rect width=(width) height=(BOX / 2.0) fill=(Ink::Blue) fill-opacity="0.14" {} }
                    rect width=(width) height=(BOX) rx="3" fill="none" stroke=(Ink::Blue) {}
                    @if labelled {
                        @for ((word, width), left) in ports.iter().zip(lefts) {
                            @if left > 0.0 {
                                line x1=(format!("{left:.1}")) x2=(format!("{left:.1}")) y1="0" y2=(BOX / 2.0)
                                    stroke=(Ink::Blue) stroke-width="0.75" {}
                            }
                            text x=(format!("{:.1}", left + width / 2.0)) y="13" font-size="9.5" text-anchor="middle"
                                fill=(Ink::Text) { (word) }
                        }
                    } @else {
                        text x=(middle) y="13" font-size="9.5" text-anchor="middle" fill=(Ink::Text) { (does) }
                    }
                    text x=(middle) y=(if plain { 22.5 } else { 32.0 }) font-size="10" text-anchor="middle" fill=(Ink::Faint) { (name_line) }
                }
            }
            Form::Line => html! {
                line x1=(middle) x2=(middle) y1="0" y2=(BOX) stroke=(Ink::Faint) stroke-width="1.2" {}
            },
        }
    }
}
