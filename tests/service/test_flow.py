"""Many at once: batching, turns, refusal with patience, cancelling, the end; and workers that die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import LONG, Served, Told, sample, serving, until

pytest.importorskip("fastapi")

from saqm.errors import SaqmError
from saqm.service.lanes import GROUP, SMALL, Lane
from saqm.service.settings import ServeSettings
from saqm.workers import Task

if TYPE_CHECKING:
    import httpx

    from saqm.scorer import Score


def file(name: str) -> list[tuple[str, tuple[str, bytes]]]:
    """A form with one file."""
    return [("file", (name, b"x"))]


# Lanes


def in_lane(told: Told, slots: int, work: Callable[[Lane], Any]) -> Any:
    """What a coroutine gives that works with a lane."""

    async def run() -> Any:
        lane = Lane(told, slots)  # type: ignore[arg-type]
        try:
            return await asyncio.wait_for(work(lane), LONG)
        finally:
            lane.close()

    return asyncio.run(run())


def test_what_waits_goes_together_and_nothing_waits_for_company(told: Told) -> None:
    rows: list[str] = []

    async def work(lane: Lane) -> None:
        def ask(name: str, size: int = 1) -> asyncio.Task[None]:
            return asyncio.create_task(lane.score(Task(name, name, maps=False), size, lambda s, _: rows.append(s.path)))

        asked = [ask("first")]
        await asyncio.sleep(0.05)
        assert told.groups == [["first"]]
        asked += [ask(str(number)) for number in range(GROUP + 2)] + [ask("large", SMALL + 1), ask("last")]
        await asyncio.sleep(0.05)
        assert lane.waiting == GROUP + 4
        assert lane.wait_seconds == pytest.approx(GROUP + 5)
        told.go.set()
        await asyncio.gather(*asked)

    in_lane(told, 1, work)
    names = [str(number) for number in range(GROUP + 2)]
    assert told.groups == [["first"], names[:GROUP], names[GROUP:], ["large"], ["last"]]
    assert rows == ["first", *names, "large", "last"]


def test_free_workers_share_what_waits(told: Told) -> None:
    async def work(lane: Lane) -> None:
        asked = [lane.score(Task(n, n), 1, lambda *_: None) for n in "abcd"]
        told.go.set()
        await asyncio.gather(*asked)

    in_lane(told, 2, work)
    assert sorted(map(len, told.groups)) == [1, 1, 1, 1] or sorted(map(len, told.groups)) == [1, 1, 2]


def test_a_job_lets_others_go_first_but_gets_its_turn(told: Told) -> None:
    order: list[str] = []

    async def work(lane: Lane) -> None:
        def ask(name: str, patient: bool) -> asyncio.Task[None]:
            task = Task(name, name)
            return asyncio.create_task(lane.score(task, SMALL + 1, lambda s, _: order.append(s.path), patient=patient))

        asked = [
            ask("running", False),
            *[ask(f"job{n}", True) for n in range(2)],
            *[ask(f"now{n}", False) for n in range(7)],
        ]
        await asyncio.sleep(0.05)
        told.go.set()
        await asyncio.gather(*asked)

    in_lane(told, 1, work)
    assert order == ["running", "now0", "now1", "job0", "now2", "now3", "now4", "job1", "now5", "now6"]


def test_a_file_taken_back_ends_its_worker_and_not_its_neighbours(told: Told) -> None:
    told.rows = 100
    rows: dict[str, list[int | None]] = {"kept": [], "long": []}

    async def work(lane: Lane) -> None:
        def seen(score: Score, _: object) -> None:
            rows[score.path].append(score.frame)
            if score.path == "long" and len(rows["long"]) == 3:
                long.cancel()

        block = asyncio.create_task(lane.score(Task("kept", "kept"), SMALL + 1, lambda *_: None))
        await asyncio.sleep(0.02)
        long = asyncio.create_task(lane.score(Task("long", "long"), 1, seen))
        kept = asyncio.create_task(lane.score(Task("kept", "kept"), 1, seen))
        await asyncio.sleep(0.02)
        told.go.set()
        await asyncio.gather(block, kept)
        with pytest.raises(asyncio.CancelledError):
            await long

    in_lane(told, 1, work)
    assert rows["kept"] == list(range(100))  # each once, though it was begun again
    assert len(rows["long"]) == 3


def test_work_that_nobody_wants_is_stopped(told: Told) -> None:
    async def work(lane: Lane) -> None:
        asked = asyncio.create_task(lane.score(Task("a", "a"), 1, lambda *_: None))
        await asyncio.sleep(0.05)
        asked.cancel()
        while not told.stopped:
            await asyncio.sleep(0.01)

    in_lane(told, 1, work)
    assert told.stopped == 1


# Requests


def test_requests_share_a_worker(told: Told, many: ThreadPoolExecutor) -> None:
    with serving(ServeSettings(port=0, drain_seconds=1), [told]) as served:
        first = many.submit(served.client.post, "/v1/score", files=file("first"))
        until(lambda: told.groups)
        rest = [many.submit(served.client.post, "/v1/score", files=file(str(n))) for n in range(8)]
        until(lambda: served.service.desk._at_work == 9)
        until(lambda: "saqm_waiting_files 8.0" in served.client.get("/metrics").text)
        told.go.set()
        answers = [each.result(LONG) for each in (first, *rest)]
    assert {answer.status_code for answer in answers} == {422}
    assert [answer.json()["records"][0]["path"] for answer in answers] == ["first", *map(str, range(8))]
    assert sorted(map(len, told.groups)) == [1, 8]


def test_beyond_the_queue_a_client_is_asked_to_come_again(told: Told, many: ThreadPoolExecutor) -> None:
    with serving(ServeSettings(port=0, queue=2, drain_seconds=1), [told]) as served:
        held = [many.submit(served.client.post, "/v1/score", files=file("a")) for _ in range(2)]
        until(lambda: served.service.desk._at_work == 2)
        refused = served.client.post("/v1/score", files=file("b"))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert "2 requests are at work or waiting" in refused.json()["detail"]
        assert served.client.get("/healthz").status_code == 200
        told.go.set()
        assert {each.result(LONG).status_code for each in held} == {422}
        assert served.client.post("/v1/score", files=file("b")).status_code == 422


def test_no_more_jobs_are_kept_than_may_be(told: Told) -> None:
    told.go.set()
    with serving(ServeSettings(port=0, max_jobs=2, drain_seconds=1), [told]) as served:
        places = [served.client.post("/v1/jobs", files=file("a")).headers["Location"] for _ in range(2)]
        refused = served.client.post("/v1/jobs", files=file("a"))
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 3000  # until one expires
        assert "2 jobs are kept" in refused.json()["detail"]
        served.client.delete(places[0])
        assert served.client.post("/v1/jobs", files=file("a")).status_code == 202


def test_a_job_expires_with_its_files(told: Told, tmp_path: Path) -> None:
    told.go.set()
    with serving(ServeSettings(port=0, job_minutes=0.3 / 60, folder=tmp_path, drain_seconds=1), [told]) as served:
        place = served.client.post("/v1/jobs", files=file("a")).headers["Location"]
        assert len(list(tmp_path.glob("*/*/*"))) >= 1
        until(lambda: served.client.get(place).status_code == 404)
        assert list(tmp_path.glob("*/*/*")) == []


def test_a_job_shows_rows_in_order_while_it_runs_and_can_be_cancelled(told: Told) -> None:
    release = threading.Event()

    def score(tasks: Any, *, seen: Callable[..., None], stop: Callable[[], bool]) -> None:
        from saqm.scorer import not_scored

        for number, task in enumerate(tasks):
            if task.name == "slow":
                while not release.wait(0.01):
                    if stop():
                        told.stopped += 1
                        return
            seen(number, not_scored(task.name, "so", model=told.models[0]), None)

    told.score = score  # type: ignore[method-assign]
    large = bytes(SMALL + 1)  # go alone
    with serving(ServeSettings(port=0, workers=2, drain_seconds=1), [told]) as served:
        files = [("file", (name, large)) for name in ("first", "slow", "third")]
        place = served.client.post("/v1/jobs", files=files).headers["Location"]
        until(lambda: served.client.get(place).json()["images"] == 1)
        running = served.client.get(f"{place}/records").json()
        assert ([r["path"] for r in running["records"]], running["state"]) == (["first"], "running")
        early = served.client.get(f"{place}/report")
        assert (early.status_code, early.json()["detail"]) == (
            409, "the job is running; its report can be had when it is done"
        )  # fmt: skip
        release.set()
        until(lambda: served.client.get(place).json()["state"] == "done")
        records = served.client.get(f"{place}/records").json()["records"]
        assert [(r["file"], r["path"]) for r in records] == [(0, "first"), (1, "slow"), (2, "third")]
        release.clear()
        place = served.client.post("/v1/jobs", files=files).headers["Location"]
        until(lambda: served.client.get(place).json()["images"] == 1)
        assert served.client.delete(place).status_code == 204
        until(lambda: told.stopped)


def test_a_client_that_hangs_up_is_no_longer_worked_for(told: Told, tmp_path: Path) -> None:
    with serving(ServeSettings(port=0, folder=tmp_path, drain_seconds=1), [told]) as served:
        with served.raw() as connection:
            head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\n"
            connection.sendall(head + b"x")
            until(lambda: told.groups)
        until(lambda: told.stopped)
        until(lambda: served.service.desk._at_work == 0)
        assert list(tmp_path.glob("*/*/*")) == []
        until(lambda: 'route="/v1/score",status="499"' in served.client.get("/metrics").text)


def test_a_picture_that_nobody_waits_for_is_not_drawn(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    told.go.set()
    go, drawn = threading.Event(), [0]

    def run(*_: object) -> bytes:
        drawn[0] += 1
        go.wait(LONG)
        return b"PNG"

    monkeypatch.setattr(told, "run", run)
    with serving(ServeSettings(port=0, drain_seconds=1), [told]) as served:
        place = served.client.post("/v1/jobs", files=file("a")).headers["Location"]
        until(lambda: served.client.get(place).json()["images"] == 1)
        ask = f"GET {place}/images/0/picture HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        with served.raw() as first, served.raw() as second:
            first.sendall(ask)
            until(lambda: drawn[0])
            second.sendall(ask)
            until(lambda: served.service.desk._at_work == 2)
        until(lambda: served.service.desk._at_work == 0)
        go.set()
    assert drawn == [1]


# The end


def test_at_the_end_what_runs_is_finished_and_nothing_new_begun(
    told: Told, many: ThreadPoolExecutor, tmp_path: Path
) -> None:
    with serving(ServeSettings(port=0, folder=tmp_path, drain_seconds=LONG), [told]) as served:
        job = served.client.post("/v1/jobs", files=file("job")).headers["Location"]
        held = many.submit(served.client.post, "/v1/score", files=file("held"))
        until(lambda: served.service.desk._at_work == 1)
        served.server.end()
        until(lambda: served.client.get("/readyz").status_code == 503)
        assert served.client.get("/healthz").status_code == 200
        refused = served.client.post("/v1/score", files=file("new"))
        assert (refused.status_code, refused.json()["detail"]) == (503, "the service comes to its end")
        assert served.client.post("/v1/jobs", files=file("new")).status_code == 503
        assert served.client.get(job).json()["state"] == "running"
        told.go.set()
        assert held.result(LONG).status_code == 422
        served.thread.join(LONG)
        assert not served.thread.is_alive()
    assert list(tmp_path.iterdir()) == []


def test_the_end_does_not_wait_for_ever(told: Told, tmp_path: Path) -> None:
    with serving(ServeSettings(port=0, folder=tmp_path, drain_seconds=0.2), [told]) as served:
        served.client.post("/v1/jobs", files=file("job"))
        until(lambda: told.groups)
        served.server.end()
        served.thread.join(LONG)
        assert not served.thread.is_alive()
    assert told.stopped == 1
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_and_a_folder_that_is_none_are_told(served: Served, told: Told, tmp_path: Path) -> None:
    from saqm.service.server import Service

    second = Service(ServeSettings(port=served.port), [told]).server()  # type: ignore[list-item]
    second.run()
    assert not second.started
    with pytest.raises(SaqmError, match="uploads are to stand there for a while, and it is no folder"):
        Service(ServeSettings(folder=tmp_path / "nowhere"), [told])  # type: ignore[list-item]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path, toy_model: Path) -> None:
    """The process itself: it listens, scores, takes SIGTERM, and leaves nothing; killed, its successor cleans up."""
    import httpx

    environment = {**os.environ, "SAQM_SERVE_FOLDER": str(tmp_path), "SAQM_SERVE_MODELS": str(toy_model)}

    def started() -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "saqm.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert process.stderr is not None
        for line in process.stderr:
            if "saqm serves on " in line:
                return process, line.split()[3].rstrip(";")
        raise AssertionError("it did not start")

    first, address = started()
    data = sample("CT_small.dcm").read_bytes()
    try:
        answer = httpx.post(f"{address}v1/jobs", files=[("file", ("a.dcm", data))], timeout=LONG, trust_env=False)
        assert answer.status_code == 202
    finally:
        first.kill()
        first.communicate()
    assert len(list(tmp_path.glob("saqm-serve-*/*/*.dcm"))) == 1
    second, address = started()
    try:
        assert list(tmp_path.glob("saqm-serve-*/*/*.dcm")) == []
        answer = httpx.post(f"{address}v1/score", files=[("file", ("a.dcm", data))], timeout=LONG, trust_env=False)
        assert answer.json()["records"][0]["status"] == "scored"
        second.send_signal(signal.SIGTERM)
        _, said = second.communicate(timeout=LONG)
        assert second.returncode == 0
        assert '"event": "drained"' in said
        assert "Traceback" not in said
    finally:
        if second.poll() is None:
            second.kill()
            second.communicate()
    assert list(tmp_path.glob("saqm-serve-*")) == []


# Workers that die


def test_a_worker_that_is_killed_costs_no_request(served: Served, pool: Any, many: ThreadPoolExecutor) -> None:
    data = sample("CT_small.dcm").read_bytes()

    def ask(_: int) -> httpx.Response:
        return served.client.post("/v1/score", files=[("file", ("a.dcm", data))])

    asked: list[Future[httpx.Response]] = [many.submit(ask, n) for n in range(7)]
    time.sleep(0.05)
    for worker in list(pool._all):
        with suppress(ProcessLookupError):  # one that has just been replaced
            os.kill(worker.process.pid, signal.SIGKILL)
    records = [each.result(LONG).json()["records"][0] for each in asked]
    died = [r for r in records if r["status"] == "not_scored"]
    assert all("the process that scored it died" in r["reasons"][0] for r in died)
    assert ask(0).json()["records"][0]["status"] == "scored"
    until(lambda: served.client.get("/readyz").status_code == 200)
