"""Who is let in, what is accepted, what each refusal says; and what attackers find."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import Comprehensive3DSRStorage, CTImageStorage, SegmentationStorage, Verification
from tests.node.conftest import image, send, wait_for

from saqm.errors import ImageError, SaqmError
from saqm.node import guarded
from saqm.node.identity import identify
from saqm.node.listener import Listener, image_classes, transfer_syntaxes
from saqm.node.queue import Queue, status
from saqm.node.sending import echo
from saqm.node.settings import Settings

pytestmark = [  # of pynetdicom, whose threads and sockets end as attackers make them end
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ASSOCIATE_RQ, P_DATA, ABORT = 1, 4, 7


@pytest.fixture
def listen(settings: Callable[..., Settings]) -> Iterator[Callable[..., Listener]]:
    """Starts the port of a node; nobody scores what comes."""
    ends: list[Callable[[], None]] = []

    def start(**other: Any) -> Listener:
        told = settings(**other)
        queue = Queue(told.folder, clock=time.time, device_uid=lambda: "2.25.7")
        ends.append(queue.close)
        listener = Listener(told, queue, arrived=lambda: None)
        ends.append(lambda: listener.stop(seconds=0))
        return listener

    yield start
    for end in reversed(ends):
        end()


def accepted(listener: Listener) -> int:
    return int(status(listener._queue.folder, now=0)["instances"]["waiting"])


def left_over(listener: Listener) -> list[Path]:
    return list(listener._queue.incoming.iterdir())


def lets_in(listener: Listener) -> bool:
    """Whether it accepts an association from whom it knows."""
    entity = AE("CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", listener.port, ae_title="SAQM")
    accepted = assoc.is_established
    if accepted:
        assoc.release()
    return accepted


def is_alive(listener: Listener) -> bool:
    """Whether it still takes an image from whom it knows."""
    return send(listener.port, [image(int(time.monotonic() * 1e6))]) == [0]


# Accepting


def test_an_image_is_on_the_disk_as_it_was_sent(listen: Callable[..., Listener]) -> None:
    listener, sent = listen(), image()
    assert send(listener.port, [sent]) == [0]
    (path,) = listener._queue.files.iterdir()
    assert dcmread(path) == sent
    assert dcmread(path).file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID


@pytest.mark.parametrize(
    "name", ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "SC_rgb_jpeg_gdcm.dcm", "MR_small_bigendian.dcm"]
)
def test_every_transfer_syntax_is_taken_as_it_is(listen: Callable[..., Listener], name: str) -> None:
    listener, sent = listen(), image(source=name)
    assert send(listener.port, [sent]) == [0]
    (path,) = listener._queue.files.iterdir()
    assert dcmread(path).PixelData == sent.PixelData


def test_a_deflated_data_set_is_taken(listen: Callable[..., Listener]) -> None:
    listener, sent = listen(), image()
    sent.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert send(listener.port, [sent]) == [0]


def test_an_image_sent_again_is_known_and_one_with_other_content_is_a_duplicate(
    listen: Callable[..., Listener],
) -> None:
    listener, sent = listen(), image()
    other = image()
    other.PixelData = other.PixelData[::-1]
    assert send(listener.port, [sent, sent, other]) == [0, 0, 0x0111]
    (path,) = listener._queue.files.iterdir()
    assert dcmread(path).PixelData == sent.PixelData
    assert left_over(listener) == []


def test_only_images_are_asked_for() -> None:
    classes = image_classes()
    assert CTImageStorage in classes
    assert len(classes) > 50
    assert not {Comprehensive3DSRStorage, SegmentationStorage, "1.2.840.10008.5.1.4.1.1.481.2"} & set(classes)
    assert len(transfer_syntaxes()) > 30


def test_a_report_is_not_accepted_and_does_not_stand_in_the_way_of_images(listen: Callable[..., Listener]) -> None:
    listener = listen()
    entity = AE("CT1")
    entity.add_requested_context(Comprehensive3DSRStorage)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", listener.port, ae_title="SAQM")
    assert [context.abstract_syntax for context in assoc.rejected_contexts] == [Comprehensive3DSRStorage]
    assert assoc.send_c_store(image()).Status == 0
    assoc.release()


def test_a_data_set_of_another_instance_than_announced_is_refused(listen: Callable[..., Listener]) -> None:
    listener, sent = listen(), image()
    entity = AE("CT1")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.4", ExplicitVRLittleEndian)  # MR: but it is CT
    assoc = entity.associate("127.0.0.1", listener.port, ae_title="SAQM")
    sent.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    context = assoc.accepted_contexts[0]
    sent.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    assert assoc.send_c_store(sent).Status == 0
    lying = image(1)
    monkey = assoc._get_valid_context
    assoc._get_valid_context = lambda *_, **__: context  # what pynetdicom would not do
    assert assoc.send_c_store(lying).Status == 0xA900
    assoc._get_valid_context = monkey
    assoc.release()
    assert accepted(listener) == 1


def test_what_does_not_say_where_it_belongs_is_not_understood(listen: Callable[..., Listener]) -> None:
    listener, sent = listen(), image()
    del sent.StudyInstanceUID
    assert send(listener.port, [sent]) == [0xC000]
    assert left_over(listener) == []


def test_uids_are_read_without_what_follows_them() -> None:
    sent = image()
    sent.add_new(0x00081030, "UT", "x" * 5000)  # of a length that is skipped
    whole = bytes(encode(sent, is_implicit_vr=False, is_little_endian=True))
    cut = whole[: whole.index(b"\x20\x00\x0e\x00UI") + 40]
    found = identify(BytesIO(cut), ExplicitVRLittleEndian, most=10**6)
    assert found == (sent.SOPClassUID, sent.SOPInstanceUID, "1.2.3", "1.2.3.4")
    with pytest.raises(ImageError, match="no SeriesInstanceUID"):
        identify(BytesIO(cut[:-40]), ExplicitVRLittleEndian, most=10**6)
    with pytest.raises(ImageError, match="no SOPClassUID"):
        identify(BytesIO(b"\xff" * 4000), ExplicitVRLittleEndian, most=10**6)


def test_a_deflate_bomb_is_told_by_its_size_without_holding_it() -> None:
    packing = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(packing.compress(b"\0" * (1 << 20)) for _ in range(64)) + packing.flush()
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match="inflates to more than 1,048,576 bytes"):
        identify(BytesIO(bomb), DeflatedExplicitVRLittleEndian, most=1 << 20)


# Full


def test_more_than_may_wait_are_refused_for_now(listen: Callable[..., Listener]) -> None:
    listener = listen(max_waiting=2)
    assert send(listener.port, [image(number) for number in range(3)]) == [0, 0, 0xA700]
    assert accepted(listener) == 2


def test_the_reserve_of_the_disk_is_left_free(listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(reserve_mb=100)
    monkeypatch.setattr(guarded, "free_bytes", lambda _: 99 << 20)
    assert send(listener.port, [image()]) == [0xA700]
    assert accepted(listener) == 0
    assert left_over(listener) == []
    monkeypatch.setattr(guarded, "free_bytes", lambda _: 101 << 20)
    assert is_alive(listener)


def test_a_disk_that_fills_while_an_object_comes_refuses_it_and_keeps_nothing(
    listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen()

    def full(self: Any, data: bytes) -> None:
        real(self, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = guarded.Incoming._append
    monkeypatch.setattr(guarded.Incoming, "_append", full)
    assert send(listener.port, [image()]) == [0xA700]
    assert left_over(listener) == []
    monkeypatch.setattr(guarded.Incoming, "_append", real)
    assert is_alive(listener)


def test_an_object_that_is_too_large_is_refused(listen: Callable[..., Listener]) -> None:
    listener = listen(max_object_mb=0.02)  # CT_small has 39 kB
    assert send(listener.port, [image()]) == [0xA700]
    assert left_over(listener) == []


# Who may


@pytest.mark.parametrize(
    ("title", "called"), [("NOBODY", "SAQM"), ("ct1", "SAQM"), ("CT1", "OTHER")], ids=["unknown", "case", "called"]
)
def test_who_is_not_known_is_refused(listen: Callable[..., Listener], title: str, called: str) -> None:
    listener = listen()
    with pytest.raises(AssertionError, match="association refused"):
        send(listener.port, [image()], title=title, called=called)
    assert is_alive(listener)


def test_a_known_title_from_elsewhere_is_forged(listen: Callable[..., Listener]) -> None:
    listener = listen(
        allow=[{"title": "CT1", "hosts": ["127.0.0.1"]}, {"title": "MR1", "hosts": ["10.9.9.0/24", "::1"]}]
    )
    entity = AE("MR1")
    entity.add_requested_context(Verification)
    assoc = entity.associate("127.0.0.1", listener.port, ae_title="SAQM")
    assert assoc.is_rejected
    assert (assoc.acceptor.primitive.result, assoc.acceptor.primitive.diagnostic) == (1, 3)
    assert is_alive(listener)


def test_the_node_may_ask_itself_whether_it_is_alive_and_nothing_else(
    listen: Callable[..., Listener], settings: Callable[..., Settings]
) -> None:
    listener = listen(allow=[{"title": "CT1", "hosts": ["10.0.0.1"]}])
    assert echo(settings(port=listener.port))
    assert send(listener.port, [image()], title="SAQM") == [0x0124]
    assert accepted(listener) == 0


def test_an_address_from_which_nobody_may_send_is_hung_up_on(
    listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded, "is_itself", lambda _: False)
    listener = listen(allow=[{"title": "CT1", "hosts": ["10.0.0.1"]}])
    with socket.create_connection(("127.0.0.1", listener.port), 5) as stranger:
        assert stranger.recv(1) == b""


def test_more_associations_than_allowed_are_refused_for_now(listen: Callable[..., Listener]) -> None:
    listener = listen(max_associations=2)
    entity = AE("CT1")
    entity.add_requested_context(Verification)
    held = [entity.associate("127.0.0.1", listener.port, ae_title="SAQM") for _ in range(2)]
    third = entity.associate("127.0.0.1", listener.port, ae_title="SAQM")
    assert [each.is_established for each in held] == [True, True]
    assert third.is_rejected
    assert third.acceptor.primitive.result == 2  # transient
    for each in held:
        each.release()
    wait_for(lambda: not listener._server.active_associations)
    assert is_alive(listener)


def test_a_port_that_is_taken_is_told(listen: Callable[..., Listener], tmp_path: Path) -> None:
    listener = listen()
    with pytest.raises(SaqmError, match=f"port {listener.port} of 127.0.0.1 cannot be had: Address already in use"):
        listen(port=listener.port, folder=tmp_path / "second")


# Attacks


def connected(listener: Listener) -> socket.socket:
    return socket.create_connection(("127.0.0.1", listener.port), 10)


def is_cut(connection: socket.socket) -> bool:
    """Whether the other end hung up, after whatever it had to say."""
    connection.settimeout(10)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def established(listener: Listener) -> socket.socket:
    """The bare connection of an association for C-ECHO and CT images."""
    entity = AE("CT1")
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    request: list[bytes] = []
    other = entity.associate(
        "127.0.0.1",
        listener.port,
        ae_title="SAQM",
        evt_handlers=[(evt.EVT_DATA_SENT, lambda event: request.append(event.data))],
    )
    other.release()
    connection = connected(listener)
    connection.sendall(request[0])
    assert connection.recv(6)[0] == 2  # accepted
    connection.recv(65536)
    return connection


def fragment(control: int, content: bytes, context: int = 1) -> bytes:
    """A P-DATA with one fragment: control 1 of a command, 3 its last, 0 of a data set, 2 its last (PS3.8 E.2)."""
    value = struct.pack(">IBB", len(content) + 2, context, control) + content
    return struct.pack(">BBI", P_DATA, 0, len(value)) + value


def command(**elements: int | str) -> bytes:
    """A command set."""
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return bytes(encode(made, is_implicit_vr=True, is_little_endian=True))


BYTES = {
    "nothing": b"",
    "web": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "noise": bytes(range(256)) * 20,
    "huge": struct.pack(">BBI", ASSOCIATE_RQ, 0, 0xFFFFFFFF) + b"x" * 5000,
    "torn": struct.pack(">BBI", ASSOCIATE_RQ, 0, 200) + b"x" * 100,
    "empty": struct.pack(">BBI", ASSOCIATE_RQ, 0, 0),
    "senseless": struct.pack(">BBI", ASSOCIATE_RQ, 0, 100) + b"\xff" * 100,
    "early": fragment(3, b"x" * 20),
    "abort": struct.pack(">BBI4x", ABORT, 0, 4),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_association_end_their_connection_only(listen: Callable[..., Listener], name: str) -> None:
    listener = listen(acse_seconds=0.5, network_seconds=0.5)
    with connected(listener) as attacker:
        attacker.sendall(BYTES[name])
        assert is_cut(attacker)
    wait_for(lambda: not listener._server.active_associations)
    assert is_alive(listener)


MESSAGES = {
    "no command": fragment(3, b"\xff" * 30),
    "unknown command": fragment(3, command(CommandField=0x7777, CommandDataSetType=0x0101)),
    "command without end": fragment(1, b"x" * 60_000) * 3,
    "unknown context": fragment(
        3, command(CommandField=1, MessageID=1, AffectedSOPClassUID="1.2", CommandDataSetType=1), context=77
    )
    + fragment(2, b"x" * 20, context=77),
    "store by echo's context": fragment(
        3,
        command(
            AffectedSOPClassUID=CTImageStorage, CommandField=1, MessageID=1, Priority=0, CommandDataSetType=1,
            AffectedSOPInstanceUID="1.2.3",
        ),
    )
    + fragment(2, b"\0" * 100),
    "huge": struct.pack(">BBI", P_DATA, 0, 0x7FFFFFFF) + b"x" * 100,
    "lying length": struct.pack(">BBIIBB", P_DATA, 0, 10, 0xFFFFFF, 1, 3) + b"abcd",
    "no answer awaited": fragment(
        3, command(CommandField=0x30, MessageID=1, AffectedSOPClassUID=Verification, CommandDataSetType=0x0101)
    )
    * 3000,
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_that_make_no_sense_end_their_association_only(listen: Callable[..., Listener], name: str) -> None:
    listener = listen(network_seconds=1)
    with established(listener) as attacker:
        with suppress(ConnectionError):
            attacker.sendall(MESSAGES[name])
        assert is_cut(attacker)
    wait_for(lambda: not listener._server.active_associations)
    assert accepted(listener) == 0
    wait_for(lambda: not left_over(listener))
    assert is_alive(listener)


def test_who_sends_a_byte_now_and_then_is_cut_off(listen: Callable[..., Listener]) -> None:
    listener = listen(acse_seconds=0.6, network_seconds=0.6)
    began = time.monotonic()
    with connected(listener) as attacker:
        try:
            while time.monotonic() - began < 5:
                attacker.sendall(b"\x01")
                time.sleep(0.1)
        except ConnectionError:
            pass
    assert time.monotonic() - began < 3
    wait_for(lambda: not listener._server.active_associations)


def test_a_data_set_that_trickles_is_cut_off(listen: Callable[..., Listener]) -> None:
    listener = listen(dimse_seconds=0.5)
    store = command(
        AffectedSOPClassUID=CTImageStorage, CommandField=1, MessageID=1, Priority=0, CommandDataSetType=1,
        AffectedSOPInstanceUID="1.2.3",
    )  # fmt: skip
    began = time.monotonic()
    with established(listener) as attacker:
        try:
            attacker.sendall(fragment(3, store, context=3))
            while time.monotonic() - began < 5:
                attacker.sendall(fragment(0, b"ab", context=3))
                time.sleep(0.05)
        except ConnectionError:
            pass
    assert time.monotonic() - began < 3
    wait_for(lambda: not left_over(listener))
    assert is_alive(listener)


def test_idle_connections_are_bounded_and_do_not_keep_others_out_for_long(listen: Callable[..., Listener]) -> None:
    listener = listen(max_associations=2, acse_seconds=1)
    idle = [connected(listener) for _ in range(60)]
    time.sleep(0.3)
    assert len(listener._server.active_associations) <= 2 + guarded.BEYOND
    wait_for(lambda: not listener._server.active_associations)
    wait_for(lambda: lets_in(listener))  # those that the system held back are thrown out in their turn
    assert is_alive(listener)
    for each in idle:
        each.close()


def test_a_sender_that_disappears_leaves_nothing_behind(listen: Callable[..., Listener]) -> None:
    listener = listen()
    store = command(
        AffectedSOPClassUID=CTImageStorage, CommandField=1, MessageID=1, Priority=0, CommandDataSetType=1,
        AffectedSOPInstanceUID="1.2.3",
    )  # fmt: skip
    with established(listener) as sender:
        sender.sendall(fragment(3, store, context=3) + fragment(0, b"x" * 1000, context=3))
        wait_for(lambda: left_over(listener))
    wait_for(lambda: not left_over(listener))
    assert accepted(listener) == 0


def test_stopping_answers_no_more_and_comes_to_an_end(listen: Callable[..., Listener]) -> None:
    listener = listen()
    entity = AE("CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    assoc = entity.associate("127.0.0.1", listener.port, ae_title="SAQM")
    stopping = threading.Thread(target=listener.stop, kwargs={"seconds": 1})
    stopping.start()
    wait_for(listener._stopping.is_set)
    assert assoc.send_c_store(image()).Status == 0xA700
    stopping.join(10)
    assert not stopping.is_alive()
    wait_for(lambda: not listener._server.active_associations)


# TLS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.pem and theirs.pem, signed by ca.pem; stranger.pem, signed by itself; a key beside each."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"
        )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("ours", "theirs"):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def tls_of(folder: Path, name: str = "ours") -> dict[str, str]:
    return {
        "certificate": str(folder / f"{name}.pem"),
        "key": str(folder / f"{name}.key"),
        "ca": str(folder / "ca.pem"),
    }


def client(folder: Path, name: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if name is not None:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def test_over_tls_images_come_from_who_has_a_certificate(
    listen: Callable[..., Listener], certificates: Path, settings: Callable[..., Settings]
) -> None:
    listener = listen(tls=tls_of(certificates))
    assert send(listener.port, [image()], tls_args=(client(certificates, "theirs"), "127.0.0.1")) == [0]
    assert echo(settings(tls=tls_of(certificates), port=listener.port))


@pytest.mark.parametrize("name", ["stranger", None])
def test_over_tls_a_wrong_certificate_and_none_are_refused(
    listen: Callable[..., Listener], certificates: Path, name: str | None
) -> None:
    listener = listen(tls=tls_of(certificates))
    with pytest.raises(AssertionError, match="association refused"):
        send(listener.port, [image()], tls_args=(client(certificates, name), "127.0.0.1"))
    assert send(listener.port, [image()], tls_args=(client(certificates, "theirs"), "127.0.0.1")) == [0]


def test_over_tls_who_speaks_none_or_does_not_finish_the_handshake_keeps_nobody_out(
    listen: Callable[..., Listener], certificates: Path
) -> None:
    listener = listen(tls=tls_of(certificates), acse_seconds=2)
    with connected(listener) as plain, connected(listener):
        plain.sendall(BYTES["web"])
        assert send(listener.port, [image()], tls_args=(client(certificates, "theirs"), "127.0.0.1")) == [0]
        assert is_cut(plain)


def test_files_that_are_no_certificate_are_told(listen: Callable[..., Listener], certificates: Path) -> None:
    with pytest.raises(SaqmError, match=r"TLS: certificate, key and ca cannot be used .*KEY_VALUES_MISMATCH"):
        listen(tls={**tls_of(certificates), "key": str(certificates / "theirs.key")})
