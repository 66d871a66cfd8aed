"""Marziliano blur: mean width of vertical edges, in pixels. Lower is better (wider = blurrier), but noise lowers it.

P. Marziliano, F. Dufaux, S. Winkler & T. Ebrahimi, "A no-reference perceptual blur metric", ICIP 2002. Published are:
luminance, vertical edges by a thresholded Sobel filter, for each edge pixel the way along its row to the nearest
extremum on both sides, and the mean of these widths. The threshold and the thinning are not: they are those of MATLAB's
`edge(..., "sobel", ..., "vertical")`, whose map ours equals pixel by pixel. What stops the way is a choice among three:

* "strict" (default): a plateau or a change of sign stops it; edge pixels without a slope do not count.
* "asu": as in the CPBD 1.0 release of Arizona State University, whose widths ours equal pixel by pixel. Fixed threshold
  of 2 grey levels; edge pixels on the rim or not within 22.5 degrees of vertical do not count; 101 pixels each side.
* "cross": plateaus are crossed, and all edge pixels count (as in matteonaccari/vcu). Very wide on flat content.

The rule decides the number: store it with the score. Range: from 1, about 20 for heavy blur; 91 with "cross".
Grey levels are rounded to integers first, so that ties are exact.
"""

from __future__ import annotations

from math import isqrt
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from saqm.errors import ImageError, NotScorable, SaqmError
from saqm.metrics._pixels import judged, luminance

Rule = Literal["strict", "asu", "cross"]
Levels = NDArray[np.int32]
Mask = NDArray[np.bool_] | None
Places = tuple[NDArray[np.intp], NDArray[np.intp]]

ASU_THRESHOLD = 2.0  # grey levels per pixel
ASU_REACH = 101  # pixels on each side
LARGEST = 2**24  # grey level: a Sobel sum of eight still fits in 32 bit


def marziliano(pixels: ArrayLike, *, mask: Mask = None, rule: Rule = "strict") -> float:
    """Mean width of vertical edges in pixels, lower is better. `pixels`: (H, W) or (H, W, 3) on 0..255.

    `mask`: bool (H, W), True = judged; see `edge_widths`. Raises NotScorable where no edge has a width, as in a
    constant picture, or below 16 pixels on a side.
    """
    widths = edge_widths(pixels, mask=mask, rule=rule)
    counted = widths[widths > 0]
    if not len(counted):
        where = "" if mask is None else " inside the mask"
        raise NotScorable(
            f"marziliano: no vertical edge with a width{where}; the picture is too flat to measure its blur"
        )
    return float(counted.mean())


def edge_widths(pixels: ArrayLike, *, mask: Mask = None, rule: Rule = "strict") -> Levels:
    """Width of every edge pixel in pixels, 0 elsewhere and where the rule skips it: int32, (H, W) of the bounding box.

    With a mask an edge counts where its map is certain (see `edge_map`) and its whole way, one pixel beyond each end
    included, is judged: a width that the mask cuts short is no width.
    """
    if rule not in get_args(Rule):
        raise SaqmError(f"unknown rule {rule!r}; choose {', '.join(get_args(Rule))}")
    levels, mask = _levels(pixels, mask)
    edges = _edges(levels, mask, ASU_THRESHOLD if rule == "asu" else None)
    rows, columns = np.nonzero(edges)
    at = rows, columns
    slopes = _slopes(levels, at, rule)
    left, right = _ends(levels, at, slopes, rule)
    counts = slopes[0] != 0
    if mask is not None:
        counts &= _all_judged(mask, rows, left - 1, right + 1)
    widths = np.zeros(levels.shape, np.int32)
    widths[at] = np.where(counts, right - left, 0)
    return widths


def edge_map(pixels: ArrayLike, *, mask: Mask = None, threshold: float | None = None) -> NDArray[np.bool_]:
    """Vertical edges, thinned: bool, (H, W) of the mask's bounding box.

    `threshold`: in grey levels per pixel; None: twice the root mean square of the horizontal gradient. With a mask the
    mean is taken, and edges are looked for, only where no pixel outside the mask has a part in them.
    """
    return _edges(*_levels(pixels, mask), threshold)


def _levels(pixels: ArrayLike, mask: Mask) -> tuple[Levels, Mask]:
    grey, mask = judged(luminance(pixels), mask, "marziliano")
    if max(grey.max(), -grey.min()) > LARGEST:
        raise ImageError(f"grey levels from {grey.min():g} to {grey.max():g}; a metric needs 0..255: window them first")
    return np.floor(grey + 0.5).astype(np.int32), mask


def _edges(levels: Levels, mask: Mask, threshold: float | None) -> NDArray[np.bool_]:
    framed = np.pad(levels, 1, "edge")
    across = _sobel(framed.T).T
    along = _sobel(framed)
    np.abs(across, out=across)
    np.abs(along, out=along)
    sure = None if mask is None else ndimage.binary_erosion(mask, np.ones((3, 3)), border_value=1)

    # squares are compared through their roots: for integers b > 4 mean(b) is |gx| > isqrt(4 mean(b))
    if threshold is None:
        sample = (across if sure is None else across[sure]).ravel().astype(np.int64)
        above = across > isqrt(4 * int(sample @ sample) // max(sample.size, 1))
    else:
        above = across > 8 * threshold
    peak = np.pad(across, 1)
    centre, left, right = peak[1:-1, 1:-1], peak[1:-1, :-2], peak[1:-1, 2:]
    up, down = peak[:-2, 1:-1], peak[2:, 1:-1]
    # <= on one side: the two columns beside a perfect step tie, and one of them is the edge
    ridge = (across >= along) & (left <= centre) & (centre > right)
    ridge |= (up <= centre) & (centre > down)
    ridge &= above
    if sure is not None:
        ridge &= ndimage.binary_erosion(sure, border_value=1)
    return ridge


def _sobel(framed: Levels) -> Levels:
    """Smoothed along the last axis, difference along the first; the frame of one pixel goes."""
    step = framed[2:] - framed[:-2]
    smooth: Levels = step[:, :-2] + 2 * step[:, 1:-1] + step[:, 2:]
    return smooth


def _slopes(levels: Levels, at: Places, rule: Rule) -> tuple[Levels, Levels]:
    """Does the edge rise (1) or fall (-1), on its left and on its right; both 0 where it does not count."""
    (rows, columns), (height, width) = at, levels.shape
    here = levels[at]
    before, after = levels[rows, np.maximum(columns - 1, 0)], levels[rows, np.minimum(columns + 1, width - 1)]
    if rule == "cross":
        return np.where(here > before, 1, -1), np.where(after > here, 1, -1)
    sign = np.sign(after - before)
    if rule == "asu":
        above, below = levels[np.maximum(rows - 1, 0), columns], levels[np.minimum(rows + 1, height - 1), columns]
        gx, gy = (after - before).astype(np.int64), (below - above).astype(np.int64)
        sign[(np.abs(gx) + np.abs(gy)) ** 2 >= 2 * gx**2] = 0  # |gy| >= tan(22.5 degrees) |gx|
        sign[gx == 0] = 1  # CPBD sets the angle to 0 there
        sign[(rows == 0) | (rows == height - 1) | (columns == 0) | (columns == width - 1)] = 0
    return sign, sign


def _ends(levels: Levels, at: Places, slopes: tuple[Levels, Levels], rule: Rule) -> Places:
    """Columns of the extrema to the left and to the right of each edge pixel; its own where it does not count."""
    (rows, columns), (height, width) = at, levels.shape
    steps = np.zeros((height, width + 1), np.int8)  # steps[y, x]: from pixel x - 1 to pixel x
    steps[:, 1:-1] = np.sign(np.diff(levels))
    reach = 0 if rule == "strict" else 1  # the other two take the steps to the neighbours as given
    first = rows * (width + 1)  # step of the row, in the flattened steps
    from_left = first + np.maximum(columns - reach, 0)
    from_right = first + np.minimum(columns + reach, width - 1) + 1
    left, right = columns.copy(), columns.copy()
    for sign in (1, -1):
        stops = steps == -sign if rule == "cross" else steps != sign
        stops[:, 0] = stops[:, -1] = True
        places = np.flatnonzero(stops)
        ours = slopes[0] == sign
        left[ours] = places[np.searchsorted(places, from_left[ours], "right") - 1] - first[ours]
        ours = slopes[1] == sign
        right[ours] = places[np.searchsorted(places, from_right[ours])] - first[ours] - 1
    if rule == "asu":
        left, right = np.maximum(left, columns - ASU_REACH), np.minimum(right, columns + ASU_REACH)
    return left, right


def _all_judged(
    mask: NDArray[np.bool_], rows: NDArray[np.intp], left: NDArray[np.intp], right: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Is the row judged from left to right, both included, as far as the picture goes?"""
    height, width = mask.shape
    outside = np.zeros((height, width + 1), np.int32)  # [y, x]: pixels of row y before x that are not judged
    np.cumsum(~mask, axis=1, out=outside[:, 1:])
    none: NDArray[np.bool_] = outside[rows, np.minimum(right, width - 1) + 1] == outside[rows, np.maximum(left, 0)]
    return none
