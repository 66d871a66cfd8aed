"""What a server holds (QIDO-RS), and its instances on the disk (WADO-RS)."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from saqm.dicomweb.server import (
    EVERYTHING,
    SAFE_UID,
    DicomwebError,
    Found,
    Query,
    Server,
    from_environment,
    name_of,
    path_of,
    query_of,
)
from saqm.dicomweb.wire import DICOM, JSON, Line, expect, json_of, pieces
from saqm.errors import ImageError, OutputError
from saqm.writing import replacing

PAGE = 100  # matches asked for at a time
MOST_MATCHES = 2_000_000  # of one search: a listing without end has to end somewhere
LARGEST_HEAD = 16 * 2**10  # bytes before a part of a multipart answer
LARGEST_TAIL = 64 * 2**10  # bytes after it; more, and the connection is given up
# The star asks for the syntax that the instance is stored in; without it a server has to give uncompressed explicit
# little endian, and Orthanc 1.10.1 answers 500 where it cannot decode.
WANTED = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
UIDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}
DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Pulled:
    """What became of one instance: the file it is in, or why there is none. name: its URL."""

    name: str
    path: Path | None = None
    problem: str | None = None


def search(server: Server, query: Query = EVERYTHING) -> Generator[Found]:
    """The instances that a server holds, series by series, asked for page by page (QIDO-RS). Raises DicomwebError.

    A server may gain instances while it is listed; one that comes twice is given once a series.
    """
    with closing(Line(server)) as line:
        yield from _search(line, query)


def pull(server: Server, folder: Path, query: Query = EVERYTHING) -> Generator[Pulled]:
    """Fetch what is found into folder/STUDY/SERIES/INSTANCE.dcm, bytes as they are stored (WADO-RS).

    What is there already is not fetched again, so that a stopped run goes on. An instance that cannot be had does not
    end it. Raises DicomwebError where the server cannot be searched, and OutputError where nothing can be written.
    """
    with closing(Line(server)) as line, closing(Line(server)) as listing:
        for found in _search(listing, query):
            name = name_of(server, found)
            path = folder / found.study / found.series / f"{found.instance}.dcm"
            try:
                if not path.exists():
                    _make(path.parent)
                    _fetch(line, found, path)
            except DicomwebError as error:
                yield Pulled(name, problem=str(error))
            else:
                yield Pulled(name, path)


@contextmanager
def fetched(name: str, server: Server | None = None) -> Iterator[Path]:
    """The instance of a URL as a file that is gone after the block; the server's credentials from the environment.

    Raises DicomwebError, and OutputError where it cannot be written.
    """
    server, query = server or from_environment(name), query_of(name)
    if query.study is None or query.series is None or query.instance is None:
        raise DicomwebError(f"{name}: the URL of an instance is wanted: .../studies/UID/series/UID/instances/UID")
    with tempfile.TemporaryDirectory(prefix="saqm-") as folder, closing(Line(server)) as line:
        path = Path(folder) / f"{query.instance}.dcm"
        _fetch(line, Found(query.study, query.series, query.instance), path)
        yield path


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error


# Searching


def _search(line: Line, query: Query) -> Iterator[Found]:
    if query.study is not None and query.series is not None and query.instance is not None:
        yield Found(query.study, query.series, query.instance)
        return
    count = 0
    # First series, then their instances: not every server matches a series' attributes among instances.
    for study, series in _series(line, query):
        for (instance,) in _matches(line, f"/studies/{study}/series/{series}/instances", {}, (INSTANCE,)):
            count += 1
            if count > MOST_MATCHES:
                raise DicomwebError(f"{line.server.url}: more than {MOST_MATCHES:,} matches: search for less")
            yield Found(study, series, instance)


def _series(line: Line, query: Query) -> Iterator[tuple[str, ...]]:
    asked = {"Modality": query.modality, "StudyDate": query.date}
    if query.study is not None and query.series is not None and not any(asked.values()):
        return iter([(query.study, query.series)])
    asked["SeriesInstanceUID"] = query.series
    below = "/series" if query.study is None else f"/studies/{query.study}/series"
    known = {key: value for key, value in asked.items() if value is not None}
    return _matches(line, below, known, (STUDY, SERIES), known={STUDY: query.study})


def _matches(
    line: Line, path: str, asked: Mapping[str, str], tags: tuple[str, ...], known: Mapping[str, str | None] = {}
) -> Iterator[tuple[str, ...]]:
    """The UIDs of every match, asked for until a page is empty: a server may give fewer than it is asked for."""
    where, seen, offset = f"{line.server.url}{path}", set[tuple[str, ...]](), 0
    while True:
        query = urlencode({**asked, "limit": PAGE, "offset": offset})
        page = line.ask("GET", path, query, accept=JSON, take=partial(_page, where))
        matches = [tuple(known.get(tag) or _uid(where, item, tag) for tag in tags) for item in page]
        fresh = [match for match in dict.fromkeys(matches) if match not in seen]
        if not fresh:
            if len(page) == PAGE:  # there may be more behind it that nobody can see
                raise DicomwebError(f"{where}: gives the same {PAGE} matches at every offset; search for less")
            return  # none, or all of them again from a server that knows no pages
        yield from fresh
        seen.update(fresh)
        if len(seen) > MOST_MATCHES:
            raise DicomwebError(f"{where}: more than {MOST_MATCHES:,} matches: search for less")
        offset += len(page)


def _page(where: str, response: HTTPResponse) -> list[Mapping[str, Any]]:
    if response.status == HTTPStatus.NO_CONTENT:
        return []
    found = json_of(where, response)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise DicomwebError(f"{where}: a list of matches was wanted, not other JSON")
    return found


def _uid(where: str, item: Mapping[str, Any], tag: str) -> str:
    try:
        value = item[tag]["Value"][0]
    except (KeyError, IndexError, TypeError):
        raise DicomwebError(f"{where}: a match without ({tag[:4]},{tag[4:]})") from None
    if not isinstance(value, str) or not SAFE_UID.fullmatch(value):
        raise DicomwebError(f"{where}: a match whose ({tag[:4]},{tag[4:]}) is no UID")
    return value


# Fetching


def _fetch(line: Line, found: Found, path: Path) -> None:
    """One instance into a file, whole or not at all, and the one that was asked for."""
    where = f"{line.server.url}{path_of(found)}"
    with replacing(path) as beside:

        def take(response: HTTPResponse) -> None:
            with beside.open("wb") as file:
                for piece in _instance(where, response, line.server.largest):
                    file.write(piece)
            _check(where, beside, found)

        line.ask("GET", path_of(found), accept=WANTED, take=take)


def _instance(where: str, response: HTTPResponse, largest: int) -> Iterator[bytes]:
    """The bytes of the one instance in an answer, whether by itself or as the part of a multipart message."""
    kind = expect(where, response, "multipart/related", DICOM)
    body = pieces(where, response, largest + LARGEST_HEAD + LARGEST_TAIL)
    if kind.get_content_type() == DICOM:
        yield from body
        return
    boundary = kind.get_boundary() or ""
    if not 1 <= len(boundary) <= 70 or not boundary.isascii():  # RFC 2046
        raise DicomwebError(f"{where}: a multipart answer without a proper boundary")
    yield from _only_part(where, body, boundary.encode())


def _only_part(where: str, body: Iterator[bytes], boundary: bytes) -> Iterator[bytes]:
    """The content of a multipart body that has one part (RFC 2046). Raises DicomwebError for none, several or half."""
    torn = DicomwebError(f"{where}: a multipart answer that is no such, or was cut short", retry=True)
    held = b"\r\n"  # so that the first delimiter is like the others
    delimiter = b"\r\n--" + boundary
    while (begin := _head_end(held, delimiter)) is None:
        if len(held) > LARGEST_HEAD or not (piece := next(body, b"")):
            raise torn
        held += piece
    held = held[begin:]
    while (end := held.find(delimiter)) < 0:
        safe = len(held) - len(delimiter) + 1
        if safe > 0:
            yield held[:safe]
            held = held[safe:]
        if not (piece := next(body, b"")):
            raise torn
        held += piece
    yield held[:end]
    rest = held[end + len(delimiter) :]
    for piece in body:
        rest += piece
        if len(rest) > LARGEST_TAIL:
            break
    if not rest.startswith(b"--"):
        raise DicomwebError(f"{where}: several parts where one instance was asked for") if rest else torn


def _head_end(held: bytes, delimiter: bytes) -> int | None:
    """Where the content of the first part begins; None while that has not come."""
    start = held.find(delimiter + b"\r\n")
    if start < 0:
        return None
    end = held.find(b"\r\n\r\n", start + len(delimiter))  # a part without headers has its empty line at once
    return None if end < 0 else end + 4


def _check(where: str, path: Path, asked: Found) -> None:
    """Raise DicomwebError unless a file is the DICOM instance that was asked for."""
    try:
        told = identity(path, where)
    except ImageError:  # its words repeat what came
        raise DicomwebError(f"{where}: what came is no DICOM file") from None
    for level, uid in asked._asdict().items():
        if told.get(level, uid) != uid:
            raise DicomwebError(f"{where}: another {level} came than the one asked for")


def identity(path: Path, name: str) -> dict[str, str]:
    """The UIDs in a DICOM file, by level. Raises ImageError where it is none."""
    import pydicom
    from pydicom.filereader import read_file_meta_info

    from saqm.image.dicom_header import guarded

    with guarded(name, "cannot be read as DICOM", []):
        with path.open("rb") as stream:
            stream.seek(128)
            if stream.read(4) != b"DICM":
                raise ImageError(f"{name}: not a DICOM file")
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DEFLATED:  # to look further, all of it would have to be inflated
            told = {"instance": meta.get("MediaStorageSOPInstanceUID")}
        else:
            dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(UIDS.values()))
            told = {level: dataset.get(keyword) for level, keyword in UIDS.items()}
        if not all(told.values()):
            raise ImageError(f"{name}: does not say which instance it is")
        return {level: str(uid) for level, uid in told.items()}
