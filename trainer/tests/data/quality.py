#!/usr/bin/env python3
"""Writes quality.txt: peak signal-to-noise ratios and structural similarities by scikit-image, for the tests of
trainer/src/tasks/inpainting/metrics.rs.

    python3 -m venv venv && venv/bin/pip install scikit-image==0.26.0
    venv/bin/python trainer/tests/data/quality.py

Images are filled by a formula that the Rust test repeats (`wave` below), so the file holds only results.
"""

import math
from pathlib import Path

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def wave(phase, step, shape):
    count = math.prod(shape)
    return np.array([math.sin(step * k * k + phase) for k in range(count)]).reshape(shape)


def smooth(shape):
    """Changes slowly, as photos do."""
    _, height, width = shape
    return np.array(
        [
            [[0.5 + 0.4 * math.sin(0.3 * x + 0.2 * y * c + c) for x in range(width)] for y in range(height)]
            for c in range(shape[0])
        ]
    )


def main():
    lines = [
        "# Written by quality.py with scikit-image: channels, height and width of an image, how much noise was added to it,",
        "# peak signal-to-noise ratio in decibels, structural similarity. Values beyond 0 and 1 are clipped first.",
    ]
    for shape in [(3, 64, 64), (3, 11, 11), (1, 28, 20), (3, 16, 40)]:
        for noise in [1e-3, 0.05, 0.3, 2.0]:
            truth = smooth(shape)
            image = np.clip(truth + noise * wave(0.7, 0.37, shape), 0, 1)
            psnr = peak_signal_noise_ratio(truth, image, data_range=1)
            ssim = structural_similarity(
                truth,
                image,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=1,
                channel_axis=0,
            )
            lines.append(f"{shape[0]} {shape[1]} {shape[2]} {noise!r} {psnr:.15e} {ssim:.15e}")
    Path(__file__).with_suffix(".txt").write_text("\n".join(lines) + "\n")


main()
