"""`saqm calibrate`: one's own readers change scores, intervals and what is known, and nothing of the weights."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saqm.cli import main
from saqm.errors import SaqmError
from saqm.image import read_image
from saqm.manifest import Manifest, read_manifest
from saqm.modelfile import read_header, read_model
from saqm.recalibrate import KNOWN_FROM, recalibrate, save_recalibrated
from saqm.scorer import ModelScorer, load_scorer, score


def write_study(folder: Path, images: int, *, seed: int = 0, domain: str = "ours", flat: bool = False) -> Path:
    """Pictures whose brightness is quality, and readers who see its square."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = ["path,score,scene,domain,raters"]
    for number in range(images):
        level = rng.uniform(60, 200)
        pixels = level + 8 * rng.standard_normal((64, 64))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        opinion = 50.0 if flat else float(np.clip(100 * (level / 255) ** 2 + 4 * rng.standard_normal(), 0, 100))
        lines.append(f"{number}.png,{opinion:.2f},scene{number // 4},{domain},3")
    (folder / "mine.csv").write_text("\n".join(lines) + "\n")
    (folder / "mine.json").write_text(json.dumps({"scale": [0, 100], "higher_is_better": True}))
    return folder / "mine.csv"


@pytest.fixture
def toy(toy_model: Path) -> ModelScorer:
    return load_scorer(toy_model)


@pytest.fixture
def study(tmp_path: Path) -> Manifest:
    return read_manifest(write_study(tmp_path / "study", 48))


def test_scores_move_to_the_readers_and_the_weights_stay(toy: ModelScorer, study: Manifest, tmp_path: Path) -> None:
    found = recalibrate(toy, study)
    assert (found.images, found.scenes) == (48, 12)
    assert found.after < 0.6 * found.before
    assert found.srocc is not None
    assert found.srocc > 0.9
    assert 0.75 <= found.covered["all"] <= 1
    written = save_recalibrated(found, toy.engine.path, tmp_path / "ours.onnx")
    assert written.weights_sha256 == toy.header.weights_sha256
    assert written.name == "ours"
    assert "48 images of 12 scenes" in written.card

    ours = load_scorer(tmp_path / "ours.onnx")
    image = read_image(study.rows[5].path)
    before, after = score(image, toy), score(image, ours)
    assert after.score_raw == before.score_raw
    assert abs(after.score - study.rows[5].score) < abs(before.score - study.rows[5].score)
    low, high = after.interval
    assert low < after.score < high
    assert after.coverage == 0.9
    assert after.out_of_domain is None  # the toy knows no images


def test_the_report_is_of_scenes_kept_out(toy: ModelScorer, study: Manifest) -> None:
    found = recalibrate(toy, study)
    text = found.to_text()
    assert "on scenes kept out" in text
    assert "90 % intervals hold all" in text
    assert json.loads(json.dumps(found.to_dict()))["interval"]["images"] == 48


def test_the_gate_is_chosen_from_the_same_readers(toy: ModelScorer, tmp_path: Path) -> None:
    manifest = read_manifest(write_study(tmp_path / "many", 160))
    found = recalibrate(toy, manifest, bad_below=25, miss_at_most=0.1)
    chosen = found.header.calibration.gate
    assert 20 < chosen.pass_at < 60
    assert "at most 10% of them pass" in chosen.promise
    assert f"gate: pass at {chosen.pass_at:g}" in found.to_text()
    assert recalibrate(toy, manifest).header.calibration.gate is None
    with pytest.raises(SaqmError, match=r"no (image|bad)|none of"):
        recalibrate(toy, manifest, bad_below=0)


@pytest.mark.parametrize(
    ("images", "flat", "message"),
    [
        (12, False, r"12 usable scored images \(0 left out\); a calibration needs at least 20, better 50"),
        (24, True, r"all 24 opinion scores are equal \(50\): nothing can be fitted"),
    ],
)
def test_too_little_to_go_by_is_refused(
    toy: ModelScorer, tmp_path: Path, images: int, flat: bool, message: str
) -> None:
    with pytest.raises(SaqmError, match=message):
        recalibrate(toy, read_manifest(write_study(tmp_path / "few", images, flat=flat)))


def test_readers_who_disagree_are_not_fitted(toy: ModelScorer, study: Manifest) -> None:
    rng = np.random.default_rng(0)

    def judged_with(noise: float) -> Manifest:
        rows = [
            dataclasses.replace(row, rater_scores=tuple(np.clip(row.score + noise * rng.standard_normal(3), 0, 100)))
            for row in study.rows
        ]
        return dataclasses.replace(study, rows=tuple(rows))

    assert not any("agree" in remark for remark in recalibrate(toy, judged_with(3)).remarks)
    random = dataclasses.replace(
        study, rows=tuple(dataclasses.replace(r, rater_scores=tuple(rng.uniform(0, 100, 3))) for r in study.rows)
    )
    with pytest.raises(SaqmError, match=r"3 readers disagree so much that their mean cannot be fitted: ICC\(2,3\)"):
        recalibrate(toy, random)


def test_few_images_and_scenes_are_remarked_on(toy: ModelScorer, tmp_path: Path) -> None:
    found = recalibrate(toy, read_manifest(write_study(tmp_path / "few", 24)))
    assert any("6 scenes are few" in remark for remark in found.remarks)
    assert any("24 images are few" in remark for remark in found.remarks)


def test_a_broken_image_is_left_out_with_its_reason(toy: ModelScorer, study: Manifest) -> None:
    study.rows[3].path.write_bytes(b"")
    found = recalibrate(toy, study)
    assert found.images == 47
    ((path, reason),) = found.failures
    assert path.endswith("3.png")
    assert "empty file" in reason


def test_images_that_were_trained_on_are_no_use(toy_model: Path, study: Manifest) -> None:
    from saqm.image import sha256_of
    from saqm.modelfile import write_onnx

    header = read_header(toy_model)
    known = tuple(sha256_of(row.path) for row in study.rows)
    training = header.training.model_copy(update={"images_sha256": known})
    write_onnx(read_model(toy_model).data, header.model_copy(update={"training": training}), toy_model)
    with pytest.raises(SaqmError, match=r"48 left out.*the model was trained on this image"):
        recalibrate(load_scorer(toy_model), study)


def test_ones_own_kind_of_image_becomes_known(toy: ModelScorer, study: Manifest, tmp_path: Path) -> None:
    """A model that knows dark pictures alone flags bright ones, until enough of them were scored."""
    from saqm.calibration import distance, fit_familiar
    from saqm.modelfile import Calibration, ScoreMap

    dark = [toy.observe(read_image(row.path)) for row in study.rows]
    familiar = {}
    for view in ("picture", "features"):
        numbers = np.array([one.views[view] for one in dark])
        rough = fit_familiar(numbers, ["dark"] * 48, view, {})
        away = [distance(rough, one)["dark"] for one in numbers]
        familiar[view] = fit_familiar(numbers, ["dark"] * 48, view, {"dark": away})
    known = Calibration(score=ScoreMap(raw=(1, 5), score=(0, 100)), familiar=familiar, fitted_on={})
    found = recalibrate(toy, study)
    start = found.header.model_copy(update={"calibration": known})
    from saqm.modelfile import write_onnx

    write_onnx(read_model(toy.engine.path).data, start, tmp_path / "dark.onnx")
    knows_dark = load_scorer(tmp_path / "dark.onnx")

    folder = tmp_path / "bright"
    manifest = read_manifest(write_study(folder, KNOWN_FROM + 12, seed=5))
    for row in manifest.rows:  # stripes: another kind of picture
        pixels = np.asarray(Image.open(row.path)).astype(int)
        pixels[::2] = np.clip(pixels[::2] + 55, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(row.path)
    image = read_image(manifest.rows[0].path)
    flagged = score(image, knows_dark)
    assert flagged.out_of_domain["flag"]
    assert flagged.coverage is None
    assert any("the interval is not guaranteed" in warning for warning in flagged.warnings)

    ours = recalibrate(knows_dark, manifest)
    assert ours.flagged > 0.9
    save_recalibrated(ours, tmp_path / "dark.onnx", tmp_path / "ours.onnx")
    now = [score(read_image(row.path), load_scorer(tmp_path / "ours.onnx")) for row in manifest.rows[:20]]
    assert np.mean([one.out_of_domain["flag"] for one in now]) <= 0.15
    assert sum(one.coverage == 0.9 for one in now) >= 17

    few = read_manifest(write_study(tmp_path / "few", 24, seed=9))
    for row in few.rows:
        pixels = np.asarray(Image.open(row.path)).astype(int)
        pixels[::2] = np.clip(pixels[::2] + 55, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(row.path)
    assert any("too few to be made known" in remark for remark in recalibrate(knows_dark, few).remarks)


def test_the_command_writes_a_model_and_refuses_metrics(
    toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = write_study(tmp_path / "study", 48), tmp_path / "ours.onnx"

    def saqm(model: str | Path, out: Path) -> tuple[int, str, str]:
        monkeypatch.setattr(
            "sys.argv", ["saqm", "calibrate", *map(str, ("--model", model, "--manifest", manifest, "--out", out))]
        )
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    code, told, _ = saqm(toy_model, out)
    assert code == 0
    assert "RMSE" in told
    assert read_header(out).calibration is not None
    assert saqm("biqaa", out)[0] == 2
    monkeypatch.setattr("sys.argv", ["saqm", "gate", str(tmp_path / "study"), "--model", str(out)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "carries no cut-off of its own" in re.sub(r"[\s│]+", " ", capsys.readouterr().err)
    code, _, told = saqm(toy_model, tmp_path / "ours.safetensors")
    assert code == 2
    assert "ours.safetensors" in told or "toy" in told
