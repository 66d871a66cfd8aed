"""Fitting a metric: what is known is recovered, what cannot be fitted is refused, what is left out is said."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import scipy.io
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tests.metrics import reference

from saqm.errors import ManifestError, MissingExtra, ModelFileError, NotScorable, OutputError, TrainingError
from saqm.fitting import (
    ADVISED,
    Example,
    _sharpness,
    fit_bliinds,
    fit_brisque,
    fit_command,
    fit_niqe,
    fit_niqe_examples,
    niqe_example,
)
from saqm.image import from_array, read_image
from saqm.manifest import Manifest, Row, Scale, write_manifest
from saqm.metrics.bliinds import bliinds
from saqm.metrics.brisque import brisque, predicted
from saqm.metrics.niqe import block_sharpness, niqe, niqe_features
from saqm.metrics.parameters import Parameters, load_parameters

Floats = NDArray[np.float64]


def texture(seed: int, side: int = 192, blur: float = 1.0, noise: float = 4.0) -> NDArray[np.uint8]:
    """A made picture whose statistics change with its seed: smooth random fields of several sizes, and noise."""
    rng = np.random.default_rng(seed)
    field = sum(gaussian_filter(rng.normal(size=(side, side)), size) * size for size in (1, 3, 9))
    field = gaussian_filter(np.asarray(field), blur)
    levels: Floats = 128 + 40 * field / field.std() + rng.normal(0, noise, field.shape)
    return levels.clip(0, 255).astype(np.uint8)


def examples_of(features_BF: Floats, count: int = 4) -> list[Example]:
    parts = np.array_split(features_BF, count)
    return [Example(part, f"{number:064x}", snapped=False, blocks=len(part)) for number, part in enumerate(parts)]


# NIQE


def test_niqe_recovers_the_distribution_that_the_blocks_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(36, 36)) * 10.0 ** rng.uniform(-3, 2, 36)[:, None]
    features = rng.normal(size=(8000, 36)) @ mixing.T + 5
    arrays = fit_niqe_examples(examples_of(features)).arrays
    covariance = mixing @ mixing.T
    spread = np.sqrt(np.diag(covariance))
    assert np.abs(arrays["mean"] - 5).max() < 5 * spread.max() / 89
    np.testing.assert_allclose(arrays["mean"], features.mean(0), rtol=1e-12)
    assert np.abs((arrays["covariance"] - covariance) / np.outer(spread, spread)).max() < 0.06


def test_niqe_takes_the_mean_of_what_is_defined_and_the_covariance_of_whole_blocks() -> None:
    features = np.random.default_rng(0).normal(size=(60, 36))
    features[7, 3] = np.nan
    arrays = fit_niqe_examples(examples_of(features)).arrays
    whole = np.delete(features, 7, axis=0)
    np.testing.assert_allclose(arrays["covariance"], np.cov(whole.T), rtol=1e-12)
    assert arrays["mean"][3] == pytest.approx(whole[:, 3].mean(), rel=1e-12)
    assert arrays["mean"][4] == pytest.approx(features[:, 4].mean(), rel=1e-12)


def test_only_sharp_blocks_are_taken() -> None:
    picture = texture(0, 288).astype(np.float64)
    picture[:, :96] = gaussian_filter(picture, 6)[:, :96]
    example = niqe_example(from_array(picture.astype(np.uint8)))
    sharpness = block_sharpness(np.trunc(picture))
    assert (sharpness.reshape(3, 3)[:, 0] < 0.75 * sharpness.max()).all()
    assert example.blocks == 9
    assert 1 <= len(example.features) == np.count_nonzero(sharpness > 0.75 * sharpness.max()) <= 6


@pytest.mark.parametrize("seed", range(3))
def test_with_a_mask_sharpness_is_of_the_blocks_that_the_features_are_of(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = texture(seed, 400).astype(np.float64)
    rows, columns = np.ogrid[:400, :400]
    mask = (rows - 190) ** 2 + (columns - 210) ** 2 < rng.uniform(140, 200) ** 2
    features = niqe_features(levels, mask=mask, snap=True)
    sharpness = _sharpness(levels, mask)
    assert 2 <= len(sharpness) == len(features) < 16
    box = np.argwhere(mask).min(0)
    inside = np.zeros_like(mask)
    inside[box[0] + 96 : box[0] + 192, box[1] + 96 : box[1] + 192] = True
    louder = levels.copy()
    louder[inside] = 128 + 2 * (levels[inside] - 128)
    # twice the contrast in one block: the sharpness grows where the features change most
    louder_features = niqe_features(louder, mask=mask, snap=True)
    change = np.abs(louder_features / features - 1).sum(1)
    grown = np.flatnonzero(_sharpness(louder, mask) > 1.5 * sharpness)
    assert grown.tolist() == [int(change.argmax())]


def test_a_mask_that_is_a_rectangle_is_a_crop() -> None:
    levels = texture(1, 300).astype(np.float64)
    mask = np.zeros(levels.shape, bool)
    mask[5:293, 7:199] = True
    np.testing.assert_array_equal(_sharpness(levels, mask), block_sharpness(levels[5:293, 7:199]))


def test_pristine_pictures_are_near_and_degraded_ones_far() -> None:
    pictures = [from_array(texture(seed, 288, noise=1)) for seed in range(10)]
    parameters = fit_niqe(pictures, name="mine")
    near = niqe(texture(99, 288, noise=1), parameters)
    assert near < niqe(texture(99, 288, blur=3, noise=0), parameters)
    assert near < niqe(texture(99, 288, noise=20), parameters)
    assert (parameters.name, parameters.metric) == ("mine", "niqe")
    assert parameters.provenance.settings["snap"] == "0 of 10 pictures"
    assert parameters.provenance.images_sha256 == tuple(sorted(picture.source.sha256 for picture in pictures))


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"niqe: \d+ sharp blocks \(of 8\) of 2 pictures give a covariance of rank"):
        fit_niqe([from_array(texture(seed)) for seed in range(2)])
    with pytest.raises(TrainingError, match="niqe: no pristine picture to fit to"):
        fit_niqe([])
    with pytest.raises(NotScorable, match="constant image"):
        fit_niqe([from_array(np.full((200, 200), 7, np.uint8))])


def test_a_feature_that_never_varies_leaves_no_covariance() -> None:
    features = np.random.default_rng(0).normal(size=(60, 36))
    features[:, 5] = 1
    with pytest.raises(TrainingError, match=rf"rank \d+, not 36: give more pictures, of many contents; {ADVISED} are"):
        fit_niqe_examples(examples_of(features))


# The regressions


def scored(count: int, width: int) -> tuple[Floats, Floats]:
    """Features and scores that follow them, but not exactly."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(count, width)) * np.geomspace(0.01, 100, width) + 1
    return features, 50 + 10 * np.sin(features[:, 0] * 60) + 8 * rng.normal(size=count)


def test_the_stored_support_vectors_predict_what_scikit_learn_predicts() -> None:
    svm = pytest.importorskip("sklearn.svm")
    features, scores = scored(120, 36)
    parameters = fit_brisque(features, scores)
    low, high = features.min(0), features.max(0)
    machine = svm.SVR(kernel="rbf", gamma=0.05, C=1024, epsilon=0.1).fit(
        -1 + 2 * (features - low) / (high - low), scores
    )
    unseen = features[:40] * 1.1
    expected = machine.predict(-1 + 2 * (unseen - low) / (high - low))
    ours = [predicted(row, parameters) for row in unseen]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
    assert np.abs(parameters.arrays["coefficients"]).max() <= 1024


def test_bliinds_predicts_the_least_squares() -> None:
    features, scores = scored(200, 24)
    arrays = fit_bliinds(features, scores).arrays
    design = np.column_stack([np.ones(200), features])
    expected = design @ np.linalg.lstsq(design, scores)[0]
    np.testing.assert_allclose(conditional_mean(arrays, features), expected, rtol=0, atol=1e-9)


def test_bliinds_fitted_to_the_official_data_is_the_official_model() -> None:
    variables = scipy.io.loadmat(reference.official("bliinds"))
    features, scores = variables["live_features"], variables["live_dmos"].ravel()
    arrays = fit_bliinds(features, scores).arrays
    official = {"mean": variables["live_mu"].ravel(), "inverse_covariance": variables["live_sigma_inv"]}
    difference = conditional_mean(arrays, features) - conditional_mean(official, features)
    assert np.abs(difference).max() < 1e-10
    np.testing.assert_allclose(arrays["mean"], official["mean"], rtol=1e-12)
    largest = np.abs(official["inverse_covariance"]).max()
    np.testing.assert_allclose(
        arrays["inverse_covariance"], official["inverse_covariance"], rtol=0, atol=1e-9 * largest
    )


def conditional_mean(arrays: Any, features: Floats) -> Floats:
    mean, inverse = arrays["mean"], arrays["inverse_covariance"]
    return np.asarray(mean[24] - (features - mean[:24]) @ inverse[24, :24] / inverse[24, 24])


FITS = [(fit_brisque, 36), (fit_bliinds, 24)]


@pytest.mark.parametrize(("fit", "width"), FITS)
def test_what_cannot_be_learnt_is_refused(fit: Callable[[Floats, Floats], Parameters], width: int) -> None:
    features, scores = scored(60, width)
    with pytest.raises(TrainingError, match=rf"20 scored pictures; {width + 2} are the least, hundreds are advised"):
        fit(features[:20], scores[:20])
    with pytest.raises(TrainingError, match="all 60 scores are 3: there is nothing to learn"):
        fit(features, np.full(60, 3.0))
    with pytest.raises(TrainingError, match=rf"features \(60, 12\), scores \(60,\); wanted \(I, {width}\) and \(I,\)"):
        fit(features[:, :12], scores)
    with pytest.raises(TrainingError, match="NaN or infinity among features or scores; leave such pictures out"):
        fit(features, np.where(np.arange(60) == 5, np.nan, scores))
    features[:, 4] = 2
    with pytest.raises(TrainingError, match="feature 5 is the same in all 60 pictures"):
        fit(features, scores)


def test_features_that_depend_on_each_other_are_refused() -> None:
    features, scores = scored(60, 24)
    features[:, 1] = 2 * features[:, 0]
    with pytest.raises(TrainingError, match=r"of 60 pictures depend on each other \(rank 24, not 25\)"):
        fit_bliinds(features, scores)
    features, _ = scored(60, 24)
    with pytest.raises(TrainingError, match="depend on each other"):  # without error there is no inverse covariance
        fit_bliinds(features, features @ np.ones(24))


def test_brisque_without_scikit_learn_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(MissingExtra, match=r"fitting BRISQUE needs scikit-learn: pip install 'saqm\[train\]'"):
        fit_brisque(*scored(60, 36))


# The command


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Forty made pictures, noisier by number."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{number:02d}.png" for number in range(40)]
    for number, path in enumerate(paths):
        PIL.Image.fromarray(texture(number % 20, noise=1 + number / 2, blur=1 + number % 3)).save(path)
    return paths


@pytest.fixture
def manifest(pictures: list[Path], tmp_path: Path) -> Path:
    """Those pictures with opinions of which the highest is best: the less noise, the better."""
    rng = np.random.default_rng(0)
    rows = tuple(
        Row(path=path, score=float(np.clip(5 - number / 10 + rng.normal(0, 0.2), 1, 5)), scene=path.stem)
        for number, path in enumerate(pictures)
    )
    write_manifest(
        Manifest((*rows, Row(pictures[0].with_name("no.png"), None, "no")), Scale(1, 5, name="made")),
        tmp_path / "m.csv",
    )
    PIL.Image.fromarray(texture(77)).save(pictures[0].with_name("no.png"))
    return tmp_path / "m.csv"


def test_niqe_is_fitted_to_a_folder_and_what_is_left_out_is_said(pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    PIL.Image.fromarray(texture(0, 64)).save(tmp_path / "small.png")
    names = [*map(str, pictures[:20]), str(tmp_path / "broken.png"), str(tmp_path / "small.png")]
    said: list[str] = []
    steps: list[tuple[str, int, int]] = []
    made = fit_command(
        "niqe", pristine=names, mask="none", out=tmp_path / "mine.safetensors", say=said.append,
        on_step=lambda what, step, of, _: steps.append((what, step, of)),
    )  # fmt: skip
    assert (made["images"], made["left_out"], made["name"]) == (20, 2, "mine")
    assert [line for line in said if line.startswith("left out: ") and "broken.png" in line]
    assert [line for line in said if line.startswith("left out: ") and "small.png: niqe: 64x64 pixels" in line]
    assert f"20 pictures are few: {ADVISED} are advised" in "\n".join(said)
    assert steps[-1] == ("pictures", 22, 22)
    parameters = load_parameters(made["parameters"])
    assert parameters.sha256 == made["sha256"]
    same = fit_niqe([read_image(path, mask="none") for path in pictures[:20]], name="mine")
    assert same.sha256 == parameters.sha256


@pytest.mark.parametrize("metric", ["brisque", "bliinds"])
def test_a_regression_fitted_to_opinions_calls_the_worse_picture_higher(
    metric: str, manifest: Path, pictures: list[Path], tmp_path: Path
) -> None:
    said: list[str] = []
    made = fit_command(metric, manifest=manifest, mask="none", out=tmp_path / "mine.safetensors", say=said.append)
    parameters = load_parameters(made["parameters"])
    assert (made["images"], made["left_out"], parameters.metric) == (40, 1, metric)
    assert "1 rows have no score and are left out" in said
    assert made["scale"].endswith("lower is better; 0 is an opinion of 5, 100 one of 1")
    assert parameters.provenance.trained_on == "40 pictures with opinion scores, 0 of them fixed by the protocol: made"
    score = brisque if metric == "brisque" else bliinds
    good, bad = (score(np.array(PIL.Image.open(pictures[number])), parameters) for number in (2, 37))
    assert good + 20 < bad  # opinions 4.8 and 1.3: 5 and 93 of 100


def test_the_metric_keeps_its_direction_whatever_that_of_the_opinions(manifest: Path, tmp_path: Path) -> None:
    content = json.loads(manifest.with_suffix(".json").read_text())
    first = fit_command("bliinds", manifest=manifest, mask="none", out=tmp_path / "a.safetensors", say=lambda _: None)
    turned = tmp_path / "turned.csv"
    lines = manifest.read_text().splitlines()
    place = lines[0].split(",").index("score")
    rows = [line.split(",") for line in lines[1:41]]
    for row in rows:
        row[place] = repr(6 - float(row[place]))
    turned.write_text("\n".join([lines[0], *(",".join(row) for row in rows)]) + "\n")
    turned.with_suffix(".json").write_text(json.dumps(content | {"higher_is_better": False}))
    second = fit_command("bliinds", manifest=turned, mask="none", out=tmp_path / "b.safetensors", say=lambda _: None)
    assert second["scale"].endswith("0 is an opinion of 1, 100 one of 5")
    a, b = (load_parameters(made["parameters"]).arrays for made in (first, second))
    np.testing.assert_allclose(a["mean"], b["mean"], rtol=1e-12)


def test_official_files_are_imported(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "official.safetensors"
    made = fit_command("niqe-k", import_file=reference.official("niqe"), out=out, say=said.append)
    assert load_parameters(out).official
    assert (made["name"], made["images"]) == ("niqe-official", 0)
    with pytest.raises(ModelFileError, match=r"parameters of niqe given to brisque"):
        fit_command("brisque", import_file=reference.official("niqe"), out=out, say=said.append)


def test_an_unofficial_file_is_said_to_be_one(tmp_path: Path) -> None:
    said: list[str] = []
    variables = {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)}
    scipy.io.savemat(tmp_path / "other.mat", variables)
    fit_command("niqe", import_file=tmp_path / "other.mat", out=tmp_path / "o.safetensors", say=said.append)
    assert said[0].endswith("other.mat: not, byte for byte, what the authors released")


def test_a_command_that_does_not_fit_together_is_refused(manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"

    def refused(metric: str, error: type[Exception], message: str, **given: Any) -> None:
        with pytest.raises(error, match=message):
            fit_command(metric, **({"out": out} | given), say=lambda _: None)

    refused("biqaa", TrainingError, "'biqaa' has no parameters to fit; those that have are niqe, niqe-k, brisque, bl")
    refused("niqe", OutputError, r"mine\.npz: a parameter file is named \.safetensors", out=tmp_path / "mine.npz")
    refused("niqe", TrainingError, "give pristine pictures, a manifest or an official file to import, one of them")
    refused("niqe", TrainingError, "one of them", pristine=[], manifest=manifest)
    refused("niqe", TrainingError, "niqe is fitted to pristine pictures, without scores", manifest=manifest)
    refused("brisque", TrainingError, "brisque is fitted to opinion scores: give a manifest", pristine=["a.png"])
    refused("niqe", TrainingError, "no pristine picture to fit to", pristine=[])
    refused("brisque", ManifestError, "cannot be read", manifest=tmp_path / "none.csv")
    manifest.with_suffix(".json").unlink()
    refused("bliinds", TrainingError, r"m\.csv: its scores have no scale; write", manifest=manifest)
    assert not out.exists()


def test_brisque_needs_scikit_learn_before_it_reads_anything(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    steps: list[int] = []
    with pytest.raises(MissingExtra, match="scikit-learn"):
        fit_command(
            "brisque", manifest=manifest, out=tmp_path / "mine.safetensors", say=lambda _: None,
            on_step=lambda _, step, *rest: steps.append(step),  # noqa: ARG005
        )  # fmt: skip
    assert steps == []
