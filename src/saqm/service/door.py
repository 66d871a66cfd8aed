"""Everything that holds for every request: who may enter, what each answer carries, what is noted of it.

Plain ASGI, so that nothing stands between the client's bytes and whoever reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from saqm.service.keys import Keys
from saqm.service.problems import MEDIA_TYPE, Problem, fault_told
from saqm.service.settings import LOOPBACK, ServeSettings
from saqm.service.telemetry import Telemetry, log
from saqm.service.uploads import ClientGone

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
STATIC = "/static/"
WITHOUT_KEY = ("/", "/healthz", "/readyz", "/openapi.json", "/v1/limits")  # and STATIC: they say nothing of anybody
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CLIENT_GONE = 499  # nginx's word for it; nobody sees it but the log
LINGER = 2.0  # seconds that what a refused client still sends is taken, so that it gets to read why


class Door:
    """The application behind its door."""

    def __init__(self, app: App, settings: ServeSettings, keys: Keys | None, telemetry: Telemetry) -> None:
        self._app, self._keys, self._telemetry = app, keys, telemetry
        self._hosts = settings.hosts or (LOOPBACK if settings.on_loopback else ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, receive, send)
        scope["state"]["request_id"] = visit.id
        try:
            await self._answer(visit)
        except ClientGone:
            visit.status = CLIENT_GONE  # whatever was sent went nowhere
        finally:
            visit.status = visit.status or CLIENT_GONE
            self._note(visit)

    async def _answer(self, visit: _Visit) -> None:
        try:
            self._admit(visit)
            await self._app(visit.scope, visit.receive, visit.send)
        except Problem as problem:
            await visit.refuse(problem)
        except ClientGone:
            raise
        except Exception as error:
            log("fault", level=logging.ERROR, error=error, id=visit.id)
            if not visit.status:  # else it was told, or there is nothing to be done but to break off
                await visit.refuse(fault_told(visit.id))

    def _admit(self, visit: _Visit) -> None:
        """Raises Problem for whom the door stays closed."""
        host = visit.header("host")
        if self._hosts and _hostname(host) not in self._hosts:
            raise Problem(421, "this service is addressed by another name; its settings list those it answers to")
        origin = visit.header("origin")
        foreign = origin is not None and origin.partition("://")[2] != host
        link = visit.scope["method"] == "GET" and visit.header("sec-fetch-mode") == "navigate"
        if foreign or (visit.header("sec-fetch-site") in ("cross-site", "same-site") and not link):
            raise Problem(403, "a page of another site asks; only the service's own page may")
        path = visit.scope["path"]
        if self._keys is None or path in WITHOUT_KEY or path.startswith(STATIC):
            return
        scheme, _, key = (visit.header("authorization") or "").partition(" ")
        visit.holder = self._keys.holder(key.strip()) if scheme.lower() == "bearer" else None
        if visit.holder is None:
            wanted = {"WWW-Authenticate": "Bearer"}
            raise Problem(
                401, "a key is needed, and it has to be one of ours: Authorization: Bearer KEY", headers=wanted
            )

    def _note(self, visit: _Visit) -> None:
        route, seconds = visit.route, time.monotonic() - visit.began
        method = visit.scope["method"] if visit.scope["method"] in METHODS else "other"
        told = self._telemetry
        told.requests.labels(method, route, str(visit.status)).inc()
        told.seconds.labels(route).observe(seconds)
        told.received.inc(visit.received)
        told.sent.inc(visit.sent)
        if visit.status >= 400:
            told.refused.labels(str(visit.status)).inc()
        log(
            "request",
            id=visit.id,
            method=method,
            route=route,
            status=visit.status,
            seconds=round(seconds, 4),
            bytes_in=visit.received,
            bytes_out=visit.sent,
            holder=visit.holder,
        )


class _Visit:
    """One request and its answer, counted."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        self.id = secrets.token_hex(8)
        self.began = time.monotonic()
        self.status = self.received = self.sent = 0
        self.holder: str | None = None
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._all_in = self._headers.get("content-length", "0") == "0" and "transfer-encoding" not in self._headers
        scope.setdefault("state", {})

    def header(self, name: str) -> str | None:
        """A header of the request."""
        return self._headers.get(name)

    @property
    def route(self) -> str:
        """The template of the path, never the path itself."""
        path = getattr(self.scope.get("route"), "path", None)
        if isinstance(path, str):
            return path
        return f"{STATIC}*" if self.scope["path"].startswith(STATIC) and self.status == 200 else "unknown"

    async def receive(self) -> Message:
        """A piece of the body, counted."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self._all_in = self._all_in or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer, with the headers that each has. Before the last, the client is heard out."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            more = {**HEADERS, "X-Request-ID": self.id, **({} if self._all_in else {"Connection": "close"})}
            own = [(name, value) for name, value in message["headers"] if name.decode("latin-1").title() not in more]
            message = {**message, "headers": own + [(n.lower().encode(), v.encode()) for n, v in more.items()]}
        else:
            self.sent += len(message.get("body", b""))
            if not self._all_in and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await self._hear_out()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        """Answer with a problem."""
        body = problem.body
        told = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(body)), **problem.headers}
        headers = [(name.lower().encode(), value.encode()) for name, value in told.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def _hear_out(self) -> None:
        """Take what a client still sends, for a moment: it would not read the answer before."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self._all_in:
                    if (await self.receive())["type"] == "http.disconnect":
                        return


def _hostname(host: str | None) -> str:
    """The name in a Host header, without the port: "[::1]:8787" is ::1."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](:\d*)?|([^:\[\]]+)(:\d*)?", host or "")
    return "" if found is None else (found[1] or found[3]).lower()
