"""The hinge: what a score says, that it is the same twice, and that the map adds up to it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.metrics import reference

import saqm
from saqm import modelfile
from saqm.errors import ModelFileError, NotScorable, SaqmError
from saqm.image import Image, Source, Step, from_array, read_image
from saqm.metrics import METRICS, parameters
from saqm.metrics.niqe import niqe
from saqm.metrics.parameters import Parameters, Provenance, import_official, load_parameters, save_parameters
from saqm.modelfile import ModelHeader, ScoreScale, write_onnx
from saqm.scorer import (
    MetricScorer,
    ModelScorer,
    Score,
    file_sha256,
    load_scorer,
    not_scored,
    quality_map,
    score,
    scorer_names,
    shipped_files,
    to_percent,
)

STEPS = (
    Step("rescale", {"slope": 1.0, "intercept": np.float64(-1024)}),
    Step("window", {"center": 40.0, "width": 400.0, "from": "file"}),
    Step("mask", {"mode": "auto", "air": 0.4}),
)


def slice_of(pixels: np.ndarray, mask: np.ndarray | None = None, modality: str | None = "CT") -> Image:
    pixels = np.asarray(pixels, np.float32)
    mask = np.ones(pixels.shape[:2], bool) if mask is None else mask
    source = Source("study/scan.dcm", "a" * 64, "dicom", frame=3, frames=9, uids={"study": "1.2"}, steps=STEPS)
    return Image(pixels, mask, (0.7, 0.7), modality, source)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


@pytest.fixture
def scorer(toy_model: Path) -> ModelScorer:
    return load_scorer(toy_model)


@pytest.fixture
def scorer_with(toy_model: Path, toy_onnx: Callable[..., bytes], header: ModelHeader) -> Callable[..., ModelScorer]:
    """Makes the toy's scorer with another graph or other words in its header."""

    def make(graph: dict[str, str] | None = None, **changed: object) -> ModelScorer:
        write_onnx(toy_onnx(**graph or {}), header.model_copy(update=changed), toy_model)
        return load_scorer(toy_model)

    return make


def test_a_score_is_0_to_100_and_knows_its_raw_value(scorer: ModelScorer):
    image = slice_of(noise(64, 96))
    result = score(image, scorer)
    assert result.status == "scored"
    assert result.score == pytest.approx(100 * image.pixels.mean(), abs=1e-3)
    assert result.score_raw == pytest.approx(1 + 4 * image.pixels.mean(), abs=1e-5)


def test_same_image_same_model_same_bits(toy_model: Path):
    image = slice_of(noise(333, 257))
    first, again, elsewhere = (score(image, load_scorer(toy_model, threads=threads)) for threads in (1, 1, 2))
    assert first == again == elsewhere


def test_the_record_says_how_it_was_made(scorer: ModelScorer):
    record = score(slice_of(noise(64, 80)), scorer).to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["path"] == "study/scan.dcm"
    assert record["sha256"] == "a" * 64
    assert (record["frame"], record["modality"], record["uids"]) == (3, "CT", {"study": "1.2"})
    assert record["model"] == {"name": "toy", "version": "0.1", "sha256": scorer.engine.sha256, "engine": "onnx"}
    assert record["patches"] == {"used": 6, "masked": 0}
    assert record["software"] == f"saqm {saqm.__version__}"
    preparation = record["preparation"]
    assert isinstance(preparation, dict)
    assert (preparation["channels"], preparation["patch"], preparation["stride"]) == ("gray", 32, 32)
    assert preparation["window"] == {"step": "window", "center": 40.0, "width": 400.0, "from": "file"}
    assert preparation["mask"] == {"step": "mask", "mode": "auto", "air": 0.4}
    assert preparation["judged_share"] == 1
    assert [step["step"] for step in preparation["steps"]] == ["rescale", "window", "mask"]


def test_every_record_has_the_keys_of_the_contract_in_its_order(scorer: ModelScorer):
    identity = ["path", "sha256", "frame", "modality", "uids"]
    found = ["status", "score", "score_raw", "interval", "coverage", "out_of_domain", "verdict", "reasons", "findings"]
    made = ["model", "preparation", "patches", "warnings", "software", "created"]
    keys = identity + found + made
    assert list(score(slice_of(noise(64, 64)), scorer).to_record()) == keys
    assert list(not_scored("a.dcm", "broken").to_record()) == keys


def test_the_library_reads_no_clock(scorer: ModelScorer):
    result = score(slice_of(noise(64, 64)), scorer)
    assert result.created is None
    stamped = dataclasses.replace(result, created="2026-01-01T00:00:00Z")
    assert stamped.to_record()["created"] == "2026-01-01T00:00:00Z"


def test_what_is_not_a_finite_number_is_null_in_the_record():
    odd = Score(
        path="a", status="not_scored", preparation={"mean": np.array([1, np.nan]), "at": Path("b"), "n": np.int8(2)}
    )
    assert odd.to_record()["preparation"] == {"mean": [1.0, None], "at": "b", "n": 2}


def test_where_lower_is_better_the_score_is_turned_round(scorer_with: Callable[..., ModelScorer]):
    image = slice_of(noise(64, 64))
    noise_level = ScoreScale(low=1, high=5, higher_is_better=False, meaning="noise")
    result = score(image, scorer_with(score_scale=noise_level))
    assert result.score == pytest.approx(100 - 100 * image.pixels.mean(), abs=1e-3)
    assert result.score_raw == pytest.approx(1 + 4 * image.pixels.mean(), abs=1e-5)


@pytest.mark.parametrize("better", [True, False])
def test_the_ends_of_the_scale_are_0_and_100(better: bool):
    scale = ScoreScale(low=-2, high=6, higher_is_better=better, meaning="")
    percent = to_percent(np.array([-2, 0, 6]), scale)
    np.testing.assert_allclose(percent, [0, 25, 100] if better else [100, 75, 0])


def test_a_score_off_the_scale_is_clipped_and_says_so(scorer_with: Callable[..., ModelScorer]):
    narrow = ScoreScale(low=1, high=2, higher_is_better=True, meaning="")
    result = score(slice_of(0.8 + 0.1 * noise(64, 64)), scorer_with(score_scale=narrow))
    assert result.score == 100
    assert result.score_raw > 4
    (warning,) = result.warnings
    assert re.search(r"is off the model's scale: 3\d\d\.\d clipped to 100$", warning)


@pytest.mark.parametrize(
    ("modality", "warnings"),
    [
        ("CT", ()),
        ("US", ("outside the model's domain: modality US (trained on CT)",)),
        (None, ("modality unknown: the model was trained on CT",)),
    ],
)
def test_another_modality_is_warned_of(scorer: ModelScorer, modality: str | None, warnings: tuple[str, ...]):
    assert score(slice_of(noise(64, 64), modality=modality), scorer).warnings == warnings


def test_a_picture_that_was_trained_on_is_warned_of(scorer_with: Callable[..., ModelScorer], header: ModelHeader):
    training = header.training.model_copy(update={"images_sha256": ("b" * 64, "a" * 64)})
    assert score(slice_of(noise(64, 64)), scorer_with(training=training)).warnings == (
        "the model was trained on this very picture: its score is no test of the model",
    )


def test_the_readers_warnings_go_into_the_score(scorer: ModelScorer):
    image = slice_of(noise(64, 64))
    image = dataclasses.replace(image, source=dataclasses.replace(image.source, warnings=("odd tag",)))
    assert score(image, scorer).warnings == ("odd tag",)


def test_only_what_is_judged_counts(scorer: ModelScorer):
    pixels, mask = noise(128, 128), np.zeros((128, 128), bool)
    mask[32:96, 32:96] = True
    result = score(slice_of(pixels, mask), scorer)
    assert result.score == pytest.approx(100 * pixels[mask].mean(), abs=1e-3)
    assert result.patches == {"used": 4, "masked": 12}
    pixels[~mask] = 0
    assert score(slice_of(pixels, mask), scorer).score == result.score  # bit for bit


def test_heavier_windows_count_more(scorer_with: Callable[..., ModelScorer]):
    pixels = np.repeat([[0.2], [0.8]], 32, 0) + np.zeros((64, 32))
    image = slice_of(pixels)
    assert score(image, scorer_with()).score == pytest.approx(50, abs=1e-3)
    weighted = score(image, scorer_with({"weight": "Identity(mean_N)"}))
    assert weighted.score == pytest.approx(100 * (0.2 * 0.2 + 0.8 * 0.8), abs=1e-3)


@pytest.mark.parametrize(
    ("pixels", "mask", "reason"),
    [
        (noise(20, 64), None, "smaller than one 32x32 window"),
        (np.full((64, 64), 0.5), None, "constant image"),
        (noise(64, 64), np.zeros((64, 64), bool), "the mask is empty"),
        (np.where(noise(64, 64) > 0.99, np.nan, 0.5), None, "not finite"),
    ],
)
def test_what_cannot_be_judged_raises_and_has_no_number(
    scorer: ModelScorer, pixels: np.ndarray, mask: np.ndarray | None, reason: str
):
    with pytest.raises(NotScorable, match=reason):
        score(slice_of(pixels, mask), scorer)
    with pytest.raises(NotScorable, match=reason):
        quality_map(slice_of(pixels, mask), scorer)


@pytest.mark.parametrize("graph", [{"score": "Div(zeros, zeros)"}, {"weight": "Identity(zeros)"}])
def test_a_broken_model_gives_an_error_and_no_number(scorer_with: Callable[..., ModelScorer], graph: dict[str, str]):
    with pytest.raises(ModelFileError, match=r"model toy 0\.1 is broken"):
        score(slice_of(noise(64, 64)), scorer_with(graph))


def test_a_scorer_without_windows_has_no_map():
    class Brightness:
        name = "brightness"

        def rate(self, image: Image, stride: int | None = None) -> Score:
            assert stride is None
            return Score(path=image.source.path, status="scored", score_raw=float(image.pixels.mean()))

    image = slice_of(noise(64, 64))
    assert score(image, Brightness()).score_raw == image.pixels.mean()
    with pytest.raises(SaqmError, match="brightness judges the picture as a whole: it has no quality map"):
        quality_map(image, Brightness())


def test_what_could_not_be_scored_has_a_reason_and_no_score():
    bare = not_scored("a.dcm", "a.dcm: empty file", frame=2)
    assert (bare.status, bare.score, bare.score_raw) == ("not_scored", None, None)
    assert (bare.path, bare.frame, bare.reasons) == ("a.dcm", 2, ("a.dcm: empty file",))
    read = not_scored("a.dcm", "constant image", slice_of(noise(9, 9)))
    assert (read.sha256, read.frame, read.modality, read.uids) == ("a" * 64, 3, "CT", {"study": "1.2"})


def test_a_scorer_is_found_by_name(toy_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(modelfile, "MODELS", toy_model.parent)
    assert load_scorer("toy").name == load_scorer(toy_model).name == "toy"
    with pytest.raises(ModelFileError, match=r"no model 'saqm-us': shipped are toy"):
        load_scorer("saqm-us")
    with pytest.raises(ModelFileError, match=r"no model 'saqm-ct'"):  # the default is asked for by its name
        load_scorer()
    with pytest.raises(ModelFileError, match=r"toy\.safetensors: no such file"):
        load_scorer("toy", engine="torch")


def test_the_header_says_how_windows_are_cut(scorer: ModelScorer):
    preparation = scorer.engine.preparation
    assert (preparation.channels, preparation.stride, preparation.mean) == ("gray", 32, (0, 0, 0))


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.integers(32, 90), st.integers(32, 90))
def test_a_score_is_always_on_the_scale(scorer: ModelScorer, seed: int, height: int, width: int):
    result = score(slice_of(noise(height, width, seed=seed)), scorer)
    assert 0 <= result.score <= 100


# The metrics


def grey(*shape: int, seed: int = 0) -> np.ndarray:
    """Noise around grey, 8 bit."""
    return np.random.default_rng(seed).integers(60, 200, shape, np.uint8)


@pytest.fixture
def shipped_sets(tmp_path: Path, niqe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped parameters: niqe-natural and niqe-ct."""
    folder, made = tmp_path / "shipped", load_parameters(niqe_file)
    folder.mkdir()
    for name, mean in (("niqe-natural", 0.0), ("niqe-ct", 1.0)):
        arrays = {**made.arrays, "mean": np.full(36, mean)}
        save_parameters(dataclasses.replace(made, name=name, arrays=arrays), folder / f"{name}.safetensors")
    monkeypatch.setattr(parameters, "SHIPPED", folder)
    return folder


def test_a_metric_keeps_its_own_scale_and_says_which_direction_is_better(niqe_file: Path) -> None:
    pixels = grey(200, 210)
    result = score(from_array(pixels), load_scorer(f"niqe:{niqe_file}"))
    assert (result.status, result.score) == ("scored", None)
    assert result.score_raw == niqe(pixels, load_parameters(niqe_file))  # bit for bit
    assert result.model == {
        "name": "niqe:niqe-toy",
        "version": "0.1",
        "sha256": file_sha256(f"niqe:{niqe_file}"),
        "engine": "numpy",
        "direction": "lower is better",
        "definition": "exact",
    }
    free = score(from_array(pixels), load_scorer("biqaa"))
    assert free.model == {
        "name": "biqaa",
        "version": saqm.__version__,
        "engine": "numpy",
        "direction": "higher is better",
        "definition": "exact",
    }


def test_a_metrics_record_says_how_it_was_made(niqe_file: Path) -> None:
    record = score(slice_of(noise(200, 210)), load_scorer(f"niqe:{niqe_file}")).to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert list(record) == list(not_scored("a.dcm", "broken").to_record())
    preparation = record["preparation"]
    assert isinstance(preparation, dict)
    assert preparation["window"] == {"step": "window", "center": 40.0, "width": 400.0, "from": "file"}
    assert preparation["mask"]["mode"] == "auto"
    assert [step["step"] for step in preparation["steps"]] == ["rescale", "window", "mask"]
    assert (preparation["judged_share"], preparation["parameters"], preparation["options"]) == (1, "niqe-toy", {})
    assert preparation["flat_fraction"] == 0
    (blur,) = (score(slice_of(noise(64, 64)), load_scorer("marziliano")).preparation or {},)
    assert (blur["snap"], blur["flat_fraction"], blur["parameters"], blur["options"]) == (
        None, None, None, {"rule": "strict"},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["camera", "chelsea_rgb", "china_rgb", "moon"])
@pytest.mark.parametrize(
    ("metric", "row", "implementation"),
    [
        ("niqe", "NIQE", "utlive/niqe@d80aead297 (Octave 7.3)"),
        ("brisque", "BRISQUE", "LIVE release features"),
        ("bliinds", "BLIINDS-II", "NumPy cross-check"),
        ("biqaa", "BIQAA", "dsoellinger/"),
    ],
)
def test_a_file_gets_the_score_that_the_authors_program_gives(
    tmp_path: Path, name: str, metric: str, row: str, implementation: str
) -> None:
    """From the file through the reader to the record: no grey level is lost on the way."""
    asked = metric
    if metric != "biqaa":
        save_parameters(import_official(reference.official(metric)), tmp_path / "own.safetensors")
        asked = f"{metric}:{tmp_path / 'own.safetensors'}"
    picture = read_image(reference.folder("metric_reference", "images", f"{name}.png"), mask="none")
    found = score(picture, load_scorer(asked))
    expected = reference.score(name, row, implementation)
    tolerance = reference.tolerance(name).unsnapped(metric, expected) if metric in ("niqe", "brisque") else 0
    assert found.score_raw == pytest.approx(expected, rel=1e-7, abs=tolerance)
    assert not [warning for warning in found.warnings if "authors'" in warning]  # these are the authors' own


def test_medical_and_masked_pictures_are_snapped_and_photographs_are_as_released(niqe_file: Path) -> None:
    pixels = grey(200, 210)
    pixels[:100, :60] = 0  # flat, so that snapping shows
    mask = np.ones(pixels.shape, bool)
    mask[:30] = False
    scorer, made = load_scorer(f"niqe:{niqe_file}"), load_parameters(niqe_file)
    plain = score(from_array(pixels), scorer)
    medical = score(from_array(pixels, modality="US"), scorer)
    masked = score(from_array(pixels, mask=mask), scorer)
    for result, snap, expected in (
        (plain, False, niqe(pixels, made)),
        (medical, True, niqe(pixels, made, snap=True)),
        (masked, True, niqe(pixels, made, mask=mask, snap=True)),
    ):
        assert result.preparation is not None
        assert result.preparation["snap"] is snap
        assert result.score_raw == expected
    assert plain.score_raw != medical.score_raw != masked.score_raw


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.parameters is None])
def test_what_the_mask_leaves_out_does_not_count(name: str) -> None:
    pixels, mask = grey(96, 96), np.zeros((96, 96), bool)
    mask[10:80, 20:90] = True
    first = score(from_array(pixels, mask=mask), load_scorer(name))
    pixels[~mask] = 255
    assert score(from_array(pixels, mask=mask), load_scorer(name)).score_raw == first.score_raw


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("pixels", "mask", "reason"),
    [
        (np.full((200, 200), 0.5), None, r"constant image: every judged pixel is 127\.5"),
        (np.full((200, 200), 100 / 255) + 1e-6 * noise(200, 200), None, "constant image"),  # below any grey level
        (noise(200, 200), np.zeros((200, 200), bool), "the mask is empty"),
        (noise(12, 200), None, r"12x200 pixels to judge; it needs at least"),
    ],
    ids=["constant", "nearly", "masked", "small"],
)
def test_what_cannot_be_judged_is_refused_by_all_metrics_alike(
    name: str, pixels: np.ndarray, mask: np.ndarray | None, reason: str, niqe_file: Path
) -> None:
    scorer = load_scorer(f"{name}:{niqe_file}" if METRICS[name].parameters == "niqe" else name)
    with pytest.raises(NotScorable, match=reason):
        score(slice_of(pixels, mask), scorer)


def test_flat_pictures_reconstructions_and_own_parameters_are_warned_of(niqe_file: Path) -> None:
    pixels = grey(200, 210)
    pixels[:80] = 90
    found = score(from_array(pixels), load_scorer(f"niqe-k:{niqe_file}"))
    flat, reconstruction, own = found.warnings
    assert found.preparation is not None
    assert found.preparation["flat_fraction"] == pytest.approx(77 / 200, abs=0.01)  # the window reaches 3 pixels
    assert flat.startswith("38% of what is judged is flat: NIQE-K is made for textured pictures")
    assert reconstruction == "NIQE-K is a reconstruction, not its authors' code"
    assert own == "parameters niqe-toy are not the authors' own"
    assert score(from_array(grey(64, 64)), load_scorer("biqaa")).warnings == ()


def test_a_picture_that_parameters_were_fitted_on_is_warned_of(tmp_path: Path, niqe_file: Path) -> None:
    fitted = dataclasses.replace(load_parameters(niqe_file), provenance=Provenance(images_sha256=("a" * 64,)))
    save_parameters(fitted, tmp_path / "fitted.safetensors")
    found = score(slice_of(noise(200, 210)), load_scorer(f"niqe:{tmp_path / 'fitted.safetensors'}"))
    assert found.warnings[-1] == ("the parameters were fitted on this very picture: its value is no test of the metric")


def test_a_number_that_is_none_is_an_error_and_no_score() -> None:
    broken = dataclasses.replace(METRICS["biqaa"], function=lambda *_, **__: float("nan"))
    with pytest.raises(SaqmError, match="biqaa gave nan where it should have refused"):
        score(from_array(grey(64, 64)), MetricScorer(broken, None, "biqaa"))


def test_a_metric_has_no_map_and_no_stride() -> None:
    image = from_array(grey(64, 64))
    with pytest.raises(SaqmError, match="biqaa judges the picture as a whole: it has no quality map"):
        quality_map(image, load_scorer("biqaa"))
    with pytest.raises(SaqmError, match="biqaa judges the picture as a whole: it has no windows"):
        score(image, load_scorer("biqaa"), stride=8)


@pytest.mark.usefixtures("shipped_sets")
def test_parameters_are_found_by_name_by_short_name_and_by_file(niqe_file: Path) -> None:
    def found(name: str) -> tuple[str, str | None]:
        scorer = load_scorer(name)
        assert isinstance(scorer, MetricScorer)
        return scorer.name, None if scorer.parameters is None else scorer.parameters.name

    assert found("niqe") == found("niqe:natural") == found("niqe:niqe-natural") == ("niqe", "niqe-natural")
    assert found("niqe:ct") == found("niqe:niqe-ct") == ("niqe:niqe-ct", "niqe-ct")
    assert found("niqe-k") == ("niqe-k", "niqe-natural")
    assert found("niqe-k:ct") == ("niqe-k:niqe-ct", "niqe-ct")
    assert found(f"niqe:{niqe_file}") == ("niqe:niqe-toy", "niqe-toy")
    assert found("biqaa") == ("biqaa", None)
    assert shipped_files() == (*modelfile.shipped(), "niqe-ct", "niqe-natural")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "niqq",
            r"no model 'niqq': shipped are .*; metrics are brisque, niqe, .*; did you mean niqe\?; or give a \.onnx",
        ),
        ("NIQE", r"did you mean niqe\?"),
        ("niqe-ct", r"did you mean niqe:ct\?"),
        ("zzz", r"radial-index; or give a"),  # nothing is near
        (
            "niqe:natrual",
            r"no parameters 'natrual' for niqe: shipped are niqe-ct, niqe-natural; did you mean natural\?",
        ),
        ("niqe:nowhere.safetensors", r"nowhere\.safetensors: cannot be read: No such file"),
        ("biqaa:ct", r"biqaa:ct: biqaa has no parameters; leave ':ct' out"),
        ("brisque", r"no parameters 'brisque-natural': shipped are niqe-ct"),
        ("niqe:", r"no parameters '' for niqe"),
    ],
)
@pytest.mark.usefixtures("shipped_sets")
def test_a_wrong_name_is_told_the_known_ones_and_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ModelFileError, match=said):
        load_scorer(name)


def test_parameters_of_another_metric_are_refused(tmp_path: Path) -> None:
    arrays = {"mean": np.zeros(25), "inverse_covariance": np.eye(25)}
    save_parameters(Parameters("bliinds", "bliinds-toy", arrays), tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match=r"parameters of bliinds given to niqe \(bliinds-toy\)"):
        load_scorer(f"niqe:{tmp_path / 'x.safetensors'}")


def test_a_list_of_names(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelfile, "MODELS", toy_model.parent)
    assert scorer_names("niqe") == ("niqe",)
    assert scorer_names("toy, niqe:ct,biqaa") == ("toy", "niqe:ct", "biqaa")
    assert scorer_names("all") == ("toy", *METRICS)
    comma = toy_model.with_name("a,b.onnx")
    comma.write_bytes(toy_model.read_bytes())
    assert scorer_names(str(comma)) == (str(comma),)
    with pytest.raises(SaqmError, match="'niqe,biqaa,niqe': niqe is there twice"):
        scorer_names("niqe,biqaa,niqe")
    with pytest.raises(SaqmError, match="'niqe,': a name is missing"):
        scorer_names("niqe,")


def test_files_are_verified_by_name(toy_model: Path, niqe_file: Path) -> None:
    assert file_sha256(str(toy_model)) == load_scorer(toy_model).engine.sha256
    damaged = bytearray(niqe_file.read_bytes())
    damaged[-1] ^= 1
    niqe_file.write_bytes(damaged)
    with pytest.raises(ModelFileError, match="wrong hash"):
        file_sha256(f"niqe:{niqe_file}")
    with pytest.raises(ModelFileError, match="biqaa: has no parameters, so there is no file to verify"):
        file_sha256("biqaa")


def test_a_score_says_what_looks_wrong(scorer: ModelScorer):
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.linspace(60, 160, 128), np.linspace(0, 40, 128))
    noisy = smooth + 25 * rng.standard_normal((128, 128))
    clean, spoilt = (score(slice_of(np.clip(grey, 0, 255) / 255), scorer) for grey in (smooth, noisy))
    assert "noise" in [one["name"] for one in spoilt.findings]
    assert "noise" not in [one["name"] for one in clean.findings]
    assert json.loads(json.dumps(spoilt.to_record()))["findings"][0]["code"]["scheme"] == "DCM"
