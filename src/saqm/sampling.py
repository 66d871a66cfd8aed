"""An image's score from some of its windows: stop when more of them would hardly move it.

Windows are looked at in an order that is spread over the picture: the reading order is divided into as many runs as a
batch has windows, and each batch takes one at random from every run. Axes: N windows looked at.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from saqm.patches import CHUNK, pool

LEAST = 2 * CHUNK  # windows before the first look at the standard error: of fewer it is itself a guess


def order(count: int, seed: int) -> NDArray[np.int_]:
    """Every window's number once, 0 to count - 1; any first part is spread over the whole. Same seed, same order."""
    rng = np.random.default_rng(seed)
    runs = [rng.permutation(run) for run in np.array_split(np.arange(count), min(CHUNK, count))]
    longest = max(map(len, runs))
    table = np.full((longest, len(runs)), -1)
    for column, run in enumerate(runs):
        table[: len(run), column] = run
    return table[table >= 0]


def standard_error(scores_N: NDArray[np.floating], weights_N: NDArray[np.floating], count: int) -> float:
    """Of the weighted mean of N of `count` windows, in the scores' own units; 0 where all were looked at.

    That of a ratio of means in simple random sampling without replacement (Cochran, Sampling Techniques, 1977, 6.8);
    windows spread over the picture do better than that, so it errs to the safe side.
    """
    score, weight = np.asarray(scores_N, np.float64), np.asarray(weights_N, np.float64)
    apart = weight / weight.mean() * (score - pool(score, weight))
    n = len(score)
    return math.sqrt((1 - n / count) * float(apart @ apart) / (n * max(1, n - 1)))
