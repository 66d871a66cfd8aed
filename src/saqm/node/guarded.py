"""The bounds that pynetdicom leaves to its user: size and time of a PDU, of a message, of a handshake; connections.

pynetdicom reads a PDU of whatever length its first bytes claim, for as long as it takes, gathers messages in memory,
and shakes hands over TLS in the thread that accepts connections. Here a PDU has a size and a deadline, a data set goes
to a file as it comes, up to a size and not slower than a rate, a handshake has its own thread and a deadline, and what
breaks ends its own association and is told in the log without what it said.
"""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from socketserver import TCPServer
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from saqm.node.logs import tell, tell_error
from saqm.node.queue import free_bytes

if TYPE_CHECKING:
    from pynetdicom.association import Association

LARGEST_OTHER_PDU = 1 << 20  # bytes; an association request of 128 contexts with all transfer syntaxes is a tenth of it
LARGEST_COMMAND = 1 << 16  # bytes of a command set, which holds a dozen short elements
MOST_UNANSWERED = 4  # messages; a sender that has not negotiated more sends one and waits (PS3.7 D.3.3.3)
SLOWEST = 10_000  # bytes a second that a data set must keep up
LOOK_EVERY = 16 << 20  # bytes written between looks at what the disk has left
READ_AT_ONCE = 1 << 16
BEYOND = 8  # connections above the associations allowed, so that those are told that there are too many
# A sender's stack holds a data set back until its command is acknowledged, which ours would do 40 ms later (RFC 896).
ACKNOWLEDGE: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux; lasts until the next segment
HANDSHAKES = (ssl.SSLError, OSError)


@dataclass(frozen=True)
class Bounds:
    """What one association may take. Sizes in bytes, times in seconds."""

    folder: Path  # where data sets are written as they come
    pdu: int
    object: int
    reserve: int
    greeting: float
    message: float
    silence: float


class Incoming(BytesIO):
    """The data set of a message, written to a DICOM file as it comes and hashed; never more of it than is allowed.

    refused: why nothing more was written; what was is gone then.
    """

    def __init__(self, bounds: Bounds, begin: Callable[[], tuple[str, bytes]]) -> None:
        super().__init__()
        self.path: Path | None = None
        self.size, self.refused = 0, ""
        self.begins_at = 0  # where in the file the data set begins
        self._bounds, self._begin = bounds, begin
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None
        self._looked = -LOOK_EVERY

    def write(self, data: Any) -> int:
        """Take a fragment. Raises what `begin` raises: the message makes no sense."""
        count = len(data)
        self.size += count
        if self.refused:
            return count
        try:
            if self.size > self._bounds.object:
                self._refuse(f"larger than {self._bounds.object:,} bytes")
            elif self.size - self._looked >= LOOK_EVERY and free_bytes(self._bounds.folder) < self._bounds.reserve:
                self._refuse(f"less than {self._bounds.reserve:,} bytes are left on the disk")
            else:
                if self.size - self._looked >= LOOK_EVERY:
                    self._looked = self.size
                self._append(data)
        except OSError as error:
            self._refuse(f"cannot be written: {error.strerror}")
        return count

    def sha256(self) -> str:
        """Of the data set and its transfer syntax."""
        return self._hash.hexdigest()

    def finish(self) -> Path | None:
        """The file, closed; None where it was refused or nothing came."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._refuse(f"cannot be written: {error.strerror}")
            self._file = None
        return self.path

    def discard(self) -> None:
        """Remove what was written."""
        self.finish()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def __del__(self) -> None:  # an association may end anywhere
        self.discard()

    def _append(self, data: bytes) -> None:
        if self._file is None:
            syntax, beginning = self._begin()
            self.path = self._bounds.folder / f"{os.urandom(12).hex()}.part"
            self._file = self.path.open("xb", buffering=READ_AT_ONCE)
            self._file.write(beginning)
            self._hash.update(syntax.encode())
            self.begins_at = len(beginning)
        self._file.write(data)
        self._hash.update(data)

    def _refuse(self, why: str) -> None:
        self.refused = why
        if self._file is not None:
            file, self._file = self._file, None
            with suppress(OSError):
                file.close()
        self.discard()


class Messages(DIMSEServiceProvider):  # type: ignore[misc]
    """Puts messages together; a data set goes to a file. `series`: study and series of what was accepted, for later."""

    def __init__(self, assoc: Association, bounds: Bounds) -> None:
        super().__init__(assoc)
        self.message: DIMSEMessage | None = None
        self.series: set[tuple[str, str]] = set()
        self._bounds, self._began, self._command = bounds, 0.0, 0

    def receive_primitive(self, primitive: Any) -> None:
        """Take a P-DATA. What is too much, too slow or no message ends the association."""
        if self.message is None:
            message = self.message = DIMSEMessage()
            message.data_set = Incoming(self._bounds, lambda: self._file_beginning(message))
            self._began, self._command = time.monotonic(), 0
        try:
            self._check(primitive)
            super().receive_primitive(primitive)
        except Exception as error:
            self._drop(error)

    def drop(self) -> None:
        """Remove what was being received."""
        if self.message is not None and isinstance(self.message.data_set, Incoming):
            self.message.data_set.discard()
        self.message = None

    def _check(self, primitive: Any) -> None:
        message = self.message
        size = message.data_set.size if message is not None and isinstance(message.data_set, Incoming) else 0
        self._command += sum(len(data) for _, data in primitive.presentation_data_value_list if data[0] & 1)
        if self._command > LARGEST_COMMAND:
            raise ValueError("a command set without end")
        if self.msg_queue.qsize() >= MOST_UNANSWERED:
            raise ValueError("messages without waiting for an answer")
        if time.monotonic() - self._began > self._bounds.message + size / SLOWEST:
            raise TimeoutError("a message that takes too long")

    def _drop(self, error: Exception) -> None:
        self.drop()
        tell("malformed message", error=type(error).__name__, host=self.assoc.requestor.address)
        self.dul.event_queue.put("Evt19")  # invalid PDU: the state machine aborts the association (PS3.8 9.2)

    def _file_beginning(self, message: DIMSEMessage) -> tuple[str, bytes]:
        """The transfer syntax, preamble and meta information of the file that a C-STORE request's data set becomes."""
        command = message.command_set
        contexts = {context.context_id: context for context in self.assoc.accepted_contexts}
        syntax = contexts[message.context_id].transfer_syntax[0]
        meta = create_file_meta(
            sop_class_uid=command.AffectedSOPClassUID,
            sop_instance_uid=command.AffectedSOPInstanceUID,
            transfer_syntax=syntax,
        )
        return str(syntax), b"\0" * 128 + b"DICM" + encode_file_meta(meta)


class _Socket(AssociationSocket):  # type: ignore[misc]
    """Reads a PDU up to a size and a deadline, and does not wait for ever for somebody to read what is sent."""

    def __init__(self, assoc: Association, client: socket.socket, bounds: Bounds) -> None:
        super().__init__(assoc, client_socket=client)
        self._bounds, self._deadline = bounds, 0.0
        bound(client, bounds.silence)

    def _shutdown_socket(self) -> None:
        held = self.socket
        super()._shutdown_socket()
        if held is not None:
            held.close()  # which is left out where the other end has hung up already

    def recv(self, nr_bytes: int) -> bytearray:
        """So many bytes, fewer where the connection ends. Raises OSError past the size or the deadline."""
        if nr_bytes > max(self._bounds.pdu, LARGEST_OTHER_PDU):
            raise OSError("a PDU that claims to be too long")
        if nr_bytes == 6:  # the head of a PDU: its type and length (PS3.8 9.3.1)
            self._deadline = time.monotonic() + self._bounds.silence
        read = bytearray()
        while len(read) < nr_bytes:
            left = self._deadline - time.monotonic()
            if left <= 0 or self.socket is None:
                raise TimeoutError("a PDU that takes too long")
            self.socket.settimeout(left)
            part = self.socket.recv(min(READ_AT_ONCE, nr_bytes - len(read)))
            if ACKNOWLEDGE is not None:
                self.socket.setsockopt(socket.IPPROTO_TCP, ACKNOWLEDGE, 1)
            if not part:
                break
            read += part
        if self.socket is not None:
            self.socket.settimeout(self._bounds.silence)
        return read


class Server(ThreadedAssociationServer):  # type: ignore[misc]
    """Listens; every connection has a thread from its first byte, and not more connections than are served."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        *arguments: Any,
        bounds: Bounds,
        tls: ssl.SSLContext | None,
        welcome: Callable[[str], bool],
        most: int,
        **named: Any,
    ) -> None:
        """welcome: whether an address may connect at all. most: associations at a time."""
        self.bounds, self._tls, self._welcome, self._most = bounds, tls, welcome, most
        self._greeting, self._count = 0, Lock()
        super().__init__(*arguments, request_handler=_Handler, **named)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection and nothing more."""
        client, address = self.socket.accept()
        return client, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether a connection is looked at."""
        host = str(client_address[0])
        if not self._welcome(host) and not is_itself(request):
            tell("connection refused", host=host, why="no sender is allowed from there")
            return False
        if self._greeting + len(self.active_associations) >= self._most + BEYOND:
            tell("connection refused", host=host, why="too many connections")
            return False
        with self._count:
            self._greeting += 1
        return True

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands over TLS where that is wanted, then let the association begin."""
        try:
            request.settimeout(self.bounds.greeting)
            if self._tls is not None:
                request = self._tls.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)
        except HANDSHAKES as error:
            # the library's own word for it (CERTIFICATE_VERIFY_FAILED, ...) quotes nobody
            why = getattr(error, "reason", None) or type(error).__name__
            tell("handshake failed", host=str(client_address[0]), why=why)
            self.shutdown_request(request)
        finally:
            with self._count:
                self._greeting -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell what went wrong, without a traceback on stderr."""
        del request
        error = sys.exception()
        if error is not None:
            tell_error("connection failed", error, host=str(client_address[0]))

    def shutdown(self) -> None:
        """Accept no more connections; those there are go on."""
        TCPServer.shutdown(self)
        self.server_close()

    def hang_up(self) -> None:
        """Cut every connection that is left."""
        for assoc in self.active_associations:
            held = assoc.dul.socket
            if held is not None:
                held._shutdown_socket()


def bound(connection: socket.socket, seconds: float) -> None:
    """Have a connection send at once what there is to send, and wait for the other end no longer than this."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(seconds)


def is_itself(connection: socket.socket) -> bool:
    """Whether a connection comes from this very machine."""
    try:
        return bool(connection.getsockname()[0] == connection.getpeername()[0])
    except OSError:  # it is gone already
        return False


class _Handler(RequestHandler):  # type: ignore[misc]
    """Begins an association within its bounds."""

    server: Server

    def _create_association(self) -> Association:
        assoc = super()._create_association()
        assoc.dul.event_queue.get_nowait()  # the indication of the socket that ours takes the place of
        assoc.dul.socket = _Socket(assoc, self.request, self.server.bounds)
        assoc.dimse = Messages(assoc, self.server.bounds)
        return assoc
