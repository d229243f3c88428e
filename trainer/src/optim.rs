//! Training of weights: gradients as values, optimisers with a state that can be saved, learning-rate schedules.

mod adam;
mod gradients;
mod sgd;

use std::f64::consts::PI;

use tch::Tensor;

use self::{adam::Adam, sgd::Sgd};
use crate::torch::Tensors;

pub use self::gradients::Gradients;

/// The constants of an optimiser; the learning rate comes with each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// Stochastic gradient descent, as PyTorch's `torch.optim.SGD`.
    Sgd {
        /// The share of the last step's direction that stays.
        momentum: f64,
        /// Added to the gradient, times the parameter.
        weight_decay: f64,
    },
    /// Adam (Kingma and Ba, 2015), as PyTorch's `torch.optim.Adam` with its defaults.
    Adam,
}

/// An optimiser with its state for each parameter.
#[derive(Debug)]
pub struct Optimizer {
    /// The largest norm of all gradients together; 0 does not clip.
    grad_clip: f64,
    state: State,
}

#[derive(Debug)]
enum State {
    Sgd(Sgd),
    Adam(Adam),
}

impl Optimizer {
    /// Starts without a history.
    pub fn new(method: Method, grad_clip: f64, parameters: &Tensors) -> Optimizer {
        let state = match method {
            Method::Sgd { momentum, weight_decay } => {
                State::Sgd(Sgd::new(momentum, weight_decay, parameters))
            }
            Method::Adam => State::Adam(Adam::new(parameters)),
        };
        Optimizer { grad_clip, state }
    }

    /// Moves every parameter that has a gradient; the others, and their state, stay as they are. If the norm of the gradients is
    /// not finite, they count as 0. Returns the norm before clipping, a tensor without dimensions.
    pub fn step(
        &mut self,
        parameters: &mut Tensors,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Tensor {
        let _guard = tch::no_grad_guard();
        let norm = gradients.norm();
        let factor = gradients::clip_factor(&norm, self.grad_clip);
        let gradients = gradients
            .iter()
            .map(|(name, gradient)| (name, gradient.nan_to_num(0.0, 0.0, 0.0).g_mul_(&factor)));
        match &mut self.state {
            State::Sgd(sgd) => sgd.step(parameters, gradients, learning_rate),
            State::Adam(adam) => adam.step(parameters, gradients, learning_rate),
        }
        norm
    }

    /// The state, for a file.
    pub fn parts(&self) -> Vec<(&'static str, &Tensors)> {
        match &self.state {
            State::Sgd(Sgd { momentum, .. }) => vec![("momentum", momentum)],
            State::Adam(Adam { first, second, steps }) => {
                vec![("first", first), ("second", second), ("adam", steps)]
            }
        }
    }

    /// The state, to load into.
    pub fn parts_mut(&mut self) -> Vec<(&'static str, &mut Tensors)> {
        match &mut self.state {
            State::Sgd(Sgd { momentum, .. }) => vec![("momentum", momentum)],
            State::Adam(Adam { first, second, steps }) => {
                vec![("first", first), ("second", second), ("adam", steps)]
            }
        }
    }
}

/// The cosine schedule from `start` to 0 (Loshchilov and Hutter, 2017), at `progress` from 0 to 1.
pub fn cosine(start: f64, progress: f64) -> f64 {
    0.5 * start * (1.0 + (PI * progress.clamp(0.0, 1.0)).cos())
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn values(tensors: &Tensors) -> Vec<Vec<f64>> {
        tensors.values().map(|tensor| Vec::try_from(tensor.detach()).unwrap()).collect()
    }

    /// tests/parity.rs and tests/inpaint.rs compare the steps with PyTorch's.
    #[test]
    fn gradients_that_are_not_finite_count_as_0_and_absent_ones_change_nothing() {
        let method = Method::Sgd { momentum: 0.9, weight_decay: 0.0 };
        for (method, grad_clip) in [(method, 5.0), (method, 0.0), (Method::Adam, 5.0)] {
            let parameter = |name: &str| {
                (name.to_owned(), Tensor::from_slice(&[1.0, 2.0]).set_requires_grad(true))
            };
            let mut parameters: Tensors = ["a", "b"].map(parameter).into();
            let mut optimizer = Optimizer::new(method, grad_clip, &parameters);
            let mut step = |parameters: &mut Tensors, factor: f64| {
                let loss = (&parameters["a"] * factor).sum(Kind::Double);
                let gradients = Gradients::of(&loss, parameters);
                f64::try_from(optimizer.step(parameters, &gradients, 0.1)).unwrap()
            };
            assert!(!step(&mut parameters, f64::INFINITY).is_finite());
            assert_eq!(values(&parameters), [[1.0, 2.0]; 2]);
            assert!((step(&mut parameters, 3.0) - 18_f64.sqrt()).abs() < 1e-12);
            let moved = values(&parameters);
            assert!(moved[0][0] < 1.0 && moved[0][1] < 2.0, "{moved:?}");
            assert_eq!(moved[1], [1.0, 2.0]);
        }
    }

    #[test]
    fn gradients_add_up_by_their_names() {
        let parameter =
            |name: &str| (name.to_owned(), Tensor::from_slice(&[1.0]).set_requires_grad(true));
        let parameters: Tensors = ["a", "b", "c"].map(parameter).into();
        let of = |loss: Tensor| Gradients::of(&loss.sum(Kind::Double), &parameters);
        let sum = of(&parameters["a"] * 3.0).plus(of(&parameters["a"] + &parameters["b"] * 3.0));
        let gradients: Vec<_> = sum
            .iter()
            .map(|(name, gradient)| (name, f64::try_from(gradient.sum(Kind::Double)).unwrap()))
            .collect();
        assert_eq!(gradients, [("a", 4.0), ("b", 3.0)]);
        assert_eq!(f64::try_from(sum.norm()).unwrap(), 5.0);
        assert_eq!(f64::try_from(Gradients::default().norm()).unwrap(), 0.0);
    }

    #[test]
    fn the_cosine_goes_from_the_start_to_0_and_stays_there() {
        let rate = |progress| cosine(0.1, progress);
        assert_eq!([rate(-1.0), rate(0.0), rate(1.0), rate(2.0)], [0.1, 0.1, 0.0, 0.0]);
        assert!((rate(0.5) - 0.05).abs() < 1e-15 && (rate(1.0 / 3.0) - 0.075).abs() < 1e-15);
    }
}
