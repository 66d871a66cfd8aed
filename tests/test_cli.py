"""The command line: what it prints where, its exit codes, and what it says of bad input."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from PIL import Image as pillow
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate

from saqm import __version__, batch, cli
from saqm.modelfile import ModelHeader, write_onnx
from saqm.outputs import table

HEAVY = {"torch", "onnxruntime", "scipy", "pydicom", "pydantic", "nibabel", "matplotlib", "PIL", "polars", "numpy"}


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.out, newline=""), dialect="excel-tab"))


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


@pytest.fixture
def ct() -> Path:
    return Path(str(get_testdata_file("CT_small.dcm", download=False)))


def save_picture(path: Path, seed: int = 0, side: int = 64) -> Path:
    """A grey picture with something everywhere, so that all of it is judged."""
    rng = np.random.default_rng(seed)
    pillow.fromarray(rng.integers(60, 200, (side, side), np.uint8)).save(path)
    return path


def side_of(picture: Path) -> int:
    with pillow.open(picture) as opened:
        return min(opened.size)


# Help and version


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['saqm', '--help']\nimport saqm.cli\ntry: saqm.cli.main()\nexcept SystemExit: pass\n"
    )
    script += "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.rsplit("LOADED", 1)[1].split())


def commands() -> list[list[str]]:
    return [
        [*([group.name] if isinstance(group.name, str) else []), command.name or command.callback.__name__]
        for group in cli.app.registered_groups
        if group.typer_instance
        for command in group.typer_instance.registered_commands
        if command.callback
    ]


def test_every_command_of_the_contract_is_there() -> None:
    names = {" ".join(command) for command in commands()}
    assert names == {
        "score", "inspect", "train", "pretrain", "adapt", "evaluate", "calibrate", "export", "fit",
        "rate", "agreement", "gate", "threshold", "compare", "report", "serve", "node", "pull", "push",
        "data folder", "data ct-reader-study", "data tid2013", "data kadid10k", "data koniq10k", "data live",
        "data csiq", "data ldctiqac2023", "data md72", "data surrogate", "models list", "models show", "models verify",
        "experiment table2", "experiment table3",
    }  # fmt: skip


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_an_example_and_json(saqm: Saqm, command: list[str]) -> None:
    ran = saqm(*command, "--help")
    assert ran.code == 0
    assert f"saqm {' '.join(command)}" in re.sub(r"\s+", " ", ran.out).split("Example")[1]
    assert "--json" in ran.out


def test_version(saqm: Saqm) -> None:
    assert saqm("--version") == Ran(0, f"saqm {__version__}\n", "")


# Scoring


def test_output_that_is_no_terminal_gets_tab_separated_rows(saqm: Saqm, ct: Path, toy_model: Path) -> None:
    ran = saqm("score", ct, "--model", toy_model)
    assert ran.code == 0
    assert ran.err == ""
    (row,) = ran.rows()
    assert (row["path"], row["status"], row["modality"]) == (str(ct), "scored", "CT")
    assert 0 < float(row["score"]) < 100


def test_json_has_the_whole_record(saqm: Saqm, ct: Path, toy_model: Path) -> None:
    (record,) = json.loads(saqm("score", ct, "--model", toy_model, "--json").out)
    assert record["model"]["name"] == "toy"
    assert record["created"] is None
    assert "T" in json.loads(saqm("score", ct, "--model", toy_model, "--json", "--timestamp").out)[0]["created"]


def test_the_table_can_be_asked_for(saqm: Saqm, ct: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ct.parent)  # a short name is not broken over lines
    ran = saqm("score", ct.name, "--model", toy_model, "--format", "table")
    assert ran.out.splitlines()[0].split() == ["file", "score"]
    assert re.match(r"CT_small\.dcm  [█▏▎▍▌▋▊▉·]{10}  +\d+\.\d", ran.out.splitlines()[1])


def test_a_long_run_shows_what_it_has_come_to(
    saqm: Saqm, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        save_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "3.png").write_bytes(b"")
    piped = saqm("score", tmp_path, "--model", toy_model)
    assert piped.err == "3 scored, 1 not scored, median 50.9\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = saqm("score", tmp_path, "--model", toy_model)
    assert shown.out == piped.out
    assert shown.err.endswith(piped.err)
    assert "4/4" in shown.err


def test_the_window_and_mask_asked_for_are_those_recorded(saqm: Saqm, ct: Path, toy_model: Path) -> None:
    ran = saqm("score", ct, "--model", toy_model, "--window", -600, 1500, "--mask", "none", "--stride", 16, "--json")
    preparation = json.loads(ran.out)[0]["preparation"]
    assert (preparation["window"]["center"], preparation["window"]["width"]) == (-600, 1500)
    assert preparation["window"]["from"] == "caller"
    assert (preparation["judged_share"], preparation["stride"]) == (1.0, 16)


@pytest.fixture
def mixed(tmp_path: Path, ct: Path) -> Path:
    """A folder of 20 good and 10 broken files."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(18):
        save_picture(folder / f"good{number:02}.png", number)
    (folder / "good18.dcm").write_bytes(ct.read_bytes())
    (folder / "good19.dcm").write_bytes(Path(str(get_testdata_file("MR_small.dcm", download=False))).read_bytes())
    for number, content in enumerate([b"", b"text\n", ct.read_bytes()[:3000], b"\x89PNG\r\n\x1a\n", b"II*\0"]):
        for suffix in ("dcm", "png"):
            (folder / f"broken{number}.{suffix}").write_bytes(content)
    return folder


def test_twenty_good_and_ten_broken_files_give_twenty_scores_and_ten_reasons(
    saqm: Saqm, mixed: Path, toy_model: Path
) -> None:
    ran = saqm("score", mixed, "--model", toy_model)
    rows = ran.rows()
    scored = [row for row in rows if row["score"] != "n/a"]
    failed = [row for row in rows if row["status"] == "not_scored"]
    assert (len(scored), len(failed), ran.code) == (20, 10, 1)
    assert all("good" in row["path"] for row in scored)
    assert all(row["reasons"].startswith(row["path"]) for row in failed)
    assert "20 scored, 10 not scored" in ran.err


def test_the_same_files_give_the_same_bytes_every_time_and_with_any_jobs(
    saqm: Saqm, mixed: Path, toy_model: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for out, jobs in zip(outs, (1, 1, 2), strict=True):
        assert saqm("score", mixed, "--model", toy_model, "--out", out, "--jobs", jobs).code == 1
    assert len({out.read_bytes() for out in outs}) == 1
    assert len(list(table.read_records(outs[0]))) == 30


def test_a_finished_result_is_gone_on_with(
    saqm: Saqm, mixed: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "scores.csv"
    saqm("score", mixed, "--model", toy_model, "--out", out)
    before = out.read_bytes()
    save_picture(mixed / "zz.png", 99)
    worked: list[str] = []
    really = batch._score_file
    monkeypatch.setattr(batch, "_score_file", lambda name, *rest: worked.append(name) or really(name, *rest))
    assert saqm("score", mixed, "--model", toy_model, "--out", out, "--resume").code == 1
    assert [Path(name).name for name in worked if "broken" not in name] == ["zz.png"]
    assert out.read_bytes().startswith(before)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mixed", "scores.csv", "toy.onnx"]


def test_copies_of_a_file_are_scored_once_where_that_is_asked_for(
    saqm: Saqm, ct: Path, toy_model: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "twice", tmp_path / "scores.csv"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm"):
        (folder / name).write_bytes(ct.read_bytes())
    assert saqm("score", folder, "--model", toy_model, "--out", out, "--once").code == 0
    first, copy = table.read_records(out)
    assert (copy["score_raw"], copy["path"]) == (first["score_raw"], str(folder / "b.dcm"))
    assert f"the same bytes as {folder / 'a.dcm'}: scored once" in copy["warnings"]  # type: ignore[operator]


def test_maps_are_saved_in_the_folder_asked_for(saqm: Saqm, ct: Path, toy_model: Path, tmp_path: Path) -> None:
    assert saqm("score", ct, "--model", toy_model, "--map", tmp_path / "deep" / "maps").code == 0
    (picture,) = (tmp_path / "deep" / "maps").iterdir()
    assert picture.name.startswith("CT_small.dcm.")
    assert side_of(picture) >= 512


def test_a_finer_map_as_numbers_and_as_nifti(saqm: Saqm, ct: Path, toy_model: Path, tmp_path: Path) -> None:
    asked = ("--map", tmp_path / "maps", "--map-format", "npy,nii", "--map-stride", 16)
    plain = saqm("score", ct, "--model", toy_model)
    assert saqm("score", ct, "--model", toy_model, *asked).out == plain.out
    made = sorted(path.name.partition(".dcm.")[2][8:] for path in (tmp_path / "maps").iterdir())
    assert made == [".nii.gz", ".npy", ".weight.nii.gz", ".weight.npy"]


def test_strict_is_refused_where_the_model_cannot_tell(saqm: Saqm, ct: Path, toy_model: Path) -> None:
    ran = saqm("score", ct, "--model", toy_model, "--strict")
    assert (ran.code, ran.out) == (2, "")
    assert "strict: toy cannot tell which images are unlike those it knows" in ran.err


def test_frames_of_a_cine_are_rows_or_one_is_chosen(saqm: Saqm, toy_model: Path) -> None:
    name = get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)
    assert [row["frame"] for row in saqm("score", name, "--model", toy_model, "--mask", "none").rows()] == ["0", "1"]
    (row,) = saqm("score", name, "--model", toy_model, "--mask", "none", "--frame", 1).rows()
    assert row["frame"] == "1"
    (row,) = saqm("score", name, "--model", toy_model, "--frame", 7).rows()
    assert row["status"] == "not_scored"
    assert "2 frames" in row["reasons"]


# Metrics, and several models


def test_several_models_are_rows_and_metrics_name_their_direction(saqm: Saqm, ct: Path, toy_model: Path) -> None:
    ran = saqm("score", ct, "--model", f"{toy_model},biqaa,marziliano")
    assert ran.code == 0
    model, biqaa, blur = ran.rows()
    assert [row["model_name"] for row in (model, biqaa, blur)] == ["toy", "biqaa", "marziliano"]
    assert 0 < float(model["score"]) < 100
    assert (biqaa["score"], biqaa["model_direction"], biqaa["model_definition"]) == ("n/a", "higher is better", "exact")
    assert (blur["model_direction"], blur["preparation_options"]) == ("lower is better", '{"rule": "strict"}')
    assert float(blur["score_raw"]) > 1
    assert model["model_direction"] == "n/a"


def test_every_scorer_of_the_package_can_be_asked_for(saqm: Saqm, tmp_path: Path) -> None:
    from saqm.metrics import METRICS
    from saqm.modelfile import shipped

    ran = saqm("score", save_picture(tmp_path / "x.png", side=200), "--model", "all", "--json")
    assert ran.code == 0, ran.err
    assert [record["model"]["name"] for record in json.loads(ran.out)] == [*shipped(), *METRICS]


def test_metrics_in_a_finished_result_are_gone_on_with_and_any_jobs_give_the_same_bytes(
    saqm: Saqm, tmp_path: Path, toy_model: Path
) -> None:
    for number in range(3):
        save_picture(tmp_path / f"{number}.png", number)
    (tmp_path / "3.png").write_bytes(b"")
    command = ["score", str(tmp_path), "--model", f"biqaa,{toy_model},radial-index", "--summary", tmp_path / "s.csv"]
    outs = [tmp_path / "one.csv", tmp_path / "two.csv"]
    assert saqm(*command, "--out", outs[0]).code == 1
    summary = (tmp_path / "s.csv").read_bytes()
    assert saqm(*command, "--out", outs[1], "--jobs", 2).code == 1
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert saqm(*command, "--out", outs[0], "--resume").code == 1
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert (tmp_path / "s.csv").read_bytes() == summary  # rows that were not made anew are summarised, too
    assert summary.decode().splitlines()[-1] == f"{tmp_path / '3.png'},radial-index,1,0,1,,,,,,,"


def test_a_summary_of_the_frames_of_each_file(saqm: Saqm, tmp_path: Path, toy_model: Path) -> None:
    picture = volume(tmp_path / "x.nii")
    ran = saqm(
        "score",
        picture,
        "--axis",
        2,
        "--model",
        f"{toy_model},biqaa",
        "--mask",
        "none",
        "--summary",
        tmp_path / "s.json",
    )
    assert ran.code == 0
    model, metric = json.loads((tmp_path / "s.json").read_text())
    scores = [float(row["score"]) for row in ran.rows() if row["model_name"] == "toy"]
    assert (model["frames"], model["of"], model["median"]) == (5, "score", sorted(scores)[2])
    assert model["worst_frame"] == scores.index(min(scores))
    assert (metric["of"], metric["direction"]) == ("score_raw", "higher is better")
    ran = saqm("score", picture, "--axis", 2, "--model", toy_model, "--summary", tmp_path / "s.doc")
    assert (ran.code, "cannot tell the format" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "niqq"], "did you mean niqe?"),
        (["--model", "biqaa,biqaa"], "biqaa is there twice"),
        (["--model", "biqaa", "--stride", "8"], "a stride of 8 is for models"),
        (["--model", "biqaa,marziliano", "--engine", "onnx"], "engine onnx is for models"),
        (["--model", "biqaa:ct"], "biqaa has no parameters"),
    ],
)
def test_a_metric_that_cannot_be_run_so_is_refused(saqm: Saqm, ct: Path, arguments: list[str], said: str) -> None:
    ran = saqm("score", ct, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_metrics_are_listed_shown_and_verified(saqm: Saqm, niqe_file: Path, toy_model: Path) -> None:
    listed = saqm("models", "list").out
    assert re.search(r"^biqaa  metric  higher is better  exact$", listed, re.MULTILINE)
    assert re.search(r"^niqe-k  metric  lower is better  reconstruction", listed, re.MULTILINE)
    entries = json.loads(saqm("models", "list", "--json").out)
    assert {entry["kind"] for entry in entries} == {"model", "metric"}
    assert next(entry for entry in entries if entry["name"] == "niqe")["default"] == "niqe-natural"
    shown = saqm("models", "show", "marziliano")
    assert shown.code == 0
    assert "title: Marziliano blur\n" in shown.out
    assert "remark: edges and widths are exact, threshold and plateau rule a choice\n" in shown.out
    assert json.loads(saqm("models", "show", "niqe-k", "--json").out)["definition"] == "reconstruction"
    niqe_file.with_suffix(".md").write_text("# A card\n")
    assert saqm("models", "show", f"niqe:{niqe_file}").out.endswith("\n\n# A card\n\n")
    verified = json.loads(saqm("models", "verify", f"niqe:{niqe_file}", toy_model, "--json").out)
    assert list(verified) == [f"niqe:{niqe_file}", str(toy_model)]
    assert verified[f"niqe:{niqe_file}"] == hashlib.sha256(niqe_file.read_bytes()).hexdigest()
    content = bytearray(niqe_file.read_bytes())
    content[-1] ^= 1
    niqe_file.write_bytes(content)
    ran = saqm("models", "verify", f"niqe:{niqe_file}")
    assert (ran.code, "wrong hash" in ran.err) == (2, True)
    assert saqm("models", "verify", "biqaa").code == 2


def test_all_shipped_files_are_verified_by_themselves(saqm: Saqm) -> None:
    from saqm.metrics.parameters import shipped_parameters
    from saqm.modelfile import shipped

    assert list(json.loads(saqm("models", "verify", "--json").out)) == [*shipped(), *shipped_parameters()]


# Bad images: each is a row with its reason


def dicom(path: Path, ct: Path, **changes: object) -> Path:
    data = pydicom.dcmread(ct)
    for keyword, value in changes.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    data.save_as(path)
    return path


def unsupported_syntax(path: Path, ct: Path) -> Path:
    data = pydicom.dcmread(ct)
    data.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    data.PixelData = encapsulate([b"\0" * 64])
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    return path


def encrypted(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", b"secret" * 50)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag "encrypted" of the local header and of the central directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def floats(path: Path, value: float) -> Path:
    import tifffile

    picture = np.random.default_rng(0).random((64, 64), np.float32)
    picture[30, 30] = value
    tifffile.imwrite(path, picture)
    return path


def volume(path: Path) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random((64, 64, 5)).astype(np.float32), np.eye(4)), path)
    return path


def constant(path: Path) -> Path:
    pillow.new("L", (64, 64), 90).save(path)
    return path


def almost_black(path: Path) -> Path:
    picture = np.zeros((128, 128), np.uint8)
    picture[60:68, 60:68] = np.arange(64).reshape(8, 8) + 100
    pillow.fromarray(picture).save(path)
    return path


BAD: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "missing": (lambda folder, _: folder / "nowhere.dcm", "no such file"),
    "empty": (lambda folder, _: written(folder / "x.dcm", b""), "empty file"),
    "text": (lambda folder, _: written(folder / "x.dcm", b"Dear doctor,\n" * 30), "not "),
    "truncated": (lambda folder, ct: written(folder / "x.dcm", ct.read_bytes()[:-5000]), "bytes"),
    "frames": (lambda folder, ct: dicom(folder / "x.dcm", ct, NumberOfFrames=5), "frames"),
    "geometry": (lambda folder, ct: dicom(folder / "x.dcm", ct, Rows=None), "Rows"),
    "syntax": (lambda folder, ct: unsupported_syntax(folder / "x.dcm", ct), "MPEG2"),
    "encrypted": (lambda folder, _: encrypted(folder / "x.zip"), "encrypted"),
    "small": (lambda folder, _: save_picture(folder / "x.png", side=16), "16x16 pixels is smaller than one 32x32"),
    "constant": (lambda folder, _: constant(folder / "x.png"), "constant image|nothing to judge"),
    "masked": (lambda folder, _: almost_black(folder / "x.png"), "nothing to judge"),
    "nan": (lambda folder, _: floats(folder / "x.tif", np.nan), "NaN"),
    "inf": (lambda folder, _: floats(folder / "x.tif", np.inf), "infinite"),
    "negative": (
        lambda folder, _: written(
            folder / "x.nrrd", b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: -64 64\nencoding: raw\n\n" + b"a" * 4096
        ),
        "-64",
    ),
    "volume": (lambda folder, _: volume(folder / "x.nii"), "axis"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_a_row_with_its_reason(saqm: Saqm, ct: Path, toy_model: Path, tmp_path: Path, kind: str) -> None:
    make, reason = BAD[kind]
    ran = saqm("score", make(tmp_path, ct), ct, "--model", toy_model)
    bad, good = ran.rows()
    assert (bad["status"], bad["score"], bad["score_raw"]) == ("not_scored", "n/a", "n/a")
    assert re.search(reason, bad["reasons"]), bad["reasons"]
    assert "Error" not in bad["reasons"]  # a typed refusal, not an exception that slipped through
    assert good["status"] == "scored"
    assert ran.code == 1


def test_a_picture_beyond_the_limit_is_refused_and_the_limit_is_yours(
    saqm: Saqm, toy_model: Path, tmp_path: Path
) -> None:
    picture = save_picture(tmp_path / "x.png")
    (row,) = saqm("score", picture, "--model", toy_model, "--max-pixels", 1000).rows()
    assert "1,000" in row["reasons"] or "1000" in row["reasons"]
    assert saqm("score", picture, "--model", toy_model, "--max-pixels", 5000).code == 0


# Refusals: one line on stderr, exit code 2


def test_a_folder_without_images_is_refused(saqm: Saqm, toy_model: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    ran = saqm("score", tmp_path / "none", "--model", toy_model)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: no image found in {tmp_path / 'none'}\n"


def test_a_wrong_model_is_refused(saqm: Saqm, ct: Path, toy_model: Path, tmp_path: Path) -> None:
    content = bytearray(toy_model.read_bytes())
    content[20] ^= 1
    (tmp_path / "bad.onnx").write_bytes(content)
    for model, said in [("nix", "no model 'nix'"), ("nix.onnx", "no such file"), (tmp_path / "bad.onnx", "")]:
        ran = saqm("score", ct, "--model", model)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("error: ")
        assert said in ran.err


def test_a_newer_model_format_and_a_foreign_graph_are_refused(
    saqm: Saqm, ct: Path, tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]
) -> None:
    write_onnx(toy_onnx(), header.model_copy(update={"format_version": 99}), tmp_path / "newer.onnx")
    (tmp_path / "foreign.onnx").write_bytes(toy_onnx())
    for name, said in [("newer", "newer"), ("foreign", "foreign")]:
        ran = saqm("score", ct, "--model", tmp_path / f"{name}.onnx")
        assert ran.code == 2
        assert said in ran.err
        assert saqm("models", "verify", tmp_path / f"{name}.onnx").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frame", "two"], "a number from 0, or all"),
        (["--window", "40", "0"], "the width must be above 0"),
        (["--json", "--format", "csv"], "choose one"),
        (["--resume"], "name it with --out"),
        (["--once"], "name it with --out, on local"),
        (["--map-stride", "8"], "name its folder with --map"),
        (["--map", "m", "--map-format", "png,jpg"], "--map-format png,jpg: png, npy, nii, dcm, each at most once"),
        (["--map", "m", "--map-format", "png,png"], "each at most once"),
        (["--out", "x.csv", "--json"], "decides its format"),
        (["--jobs", "0"], "greater than or equal to 1"),
        (["--out", "scores.xlsx"], "cannot tell the format"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_usage_is_refused(saqm: Saqm, ct: Path, toy_model: Path, arguments: list[str], said: str) -> None:
    ran = saqm("score", ct, "--model", toy_model, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in re.sub(r"[\s│]+", " ", ran.err)


def test_an_unwritable_result_is_refused_and_the_old_one_is_whole(
    saqm: Saqm, ct: Path, toy_model: Path, tmp_path: Path
) -> None:
    ran = saqm("score", ct, "--model", toy_model, "--out", tmp_path / "nowhere" / "x.csv")
    assert ran.code == 2
    assert re.match(r"error: .*nowhere.*: cannot be written: No such file or directory\n$", ran.err)
    (tmp_path / "blocked").write_text("a file where a folder is wanted")
    ran = saqm("score", ct, "--model", toy_model, "--map", tmp_path / "blocked")
    assert ran.code == 2
    assert "cannot be made" in ran.err


def test_nothing_in_a_message_moves_the_cursor(saqm: Saqm) -> None:
    ran = saqm("inspect", "evil\x1b[2J.dcm")
    assert ran.code == 2
    assert "\x1b" not in ran.err
    assert "evil\\x1b[2J.dcm: no such file" in ran.err


def test_a_reader_that_stops_reading_is_no_error(toy_model: Path, mixed: Path) -> None:
    command = [sys.executable, "-m", "saqm.cli", "score", str(mixed), "--model", str(toy_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_interrupting_leaves_the_journal_and_says_130(
    saqm: Saqm, mixed: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = batch._score_file

    def interrupted(name: str, *rest: object) -> object:
        if name.endswith("good03.png"):
            raise KeyboardInterrupt
        return really(name, *rest)

    monkeypatch.setattr(batch, "_score_file", interrupted)
    out = tmp_path / "scores.csv"
    assert saqm("score", mixed, "--model", toy_model, "--out", out).code == 130
    assert not out.exists()
    monkeypatch.setattr(batch, "_score_file", really)
    assert saqm("score", mixed, "--model", toy_model, "--out", out, "--resume").code == 1
    assert len(list(table.read_records(out))) == 30


# The other commands


def test_inspect_tells_each_step_and_draws_the_mask(saqm: Saqm, ct: Path, tmp_path: Path) -> None:
    ran = saqm("inspect", ct, "--png", tmp_path / "ct.png")
    assert ran.code == 0
    assert re.search(r"shape +128 x 128", ran.out)
    assert re.search(r"step \d +window: center 40, width 400", ran.out)
    assert "of the picture" in ran.out
    assert "█" in ran.out
    assert side_of(tmp_path / "ct.png") >= 128
    described = json.loads(saqm("inspect", ct, "--json").out)
    assert described["modality"] == "CT"
    assert sum(described["histogram"]) == round(described["judged_share"] * 128 * 128)


def test_inspect_draws_what_a_window_attends_to(
    saqm: Saqm, ct: Path, toy_model: Path, trainable: Path, tmp_path: Path
) -> None:
    assert trainable.with_suffix(".onnx") == toy_model
    asked = ("inspect", ct, "--attention", 70, 60, "--model", toy_model)
    ran = saqm(*asked, "--png", tmp_path / "attention.png")
    assert ran.code == 0
    with pillow.open(tmp_path / "attention.png") as drawn:
        assert drawn.width > 3 * 512 > drawn.height
    for arguments in (asked, ("inspect", ct, "--model", toy_model)):
        ran = saqm(*arguments)
        assert ran.code == 2
        assert "go together" in re.sub(r"[\s│]+", " ", ran.err)


def test_inspect_of_a_broken_file_is_refused(saqm: Saqm, tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"")
    assert saqm("inspect", tmp_path / "x.dcm") == Ran(2, "", f"error: {tmp_path / 'x.dcm'}: empty file\n")


def test_data_folder_writes_a_manifest(saqm: Saqm, tmp_path: Path) -> None:
    for name in ("a_v1", "a_v2", "b_v1"):
        save_picture(tmp_path / f"{name}.png")
    out = tmp_path / "manifest.csv"
    ran = saqm("data", "folder", tmp_path, "--out", out, "--scene", "^(.)_", "--method", "_(v.)", "--json")
    assert json.loads(ran.out) == {"manifest": str(out), "images": 3, "scenes": 2}
    with out.open() as stream:
        assert [row["method"] for row in csv.DictReader(stream)] == ["v1", "v2", "v1"]


def test_models_verify_and_show_a_file(saqm: Saqm, toy_model: Path) -> None:
    assert json.loads(saqm("models", "show", toy_model, "--json").out)["name"] == "toy"
    assert "as it was written" in saqm("models", "verify", toy_model).out
    ran = saqm("models", "show", toy_model)
    assert ran.code == 2
    assert "has no card" in ran.err


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A manifest of pictures whose opinion score is what the toy model sees: brightness."""
    lines = ["path,score,scene"]
    for number in range(8):
        rng = np.random.default_rng(number)
        pillow.fromarray((rng.integers(60, 90, (64, 64)) + 20 * number).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        lines.append(f"{number}.png,{1 + number / 2},scene{number}")
    (tmp_path / "judged.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "judged.json").write_text('{"scale": [1, 5], "higher_is_better": true}')
    return tmp_path / "judged.csv"


def test_evaluate_writes_what_it_prints(saqm: Saqm, judged: Path, toy_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    ran = saqm("evaluate", "--manifest", judged, "--model", toy_model, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.out == (out / "evaluation.json").read_text()
    result = json.loads(ran.out)["results"][0]
    assert (result["n"], result["srocc"]) == (8, 1.0)
    again = saqm("evaluate", "--manifest", judged, "--predictions", out / "predictions.csv", "--json")
    assert json.loads(again.out)["results"][0]["srocc"] == 1.0
    assert "SROCC" in saqm("evaluate", "--manifest", judged, "--model", toy_model).out


def test_evaluate_of_a_metric_says_how_it_was_turned(saqm: Saqm, judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    ran = saqm("evaluate", "--manifest", judged, "--model", "radial-index", "--out", out, "--json")
    assert ran.code == 0, ran.err
    content = json.loads(ran.out)
    assert content["orientation"] == {"name": "radial-index", "direction": "higher is better", "turned": False}
    assert (content["results"][0]["n"], content["results"][0]["rmse"]) == (8, None)
    assert "radial-index keeps its own scale (higher is better)" in (out / "evaluation.md").read_text()
    assert not (out / "predictions.csv").exists()  # they are no predictions of opinions
    with (out / "values.csv").open() as stream:
        assert all(float(row["prediction"]) < 0 for row in csv.DictReader(stream))


def test_evaluate_refuses_what_does_not_fit_together(saqm: Saqm, judged: Path, toy_model: Path, tmp_path: Path) -> None:
    ran = saqm("evaluate", "--manifest", judged, "--model", toy_model, "--predictions", "x.csv")
    assert ran.code == 2
    assert "exclude each other" in ran.err
    assert "belong together" in saqm("evaluate", "--manifest", judged, "--folds", 3).err
    ran = saqm("evaluate", "--manifest", judged, "--predictions", "x.csv", "--as-trained")
    assert (ran.code, "is about a model" in ran.err) == (2, True)
    ran = saqm("evaluate", "--manifest", tmp_path / "nix.csv", "--model", toy_model)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")


def test_resubstitution_is_asked_for_and_said_aloud(
    saqm: Saqm, judged: Path, tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes]
) -> None:
    seen = tuple(hashlib.sha256((tmp_path / f"{number}.png").read_bytes()).hexdigest() for number in range(2))
    training = header.training.model_copy(update={"images_sha256": seen})
    write_onnx(toy_onnx(), header.model_copy(update={"training": training}), tmp_path / "taught.onnx")
    ran = saqm("evaluate", "--manifest", judged, "--model", tmp_path / "taught.onnx")
    assert ran.code == 1
    assert ran.out.count("--as-trained (as_trained=True) scores it all the same") == 2
    ran = saqm("evaluate", "--manifest", judged, "--model", tmp_path / "taught.onnx", "--as-trained")
    assert ran.code == 0
    assert "note: 2 of 8 images were trained on: RESUBSTITUTION" in ran.err
    assert "2 of 8 images were trained on: RESUBSTITUTION" in ran.out


def test_training_without_its_extra_names_the_install_line(saqm: Saqm, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module as really

    def absent(name: str) -> object:
        if name == "saqm.experiments":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return really(name)

    monkeypatch.setattr("importlib.import_module", absent)
    ran = saqm("train", "--source", "m.csv", "--recipe", "paper", "--out", "model", "--seed", 7)
    assert (ran.code, ran.err) == (2, "error: training needs torch: pip install 'saqm[train]'\n")


@pytest.fixture
def trainable(
    tmp_path: Path, header: ModelHeader, toy_onnx: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An untaught network as a .safetensors model; what is exported from it is the toy graph, for an export is slow."""
    from saqm.export import save_network
    from saqm.network import SAQM

    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005
    monkeypatch.setattr("saqm.adapt.STEPS", 4)
    save_network(SAQM.from_header(header), header, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_adapt_makes_a_model_of_images_without_scores(saqm: Saqm, tmp_path: Path, trainable: Path) -> None:
    (tmp_path / "own").mkdir()
    for number in range(5):
        save_picture(tmp_path / "own" / f"{number}.png", seed=number)
    out = tmp_path / "adapted"
    asked = ("adapt", tmp_path / "own", "--model", trainable, "--seed", 7, "--out", out)
    ran = saqm(*asked, "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["images"], found["learnt_from"], found["tried_on"], found["scores_read"]) == (5, 4, 1, 0)
    assert (found["model"], found["weights"]) == (str(out / "model.onnx"), str(out / "model.safetensors"))
    assert "does not say which features it was trained on: they are not standardised" in ran.err
    assert saqm("score", tmp_path / "own", "--model", out / "model.onnx").code == 0
    shown = json.loads(saqm("models", "show", out / "model.safetensors", "--json").out)
    assert shown["training"]["seed"] == 7
    before = (out / "model.safetensors").read_bytes()
    ran = saqm(*asked)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: {out} holds a model already; choose another --out\n"
    assert (out / "model.safetensors").read_bytes() == before


def test_adapt_refuses_too_few_images_and_two_sources_of_them(saqm: Saqm, tmp_path: Path, trainable: Path) -> None:
    for number in range(3):
        save_picture(tmp_path / f"{number}.png", seed=number)
    rest = ("--model", trainable, "--out", tmp_path / "adapted")
    for images in ((), (tmp_path / "0.png", "--target", tmp_path / "own.csv")):  # neither, and both
        ran = saqm("adapt", *images, *rest)
        assert ran.code == 2
        assert "give images, or --target with a manifest of them" in re.sub(r"[\s│]+", " ", ran.err)
    ran = saqm("adapt", *(tmp_path / f"{number}.png" for number in range(3)), *rest)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: 3 images can be scored; adapting needs 4, and 12 are advised\n"
    assert not list(tmp_path.glob("adapted/*"))


def test_fit_hands_its_options_on(saqm: Saqm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    def fit_command(metric: str, **options: object) -> dict[str, object]:
        given.update(options, metric=metric)
        return {"parameters": "x.safetensors", "pictures": 2}

    monkeypatch.setattr("saqm.fitting.fit_command", fit_command)
    for number in range(2):
        save_picture(tmp_path / f"{number}.png")
    ran = saqm(
        "fit", "niqe", "--pristine", tmp_path / "0.png", "--pristine", tmp_path / "1.png", "--out", "x.safetensors"
    )
    assert (ran.code, ran.out) == (0, "parameters: x.safetensors\npictures: 2\n")
    assert given["pristine"] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert (given["metric"], given["manifest"], given["import_file"], given["out"]) == (
        "niqe", None, None, Path("x.safetensors"),
    )  # fmt: skip
    ran = saqm("fit", "niqe", "--import", "mat.mat", "--out", "x.safetensors", "--json")
    assert json.loads(ran.out)["pictures"] == 2
    assert given["import_file"] == Path("mat.mat")
    assert given["pristine"] is None


def test_fitting_imports_without_the_extra(saqm: Saqm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torch", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    ran = saqm("fit", "niqe", "--import", tmp_path / "nowhere.mat", "--out", tmp_path / "x.safetensors")
    assert ran.code == 2
    assert "nowhere.mat: cannot be read" in ran.err
