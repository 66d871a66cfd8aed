"""The comparison with the classical metrics, on a study made here: textures, noise and blur, scores by strength."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from saqm.cli import app
from saqm.errors import ManifestError, TrainingError
from saqm.manifest import read_manifest
from saqm.metrics import METRICS
from saqm.table3 import PUBLISHED, Table3, table3

SCENES, SIDE = 20, 200
VERSIONS = {"clean": (0.0, 0.0, 5.0), "grainy": (12.0, 0.0, 3.0), "noisy": (40.0, 0.0, 1.0), "soft": (0.0, 2.5, 2.0)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 pictures: a clean texture a scene, and three versions of it with the opinion that their making suggests."""
    folder = tmp_path_factory.mktemp("study")
    lines = ["path,score,scene,domain,method,reference"]
    for scene in range(SCENES):
        rng = np.random.default_rng(scene)
        texture = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 0.8) + 2 * gaussian_filter(
            rng.normal(size=(SIDE, SIDE)), 3
        )
        clean = 128 + 45 * texture / texture.std()
        for method, (noise, blur, score) in VERSIONS.items():
            pixels = gaussian_filter(clean, blur) + noise * rng.normal(size=clean.shape)
            name = f"{scene:02d}_{method}.png"
            PillowImage.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(folder / name)
            opinion = score + 0.02 * (scene % 7)  # readers are never of one mind
            lines.append(f"{name},{min(opinion, 5.0)},scene-{scene},texture,{method},{str(method == 'clean').lower()}")
    (folder / "study.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "study.json").write_text('{"scale": [1, 5], "higher_is_better": true}', encoding="utf-8")
    return folder / "study.csv"


@pytest.fixture(scope="module")
def made(study: Path) -> Table3:
    return table3(read_manifest(study), k=2, replicates=200)


@pytest.mark.slow
def test_every_metric_stands_there_and_the_trained_ones_twice(made: Table3) -> None:
    names = {result.name for result in made.results("texture")}
    assert {f"{metric.title}, as it comes" for metric in METRICS.values()} <= names
    assert {n.removesuffix(", refitted") for n in names if n.endswith("refitted")} == {
        "BRISQUE", "NIQE", "NIQE-K", "BLIINDS-II"
    }  # fmt: skip
    assert "SAQM (saqm-ct)" in names
    assert made.blind == {n for n in names if "as it comes" in n or "refitted" in n or n.startswith("SAQM")}
    assert set(made.published) == {n for n in made.blind if not n.endswith("refitted")}  # the paper refitted nothing


@pytest.mark.slow
def test_refitting_to_opinions_pays_where_quality_is_in_the_features(made: Table3) -> None:
    by_name = {result.name: result for result in made.results("texture")}
    refitted = by_name["BRISQUE, refitted"].srocc
    assert refitted is not None
    assert refitted > 0.9  # noise and blur of these strengths are plain to its features
    assert all(result.rmse is None and result.mae is None for n, result in by_name.items() if "it comes" in n)


@pytest.mark.slow
def test_the_best_comes_first_and_the_others_stand_at_their_distance_to_it(made: Table3) -> None:
    results = made.results("texture")
    blind = [result for result in results if result.name in made.blind]
    assert results[: len(blind)] == blind
    assert [r.srocc for r in blind] == sorted(
        (r.srocc for r in blind), key=lambda s: -2 if s is None else s, reverse=True
    )
    assert {c.second for c in made.to_best if c.domain == "texture"} == {blind[0].name}
    assert all(c.difference <= 0 for c in made.to_best)
    assert all(c.p_holm >= c.p for c in made.to_best)


@pytest.mark.slow
def test_the_tables_say_the_same(made: Table3) -> None:
    rows = list(csv.DictReader(io.StringIO(made.to_csv())))
    assert {row["predictor"] for row in rows} == {result.name for result in made.evaluation.results}
    niqe = next(row for row in rows if row["predictor"] == "NIQE, as it comes")
    assert (niqe["published_plcc"], niqe["published_srocc"]) == ("0.4970", "0.2770")
    content = json.loads(made.to_json())
    assert content["published"]["NIQE, as it comes"] == {"plcc": 0.497, "srocc": 0.277}
    text = made.to_markdown()
    assert "runs against it" in text
    assert f"{float(niqe['srocc']):.3f}" in text


@pytest.mark.slow
def test_the_command_writes_its_files(study: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [
        "experiment", "table3", "--manifest", str(study), "--folds", "2", "--out", str(tmp_path / "t"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "table3.csv", "table3.json", "table3.md", "table3.png"
    ]  # fmt: skip
    assert (tmp_path / "t" / "table3.md").read_text(encoding="utf-8") == done.stdout


def test_the_published_table_names_every_metric() -> None:
    assert set(PUBLISHED) == {*METRICS, "saqm"}


def test_a_study_without_scale_is_refused(study: Path) -> None:
    (study.with_name("bare.csv")).write_text(study.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ManifestError, match="no scale"):
        table3(read_manifest(study.with_name("bare.csv")), k=2)


def test_a_study_without_references_says_what_is_missing(study: Path) -> None:
    text = study.read_text(encoding="utf-8").replace("true", "false")
    (study.with_name("unmarked.csv")).write_text(text, encoding="utf-8")
    (study.with_name("unmarked.json")).write_text(
        study.with_suffix(".json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    with pytest.raises(TrainingError, match="no reference among the training scenes"):
        table3(read_manifest(study.with_name("unmarked.csv")), k=2)
