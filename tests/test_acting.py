"""`saqm gate`, `saqm threshold`, `saqm compare` and their examples: exit codes, what goes where, what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file

from saqm import cli
from saqm.manifest import Manifest, Row, Scale, write_manifest
from saqm.outputs.table import save_records

EXAMPLES = Path(__file__).parents[1] / "examples"


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]


Saqm = Callable[..., Ran]


@pytest.fixture
def saqm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Saqm:
    """Runs the command in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["saqm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        return Ran(code if isinstance(code, int) else 0 if code is None else 1, *capsys.readouterr())

    return run


def picture(path: Path, score: float, seed: int = 0) -> Path:
    """A picture that the toy model, for which brightness is quality, gives about this score; below 25 it is air."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = 2.55 * score + np.random.default_rng(seed).uniform(-5, 5, (64, 64))
    pillow.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures: one of score 80, one of 50, one of 30."""
    for name, score in (("good", 80), ("fair", 50), ("poor", 30)):
        picture(tmp_path / "in" / f"{name}.png", score)
    return tmp_path / "in"


# Gate


@pytest.mark.parametrize(("left_out", "code"), [((), 20), (("poor",), 10), (("poor", "fair"), 0)])
def test_the_worst_image_decides_the_exit_code(
    saqm: Saqm, folder: Path, toy_model: Path, left_out: tuple[str, ...], code: int
) -> None:
    for name in left_out:
        (folder / f"{name}.png").unlink()
    ran = saqm("gate", folder, "--pass", 60, "--fail", 40, "--model", toy_model)
    assert ran.code == code
    verdicts = {Path(str(record["path"])).stem: record["verdict"] for record in ran.records()}
    expected = {"good": "pass", "fair": "review", "poor": "fail"}
    assert verdicts == {name: verdict for name, verdict in expected.items() if name not in left_out}
    assert "1 pass, " in ran.err


def test_what_cannot_be_read_is_for_review_and_stands_in_the_list_with_its_reason(
    saqm: Saqm, folder: Path, toy_model: Path, tmp_path: Path
) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "poor.png").unlink()
    arguments = ("gate", folder, "--pass", 60, "--model", toy_model, "--exclude-list", tmp_path / "exclude.tsv")
    assert saqm(*arguments).code == 10
    with (tmp_path / "exclude.tsv").open(newline="") as stream:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(stream, dialect="excel-tab")}
    assert set(rows) == {"broken.png", "fair.png"}
    assert list(rows["fair.png"]) == ["path", "frame", "verdict", "reasons"]
    assert rows["broken.png"]["verdict"] == "review"
    assert "broken.png" in rows["broken.png"]["reasons"]
    assert "is below 60; low-contrast: " in rows["fair.png"]["reasons"]  # why it does not pass, and what looks wrong
    assert saqm(*arguments, "--not-scored", "fail").code == 20


def test_a_list_of_nothing_held_back_has_its_header(saqm: Saqm, folder: Path, toy_model: Path, tmp_path: Path) -> None:
    ran = saqm("gate", folder, "--pass", 1, "--model", toy_model, "--exclude-list", tmp_path / "none.tsv")
    assert ran.code == 0
    assert (tmp_path / "none.tsv").read_text() == "path\tframe\tverdict\treasons\n"


def test_a_result_file_is_judged_without_scoring_anew(
    saqm: Saqm, folder: Path, toy_model: Path, tmp_path: Path
) -> None:
    first = saqm("gate", folder, "--pass", 60, "--fail", 40, "--model", toy_model)
    for suffix in ("csv", "jsonl"):
        result = tmp_path / f"scores.{suffix}"
        assert saqm("score", folder, "--model", toy_model, "--out", result).code == 0
        again = saqm("gate", result, "--pass", 60, "--fail", 40)
        assert again.code == 20
        told = [
            [(record["path"], record["verdict"], record["reasons"]) for record in ran.records()]
            for ran in (first, again)
        ]
        assert told[0] == told[1]
        assert saqm("gate", result, "--pass", 60, "--model", "toy").code == 10
        ran = saqm("gate", result, "--pass", 60, "--model", "niqe")
        assert (ran.code, ran.out) == (2, "")
        assert "no row of niqe; there are rows of toy" in ran.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pass", "40", "--fail", "60"), "stand the wrong way round for toy"),
        (("--pass", "60", "--sure"), "toy gives no intervals"),
        (("--pass", "60", "--exclude-list", "list.txt"), "list.txt: cannot tell the format"),
        ((), "carries no cut-off of its own"),
    ],
)
def test_a_refusal_is_no_verdict(
    saqm: Saqm, folder: Path, toy_model: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = saqm("gate", folder, "--model", toy_model, *arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in re.sub(r"[\s│]+", " ", ran.err)


def test_an_empty_folder_or_result_is_no_pass(saqm: Saqm, toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert saqm("gate", tmp_path / "empty", "--pass", 60, "--model", toy_model).code == 2
    save_records([], tmp_path / "empty.csv")
    ran = saqm("gate", tmp_path / "empty.csv", "--pass", 60)
    assert ran.code == 2
    assert "nothing passes where there is nothing" in ran.err


def test_results_and_images_are_not_mixed_and_results_not_windowed(saqm: Saqm, folder: Path, tmp_path: Path) -> None:
    save_records([], tmp_path / "scores.csv")
    ran = saqm("gate", tmp_path / "scores.csv", folder, "--pass", 60)
    assert ran.code == 2
    assert "give one kind or" in re.sub(r"[\s│]+", " ", ran.err)  # typer breaks its lines where a path is long
    ran = saqm("gate", tmp_path / "scores.csv", "--pass", 60, "--window", 40, 400)
    assert ran.code == 2
    assert "how images are read was decided" in " ".join(ran.err.replace("│", "").split())


# Threshold


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Thirty pictures of a scene each; opinions of 1 to 5 that follow the brightness but for two bad bright ones."""
    rows = []
    for i in range(30):
        score = 26 + 2 * i
        path = picture(tmp_path / "study" / f"{i:02}.png", score, i)
        opinion = 1.5 if i in (23, 25) else 1 + 4 * score / 100
        rows.append(Row(path, opinion, f"scene{i}"))
    write_manifest(Manifest(tuple(rows), Scale(1, 5)), tmp_path / "study.csv")
    return tmp_path / "study.csv"


def test_a_threshold_is_chosen_and_does_what_it_says(saqm: Saqm, study: Path, toy_model: Path) -> None:
    arguments = ("threshold", "--manifest", study, "--bad-below", 3, "--miss-at-most", 0.2, "--model", toy_model)
    ran = saqm(*arguments)
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(saqm(*arguments, "--json").out)
    command = f"saqm gate PATHS --model {toy_model} --pass {record['pass_at']:g}"
    assert command in ran.out
    assert (record["missed"]["of"], record["missed"]["count"]) == (14, 2)  # (2 + 1) / (14 + 1) <= 0.2
    gated = saqm("gate", study.with_suffix(""), "--pass", record["pass_at"], "--model", toy_model)
    assert [each["verdict"] for each in gated.records()].count("review") == record["reviewed"]["count"]


def test_a_promise_that_the_images_do_not_bear_is_refused(saqm: Saqm, study: Path, toy_model: Path) -> None:
    ran = saqm("threshold", "--manifest", study, "--bad-below", 3, "--model", toy_model)
    assert (ran.code, ran.out) == (2, "")
    assert "14 scenes with bad images are too few to promise 0.05: that takes 19, 5 more" in ran.err
    ran = saqm("threshold", "--manifest", study, "--bad-below", 3, "--model", "niqe", "--predictions", "x.csv")
    assert ran.code == 2
    assert "exclude each other" in ran.err


def test_an_image_that_cannot_be_scored_is_listed(saqm: Saqm, study: Path, toy_model: Path) -> None:
    pillow.fromarray(np.zeros((64, 64), np.uint8)).save(study.with_suffix("") / "29.png")
    arguments = ("threshold", "--manifest", study, "--bad-below", 3, "--miss-at-most", 0.2, "--model", toy_model)
    ran = saqm(*arguments)
    assert ran.code == 1
    assert "Not scored, so for review, and not counted above: 1.\n" in ran.out
    assert "29.png" in ran.out


@pytest.mark.slow
def test_of_images_it_was_trained_on_the_models_out_of_fold_predictions_are_taken(
    saqm: Saqm, ct_study: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "study.csv"
    assert saqm("data", "ct-reader-study", ct_study, "--out", manifest).code == 0
    ran = saqm("threshold", "--manifest", manifest, "--bad-below", 3, "--miss-at-most", 0.1, "--json")
    assert ran.code == 0
    choice = json.loads(ran.out)
    assert "264 of 264 images were trained on: their recorded out-of-fold predictions are used" in choice["protocol"]
    assert 0.8 < choice["auc"] < 0.95, "the model's own scores of its training images would tell better than it can"
    assert choice["units"] == 22
    few = saqm("threshold", "--manifest", manifest, "--bad-below", 3, "--miss-at-most", 0.01)
    assert "22 scenes with bad images are too few to promise 0.01: that takes 99" in few.err


# Compare


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Eight pictures twice; those of b are brighter, but for one."""
    for i in range(8):
        picture(tmp_path / "a" / f"{i}.png", 40 + i, i)
        picture(tmp_path / "b" / f"{i}.png", 30 if i == 5 else 50 + 2 * i, i)
    return tmp_path / "a", tmp_path / "b"


def test_two_folders_are_compared(saqm: Saqm, sides: tuple[Path, Path], toy_model: Path, tmp_path: Path) -> None:
    out, drawn = tmp_path / "pairs.csv", tmp_path / "pairs.png"
    ran = saqm("compare", *sides, "--model", toy_model, "--out", out, "--picture", drawn)
    assert (ran.code, ran.err) == (0, "")
    assert "\nb       better in 7 of 8 pairs, worse in 1, equal in 0\n" in ran.out
    with out.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["name"] == "5"
    assert -16 < float(rows[0]["gain"]) < -14
    assert len(rows) == 8
    with pillow.open(drawn) as opened:
        assert opened.width > 1000


def test_result_files_and_folders_say_the_same(
    saqm: Saqm, sides: tuple[Path, Path], toy_model: Path, tmp_path: Path
) -> None:
    made = json.loads(saqm("compare", *sides, "--model", toy_model, "--json").out)["results"][0]
    files = [tmp_path / "a.jsonl", tmp_path / "b.tsv"]
    for folder, file in zip(sides, files, strict=True):
        saqm("score", folder, "--model", toy_model, "--out", file)
    again = json.loads(saqm("compare", *files, "--json").out)["results"][0]
    mixed = json.loads(saqm("compare", files[0], sides[1], "--model", "toy", "--json").out or "{}")
    assert mixed == {}, "a name that stands in a file is no model to score the folder with"
    assert again["labels"] == ["a.jsonl", "b.tsv"]
    assert {**again, "labels": None, "verdict": None} == {**made, "labels": None, "verdict": None}


def test_what_has_no_partner_is_told_and_changes_the_exit_code(
    saqm: Saqm, sides: tuple[Path, Path], toy_model: Path
) -> None:
    (sides[1] / "3.png").unlink()
    ran = saqm("compare", *sides, "--model", toy_model)
    assert ran.code == 1
    assert f"a: {sides[0] / '3.png'}: no partner in b" in ran.out
    for path in sides[1].iterdir():
        path.rename(path.with_stem(f"other{path.stem}"))
    ran = saqm("compare", *sides, "--model", toy_model)
    assert (ran.code, ran.out) == (2, "")
    assert "no pair by name" in ran.err


def test_scenes_of_a_manifest_are_the_units(
    saqm: Saqm, sides: tuple[Path, Path], toy_model: Path, tmp_path: Path
) -> None:
    rows = tuple(Row(folder / f"{i}.png", None, f"patient{i // 4}") for folder in sides for i in range(8))
    write_manifest(Manifest(rows), tmp_path / "scenes.csv")
    arguments = ("compare", *sides, "--model", toy_model, "--manifest", tmp_path / "scenes.csv", "--json")
    by_name = json.loads(saqm(*arguments).out)["results"][0]
    by_scene = json.loads(saqm(*arguments, "--by", "scene").out)["results"][0]
    assert (by_name["unit"], by_name["units"], len(by_name["pairs"])) == ("scene", 2, 8)
    assert (by_scene["units"], len(by_scene["pairs"])) == (2, 2)
    assert by_name["mean"] == pytest.approx(by_scene["mean"])


# The examples


@pytest.mark.slow
def test_the_pipeline_lets_through_what_passes_and_nothing_else(folder: Path, toy_model: Path, tmp_path: Path) -> None:
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("no POSIX shell here")
    shutil.copy(str(get_testdata_file("MR_small.dcm", download=False)), folder / "another.dcm")

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [shell, str(EXAMPLES / "gate_in_a_pipeline.sh"), str(folder), str(tmp_path / "out"), *options]
        environment = {**os.environ, "SAQM": f"{sys.executable} -m saqm.cli", "PYTHON": sys.executable}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)

    done = run("--pass", "60", "--fail", "40", "--model", str(toy_model))
    assert done.returncode == 20, done.stderr
    assert f"to the AI: {folder / 'good.png'}\n" in done.stdout
    assert done.stdout.count("to the AI") == 1
    assert f"{folder / 'another.dcm'}\treview\toutside the model's domain: modality MR" in done.stdout
    assert (tmp_path / "out" / "passed.txt").read_text() == f"{folder / 'good.png'}\n"

    refused = run("--pass", "60", "--fail", "40", "--model", "nosuch")
    assert refused.returncode == 2
    assert "the gate itself failed (exit code 2): nothing goes on" in refused.stderr
    assert "to the AI" not in refused.stdout


@pytest.mark.slow
def test_the_two_denoisers_are_compared(toy_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "compare_two_denoisers.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--model", str(toy_model)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "8 pairs; higher is better" in done.stdout
    assert "In short: " in done.stdout
    assert "says nothing of other patients" in done.stdout
    with (tmp_path / "out" / "pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["name"] for row in rows} == {f"draw{draw}" for draw in range(8)}
    with pillow.open(tmp_path / "out" / "pairs.png") as opened:
        assert opened.width > 1000
