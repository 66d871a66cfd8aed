"""Destinations that are away, refuse, want TLS or STOW: what is sent when, and what becomes of it."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.node.conftest import Pacs, image, wait_for
from tests.node.test_listener import certificates, client, tls_of  # noqa: F401  a fixture

from saqm.dicomweb import DicomwebError
from saqm.errors import SaqmError
from saqm.node.queue import Arrival, Made, Queue, status
from saqm.node.sending import Sender, waiting_time
from saqm.node.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path / "queue", clock=time.time, device_uid=lambda: "2.25.7")
    yield made
    made.close()


@pytest.fixture
def serve(queue: Queue, settings: Callable[..., Settings]) -> Iterator[Callable[..., Sender]]:
    """Starts the sender of the first destination."""
    made: list[Sender] = []

    def start(**other: Any) -> Sender:
        told = settings(**other)
        sender = Sender(told, told.destination[0], queue)
        made.append(sender)
        sender.start()
        return sender

    yield start
    for sender in made:
        sender.stop(seconds=10)


def add(queue: Queue, count: int = 1, destinations: tuple[str, ...] = ("pacs",)) -> list[str]:
    """Objects to be sent: images, as what they are does not matter here. Their UIDs."""
    from io import BytesIO

    uids = []
    for number in range(count):
        sent, stream = image(number), BytesIO()
        sent.save_as(stream)
        path = queue.incoming / "x.part"
        path.write_bytes(b"x")
        uid = sent.SOPInstanceUID
        queue.accept(
            Arrival(path, "0", 1, f"9.{uid}"[:60], sent.SOPClassUID, "1.2", "1.2", f"1.{number}", "CT1", "127.0.0.1"),
            stable_seconds=0,
        )
        queue.note_scored([(each, None) for each in queue.take(9, attempts=3)])
        ((scored,),) = queue.due()
        queue.report([scored], [Made("report", uid, sent.SOPClassUID, stream.getvalue())], destinations)
        uids.append(uid)
    return uids


def destination(queue: Queue, name: str = "pacs") -> dict[str, Any]:
    return dict(status(queue.folder, now=time.time())["destinations"].get(name, {}))


def test_the_time_waited_doubles_up_to_the_most_and_is_the_same_each_time() -> None:
    waited = [waiting_time(tries, "pacs", first=1, most=100) for tries in range(20)]
    assert waited == [waiting_time(tries, "pacs", first=1, most=100) for tries in range(20)]
    assert all(0.5 * min(100, 2**tries) < each <= min(100, 2**tries) for tries, each in enumerate(waited))
    assert len(set(waited[10:])) == 10  # the jitter differs from try to try
    assert waited != [waiting_time(tries, "archive", first=1, most=100) for tries in range(20)]
    assert waiting_time(10**6, "pacs", first=1, most=100) <= 100


def test_what_was_confirmed_is_gone(queue: Queue, serve: Callable[..., Sender], pacs: Pacs) -> None:
    uids = add(queue, 3)
    serve()
    wait_for(lambda: status(queue.folder, now=0)["instances"]["done"] == 3)
    assert sorted(pacs.stored) == sorted(uids)
    assert not list(queue.outbox.iterdir())


def test_a_destination_that_is_down_gets_everything_once_it_is_up(
    queue: Queue, serve: Callable[..., Sender], pacs: Pacs
) -> None:
    pacs.stop()
    uids = add(queue, 2)
    serve()
    wait_for(lambda: destination(queue).get("unreachable", 0) >= 2)
    assert destination(queue)["reason"] == "no connection, or no association on it"
    assert destination(queue)["pending"] == 2
    pacs.start()
    wait_for(lambda: len(pacs.stored) == 2)
    assert sorted(pacs.stored) == sorted(uids)
    wait_for(lambda: destination(queue) == {})


def test_a_destination_without_room_is_asked_again(queue: Queue, serve: Callable[..., Sender], pacs: Pacs) -> None:
    pacs.status = 0xA700
    add(queue)
    serve()
    wait_for(lambda: queue._one("SELECT max(tries) FROM deliveries")[0] >= 2)
    pacs.status = 0
    wait_for(lambda: pacs.stored)


def test_what_is_refused_for_good_is_set_aside_with_its_status(
    queue: Queue, serve: Callable[..., Sender], pacs: Pacs
) -> None:
    pacs.status = 0xC123
    (uid,) = add(queue)
    serve()
    wait_for(lambda: status(queue.folder, now=0)["aside"])
    assert status(queue.folder, now=0)["aside"] == [
        {"object": uid, "kind": "report", "destination": "pacs", "reason": "status 0xC123"}
    ]
    assert len(list(queue.files.iterdir())) == 1


@pytest.mark.parametrize("answer", [0xB000, 0x0111], ids=["warning", "has it already"])
def test_a_warning_is_a_confirmation(queue: Queue, serve: Callable[..., Sender], pacs: Pacs, answer: int) -> None:
    pacs.status = answer
    add(queue)
    serve()
    wait_for(lambda: status(queue.folder, now=0)["instances"]["done"] == 1)


def test_a_destination_that_does_not_know_the_node_is_asked_again_later(
    queue: Queue, serve: Callable[..., Sender], pacs: Pacs
) -> None:
    pacs._server.ae.require_calling_aet = ["SOMEBODY"]
    add(queue)
    serve()
    wait_for(lambda: destination(queue).get("unreachable"))
    assert destination(queue)["reason"].startswith("association rejected: Rejected Permanent, Calling AE title not rec")
    pacs._server.ae.require_calling_aet = []
    wait_for(lambda: pacs.stored)


def test_a_destination_without_this_sop_class_has_it_set_aside(
    queue: Queue, serve: Callable[..., Sender], pacs: Pacs
) -> None:
    pacs._server.contexts = [each for each in pacs._server.contexts if each.abstract_syntax != image().SOPClassUID]
    add(queue)
    serve()
    wait_for(lambda: status(queue.folder, now=0)["aside"] or destination(queue).get("unreachable"))
    assert status(queue.folder, now=0)["aside"][0]["reason"] == "it does not accept this SOP class"


# TLS


def tls_server(folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def by_tls(told: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {"destination": [{**told["destination"][0], "tls": True}], "tls": tls_of(folder)}


def test_over_tls_reports_go_to_whom_the_authority_knows(
    queue: Queue,
    serve: Callable[..., Sender],
    pacs: Pacs,
    told: dict[str, Any],
    certificates: Path,  # noqa: F811
) -> None:
    pacs.stop()
    pacs.start(ssl_context=tls_server(certificates, "theirs"))
    add(queue)
    serve(**by_tls(told, certificates))
    wait_for(lambda: pacs.stored)


def test_over_tls_nothing_goes_to_a_stranger(
    queue: Queue,
    serve: Callable[..., Sender],
    pacs: Pacs,
    told: dict[str, Any],
    certificates: Path,  # noqa: F811
) -> None:
    pacs.stop()
    pacs.start(ssl_context=tls_server(certificates, "stranger"))
    add(queue)
    serve(**by_tls(told, certificates))
    wait_for(lambda: destination(queue).get("unreachable"))
    assert pacs.got == []


# STOW


def stowing(**how: Any) -> dict[str, Any]:
    return {"destination": [{"name": "pacs", "url": "http://127.0.0.1:1/dicom-web", **how}]}


@pytest.mark.parametrize(
    ("error", "becomes"),
    [
        (DicomwebError("not stored: 0xa700", retry=True), "asked again"),
        (DicomwebError("503", retry=True, status=503), "asked again"),
        (DicomwebError("who are you", status=401), "asked again"),
        (DicomwebError("not stored: 0xc000"), "set aside"),
    ],
)
def test_what_stow_says_decides_whether_it_is_tried_again(
    queue: Queue,
    serve: Callable[..., Sender],
    monkeypatch: pytest.MonkeyPatch,
    error: DicomwebError,
    becomes: str,
) -> None:
    answers: list[DicomwebError | None] = [error]
    stored: list[Path] = []

    def stow(_: object, path: Path) -> None:
        if answers and (said := answers.pop()) is not None:
            raise said
        stored.append(path)

    monkeypatch.setattr("saqm.dicomweb.stow", stow)
    add(queue)
    serve(**stowing())
    if becomes == "asked again":
        wait_for(lambda: stored)
        wait_for(lambda: status(queue.folder, now=0)["instances"]["done"] == 1)
    else:
        wait_for(lambda: status(queue.folder, now=0)["aside"])
        assert status(queue.folder, now=0)["aside"][0]["reason"] == "not stored: 0xc000"
        assert not stored


def test_a_password_comes_from_a_file(queue: Queue, settings: Callable[..., Settings], tmp_path: Path) -> None:
    missing = settings(**stowing(user="saqm", password_file=tmp_path / "none"))
    with pytest.raises(SaqmError, match="none: cannot be read"):
        Sender(missing, missing.destination[0], queue)
    (tmp_path / "word").write_text("s3cret\n")
    given = settings(**stowing(user="saqm", password_file=tmp_path / "word"))
    Sender(given, given.destination[0], queue)
    assert "s3cret" not in repr(given)
