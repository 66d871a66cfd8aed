"""What stands before the pixels of a DICOM file, checked: is it an image, do its numbers agree, who decodes it."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from saqm.errors import ImageError, SaqmError
from saqm.image.decoded import BYTES_PER_PIXEL
from saqm.image.dicom_elements import integer, text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

MAGIC_AT, MAGIC = 128, b"DICM"

NOT_IMAGES = {  # by Modality (0008,0060)
    "SEG": "a segmentation",
    "RTDOSE": "a radiotherapy dose grid",
    "RTPLAN": "a radiotherapy plan",
    "RTSTRUCT": "a radiotherapy structure set",
    "SR": "a structured report",
    "KO": "a key object selection",
    "PR": "a presentation state",
    "REG": "a registration",
    "RWV": "a real world value map",
    "ECG": "a waveform",
    "HD": "a waveform",
    "DOC": "a document",
}
DIRECTORY = "1.2.840.10008.1.3.10"
DEFLATED = "1.2.840.10008.1.2.1.99"
# Encapsulated syntaxes for which the core install may lack a decoder that `dicom-decoders` brings.
WITH_EXTRA = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
WITHOUT_DECODER = {
    "1.2.840.10008.1.2.4.110": "JPEG XL",
    "1.2.840.10008.1.2.4.111": "JPEG XL",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}

# Core decoders first, so that installing an extra does not change the pixels of a lossy file by a grey level.
# GDCM is left out: it ends the whole process on some damaged frames (see jpeg.py).
DECODER_ORDER = ("pyjpegls", "pylibjpeg", "pydicom", "pillow", "imagecodecs")
JPEG_ORDER = ("pillow", "imagecodecs", "pylibjpeg")

UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Header:
    """What stands before the pixels, checked, and how to decode them."""

    name: str
    dataset: Dataset
    held: bool  # the data set, pixels and all, had to be read at once (deflated, or coded otherwise than it says)
    syntax: UID
    plugins: tuple[str, ...]  # decoders in the order to try; ("",) for native pixels
    options: dict[str, Any]  # for pydicom, where the file is silent
    rows: int
    columns: int
    frames: int
    bits_stored: int
    signed: bool
    photometric: str
    modality: str | None
    warnings: tuple[str, ...]

    @property
    def stored_range(self) -> tuple[int, int]:
        if self.signed:
            return -(2 ** (self.bits_stored - 1)), 2 ** (self.bits_stored - 1) - 1
        return 0, 2**self.bits_stored - 1


@contextmanager
def guarded(name: str, doing: str, notes: list[str]) -> Iterator[None]:
    """Turns whatever a parser says about foreign bytes into ImageError, and Python warnings into `notes`.

    The one broad except of this module: on damaged files pydicom and its decoders raise nearly everything
    (struct.error, KeyError, RecursionError, zlib.error, ...), and one bad file must cost one row.
    """
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except (SaqmError, NameError, KeyboardInterrupt, SystemExit, GeneratorExit):  # not the file's
            raise
        except BaseException as error:  # decoders in Rust panic past Exception
            raise ImageError(f"{name}: {doing}: {first_line(error)}") from error
        finally:
            for warning in caught:
                note = " ".join(str(warning.message).split())
                if note not in notes:
                    notes.append(note)


def first_line(error: BaseException) -> str:
    """An error of another library on one line of at most 300 characters, with its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def looks_bare(head: bytes) -> bool:
    """A data set without preamble begins with an element of group 0002 or 0008, in either byte order."""
    return head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08") and len(head) >= 16


def read_header(stream: BinaryIO, name: str, max_pixels: int) -> Header:
    """What a DICOM stream says before any pixel is decoded, checked. Raises ImageError for what cannot be trusted."""
    notes: list[str] = []
    with guarded(name, "cannot be read as DICOM", notes):
        return _checked_header(stream, name, max_pixels, notes)


def _checked_header(stream: BinaryIO, name: str, max_pixels: int, notes: list[str]) -> Header:
    import pydicom
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    head = stream.read(2048)
    if not head:
        raise ImageError(f"{name}: empty file")
    marked = head[MAGIC_AT : MAGIC_AT + 4] == MAGIC
    if not marked and not looks_bare(head):
        raise ImageError(f"{name}: not a DICOM file: no 'DICM' at byte {MAGIC_AT} and no DICOM element at the start")
    held = _refuse_deflate_bomb(stream, head, name, max_pixels) if marked else False
    stream.seek(0)
    dataset = pydicom.dcmread(stream, stop_before_pixels=not held, force=not marked)
    pixels_at = stream.tell()
    if not marked and not ("Rows" in dataset and "SOPClassUID" in dataset):
        raise ImageError(f"{name}: not a DICOM image: no preamble, and no Rows or SOPClassUID where it would have them")

    modality = text(dataset, "Modality")
    _refuse_what_is_no_image(dataset, modality, name)
    options: dict[str, Any] = {}
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if not syntax:
        implicit, little = dataset.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        options["transfer_syntax_uid"] = syntax
        dataset.file_meta.TransferSyntaxUID = syntax
        notes.append(f"no transfer syntax given; read as {syntax.name}")
    syntax = UID(syntax)
    decoder = _decoder(syntax, name)
    if not held and _coded_otherwise(stream, pixels_at, syntax):
        held = True
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=not marked)
        dataset.file_meta.TransferSyntaxUID = syntax
    available = _pixel_bytes(stream, pixels_at, dataset, syntax, name=name, held=held)

    rows, columns = integer(dataset, "Rows", name), integer(dataset, "Columns", name)
    if not rows or not columns or rows < 0 or columns < 0:
        raise ImageError(f"{name}: no geometry for the pixels: Rows {rows}, Columns {columns}")
    if rows * columns > max_pixels:
        raise ImageError(
            f"{name}: {rows}x{columns} = {rows * columns:,} pixels a frame; the limit is {max_pixels:,}: "
            "raise it with max_pixels= if the file is to be trusted"
        )
    plugins = _plugins(decoder, name)

    allocated, stored = integer(dataset, "BitsAllocated", name), integer(dataset, "BitsStored", name)
    if not allocated or not stored or not 1 <= stored <= allocated <= 64:
        raise ImageError(f"{name}: inconsistent depth: BitsStored {stored}, BitsAllocated {allocated}")
    high_bit = integer(dataset, "HighBit", name)
    if high_bit is not None and high_bit != stored - 1:
        notes.append(f"HighBit is {high_bit}, not BitsStored - 1 = {stored - 1}: ignored")
    samples = integer(dataset, "SamplesPerPixel", name) or 1
    for keyword, option in (
        ("PixelRepresentation", "pixel_representation"),
        ("PlanarConfiguration", "planar_configuration"),
    ):
        if integer(dataset, keyword, name) is None and (keyword == "PixelRepresentation" or samples > 1):
            options[option] = 0
            notes.append(f"{keyword} missing: taken as 0")
    if "SamplesPerPixel" not in dataset:
        options["samples_per_pixel"] = 1
        notes.append("SamplesPerPixel missing: taken as 1")

    count = integer(dataset, "NumberOfFrames", name)
    if count is not None and count < 0:
        raise ImageError(f"{name}: NumberOfFrames is {count}")
    if count == 0:
        notes.append("NumberOfFrames is 0: taken as 1")
    count = count or 1
    options["number_of_frames"] = count
    photometric = text(dataset, "PhotometricInterpretation") or ""
    if available is not None:
        bits = rows * columns * samples * allocated * count
        expected = math.ceil((bits * 2 / 3 if photometric == "YBR_FULL_422" else bits) / 8)
        _check_length(
            available, expected, f"{rows}x{columns}, {allocated} bits, {samples} samples, {count} frames", name
        )
        if available > expected + 1:
            notes.append(f"{available - expected:,} bytes more pixel data than the geometry asks for: ignored")
        if photometric == "YBR_FULL_422" and available * 2 >= expected * 3:
            raise ImageError(f"{name}: YBR_FULL_422 with pixel data of full size: the colours cannot be told")
    elif not held and (size := _coded_size(stream, pixels_at)) and size != (rows, columns):
        raise ImageError(f"{name}: Rows x Columns is {rows}x{columns}, but the compressed frame is {size[0]}x{size[1]}")
    if text(dataset, "QualityControlImage") == "YES" or text(dataset, "QualityControlSubject") == "YES":
        notes.append("quality-control image (of a phantom): not a patient's anatomy")
    return Header(
        name=name,
        dataset=dataset,
        held=held,
        syntax=syntax,
        plugins=plugins,
        options=options,
        rows=rows,
        columns=columns,
        frames=count,
        bits_stored=stored,
        signed=integer(dataset, "PixelRepresentation", name) == 1,
        photometric=photometric,
        modality=modality,
        warnings=tuple(notes),
    )


def _refuse_what_is_no_image(dataset: Dataset, modality: str | None, name: str) -> None:
    sop_class = text(dataset, "SOPClassUID") or text(dataset.file_meta, "MediaStorageSOPClassUID")
    if sop_class == DIRECTORY:
        raise ImageError(f"{name}: a DICOMDIR, not an image: find_images lists the files it names")
    if modality in NOT_IMAGES:
        raise ImageError(f"{name}: not an image to judge: {NOT_IMAGES[modality]} (Modality {modality})")


def _refuse_deflate_bomb(stream: BinaryIO, head: bytes, name: str, max_pixels: int) -> bool:
    """Whether the data set is deflated (pydicom inflates it as a whole); refuses one that would fill the memory."""
    if head[132:140] != b"\x02\x00\x00\x00UL\x04\x00":  # group length: where the data set begins
        return False
    start = 144 + int(struct.unpack("<L", head[140:144])[0])
    if DEFLATED.encode() not in head[144:start]:
        return False
    left = max_pixels * BYTES_PER_PIXEL
    stream.seek(start)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    while piece := stream.read(1 << 16):
        while piece:
            left -= len(inflate.decompress(piece, 1 << 22))
            piece = inflate.unconsumed_tail
            if left < 0:
                raise ImageError(
                    f"{name}: deflated data grow beyond {max_pixels * BYTES_PER_PIXEL:,} bytes; "
                    f"the limit is {BYTES_PER_PIXEL} bytes for each of max_pixels={max_pixels:,}"
                )
    return True


def _coded_otherwise(stream: BinaryIO, at: int, syntax: UID) -> bool:
    """Whether the pixel element has a VR where the transfer syntax has none, or the other way round."""
    stream.seek(at)
    element = stream.read(8)
    return len(element) == 8 and (element[4:6] in (b"OB", b"OW", b"UN", b"OF", b"OD")) == syntax.is_implicit_VR


def _pixel_bytes(stream: BinaryIO, at: int, dataset: Dataset, syntax: UID, *, name: str, held: bool) -> int | None:
    """How many bytes of native pixels are really there; None for encapsulated ones. Raises without pixel data."""
    if held:
        if not isinstance(pixels := dataset.get("PixelData"), bytes):
            raise ImageError(f"{name}: no pixel data")
        return None if syntax.is_encapsulated else len(pixels)
    order = "<" if syntax.is_little_endian else ">"
    stream.seek(at)
    element = stream.read(12)
    if len(element) < 12:
        raise ImageError(f"{name}: no pixel data")
    group, number = struct.unpack(order + "HH", element[:4])
    if (group, number) != (0x7FE0, 0x0010):
        raise ImageError(f"{name}: no pixel data, or floating-point ones (a parametric map): not an image to judge")
    value_at, length = at + 12, struct.unpack(order + "L", element[8:12])[0]
    if syntax.is_implicit_VR:
        value_at, length = at + 8, struct.unpack(order + "L", element[4:8])[0]
    if syntax.is_encapsulated:
        return None
    if length == UNDEFINED:
        raise ImageError(f"{name}: encapsulated pixel data under the native transfer syntax {syntax.name}")
    return min(int(length), stream.seek(0, io.SEEK_END) - value_at)


def _check_length(available: int, expected: int, wanted: str, name: str) -> None:
    if available < expected:
        raise ImageError(
            f"{name}: truncated pixel data, or wrong geometry: {available:,} bytes; {expected:,} are needed ({wanted})"
        )


def _coded_size(stream: BinaryIO, at: int) -> tuple[int, int] | None:
    """Rows and columns that the first compressed frame itself announces (JPEG, JPEG-LS, JPEG 2000); None if unknown."""
    stream.seek(at + 12)
    table = stream.read(8)  # basic offset table
    if len(table) < 8:
        return None
    stream.seek(struct.unpack("<L", table[4:])[0], io.SEEK_CUR)
    stream.read(8)
    code = stream.read(1 << 16)
    if code[:4] == b"\xff\x4f\xff\x51" and len(code) >= 24:  # JPEG 2000: SOC, SIZ
        width, height, left, top = struct.unpack(">4L", code[8:24])
        return height - top, width - left
    position = 2
    while code[:2] == b"\xff\xd8" and position + 9 <= len(code) and code[position] == 0xFF:
        marker, length = code[position + 1], struct.unpack(">H", code[position + 2 : position + 4])[0]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # a start of frame
            height, width = struct.unpack(">HH", code[position + 5 : position + 9])
            return (height, width) if height else None
        position += 2 + length
    return None


def _decoder(syntax: UID, name: str) -> Decoder:
    """pydicom's decoder of a transfer syntax, with plug-ins or without; ImageError for one that it does not know."""
    from pydicom.pixels.decoders.base import get_decoder

    try:
        return get_decoder(syntax)
    except NotImplementedError as error:
        called = WITHOUT_DECODER.get(syntax, syntax.name)
        raise ImageError(f"{name}: transfer syntax {called} ({syntax}): no decoder exists") from error


def _plugins(decoder: Decoder, name: str) -> tuple[str, ...]:
    """Plug-ins to try, in our order; ImageError that names the way out when none is installed."""
    from saqm.image import jpeg

    syntax = decoder.UID
    if not syntax.is_encapsulated:
        return ("",)
    jpeg.register()
    order = JPEG_ORDER if syntax.endswith((".4.50", ".4.51")) else DECODER_ORDER
    found = tuple(plugin for plugin in order if plugin in decoder.available_plugins)
    if not found:
        raise ImageError(
            f"{name}: transfer syntax {syntax.name} ({syntax}): no decoder is installed: "
            "pip install 'saqm[dicom-decoders]'"
        )
    return found
