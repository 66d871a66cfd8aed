"""The page on which readers rate, served to this machine alone. Standard library only.

Nobody else can reach it: it listens on the loopback address, every path begins with a random token, and a request that
names another host is refused, so that no page of the web can be pointed here (DNS rebinding). The page learns neither
file names nor methods nor scores: an image is a place in the reader's own order.
"""

from __future__ import annotations

import io
import json
import secrets
import socketserver
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from saqm.errors import ImageError, ManifestError, OutputError, SaqmError
from saqm.manifest import write_manifest
from saqm.rating.journal import Journal, Ratings, read_ratings
from saqm.rating.study import WORDS

LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")  # whatever the port, so that a tunnel from another one works
LARGEST_BODY = 4096  # bytes of a request
STATIC = {
    "": ("page.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class RatingServer(ThreadingHTTPServer):
    """Serves one study until it is shut down. `serve_forever` runs it, `url` opens it."""

    daemon_threads = True

    def __init__(
        self,
        journal: Journal,
        manifest: str | Path,
        *,
        on_problem: Callable[[str], None],
        reader: str | None = None,
        port: int = 0,
    ) -> None:
        """Listen. on_problem: told what the page must not be told, for it names files.

        reader: whoever rates; None is asked on the page. port: 0 takes a free one. Raises OutputError for a port that
        cannot be had.
        """
        self.journal, self.manifest, self.reader, self.on_problem = journal, Path(manifest), reader, on_problem
        self.token = secrets.token_urlsafe(16)
        self.turn = Lock()  # one change at a time
        self.readers: list[str] = []
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise OutputError(
                f"port {port} cannot be had: {error.strerror}; leave --port out to get a free one"
            ) from error

    def server_bind(self) -> None:
        """Bind without asking a name server what this machine is called, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, self.server_address[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """Tell what went wrong while answering; a browser that hangs up is nothing wrong."""
        del request, client_address
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | TimeoutError):
            self.on_problem(f"{type(error).__name__}: {error}")

    @property
    def url(self) -> str:
        """The page's address, with its token."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    def export(self) -> Ratings:
        """Write the manifest of what stands in the journal. Raises OutputError."""
        ratings = read_ratings(self.journal.path)
        write_manifest(ratings.manifest(), self.manifest)
        return ratings

    def serve_until_interrupted(self) -> Ratings:
        """Serve until Ctrl-C, then write the manifest."""
        with self, suppress(KeyboardInterrupt):
            self.serve_forever()
        return self.export()

    # What the page asks for

    def study(self) -> dict[str, object]:
        """What the page has to know of the study."""
        study = self.journal.study
        return {
            "question": study.scale.name,
            "low": study.scale.low,
            "high": study.scale.high,
            "words": WORDS,
            "graded": study.graded,
            "reader": self.reader,
        }

    def begin(self, reader: str) -> dict[str, object]:
        """A reader, known from now on by a number, and how far he is."""
        name = self.reader or reader
        state = self._state(name)
        if name not in self.readers:
            self.readers.append(name)
        return state | {"number": self.readers.index(name)}

    def rate(self, number: int, place: int, score: float) -> dict[str, object]:
        """Note a rating; the manifest is written with the last."""
        self.journal.rate(self.readers[number], place, score)
        state = self._state(self.readers[number])
        if state["place"] == state["total"]:
            self.export()
        return state

    def withdraw(self, number: int, place: int) -> dict[str, object]:
        """Take back the last rating."""
        self.journal.withdraw(self.readers[number], place)
        return self._state(self.readers[number])

    def picture(self, number: int, place: int) -> bytes:
        """The image at a place of a reader's order, as PNG."""
        order, _ = self.journal.standing(self.readers[number])
        try:
            return _png(self.journal.study.picture(order[place]).pixels)
        except ImageError as error:
            self.on_problem(str(error))
            raise ManifestError(
                "This image can no longer be shown; the terminal says why. Reload the page when that is mended."
            ) from error

    def _state(self, name: str) -> dict[str, object]:
        order, ratings = self.journal.standing(name)
        return {"place": len(ratings), "total": len(order)}


def _png(pixels: NDArray[np.float32]) -> bytes:
    """Pixels in 0..1 as an 8-bit PNG."""
    from PIL import Image as pillow

    buffer = io.BytesIO()
    pillow.fromarray(np.rint(pixels * 255).astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = "saqm", ""
    timeout = 60  # seconds that an idle connection is kept

    @property
    def _served(self) -> RatingServer:
        return cast(RatingServer, self.server)

    def do_GET(self) -> None:
        what = self._asked()
        if what is None:
            return
        if what in STATIC:
            name, kind = STATIC[what]
            self._send(HTTPStatus.OK, Path(__file__).with_name("static").joinpath(name).read_bytes(), kind)
        elif what == "study":
            self._send_json(HTTPStatus.OK, self._served.study())
        elif (parts := what.split("/"))[0] == "image" and len(parts) == 3:
            self._answer(lambda: self._served.picture(_index(parts[1]), _index(parts[2])))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        what = self._asked()
        if what is None:
            return
        length = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json" or not length.isdecimal():
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON with its length is wanted")
        elif int(length) > LARGEST_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{length} bytes; up to {LARGEST_BODY} are taken")
        elif what not in ("begin", "rating", "withdrawal", "pause"):
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here")
        else:
            self._answer(lambda: self._change(what, self.rfile.read(int(length))))

    def _change(self, what: str, body: bytes) -> Mapping[str, object]:
        asked = json.loads(body)
        with self._served.turn:
            if what == "begin":
                return self._served.begin(str(asked["reader"]))
            if what == "pause":
                self._served.export()
                return {}
            number, place = _index(asked["number"]), _index(asked["place"])
            if what == "rating":
                return self._served.rate(number, place, asked["score"])
            return self._served.withdraw(number, place)

    def _asked(self) -> str | None:
        """The path behind the token; None where the request was refused."""
        host = self.headers.get("Host", "").rpartition(":")
        if (host[0] or host[2]) not in HOSTS:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1 and localhost only")
            return None
        _, token, what = (*self.path.split("/", 2), "", "")[:3]
        if not secrets.compare_digest(token.encode(), self._served.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here; use the address that saqm rate printed")
            return None
        return what

    def _answer(self, work: Callable[[], bytes | Mapping[str, object]]) -> None:
        """What the work gives, or why there is nothing: 409 where it does not fit the study as it stands."""
        try:
            made = work()
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, IndexError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"not understood: {type(error).__name__}")
        except OutputError as error:
            self._served.on_problem(str(error))
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "Something could not be written; the terminal says what.")
        except SaqmError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        else:
            if isinstance(made, bytes):
                self._send(HTTPStatus.OK, made, "image/png")
            else:
                self._send_json(HTTPStatus.OK, made)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._send_json(status, {"error": reason})

    def _send_json(self, status: HTTPStatus, content: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """The library does not print."""


def _index(value: object) -> int:
    """A place or a reader's number. Raises IndexError."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise IndexError(value)
