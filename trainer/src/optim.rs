//! Training of weights: gradients as values, optimisers with a state that can be saved, learning-rate schedules.

mod gradients;

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::torch::{Tensors, zeros_like};

pub use self::gradients::Gradients;

/// PyTorch's defaults for Adam.
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// The name of Adam's number of steps in a file.
const STEPS: &str = "steps";

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
    Sgd {
        momentum: f64,
        weight_decay: f64,
        /// The last direction of each parameter.
        momenta: Tensors,
    },
    Adam {
        first: Tensors,
        second: Tensors,
        /// One number, on the CPU, where reading it waits for nothing; a tensor, so that all of the state is in a file of tensors.
        steps: Tensors,
    },
}

impl Optimizer {
    /// Starts without a history.
    pub fn new(method: Method, grad_clip: f64, parameters: &Tensors) -> Optimizer {
        let zeros = || zeros_like(parameters);
        let state = match method {
            Method::Sgd { momentum, weight_decay } => {
                State::Sgd { momentum, weight_decay, momenta: zeros() }
            }
            Method::Adam => {
                let steps = Tensor::zeros([1], (Kind::Int64, Device::Cpu));
                let steps = [(STEPS.to_owned(), steps)].into();
                State::Adam { first: zeros(), second: zeros(), steps }
            }
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
        let grad_clip = self.grad_clip;
        let (flat, parameters) = (&gradients.flat, gradients.matching(parameters));
        let norm = match &mut self.state {
            State::Sgd { momentum, weight_decay, momenta } => {
                let (momentum, weight_decay) = (*momentum, *weight_decay);
                asng_native::Sgd { grad_clip, learning_rate, momentum, weight_decay }.step(
                    flat,
                    &parameters,
                    &gradients.matching(momenta),
                )
            }
            State::Adam { first, second, steps } => {
                let steps = steps.get_mut(STEPS).expect("new puts it there");
                let steps = steps.g_add_scalar_(1).int64_value(&[0]);
                let (betas, epsilon) = (BETAS, EPSILON);
                let moments = [first, second].map(|moments| gradients.matching(moments));
                asng_native::Adam { grad_clip, learning_rate, betas, epsilon, steps }.step(
                    flat,
                    &parameters,
                    moments.each_ref().map(Vec::as_slice),
                )
            }
        };
        norm.unwrap()
    }

    /// The state, for a file.
    pub fn parts(&self) -> Vec<(&'static str, &Tensors)> {
        match &self.state {
            State::Sgd { momenta, .. } => vec![("momentum", momenta)],
            State::Adam { first, second, steps } => {
                vec![("first", first), ("second", second), ("adam", steps)]
            }
        }
    }

    /// The state, to load into.
    pub fn parts_mut(&mut self) -> Vec<(&'static str, &mut Tensors)> {
        match &mut self.state {
            State::Sgd { momenta, .. } => vec![("momentum", momenta)],
            State::Adam { first, second, steps } => {
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
        let summed = sum.named().into_iter();
        let summed: Vec<_> = summed.map(|(name, t)| (name, t.double_value(&[0]))).collect();
        assert_eq!(summed, [("a".to_owned(), 4.0), ("b".to_owned(), 3.0)]);
        assert!(Gradients::default().named().is_empty());
        let sum = of(&parameters["c"] * 2.0).plus(sum).plus(of(&parameters["b"] * -1.0));
        assert_eq!(
            sum.named().into_values().map(|t| t.double_value(&[0])).collect::<Vec<_>>(),
            [4.0, 2.0, 2.0]
        );
    }

    /// One parameter after the other with plain operations, as the papers write it. tests/parity.rs and tests/inpaint.rs
    /// compare steps in 64 bits with PyTorch's.
    fn step_by_parameter(
        method: Method,
        grad_clip: f64,
        moved: &mut [(Tensor, [Tensor; 2])],
        gradients: &[Option<Tensor>],
        (step, learning_rate): (i32, f64),
    ) {
        let norm = |gradient: &Tensor| gradient.square().sum(Kind::Double).double_value(&[]);
        let norm = gradients.iter().flatten().map(norm).sum::<f64>().sqrt();
        for ((parameter, [first, second]), gradient) in moved.iter_mut().zip(gradients) {
            let Some(gradient) = gradient else { continue };
            let gradient = gradient * (grad_clip / norm).min(1.0);
            match method {
                Method::Sgd { momentum, weight_decay } => {
                    *first = &*first * momentum + gradient + &*parameter * weight_decay;
                    *parameter = &*parameter - &*first * learning_rate;
                }
                Method::Adam => {
                    let [beta1, beta2] = BETAS;
                    *first = &*first * beta1 + &gradient * (1.0 - beta1);
                    *second = &*second * beta2 + gradient.square() * (1.0 - beta2);
                    let [first, second] = [(&*first, beta1), (&*second, beta2)]
                        .map(|(moment, beta)| moment / (1.0 - beta.powi(step)));
                    *parameter = &*parameter - first * learning_rate / (second.sqrt() + EPSILON);
                }
            }
        }
    }

    #[test]
    fn all_parameters_together_move_as_each_by_itself() {
        let wave = |phase: usize, shape: &[i64]| -> Tensor {
            let value = |i: i64| (0.7 * (i * i) as f64 + 1.3 * phase as f64).sin() as f32;
            let count = shape.iter().product::<i64>();
            Tensor::from_slice(&(0..count).map(value).collect::<Vec<_>>()).view(shape)
        };
        let shapes: [&[i64]; 4] = [&[7, 3, 3, 3], &[5], &[33, 16], &[4, 1, 5, 5]];
        let sgd = Method::Sgd { momentum: 0.9, weight_decay: 3e-4 };
        for (method, grad_clip) in [(sgd, 5.0), (sgd, 1e9), (Method::Adam, 5.0)] {
            let mut parameters: Tensors = (0..4)
                .map(|i| (i.to_string(), wave(i, shapes[i]).set_requires_grad(true)))
                .collect();
            let start = |tensor: &Tensor| {
                (tensor.detach().copy(), [(); 2].map(|()| tensor.detach().zeros_like()))
            };
            let mut expected: Vec<_> = parameters.values().map(start).collect();
            let mut optimizer = Optimizer::new(method, grad_clip, &parameters);
            for step in 1..6_usize {
                // Each parameter is left out once.
                let gradient = |i: usize| (i != step).then(|| wave(10 * step + i, shapes[i]));
                let gradients: Vec<_> = (0..4).map(gradient).collect();
                let terms = parameters.values().zip(&gradients);
                let terms = terms.filter_map(|(p, g)| Some((p * g.as_ref()?).sum(Kind::Float)));
                let loss = terms.reduce(|sum, term| sum + term).unwrap();
                let of_loss = Gradients::of(&loss, &parameters);
                let _norm = optimizer.step(&mut parameters, &of_loss, 0.05);
                step_by_parameter(
                    method,
                    grad_clip,
                    &mut expected,
                    &gradients,
                    (step as i32, 0.05),
                );
                for (ours, (theirs, _)) in parameters.values().zip(&expected) {
                    let difference = (ours.detach() - theirs).abs().max().double_value(&[]);
                    assert!(difference < 1e-6, "{method:?}, step {step}: {difference:e}");
                }
            }
        }
    }

    #[test]
    fn the_cosine_goes_from_the_start_to_0_and_stays_there() {
        let rate = |progress| cosine(0.1, progress);
        assert_eq!([rate(-1.0), rate(0.0), rate(1.0), rate(2.0)], [0.1, 0.1, 0.0, 0.0]);
        assert!((rate(0.5) - 0.05).abs() < 1e-15 && (rate(1.0 / 3.0) - 0.075).abs() < 1e-15);
    }
}
