"""Nothing that was accepted is lost, and nothing is reported twice: whatever ends the node, wherever."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saqm.errors import SaqmError
from saqm.node.queue import SERIES_AT_ONCE, Arrival, Made, Queue, QueueFull, Scored, forget, retry, status

Opener = Callable[[], Queue]
FOLDERS = ("incoming", "files", "scores", "outbox")


class Clock:
    """A clock that stands still unless told."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(tmp_path: Path, clock: Clock) -> Iterator[Opener]:
    """Opens the queue; a second time as after a crash: what was open before is let go without a word."""
    made: list[Queue] = []

    def open_() -> Queue:
        for each in made:
            each.close()
        made.append(Queue(tmp_path / "queue", clock=clock, device_uid=lambda: "2.25.7"))
        return made[-1]

    yield open_
    for each in made:
        each.close()


def arrival(queue: Queue, number: int, content: bytes = b"pixels", series: str = "1.2.9") -> Arrival:
    """An instance as the listener hands it over."""
    path = queue.incoming / f"{number}.part"
    path.write_bytes(content)
    return Arrival(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        uid=f"1.2.{number}",
        sop_class="1.2.840.10008.5.1.4.1.1.2",
        syntax="1.2.840.10008.1.2.1",
        study="1.2",
        series=series,
        sender="CT1",
        host="127.0.0.1",
    )


def accept(queue: Queue, number: int, **other: Any) -> str:
    return queue.accept(arrival(queue, number, **other), stable_seconds=10)


def score(queue: Queue, most: int = 16) -> list[str]:
    """Score what waits; the UIDs of one step."""
    taken = queue.take(most, attempts=3)
    for each in taken:
        assert each.path.read_bytes()
        queue.scores_path(each.uid).write_text("{}")
    queue.note_scored([(each, None) for each in taken])
    return [each.uid for each in taken]


def report(queue: Queue, instances: list[Scored], destinations: tuple[str, ...] = ("pacs",)) -> Made:
    """Report as the node does: what the report is, and says, follows from the instances."""
    uids = sorted(each.uid for each in instances)
    digest = hashlib.sha256(" ".join(uids).encode()).hexdigest()
    made = Made("report", f"2.25.{int(digest[:16], 16)}", "1.2.840.10008.5.1.4.1.1.88.34", " ".join(uids).encode())
    queue.report(instances, [made], destinations)
    return made


def counts(queue: Queue) -> dict[str, int]:
    found = status(queue.folder, now=0)["instances"]
    return {state: count for state, count in found.items() if count}


# The way of an instance


def test_an_instance_goes_its_way(opened: Opener, clock: Clock) -> None:
    queue = opened()
    assert accept(queue, 1) == "new"
    assert counts(queue) == {"waiting": 1}
    assert score(queue) == ["1.2.1"]
    assert queue.due() == []  # not complete yet
    clock.now += 10
    (complete,) = queue.due()
    made = report(queue, complete)
    assert counts(queue) == {"reported": 1}
    (delivery,) = queue.deliveries("pacs", 10)
    assert (delivery.uid, delivery.path.read_bytes()) == (made.uid, b"1.2.1")
    queue.delivered(delivery, "pacs")
    assert counts(queue) == {"done": 1}
    assert not list(queue.outbox.iterdir())
    queue.purge(keep_hours=0, remember_days=1)
    assert not list(queue.files.iterdir())
    assert not list(queue.scores.iterdir())


def test_each_new_instance_puts_the_end_of_its_series_off_and_the_release_brings_it_near(
    opened: Opener, clock: Clock
) -> None:
    queue = opened()
    for number in range(3):
        accept(queue, number)
        clock.now += 8
    score(queue)
    assert queue.due() == []
    queue.released([("1.2", "1.2.9")], wait_seconds=1)
    assert queue.due() == []
    clock.now += 1
    assert len(queue.due()[0]) == 3


def test_what_comes_after_the_report_gets_a_report_of_its_own(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0])
    accept(queue, 2)
    score(queue)
    clock.now += 10
    assert [each.uid for each in queue.due()[0]] == ["1.2.2"]


def test_a_series_waits_for_its_last_instance_to_be_scored(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    accept(queue, 2)
    accept(queue, 3, series="1.2.8")
    queue.take(1, attempts=3)  # in hand
    clock.now += 10
    assert queue.due() == []


def test_a_large_series_is_reported_in_parts(opened: Opener, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqm.node.queue.SERIES_AT_ONCE", 2)
    assert SERIES_AT_ONCE > 2
    queue = opened()
    for number in range(3):
        accept(queue, number)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0])
    report(queue, queue.due()[0])
    assert queue.due() == []
    assert sorted(each.path.read_bytes() for each in queue.deliveries("pacs", 9)) == [b"1.2.0 1.2.1", b"1.2.2"]


# Sent twice


def test_the_same_again_is_known_and_other_bytes_under_the_same_uid_do_not_take_its_place(opened: Opener) -> None:
    queue = opened()
    accept(queue, 1)
    assert accept(queue, 1) == "known"
    assert accept(queue, 1, content=b"other") == "other"
    assert [path.read_bytes() for path in queue.files.iterdir()] == [b"pixels"]
    assert counts(queue) == {"waiting": 1}
    assert not list(queue.incoming.iterdir())


def test_it_is_known_as_long_as_it_is_remembered(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0])
    queue.delivered(queue.deliveries("pacs", 1)[0], "pacs")
    clock.now += 86_000
    queue.purge(keep_hours=0, remember_days=1)
    assert accept(queue, 1) == "known"
    clock.now += 500
    queue.purge(keep_hours=0, remember_days=1)
    assert accept(queue, 1) == "new"


def test_images_stay_as_long_as_they_are_to_be_kept(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0])
    queue.delivered(queue.deliveries("pacs", 1)[0], "pacs")
    queue.purge(keep_hours=1, remember_days=1)
    queue = opened()  # nor does a start sweep them away
    assert len(list(queue.files.iterdir())) == 1
    clock.now += 3600
    queue.purge(keep_hours=1, remember_days=1)
    assert not list(queue.files.iterdir())


# Delivering


def test_nothing_is_removed_before_every_destination_has_confirmed(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0], ("pacs", "archive"))
    queue.delivered(queue.deliveries("pacs", 1)[0], "pacs")
    queue.purge(keep_hours=0, remember_days=1)
    assert len(list(queue.files.iterdir())) == len(list(queue.outbox.iterdir())) == 1
    assert queue.deliveries("pacs", 1) == []
    queue.delivered(queue.deliveries("archive", 1)[0], "archive")
    queue.purge(keep_hours=0, remember_days=1)
    assert not list(queue.files.iterdir()) + list(queue.outbox.iterdir())


def test_a_destination_that_cannot_be_reached_is_left_alone_for_a_while(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0])
    queue.unreachable("pacs", "no connection", 5)
    assert queue.deliveries("pacs", 1) == []
    assert queue.unreachable_times("pacs") == 1
    told = status(queue.folder, now=clock())["destinations"]["pacs"]
    assert told == {
        "pending": 1, "aside": 0, "unreachable": 1, "reason": "no connection", "next_try_seconds": 5.0
    }  # fmt: skip
    clock.now += 5
    queue.delivered(queue.deliveries("pacs", 1)[0], "pacs")
    assert queue.unreachable_times("pacs") == 0


def test_a_postponed_object_lets_others_go_first(opened: Opener, clock: Clock) -> None:
    queue = opened()
    for number, series in ((1, "1.2.8"), (2, "1.2.9")):
        accept(queue, number, series=series)
    score(queue)
    clock.now += 10
    for each in queue.due():
        report(queue, each)
    first, second = queue.deliveries("pacs", 9)
    queue.postpone(first, "pacs", "status 0xA700", 5)
    assert [each.uid for each in queue.deliveries("pacs", 9)] == [second.uid]
    clock.now += 5
    assert len(queue.deliveries("pacs", 9)) == 2


def test_what_a_destination_refuses_is_set_aside_until_a_person_has_it_sent_again(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    made = report(queue, queue.due()[0])
    queue.refused(queue.deliveries("pacs", 1)[0], "pacs", "status 0xC000")
    queue.purge(keep_hours=0, remember_days=1)
    assert len(list(queue.files.iterdir())) == len(list(queue.outbox.iterdir())) == 1
    assert status(queue.folder, now=0)["aside"] == [
        {"object": made.uid, "kind": "report", "destination": "pacs", "reason": "status 0xC000"}
    ]
    assert retry(queue.folder, now=clock()) == 1
    queue.delivered(queue.deliveries("pacs", 1)[0], "pacs")
    assert counts(queue) == {"done": 1}


def test_what_a_person_gives_up_is_removed(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    accept(queue, 2, series="1.2.8")
    score(queue)
    clock.now += 10
    first, second = queue.due()
    report(queue, first)
    queue.refused(queue.deliveries("pacs", 1)[0], "pacs", "status 0xC000")
    queue.set_aside(second[0], "no report can be made")
    assert forget(queue.folder) == 2
    queue.purge(keep_hours=0, remember_days=1)
    queue.purge(keep_hours=0, remember_days=1)  # what came to its end by the first
    assert counts(queue) == {"done": 2}
    assert not list(queue.files.iterdir()) + list(queue.outbox.iterdir())


def test_reports_for_a_destination_that_is_gone_are_set_aside(opened: Opener, clock: Clock) -> None:
    queue = opened()
    accept(queue, 1)
    score(queue)
    clock.now += 10
    report(queue, queue.due()[0], ("pacs", "old"))
    assert queue.set_aside_unknown(["pacs"]) == 1
    assert queue.set_aside_unknown(["pacs"]) == 0
    assert status(queue.folder, now=0)["aside"][0]["reason"] == "no longer configured"


# Poison


def test_what_was_in_hand_when_the_node_ended_is_tried_again_then_alone_then_no_more(opened: Opener) -> None:
    queue = opened()
    for number in range(3):
        accept(queue, number)
    assert [each.attempts for each in queue.take(2, attempts=3)] == [1, 1]
    queue = opened()
    accept(queue, 4)
    assert [(each.uid, each.attempts) for each in queue.take(9, attempts=3)] == [
        ("1.2.2", 1), ("1.2.4", 1), ("1.2.0", 2), ("1.2.1", 2)
    ]  # fmt: skip
    queue = opened()
    assert [(each.uid, each.attempts) for each in queue.take(9, attempts=3)] == [("1.2.2", 2), ("1.2.4", 2)]
    assert [(each.uid, each.attempts) for each in queue.take(9, attempts=3)] == [("1.2.0", 3)]
    queue = opened()
    alone = [queue.take(9, attempts=3) for _ in range(4)]
    assert [[(each.uid, each.attempts) for each in taken] for taken in alone] == [
        [("1.2.1", 3)], [("1.2.2", 3)], [("1.2.4", 3)], [("1.2.0", 4)]
    ]  # fmt: skip


def test_an_instance_that_ends_the_node_each_time_is_given_out_once_more_to_be_given_up(opened: Opener) -> None:
    queue = opened()
    accept(queue, 1)
    tries = []
    for _ in range(4):
        queue = opened()
        (taken,) = queue.take(9, attempts=3)
        tries.append(taken.attempts)
    assert tries == [1, 2, 3, 4]  # the fourth is more than the three allowed: it is not tried


def test_what_is_put_back_counts_as_untried(opened: Opener) -> None:
    queue = opened()
    accept(queue, 1)
    queue.put_back(queue.take(1, attempts=3))
    assert queue.waiting() == 1
    assert queue.take(1, attempts=3)[0].attempts == 1


def test_an_unreadable_instance_is_aside_once_it_is_reported_and_can_be_tried_again(
    opened: Opener, clock: Clock
) -> None:
    queue = opened()
    accept(queue, 1)
    queue.note_scored([(each, "cannot be read as an image") for each in queue.take(1, attempts=3)])
    clock.now += 10
    report(queue, queue.due()[0])
    queue.delivered(queue.deliveries("pacs", 1)[0], "pacs")
    queue.purge(keep_hours=0, remember_days=1)
    assert status(queue.folder, now=0)["aside"] == [{"instance": "1.2.1", "reason": "cannot be read as an image"}]
    assert len(list(queue.files.iterdir())) == 1
    assert retry(queue.folder, now=clock()) == 1
    assert score(queue) == ["1.2.1"]


# Full


def test_more_than_may_wait_are_not_accepted(opened: Opener) -> None:
    queue = opened()
    accept(queue, 1)
    queue.refuse_when_full(2)
    accept(queue, 2)
    with pytest.raises(QueueFull, match="2 instances wait to be scored; up to 2 may"):
        queue.refuse_when_full(2)


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_full_disk_refuses_before_anything_is_accepted_and_leaves_nothing_behind(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    queue = opened()
    coming = arrival(queue, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync") if what == "fsync" else (Path, "replace")), full)
        with pytest.raises(QueueFull, match="No space left on device"):
            queue.accept(coming, stable_seconds=1)
    assert not list(queue.files.iterdir()) + list(queue.incoming.iterdir())
    assert counts(queue) == {}
    assert accept(queue, 1) == "new"


def test_a_database_that_cannot_grow_refuses_too(opened: Opener) -> None:
    queue = opened()
    accept(queue, 1)
    pages = queue._db.execute("PRAGMA page_count").fetchone()[0]
    queue._db.execute(f"PRAGMA max_page_count = {pages}")
    numbers = iter(range(2, 1000))
    with pytest.raises(QueueFull, match="database or disk is full"):
        deque(accept(queue, number) for number in numbers)
    taken = next(numbers) - 2  # those before the one that was refused
    assert counts(queue) == {"waiting": taken}
    assert len(list(queue.files.iterdir())) == taken
    assert not list(queue.incoming.iterdir())


# Crashes


class Crash(BaseException):
    """The node ends here."""


def crashing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """End at a thing done to the disk: the n-th, for 2n just before it, for 2n + 1 just after."""
    done = 0

    def step(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            done += 1
            if done == at // 2 and at % 2 == 0:
                raise Crash
            result = real(*arguments, **named)
            if done == at // 2:
                raise Crash
            return result

        return wrapped

    monkeypatch.setattr(os, "fsync", step(lambda _: None))  # a process ends here, not the machine
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, step(getattr(Path, name)))

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> Any:  # type: ignore[override]
            run = step(super().execute) if sql == "COMMIT" else super().execute
            return run(sql.replace("= FULL", "= OFF"), *values)

    real_connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real_connect(*a, **{"factory": Connection, **k}))


def work_off(queue: Queue, clock: Clock, acknowledged: set[str], pacs: list[tuple[str, bytes]]) -> None:
    """A sender that sends until it is told that all is well, and a node that does all that there is to do."""
    for number in range(2):
        if f"1.2.{number}" not in acknowledged:
            assert accept(queue, number) in ("new", "known")
            acknowledged.add(f"1.2.{number}")
    while score(queue, 1):
        pass
    clock.now += 10
    for instances in queue.due():
        report(queue, instances)
    for delivery in queue.deliveries("pacs", 9):
        pacs.append((delivery.uid, delivery.path.read_bytes()))
        queue.delivered(delivery, "pacs")
    queue.purge(keep_hours=0, remember_days=1)


@pytest.mark.slow
def test_a_crash_at_any_step_loses_nothing_and_repeats_nothing(opened: Opener, clock: Clock, tmp_path: Path) -> None:
    crashes = 0
    for at in range(2, 1000):
        with pytest.MonkeyPatch.context() as patched:
            shutil.rmtree(tmp_path / "queue", ignore_errors=True)
            acknowledged: set[str] = set()
            pacs: list[tuple[str, bytes]] = []
            crashing(patched, at)
            try:
                work_off(opened(), clock, acknowledged, pacs)
                crashed = False
            except Crash:
                crashed = True
        crashes += crashed
        queue = opened()
        before = set(acknowledged)
        work_off(queue, clock, acknowledged, pacs)
        assert before <= acknowledged
        stored = dict(pacs)
        assert set(pacs) == set(stored.items()), "the same UID with other content"
        said = [uid for content in stored.values() for uid in content.decode().split()]
        assert sorted(said) == ["1.2.0", "1.2.1"], f"crash {at}"
        assert counts(queue) == {"done": 2}
        assert [path.name for name in FOLDERS for path in (queue.folder / name).iterdir()] == []
        queue.close()
        if not crashed:
            break
    assert crashes > 40


# The folder


def test_a_folder_has_one_node_at_a_time(opened: Opener, tmp_path: Path) -> None:
    queue = opened()
    assert status(queue.folder, now=0)["running"]
    with pytest.raises(SaqmError, match="another node has this folder"):
        Queue(tmp_path / "queue", clock=Clock(), device_uid=str)
    queue.close()
    assert not status(queue.folder, now=0)["running"]


def test_an_installation_keeps_its_uid(opened: Opener, tmp_path: Path) -> None:
    opened().close()
    queue = Queue(tmp_path / "queue", clock=Clock(), device_uid=lambda: "2.25.8")
    assert queue.device_uid == "2.25.7"
    queue.close()


def test_the_queue_of_a_newer_version_is_left_alone(opened: Opener) -> None:
    queue = opened()
    queue._db.execute("PRAGMA user_version = 99")
    with pytest.raises(SaqmError, match=r"a newer saqm \(format 99\); this one knows 1"):
        opened()


def test_a_folder_without_a_queue_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(SaqmError, match="no queue of a node here"):
        status(tmp_path, now=0)


def test_others_on_the_machine_cannot_read_it(opened: Opener) -> None:
    queue = opened()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (queue.folder, queue.folder / "queue.sqlite"))
