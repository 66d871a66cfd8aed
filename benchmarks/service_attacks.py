"""The attacks of benchmarks/service.py: each is sent for real, and afterwards the service must answer as before.

An attack passes if what came is what was wanted *and* an honest request right after it is answered.
"""

from __future__ import annotations

import http.client
import io
import json
import math
import socket
import ssl
import struct
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.filereader import read_file_meta_info
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, Association, _config
from pynetdicom.sop_class import Verification
from service_running import Certificates, Command, resident_mb

GIB = 2**30
SMALL = "CT_small.dcm"
REFUSED = "refused"  # a connection closed or never answered with success
LORISES = 100  # connections that say a byte a second
STREAMED_MB = 200  # sent where a limit should have ended it long before


@dataclass(frozen=True)
class Outcome:
    """One attack: on what, what was sent, what had to come, what came, and whether an honest request worked after it.

    peak_mb: the most resident memory of the service seen while it lasted, above what it had before.
    """

    on: str
    attack: str
    wanted: str
    came: str
    refused: bool
    alive: bool
    added_mb: float

    @property
    def passed(self) -> bool:
        """Refused, and the service lives."""
        return self.refused and self.alive


Attack = tuple[str, str, Callable[[], tuple[str, bool]]]  # name, what is wanted, how: what came and whether that is it


def outcomes(on: str, command: Command, attacks: Iterator[Attack], honest: Callable[[], bool]) -> Iterator[Outcome]:
    """Run attacks one after the other."""
    for name, wanted, send in attacks:
        before, looks = resident_mb(command.process.pid), len(command.memory)
        try:
            came, refused = send()
        except (OSError, http.client.HTTPException) as error:  # hung up on
            came, refused = f"connection ended ({type(error).__name__})", True
        alive = command.alive and honest()
        peak = max([before, *(mb for _, mb in command.memory[looks:])])
        yield Outcome(on, name, wanted, came, refused, alive, peak - before)


# HTTP


@dataclass(frozen=True)
class Web:
    """The HTTP service under attack. read_seconds, body_mb: the limits that it was given."""

    port: int
    key: str
    read_seconds: float
    body_mb: float

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] = b"", key: str | None = "", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of one request; key "": the right one, None: none."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["Authorization"] = f"Bearer {key or self.key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body=body, headers=sent, encode_chunked="Transfer-Encoding" in sent)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def score(self, body: bytes, name: str = "x.dcm", key: str | None = "") -> tuple[int, bytes]:
        """Status and body of the answer to one file."""
        status, answer, _ = self.ask(
            "POST", f"/v1/score?name={name}", body, key, Content_Type="application/octet-stream"
        )
        return status, answer

    def honest(self) -> bool:
        """Whether a sound file gets its score."""
        status, answer = self.score(small())
        return status == 200 and json.loads(answer)["records"][0]["status"] == "scored"


def small() -> bytes:
    """A sound file."""
    return Path(str(get_testdata_file(SMALL, download=False))).read_bytes()


def on_http(web: Web) -> Iterator[Attack]:
    """All attacks on the HTTP service."""

    def status_of(method: str, path: str, *good: int, **more: object) -> Callable[[], tuple[str, bool]]:
        def send() -> tuple[str, bool]:
            status, _, _ = web.ask(method, path, **more)  # type: ignore[arg-type]
            return str(status), status in good

        return send

    def unscored(body: Callable[[], bytes], name: str) -> Callable[[], tuple[str, bool]]:
        """Either refused, or said not to be scored with the reason: never a number, never a 5xx."""

        def send() -> tuple[str, bool]:
            status, answer = web.score(body(), name)
            records = json.loads(answer).get("records", []) if status in (200, 422) else []
            scored = [record for record in records if record["status"] != "not_scored"]
            said = f", {records[0]['reasons'][0][:90]}" if records and not scored else ""
            return f"{status}{said}", 400 <= status < 500 or (status == 200 and bool(records) and not scored)

        return send

    post = (
        "POST /v1/score?name=x.dcm HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
        f"Authorization: Bearer {web.key}\r\n"
    ).encode()
    yield "no key", "401", status_of("POST", "/v1/score", 401, body=small(), key=None)
    yield "wrong key", "401", status_of("POST", "/v1/score", 401, body=small(), key="x" * 43)
    yield "forged Host (DNS rebinding)", "4xx", status_of("GET", "/v1/models", 400, 403, 421, Host="evil.example")
    yield "path traversal below /static", "404", status_of("GET", "/static/..%2f..%2f..%2f..%2fetc%2fpasswd", 400, 404)
    yield "path traversal, not encoded", "404", status_of("GET", "/static/../../../../../etc/passwd", 400, 404)
    yield "path traversal in the name of an upload", "a base name at most", lambda: _traversal(web)
    yield "body larger than allowed, length said", "413", lambda: _oversized(web, chunked=False)
    yield "body larger than allowed, length not said", "413", lambda: _oversized(web, chunked=True)
    yield (
        "length that is no number",
        "400",
        lambda: _raw_http(web, post + b"Content-Length: -1\r\n\r\n"),
    )
    yield (
        "both lengths (request smuggling)",
        "400",
        lambda: _raw_http(
            web,
            post + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    )
    yield "no HTTP at all", "400", lambda: _raw_http(web, bytes(range(256)) * 40 + b"\r\n\r\n")
    yield (
        "header of a megabyte",
        "4xx",
        lambda: _raw_http(web, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 2**20 + b"\r\n\r\n"),
    )
    yield "slow-loris, headers", "closed, others served", lambda: _loris(web, post + b"X-Slow: ")
    slow = b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n"
    yield "slow-loris, body, no key", "401, others served", lambda: _loris(web, slow)
    # Whoever has a key may take every place there is, for as long as read_seconds; others are told when to come again.
    slow = post + b"Content-Length: 9999\r\n\r\n"
    yield "slow-loris, body, with a key", "408, others 200 or 429", lambda: _loris(web, slow, may=(200, 429))
    yield (
        "DICOM: 65535x65535 pixels promised, 8 bytes there",
        "not scored",
        unscored(lambda: dicom_bomb(65535, 65535), "x.dcm"),
    )
    yield "DICOM: 2147483647 frames promised", "not scored", unscored(lambda: dicom_bomb(512, 512, 2**31 - 1), "x.dcm")
    yield "DICOM: 1 GiB deflated to 1 MB", "not scored", unscored(lambda: deflated_bomb(GIB), "x.dcm")
    yield "DICOM: 5000 sequences nested", "not scored", unscored(lambda: nested_bomb(5000), "x.dcm")
    yield "PNG: 30000x30000 pixels in 1 MB", "not scored", unscored(lambda: png_bomb(30000), "x.png")
    yield "ZIP: 1 GiB in 1 MB", "4xx or not scored", unscored(lambda: zip_bomb(GIB), "x.zip")
    yield "ZIP: member named ../../x.dcm", "4xx or not scored", unscored(zip_traversal, "x.zip")
    yield (
        "random bytes called .dcm",
        "not scored",
        unscored(lambda: b"\x00" * 128 + b"DICM" + bytes(range(256)) * 64, "x.dcm"),
    )


def _traversal(web: Web) -> tuple[str, bool]:
    boundary = "b"
    name = "../../../../../../etc/cron.d/saqm.dcm"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + small()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    status, answer, _ = web.ask("POST", "/v1/score", body, Content_Type=f"multipart/form-data; boundary={boundary}")
    harmless = b".." not in answer and b"cron.d" not in answer and not Path("/etc/cron.d/saqm.dcm").exists()
    return f"{status}, {'base name only' if harmless else 'the path came back'}", status in (200, 400, 422) and harmless


def _oversized(web: Web, *, chunked: bool) -> tuple[str, bool]:
    """More than allowed, pushed until the service hangs up; what it said may be lost with the connection."""
    head = (
        "Transfer-Encoding: chunked" if chunked else f"Content-Length: {STREAMED_MB * 2**20 + int(web.body_mb * 2**20)}"
    )
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as out:
        out.sendall(
            f"POST /v1/score?name=x.dcm HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {web.key}\r\n"
            f"Content-Type: application/octet-stream\r\n{head}\r\n\r\n".encode()
        )
        sent, block = 0, bytes(2**20)
        try:
            while sent < (web.body_mb + STREAMED_MB) * 2**20:
                out.sendall(f"{len(block):x}\r\n".encode() + block + b"\r\n" if chunked else block)
                sent += len(block)
                out.setblocking(False)
                with suppress(BlockingIOError):
                    early = out.recv(4096)
                    return f"{_status(early)} after {sent / 2**20:.0f} MB", early.startswith(b"HTTP/1.1 413")
                out.settimeout(30)
            if chunked:
                out.sendall(b"0\r\n\r\n")
            answer = out.recv(4096)
        except OSError:
            answer = b""
    # Hung up on a sender who went on: the answer may have been swept away, but all was not taken.
    return f"{_status(answer)} after {sent / 2**20:.0f} MB", not answer or answer.startswith(b"HTTP/1.1 413")


def _status(answer: bytes) -> str:
    return answer.split(b"\r\n")[0].decode("latin-1")[9:12] if answer else "hung up"


def _raw_http(web: Web, said: bytes) -> tuple[str, bool]:
    with socket.create_connection(("127.0.0.1", web.port), timeout=30) as out:
        out.sendall(said)
        answer = out.recv(4096)
    return _status(answer), not answer or answer[9:10] == b"4"


def _loris(web: Web, said: bytes, *, may: tuple[int, ...] = (200,)) -> tuple[str, bool]:
    """Many connections a byte a second: they are closed; what the honest are told meanwhile is one of `may`."""
    with slow_connections(web.port, said) as slow:
        honest = Counter[int]()
        while not slow.over(3 * web.read_seconds + 5):
            honest[web.score(small())[0]] += 1
        told = _counted(slow.answers) or "no word"
        came = f"{slow.closed} of {LORISES} closed within {slow.lasted:.0f} s ({told}); the honest: {_counted(honest)}"
    return came, honest.keys() <= set(may) and slow.closed == LORISES


def _counted(answers: Mapping[Any, int]) -> str:
    return ", ".join(f"{count} × {answer}" for answer, count in sorted(answers.items()))


class Slow:
    """Connections that each send a byte a second, until the other side has hung up. answers: first lines that came."""

    def __init__(self, connections: Sequence[socket.socket]) -> None:
        self.open, self.answers, self.began, self.lasted = list(connections), Counter[str](), time.monotonic(), 0.0

    @property
    def closed(self) -> int:
        """How many the other side has closed."""
        return LORISES - len(self.open)

    def over(self, seconds: float) -> bool:
        """A second more: whether all are closed, or the time is over."""
        self.open = [out for out in self.open if self._goes_on(out)]
        self.lasted = time.monotonic() - self.began
        if not self.open or self.lasted > seconds:
            return True
        time.sleep(1)
        return False

    def _goes_on(self, out: socket.socket) -> bool:
        out.setblocking(False)
        try:
            answer = out.recv(4096)
            if answer:
                self.answers[_status(answer) if answer.startswith(b"HTTP/") else "abort"] += 1
                return True
            return False
        except BlockingIOError:
            with suppress(BlockingIOError):
                out.sendall(b"a")
            return True
        except OSError:
            return False


@contextmanager
def slow_connections(port: int, said: bytes, source: str = "127.0.0.1") -> Iterator[Slow]:
    """As many as LORISES, from an address of the loopback; those that are refused at once count as closed."""
    made: list[socket.socket] = []
    try:
        for _ in range(LORISES):
            with suppress(OSError):
                made.append(socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0)))
                made[-1].sendall(said)
        yield Slow(made)
    finally:
        for out in made:
            out.close()


# DICOM


@dataclass(frozen=True)
class Dimse:
    """The DICOM node under attack. sender: an AE title that it knows; elsewhere: one that it knows from another host.

    answered_for: how an instance was, in so many seconds at most; empty where it was not. folder: for what is sent.
    """

    port: int
    title: str
    sender: str
    elsewhere: str
    idle_seconds: float
    object_mb: float
    answered_for: Callable[[str, float], str]
    folder: Path

    def associate(self, sender: str = "", called: str = "", tls: ssl.SSLContext | None = None) -> Association:
        """An association for CT, asked for under some name."""
        entity = AE(sender or self.sender)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
        entity.connection_timeout = 10
        entity.add_requested_context(Verification)
        for syntax in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
            entity.add_requested_context(CTImageStorage, syntax)
        return entity.associate(
            "127.0.0.1", self.port, ae_title=called or self.title, tls_args=(tls, "localhost") if tls else None
        )

    def honest(self) -> bool:
        """Whether a C-ECHO is answered."""
        return echoed(self.associate())

    def store(self, whole: bytes, patience: float = 60) -> tuple[str, bool]:
        """An object that is no sound image: refused, or taken and then reported as not scored; either is an answer."""
        association = self.associate()
        if not association.is_established:
            return "no association", False
        _config.STORE_SEND_CHUNKED_DATASET = True  # the file's own bytes: nothing is unpacked here
        held = self.folder / "attack.dcm"
        held.write_bytes(whole)
        uid = str(read_file_meta_info(held).MediaStorageSOPInstanceUID)
        answer = association.send_c_store(held)
        if association.is_established:
            association.release()
        if "Status" not in answer:
            return "association ended", True
        if answer.Status != 0:
            return f"status 0x{answer.Status:04X}", True
        known = self.answered_for(uid, patience)
        return f"taken, then {known or 'nothing'}", bool(known)


def echoed(association: Association) -> bool:
    """Whether a C-ECHO over it is answered; it is released."""
    if not association.is_established:
        return False
    answered = association.send_c_echo()
    association.release()
    return bool(answered and answered.get("Status") == 0)


def on_node(node: Dimse) -> Iterator[Attack]:
    """All attacks on the DICOM node."""

    def rejected(**how: str) -> Callable[[], tuple[str, bool]]:
        def send() -> tuple[str, bool]:
            association = node.associate(**how)
            if association.is_established:
                association.release()
                return "accepted", False
            return "rejected" if association.is_rejected else "aborted", True

        return send

    yield "forged calling AE title", "association rejected", rejected(sender="INTRUDER")
    yield "known AE title from another host than its own", "association rejected", rejected(sender=node.elsewhere)
    yield "wrong called AE title", "association rejected", rejected(called="SOMEBODY")
    yield "no DICOM at all", "hung up", lambda: _raw_dicom(node, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    yield "data before any association", "hung up", lambda: _raw_dicom(node, _pdu(4, bytes(64)))
    yield "unknown kind of PDU", "hung up", lambda: _raw_dicom(node, _pdu(0x77, bytes(64)))
    yield "association request cut short", "hung up", lambda: _raw_dicom(node, _pdu(1, bytes(10)))
    yield "association request of random bytes", "hung up", lambda: _raw_dicom(node, _pdu(1, bytes(range(256)) * 4))
    yield "PDU that promises 4 GB", "hung up, memory bounded", lambda: _endless_pdu(node)
    yield "command of random bytes", "aborted", lambda: _inside(node, _pdv(3, bytes(range(256))))
    yield "command without its data set", "ended by time-out", lambda: _inside(node, _pdv(3, _store_command()))
    yield "data set without its command", "aborted", lambda: _inside(node, _pdv(2, bytes(256)))
    yield "context that was never agreed", "aborted", lambda: _inside(node, _pdv(3, _store_command(), context=251))
    yield "data set larger than allowed", "0xA700", lambda: node.store(large(node.object_mb + 8))
    yield (
        "data set without end",
        "memory bounded, ended",
        lambda: _inside(node, _pdv(3, _store_command()), endless=_pdv(0, bytes(16000))),
    )
    yield "slow-loris from a strange address", "closed, others served", lambda: _slow_dicom(node, "127.0.0.2")
    yield "slow-loris from a sender's own address", "closed by time-out", lambda: _slow_dicom(node, "127.0.0.1")
    yield "65535x65535 pixels promised, 8 bytes there", "not scored", lambda: node.store(dicom_bomb(65535, 65535))
    yield "2147483647 frames promised", "not scored", lambda: node.store(dicom_bomb(512, 512, 2**31 - 1))
    yield "1 GiB deflated to 1 MB", "not scored", lambda: node.store(deflated_bomb(GIB))
    yield "5000 sequences nested", "not scored", lambda: node.store(nested_bomb(5000))


def _pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    """Upper-layer PDU (PS3.8 9.3): type, reserved, length, content."""
    return struct.pack(">BBI", kind, 0, len(content) if length is None else length) + content


def _pdv(header: int, content: bytes, context: int = 3) -> bytes:
    """P-DATA-TF of one value; header bit 0: command, bit 1: last (PS3.8 annex E)."""
    return _pdu(4, struct.pack(">IBB", len(content) + 2, context, header) + content)


def _store_command() -> bytes:
    """A C-STORE request for a CT image, implicit little endian (PS3.7 9.3.1.1)."""

    def element(number: int, value: bytes) -> bytes:
        value += b"\0" * (len(value) % 2)
        return struct.pack("<HHI", 0, number, len(value)) + value

    rest = element(0x0002, CTImageStorage.encode()) + element(0x0100, struct.pack("<H", 1))
    rest += element(0x0110, struct.pack("<H", 7)) + element(0x0700, struct.pack("<H", 0))
    rest += element(0x0800, struct.pack("<H", 1)) + element(0x1000, generate_uid().encode())
    return element(0x0000, struct.pack("<I", len(rest))) + rest


def _hung_up(out: socket.socket, seconds: float) -> bool:
    """Whether the other side ends the connection (an A-ABORT may come first)."""
    out.settimeout(seconds)
    try:
        while out.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _raw_dicom(node: Dimse, said: bytes) -> tuple[str, bool]:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as out:
        out.sendall(said)
        ended = _hung_up(out, 2 * node.idle_seconds + 5)
    return "hung up" if ended else "left open", ended


def _endless_pdu(node: Dimse) -> tuple[str, bool]:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as out:
        sent = 0
        with suppress(OSError):
            out.sendall(_pdu(1, b"", length=0xFFFFFFF0))
            while sent < STREAMED_MB:
                out.sendall(bytes(2**20))
                sent += 1
        ended = sent < STREAMED_MB or _hung_up(out, 2 * node.idle_seconds + 5)
    return f"{'hung up' if ended else 'left open'} after {sent} MB", sent < STREAMED_MB


def _inside(node: Dimse, *said: bytes, endless: bytes = b"") -> tuple[str, bool]:
    """Raw bytes within an association that was properly made. Endless ones stop at some time, and then none follow."""
    association = node.associate()
    if not association.is_established:
        return "no association", False
    out = association.dul.socket
    sent, most = 0, (node.object_mb + STREAMED_MB) * 2**20
    with suppress(OSError, AttributeError):
        for each in said:
            out.send(each)
        while endless and association.is_established and sent < most:
            out.send(endless)
            sent += len(endless)
    until = time.monotonic() + 2 * node.idle_seconds + 5
    while association.is_established and time.monotonic() < until:
        time.sleep(0.1)
    ended = not association.is_established
    if not ended:
        association.abort()
    came = "ended by the node" if ended else "left open"
    return came + (f" after {sent / 2**20:.0f} MB" if endless else ""), ended


def _slow_dicom(node: Dimse, source: str) -> tuple[str, bool]:
    """From an address that may send nothing all are turned away; one that may can hold the port up to its time-outs."""
    stranger = source != "127.0.0.1"
    with slow_connections(node.port, _pdu(1, b"", length=200), source) as slow:
        served = tries = 0
        while not slow.over(3 * node.idle_seconds + 5):
            served += node.honest()
            tries += 1
        came = f"{slow.closed} of {LORISES} closed within {slow.lasted:.0f} s"
    return f"{came}; {served} of {tries} C-ECHO answered meanwhile", slow.closed == LORISES and (
        served == tries or not stranger
    )


def on_tls(node: Dimse, certificates: Certificates) -> Iterator[Attack]:
    """Attacks on a node that demands DICOM TLS with certificates of its own authority."""

    def refused(tls: ssl.SSLContext | None) -> Callable[[], tuple[str, bool]]:
        def send() -> tuple[str, bool]:
            association = node.associate(tls=tls)
            if association.is_established:
                association.release()
                return "accepted", False
            return "refused", True

        return send

    yield "DICOM without TLS", REFUSED, refused(None)
    yield "TLS without a certificate", REFUSED, refused(client_tls(certificates, None))
    yield "TLS with the certificate of another authority", REFUSED, refused(client_tls(certificates, "stranger"))
    old = client_tls(certificates, "client")
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    yield "TLS 1.1", REFUSED, refused(old)


def client_tls(certificates: Certificates, holder: str | None) -> ssl.SSLContext:
    """What a sender brings; it checks the node's certificate against the authority."""
    context = ssl.create_default_context(cafile=certificates["ca.pem"])
    if holder is not None:
        context.load_cert_chain(certificates[f"{holder}.pem"], certificates[f"{holder}.key"])
    return context


# What is sent to both


def dicom_bomb(rows: int, columns: int, frames: int = 1) -> bytes:
    """A sound header that promises more pixels than it brings."""
    dataset = dcmread(io.BytesIO(small()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns, dataset.PixelData = rows, columns, bytes(8)
    if frames > 1:
        dataset.NumberOfFrames = frames
    return _encoded(dataset)


def large(megabytes: float) -> bytes:
    """A sound image of so many MB."""
    dataset = dcmread(io.BytesIO(small()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows = dataset.Columns = side = math.ceil((megabytes * 2**19) ** 0.5)
    dataset.PixelData = bytes(2 * side * side)
    return _encoded(dataset)


def nested_bomb(depth: int) -> bytes:
    """Sequences within sequences, of undefined length, deeper than a reader may go."""
    dataset = dcmread(io.BytesIO(small()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    whole = _encoded(dataset)
    begin = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    at = whole.index(struct.pack("<HH", 0x7FE0, 0x0010))
    return whole[:at] + begin * depth + end * depth + whole[at:]


def deflated_bomb(size: int) -> bytes:
    """A deflated object whose pixels are zeros, a thousand times larger unpacked."""
    dataset = dcmread(io.BytesIO(small()))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    del dataset.PixelData
    del dataset[0xFFFCFFFC]  # what trails after the pixels
    plain = _encoded(dataset)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = _encoded(dataset)
    packed, zeros = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS), bytes(2**20)
    body = packed.compress(plain[_end_of_meta(plain) :] + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, size))
    body += b"".join(packed.compress(zeros) for _ in range(size // len(zeros))) + packed.flush()
    return deflated[: _end_of_meta(deflated)] + body + b"\0" * (len(body) % 2)


def _end_of_meta(whole: bytes) -> int:
    """Where the data set begins: after preamble, DICM, and the group whose length stands first in it."""
    return 144 + int.from_bytes(whole[140:144], "little")


def png_bomb(side: int) -> bytes:
    """A grey picture of zeros, side x side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packed, row = zlib.compressobj(9), bytes(side + 1)
    body = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def zip_bomb(size: int) -> bytes:
    """An archive of one member of zeros."""
    held = io.BytesIO()
    with (
        zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.dcm", "w", force_zip64=True) as out,
    ):
        for _ in range(size // 2**20):
            out.write(bytes(2**20))
    return held.getvalue()


def zip_traversal() -> bytes:
    """An archive whose member wants to be written elsewhere."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("../../../../../../etc/cron.d/x.dcm", b"no image")
    return held.getvalue()


def _encoded(dataset: Dataset) -> bytes:
    held = io.BytesIO()
    dataset.save_as(held, enforce_file_format=True)
    return held.getvalue()
