"""The parts of a node, put together, started and stopped in the right order."""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections.abc import Callable
from threading import Event
from typing import IO

from saqm.errors import MissingExtra, SaqmError
from saqm.node.logs import start_logging, tell, tell_error
from saqm.node.queue import Queue
from saqm.node.settings import Settings
from saqm.node.work import Pool, Work, check_model
from saqm.outputs.dicom.maker import ROOT
from saqm.workers import Workers

LEAVE = 2.0  # seconds that associations, ours and theirs, are given to end when the node stops
TIDY = 10.0  # seconds between looks at what can be removed


class Node:
    """A node that runs from `start` to `stop`."""

    def __init__(self, settings: Settings, pool: Pool, *, clock: Callable[[], float] = time.time) -> None:
        """Open its queue and its port. Raises SaqmError, and MissingExtra without pynetdicom or highdicom."""
        try:
            import highdicom  # noqa: F401  the scoring processes need it, and would tell of it only then

            from saqm.node.listener import Listener
            from saqm.node.sending import Sender
        except ModuleNotFoundError as error:
            raise MissingExtra(str(error.name), "dicom", "the DICOM node") from error
        self._settings = settings
        self.queue = Queue(
            settings.folder, clock=clock, device_uid=lambda: settings.device_uid or f"{ROOT}{uuid.uuid4().int}"
        )
        try:
            names = [destination.name for destination in settings.destination]
            if aside := self.queue.set_aside_unknown(names):
                tell("set aside", deliveries=aside, why="their destination is no longer configured")
            self._work = Work(settings, self.queue, pool, clock=clock)
            self._senders = [Sender(settings, destination, self.queue) for destination in settings.destination]
            self._listener = Listener(settings, self.queue, arrived=self._work.arrived)
        except BaseException:
            self.queue.close()
            raise
        self._work.reported = self._call_senders

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._listener.port

    @property
    def failed(self) -> BaseException | None:
        """What the node cannot go on with."""
        return self._work.failed

    def start(self) -> None:
        """Score, report and send; listening began before."""
        self._work.start()
        for sender in self._senders:
            sender.start()

    def _call_senders(self) -> None:
        for sender in self._senders:
            sender.call()

    def tidy(self) -> None:
        """Remove what has reached its end."""
        self.queue.purge(keep_hours=self._settings.keep_hours, remember_days=self._settings.remember_days)

    def stop(self) -> None:
        """Accept nothing more, finish what is in hand, let go of the queue."""
        self._listener.stop(seconds=min(LEAVE, self._settings.stop_seconds))
        for sender in self._senders:
            sender.end()
        self._work.stop(seconds=self._settings.stop_seconds)
        for sender in self._senders:
            sender.stop(seconds=LEAVE)
        self.tidy()
        self.queue.close()


def run(settings: Settings, stream: IO[str] | None = None) -> None:
    """Be a node until SIGTERM or SIGINT; its log goes to `stream`, stderr if none. Raises SaqmError."""
    start_logging(sys.stderr if stream is None else stream)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    workers = Workers((settings.model,), count=settings.workers, seconds=settings.seconds)
    try:
        workers.run(check_model, settings)
        node = Node(settings, workers)
        node.start()
        try:
            while not stop.wait(TIDY) and node.failed is None:
                try:
                    node.tidy()
                except Exception as error:
                    tell_error("tidying failed", error)
            tell("stopping")
        finally:
            node.stop()
        tell("stopped")
    finally:
        workers.close()
    if node.failed is not None:
        raise SaqmError(f"the node stopped: {node.failed}") from node.failed
