//! An architecture for people and other programs: JSON with the names of the choices, and Graphviz
//! DOT.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Architecture, Coding, DecodeError, MAX_CHANNELS, MAX_NODES, Space, place_name};

/// An architecture as JSON. The space with its two sizes and `values` are what counts when it is
/// read back; the rest is for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// The space, `inpaint-cat` or `inpaint-int`.
    pub space: String,
    /// How far back a node could read.
    pub level_back: i64,
    /// The smallest number of channels a node could have.
    pub channels: i64,
    /// One value for each variable.
    pub values: Vec<i64>,
    /// The nodes of the encoder, from the image on. The decoder is its mirror image.
    pub encoder: Vec<NodeDescription>,
}

/// An active node by the names of its choices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Which node of the row it is.
    pub node: String,
    /// What it does.
    pub module: String,
    /// Channels of its output.
    pub channels: i64,
    /// What it reads.
    pub input: String,
}

impl Description {
    /// The architecture described.
    pub fn architecture(&self) -> Result<Architecture, DecodeError> {
        let Some(coding) = Coding::named(&self.space) else {
            return Err(DecodeError::OtherSpace(self.space.clone()));
        };
        let (of_node, of_output) = coding.variables();
        let nodes = self.values.len().saturating_sub(of_output) / of_node;
        for (name, high, value) in [
            ("level_back", MAX_NODES, self.level_back),
            ("channels", MAX_CHANNELS, self.channels),
            ("the number of nodes", MAX_NODES, nodes as i64),
        ] {
            if !(1..=high).contains(&value) {
                let variable = name.to_owned();
                return Err(DecodeError::Value { variable, low: 1, high, value });
            }
        }
        let level_back = self.level_back as usize;
        let space = Space { coding, nodes, level_back, channels: self.channels };
        Architecture::decode(&space, &self.values)
    }
}

impl Architecture {
    /// The description to serialise as JSON.
    pub fn describe(&self) -> Description {
        let describe = |index: usize| {
            let node = self.nodes()[index];
            NodeDescription {
                node: place_name(index + 1),
                module: node.module.name(),
                channels: node.channels,
                input: place_name(node.input),
            }
        };
        Description {
            space: self.space().coding.name().to_owned(),
            level_back: self.space().level_back as i64,
            channels: self.space().channels,
            values: self.values(),
            encoder: self.active().into_iter().map(describe).collect(),
        }
    }

    /// Encoder and decoder as a Graphviz digraph; a dashed edge is what a skip node hands to its
    /// mirror node.
    pub fn dot(&self) -> String {
        let name = self.space().coding.name();
        let mut dot = format!("digraph \"{name}\" {{\n  rankdir=TB;\n  node [shape=box];\n");
        let mut line = |text: String| writeln!(dot, "  {text}").expect("a String takes any text");
        for end in ["image", "output"] {
            line(format!("\"{end}\" [shape=ellipse];"));
        }
        let mut last = "image".to_owned();
        let mut next = |line: &mut dyn FnMut(String), place: String, label: String| {
            line(format!("\"{place}\" [label=\"{label}\"];"));
            line(format!("\"{last}\" -> \"{place}\";"));
            last = place;
        };
        let active = self.active();
        let label = |what: &str, index: usize| {
            let node = self.nodes()[index];
            format!("{what}{index} {} {}", node.module.name(), node.channels)
        };
        for &index in &active {
            next(&mut line, format!("node{index}"), label("node", index));
        }
        for &index in active.iter().rev() {
            next(&mut line, format!("mirror{index}"), label("mirror", index));
            if self.nodes()[index].module.skip {
                line(format!("\"node{index}\" -> \"mirror{index}\" [style=dashed];"));
            }
        }
        line(format!("\"{last}\" -> \"output\";"));
        dot + "}\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn architecture() -> Architecture {
        let space = Space { coding: Coding::Categorical, nodes: 3, level_back: 2, channels: 8 };
        let values = [2, 2, 0, /* node1 */ 4, 0, 1, /* node2 */ 1, 1, 0, 0, 0, 1];
        Architecture::decode(&space, &values).unwrap()
    }

    #[test]
    fn json_names_the_choices_and_reads_back() {
        let json = serde_json::to_value(architecture().describe()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "space": "inpaint-cat",
                "level_back": 2,
                "channels": 8,
                "values": [2, 2, 0, 4, 0, 1, 1, 1, 0, 0, 0, 1],
                "encoder": [
                    {"node": "node0", "module": "conv_3x3_skip", "channels": 32, "input": "image"},
                    {"node": "node2", "module": "conv_1x1_down", "channels": 16, "input": "node0"},
                ],
            })
        );
        let read: Description = serde_json::from_value(json).unwrap();
        assert_eq!(read.architecture(), Ok(architecture()));
    }

    #[test]
    fn a_description_that_cannot_be_is_an_error() {
        let good = architecture().describe();
        let error = |description: Description| description.architecture().unwrap_err().to_string();
        assert_eq!(
            error(Description { space: "enas-micro".to_owned(), ..good.clone() }),
            "\"enas-micro\" is no space of autoencoders"
        );
        assert_eq!(
            error(Description { level_back: 0, ..good.clone() }),
            "level_back is 1 to 50, not 0"
        );
        assert_eq!(
            error(Description { channels: i64::MAX, ..good.clone() }),
            format!("channels is 1 to 256, not {}", i64::MAX)
        );
        assert_eq!(
            error(Description { values: vec![], ..good.clone() }),
            "the number of nodes is 1 to 50, not 0"
        );
        assert_eq!(
            error(Description { values: vec![0; 7], ..good }),
            "an architecture of 1 nodes has 6 values, not 7"
        );
    }

    #[test]
    fn dot_draws_the_mirror() {
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
        assert_eq!(architecture().dot(), expected);
    }
}
