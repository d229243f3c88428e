//! Latency of a network: the median time of one inference.

use std::time::{Duration, Instant};

use tch::{Cuda, Device};

/// Inferences that are not timed: the first ones allocate memory and choose kernels.
const WARM_UP: usize = 3;
/// Timed inferences: at least so many, then until they have taken [`ENOUGH`] in all, ...
const MIN_RUNS: usize = 10;
/// ... and at most so many.
const MAX_RUNS: usize = 200;
const ENOUGH: Duration = Duration::from_millis(300);

/// Returns the median time of `forward`, which infers one image on `device`, in milliseconds. It runs at least 13 times, without gradients; work
/// queued on a GPU is waited for.
pub(crate) fn measure<E>(
    mut forward: impl FnMut() -> Result<(), E>,
    device: Device,
) -> Result<f64, E> {
    let _guard = tch::no_grad_guard();
    let synchronize = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    median(|| {
        synchronize();
        let started = Instant::now();
        forward()?;
        synchronize();
        Ok(started.elapsed())
    })
}

/// Returns the median in milliseconds of the times that `infer` returns, as many as the constants above say.
fn median<E>(mut infer: impl FnMut() -> Result<Duration, E>) -> Result<f64, E> {
    for _ in 0..WARM_UP {
        infer()?;
    }
    let (mut times, mut total) = (Vec::new(), Duration::ZERO);
    while times.len() < MIN_RUNS || total < ENOUGH && times.len() < MAX_RUNS {
        let time = infer()?;
        total += time;
        times.push(time);
    }
    times.sort_unstable();
    let middle = times.len() / 2;
    let median = match times.len() % 2 {
        0 => (times[middle - 1] + times[middle]) / 2,
        _ => times[middle],
    };
    Ok(1e3 * median.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the median of inferences of these milliseconds, the last of them repeated, and the number of inferences.
    fn run(milliseconds: &[u64]) -> (f64, usize) {
        let mut runs = 0;
        let infer = || {
            let time = milliseconds[runs.min(milliseconds.len() - 1)];
            runs += 1;
            Ok::<_, ()>(Duration::from_millis(time))
        };
        (median(infer).unwrap(), runs)
    }

    #[test]
    fn the_first_inferences_do_not_count_and_slow_ones_end_after_ten() {
        assert_eq!(run(&[5000, 4000, 3000, 70, 10, 90, 20, 80, 30, 60, 40, 50, 100]), (55.0, 13));
        assert_eq!(run(&[1000]), (1000.0, 3 + 10));
    }

    #[test]
    fn quick_inferences_run_for_300_ms_or_200_times() {
        assert_eq!(run(&[0, 0, 0, 20]), (20.0, 3 + 15), "15 runs of 20 ms");
        assert_eq!(run(&[20, 20, 20, 2]), (2.0, 3 + 150));
        assert_eq!(run(&[1]), (1.0, 3 + 200));
        assert_eq!(run(&[0]), (0.0, 3 + 200), "also where no time passes");
    }

    #[test]
    fn forward_runs_without_gradients_and_its_error_comes_back() {
        let mut runs = 0;
        let x = tch::Tensor::zeros([1], (tch::Kind::Float, Device::Cpu)).set_requires_grad(true);
        let error = measure(
            || {
                assert!(!(&x * 2.0).requires_grad());
                runs += 1;
                if runs < 12 { Ok(()) } else { Err("no memory") }
            },
            Device::Cpu,
        );
        assert_eq!((error, runs), (Err("no memory"), 12));
    }
}
