"""From a raw output to a number to act on: score, interval, and whether the image is one the model knows.

Everything is fitted on images that the weights were not taught on, apart in scenes, and travels in the model file's
header. Fitting needs numpy and scipy alone. Axes: N images, D numbers of an image, K knots.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqm.errors import SaqmError
from saqm.image import Image
from saqm.modelfile import Conformal, Familiar, Group, ScoreMap
from saqm.patches import luminance

Floats = NDArray[np.float64]
View = Literal["picture", "features"]

COVERAGE = 0.9
LEAST_IMAGES = 20  # scored ones that a calibration is made from: below it a 90 % interval is the largest error seen
FEWEST = 8  # that a single fit takes, when scenes are kept out of it
FULL_KNOTS = 100  # images from which the map has six knots; three below
STEADY = 20.0  # images that the straight line counts for when the map is fitted
LEAST_SLOPE = 0.1  # of the straight line's: the map never makes different images equal
UNLIKE = 0.05  # p below which an image is flagged as unlike those the model knows
DIRECTIONS = 32  # components kept; the rest of the variance counts the same in every direction
SHRINK: Mapping[View, float] = {"picture": 0.5, "features": 0.05}  # share of the identity in the covariance


class Observation(NamedTuple):
    """What calibration sees of one image.

    raw: the pooled output. spread: sd of the windows' raw outputs, by their weights. views: numbers by which the image
    is compared with those the model knows, (D,) each.
    """

    raw: float
    spread: float
    views: Mapping[View, Floats]


@dataclass(frozen=True)
class Familiarity:
    """How an image compares with those the model knows.

    statistic: its distance over that which 19 of 20 known images stay within; above 1 is far. p: the share of known
    images that lie as far or farther, 0 to 1, doubled because two views are looked at. flag: p < UNLIKE. view: which
    of the two is the less alike. group: the kind of known image that it is nearest to, by its features where known.
    """

    statistic: float
    p: float
    view: View
    group: str

    @property
    def flag(self) -> bool:
        return self.p < UNLIKE


# Score


def to_score(curve: ScoreMap, raw: ArrayLike) -> Floats:
    """Raw outputs as 0 to 100, higher is better; beyond the knots the end lines go on, unclipped."""
    x, y = np.asarray(curve.raw), np.asarray(curve.score)
    value = np.asarray(raw, np.float64)
    piece = np.clip(np.searchsorted(x, value) - 1, 0, len(x) - 2)
    slope = np.diff(y) / np.diff(x)
    return np.asarray(y[piece] + slope[piece] * (value - x[piece]))


def fit_score_map(raw: ArrayLike, opinions: ArrayLike, start: ScoreMap, *, knots: int | None = None) -> ScoreMap:
    """The monotone map, straight between knots, that brings raw outputs (N,) nearest to opinions (N,) on 0 to 100.

    In least squares, drawn to `start` as by STEADY images, and nowhere flatter than LEAST_SLOPE of it. Knots lie at
    quantiles of `raw`. Raises SaqmError where there are too few images, or all opinions or outputs are equal.
    """
    from scipy import optimize

    x, y = _pairs(raw, opinions)
    if knots is None:
        knots = 6 if len(x) >= FULL_KNOTS else 3
    at = np.unique(np.quantile(x, np.linspace(0, 1, knots)))
    first = to_score(start, at)
    basis_NK = np.stack([np.interp(x, at, row) for row in np.eye(len(at))], 1)
    steps_KK = np.tri(len(at))  # knots from the first one's height and the steps that follow
    wanted = np.diff(first, prepend=0.0)
    steady = math.sqrt(STEADY / len(at))
    left = np.concatenate([basis_NK @ steps_KK, steady * steps_KK])
    right = np.concatenate([y, steady * first])
    low, high = np.full(len(at), -np.inf), np.full(len(at), np.inf)
    rising = wanted[1:] > 0
    low[1:] = np.where(rising, LEAST_SLOPE * wanted[1:], -np.inf)
    high[1:] = np.where(rising, np.inf, LEAST_SLOPE * wanted[1:])
    solved = optimize.lsq_linear(left, right, (low, high), method="bvls")
    return ScoreMap(raw=_numbers(at), score=_numbers(steps_KK @ solved.x))


def _pairs(raw: ArrayLike, opinions: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(raw, np.float64), np.asarray(opinions, np.float64)
    if len(x) < FEWEST:
        raise SaqmError(f"{len(x)} scored images are too few to fit a map to; give {LEAST_IMAGES}, from several scenes")
    for values, what in ((x, "outputs of the model"), (y, "opinion scores")):
        if not np.ptp(values):
            raise SaqmError(f"all {len(values)} {what} are equal ({values[0]:g}): nothing can be fitted to them")
    return x, y


def cross_fitted(raw: ArrayLike, opinions: ArrayLike, scenes: Sequence[Hashable], start: ScoreMap) -> Floats:
    """The score (N,) that each image gets from a map fitted without its scene. Raises SaqmError as `fit_score_map`."""
    x, y = np.asarray(raw, np.float64), np.asarray(opinions, np.float64)
    found = np.empty(len(x))
    for out in _left_out(scenes):
        found[out] = to_score(fit_score_map(x[~out], y[~out], start), x[out])
    return found


def held(
    raw: ArrayLike,
    opinions: ArrayLike,
    spreads: ArrayLike,
    scenes: Sequence[Hashable],
    start: ScoreMap,
    *,
    groups: Sequence[str] | None = None,
) -> tuple[NDArray[np.bool_], Floats]:
    """Whether each image's opinion lies in its interval, and how wide that is: (N,), all fitted without its scene."""
    x, y, spread = (np.asarray(values, np.float64) for values in (raw, opinions, spreads))
    names, kinds = np.array([str(scene) for scene in scenes]), None if groups is None else np.array(groups)
    inside, width = np.zeros(len(x), bool), np.empty(len(x))
    for out in _left_out(scenes):
        kept = ~out
        score = to_score(fit_score_map(x[kept], y[kept], start), x)
        errors = y[kept] - np.clip(cross_fitted(x[kept], y[kept], names[kept].tolist(), start), 0, 100)
        given = None if kinds is None else kinds[kept].tolist()
        conformal = fit_interval(errors, spread[kept], names[kept].tolist(), groups=given)
        for i in np.flatnonzero(out):
            group = None if kinds is None else str(kinds[i])
            low, high = interval(conformal, float(np.clip(score[i], 0, 100)), float(spread[i]), group)
            inside[i], width[i] = low <= y[i] <= high, high - low
    return inside, width


def reliability(scores: ArrayLike, opinions: ArrayLike, bins: int = 5) -> list[dict[str, float]]:
    """What opinions images of about one score have, in bins of as many images each: n, mean score, opinion, its sd."""
    x, y = np.asarray(scores, np.float64), np.asarray(opinions, np.float64)
    parts = np.array_split(np.argsort(x, kind="stable"), bins)
    return [
        {"n": len(i), "score": float(x[i].mean()), "opinion": float(y[i].mean()), "sd": float(y[i].std(ddof=1))}
        for i in parts
        if len(i) > 1
    ]


def _left_out(scenes: Sequence[Hashable], most: int = 30) -> list[NDArray[np.bool_]]:
    """One scene after the other, as masks (N,); where there are more than `most`, so many groups of scenes."""
    names = sorted({str(scene) for scene in scenes})
    if len(names) < 2:
        raise SaqmError(f"{len(names)} scene: a calibration is judged on scenes kept out, so give images of several")
    place = {name: number % most for number, name in enumerate(names)}
    group = np.array([place[str(scene)] for scene in scenes])
    return [group == number for number in range(min(most, len(names)))]


# Interval


def interval(conformal: Conformal, score: float, spread: float, group: str | None = None) -> tuple[float, float]:
    """The interval around a score, within 0 to 100; `spread` in points of the score, `group` as in `Familiarity`."""
    reach = conformal.reach if group is None else conformal.by_group.get(group, conformal.reach)
    half = reach * (conformal.base + conformal.per_spread * spread)
    return max(0.0, score - half), min(100.0, score + half)


def fit_interval(
    errors: ArrayLike,
    spreads: ArrayLike,
    scenes: Sequence[Hashable],
    *,
    groups: Sequence[str] | None = None,
    coverage: float = COVERAGE,
) -> Conformal:
    """Split conformal prediction, normalised (Lei et al., JASA 113, 2018, section 5.2), from errors kept out of fold.

    errors: opinion minus score, in points, of images whose scene the score had not met. The error expected of an image
    rises with its windows' spread where it does in these; the reach is then the quantile at (N + 1) coverage / N of the
    errors over what was expected. `groups`: one each, for what holds in the mean over organs need not hold in each
    (Mondrian conformal prediction, Vovk et al. 2005, section 4.5). Images of a scene are not independent, so the
    promise is measured on kept-out scenes. Raises SaqmError for too few images, of a group too.
    """
    from scipy import optimize

    size, spread = np.abs(np.asarray(errors, np.float64)), np.asarray(spreads, np.float64)
    if not size.any():
        raise SaqmError("every score equals its opinion exactly: these images were taught; give others")
    (base, per_spread), _ = optimize.nnls(np.stack([np.ones(len(size)), spread], 1), size)
    base = max(base, 0.25 * float(size.mean()))  # an image of one smooth look is not known for certain
    over = size / (base + per_spread * spread)
    kinds = np.array([""] * len(size) if groups is None else groups)
    return Conformal(
        coverage=coverage,
        reach=_reach(over, coverage),
        by_group={} if groups is None else {g: _reach(over[kinds == g], coverage) for g in sorted(set(groups))},
        base=base, per_spread=per_spread, images=len(size), scenes=len(set(scenes)),
    )  # fmt: skip


def _reach(over: Floats, coverage: float) -> float:
    level = math.ceil((len(over) + 1) * coverage) / len(over)
    if level > 1:
        raise SaqmError(
            f"{len(over)} images are too few for an interval that holds {coverage:.0%}; give {LEAST_IMAGES}"
        )
    return float(np.quantile(over, level, method="higher"))


# Familiar or not


def picture_statistics(image: Image) -> Floats:
    """16 numbers of the picture itself, (16,): grey levels inside the mask and outside, their tails, fine and coarse.

    Of luminance on 0 to 255: percentiles 1, 5, 25, 50, 75, 95, 99; log share of black and of white; skewness of the
    grey levels, of fine detail and of middle detail; mean outside the mask; log sd of fine, middle and coarse detail.
    """
    grey, mask = luminance(image), image.mask
    smooth, smoother, coarse = _blurred(grey, (1, 3, 8))
    inside = grey[mask].astype(np.float64)
    fine, middle, broad = (part[mask].astype(np.float64) for part in (grey - smooth, smooth - smoother, coarse))
    outside = grey[~mask].mean(dtype=np.float64) if (~mask).mean() > 0.02 else inside.min()
    shares = np.array([(inside <= 0.5).mean(), (inside >= 254.5).mean()])
    return np.concatenate([
        np.percentile(inside, (1, 5, 25, 50, 75, 95, 99)) / 40, np.log10(shares + 1e-3),
        [_skewness(inside), outside / 40, _skewness(fine), _skewness(middle)],
        [math.log(part.std() + 0.1) for part in (fine, middle, broad)],
    ])  # fmt: skip


def _blurred(grey_HW: NDArray[np.float32], sigmas: Sequence[float]) -> list[NDArray[np.float32]]:
    """What scipy.ndimage.gaussian_filter gives for each sigma, to float32's rounding, six times as fast.

    It repeats the picture mirrored at its borders, which is what a cosine transform takes a picture for: filtering is
    one product in it, whatever sigma is.
    """
    from scipy import fft

    height, width = grey_HW.shape
    spectrum = fft.dctn(grey_HW, norm="ortho")
    gains = ((_gain(height, sigma), _gain(width, sigma)) for sigma in sigmas)
    return [fft.idctn(spectrum * down[:, None] * across, norm="ortho", overwrite_x=True) for down, across in gains]


def _gain(length: int, sigma: float) -> NDArray[np.float32]:
    """What a Gaussian, cut off at four sigma, leaves of each cosine along a side of so many pixels."""
    offsets = np.arange(1, int(4 * sigma + 0.5) + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    waves = np.cos(np.outer(np.pi * np.arange(length) / length, offsets))
    return np.asarray((1 + 2 * waves @ taps) / (1 + 2 * taps.sum()), np.float32)


def feature_statistics(features_ND: NDArray[np.floating]) -> Floats:
    """Mean and sd of each feature over the windows of an image, (2 D,)."""
    features = np.asarray(features_ND, np.float64)
    return np.concatenate([features.mean(0), features.std(0)])


def distance(known: Familiar, numbers_D: Floats) -> dict[str, float]:
    """Squared Mahalanobis distance to each group's mean, over D: about 1 for images of that group."""
    scale, components = np.asarray(known.scale), np.asarray(known.components)
    if numbers_D.shape != scale.shape:
        raise SaqmError(f"{numbers_D.size} numbers of an image where the calibration knows {scale.size}")
    found = {}
    for name, group in known.groups.items():
        apart = (numbers_D - np.asarray(group.mean)) / scale
        along = components @ apart
        beside = max(0.0, float(apart @ apart - along @ along))
        found[name] = (float((along**2 / np.asarray(known.variances)).sum()) + beside / known.rest) / scale.size
    return found


def familiarity(known: Mapping[View, Familiar], views: Mapping[View, Floats]) -> Familiarity:
    """How an image compares with those the model knows: the group it fits best, in the view it fits worst."""
    if not known:
        raise SaqmError("the model knows no images to compare with")
    away = {view: distance(one, views[view]) for view, one in known.items()}
    nearest = away.get("features", next(iter(away.values())))
    group = min(nearest, key=lambda name: nearest[name])
    found = [
        (*max((_against(one.groups[name], far, len(known)) for name, far in away[view].items()), key=_order), view)
        for view, one in known.items()
    ]
    p, statistic, view = min(found, key=_order)
    return Familiarity(statistic, p, view, group)


def _against(group: Group, away: float, views: int) -> tuple[float, float]:
    """p and statistic of a distance to one group."""
    kept_out = np.asarray(group.kept_out)
    share = (1 + int((kept_out >= away).sum())) / (1 + len(kept_out))
    return min(1.0, share * views), away / float(np.quantile(kept_out, 1 - UNLIKE / views))


def _order(found: tuple[float, float] | tuple[float, float, View]) -> tuple[float, float]:
    return found[0], -found[1]


def fit_familiar(
    numbers_ND: Floats, groups: Sequence[str], view: View, kept_out: Mapping[str, Sequence[float]]
) -> Familiar:
    """What images (N, D) of several groups look like: a mean each, one covariance, shrunk to the identity.

    kept_out: distances of images of each group to a fit that had not met their scene, from which p comes.
    """
    groups_N = np.asarray(groups)
    means = {name: numbers_ND[groups_N == name].mean(0) for name in sorted(set(groups))}
    apart_ND = np.concatenate([numbers_ND[groups_N == name] - mean for name, mean in means.items()])
    scale = apart_ND.std(0) + 1e-3
    _, singular, components = np.linalg.svd(apart_ND / scale, full_matrices=False)
    variances = singular**2 / len(apart_ND)
    kept = min(DIRECTIONS, len(variances), numbers_ND.shape[1])
    rest = float(variances[kept:].sum()) / max(1, numbers_ND.shape[1] - kept)
    shrink = SHRINK[view]
    return Familiar(
        scale=_numbers(scale),
        components=tuple(_numbers(one) for one in components[:kept]),
        variances=_numbers((1 - shrink) * variances[:kept] + shrink),
        rest=(1 - shrink) * rest + shrink,
        groups={
            name: Group(mean=_numbers(mean), kept_out=_numbers(np.sort(np.asarray(kept_out.get(name, (1.0,))))))
            for name, mean in means.items()
        },
    )


def _skewness(values: Floats) -> float:
    """Third moment over the cube of the sd; half a grey level is added to that, so that flat areas have none."""
    centred = values - values.mean()
    return float((centred * centred * centred).mean() / (values.std() + 0.5) ** 3)


def _numbers(values: ArrayLike) -> tuple[float, ...]:
    """To six digits: a header is text."""
    return tuple(cast("list[float]", [float(f"{value:.6g}") for value in np.asarray(values, np.float64)]))
