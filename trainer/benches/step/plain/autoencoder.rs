//! Autoencoders in the authors' way: every convolution of all channels that there can be. A node's input is filled up with zeros
//! before it, and the channels that the node does not have are dropped after it.

use std::collections::BTreeMap;

use asng_trainer::{
    quality,
    space::inpaint::{Architecture, Layer, Settings, Size},
    supernet::{
        Error,
        inpaint::{Batch, Network},
        sgd::Rates,
    },
};
use tch::{Device, Kind, Reduction, Tensor};

use super::{Forward, Plain};

/// The network without its weights.
pub(crate) struct Autoencoder {
    size: Size,
}

impl Plain<Autoencoder> {
    /// Starts with the weights that a supernet of these settings starts with.
    pub(crate) fn autoencoder(settings: &Settings) -> Result<Plain<Autoencoder>, Error> {
        let size = settings.size(3);
        let network = Network::supernet(&size, settings.seed as u64, Device::Cpu, Kind::Float)?;
        let &Settings { momentum, weight_decay, grad_clip, learning_rate, .. } = settings;
        let rates = Rates { momentum, weight_decay, grad_clip };
        Plain::new(Autoencoder { size }, network.parameters(), rates, learning_rate)
    }
}

impl Forward for Autoencoder {
    type Batch = Batch;
    type Architecture = Architecture;

    fn loss(
        &self,
        weights: &BTreeMap<String, Tensor>,
        batch: &Batch,
        architecture: &Architecture,
    ) -> Result<Tensor, Error> {
        let visible = &batch.images * &batch.mask;
        let output = Pass { size: &self.size, weights }.output(&visible, architecture);
        // A search step measures it as well.
        let _psnr = quality::psnr(&output.detach(), &batch.images)?;
        Ok(output.mse_loss(&batch.images, Reduction::Mean))
    }
}

/// One forward pass.
struct Pass<'a> {
    size: &'a Size,
    weights: &'a BTreeMap<String, Tensor>,
}

impl Pass<'_> {
    fn output(&self, visible: &Tensor, architecture: &Architecture) -> Tensor {
        let size = visible.size();
        let layers = architecture.layers([size[1], size[2], size[3]]);
        let mut x = visible.shallow_clone();
        let mut skipped = Vec::new();
        for layer in &layers {
            let weight = self.weight(layer, "conv");
            let (stride, padding) = (layer.module.stride(), layer.module.kernel / 2);
            let bias = None::<Tensor>;
            x = self.fill(&x).conv2d(weight, bias, [stride; 2], [padding; 2], [1, 1], 1);
            x = x.narrow(1, 0, layer.channels).relu();
            if layer.module.skip {
                skipped.push(x.shallow_clone());
            }
        }
        for layer in layers.iter().rev() {
            let stride = layer.module.stride();
            let added = layer.image.map(|side| if stride == 2 { 1 - side % 2 } else { 0 });
            let weight = self.weight(layer, "mirror");
            x = transposed(&self.fill(&x), weight, stride, added);
            x = x.narrow(1, 0, layer.channels);
            if layer.module.skip {
                x += skipped.pop().expect("a skip node was encoded");
            }
            x = x.relu();
        }
        transposed(&self.fill(&x), &self.weights["output.weight"], 1, [0, 0])
    }

    /// Zeros for the channels that are missing to the most there can be.
    fn fill(&self, x: &Tensor) -> Tensor {
        x.constant_pad_nd([0, 0, 0, 0, 0, self.size.channels - x.size()[1]])
    }

    fn weight(&self, layer: &Layer, half: &str) -> &Tensor {
        &self.weights[&format!("node{}.{}.{half}.weight", layer.node, layer.module.name())]
    }
}

fn transposed(x: &Tensor, weight: &Tensor, stride: i64, added: [i64; 2]) -> Tensor {
    let padding = weight.size()[3] / 2;
    x.conv_transpose2d(weight, None::<Tensor>, [stride; 2], [padding; 2], added, 1, [1, 1])
}
