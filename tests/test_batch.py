"""Many files: order, any number of processes, one row for a broken file, going on after a stop."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

import saqm.batch
import saqm.image
import saqm.metrics
import saqm.scorer
from saqm.batch import PENDING_PER_JOB, Journal, Record, Settings, score_journaled, score_many
from saqm.errors import ModelFileError, OutputError, SaqmError
from saqm.image import read_image
from saqm.outputs.map_files import map_name
from saqm.outputs.table import read_records, save_records
from saqm.scorer import load_scorer, quality_map, score


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
        f"{map_name(read_image(pictures[number]))}.png" for number in (1, 3, 4, 5)
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
    monkeypatch: pytest.MonkeyPatch, names: Iterable[str], settings: Settings, journal: Journal, *, once: bool = False
) -> tuple[list[Record], list[str]]:
    """The records, and which files were really scored for them."""
    worked: list[str] = []
    really = saqm.batch._score_file
    with monkeypatch.context() as patch:
        patch.setattr(saqm.batch, "_score_file", lambda name, *rest: worked.append(name) or really(name, *rest))
        return list(score_journaled(names, settings, journal, once=once)), worked


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


@pytest.fixture
def repeated(pictures: list[str], tmp_path: Path) -> list[str]:
    """The pictures, and then the first, the empty and the last once more under other names."""
    for number, name in enumerate((pictures[0], pictures[2], pictures[5])):
        (tmp_path / "pictures" / f"again-{number}.png").write_bytes(Path(name).read_bytes())
    return [*pictures, *(str(path) for path in sorted((tmp_path / "pictures").glob("again*")))]


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_same_bytes_are_scored_once_where_that_is_asked_for(
    repeated: list[str], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    with Journal(tmp_path / "x.csv", settings, resume=False) as journal:
        if jobs == 1:
            rows, worked = scored_by(monkeypatch, repeated, settings, journal, once=True)
            assert worked == repeated[:6]
        else:
            rows = list(score_journaled(repeated, settings, journal, jobs=jobs, once=True))
    straight = records(repeated, settings)
    assert [row["path"] for row in rows] == repeated
    assert rows[:6] == straight[:6]
    for row, alone, first in zip(rows[6:], straight[6:], (repeated[0], repeated[2], repeated[5]), strict=True):
        assert row["warnings"] == [*alone["warnings"], f"the same bytes as {first}: scored once"]  # type: ignore[misc]
        assert {**row, "warnings": alone["warnings"]} == alone


def test_the_same_bytes_under_another_suffix_are_another_file(
    pictures: list[str], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "pictures" / "0.bmp"
    other.write_bytes(Path(pictures[0]).read_bytes())
    with Journal(tmp_path / "x.csv", settings, resume=False) as journal:
        _, worked = scored_by(monkeypatch, [pictures[0], str(other)], settings, journal, once=True)
    assert worked == [pictures[0], str(other)]


def test_a_copy_of_what_an_earlier_run_scored_is_not_scored(
    stopped: Path, repeated: list[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(stopped, settings, resume=True) as journal:
        rows, worked = scored_by(monkeypatch, repeated, settings, journal, once=True)
    assert worked == [repeated[2], repeated[4], repeated[5]]
    assert [row["path"] for row in rows] == repeated


def test_once_is_refused_with_maps(settings: Settings, tmp_path: Path) -> None:
    with Journal(tmp_path / "x.csv", settings, resume=False) as journal, pytest.raises(SaqmError, match="leave out"):
        next(score_journaled([], replace(settings, map_folder=tmp_path), journal, once=True))


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


# Several models


@pytest.fixture
def several(toy_model: Path, niqe_file: Path) -> Settings:
    """A model, a metric that finds these pictures too small, and one that judges them."""
    return Settings(model=(toy_model, f"niqe:{niqe_file}", "biqaa"), mask="none")


def test_each_picture_is_read_once_and_has_a_row_for_each_model(
    pictures: list[str], several: Settings, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    really = saqm.image.read_frames

    def counted(name: str, *rest: object, **more: object) -> Iterator[object]:
        read.append(name)
        return really(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("saqm.image.read_frames", counted)
    rows = records(pictures, several)
    assert read == pictures
    assert [(row["path"], row["model"]["name"]) for row in rows] == [  # type: ignore[index]
        (name, model) for name in pictures for model in ("toy", "niqe:niqe-toy", "biqaa")
    ]
    assert (
        rows[9:12]
        == [
            *records(pictures[3:4], Settings(model=toy_model, mask="none")),
            *records(pictures[3:4], Settings(model=several.model[1], mask="none")),  # type: ignore[index]
            *records(pictures[3:4], Settings(model="biqaa", mask="none")),
        ]
    )
    model, niqe, biqaa = rows[9:12]
    assert (model["status"], niqe["status"], biqaa["status"]) == ("scored", "not_scored", "scored")
    assert "64x96 pixels to judge" in str(niqe["reasons"])
    assert [row["reasons"] for row in rows[6:9]] == [[f"{pictures[2]}: empty file"]] * 3
    assert [row["status"] for row in rows[:3]] == ["not_scored"] * 3  # constant: refused by all


def test_rows_of_several_models_do_not_depend_on_the_number_of_processes(
    pictures: list[str], several: Settings
) -> None:
    assert records(pictures, several, jobs=2) == records(pictures, several, jobs=1)


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_file_a_row_for_each_model(pictures: list[str], several: Settings) -> None:
    rows = list(score_many([pictures[1], Deadly("deadly.dcm")], several, jobs=2))
    assert ["died" in "".join(row.reasons) for row in rows] == [False] * 3 + [True] * 3
    assert [row.model and row.model["name"] for row in rows[3:]] == ["toy", "niqe:niqe-toy", "biqaa"]


def test_one_scorer_that_fails_costs_its_own_row_only(
    pictures: list[str], several: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> float:
        raise ZeroDivisionError("in a metric")

    metrics = {**saqm.metrics.METRICS, "biqaa": replace(saqm.metrics.METRICS["biqaa"], function=broken)}
    monkeypatch.setattr("saqm.metrics.METRICS", metrics)
    rows = list(score_many(pictures[3:5], several))
    assert [row.status for row in rows] == ["scored", "not_scored", "not_scored"] * 2
    assert rows[2].reasons == (f"{pictures[3]}: ZeroDivisionError: in a metric",)
    assert rows[2].sha256 == rows[0].sha256


def test_the_rows_of_a_frame_stand_together(toy_model: Path) -> None:
    name = str(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    rows = records([name], Settings(model=(toy_model, "biqaa"), mask="none"))
    assert [(row["frame"], row["model"]["name"]) for row in rows] == [  # type: ignore[index]
        (0, "toy"), (0, "biqaa"), (1, "toy"), (1, "biqaa"),
    ]  # fmt: skip


def test_maps_come_from_the_models_that_have_them(pictures: list[str], several: Settings, tmp_path: Path) -> None:
    list(score_many(pictures[3:4], replace(several, map_folder=tmp_path)))
    assert [file.name for file in tmp_path.glob("3.png*")] == [f"{map_name(read_image(pictures[3]), 'toy')}.png"]


def test_maps_come_in_every_format_and_at_the_stride_asked_for(
    pictures: list[str], settings: Settings, tmp_path: Path
) -> None:
    asked = replace(settings, map_folder=tmp_path, map_formats=("png", "npy", "nii"), map_stride=16)
    (row,) = score_many(pictures[3:4], asked)
    assert row == next(iter(score_many(pictures[3:4], settings)))  # the score is that of its own stride
    stem = map_name(read_image(pictures[3]))
    suffixes = (".png", ".npy", ".weight.npy", ".nii.gz", ".weight.nii.gz")
    assert {path.name for path in tmp_path.glob("3.png.*")} == {stem + suffix for suffix in suffixes}
    finer = quality_map(read_image(pictures[3], mask="none"), load_scorer(settings.model), stride=16)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.load(tmp_path / f"{stem}.npy"), finer.score_HW)


def test_the_slices_of_a_volume_share_one_map_file(toy_model: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 900, (40, 48, 3)).astype(np.int16)
    values[:, :, 1] = 7  # nothing to judge in it
    nibabel.Nifti1Image(values, np.diag([1, 1, 5, 1])).to_filename(tmp_path / "volume.nii")
    settings = Settings(model=toy_model, mask="none", map_folder=tmp_path, map_formats=("nii",))
    rows = list(score_many([str(tmp_path / "volume.nii")], settings))
    assert [row.status for row in rows] == ["scored", "not_scored", "scored"]
    made = nibabel.load(next(tmp_path.glob("volume.nii.????????.nii.gz")))
    assert made.shape == values.shape
    assert np.isfinite(made.get_fdata()).all((0, 1)).tolist() == [True, False, True]


def flagged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every score one of an image unlike the training images; `name` is the function that gives it."""
    really = getattr(saqm.scorer, name)

    def unlike(*arguments: object, **options: object) -> object:
        made = really(*arguments, **options)
        out = {"statistic": 9.0, "p": 0.004, "flag": True}
        return (
            (replace(made[0], out_of_domain=out), made[1])
            if name == "score_and_map"
            else replace(made, out_of_domain=out)
        )

    monkeypatch.setattr(saqm.scorer, name, unlike)


@pytest.mark.parametrize("name", ["score", "score_and_map"])
def test_strict_withholds_the_score_and_the_map_of_what_is_unlike_the_training_images(
    pictures: list[str], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flagged(name, monkeypatch)
    monkeypatch.setattr(saqm.batch, "_refuse_strict", lambda *_: None)  # the toy cannot tell
    asked = replace(settings, map_folder=tmp_path if name == "score_and_map" else None)
    (told,) = score_many(pictures[3:4], asked)
    assert told.score is not None
    (tmp_path / "maps").mkdir()
    asked = replace(asked, strict=True, map_folder=asked.map_folder and tmp_path / "maps")
    (row,) = score_many(pictures[3:4], asked)
    assert (row.status, row.score, row.score_raw, row.interval) == ("not_scored", None, None, None)
    assert "withheld" in row.reasons[0]
    assert "0.004" in row.reasons[0]
    assert list((tmp_path / "maps").iterdir()) == []


def test_strict_is_refused_where_the_model_cannot_tell(settings: Settings) -> None:
    with pytest.raises(SaqmError, match="strict: toy cannot tell which images are unlike those it knows: leave it out"):
        score_many([], replace(settings, strict=True))


def test_a_finished_result_is_taken_over_by_strict_only_where_the_image_is_known_to_be_alike(
    pictures: list[str], settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saqm.batch, "_refuse_strict", lambda *_: None)
    made = records(pictures[3:6], settings)
    for record, flag in zip(made, (True, False, None), strict=True):
        record["out_of_domain"] = None if flag is None else {"statistic": 1.0, "p": 0.5, "flag": flag}
    with Journal(tmp_path / "x.csv", replace(settings, strict=True), resume=False) as journal:
        journal.adopt(made)
        assert [journal.knows(name) for name in pictures[3:6]] == [False, True, False]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"stride": 8}, "a stride of 8 is for models"),
        ({"engine": "onnx"}, "engine onnx is for models"),
        (
            {"map_folder": Path("maps")},
            r"a quality map is for models; metrics have no use for it \(biqaa, marziliano\)",
        ),
        ({"strict": True}, "strict is for models"),
    ],
)
def test_an_option_that_no_scorer_has_a_use_for_is_refused(option: dict[str, object], said: str) -> None:
    with pytest.raises(SaqmError, match=said):
        score_many([], replace(Settings(model=("biqaa", "marziliano")), **option))  # type: ignore[arg-type]


def test_two_models_of_one_name_are_refused(toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "same.onnx").write_bytes(toy_model.read_bytes())
    with pytest.raises(SaqmError, match="two of the models are called toy"):
        score_many([], Settings(model=(toy_model, tmp_path / "same.onnx")))


def test_a_stopped_batch_of_several_models_goes_on(
    pictures: list[str], several: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "scores.csv"
    with pytest.raises(Stop), Journal(result, several, resume=False) as journal:
        list(score_journaled(stopped_after(4, pictures), several, journal))
    with pytest.raises(OutputError, match="begun with another model"):
        Journal(result, replace(several, model=several.model[:2]), resume=True)  # type: ignore[index]
    with Journal(result, several, resume=True) as journal:
        rows, worked = scored_by(monkeypatch, pictures, several, journal)
    assert rows == records(pictures, several)
    assert worked == [pictures[2], *pictures[4:]]


def test_a_finished_result_of_metrics_is_taken_over_unless_other_parameters_made_it(
    pictures: list[str], toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(model=(toy_model, "biqaa"), mask="none")
    save_records(records(pictures, settings), tmp_path / "finished.csv")
    finished = list(read_records(tmp_path / "finished.csv"))
    with Journal(tmp_path / "a.csv", settings, resume=True) as journal:
        journal.adopt(finished)
        assert scored_by(monkeypatch, pictures, settings, journal)[1] == [pictures[0], pictures[2]]
    for record in finished:
        if record["model"]["name"] == "biqaa":  # type: ignore[index]
            record["model"]["version"] = "0.0.0"  # type: ignore[index]
    with Journal(tmp_path / "b.csv", settings, resume=True) as journal:
        journal.adopt(finished)
        assert scored_by(monkeypatch, pictures, settings, journal)[1] == pictures


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, the disk that is always full")
def test_a_full_disk_is_told_and_not_a_traceback(tmp_path: Path, toy_model: Path) -> None:
    journal = Journal(tmp_path / "scores.jsonl", Settings(model=toy_model), resume=False)
    journal._file.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        journal._file = full
        with pytest.raises(OutputError, match=r"partial\.jsonl: cannot be written: No space left on device"):
            journal.add("a.dcm", [{"sha256": "a"}])
