"""Image -> windows -> pooled score: the one cutter, for training, scoring and maps. And grey levels for the metrics.

Axes: N windows, C channels (always 3, Table 1 row 1), H W image, P side of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saqm.errors import NotScorable, SaqmError
from saqm.image import Image

PATCH_SIDE = 32  # pixels; paper, Table 1, first row
CHUNK = 16  # windows per batch: fixed, so that the same window meets the same arithmetic whatever else is scored

Channels = Literal["gray", "rgb", "bands"]

# Bands: fine detail apart from shading, so that a narrow network sees noise and texture at once.
BINOMIAL = np.array([1, 4, 6, 4, 1], np.float32) / 16
_FINE_SCALE, _MIDDLE_SCALE = 2.0, 4.0  # grey levels of 255 at which asinh turns from linear to logarithmic
_SHADE_CENTRE, _SHADE_SCALE = 110.0, 70.0  # grey levels of 255
_WHOLE = 1e-3  # grey levels of 255: float32 pixels of an 8-bit picture lie nearer to whole numbers than this
MARGIN = 6  # pixels around a window that its bands see: two taps, and two taps dilated by two


@dataclass(frozen=True)
class Preparation:
    """How windows are cut from an image and what the network is given; travels in the model file's header.

    channels: "gray" (luminance, three times), "rgb", or "bands" (fine, middle and shade of the luminance).
    mean, sd: per channel, subtracted and divided after the channels are made (the identity for "bands").
    min_coverage: least share of a window inside the mask for the window to be judged, 0 to 1.
    """

    channels: Channels = "bands"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sd: tuple[float, float, float] = (1.0, 1.0, 1.0)
    patch: int = PATCH_SIDE
    stride: int = PATCH_SIDE
    min_coverage: float = 0.95


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of one image that are to be judged.

    planes_CHW: float32, the prepared channels of the box around these windows, whose top left pixel is `corner`.
    positions_N2: int, top row and left column of each judged window in the image, in reading order.
    total: how many windows the grid has, judged or masked.
    """

    planes_CHW: NDArray[np.float32]
    positions_N2: NDArray[np.int_]
    patch: int
    total: int
    corner: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.positions_N2)

    def take(self, index: NDArray[np.int_] | slice) -> NDArray[np.float32]:
        """The chosen windows, float32 (N, 3, P, P)."""
        views = np.lib.stride_tricks.sliding_window_view(self.planes_CHW, (self.patch, self.patch), axis=(1, 2))
        rows, columns = (self.positions_N2[index] - self.corner).T
        return np.ascontiguousarray(views[:, rows, columns].swapaxes(0, 1))

    def batches(self, size: int = CHUNK) -> Iterator[NDArray[np.float32]]:
        """All windows in order, `size` at a time: memory is bounded by `size`, whatever the image."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


def in_full_batches(several: Sequence[Windows], size: int = CHUNK) -> Iterator[NDArray[np.float32]]:
    """The windows of several images in order, `size` at a time across their borders; the last batch may be smaller."""
    held: list[NDArray[np.float32]] = []
    room = size
    for windows in several:
        start = 0
        while start < len(windows):
            held.append(windows.take(slice(start, start + room)))
            start += len(held[-1])
            room -= len(held[-1])
            if room == 0:
                yield np.concatenate(held) if len(held) > 1 else held[0]
                held, room = [], size
    if held:
        yield np.concatenate(held)


def luminance(image: Image) -> NDArray[np.float32]:
    """BT.601 luminance on 0..255, (H, W), not rounded; with `grey_levels` the only place that knows [0, 255]."""
    pixels = image.pixels
    if pixels.ndim == 3:
        pixels = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(pixels * np.float32(255), np.float32)


def grey_levels(image: Image) -> NDArray[np.float64]:
    """The pixels on 0..255 as the classical metrics take them, float64 (H, W) or (H, W, 3).

    An 8-bit picture comes back in its own whole numbers: where every pixel lies within 1e-3 of one, all are rounded.
    """
    levels = np.multiply(image.pixels, 255.0, dtype=np.float64)
    whole = np.rint(levels)
    off = levels - whole
    return whole if max(off.max(), -off.min()) <= _WHOLE else levels


def refuse_blank(pixels: NDArray[np.floating], mask: NDArray[np.bool_]) -> None:
    """Raise NotScorable where nothing is judged, or every judged pixel is the same; pixels (H, W) or (H, W, 3)."""
    if not mask.any():
        raise NotScorable("nothing to judge: the mask is empty")
    inside = pixels[mask]
    if not np.ptp(inside, axis=0).any():  # per channel: one plain colour is constant, too
        raise NotScorable(f"constant image: every judged pixel is {np.array2string(inside[0], precision=4)}")


def planes(image: Image, preparation: Preparation) -> NDArray[np.float32]:
    """The three channels that the network is given, float32 (3, H, W)."""
    if preparation.channels == "rgb":
        made = (image.pixels if image.pixels.ndim == 3 else np.repeat(image.pixels[..., None], 3, 2)).transpose(2, 0, 1)
    elif preparation.channels == "gray":
        made = np.repeat((luminance(image) / 255)[None], 3, 0)
    else:
        grey = luminance(image)
        smooth = _smooth(grey, 1)
        smoother = _smooth(smooth, 2)
        made = np.stack(compress((grey - smooth, smooth - smoother, smoother), np.arcsinh))
    mean, sd = np.asarray(preparation.mean, np.float32), np.asarray(preparation.sd, np.float32)
    return np.ascontiguousarray((made - mean[:, None, None]) / sd[:, None, None], np.float32)


def compress(bands: tuple[Any, Any, Any], asinh: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Fine, middle and shade in grey levels of 255, brought to about -3..3; the same for arrays and for tensors."""
    fine, middle, shade = bands
    return asinh(fine / _FINE_SCALE), asinh(middle / _MIDDLE_SCALE), (shade - _SHADE_CENTRE) / _SHADE_SCALE


def grid(height: int, width: int, patch: int, stride: int) -> NDArray[np.int_]:
    """Top-left corners (N, 2) in reading order; the last row and column are shifted inside: no pixel is invented."""

    def starts(length: int) -> NDArray[np.int_]:
        return np.unique(np.append(np.arange(0, length - patch + 1, stride), length - patch))

    return np.stack(np.meshgrid(starts(height), starts(width), indexing="ij"), -1).reshape(-1, 2)


def coverage(mask: NDArray[np.bool_], positions_N2: NDArray[np.int_], patch: int) -> NDArray[np.float64]:
    """Share of each window that lies inside the mask, (N,), 0 to 1."""
    top, left = positions_N2.T
    tops, row = np.unique(top, return_inverse=True)
    before = np.zeros((len(tops), mask.shape[1] + 1), np.int64)  # judged pixels of a row of windows, left of a column
    for at, first in enumerate(tops):
        np.cumsum(mask[first : first + patch].sum(0, dtype=np.int32), out=before[at, 1:])
    return np.asarray((before[row, left + patch] - before[row, left]) / patch**2)


def cut(image: Image, preparation: Preparation, stride: int | None = None) -> Windows:
    """The windows of an image that are to be judged.

    `stride` overrides the preparation's. Raises NotScorable for an image smaller than one window, a mask that leaves no
    window, or one constant value inside the mask, and SaqmError for a stride below 1.
    """
    height, width = image.mask.shape
    patch = preparation.patch
    stride = preparation.stride if stride is None else stride
    if stride < 1:
        raise SaqmError(f"stride of {stride} pixels; at least 1 is needed to move on")
    if min(height, width) < patch:
        raise NotScorable(f"image of {height}x{width} pixels is smaller than one {patch}x{patch} window")
    positions = grid(height, width, patch, stride)
    judged = positions[coverage(image.mask, positions, patch) >= preparation.min_coverage]
    refuse_blank(image.pixels, image.mask)
    if not len(judged):
        raise NotScorable(
            f"nothing to judge: no {patch}x{patch} window lies at least {preparation.min_coverage:.0%} inside the mask "
            f"({image.judged_share:.0%} of the picture)"
        )
    top, left = np.maximum(judged.min(0) - MARGIN, 0)  # nothing else is prepared, and the numbers are the same
    bottom, right = judged.max(0) + patch + MARGIN
    box = replace(image, pixels=image.pixels[top:bottom, left:right], mask=image.mask[top:bottom, left:right])
    return Windows(planes(box, preparation), judged, patch, len(positions), (int(top), int(left)))


def pool(scores_N: NDArray[np.floating], weights_N: NDArray[np.floating] | None = None) -> float:
    """The image's value from its windows': the mean (the paper), or the mean weighted by `weights_N` (positive)."""
    if weights_N is None:
        return float(np.mean(scores_N, dtype=np.float64))
    return float(np.average(np.asarray(scores_N, np.float64), weights=np.asarray(weights_N, np.float64)))


def _smooth(grey: NDArray[np.float32], dilation: int) -> NDArray[np.float32]:
    """Binomial low-pass of five taps, `dilation` apart, along both axes; borders repeat the edge pixel."""
    reach = 2 * dilation
    for axis in (0, 1):
        padding = [(reach, reach) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(grey, padding, mode="edge")
        height, width = grey.shape
        along = (slice(None),) * axis
        grey = BINOMIAL[0] * padded[:height, :width]
        for tap, weight in enumerate(BINOMIAL[1:], 1):
            shifted = padded[(*along, slice(tap * dilation, None))]
            grey += weight * shifted[:height, :width]
    return grey
