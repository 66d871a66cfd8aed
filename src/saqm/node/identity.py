"""Which instance a received data set is: the UIDs that decide what becomes of it, read without trusting the file."""

from __future__ import annotations

import re
import zlib
from io import BytesIO
from typing import BinaryIO, NamedTuple

from saqm.errors import ImageError

DEFLATED = "1.2.840.10008.1.2.1.99"
ENOUGH = 1 << 20  # bytes of a deflated data set in which its UIDs stand; they come first (groups 0008 and 0020)
AT_ONCE = 1 << 16
SERIES = 0x0020000E  # the last of the attributes looked for
UID = re.compile(r"[0-9][0-9.]{0,63}")  # PS3.5 9.1, leading zeros forgiven
LONGEST = 1024  # bytes of a value that is read
NAMES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
TAGS = [0x00080016, 0x00080018, 0x0020000D, SERIES]  # theirs


class Identity(NamedTuple):
    """The UIDs of an instance."""

    sop_class: str
    instance: str
    study: str
    series: str


def identify(stream: BinaryIO, syntax: str, *, most: int) -> Identity:
    """The UIDs of a data set that begins where the stream stands. Nothing behind them is read.

    Raises ImageError where they are not there, or a deflated data set grows to more than `most` bytes. It names the
    attribute and quotes nothing.
    """
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID as Syntax

    try:
        dataset = read_dataset(
            _inflated(stream, most) if syntax == DEFLATED else stream,
            Syntax(syntax).is_implicit_VR,
            Syntax(syntax).is_little_endian,
            stop_when=lambda tag, *_: tag > SERIES,
            defer_size=LONGEST,
            specific_tags=TAGS,
        )
        found = Identity(*(str(dataset.get(name) or "") for name in NAMES))
    except ImageError:
        raise
    except Exception as error:  # parsers raise whatever they like on broken bytes
        raise ImageError(f"cannot be read as DICOM ({type(error).__name__})") from error
    for name, uid in zip(NAMES, found, strict=True):
        if not UID.fullmatch(uid):
            raise ImageError(f"no {name}, or one that is no UID")
    return found


def _inflated(stream: BinaryIO, most: int) -> BinaryIO:
    """The beginning of a deflated data set; all of it is inflated, though not kept, to know how large it is."""
    inflating, kept, size = zlib.decompressobj(-zlib.MAX_WBITS), BytesIO(), 0
    while (block := stream.read(AT_ONCE)) or inflating.unconsumed_tail:
        part = inflating.decompress(inflating.unconsumed_tail + block, AT_ONCE)
        size += len(part)
        if size > most:
            raise ImageError(f"inflates to more than {most:,} bytes")
        if kept.tell() < ENOUGH:
            kept.write(part)
        if inflating.eof:
            break
    kept.seek(0)
    return kept
