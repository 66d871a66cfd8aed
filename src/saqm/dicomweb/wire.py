"""One request after another over one connection, whatever is at its other end: limits, time, attempts, errors."""

from __future__ import annotations

import base64
import io
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit

from saqm.dicomweb.server import VARIABLES, DicomwebError, Server

T = TypeVar("T")

JSON = "application/dicom+json"
DICOM = "application/dicom"
LARGEST_JSON = 16 * 2**20  # bytes; Orthanc's hundred matches are 0.2 MB
PIECE = 64 * 2**10  # bytes read or sent at a time
LONGEST_PAUSE = 60.0  # seconds between two attempts, whatever the server asks for
TRANSIENT = {408, 425, 429}  # and 5xx but for these two
FINAL = {501, 505}


@dataclass(frozen=True)
class _Request:
    where: str  # what errors call it: the URL without what was asked behind the question mark
    method: str
    target: str
    headers: dict[str, str]
    body: Callable[[], Iterator[bytes]] | None


class Line:
    """A connection to one server, kept from request to request, and what is done when it fails."""

    def __init__(self, server: Server) -> None:
        """Nothing is sent yet. Raises DicomwebError for certificates that cannot be used."""
        self.server = server
        self._connection: HTTPConnection | None = None
        self._parts = urlsplit(server.url)
        self._tls = _tls(server) if self._parts.scheme == "https" else None

    def close(self) -> None:
        """Hang up; the next request calls again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(
        self,
        method: str,
        path: str,
        query: str = "",
        *,
        accept: str,
        take: Callable[[HTTPResponse], T],
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Iterator[bytes]] | None = None,
        also: int | None = None,
    ) -> T:
        """One request, tried again where that can help; `take` reads its answer. Raises DicomwebError.

        body: begins its bytes anew at each call. also: a status that `take` understands beside those of success.
        """
        sent = {"Accept": accept, "Accept-Encoding": "identity", **_authorization(self.server), **(headers or {})}
        target = f"{self._parts.path}{path}{'?' if query else ''}{query}"
        request = _Request(f"{self.server.url}{path}", method, target, sent, body)
        tried = 0
        while True:
            tried += 1
            try:
                return self._once(request, take, also)
            except DicomwebError as error:
                self.close()
                if not error.retry or tried == self.server.attempts:
                    raise
                time.sleep(min(max(self.server.pause * 2 ** (tried - 1), error.after), LONGEST_PAUSE))
            except BaseException:
                self.close()
                raise

    def _once(self, request: _Request, take: Callable[[HTTPResponse], T], also: int | None) -> T:
        where = request.where
        try:
            with closing(self._answer(request)) as response:
                if response.status != also:
                    _refuse(where, response)
                taken = take(response)
                if not response.isclosed():  # something is left that nobody wants to read
                    self.close()
        except TimeoutError:
            raise DicomwebError(f"{where}: took too long", retry=True) from None
        except ssl.SSLCertVerificationError as error:
            raise DicomwebError(
                f"{where}: its certificate is not to be trusted: {error.verify_message}; "
                f"{VARIABLES['ca']} names the authorities of your own"
            ) from None
        except ssl.SSLError as error:
            raise DicomwebError(f"{where}: TLS failed: {error.reason}", retry=True) from None
        except ConnectionError as error:  # before HTTPException: a connection closed without an answer is both
            raise DicomwebError(f"{where}: {error.strerror or 'the connection was lost'}", retry=True) from None
        except HTTPException as error:  # its words repeat what the server said
            raise DicomwebError(f"{where}: no proper HTTP ({type(error).__name__})", retry=True) from None
        return taken

    def _answer(self, request: _Request) -> HTTPResponse:
        kept, until = self._connection, time.monotonic() + self.server.seconds
        try:
            connection = kept or self._call(request.where)
            connection.sock.settimeout(self.server.timeout)
            timed: Any = partial(_Timed, silence=self.server.timeout, until=until)
            connection.response_class = timed
            try:
                body = None if request.body is None else _before(until, request.body())
                connection.request(request.method, request.target, body, request.headers)
            except (BrokenPipeError, ConnectionResetError):
                if kept is not None or request.body is None:
                    raise
                # a server that has read enough to refuse says why before it hangs up
            return connection.getresponse()
        except ConnectionError:
            self.close()
            if kept is None:
                raise
            return self._answer(request)  # it had been closed meanwhile, as servers do

    def _call(self, where: str) -> HTTPConnection:
        host, port, timeout = str(self._parts.hostname), self._parts.port, self.server.timeout
        if self._tls is None:
            connection = HTTPConnection(host, port, timeout=timeout)
        else:
            connection = HTTPSConnection(host, port, timeout=timeout, context=self._tls)
        try:
            connection.connect()
        except (ssl.SSLError, TimeoutError, ConnectionError):
            raise
        except (OSError, UnicodeError) as error:  # no such host, no route to it
            reason = getattr(error, "strerror", None) or "no such host"
            raise DicomwebError(f"{where}: cannot be reached: {reason}", retry=True) from None
        self._connection = connection
        return connection


def expect(where: str, response: HTTPResponse, *kinds: str) -> Message:
    """The media type of an answer, which has to be one of these and uncompressed. Raises DicomwebError."""
    told = response.getheader("Content-Type", "")
    kind, coding = told.partition(";")[0].strip().lower(), response.getheader("Content-Encoding", "identity")
    if kind not in kinds:
        shown = kind if re.fullmatch(r"[a-z0-9.+-]{1,30}/[a-z0-9.+-]{1,60}", kind) else "something"
        page = ": a page for people; is this the root of its DICOMweb?" if kind == "text/html" else ""
        raise DicomwebError(f"{where}: answers with {shown} where {' or '.join(kinds)} was wanted{page}")
    if coding != "identity":
        raise DicomwebError(f"{where}: a compressed answer, which was not asked for")
    message = Message()
    message["Content-Type"] = " ".join(told.split())
    return message


def pieces(where: str, response: HTTPResponse, largest: int) -> Iterator[bytes]:
    """The body of an answer, piece by piece. Raises DicomwebError where it is too large or cut short."""
    left = largest
    while piece := response.read(min(PIECE, left + 1)):
        left -= len(piece)
        if left < 0:
            raise DicomwebError(f"{where}: an answer of more than {largest:,} bytes")
        yield piece
    if response.length:
        raise DicomwebError(f"{where}: an answer that was cut short", retry=True)


def json_of(where: str, response: HTTPResponse) -> object:
    """The JSON in an answer. Raises DicomwebError."""
    expect(where, response, JSON, "application/json")
    body = b"".join(pieces(where, response, LARGEST_JSON))
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # their words repeat the body, which names patients
        raise DicomwebError(f"{where}: {len(body):,} bytes that are no JSON") from None


class _Timed(HTTPResponse):
    """An answer that has to be whole at a certain time: its headers and its body, however little comes at a time."""

    def __init__(self, sock: Any, *arguments: Any, silence: float, until: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Wire(sock, self.fp.detach(), silence, until))


class _Wire(io.RawIOBase):
    """What comes through a socket, until the time is over."""

    def __init__(self, sock: Any, raw: io.RawIOBase, silence: float, until: float) -> None:
        self._sock, self._raw, self._silence, self._until = sock, raw, silence, until

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Bytes read. Raises TimeoutError."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(min(self._silence, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Let go of the socket."""
        self._raw.close()
        super().close()


def _before(until: float, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if time.monotonic() > until:
            raise TimeoutError
        yield piece


def _tls(server: Server) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=server.ca)
        if server.certificate is not None:
            context.load_cert_chain(server.certificate, server.key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(file) for file in (server.ca, server.certificate, server.key) if file is not None)
        raise DicomwebError(f"{files}: no certificates in PEM that can be used: {error.strerror or error}") from error
    return context


def _authorization(server: Server) -> dict[str, str]:
    if server.token is not None:
        return {"Authorization": f"Bearer {server.token}"}
    if server.user is not None:
        secret = base64.b64encode(f"{server.user}:{server.password or ''}".encode()).decode("ascii")
        return {"Authorization": f"Basic {secret}"}
    return {}


def _refuse(where: str, response: HTTPResponse) -> None:
    """Raise DicomwebError for any status but success."""
    status = response.status
    if status in (HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT):
        return
    known = status in HTTPStatus._value2member_map_
    told = f"{where}: {status} {HTTPStatus(status).phrase}" if known else f"{where}: status {status}"
    if 300 <= status < 400:
        told += "; redirections are not followed, as credentials would go with them: give the address that it leads to"
    elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        told += f"; {VARIABLES['user']} and {VARIABLES['password']}, or {VARIABLES['token']}, say who asks"
    retry = status in TRANSIENT or (status >= 500 and status not in FINAL)
    after = response.getheader("Retry-After", "")
    raise DicomwebError(told, retry=retry, status=status, after=float(after) if re.fullmatch(r"\d{1,4}", after) else 0)
