"""Objects to a server (STOW-RS): a report from memory, files from the disk."""

from __future__ import annotations

import io
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saqm.dicomweb.pulling import identity
from saqm.dicomweb.server import DicomwebError, Server
from saqm.dicomweb.wire import DICOM, JSON, PIECE, Line, json_of
from saqm.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

REQUEST_BYTES, REQUEST_COUNT = 10_000_000, 10  # of one STOW request, if more than one file is in it: Orthanc's defaults
REFERENCED_INSTANCE, STORED, FAILED, FAILURE_REASON = "00081155", "00081199", "00081198", "00081197"
NO_REASON = -1
BUSY = {0x0110, *range(0xA700, 0xA800)}  # reasons of failure (PS3.18 I.2.2) that may pass: processing, no resources
TO_ALL = {401, 403, 404}  # whatever is sent


@dataclass(frozen=True)
class Pushed:
    """What became of one file: stored where `problem` is None."""

    path: Path
    problem: str | None = None


def stow(server: Server, *objects: Dataset | bytes | Path) -> None:
    """Store objects in one request (STOW-RS): data sets, or DICOM files as bytes or on the disk.

    A server that has an instance already may keep its own. Raises DicomwebError unless all were stored; its `retry`
    says whether trying again can help.
    """
    with closing(Line(server)) as line:
        failed = _stow(line, [_Body.of(each) for each in objects])
    if failed:
        raise _not_stored(server, failed)


def push(server: Server, paths: Iterable[str | Path]) -> Generator[Pushed]:
    """Store files (STOW-RS), as many in a request as are small enough together; what becomes of each, in order."""
    with closing(Line(server)) as line:
        together: list[tuple[Path, _Body]] = []
        for path in map(Path, paths):
            try:
                body = _Body.of(path)
            except ImageError as error:
                yield from _push(line, together)
                together = []
                yield Pushed(path, str(error))
                continue
            length = body.length + sum(other.length for _, other in together)
            if len(together) == REQUEST_COUNT or length > REQUEST_BYTES:
                yield from _push(line, together)
                together = []
            together.append((path, body))
        yield from _push(line, together)


@dataclass(frozen=True)
class _Body:
    """A DICOM file that is sent: in memory or on the disk."""

    instance: str
    length: int
    content: bytes | Path

    @classmethod
    def of(cls, given: Dataset | bytes | Path) -> _Body:
        """Raises ImageError for what is no DICOM file."""
        if isinstance(given, Path):
            try:
                return cls(identity(given, str(given))["instance"], given.stat().st_size, given)
            except OSError as error:
                raise ImageError(f"{given}: cannot be opened: {error.strerror or error}") from error
        if not isinstance(given, bytes):
            from pydicom import dcmwrite

            written = io.BytesIO()
            dcmwrite(written, given, enforce_file_format=True)
            return cls(str(given.SOPInstanceUID), written.tell(), written.getvalue())
        from pydicom.filebase import DicomBytesIO
        from pydicom.filereader import dcmread

        from saqm.image.dicom_header import guarded

        with guarded("object to be stored", "cannot be read as DICOM", []):
            dataset = dcmread(DicomBytesIO(given), stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
            return cls(str(dataset.SOPInstanceUID), len(given), given)

    def pieces(self) -> Iterator[bytes]:
        """Its bytes. Raises ImageError for a file that has changed since."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        left = self.length
        with self.content.open("rb") as stream:
            while left and (piece := stream.read(min(PIECE, left))):
                left -= len(piece)
                yield piece
        if left:
            raise ImageError(f"{self.content}: became shorter while it was sent")


def _push(line: Line, together: list[tuple[Path, _Body]]) -> Iterator[Pushed]:
    """What becomes of the files of one request; where it is refused as a whole, each is tried alone."""
    if not together:
        return
    try:
        failed = _stow(line, [body for _, body in together])
    except (DicomwebError, ImageError) as error:
        hopeless = isinstance(error, DicomwebError) and (error.retry or error.status in TO_ALL)
        if len(together) > 1 and not hopeless:
            for one in together:
                yield from _push(line, [one])
        else:
            yield from (Pushed(path, str(error)) for path, _ in together)
        return
    for path, body in together:
        told = {uid: reason for uid, reason in failed.items() if uid == body.instance}
        yield Pushed(path, str(_not_stored(line.server, told)) if told else None)


def _stow(line: Line, bodies: list[_Body]) -> dict[str, int]:
    """Send one request. Which instances were not stored, with the number of the reason (PS3.18 I.2.2)."""
    boundary = secrets.token_hex(16)
    heads = [
        f"--{boundary}\r\nContent-Type: {DICOM}\r\nContent-Length: {body.length}\r\n\r\n".encode() for body in bodies
    ]
    tail = f"--{boundary}--\r\n".encode()
    length = sum(map(len, heads)) + sum(body.length + len(b"\r\n") for body in bodies) + len(tail)

    def content() -> Iterator[bytes]:
        for head, body in zip(heads, bodies, strict=True):
            yield head
            yield from body.pieces()
            yield b"\r\n"
        yield tail

    headers = {
        "Content-Type": f'multipart/related; type="{DICOM}"; boundary={boundary}',
        "Content-Length": str(length),
    }
    return line.ask(
        "POST",
        "/studies",
        accept=JSON,
        headers=headers,
        body=content,
        take=partial(_unstored, f"{line.server.url}/studies", bodies),
        also=HTTPStatus.CONFLICT,
    )


def _unstored(where: str, bodies: list[_Body], response: HTTPResponse) -> dict[str, int]:
    """What was not stored, as the answer to a STOW request says: told as failed, or not told as stored."""
    told = json_of(where, response)
    told = told[0] if isinstance(told, list) and told else told
    stored, failed = ({_instance_of(item): item for item in _items(told, tag)} for tag in (STORED, FAILED))
    return {
        body.instance: _reason(failed.get(body.instance, {}))
        for body in bodies
        if body.instance in failed or body.instance not in stored
    }


def _items(told: object, tag: str) -> list[Any]:
    sequence = told.get(tag) if isinstance(told, dict) else None
    items = sequence.get("Value") if isinstance(sequence, dict) else None
    return items if isinstance(items, list) else []


def _instance_of(item: Any) -> str | None:
    try:
        return str(item[REFERENCED_INSTANCE]["Value"][0])
    except (KeyError, IndexError, TypeError):
        return None


def _reason(item: Any) -> int:
    try:
        return int(item[FAILURE_REASON]["Value"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return NO_REASON


def _not_stored(server: Server, failed: Mapping[str, int]) -> DicomwebError:
    told = ", ".join(f"{uid} ({reason:#06x})" if reason != NO_REASON else uid for uid, reason in failed.items())
    return DicomwebError(f"{server.url}/studies: not stored: {told}", retry=set(failed.values()) <= BUSY)
