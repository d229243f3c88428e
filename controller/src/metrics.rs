//! Times and counts of the store's commits, for `/metrics`.

use std::{sync::LazyLock, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, histogram::Histogram},
    registry::{Registry, Unit},
};

static SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    Histogram::new([1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0])
});
static OPERATIONS: LazyLock<Histogram> =
    LazyLock::new(|| Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]));
static FAILURES: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Counts a commit that took this long and made this many operations durable.
pub(crate) fn committed(duration: Duration, operations: usize) {
    SECONDS.observe(duration.as_secs_f64());
    OPERATIONS.observe(operations as f64);
}

/// Counts a commit that failed.
pub(crate) fn commit_failed() {
    FAILURES.inc();
}

pub(crate) fn register(registry: &mut Registry) {
    registry.register_with_unit(
        "asng_store_commit",
        "Time to write a batch of operations to the database and make it durable",
        Unit::Seconds,
        SECONDS.clone(),
    );
    registry.register(
        "asng_store_commit_operations",
        "Operations that shared a commit",
        OPERATIONS.clone(),
    );
    registry.register(
        "asng_store_commit_failures",
        "Commits that failed; none of their operations was acknowledged",
        FAILURES.clone(),
    );
}
