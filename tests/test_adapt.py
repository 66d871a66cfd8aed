"""A model brought to somebody's own images: what is promised is measured on images kept out, and harm is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy import ndimage

from saqm import adapt
from saqm.adapt import LEAST, adapt_command, window_statistics
from saqm.errors import ModelFileError, TrainingError
from saqm.experiments import header_for
from saqm.export import load_network, save_network
from saqm.frozen import fold_standardisation
from saqm.image import read_image
from saqm.loop import LoopConfig
from saqm.manifest import Manifest, Row, Scale, write_manifest
from saqm.modelfile import FeatureStatistics, ModelHeader, read_header
from saqm.network import SAQM, Architecture
from saqm.opinions import Sample
from saqm.recipes import RECIPES
from saqm.train import predict, train

TINY = Architecture(width=1 / 32, trunks="shared", norm="batch", pool="mean-max", hidden=(8,), members=2, weighted=True)
RECIPE = replace(
    RECIPES["target-only"],
    architecture=TINY,
    teaching=replace(
        RECIPES["target-only"].teaching, ladders=0.0, features="32", epochs=40, images_per_step=8, windows_per_image=8,
        loop=LoopConfig(learning_rate=1e-2, schedule="one-cycle"),
    ),
)  # fmt: skip


def picture(path: Path, seed: int, noise: float, contrast: float = 30.0) -> Path:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal((72, 72)), 2)
    grey = 120 + contrast * field / field.std() + noise * rng.standard_normal(field.shape)
    Pillow.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)
    return path


def images(folder: Path, count: int, first: int = 0, contrast: float = 30.0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return [picture(folder / f"{n}.png", first + n, 3.0 * (n % 5), contrast) for n in range(count)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[SAQM, ModelHeader, list[Path]]:
    """A model that knows noise on pictures of one contrast, and the pictures."""
    paths = images(tmp_path_factory.mktemp("training"), 12)
    read = [read_image(path) for path in paths]
    network = SAQM(TINY, seed=0)
    train(network, [Sample(one, 0.9 - 0.2 * (n % 5), "a") for n, one in enumerate(read)], [], RECIPE, seed=0)
    header = header_for(
        network, RECIPE, {}, read, name="ours", version="3", seed=0, steps=1, epochs=1, commit="abc", results={},
        licence="MIT", card="A card.", features=window_statistics(network, read, RECIPE),
    )  # fmt: skip
    return network, header, paths


@pytest.fixture
def model(tmp_path: Path, taught: tuple[SAQM, ModelHeader, list[Path]]) -> Path:
    save_network(taught[0], taught[1], tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, toy_onnx: Callable[..., bytes]) -> None:
    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005  exports take long
    monkeypatch.setattr(adapt, "STEPS", 40)


def run(model: Path, out: Path, names: list[Path], **changes: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    found = adapt_command(
        model=model, names=names, out=out, say=said.append, **{"manifest": None, "seed": 0, **changes}
    )
    return found, said


def without_statistics(model: Path, taught: tuple[SAQM, ModelHeader, list[Path]]) -> None:
    network, header, _ = taught
    bare = header.model_copy(update={"domain": header.domain.model_copy(update={"features": None})})
    save_network(network, bare, model)


def test_an_adapted_model_scores_and_says_what_was_done(
    tmp_path: Path, model: Path, taught: tuple[SAQM, ModelHeader, list[Path]]
) -> None:
    names = images(tmp_path / "own", 8, first=100, contrast=12)
    found, _ = run(model, tmp_path / "out", names)
    network, header = load_network(found["weights"])
    read = [read_image(path) for path in names]
    before = [predict(taught[0], one, RECIPE.preparation) for one in read]
    after = [predict(network, one, RECIPE.preparation) for one in read]
    moved = 100 * np.abs(np.subtract(after, before))
    assert (found["moved_mean"], found["moved_max"]) == pytest.approx((moved.mean(), moved.max()), abs=1e-3)
    assert (found["images"], found["learnt_from"], found["tried_on"], found["scores_read"]) == (8, 6, 2, 0)
    assert 0 <= found["concordance_before"] <= 1
    better = found["concordance_after"] >= found["concordance_before"] + adapt.HELPED
    assert found["helped"] == (better and found["order_kept"] is not None and found["order_kept"] >= adapt.KEPT)
    assert found["shift_before"] > 0.3
    original = taught[1]
    assert header.calibration is None
    assert header.licence == original.licence
    assert header.domain.description == "8 images of a user, from ours (unlabelled images)"
    assert header.training.recipe == "adapt"
    assert set(original.training.images_sha256) < set(header.training.images_sha256)
    results: Any = header.training.results
    assert results["concordance_after"] == found["concordance_after"]
    text = (tmp_path / "out" / "model.md").read_text()
    assert text.startswith("# Adapted from ours 3\n")
    assert f"| worse copies that score lower, before | {found['concordance_before']:.1%} |" in text
    assert "None of this measures agreement with people" in text
    assert read_header(found["model"]).name == "out"
    with pytest.raises(TrainingError, match="out holds a model already; choose another --out"):
        run(model, tmp_path / "out", names)


def test_towers_are_left_as_they_were(
    tmp_path: Path, model: Path, taught: tuple[SAQM, ModelHeader, list[Path]]
) -> None:
    found, _ = run(model, tmp_path / "out", images(tmp_path / "own", 5, first=100))
    network = load_network(found["weights"])[0]
    now = network.state_dict()
    changed = {name for name, value in taught[0].state_dict().items() if not torch.equal(now[name], value)}
    assert "heads.0.body.0.weight" in changed
    assert all(name.startswith("heads.") for name in changed)


def test_same_seed_same_bits(tmp_path: Path, model: Path) -> None:
    names = images(tmp_path / "own", 6, first=100)
    one, two = (run(model, tmp_path / out, names)[0] for out in ("a", "b"))
    assert read_header(one["weights"]).weights_sha256 == read_header(two["weights"]).weights_sha256


def test_images_of_the_training_are_held_where_they_were(
    tmp_path: Path, model: Path, taught: tuple[SAQM, ModelHeader, list[Path]]
) -> None:
    found, _ = run(model, tmp_path / "out", taught[2])
    assert found["shift_before"] < 0.3
    assert found["moved_mean"] < 8  # points of 100
    assert found["order_kept"] > 0.8


def test_standardisation_serves_a_domain_that_lies_elsewhere(
    tmp_path: Path, model: Path, taught: tuple[SAQM, ModelHeader, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads taught on features moved and stretched by a known map are right again on the pictures themselves."""
    network, header, paths = taught
    mine = header.domain.features
    assert mine is not None
    mean, sd = torch.tensor(mine.mean), torch.tensor(mine.sd)
    elsewhere = SAQM(TINY, seed=0)
    elsewhere.load_state_dict(network.state_dict())
    fold_standardisation(elsewhere, torch.full_like(mean, 2.0), torch.full_like(sd, 3.0))  # takes x = 3 z + 2
    moved = FeatureStatistics(mean=tuple((3 * mean + 2).tolist()), sd=tuple((3 * sd).tolist()), images=12)
    domain = header.domain.model_copy(update={"features": moved})
    save_network(elsewhere, header.model_copy(update={"domain": domain}), model)
    monkeypatch.setattr(adapt, "train", lambda *args, **kwargs: [{"loss": 0.0}])  # noqa: ARG005  the first step alone
    found, _ = run(model, tmp_path / "out", paths)
    assert found["standardised"]
    back = load_network(found["weights"])[0]
    read = [read_image(path) for path in paths]
    wanted, made, far = (
        [predict(one, image, RECIPE.preparation) for image in read] for one in (network, back, elsewhere)
    )
    assert made == pytest.approx(wanted, abs=0.05)
    assert np.abs(np.subtract(far, wanted)).mean() > np.abs(np.subtract(made, wanted)).mean()


def test_standardisation_that_spoils_the_order_is_undone(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concordance = iter([0.9, 0.8, 0.9])  # before, standardised, after
    monkeypatch.setattr(adapt, "order_concordance", lambda ladders: next(concordance))  # noqa: ARG005
    monkeypatch.setattr(adapt, "train", lambda *args, **kwargs: [{"loss": 0.0}])  # noqa: ARG005  nothing is taught
    found, said = run(model, tmp_path / "out", images(tmp_path / "own", 6, first=100, contrast=12))
    assert not found["standardised"]
    assert found["moved_max"] == 0
    assert said[0] == "not standardised: 80% of worse copies would score lower, and 90% do without"


def test_an_order_that_was_turned_is_said(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(network: SAQM, *args: Any, **kwargs: Any) -> list[dict[str, float]]:  # noqa: ARG001
        for head in network.heads:
            out = head.get_submodule("out")
            assert isinstance(out, torch.nn.Linear)
            with torch.no_grad():
                out.weight[0].neg_()
                out.bias[0].neg_()
        return [{"loss": 0.0}]

    monkeypatch.setattr(adapt, "train", turned)
    found, said = run(model, tmp_path / "out", images(tmp_path / "own", 8, first=100))
    assert found["order_kept"] < 0
    assert "the order of the images themselves changed much (SROCC to before: -" in said[-1]


def test_what_did_not_help_is_said_and_the_original_recommended(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, taught: tuple[SAQM, ModelHeader, list[Path]]
) -> None:
    without_statistics(model, taught)
    monkeypatch.setattr(adapt, "train", lambda *args, **kwargs: [{"loss": 0.0}])  # noqa: ARG005  nothing is taught
    found, said = run(model, tmp_path / "out", images(tmp_path / "own", 5, first=100))
    assert not found["helped"]
    assert not found["standardised"]
    assert found["order_kept"] == pytest.approx(1)
    assert "shift_before" not in found
    assert said[0].startswith("the model's file does not say which features it was trained on")
    assert said[1].startswith("adaptation did not help: on images kept out, ")
    assert said[1].endswith("go on with ours")
    assert "**It did not help**" in (tmp_path / "out" / "model.md").read_text()


def test_training_images_at_hand_measure_the_distance(
    tmp_path: Path, model: Path, taught: tuple[SAQM, ModelHeader, list[Path]]
) -> None:
    without_statistics(model, taught)
    found, _ = run(model, tmp_path / "out", images(tmp_path / "own", 8, first=100, contrast=12), source=taught[2])
    assert found["proxy_a_distance_after"] <= found["proxy_a_distance_before"]
    assert found["mmd_after"] < found["mmd_before"]


def test_the_few_scores_there_are_are_read(tmp_path: Path, model: Path) -> None:
    names = images(tmp_path / "own", 8, first=100)
    rows = tuple(Row(path, None if n > 3 else 1.0 + n, f"scene {n}", "own") for n, path in enumerate(names))
    write_manifest(Manifest(rows, Scale(0, 4)), tmp_path / "own" / "own.csv")
    blind = tuple(replace(row, score=None) for row in rows)
    write_manifest(Manifest(blind, Scale(0, 4)), tmp_path / "own" / "blind.csv")
    read, blinded = (
        run(model, tmp_path / name, [], manifest=tmp_path / "own" / f"{name}.csv")[0] for name in ("own", "blind")
    )
    assert blinded["scores_read"] == 0
    assert 0 < read["scores_read"] <= 4
    assert read["moved_mean"] != blinded["moved_mean"]


def test_an_image_that_cannot_be_scored_is_left_out_and_said(tmp_path: Path, model: Path) -> None:
    names = images(tmp_path / "own", 5, first=100)
    (tmp_path / "own" / "broken.png").write_bytes(b"no picture")
    Pillow.new("L", (80, 80), 7).save(tmp_path / "own" / "flat.png")
    found, said = run(model, tmp_path / "out", [*names, tmp_path / "own" / "broken.png", tmp_path / "own" / "flat.png"])
    assert found["images"] == 5
    assert said[0].startswith("left out: broken.png: ")
    assert said[1].startswith("left out: flat.png: constant image")


def test_many_images_are_drawn_from_by_chance(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt, "MOST", 5)
    found, said = run(model, tmp_path / "out", images(tmp_path / "own", 9, first=100))
    assert found["images"] == 5
    assert said[0] == "5 of 9 images are learnt from, chosen by chance"


def test_too_few_images_and_no_model_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(TrainingError, match=f"3 images can be scored; adapting needs {LEAST}, and 12 are advised"):
        run(model, tmp_path / "out", images(tmp_path / "own", 3))
    rows = tuple(Row(path, None, "one", "own") for path in images(tmp_path / "own", 6))
    write_manifest(Manifest(rows), tmp_path / "own" / "own.csv")
    with pytest.raises(TrainingError, match="all images are of one scene: none can be kept out"):
        run(model, tmp_path / "out", [], manifest=tmp_path / "own" / "own.csv")
    with pytest.raises(ModelFileError, match="no model 'nothing'"):
        run(Path("nothing"), tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
