"""Files become images here, and nowhere else: DICOM, NIfTI, MHA/NRRD, PNG, JPEG, TIFF, BMP, WebP.

Conventions settled at this door: pixels are float32 in [0, 1], grey (H, W) or colour (H, W, 3), with every step that
led there in `source.steps`; `mask` is True where there is something to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from saqm.image.decoded import Step

DEFAULT_MAX_PIXELS = 200_000_000  # one frame; a file that announces more is refused before it is decoded

MaskMode = Literal["auto", "none"]

__all__ = ["DEFAULT_MAX_PIXELS", "Image", "MaskMode", "Source", "Step"]


@dataclass(frozen=True)
class Source:
    """Where an image came from and what was done to it. Holds no patient names."""

    path: str
    sha256: str  # of the whole file (of the member, inside a zip)
    format: str  # "dicom", "nifti", "nrrd", "mha", "png", "jpeg", "tiff", "bmp", "webp", "array"
    frame: int | None = None  # 0-based frame or slice; None for a single image
    frames: int = 1  # how many the file holds
    uids: Mapping[str, str] = field(default_factory=dict)  # study, series, instance, sop_class
    bits_stored: int | None = None
    transfer_syntax: str | None = None
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Image:
    """A picture ready to be judged.

    pixels: float32 in [0, 1], (H, W) or (H, W, 3), display polarity (air black, MONOCHROME1 already inverted).
    mask: bool (H, W), True where there is anatomy to judge (not air, not outside the ultrasound sector, not text).
    """

    pixels: NDArray[np.float32]
    mask: NDArray[np.bool_]
    spacing_mm: tuple[float, float] | None
    modality: str | None  # DICOM's word: CT, MR, US, CR, DX, MG, XA, NM, OT; None when the file does not say
    source: Source

    @property
    def judged_share(self) -> float:
        """Share of the picture inside the mask, 0 to 1."""
        return float(self.mask.mean())
