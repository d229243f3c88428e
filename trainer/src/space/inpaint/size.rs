//! How large a network of these spaces is: the shapes of an architecture's layers, and counts of
//! parameters and operations in closed form. The network runs by the same [`Architecture::layers`], so the two cannot
//! disagree.

use super::{Architecture, KERNELS, Module};

/// Side of the kernel of the last layer, which brings the decoder's channels to the image's.
pub(crate) const OUTPUT_KERNEL: i64 = 3;

/// Everything that decides the shapes of a supernet's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Nodes in the row.
    pub nodes: usize,
    /// The most channels a node can have: the shared weights have as many.
    pub channels: i64,
    /// Channels of an image: 3 for RGB.
    pub image_channels: i64,
    /// Whether the nodes' convolutions are normalised.
    pub batch_norm: bool,
}

impl Size {
    /// Trainable parameters of the supernet: 183,507,712 at the paper's size.
    pub fn supernet_parameters(&self) -> i64 {
        let kernels: i64 = KERNELS.iter().map(|kernel| kernel * kernel).sum();
        let kinds_and_halves = 2 * 2; // down and skip, encoder and decoder
        self.nodes as i64 * kinds_and_halves * kernels * self.channels * self.channels
            + OUTPUT_KERNEL * OUTPUT_KERNEL * self.channels * self.image_channels
    }
}

/// An active node that is computed, and its mirror node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The node's place in the row.
    pub node: usize,
    /// What it does.
    pub module: Module,
    /// Channels that it reads.
    pub inputs: i64,
    /// Channels that its mirror node reads.
    pub mirror_inputs: i64,
    /// Channels of its output, and of its mirror node's.
    pub channels: i64,
    /// Height and width that it reads, which are those of its mirror node's output.
    pub image: [i64; 2],
}

impl Layer {
    /// Height and width of its output.
    pub fn halved(&self) -> [i64; 2] {
        if self.module.skip { self.image } else { self.image.map(|side| (side + 1) / 2) }
    }
}

impl Architecture {
    /// The layers for images of that shape (channels, height, width), from the image on. A node
    /// that would halve an image of height or width 1 is bypassed, and so is its mirror node.
    pub fn layers(&self, image: [i64; 3]) -> Vec<Layer> {
        let [mut inputs, height, width] = image;
        let mut image = [height, width];
        let mut layers: Vec<Layer> = Vec::new();
        for node in self.active() {
            let choice = self.nodes()[node];
            if !choice.module.skip && image.contains(&1) {
                continue;
            }
            let (module, channels) = (choice.module, choice.channels);
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

    /// Trainable parameters of this architecture alone, for images of that shape; with
    /// `batch_norm`, each normalisation has a weight and a bias.
    pub fn parameters(&self, image: [i64; 3], batch_norm: bool) -> i64 {
        let layers = self.layers(image);
        let last = layers.first().map_or(image[0], |layer| layer.channels);
        let of_layer = |layer: &Layer| {
            let weights = layer.module.kernel * layer.module.kernel * layer.channels;
            let norms = if batch_norm { 4 * layer.channels } else { 0 };
            weights * (layer.inputs + layer.mirror_inputs) + norms
        };
        layers.iter().map(of_layer).sum::<i64>() + OUTPUT_KERNEL * OUTPUT_KERNEL * last * image[0]
    }

    /// Multiplications, each with an addition, of the convolutions for one image of that shape.
    pub fn macs(&self, image: [i64; 3]) -> i64 {
        let layers = self.layers(image);
        let [channels, height, width] = image;
        let last = layers.first().map_or(channels, |layer| layer.channels);
        let of_layer = |layer: &Layer| {
            // What a convolution writes, and its mirror image reads.
            let [height, width] = layer.halved();
            let weights = layer.module.kernel * layer.module.kernel * layer.channels;
            weights * (layer.inputs + layer.mirror_inputs) * height * width
        };
        let output = OUTPUT_KERNEL * OUTPUT_KERNEL * last * channels * height * width;
        layers.iter().map(of_layer).sum::<i64>() + output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::inpaint::{Coding, Settings, Space};

    const SPACE: Space = Space { coding: Coding::Integer, nodes: 4, level_back: 1, channels: 2 };

    /// Nodes in a chain: kernel (1 to 3), skip, channels of each.
    fn chain(nodes: [(i64, i64, i64); 4]) -> Architecture {
        let mut values: Vec<i64> = nodes.into_iter().flat_map(|(k, s, c)| [k, s, c, 0]).collect();
        values.push(0);
        Architecture::decode(&SPACE, &values).unwrap()
    }

    #[test]
    fn the_paper_s_supernet_has_183_507_712_parameters() {
        assert_eq!(Settings::default().size(3).supernet_parameters(), 183_507_712);
    }

    #[test]
    fn channels_follow_the_path_and_its_mirror() {
        let layers = chain([(2, 0, 2), (1, 1, 5), (3, 0, 3), (1, 1, 8)]).layers([3, 16, 6]);
        let channels: Vec<_> =
            layers.iter().map(|l| (l.inputs, l.channels, l.mirror_inputs)).collect();
        assert_eq!(channels, [(3, 2, 5), (2, 5, 3), (5, 3, 8), (3, 8, 8)]);
        let images: Vec<_> = layers.iter().map(|layer| layer.image).collect();
        assert_eq!(images, [[16, 6], [8, 3], [8, 3], [4, 2]]);
    }

    #[test]
    fn what_cannot_be_halved_is_bypassed_and_what_keeps_the_size_is_not() {
        let architecture = chain([(2, 0, 2), (1, 0, 5), (3, 1, 3), (1, 0, 8)]);
        let layers = architecture.layers([3, 2, 8]);
        assert_eq!(layers.iter().map(|layer| layer.node).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(layers[1].inputs, 2);
        assert_eq!(layers[0].mirror_inputs, 3);
    }

    #[test]
    fn parameters_of_a_small_network() {
        let architecture = chain([(2, 0, 2), (1, 1, 5), (3, 0, 3), (1, 1, 8)]);
        let encoder = 9 * 3 * 2 + 2 * 5 + 25 * 5 * 3 + 3 * 8;
        let decoder = 8 * 8 + 25 * 8 * 3 + 3 * 5 + 9 * 5 * 2;
        let output = 9 * 2 * 3;
        let macs = (9 * 2 * (3 + 5) + 5 * (2 + 3)) * 8 * 8
            + (25 * 3 * (5 + 8) + 3 * 8 + 8 * 8) * 4 * 4
            + output * 16 * 16;
        assert_eq!(architecture.macs([3, 16, 16]), macs);
        assert_eq!(architecture.parameters([3, 16, 16], false), encoder + decoder + output);
        assert_eq!(
            architecture.parameters([3, 16, 16], true),
            encoder + decoder + output + 4 * (2 + 5 + 3 + 8)
        );
    }
}
