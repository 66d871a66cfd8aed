"""Listens: C-ECHO and C-STORE of images, from those who may send, and nothing accepted that is not on the disk.

What a sender is answered (PS3.4 B.2.3 and PS3.7 C), beside success:
0xA700 out of resources: too many instances wait, the disk is full, the object is too large, the node is stopping
0xA900 the data set is not of the SOP class or instance that the request names
0xC000 cannot understand: no DICOM, or without the UIDs that say what it belongs to
0x0111 duplicate: this SOP Instance UID was accepted before with other content, which stands
0x0124 not authorised: the node itself, which may only ask whether it is alive
0x0110 processing failure: a fault of the node, told in its log
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import Verification

from saqm import __version__
from saqm.errors import ImageError, SaqmError
from saqm.node.guarded import Bounds, Incoming, Messages, Server, is_itself
from saqm.node.identity import identify
from saqm.node.logs import QUIET, hush, tell, tell_error
from saqm.node.queue import Arrival, Queue, QueueFull
from saqm.node.settings import MEGABYTE, Settings
from saqm.node.tls import listening

SUCCESS, FULL, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
DUPLICATE, NOT_AUTHORISED, FAULT = 0x0111, 0x0124, 0x0110
REJECTED, BY_USER, UNKNOWN_CALLER = 0x01, 0x01, 0x03  # PS3.8 9.3.4
WITHOUT_PIXELS = ("JPIP",)  # transfer syntaxes that only tell where pixels are to be fetched
POLL = 0.1  # seconds between looks at whether to stop

IMPLEMENTATION_CLASS = "2.25.261562274976573183530764551667750181294"  # of saqm, made once as a UUID (PS3.5 B.2)


def image_classes() -> tuple[str, ...]:
    """The SOP classes that are accepted: every storage class of images; no report, note, segmentation, dose or plan."""
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts]
    return tuple(str(uid) for uid in classes if "Image Storage" in uid.name or "US Volume Storage" in uid.name)


def transfer_syntaxes() -> tuple[str, ...]:
    """The transfer syntaxes that are accepted: all that hold the pixels, whether they can be decoded here or not."""
    from pydicom.uid import UID

    return tuple(str(uid) for uid in ALL_TRANSFER_SYNTAXES if not any(word in UID(uid).name for word in WITHOUT_PIXELS))


class Listener:
    """The port of a node."""

    def __init__(self, settings: Settings, queue: Queue, *, arrived: Callable[[], None]) -> None:
        """Listen. arrived: called for each instance accepted. Raises SaqmError for a port that cannot be had."""
        for name in QUIET:
            hush(name)
        _config.LOG_HANDLER_LEVEL = "none"  # its handlers would put every message into words, only to be silent
        self._settings, self._queue, self._arrived = settings, queue, arrived
        self._stopping = Event()
        self._bounds = Bounds(
            folder=queue.incoming,
            pdu=settings.max_pdu + 6,
            object=int(settings.max_object_mb * MEGABYTE),
            reserve=int(settings.reserve_mb * MEGABYTE),
            greeting=settings.acse_seconds,
            message=settings.dimse_seconds,
            silence=settings.network_seconds,
        )
        tls = listening(settings.tls) if settings.tls is not None and settings.tls.listen else None
        try:
            self._server: Server = _entity(settings).make_server(
                (settings.host, settings.port),
                evt_handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_REJECTED, self._rejected),
                    (evt.EVT_C_ECHO, self._echo),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_RELEASED, self._released),
                    (evt.EVT_ABORTED, self._aborted),
                ],
                server_class=Server,
                bounds=self._bounds,
                tls=tls,
                welcome=lambda host: any(allowed.holds(host) for allowed in settings.allow),
                most=settings.max_associations,
            )
        except OSError as error:
            raise SaqmError(f"port {settings.port} of {settings.host} cannot be had: {error.strerror}") from error
        self.port = int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, args=(POLL,), name="listener", daemon=True)
        self._thread.start()
        tell("listening", title=settings.title, host=settings.host, port=self.port, tls=tls is not None)

    def stop(self, *, seconds: float) -> None:
        """Accept nothing more; let the associations there are end for so long, then cut them off."""
        self._stopping.set()
        self._server.shutdown()
        self._thread.join()
        until = time.monotonic() + seconds
        while self._server.active_associations and time.monotonic() < until:
            time.sleep(POLL)
        self._server.hang_up()

    # What comes

    def _requested(self, event: Any) -> None:
        """Refuse a title that may not come from there; which titles there are, pynetdicom looks at."""
        title, host = event.assoc.requestor.primitive.calling_ae_title, event.assoc.requestor.address
        if self._may_send(title, host):
            return
        if title == self._settings.title and is_itself(event.assoc.dul.socket.socket):
            return  # a health check; it may send nothing
        tell("association refused", title=title, host=host, why="this title may not send from there")
        event.assoc.acse.send_reject(REJECTED, BY_USER, UNKNOWN_CALLER)
        event.assoc.is_rejected = True
        event.assoc.kill()

    def _may_send(self, title: str, host: str) -> bool:
        return any(allowed.title == title and allowed.holds(host) for allowed in self._settings.allow)

    def _rejected(self, event: Any) -> None:
        requestor = event.assoc.requestor
        tell("association refused", title=requestor.ae_title, host=requestor.address, why="called title, or too many")

    def _echo(self, event: Any) -> int:
        tell("echo", **_sender(event))
        return SUCCESS

    def _store(self, event: Any) -> int:
        """Answer a C-STORE."""
        incoming = event.request.DataSet
        try:
            status, why = self._take(event, incoming)
        except QueueFull as error:
            status, why = FULL, str(error)
        except ImageError as error:
            status, why = NOT_UNDERSTOOD, str(error)
        except Exception as error:
            tell_error("storing failed", error, **_sender(event))
            status, why = FAULT, "a fault of the node"
        finally:
            incoming.discard()
        if status != SUCCESS:
            tell("instance refused", instance=_uid(event), status=f"0x{status:04X}", why=why, **_sender(event))
        return status

    def _take(self, event: Any, incoming: Incoming) -> tuple[int, str]:
        """The status to answer with, and why. Raises QueueFull and ImageError."""
        path = incoming.finish()
        if not self._may_send(event.assoc.requestor.ae_title, event.assoc.requestor.address):
            return NOT_AUTHORISED, "may not send"
        if self._stopping.is_set():
            raise QueueFull("the node is stopping")
        if incoming.refused:
            raise QueueFull(incoming.refused)
        self._queue.refuse_when_full(self._settings.max_waiting)
        if path is None:
            raise ImageError("no data set")
        syntax = str(event.context.transfer_syntax)
        with path.open("rb") as stream:
            stream.seek(incoming.begins_at)
            identity = identify(stream, syntax, most=self._bounds.object)
        if (identity.sop_class, identity.instance) != (str(event.context.abstract_syntax), _uid(event)):
            return MISMATCH, "the data set is of another SOP class or instance than the request"
        arrival = Arrival(
            path=path,
            sha256=incoming.sha256(),
            bytes=incoming.size,
            uid=identity.instance,
            sop_class=identity.sop_class,
            syntax=syntax,
            study=identity.study,
            series=identity.series,
            sender=event.assoc.requestor.ae_title,
            host=event.assoc.requestor.address,
        )
        taken = self._queue.accept(arrival, stable_seconds=self._settings.stable_seconds)
        if taken == "other":
            return DUPLICATE, "accepted before with other content, which stands"
        messages: Messages = event.assoc.dimse
        messages.series.add((identity.study, identity.series))
        tell("accepted" if taken == "new" else "known already", instance=identity.instance, **_sender(event))
        if taken == "new":
            self._arrived()
        return SUCCESS, ""

    def _released(self, event: Any) -> None:
        messages: Messages = event.assoc.dimse
        if messages.series:
            self._queue.released(messages.series, wait_seconds=self._settings.released_seconds)
            self._arrived()
        tell("released", series=len(messages.series), **_sender(event))

    def _aborted(self, event: Any) -> None:
        messages: Messages = event.assoc.dimse
        messages.drop()
        tell("aborted", **_sender(event))


def _entity(settings: Settings) -> AE:
    """This node as pynetdicom has it."""
    entity = AE(settings.title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS
    entity.implementation_version_name = f"SAQM_{__version__}"[:16]
    entity.maximum_pdu_size = settings.max_pdu
    entity.maximum_associations = settings.max_associations
    entity.acse_timeout = settings.acse_seconds
    entity.dimse_timeout = settings.dimse_seconds
    entity.network_timeout = settings.network_seconds
    entity.require_called_aet = True
    entity.require_calling_aet = sorted({settings.title} | {allowed.title for allowed in settings.allow})
    entity.add_supported_context(Verification)
    for uid in image_classes():
        entity.add_supported_context(uid, list(transfer_syntaxes()))
    return entity


def _sender(event: Any) -> dict[str, object]:
    requestor = event.assoc.requestor
    return {"title": requestor.ae_title, "host": requestor.address}


def _uid(event: Any) -> str:
    return str(event.request.AffectedSOPInstanceUID)
