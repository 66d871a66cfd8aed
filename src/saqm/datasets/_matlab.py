"""Numbers and cells of words from a MATLAB file, versions 5 to 7.2: all that LIVE publishes its scores in.

Not scipy.io.loadmat, which ends the whole process on some damaged files. Format: MathWorks, MAT-File Level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from saqm.errors import ManifestError

Variable = list[float] | list[str]
Order = Literal["<", ">"]

MAX_BYTES = 100_000_000  # of one variable once unpacked: LIVE's have a few kilobytes
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # by miTYPE
_MATRIX, _COMPRESSED = 14, 15
_WORDS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}  # of characters, by miTYPE
_CELL, _CHARACTERS, _FIRST_NUMERIC, _LAST_NUMERIC = 1, 4, 6, 15  # by mxCLASS
_HEADER = 128


def variables(path: Path, *names: str) -> list[Variable]:
    """Variables as flat lists, column by column: numbers, or the words of a cell array.

    Raises ManifestError for another file, for a variable that is not there, and for one that is neither.
    """
    try:
        data = path.read_bytes()
        if data[126:128] not in (b"IM", b"MI") or len(data) < _HEADER:
            raise ValueError("no MATLAB file of version 5 to 7.2; save it again with -v7")
        order: Order = "<" if data[126:128] == b"IM" else ">"
        found = dict(
            _variable(body, order, names) for kind, body in _elements(data[_HEADER:], order) if kind == _MATRIX
        )
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    absent = [name for name in names if found.get(name) is None]
    if absent:
        raise ManifestError(f"{path}: no variable {' and no '.join(absent)} of numbers or words")
    return [found[name] or [] for name in names]


def _elements(data: bytes, order: Order) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element; what is compressed is unpacked."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # up to four bytes within the tag
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            begin, end = at + 8, at + 8 + size
            end += 0 if kind == _COMPRESSED else -size % 8
        if begin + size > len(data) or (size > 4 and begin == at + 4):
            raise ValueError(f"truncated: an element of {size} bytes at byte {at} of {len(data)}")
        body, at = data[begin : begin + size], end
        if kind == _COMPRESSED:
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(body, MAX_BYTES)
            if unpacker.unconsumed_tail:
                raise ValueError(f"a variable of more than {MAX_BYTES} bytes")
            yield from _elements(body, order)
        else:
            yield kind, body


def _variable(body: bytes, order: Order, names: tuple[str, ...]) -> tuple[str, Variable | None]:
    """Name and content of a matrix; None for what is not asked for, or neither numbers nor words."""
    parts = list(_elements(body, order))
    if len(parts) < 3 or len(parts[0][1]) < 4:
        raise ValueError("a variable without flags, dimensions and name")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    name, content, mx_class = parts[2][1].decode("latin-1"), parts[3:], flags & 0xFF
    if name and name not in names:
        return name, None
    if mx_class == _CELL:
        return name, [_word(cell, order) for kind, cell in content if kind == _MATRIX]
    if _FIRST_NUMERIC <= mx_class <= _LAST_NUMERIC and content and content[0][0] in _NUMBERS:
        values = np.frombuffer(content[0][1], np.dtype(order + _NUMBERS[content[0][0]]))
        return name, [float(value) for value in values]
    return name, None


def _word(cell: bytes, order: Order) -> str:
    parts = list(_elements(cell, order))
    if len(parts) < 4 or len(parts[0][1]) < 4 or parts[3][0] not in _WORDS:
        raise ValueError("a cell that is no word")
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    if flags & 0xFF != _CHARACTERS:
        raise ValueError("a cell that is no word")
    encoding = _WORDS[parts[3][0]]
    return parts[3][1].decode(f"{encoding}-{'le' if order == '<' else 'be'}" if encoding == "utf-16" else encoding)
