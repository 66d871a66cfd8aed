"""NIfTI, NRRD and MetaImage (MHA/MHD) volumes, slice by slice.

A volume is turned to the nearest canonical axes (RAS: 0 to the right, 1 to the front, 2 to the head; nibabel's
as_closest_canonical) by views, never copied; `axis` is one of these: 0 sagittal, 1 coronal, 2 axial slices. Slices are
shown as radiologists hang them: head or front up, the patient's right (or front) at the left.

Voxels stay on disk: raw data are mapped, compressed data are unpacked once into a temporary file that is mapped.
Frames run over the slices of the first volume, then of the second: frame = volume * slices + slice.
"""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError
from saqm.image.decoded import BYTES_PER_PIXEL, Decoded, Grid, Step, choose_frame
from saqm.image.volume_header import TO_RAS, Header, read_header
from saqm.image.window import PERCENTILES, apply_range, apply_window

SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
PLANES = ("sagittal", "coronal", "axial")
STACK_RATIO = 2.0  # slices at least this many times as far apart as the pixels in the plane: clearly a stack
SAMPLE = 500_000  # voxels that the display range is estimated from
FARTHEST, SMALLEST = 1e6, 1e-18  # mm, mm³: an affine beyond is damaged or was never set
CHUNK = 1 << 18  # bytes unpacked at a time
DEFLATE_LIMIT = 1032  # most bytes that one byte of deflate can hold (zlib): more is a bomb or a lie


@dataclass(frozen=True, eq=False)
class _Slices:
    """A volume cut along one axis: stored values (X, Y, Z, T) in RAS order, a view of the mapped file."""

    header: Header
    voxels_XYZT: NDArray[Any]
    affine: NDArray[np.float64]  # stored voxel to RAS millimetres
    stored: NDArray[np.float64]  # (4, 4), voxel in RAS order to stored voxel
    axis: int
    spacing_XYZ: tuple[float, ...]
    orientation: Mapping[str, object]
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        return int(self.voxels_XYZT.shape[self.axis] * self.voxels_XYZT.shape[3])


def claims(name: str, head: bytes) -> bool:
    """Whether a file is for this reader: by its first bytes (`head`), else by its suffix."""
    return (
        head[344:348] in (b"n+1\0", b"ni1\0")
        or head[4:12] == b"n+2\0\r\n\x1a\n"
        or head.startswith((b"NRRD000", b"ObjectType"))
        or name.lower().endswith(SUFFIXES)
    )


def read(
    data: bytes | Path,
    name: str,
    *,
    frame: int | None,
    window: tuple[float, float] | None,
    axis: int | None,
    max_pixels: int,
) -> Decoded:
    """One slice, 0-based, on the display range of the whole volume. `window` (center, width) in rescaled units.

    `axis` may be None for a single slice or a clear stack (STACK_RATIO). Raises ImageError, with the file's `name`.
    """
    with _opened(data, name, axis, max_pixels) as slices:
        index = choose_frame(frame, slices.count, name)
        return _decoded(slices, index, _range(slices, window, name), name)


def frames(
    data: bytes | Path,
    name: str,
    *,
    window: tuple[float, float] | None,
    axis: int | None,
    max_pixels: int,
) -> Iterator[Decoded]:
    """Every slice in order, one in memory at a time, all on one display range."""
    with _opened(data, name, axis, max_pixels) as slices:
        shown = _range(slices, window, name)
        for index in range(slices.count):
            yield _decoded(slices, index, shown, name)


@contextmanager
def _opened(data: bytes | Path, name: str, axis: int | None, max_pixels: int) -> Iterator[_Slices]:
    from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt2axcodes

    with ExitStack() as stack:
        with _guarded(name):
            stream: BinaryIO = io.BytesIO(data) if isinstance(data, bytes) else stack.enter_context(data.open("rb"))
            header = read_header(stream, name)
        arrange, affine, notes = _canonical(header)
        stored = inv_ornt_aff(arrange, header.spatial)
        spacing = tuple(float(s) for s in np.sqrt(((affine @ stored)[:3, :3] ** 2).sum(0)))
        sizes = tuple(header.spatial[int(i)] for i in np.argsort(arrange[:, 0]))
        chosen, why = _choose_axis(sizes, spacing, axis, name)
        height, width = _plane_size(sizes, chosen)
        if height * width > max_pixels:
            raise ImageError(
                f"{name}: slices of {height}x{width} = {height * width} pixels, more than max_pixels={max_pixels}; "
                "raise max_pixels if the file is trusted"
            )
        with _guarded(name):
            values = _mapped(header, data, stream, name, stack, max_pixels=max_pixels)
            voxels = apply_orientation(_four_axes(values, header), arrange)
        orientation = {
            "plane": PLANES[chosen],
            "axis": chosen,
            "axis_from": why,
            "stored": "".join(ornt2axcodes(arrange)),
            "rows": "anterior to posterior" if chosen == 2 else "superior to inferior",
            "columns": "anterior to posterior" if chosen == 0 else "right to left",
        }
        yield _Slices(header, voxels, affine, stored, chosen, spacing, orientation, (*header.notes, *notes))


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    """What numpy, nibabel, pynrrd and the decompressors raise on broken files becomes an ImageError."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nrrd import NRRDError

    broken = (OSError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, MemoryError)
    try:
        yield
    except (*broken, struct.error, zlib.error, HeaderDataError, ImageFileError, NRRDError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: broken or unsupported volume: {reason[:300]}") from error


def _four_axes(stored: NDArray[Any], header: Header) -> NDArray[Any]:
    """(I, J, K, T), a view: volumes last, what lies beyond the fourth axis folded into it."""
    if header.volume_axis is not None:
        stored = np.moveaxis(stored, header.volume_axis, -1)
        if stored.ndim == 3:
            return stored[:, :, None]
        return stored
    if stored.ndim < 4:
        return stored.reshape((*stored.shape, *[1] * (4 - stored.ndim)), order="F")
    return stored.reshape((*stored.shape[:3], -1), order="F")


def _canonical(header: Header) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    """Orientation (3, 2) that turns stored axes to RAS, the affine of the stored ones, and complaints."""
    from nibabel.orientations import io_orientation

    affine, notes = header.affine, tuple[str, ...]()
    usable = bool((np.abs(affine) < FARTHEST).all()) and abs(np.linalg.det(affine[:3, :3])) > SMALLEST
    if usable:
        orientation = io_orientation(affine)
    if not usable or not np.isfinite(orientation).all():
        affine, notes = TO_RAS, ("no usable orientation in the header: taken as left-posterior-superior, 1 mm",)
        orientation = io_orientation(affine)
    return orientation, affine, notes


def _choose_axis(sizes: tuple[int, ...], spacing: tuple[float, ...], axis: int | None, name: str) -> tuple[int, str]:
    """The axis slices are cut along, and why. All in RAS order."""
    if axis is not None and axis not in (0, 1, 2):
        raise ImageError(f"{name}: axis={axis}; choose axis=0|1|2 (sagittal, coronal, axial)")
    single = [i for i, size in enumerate(sizes) if size == 1]
    if len(single) == 1:
        return single[0], "one slice"
    if len(single) > 1:
        raise ImageError(f"{name}: {'x'.join(map(str, sizes))} voxels are a line, not a picture")
    if axis is not None:
        return axis, "caller"
    thickest = int(np.argmax(spacing))
    in_plane = max(s for i, s in enumerate(spacing) if i != thickest)
    if spacing[thickest] >= STACK_RATIO * in_plane * 0.999:  # headers round spacings
        return thickest, f"slices {spacing[thickest]:.4g} mm apart, pixels at most {in_plane:.4g} mm"
    raise ImageError(f"{name}: 3-D volume {'x'.join(map(str, sizes))}; choose axis=0|1|2 (sagittal, coronal, axial)")


def _plane_size(sizes: tuple[int, ...], axis: int) -> tuple[int, int]:
    """Rows and columns of a shown slice."""
    across, down = (size for i, size in enumerate(sizes) if i != axis)
    return down, across


def _mapped(
    header: Header, data: bytes | Path, stream: BinaryIO, name: str, stack: ExitStack, *, max_pixels: int
) -> NDArray[Any]:
    """The stored voxels, not loaded: a view of the file, or of a temporary file with the unpacked data."""
    source: BinaryIO = stream
    if header.detached is not None:
        source = stack.enter_context(_beside(header.detached, data, name).open("rb"))
    needed = int(np.prod(header.shape, dtype=object)) * header.dtype.itemsize
    available = source.seek(0, io.SEEK_END)
    offset = available - needed if header.offset == -1 else header.offset
    if header.encoding == "raw":
        if offset < 0 or offset + needed > available:
            raise ImageError(
                f"{name}: truncated: {'x'.join(map(str, header.shape))} voxels of {header.dtype.itemsize} bytes need "
                f"{needed} bytes, {max(0, available - max(offset, 0))} are there"
            )
        if isinstance(source, io.BytesIO):
            flat = np.frombuffer(source.getbuffer(), header.dtype, count=needed // header.dtype.itemsize, offset=offset)
            return flat.reshape(header.shape, order="F")
        return np.memmap(source, header.dtype, "r", offset, header.shape, "F")
    if needed > available * DEFLATE_LIMIT * (100 if header.encoding == "bzip2" else 1):
        raise ImageError(f"{name}: truncated: {available} packed bytes cannot hold the {needed} bytes announced")
    if needed > max_pixels * BYTES_PER_PIXEL:
        raise ImageError(
            f"{name}: unpacks to {needed:,} bytes, limit {max_pixels * BYTES_PER_PIXEL:,}: raise it with max_pixels="
        )
    return np.memmap(_unpacked(header, source, needed, name, stack), header.dtype, "r", 0, header.shape, "F")


def _beside(detached: str, data: bytes | Path, name: str) -> Path:
    """The data file a header names: in the header's folder or below, nowhere else."""
    if isinstance(data, bytes):
        raise ImageError(f"{name}: its voxels stand in {detached}, which is not at hand; give a file in its folder")
    folder = data.resolve().parent
    path = (folder / detached).resolve()
    if not path.is_relative_to(folder):
        raise ImageError(f"{name}: its data file {detached} lies outside its folder; refused")
    if not path.is_file():
        raise ImageError(f"{name}: its data file {detached} is missing")
    return path


def _unpacked(header: Header, source: BinaryIO, needed: int, name: str, stack: ExitStack) -> Any:
    """A temporary file with exactly the bytes announced; it has no name and goes with its last user."""
    source.seek(0 if header.encoding == "gzip" else header.offset)
    if header.encoding == "zlib":
        chunks = _inflated(source)
    else:
        packed = bz2.BZ2File(source) if header.encoding == "bzip2" else gzip.GzipFile(fileobj=source)
        stack.enter_context(packed)
        if header.encoding == "gzip":
            packed.seek(header.offset)
        chunks = iter(lambda: packed.read(CHUNK), b"")
    target = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    missing = needed
    for chunk in chunks:
        target.write(chunk[:missing])
        missing -= min(len(chunk), missing)
        if not missing:
            break
    if missing:
        raise ImageError(f"{name}: truncated: {needed - missing} of {needed} bytes of voxels are there")
    target.flush()
    return target


def _inflated(source: BinaryIO) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=47)  # a zlib or gzip wrapper, found by itself: writers of MHA use both
    while piece := source.read(CHUNK):
        while piece:
            yield unpacker.decompress(piece, CHUNK)
            piece = unpacker.unconsumed_tail
    yield unpacker.flush()


def _rescaled(stored: NDArray[Any], header: Header, where: str, name: str) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):  # what overflows is infinite, and refused as such
        values = stored.astype(np.float64) * header.slope + header.intercept
    if not np.isfinite(values).all():
        raise ImageError(f"{name}: {where} holds NaN or infinite values; replace them before it is judged")
    return values


def _range(
    slices: _Slices, window: tuple[float, float] | None, name: str
) -> tuple[Callable[[NDArray[np.float64]], NDArray[np.float32]], Step]:
    """How values become [0, 1], the same for all slices."""
    if window is not None:
        center, width = window
        if not (np.isfinite(center) and np.isfinite(width) and width > 0):
            raise ImageError(f"{name}: window ({center}, {width}): wanted a finite centre and a width above 0")
        return (
            lambda values: apply_window(values, center, width, "LINEAR_EXACT"),
            Step("window", {"center": center, "width": width, "from": "caller"}),
        )
    voxels = slices.voxels_XYZT
    long_axes = sum(size > 1 for size in voxels.shape)
    stride = max(1, int(np.ceil((voxels.size / SAMPLE) ** (1 / max(long_axes, 1)))))
    starts = [min(stride // 2, (size - 1) // 2) for size in voxels.shape]
    sample = _rescaled(voxels[tuple(slice(s, None, stride) for s in starts)], slices.header, "the volume", name)
    some = sample[sample != 0]
    low, high = (float(p) for p in np.percentile(some, PERCENTILES)) if len(some) else (0.0, 0.0)
    if high <= low:  # a map of labels, say
        low, high = float(sample.min()), float(sample.max())
    details = {
        "low": low,
        "high": high,
        "from": f"percentiles {PERCENTILES[0]}..{PERCENTILES[1]} of the volume's non-zero voxels",
        "sample": len(some),
    }
    return lambda values: apply_range(values, low, high), Step("window", details)


def _decoded(
    slices: _Slices,
    index: int,
    shown: tuple[Callable[[NDArray[np.float64]], NDArray[np.float32]], Step],
    name: str,
) -> Decoded:
    header, axis = slices.header, slices.axis
    volume, number = divmod(index, slices.voxels_XYZT.shape[axis])
    plane = np.moveaxis(slices.voxels_XYZT[..., volume], axis, 0)[number]  # take() would copy the volume
    values = _rescaled(plane, header, f"slice {number} of volume {volume}", name)
    display, step = shown
    across, down = (s for i, s in enumerate(slices.spacing_XYZ) if i != axis)
    steps = [Step("orientation", {**slices.orientation, "slice": number, "volume": volume})]
    if (header.slope, header.intercept) != (1.0, 0.0):
        steps.append(Step("rescale", {"slope": header.slope, "intercept": header.intercept, "from": "file"}))
    return Decoded(
        pixels=np.ascontiguousarray(display(values)[::-1, ::-1].T),
        format=header.format,
        spacing_mm=(down, across),
        frame=index if slices.count > 1 else None,
        frames=slices.count,
        bits_stored=header.dtype.itemsize * 8,
        steps=(*steps, step),
        warnings=slices.notes,
        grid=_grid(slices, volume, number),
        values=np.ascontiguousarray(values[::-1, ::-1].T),
    )


def _grid(slices: _Slices, volume: int, number: int) -> Grid:
    """Where the picture of a slice, which `_decoded` turns to be shown, lies in the stored volume."""
    sizes = slices.voxels_XYZT.shape
    across, down = (axis for axis in range(3) if axis != slices.axis)
    ras = np.zeros((4, 3))  # (row, column, 1) to voxel (x, y, z, 1)
    ras[down, [0, 2]] = -1, sizes[down] - 1
    ras[across, [1, 2]] = -1, sizes[across] - 1
    ras[slices.axis, 2] = number
    ras[3, 2] = 1
    to_voxel = np.rint(slices.stored @ ras).astype(int)
    to_voxel[3] = 0, 0, volume
    return Grid(
        shape=(*slices.header.spatial, sizes[3]),
        affine=tuple(map(tuple, slices.affine.tolist())),
        to_voxel=tuple(map(tuple, to_voxel.tolist())),
    )
