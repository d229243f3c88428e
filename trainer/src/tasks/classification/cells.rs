//! The family of spaces whose networks are stacked cells: ENAS, DARTS, NAS-Bench-201.
//!
//! A network is a stem, a number of cells, and a classifier. At 1/3 and 2/3 of the depth stand reductions, which halve height
//! and width and double the channels. Within a cell, each node adds operations on the cell's inputs and on earlier nodes; the
//! variables choose them, once for all normal cells and once for all reductions.

mod describe;
mod graph;
mod layers;
mod skeleton;

use tch::{Device, Kind, nn};

use self::layers::Layers;
use crate::tasks::network::{Builder, Costs, Forward, Network, NormKind};

pub use self::skeleton::{Cells, CellsTable, Ends};

impl Cells {
    /// Makes the supernet, or with `alone` the network of that architecture, with its auxiliary head if the space has one.
    /// Weights start as `seed` decides.
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
        let root = Builder::new(&store, norm);
        let space = self.clone();
        let forward: Forward = if let Some(values) = alone {
            let graphs = self.graphs(values);
            let layers = Layers::new(&root, self, ends, &graphs, false, true);
            Box::new(move |images, _, mode| layers.forward(images, &graphs, mode, true))
        } else {
            let layers = Layers::new(&root, self, ends, &self.everything(), true, true);
            Box::new(move |images, values, mode| {
                layers.forward(images, &space.graphs(values), mode, false)
            })
        };
        Network::new(&store, seed, forward)
    }

    /// The costs of an architecture alone, without the auxiliary head. `affine`: batch normalisation in the cells has a weight
    /// and a bias, as it has when an architecture is trained alone.
    pub fn costs(&self, ends: &Ends, values: &[i64], affine: bool) -> Costs {
        let counter = Builder::counting(NormKind { affine, running: false });
        Layers::new(&counter, self, ends, &self.graphs(values), false, false);
        counter.costs()
    }

    /// The number of the supernet's parameters, those of the auxiliary head included.
    pub fn supernet_parameters(&self, ends: &Ends) -> i64 {
        let counter = Builder::counting(NormKind::SHARED);
        Layers::new(&counter, self, ends, &self.everything(), true, true);
        counter.costs().parameters
    }

    /// The most channels, at most 127, with which an architecture alone (affine, without the auxiliary head) has at most `limit`
    /// parameters; none if one channel is too many. The paper retrains with 20 cells and a limit of 4 million.
    pub fn widest(&self, ends: &Ends, values: &[i64], limit: i64) -> Option<i64> {
        let fits = |&channels: &i64| {
            Cells { channels, ..self.clone() }.costs(ends, values, true).parameters <= limit
        };
        let channels: Vec<i64> = (1..128).collect();
        channels.partition_point(fits).checked_sub(1).map(|last| channels[last])
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use tch::Tensor;

    use super::{
        super::definition::{Definition, Family},
        *,
    };
    use crate::tasks::{
        Domain, Variable, draw,
        network::{DropPath, Mode},
    };

    const CIFAR10: Ends = Ends { image: [3, 32, 32], classes: 10 };

    fn parse(text: &str) -> Cells {
        let Family::Cells(cells) = Definition::parse(text).unwrap().family else { unreachable!() };
        cells
    }

    fn built_in(name: &str) -> Cells {
        parse(Definition::built_in(name).unwrap())
    }

    fn enas(nodes: i64, cells: i64, channels: i64) -> Cells {
        Cells { nodes, cells, channels, ..built_in("enas-micro") }
    }

    fn choices(variable: &Variable) -> &[String] {
        let Domain::Categorical(choices) = &variable.domain else { panic!("{variable:?}") };
        choices
    }

    fn count(network: &Network, prefix: &str) -> i64 {
        let named = network.parameters.iter().filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, parameter)| parameter.numel() as i64).sum()
    }

    #[test]
    fn enas_micro_has_40_variables_and_140_free_parameters() {
        let variables = built_in("enas-micro").variables();
        assert_eq!(variables.len(), 40);
        assert_eq!(variables.iter().map(|v| choices(v).len() - 1).sum::<usize>(), 140);
        assert_eq!(variables[0].name, "normal.node0.input1");
        assert_eq!(variables[39].name, "reduction.node4.op2");
        assert_eq!(variables[9].name, "normal.node2.input2");
        assert_eq!(choices(&variables[9]), ["cell[-2]", "cell[-1]", "node0", "node1"]);
        assert_eq!(
            choices(&variables[39]),
            ["identity", "avg_pool_3x3", "max_pool_3x3", "sep_conv_3x3", "sep_conv_5x5"]
        );
    }

    #[test]
    fn nasbench201_has_its_six_edges() {
        let variables = built_in("nasbench201").variables();
        let names: Vec<&str> = variables.iter().map(|v| v.name.as_str()).collect();
        let edges = [
            "node1.from0",
            "node2.from0",
            "node2.from1",
            "node3.from0",
            "node3.from1",
            "node3.from2",
        ];
        assert_eq!(names, edges.map(|edge| format!("normal.{edge}")));
        for variable in &variables {
            assert_eq!(choices(variable), ["none", "skip", "conv_1x1", "conv_3x3", "avg_pool_3x3"]);
        }
    }

    /// The paper, and the authors' `get_params`.
    #[test]
    fn counts_of_the_paper() {
        let space = built_in("enas-micro");
        assert_eq!(space.supernet_parameters(&CIFAR10), 2_274_052);
        let headless = Cells { auxiliary_head: false, ..space };
        assert_eq!(headless.supernet_parameters(&CIFAR10), 2_274_052 - 410_890);
    }

    #[test]
    fn multiplications_of_a_small_network() {
        let space = enas(1, 3, 4);
        // Normal: 3x3 separable convolutions of both inputs. Reduction: identity and a pooling.
        let values = [0, 1, 3, 3, 0, 1, 0, 2];
        let stem = 27 * 12 * 32 * 32;
        let normal = (24 * 4 + 2 * 2 * (4 * 9 + 4 * 4) + 4 * 4) * 32 * 32;
        let first = (12 + 4) * 8 * 32 * 32 + (8 * 8 + 8 * 8) * 16 * 16;
        // The output before the previous one is halved by this cell.
        let second = (4 + 8) * 16 * 16 * 16 + (16 * 16 + 16 * 16) * 8 * 8;
        let costs = space.costs(&CIFAR10, &values, true);
        assert_eq!(costs.macs, stem + normal + first + second + 16 * 10);
    }

    /// The file names its source. Its sizes are in millions, with six digits: exact.
    #[test]
    fn cells_of_nasbench201_have_the_sizes_of_the_published_table() {
        let space = built_in("nasbench201");
        let mut cells = 0;
        for line in include_str!("../../../tests/data/nasbench201_sizes.txt")
            .lines()
            .filter(|l| !l.starts_with('#'))
        {
            let (key, size) = line.split_once(' ').unwrap();
            let values: Vec<i64> = key.bytes().map(|digit| i64::from(digit - b'0')).collect();
            let millions: f64 = size.parse().unwrap();
            let counted = space.costs(&CIFAR10, &values, true).parameters;
            assert_eq!(counted, (millions * 1e6).round() as i64, "{key}");
            cells += 1;
        }
        assert!(cells > 100);
    }

    /// The cells that DARTS found (`DARTS_V2`), with 20 cells and 36 channels: "param size = 3.349342MB" in the log of its authors'
    /// `cnn/test.py`, without the auxiliary head.
    #[test]
    fn the_network_of_darts_has_its_size() {
        let space = Cells { cells: 20, channels: 36, ..built_in("darts") };
        let [max, skip, sep, dil] = [0, 2, 3, 5];
        let normal = [[0, 1, sep, sep], [0, 1, sep, sep], [1, 0, sep, skip], [0, 2, skip, dil]];
        let reduction = [[0, 1, max, max], [2, 1, skip, max], [0, 2, max, skip], [2, 1, skip, max]];
        let values = [normal, reduction].as_flattened().concat();
        assert_eq!(space.costs(&CIFAR10, &values, true).parameters, 3_349_342);
    }

    #[test]
    fn the_widest_network_is_the_last_that_fits() {
        let space = enas(5, 20, 16);
        let values = [0; 40];
        let at = |channels| {
            Cells { channels, ..space.clone() }.costs(&CIFAR10, &values, true).parameters
        };
        let widest = space.widest(&CIFAR10, &values, 2_000_000).unwrap();
        assert!(at(widest) <= 2_000_000 && at(widest + 1) > 2_000_000, "{widest}");
        assert_eq!(space.widest(&CIFAR10, &values, 10), None);
        assert_eq!(space.widest(&CIFAR10, &values, i64::MAX), Some(127));
    }

    /// A step reports the costs of its architectures.
    #[test]
    fn counting_takes_no_time_beside_a_step() {
        let (space, mut fastest) = (built_in("enas-micro"), Duration::MAX);
        for _ in 0..20 {
            let start = Instant::now();
            space.costs(&CIFAR10, &[3; 40].map(|op: i64| op % 2), true);
            fastest = fastest.min(start.elapsed());
        }
        println!("{fastest:?}");
        assert!(fastest < Duration::from_millis(10), "{fastest:?}");
    }

    #[test]
    fn weights_start_within_pytorch_s_bounds() {
        let network = enas(2, 3, 4).network(&CIFAR10, None, 0, Device::Cpu, Kind::Float);
        let largest = |name: &str| network.parameters[name].abs().max().double_value(&[]);
        for (name, fan_in) in [
            ("stem.conv.weight", 27),
            ("cell0.node0.from0.sep_conv_5x5.depthwise1.weight", 25),
            ("auxiliary.conv2.weight", 128 * 4),
            ("classifier.weight", 16),
            ("classifier.bias", 16),
        ] {
            let bound = 1.0 / f64::from(fan_in).sqrt();
            assert!(largest(name) <= bound && largest(name) > 0.7 * bound, "{name}");
        }
        assert_eq!(largest("stem.norm.bias"), 0.0);
        assert_eq!(largest("stem.norm.weight"), 1.0);
    }

    const CELLS: [&str; 5] = [
        "inputs = 2\ninput_convs = true\nwiring = 'pairs'\noutput = 'unused'",
        "inputs = 2\ninput_convs = true\nwiring = 'all'\noutput = 'all'",
        "inputs = 1\ninput_convs = true\nwiring = 'all'\noutput = 'unused'",
        "inputs = 1\ninput_convs = false\nwiring = 'pairs'\noutput = 'all'",
        "inputs = 1\ninput_convs = false\nwiring = 'all'\noutput = 'last'",
    ];

    /// A space with two of [`CELLS`], or fixed reductions.
    fn mixed(normal: usize, reduction: Option<usize>) -> Cells {
        let cell = |name, cell: usize| {
            let operations =
                "['none', 'identity', 'conv_1x1', 'res_block', 'dil_conv_5x5', 'avg_pool_3x3']";
            format!("[cells.{name}]\n{}\noperations = {operations}\n", CELLS[cell])
        };
        let reduction =
            reduction.map_or_else(String::new, |reduction| cell("reduction", reduction));
        parse(&format!(
            "name = 'mixed'\ndescription = ''\n[cells]\ncells = 5\nchannels = 4\nnodes = 3\nstem_multiplier = 2\n\
             auxiliary_head = true\nfinal_norm = true\npool_norm = true\n{}{reduction}",
            cell("normal", normal)
        ))
    }

    /// Spaces that ship, and others.
    fn any_space() -> impl Strategy<Value = Cells> {
        prop_oneof![
            prop::sample::select(&["enas-micro", "nasbench201", "darts"]).prop_map(built_in),
            (0..CELLS.len(), prop::option::of(0..CELLS.len())).prop_map(|(n, r)| mixed(n, r)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn every_architecture_runs_and_is_counted_right(
            space in any_space(),
            nodes in 1_i64..4,
            cells in 3_i64..6,
            channels in 1_i64..4,
            (image_channels, quarter, classes) in (1_i64..4, 2_i64..10, 2_i64..5),
            seed in any::<u64>(),
        ) {
            let space = Cells { nodes, cells, channels, ..space };
            let values = draw(&space.variables(), &mut ChaCha8Rng::seed_from_u64(seed));
            let ends = Ends { image: [image_channels, 4 * quarter, 4 * quarter + 4], classes };
            let [_, height, width] = ends.image;
            let images = Tensor::ones([2, image_channels, height, width], (Kind::Float, Device::Cpu));
            let shape = vec![2, classes];
            let paths = DropPath::new(0.5, ChaCha8Rng::seed_from_u64(seed));
            let train = Mode::Train { drop_path: Some(&paths) };

            let shared = space.network(&ends, None, 0, Device::Cpu, Kind::Float);
            prop_assert_eq!(count(&shared, ""), space.supernet_parameters(&ends));
            prop_assert!(shared.statistics.is_empty());
            let output = shared.forward(&images, &values, train);
            prop_assert_eq!(output.main.size(), shape.clone());
            prop_assert!(output.auxiliary.is_none());

            let alone = space.network(&ends, Some(&values), 0, Device::Cpu, Kind::Float);
            let counted = space.costs(&ends, &values, true).parameters;
            prop_assert_eq!(count(&alone, "") - count(&alone, "auxiliary."), counted);
            let output = alone.forward(&images, &values, train);
            prop_assert_eq!(output.main.size(), shape.clone());
            let auxiliary = output.auxiliary.map(|logits| logits.size());
            prop_assert_eq!(auxiliary, space.auxiliary_head.then_some(shape));
            prop_assert!(alone.forward(&images, &values, Mode::Evaluate).auxiliary.is_none());
        }

        #[test]
        fn an_architecture_alone_computes_what_it_computes_in_the_supernet(
            space in any_space(),
            seed in any::<u64>(),
        ) {
            // Without normalisation after pooling, which only the supernet has.
            let space = Cells {
                nodes: 3, cells: 5, channels: 4, pool_norm: false, auxiliary_head: false, ..space
            };
            let images: Vec<f64> = (0..2 * 3 * 64).map(|k| (0.37 * (k * k) as f64).sin()).collect();
            let images = Tensor::from_slice(&images).view([2, 3, 8, 8]);
            let ends = Ends { image: [3, 8, 8], classes: 10 };
            let values = draw(&space.variables(), &mut ChaCha8Rng::seed_from_u64(seed));
            let shared = space.network(&ends, None, 1, Device::Cpu, Kind::Double);
            let mut alone = space.network(&ends, Some(&values), 2, Device::Cpu, Kind::Double);
            let _guard = tch::no_grad_guard();
            for (name, parameter) in &mut alone.parameters {
                match shared.parameters.get(name) {
                    Some(weight) if weight.size() == parameter.size() => parameter.copy_(weight),
                    // The output's weight has a block for each node in the supernet, for each unused one alone.
                    Some(weight) => {
                        let (index, _) = name["cell".len()..].split_once('.').unwrap();
                        let index = index.parse::<i64>().unwrap();
                        let kind = usize::from(index == 5 / 3 || index == 2 * 5 / 3);
                        let channels = parameter.size()[0];
                        let block = |node: &usize| weight.narrow(1, *node as i64 * channels, channels);
                        let graph = &space.graphs(&values)[kind];
                        let blocks: Vec<Tensor> = graph.output.iter().map(block).collect();
                        parameter.copy_(&Tensor::cat(&blocks, 1));
                    }
                    None => prop_assert!(name.contains("norm"), "{name}"),
                }
            }
            let mode = Mode::Train { drop_path: None };
            let one = shared.forward(&images, &values, mode).main;
            let other = alone.forward(&images, &values, mode).main;
            let difference = (one - other).abs().max().double_value(&[]);
            prop_assert!(difference < 1e-9, "{difference}");
        }
    }
}
