"""The paper's configurations from one domain to another, hurried, on a study made here."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from saqm.cli import app
from saqm.errors import ManifestError
from saqm.manifest import read_manifest
from saqm.table2 import COMPARED, CONFIGURATIONS, table2

SIDE = 96
VERSIONS = {"clean": (0.0, 0.0, 5.0), "grainy": (15.0, 0.0, 3.0), "noisy": (45.0, 0.0, 1.5), "soft": (0.0, 2.0, 2.5)}


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


@pytest.mark.slow
def test_the_command_runs_both_ways_and_says_that_quick_means_nothing(study: tuple[Path, Path], tmp_path: Path) -> None:
    asked = ["experiment", "table2", "--source", str(study[0]), "--target", str(study[1]), "--both", "--quick"]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "These numbers show that it runs and mean nothing" in done.stdout
    assert "| fine → coarse |" in done.stdout
    assert "| coarse → fine |" in done.stdout
    rows = list(csv.DictReader(io.StringIO((tmp_path / "table2_runs.csv").read_text(encoding="utf-8"))))
    assert {(row["source"], row["target"]) for row in rows} == {("fine", "coarse"), ("coarse", "fine")}
    assert {row["configuration"] for row in rows} == {one.name for one in CONFIGURATIONS}
    assert all(row["images"] == "16" for row in rows)  # every judged image of the target, each once
    assert (tmp_path / "table2.png").stat().st_size > 10_000
    again = CliRunner().invoke(app, [*asked, "--out", str(tmp_path)])  # nothing is done twice
    assert again.stdout == done.stdout


def test_the_four_configurations_of_the_paper_and_the_control_are_there() -> None:
    assert {one.number for one in CONFIGURATIONS} == {1, 2, 3, 4, None}
    by_name = {one.name: one.recipe for one in CONFIGURATIONS}
    assert by_name["unsupervised, GRL"].alignment.kind == "grl"
    assert by_name["unsupervised, GRL"].scored_on == ("source",)
    assert by_name["semi-supervised"].scored_on == by_name["pooled"].scored_on == ("source", "target")
    assert not by_name["pooled"].aligned
    assert not any(one.recipe.transductive for one in CONFIGURATIONS)
    assert COMPARED in by_name


def test_one_domain_is_no_transfer(study: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="both of the domain 'fine'"):
        table2(read_manifest(study[0]), read_manifest(study[0]), k=2, seeds=1, folder=tmp_path)


def test_a_manifest_of_two_domains_is_refused(study: tuple[Path, Path], tmp_path: Path) -> None:
    fine, coarse = map(read_manifest, study)
    with pytest.raises(ManifestError, match="has the domains coarse, fine: wanted is one a manifest"):
        table2(replace(fine, rows=(*fine.rows, *coarse.rows)), coarse, k=2, seeds=1, folder=tmp_path)
