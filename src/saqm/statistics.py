"""Statistics of two lists of numbers, predictions and opinions: agreement, error, and how certain they are.

Both stand in the same direction; for the errors on the same scale, too. A statistic that has no value raises
UndefinedScore. Axes: N images, R bootstrap replicates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqm.errors import UndefinedScore

Floats = NDArray[np.float64]
Interval = tuple[float, float]

REPLICATES = 2000  # of a bootstrap: the usual number for 95 % percentile intervals (Efron & Tibshirani 1993, ch. 14)
LEVEL = 0.95  # of every interval
LEAST = 3  # pairs of which a correlation is taken
LEAST_LOGISTIC = 6  # pairs for a curve of four parameters; below, a straight line is fitted and said to be
_BLOCK = 2_000_000  # cells of replicates x images handled at once, so that memory is bounded


# Correlations and errors


def srocc(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Spearman's rank correlation, ties at their mean rank, -1 to 1, higher is better.

    Raises UndefinedScore for fewer than 3 pairs, a value that is not finite, or a constant.
    """
    x, y = _pairs(predictions, opinions)
    return float(srocc_replicates(x, y, np.ones((1, len(x)), np.int64))[0])


def plcc(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Pearson's linear correlation, -1 to 1, higher is better. Raises UndefinedScore as srocc does."""
    x, y = _pairs(predictions, opinions)
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))


def krocc(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Kendall's rank correlation tau-b (with ties), -1 to 1, higher is better. Raises UndefinedScore as srocc does."""
    from scipy.stats import kendalltau

    x, y = _pairs(predictions, opinions)
    return float(kendalltau(x, y).statistic)


def rmse(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Root mean square error in points of the opinion scale, lower is better."""
    x, y = _finite(predictions, opinions, 1)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def mae(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """Mean absolute error in points of the opinion scale, lower is better."""
    x, y = _finite(predictions, opinions, 1)
    return float(np.mean(np.abs(x - y)))


def srocc_by_scene(predictions: ArrayLike, opinions: ArrayLike, scenes: Sequence[Hashable]) -> dict[Hashable, float]:
    """srocc inside each scene; a scene where it is undefined (constant, fewer than 3) is left out."""
    x, y = _finite(predictions, opinions, 1)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        members[scene].append(index)
    values = {scene: defined(srocc, x[index], y[index]) for scene, index in members.items()}
    return {scene: value for scene, value in values.items() if value is not None}


def _finite(predictions: ArrayLike, opinions: ArrayLike, least: int) -> tuple[Floats, Floats]:
    x, y = np.asarray(predictions, np.float64), np.asarray(opinions, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise UndefinedScore(f"predictions {x.shape} and opinions {y.shape} are not two lists of the same length")
    if len(x) < least:
        raise UndefinedScore(f"{len(x)} pairs; wanted {least} or more")
    for name, values in (("predictions", x), ("opinions", y)):
        if not np.isfinite(values).all():
            raise UndefinedScore(f"{name} hold {int((~np.isfinite(values)).sum())} values that are not finite")
    return x, y


def _pairs(predictions: ArrayLike, opinions: ArrayLike) -> tuple[Floats, Floats]:
    x, y = _finite(predictions, opinions, LEAST)
    for name, values in (("predictions", x), ("opinions", y)):
        if np.ptp(values) == 0:
            raise UndefinedScore(f"{name} are constant ({values[0]:.4g}): a correlation has no value")
    return x, y


def defined(statistic: Callable[[ArrayLike, ArrayLike], float], x: ArrayLike, y: ArrayLike) -> float | None:
    """The statistic, None where it raises UndefinedScore."""
    try:
        return statistic(x, y)
    except UndefinedScore:
        return None


# The logistic between predictions and opinions


@dataclass(frozen=True)
class Logistic:
    """b1 + (b2 - b1) / (1 + exp(-(x - b3) / |b4|)), or a straight line b1 + b2 x where `fallback` says why."""

    parameters: tuple[float, ...]
    fallback: str | None = None

    def __call__(self, predictions: ArrayLike) -> Floats:
        """Predictions mapped onto the opinion scale, (N,)."""
        x = np.asarray(predictions, np.float64)
        if self.fallback is not None:
            intercept, slope = self.parameters
            return np.asarray(intercept + slope * x)
        low, high, middle, width = self.parameters
        return np.asarray(low + (high - low) * (1 + np.tanh((x - middle) / abs(width) / 2)) / 2)  # no overflow


def fit_logistic(predictions: ArrayLike, opinions: ArrayLike) -> Logistic:
    """The increasing four-parameter logistic of least squares (VQEG 2003), from several starts within bounds.

    A straight line takes its place, and `fallback` says so, below 6 pairs or where no start does better than the line.
    Increasing only: predictions that run against the opinions must not be turned round in silence.
    """
    from scipy.optimize import least_squares

    x, y = _pairs(predictions, opinions)
    (x0, x1), (y0, y1) = (float(x.mean()), float(x.std())), (float(y.mean()), float(y.std()))
    u, v = (x - x0) / x1, (y - y0) / y1
    slope = max(0.0, float(u @ v) / len(u))
    line = (y0 - slope * y1 / x1 * x0, slope * y1 / x1)
    if len(x) < LEAST_LOGISTIC:
        return Logistic(line, f"{len(x)} pairs are too few for four parameters")

    def residuals(p: Floats) -> Floats:  # p: low, height, middle, width, in standard deviations
        return np.asarray(p[0] + p[1] * (1 + np.tanh((u - p[2]) / p[3] / 2)) / 2 - v)

    def slopes(p: Floats) -> Floats:
        z = (u - p[2]) / p[3]
        rise = (1 + np.tanh(z / 2)) / 2
        steep = p[1] * rise * (1 - rise) / p[3]
        return np.stack([np.ones_like(u), rise, -steep, -steep * z], 1)

    reach, height = float(np.ptp(u)), float(np.ptp(v))
    lower = np.array([v.min() - height, 0.0, u.min() - reach, reach / 100])
    upper = np.array([v.max(), 3 * height, u.max() + reach, 3 * reach])
    best, least = None, float(np.sum((v - slope * u) ** 2))
    for middle in np.quantile(u, [0.2, 0.5, 0.8]):
        for width in (reach / 20, reach / 5, reach):
            start = np.array([v.min(), height, middle, width])
            found = least_squares(residuals, start, slopes, bounds=(lower, upper), max_nfev=200)
            if 2 * found.cost < least:
                best, least = found.x, 2 * float(found.cost)
    if best is None:
        return Logistic(line, "no logistic comes closer than the straight line")
    low = y0 + y1 * best[0]
    return Logistic((float(low), float(low + y1 * best[1]), float(x0 + x1 * best[2]), float(x1 * best[3])))


def plcc_logistic(predictions: ArrayLike, opinions: ArrayLike) -> float:
    """plcc after fit_logistic **on these same data**: an upper bound, to be reported as fitted on the test data."""
    return plcc(fit_logistic(predictions, opinions)(predictions), opinions)


# Bootstrap


def cluster_weights(*labels: Sequence[Hashable], replicates: int, seed: int) -> NDArray[np.int64]:
    """How often each image stands in each bootstrap replicate, (R, N).

    Whole clusters are drawn with replacement. With two lists of labels (scenes and methods) each is drawn on its own
    and an image counts the product: the two-way bootstrap (Owen 2007, Annals of Applied Statistics 1(2)).
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((replicates, len(labels[0])), np.int64)
    for names in labels:
        order = {name: place for place, name in enumerate(dict.fromkeys(names))}
        drawn = rng.multinomial(len(order), np.full(len(order), 1 / len(order)), size=replicates)
        weights *= drawn[:, [order[name] for name in names]]
    return weights


def srocc_replicates(predictions: ArrayLike, opinions: ArrayLike, weights_RN: NDArray[np.int64]) -> Floats:
    """srocc of every replicate, (R,); NaN where a replicate is constant. Weight 2 is the image standing there twice."""
    x, y = _finite(predictions, opinions, 1)
    values = np.empty(len(weights_RN))
    block = max(1, _BLOCK // len(x))
    for start in range(0, len(values), block):
        part = weights_RN[start : start + block]
        ranks_x, ranks_y = _centred_ranks(x, part), _centred_ranks(y, part)
        # Twice the ranks are whole numbers, so the sums are exact and a constant gives exactly zero.
        covariance, own_x, own_y = (
            np.einsum("rn,rn,rn->r", part, a, b)
            for a, b in ((ranks_x, ranks_y), (ranks_x, ranks_x), (ranks_y, ranks_y))
        )
        product = np.sqrt(own_x * own_y)
        values[start : start + block] = np.divide(
            covariance, product, out=np.full(len(part), np.nan), where=product > 0
        )
    return np.clip(values, -1, 1)


def _centred_ranks(values: Floats, weights_RN: NDArray[np.int64]) -> Floats:
    """Mean ranks among the replicate's images, minus their mean, (R, N)."""
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.append(True, np.diff(values[order]) > 0))
    tied = np.add.reduceat(weights_RN[:, order], first, axis=1)
    ranks = tied.cumsum(1) - tied / 2 - weights_RN.sum(1, keepdims=True) / 2
    place = np.empty(len(values), np.intp)
    place[order] = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
    return np.asarray(ranks[:, place])


def interval(replicates: ArrayLike) -> Interval | None:
    """The 95 % percentile interval; undefined replicates (NaN) are left out, and None where they are the majority."""
    values = np.asarray(replicates, np.float64)
    known = values[np.isfinite(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(
    first: ArrayLike, second: ArrayLike, opinions: ArrayLike, weights_RN: NDArray[np.int64]
) -> tuple[float, Interval, float]:
    """srocc(first) - srocc(second), its 95 % interval and two-sided p over the same replicates (cluster_weights).

    Raises UndefinedScore where either correlation, or most replicates, have no value.
    """
    difference = srocc(first, opinions) - srocc(second, opinions)
    differences = srocc_replicates(first, opinions, weights_RN) - srocc_replicates(second, opinions, weights_RN)
    bounds = interval(differences)
    if bounds is None:
        raise UndefinedScore("most bootstrap replicates are constant")
    known = differences[np.isfinite(differences)]
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return difference, bounds, min(1.0, 2 * (tail + 1) / (len(known) + 1))  # + 1: never zero (Davison & Hinkley 1997)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6), in the same order."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return tuple(adjusted)
