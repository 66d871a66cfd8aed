"""Files become images here, and nowhere else: DICOM, NIfTI, MHA/NRRD, PNG, JPEG, TIFF, BMP, WebP.

Conventions settled at this door: pixels are float32 in [0, 1], grey (H, W) or colour (H, W, 3), with every step that
led there in `source.steps`; `mask` is True where there is something to judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqm.errors import ImageError
from saqm.image.decoded import BYTES_PER_PIXEL, Decoded, Grid, Step
from saqm.image.find import MEMBER, find_images, read_member

if TYPE_CHECKING:
    from saqm.image.dicom import Acquisition

DEFAULT_MAX_PIXELS = 200_000_000  # one frame; a file that announces more is refused before it is decoded

MaskMode = Literal["auto", "none"]

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "Grid",
    "Image",
    "MaskMode",
    "Source",
    "Step",
    "Values",
    "find_images",
    "from_array",
    "read_acquisition",
    "read_frames",
    "read_image",
    "read_values",
    "sha256_of",
]

HEAD = 4096  # bytes that tell the format


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
    grid: Grid | None = None  # where it lies in its volume (NIfTI, NRRD, MHA)


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


@dataclass(frozen=True, eq=False)
class Values:
    """The values behind a grey picture.

    values_HW: float64 in rescaled units. window: centre and width that `read_image` shows them by, or nearly so where
    the file has a curve instead. unit: "HU", say; None: not said. inverted: whether small values are shown bright.
    """

    values_HW: NDArray[np.float64]
    window: tuple[float, float]
    unit: str | None
    inverted: bool


def read_image(
    path: str | Path,
    frame: int | None = None,
    window: tuple[float, float] | None = None,
    *,
    mask: MaskMode = "auto",
    axis: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image:
    """One picture from a file, or from a member of an archive named "archive.zip!/member.dcm".

    frame: 0-based frame or slice; needed when the file holds several. window: (center, width) in rescaled units; None
    takes the file's first, else the modality's default. axis: along which a volume is sliced; other files have none.
    mask: "none" judges every pixel. Raises ImageError, naming the file, for whatever cannot be read.
    """
    mask = _mask_mode(mask, str(path))
    data, name, digest = _opened(path, max_pixels)
    reader = _reader(data, name)
    decoded: Decoded = reader.read(data, name, frame=frame, window=window, axis=axis, max_pixels=max_pixels)
    return _image(decoded, name, digest, mask)


def read_frames(
    path: str | Path,
    window: tuple[float, float] | None = None,
    *,
    mask: MaskMode = "auto",
    axis: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[Image]:
    """Every frame or slice of a file in order, one in memory at a time; a single image comes once.

    Arguments and errors are those of `read_image`; a broken frame raises when it is reached.
    """
    mask = _mask_mode(mask, str(path))
    data, name, digest = _opened(path, max_pixels)
    frames: Generator[Decoded] = _reader(data, name).frames(data, name, window=window, axis=axis, max_pixels=max_pixels)
    with closing(frames):
        yield from map(partial(_image, name=name, digest=digest, mask=mask), frames)  # keeps none of them


def read_values(
    path: str | Path, frame: int | None = None, *, axis: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Values:
    """What the picture of `read_image` is made from: the values before any window, for whoever sets it anew.

    Raises ImageError as `read_image` does, and for a colour picture, which has none.
    """
    data, name, _ = _opened(path, max_pixels)
    decoded: Decoded = _reader(data, name).read(data, name, frame=frame, window=None, axis=axis, max_pixels=max_pixels)
    if decoded.values is None:
        raise ImageError(f"{name}: a colour picture has no values to set a window for: its picture shows all there is")
    steps = {step.name: step.details for step in decoded.steps}
    shown = steps.get("window", steps.get("range", {}))
    if "center" in shown:
        center, width = float(cast("float", shown["center"])), float(cast("float", shown["width"]))
    else:
        low, high = float(cast("float", shown["low"])), float(cast("float", shown["high"]))
        center, width = (low + high) / 2, high - low
    return Values(np.asarray(decoded.values, np.float64), (center, width), decoded.unit, "invert" in steps)


def read_acquisition(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Acquisition:
    """On which device and day a picture was taken, as its DICOM header says; other formats do not say.

    Nothing is decoded or hashed: what is wanted costs some milliseconds. Raises ImageError.
    """
    from saqm.image import dicom

    name = str(path)
    data: bytes | Path = Path(path)
    try:
        if MEMBER in name:
            data = read_member(name, max_bytes=max_pixels * BYTES_PER_PIXEL)
        reader = _reader(data, name)
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened: {error.strerror or error}") from error
    return dicom.acquisition(data, name, max_pixels=max_pixels) if reader is dicom else dicom.Acquisition()


def sha256_of(path: str | Path, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
    """SHA-256 of a file, or of an archive's member, as `Source` has it; nothing is decoded. Raises ImageError."""
    return _opened(path, max_pixels)[2]


def from_array(
    array: ArrayLike,
    *,
    modality: str | None = None,
    spacing_mm: tuple[float, float] | None = None,
    mask: ArrayLike | MaskMode | None = None,
    value_range: tuple[float, float] | None = None,
) -> Image:
    """An array as an Image: (H, W), (H, W, 1) or (H, W, 3), of unsigned integers, or of anything with a range.

    value_range: the values that become 0 and 1; by default what the unsigned type can hold, and 0..1 for floats. Give
    it for signed integers, and for 12 bits in 16: (0, 4095). Values outside are refused, not clipped.
    mask: bool (H, W); "auto" looks for the foreground; None or "none" judges every pixel.
    """
    values = np.asarray(array)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3) or values.size == 0 or (values.ndim == 3 and values.shape[2] != 3):
        raise ImageError(f"array of shape {values.shape}: (H, W) or (H, W, 3) with at least one pixel is wanted")
    if values.dtype.kind not in "biuf":
        raise ImageError(f"array of type {values.dtype}: numbers are wanted")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError(f"array with {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
    low, high, origin = _value_range(values.dtype, value_range)
    if float(values.min()) < low or float(values.max()) > high:
        raise ImageError(
            f"array with values from {float(values.min()):g} to {float(values.max()):g}, outside {low:g}..{high:g} "
            f"({origin}); give value_range="
        )
    pixels = np.asarray((values.astype(np.float64) - low) / (high - low), np.float32)
    mode: MaskMode | Literal["given"] = "given"
    given = None
    if mask is None or isinstance(mask, str):
        mode = _mask_mode(mask or "none", "array")
    else:
        given = _given_mask(mask, pixels)
    decoded = Decoded(
        pixels=pixels,
        format="array",
        valid=given,
        spacing_mm=spacing_mm,
        modality=modality,
        steps=(Step("range", {"low": low, "high": high, "from": origin}),),
    )
    digest = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
    return _image(decoded, "array", digest.hexdigest(), mode)


def _value_range(dtype: np.dtype, value_range: tuple[float, float] | None) -> tuple[float, float, str]:
    if value_range is not None:
        low, high = value_range
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ImageError(f"value_range {value_range}: two finite numbers are wanted, the smaller first")
        return float(low), float(high), "caller"
    if dtype.kind == "i":
        raise ImageError(f"array of {dtype}: say which values are black and white with value_range=(low, high)")
    return 0.0, float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0, f"range of {dtype}"


def _mask_mode(mask: str, name: str) -> MaskMode:
    if mask == "auto":
        return "auto"
    if mask == "none":
        return "none"
    raise ImageError(f'{name}: mask {mask!r}: "auto" or "none" is wanted')


def _given_mask(mask: ArrayLike, pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    given = np.asarray(mask)
    if given.dtype != bool or given.shape != pixels.shape[:2]:
        raise ImageError(f"mask of {given.dtype} {given.shape}: bool {pixels.shape[:2]} is wanted")
    return given.copy()


def _opened(path: str | Path, max_pixels: int) -> tuple[bytes | Path, str, str]:
    """What the readers take (a path, or the bytes of an archive's member), its name, and the SHA-256 of the file."""
    name = str(path)
    if MEMBER in name:
        member = read_member(name, max_bytes=max_pixels * BYTES_PER_PIXEL)
        return member, name, hashlib.sha256(member).hexdigest()
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{name}: a folder, not a file: find_images lists its images")
    if path.suffix.lower() == ".zip":
        read_member(name + MEMBER, max_bytes=0)  # says why: encrypted, damaged, or a member has to be named
    try:
        with path.open("rb") as stream:
            return path, name, hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file") from error
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened: {error.strerror or error}") from error


def _reader(data: bytes | Path, name: str) -> ModuleType:
    """The module that reads this file: DICM wins over all else, then what the other bytes say, then the suffix."""
    from saqm.image import dicom

    if isinstance(data, bytes):
        head = data[:HEAD]
    else:
        with data.open("rb") as stream:
            head = stream.read(HEAD)
    if not head:
        raise ImageError(f"{name}: empty file")
    if dicom.marked(head):
        return dicom
    from saqm.image import raster, volume

    for reader in (raster, volume, dicom):
        if reader.claims(name, head):
            return reader
    raise ImageError(
        f"{name}: not an image that saqm reads: DICOM, NIfTI, MHA, NRRD, PNG, JPEG, TIFF, BMP or WebP is wanted"
    )


def _image(decoded: Decoded, name: str, digest: str, mask: MaskMode | Literal["given"]) -> Image:
    """The Image of a decoded frame: what is to be judged is settled here and recorded."""
    shape = decoded.pixels.shape[:2]
    if mask == "given":
        judged = decoded.valid if decoded.valid is not None else np.ones(shape, bool)
        details: dict[str, object] = {}
    elif mask == "auto":
        from saqm.image.foreground import foreground

        judged, found = foreground(decoded.pixels, decoded.modality, decoded.valid)
        details = dict(found)
        if decoded.valid is not None:
            judged = judged & decoded.valid
            details["no_picture"] = float(1 - decoded.valid.mean())
    else:
        judged, details = np.ones(shape, bool), {}
    step = Step("mask", {"mode": mask, **details, "judged_share": float(judged.mean())})
    source = Source(
        path=name,
        sha256=digest,
        format=decoded.format,
        frame=decoded.frame,
        frames=decoded.frames,
        uids=decoded.uids,
        bits_stored=decoded.bits_stored,
        transfer_syntax=decoded.transfer_syntax,
        steps=(*decoded.steps, step),
        warnings=decoded.warnings,
        grid=decoded.grid,
    )
    return Image(decoded.pixels, judged, decoded.spacing_mm, decoded.modality, source)
