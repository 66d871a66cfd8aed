"""What a page is sent of an image, as bytes: its picture, the values behind it, its quality map. Nothing is written.

Each function takes a path and gives plain bytes, so that it can be called in a process of its own.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from saqm.image import DEFAULT_MAX_PIXELS, read_image, read_values

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from saqm.maps import QualityMap
    from saqm.scorer import Score

TOP = 65535  # of an unsigned integer of 16 bits


@dataclass(frozen=True)
class Packed:
    """Values of 16 bits: `data` is rows x columns, little-endian; value = low + (high - low) * v / 65535, in `unit`.

    center, width: the window that the file shows them by. inverted: whether small values are shown bright.
    """

    data: bytes
    rows: int
    columns: int
    low: float
    high: float
    center: float
    width: float
    unit: str | None
    inverted: bool


def picture_png(
    path: str,
    frame: int | None = None,
    *,
    window: tuple[float, float] | None = None,
    axis: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> bytes:
    """A frame as the scorer sees it, 8 bits, as PNG. Raises ImageError."""
    from PIL import Image as pillow

    image = read_image(path, frame, window, mask="none", axis=axis, max_pixels=max_pixels)
    return _png(pillow.fromarray(np.rint(image.pixels * 255).astype(np.uint8)))


def packed_values(
    path: str, frame: int | None = None, *, axis: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Packed:
    """The values of a grey frame over their full range: to half of 1/65535 of it. Raises ImageError, for colour too."""
    found = read_values(path, frame, axis=axis, max_pixels=max_pixels)
    low, high = float(found.values_HW.min()), float(found.values_HW.max())
    scaled = (found.values_HW - low) * (TOP / (high - low) if high > low else 0.0)
    rows, columns = scaled.shape
    data = np.rint(scaled).astype("<u2").tobytes()
    return Packed(data, rows, columns, low, high, *found.window, found.unit, found.inverted)


def heatmap_png(
    path: str,
    frame: int | None,
    quality_map: QualityMap,
    score: Score,
    *,
    window: tuple[float, float] | None = None,
    axis: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> bytes:
    """The map over the picture with its legend, as PNG. Raises ImageError, and NotScorable for what has no score."""
    from saqm.outputs.heatmap import heatmap

    image = read_image(path, frame, window, mask="none", axis=axis, max_pixels=max_pixels)
    return _png(heatmap(image, quality_map, score))


def packed_map(quality_map: QualityMap) -> tuple[bytes, int, int]:
    """The score of each pixel as little-endian floats of 32 bits, NaN where nothing was judged; rows and columns."""
    rows, columns = quality_map.score_HW.shape
    return quality_map.score_HW.astype("<f4").tobytes(), rows, columns


def _png(picture: Picture) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
