"""Natural-scene statistics, which NIQE, BRISQUE and NIQE-K share: MSCN coefficients, their fits, the half-size picture.

MSCN are mean-subtracted, contrast-normalised grey levels (Ruderman 1994, Network 5(4); as in Mittal, Moorthy & Bovik,
IEEE TIP 21(12), 2012, Eqs 1-3): m = (I - mu) / (sigma + 1), with mean and deviation under a 7 x 7 Gaussian window. The
deviation is added to 1 grey level, so grey levels are 0..255.

Flat areas. Where a window is flat, m should be 0 and comes out as 0 ± 1e-14, and the fits count signs. `snap=True` sets
such values to 0: the result depends on no order of summation and may be had by the fast way, the window as two 1-D
passes. `snap=False` keeps that noise, as the authors' programs do, and so has to sum as they do, over 7 x 7 at once.
Other values differ by less than 1e-10 between the ways, so only strips of rows that hold a flat one are summed at once.

Masks (ours, not the authors'). A value counts where its whole window is judged; outside the picture nothing is. A pixel
of the half-size picture is judged where all 8 x 8 pixels under its taps are.

Axes: H rows, W columns; N pictures (blocks, or one whole picture) of h x w values; S sets of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import correlate, correlate1d
from scipy.special import gamma

from saqm.errors import NotScorable
from saqm.metrics._pixels import judged, luminance

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Entry = TypeVar("Entry", np.float64, np.bool_)
Border = Literal["nearest", "constant"]  # beyond the picture: the edge pixel again (NIQE), or zeros (BRISQUE)

REACH = 3  # pixels from the centre of the window to its edge
_SQUARES = np.arange(-REACH, REACH + 1) ** 2
_WINDOW = np.exp(-np.add.outer(_SQUARES, _SQUARES) / (2 * (7 / 6) ** 2))  # sigma 7/6 pixels: 3 sigma to each side
_WINDOW /= _WINDOW.sum()
_TAPS = _WINDOW.sum(0)  # the same as one pass along rows and one along columns
FLAT = 1e-9  # |m| below is 0 but for rounding, which is about 1e-14
HALF_TAPS = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256  # MATLAB imresize(x, 0.5): bicubic, antialiased
_STRIP = 32_768  # values handled at once, so that they stay in the processor's cache; 8192 and 131072 were slower

_ALPHA = np.arange(200, 10_001) / 1000  # the authors' grid of shapes: 0.2, 0.201, ... 10
_GAUSSIANITY = gamma(2 / _ALPHA) ** 2 / (gamma(1 / _ALPHA) * gamma(3 / _ALPHA))  # E|v|^2 / E v^2, rises to 3/4


def flat_fraction(pixels: ArrayLike, mask: Mask | None = None) -> float:
    """Share of the pixels, 0..1, whose MSCN coefficient is 0 but for rounding; above 0.1 trained metrics mean little.

    Their 7 x 7 window is flat (or, on few pixels, symmetric about its centre). With a mask it is the share of the
    pixels whose whole window is judged. Raises NotScorable where there is none, or where less than 16 pixels on a side
    are judged; ImageError for wrong pixels.
    """
    grey_HW, mask = judged(luminance(pixels), mask, "flat fraction")
    flat_HW = mscn(grey_HW, "nearest", snap=True) == 0
    if mask is None:
        return float(flat_HW.mean())
    usable_HW = covered(mask, REACH, REACH)
    if not usable_HW.any():
        raise NotScorable("flat fraction: no window of 7x7 pixels lies inside the mask")
    return float(flat_HW[usable_HW].mean())


# The two scales


def scales(
    grey_HW: Floats, mask_HW: Mask | None, border: Border, *, snap: bool
) -> Iterator[tuple[Floats, Mask | None]]:
    """MSCN of the picture, then of the half-size picture, each with where they are usable (None: everywhere).

    What is not usable is 0.
    """
    yield _usable(mscn(grey_HW, border, snap=snap), mask_HW)
    grey_HW, mask_HW = half(grey_HW), None if mask_HW is None else half_mask(mask_HW)
    yield _usable(mscn(grey_HW, border, snap=snap), mask_HW)


def mscn(grey_HW: Floats, border: Border, *, snap: bool) -> Floats:
    """MSCN coefficients (H, W) of grey levels on 0..255: about -3..3, dimensionless."""
    values_HW = np.empty(grey_HW.shape)
    for rows, strip in _strips(grey_HW, border):
        mean, deviation = _local(strip, border)
        values = _normalised(strip, mean, deviation)
        flat = np.abs(values) < FLAT
        if flat.any():
            if snap:
                values[flat] = 0
            else:
                values = _normalised(strip, *_local(strip, border, at_once=True))
        values_HW[rows] = values
    return values_HW


def deviation(grey_HW: Floats, border: Border) -> Floats:
    """The standard deviation (H, W) under the window, in grey levels: the sigma of the MSCN."""
    deviation_HW = np.empty(grey_HW.shape)
    for rows, strip in _strips(grey_HW, border):
        deviation_HW[rows] = _local(strip, border)[1]
    return deviation_HW


def half(grey_HW: Floats) -> Floats:
    """The picture at half size, (ceil(H / 2), ceil(W / 2)), not rounded; the border is mirrored.

    MATLAB's imresize(x, 0.5), whose bicubic kernel (a = -0.5), widened against aliasing, is eight constant taps.
    """
    height, width = grey_HW.shape
    half_HW = np.empty((-(-height // 2), -(-width // 2)))
    step = max(1, _STRIP // (2 * width))
    for first in range(0, len(half_HW), step):
        last = min(first + step, len(half_HW))
        above, below = 2 * first - 3, 2 * last + 3
        strip = grey_HW[max(above, 0) : below]
        strip = np.pad(strip, ((max(-above, 0), max(below - height, 0)), (0, 0)), "symmetric")
        strip = _folded(strip, last - first)
        strip = np.pad(strip, ((0, 0), (3, 3 + width % 2)), "symmetric")
        half_HW[first:last] = _folded(strip.T, half_HW.shape[1]).T
    return half_HW


def half_mask(mask_HW: Mask) -> Mask:
    """Where the half-size picture is judged: where all pixels under the taps are."""
    return covered(mask_HW, 3, 4)[::2, ::2]


def covered(mask_HW: Mask, before: int, after: int) -> Mask:
    """True where the mask is, from `before` pixels before to `after` pixels after, in rows and columns."""
    for axis in (0, 1):
        length = mask_HW.shape[axis]
        padding = [(0, 0), (0, 0)]
        padding[axis] = (before, after)
        padded = np.moveaxis(np.pad(mask_HW, padding), axis, 0)
        whole = padded[:length].copy()
        for shift in range(1, before + after + 1):
            whole &= padded[shift : shift + length]
        mask_HW = np.moveaxis(whole, 0, axis)
    return mask_HW


def _usable(values_HW: Floats, mask_HW: Mask | None) -> tuple[Floats, Mask | None]:
    if mask_HW is None:
        return values_HW, None
    usable_HW = covered(mask_HW, REACH, REACH)
    values_HW[~usable_HW] = 0
    return values_HW, usable_HW


def _strips(grey_HW: Floats, border: Border) -> Iterator[tuple[slice, Floats]]:
    """Strips of rows, each with the rows that the window reaches above and below it."""
    height, width = grey_HW.shape
    step = max(1, _STRIP // width)
    for first in range(0, height, step):
        last = min(first + step, height)
        missing = (max(REACH - first, 0), max(last + REACH - height, 0)), (0, 0)
        inside = grey_HW[max(first - REACH, 0) : last + REACH]
        yield slice(first, last), np.pad(inside, missing, "edge" if border == "nearest" else "constant")


def _local(strip: Floats, border: Border, *, at_once: bool = False) -> tuple[Floats, Floats]:
    """Mean and standard deviation under the window, of a strip's own rows."""
    window = _window_at_once if at_once else _window
    mean = window(strip, border)
    variance = window(strip * strip, border)
    variance -= mean * mean
    return mean, np.sqrt(np.abs(variance, out=variance), out=variance)


def _window(strip: Floats, border: Border) -> Floats:
    rows = len(strip) - 2 * REACH
    total = strip[REACH : REACH + rows] * _TAPS[REACH]
    for reach in range(1, REACH + 1):
        pair = strip[REACH - reach : REACH - reach + rows] + strip[REACH + reach : REACH + reach + rows]
        pair *= _TAPS[REACH + reach]
        total += pair
    return np.asarray(correlate1d(total, _TAPS, 1, mode=border))


def _window_at_once(strip: Floats, border: Border) -> Floats:
    return np.asarray(correlate(strip, _WINDOW, mode=border)[REACH:-REACH])


def _normalised(strip: Floats, mean: Floats, deviation: Floats) -> Floats:
    values = strip[REACH:-REACH] - mean
    values /= deviation + 1
    return values


def _folded(rows: Floats, count: int) -> Floats:
    """Every second row of the rows filtered with HALF_TAPS."""
    stop = 2 * count - 1
    total: Floats = (rows[:stop:2] + rows[7 : 7 + stop : 2]) * HALF_TAPS[0]
    for k in range(1, 4):
        pair = rows[k : k + stop : 2] + rows[7 - k : 7 - k + stop : 2]
        pair *= HALF_TAPS[k]
        total += pair
    return total


# Samples and their fits

Shift = tuple[int, int]  # rows, columns, as numpy.roll has it
Tile = tuple[slice, slice]  # pictures, rows


def sample_sums(values_Nhw: Floats, usable_Nhw: Mask | None, shifts: Sequence[Shift]) -> Floats:
    """What the fits need to know of the values, and of their products with the values shifted: (1 + S, N, 6).

    The six: number of samples, of negative and of positive ones, sum of squares of the negative and of the positive
    ones, sum of absolute values. Without a mask each of the N pictures is rolled, and wraps around; with one, only
    pairs of usable neighbours count. What is not usable has to be 0.
    """
    ring = (0, 0), (1, 1), (1, 1)
    padded = np.pad(values_Nhw, ring, "wrap" if usable_Nhw is None else "constant")
    padded_usable = None if usable_Nhw is None else np.pad(usable_Nhw, ring)
    sums = np.zeros((1 + len(shifts), len(values_Nhw), 6))
    for tile in _tiles(*values_Nhw.shape):
        own = values_Nhw[tile]
        for s, shift in enumerate([None, *shifts]):
            samples = own if shift is None else own * _shifted(padded, tile, shift)
            counted = None
            if usable_Nhw is not None and padded_usable is not None:
                counted = usable_Nhw[tile] if shift is None else usable_Nhw[tile] & _shifted(padded_usable, tile, shift)
            _add(sums[s, tile[0]], samples, counted)
    return sums


def ggd(sums: Floats) -> tuple[Floats, Floats]:
    """Shape alpha and variance of a generalised Gaussian of mean 0 (Mittal 2012, Eqs 4-6); sums (..., 6).

    alpha is the value of the grid 0.2, 0.201, ... 10 whose E v^2 / E|v|^2 is nearest to that of the samples.
    """
    count, _, _, below, above, absolute = np.moveaxis(sums, -1, 0)
    variance = (below + above) / count
    ratio = variance / (absolute / count) ** 2
    return _nearest(1 / _GAUSSIANITY[::-1], _ALPHA[::-1], ratio), variance


def aggd(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Shape alpha and the deviations left and right of an asymmetric generalised Gaussian (Mittal 2012, Eqs 8-13).

    Zeros are on neither side. A side without samples is NaN; alpha is then 0.2, as MATLAB's min of NaN has it.
    """
    count, negatives, positives, below, above, absolute = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = np.sqrt(below / negatives), np.sqrt(above / positives)
        g = left / right
        ratio = absolute**2 / (count * (below + above))
        wanted = ratio * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    return np.where(np.isnan(wanted), _ALPHA[0], _nearest(_GAUSSIANITY, _ALPHA, wanted)), left, right


def _nearest(rising: Floats, alphas: Floats, wanted: Floats) -> Floats:
    """The alpha whose entry in a rising table is nearest to the wanted value."""
    above = np.clip(np.searchsorted(rising, wanted), 1, len(rising) - 1)
    lower = wanted - rising[above - 1] <= rising[above] - wanted
    return alphas[above - lower]


def _tiles(pictures: int, height: int, width: int) -> Iterator[Tile]:
    """All the pictures, a few whole ones at a time, or a strip of one where one is too large."""
    step, rows = max(1, _STRIP // (height * width)), max(1, min(height, _STRIP // width))
    for picture in range(0, pictures, step):
        for row in range(0, height, rows):
            yield slice(picture, min(picture + step, pictures)), slice(row, min(row + rows, height))


def _shifted(padded: NDArray[Entry], tile: Tile, shift: Shift) -> NDArray[Entry]:
    """What numpy.roll by `shift` brings onto the tile; `padded` has one value more on each side."""
    (which, rows), (down, right) = tile, shift
    width = padded.shape[2] - 2
    return padded[which, 1 + rows.start - down : 1 + rows.stop - down, 1 - right : 1 - right + width]


def _add(sums_N6: Floats, samples: Floats, counted: Mask | None) -> None:
    samples = samples.reshape(len(samples), -1)
    sums_N6[:, 0] += samples.shape[1] if counted is None else np.count_nonzero(counted, axis=(1, 2))
    sums_N6[:, 1] += [np.count_nonzero(row) for row in samples < 0]
    sums_N6[:, 2] += [np.count_nonzero(row) for row in samples > 0]
    absolute = np.abs(samples)
    sums_N6[:, 5] += absolute.sum(1)
    # v - |v| and v + |v| are exactly twice the negative and twice the positive part
    for side, part in ((3, np.subtract), (4, np.add)):
        twice = part(samples, absolute)
        sums_N6[:, side] += np.einsum("nk,nk->n", twice, twice) / 4
