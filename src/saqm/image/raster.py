"""PNG, JPEG, TIFF, BMP and WebP become display-ready pixels, with nothing lost between 8 and 16 bits on the way.

Which stored value is white: 2^bits - 1 of the bits in use. A container of 16 bits that holds 12 is found by its largest
value over all frames (an 8-bit picture stored as v * 257 is known by that). Floats within 0..1 are taken as they are.
What has no such scale (floats beyond, signed or 32-bit integers) is shown over the file's own range, with a warning;
`window=(center, width)` in stored units overrules all of it for more than 8 bits.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError
from saqm.image.decoded import Decoded, Step, choose_frame
from saqm.image.window import apply_range, apply_window

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".dib", ".webp")
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP")
DEPTHS = (8, 10, 12, 14, 16)  # bits in use that a larger container is searched for

# What the two libraries raise on files that are not what they seem (theirs, struct's and zlib's errors bare).
BROKEN = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, ArithmeticError, RuntimeError)
BROKEN_PARTS = (struct.error, zlib.error, MemoryError)


@dataclass(frozen=True, eq=False)
class _Page:
    """One frame as stored: values (H, W) or (H, W, 3), upright; visible (H, W) False where fully transparent."""

    values: NDArray[Any]
    bits: int
    visible: NDArray[np.bool_] | None = None
    white_is_zero: bool = False
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class _File:
    format: str
    count: int
    page: Callable[[int], _Page]


@dataclass(frozen=True)
class _Extent:
    """What the stored values reach, over all frames of one kind."""

    low: float
    high: float
    from_8_bits: bool  # every value is a multiple of 257


def claims(name: str, head: bytes) -> bool:
    """Whether a file is for this reader: by its first bytes (`head`, 132 or more), else by its suffix."""
    if head[128:132] == b"DICM":  # a DICOM file may carry a TIFF header in its preamble
        return False
    return (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", *TIFF_MAGIC))
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or name.lower().endswith(SUFFIXES)
    )


def read(
    data: bytes | Path,
    name: str,
    *,
    frame: int | None,
    window: tuple[float, float] | None,
    axis: int | None,  # noqa: ARG001 - for volumes
    max_pixels: int,
) -> Decoded:
    """One picture; `frame`, 0-based, may be None when there is only one. `window` (center, width) in stored units.

    Raises ImageError for anything that is no readable picture, with the file's `name` and the reason.
    """
    notes: list[str] = []
    with _opened(data, name, max_pixels, notes) as file:
        index = choose_frame(frame, file.count, name)
        return _decoded(file, index, window, name=name, notes=notes, extents={})


def frames(
    data: bytes | Path,
    name: str,
    *,
    window: tuple[float, float] | None,
    axis: int | None,  # noqa: ARG001
    max_pixels: int,
) -> Iterator[Decoded]:
    """Every page or animation frame in order, one in memory at a time, all on one scale."""
    notes: list[str] = []
    with _opened(data, name, max_pixels, notes) as file:
        extents: dict[tuple[np.dtype[Any], int], _Extent] = {}
        for index in range(file.count):
            yield _decoded(file, index, window, name=name, notes=notes, extents=extents)


@contextmanager
def _opened(data: bytes | Path, name: str, max_pixels: int, notes: list[str]) -> Iterator[_File]:
    with _guarded(name, notes):
        stream: Any = io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
    with stream:
        head = stream.read(32)
        stream.seek(0)
        if not head:
            raise ImageError(f"{name}: empty file (0 bytes)")
        if head.startswith(TIFF_MAGIC):
            import tifffile

            with _guarded(name, notes):
                tiff = tifffile.TiffFile(stream)
            with tiff:
                with _guarded(name, notes):
                    file = _tiff(tiff, stream, name, max_pixels, notes)
                yield file
            return
        import PIL.Image

        with _guarded(name, notes):
            picture = PIL.Image.open(stream, formats=PILLOW_FORMATS)
            file = _pillow(picture, head, name, max_pixels, notes)
        with picture:
            yield file


@contextmanager
def _guarded(name: str, notes: list[str]) -> Iterator[None]:
    """Library errors become ImageErrors, library warnings and log lines become notes."""
    from PIL import UnidentifiedImageError
    from PIL.Image import DecompressionBombError, DecompressionBombWarning

    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("tifffile")
    log.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", DecompressionBombWarning)  # max_pixels is the limit here
            yield
        said += [str(warning.message) for warning in caught]
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: no PNG, JPEG, TIFF, BMP or WebP picture, whatever its name says") from error
    except DecompressionBombError as error:
        raise ImageError(
            f"{name}: refused before decoding: {error} (a trusted file: raise PIL.Image.MAX_IMAGE_PIXELS)"
        ) from error
    except (*BROKEN, *BROKEN_PARTS) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: broken or unsupported picture: {reason[:300]}") from error
    finally:
        log.removeHandler(listener)
    notes += [note for note in dict.fromkeys(said) if note not in notes]


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name}: a picture of {height}x{width} pixels cannot be")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {height}x{width} = {height * width} pixels, more than max_pixels={max_pixels}; "
            "raise max_pixels if the file is trusted"
        )


def _pillow(picture: Any, head: bytes, name: str, max_pixels: int, notes: list[str]) -> _File:
    _check_size(picture.width, picture.height, name, max_pixels)
    kind = {"MPO": "jpeg", "DIB": "bmp"}.get(picture.format, picture.format.lower())
    if kind == "png" and head[24:25] == b"\x10" and head[25:26] != b"\0":  # IHDR: depth 16, not plain grey
        notes.append("16-bit colour or alpha PNG: the upper 8 bits of each channel are used")
    # the second picture of an MPO is a preview or the other eye, not the next frame
    count = 1 if picture.format == "MPO" else int(getattr(picture, "n_frames", 1))

    def page(index: int) -> _Page:
        if count > 1:
            picture.seek(index)
        return _pillow_page(picture, notes)

    return _File(kind, count, page)


def _pillow_page(picture: Any, notes: list[str]) -> _Page:
    mode, steps = picture.mode, list[Step]()
    picture.load()  # PNG tells its transparency and EXIF only now
    orientation = picture.getexif().get(0x0112, 1)
    key = picture.info.get("transparency")
    if mode in ("P", "PA"):
        steps.append(Step("palette", {"from": "file"}))
        picture = picture.convert("RGBA" if mode == "PA" or key is not None else "RGB")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        steps.append(Step("colour", {"from": mode, "to": "RGB", "by": "Pillow, without colour profile"}))
        picture = picture.convert("RGB")
    elif mode in ("1", "L", "RGB") and key is not None:
        picture = picture.convert("RGBA")
    values = np.asarray(picture)
    alpha = None
    if values.ndim == 3 and values.shape[2] in (2, 4):
        alpha = values[..., -1]
        values = values[..., 0] if values.shape[2] == 2 else values[..., :3]
    elif mode.startswith("I") and isinstance(key, int):
        alpha = values != key
    bits = 1 if mode == "1" else values.dtype.itemsize * 8
    visible = _visible(alpha, steps)
    return _upright(_Page(_native(values), bits, visible, steps=tuple(steps)), orientation, notes)


def _visible(alpha: NDArray[Any] | None, steps: list[Step]) -> NDArray[np.bool_] | None:
    """Where a picture can be seen at all; None: everywhere. What became of the alpha goes to `steps`."""
    if alpha is None:
        return None
    visible = alpha > 0
    steps.append(Step("alpha", {"dropped": True, "transparent_share": round(1 - float(visible.mean()), 4)}))
    return None if visible.all() else visible


def _upright(page: _Page, orientation: object, notes: list[str]) -> _Page:
    """EXIF's and TIFF's orientation 1..8 undone."""
    if orientation == 1:
        return page
    turn: Callable[[NDArray[Any]], NDArray[Any]] | None = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[:, ::-1],
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[::-1],
    }.get(cast(int, orientation))
    if turn is None:
        notes.append(f"orientation {orientation} is none of 1..8: ignored")
        return page
    return _Page(
        np.ascontiguousarray(turn(page.values)),
        page.bits,
        None if page.visible is None else np.ascontiguousarray(turn(page.visible)),
        page.white_is_zero,
        (*page.steps, Step("orientation", {"exif": orientation})),
    )


def _tiff(tiff: Any, stream: Any, name: str, max_pixels: int, notes: list[str]) -> _File:
    pages, seen = [], set[int]()
    for each in tiff.pages:
        if each.offset in seen:  # the chain of pages bites its tail: it would never end
            raise ImageError(f"{name}: broken picture: page {len(seen)} points back to an earlier one")
        seen.add(each.offset)
        if not each.is_reduced:  # without thumbnails and pyramid levels
            pages.append(each)
    if not pages:
        raise ImageError(f"{name}: a TIFF without any picture")
    end = stream.seek(0, io.SEEK_END)
    for number, each in enumerate(pages):
        _check_size(each.imagewidth, each.imagelength, name, max_pixels)
        if not each.databytecounts or 0 in each.databytecounts:
            raise ImageError(f"{name}: page {number} lacks pixel data")
        if max(a + b for a, b in zip(each.dataoffsets, each.databytecounts, strict=True)) > end:
            raise ImageError(f"{name}: truncated: page {number} ends beyond the {end} bytes of the file")
    if tiff.is_imagej and len(pages) == 1 and int((tiff.imagej_metadata or {}).get("images", 1)) > 1:
        raise ImageError(
            f"{name}: an ImageJ stack whose slices stand behind one page; save it with a page for each slice"
        )

    def page(index: int) -> _Page:
        return _tiff_page(pages[index], index, stream, name, notes)

    return _File("tiff", len(pages), page)


def _tiff_page(page: Any, index: int, stream: Any, name: str, notes: list[str]) -> _Page:
    from tifffile import COMPRESSION, PHOTOMETRIC

    photometric, steps = page.photometric, list[Step]()
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ImageError(f"{name}: page {index} has axes {page.axes}, wanted one plane (YX) or colour (YXS)")
    try:
        values = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return _tiff_page_by_pillow(page, stream, name)
    if page.axes == "SYX":
        values = values.transpose(1, 2, 0)
    if values.shape[:2] != (page.imagelength, page.imagewidth):
        raise ImageError(
            f"{name}: page {index} announces {page.imagelength}x{page.imagewidth} and holds {values.shape}"
        )
    bits = page.bitspersample if isinstance(page.bitspersample, int) else max(page.bitspersample)
    channels = {PHOTOMETRIC.RGB: 3, PHOTOMETRIC.YCBCR: 3, PHOTOMETRIC.SEPARATED: 4}.get(photometric, 1)
    if photometric == PHOTOMETRIC.YCBCR and page.compression not in (COMPRESSION.JPEG, COMPRESSION.OJPEG):
        raise ImageError(f"{name}: page {index} is YCbCr without JPEG; save it as RGB")
    alpha = None
    if values.ndim == 3:
        extra = values.shape[2] - channels
        kinds = [int(kind) for kind in page.extrasamples]
        if extra > 1 or (extra == 1 and (kinds or [0])[0] not in (1, 2)) or extra < 0:
            raise ImageError(
                f"{name}: page {index} has {values.shape[2]} channels, wanted grey or RGB; save the one to judge"
            )
        alpha = values[..., -1] if extra else None
        values = values[..., 0] if channels == 1 else values[..., :channels]
    if photometric == PHOTOMETRIC.PALETTE:
        values = (page.colormap.T[values] >> 8).astype(np.uint8)
        bits = 8
        steps.append(Step("palette", {"from": "file"}))
    elif photometric == PHOTOMETRIC.SEPARATED:
        if values.dtype != np.uint8:
            raise ImageError(f"{name}: page {index} is CMYK of {values.dtype}; save it as RGB")
        light = 255 - values.astype(np.uint16)
        values = ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)
        steps.append(Step("colour", {"from": "CMYK", "to": "RGB", "by": "(1 - ink)(1 - black)"}))
    elif photometric not in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR):
        raise ImageError(f"{name}: page {index} is {getattr(photometric, 'name', photometric)}; save it as grey or RGB")
    if values.dtype.kind not in "buif":
        raise ImageError(f"{name}: page {index} holds {values.dtype}, wanted integers or floats")
    visible = _visible(alpha, steps)
    made = _Page(_native(values), bits, visible, photometric == PHOTOMETRIC.MINISWHITE, tuple(steps))
    orientation = page.tags.get(274)
    return _upright(made, 1 if orientation is None else int(orientation.value), notes)


def _tiff_page_by_pillow(page: Any, stream: Any, name: str) -> _Page:
    """LZW, JPEG and the like without imagecodecs: Pillow's libtiff gives the same samples, but for 16-bit colour."""
    import PIL.Image
    from tifffile import PHOTOMETRIC

    if page.dtype != np.uint8 and (page.samplesperpixel > 1 or page.photometric != PHOTOMETRIC.MINISBLACK):
        raise ImageError(
            f"{name}: {page.compression.name} compression of {page.dtype} needs imagecodecs: "
            "pip install 'saqm[dicom-decoders]'"
        )
    stream.seek(0)
    with PIL.Image.open(stream, formats=("TIFF",)) as picture:
        picture.seek(page.index if isinstance(page.index, int) else page.index[0])
        return _pillow_page(picture, [])  # upright already, and white is bright: Pillow saw to both


def _native(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _extent(values: NDArray[Any], index: int, name: str) -> _Extent:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int(values.size - np.isfinite(values).sum())
        raise ImageError(f"{name}: frame {index} holds {bad} NaN or infinite values; replace them before it is judged")
    from_8_bits = values.dtype.kind in "ui" and not (values % 257).any()
    return _Extent(float(values.min()), float(values.max()), from_8_bits)


def _scale(page: _Page, extent: _Extent) -> tuple[float, float, int, dict[str, object], bool]:
    """Black, white, bits in use, the step's details, and whether it is only the file's own range."""
    low, high, kind = extent.low, extent.high, page.values.dtype.kind
    if kind == "f":
        if low >= 0 and high <= 1:
            return 0, 1, page.bits, {"from": "floats within 0..1"}, False
    elif kind == "u" and page.bits not in (16, 32, 64):
        return 0, 2**page.bits - 1, page.bits, {"from": f"{page.bits} bits stored"}, False
    elif low >= 0 and high < 2**16:
        bits = 16 if extent.from_8_bits else next(depth for depth in DEPTHS if high < 2**depth)
        return 0, 2**bits - 1, bits, {"from": f"largest value {high:.0f}", "container_bits": page.bits}, False
    return low, high, page.bits, {"from": "data range"}, True


def _decoded(
    file: _File,
    index: int,
    window: tuple[float, float] | None,
    *,
    name: str,
    notes: list[str],
    extents: dict[tuple[np.dtype[Any], int], _Extent],
) -> Decoded:
    with _guarded(name, notes):
        page = file.page(index)
    said, deep = list(notes), page.bits > 8 or page.values.dtype.kind == "f"
    key = (page.values.dtype, page.bits)
    if key not in extents:
        extents[key] = _whole_extent(file, page, index, name, notes) if deep else _Extent(0, 0, False)
    low, high, bits, details, own_range = _scale(page, extents[key])
    if window is not None and deep:
        center, width = window
        if not (np.isfinite(center) and np.isfinite(width) and width > 0):
            raise ImageError(f"{name}: window ({center}, {width}): wanted a finite centre and a width above 0")
        pixels = apply_window(page.values, center, width, "LINEAR_EXACT")
        step = Step("window", {"center": center, "width": width, "from": "caller"})
    else:
        if window is not None:
            said.append(f"window {window} not applied: a picture of {page.bits} bits is shown as it is")
        pixels = apply_range(page.values, low, high)
        step = Step("window" if own_range else "range", {"low": low, "high": high, **details})
        if own_range:
            said.append(
                f"no known scale: shown over the file's own range {low:g}..{high:g}; give a window to compare files"
            )
    steps = [*page.steps, step]
    if page.white_is_zero:
        pixels = np.asarray(1 - pixels, np.float32)
        steps.append(Step("invert", {"from": "white is zero"}))
    values = page.values if page.values.ndim == 2 else None
    if pixels.ndim == 3 and (pixels[..., :1] == pixels).all():
        pixels, values = np.ascontiguousarray(pixels[..., 0]), page.values[..., 0]
        steps.append(Step("grey", {"from": "three equal channels"}))
    return Decoded(
        pixels=pixels,
        format=file.format,
        valid=page.visible,
        frame=index if file.count > 1 else None,
        frames=file.count,
        bits_stored=bits,
        steps=tuple(steps),
        warnings=tuple(said),
        values=values,
    )


def _whole_extent(file: _File, page: _Page, index: int, name: str, notes: list[str]) -> _Extent:
    """Over all frames of this page's kind, so that frames compare; one in memory at a time."""
    found = _extent(page.values, index, name)
    for other in range(file.count):
        if other == index:
            continue
        with _guarded(name, notes):
            values = file.page(other).values
        if values.dtype == page.values.dtype:
            here = _extent(values, other, name)
            found = _Extent(
                min(found.low, here.low), max(found.high, here.high), found.from_8_bits and here.from_8_bits
            )
    return found
