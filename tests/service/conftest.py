"""A service on a free port, in a thread: real, or with workers that do as they are told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.data import get_testdata_file

if TYPE_CHECKING:
    import httpx

    from saqm.service.server import Server, Service
    from saqm.service.settings import ServeSettings
    from saqm.workers import Workers

LONG = 20.0  # seconds after which a test is given up


def sample(name: str) -> Path:
    """A file that ships with pydicom."""
    return Path(str(get_testdata_file(name, download=False)))


def until(true: Callable[[], object]) -> None:
    """Wait for it."""
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)


@dataclass
class Served:
    """A running service: who asks it, and what it is made of."""

    client: httpx.Client
    service: Service
    server: Server
    port: int
    thread: threading.Thread

    def raw(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=LONG)


@contextmanager
def serving(settings: ServeSettings, pools: Sequence[Any]) -> Iterator[Served]:
    """A service in a thread, on a free port; drained at the end."""
    import httpx

    from saqm.service.server import Service

    service = Service(settings, pools)
    ready, at = threading.Event(), [""]

    def on_ready(address: str) -> None:
        at[0] = address
        ready.set()

    server = service.server(on_ready)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(LONG), "the service did not start"
        with httpx.Client(base_url=at[0], timeout=LONG, trust_env=False) as client:
            yield Served(client, service, server, int(at[0].rsplit(":", 1)[1].strip("/")), thread)
    finally:
        server.end()
        thread.join(LONG)
        assert not thread.is_alive(), "the service did not end"


@dataclass
class Told:
    """Workers that score nothing before `go` is set, and then say `rows` for each file, all not scored."""

    go: threading.Event = field(default_factory=threading.Event)
    rows: int = 1
    groups: list[list[str]] = field(default_factory=list)
    stopped: int = 0
    fault: Exception | None = None
    alive: int = 2
    models: tuple[dict[str, str], ...] = ({"name": "told", "version": "1", "engine": "none"},)

    def score(self, tasks: Sequence[Any], *, seen: Callable[..., None], stop: Callable[[], bool]) -> None:
        """As `Workers.score`."""
        from saqm.scorer import not_scored

        self.groups.append([task.name for task in tasks])
        while not self.go.wait(0.01):
            if stop():
                self.stopped += 1
                return
        if self.fault is not None:
            raise self.fault
        for number, task in enumerate(tasks):
            for row in range(self.rows):
                seen(number, not_scored(task.name, f"{task.name}: told so", frame=row, model=self.models[0]), None)

    def run(self, function: Callable[..., Any], *arguments: object) -> Any:
        """As `Workers.run`, but here."""
        return function(*arguments)


@pytest.fixture(scope="session")
def pool() -> Iterator[Workers]:
    """Real workers with the default model: one to score, one to look."""
    for extra in ("fastapi", "uvicorn", "highdicom"):
        pytest.importorskip(extra)
    from saqm.workers import Workers

    with Workers(count=2, seconds=30) as workers:
        yield workers


@pytest.fixture(scope="session")
def served(pool: Workers) -> Iterator[Served]:
    """A real service with everything as it comes."""
    from saqm.service.settings import ServeSettings

    with serving(ServeSettings(port=0, drain_seconds=2), [pool]) as running:
        yield running


@pytest.fixture
def told() -> Told:
    """Workers that do as they are told."""
    pytest.importorskip("fastapi")
    return Told()


@pytest.fixture
def many() -> Iterator[ThreadPoolExecutor]:
    """Threads to ask from."""
    with ThreadPoolExecutor(32) as threads:
        yield threads
