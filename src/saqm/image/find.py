"""Paths become names that `read_image` opens: files, folders, globs, DICOMDIR, archives. Nothing is decoded here."""

from __future__ import annotations

import glob
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from saqm.errors import ImageError

MEMBER = "!/"  # "archive.zip!/folder/member.dcm"

# fmt: off
IMAGE_SUFFIXES = (
    ".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr",
    ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp",
)
OTHER_SUFFIXES = (  # not worth opening
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".rst", ".py", ".html", ".htm", ".xml", ".yaml", ".yml",
    ".toml", ".log", ".pdf", ".zip", ".parquet",
)
# fmt: on
HEAD = 512  # bytes that tell a DICOM file and a DICOMDIR
DIRECTORY = b"1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR
ENCRYPTED = 1  # bit of a member's flags
UNREADABLE = (OSError, zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, zlib.error, lzma.LZMAError)


def find_images(paths: Iterable[str | Path]) -> Iterator[str]:
    """Names of images under `paths`, lazily and in a fixed order (folders by name, depth first).

    A path given explicitly always comes, even when it does not exist or is no image: it is to be a row with a reason.
    In folders and archives hidden files are skipped; a file counts by a known suffix or, with none that is known, by
    DICOM's mark. A DICOMDIR given explicitly stands for the images it names, there or not. An archive's member is named
    "archive.zip!/member".
    """
    for path in paths:
        yield from _found(Path(path), explicit=True)


def read_member(name: str, *, max_bytes: int) -> bytes:
    """The bytes of "archive.zip!/member". Raises ImageError for damaged or encrypted archives and outsize members."""
    archive, _, member = name.partition(MEMBER)
    try:
        with zipfile.ZipFile(archive) as opened:
            if any(info.flag_bits & ENCRYPTED for info in opened.infolist()):
                raise ImageError(f"{archive}: encrypted archive: unpack it first")
            if not member:
                raise ImageError(f"{archive}: an archive: find_images lists its members ({archive}{MEMBER}NAME)")
            info = opened.getinfo(member)
            if info.file_size > max_bytes:
                raise ImageError(
                    f"{name}: unpacks to {info.file_size:,} bytes, limit {max_bytes:,}: raise it with max_pixels="
                )
            return opened.read(info)
    except FileNotFoundError as error:
        raise ImageError(f"{archive}: no such file") from error
    except KeyError as error:
        raise ImageError(f"{archive}: no member {member}") from error
    except UNREADABLE as error:
        raise ImageError(f"{name}: damaged archive: {error}") from error


def _found(path: Path, *, explicit: bool) -> Iterator[str]:
    name = str(path)
    if MEMBER in name:
        yield name
    elif path.is_dir():
        if explicit or not path.is_symlink():  # links may lead in circles
            try:
                entries = sorted(os.listdir(path))
            except OSError:
                yield name  # to be a row with the reason
                return
            for entry in entries:
                if not entry.startswith("."):
                    yield from _found(path / entry, explicit=False)
    elif path.suffix.lower() == ".zip" and path.is_file():
        yield from _members(name)
    elif path.is_file():
        if explicit and DIRECTORY in _head(path)[132:]:  # in a folder its files come by themselves
            yield from _referenced(path)
        elif explicit or counts_as_image(path.name, partial(_head, path)):
            yield name
    elif explicit and glob.has_magic(name):
        matches = sorted(glob.glob(name, recursive=True))
        for match in matches:
            yield from _found(Path(match), explicit=True)
        if not matches:
            yield name
    elif explicit:
        yield name


def counts_as_image(name: str, head: Callable[[], bytes]) -> bool:
    """Whether a file found in a folder or an archive is worth opening."""
    lower = name.lower()
    if lower.endswith(IMAGE_SUFFIXES):
        return True
    return not lower.endswith(OTHER_SUFFIXES) and _is_dicom(head())


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM" and DIRECTORY not in head[132:]


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(HEAD)
    except OSError:
        return b""


def _referenced(path: Path) -> Iterator[str]:
    """The image files that a DICOMDIR names, there or not; the DICOMDIR itself when it cannot be understood."""
    import pydicom

    from saqm.image.dicom_header import guarded

    found = []
    try:
        with guarded(str(path), "cannot be read as DICOMDIR", []):
            for record in pydicom.dcmread(path).DirectoryRecordSequence or ():
                if record.get("DirectoryRecordType") == "IMAGE" and (parts := record.get("ReferencedFileID")):
                    found.append(str(path.parent.joinpath(*([parts] if isinstance(parts, str) else parts))))
    except ImageError:
        found = [str(path)]
    yield from found


def _members(archive: str) -> Iterator[str]:
    """The images in an archive, by name; the archive itself when it is encrypted or damaged."""
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = sorted(opened.infolist(), key=lambda info: info.filename)
            if any(info.flag_bits & ENCRYPTED for info in infos):
                yield archive
                return
            for info in infos:
                parts = PurePosixPath(info.filename).parts
                hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
                if not (info.is_dir() or hidden) and counts_as_image(
                    info.filename, partial(_member_head, opened, info)
                ):
                    yield f"{archive}{MEMBER}{info.filename}"
    except UNREADABLE:
        yield archive


def _member_head(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with opened.open(info) as stream:
            return stream.read(HEAD)
    except UNREADABLE:
        return b""
