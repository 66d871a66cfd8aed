"""The shipped model: what it promises, on the reader study's slices and on real DICOM.

The model was trained on these scenes, so nothing here measures its accuracy; that is the out-of-fold table's office.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

import saqm
from saqm.datasets import ct_reader_study
from saqm.degradations import DEGRADATIONS, LADDERS
from saqm.evaluate import evaluate, srocc
from saqm.image import Image, from_array, read_image
from saqm.modelfile import DEFAULT_MODEL, MODELS, open_model, out_of_fold_path, read_card, read_header
from saqm.outputs.predictions import read_predictions
from saqm.patches import luminance
from saqm.scorer import Scorer, load_scorer, score_and_map, withheld

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
LARGEST = 8_000_000  # bytes: small enough to live in the package


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return load_scorer()


@pytest.fixture(scope="module")
def normal_dose(ct_study: Path) -> list[Image]:
    return [read_image(row.path) for row in ct_reader_study(ct_study).rows if row.reference]


def degraded(image: Image, kind: str, strength: float, seed: int) -> Image:
    picture = DEGRADATIONS[kind](luminance(image), strength, np.random.default_rng(seed))
    return from_array(picture, value_range=(0, 255), mask=image.mask)


@pytest.mark.slow
def test_score_falls_along_the_noise_ladder(scorer: Scorer, normal_dose: list[Image]) -> None:
    falls = []
    for number, image in enumerate(normal_dose):
        rungs = [image, *(degraded(image, "noise", s, seed=1000 + number) for s in LADDERS["noise"])]
        scores = [scorer.rate(rung).score for rung in rungs]
        falls.append(srocc(np.arange(len(scores)), scores) <= -0.9)
    assert np.mean(falls) >= 0.95


@pytest.mark.slow
def test_heavy_blur_scores_below_none(scorer: Scorer, normal_dose: list[Image]) -> None:
    lower = [
        (scorer.rate(degraded(image, "blur", LADDERS["blur"][-1], seed=0)).score or 0) < (scorer.rate(image).score or 0)
        for image in normal_dose
    ]
    assert np.mean(lower) >= 0.95


@pytest.mark.slow
def test_normal_dose_beats_low_dose(scorer: Scorer, ct_study: Path) -> None:
    by_scene: dict[str, dict[str, float]] = {}
    for row in ct_reader_study(ct_study).rows:
        if row.raters == 0:
            by_scene.setdefault(row.scene, {})[str(row.method)] = scorer.rate(read_image(row.path)).score or 0.0
    assert np.mean([found["NDCT"] > found["LDCT"] for found in by_scene.values()]) >= 0.95


def test_air_around_the_anatomy_does_not_count(scorer: Scorer, normal_dose: list[Image]) -> None:
    """More black border, moved by whole windows so that the grid stays where it was: the same score."""
    image = normal_dose[0]
    wider = np.pad(image.pixels, 64)
    padded = from_array(wider, value_range=(0, 1), mask=np.pad(image.mask, 64))
    assert scorer.rate(padded).score == pytest.approx(scorer.rate(image).score, abs=0.05)


def test_bit_depth_does_not_count(scorer: Scorer, normal_dose: list[Image]) -> None:
    grey = np.rint(luminance(normal_dose[0])).astype(np.uint8)
    eight, sixteen = from_array(grey), from_array(grey.astype(np.uint16) * 257)
    assert scorer.rate(eight).score == pytest.approx(scorer.rate(sixteen).score, abs=1e-3)


def test_same_image_same_bits(scorer: Scorer, normal_dose: list[Image]) -> None:
    first, second = (saqm.score(normal_dose[3], scorer).score_raw for _ in range(2))
    assert first == second


def test_other_modality_is_warned_of(scorer: Scorer) -> None:
    from pydicom.data import get_testdata_file

    result = scorer.rate(read_image(str(get_testdata_file("examples_overlay.dcm", download=False))))
    assert result.score is not None
    assert any("outside the model's domain: modality MR (trained on CT)" in warning for warning in result.warnings)


# How far it can be trusted: the numbers are measured by `make evidence`; here, that the shipped file keeps them


def flagged(scorer: Scorer, images: Iterable[Image]) -> float:
    return float(np.mean([scorer.rate(image).out_of_domain["flag"] for image in images]))  # type: ignore[index]


def test_intervals_promise_nine_of_ten_and_were_measured_to_hold_it() -> None:
    conformal = read_header(open_model(DEFAULT_MODEL)).calibration.interval
    assert conformal.coverage == 0.9
    assert set(conformal.found) == {"ct-abdomen", "ct-brain"} == set(conformal.by_group)
    assert all(0.85 <= share <= 0.95 for share in conformal.found.values())
    measured = json.loads((RESULTS / "evidence.json").read_text())["coverage"]
    assert {one["domain"]: one["inside"] for one in measured if one["domain"] != "all"} == pytest.approx(
        conformal.found
    )


def test_its_own_kind_of_image_has_an_interval_and_a_promise(scorer: Scorer, normal_dose: list[Image]) -> None:
    for image in normal_dose[::5]:
        found = scorer.rate(image)
        low, high = found.interval
        assert low < found.score < high
        assert found.coverage == 0.9
        assert not found.out_of_domain["flag"]


@pytest.mark.slow
def test_what_it_was_not_made_for_is_flagged(scorer: Scorer, shared: Path, normal_dose: list[Image]) -> None:
    photographs = sorted((shared / "data" / "kodak24").glob("*.png"))[::2]
    ultrasound = sorted((shared / "data" / "abdominal_ultrasound" / "images").iterdir())[::20]
    for paths in (photographs, ultrasound):
        assert flagged(scorer, map(read_image, paths)) >= 0.95
    for change in (lambda grey: 255 - grey, lambda grey: np.clip(grey - 120, 0, 255)):
        spoilt = (
            from_array(change(luminance(image)), value_range=(0, 255), mask=image.mask) for image in normal_dose[::2]
        )
        assert flagged(scorer, spoilt) >= 0.95


def test_a_flagged_image_keeps_its_score_and_loses_the_promise(scorer: Scorer) -> None:
    found = scorer.rate(read_image(str(get_testdata_file("MR_small.dcm", download=False))))
    assert found.out_of_domain["flag"]
    assert found.score is not None
    assert found.interval is not None
    assert found.coverage is None
    assert any("the interval is not guaranteed" in warning for warning in found.warnings)
    taken_back = withheld(found)
    assert (taken_back.status, taken_back.score) == ("not_scored", None)
    assert "withheld" in taken_back.reasons[0]


def test_the_map_of_a_calibrated_model_still_adds_up_to_its_score(scorer: Scorer, normal_dose: list[Image]) -> None:
    found, quality = score_and_map(normal_dose[3], scorer)
    assert quality.mean == pytest.approx(found.score, abs=1e-3)


def test_files_are_small_and_say_what_they_are() -> None:
    for form in ("onnx", "safetensors"):
        path = open_model(DEFAULT_MODEL, form)  # type: ignore[arg-type]
        header = read_header(path)
        assert path.stat().st_size <= LARGEST
        assert header.name == DEFAULT_MODEL
        assert header.domain.modalities == ("CT",)
        assert header.training.images_sha256
    assert "not a medical device" in read_card(DEFAULT_MODEL).lower()


def test_files_hold_no_path_of_the_machine_that_made_them() -> None:
    for form in ("onnx", "safetensors"):
        data = open_model(DEFAULT_MODEL, form).read_bytes()  # type: ignore[arg-type]
        assert b".py" not in data
        assert b"/site-packages/" not in data


@pytest.mark.slow
def test_8_bit_integers_score_as_32_bits_do(normal_dose: list[Image]) -> None:
    """On average within half a point of 100, as the card says; the torch engine has 32 bits."""
    torch_scorer, served = load_scorer(engine="torch"), load_scorer(engine="onnx")
    assert served.model["engine"] in ("onnx-int8", "onnx")  # the latter where this machine cannot run them
    full, eight = (np.array([s.rate(image).score for image in normal_dose]) for s in (torch_scorer, served))
    assert np.abs(full - eight).mean() <= 0.5
    assert np.abs(full - eight).max() <= 1.5


def test_out_of_fold_table_covers_every_training_image() -> None:
    path = MODELS / f"{DEFAULT_MODEL}.onnx"
    table = read_predictions(out_of_fold_path(path))
    assert {line.sha256 for line in table} == set(read_header(path).training.images_sha256)
    assert all(line.prediction is not None for line in table)


@pytest.mark.slow
def test_evaluate_prints_the_table_that_the_card_quotes(scorer: Scorer, ct_study: Path) -> None:
    """On the study at hand; a study with further scenes adds rows that the card cannot know."""
    manifest = ct_reader_study(ct_study)
    table = read_predictions(out_of_fold_path(MODELS / f"{DEFAULT_MODEL}.onnx"))
    known = {line.path for line in table}
    if {row.path.name for row in manifest.rows} != known:
        manifest = saqm.Manifest(tuple(row for row in manifest.rows if row.path.name in known), manifest.scale)
    evaluation = evaluate(scorer, manifest, seed=0)
    recorded = json.loads((RESULTS / "default.json").read_text(encoding="utf-8"))["scenes"]["results"]
    card = read_card(DEFAULT_MODEL)
    for entry in recorded:
        if entry["name"] == "prediction":
            found = evaluation.result(entry["domain"])
            assert found.srocc == pytest.approx(entry["srocc"], abs=1e-9)
            assert f"{found.srocc:.3f}" in card
