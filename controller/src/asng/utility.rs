//! The utilities of the losses of one step. Knows the losses, and not the architectures that they belong to.

/// The best mu = ceil(lambda / 4) get 1/mu, the worst mu get -1/mu, the rest 0. Equal losses share
/// the mean of their places; losses that are NaN or infinite tie after every finite one.
pub(super) fn utilities(losses: &[f64]) -> Vec<f64> {
    let lambda = losses.len();
    let mu = lambda.div_ceil(4);
    let key = |i: usize| {
        if losses[i].is_finite() { losses[i] } else { f64::INFINITY }
    };
    let mut order: Vec<usize> = (0..lambda).collect();
    order.sort_by(|&a, &b| key(a).total_cmp(&key(b)));

    let mut utilities = vec![0.0; lambda];
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| key(a) == key(b)) {
        let places = first..first + tied.len();
        // Counted in whole places, so that losses which all tie get exactly 0.
        let good = places.clone().filter(|&place| place < mu).count() as f64;
        let bad = places.clone().filter(|&place| place >= lambda - mu).count() as f64;
        for &i in tied {
            utilities[i] = (good - bad) / (mu * tied.len()) as f64;
        }
        first = places.end;
    }
    utilities
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_and_the_worst_quarter_count() {
        assert_eq!(utilities(&[2.0, 1.0]), [-1.0, 1.0]);
        assert_eq!(utilities(&[3.0, 1.0, 2.0]), [-1.0, 1.0, 0.0]);
        assert_eq!(utilities(&[4.0, 1.0, 2.0, 3.0]), [-1.0, 1.0, 0.0, 0.0]);
        assert_eq!(utilities(&[6.0, 1.0, 2.0, 3.0, 4.0, 5.0]), [-0.5, 0.5, 0.5, 0.0, 0.0, -0.5]);
    }

    #[test]
    fn ties_share_the_mean_of_their_places() {
        assert_eq!(utilities(&[1.0, 1.0, 2.0, 3.0]), [0.5, 0.5, 0.0, -1.0]);
        assert_eq!(utilities(&[0.0, -0.0]), [0.0, 0.0]);
        for lambda in 2..40 {
            assert_eq!(utilities(&vec![0.1; lambda]), vec![0.0; lambda]);
        }
    }

    #[test]
    fn diverged_losses_tie_after_every_finite_one() {
        let losses = [f64::NEG_INFINITY, 1e300, f64::NAN, f64::INFINITY, -1.0];
        assert_eq!(utilities(&losses), [-1.0 / 3.0, 0.5, -1.0 / 3.0, -1.0 / 3.0, 0.5]);
    }

    /// The authors' tie test, `f[i + 1] - f[i] < eps * f[i]`, never holds for equal negative losses
    /// and holds for equal positive ones.
    #[test]
    fn negative_losses_tie_exactly_when_they_are_equal() {
        assert_eq!(utilities(&[-2.0, -1.0]), [1.0, -1.0]);
        assert_eq!(utilities(&[-1.0, -1.0]), [0.0, 0.0]);
        let next = f64::from_bits(1.0_f64.to_bits() + 1);
        assert_eq!(utilities(&[-1.0, -next]), [-1.0, 1.0]);
        assert_eq!(utilities(&[1.0, next]), [1.0, -1.0]);
    }
}
