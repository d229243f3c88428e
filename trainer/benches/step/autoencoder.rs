//! The inpainting step that the trainer's is compared with: the authors' way on libtorch's own operations, images in the
//! contiguous layout, every convolution of all channels that there can be. A node's input is filled up with zeros before it,
//! and the channels that the node does not have are dropped after it. Gradients and optimiser are the trainer's.

use std::collections::BTreeMap;

use asng_trainer::{
    quality,
    space::inpaint::{Architecture, Layer, Settings, Size},
    supernet::{
        Error,
        gradients::Gradients,
        inpaint::{Batch, Network},
        sgd::{Rates, Sgd},
    },
};
use tch::{Device, Kind, Reduction, Tensor};

/// The supernet's weights by name, and their optimiser.
pub(crate) struct Plain {
    size: Size,
    learning_rate: f64,
    parameters: BTreeMap<String, Tensor>,
    sgd: Sgd,
}

impl Plain {
    /// Starts with the weights that a supernet of these settings starts with.
    pub(crate) fn new(settings: &Settings) -> Result<Plain, Error> {
        let size = settings.size(3);
        let network = Network::supernet(&size, settings.seed as u64, Device::Cpu, Kind::Float)?;
        let named = network.parameters().iter();
        let parameters = named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        let parameters: BTreeMap<String, Tensor> = parameters.collect();
        let rates = Rates {
            momentum: settings.momentum,
            weight_decay: settings.weight_decay,
            grad_clip: settings.grad_clip,
        };
        let sgd = Sgd::new(&parameters, rates)?;
        Ok(Plain { size, learning_rate: settings.learning_rate, parameters, sgd })
    }

    /// Returns the losses of `rank` with the moved weights.
    pub(crate) fn search_step(
        &mut self,
        train_batch: &Batch,
        train: &[Architecture],
        rank_batch: &Batch,
        rank: &[Architecture],
    ) -> Result<Vec<f64>, Error> {
        let mut gradients = Gradients::default();
        for architecture in train {
            let (loss, _psnr) = self.measure(train_batch, architecture)?;
            let loss = loss / train.len() as f64;
            gradients = gradients.plus(Gradients::of(&loss, &self.parameters)?)?;
        }
        let _norm = self.sgd.step(&mut self.parameters, &gradients, self.learning_rate)?;
        let _guard = tch::no_grad_guard();
        let mut losses = Vec::new();
        for architecture in rank {
            losses.push(f64::try_from(self.measure(rank_batch, architecture)?.0)?);
        }
        Ok(losses)
    }

    /// Loss and peak signal-to-noise ratio.
    fn measure(
        &self,
        batch: &Batch,
        architecture: &Architecture,
    ) -> Result<(Tensor, Tensor), Error> {
        let output = self.forward(&(&batch.images * &batch.mask), architecture);
        let psnr = quality::psnr(&output.detach(), &batch.images)?;
        Ok((output.mse_loss(&batch.images, Reduction::Mean), psnr))
    }

    fn forward(&self, visible: &Tensor, architecture: &Architecture) -> Tensor {
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
        transposed(&self.fill(&x), &self.parameters["output.weight"], 1, [0, 0])
    }

    /// Zeros for the channels that are missing to the most there can be.
    fn fill(&self, x: &Tensor) -> Tensor {
        x.constant_pad_nd([0, 0, 0, 0, 0, self.size.channels - x.size()[1]])
    }

    fn weight(&self, layer: &Layer, half: &str) -> &Tensor {
        &self.parameters[&format!("node{}.{}.{half}.weight", layer.node, layer.module.name())]
    }
}

fn transposed(x: &Tensor, weight: &Tensor, stride: i64, added: [i64; 2]) -> Tensor {
    let padding = weight.size()[3] / 2;
    x.conv_transpose2d(weight, None::<Tensor>, [stride; 2], [padding; 2], added, 1, [1, 1])
}
