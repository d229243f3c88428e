//! The family chain: networks that are a row of blocks, with a choice of operation, width and depth.
//!
//! A file writes stages in timm's notation (`ir_r[1-4]_k[3,5]_s2_e[3,6]_c24`), with brackets around what the search decides:
//!
//! | variable | chooses |
//! | --- | --- |
//! | `stage{r}.channels` | the width of a stage, where its row has a list of widths |
//! | `stage{r}.block{b}` | kernel, expansion and squeeze-and-excitation together, or `skip` for a block beyond the least number |
//!
//! In the supernet each operation of a block has its own weights (ProxylessNAS, Cai et al., ICLR 2019). Widths share them: the
//! weights are as wide as the widest choice, and a narrower one uses the first channels (slimmable networks, Yu et al.,
//! ICLR 2019). What has one choice has no variable.

mod row;

use std::fmt::Write;

use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, nn};
use toml::Spanned;

use self::row::{MAX_CHANNELS, MAX_KERNEL, Row};
pub use super::mbconv::Activation;
use super::{
    cells::Ends,
    fault::{Fault, within},
    mbconv::{Block, BlockSize, Layer, Operation, divisible},
};
use crate::tasks::{
    Variable,
    network::{
        Builder, ConvSize, Costs, Linear, Mode, Network, NormKind, Output, channels_last,
        global_pool,
    },
};

const MAX_ROWS: usize = 32;
const MAX_VARIABLES: usize = 512;
/// The largest supernet, in weights: 1 GB of them.
const MAX_PARAMETERS: i64 = 1 << 28;

/// The choice that leaves a block out; the last one of its variable.
const SKIP: &str = "skip";

/// The table `[chain]` of a space file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainTable {
    /// The convolution that reads the image.
    pub stem: StemTable,
    /// A 1x1 convolution before the pooling.
    pub head: Option<HeadTable>,
    /// The function after each normalisation, but the last one of a block.
    pub activation: Activation,
    /// The stages.
    pub rows: Spanned<Vec<Spanned<String>>>,
}

/// The key `stem` of [`ChainTable`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StemTable {
    /// Channels of the output.
    pub channels: Spanned<i64>,
    /// Height and width of the kernel.
    pub kernel: Spanned<i64>,
    /// 2 halves the image.
    pub stride: Spanned<i64>,
}

/// The key `head` of [`ChainTable`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadTable {
    /// Channels of the output.
    pub channels: Spanned<i64>,
}

/// A space of this family.
#[derive(Clone, Debug)]
pub struct Chain {
    name: String,
    stem: Stem,
    head: Option<i64>,
    activation: Activation,
    rows: Vec<Row>,
    /// Multiplies all channels, which are then rounded to a multiple of 8, at least 8; at 1 they are as the file has them.
    /// Usually 0.1 to 4.
    pub width: f64,
}

#[derive(Clone, Copy, Debug)]
struct Stem {
    channels: i64,
    kernel: i64,
    stride: i64,
}

/// The choices of an architecture for one row.
struct Stage {
    channels: i64,
    /// The index of each block's operation; none if the block is skipped.
    blocks: Vec<Option<usize>>,
}

/// A block's name, with its operation and size; none if skipped.
type NamedBlock = (String, Option<(Operation, BlockSize)>);

/// The layers of a network. A block has one entry for each operation, which is empty in a network that does not use it.
struct Layers {
    stem: Layer,
    stages: Vec<Vec<Vec<Option<Block>>>>,
    head: Option<Layer>,
    classifier: Linear,
}

impl Chain {
    /// Makes the space of that name. Errors with the first key or row that is not allowed.
    pub fn new(name: &str, table: &ChainTable) -> Result<Chain, Fault> {
        let channels = |value, key| within(value, (1, MAX_CHANNELS), key);
        let kernel = within(&table.stem.kernel, (1, MAX_KERNEL), "chain.stem.kernel")?;
        if kernel % 2 == 0 {
            let problem = format!("must be odd, not {kernel}");
            return Err(Fault::new(&table.stem.kernel, "chain.stem.kernel", problem));
        }
        let stem = Stem {
            channels: channels(&table.stem.channels, "chain.stem.channels")?,
            kernel,
            stride: within(&table.stem.stride, (1, 2), "chain.stem.stride")?,
        };
        let head = match &table.head {
            Some(head) => Some(channels(&head.channels, "chain.head.channels")?),
            None => None,
        };
        let whole = |problem| Fault::new(&table.rows, "chain.rows", problem);
        let number = table.rows.get_ref().len();
        if !(1..=MAX_ROWS).contains(&number) {
            return Err(whole(format!("must have 1 to {MAX_ROWS} rows, not {number}")));
        }
        let mut rows = Vec::new();
        for (index, row) in table.rows.get_ref().iter().enumerate() {
            let fault = |problem| Fault::new(row, &format!("chain.rows[{index}]"), problem);
            rows.push(Row::parse(row.get_ref()).map_err(fault)?);
        }
        let (name, activation) = (name.to_owned(), table.activation);
        let chain = Chain { name, stem, head, activation, rows, width: 1.0 };
        let variables = chain.variables().len();
        if variables > MAX_VARIABLES {
            return Err(whole(format!(
                "must have at most {MAX_VARIABLES} variables, not {variables}; repeat fewer blocks"
            )));
        }
        let parameters = chain.supernet_parameters(&Ends { image: [3, 1, 1], classes: 1000 });
        if parameters > MAX_PARAMETERS {
            return Err(whole(format!(
                "must make a supernet of at most {MAX_PARAMETERS} weights, not {parameters}; use fewer channels or choices"
            )));
        }
        Ok(chain)
    }

    /// The decisions, in the order of the rows: the width of a stage before its blocks.
    pub fn variables(&self) -> Vec<Variable> {
        let mut variables = Vec::new();
        for (stage, row) in self.rows.iter().enumerate() {
            if row.channels.len() > 1 {
                let choices = row.channels.iter().map(i64::to_string).collect();
                variables.push(Variable::categorical(format!("stage{stage}.channels"), choices));
            }
            for block in 0..row.blocks.1 {
                let mut choices: Vec<String> =
                    row.operations.iter().map(Operation::to_string).collect();
                if block >= row.blocks.0 {
                    choices.push(SKIP.to_owned());
                }
                if choices.len() > 1 {
                    variables
                        .push(Variable::categorical(format!("stage{stage}.block{block}"), choices));
                }
            }
        }
        variables
    }

    /// Builds the supernet, or one architecture `alone`, with initial weights decided by `seed`.
    pub fn network(
        &self,
        ends: &Ends,
        alone: Option<&[i64]>,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Network {
        let mut store = nn::VarStore::new(device);
        store.set_kind(kind);
        let norm = if alone.is_some() { NormKind::ALONE } else { NormKind::SHARED };
        let layers = self.build(&Builder::new(&store, norm), ends, alone);
        let (chain, alone) = (self.clone(), alone.map(<[i64]>::to_vec));
        let forward = move |images: &Tensor, values: &[i64], mode: Mode| {
            chain.forward(&layers, images, alone.as_deref().unwrap_or(values), mode)
        };
        Network::new(&store, seed, Box::new(forward))
    }

    /// Counts one architecture alone, with the weights and biases of its normalisations if `affine`.
    pub fn costs(&self, ends: &Ends, values: &[i64], affine: bool) -> Costs {
        let at = Builder::counting(NormKind { affine, running: false });
        self.build(&at, ends, Some(values));
        at.costs()
    }

    /// The weights that all architectures share.
    pub fn supernet_parameters(&self, ends: &Ends) -> i64 {
        let at = Builder::counting(NormKind::SHARED);
        self.build(&at, ends, None);
        at.costs().parameters
    }

    fn scaled(&self, channels: i64) -> i64 {
        if self.width == 1.0 { channels } else { divisible(channels as f64 * self.width) }
    }

    fn stages(&self, values: &[i64]) -> Vec<Stage> {
        let mut values = values.iter().map(|&value| value as usize);
        let mut value = |choices: usize| if choices > 1 { values.next().unwrap_or(0) } else { 0 };
        let mut stage = |row: &Row| {
            let channels = self.scaled(row.channels[value(row.channels.len())]);
            let operations = row.operations.len();
            let mut block = |block| {
                let choice = value(operations + usize::from(block >= row.blocks.0));
                (choice < operations).then_some(choice)
            };
            Stage { channels, blocks: (0..row.blocks.1).map(&mut block).collect() }
        };
        self.rows.iter().map(&mut stage).collect()
    }

    /// Builds what one architecture uses, or everything.
    fn build(&self, at: &Builder, ends: &Ends, chosen: Option<&[i64]>) -> Layers {
        let chosen = chosen.map(|values| self.stages(values));
        let [channels, height, width] = ends.image;
        let mut image = [height, width];
        let Stem { kernel, stride, .. } = self.stem;
        let mut inputs = self.scaled(self.stem.channels);
        let stem = ConvSize::square(channels, inputs, kernel, stride);
        let stem = Layer::new(&at.at("stem"), stem, &mut image, Some(self.activation));
        let mut stages = Vec::new();
        for (stage, row) in self.rows.iter().enumerate() {
            let at = at.at(format_args!("stage{stage}"));
            let chosen = chosen.as_ref().map(|stages| &stages[stage]);
            let widest =
                row.channels.iter().copied().max().map_or(1, |channels| self.scaled(channels));
            let outputs = chosen.map_or(widest, |stage| stage.channels);
            let mut blocks = Vec::new();
            for block in 0..row.blocks.1 as usize {
                let at = at.at(format_args!("block{block}"));
                let size = self.block_size(row, block, inputs, outputs);
                let before = image;
                let mut operation = |(index, &operation): (usize, &Operation)| {
                    let used = chosen.is_none_or(|stage| stage.blocks[block] == Some(index));
                    used.then(|| {
                        image = before;
                        // A name of a weight has no full stop within.
                        let at = at.at(operation.to_string().replace('.', "_"));
                        Block::new(&at, operation, size, &mut image)
                    })
                };
                blocks.push(row.operations.iter().enumerate().map(&mut operation).collect());
                inputs = outputs;
            }
            stages.push(blocks);
        }
        let head = self.head.map(|channels| {
            let size = ConvSize::pointwise(inputs, self.scaled(channels));
            inputs = size.outputs;
            Layer::new(&at.at("head"), size, &mut image, Some(self.activation))
        });
        let classifier = Linear::new(&at.at("classifier"), inputs, ends.classes);
        Layers { stem, stages, head, classifier }
    }

    fn block_size(&self, row: &Row, block: usize, inputs: i64, outputs: i64) -> BlockSize {
        let stride = if block == 0 { row.stride } else { 1 };
        let activation = row.activation.unwrap_or(self.activation);
        BlockSize { inputs, outputs, stride, activation, residual: row.residual }
    }

    fn forward(&self, layers: &Layers, images: &Tensor, values: &[i64], mode: Mode) -> Output {
        let x = channels_last(images);
        let mut x = layers.stem.forward(&x, self.scaled(self.stem.channels), mode);
        for (stage, blocks) in self.stages(values).iter().zip(&layers.stages) {
            for (choice, operations) in stage.blocks.iter().zip(blocks) {
                if let Some(block) = choice.and_then(|choice| operations[choice].as_ref()) {
                    x = block.forward(&x, stage.channels, mode);
                }
            }
        }
        if let (Some(head), Some(channels)) = (&layers.head, self.head) {
            x = head.forward(&x, self.scaled(channels), mode);
        }
        let classes = layers.classifier.outputs();
        let logits = layers.classifier.forward_first(&global_pool(&x), classes);
        Output { main: logits, auxiliary: None }
    }

    /// The blocks of each row.
    fn blocks(&self, values: &[i64]) -> Vec<Vec<NamedBlock>> {
        let mut inputs = self.scaled(self.stem.channels);
        let mut rows = Vec::new();
        for (index, (stage, row)) in self.stages(values).iter().zip(&self.rows).enumerate() {
            let mut blocks = Vec::new();
            for (block, choice) in stage.blocks.iter().enumerate() {
                let placed = choice.map(|choice| {
                    let size = self.block_size(row, block, inputs, stage.channels);
                    inputs = stage.channels;
                    (row.operations[choice], size)
                });
                blocks.push((format!("stage{index}.block{block}"), placed));
            }
            rows.push(blocks);
        }
        rows
    }

    /// Describes an architecture as JSON: the space, the values, its rows in timm's notation with the choices made, and each
    /// block. The rows alone make the same network, as a chain without choices or in timm.
    pub fn describe(&self, values: &[i64]) -> Value {
        let mut notations = Vec::new();
        let mut descriptions = Vec::new();
        for (blocks, row) in self.blocks(values).iter().zip(&self.rows) {
            // Equal blocks, one after the other, make one row.
            let mut runs: Vec<(Operation, BlockSize, usize)> = Vec::new();
            for (name, block) in blocks {
                let Some((operation, size)) = block else {
                    descriptions.push(json!({ "name": name, "operation": SKIP }));
                    continue;
                };
                descriptions.push(json!({
                    "name": name,
                    "operation": operation.to_string(),
                    "inputs": size.inputs,
                    "outputs": size.outputs,
                    "stride": size.stride,
                    "residual": size.has_residual(),
                }));
                match runs.last_mut() {
                    Some((last, _, count)) if last == operation => *count += 1,
                    _ => runs.push((*operation, *size, 1)),
                }
            }
            let notation = |(operation, size, count): (Operation, BlockSize, usize)| {
                row.notation(operation, count, size.stride, size.outputs)
            };
            notations.extend(runs.into_iter().map(notation));
        }
        let Stem { channels, kernel, stride } = self.stem;
        json!({
            "space": self.name,
            "values": values,
            "stem": { "channels": self.scaled(channels), "kernel": kernel, "stride": stride },
            "rows": notations,
            "head": self.head.map(|channels| json!({ "channels": self.scaled(channels) })),
            "activation": self.activation,
            "blocks": descriptions,
        })
    }

    /// Draws an architecture as a Graphviz digraph: a chain from the image to the classes, skipped blocks dashed.
    pub fn dot(&self, values: &[i64]) -> String {
        let Stem { channels, kernel, stride } = self.stem;
        let stem = format!("conv_k{kernel}\\n{} channels{}", self.scaled(channels), halves(stride));
        let node = |name: &str, label: String, style| (name.to_owned(), label, style);
        let mut nodes =
            vec![node("image", "image".to_owned(), ", shape=ellipse"), node("stem", stem, "")];
        for (name, block) in self.blocks(values).iter().flatten() {
            let Some((operation, size)) = block else {
                nodes.push(node(name, SKIP.to_owned(), ", style=dashed"));
                continue;
            };
            let halves = halves(size.stride);
            let residual = if size.has_residual() { ", + input" } else { "" };
            let label = format!("{operation}\\n{} channels{halves}{residual}", size.outputs);
            nodes.push(node(name, label, ""));
        }
        if let Some(channels) = self.head {
            nodes.push(node("head", format!("conv_k1\\n{} channels", self.scaled(channels)), ""));
        }
        nodes.push(node("classifier", "mean, linear".to_owned(), ""));
        nodes.push(node("classes", "classes".to_owned(), ", shape=ellipse"));

        let mut dot = format!("digraph \"{}\" {{\n  rankdir=TB;\n  node [shape=box];\n", self.name);
        let mut line = |text: String| writeln!(dot, "  {text}").expect("a String takes any text");
        for (name, label, style) in &nodes {
            line(format!("\"{name}\" [label=\"{label}\"{style}];"));
        }
        for pair in nodes.windows(2) {
            line(format!("\"{}\" -> \"{}\";", pair[0].0, pair[1].0));
        }
        dot + "}\n"
    }
}

fn halves(stride: i64) -> &'static str {
    if stride == 2 { ", /2" } else { "" }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::tasks::{check, draw, network::first_channels};

    const SMALL: &str = r#"
        stem = { channels = 8, kernel = 3, stride = 1 }
        head = { channels = 16 }
        activation = "relu6"
        rows = [
            "ds_r1_k3_s1_c8",
            "ir_r[1-3]_k[3,5]_s2_e3_c[8,12,16]_se[0,0.25]",
            "er_r2_k3_s1_e[1,2]_c[8,16]",
            "cn_r1_k[1,3]_s2_c24",
        ]"#;
    const ENDS: Ends = Ends { image: [3, 9, 9], classes: 4 };

    fn chain(text: &str) -> Chain {
        Chain::new("small", &toml::from_str(text).unwrap()).unwrap()
    }

    fn architectures(chain: &Chain, count: usize) -> Vec<Vec<i64>> {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        (0..count).map(|_| draw(&chain.variables(), &mut random)).collect()
    }

    #[test]
    fn variables_are_widths_and_blocks_with_a_choice() {
        let block = ["mbconv_k3_e3", "mbconv_k3_e3_se0.25", "mbconv_k5_e3", "mbconv_k5_e3_se0.25"];
        let skipped = [block.as_slice(), &["skip"]].concat();
        let expected = [
            ("stage1.channels", ["8", "12", "16"].as_slice()),
            ("stage1.block0", &block),
            ("stage1.block1", &skipped),
            ("stage1.block2", &skipped),
            ("stage2.channels", &["8", "16"]),
            ("stage2.block0", &["fused_k3_e1", "fused_k3_e2"]),
            ("stage2.block1", &["fused_k3_e1", "fused_k3_e2"]),
            ("stage3.block0", &["conv_k1", "conv_k3"]),
        ];
        let variable = |(name, choices): &(&str, &[&str])| {
            Variable::categorical(*name, choices.iter().map(|&choice| choice.to_owned()).collect())
        };
        assert_eq!(chain(SMALL).variables(), expected.iter().map(variable).collect::<Vec<_>>());
    }

    #[test]
    fn counts_are_those_of_the_weights() {
        let chain = chain(SMALL);
        let numel = |network: &Network| {
            network.parameters.values().map(|tensor| tensor.numel() as i64).sum::<i64>()
        };
        let supernet = chain.network(&ENDS, None, 1, Device::Cpu, Kind::Float);
        assert_eq!(chain.supernet_parameters(&ENDS), numel(&supernet));
        assert!(supernet.statistics.is_empty());
        for values in architectures(&chain, 5) {
            let alone = chain.network(&ENDS, Some(&values), 1, Device::Cpu, Kind::Float);
            assert_eq!(chain.costs(&ENDS, &values, true).parameters, numel(&alone));
        }
    }

    #[test]
    fn an_architecture_of_the_supernet_is_the_network_alone_with_the_first_channels_of_the_weights()
    {
        let chain = chain(SMALL);
        let supernet = chain.network(&ENDS, None, 1, Device::Cpu, Kind::Double);
        let images = Tensor::rand([2, 3, 9, 9], (Kind::Double, Device::Cpu));
        let train = Mode::Train { drop_path: None };
        for values in architectures(&chain, 20) {
            let alone = chain.network(&ENDS, Some(&values), 2, Device::Cpu, Kind::Double);
            let _guard = tch::no_grad_guard();
            for (name, parameter) in &alone.parameters {
                // The normalisations start at weight 1 and bias 0, as if they had none.
                if let Some(shared) = supernet.parameters.get(name) {
                    let part = first_channels(shared, &parameter.size());
                    parameter.shallow_clone().copy_(&part);
                }
            }
            let [shared, alone] =
                [&supernet, &alone].map(|network| network.forward(&images, &values, train).main);
            assert_eq!(alone.size(), [2, 4]);
            let difference = f64::try_from((shared - alone).abs().max()).unwrap();
            assert!(difference < 1e-9, "{values:?}: {difference}");
        }
    }

    #[test]
    fn a_described_architecture_is_a_chain_of_its_own() {
        let mut searched = chain(SMALL);
        searched.width = 2.0;
        for values in architectures(&searched, 50) {
            check(&searched.variables(), &values).unwrap();
            let described = searched.describe(&values);
            let (rows, activation) = (&described["rows"], &described["activation"]);
            let [stem, head] = [&described["stem"], &described["head"]].map(|end| &end["channels"]);
            // A list of strings is the same in JSON and TOML.
            let text = format!(
                "stem = {{ channels = {stem}, kernel = 3, stride = 1 }}
                head = {{ channels = {head} }}
                activation = {activation}
                rows = {rows}"
            );
            let found = chain(&text);
            assert_eq!(found.variables(), []);
            assert_eq!(
                found.costs(&ENDS, &[], true),
                searched.costs(&ENDS, &values, true),
                "{text}"
            );
        }
    }

    #[test]
    fn descriptions_name_rows_and_blocks() {
        let described = chain(SMALL).describe(&[2, 3, 4, 3, 1, 0, 1, 1]);
        assert_eq!(
            described["rows"],
            json!([
                "ds_r1_k3_s1_c8",
                "ir_r2_k5_s2_e3_c16_se0.25",
                "er_r1_k3_s1_e1_c16",
                "er_r1_k3_s1_e2_c16",
                "cn_r1_k3_s2_c24",
            ])
        );
        assert_eq!(described["blocks"][2], json!({ "name": "stage1.block1", "operation": "skip" }));
        assert_eq!(described["blocks"][3]["residual"], true);
        let dot = chain(SMALL).dot(&[2, 3, 4, 3, 1, 0, 1, 1]);
        for line in [
            r#""stage1.block0" [label="mbconv_k5_e3_se0.25\n16 channels, /2"];"#,
            r#""stage1.block1" [label="skip", style=dashed];"#,
            r#""stage1.block1" -> "stage1.block2";"#,
            r#""stage1.block2" [label="mbconv_k5_e3_se0.25\n16 channels, + input"];"#,
        ] {
            assert!(dot.contains(line), "{dot}");
        }
    }

    #[test]
    fn a_fault_is_found_in_the_file() {
        let fault = |part, replacement: &str| {
            assert!(SMALL.contains(part), "{part}");
            let text = SMALL.replace(part, replacement);
            let table = toml::from_str(&text).unwrap();
            let Fault { span, key, problem } = Chain::new("small", &table).unwrap_err();
            (text[span].to_owned(), key, problem)
        };
        let (value, key, problem) = fault("k[1,3]", "k[1,4]");
        assert_eq!((value.as_str(), key.as_str()), ("\"cn_r1_k[1,4]_s2_c24\"", "chain.rows[3]"));
        assert!(problem.starts_with("\"k[1,4]\": a kernel is an odd number"), "{problem}");
        let (value, key, problem) = fault("kernel = 3", "kernel = 4");
        assert_eq!((value.as_str(), key.as_str()), ("4", "chain.stem.kernel"));
        assert_eq!(problem, "must be odd, not 4");
        let (_, key, problem) = fault("er_r2_k3_s1_e[1,2]_c[8,16]", "er_r16_k3_s1_e10_c4096");
        assert_eq!(key, "chain.rows");
        assert!(problem.contains("a supernet of at most"), "{problem}");
        let row = "\"ds_r1_k3_s1_c8\",";
        assert!(fault(row, &row.repeat(30)).2.contains("1 to 32 rows, not 33"));
        let searched = "\"ds_r[1-16]_k[3,5]_c[8,16]\",".repeat(32);
        let all = &SMALL[SMALL.find(row).unwrap()..SMALL.rfind(']').unwrap()];
        let problem = fault(all, &searched).2;
        assert!(problem.starts_with("must have at most 512 variables, not 544"), "{problem}");
    }

    #[test]
    fn counting_takes_little_time() {
        let chain = chain(SMALL);
        let values = &architectures(&chain, 1)[0];
        let start = std::time::Instant::now();
        for _ in 0..100 {
            chain.costs(&ENDS, values, true);
        }
        // 20 microseconds each with optimisation.
        assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed() / 100);
    }
}
