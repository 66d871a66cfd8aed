"""Noise: how much the best non-local-means denoiser takes out, in grey levels. Lower is better.

A RECONSTRUCTION on published equations. D. Van De Ville & M. Kocher, "SURE-based non-local means", IEEE Signal
Processing Letters 16(11), 2009, give a denoiser with an estimate of its mean square error (SURE), which chooses its
bandwidth; they take the noise level as known and define no score. Ours are the score (the standard deviation of what is
removed), the noise level (J. Immerkaer, "Fast noise variance estimation", CVIU 64(2), 1996), and the constants below.
Range: from 0, about 22 with heavy noise. Texture counts as noise; speckle is not the white noise that is assumed.

The sums are written with differences e = y_l - y_k to the pixel at hand, so that a constant gives exactly 0, and for
two opposite neighbours f = y_{k+d} - y_k and b = y_{k-d} - y_k at once. In the divergence, with r = x - y,

    y_k - y_{2k-l} = -b for l = k + d,    x_k - y_l = r - e,    sum w y_l^2 / W - x_k^2 = sum w e^2 / W - r^2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from saqm.errors import NotScorable, SaqmError
from saqm.metrics._pixels import MIN_SIDE, judged, luminance

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_] | None

# Ours, and part of the definition: another grid gives other numbers.
PATCH = 3  # pixels each way: patches of 7 x 7 are compared ...
SEARCH = 5  # ... with those up to 5 pixels away, 11 x 11
LAMBDAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2)  # bandwidth = 7 sigma lambda; 7 is the side of a patch
LEAST_SIGMA = 0.1  # grey levels
CROP = 192  # pixels

_REACH = PATCH + SEARCH  # pixels each way that a denoised pixel depends on
_STRIP = 48  # rows denoised at once, so that their sums stay in the cache and memory is bounded


@dataclass(frozen=True, eq=False)
class NoiseDetails:
    """What stands behind a noise score. The arrays have one value for each of LAMBDAS."""

    sigma: float  # Immerkaer's, grey levels
    best_lambda: float
    bandwidth: float  # grey levels, at best_lambda
    sure: Floats  # estimated mean square error, squared grey levels
    divergence: Floats  # mean of d x_k / d y_k
    score: float  # grey levels


def sure_noise(pixels: ArrayLike, *, mask: Mask = None, crop: int | None = CROP) -> float:
    """Standard deviation, in grey levels, of what NLM removes at the bandwidth of least SURE. Lower is better.

    See `sure_noise_details`.
    """
    return sure_noise_details(pixels, mask=mask, crop=crop).score


def sure_noise_details(pixels: ArrayLike, *, mask: Mask = None, crop: int | None = CROP) -> NoiseDetails:
    """The noise score and how it came about. `pixels`: (H, W) or (H, W, 3) on 0..255. A constant picture scores 0.

    `crop`: side of the square in the middle that is denoised (sigma comes from the whole picture), None: everything,
    about 8 times slower for 512 x 512.

    `mask`: bool (H, W), True = judged. Means are taken over the pixels whose 17 x 17 neighbourhood (all that a denoised
    pixel depends on) is judged as far as the mask's bounding box goes; the square is the one with most of them, nearest
    to the middle of the box. Raises NotScorable below 16 pixels on a side or 256 such pixels.
    """
    if crop is not None and crop < MIN_SIDE:
        raise SaqmError(f"crop={crop}; at least {MIN_SIDE} pixels, or None for the whole picture")
    grey, mask = judged(luminance(pixels), mask, "sure_noise")
    sigma = _immerkaer(grey, mask)
    floored = max(sigma, LEAST_SIGMA)
    bandwidths = (2 * PATCH + 1) * floored * np.array(LAMBDAS)
    square, counted = _square(grey, mask, crop)
    extended = np.pad(square, _REACH, "symmetric")
    number, sums = 0, np.zeros((3, len(LAMBDAS)))
    for top in range(0, len(square), _STRIP):
        removed, divergence = _non_local_means(extended[top : top + _STRIP + 2 * _REACH], bandwidths)
        if counted is not None:
            inside = counted[top : top + _STRIP]
            removed, divergence = removed[:, inside], divergence[:, inside]
        number += removed[0].size
        sums += [values.reshape(len(LAMBDAS), -1).sum(1) for values in (removed, removed**2, divergence)]
    bias, error, mean_divergence = sums / number
    sure = error - floored**2 + 2 * floored**2 * mean_divergence
    best = int(np.argmin(sure))
    return NoiseDetails(
        sigma=sigma,
        best_lambda=LAMBDAS[best],
        bandwidth=float(bandwidths[best]),
        sure=sure,
        divergence=mean_divergence,
        score=float(np.sqrt(max(error[best] - bias[best] ** 2, 0.0))),  # rounding may leave less than nothing
    )


def immerkaer_sigma(pixels: ArrayLike, *, mask: Mask = None) -> float:
    """Standard deviation of white noise in grey levels (Immerkaer 1996). Lower is better; texture raises it.

    With a mask from the pixels whose 3 x 3 neighbours are judged. Raises NotScorable where there are none, or below 16
    pixels on a side.
    """
    return _immerkaer(*judged(luminance(pixels), mask, "immerkaer_sigma"))


def _immerkaer(grey: Floats, mask: Mask) -> float:
    responses = np.abs(np.diff(np.diff(grey, 2, axis=0), 2, axis=1))  # [1, -2, 1] along both axes
    if mask is not None:
        responses = responses[ndimage.binary_erosion(mask, np.ones((3, 3)))[1:-1, 1:-1]]
        if not responses.size:
            raise NotScorable("sure_noise: no 3x3 pixels together inside the mask; widen it")
    return float(np.sqrt(np.pi / 2) / 6 * responses.mean())


def _square(grey: Floats, mask: Mask, crop: int | None) -> tuple[Floats, Mask]:
    """The part to denoise, and which of its pixels count (None: all)."""
    height, width = (min(side, crop or side) for side in grey.shape)
    top, left = (grey.shape[0] - height) // 2, (grey.shape[1] - width) // 2
    if mask is None:
        return grey[top : top + height, left : left + width], None
    counted = ndimage.minimum_filter(mask, 2 * _REACH + 1, mode="reflect")
    total = np.pad(counted.cumsum(0, np.int32).cumsum(1, np.int32), ((1, 0), (1, 0)))
    inside = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    most = int(inside.max())
    if most < MIN_SIDE**2:
        side = 2 * _REACH + 1
        raise NotScorable(
            f"sure_noise: {most} pixels have their {side}x{side} neighbourhood inside the mask; "
            f"it needs at least {MIN_SIDE**2}: widen the mask"
        )
    rows, columns = np.nonzero(inside == most)
    nearest = np.argmin((rows - top) ** 2 + (columns - left) ** 2)
    square = np.s_[rows[nearest] : rows[nearest] + height, columns[nearest] : columns[nearest] + width]
    return grey[square], counted[square]


def _non_local_means(
    extended: Floats, bandwidths: Floats, patch: int = PATCH, search: int = SEARCH
) -> tuple[Floats, Floats]:
    """What NLM removes, x - y, and its divergence d x_k / d y_k: both (L, H, W) for L bandwidths.

    `extended`: the picture with patch + search pixels more on every side; that they may be mirrored copies of others is
    left out of the divergence.
    """
    reach = patch + search
    y = extended[reach:-reach, reach:-reach]
    height, width = y.shape
    shape = (len(bandwidths), height, width)
    total, moved, spread, cross, mixed = np.ones(shape), *(np.zeros(shape) for _ in range(4))
    for down in range(search + 1):
        for right in range(-search if down else 1, search + 1):
            forward = extended[reach + down :, reach + right :][:height, :width] - y
            back = extended[reach - down :, reach - right :][:height, :width] - y
            near = max(down, abs(right)) <= patch
            distances = _distances(extended, down, right, patch, search)
            for at, weights in _weights(distances, bandwidths):
                # the weight of k and k + d is that of k + d and k: one exponential serves both
                ahead = weights[down:, max(right, 0) :][:, :width]
                behind = weights[:height, max(-right, 0) :][:, :width]
                both, to_front, to_back = ahead + behind, ahead * forward, behind * back
                total[at] += both
                moved[at] += to_front + to_back
                spread[at] += to_front * forward + to_back * back
                if near:
                    cross[at] -= ahead * back + behind * forward
                    mixed[at] -= both * (forward * back)
    removed = moved / total
    squared = (bandwidths**2)[:, None, None]
    divergence = (1 + (spread + removed * cross - mixed) / squared) / total - removed**2 / squared
    return removed, divergence


def _distances(extended: Floats, down: int, right: int, patch: int, search: int) -> Floats:
    """Squared distance of the patches at p and p + (down, right), where one of the two lies in the picture."""
    height, width = (side - 2 * (patch + search) for side in extended.shape)
    first_row, first_column = search - down, search - max(right, 0)
    here = extended[first_row:, first_column:][: height + down + 2 * patch, : width + abs(right) + 2 * patch]
    there = extended[search:, first_column + right :][: here.shape[0], : here.shape[1]]
    side = 2 * patch + 1
    return _sliding_sum(_sliding_sum((here - there) ** 2, side).T, side).T


def _sliding_sum(values: Floats, side: int) -> Floats:
    """Sums of `side` rows on end. Not by cumulative sums: what lies far away must not leave its rounding here."""
    number = len(values) - side + 1
    sums = values[:number].copy()
    for first in range(1, side):
        sums += values[first : first + number]
    return sums


def _weights(distances: Floats, bandwidths: Floats) -> Iterator[tuple[int, Floats]]:
    """exp(-D / 2 h^2) for every h, with its place; the fourth power of that of 2 h where there is one: cheaper."""
    found: dict[float, Floats] = {}
    for at in np.argsort(-bandwidths):
        h = float(bandwidths[at])
        if 2 * h in found:
            square = found[2 * h] ** 2
            found[h] = square * square
        else:
            found[h] = np.exp(distances * (-0.5 / h**2))
        yield int(at), found[h]
