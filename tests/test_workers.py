"""Warm processes: the same numbers as a batch; a file that kills or stalls one costs its own rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from operator import truediv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from saqm.batch import Settings, score_many
from saqm.errors import ImageError, MissingExtra, ModelFileError, SaqmError
from saqm.image import from_array, read_image
from saqm.scorer import load_scorer, score, score_and_map, score_together
from saqm.workers import Task, WorkerError, Workers, _call_function

pytestmark = pytest.mark.slow  # processes are started


class Deadly(str):
    """A name that ends the process that is handed it."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os._exit, (3,)


def missing() -> None:
    raise MissingExtra("highdicom", "dicom", "a report")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three good ones of different sizes, a constant one, and one that is no picture."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(7)
    for number, side in enumerate((64, 96, 200)):
        pillow.fromarray(random.integers(0, 255, (side, side), np.uint8)).save(folder / f"{number}.png")
    pillow.fromarray(np.full((64, 64), 9, np.uint8)).save(folder / "3.png")
    (folder / "4.png").write_bytes(b"no picture")
    return [str(folder / f"{number}.png") for number in range(5)]


@pytest.fixture
def settings(toy_model: Path) -> Settings:
    return Settings(model=toy_model, mask="none")


@pytest.fixture
def workers(toy_model: Path) -> Iterator[Workers]:
    with Workers((toy_model,), count=2, seconds=60) as made:
        yield made


def tasks(names: list[str], settings: Settings, **more: bool) -> list[Task]:
    return [Task(name, name, settings, **more) for name in names]


def test_rows_are_those_of_a_batch(workers: Workers, pictures: list[str], settings: Settings) -> None:
    answers = workers.score(tasks(pictures, settings))
    assert [row for answer in answers for row in answer.scores] == list(score_many(pictures, settings))
    assert [answer.scores[0].status for answer in answers] == ["scored"] * 3 + ["not_scored"] * 2


def test_maps_are_those_of_the_library(
    workers: Workers, pictures: list[str], settings: Settings, toy_model: Path
) -> None:
    (answer,) = workers.score(tasks(pictures[:1], settings, maps=True))
    _, expected = score_and_map(read_image(pictures[0], mask="none"), load_scorer(toy_model, threads=1))
    assert answer.maps[0] is not None
    np.testing.assert_array_equal(answer.maps[0].score_HW, expected.score_HW)


def test_a_record_calls_the_file_what_the_caller_does(
    workers: Workers, pictures: list[str], settings: Settings
) -> None:
    answers = workers.score([Task(pictures[at], f"upload {at}.png", settings) for at in (0, 3, 4)])
    assert [answer.scores[0].path for answer in answers] == ["upload 0.png", "upload 3.png", "upload 4.png"]
    assert answers[2].scores[0].reasons[0].startswith("upload 4.png: ")
    assert not any(str(Path(pictures[0]).parent) in str(answer.scores[0].to_record()) for answer in answers)


def test_settings_are_those_of_each_task(workers: Workers, pictures: list[str], settings: Settings) -> None:
    finer = replace(settings, stride=16)
    answers = workers.score([Task(pictures[1], "a", settings), Task(pictures[1], "b", finer)])
    used = [answer.scores[0].patches["used"] for answer in answers if answer.scores[0].patches]
    assert used == [9, 25]


def test_a_tolerance_is_that_of_the_task(
    workers: Workers, pictures: list[str], settings: Settings, toy_model: Path
) -> None:
    coarse = replace(settings, stride=4, tolerance=50.0)
    work = [Task(pictures[2], "a", coarse), Task(pictures[3], "b", coarse), Task(pictures[2], "c", coarse)]
    first, constant, again = (answer.scores[0] for answer in workers.score(work))
    alone = score(read_image(pictures[2], mask="none"), load_scorer(toy_model, threads=1), stride=4, tolerance=50.0)
    assert replace(first, path=pictures[2]) == replace(again, path=pictures[2]) == alone
    assert alone.preparation is not None
    assert "sampled" in alone.preparation
    assert constant.status == "not_scored"


def test_a_file_that_kills_its_process_costs_its_own_row(
    workers: Workers, pictures: list[str], settings: Settings
) -> None:
    work = tasks(pictures[:3], settings)
    work[1] = Task(Deadly(pictures[1]), "deadly.png", settings)
    answers = workers.score(work)
    assert [answer.scores[0].status for answer in answers] == ["scored", "not_scored", "scored"]
    assert "deadly.png: the process that scored it died" in answers[1].scores[0].reasons[0]
    assert workers.alive == 2


def test_a_file_that_stalls_is_given_up(
    pictures: list[str], settings: Settings, toy_model: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "endless.png")  # a reader waits for whoever writes: nobody
    with Workers((toy_model,), seconds=1.5) as workers:
        work = tasks([pictures[0], str(tmp_path / "endless.png")], settings)
        first, stalled = workers.score(work)
        assert first.scores[0].status == "scored"
        assert "took longer than 1.5 s" in stalled.scores[0].reasons[0]
        assert workers.score(tasks(pictures[:1], settings))[0].scores == first.scores
        assert workers.alive == 1


def test_whoever_asked_can_stop_it(settings: Settings, toy_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "endless.png")
    with Workers((toy_model,)) as workers:
        (answer,) = workers.score(tasks([str(tmp_path / "endless.png")], settings), stop=lambda: True)
        assert "stopped before it was scored" in answer.scores[0].reasons[0]
        assert workers.run(os.path.basename, "a/b") == "b"  # another has taken its place


def test_rows_are_told_as_they_are_made(workers: Workers, pictures: list[str], settings: Settings) -> None:
    heard = []
    answers = workers.score(
        tasks(pictures[:2], settings, maps=True), seen=lambda at, score, quality: heard.append((at, score, quality))
    )
    assert [(at, score) for at, score, _ in heard] == [(at, answers[at].scores[0]) for at in (0, 1)]
    assert all(quality is not None for *_, quality in heard)
    assert answers[0].maps == (None,)  # handed over, not kept


def test_a_function_is_run_in_a_worker(workers: Workers) -> None:
    assert workers.run(os.getpid) != os.getpid()
    with pytest.raises(ImageError, match=r"none\.dcm: no such file"):
        workers.run(read_image, "none.dcm")
    with pytest.raises(ImageError, match="ZeroDivisionError: division by zero"):
        workers.run(truediv, 1, 0)  # a decoder raises whatever it likes
    with pytest.raises(WorkerError, match="died"):
        workers.run(os._exit, 3)
    assert workers.alive == 2


def test_an_error_that_cannot_travel_keeps_its_words() -> None:
    found = _call_function(missing, (), (), lambda *_: None)
    assert type(found) is SaqmError
    assert "pip install 'saqm[dicom]'" in str(found)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells how much memory a process has")
def test_a_process_that_has_grown_gives_its_place_to_a_fresh_one(
    workers: Workers, pictures: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workers.score(tasks(pictures[:1], settings))
    kept = {workers.run(os.getpid) for _ in range(4)}
    assert len(kept) == 2  # the same two all along
    monkeypatch.setattr("saqm.workers.GROWN", -1)
    assert len({workers.run(os.getpid) for _ in range(4)}) == 4
    assert workers.score(tasks(pictures[:1], settings))[0].scores == first[0].scores
    assert workers.alive == 2


def test_several_callers_share_the_workers(workers: Workers, pictures: list[str], settings: Settings) -> None:
    (alone,) = workers.score(tasks(pictures[:1], settings))
    found: list[object] = []
    callers = [
        threading.Thread(target=lambda: found.append(workers.score(tasks(pictures[:1], settings))[0].scores))
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == [alone.scores] * 8


def test_closed_workers_say_so(toy_model: Path, pictures: list[str], settings: Settings) -> None:
    workers = Workers((toy_model,))
    workers.close()
    assert workers.alive == 0
    with pytest.raises(SaqmError, match="the workers are closed"):
        workers.score(tasks(pictures[:1], settings))


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.onnx"):
        Workers((tmp_path / "none.onnx",))
    with pytest.raises(SaqmError, match="at least 1"):
        Workers(count=0)


def test_together_is_the_same_as_alone(toy_model: Path) -> None:
    scorer, random = load_scorer(toy_model, threads=1), np.random.default_rng(3)
    images = [from_array(random.random((side, 64), np.float32)) for side in (64, 416, 96)]
    images.insert(1, from_array(np.zeros((64, 64), np.float32)))
    found = score_together(images, scorer, maps=True)
    assert [row.status for row, _ in found] == ["scored", "not_scored", "scored", "scored"]
    for image, (row, quality) in zip(images, found, strict=True):
        if row.status == "scored":
            alone, its_map = score_and_map(image, scorer)
            assert row == alone
            assert quality is not None
            np.testing.assert_array_equal(quality.score_HW, its_map.score_HW)
