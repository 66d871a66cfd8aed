"""DICOMweb against a small server in this process: what it should do, and all that it should not."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from saqm import dicomweb
from saqm.dicomweb import DicomwebError, Found, Query, Server, pulling, storing, wire
from saqm.errors import OutputError, SaqmError

NAMES = ("CT_small.dcm", "MR_small.dcm", "examples_palette.dcm")
SECRET = "VeryPrivate^Person"  # what a server says must not come back in an error


def bundled(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def found_in(path: Path) -> Found:
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    return Found(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)


@dataclass
class Archive:
    """What the server holds and how it behaves; `attack` answers in its place while it gives True."""

    files: dict[Found, bytes] = field(default_factory=dict)
    modalities: dict[Found, str] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path with query, headers
    stored: list[bytes] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)  # instance -> reason of failure
    attack: Callable[[Handler], bool] = lambda _: False
    most: int = 1000  # matches of a page, whatever is asked for
    pages: bool = True  # whether it knows limit and offset
    url: str = ""

    def add(self, path: Path) -> Found:
        found = found_in(path)
        self.files[found] = path.read_bytes()
        self.modalities[found] = pydicom.dcmread(path, stop_before_pixels=True).Modality
        return found

    def copies(self, path: Path, count: int) -> list[Found]:
        """As many instances of one series, made of one file; their UIDs are as long as the file's own."""
        first, made = found_in(path), []
        for number in range(count):
            uid = first.instance[:-5] + f"1{number:04d}"
            made.append(first._replace(instance=uid))
            self.files[made[-1]] = path.read_bytes().replace(first.instance.encode(), uid.encode())
            self.modalities[made[-1]] = "CT"
        return made


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        self.answer(status, "application/dicom+json", json.dumps(value).encode())

    def raw(self, *pieces: bytes, pause: float = 0) -> None:
        self.close_connection = True
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(pause)

    def do_GET(self) -> None:
        archive = self.server.archive
        archive.asked.append(("GET", self.path, dict(self.headers)))
        if archive.attack(self):
            return
        parts = urlsplit(self.path)
        names = [part for part in parts.path.removeprefix("/root").split("/") if part]
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if len(names) == 6:
            self.wado(Found(*names[1::2]))
            return
        within = [
            found
            for found in archive.files
            if asked.get("Modality") in (None, archive.modalities[found])
            and asked.get("SeriesInstanceUID") in (None, found.series)
            and (len(names) < 2 or found.study == names[1])
            and (len(names) < 4 or found.series == names[3])
        ]
        matches = within if names[-1] == "instances" else list({found.series: found for found in within}.values())
        if archive.pages:
            start = int(asked["offset"])
            matches = matches[start : start + min(int(asked["limit"]), archive.most)]
        tags = ("0020000D", "0020000E", "00080018")
        self.json(
            [
                {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, found, strict=True)}
                | {"00100010": {"vr": "PN", "Value": [{"Alphabetic": SECRET}]}}
                for found in matches
            ]
        )

    def wado(self, found: Found) -> None:
        content = self.server.archive.files.get(found)
        if content is None:
            self.answer(404, "application/json", json.dumps({"PatientName": SECRET}).encode())
            return
        self.answer(200, 'multipart/related; type="application/dicom"; boundary=xyz', part(content))

    def do_POST(self) -> None:
        archive = self.server.archive
        archive.asked.append(("POST", self.path, dict(self.headers)))
        if archive.attack(self):
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
        kept, failed = [], []
        for each in message.get_payload():
            assert each.get_content_type() == "application/dicom"
            content = each.get_payload(decode=True)
            uid = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)).SOPInstanceUID
            item: dict[str, Any] = {"00081155": {"vr": "UI", "Value": [uid]}}
            if uid in archive.refused:
                failed.append({**item, "00081197": {"vr": "US", "Value": [archive.refused[uid]]}})
            else:
                kept.append(item)
                archive.stored.append(content)
        answer = {"00081199": {"vr": "SQ", "Value": kept}} | (
            {"00081198": {"vr": "SQ", "Value": failed}} if failed else {}
        )
        self.json(answer, 200 if not failed else 202 if kept else 409)


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, archive: Archive, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive, self.context = archive, context
        scheme = "dicomweb" if context is None else "dicomwebs"
        host = "127.0.0.1" if context is None else "localhost"
        archive.url = f"{scheme}://{host}:{self.server_port}/root"

    def get_request(self) -> Any:
        request, address = super().get_request()
        if self.context is not None:  # the handshake comes with the first byte read, in the thread of this request
            request = self.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, address

    def handle_error(self, *_: object) -> None: ...  # whoever is refused hangs up


@pytest.fixture
def serving() -> Iterator[Callable[..., Archive]]:
    running: list[tuple[FakeServer, threading.Thread]] = []

    def serve(context: ssl.SSLContext | None = None) -> Archive:
        server = FakeServer(Archive(), context)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return server.archive

    yield serve
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def archive(serving: Callable[..., Archive]) -> Archive:
    return serving()


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in dicomweb.server.VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


def reach(archive: Archive, **options: Any) -> Server:
    return Server(url=archive.url, **{"pause": 0, "timeout": 5, **options})


def part(content: bytes, boundary: bytes = b"xyz") -> bytes:
    return (
        b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--" + boundary + b"--\r\n"
    )


def multipart(content: bytes, kind: bytes = b'multipart/related; type="application/dicom"; boundary=xyz') -> bytes:
    """A whole answer, its end told by the end of the connection."""
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: " + kind + b"\r\n\r\n" + content


# URLs and servers


@pytest.mark.parametrize(
    ("url", "root", "query"),
    [
        ("dicomweb://pacs:8042/dicom-web", "http://pacs:8042/dicom-web", Query()),
        ("dicomwebs://pacs/", "https://pacs", Query()),
        ("https://pacs/a/b/studies/1.2", "https://pacs/a/b", Query(study="1.2")),
        ("dicomweb://pacs/x/studies/1.2/series/1.3", "http://pacs/x", Query("1.2", "1.3")),
        ("dicomweb://[::1]:80/studies/1.2/series/1.3/instances/1.4", "http://[::1]:80", Query("1.2", "1.3", "1.4")),
        ("dicomweb://p/x?Modality=MR&StudyDate=20240101-", "http://p/x", Query(modality="MR", date="20240101-")),
    ],
)
def test_a_url_names_a_server_and_what_is_on_it(url: str, root: str, query: Query) -> None:
    assert dicomweb.from_environment(url).url == root
    assert dicomweb.query_of(url) == query


def test_the_name_of_an_instance_leads_back_to_it() -> None:
    server, found = Server(url="https://pacs:1/x", token="t"), Found("1.2", "1.3", "1.4")
    name = dicomweb.name_of(server, found)
    assert name == "dicomwebs://pacs:1/x/studies/1.2/series/1.3/instances/1.4"
    assert dicomweb.query_of(name) == Query(*found)
    assert dicomweb.is_url(name)
    assert not dicomweb.is_url("study/scan.dcm")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("dicomweb://", "host"),
        ("ftp://pacs/x", "dicomweb://host"),
        ("dicomweb://pacs:port/x", "no URL"),
        ("dicomweb://pacs/x#y", "dicomweb://host"),
        ("dicomweb://pacs/x y\n", "dicomweb://host"),
        ("dicomweb://pacs/../x", "studies/UID"),
        ("dicomweb://pacs/series/1.2", "studies/UID"),
        ("dicomweb://pacs/studies/1.2%2f..", "a UID is wanted"),
        (f"dicomweb://pacs/studies/{'1' * 65}", "a UID is wanted"),
        ("dicomweb://pacs/studies/1/series/../instances/1", "a UID is wanted"),
        ("dicomweb://pacs/x?modality=mr", "a word of DICOM"),
        ("dicomweb://pacs/x?StudyDate=today", "YYYYMMDD"),
        ("dicomweb://pacs/x?PatientName=Doe", "only Modality= and StudyDate="),
    ],
)
def test_a_url_that_names_nothing_is_refused(url: str, said: str) -> None:
    with pytest.raises(DicomwebError, match=said):
        dicomweb.query_of(url)


@pytest.mark.parametrize("url", ["dicomweb://me:hush@pacs/x", "dicomweb://me:hush@pacs:port/x", "dicomweb://hush@"])
def test_a_url_with_credentials_is_refused_without_showing_them(url: str) -> None:
    with pytest.raises(DicomwebError, match="set SAQM_DICOMWEB_USER and SAQM_DICOMWEB_PASSWORD") as error:
        Server(url=url)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"user": "me", "token": "t"}, "choose one"),
        ({"password": "p"}, "a password without a user"),
        ({"user": "a:b"}, "colon"),
        ({"token": "a\r\nHost: other"}, "line break"),
        ({"token": "ü"}, "outside ASCII"),
        ({"ca": Path("ca.pem")}, "no TLS"),
        ({"attempts": 0}, "at least one attempt"),
        ({"timeout": float("nan")}, "above 0"),
        ({"url": "http://pacs/x/studies/1.2"}, "the root of a server"),
    ],
)
def test_a_server_that_cannot_be_meant_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DicomwebError, match=said):
        Server(**{"url": "http://pacs/x", **options})


def test_credentials_are_not_shown() -> None:
    assert "hush" not in repr(Server(url="http://pacs", user="me", password="hush"))
    assert "hush" not in repr(Server(url="http://pacs", token="hush"))


def test_the_environment_says_who_asks(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAQM_DICOMWEB_CA", "/no/such/file")  # of another server: this one speaks no TLS
    monkeypatch.setenv("SAQM_DICOMWEB_USER", "me")
    monkeypatch.setenv("SAQM_DICOMWEB_PASSWORD", "grüß dich")
    list(dicomweb.search(dicomweb.from_environment(archive.url)))
    sent = archive.asked[-1][2]["Authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == "me:grüß dich"
    monkeypatch.delenv("SAQM_DICOMWEB_USER")
    monkeypatch.delenv("SAQM_DICOMWEB_PASSWORD")
    monkeypatch.setenv("SAQM_DICOMWEB_TOKEN", "abc")
    list(dicomweb.search(dicomweb.from_environment(archive.url)))
    assert archive.asked[-1][2]["Authorization"] == "Bearer abc"


# Searching


def test_a_search_finds_what_is_there(archive: Archive) -> None:
    all_of_them = [archive.add(bundled(name)) for name in NAMES]
    server = reach(archive)
    assert list(dicomweb.search(server)) == all_of_them
    assert list(dicomweb.search(server, Query(modality="MR"))) == all_of_them[1:2]
    assert list(dicomweb.search(server, Query(study=all_of_them[2].study))) == all_of_them[2:]
    assert list(dicomweb.search(server, Query(series=all_of_them[0].series))) == all_of_them[:1]
    assert list(dicomweb.search(server, Query(study="9.9"))) == []


@pytest.mark.parametrize("most", [1000, 7, 1])
def test_a_search_goes_through_all_pages_however_small_the_server_makes_them(archive: Archive, most: int) -> None:
    made = archive.copies(bundled("CT_small.dcm"), 205 if most > 1 else 5)
    archive.most = most
    assert list(dicomweb.search(reach(archive))) == made


def test_pages_are_asked_for_as_they_are_needed(archive: Archive) -> None:
    archive.copies(bundled("CT_small.dcm"), 205)
    listing = dicomweb.search(reach(archive))
    next(listing)
    assert [urlsplit(path).query for _, path, _ in archive.asked] == ["limit=100&offset=0"] * 2  # series, instances
    listing.close()


def test_a_server_that_knows_no_pages_gives_everything_once(archive: Archive) -> None:
    made = archive.copies(bundled("CT_small.dcm"), 7)
    archive.pages = False
    assert list(dicomweb.search(reach(archive))) == made


def test_a_server_that_gives_one_page_for_ever_is_told_from_one_that_has_no_more(archive: Archive) -> None:
    archive.copies(bundled("CT_small.dcm"), pulling.PAGE)
    archive.pages = False
    with pytest.raises(DicomwebError, match="the same 100 matches at every offset"):
        list(dicomweb.search(reach(archive)))


def test_a_listing_without_end_ends(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "MOST_MATCHES", 150)
    archive.copies(bundled("CT_small.dcm"), 205)
    with pytest.raises(DicomwebError, match="more than 150 matches: search for less"):
        list(dicomweb.search(reach(archive)))


def test_no_content_is_no_match(archive: Archive) -> None:
    archive.attack = lambda handler: handler.answer(204, "text/plain", b"") or True
    assert list(dicomweb.search(reach(archive))) == []


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("text/html", f"<h1>Log in, {SECRET}</h1>", "text/html where application/dicom.json .* a page for people"),
        ("application/dicom+json", f"[{SECRET}", "bytes that are no JSON"),
        ("application/dicom+json", "[" * 100_000, "bytes that are no JSON"),
        ("application/dicom+json", f'{{"message": "{SECRET}"}}', "a list of matches was wanted"),
        ("application/dicom+json", f'["{SECRET}"]', "a list of matches was wanted"),
        ("application/dicom+json", "[{}]", r"a match without \(0020,000D\)"),
        ("application/dicom+json", '[{"0020000D": {"Value": null}}]', r"a match without \(0020,000D\)"),
        ("application/dicom+json", '[{"0020000D": {"Value": [7]}}]', "is no UID"),
        ("application/dicom+json", '[{"0020000D": {"Value": ["../../etc"]}}]', "is no UID"),
        ("application/dicom+json", '[{"0020000D": {"Value": [".."]}}]', "is no UID"),
        ("application/dicom+json", f'[{{"0020000D": {{"Value": ["{SECRET}"]}}}}]', "is no UID"),
        (f"{SECRET}; a=b", "[]", "answers with something where"),
    ],
)
def test_garbage_in_place_of_matches_is_told_and_not_repeated(
    archive: Archive, kind: str, body: str, said: str
) -> None:
    archive.attack = lambda handler: handler.answer(200, kind, body.encode()) or True
    with pytest.raises(DicomwebError, match=said) as error:
        list(dicomweb.search(reach(archive)))
    assert not error.value.retry
    assert len(archive.asked) == 1
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None
    assert f"127.0.0.1:{urlsplit(archive.url).port}/root" in str(error.value)


def test_an_answer_without_end_is_cut_off(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LARGEST_JSON", 100_000)

    def endless(handler: Handler) -> bool:
        handler.raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n\r\n[")
        for _ in range(1000):
            handler.raw(b" " * 100_000)
        return True

    archive.attack = endless
    with pytest.raises(DicomwebError, match="more than 100,000 bytes"):
        list(dicomweb.search(reach(archive)))


def test_a_compressed_answer_which_may_be_a_bomb_is_refused(archive: Archive) -> None:
    archive.attack = lambda handler: (
        handler.answer(200, "application/dicom+json", b"\x1f\x8b", Content_Encoding="gzip") or True
    )
    with pytest.raises(DicomwebError, match="a compressed answer"):
        list(dicomweb.search(reach(archive)))
    assert archive.asked[-1][2]["Accept-Encoding"] == "identity"


# Attempts and time


def failing(times: int, status: int, **headers: str) -> Callable[[Handler], bool]:
    left = [times]

    def attack(handler: Handler) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        handler.answer(status, "text/plain", SECRET.encode(), **headers)
        return True

    return attack


@pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
def test_what_may_pass_is_tried_again(archive: Archive, status: int) -> None:
    archive.attack = failing(3, status)
    assert list(dicomweb.search(reach(archive))) == []
    assert len(archive.asked) == 4


def test_what_does_not_pass_is_given_up_with_server_and_status(archive: Archive) -> None:
    archive.attack = failing(99, 503)
    with pytest.raises(DicomwebError, match=r"http://127.0.0.1:\d+/root/series: 503 Service Unavailable$") as error:
        list(dicomweb.search(reach(archive)))
    assert (error.value.retry, error.value.status, len(archive.asked)) == (True, 503, 4)


@pytest.mark.parametrize(
    ("status", "said"),
    [(400, "400 Bad Request$"), (401, "SAQM_DICOMWEB_TOKEN, say who asks"), (403, "403 Forbidden"), (501, "501 Not")],
)
def test_what_will_not_pass_is_not_tried_again(archive: Archive, status: int, said: str) -> None:
    archive.attack = failing(99, status)
    with pytest.raises(DicomwebError, match=said) as error:
        list(dicomweb.search(reach(archive)))
    assert (error.value.retry, error.value.status, len(archive.asked)) == (False, status, 1)
    assert SECRET not in str(error.value)


def test_attempts_wait_longer_and_longer_or_as_long_as_the_server_asks(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(wire.time, "sleep", waited.append)
    archive.attack = failing(3, 503)
    list(dicomweb.search(reach(archive, pause=1)))
    archive.attack = failing(3, 429, Retry_After="30")
    list(dicomweb.search(reach(archive, pause=1)))
    archive.attack = failing(1, 429, Retry_After="9000")
    list(dicomweb.search(reach(archive, pause=1)))
    assert waited == [1, 2, 4, 30, 30, 30, 60]


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DicomwebError, match=f"{port}/root/series: Connection refused") as error:
        list(dicomweb.search(Server(url=f"http://127.0.0.1:{port}/root", pause=0)))
    assert error.value.retry


def test_a_host_that_does_not_exist_is_told() -> None:
    with pytest.raises(DicomwebError, match="cannot be reached"):
        list(dicomweb.search(Server(url="http://no-such-host.invalid", attempts=1)))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "lost|Connection reset|without response"),
        (f"{SECRET}\r\n\r\n".encode(), "no proper HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 200, "no proper HTTP"),
        (b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 70_000, "no proper HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n[]", "cut short"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[", "no proper"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no proper"),
        (b"HTTP/1.1 777 " + SECRET.encode() + b"\r\nContent-Length: 0\r\n\r\n", "status 777$"),
    ],
)
def test_what_is_no_http_is_told_and_not_repeated(archive: Archive, said: bytes, told: str) -> None:
    archive.attack = lambda handler: handler.raw(said) is None
    with pytest.raises(DicomwebError, match=told) as error:
        list(dicomweb.search(reach(archive, attempts=1)))
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None


def test_silence_is_not_waited_for(archive: Archive) -> None:
    archive.attack = lambda _: time.sleep(1) is None
    with pytest.raises(DicomwebError, match="took too long") as error:
        list(dicomweb.search(reach(archive, timeout=0.1, attempts=2)))
    assert error.value.retry
    assert len(archive.asked) == 2


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n["])
def test_a_trickle_is_not_waited_for_either_be_it_of_headers_or_of_the_body(archive: Archive, begun: bytes) -> None:
    def trickle(handler: Handler) -> bool:
        handler.raw(begun, *[b" "] * 100, pause=0.02)
        return True

    archive.attack = trickle
    began = time.monotonic()
    with pytest.raises(DicomwebError, match="took too long"):
        list(dicomweb.search(reach(archive, timeout=1, seconds=0.2, attempts=1)))
    assert time.monotonic() - began < 1.5  # it would have gone on for two


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_a_redirection_is_refused_and_nobody_else_is_asked(
    serving: Callable[..., Archive], archive: Archive, status: int
) -> None:
    other = serving()
    archive.attack = lambda handler: handler.answer(status, "text/plain", b"", Location=f"{other.url}/series") or True
    with pytest.raises(DicomwebError, match="redirections are not followed, as credentials would go with them"):
        list(dicomweb.search(reach(archive, token="abc")))
    assert other.asked == []
    assert len(archive.asked) == 1


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_is_made_anew(archive: Archive) -> None:
    archive.copies(bundled("CT_small.dcm"), 3)
    seen = []

    def closing(handler: Handler) -> bool:
        seen.append(handler.client_address)
        handler.close_connection = len(seen) % 2 == 0  # without saying so
        return False

    archive.attack = closing
    server = reach(archive, attempts=1)
    assert len(list(dicomweb.search(server))) == 3
    assert 1 < len(set(seen)) < len(seen)


# Fetching


def test_what_is_pulled_is_what_is_stored(archive: Archive, tmp_path: Path) -> None:
    held = [archive.add(bundled(name)) for name in NAMES]
    pulled = list(dicomweb.pull(reach(archive), tmp_path))
    assert [each.problem for each in pulled] == [None] * 3
    assert [each.path for each in pulled] == [
        tmp_path / found.study / found.series / f"{found.instance}.dcm" for found in held
    ]
    assert [each.path.read_bytes() for each in pulled if each.path] == [archive.files[found] for found in held]
    assert [dicomweb.query_of(each.name) for each in pulled] == [Query(*found) for found in held]
    accepted = {headers["Accept"] for _, path, headers in archive.asked if "/instances/" in path}
    assert accepted == {'multipart/related; type="application/dicom"; transfer-syntax=*'}


def test_a_pull_goes_on_where_it_was(archive: Archive, tmp_path: Path) -> None:
    archive.copies(bundled("CT_small.dcm"), 4)
    stopped = dicomweb.pull(reach(archive), tmp_path)
    next(stopped), next(stopped)
    stopped.close()
    archive.asked.clear()
    assert len(list(dicomweb.pull(reach(archive), tmp_path))) == 4
    assert sum("/instances/" in path for _, path, _ in archive.asked) == 2


def test_one_broken_instance_does_not_end_a_pull(archive: Archive, tmp_path: Path) -> None:
    made = archive.copies(bundled("CT_small.dcm"), 4)
    archive.files[made[1]] = SECRET.encode() * 10
    archive.files[made[2]] = b""
    pulled = list(dicomweb.pull(reach(archive), tmp_path))
    assert [each.problem is None for each in pulled] == [True, False, False, True]
    assert str(pulled[1].problem).endswith("what came is no DICOM file")
    assert SECRET not in str(pulled)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        f"{made[0].instance}.dcm",
        f"{made[3].instance}.dcm",
    }


CT = bundled("CT_small.dcm").read_bytes()
WHERE = found_in(bundled("CT_small.dcm"))


def fetch(archive: Archive, **options: Any) -> bytes:
    with dicomweb.fetched(dicomweb.name_of(reach(archive), WHERE), reach(archive, **options)) as path:
        return path.read_bytes()


@pytest.mark.parametrize(
    "answer",
    [
        multipart(part(CT)),
        multipart(b"a preamble, to be ignored\r\n\r\n" + part(CT) + b"an epilogue"),
        multipart(part(CT, b"a b"), b'multipart/related; boundary="a b"; type="application/dicom"'),
        multipart(b"--xyz\r\n\r\n" + CT + b"\r\n--xyz--"),
        multipart(CT, b"application/dicom"),
        b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(CT[at : at + 999]), CT[at : at + 999]) for at in range(0, len(CT), 999))
        + b"0\r\n\r\n",
    ],
)
def test_an_instance_comes_in_several_forms(archive: Archive, answer: bytes) -> None:
    archive.attack = lambda handler: handler.raw(answer) is None
    assert fetch(archive) == CT


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_end_of_a_part_is_found_wherever_the_pieces_are_cut(size: int) -> None:
    content = b"\r\n--xy" * 50 + b"\r\n" + b"\r\n--xy" + bytes(range(256))
    body = b"\r\n" + part(content)
    pieces = iter([body[at : at + size] for at in range(0, len(body), size)])
    assert b"".join(pulling._only_part("", pieces, b"xyz")) == content


@pytest.mark.parametrize(
    ("answer", "said", "retry"),
    [
        (multipart(part(CT)[:-9]), "cut short", True),
        (multipart(part(CT)[:5000]), "cut short", True),
        (multipart(b""), "cut short", True),
        (multipart(b"--xyz--\r\n"), "cut short", True),
        (multipart(b"-" * 100_000), "cut short", True),
        (multipart(part(CT).removesuffix(b"--\r\n") + b"\r\n" + part(CT)), "several parts", False),
        (multipart(part(CT), b"multipart/related"), "without a proper boundary", False),
        (multipart(part(CT), b"multipart/related; boundary=" + b"x" * 71), "without a proper boundary", False),
        (multipart(part(CT), b'text/html; boundary="xyz"'), "a page for people", False),
        (multipart(part(b"<html>" + SECRET.encode())), "what came is no DICOM file", False),
        (multipart(part(b"\0" * 128 + b"DICM" + SECRET.encode())), "what came is no DICOM file", False),
        (multipart(part(bundled("MR_small.dcm").read_bytes())), "another study came", False),
        (multipart(part(CT.replace(WHERE.instance.encode(), WHERE.instance[:-1].encode() + b"9"))), "another", False),
        (multipart(part(CT.replace(WHERE.study.encode(), WHERE.study[:-1].encode() + b"9"))), "another study", False),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom\r\nContent-Length: 9999\r\n\r\nDICM", "cut short", True),
    ],
)
def test_what_is_not_the_instance_is_told_and_nothing_is_kept(
    archive: Archive, tmp_path: Path, answer: bytes, said: str, retry: bool
) -> None:
    archive.attack = lambda handler: "/instances/" in handler.path and handler.raw(answer) is None
    archive.add(bundled("CT_small.dcm"))
    (pulled,) = dicomweb.pull(reach(archive), tmp_path)
    assert pulled.path is None
    assert said in str(pulled.problem)
    assert SECRET not in str(pulled.problem)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert sum("/instances/" in path for _, path, _ in archive.asked) == (4 if retry else 1)


def test_an_instance_that_came_torn_is_asked_for_again(archive: Archive) -> None:
    archive.add(bundled("CT_small.dcm"))
    archive.attack = lambda handler: len(archive.asked) == 1 and handler.raw(multipart(part(CT)[:5000])) is None
    assert fetch(archive) == CT


def test_an_instance_that_is_too_large_is_cut_off(archive: Archive) -> None:
    archive.attack = lambda handler: handler.raw(multipart(part(CT + bytes(200_000)))) is None
    with pytest.raises(DicomwebError, match="an answer of more than"):
        fetch(archive, largest=len(CT))


def test_an_instance_is_streamed_to_the_disk(archive: Archive, tmp_path: Path) -> None:
    """What is held while an instance of 60 MB comes is a few pieces."""
    import tracemalloc

    tail = (b"\xe0\x7f\x10\x00OB\x00\x00" + (60_000_000).to_bytes(4, "little"), b"\0" * 60_000_000)
    head = CT[: CT.index(b"\xe0\x7f\x10\x00")]
    archive.files[WHERE] = head + tail[0] + tail[1]
    archive.modalities[WHERE] = "CT"
    whole = part(archive.files[WHERE])
    kind = "multipart/related; boundary=xyz"
    archive.attack = lambda handler: "/instances/" in handler.path and handler.answer(200, kind, whole) is None
    server = reach(archive)
    tracemalloc.start()
    (pulled,) = dicomweb.pull(server, tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pulled.problem is None
    assert pulled.path is not None
    assert pulled.path.stat().st_size == len(archive.files[WHERE])
    assert most < 10_000_000


def test_what_cannot_be_written_ends_a_pull(archive: Archive, tmp_path: Path) -> None:
    archive.add(bundled("CT_small.dcm"))
    (tmp_path / WHERE.study).write_text("in the way")
    with pytest.raises(OutputError, match="cannot be made"):
        list(dicomweb.pull(reach(archive), tmp_path))


def test_what_was_fetched_is_gone_afterwards(archive: Archive) -> None:
    archive.add(bundled("CT_small.dcm"))
    with dicomweb.fetched(dicomweb.name_of(reach(archive), WHERE)) as path:
        assert path.name == f"{WHERE.instance}.dcm"
    assert not path.parent.exists()
    with pytest.raises(DicomwebError, match="the URL of an instance is wanted"), dicomweb.fetched(archive.url):
        pass


# Storing


def test_what_is_stored_comes_back(archive: Archive) -> None:
    path = bundled("CT_small.dcm")
    dataset = pydicom.dcmread(bundled("MR_small.dcm"))
    dicomweb.stow(reach(archive), path, dataset, bundled("examples_palette.dcm").read_bytes())
    assert archive.stored[0] == path.read_bytes()
    assert pydicom.dcmread(pydicom.filebase.DicomBytesIO(archive.stored[1])) == dataset
    assert archive.stored[2] == bundled("examples_palette.dcm").read_bytes()


@pytest.mark.parametrize(("reason", "retry"), [(0xA700, True), (0x0110, True), (0x0122, False), (0xC000, False)])
def test_an_object_that_is_refused_is_told_with_the_reason(archive: Archive, reason: int, retry: bool) -> None:
    archive.refused = {WHERE.instance: reason}
    with pytest.raises(DicomwebError, match=rf"not stored: {WHERE.instance} \({reason:#06x}\)") as error:
        dicomweb.stow(reach(archive), bundled("CT_small.dcm"))
    assert error.value.retry is retry


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("application/dicom+json", b"{}", f"not stored: {WHERE.instance}"),
        ("application/dicom+json", b'{"00081199": {"Value": [{}]}}', f"not stored: {WHERE.instance}"),
        ("application/dicom+json", b'{"00081199": "", "00081198": []}', f"not stored: {WHERE.instance}"),
        ("application/dicom+json", b"", "no JSON"),
        ("text/html", b"welcome", "a page for people"),
    ],
)
def test_what_the_server_does_not_confirm_is_not_stored(archive: Archive, kind: str, body: bytes, said: str) -> None:
    def attack(handler: Handler) -> bool:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.answer(200, kind, body)
        return True

    archive.attack = attack
    with pytest.raises(DicomwebError, match=said):
        dicomweb.stow(reach(archive), bundled("CT_small.dcm"))


def test_a_server_that_refuses_before_it_has_read_everything_is_heard(archive: Archive) -> None:
    def too_large(handler: Handler) -> bool:
        handler.rfile.read(1000)
        handler.answer(413, "text/plain", b"")
        handler.close_connection = True
        return True

    archive.attack = too_large
    with pytest.raises(DicomwebError) as error:
        dicomweb.stow(reach(archive, attempts=1), CT + bytes(8_000_000))
    assert error.value.status == 413 or error.value.retry  # heard, or the connection was reset first


def test_a_failed_request_is_sent_again_from_its_beginning(archive: Archive) -> None:
    def once(handler: Handler) -> bool:
        if len(archive.asked) > 1:
            return False
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.answer(503, "text/plain", b"")
        return True

    archive.attack = once
    dicomweb.stow(reach(archive), bundled("CT_small.dcm"))
    assert archive.stored == [CT]


def test_files_are_pushed_a_few_in_a_request(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for found in archive.copies(bundled("CT_small.dcm"), 25):
        files.append(tmp_path / f"{found.instance}.dcm")
        files[-1].write_bytes(archive.files[found])
    assert [(each.path, each.problem) for each in dicomweb.push(reach(archive), files)] == [(f, None) for f in files]
    assert archive.stored == [file.read_bytes() for file in files]
    assert len(archive.asked) == 3
    monkeypatch.setattr(storing, "REQUEST_BYTES", 2 * len(CT))
    list(dicomweb.push(reach(archive), files[:5]))
    lengths = [int(headers["Content-Length"]) for _, _, headers in archive.asked[3:]]
    assert len(lengths) == 3
    assert max(lengths) < 2 * len(CT) + 1000


def test_a_file_that_cannot_be_pushed_costs_only_itself(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "notes.dcm").write_text("no DICOM")
    mr = bundled("MR_small.dcm")
    archive.refused = {found_in(mr).instance: 0x0122}
    files = [
        bundled("CT_small.dcm"),
        mr,
        tmp_path / "notes.dcm",
        tmp_path / "none.dcm",
        bundled("examples_palette.dcm"),
    ]
    problems = [each.problem for each in dicomweb.push(reach(archive), files)]
    assert [problem is None for problem in problems] == [True, False, False, False, True]
    assert "(0x0122)" in str(problems[1])
    assert "not a DICOM file" in str(problems[2])
    assert "cannot be opened" in str(problems[3]) or "No such file" in str(problems[3])


def test_a_request_that_is_refused_as_a_whole_is_tried_file_by_file(archive: Archive) -> None:
    def together(handler: Handler) -> bool:
        if int(handler.headers["Content-Length"]) < 2 * len(CT):
            return False
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.answer(413, "text/plain", b"")
        return True

    archive.attack = together
    files = [bundled("CT_small.dcm"), bundled("MR_small.dcm"), bundled("CT_small.dcm")]
    assert [each.problem for each in dicomweb.push(reach(archive), files)] == [None] * 3
    assert len(archive.asked) == 4


def test_wrong_credentials_are_not_tried_file_by_file(archive: Archive) -> None:
    def refuse(handler: Handler) -> bool:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.answer(401, "text/plain", b"")
        return True

    archive.attack = refuse
    problems = [e.problem for e in dicomweb.push(reach(archive), [bundled("CT_small.dcm"), bundled("MR_small.dcm")])]
    assert all("401 Unauthorized" in str(problem) for problem in problems)
    assert len(archive.asked) == 1


# TLS


@dataclass(frozen=True)
class Certificates:
    ca: Path
    server: Path
    client: Path
    other: Path  # of the same names, by nobody we know


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed; certificates for the test are made with it")

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    san = ("-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE")
    key_usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-x509", *curve, "-subj", "/CN=ca", *key_usage, "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", "-x509", *curve, "-subj", "/CN=localhost", *san, "-keyout", "o.key", "-out", "o.pem")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl("req", "-x509", *curve, "-subj", f"/CN={name}", *san, *signed, "-keyout", f"{name}.key", "-out", name)
        (folder / f"{name}.pem").write_text((folder / name).read_text() + (folder / f"{name}.key").read_text())
    (folder / "other.pem").write_text((folder / "o.pem").read_text() + (folder / "o.key").read_text())
    return Certificates(*(folder / f"{name}.pem" for name in ("ca", "server", "client", "other")))


def context_of(certificate: Path, clients: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
    context.load_cert_chain(certificate)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def test_a_server_of_our_own_authority_is_trusted(
    serving: Callable[..., Archive], certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = serving(context_of(certificates.server))
    found = archive.add(bundled("CT_small.dcm"))
    monkeypatch.setenv("SAQM_DICOMWEB_CA", str(certificates.ca))
    server = dicomweb.from_environment(archive.url)
    assert list(dicomweb.search(server)) == [found]
    with dicomweb.fetched(dicomweb.name_of(server, found)) as path:
        assert path.read_bytes() == CT


@pytest.mark.parametrize("who", ["other", "server without our authority", "by another name"])
def test_a_certificate_that_is_not_to_be_trusted_is_refused_before_anything_is_sent(
    serving: Callable[..., Archive], certificates: Certificates, who: str
) -> None:
    archive = serving(context_of(certificates.other if who == "other" else certificates.server))
    server = reach(archive, ca=None if who == "server without our authority" else certificates.ca, token="abc")
    if who == "by another name":
        server = replace(server, url=server.url.replace("localhost", "127.0.0.1"))
    with pytest.raises(DicomwebError, match=r"its certificate is not to be trusted: .*SAQM_DICOMWEB_CA") as error:
        list(dicomweb.search(server))
    assert not error.value.retry
    assert archive.asked == []


def test_a_server_may_want_a_certificate_of_ours(serving: Callable[..., Archive], certificates: Certificates) -> None:
    archive = serving(context_of(certificates.server, certificates.ca))
    server = reach(archive, ca=certificates.ca)
    assert list(dicomweb.search(replace(server, certificate=certificates.client))) == []
    for ours in (None, certificates.other):
        with pytest.raises(DicomwebError, match=r"TLS failed|connection was lost|reset|Broken pipe"):
            list(dicomweb.search(replace(server, certificate=ours, attempts=1)))
    assert len(archive.asked) == 1


def test_files_that_hold_no_certificate_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(DicomwebError, match=r"ca\.pem: no certificates in PEM"):
        list(dicomweb.search(Server(url="https://pacs", ca=tmp_path / "ca.pem")))
    with pytest.raises(DicomwebError, match=r"none\.pem: no certificates in PEM"):
        list(dicomweb.search(Server(url="https://pacs", ca=tmp_path / "none.pem")))


# The commands


def run(*arguments: str) -> Any:
    from saqm.cli import app

    return CliRunner().invoke(app, list(arguments))


def test_pull_prints_the_files(archive: Archive, tmp_path: Path) -> None:
    held = [archive.add(bundled(name)) for name in NAMES]
    done = run("pull", archive.url, "--out", str(tmp_path / "in"), "--modality", "MR")
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [str(tmp_path / "in" / held[1].study / held[1].series / f"{held[1].instance}.dcm")]
    assert done.stderr == "1 fetched\n"
    told = json.loads(run("pull", archive.url, "--out", str(tmp_path / "in"), "--json").stdout)
    assert [each["problem"] for each in told] == [None] * 3


def test_pull_tells_what_could_not_be_had(archive: Archive, tmp_path: Path) -> None:
    made = archive.copies(bundled("CT_small.dcm"), 2)
    archive.files[made[0]] = b"broken"
    done = run("pull", archive.url, "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "what came is no DICOM file" in done.stderr
    assert done.stderr.endswith("1 fetched, 1 not\n")


def test_pull_says_when_there_is_nothing(archive: Archive, tmp_path: Path) -> None:
    done = run("pull", archive.url, "--out", str(tmp_path), "--study", "1.2.3")
    assert isinstance(done.exception, SaqmError)
    assert "no image found in dicomweb://" in str(done.exception)
    done = run("pull", f"{archive.url}/studies/1.2", "--out", str(tmp_path), "--study", "1.2.3")
    assert done.exit_code == 2
    assert "the URL names another" in done.stderr


def test_push_stores_files_and_folders(archive: Archive, tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).write_bytes(bundled(name).read_bytes())
    done = run("push", str(tmp_path), "--to", archive.url)
    assert done.exit_code == 0, done.output
    assert done.stderr == "3 stored\n"
    assert len(archive.stored) == 3
    archive.refused = {WHERE.instance: 0x0122}
    done = run("push", str(tmp_path), "--to", archive.url)
    assert done.exit_code == 1
    assert done.stderr.endswith("2 stored, 1 not\n")


@pytest.fixture
def scored(toy_model: Path) -> Callable[..., list[dict[str, Any]]]:
    def score(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            done = run("score", *arguments, "--model", str(toy_model), "--format", "jsonl")
        assert done.exit_code == code, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return score


def test_a_url_scores_as_its_files_do_and_keeps_its_name(
    archive: Archive, scored: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held = [archive.add(bundled(name)) for name in NAMES]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remote = scored(archive.url)
    local = scored(*(str(bundled(name)) for name in NAMES))
    assert [record["path"] for record in remote] == [dicomweb.name_of(reach(archive), found) for found in held]
    assert [{**record, "path": ""} for record in remote] == [{**record, "path": ""} for record in local]
    assert [path for path in tmp_path.iterdir() if path.name.startswith("saqm-")] == []


def test_an_instance_that_cannot_be_scored_is_a_row_with_its_url(
    archive: Archive, scored: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    archive.add(bundled("rtdose.dcm"))
    ct, other = archive.copies(bundled("CT_small.dcm"), 2)
    archive.files[ct] = archive.files[other]
    dose, broken, fine = scored(archive.url, code=1)
    assert dose["reasons"][0].startswith(dose["path"])
    assert "dose" in dose["reasons"][0]
    assert "another instance came" in broken["reasons"][0]
    assert fine["status"] == "scored"
    assert str(tmp_path) not in json.dumps([dose, broken, fine])


def test_reports_can_be_made_of_what_a_url_names(
    archive: Archive, scored: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    pytest.importorskip("highdicom")
    from saqm.outputs.dicom import read_report

    held = [archive.add(bundled(name)) for name in NAMES]
    records = scored(archive.url, "--dicom-sr", str(tmp_path))
    read = [each for path in tmp_path.glob("*.dcm") for each in read_report(path)]
    assert {each.uids["instance"]: each.score for each in read} == {
        found.instance: record["score"] for found, record in zip(held, records, strict=True)
    }


def test_a_run_over_a_url_is_resumed_without_fetching_again(archive: Archive, toy_model: Path, tmp_path: Path) -> None:
    from saqm.batch import Journal, Settings, score_journaled

    made = archive.copies(bundled("CT_small.dcm"), 3)
    names = [dicomweb.name_of(reach(archive), found) for found in made]
    settings = Settings(model=toy_model)

    def stopped() -> None:
        with Journal(tmp_path / "out.jsonl", settings, resume=False) as journal:
            records = score_journaled(names, settings, journal)
            next(records), next(records)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    archive.asked.clear()
    with Journal(tmp_path / "out.jsonl", settings, resume=True) as journal:
        assert [record["path"] for record in score_journaled(names, settings, journal)] == names
    assert [path.rpartition("/")[2] for _, path, _ in archive.asked] == [made[2].instance]
