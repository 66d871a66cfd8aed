"""From an accepted image to the report: verdicts, maps, notes, late comers, and what cannot be scored or read."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from tests.node.conftest import NAME, Pacs, image, send, wait_for

import saqm.node.work
from saqm.errors import ModelFileError, SaqmError
from saqm.node.queue import status
from saqm.node.running import Node
from saqm.node.settings import Settings
from saqm.node.work import check_model
from saqm.workers import DIED, Answer, Task, WorkerError, Workers

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # parsers warn in the threads of the node
]
LATER = 5.0  # seconds


class Pool:
    """Real scoring processes, kept for all tests; what is in `deadly` ends one."""

    def __init__(self, workers: Workers) -> None:
        self._workers, self.models = workers, workers.models
        self.deadly: set[str] = set()
        self.unreportable: set[str] = set()
        self.runs = 0

    def score(self, tasks: Sequence[Task], *, stop: Callable[[], bool]) -> list[Answer]:
        answers = self._workers.score(tasks, stop=stop)
        for number, task in enumerate(tasks):
            if task.name in self.deadly:
                rows = [replace(row, sha256=None, status="not_scored", score=None, reasons=(f"{task.name}: {DIED}",))
                        for row in answers[number].scores]  # fmt: skip
                answers[number] = Answer(tuple(rows), ())
        return answers

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.runs += 1
        if function.__name__ == "make_objects":
            uids = {record["path"] for _, records in arguments[0] for record in records}
            if uids & self.unreportable:
                raise WorkerError("the process died")
        return self._workers.run(function, *arguments)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def kept() -> Iterator[dict[str, Workers]]:
    """The processes, once somebody has started them."""
    made: dict[str, Workers] = {}
    yield made
    for each in made.values():
        each.close()


@pytest.fixture
def pool(kept: dict[str, Workers], toy_model: Path) -> Pool:
    if "toy" not in kept:
        kept["toy"] = Workers((toy_model,))
    return Pool(kept["toy"])


@pytest.fixture
def run(settings: Callable[..., Settings], pool: Pool) -> Iterator[Callable[..., Node]]:
    """Starts nodes in this process."""
    made: list[Node] = []

    def start(**other: Any) -> Node:
        node = Node(settings(**other), pool)
        made.append(node)
        node.start()
        return node

    yield start
    for node in made:
        node.stop()


def uids(images: Sequence[Dataset]) -> list[str]:
    return sorted(each.SOPInstanceUID for each in images)


def broken(number: int) -> Dataset:
    """An image whose header is right and whose pixels are missing by half."""
    made = image(number)
    made.PixelData = made.PixelData[:1000]
    return made


def test_late_instances_get_a_further_report(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run()
    first, second = [image(0), image(1)], [image(2)]
    send(node.port, first)
    wait_for(lambda: len(pacs.got) == 1)
    send(node.port, [*second, *first])  # those of before are known
    wait_for(lambda: len(pacs.got) == 2)
    assert pacs.instances == uids(first + second)
    assert len(pacs.stored) == 2


def test_two_series_are_two_reports(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run()
    send(node.port, [image(0), image(1, series="1.2.3.5")])
    wait_for(lambda: len(pacs.got) == 2)
    assert len({each.uids["series"] for each in pacs.reported}) == 2


def test_a_sender_that_keeps_its_association_is_waited_for_no_longer_than_the_series_needs(
    run: Callable[..., Node], pacs: Pacs
) -> None:
    from pynetdicom import AE

    node, sent = run(), image()
    entity = AE("CT1")
    entity.add_requested_context(sent.SOPClassUID, sent.file_meta.TransferSyntaxUID)
    assoc = entity.associate("127.0.0.1", node.port, ae_title="SAQM")
    assert assoc.send_c_store(sent).Status == 0
    wait_for(lambda: pacs.got)
    assoc.release()


def test_what_cannot_be_read_is_reported_as_not_scored_and_set_aside(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run()
    images = [image(0), broken(1)]
    assert send(node.port, images) == [0, 0]
    wait_for(lambda: pacs.got)
    said = {each.uids["instance"]: each for each in pacs.reported}
    assert [said[each.SOPInstanceUID].status for each in images] == ["scored", "not_scored"]
    assert "pixel data" in " ".join(said[images[1].SOPInstanceUID].reasons).lower()
    told = lambda: status(node.queue.folder, now=0)["aside"]  # noqa: E731
    wait_for(told)
    assert told() == [{"instance": images[1].SOPInstanceUID, "reason": "cannot be read as an image"}]
    wait_for(lambda: node.tidy() or len(list(node.queue.files.iterdir())) == 1)  # it stays, to be looked at


def test_what_ends_its_process_is_reported_with_that_reason(run: Callable[..., Node], pool: Pool, pacs: Pacs) -> None:
    images = [image(0), image(1)]
    pool.deadly = {images[1].SOPInstanceUID}
    node = run()
    send(node.port, images)
    wait_for(lambda: pacs.got)
    said = {each.uids["instance"]: each for each in pacs.reported}
    assert DIED in " ".join(said[images[1].SOPInstanceUID].reasons)
    assert said[images[0].SOPInstanceUID].score is not None
    wait_for(lambda: status(node.queue.folder, now=0)["aside"])
    assert status(node.queue.folder, now=0)["aside"][0]["reason"] == "the process that scored it died"


def test_what_ended_the_node_too_often_is_not_tried_again_but_reported(
    run: Callable[..., Node], pacs: Pacs, settings: Callable[..., Settings], pool: Pool
) -> None:
    sent = image()
    first = Node(settings(), pool)  # accepts, and never comes to scoring
    send(first.port, [sent])
    first.queue._db.execute("UPDATE instances SET attempts = 3")
    first._listener.stop(seconds=0)
    first.queue.close()
    run()
    wait_for(lambda: pacs.got)
    (said,) = pacs.reported
    assert said.status == "not_scored"
    assert "the node ended 3 times while this was in hand" in " ".join(said.reasons)


def test_an_instance_is_told_as_scored_once_a_crash_cannot_take_it_back(
    run: Callable[..., Node], pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, happened = run(), []
    really = node.queue.note_scored
    monkeypatch.setattr(node.queue, "note_scored", lambda noted: really(noted) or happened.append("noted"))
    monkeypatch.setattr(saqm.node.work, "tell", lambda event, **_: happened.append(event))
    send(node.port, [image(0)])
    wait_for(lambda: pacs.got)
    assert [each for each in happened if each in ("noted", "scored")] == ["noted", "scored"]


def test_what_no_report_can_be_made_of_costs_no_other_its_report(
    run: Callable[..., Node], pool: Pool, pacs: Pacs
) -> None:
    images = [image(number) for number in range(4)]
    pool.unreportable = {images[2].SOPInstanceUID}
    node = run()
    send(node.port, images)
    wait_for(lambda: status(node.queue.folder, now=0)["instances"]["done"] == 3)
    assert pacs.instances == uids([images[0], images[1], images[3]])
    assert status(node.queue.folder, now=0)["aside"] == [
        {"instance": images[2].SOPInstanceUID, "reason": "making its report ended a process"}
    ]


def test_verdicts_and_the_note_about_what_did_not_pass(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run(gate={"pass_at": 101}, note=True)
    send(node.port, [image()])
    wait_for(lambda: len(pacs.got) == 2)
    assert sorted(each.Modality for each in pacs.stored.values()) == ["KO", "SR"]
    assert [each.verdict for each in pacs.reported] == ["review"]


def test_what_passed_has_a_verdict_and_no_note(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run(gate={"pass_at": 0}, note=True)
    send(node.port, [image()])
    wait_for(lambda: status(node.queue.folder, now=0)["instances"]["done"])
    assert [each.Modality for each in pacs.got] == ["SR"]
    assert [each.verdict for each in pacs.reported] == ["pass"]


def test_maps_go_with_the_report(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run(map=True)
    send(node.port, [image(0), broken(1)])
    wait_for(lambda: len(pacs.got) == 2)
    assert sorted(str(each.SOPClassUID.name) for each in pacs.got) == [
        "Comprehensive 3D SR Storage",
        "Parametric Map Storage",
    ]
    assert all(each.PatientName == NAME for each in pacs.got)
    wait_for(lambda: not list(node.queue.scores.glob("*.map")))


def test_scores_that_a_crash_has_torn_are_made_again(run: Callable[..., Node], pacs: Pacs) -> None:
    node = run(stable_seconds=LATER, released_seconds=LATER)
    sent = image()
    send(node.port, [sent])
    wait_for(lambda: list(node.queue.scores.iterdir()))
    (path,) = node.queue.scores.iterdir()
    wait_for(lambda: status(node.queue.folder, now=0)["instances"]["scored"])
    path.write_text(json.dumps({"records": []})[:-3])
    node.queue.released([("1.2.3", "1.2.3.4")], wait_seconds=0)
    wait_for(lambda: pacs.got)
    assert pacs.instances == [sent.SOPInstanceUID]


def test_a_full_disk_stops_the_work_and_counts_as_no_attempt(
    run: Callable[..., Node], pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = run()
    full = ["note_scored", "put_back"]  # neither can be written at first

    def once(name: str) -> Callable[..., None]:
        real = getattr(node.queue, name)

        def wrapped(*arguments: Any) -> None:
            if name in full:
                full.remove(name)
                raise sqlite3.OperationalError("database or disk is full")
            real(*arguments)

        return wrapped

    monkeypatch.setattr("saqm.node.work.PAUSE", 0.2)
    for name in tuple(full):
        monkeypatch.setattr(node.queue, name, once(name))
    sent = image()
    send(node.port, [sent])
    wait_for(lambda: pacs.got)
    assert full == []
    assert pacs.instances == [sent.SOPInstanceUID]


def test_a_stop_leaves_what_it_cannot_finish_as_it_was(
    pool: Pool, settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(tasks: Sequence[Task], *, stop: Callable[[], bool]) -> list[Answer]:
        wait_for(stop)
        # as of processes that were ended
        return pool._workers.score([replace(task, path="/nowhere") for task in tasks], stop=lambda: False)

    monkeypatch.setattr(pool, "score", slow)
    node = Node(settings(stop_seconds=0.2), pool)
    node.start()
    send(node.port, [image()])
    wait_for(lambda: node.queue._in_hand)
    began = time.monotonic()
    node.stop()
    assert time.monotonic() - began < LATER
    found = status(node.queue.folder, now=0)
    assert found["instances"]["waiting"] == 1
    assert not found["running"]


def test_a_model_that_is_found_broken_stops_the_node_and_loses_nothing(
    run: Callable[..., Node], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelFileError("toy: wrong hash")

    monkeypatch.setattr(pool, "score", refuse)
    node = run()
    send(node.port, [image()])
    wait_for(lambda: node.failed)
    assert status(node.queue.folder, now=0)["instances"]["waiting"] == 1


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"model": "brisque"}, "brisque is a metric with a scale of its own"),
        ({"strict": True}, "strict: toy cannot tell which images are unlike those it knows"),
        ({"gate": {"pass_at": 40, "fail_below": 60}}, "stand the wrong way round"),
        ({"gate": {"pass_at": 40, "sure": True}}, "gives no intervals"),
    ],
)
def test_what_the_model_cannot_give_is_told_at_the_start(
    settings: Callable[..., Settings], toy_model: Path, asked: dict[str, Any], match: str
) -> None:
    with pytest.raises(SaqmError, match=match):
        check_model(settings(**{"model": str(toy_model), **asked}))
    check_model(settings(model=str(toy_model)))
