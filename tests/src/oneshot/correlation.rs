//! How alike two orders of the same things are.

/// Kendall's tau-b (Kendall, 1945): from -1, one order is the reverse of the other, to 1, they are the same; ties are taken
/// out. NaN where all of one are tied.
pub fn kendall_tau(x: &[f64], y: &[f64]) -> f64 {
    let sign = |a: f64, b: f64| f64::from(i8::from(a > b) - i8::from(a < b));
    let (mut agree, mut untied_x, mut untied_y) = (0.0, 0.0, 0.0);
    for i in 0..x.len() {
        for j in 0..i {
            let (a, b) = (sign(x[i], x[j]), sign(y[i], y[j]));
            agree += a * b;
            untied_x += a * a;
            untied_y += b * b;
        }
    }
    agree / f64::sqrt(untied_x * untied_y)
}

/// Spearman's rho: the correlation of the ranks, of which equal values share the mean. NaN where all of one are tied.
pub fn spearman_rho(x: &[f64], y: &[f64]) -> f64 {
    let (x, y) = (ranks(x), ranks(y));
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    product(&x, &y) / f64::sqrt(product(&x, &x) * product(&y, &y))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let below = values.iter().filter(|other| *other < value).count() as f64;
        let equal = values.iter().filter(|other| *other == value).count() as f64;
        below + (equal + 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-14
    }

    /// scipy 1.17.1, `scipy.stats.kendalltau(x, y).statistic` and `spearmanr(x, y).statistic`.
    #[test]
    fn they_are_those_of_scipy() {
        let x = [0.31, 0.52, 0.52, 0.75, 1.1, 1.1, 1.1, 2.3];
        let y = [91.2, 90.0, 91.2, 88.5, 90.0, 84.1, 88.5, 10.0];
        assert!(close(kendall_tau(&x, &y), -0.7756717518813397));
        assert!(close(spearman_rho(&x, &y), -0.8500664140329959));
        let x = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0];
        let y = [2.0, 7.0, 1.0, 8.0, 2.0, 8.0, 1.0, 8.0];
        assert!(close(kendall_tau(&x, &y), 0.16051447078102563));
        assert!(close(spearman_rho(&x, &y), 0.19885368120992467));
    }

    #[test]
    fn the_same_order_is_1_the_reverse_is_minus_1_and_diverged_losses_are_last() {
        let (x, y) = ([0.1, 0.2, f64::INFINITY], [1.0, 2.0, 3.0]);
        assert_eq!((kendall_tau(&x, &y), spearman_rho(&x, &y)), (1.0, 1.0));
        let x = x.map(|x| -x);
        assert_eq!((kendall_tau(&x, &y), spearman_rho(&x, &y)), (-1.0, -1.0));
        assert!(kendall_tau(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
    }
}
