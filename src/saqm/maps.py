"""Where a score comes from: windows' values spread over the picture's pixels, and what a window attends to.

Axes: N windows, H W image, Q positions along a side of a window's features (8).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saqm.engine import Engine, attend
from saqm.errors import ModelFileError, SaqmError
from saqm.image import Image
from saqm.modelfile import read_header
from saqm.patches import Windows, cut

if TYPE_CHECKING:
    from saqm.scorer import Scorer


@dataclass(frozen=True, eq=False)
class QualityMap:
    """Where the score comes from.

    score_HW: float32, what the windows around each pixel say, in the score's units: 0 to 100, higher is better (a
    single place may lie outside), NaN where no window was judged.
    weight_HW: float64, the pixel's share in the map's mean. Sums to 1; 0 where no window was judged.
    stride: pixels from window to window; at the stride of the score, `mean` is the score.
    """

    score_HW: NDArray[np.float32]
    weight_HW: NDArray[np.float64]
    stride: int

    @property
    def mean(self) -> float:
        """The map's weighted mean: the score of the same stride, before clipping, to the rounding of float32 (1e-4)."""
        judged = self.weight_HW > 0
        return float(np.sum(self.weight_HW[judged] * self.score_HW[judged], dtype=np.float64))


def in_score_units(
    raw_N: NDArray[np.floating],
    pooled_raw: float,
    to_score: Callable[[NDArray[np.floating]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Windows' raw values in the score's units, (N,), so that their weighted mean is the image's score exactly.

    pooled_raw: the windows' weighted mean, whose score is `to_score(pooled_raw)`. to_score: monotone, element by
    element. A curve does not commute with a mean, so the windows go along a straight line through the image's own
    point: score + slope * (raw - pooled). The slope is the one that brings them nearest, in least squares, to
    `to_score(raw)`, what an image of nothing but such windows would score; a straight `to_score` is met exactly.
    """
    score = float(to_score(np.asarray(pooled_raw, np.float64)))
    apart_N = np.asarray(raw_N, np.float64) - pooled_raw
    spread = float(apart_N @ apart_N)
    slope = float(apart_N @ (to_score(raw_N) - score)) / spread if spread else 0.0
    return np.asarray(score + slope * apart_N)


def spread_windows(
    windows: Windows, score_N: NDArray[np.float64], weight_N: NDArray[np.floating], stride: int, shape: tuple[int, int]
) -> QualityMap:
    """The map of windows that lie `stride` pixels apart in an image of `shape`; scores in the score's units.

    Each window gives its share of the image's score to the judged pixels around its centre, by a raised cosine as wide
    as the window, or two strides where that is more: neighbours run into each other without an edge. What a window
    gives sums to its share whatever the taper, so the map's weighted mean is the windows' weighted mean.
    """
    patch, side = windows.patch, max(windows.patch, 2 * stride)
    reach = (side - patch) // 2  # of the taper beyond its window
    taper = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    judged, total, weight = (np.zeros([length + 2 * reach for length in shape]) for _ in range(3))
    for top, left in windows.positions_N2 + reach:
        judged[top : top + patch, left : left + patch] = 1
    share_N = np.asarray(weight_N, np.float64) / np.sum(weight_N, dtype=np.float64)
    for (top, left), score, share in zip(windows.positions_N2, score_N, share_N, strict=True):
        around = np.s_[top : top + side, left : left + side]
        given = np.outer(taper, taper) * judged[around]
        given *= share / given.sum()
        total[around] += score * given
        weight[around] += given
    inner = np.s_[reach : reach + shape[0], reach : reach + shape[1]]
    score_HW = np.full(shape, np.nan, np.float32)
    np.divide(total[inner], weight[inner], out=score_HW, where=judged[inner] > 0, casting="same_kind")
    return QualityMap(score_HW, weight[inner], stride)


@dataclass(frozen=True, eq=False)
class Attention:
    """What one position of a window attends to (paper, Eqs 1 and 2).

    weight_QQ: float32, how much each position of the window counts in the context of the position asked; sums to 1.
    query: row and column of that position, 0 to Q - 1. corner, side: the window, in pixels of the image.
    gamma: what the context counts beside the position's own feature, which counts 1 (Eq 3); near 0 attention does
    next to nothing, whatever it looks like.
    """

    weight_QQ: NDArray[np.float32]
    query: tuple[int, int]
    corner: tuple[int, int]
    side: int
    gamma: float


def attention(image: Image, scorer: Scorer, at: tuple[int, int]) -> Attention:
    """What the position under a pixel (row, column) attends to, in the judged window whose centre is nearest to it.

    Needs torch and the model's .safetensors file. Raises SaqmError for a pixel that no window judges, and for a scorer
    without windows; ModelFileError without that file, MissingExtra without torch, NotScorable as scoring does.
    """
    engine: Engine | None = getattr(scorer, "engine", None)
    if engine is None:
        raise SaqmError(f"{scorer.name} judges the picture as a whole: it has no windows that attend to anything")
    height, width = image.mask.shape
    row, column = at
    if not (0 <= row < height and 0 <= column < width):
        raise SaqmError(f"no pixel ({row}, {column}) in a picture of {height} rows and {width} columns")
    windows = cut(image, engine.preparation)
    within_N2 = np.array(at) - windows.positions_N2
    around = np.flatnonzero(((within_N2 >= 0) & (within_N2 < windows.patch)).all(1))
    if not len(around):
        raise SaqmError(f"pixel ({row}, {column}) lies in no window that is judged: choose one inside the mask")
    off_centre = np.abs(within_N2[around] + 0.5 - windows.patch / 2).max(1)
    chosen = around[off_centre.argmin()]
    attention_NLJ, gamma = attend(_weights(engine), windows.take(np.array([chosen])))
    positions = math.isqrt(attention_NLJ.shape[-1])
    query_row, query_column = (int(pixel) * positions // windows.patch for pixel in within_N2[chosen])
    top, left = map(int, windows.positions_N2[chosen])
    weight_QQ = attention_NLJ[0, query_row * positions + query_column].reshape(positions, positions)
    return Attention(weight_QQ, (query_row, query_column), (top, left), windows.patch, gamma)


def _weights(engine: Engine) -> Path:
    """The .safetensors file of an engine's model, beside its .onnx."""
    path = engine.path.with_suffix(".safetensors")
    if not path.is_file():
        raise ModelFileError(f"{engine.path}: attention needs the model's weights, {path.name}, beside it")
    beside, own = read_header(path), engine.header
    if (beside.name, beside.version) != (own.name, own.version):
        raise ModelFileError(
            f"{path}: {beside.name} {beside.version}, not the weights of {own.name} {own.version} beside it"
        )
    return path
