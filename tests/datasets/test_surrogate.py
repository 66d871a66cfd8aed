"""Photographs into a scored set: what its scores are, that they fall with noise, and what is refused."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from saqm.cli import app
from saqm.datasets import surrogate as made_of
from saqm.datasets.surrogate import DENOISERS, LEVELS_EACH, NOISE_LEVELS, similarity
from saqm.errors import ImageError, ManifestError, MissingExtra, OutputError
from saqm.image import read_image
from saqm.manifest import Manifest, read_manifest

pytest.importorskip("skimage", reason="denoisers and SSIM are scikit-image's")

FAST = ("tv", "bilateral")


def scene(number: int, shape: tuple[int, int] = (96, 112)) -> np.ndarray:
    """A picture with edges and shading, 8 bits in colour; red and blue are shifted, so that grey is none of them."""
    rng = np.random.default_rng(number)
    field = gaussian_filter(rng.normal(size=shape), 4)
    grey = 128 + 60 * np.sign(field) * np.abs(field / field.std()) ** 0.3
    planes = [np.roll(grey, shift, 0) for shift in (-2, 0, 2)]
    return np.clip(np.rint(np.stack(planes, -1)), 0, 255).astype(np.uint8)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    (folder / "README.md").write_text("no picture", encoding="utf-8")
    for number, name in enumerate(("hut.png", "lake.png", "more/peak.png")):
        PillowImage.fromarray(scene(number)).save(folder / name)
    return folder


def pixels(path: Path) -> np.ndarray:
    return np.asarray(PillowImage.open(path), float)


def test_every_photograph_has_its_versions_and_is_their_reference(photographs: Path, tmp_path: Path) -> None:
    made = made_of(photographs, tmp_path / "set", seed=0, denoisers=FAST)
    assert {row.scene for row in made.rows} == {"photograph-hut", "photograph-lake", "photograph-more-peak"}
    assert len(made.rows) == 3 * (1 + len(FAST) * LEVELS_EACH)
    assert {row.domain for row in made.rows} == {"natural-surrogate"}
    for row in made.rows:
        assert row.score is not None
        if row.reference:
            assert (row.score, row.raters, row.method, row.aspects) == (1.0, 0, "photograph", {})
        else:
            assert 0 < row.score < 1
            assert row.method in FAST
            assert row.aspects["noise_sd"] in NOISE_LEVELS
    levels = [row.aspects["noise_sd"] for row in made.rows if row.scene == "photograph-hut" and row.method == "tv"]
    assert levels == sorted(set(levels))


def test_the_sidecar_says_that_nobody_judged(photographs: Path, tmp_path: Path) -> None:
    made_of(photographs, tmp_path / "set", seed=3, denoisers=FAST)
    kept = json.loads((tmp_path / "set" / "manifest.json").read_text(encoding="utf-8"))
    assert kept["name"].startswith("surrogate: SSIM to the photograph, not an opinion")
    assert "then tv, bilateral; scikit-image " in kept["name"]
    assert kept["name"].endswith("seed 3")
    assert (kept["scale"], kept["higher_is_better"]) == ([0, 1], True)


def test_a_score_is_the_ssim_of_what_was_written(photographs: Path, tmp_path: Path) -> None:
    made = made_of(photographs, tmp_path / "set", seed=0, denoisers=("tv",))
    originals = {row.scene: pixels(row.path) for row in made.rows if row.reference}
    for row in made.rows:
        assert row.score == similarity(pixels(row.path), originals[row.scene])


def test_similarity_is_wangs() -> None:
    """Against his definition written out: 11x11 Gaussian windows of sd 1.5, K1 = 0.01, K2 = 0.03, L = 255."""
    rng = np.random.default_rng(0)
    one = rng.uniform(0, 255, (40, 50))
    other = np.clip(one + rng.normal(0, 20, one.shape), 0, 255)

    def local_mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5)[5:-5, 5:-5]

    means = local_mean(one), local_mean(other)
    variances = [local_mean(x * x) - m**2 for x, m in zip((one, other), means, strict=True)]
    covariance = local_mean(one * other) - means[0] * means[1]
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * means[0] * means[1] + first) / (means[0] ** 2 + means[1] ** 2 + first)
    wanted = luminance * (2 * covariance + second) / (sum(variances) + second)
    assert similarity(one, other) == pytest.approx(float(wanted.mean()), rel=1e-12)
    assert similarity(one, one) == 1


@pytest.mark.parametrize("denoiser", [name for name in DENOISERS if name != "bm3d"])
def test_more_noise_is_a_lower_score_and_denoising_a_higher_one(denoiser: str) -> None:
    if denoiser == "wavelet":
        pytest.importorskip("pywt", reason="scikit-image's wavelets are PyWavelets'")
    original = scene(0)[..., 1].astype(float)
    noise = np.random.default_rng(0).standard_normal(original.shape)
    scores = []
    for level in NOISE_LEVELS:
        noisy = np.clip(original + level * noise, 0, 255)
        denoised = np.clip(255 * DENOISERS[denoiser](noisy / 255, level / 255), 0, 255)
        scores.append(similarity(denoised, original))
        assert scores[-1] > similarity(noisy, original)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1] + 0.05


def test_the_same_seed_gives_the_same_set_and_another_one_another(photographs: Path, tmp_path: Path) -> None:
    def contents(manifest: Manifest) -> dict[str, bytes]:
        return {row.path.name: row.path.read_bytes() for row in manifest.rows}

    first = made_of(photographs, tmp_path / "a", seed=0, denoisers=("tv",))
    again = made_of(photographs, tmp_path / "b", seed=0, denoisers=("tv",))
    other = made_of(photographs, tmp_path / "c", seed=1, denoisers=("tv",))
    assert contents(first) == contents(again)
    assert first.sha256 == again.sha256
    assert contents(first) != contents(other)
    (photographs / "hut.png").unlink()  # what a photograph becomes does not hang on what lies beside it
    fewer = contents(made_of(photographs, tmp_path / "d", seed=0, denoisers=("tv",)))
    assert fewer == {name: data for name, data in contents(first).items() if not name.startswith("hut")}


def test_the_middle_is_taken_as_luminance(tmp_path: Path) -> None:
    wide, tall = scene(0, (400, 600)), scene(1, (600, 400))
    (tmp_path / "in").mkdir()
    PillowImage.fromarray(wide).save(tmp_path / "in" / "wide.png")
    PillowImage.fromarray(tall).save(tmp_path / "in" / "tall.png")
    made = made_of(tmp_path / "in", tmp_path / "set", seed=0, denoisers=("tv",))
    written = {row.path.name: pixels(row.path) for row in made.rows}
    assert {picture.shape for name, picture in written.items() if name.startswith("wide")} == {(384, 512)}
    assert {picture.shape for name, picture in written.items() if name.startswith("tall")} == {(512, 384)}
    weights = np.array([0.299, 0.587, 0.114])
    assert np.abs(written["wide.png"] - (wide @ weights)[8:392, 44:556]).max() <= 0.501
    assert read_image(tmp_path / "set" / "wide.png").pixels.ndim == 2


# What is refused


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ManifestError, match="no picture in it; wanted a folder of good photographs"):
        made_of(tmp_path / "in", tmp_path / "set", seed=0)
    with pytest.raises(ManifestError, match="nowhere: not a folder"):
        made_of(tmp_path / "nowhere", tmp_path / "set", seed=0)
    assert not (tmp_path / "set").exists()


def test_a_broken_picture_leaves_nothing_behind(photographs: Path, tmp_path: Path) -> None:
    (photographs / "torn.png").write_bytes((photographs / "hut.png").read_bytes()[:200])
    with pytest.raises(ImageError, match=r"torn\.png"):
        made_of(photographs, tmp_path / "set", seed=0, denoisers=("tv",))
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


def test_a_picture_that_is_too_small(photographs: Path, tmp_path: Path) -> None:
    PillowImage.fromarray(scene(0, (63, 200))).save(photographs / "strip.png")
    with pytest.raises(ImageError, match=r"strip\.png: 63x200 pixels; a surrogate wants at least 64x64"):
        made_of(photographs, tmp_path / "set", seed=0, denoisers=("tv",))


def test_two_pictures_of_one_name(photographs: Path, tmp_path: Path) -> None:
    PillowImage.fromarray(scene(5)).save(photographs / "lake.bmp")
    with pytest.raises(ManifestError, match="several pictures are named lake; rename all but one"):
        made_of(photographs, tmp_path / "set", seed=0)


def test_a_folder_that_holds_something(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="set: is there already; name a new folder"):
        made_of(photographs, tmp_path / "set", seed=0)
    assert (tmp_path / "set" / "note.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("denoisers", "said"),
    [
        (("tv", "magic"), "no denoiser 'magic'; known are wavelet, tv, nlm, bilateral, bm3d"),
        ((), "no denoiser; choose of wavelet"),
        (("tv", "tv"), "denoisers tv, tv: one stands there twice"),
    ],
)
def test_denoisers_that_there_are_not(photographs: Path, tmp_path: Path, denoisers: tuple[str, ...], said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        made_of(photographs, tmp_path / "set", seed=0, denoisers=denoisers)


@pytest.mark.parametrize(
    ("denoiser", "absent", "kind", "said"),
    [
        ("tv", "skimage", MissingExtra, r"needs scikit-image: pip install 'saqm\[train\]'"),
        ("wavelet", "pywt", MissingExtra, r"denoiser 'wavelet' needs PyWavelets: pip install 'saqm\[train\]'"),
        ("bm3d", "bm3d", ManifestError, "needs the package bm3d, which is for non-commercial use only"),
    ],
)
def test_a_package_that_is_not_there(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    denoiser: str,
    absent: str,
    kind: type,
    said: str,
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == absent:
            raise ImportError(f"no {name} here")
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(kind, match=said):
        made_of(photographs, tmp_path / "set", seed=0, denoisers=(denoiser,))
    assert not (tmp_path / "set").exists()


# The command


def test_the_command_says_where_and_how_many(photographs: Path, tmp_path: Path) -> None:
    asked = ["data", "surrogate", str(photographs), "--out", str(tmp_path / "set"), "--denoisers", "tv,bilateral"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said == {"manifest": str(tmp_path / "set" / "manifest.csv"), "images": 15, "scenes": 3}
    assert len(read_manifest(said["manifest"]).rows) == 15
    again = CliRunner().invoke(app, asked)
    assert isinstance(again.exception, OutputError)
