"""What every metric does first: check the pixels, make them luminance, crop to what is judged.

The grey levels of all metrics are 0..255, as float64: each constant in them assumes that scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqm.errors import ImageError, NotScorable

# BT.601 as MATLAB's rgb2gray has it; the trained metrics were trained on its output
_LUMINANCE = np.array([0.298936021293775, 0.587043074451121, 0.114020904255103])
_STRIP = 32_768  # pixels converted at once
MIN_SIDE = 16  # pixels; below, the coarser scales of most metrics are empty


def luminance(pixels: ArrayLike) -> NDArray[np.float64]:
    """Grey levels (H, W) float64 of a picture on 0..255, grey (H, W) or colour (H, W, 3).

    Colour becomes BT.601 luminance rounded to whole levels, as MATLAB's rgb2gray does with 8-bit pictures; colour finer
    than 8 bit is not rounded. Grey is used as it is. Raises ImageError for other shapes, and for NaN or infinity.
    """
    checked = _checked(pixels)
    if checked.ndim == 2:
        return _levels(checked)
    grey_HW, whole = np.empty(checked.shape[:2]), True
    for rows in _strips(checked):
        strip = _levels(checked[rows])
        whole = whole and np.array_equal(strip, np.rint(strip))
        grey_HW[rows] = strip @ _LUMINANCE
    if whole:
        grey_HW += 0.5
        np.floor(grey_HW, out=grey_HW)
    return grey_HW


def channel_mean(pixels: ArrayLike) -> NDArray[np.float64]:
    """(R + G + B) / 3, (H, W) float64, not rounded; grey is used as it is. Raises ImageError as `luminance`."""
    checked = _checked(pixels)
    if checked.ndim == 2:
        return _levels(checked)
    mean_HW = np.empty(checked.shape[:2])
    for rows in _strips(checked):
        _levels(checked[rows]).mean(2, out=mean_HW[rows])
    return mean_HW


def judged(
    grey_HW: NDArray[np.float64], mask_HW: NDArray[np.bool_] | None, metric: str, side: int = MIN_SIDE
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    """The picture and its mask cropped to the mask's bounding box, so that air around the anatomy does not count.

    The mask comes back as None where everything is judged. Raises ImageError for a mask of another shape; NotScorable
    where nothing is judged, or where what is left is smaller than `side` pixels on a side.
    """
    if mask_HW is not None:
        if mask_HW.dtype != bool or mask_HW.shape != grey_HW.shape:
            raise ImageError(
                f"a mask of {mask_HW.dtype} {mask_HW.shape} for a picture of {grey_HW.shape}; "
                "wanted bool of the picture's shape, True where it is to be judged"
            )
        rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
        if not len(rows):
            raise NotScorable(f"{metric}: nothing to judge, the whole picture is masked")
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        grey_HW, mask_HW = np.ascontiguousarray(grey_HW[box]), np.ascontiguousarray(mask_HW[box])
        if mask_HW.all():
            mask_HW = None
    if min(grey_HW.shape) < side:
        height, width = grey_HW.shape
        raise NotScorable(f"{metric}: {height}x{width} pixels to judge; it needs at least {side} on each side")
    return grey_HW, mask_HW


def _checked(pixels: ArrayLike) -> NDArray[Any]:
    checked = np.asarray(pixels)
    if checked.dtype.kind not in "buif":
        raise ImageError(f"pixels of type {checked.dtype}; a metric needs real numbers on 0..255")
    if checked.ndim not in (2, 3) or (checked.ndim == 3 and checked.shape[2] != 3):
        raise ImageError(f"pixels of shape {checked.shape}; a metric needs grey (H, W) or colour (H, W, 3)")
    return checked


def _levels(checked: NDArray[Any]) -> NDArray[np.float64]:
    """A float64 copy, contiguous. Raises ImageError for NaN or infinity."""
    levels = checked.astype(np.float64, order="C")
    if not np.isfinite(levels).all():
        raise ImageError("NaN or infinite pixels; replace them before a metric sees them")
    return levels


def _strips(colour: NDArray[Any]) -> Iterator[slice]:
    """The rows of a colour picture, some at a time: float64 copies of all its channels would take 24 bytes a pixel."""
    step = max(1, _STRIP // max(1, colour.shape[1]))
    for first in range(0, len(colour), step):
        yield slice(first, first + step)
