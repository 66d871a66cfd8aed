"""BIQAA: how much the information of a picture depends on direction.

Source: S. Gabarda, G. Cristobal, "Blind image quality assessment through anisotropy", JOSA A 24(12), B42-B51, 2007;
exact, after the authors' MATLAB of 2011 (its standard deviation has N - 1; the paper's has N). HIGHER is better. Range
0 (constant) to about 0.02 on real pictures. The authors rank versions of one scene with it; it is not calibrated
between scenes, and flat background, whose entropy is 0, dilutes it. JPEG may raise it: block edges have a direction.

Ours are the mask and the smallest side.
"""

from __future__ import annotations

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike, NDArray

from saqm.errors import NotScorable
from saqm.metrics._pixels import channel_mean, judged

DIRECTIONS = (0, 30, 60, 90, 120, 150)  # degrees
_REACH = 4  # pixels; the line through a pixel has 9
# (row, column) of the line's first four pixels for each direction, the farthest first; the other four mirror them
_LINES = (
    ((0, -4), (0, -3), (0, -2), (0, -1)),
    ((2, -4), (2, -3), (1, -2), (1, -1)),
    ((-4, 2), (-3, 2), (-2, 1), (-1, 1)),
    ((-4, 0), (-3, 0), (-2, 0), (-1, 0)),
    ((-4, -2), (-3, -2), (-2, -1), (-1, -1)),
    ((-2, -4), (-2, -3), (-1, -2), (-1, -1)),
)
_EPS = np.finfo(np.float64).eps
_STRIP = 16384  # pixels worked on at a time, so that they stay in the cache


def biqaa(pixels: ArrayLike, *, mask: NDArray[np.bool_] | None = None) -> float:
    """BIQAA of a picture, (H, W) or (H, W, 3) on 0..255: the spread of the six entropies. HIGHER is better.

    Does not change with the contrast, but does with an offset of the grey levels. Raises as `biqaa_entropies`.
    """
    return float(biqaa_entropies(pixels, mask=mask).std(ddof=1))


def biqaa_entropies(pixels: ArrayLike, *, mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """The mean Renyi entropy of order 3 in each of the DIRECTIONS, (6,), each 0..1.

    The entropy of a pixel is that of its pseudo-Wigner distribution along the direction, over 8 frequencies. With a
    mask only pixels count whose 9x9 neighbourhood is inside. Raises ImageError for what is no picture; NotScorable
    below 16 pixels on a side, or where no such neighbourhood is inside the mask.
    """
    grey_HW, mask_HW = judged(channel_mean(pixels), mask, "biqaa")
    height, width = grey_HW.shape
    outside_HW, count = None, height * width
    if mask_HW is not None:
        inside_HW = scipy.ndimage.minimum_filter(mask_HW, 2 * _REACH + 1, mode="constant", cval=0)
        outside_HW, count = ~inside_HW, int(np.count_nonzero(inside_HW))
        if not count:
            raise NotScorable("biqaa: no 9x9 neighbourhood lies wholly inside the mask; judge a larger area")
    padded = np.ascontiguousarray(np.pad(grey_HW, _REACH, mode="symmetric"))  # sums follow the order in memory
    padded += _EPS
    step = max(1, _STRIP // width)
    total = np.zeros(len(DIRECTIONS))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        strip = padded[top : bottom + 2 * _REACH]
        for number, line in enumerate(_LINES):
            entropy_HW = _entropy(strip, line)
            if outside_HW is not None:
                entropy_HW[outside_HW[top:bottom]] = 0
            total[number] += entropy_HW.sum()
    total /= count
    return total


def _entropy(strip: NDArray[np.float64], line: tuple[tuple[int, int], ...]) -> NDArray[np.float64]:
    """The entropy, 0..1, along a line through each pixel of a strip that has _REACH more pixels on every side."""
    height, width = strip.shape[0] - 2 * _REACH, strip.shape[1] - 2 * _REACH

    def at(row: int, column: int) -> NDArray[np.float64]:
        return strip[_REACH + row :, _REACH + column :][:height, :width]

    farthest, far, near, nearest = (at(row, column) * at(-row, -column) for row, column in line)
    centre = at(0, 0) ** 2
    # the 8-point transform of these products is real and even: five frequencies, of which three stand for two each
    even, odd = farthest + centre, farthest - centre
    total, difference = 2 * (far + nearest), np.sqrt(2) * (far - nearest)
    near *= 2
    outer = even + near
    spectrum = (outer + total, odd + difference, even - near, odd - difference, outer - total)
    powers = [amplitude * amplitude for amplitude in spectrum]
    norm = _over_all_eight(powers)
    shares = [power / norm for power in powers]
    cubes = _over_all_eight([share * share * share for share in shares])
    # Renyi's entropy is -log2(cubes) / 2, at most 3 for 8 frequencies; as released 0 where rounding left that range
    cubes[(cubes > 1) | (cubes < 1 / 64)] = 1
    entropy: NDArray[np.float64] = np.log(cubes)
    entropy /= -6 * np.log(2)
    return entropy


def _over_all_eight(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The sum over the eight frequencies, and eps, as released; the middle three are their mirror images' too."""
    return values[0] + values[4] + 2 * (values[1] + values[2] + values[3]) + _EPS
