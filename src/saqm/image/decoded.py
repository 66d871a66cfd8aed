"""What a reader hands to the door: display-ready pixels of one frame, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError

BYTES_PER_PIXEL = 8  # what compressed data may grow to, per pixel of the limit: 16-bit colour and some header


@dataclass(frozen=True)
class Step:
    """One thing done to the pixels, and where its numbers came from: Step("window", {"center": 40, "from": "file"})."""

    name: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """The volume that a picture is a slice of, in the file's own voxel order, so that results can be laid over it.

    shape: voxels along i, j, k, and how many volumes. affine: (4, 4), voxel (i, j, k, 1) to RAS millimetres.
    to_voxel: (4, 3), the picture's (row, column, 1) to (i, j, k, volume), whole numbers.
    """

    shape: tuple[int, int, int, int]
    affine: tuple[tuple[float, ...], ...]
    to_voxel: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Decoded:
    """One frame or slice as a reader leaves it; the door adds foreground mask, path and sha256.

    pixels: float32 in [0, 1], (H, W) or (H, W, 3), display polarity, finite.
    valid: bool (H, W), False where a pixel is known to be no picture (padding, outside the region); None: all are.
    format: "dicom", "nifti", "nrrd", "mha", "png", "jpeg", "tiff", "bmp", "webp".
    frame: 0-based frame or slice; None when the file holds one image. frames: how many it holds.
    grid: of a slice, where it lies in its volume.
    values: (H, W), what the display was made from, in the file's own units after rescale; None for colour.
    unit: of the values, as the file names it.
    """

    pixels: NDArray[np.float32]
    format: str
    valid: NDArray[np.bool_] | None = None
    spacing_mm: tuple[float, float] | None = None  # between rows, between columns (DICOM's order)
    modality: str | None = None
    frame: int | None = None
    frames: int = 1
    uids: Mapping[str, str] = field(default_factory=dict)
    bits_stored: int | None = None
    transfer_syntax: str | None = None
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
    grid: Grid | None = None
    values: NDArray[Any] | None = None
    unit: str | None = None


def choose_frame(frame: int | None, count: int, name: str) -> int:
    """The frame to read; ImageError when one has to be chosen or the choice does not exist."""
    if frame is None:
        if count > 1:
            raise ImageError(f"{name}: {count} frames; choose one with frame=0..{count - 1}")
        return 0
    if not 0 <= frame < count:
        raise ImageError(f"{name}: no frame {frame}: {count} frames; choose one with frame=0..{count - 1}")
    return frame
