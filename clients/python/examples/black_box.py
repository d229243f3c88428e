"""A black box with costs: a ridge regression's hyperparameters, each architecture fitted on its own, with few weights.

pip install asng numpy
python black_box.py     # beside a controller
"""

import numpy as np
import numpy.typing as npt

import asng

SPACE = asng.Space(
    features=asng.Categorical(["polynomial", "fourier", "gaussian"]),
    ridge=asng.Categorical(["1e-6", "1e-4", "1e-2", "1"]),
    size=asng.Integer(1, 40),
)


def features(x: npt.NDArray[np.float64], arch: asng.Architecture) -> npt.NDArray[np.float64]:
    k = np.arange(arch.size)
    if arch.features == "polynomial":
        return np.asarray(x[:, None] ** k)
    if arch.features == "fourier":
        return np.asarray(np.cos(np.pi * k * (x[:, None] + 1) / 2))
    return np.asarray(np.exp(-((x[:, None] - np.linspace(-1, 1, arch.size)) ** 2) * 20))


def loss(arch: asng.Architecture, data: np.random.Generator) -> float:
    """Fits a noisy curve, and returns the error on points that were not fitted."""
    x = data.uniform(-1, 1, 200)
    y = np.sin(12 * x) + np.abs(x) + data.normal(0, 0.1, 200)
    a = features(x, arch)
    fitted, measured = slice(100), slice(100, None)
    weights = np.linalg.solve(
        a[fitted].T @ a[fitted] + float(arch.ridge) * np.eye(arch.size), a[fitted].T @ y[fitted]
    )
    return float(np.mean((a[measured] @ weights - y[measured]) ** 2))


def costs(arch: asng.Architecture) -> dict[str, float]:
    return {"weights": arch.size}


def main() -> None:
    data = np.random.default_rng(0)
    with asng.connect() as controller:
        # There are no shared weights, so nothing is to be trained. What has more than 24 weights ranks behind what has not, and
        # of two that are as good the smaller one is better.
        study = controller.create_study(
            "black-box",
            SPACE,
            max_steps=400,
            lambda_x=0,
            seed=0,
            limits={"weights": 24},
            penalties={"weights": 1e-4},
        )
        for step in study.steps():
            losses = [loss(arch, data) for arch in step.rank]
            step.report(losses, costs=[costs(arch) for arch in step.rank])
        best = study.best()
        print(best, best.costs)
        print(
            f"mean squared error {np.mean([loss(best, data) for _ in range(20)]):.4f}, of the noise alone 0.01"
        )


if __name__ == "__main__":
    main()
