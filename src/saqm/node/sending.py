"""Sends what the queue holds to each destination, by C-STORE or STOW, until that has confirmed it.

A destination that cannot be reached is given time, twice as long after each try, with a jitter that depends on nothing
but which destination and which try it is. What it will never take is set aside with its status.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Protocol

from saqm.errors import SaqmError
from saqm.node.logs import tell, tell_error
from saqm.node.queue import Delivery, Queue
from saqm.node.settings import Destination, Settings
from saqm.node.tls import calling

if TYPE_CHECKING:
    import ssl

    from pynetdicom.association import Association

LOOK = 1.0  # seconds between looks at the queue where nothing calls
PAUSE = 10.0  # seconds after a fault of our own
ECHO_SECONDS = 5  # that an answer may take
AT_ONCE = 100  # objects of one association
JITTER = 0.5  # of the time waited, at most
# Statuses that trying again can change (PS3.4 B.2.3, PS3.7 C): out of resources, processing failure, resource limit.
PASSING = (0x0110, 0x0213)
OUT_OF_RESOURCES = range(0xA700, 0xA800)
DUPLICATE = 0x0111  # it has this UID already: ours are made of the content, so what it has is this very object
WARNINGS = range(0xB000, 0xC000)
NO_CONTEXT = "it does not accept this SOP class"
SHUT = (401, 403, 404)  # a DICOMweb server that answers so takes nothing at all until somebody mends that


class Unreachable(SaqmError):
    """The destination cannot be spoken to now."""


class Refused(SaqmError):
    """The destination does not take an object. later: whether it may, if tried again."""

    def __init__(self, why: str, *, later: bool) -> None:
        super().__init__(why)
        self.later = later


class Way(Protocol):
    """How to send to one destination: the outcome of each delivery, None where it was confirmed.

    Raises Unreachable, then for all that are left.
    """

    def __call__(self, deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, Refused | None]]: ...


class Sender:
    """The thread that serves one destination."""

    def __init__(self, settings: Settings, destination: Destination, queue: Queue) -> None:
        self._settings, self._destination, self._queue = settings, destination, queue
        self._way: Way = _by_store(settings, destination) if destination.url is None else _by_stow(destination)
        self._stopping, self._called = Event(), Event()
        self._thread = Thread(target=self._run, name=f"sending to {destination.name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def call(self) -> None:
        """There is something to send."""
        self._called.set()

    def end(self) -> None:
        """Send nothing after the object in hand."""
        self._stopping.set()
        self._called.set()

    def stop(self, *, seconds: float) -> None:
        """Wait for the end that long. An object that is still under way then is sent again when the node next runs."""
        self.end()
        self._thread.join(seconds)

    def _run(self) -> None:
        name = self._destination.name
        while not self._stopping.is_set():
            self._called.clear()
            try:
                deliveries = self._queue.deliveries(name, AT_ONCE)
                if deliveries:
                    self._send(deliveries)
                else:
                    self._called.wait(LOOK)
            except Unreachable as error:
                tries = self._queue.unreachable_times(name)
                seconds = self._wait(tries, name)
                self._queue.unreachable(name, str(error), seconds)
                tell("unreachable", destination=name, why=str(error), tries=tries + 1, seconds=round(seconds, 1))
            except Exception as error:
                tell_error("sending failed", error, destination=name)
                self._stopping.wait(PAUSE)

    def _send(self, deliveries: Sequence[Delivery]) -> None:
        name = self._destination.name
        for delivery, refused in self._way(deliveries):
            told = {"destination": name, "object": delivery.uid, "kind": delivery.kind}
            if refused is None:
                self._queue.delivered(delivery, name)
                tell("delivered", **told)
            elif refused.later:
                seconds = self._wait(delivery.tries, f"{name} {delivery.uid}")
                self._queue.postpone(delivery, name, str(refused), seconds)
                tell("postponed", **told, why=str(refused), seconds=round(seconds, 1))
            else:
                self._queue.refused(delivery, name, str(refused))
                tell("set aside", **told, why=str(refused))
            if self._stopping.is_set():
                return

    def _wait(self, tries: int, what: str) -> float:
        return waiting_time(
            tries, what, first=self._settings.retry_first_seconds, most=self._settings.retry_most_seconds
        )


def waiting_time(tries: int, what: str, *, first: float, most: float) -> float:
    """Seconds to wait after so many tries before this one: doubling from `first` to `most`, less a jitter.

    The jitter is made of the name and the number, so that many objects do not come back at once, and the same ones
    always at the same time.
    """
    digest = hashlib.sha256(f"{what} {tries}".encode()).digest()
    share = int.from_bytes(digest[:4]) / 2**32
    return min(most, first * 2.0 ** min(tries, 60)) * (1 - JITTER * share)


# By C-STORE


def _by_store(settings: Settings, destination: Destination) -> Way:
    tls = calling(settings.tls) if destination.tls and settings.tls is not None else None

    def send(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, Refused | None]]:
        assoc = _associated(settings, destination, {delivery.sop_class for delivery in deliveries}, tls)
        if not assoc.is_established:  # it knows us, and none of the SOP classes
            yield from ((delivery, Refused(NO_CONTEXT, later=False)) for delivery in deliveries)
            return
        connection = assoc.dul.socket.socket
        try:
            for delivery in deliveries:
                yield delivery, _stored(assoc, delivery)
        finally:
            if assoc.is_established:
                assoc.release()
            if connection is not None:
                connection.close()  # pynetdicom does not, where the other end was faster

    return send


def _associated(
    settings: Settings, destination: Destination, classes: Iterable[str], tls: ssl.SSLContext | None
) -> Association:
    """An association with a destination; not established where it accepts none of the classes. Raises Unreachable."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import AE, evt

    from saqm.node.guarded import bound

    entity = AE(settings.title)
    entity.acse_timeout = entity.connection_timeout = settings.acse_seconds
    entity.dimse_timeout, entity.network_timeout = settings.dimse_seconds, settings.network_seconds
    for uid in sorted(classes):
        entity.add_requested_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])

    def opened(event: Any) -> None:  # pynetdicom lets a connection that is open block for ever
        bound(event.assoc.dul.socket.socket, settings.network_seconds)

    assoc = entity.associate(
        destination.host,
        destination.port,
        ae_title=destination.title,
        tls_args=None if tls is None else (tls, destination.host),
        evt_handlers=[(evt.EVT_CONN_OPEN, opened)],
    )
    if assoc.is_established or assoc.rejected_contexts:
        return assoc
    if assoc.is_rejected:
        answer = assoc.acceptor.primitive
        why = "" if answer is None else f": {answer.result_str}, {answer.reason_str}"
        raise Unreachable(f"association rejected{why}")
    answered = assoc.acceptor.primitive is not None
    raise Unreachable("association aborted" if answered else "no connection, or no association on it")


def _stored(assoc: Association, delivery: Delivery) -> Refused | None:
    """What became of a C-STORE. Raises Unreachable where the association is gone."""
    from pydicom import dcmread

    if not assoc.is_established:
        raise Unreachable("association lost")
    accepted = {str(context.abstract_syntax) for context in assoc.accepted_contexts}
    if delivery.sop_class not in accepted:
        return Refused(NO_CONTEXT, later=False)
    try:
        answer = assoc.send_c_store(dcmread(delivery.path))
    except RuntimeError as error:  # pynetdicom's word for an association that ended just now
        raise Unreachable("association lost") from error
    if "Status" not in answer:
        raise Unreachable("no answer to a C-STORE")
    status = int(answer.Status)
    if status in (0, DUPLICATE) or status in WARNINGS:
        return None
    return Refused(f"status 0x{status:04X}", later=status in OUT_OF_RESOURCES or status in PASSING)


# By STOW


def _by_stow(destination: Destination) -> Way:
    from saqm.dicomweb import DicomwebError, Server, stow

    server = Server(
        url=str(destination.url),
        user=destination.user,
        password=_secret(destination.password_file),
        token=_secret(destination.token_file),
        ca=destination.ca,
        attempts=1,  # the queue does the waiting
    )

    def send(deliveries: Sequence[Delivery]) -> Iterator[tuple[Delivery, Refused | None]]:
        for delivery in deliveries:
            try:
                stow(server, delivery.path)
            except DicomwebError as error:
                if error.status in SHUT:
                    raise Unreachable(str(error)) from error
                yield delivery, Refused(str(error), later=error.retry)
                if error.retry:  # whether it is this object or all of them, is for the next try to show
                    raise Unreachable(str(error)) from error
            else:
                yield delivery, None

    return send


def _secret(path: Path | None) -> str | None:
    """What stands in a file, without the line end. Raises SaqmError."""
    if path is None:
        return None
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    raise SaqmError(f"{path}: cannot be read")


def echo(settings: Settings) -> bool:
    """Whether the node of these settings, on this machine, answers a C-ECHO under its own title."""
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification

    entity = AE(settings.title)
    entity.acse_timeout = entity.connection_timeout = entity.dimse_timeout = ECHO_SECONDS
    entity.add_requested_context(Verification)
    tls = None
    if settings.tls is not None and settings.tls.listen:
        tls = calling(settings.tls)
        tls.check_hostname = False  # its certificate names it as others call it
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    assoc = entity.associate(
        here, settings.port, ae_title=settings.title, tls_args=None if tls is None else (tls, here)
    )
    if not assoc.is_established:
        return False
    answer = assoc.send_c_echo()
    assoc.release()
    return "Status" in answer and int(answer.Status) == 0
