"""What a DICOM file says before its pixels, complete enough to make objects that belong to it."""

from __future__ import annotations

import io
import logging
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from saqm.errors import ImageError
from saqm.image import DEFAULT_MAX_PIXELS
from saqm.image.decoded import BYTES_PER_PIXEL
from saqm.image.dicom import marked
from saqm.image.dicom_elements import text
from saqm.image.dicom_header import DEFLATED, NOT_IMAGES, guarded, looks_bare, read_header
from saqm.image.find import MEMBER, read_member
from saqm.outputs.dicom.maker import is_uid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataset import Dataset

HEAD = 4096  # bytes; the file meta information, which names the transfer syntax, ends before
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
# Type 2 of Patient and General Study (PS3.3 C.7.1.1, C.7.2.1): may be empty, must be there. Real files lack some.
TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
PIXELS_GROUP = 0x7FE0
CURVES_AND_OVERLAYS = range(0x5000, 0x6100)


def header_of(path: str | Path) -> Dataset:
    """The header of a DICOM image: no pixels, nothing private; what objects made of it need is there, empty if unknown.

    `path` may be "archive.zip!/member.dcm". Pixels are neither read nor checked: an image that cannot be scored has a
    header. Raises ImageError for what is no DICOM image, and for one that does not say which it is.
    """
    name = str(path)
    with _stream(name) as stream, pydicom_hushed(), guarded(name, "cannot be read as DICOM", []):
        dataset = _dataset(stream, name)
        for tag in [tag for tag in dataset.keys() if _needless(tag.group)]:  # noqa: SIM118 - iterating reads values
            del dataset[tag]
        dataset.decode()
        _check(dataset, name)
        for keyword in TYPE_2:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        return dataset


@contextmanager
def pydicom_hushed() -> Iterator[None]:
    """Keep out of the log what pydicom writes there in this thread: of an odd value, a birth date say, the value."""
    thread, logger = threading.get_ident(), logging.getLogger("pydicom")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def _needless(group: int) -> bool:
    return group % 2 == 1 or group == PIXELS_GROUP or group in CURVES_AND_OVERLAYS


@contextmanager
def _stream(name: str) -> Iterator[BinaryIO]:
    if MEMBER in name:
        yield io.BytesIO(read_member(name, max_bytes=DEFAULT_MAX_PIXELS * BYTES_PER_PIXEL))
        return
    if "://" in name:
        from saqm.dicomweb import DicomwebError, fetched

        try:
            with fetched(name) as path, path.open("rb") as stream:
                yield stream
        except DicomwebError as error:
            raise ImageError(str(error)) from error
        return
    with ExitStack() as opened:
        try:
            stream = opened.enter_context(Path(name).open("rb"))
        except OSError as error:
            raise ImageError(f"{name}: cannot be opened: {error.strerror or error}") from error
        yield stream


def _dataset(stream: BinaryIO, name: str) -> Dataset:
    import pydicom

    head = stream.read(HEAD)
    stream.seek(0)
    if DEFLATED.encode() in head:  # the image room knows how much such a file may grow
        return read_header(stream, name, DEFAULT_MAX_PIXELS).dataset
    if not marked(head) and not looks_bare(head):
        raise ImageError(f"{name}: not a DICOM file, so no report can refer to it")
    return pydicom.dcmread(stream, stop_before_pixels=True, force=not marked(head))


def _check(dataset: Dataset, name: str) -> None:
    """Raise ImageError for what objects cannot refer to."""
    if (modality := text(dataset, "Modality")) in NOT_IMAGES:
        raise ImageError(f"{name}: not an image to judge: {NOT_IMAGES[modality or '']} (Modality {modality})")
    for keyword in IDENTITY:
        value = dataset.get(keyword)
        if not is_uid(str(value)):
            said = f"{keyword} is no UID" if value else f"no {keyword}"
            raise ImageError(f"{name}: {said}, so no report can refer to it")
    if not dataset.get("Rows") or not dataset.get("Columns"):
        raise ImageError(f"{name}: not an image: no Rows or Columns")
