"""Many files: order, any number of processes, one row for a broken file, going on after a stop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

import saqm.batch
from saqm.batch import PENDING_PER_JOB, Journal, Record, Settings, map_name, score_journaled, score_many
from saqm.errors import ModelFileError, OutputError, SaqmError
from saqm.image import read_image
from saqm.scorer import load_scorer, score


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Six grey pictures, each brighter than the one before, and an empty file in third place."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 30, (64, 96))
        pillow.fromarray((40 * number + 20 + noise * (number > 0)).astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture
def settings(toy_model: Path) -> Settings:
    return Settings(model=toy_model, mask="none")


class Deadly(str):
    """A name that ends the process that receives it, as a crash in a decoder does."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (9,)


def records(names: Iterable[str], settings: Settings, jobs: int = 1) -> list[dict[str, object]]:
    return [score.to_record() for score in score_many(names, settings, jobs=jobs)]


def test_every_file_is_a_row_in_order_and_a_broken_one_has_its_reason(pictures: list[str], settings: Settings) -> None:
    rows = list(score_many(pictures, settings))
    assert [row.path for row in rows] == pictures
    assert [row.status for row in rows] == ["not_scored", "scored", "not_scored", "scored", "scored", "scored"]
    assert rows[0].reasons[0].startswith("constant image")
    assert rows[2].reasons == (f"{pictures[2]}: empty file",)
    brightness = [row.score for row in rows if row.score is not None]
    assert brightness == sorted(brightness)


def test_a_row_is_what_scoring_that_file_alone_gives(pictures: list[str], settings: Settings, toy_model: Path) -> None:
    alone = score(read_image(pictures[4], mask="none"), load_scorer(toy_model, threads=1))
    assert list(score_many(pictures, settings))[4] == alone


def test_rows_are_the_same_whatever_the_number_of_processes(pictures: list[str], settings: Settings) -> None:
    assert records(pictures, settings, jobs=2) == records(pictures, settings, jobs=1)


def test_a_worker_that_dies_costs_its_own_file_a_row(pictures: list[str], settings: Settings) -> None:
    rows = list(score_many([pictures[1], Deadly("deadly.dcm"), *pictures[3:]], settings, jobs=2))
    assert [row.status for row in rows] == ["scored", "not_scored", "scored", "scored", "scored"]
    assert "the process that scored it died" in rows[1].reasons[0]


def test_few_files_wait_however_many_there_are(pictures: list[str], settings: Settings) -> None:
    taken = 0

    def names() -> Iterator[str]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield pictures[1]

    rows = score_many(names(), settings, jobs=2)
    next(rows)
    assert taken <= 2 * PENDING_PER_JOB + 1
    rows.close()


def test_an_unforeseen_error_of_a_decoder_is_a_row_that_names_its_type(
    pictures: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> Iterator[object]:
        raise ZeroDivisionError("in a decoder")

    monkeypatch.setattr("saqm.image.read_frames", decode)
    assert next(score_many(pictures, settings)).reasons == (f"{pictures[0]}: ZeroDivisionError: in a decoder",)


def test_each_frame_is_a_row_and_one_can_be_chosen(settings: Settings) -> None:
    name = str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    assert [row["frame"] for row in records([name], settings)] == [0, 1]
    assert [row["frame"] for row in records([name], Settings(model=settings.model, mask="none", frames=1))] == [1]


def test_a_refused_model_is_told_before_the_first_row(pictures: list[str]) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        score_many(pictures, Settings(model="nowhere.onnx"), jobs=2)


def test_no_process_is_refused(pictures: list[str], settings: Settings) -> None:
    with pytest.raises(SaqmError, match="jobs=0; at least 1"):
        score_many(pictures, settings, jobs=0)


def test_a_map_is_saved_for_each_scored_picture(pictures: list[str], toy_model: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    list(score_many(pictures, Settings(model=toy_model, mask="none", map_folder=maps)))
    assert sorted(file.name for file in maps.iterdir()) == [
        map_name(read_image(pictures[number])) for number in (1, 3, 4, 5)
    ]
    with pytest.raises(OutputError, match="cannot be written"):  # no fault of the file: not a row
        list(score_many(pictures, Settings(model=toy_model, mask="none", map_folder=tmp_path / "nowhere")))


# Going on after a stop


class Stop(Exception):
    pass


def stopped_after(count: int, names: list[str]) -> Iterator[str]:
    yield from names[:count]
    raise Stop


def scored_by(
    monkeypatch: pytest.MonkeyPatch, names: Iterable[str], settings: Settings, journal: Journal
) -> tuple[list[Record], list[str]]:
    """The records, and which files were really scored for them."""
    worked: list[str] = []
    really = saqm.batch._score_file
    with monkeypatch.context() as patch:
        patch.setattr(saqm.batch, "_score_file", lambda name, *rest: worked.append(name) or really(name, *rest))
        return list(score_journaled(names, settings, journal)), worked


@pytest.fixture
def stopped(pictures: list[str], settings: Settings, tmp_path: Path) -> Path:
    """The result of a batch that was stopped after four files: only its journal is there."""
    result = tmp_path / "scores.csv"
    with pytest.raises(Stop), Journal(result, settings, resume=False) as journal:
        list(score_journaled(stopped_after(4, pictures), settings, journal))
    return result


def test_a_stopped_batch_goes_on_where_it_was(
    stopped: Path, pictures: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(stopped, settings, resume=True) as journal:
        rows, worked = scored_by(monkeypatch, pictures, settings, journal)
    assert rows == records(pictures, settings)
    assert worked == [pictures[2], *pictures[4:]]  # the empty file is tried again: it may have been on its way
    assert not journal.path.exists()


def test_a_torn_last_line_is_scored_again(
    stopped: Path, pictures: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stopped.with_name("scores.csv.partial.jsonl")
    path.write_bytes(path.read_bytes()[:-10])
    with Journal(stopped, settings, resume=True) as journal:
        rows, worked = scored_by(monkeypatch, pictures, settings, journal)
    assert rows == records(pictures, settings)
    assert worked == pictures[2:]


def test_a_file_that_changed_is_scored_again(
    stopped: Path, pictures: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(pictures[1]).write_bytes(Path(pictures[5]).read_bytes())
    with Journal(stopped, settings, resume=True) as journal:
        rows, worked = scored_by(monkeypatch, pictures, settings, journal)
    assert pictures[1] in worked
    assert rows == records(pictures, settings)


def test_other_settings_are_refused_and_a_fresh_start_is_not(
    stopped: Path, settings: Settings, toy_model: Path
) -> None:
    with pytest.raises(OutputError, match="begun with another model, version or other options"):
        Journal(stopped, Settings(model=toy_model, mask="none", stride=16), resume=True)
    with Journal(stopped, settings, resume=False) as journal:
        assert len(journal.path.read_text().splitlines()) == 1


def test_a_finished_result_is_taken_over_unless_another_model_or_stride_made_it(
    pictures: list[str], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = records(pictures[:5], settings)
    other = [{**record, "model": {**record["model"], "sha256": "0" * 64}} for record in finished if record["model"]]  # type: ignore[dict-item]
    with Journal(tmp_path / "a.csv", settings, resume=True) as journal:
        journal.adopt(finished)
        assert scored_by(monkeypatch, pictures, settings, journal)[1] == [pictures[0], pictures[2], pictures[5]]
    with Journal(tmp_path / "b.csv", settings, resume=True) as journal:
        journal.adopt(other)
        assert scored_by(monkeypatch, pictures, settings, journal)[1] == pictures
    finer = replace(settings, stride=16)
    with Journal(tmp_path / "c.csv", finer, resume=True) as journal:
        journal.adopt(finished)
        assert scored_by(monkeypatch, pictures, finer, journal)[1] == pictures


def test_the_journal_has_each_file_before_its_rows_are_given_out(
    pictures: list[str], settings: Settings, tmp_path: Path
) -> None:
    with Journal(tmp_path / "x.csv", settings, resume=False) as journal:
        rows = score_journaled(pictures, settings, journal)
        next(rows)
        assert json.loads(journal.path.read_text().splitlines()[-1])["name"] == pictures[0]
        rows.close()


def test_a_journal_that_cannot_be_written_says_so(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        Journal(tmp_path / "nowhere" / "x.csv", settings, resume=False)
