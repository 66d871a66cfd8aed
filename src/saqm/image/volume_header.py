"""What stands before the voxels of NIfTI, NRRD and MetaImage files: size, type, place, and orientation in RAS."""

from __future__ import annotations

import gzip
import io
import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError

MHA_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from left-posterior-superior, the axes of DICOM, ITK and MetaImage

NRRD_TYPES = {  # the format's words for each, https://teem.sourceforge.net/nrrd/format.html#type
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}


@dataclass(frozen=True, eq=False)
class Header:
    """What stands before the voxels. Shape in stored order, first axis fastest; affine: voxel to RAS millimetres."""

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]
    offset: int  # bytes into the file or the detached data file; -1: counted from its end
    encoding: str = "raw"  # "raw", "gzip" (whole file), "gz" / "zlib" / "bzip2" (data alone)
    detached: str | None = None
    volume_axis: int | None = None  # the one that counts volumes, where it is not the fourth
    slope: float = 1.0
    intercept: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the three axes of space, in stored order; 1 where the file has fewer."""
        sizes = [size for axis, size in enumerate(self.shape) if axis != self.volume_axis]
        return (*sizes, 1)[:3]


def read_header(stream: BinaryIO, name: str) -> Header:
    """The header of a volume in whichever of the three formats its first bytes say. Raises ImageError.

    Broken fields also come out as the errors of struct, zlib, numpy, nibabel and pynrrd: the caller words them.
    """
    header = _parsed(stream, name)
    _check_header(header, name)
    return header


def _parsed(stream: BinaryIO, name: str) -> Header:
    head = stream.read(16)
    stream.seek(0)
    if not head:
        raise ImageError(f"{name}: empty file (0 bytes)")
    if head.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=stream) as unpacked:
            return _nifti_header(unpacked.read(540), "gzip", name)
    if head.startswith(b"NRRD"):
        return _nrrd_header(stream, name)
    if head.lstrip().startswith((b"ObjectType", b"NDims", b"Comment")):
        return _mha_header(stream, name)
    return _nifti_header(stream.read(540), "raw", name)


def _nifti_header(block: bytes, encoding: str, name: str) -> Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    kinds = {348: Nifti1Header, 540: Nifti2Header}
    sizes = {struct.unpack(order + "i", block[:4])[0] for order in "<>"} if len(block) >= 4 else set[int]()
    found = sizes & set(kinds)
    if not found:
        raise ImageError(f"{name}: no NIfTI, NRRD or MetaImage header, whatever the name says")
    size = found.pop()
    if len(block) < size:
        raise ImageError(f"{name}: truncated: {len(block)} bytes of a header of {size}")
    notes: list[str] = []
    header = kinds[size].from_fileobj(io.BytesIO(block), check=False)
    magic = bytes(header["magic"])[:3]
    if magic in (b"ni1", b"ni2"):
        raise ImageError(f"{name}: a header whose voxels stand in an .img file; convert the pair to one .nii")
    if magic not in (b"n+1", b"n+2"):
        raise ImageError(f"{name}: no NIfTI file: magic {magic!r}, wanted b'n+1' or b'n+2'")
    dimensions = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : dimensions + 1]) if 1 <= dimensions <= 7 else ()
    _check_sizes(shape, name)
    listener = logging.Logger("saqm.nifti")  # a logger of its own: nibabel's would print
    collector = logging.Handler()
    collector.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    listener.addHandler(collector)
    header.check_fix(logger=listener, error_level=40)
    slope, intercept = header.get_slope_inter()
    return Header(
        format="nifti",
        shape=shape,
        dtype=header.get_data_dtype(),
        affine=np.asarray(header.get_best_affine(), np.float64),
        offset=int(header.get_data_offset()),
        encoding=encoding,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        notes=tuple(notes),
    )


def _nrrd_header(stream: BinaryIO, name: str) -> Header:
    import nrrd

    lines, offset = _text_header(stream, lambda line: not line, name)
    fields = nrrd.read_header([line.decode("latin-1") for line in lines])
    shape = tuple(int(n) for n in fields["sizes"])
    _check_sizes(shape, name)
    code = next((code for code, words in NRRD_TYPES.items() if str(fields["type"]) in words.split("|")), None)
    if code is None:
        raise ImageError(f"{name}: NRRD of type {fields['type']}; save it as integers or floats")
    encoding = {"raw": "raw", "gzip": "gz", "gz": "gz", "bzip2": "bzip2", "bz2": "bzip2"}.get(str(fields["encoding"]))
    if encoding is None:
        raise ImageError(f"{name}: NRRD encoding {fields['encoding']}; save it as raw, gzip or bzip2")
    if int(fields.get("line skip", 0)):
        raise ImageError(f"{name}: NRRD with line skip; save it without")
    skip = int(fields.get("byte skip", 0))
    order = ">" if fields.get("endian") == "big" else "<"
    detached = fields.get("data file", fields.get("datafile"))
    if detached is not None and (str(detached).startswith("LIST") or "%" in str(detached)):
        raise ImageError(f"{name}: NRRD over several data files; save it as one")
    if skip and encoding != "raw":
        raise ImageError(f"{name}: NRRD with byte skip before packed data; save it without")
    affine, volume_axis, notes = _nrrd_affine(fields, len(shape))
    start = 0 if detached else offset
    return Header(
        format="nrrd",
        shape=shape,
        dtype=np.dtype(order + code),
        affine=affine,
        offset=-1 if skip == -1 else start + skip,
        encoding=encoding,
        detached=None if detached is None else str(detached),
        volume_axis=volume_axis,
        notes=notes,
    )


def _nrrd_affine(fields: Mapping[str, Any], dimensions: int) -> tuple[NDArray[np.float64], int | None, tuple[str, ...]]:
    """Voxel to RAS from `space directions`, else from `spacings`; and the axis that is no space (volumes)."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    directions, space = fields.get("space directions"), str(fields.get("space", ""))
    if directions is None:
        spacings = [float(s) if np.isfinite(s) and s else 1.0 for s in fields.get("spacings", [1.0] * dimensions)]
        for i, spacing in enumerate(spacings[:3]):
            affine[i, i] = spacing
        return TO_RAS @ affine, None, ("no orientation in the header: taken as left-posterior-superior",)
    rows = np.array([np.full(3, np.nan) if row is None else row for row in directions], np.float64)
    spatial = [i for i, row in enumerate(rows) if np.isfinite(row).all()]
    for i, axis in enumerate(spatial[:3]):
        affine[:3, i] = rows[axis]
    if "space origin" in fields:
        affine[:3, 3] = fields["space origin"]
    words = space.lower().replace("-", " ").split()
    letters = [word[0] for word in words] if len(words) >= 3 else list(space.lower())
    flips = [-1.0 if letter in "lpi" else 1.0 for letter in letters[:3]]
    notes = () if len(flips) == 3 else (f"space {space or 'unknown'}: taken as left-posterior-superior",)
    to_ras = np.diag([*flips, 1.0]) if len(flips) == 3 else TO_RAS
    others = [i for i in range(dimensions) if i not in spatial]
    if len(others) > 1:
        raise ValueError(f"{len(others)} axes have no direction in space")
    return to_ras @ affine, others[0] if others else None, notes


def _mha_header(stream: BinaryIO, name: str) -> Header:
    lines, offset = _text_header(stream, lambda line: line.startswith(b"ElementDataFile"), name)
    pairs = (line.decode("latin-1").partition("=") for line in lines if b"=" in line)
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    dimensions = int(fields["NDims"])
    shape = tuple(int(n) for n in fields["DimSize"].split())
    _check_sizes(shape, name)
    if len(shape) != dimensions:
        raise ImageError(f"{name}: NDims = {dimensions} and DimSize = {fields['DimSize']} disagree")
    if int(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise ImageError(f"{name}: {fields['ElementNumberOfChannels']} channels; save the one to judge")
    if fields["ElementType"] not in MHA_TYPES or fields.get("BinaryData", "True").lower() == "false":
        raise ImageError(f"{name}: MetaImage of {fields['ElementType']}; wanted binary {', '.join(MHA_TYPES)}")
    data_file = fields["ElementDataFile"]
    if data_file.upper().startswith("LIST") or "%" in data_file:
        raise ImageError(f"{name}: MetaImage over several data files; save it as one")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    local = data_file.upper() == "LOCAL"
    header_size = int(fields.get("HeaderSize", "0"))
    return Header(
        format="mha",
        shape=shape,
        dtype=np.dtype((">" if big else "<") + MHA_TYPES[fields["ElementType"]]),
        affine=_mha_affine(fields, dimensions),
        offset=-1 if header_size == -1 else (offset if local else 0) + header_size,
        encoding="zlib" if fields.get("CompressedData", "False").lower() == "true" else "raw",
        detached=None if local else data_file,
    )


def _mha_affine(fields: Mapping[str, str], dimensions: int) -> NDArray[np.float64]:
    def numbers(*keys: str) -> list[float] | None:
        found = next((fields[key] for key in keys if key in fields), None)
        return None if found is None else [float(n) for n in found.split()]

    n = min(dimensions, 3)
    affine = np.eye(4)
    spacing = numbers("ElementSpacing", "ElementSize") or [1.0] * dimensions
    directions = numbers("TransformMatrix", "Rotation", "Orientation")
    turn = np.eye(dimensions) if directions is None else np.reshape(directions, (dimensions, dimensions))
    affine[:n, :n] = turn[:n, :n].T * np.array(spacing[:n])  # a row of TransformMatrix is an axis's direction
    affine[:n, 3] = (numbers("Offset", "Position", "Origin") or [0.0] * n)[:n]
    return TO_RAS @ affine


def _text_header(stream: BinaryIO, is_last: Callable[[bytes], bool], name: str) -> tuple[list[bytes], int]:
    """Lines up to the last, without line ends, and where the data begin. A text header without end is refused."""
    lines: list[bytes] = []
    while line := stream.readline(65_536):
        lines.append(line.rstrip(b"\r\n"))
        if is_last(lines[-1]):
            return lines, stream.tell()
        if len(lines) > 10_000:
            break
    if lines and lines[0].startswith(b"NRRD") and b"data" in b"".join(lines):
        return lines, stream.tell()  # a detached NRRD header may end without a blank line
    raise ImageError(f"{name}: truncated: the header does not end")


def _check_sizes(shape: tuple[int, ...], name: str) -> None:
    if not shape or min(shape) < 1:
        raise ImageError(f"{name}: a volume of size {'x'.join(map(str, shape)) or 'nothing'} cannot be")


def _check_header(header: Header, name: str) -> None:
    if header.dtype.kind not in "buif":
        raise ImageError(f"{name}: voxels of type {header.dtype}; wanted grey integers or floats")
    if len(header.shape) < 2:
        raise ImageError(f"{name}: {len(header.shape)}-D data; wanted a picture or a volume")
