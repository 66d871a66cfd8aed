"""BLIINDS-II: how far the statistics of local cosine coefficients lie from those of undistorted pictures.

Source: M. A. Saad, A. C. Bovik, C. Charrier, "Blind image quality assessment: a natural scene statistics approach in
the DCT domain", IEEE TIP 21(8), 2012; exact, after the authors' release (utlive/BLIINDS2@212d23b). Lower is better: it
predicts LIVE's DMOS. Range 0..99 in steps of 0.5; any real in the continuous form, which has fewer ties.

Two oddities of the release are kept: the score is one step of the search below its maximiser, and the second
denominator of the energy ratio holds v3 + v1. Ours are the mask and the smallest side. The release puts zeros around
each level; through a mask nothing sees them, which moved whole pictures by up to 5 points (a mask without one corner).

A flat patch has the shape 11, so black background raises that mean a lot; a constant picture scores 99.

Suffixes: H, W pixels of a level; C = 24 coefficients of a patch without its mean; N patches.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import scipy.ndimage
import scipy.special
from numpy.typing import ArrayLike, NDArray

from saqm.errors import NotScorable
from saqm.metrics._pixels import judged, luminance
from saqm.metrics.parameters import Parameters

LEVELS = 3  # each half the size of the one before
_STRIDE = 3  # pixels; a patch is a 3x3 block with a rim of one pixel
_STRIP = 4096  # patches worked on at a time, so that they stay in the cache
_FLAT_SHAPE = 11.0  # where the ratio is outside the table
_CENTRE, _EDGE = np.array([1, np.exp(-2)]) / (1 + 2 * np.exp(-2))  # Gaussian of sigma 0.5, three taps
_DCT = np.sqrt(2 / 5) * np.cos(np.pi * np.outer(range(5), range(1, 10, 2)) / 10)  # frequency, sample
_DCT[0] = 1 / np.sqrt(5)

# (row, column) frequencies of the coefficients: three bands of orientation, in this order ...
_BANDS = [
    [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 4)],
    [(1, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4)],
    [(1, 0), (2, 0), (3, 0), (4, 0), (2, 1), (3, 1), (4, 1), (4, 2)],
]
_ORDER = [frequency for band in _BANDS for frequency in band]
# ... and three rings of frequency, from low to high
_RINGS = [
    [_ORDER.index(frequency) for frequency in ring]
    for ring in (
        [(0, 1), (1, 0), (0, 2), (2, 0), (1, 1)],
        [(3, 0), (4, 0), (2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (3, 2), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4)],
        [(2, 4), (3, 3), (4, 2), (3, 4), (4, 3), (4, 4)],
    )
]


def bliinds(
    pixels: ArrayLike,
    parameters: Parameters,
    *,
    mask: NDArray[np.bool_] | None = None,
    continuous: bool = False,
) -> float:
    """BLIINDS-II of a picture, (H, W) or (H, W, 3) on 0..255. Lower is better.

    0..99 in steps of 0.5 as released, or with `continuous` the maximiser itself, any real. The released search over
    the scores has a closed form, the linear regression on the features: its density falls with a quadratic form.
    Raises as `bliinds_features`; ModelFileError for the parameters of another metric.
    """
    parameters.expect("bliinds")
    mean, inverse = parameters.arrays["mean"], parameters.arrays["inverse_covariance"]
    features = bliinds_features(pixels, mask=mask)
    optimum = mean[24] - inverse[24, :24] @ (features - mean[:24]) / inverse[24, 24]
    score = float(optimum) - 1  # as released: the list searched begins at 1, the scores at 0
    return score if continuous else min(max(0.0, round(2 * score) / 2), 99.0)


def bliinds_features(pixels: ArrayLike, *, mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """The 24 features: for each of three levels the mean and the worst tenth of four measures of the patches.

    The measures are the frequency variation, the shape of the distribution (its tenth is the lowest, the others' the
    highest), the energy ratio and the variance over orientations. With a mask only patches wholly inside count, and a
    pixel of the next level counts where the 3x3 pixels that made it do. Raises ImageError for what is no picture;
    NotScorable below 16 pixels on a side, or where no patch of a level is inside the mask.
    """
    level, inside = judged(luminance(pixels), mask, "bliinds")
    pooled: list[float] = []
    for number in range(1, LEVELS + 1):
        measures_4N = _measures(level, inside)
        if not measures_4N.shape[1]:
            raise NotScorable(
                f"bliinds: no 5x5 patch lies wholly inside the mask at level {number} of {LEVELS}, "
                f"{level.shape[0]}x{level.shape[1]} pixels; the mask is too thin, judge a larger area"
            )
        for measure, measure_N in enumerate(measures_4N):
            pooled += _pool(measure_N, lowest=measure == 1)
        level = _half(level)
        inside = None if inside is None else _eroded(inside, 3)[1::2, 1::2]
    return np.array(pooled)


def _half(level_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every second pixel, from the second, of the level smoothed with a zero border: (H // 2, W // 2)."""
    for _ in range(2):
        height = len(level_HW) // 2
        rows = np.pad(level_HW, ((0, 1), (0, 0)))
        smooth = _CENTRE * rows[1 : 2 * height : 2]
        smooth += _EDGE * (rows[0 : 2 * height : 2] + rows[2 : 2 * height + 1 : 2])
        level_HW = smooth.T
    return np.ascontiguousarray(level_HW)


def _eroded(mask_HW: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Where the whole square of that side around a pixel is inside the mask; outside the picture nothing is."""
    eroded: NDArray[np.bool_] = scipy.ndimage.minimum_filter(mask_HW, side, mode="constant", cval=0)
    return eroded


def _measures(level_HW: NDArray[np.float64], mask_HW: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """(4, N): frequency variation, shape, energy ratio and variance over orientations of the patches of a level."""
    height, width = level_HW.shape
    rows, columns = -(-height // _STRIDE), -(-width // _STRIDE)
    lower, right = rows * _STRIDE - height, columns * _STRIDE - width
    padded = np.pad(level_HW, ((1, 1 + lower), (1, 1 + right)))
    whole = None
    if mask_HW is not None:
        whole = _eroded(np.pad(mask_HW, ((0, lower), (0, right))), 5)[1::_STRIDE, 1::_STRIDE]
    step = max(1, _STRIP // columns)
    found = []
    for top in range(0, rows, step):
        bottom = min(top + step, rows)
        ac_CN = _coefficients(padded[_STRIDE * top : _STRIDE * bottom + 2])
        if whole is not None:
            ac_CN = ac_CN.compress(whole[top:bottom].ravel(), axis=1)
        found.append(np.stack([_frequency_variation(ac_CN), _shape(ac_CN), _energy_ratio(ac_CN), _orientation(ac_CN)]))
    return np.concatenate(found, axis=1)


def _coefficients(strip_HW: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C, N): the 5x5 DCT-II of a strip's patches in _ORDER, without the coefficient of the mean.

    Sums of arrays, not a matrix product, whose bits would depend on the processor and its threads: rounding is all
    that flat patches consist of, and it shows in the seventh decimal of their frequency variation.
    """
    rows, columns = len(strip_HW) // _STRIDE, strip_HW.shape[1] // _STRIDE
    vertical = _dct5([strip_HW[at : at + _STRIDE * rows : _STRIDE] for at in range(5)])
    both = [_dct5([line[:, at : at + _STRIDE * columns : _STRIDE] for at in range(5)]) for line in vertical]
    return np.stack([both[row][column].ravel() for row, column in _ORDER])


def _dct5(samples: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The orthonormal DCT-II of five equal arrays, element by element."""
    found = []
    for weights in _DCT:
        total = weights[0] * samples[0]
        for weight, sample in zip(weights[1:], samples[1:], strict=True):
            total += weight * sample
        found.append(total)
    return found


def _frequency_variation(ac_CN: NDArray[np.float64]) -> NDArray[np.float64]:
    magnitude_CN = np.abs(ac_CN)
    variation_N: NDArray[np.float64] = np.sqrt(_variance(magnitude_CN)) / (magnitude_CN.mean(0) + 1e-7)
    return variation_N


def _shape(ac_CN: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shape of the generalised Gaussian whose moment ratio is just above that of the coefficients."""
    ratio_N = _variance(ac_CN) / (np.abs(ac_CN - ac_CN.mean(0)).mean(0) ** 2 + 1e-7)
    shapes, rising = _shape_table()
    last = len(shapes) - np.searchsorted(rising, ratio_N) - 1  # the last shape whose ratio is not below
    outside = (last < 0) | (last == len(shapes) - 1)
    return np.where(outside, _FLAT_SHAPE, shapes[np.where(outside, 0, last)])


@cache
def _shape_table() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The shapes 0.03, 0.031, ..., 10, and the moment ratios of 10, ..., 0.03, which rise."""
    shapes = np.arange(30, 10001) / 1000
    gamma = scipy.special.gamma
    ratios = gamma(1 / shapes) * gamma(3 / shapes) / gamma(2 / shapes) ** 2
    return shapes, np.ascontiguousarray(ratios[::-1])


def _energy_ratio(ac_CN: NDArray[np.float64]) -> NDArray[np.float64]:
    low_N, middle_N, high_N = (_variance(ac_CN[ring]) for ring in _RINGS)
    below_N = (low_N + middle_N) / 2
    high_to_below_N = np.abs(high_N - below_N) / (high_N + below_N + 1e-8)
    middle_to_low_N = np.abs(middle_N - low_N) / (high_N + low_N + 1e-8)  # high_N as released
    return (high_to_below_N + middle_to_low_N) / 2


def _orientation(ac_CN: NDArray[np.float64]) -> NDArray[np.float64]:
    return _variance(np.stack([_frequency_variation(band_CN) for band_CN in np.split(ac_CN, len(_BANDS))]))


def _variance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Down the first axis, with N - 1."""
    centred = values - values.mean(0)
    centred *= centred
    variance: NDArray[np.float64] = centred.sum(0) / (len(values) - 1)
    return variance


def _pool(measure_N: NDArray[np.float64], *, lowest: bool) -> list[float]:
    """The mean, and the mean of the highest or lowest tenth."""
    tenth = -(-len(measure_N) // 10)
    extreme = np.partition(measure_N, tenth - 1)[:tenth] if lowest else np.partition(measure_N, -tenth)[-tenth:]
    return [float(measure_N.mean()), float(extreme.mean())]
