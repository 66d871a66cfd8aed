"""Uploads on the disk: checked while they come, under names of our own, and gone when nobody needs them any more.

A client's file name is never part of a path: only its suffix counts, and only one that an image may have.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO, Any

from python_multipart.exceptions import FormParserError, MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from saqm.image.find import IMAGE_SUFFIXES
from saqm.service.problems import Problem, busy

FOLDER = "saqm-serve-"
LOCK = "lock"  # held while the process lives, so that a successor can tell what a crashed one left
PART = "file"  # what the parts of a form are called
LONGEST_NAME = 255  # characters of a client's file name
SLOWEST = 32_768  # bytes a second that a client has to send on average, once its grace is over
ZIP = (b"PK\x03\x04", b"PK\x05\x06")

# What may come as a bare body, and the suffix it stands for where its name has none.
BARE = {
    "application/dicom": ".dcm",
    "application/gzip": ".nii.gz",
    "application/octet-stream": "",
    "image/bmp": ".bmp",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/tiff": ".tif",
    "image/webp": ".webp",
}
UNSAID = "application/x-www-form-urlencoded"  # what curl --data-binary calls a body where it is not told


@dataclass(frozen=True)
class Upload:
    """One file as it came: where it stands, what its records call it, its bytes; why it is refused, if it is."""

    path: Path
    name: str
    size: int
    refused: str | None = None


@dataclass(frozen=True)
class Limits:
    """What one upload may have: bytes, files, and seconds of waiting for more."""

    max_body: int
    max_files: int
    read_seconds: float


class Store:
    """The folder of all uploads of this process, and how many bytes stand in it."""

    def __init__(self, parent: Path | None, max_bytes: int) -> None:
        """Make the folder, and remove those that crashed predecessors left. Raises OSError."""
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        _sweep(parent)
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=parent))
        self._lock = _locked(self.folder / LOCK, make=True)
        self.max_bytes, self.bytes = max_bytes, 0
        self.turn = Lock()  # bodies are written in threads

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def parcel(self) -> Parcel:
        """A place for the files of one request."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(0o700)
        return Parcel(self, folder)


class Parcel:
    """The files of one request. `remove` it when they are no longer needed."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.files: list[Upload] = []
        self.bytes = 0

    def take(self, count: int) -> None:
        """Account for bytes. Raises Problem where the store is full."""
        with self.store.turn:
            if self.store.bytes + count > self.store.max_bytes:
                raise busy("all the room for uploads is in use; ask again, or forget jobs that are done", 30)
            self.store.bytes += count
            self.bytes += count

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with self.store.turn:
            self.store.bytes -= self.bytes
            self.bytes = 0


Receive = Callable[[], Awaitable[Any]]


async def receive_upload(
    receive: Receive, headers: Mapping[str, str], name: str | None, parcel: Parcel, limits: Limits
) -> None:
    """Write the body of a request into a parcel, as fast as it comes and no further than the limits.

    `name` is that of a bare body. Raises Problem: 408, 413, 415, 422, 429, 507.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "a packed body (Content-Encoding) is not taken; send it as it is")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.max_body:
        raise _too_large(limits.max_body)
    sink = _sink(headers.get("content-type", ""), name, parcel, limits)
    with _full_disk_told():
        try:
            async for chunk in _chunks(receive, limits):
                await asyncio.to_thread(sink.feed, chunk)
            await asyncio.to_thread(sink.finish)
        finally:
            sink.close()
    if not parcel.files:
        raise Problem(422, f"no file came; send one or more parts called {PART!r}, or one file as the body")


async def _chunks(receive: Receive, limits: Limits) -> Any:
    """The body. A client has `read_seconds` of grace in all, and more only as long as it keeps sending."""
    loop = asyncio.get_running_loop()
    began, count, more = loop.time(), 0, True
    while more:
        left = began + limits.read_seconds + count / SLOWEST - loop.time()
        try:
            message = await asyncio.wait_for(receive(), min(max(left, 0), limits.read_seconds))
        except TimeoutError as error:
            raise Problem(408, f"the body came too slowly; {limits.read_seconds:g} s is what is waited") from error
        if message["type"] != "http.request":
            raise ClientGone
        chunk, more = message.get("body", b""), message.get("more_body", False)
        count += len(chunk)
        if count > limits.max_body:
            raise _too_large(limits.max_body)
        if chunk:
            yield chunk


class ClientGone(Exception):
    """Nobody waits for an answer any more."""


class _Writer:
    """Writes files into a parcel, one after the other."""

    def __init__(self, parcel: Parcel, max_files: int) -> None:
        self._parcel, self._max_files = parcel, max_files
        self._stream: IO[bytes] | None = None
        self._path, self._name, self._size, self._head = parcel.folder, "", 0, b""

    def begin(self, name: str, suffix: str) -> None:
        if len(self._parcel.files) >= self._max_files:
            raise Problem(413, f"more than {self._max_files} files; send them in several requests")
        self._path = self._parcel.folder / f"{secrets.token_hex(8)}{suffix}"
        self._name, self._size, self._head = name, 0, b""
        self._stream = self._path.open("xb")

    def write(self, data: bytes) -> None:
        if self._stream is not None:
            self._parcel.take(len(data))
            self._head = self._head or data[:4]
            self._size += len(data)
            self._stream.write(data)

    def end(self) -> None:
        if self._stream is None:
            return
        self._stream.close()
        self._stream = None
        refused = None
        if self._head.startswith(ZIP):
            refused = f"{self._name}: an archive; unpack it and send its files"
        self._parcel.files.append(Upload(self._path, self._name, self._size, refused))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


class _Bare:
    """One file as the body itself."""

    def __init__(self, writer: _Writer, name: str, suffix: str) -> None:
        self._writer = writer
        writer.begin(name, suffix)

    def feed(self, data: bytes) -> None:
        self._writer.write(data)

    def finish(self) -> None:
        self._writer.end()

    def close(self) -> None:
        self._writer.close()


class _Form:
    """The parts of a form, multipart/form-data (RFC 7578)."""

    def __init__(self, writer: _Writer, boundary: bytes) -> None:
        self._writer = writer
        self._field = self._value = b""
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._more("_field", data[start:end]),
                "on_header_value": lambda data, start, end: self._more("_value", data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_file,
                "on_part_data": lambda data, start, end: self._writer.write(data[start:end]),
                "on_part_end": self._writer.end,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except (FormParserError, UnicodeDecodeError) as error:
            raise Problem(422, f"no multipart/form-data: {_plainly(error)}") from error

    def finish(self) -> None:
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise Problem(422, f"no multipart/form-data: {_plainly(error)}") from error
        if not self._ended:
            raise Problem(422, "no multipart/form-data: it ends before its last boundary")

    def close(self) -> None:
        self._writer.close()

    def _begin_part(self) -> None:
        self._field = self._value = self._disposition = b""

    def _more(self, which: str, data: bytes) -> None:
        setattr(self, which, getattr(self, which) + data)

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def _begin_file(self) -> None:
        _, said = parse_options_header(self._disposition)
        if said.get(b"name") != PART.encode():
            raise Problem(
                422, f"a part that is not called {PART!r}; files are parts of that name, options stand in the query"
            )
        if b"filename" not in said:
            raise Problem(422, f"a part {PART!r} without a file name: that is a field and no file (RFC 7578)")
        name = said[b"filename"].decode("utf-8", "replace")
        self._writer.begin(shown_name(name), image_suffix(name))

    def _end(self) -> None:
        self._ended = True


def _sink(content_type: str, name: str | None, parcel: Parcel, limits: Limits) -> _Bare | _Form:
    kind, said = parse_options_header(content_type)
    media = kind.decode("latin-1").lower()
    writer = _Writer(parcel, limits.max_files)
    if media == "multipart/form-data":
        boundary = said.get(b"boundary", b"")
        if not boundary:
            raise Problem(422, "multipart/form-data without its boundary")
        try:
            return _Form(writer, boundary)
        except FormParserError as error:
            raise Problem(422, f"no multipart/form-data: {_plainly(error)}") from error
    if media not in BARE and media != UNSAID:
        raise Problem(415, f"multipart/form-data is wanted, or one file as {', '.join(BARE)}")
    return _Bare(writer, shown_name(name or ""), image_suffix(name or "") or BARE.get(media, ""))


def shown_name(name: str) -> str:
    """What a record calls a file: the client's name without folders and without characters that cannot be seen."""
    base = name.replace("\\", "/").rpartition("/")[2]
    seen = "".join(c for c in base if c.isprintable()).strip()[-LONGEST_NAME:]
    return "upload" if seen.strip(".") == "" else seen


def image_suffix(name: str) -> str:
    """The suffix by which the reader may be told what a file is; none where it is none of an image."""
    lower = name.lower()
    return next((suffix for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True) if lower.endswith(suffix)), "")


def _too_large(limit: int) -> Problem:
    return Problem(413, f"more than {limit:,} bytes; send less at a time")


def _plainly(error: Exception) -> str:
    """Why a form is none, without what came."""
    return "malformed part" if isinstance(error, MultipartParseError) else type(error).__name__


@contextmanager
def _full_disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Problem(507, "an upload cannot be kept: its disk is full or cannot be written") from error


def _sweep(parent: Path) -> None:
    """Remove what our own crashed predecessors left: folders of ours that nobody holds."""
    for folder in parent.glob(f"{FOLDER}*"):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            continue
        lock = _locked(folder / LOCK, make=False)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()


def _locked(path: Path, *, make: bool) -> IO[bytes] | None:
    """The file, held by this process alone; None where another holds it, or it is not there."""
    import fcntl

    try:
        stream = path.open("xb" if make else "rb")
    except OSError:
        if make:
            raise
        return None
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        return None
    return stream
