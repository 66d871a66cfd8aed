"""DICOM becomes display-ready pixels: frame, palette or YBR, modality LUT, VOI LUT or window, inversion, region.

That order is DICOM's grey-scale pipeline (PS3.4 N.2): a window is given in rescaled units. Frames are streamed: a clip
is never held in memory as a whole. Every choice is recorded as a Step, every complaint of pydicom as a warning.
"""

from __future__ import annotations

import calendar
import io
import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from numpy.typing import NDArray

from saqm.errors import ImageError
from saqm.image.decoded import Decoded, Step, choose_frame
from saqm.image.dicom_display import displayed, history, identity, spacing, ultrasound_region, unit
from saqm.image.dicom_elements import text
from saqm.image.dicom_header import MAGIC, MAGIC_AT, WITH_EXTRA, Header, first_line, guarded, looks_bare, read_header

SUFFIXES = (".dcm", ".dicom", ".ima")
DATES = ("AcquisitionDate", "AcquisitionDateTime", "ContentDate", "SeriesDate", "StudyDate")  # the closest one first


@dataclass(frozen=True)
class Acquisition:
    """Where and when a picture was taken, as far as its header says. Holds nothing about the patient.

    device: manufacturer, model and station, in one text. date: "2026-03-14". instance: the SOP instance UID.
    """

    device: str | None = None
    date: str | None = None
    instance: str | None = None


def marked(head: bytes) -> bool:
    """Whether the bytes have DICOM's mark after the preamble."""
    return head[MAGIC_AT : MAGIC_AT + 4] == MAGIC


def claims(name: str, head: bytes) -> bool:
    """Whether a file is for this reader: DICM after the preamble, a bare data set, or a DICOM suffix."""
    return marked(head) or looks_bare(head) or name.lower().endswith(SUFFIXES)


def read(
    data: bytes | Path,
    name: str,
    *,
    frame: int | None,
    window: tuple[float, float] | None,
    axis: int | None,  # noqa: ARG001 - for volumes; a DICOM file has frames
    max_pixels: int,
) -> Decoded:
    """One frame, 0-based; `frame` may be None when there is only one. `window` is (center, width) in rescaled units.

    Raises ImageError for anything that is no readable image, with the file's `name` and the reason.
    """
    with _stream(data, name) as stream:
        header = read_header(stream, name, max_pixels)
        index = choose_frame(frame, header.frames, name)
        with closing(_decoded(stream, header, window, range(index, index + 1))) as found:
            return next(found)


def frames(
    data: bytes | Path,
    name: str,
    *,
    window: tuple[float, float] | None,
    axis: int | None,  # noqa: ARG001
    max_pixels: int,
) -> Iterator[Decoded]:
    """Every frame in order, one in memory at a time."""
    with _stream(data, name) as stream:
        header = read_header(stream, name, max_pixels)
        yield from _decoded(stream, header, window, range(header.frames))


def acquisition(data: bytes | Path, name: str, *, max_pixels: int) -> Acquisition:
    """Device, day and UID out of the header; no pixel is decoded. Raises ImageError as `read` does."""
    with _stream(data, name) as stream:
        dataset = read_header(stream, name, max_pixels).dataset
    with guarded(name, "header cannot be understood", []):
        maker, model, station = (text(dataset, k) for k in ("Manufacturer", "ManufacturerModelName", "StationName"))
        said = " ".join(part for part in (maker, model, f"({station})" if station else None) if part)
        dates = (_iso(text(dataset, keyword)) for keyword in DATES)
        return Acquisition(said or None, next(filter(None, dates), None), identity(dataset).get("instance"))


def _iso(date: str | None) -> str | None:
    """DICOM's date (PS3.5 6.2, or "2026.03.14" of old) at the start of a text, as ISO 8601; None for no such day."""
    found = re.match(r"(\d{4})\.?(\d\d)\.?(\d\d)", date or "")
    year, month, day = map(int, found.groups()) if found else (0, 0, 0)
    if year < 1 or not 1 <= month <= 12 or not 1 <= day <= calendar.monthrange(year, month)[1]:
        return None
    return f"{year:04}-{month:02}-{day:02}"


@contextmanager
def _stream(data: bytes | Path, name: str) -> Iterator[BinaryIO]:
    if isinstance(data, bytes):
        yield io.BytesIO(data)
        return
    try:
        stream = data.open("rb")
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened: {error.strerror or error}") from error
    with stream:
        yield stream


def _arrays(stream: BinaryIO, header: Header, wanted: range) -> Generator[tuple[NDArray[Any], str, tuple[str, ...]]]:
    """Decoded frames with the decoder's name and complaints; when a decoder fails, the next goes on from there."""
    from pydicom.pixels.utils import iter_pixels

    number, failures = wanted.start, []
    for plugin in header.plugins:
        notes: list[str] = []
        at_once = header.syntax.is_encapsulated and number == 0 and len(wanted) == header.frames
        indices = None if at_once else range(number, wanted.stop)  # None walks the fragments once, not once a frame
        source = header.dataset if header.held else stream
        pixels = iter_pixels(source, indices=indices, decoding_plugin=plugin, **header.options)
        with closing(cast("Generator[NDArray[Any]]", pixels)) as arrays:
            while number < wanted.stop:
                try:
                    with guarded(header.name, "pixels cannot be decoded", notes):
                        array = next(arrays, None)
                except ImageError as error:
                    failures.append(first_line(error.__cause__ or error))
                    break
                if array is None:
                    failures.append(f"the pixel data end after {number} of {header.frames} frames")
                    break
                yield array, plugin, tuple(notes)
                number += 1
        if number == wanted.stop:
            return
    way_out = ": pip install 'saqm[dicom-decoders]'" if header.syntax in WITH_EXTRA else ""
    raise ImageError(
        f"{header.name}: frame {number} cannot be decoded ({header.syntax.name}, {header.syntax}): "
        f"{'; '.join(failures)}{way_out}"
    )


def _decoded(stream: BinaryIO, header: Header, window: tuple[float, float] | None, wanted: range) -> Generator[Decoded]:
    """Display-ready frames. What is the same for all of them (region, history, identity) is read once."""
    notes: list[str] = list(header.warnings)
    with guarded(header.name, "header cannot be understood", notes):
        region, region_steps, region_spacing = ultrasound_region(header.dataset, header.rows, header.columns, notes)
        past = history(header.dataset, header.syntax, notes)
        uids = identity(header.dataset)

    def shown(index: int, array: NDArray[Any], plugin: str, complaints: tuple[str, ...]) -> Decoded:
        said = [*notes, *(note for note in complaints if note not in notes)]
        with guarded(header.name, f"frame {index} cannot be displayed", said):
            details = {"transfer_syntax": header.syntax.name, **({"decoder": plugin} if plugin else {})}
            pixels, valid, steps, values = displayed(array, header, index, window, said)
            if region is not None:
                valid = region if valid is None else valid & region
            spacing_mm = spacing(header.dataset, index) or region_spacing
            of_values = unit(header.dataset, index)
        return Decoded(
            pixels=pixels,
            format="dicom",
            valid=valid,
            spacing_mm=spacing_mm,
            modality=header.modality,
            frame=index if header.frames > 1 else None,
            frames=header.frames,
            uids=uids,
            bits_stored=header.bits_stored,
            transfer_syntax=str(header.syntax),
            steps=(Step("decode", details), *steps, *region_steps, *past),
            warnings=tuple(said),
            values=values,
            unit=of_values,
        )

    with closing(_arrays(stream, header, wanted)) as arrays:
        for index, decoded in zip(wanted, arrays, strict=True):
            yield shown(index, *decoded)  # not kept here: it is large
