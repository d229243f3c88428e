//! Autoencoders in the authors' way: every convolution of all channels that there can be. A node's input is filled up with zeros
//! before it, and the channels that the node does not have are dropped after it.

use asng_trainer::torch::Tensors;
use tch::Tensor;

/// The paper's.
const LEVEL_BACK: usize = 5;
const WIDTHS: [i64; 3] = [64, 128, 256];

/// An active node.
struct Layer {
    /// The prefix of the names of its weights.
    name: String,
    stride: i64,
    channels: i64,
    /// Height and width of its input.
    side: i64,
}

/// Decodes the values of `inpaint-cat`: the active nodes from the image on, without those that would halve a single pixel.
fn layers(values: &[i64], mut side: i64) -> Vec<Layer> {
    let (nodes, _) = values.as_chunks::<3>();
    let input = |place: usize, value: i64| (place + 1).saturating_sub(LEVEL_BACK) + value as usize;
    // The last chunk is the output, which reads a place as the nodes do: 0 is the image, 1 + i is node i.
    let (mut active, mut place) = (Vec::new(), nodes.len());
    while place > 0 {
        active.push(place - 1);
        place = input(place - 1, nodes[place - 1][2]);
    }
    let mut layers = Vec::new();
    for &node in active[1..].iter().rev() {
        let [module, width, _] = nodes[node];
        let (kernel, stride) = (1 + 2 * (module / 2), 1 + module % 2);
        if stride == 2 && side == 1 {
            continue;
        }
        let kind = ["skip", "down"][module as usize % 2];
        let name = format!("node{node}.conv_{kernel}x{kernel}_{kind}");
        layers.push(Layer { name, stride, channels: WIDTHS[width as usize], side });
        side = (side + stride - 1) / stride;
    }
    layers
}

/// Computes the images of an architecture from their visible parts.
pub(crate) fn output(weights: &Tensors, visible: &Tensor, values: &[i64]) -> Tensor {
    let layers = layers(values, visible.size()[2]);
    let mut x = visible.shallow_clone();
    let mut skipped = Vec::new();
    for Layer { name, stride, channels, .. } in &layers {
        let weight = &weights[&format!("{name}.conv.weight")];
        let padding = weight.size()[3] / 2;
        let bias = None::<Tensor>;
        x = fill(&x, weight.size()[1]).conv2d(weight, bias, [*stride; 2], [padding; 2], [1, 1], 1);
        x = x.narrow(1, 0, *channels).relu();
        if *stride == 1 {
            skipped.push(x.shallow_clone());
        }
    }
    for Layer { name, stride, channels, side } in layers.iter().rev() {
        let added = if *stride == 2 { 1 - side % 2 } else { 0 };
        x = transposed(&x, &weights[&format!("{name}.mirror.weight")], *stride, added);
        x = x.narrow(1, 0, *channels);
        if *stride == 1 {
            x += skipped.pop().expect("a skip node was encoded");
        }
        x = x.relu();
    }
    transposed(&x, &weights["output.weight"], 1, 0)
}

/// Adds zeros for the channels that are missing to `channels`.
fn fill(x: &Tensor, channels: i64) -> Tensor {
    x.constant_pad_nd([0, 0, 0, 0, 0, channels - x.size()[1]])
}

fn transposed(x: &Tensor, weight: &Tensor, stride: i64, added: i64) -> Tensor {
    let (bias, padding) = (None::<Tensor>, weight.size()[3] / 2);
    let x = fill(x, weight.size()[0]);
    x.conv_transpose2d(weight, bias, [stride; 2], [padding; 2], [added; 2], 1, [1, 1])
}
