"""What a reader hands to the door: display-ready pixels of one frame, and what is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BYTES_PER_PIXEL = 8  # what compressed data may grow to, per pixel of the limit: 16-bit colour and some header


@dataclass(frozen=True)
class Step:
    """One thing done to the pixels, and where its numbers came from: Step("window", {"center": 40, "from": "file"})."""

    name: str
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Decoded:
    """One frame or slice as a reader leaves it; the door adds foreground mask, path and sha256.

    pixels: float32 in [0, 1], (H, W) or (H, W, 3), display polarity, finite.
    valid: bool (H, W), False where a pixel is known to be no picture (padding, outside the region); None: all are.
    format: "dicom", "nifti", "nrrd", "mha", "png", "jpeg", "tiff", "bmp", "webp".
    frame: 0-based frame or slice; None when the file holds one image. frames: how many it holds.
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
