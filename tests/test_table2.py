"""The paper's configurations from one domain to another: hurried, on a study made here, and on a slice of the real."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from saqm.adaptation import ALIGNMENTS
from saqm.cli import app
from saqm.errors import ManifestError, TrainingError
from saqm.evaluate import ORACLE
from saqm.image import from_array, read_image
from saqm.manifest import folds, read_manifest
from saqm.table2 import (
    COMPARED,
    CONFIGURATIONS,
    MAPPED,
    TEXTURE,
    Configuration,
    Table2,
    _joint,
    _of_texture,
    table2,
)
from saqm.table2_report import _QUICK, _hurried, _over_the_run, to_block, to_json, to_markdown
from saqm.texture import RIDGE, fit_ridge, standardised, texture_statistics

ROOT = Path(__file__).parents[1]
SIDE = 96
VERSIONS = {"clean": (0.0, 0.0, 5.0), "grainy": (15.0, 0.0, 3.0), "noisy": (45.0, 0.0, 1.5), "soft": (0.0, 2.0, 2.5)}
HURRIED = {one.name: _hurried(one) for one in CONFIGURATIONS}
PICTURES = ("table2.png", "table2_labels.png", "table2_learning.png", "table2_scatter.png")


def write_domain(folder: Path, domain: str, grain: float) -> Path:
    """Four scenes of a texture, three versions each beside the clean one, as a manifest."""
    lines = ["path,score,scene,domain,method,reference"]
    for scene in range(4):
        rng = np.random.default_rng([scene, int(10 * grain)])
        clean = gaussian_filter(rng.normal(size=(SIDE, SIDE)), grain)
        clean = 128 + 40 * clean / clean.std()
        for method, (noise, blur, score) in VERSIONS.items():
            pixels = gaussian_filter(clean, blur) + noise * rng.normal(size=clean.shape)
            name = f"{domain}_{scene}_{method}.png"
            PillowImage.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},{score + 0.05 * scene},{domain}-{scene},{domain},{method},{method == 'clean'}")
    (folder / f"{domain}.json").write_text('{"scale": [1, 6], "higher_is_better": true}', encoding="utf-8")
    path = folder / f"{domain}.csv"
    path.write_text("\n".join(lines).replace("True", "true").replace("False", "false") + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("study")
    return write_domain(folder, "fine", 1.0), write_domain(folder, "coarse", 2.5)


def hurried_table(study: tuple[Path, Path], folder: Path, configurations: Sequence[Configuration]) -> Table2:
    return table2(
        *map(read_manifest, study), k=2, seeds=1, folder=folder, pretraining=_QUICK, configurations=configurations,
        replicates=20,
    )  # fmt: skip


# The command


@pytest.mark.slow
def test_the_command_leaves_tables_and_pictures_and_does_nothing_twice(
    study: tuple[Path, Path], tmp_path: Path
) -> None:
    asked = ["experiment", "table2", "--source", str(study[0]), "--target", str(study[1]), "--quick"]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "These numbers show that it runs and mean nothing" in done.stdout
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table2_runs.csv").read_text(encoding="utf-8"))))
    assert {row["configuration"] for row in rows} == {one.name for one in CONFIGURATIONS}
    assert all(row["images"] == "16" for row in rows)  # every judged image of the target, each once
    for name in (*PICTURES, "table2_features_fine_to_coarse.png"):
        with PillowImage.open(tmp_path / name) as picture:
            assert picture.width > 500, name
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("predictions.json")}
    again = CliRunner().invoke(app, [*asked, "--json", "--out", str(tmp_path)])
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again.stdout == (tmp_path / "table2.json").read_text(encoding="utf-8")
    (direction,) = json.loads(again.stdout)
    assert (direction["source"], direction["target"], direction["stopped"]) == ("fine", "coarse", {})
    assert {one["name"] for one in direction["results"]} >= {*HURRIED, *TEXTURE, ORACLE}


@pytest.mark.slow
def test_the_command_runs_both_ways_on_a_slice_of_the_real_study(ct_study: Path, tmp_path: Path) -> None:
    """Both organs, two scenes each, the anchors and three denoisers: the real files, masks, readers and folds."""
    manifests = []
    for organ in ("abdomen", "brain"):
        path = tmp_path / f"{organ}.csv"
        made = CliRunner().invoke(app, ["data", "ct-reader-study", str(ct_study), "--organ", organ, "--out", str(path)])
        assert made.exit_code == 0, made.output
        whole = read_manifest(path)
        scenes = sorted({row.scene for row in whole.rows})[:2]
        denoisers = sorted({str(row.method) for row in whole.rows if row.judged})[:3]
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        kept = [
            line
            for line, row in zip(lines, whole.rows, strict=True)
            if row.scene in scenes and (row.method in denoisers or not row.judged)
        ]
        path.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")
        manifests.append(str(path))
    out = tmp_path / "out"
    asked = ["experiment", "table2", "--source", manifests[0], "--target", manifests[1], "--both", "--quick"]
    done = CliRunner().invoke(app, [*asked, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "| ct-abdomen → ct-brain |" in done.stdout
    assert "| ct-brain → ct-abdomen |" in done.stdout
    assert "stopped" not in done.stdout
    directions = json.loads((out / "table2.json").read_text(encoding="utf-8"))
    for one in directions:
        found = {result["name"]: result for result in one["results"]}
        assert {*HURRIED, *TEXTURE, "reader 1 against the others"} <= set(found)
        assert all(found[name]["n"] == 6 for name in (*HURRIED, *TEXTURE))  # the judged ones, anchors left out
    assert all((out / name).stat().st_size > 10_000 for name in PICTURES)


# Its rows


def test_the_four_configurations_of_the_paper_and_the_controls_are_there() -> None:
    assert {one.number for one in CONFIGURATIONS} == {1, 2, 3, 4, None}
    by_name = {one.name: one.recipe for one in CONFIGURATIONS}
    assert {recipe.alignment.kind for recipe in by_name.values() if recipe.aligned} == {
        one.kind for one in ALIGNMENTS.values()
    }
    for name, recipe in by_name.items():
        if name.startswith(("unsupervised", "source-only")):
            assert recipe.scored_on == ("source",), name
    shares = [one.recipe.labelled for one in CONFIGURATIONS if one.name.startswith("semi-supervised")]
    assert shares == [0.05, 0.1, 0.25, 0.5, 1.0]
    assert by_name["semi-supervised"].scored_on == by_name["pooled"].scored_on == ("source", "target")
    assert not by_name["pooled"].aligned
    assert not any(one.recipe.transductive for one in CONFIGURATIONS)
    assert {COMPARED, MAPPED} <= set(by_name)


@pytest.mark.slow
def test_a_configuration_that_stops_does_not_cost_the_others(study: tuple[Path, Path], tmp_path: Path) -> None:
    spoilt = HURRIED["pooled"]
    loop = replace(spoilt.recipe.teaching.loop, learning_rate=1e30, schedule="constant")
    spoilt = replace(spoilt, recipe=replace(spoilt.recipe, teaching=replace(spoilt.recipe.teaching, loop=loop)))
    made = hurried_table(study, tmp_path, [HURRIED[COMPARED], spoilt])
    assert list(made.stopped) == ["pooled"]
    assert "fold 0, seed 0: step 1: " in made.stopped["pooled"]
    assert {run.configuration for run in made.runs} == {COMPARED}
    assert "pooled" not in {one.name for one in made.evaluation.results}
    assert "| pooled | stopped: fold 0, seed 0: step 1: " in to_markdown([made])
    block = to_block(json.loads(to_json([made])), "table2.md")
    assert "| pooled | stopped |  |" in block
    with pytest.raises(TrainingError, match="every configuration was stopped; pooled: fold 0, seed 0: step 1"):
        hurried_table(study, tmp_path, [spoilt])


@pytest.mark.slow
def test_features_are_mapped_before_and_after_on_held_out_images(study: tuple[Path, Path], tmp_path: Path) -> None:
    """Before: one scale for both, so the domains lie apart; after: each on its own."""
    mapped = hurried_table(study, tmp_path, [HURRIED[MAPPED]]).mapped
    assert mapped is not None
    for features in (mapped.before, mapped.after):
        assert {domain: len(values) for domain, values in features.items()} == {"fine": 8, "coarse": 8}
    assert mapped.quality["coarse"].min() >= 0
    assert mapped.quality["coarse"].max() <= 1

    def gap(features: object) -> float:
        assert isinstance(features, dict)
        return float(np.linalg.norm(features["fine"].mean(0) - features["coarse"].mean(0)))

    assert gap(mapped.after) < 0.5 * gap(mapped.before)


def test_one_domain_is_no_transfer(study: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="both of the domain 'fine'"):
        table2(read_manifest(study[0]), read_manifest(study[0]), k=2, seeds=1, folder=tmp_path)


def test_a_manifest_of_two_domains_is_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    fine, coarse = map(read_manifest, study)
    with pytest.raises(ManifestError, match="has the domains coarse, fine: wanted is one a manifest"):
        table2(replace(fine, rows=(*fine.rows, *coarse.rows)), coarse, k=2, seeds=1, folder=tmp_path)


# Texture statistics


def test_the_ridge_is_scikit_learn_s() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    values, scores, others = rng.normal(size=(30, 50)), rng.normal(size=30), rng.normal(size=(5, 50))
    weights, offset = fit_ridge(values, scores)
    np.testing.assert_allclose(others @ weights + offset, Ridge(RIDGE).fit(values, scores).predict(others), atol=1e-10)
    with pytest.raises(TrainingError, match="1 scored images; a regression needs at least 2"):
        fit_ridge(values[:1], scores[:1])


def test_a_statistic_that_is_the_same_in_all_training_images_says_nothing() -> None:
    by = np.array([[1.0, 3.0], [1.0, 5.0]])
    np.testing.assert_array_equal(standardised(np.array([[7.0, 6.0]]), by), [[0.0, 2.0]])


def test_texture_statistics_are_means_and_sds_over_windows() -> None:
    rng = np.random.default_rng(0)
    plain = rng.uniform(0.4, 0.6, (96, 96)).astype(np.float32)
    halves = np.where(np.arange(96) < 48, 0.5 + (plain - 0.5) / 10, plain).astype(np.float32)
    even, uneven = (texture_statistics(from_array(pixels)) for pixels in (plain, halves))
    assert even.shape == (84,)
    assert (uneven[42:56] > even[42:56]).all()  # power in rings: spread over windows where the grain is
    assert (uneven[:14] < even[:14]).all()  # and less of it in the mean


@pytest.mark.parametrize("by_domain", TEXTURE.values(), ids=TEXTURE)
def test_a_held_out_image_gives_texture_no_scale_and_its_opinion_is_not_read(
    study: tuple[Path, Path], by_domain: bool
) -> None:
    fine, coarse = map(read_manifest, study)
    textures = {row.path: texture_statistics(read_image(row.path)) for row in (*fine.rows, *coarse.rows)}
    divided = folds(_joint(fine, coarse), 2, 0)
    found = _of_texture(fine, coarse, divided, textures, by_domain)
    assert all(value is not None for value in found)
    blind = replace(coarse, rows=tuple(replace(row, score=1 + row.score / 9) for row in coarse.rows if row.score))
    assert _of_texture(fine, blind, divided, textures, by_domain) == found
    changed = coarse.rows[0]
    mates = [i for i, row in enumerate(coarse.rows) if row.scene == changed.scene]
    others = _of_texture(fine, coarse, divided, textures | {changed.path: textures[changed.path] + 9}, by_domain)
    assert others[0] != found[0]
    assert [others[i] for i in mates[1:]] == [found[i] for i in mates[1:]]


# What is written


def test_a_run_is_followed_from_its_first_step_to_its_last() -> None:
    """What is logged now and then is joined by lines; what is logged in every step is smoothed, and keeps its mean."""
    log = [{"step": float(step), "every": float(step % 2), "rare": float(step)} for step in range(201)]
    for entry in log:
        if entry["step"] % 100:
            del entry["rare"]
    np.testing.assert_allclose(_over_the_run(log, "rare"), np.arange(0, 201, 2.0))
    assert np.ptp(_over_the_run(log, "every")) < 0.2
    assert _over_the_run(log, "every").mean() == pytest.approx(0.5, abs=0.05)


def test_the_block_of_the_pages_rounds_and_names_what_has_no_number() -> None:
    result = {"name": COMPARED, "srocc": -0.1044, "srocc_interval": [-0.306, 0.083]}
    ways = [
        {"source": "a", "target": "b", "folds": 4, "seeds": 3, "stopped": {"pooled": "why"}, "results": [result]},
        {"source": "b", "target": "a", "folds": 4, "seeds": 3, "stopped": {}, "results": [{**result, "srocc": None}]},
    ]
    lines = to_block(ways, "x/table2.md").splitlines()
    assert lines[0] == "| SROCC with the readers, new scenes of the target | a → b | b → a | paper, MD72* |"
    assert lines[2:4] == ["| source-only | -0.10 [-0.31, 0.08] | undefined | 0.56 |", "| pooled | stopped |  |  |"]
    assert lines[-1].endswith("[benchmarks/results/table2.md](x/table2.md).")
    assert "3 seeds, 4 folds" in lines[-2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_table2", ROOT / "docs" / "generate_table2.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_quote_the_committed_table() -> None:
    script = generator()
    for page in script.PAGES:
        assert page.read_text(encoding="utf-8") == script.filled(page), f"{page.name}: docs/generate_table2.py"
