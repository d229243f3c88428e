//! An architecture of either space: its nodes, the layers that they become, and how people see them.
//!
//! The nodes on the way back from the output to the image are *active* and make the encoder; the decoder is its mirror image. The
//! others are not computed. A node's module is a kernel (1, 3 or 5 pixels wide) and one of two kinds: `down` halves height and
//! width, `skip` keeps them and hands its output also to its mirror node in the decoder.

use std::fmt;

use serde_json::{Value, json};

/// The operation of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Module {
    /// Height and width of the convolution's kernel: 1, 3 or 5.
    pub(super) kernel: i64,
    /// True: height and width stay, and the output goes to the mirror node as well. False: height and width are halved.
    pub(super) skip: bool,
}

impl Module {
    /// Every module, in the order of the values of `module`.
    pub(super) const ALL: [Module; 6] = [
        Module { kernel: 1, skip: true },
        Module { kernel: 1, skip: false },
        Module { kernel: 3, skip: true },
        Module { kernel: 3, skip: false },
        Module { kernel: 5, skip: true },
        Module { kernel: 5, skip: false },
    ];

    /// Returns the stride of the convolution.
    pub(super) fn stride(self) -> i64 {
        if self.skip { 1 } else { 2 }
    }
}

/// Formats the name of the choice, which names the weights as well.
impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Module { kernel, skip } = self;
        write!(f, "conv_{kernel}x{kernel}_{}", if *skip { "skip" } else { "down" })
    }
}

/// One node of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) module: Module,
    /// Channels of its output, and of its mirror node's.
    pub(super) channels: i64,
    /// The place that it reads: 0 is the image, 1 + i is node i.
    pub(super) input: usize,
}

/// An active node that is computed, and its mirror node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    /// The node's index in the row.
    pub(super) node: usize,
    pub(super) module: Module,
    /// Channels of the node's input.
    pub(super) inputs: i64,
    /// Channels of the mirror node's input.
    pub(super) mirror_inputs: i64,
    /// Channels of the outputs of both.
    pub(super) channels: i64,
    /// Height and width of the node's input, and of the mirror node's output.
    pub(super) image: [i64; 2],
}

impl Layer {
    /// Returns height and width of the node's output, and of the mirror node's input.
    pub(super) fn halved(&self) -> [i64; 2] {
        if self.module.skip { self.image } else { self.image.map(|side| (side + 1) / 2) }
    }
}

/// One value for each variable, as the nodes they stand for.
#[derive(Clone, Debug)]
pub(super) struct Architecture {
    /// Every node of the row, active or not.
    pub(super) nodes: Vec<Node>,
    /// The place that the encoder ends with.
    pub(super) output: usize,
}

impl Architecture {
    /// Returns the active nodes, from the image on. There is none if the output reads the image, which only a row shorter than
    /// `level_back` allows.
    pub(super) fn active(&self) -> Vec<usize> {
        let mut active = Vec::new();
        let mut place = self.output;
        while place > 0 {
            active.push(place - 1);
            place = self.nodes[place - 1].input;
        }
        active.reverse();
        active
    }

    /// Returns the layers for images of that shape (channels, height, width), from the image on. A node that would halve an image
    /// of height or width 1 is bypassed, and so is its mirror node.
    pub(super) fn layers(&self, image: [i64; 3]) -> Vec<Layer> {
        let [mut inputs, height, width] = image;
        let mut image = [height, width];
        let mut layers: Vec<Layer> = Vec::new();
        for node in self.active() {
            let Node { module, channels, .. } = self.nodes[node];
            if !module.skip && image.contains(&1) {
                continue;
            }
            let layer = Layer { node, module, inputs, mirror_inputs: channels, channels, image };
            // The mirror node of the layer before this one reads the mirror node of this one.
            if let Some(before) = layers.last_mut() {
                before.mirror_inputs = channels;
            }
            (inputs, image) = (channels, layer.halved());
            layers.push(layer);
        }
        layers
    }

    /// Returns the nodes of the encoder by the names of their choices.
    pub(super) fn encoder(&self) -> Vec<Value> {
        let describe = |index| {
            let Node { module, channels, input } = self.nodes[index];
            json!({
                "node": place_name(index + 1),
                "module": module.to_string(),
                "channels": channels,
                "input": place_name(input),
            })
        };
        self.active().into_iter().map(describe).collect()
    }

    /// Returns encoder and decoder as a Graphviz digraph; a dashed edge leads from a skip node to its mirror node.
    pub(super) fn dot(&self, name: &str) -> String {
        let mut lines: Vec<String> = vec![
            "rankdir=TB;".into(),
            "node [shape=box];".into(),
            "\"image\" [shape=ellipse];".into(),
            "\"output\" [shape=ellipse];".into(),
        ];
        let active = self.active();
        let encoder = active.iter().map(|node| ("node", node));
        let decoder = active.iter().rev().map(|node| ("mirror", node));
        let mut last = "image".to_owned();
        for (part, &index) in encoder.chain(decoder) {
            let Node { module, channels, .. } = self.nodes[index];
            let place = format!("{part}{index}");
            lines.push(format!("\"{place}\" [label=\"{place} {module} {channels}\"];"));
            lines.push(format!("\"{last}\" -> \"{place}\";"));
            if part == "mirror" && module.skip {
                lines.push(format!("\"node{index}\" -> \"{place}\" [style=dashed];"));
            }
            last = place;
        }
        lines.push(format!("\"{last}\" -> \"output\";"));
        format!("digraph \"{name}\" {{\n  {}\n}}\n", lines.join("\n  "))
    }
}

/// Returns the name of a place that can be read: 0 is the image, 1 + i is node i.
pub(super) fn place_name(place: usize) -> String {
    match place {
        0 => "image".to_owned(),
        _ => format!("node{}", place - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes in a chain: kernel, skip, channels of each.
    fn chain(nodes: [(i64, bool, i64); 4]) -> Architecture {
        let node = |(input, (kernel, skip, channels))| Node {
            module: Module { kernel, skip },
            channels,
            input,
        };
        Architecture { nodes: nodes.into_iter().enumerate().map(node).collect(), output: 4 }
    }

    #[test]
    fn channels_follow_the_path_and_its_mirror() {
        let chain = chain([(3, false, 2), (1, true, 5), (5, false, 3), (1, true, 8)]);
        let layers = chain.layers([3, 16, 6]);
        let channels: Vec<_> =
            layers.iter().map(|l| (l.inputs, l.channels, l.mirror_inputs)).collect();
        assert_eq!(channels, [(3, 2, 5), (2, 5, 3), (5, 3, 8), (3, 8, 8)]);
        let images: Vec<_> = layers.iter().map(|layer| layer.image).collect();
        assert_eq!(images, [[16, 6], [8, 3], [8, 3], [4, 2]]);
    }

    #[test]
    fn nodes_that_cannot_halve_are_bypassed_and_those_that_keep_the_size_are_not() {
        let chain = chain([(3, false, 2), (1, false, 5), (5, true, 3), (1, false, 8)]);
        let layers = chain.layers([3, 2, 8]);
        assert_eq!(layers.iter().map(|layer| layer.node).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(layers[1].inputs, 2);
        assert_eq!(layers[0].mirror_inputs, 3);
    }

    #[test]
    fn dot_draws_the_mirror() {
        let node = |kernel, skip, channels, input| Node {
            module: Module { kernel, skip },
            channels,
            input,
        };
        let nodes = vec![node(3, true, 32, 0), node(5, true, 8, 1), node(1, false, 16, 1)];
        let expected = r#"digraph "inpaint-cat" {
  rankdir=TB;
  node [shape=box];
  "image" [shape=ellipse];
  "output" [shape=ellipse];
  "node0" [label="node0 conv_3x3_skip 32"];
  "image" -> "node0";
  "node2" [label="node2 conv_1x1_down 16"];
  "node0" -> "node2";
  "mirror2" [label="mirror2 conv_1x1_down 16"];
  "node2" -> "mirror2";
  "mirror0" [label="mirror0 conv_3x3_skip 32"];
  "mirror2" -> "mirror0";
  "node0" -> "mirror0" [style=dashed];
  "mirror0" -> "output";
}
"#;
        assert_eq!(Architecture { nodes, output: 3 }.dot("inpaint-cat"), expected);
    }
}
