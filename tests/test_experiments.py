"""Whole experiments on made pictures: nothing of a test scene is seen, nothing is done twice, refusals come early."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy import ndimage

from saqm import experiments
from saqm.adapt import window_statistics
from saqm.errors import ManifestError, SaqmError, TrainingError
from saqm.experiments import (
    OutOfFold,
    build,
    cross_validate_command,
    finish_fold,
    header_for,
    judge_out_of_fold,
    on_scale,
    pretrain_command,
    run_folds,
    save_out_of_fold,
    train_command,
    transfer,
)
from saqm.export import load_network, save_network
from saqm.image import read_image
from saqm.loop import Log, LoopConfig
from saqm.manifest import Fold, Manifest, Row, Scale, folds, normalised, read_manifest, write_manifest
from saqm.modelfile import read_header
from saqm.network import SAQM, Architecture
from saqm.outputs.predictions import read_predictions
from saqm.pretrain import PretrainConfig
from saqm.recipes import RECIPES, Recipe, Side
from saqm.scorer import load_scorer, score
from saqm.train import Cache, predict

TINY = Architecture(width=1 / 64, trunks="shared", norm="batch", pool="mean-max", hidden=(4,), members=2, weighted=True)
RECIPE = replace(
    RECIPES["target-only"],
    architecture=TINY,
    teaching=replace(
        RECIPES["target-only"].teaching, features="32", epochs=2, images_per_step=4, windows_per_image=4,
        loop=LoopConfig(learning_rate=1e-2),
    ),
)  # fmt: skip
PRETRAINING = PretrainConfig(
    architecture=TINY, loop=LoopConfig(learning_rate=3e-3), steps=2, images_per_step=2, windows_per_image=2
)
ALL_TOML = """
base = "target-only"
[architecture]
width = 0.015625
hidden = [4]
members = 2
[teaching]
trains = "all"
epochs = 2
images_per_step = 4
windows_per_image = 4
"""
PRETRAIN_TOML = """
steps = 3
images_per_step = 2
windows_per_image = 2
[architecture]
width = 0.015625
hidden = [4]
[loop]
precision = "32"
"""


def made(folder: Path, scenes: int = 4, methods: Sequence[str] = ("noise", "blur", "mild")) -> Manifest:
    """Scenes with a reference and a version by each method; written with manifest and sidecar to `folder`."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for scene in range(scenes):
        rng = np.random.default_rng(scene)
        clean = ndimage.gaussian_filter(rng.standard_normal((64, 70)), 1.5)
        clean = 120 + 40 * clean / clean.std()
        worse = {
            "noise": clean + 25 * rng.standard_normal(clean.shape),
            "blur": ndimage.gaussian_filter(clean, 2),
            "mild": clean + 5 * rng.standard_normal(clean.shape),
        }
        opinions = {"noise": 1.0, "blur": 2.0, "mild": 3.0}
        for method in ("reference", *methods):
            path = folder / f"{scene}-{method}.png"
            grey = clean if method == "reference" else worse[method]
            Pillow.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)
            if method == "reference":
                rows.append(Row(path, 4.0, f"scene {scene}", "ct-made", raters=0, reference=True))
            else:
                rows.append(Row(path, opinions[method] + 0.1 * scene, f"scene {scene}", "ct-made", method=method))
    manifest = Manifest(tuple(rows), Scale(0, 4, higher_is_better=True, name="made points"))
    write_manifest(manifest, folder / "manifest.csv")
    return manifest


def never(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError(f"called again with {args} {kwargs}")


def quiet(text: str) -> None:
    assert text


# Folds


def test_a_fold_is_done_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = made(tmp_path / "data")
    (fold, *_) = folds(manifest, 2, 0)
    told: list[tuple[str, int, int]] = []

    def on_step(what: str, step: int, steps: int, logs: Mapping[str, float]) -> None:
        assert "loss" in logs
        told.append((what, step, steps))

    found = finish_fold(manifest, fold, RECIPE, PRETRAINING, seed=3, folder=tmp_path / "fold", on_step=on_step)
    assert found.keys() == set(fold.test)
    assert all(0 < value < 1 for value in found.values())
    assert told[:2] == [("towers", 1, 2), ("towers", 2, 2)]
    assert {what for what, _, _ in told[2:]} == {"opinions"}
    monkeypatch.setattr(experiments, "build", never)
    assert finish_fold(manifest, fold, RECIPE, PRETRAINING, seed=3, folder=tmp_path / "fold") == found
    with pytest.raises(TrainingError, match="holds a run with another seed"):
        finish_fold(manifest, fold, RECIPE, PRETRAINING, seed=4, folder=tmp_path / "fold")
    other = replace(RECIPE, teaching=replace(RECIPE.teaching, order=RECIPE.teaching.order + 1))
    with pytest.raises(TrainingError, match="holds a run with another recipe"):
        finish_fold(manifest, fold, other, PRETRAINING, seed=3, folder=tmp_path / "fold")


def test_a_fold_whose_predictions_are_lost_is_predicted_anew_from_what_was_taught(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data")
    (fold, *_) = folds(manifest, 2, 0)
    found = finish_fold(manifest, fold, RECIPE, PRETRAINING, seed=3, folder=tmp_path / "fold")
    (tmp_path / "fold" / "predictions.json").unlink()
    again = finish_fold(manifest, fold, RECIPE, PRETRAINING, seed=3, folder=tmp_path / "fold", on_step=never)
    assert again == found


def test_a_fold_is_the_same_bits_in_another_folder_and_others_with_another_seed(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data")
    (fold, *_) = folds(manifest, 2, 0)
    one, two, three = (
        finish_fold(manifest, fold, RECIPE, PRETRAINING, seed=seed, folder=tmp_path / name)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one == two != three


def test_a_division_that_shares_a_scene_is_refused(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data", scenes=1)
    with pytest.raises(ManifestError, match="training and test share 1 scenes: scene 0"):
        finish_fold(manifest, Fold((0, 1), (2,)), RECIPE, None, seed=0, folder=tmp_path / "fold")


def test_opinions_on_test_rows_change_no_prediction(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data")
    (fold, *_) = folds(manifest, 2, 0)
    blind = replace(
        manifest, rows=tuple(replace(row, score=None) if i in fold.test else row for i, row in enumerate(manifest.rows))
    )
    found = [
        finish_fold(which, fold, RECIPE, PRETRAINING, seed=0, folder=tmp_path / name)
        for name, which in (("seeing", manifest), ("blind", blind))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("by_method", [False, True])
def test_nothing_of_a_test_scene_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_method: bool
) -> None:
    manifest = made(tmp_path / "data")
    opened: list[list[Path]] = []
    tested: list[list[Path]] = []

    def record(rows: Sequence[Row], *args: object, folder: Path, **kwargs: object) -> tuple[SAQM, Log]:  # noqa: ARG001
        folder.mkdir(parents=True, exist_ok=True)
        opened.append([row.path for row in rows])
        tested.append([])
        return SAQM(TINY, seed=0), []

    def note(network: SAQM, image: Any, preparation: object) -> float:  # noqa: ARG001
        tested[-1].append(Path(image.source.path))
        return 0.5

    monkeypatch.setattr(experiments, "build", record)
    monkeypatch.setattr(experiments, "predict", note)
    (one,) = run_folds(manifest, RECIPE, None, k=2, by_method=by_method, seeds=(0,), folder=tmp_path / "folds")
    row_of = {row.path: row for row in manifest.rows}
    assert len(opened) == (4 if by_method else 2)
    for train_paths, test_paths in zip(opened, tested, strict=True):
        train_rows, test_rows = [row_of[p] for p in train_paths], [row_of[p] for p in test_paths]
        assert train_rows and test_rows  # noqa: PT018
        assert not {row.scene for row in train_rows} & {row.scene for row in test_rows}
        if by_method:
            assert not {row.method for row in train_rows} & {row.method for row in test_rows}
    met = [path for paths in tested for path in paths]
    assert len(met) == len(set(met)) == len(one.value)
    assert set(met) == {row.path for row in manifest.rows if not by_method or row.method is not None}


def test_training_reads_the_files_of_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = made(tmp_path / "data")
    (fold, *_) = folds(manifest, 2, 0)
    read: list[Path] = []

    def noting(path: Path, *args: Any, **kwargs: Any) -> Any:
        read.append(Path(path))
        return read_image(path, *args, **kwargs)

    monkeypatch.setattr("saqm.train.read_image", noting)
    rows = [manifest.rows[i] for i in fold.train]
    build(rows, manifest, RECIPE, PRETRAINING, seed=0, folder=tmp_path / "run")
    assert set(read) == {row.path for row in rows}


def test_folds_are_the_same_for_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = made(tmp_path / "data")

    def untaught(*args: object, seed: int, folder: Path, **kwargs: object) -> tuple[SAQM, Log]:  # noqa: ARG001
        folder.mkdir(parents=True, exist_ok=True)
        return SAQM(TINY, seed=seed), []

    monkeypatch.setattr(experiments, "build", untaught)
    one, two = run_folds(manifest, RECIPE, None, k=2, by_method=False, seeds=(0, 1), folder=tmp_path / "folds")
    assert (one.seed, two.seed) == (0, 1)
    assert one.fold == two.fold
    assert one.value != two.value
    assert sorted(one.value) == list(range(len(manifest.rows)))


# Scales and tables


@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_predictions_go_back_on_the_scale_they_came_from(share: float, higher_is_better: bool) -> None:
    scale = Scale(1, 5, higher_is_better=higher_is_better)
    assert normalised(on_scale(share, scale), scale) == pytest.approx(share)


def test_best_is_the_low_end_where_less_is_better() -> None:
    assert on_scale(1.0, Scale(1, 5, higher_is_better=False)) == 1
    assert on_scale(0.25, Scale(1, 5, higher_is_better=False)) == 4
    assert on_scale(1.0, Scale(1, 5)) == 5


def test_without_a_scale_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(TrainingError, match="the manifest has no scale; write it to its sidecar"):
        on_scale(0.5, None)


def knowing(manifest: Manifest, seed: int) -> OutOfFold:
    """Predictions that are the scores themselves, but for a little of the seed."""
    value = {
        i: normalised(row.score, manifest.scale) * 0.99 + 0.001 * seed
        for i, row in enumerate(manifest.rows)
        if row.score is not None
    }
    return OutOfFold(seed, {i: i % 2 for i in value}, value)


def test_out_of_fold_predictions_are_written_on_the_manifest_s_scale(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data", scenes=3)
    runs = [knowing(manifest, seed) for seed in (0, 7)]
    save_out_of_fold(manifest, runs, tmp_path / "predictions.csv")
    read = read_predictions(tmp_path / "predictions.csv")
    assert len(read) == 2 * len(manifest.rows)
    for prediction in read:
        assert prediction.seed in (0, 7)
        (index,) = [i for i, row in enumerate(manifest.rows) if row.path.name == prediction.path]
        one = runs[0] if prediction.seed == 0 else runs[1]
        assert prediction.prediction == on_scale(one.value[index], manifest.scale)
        assert (prediction.fold, prediction.scene) == (one.fold[index], manifest.rows[index].scene)
        assert prediction.score == manifest.rows[index].score


def test_predictions_that_know_the_scores_are_judged_as_such(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data", scenes=3)
    for runs in ([knowing(manifest, 0)], [knowing(manifest, 0), knowing(manifest, 1)]):
        evaluation = judge_out_of_fold(manifest, runs, by_method=False, judged_only=True, seed=0)
        found = evaluation.result("ct-made")
        assert found.n == 9  # the references' scores were fixed, not judged
        assert found.srocc == pytest.approx(1)
        assert len(found.srocc_by_seed) == (0 if len(runs) == 1 else 2)


# The header


def test_header_says_what_was_taught_how_and_on_what(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data")
    worse = replace(manifest, scale=Scale(1, 5, higher_is_better=False))
    network = SAQM(TINY, seed=0)
    images = [replace(read_image(row.path), modality="US") for row in manifest.rows[:3]]
    header = header_for(
        network, RECIPE, {"target": manifest, "source": worse}, [*images, images[0]],
        name="ours", version="2", seed=9, steps=6, epochs=3, commit="abc", results={"srocc": 0.5}, licence="MIT",
        card="A card.",
    )  # fmt: skip
    assert (header.name, header.version, header.licence, header.card) == ("ours", "2", "MIT", "A card.")
    assert SAQM.from_header(header).architecture == TINY
    assert header.preparation.channels == RECIPE.preparation.channels
    assert header.preparation.min_coverage == RECIPE.preparation.min_coverage
    assert (header.score_scale.low, header.score_scale.high, header.score_scale.higher_is_better) == (0, 1, True)
    assert "made points, 0 to 4, 4 best" in header.score_scale.meaning
    assert "opinion scores, 1 to 5, 1 best" in header.score_scale.meaning
    assert header.domain.modalities == ("CT", "US")  # what the files say, and what the domain's name begins with
    assert header.domain.description == "ct-made"
    training = header.training
    assert training.manifests == {"target": manifest.sha256, "source": worse.sha256}
    assert (training.recipe, training.seed, training.epochs, training.steps) == ("target-only", 9, 3, 6)
    assert (training.commit, training.results) == ("abc", {"srocc": 0.5})
    assert training.images_sha256 == tuple(sorted({image.source.sha256 for image in images}))


# saqm train


def run_train(out: Path, recipe: str, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"source": None, "target": None, "seed": 0, "towers": None, "resume": False, "say": quiet}
    return train_command(recipe=recipe, out=out, **{**given, **changes})


@pytest.fixture
def all_toml(tmp_path: Path) -> str:
    (tmp_path / "tiny.toml").write_text(ALL_TOML)
    return str(tmp_path / "tiny.toml")


@pytest.mark.slow
def test_train_makes_a_model_that_scores(tmp_path: Path, all_toml: str) -> None:
    manifest = made(tmp_path / "data")
    told: list[tuple[str, int, int]] = []
    said: list[str] = []
    result = run_train(
        tmp_path / "run", all_toml, target=tmp_path / "data" / "manifest.csv", say=said.append, commit="abc",
        on_step=lambda what, step, steps, logs: told.append((what, step, steps)),  # noqa: ARG005
    )  # fmt: skip
    assert said == ["16 scored images, 4 scenes, 16 ladders"]
    assert result["steps"] == 8
    assert told == [("opinions", step, 8) for step in range(1, 9)]
    assert np.isfinite(result["loss"])
    for key in ("model", "weights", "curve"):
        assert Path(result[key]).is_file()
    network, header = load_network(result["weights"])
    assert header.training.commit == "abc"
    assert header.training.recipe == "tiny"
    assert header.training.manifests == {"target": manifest.sha256}
    assert len(header.training.images_sha256) == 16
    assert header.domain.modalities == ("CT",)
    assert read_header(result["model"]).training == header.training
    image = read_image(manifest.rows[0].path)
    found = score(image, load_scorer(result["model"]))
    assert found.status == "scored"
    assert found.score_raw == pytest.approx(predict(network, image, RECIPE.preparation), abs=1e-4)

    with pytest.raises(TrainingError, match=r"opinions holds another run; choose another --out, or --resume"):
        run_train(tmp_path / "run", all_toml, target=tmp_path / "data" / "manifest.csv")


def test_train_resumes_to_the_same_weights_and_only_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_onnx: Callable[..., bytes]
) -> None:
    made(tmp_path / "data")
    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005  exports take long
    manifest = tmp_path / "data" / "manifest.csv"
    (tmp_path / "resumable.toml").write_text(ALL_TOML + "[teaching.loop]\ncheckpoint_every = 3\n")
    recipe = str(tmp_path / "resumable.toml")

    class Stopped(Exception):
        pass

    def stop(what: str, step: int, steps: int, logs: Mapping[str, float]) -> None:  # noqa: ARG001
        if step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        run_train(tmp_path / "run", recipe, target=manifest, on_step=stop)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = run_train(tmp_path / "run", recipe, target=manifest, resume=True)
    straight = run_train(tmp_path / "other", recipe, target=manifest)
    assert (resumed["steps"], resumed["loss"]) == (straight["steps"], straight["loss"])
    ours, theirs = (load_network(result["weights"])[0].state_dict() for result in (resumed, straight))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    (tmp_path / "other.toml").write_text(
        (tmp_path / "resumable.toml").read_text().replace("[teaching]", '[teaching]\nloss = "bce"')
    )
    with pytest.raises(TrainingError, match="opinions holds a run with another recipe; choose another --out"):
        run_train(tmp_path / "run", str(tmp_path / "other.toml"), target=manifest, resume=True)
    text = manifest.read_text()
    assert ",1.0," in text
    manifest.write_text(text.replace(",1.0,", ",1.5,"))
    with pytest.raises(TrainingError, match="opinions holds a run with another scores"):
        run_train(tmp_path / "run", recipe, target=manifest, resume=True)


@pytest.mark.parametrize(
    ("recipe", "sides", "message"),
    [
        ("target-only", ("source",), r"recipe 'target-only' learns from the target's scores: give --target MANIFEST"),
        ("target-only", ("source", "target"), r"reads no source manifest; leave --source out"),
        ("pooled", ("target",), r"recipe 'pooled' learns from the source's scores: give --source MANIFEST"),
        ("target-only", ("target",), r"teaches heads on towers taught before: give --towers \(see `saqm pretrain`\)"),
        ("targetonly", ("target",), r"no recipe 'targetonly'"),
    ],
)
def test_train_refuses_what_cannot_be_taught(tmp_path: Path, recipe: str, sides: tuple[str, ...], message: str) -> None:
    made(tmp_path / "data", scenes=1)
    with pytest.raises(TrainingError, match=message):
        run_train(tmp_path / "run", recipe, **dict.fromkeys(sides, tmp_path / "data" / "manifest.csv"))
    assert not (tmp_path / "run").exists()


# Two domains


def domains(folder: Path) -> tuple[Manifest, Manifest]:
    """A source, and a target that has its own scenes."""
    source, target = made(folder / "source", scenes=2), made(folder / "target", scenes=3)
    own = tuple(replace(row, scene=f"other {row.scene}", domain="us-made") for row in target.rows)
    target = replace(target, rows=own)
    write_manifest(target, folder / "target" / "manifest.csv")
    return source, target


def test_two_domains_are_taught_and_the_file_says_what_was_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_onnx: Callable[..., bytes]
) -> None:
    _, target = domains(tmp_path)
    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005  exports take long
    paths = {side: tmp_path / side / "manifest.csv" for side in ("source", "target")}
    (tmp_path / "heads.toml").write_text(
        ALL_TOML.replace("target-only", "unsupervised").replace('"all"', '"heads"\nfeatures = "32"')
    )
    towers = SAQM(TINY, seed=3)
    save_network(towers, header_for(
        towers, RECIPE, {}, [], name="towers", version="1", seed=0, steps=0, epochs=0, commit="", results={},
        licence="-", card="-",
    ), tmp_path / "towers.safetensors")  # fmt: skip
    said: list[str] = []
    result = run_train(
        tmp_path / "run", str(tmp_path / "heads.toml"), towers=tmp_path / "towers.safetensors", say=said.append, **paths
    )
    assert said == [
        "8 scored images, 5 scenes, 20 ladders",
        "12 of 12 scores of the target are not read: recipe 'heads'",
        "12 target images without scores are learnt from: a test on them is transductive",
    ]
    header = read_header(result["weights"])
    results: Any = header.training.results
    assert results["scores_read"] == {"source": 8, "target": 0}
    assert results["images_without_scores"] == {"source": 0, "target": 12}
    assert {"mmd", "proxy_a_distance"} <= results["first"].keys() == results["last"].keys()
    assert len(header.training.images_sha256) == len({read_image(r.path).source.sha256 for r in target.rows} | {
        read_image(r.path).source.sha256 for r in read_manifest(paths["source"]).rows
    })  # fmt: skip
    assert header.domain.features is not None
    assert header.domain.features.images == 12
    target_files = [read_image(row.path) for row in target.rows]
    wanted = window_statistics(load_network(result["weights"])[0], target_files, RECIPE)
    assert header.domain.features == wanted
    other = tmp_path / "semi.toml"
    other.write_text((tmp_path / "heads.toml").read_text().replace("unsupervised", "semi-supervised"))
    with pytest.raises(TrainingError, match="holds a run with another recipe"):
        run_train(tmp_path / "run", str(other), towers=tmp_path / "towers.safetensors", resume=True, **paths)


def test_a_whole_network_is_taught_on_two_domains_and_colour_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_onnx: Callable[..., bytes]
) -> None:
    source, _ = domains(tmp_path)
    for row in source.rows:
        with Pillow.open(row.path) as grey:
            Pillow.merge("RGB", [grey, grey, grey.point(lambda level: level // 2)]).save(row.path)
    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005  exports take long
    (tmp_path / "paper.toml").write_text("""
        base = "paper-semi-supervised"
        [architecture]
        width = 0.015625
        norm = "batch"
        [teaching]
        epochs = 1
        images_per_step = 4
        [alignment]
        base = "grl"
    """)
    said: list[str] = []
    paths = {side: tmp_path / side / "manifest.csv" for side in ("source", "target")}
    result = run_train(tmp_path / "run", str(tmp_path / "paper.toml"), say=said.append, **paths)
    assert len(said) == 2
    assert "what tells them apart is colour, not quality" in said[1]
    assert 'use a .toml recipe with [preparation] channels = "gray"' in said[1]
    assert read_header(result["weights"]).domain.features is None
    (tmp_path / "paper.toml").write_text((tmp_path / "paper.toml").read_text() + '[preparation]\nchannels = "gray"\n')
    said.clear()
    run_train(tmp_path / "grey", str(tmp_path / "paper.toml"), say=said.append, **paths)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("recipe", "sides", "message"),
    [
        ("unsupervised", ("source",), r"learns from the target's images \(their scores are not read\): give --target"),
        ("unsupervised", ("target",), r"recipe 'unsupervised' learns from the source's scores: give --source MANIFEST"),
        ("semi-supervised", ("source",), r"learns from the target's scores: give --target MANIFEST"),
        ("source-only", ("source", "target"), r"reads no target manifest; leave --target out"),
    ],
)
def test_a_missing_side_is_named(tmp_path: Path, recipe: str, sides: tuple[str, ...], message: str) -> None:
    made(tmp_path / "data", scenes=1)
    with pytest.raises(TrainingError, match=message):
        run_train(tmp_path / "run", recipe, **dict.fromkeys(sides, tmp_path / "data" / "manifest.csv"))


def test_folds_of_one_manifest_have_no_two_sides(tmp_path: Path) -> None:
    manifest = made(tmp_path / "data", scenes=2)
    recipe = replace(RECIPE, aligned=True)
    with pytest.raises(TrainingError, match="needs a source and a target, and one manifest has no sides"):
        finish_fold(manifest, folds(manifest, 2, 0)[0], recipe, None, seed=0, folder=tmp_path / "fold")


def transferring() -> Recipe:
    return replace(RECIPES["unsupervised"], architecture=TINY, teaching=replace(
        RECIPE.teaching, standardise="by-domain", ladders=0.0
    ))  # fmt: skip


def test_a_transfer_is_done_once_and_never_sees_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = domains(tmp_path)
    test = [row for row in target.rows if row.scene == "other scene 2"]
    sides: dict[Side, Manifest] = {
        "source": source, "target": replace(target, rows=tuple(row for row in target.rows if row not in test)),
    }  # fmt: skip
    towers, recipe = SAQM(TINY, seed=5), transferring()
    cache = Cache(towers, recipe)
    found = transfer(sides, test, recipe, towers, seed=0, folder=tmp_path / "a", cache=cache)
    assert len(found) == len(test)
    assert all(0 < value < 1 for value in found)
    plain = transfer(sides, test, recipe, towers, seed=0, folder=tmp_path / "b")
    assert plain == pytest.approx(found, abs=1e-5)
    unlike = [replace(row, score=0.5) for row in test]
    assert transfer(sides, unlike, recipe, towers, seed=0, folder=tmp_path / "c", cache=cache) == found
    with_test = replace(recipe, transductive=True)
    seen = transfer(sides, test, with_test, towers, seed=0, folder=tmp_path / "d", cache=cache)
    assert seen != found  # the test images' own statistics are in
    assert transfer(sides, unlike, with_test, towers, seed=0, folder=tmp_path / "e", cache=cache) == seen
    monkeypatch.setattr(experiments, "train", never)
    assert transfer(sides, test, recipe, towers, seed=0, folder=tmp_path / "a", cache=cache) == found
    with pytest.raises(TrainingError, match="holds a run with another towers"):
        transfer(sides, test, recipe, SAQM(TINY, seed=6), seed=0, folder=tmp_path / "a", cache=cache)
    with pytest.raises(ManifestError, match="training and test share 1 scenes: other scene 2"):
        transfer({**sides, "target": target}, test, recipe, towers, seed=0, folder=tmp_path / "f", cache=cache)


# saqm pretrain


def run_pretrain(out: Path, names: Sequence[str], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"twins": None, "recipe": None, "seed": 0, "resume": False, "say": quiet}
    return pretrain_command(names=names, out=out, **{**given, **changes})


@pytest.fixture
def pretrain_toml(tmp_path: Path) -> str:
    (tmp_path / "towers.toml").write_text(PRETRAIN_TOML)
    return str(tmp_path / "towers.toml")


def test_towers_are_taught_with_a_broken_file_left_out_and_carry_heads(
    tmp_path: Path, pretrain_toml: str, monkeypatch: pytest.MonkeyPatch, toy_onnx: Callable[..., bytes]
) -> None:
    manifest = made(tmp_path / "data")
    (tmp_path / "data" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more than that")
    names = [str(path) for path in sorted((tmp_path / "data").glob("*.png"))]
    said: list[str] = []
    told: list[tuple[str, int, int]] = []
    result = run_pretrain(
        tmp_path / "towers", names, twins=tmp_path / "data" / "manifest.csv", recipe=pretrain_toml, say=said.append,
        on_step=lambda what, step, steps, logs: told.append((what, step, steps)),  # noqa: ARG005
    )  # fmt: skip
    assert (result["images"], result["left_out"], result["steps"]) == (16, 1, 6)  # two stages of three steps
    assert told == [("towers", step, 3) for step in (1, 2, 3)] * 2
    (line,) = said
    assert line.startswith("left out: ")
    assert "broken.png" in line
    assert (tmp_path / "towers" / "curve.png").is_file()
    log = [json.loads(line) for line in (tmp_path / "towers" / "run" / "log.jsonl").read_text().splitlines()]
    assert all({"statistics", "differences", "makers"} <= entry.keys() for entry in log)  # twins and makers were found

    towers, header = load_network(result["towers"])
    assert header.training.manifests == {}
    assert header.training.images_sha256 == tuple(sorted({read_image(r.path).source.sha256 for r in manifest.rows}))
    monkeypatch.setattr("saqm.export.onnx_graph", lambda network: toy_onnx())  # noqa: ARG005  exports take long
    (tmp_path / "heads.toml").write_text(ALL_TOML.replace('trains = "all"', 'trains = "heads"\nfeatures = "32"'))
    model = run_train(
        tmp_path / "run", str(tmp_path / "heads.toml"),
        target=tmp_path / "data" / "manifest.csv", towers=tmp_path / "towers",
    )  # fmt: skip
    network, _ = load_network(model["weights"])
    for name, value in towers.state_dict().items():
        if not name.startswith("heads."):
            assert torch.equal(network.state_dict()[name], value), name


def test_pictures_alone_teach_through_degraded_copies(tmp_path: Path, pretrain_toml: str) -> None:
    made(tmp_path / "data", scenes=1)
    (tmp_path / "none.toml").write_text("degraded = 0.0\n" + PRETRAIN_TOML)
    names = [str(path) for path in sorted((tmp_path / "data").glob("*.png"))]
    said: list[str] = []
    for number, recipe in enumerate((str(tmp_path / "none.toml"), pretrain_toml)):
        run_pretrain(tmp_path / f"towers-{number}", names, recipe=recipe, say=said.append)
        log = (tmp_path / f"towers-{number}" / "run" / "log.jsonl").read_text().splitlines()
        assert any("differences" in json.loads(line) for line in log)
    assert said == ["no twins: half of the windows are degraded copies, whose twin is their original"]


def test_pretrain_resumes_only_what_was_asked(tmp_path: Path, pretrain_toml: str) -> None:
    made(tmp_path / "data", scenes=1)
    names = [str(path) for path in sorted((tmp_path / "data").glob("*.png"))]
    (tmp_path / "towers" / "run").mkdir(parents=True)
    (tmp_path / "towers" / "run" / "asked.json").write_text('{"seed": 9}')  # asked, and stopped before it began
    first = run_pretrain(tmp_path / "towers", names, recipe=pretrain_toml)
    assert run_pretrain(tmp_path / "towers", names, recipe=pretrain_toml, resume=True) == first
    with pytest.raises(TrainingError, match="run holds a run with another images; choose another --out"):
        run_pretrain(tmp_path / "towers", names[1:], recipe=pretrain_toml, resume=True)


def test_pretrain_refuses_what_it_cannot_learn_from(tmp_path: Path, pretrain_toml: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"no image to learn from \(1 could not be read\)"):
        run_pretrain(tmp_path / "towers", [str(tmp_path / "broken.png")], recipe=pretrain_toml)
    (tmp_path / "bad.toml").write_text("stepz = 3")
    with pytest.raises(TrainingError, match=r"bad\.toml: unknown field 'stepz'; did you mean 'steps'"):
        run_pretrain(tmp_path / "towers", [], recipe=str(tmp_path / "bad.toml"))
    (tmp_path / "bad.toml").write_text("steps = ")
    with pytest.raises(TrainingError, match=r"bad\.toml: cannot be read as a recipe"):
        run_pretrain(tmp_path / "towers", [], recipe=str(tmp_path / "bad.toml"))
    (tmp_path / "towers" / "run").mkdir(parents=True)
    (tmp_path / "towers" / "run" / "log.jsonl").write_text("{}\n")
    with pytest.raises(TrainingError, match=r"run holds another run"):
        run_pretrain(tmp_path / "towers", [], recipe=pretrain_toml)


# saqm evaluate --folds


@pytest.mark.parametrize("by_method", [False, True])
def test_cross_validation_writes_its_predictions_and_judges_them(
    tmp_path: Path, all_toml: str, by_method: bool
) -> None:
    manifest = made(tmp_path / "data")
    evaluation = cross_validate_command(
        manifest, recipe=all_toml, folds=2, by_method=by_method, judged_only=False, seed=0, out=tmp_path / "out"
    )
    read = read_predictions(tmp_path / "out" / "predictions.csv")
    assert len(read) == (12 if by_method else 16)
    assert {prediction.fold for prediction in read} == set(range(4 if by_method else 2))
    assert all(0 <= p.prediction <= 4 for p in read if p.prediction is not None)
    assert evaluation.result("ct-made").n == len(read)


def test_cross_validation_of_too_few_scenes_is_refused(tmp_path: Path, all_toml: str) -> None:
    manifest = made(tmp_path / "data", scenes=2)
    with pytest.raises(SaqmError, match="scenes"):
        cross_validate_command(
            manifest, recipe=all_toml, folds=5, by_method=False, judged_only=False, seed=0, out=tmp_path / "out"
        )
