"""The service as a process: workers, socket, logs, and its end."""

from __future__ import annotations

import asyncio
import importlib
import logging
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from saqm.errors import OutputError, SaqmError
from saqm.outputs.dicom import Maker
from saqm.service.app import application
from saqm.service.desk import LOOKING, Desk
from saqm.service.door import Door
from saqm.service.keys import Keys
from saqm.service.settings import ServeSettings
from saqm.service.telemetry import LOGGER, JsonLines, Telemetry, log
from saqm.workers import Workers


class Service:
    """A service that is set up and can be run."""

    def __init__(self, settings: ServeSettings, pools: Sequence[Workers] | None = None) -> None:
        """Start the workers, or take those given, which their owner closes.

        Raises SaqmError without keys where others than this machine can ask, ModelFileError for a model.
        """
        keys = None if settings.keys is None else Keys(settings.keys)
        if keys is None and not settings.on_loopback:
            raise SaqmError(
                f"host {settings.host}: others than this machine could ask, so keys are needed: "
                "saqm serve --keys FILE --add-key NAME makes one; or listen on 127.0.0.1"
            )
        telemetry = Telemetry()
        maker = _maker(settings)
        self.settings = settings
        self._own = _pools(settings) if pools is None else ()
        try:
            self.desk = Desk(settings, self._own if pools is None else pools, telemetry, maker)
            self.app = Door(application(self.desk), settings, keys, telemetry)
        except BaseException:
            self._close_own()
            raise

    def run(self, on_ready: Callable[[str], None] = lambda _: None) -> None:
        """Serve until SIGTERM or Ctrl-C, then finish what runs. on_ready: told the address. Raises OutputError."""
        _log_to_stderr()
        server = self.server(on_ready)
        try:
            server.run()
        finally:
            self._close_own()
        if not server.started:
            raise OutputError(f"{self.settings.host}:{self.settings.port}: cannot listen there; take another --port")

    def _close_own(self) -> None:
        for pool in self._own:
            pool.close()

    def server(self, on_ready: Callable[[str], None] = lambda _: None) -> Server:
        """What listens; for whoever runs it in a loop or a thread of their own."""
        logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL + 1)  # its lines hold paths and addresses
        config = uvicorn.Config(
            self.app,
            host=self.settings.host,
            port=self.settings.port,
            http=_Impatient,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=min(5, max(1, round(self.settings.read_seconds))),
            timeout_graceful_shutdown=max(1, round(self.settings.drain_seconds)),
            limit_concurrency=self.settings.connections,
        )
        config.header_seconds = self.settings.read_seconds  # type: ignore[attr-defined]
        return Server(config, self.desk, on_ready)


class Server(uvicorn.Server):
    """uvicorn, but the first signal lets running work finish while the door still answers; a second ends it at once."""

    def __init__(self, config: uvicorn.Config, desk: Desk, on_ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._desk, self._on_ready = desk, on_ready
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and tell."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn's way to say that the port cannot be had
            self.should_exit = True
            return
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            log("listening", host=host, port=port)
            self._on_ready(f"http://{shown}:{port}/")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C."""
        del sig, frame
        if self._draining is not None or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self.end()

    def begin_end(self) -> None:
        """Drain, then stop. To be called in the loop."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._end())

    def end(self) -> None:
        """The same, from another thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended by itself
                self._loop.call_soon_threadsafe(self.begin_end)

    async def _end(self) -> None:
        await self._desk.drain()
        self.should_exit = True


class _Impatient(H11Protocol):
    """HTTP/1.1 with a limit on how long the head of a request may take to come: uvicorn waits for ever."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head_is_there()

    def on_response_complete(self) -> None:
        self._wait_for_head()
        super().on_response_complete()

    def _wait_for_head(self) -> None:
        self._head_is_there()
        self._timer = self.loop.call_later(self.config.header_seconds, self._give_up)  # type: ignore[attr-defined]

    def _head_is_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def _pools(settings: ServeSettings) -> list[Workers]:
    made: list[Workers] = []
    try:
        for model in settings.models or (None,):
            made.append(Workers((model,), count=settings.workers + LOOKING, seconds=settings.seconds))
        names = [pool.models[0]["name"] for pool in made]
        if len(set(names)) < len(names):
            raise SaqmError(f"models {', '.join(names)}: two are called alike, so they could not be told apart")
        for pool in made:
            _warm(pool, settings.workers + LOOKING)
    except BaseException:
        for pool in made:
            pool.close()
        raise
    return made


def _warm(pool: Workers, count: int) -> None:
    """Have every process load now what its first image would wait for."""
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(lambda _: pool.run(load_readers), range(count)))


def load_readers() -> None:
    """Called in a worker: the packages that reading and judging an image need, which load slowly."""
    for name in (
        "saqm.findings",
        "saqm.image.dicom",
        "saqm.image.foreground",
        "saqm.image.raster",
        "saqm.image.volume",
    ):
        importlib.import_module(name)


def _maker(settings: ServeSettings) -> Maker:
    return Maker.named(platform.node()) if settings.device_uid is None else Maker(settings.device_uid)


def _log_to_stderr() -> None:
    """Lines of JSON on stderr, ours and uvicorn's. pydicom and highdicom quote what they complain of: not theirs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in ((LOGGER, logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
